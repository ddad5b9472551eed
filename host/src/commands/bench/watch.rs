//! A fleet that is observed while it does its work.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::args::Busy;
use super::busy::{Progress, Work};
use super::report::{self, Measured};
use crate::backend::{Backend, BackendError, Event, EventKind, Launches};
use crate::exit::{Code, sentence};

/// Time from the last VM that is ready to the measurement of idle ones, for boots to end.
const SETTLE: Duration = Duration::from_secs(1);
/// Time from the last busy VM's beginning to the measurement. Instruction counts of the single VMs
/// are published by then.
const WARM_UP: Duration = Duration::from_secs(2);
/// Rounds of a VM of which the mean is taken.
const ROUNDS: u64 = 8;
/// Interval at which the fleet's frames are sampled.
const GLANCE: Duration = Duration::from_millis(50);
const FRAME: u64 = emu_core::mem::FRAME_SIZE as u64;

/// Why a line has no numbers.
#[derive(Debug)]
pub enum BenchError {
    /// The backend failed.
    Backend(BackendError),
    /// The time limit was reached.
    Time,
    /// A guest did something unexpected.
    Guest(String),
}

impl BenchError {
    /// Returns what a line says that has no numbers; `timeout` is its time limit.
    pub fn note(&self, timeout: Duration) -> String {
        match self {
            Self::Backend(error) => sentence(error),
            Self::Time => format!("not done after {} s", timeout.as_secs_f64()),
            Self::Guest(what) => what.clone(),
        }
    }

    /// Returns the exit code.
    pub fn code(&self) -> Code {
        match self {
            Self::Backend(_) => Code::Failure,
            Self::Time => Code::Timeout,
            Self::Guest(_) => Code::Guest,
        }
    }
}

/// A sample of a run.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    instructions: u64,
    launches: Option<Launches>,
    host: Duration,
}

/// What was seen of a fleet.
pub struct Seen {
    start: Moment,
    end: Moment,
    /// Of busy VMs.
    pub work: Option<report::Work>,
}

/// A fleet that is observed while it runs.
pub struct Watch {
    backend: Arc<dyn Backend>,
    begun: Moment,
    limit: Instant,
    frames: u32,
}

impl Watch {
    /// Starts a fleet; its time runs from here.
    pub fn start<E>(
        timeout: Duration,
        start: impl FnOnce() -> Result<Arc<dyn Backend>, E>,
    ) -> Result<Self, E> {
        let (at, host) = (Instant::now(), cpu_time());
        let backend = start()?;
        let launches = backend.launches().map(|_| Launches::default());
        let begun = Moment { at, instructions: 0, launches, host };
        let limit = at.checked_add(timeout).unwrap_or(at + Duration::from_secs(1 << 30));
        Ok(Self { backend, begun, limit, frames: 0 })
    }

    /// Returns the next event before `end`, if there is one.
    fn next(&mut self, end: Instant) -> Result<Option<Event>, BenchError> {
        loop {
            let look = end.min(Instant::now() + GLANCE);
            let event = self.backend.events().recv_deadline(look);
            self.frames = self.frames.max(self.backend.totals().private_frames);
            match event {
                Ok(event) => return Ok(Some(event)),
                Err(e) if e.is_disconnected() => {
                    return Err(BenchError::Backend(self.backend.failure()));
                }
                Err(_) if look < end => {}
                Err(_) => return Ok(None),
            }
        }
    }

    /// Returns the next event, which must come before the time limit.
    fn expect(&mut self) -> Result<Event, BenchError> {
        let limit = self.limit;
        self.next(limit)?.ok_or(BenchError::Time)
    }

    /// Waits until every VM is ready. Returns the beginning and the end of what is measured.
    pub fn boot(&mut self, count: u32) -> Result<Seen, BenchError> {
        let mut left = count;
        while left > 0 {
            let Event { vm, kind, .. } = self.expect()?;
            match kind {
                EventKind::Ready => left -= 1,
                EventKind::Console(_) | EventKind::Reset | EventKind::Completed(..) => {}
                EventKind::Halted(_) => {
                    return Err(BenchError::Guest(format!("vm{vm} powered off")));
                }
                EventKind::Faulted(reason) => {
                    return Err(BenchError::Guest(format!("vm{vm} faulted: {reason}")));
                }
            }
        }
        Ok(Seen { start: self.begun, end: Moment::of(self.backend.as_ref()), work: None })
    }

    /// Waits until every VM has computed, and compares what each has printed with `results`, which
    /// are made after that.
    pub fn compute<R: Fn(u32) -> [u8; 4]>(
        &mut self,
        count: u32,
        results: impl FnOnce() -> R,
    ) -> Result<Seen, BenchError> {
        let mut printed: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut left = count;
        while left > 0 {
            let Event { vm, kind, .. } = self.expect()?;
            match kind {
                EventKind::Console(bytes) => printed.entry(vm).or_default().extend(bytes),
                EventKind::Halted(0) => left -= 1,
                other => {
                    return Err(BenchError::Guest(format!("vm{vm} did not compute: {other:?}")));
                }
            }
        }
        let end = Moment::of(self.backend.as_ref());
        let results = results();
        for vm in 0..count {
            let (found, expected) = (printed.get(&vm).map_or(&[][..], Vec::as_slice), results(vm));
            if found != expected {
                let what = format!("vm{vm} computed {found:02x?}, which should be {expected:02x?}");
                return Err(BenchError::Guest(what));
            }
        }
        Ok(Seen { start: self.begun, end, work: None })
    }

    /// Boots, and then observes VMs that wait.
    pub fn idle(&mut self, count: u32, time: Duration) -> Result<Seen, BenchError> {
        self.boot(count)?;
        self.pass(SETTLE)?;
        let start = Moment::of(self.backend.as_ref());
        self.pass(time)?;
        Ok(Seen { start, end: Moment::of(self.backend.as_ref()), work: None })
    }

    /// Boots, starts work in every VM, and measures it for `time`. Every result is checked.
    pub fn busy(&mut self, count: u32, busy: Busy, time: Duration) -> Result<Seen, BenchError> {
        let mut progress = vec![Progress::default(); count as usize];
        let limit = self.limit;
        let begun = self.work(&mut progress, busy, limit, Progress::has_begun)?;
        if !begun {
            return Err(BenchError::Time);
        }
        let never = |_: &Progress| false;
        self.backend.watched();
        self.work(&mut progress, busy, Instant::now() + WARM_UP, never)?;
        let start = self.sample(&progress);
        let end = start.moment.at.checked_add(time).ok_or(BenchError::Time)?;
        // Counts of single VMs cost a little time, so not during all of it.
        self.work(&mut progress, busy, end.checked_sub(WARM_UP).unwrap_or(end), never)?;
        self.backend.watched();
        self.work(&mut progress, busy, end, never)?;
        let end = self.sample(&progress);
        // A slow VM may still show that it works, and works right.
        let checked = |progress: &Progress| progress.rounds() > 0;
        self.work(&mut progress, busy, limit, checked)?;
        for (vm, progress) in (0..).zip(&progress) {
            progress.check(Work::of(busy, vm), vm).map_err(BenchError::Guest)?;
        }
        let unchecked = progress.iter().filter(|progress| !checked(progress)).count() as u32;
        let retired = start.retired.iter().zip(&end.retired).map(|(a, b)| b.saturating_sub(*a));
        let (rounds, least_share) = (end.rounds - start.rounds, least_share(retired.collect()));
        let work = Some(report::Work { rounds, unchecked, least_share });
        Ok(Seen { start: start.moment, end: end.moment, work })
    }

    /// Boots, starts work in every VM, and returns the instructions that a round of each takes.
    pub fn costs(&mut self, count: u32, busy: Busy) -> Result<Vec<f64>, BenchError> {
        let mut progress = vec![Progress::default(); count as usize];
        let limit = self.limit;
        let enough = |progress: &Progress| progress.rounds() >= ROUNDS;
        if !self.work(&mut progress, busy, limit, enough)? {
            return Err(BenchError::Time);
        }
        Ok(progress.iter().map(Progress::cost).collect())
    }

    /// Passes console output on to `progress` until it is `done` for every VM, or until `end`.
    /// A VM gets its work when it is ready. Returns whether all are done.
    fn work(
        &mut self,
        progress: &mut [Progress],
        busy: Busy,
        end: Instant,
        done: impl Fn(&Progress) -> bool,
    ) -> Result<bool, BenchError> {
        let mut left = progress.iter().filter(|progress| !done(progress)).count();
        while left > 0 {
            let Some(Event { vm, instret, kind }) = self.next(end)? else { return Ok(false) };
            match kind {
                EventKind::Ready => {
                    let line = Work::of(busy, vm).line();
                    self.backend.input(vm, format!("{line}\n").as_bytes());
                }
                EventKind::Console(bytes) => {
                    let Some(progress) = progress.get_mut(vm as usize) else { continue };
                    let before = done(progress);
                    progress.feed(&bytes, instret);
                    left -= usize::from(!before && done(progress));
                }
                EventKind::Completed(..) => {}
                other => return Err(BenchError::Guest(format!("vm{vm} did not work: {other:?}"))),
            }
        }
        Ok(true)
    }

    fn sample(&self, progress: &[Progress]) -> Sample {
        let vms = 0..progress.len() as u32;
        Sample {
            moment: Moment::of(self.backend.as_ref()),
            rounds: progress.iter().map(Progress::rounds).sum(),
            retired: vms.map(|vm| self.backend.instret(vm)).collect(),
        }
    }

    /// Waits for `time`; no VM may end meanwhile.
    fn pass(&mut self, time: Duration) -> Result<(), BenchError> {
        let now = Instant::now();
        let end = now.checked_add(time).ok_or(BenchError::Time)?;
        while let Some(Event { vm, kind, .. }) = self.next(end)? {
            if matches!(kind, EventKind::Halted(_) | EventKind::Faulted(_)) {
                return Err(BenchError::Guest(format!("vm{vm} did not stay idle: {kind:?}")));
            }
        }
        Ok(())
    }

    /// Returns what was measured.
    pub fn measured(&self, seen: &Seen, count: u32) -> Measured {
        let Seen { start, end, work } = seen;
        let wall = end.at - start.at;
        let instructions = end.instructions.saturating_sub(start.instructions);
        let launched = start.launches.zip(end.launches);
        let device = launched.map(|(a, b)| b.time.saturating_sub(a.time));
        let overhead = |device: Duration| {
            (1.0 - device.as_secs_f64() / wall.as_secs_f64().max(1e-9)).clamp(0.0, 1.0)
        };
        Measured {
            launches: launched.map(|(a, b)| b.count - a.count),
            device,
            launch_overhead: device.map(overhead),
            host: Some(end.host.saturating_sub(start.host)),
            memory_per_vm: Some(
                self.backend.fixed() + u64::from(self.frames) * FRAME / u64::from(count),
            ),
            shared_frames: Some(self.backend.totals().shared_frames),
            work: *work,
            ..Measured::new(wall, instructions, count)
        }
    }
}

/// Busy VMs at one moment.
struct Sample {
    moment: Moment,
    rounds: u64,
    /// Instructions of each VM.
    retired: Vec<u64>,
}

/// Returns the least of these numbers as a share of their median.
fn least_share(mut numbers: Vec<u64>) -> Option<f64> {
    numbers.sort_unstable();
    let median = *numbers.get(numbers.len() / 2)?;
    Some(*numbers.first()? as f64 / median as f64).filter(|share| share.is_finite())
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The next fleet starts when this one has stopped.
        self.backend.stop();
        self.backend.events().iter().for_each(drop);
    }
}

impl Moment {
    fn of(backend: &dyn Backend) -> Self {
        Self {
            at: Instant::now(),
            instructions: backend.totals().instructions,
            launches: backend.launches(),
            host: cpu_time(),
        }
    }
}

/// Returns the processor time of this process.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use emu_core::mem::FRAME_SIZE;
    use pxvm_tests::needs;

    use super::super::args::CodeSize;
    use super::super::asm::jalr;
    use super::super::asm::reg::{RA, ZERO};
    use super::super::{apart, program};
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::backend::cuda::CudaBackend;
    use crate::backend::cuda::emulated::Emulated;
    use crate::backend::cuda::{self, DeviceFleet};
    use crate::backend::{ClockSource, Settings};
    use crate::console::ready::ReadyPattern;
    use crate::error::Error;
    use crate::image::cache;
    use crate::machine::{Fleet, GuestOptions, assemble};
    use crate::units::Size;

    const LONG: Duration = Duration::from_secs(300);

    fn settings() -> Settings {
        let ready = ReadyPattern::new(ReadyPattern::DEFAULT).unwrap();
        Settings {
            started: u32::MAX,
            threads: 2,
            clock: ClockSource::Instret,
            ready,
            until_ready: false,
            link: Arc::default(),
        }
    }

    fn start(backend: impl FnOnce() -> Arc<dyn Backend>) -> Watch {
        Watch::start(LONG, || Ok::<_, Error>(backend())).unwrap_or_else(|e| panic!("{e}"))
    }

    fn cpu(fleet: Fleet) -> Watch {
        start(|| Arc::new(CpuBackend::start(fleet, settings()).unwrap()))
    }

    #[test]
    fn an_emulated_gpu_computes_and_counts_its_launches() {
        let fleet = program::fleet(2).unwrap();
        let gpu = Box::new(Emulated::new(Size::mib(64)));
        let device = DeviceFleet::new(gpu, &fleet).unwrap();
        let options = cuda::Options::default();
        let mut watch =
            start(|| Arc::new(CudaBackend::start(device, fleet, settings(), options).unwrap()));
        let Ok(span) = watch.compute(2, program::results) else { panic!("it does not compute") };
        let measured = watch.measured(&span, 2);
        assert!(measured.launches.is_some_and(|n| n > 0), "{measured:?}");
        assert!(measured.device.is_some_and(|t| t > Duration::ZERO && t <= measured.wall));
        assert!(measured.instructions > 2 * 14_000_000, "{measured:?}");
    }

    #[test]
    fn a_wrong_result_is_told_and_not_measured() {
        let mut fleet = program::fleet(65).unwrap();
        // `addi s0,s0,1` adds 2 instead: every VM has its neighbour's seed, and the last one a new
        // seed.
        let at = FRAME_SIZE as usize + 4 * 4 + 2;
        fleet.base.frames[at] += 0x10;
        let Err(BenchError::Guest(what)) = cpu(fleet).compute(65, program::results) else {
            panic!("not noticed")
        };
        assert!(what.starts_with("vm0 computed"), "{what}");
    }

    #[test]
    fn a_fleet_that_ends_or_takes_too_long_is_not_measured() {
        let mut watch = cpu(program::fleet(1).unwrap());
        assert!(matches!(watch.boot(1), Err(BenchError::Guest(what)) if what == "vm0 powered off"));
        let mut watch = cpu(program::fleet(1).unwrap());
        watch.limit = Instant::now();
        assert!(matches!(watch.compute(1, program::results), Err(BenchError::Time)));
    }

    #[test]
    fn vms_that_branch_apart_compute_what_the_host_does() {
        for size in [CodeSize::Small, CodeSize::Large] {
            let results = || {
                let results = apart::Results::new(size);
                move |vm| results.of(vm)
            };
            let mut watch = cpu(apart::fleet(size, 4).unwrap());
            match watch.compute(4, results) {
                Ok(seen) => {
                    let instructions = watch.measured(&seen, 4).instructions;
                    assert!((40_000_000..80_000_000).contains(&instructions), "{instructions}");
                }
                Err(error) => panic!("{size:?}: {error:?}"),
            }
            // A function that does nothing.
            let mut fleet = apart::fleet(size, 1).unwrap();
            let (first, ret) = (FRAME_SIZE as usize + 4, jalr(ZERO, RA).to_le_bytes());
            fleet.base.frames[first..first + 4].copy_from_slice(&ret);
            let Err(BenchError::Guest(what)) = cpu(fleet).compute(1, results) else {
                panic!("{size:?}: not noticed")
            };
            assert!(what.starts_with("vm0 computed"), "{what}");
        }
    }

    fn booted(append: &str, count: u32) -> Option<Watch> {
        needs::found("image", cache::default_image())?;
        let append = append.to_owned();
        let fleet = assemble(&GuestOptions { count, append, ..GuestOptions::default() });
        Some(cpu(fleet.unwrap()))
    }

    #[test]
    fn the_least_is_a_share_of_the_median() {
        assert_eq!(least_share(vec![30, 10, 20]), Some(0.5));
        assert_eq!(least_share(vec![0, 0]), None);
        assert_eq!(least_share(Vec::new()), None);
    }

    #[test]
    fn busy_guests_come_to_what_the_host_comes_to() {
        let count = Work::ALL.len() as u32;
        let Some(mut watch) = booted("", count) else { return };
        match watch.busy(count, Busy::Mix, Duration::from_millis(500)) {
            Ok(Seen { work: Some(work), .. }) => {
                assert_eq!(work.unchecked, 0);
                assert!(work.least_share.is_none_or(|share| share <= 1.0), "{work:?}");
            }
            Ok(_) => panic!("nothing was seen of the work"),
            Err(error) => panic!("{error:?}"),
        }
    }

    #[test]
    fn busy_guests_on_an_emulated_gpu_come_to_what_the_host_comes_to() {
        let Some(()) = needs::found("image", cache::default_image().map(drop)) else { return };
        let fleet = assemble(&GuestOptions { count: 2, ..GuestOptions::default() }).unwrap();
        let gpu = Box::new(Emulated::new(Size::mib(512)));
        let device = DeviceFleet::new(gpu, &fleet).unwrap();
        let options = cuda::Options::default();
        let mut watch =
            start(|| Arc::new(CudaBackend::start(device, fleet, settings(), options).unwrap()));
        let seen = watch.busy(2, Busy::Awk, Duration::from_millis(500));
        let Ok(Seen { work: Some(work), .. }) = seen else { panic!("it does not work") };
        assert_eq!(work.unchecked, 0);
    }

    #[test]
    fn a_busy_guest_that_comes_to_something_else_is_told() {
        for (busy, name) in [
            (Busy::Shell, "shell"),
            (Busy::Awk, "awk"),
            (Busy::Gzip, "gzip"),
            (Busy::Sha256sum, "sha256sum"),
            (Busy::Wget, "wget"),
        ] {
            // It takes itself for another one.
            let Some(mut watch) = booted("pxvm.host=vm7", 1) else { return };
            let found = watch.busy(1, busy, Duration::from_millis(1));
            let Err(BenchError::Guest(what)) = found else { panic!("{name}: not noticed") };
            assert!(what.starts_with(&format!("vm0 ({name}) came to")), "{what}");
        }
    }
}

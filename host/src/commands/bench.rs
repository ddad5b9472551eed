//! `pxvm bench`: measures the speed of fleets.

mod args;
mod program;

pub use self::args::{Bench, Packing, Workload};

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Serialize, Serializer};

use super::boot::{self, PreparedBackend};
use super::{on_cpu, printing, say};
use crate::backend::cpu::check_count;
use crate::backend::cuda::bare_fleet::BareFleet;
use crate::backend::cuda::{self, CudaError, DeviceFleet};
use crate::backend::{Backend, BackendError, ClockSource, Event, EventKind, Launches, Settings};
use crate::cli::BackendChoice;
use crate::console::ready::ReadyPattern;
use crate::error::Error;
use crate::exit::{Code, sentence};
use crate::host;
use crate::machine::{Fleet, assemble};
use crate::report::print_json;
use crate::stdio;

const COUNTS_CPU: [u32; 3] = [1, 16, 64];
const COUNTS_CUDA: [u32; 3] = [1, 256, 8448];
const LANES_MAX: u32 = 32;
/// Time from the last VM that is ready to the measurement of idle ones, for boots to end.
const SETTLE: Duration = Duration::from_secs(1);
/// Interval at which the fleet's frames are sampled.
const GLANCE: Duration = Duration::from_millis(50);
const FRAME: u64 = emu_core::mem::FRAME_SIZE as u64;

/// One line of the result.
#[derive(Debug, Serialize)]
struct Row {
    workload: Workload,
    count: u32,
    packing: Packing,
    #[serde(flatten)]
    measured: Option<Measured>,
    /// Why the line was not measured, or what went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    #[serde(skip)]
    code: Code,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
struct Measured {
    #[serde(rename = "wall_seconds", serialize_with = "seconds")]
    wall: Duration,
    instructions: u64,
    mips_per_vm: f64,
    total_gips: f64,
    /// Number of launches on a GPU.
    launches: Option<u64>,
    /// Device time of the launches.
    #[serde(rename = "device_seconds", serialize_with = "maybe_seconds")]
    device: Option<Duration>,
    /// Share of the time in which the GPU ran no launch. That is no loss when VMs are idle.
    launch_overhead: Option<f64>,
    /// Processor time on all the host's cores.
    #[serde(rename = "host_cpu_seconds", serialize_with = "seconds")]
    host: Duration,
    /// Memory per VM: the largest number of private frames in use, and what each VM needs besides.
    memory_per_vm: u64,
    shared_frames: u32,
}

fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

fn maybe_seconds<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    time.map(|t| t.as_secs_f64()).serialize(to)
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    version: &'static str,
    backend: &'static str,
    /// Device that runs the fleets.
    device: &'a str,
    /// Accelerators that this build leaves out.
    without: &'a [&'static str],
    rows: &'a [Row],
}

/// Measures fleets.
pub fn bench(args: Bench) -> Result<Code, Error> {
    if args.backend == BackendChoice::Lockstep {
        return Err(Error::Usage("--backend lockstep compares, and is slow by design".into()));
    }
    let ready = boot::ready_pattern(&args.ready_pattern)?;
    let number = args.device.unwrap_or_default();
    let cuda = boot::wants_gpu(args.backend, number)?;
    if !cuda {
        on_cpu(args.device, None)?;
    }
    let (backend, device) = match cuda {
        true => ("cuda", cuda::available(number).map_err(BackendError::from)?.to_string()),
        false => ("cpu", format!("{} threads", host::cores())),
    };
    if let Some(n) = args.packing.iter().filter_map(|p| p.0).find(|&n| cuda && n > LANES_MAX) {
        return Err(Error::Usage(format!("--packing {n}: a warp has {LANES_MAX} lanes")));
    }
    let counts = match (args.count.as_slice(), cuda) {
        ([], true) => &COUNTS_CUDA[..],
        ([], false) => &COUNTS_CPU,
        (given, _) => given,
    };
    let bench = Bencher { cuda, ready, args: &args };
    // Images are checked before anything runs.
    for &count in counts {
        for &workload in &args.workload {
            bench.fleet(workload, count)?;
        }
    }

    let mut rows = Vec::new();
    let mut failure = None;
    let without: Vec<&str> = emu_device::ablation::left_out().collect();
    if !args.json {
        let left_out = if without.is_empty() { "" } else { ", built without " };
        print(&format!("{backend}: {device}{left_out}{}\n{HEAD}\n", without.join(", ")))?;
    }
    'all: for &workload in &args.workload {
        for &count in counts {
            for &packing in &args.packing {
                let row = match bench.row(workload, count, packing) {
                    Ok(row) => row,
                    Err(error) => {
                        failure = Some(error);
                        break 'all;
                    }
                };
                let line = row.line();
                rows.push(row);
                // Printed at once, without waiting for the other lines.
                if !args.json && !print(&line)? {
                    break 'all;
                }
            }
        }
    }
    if args.json {
        let version = env!("CARGO_PKG_VERSION");
        let report = Report { version, backend, device: &device, without: &without, rows: &rows };
        print_json(&report).map_err(printing)?;
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(worst(rows.iter().map(|row| row.code))),
    }
}

/// Returns the worst exit code: a guest that failed outweighs one that was slow.
fn worst(codes: impl Iterator<Item = Code>) -> Code {
    codes.max_by_key(|&code| code.number()).unwrap_or(Code::Success)
}

/// Prints a text. Returns whether standard output is still read.
fn print(text: &str) -> Result<bool, Error> {
    stdio::print(text.as_bytes()).map_err(printing)
}

struct Bencher<'a> {
    cuda: bool,
    ready: ReadyPattern,
    args: &'a Bench,
}

impl Bencher<'_> {
    fn fleet(&self, workload: Workload, count: u32) -> Result<Fleet, Error> {
        let guest = |clock| self.args.guest.clone().options(count, clock);
        match workload {
            Workload::Boot => Ok(assemble(&guest(ClockSource::Instret)?)?),
            Workload::Idle => Ok(assemble(&guest(ClockSource::Host)?)?),
            Workload::Compute => program::fleet(count),
        }
    }

    /// Measures one combination. An error of this one alone is part of the row.
    fn row(&self, workload: Workload, count: u32, packing: Packing) -> Result<Row, Error> {
        let row = |measured, note, code| Row { workload, count, packing, measured, note, code };
        let fleet = self.fleet(workload, count)?;
        let settings = Settings {
            started: count,
            threads: match packing.0 {
                Some(n) if !self.cuda => n as usize,
                _ => host::cores(),
            },
            clock: if workload == Workload::Idle {
                ClockSource::Host
            } else {
                ClockSource::Instret
            },
            ready: self.ready.clone(),
            until_ready: workload == Workload::Boot,
            link: Arc::default(),
        };
        let prepared = match self.prepare(&fleet, packing) {
            Ok(prepared) => prepared,
            Err(error) if does_not_fit(&error) => {
                return Ok(row(None, Some(sentence(&error)), Code::Success));
            }
            Err(error) => return Err(error),
        };
        let mut watch = Watch::start(self.args.timeout, || boot::start(prepared, fleet, settings))?;
        let result = match workload {
            Workload::Boot => watch.boot(count),
            Workload::Compute => watch.compute(count),
            Workload::Idle => watch.idle(count, self.args.idle_seconds),
        };
        Ok(match result {
            Ok(span) => row(Some(watch.measured(span, count)), None, Code::Success),
            Err(BenchError::Backend(error)) => return Err(error.into()),
            Err(BenchError::Time) => {
                let limit = self.args.timeout.as_secs_f64();
                row(None, Some(format!("not done after {limit} s")), Code::Timeout)
            }
            Err(BenchError::Guest(what)) => row(None, Some(what), Code::Guest),
        })
    }

    /// Allocates a fleet, and runs something on a GPU, so that its driver has finished its set-up.
    fn prepare(&self, fleet: &Fleet, packing: Packing) -> Result<PreparedBackend, Error> {
        if !self.cuda {
            check_count(fleet.count, fleet.plan.memory)?;
            return Ok(PreparedBackend::Cpu);
        }
        let number = self.args.device.unwrap_or_default();
        let gpu = cuda::open(number, &say).map_err(BackendError::from)?;
        let mut first = BareFleet::start(gpu, &program::fleet(1)?, None)?;
        first.run_slice(&[0], 1024).map_err(BackendError::from)?;
        let gpu = first.into_gpu().map_err(BackendError::from)?;
        let device = DeviceFleet::new(gpu, fleet)?;
        let options = cuda::Options { device: number, vms_per_warp: packing.0 };
        Ok(PreparedBackend::Cuda(device, options))
    }
}

fn does_not_fit(error: &Error) -> bool {
    use BackendError::{Cuda, Reserve, TooMany};
    let Error::Backend(error) = error else { return false };
    matches!(error, TooMany { .. } | Reserve(..) | Cuda(CudaError::NoMemory { .. }))
}

/// Why a line has no numbers.
enum BenchError {
    /// The backend failed.
    Backend(BackendError),
    /// The time limit was reached.
    Time,
    /// A guest did something unexpected.
    Guest(String),
}

/// A sample of a run.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    instructions: u64,
    launches: Option<Launches>,
    host: Duration,
}

/// A fleet that is observed while it runs.
struct Watch {
    backend: Arc<dyn Backend>,
    begun: Moment,
    limit: Instant,
    frames: u32,
}

impl Watch {
    /// Starts a fleet; its time runs from here.
    fn start<E>(
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

    fn boot(&mut self, count: u32) -> Result<(Moment, Moment), BenchError> {
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
        Ok((self.begun, Moment::of(self.backend.as_ref())))
    }

    fn compute(&mut self, count: u32) -> Result<(Moment, Moment), BenchError> {
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
        let results = program::results();
        for (vm, expected) in (0..count).zip(results.iter().cycle()) {
            let found = printed.get(&vm).map_or(&[][..], Vec::as_slice);
            if found != expected {
                let what = format!("vm{vm} computed {found:02x?}, which should be {expected:02x?}");
                return Err(BenchError::Guest(what));
            }
        }
        Ok((self.begun, end))
    }

    fn idle(&mut self, count: u32, time: Duration) -> Result<(Moment, Moment), BenchError> {
        self.boot(count)?;
        self.pass(SETTLE)?;
        let start = Moment::of(self.backend.as_ref());
        self.pass(time)?;
        Ok((start, Moment::of(self.backend.as_ref())))
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

    fn measured(&self, (start, end): (Moment, Moment), count: u32) -> Measured {
        let wall = end.at - start.at;
        let per_second = |n: u64| n as f64 / wall.as_secs_f64().max(1e-9);
        let instructions = end.instructions.saturating_sub(start.instructions);
        let launched = start.launches.zip(end.launches);
        let device = launched.map(|(a, b)| b.time.saturating_sub(a.time));
        let overhead = |device: Duration| {
            (1.0 - device.as_secs_f64() / wall.as_secs_f64().max(1e-9)).clamp(0.0, 1.0)
        };
        Measured {
            wall,
            instructions,
            mips_per_vm: per_second(instructions) / f64::from(count) / 1e6,
            total_gips: per_second(instructions) / 1e9,
            launches: launched.map(|(a, b)| b.count - a.count),
            device,
            launch_overhead: device.map(overhead),
            host: end.host.saturating_sub(start.host),
            memory_per_vm: self.backend.fixed() + u64::from(self.frames) * FRAME / u64::from(count),
            shared_frames: self.backend.totals().shared_frames,
        }
    }
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

/// Head of the table; [`Row::line`] has the same columns.
const HEAD: &str = "workload     VMs  packing  seconds  MIPS a VM      GIPS  launches  overhead  \
    GPU busy  host CPU  KiB a VM";

impl Row {
    fn line(&self) -> String {
        let workload = format!("{:?}", self.workload).to_lowercase();
        let packing = self.packing.0.map_or_else(|| "auto".to_owned(), |n| n.to_string());
        let mut line = format!("{workload:<8} {:>7}  {packing:>7}", self.count);
        if let Some(m) = &self.measured {
            let wall = m.wall.as_secs_f64().max(1e-9);
            let part = |part: Option<f64>| {
                part.map_or_else(|| "-".to_owned(), |part| format!("{:.1} %", 100.0 * part))
            };
            let busy = m.device.map(|device| device.as_secs_f64() / wall);
            // Time in which a GPU has nothing to do because VMs are idle is no overhead.
            let overhead = m.launch_overhead.filter(|_| self.workload != Workload::Idle);
            line += &format!(
                "  {wall:>7.2}  {:>9.2}  {:>8.3}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}",
                m.mips_per_vm,
                m.total_gips,
                m.launches.map_or_else(|| "-".to_owned(), |n| n.to_string()),
                part(overhead),
                part(busy),
                part(Some(m.host.as_secs_f64() / wall)),
                m.memory_per_vm >> 10,
            );
        }
        if let Some(note) = &self.note {
            line += "  ";
            line += note;
        }
        line + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::backend::cuda::CudaBackend;
    use crate::backend::cuda::emulated::Emulated;
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
        let Ok(span) = watch.compute(2) else { panic!("it does not compute") };
        let measured = watch.measured(span, 2);
        assert!(measured.launches.is_some_and(|n| n > 0), "{measured:?}");
        assert!(measured.device.is_some_and(|t| t > Duration::ZERO && t <= measured.wall));
        assert!(measured.instructions > 2 * 14_000_000, "{measured:?}");
    }

    #[test]
    fn a_wrong_result_is_told_and_not_measured() {
        let mut fleet = program::fleet(65).unwrap();
        // `addi s0,s0,1` adds 2 instead: every VM has its neighbour's seed, and the last one a new
        // seed.
        let at = emu_core::mem::FRAME_SIZE as usize + 4 * 4 + 2;
        fleet.base.frames[at] += 0x10;
        let Err(BenchError::Guest(what)) = cpu(fleet).compute(65) else { panic!("not noticed") };
        assert!(what.starts_with("vm0 computed"), "{what}");
    }

    #[test]
    fn a_fleet_that_ends_or_takes_too_long_is_not_measured() {
        let mut watch = cpu(program::fleet(1).unwrap());
        assert!(matches!(watch.boot(1), Err(BenchError::Guest(what)) if what == "vm0 powered off"));
        let mut watch = cpu(program::fleet(1).unwrap());
        watch.limit = Instant::now();
        assert!(matches!(watch.compute(1), Err(BenchError::Time)));
    }
}

//! The measurements of a calibration: about a second for each backend.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::TryRecvError;
use emu_core::abi::ExitCode;
use emu_core::mem::FRAME_SIZE;
use emu_device::protocol::launch::SLICE;
use rustix::time::{ClockId, clock_gettime};

use super::program::{self, Runs};
use super::{CpuSpeed, GpuSpeed, Point};
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::Choice;
use crate::backend::cuda::bare_fleet::BareFleet;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::{CudaError, sizing};
use crate::backend::{Backend, BackendError, ClockSource, EventKind, Settings};
use crate::console::ready::{PatternError, ReadyPattern};
use crate::machine::PlanError;
use crate::units::Size;

/// How long the measurements take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Time for VMs to start, for caches to fill, and for a processor to change its clock.
    pub warm_up: Duration,
    /// Time in which the CPU backend is observed.
    pub sample: Duration,
    /// Time in which launches with one number of VMs are repeated.
    pub launches: Duration,
    /// Time after which measuring on a GPU is given up.
    pub limit: Duration,
}

impl Times {
    /// The times of a calibration.
    pub const USUAL: Self = Self {
        warm_up: Duration::from_millis(100),
        sample: Duration::from_millis(300),
        launches: Duration::from_millis(60),
        limit: Duration::from_secs(15),
    };
}

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The program does not fit its machine.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The CPU backend needs a pattern, although no VM here prints anything.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A VM has ended, which the program never does.
    #[error("a VM ended: {0}")]
    Ended(String),
    /// The GPU is too slow, or busy with other things.
    #[error("it was not done after {} s", .0.as_secs())]
    Late(Duration),
}

impl From<CudaError> for MeasureError {
    fn from(error: CudaError) -> Self {
        Self::Backend(error.into())
    }
}

/// Measures the CPU backend with one thread, and with so many.
pub fn cpu(threads: u32, times: &Times) -> Result<CpuSpeed, MeasureError> {
    let alone = thread_speed(1, times)?;
    let together = if threads > 1 { thread_speed(threads, times)? } else { alone };
    Ok(CpuSpeed { threads, alone, together })
}

/// Measures how fast each of so many threads runs a VM, in instructions a second of processor time.
/// Of that there is as much when other programs keep the cores busy, but less in a second.
fn thread_speed(threads: u32, times: &Times) -> Result<u64, MeasureError> {
    let settings = Settings {
        started: threads,
        threads: threads as usize,
        clock: ClockSource::Instret,
        ready: ReadyPattern::new(ReadyPattern::DEFAULT)?,
        until_ready: false,
        link: Arc::default(),
    };
    let backend = CpuBackend::start(program::fleet(threads, Runs::Apart)?, settings)?;
    let sample = || (cpu_time(), backend.totals().instructions);
    thread::sleep(times.warm_up);
    let (time_before, before) = sample();
    thread::sleep(times.sample);
    let (time, after) = sample();
    let end = backend.events().try_recv();
    // The next measurement begins when these threads have ended.
    backend.stop();
    backend.events().iter().for_each(drop);
    match end {
        Err(TryRecvError::Empty) => {}
        Ok(event) => return Err(MeasureError::Ended(describe(&event.kind))),
        Err(TryRecvError::Disconnected) => return Err(backend.failure().into()),
    }
    let seconds = time.saturating_sub(time_before).as_secs_f64().max(1e-9);
    Ok((after.saturating_sub(before) as f64 / seconds) as u64)
}

fn describe(kind: &EventKind) -> String {
    match kind {
        EventKind::Faulted(reason) => reason.to_string(),
        other => format!("{other:?}"),
    }
}

/// Returns the processor time of this process.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// What was measured on a GPU, which is given back for a fleet.
pub struct OnGpu {
    /// Its speed.
    pub speed: GpuSpeed,
    /// Whether equal launches took times that were far from equal, because other programs use the
    /// GPU, too.
    pub unsteady: bool,
    /// The GPU.
    pub gpu: Box<dyn Gpu>,
}

/// Numbers of VMs, for each multiprocessor: as many as run at full speed with a warp each, eight
/// times as many, and a full card.
const PER_MULTIPROCESSOR: [u32; 3] = [8, 64, 256];

/// Returns the numbers of VMs that are measured: those of which there is room for all together,
/// which is `room` VMs. Each number has VMs of its own, so that all of them have run equally far.
fn counts(multiprocessors: u32, room: u64) -> Vec<u32> {
    let mut counts = vec![1];
    counts.extend(PER_MULTIPROCESSOR.map(|n| n.saturating_mul(multiprocessors)));
    let all = |counts: &[u32]| counts.iter().map(|&n| u64::from(n)).sum::<u64>();
    while counts.len() > 1 && all(&counts) > room {
        counts.pop();
    }
    counts
}

/// Returns for how many VMs of the program a GPU has room, with a quarter to spare.
fn room(available: u64) -> u64 {
    let pages = (program::MEMORY.0 / u64::from(FRAME_SIZE)) as u32;
    available / 4 * 3 / (sizing::fixed(pages) + program::MEMORY.0)
}

/// Measures a GPU with several numbers of VMs, alike and apart.
pub fn gpu(mut gpu: Box<dyn Gpu>, times: &Times) -> Result<OnGpu, MeasureError> {
    let begun = Instant::now();
    let counts = counts(gpu.multiprocessors(), room(gpu.available()?));
    let mut unsteady = false;
    let mut of = |mut gpu, runs| -> Result<(Vec<Point>, Box<dyn Gpu>), MeasureError> {
        let mut fleet =
            BareFleet::start(gpu, &program::fleet(counts.iter().sum(), runs)?, Choice::default())?;
        let mut points = Vec::new();
        let mut first = 0;
        // The largest number comes first: then all begin at whole warps.
        for &count in counts.iter().rev() {
            let vms: Vec<u32> = (first..first + count).collect();
            first += count;
            let took = launches(&mut fleet, &vms, times)?;
            unsteady |= took.is_unsteady();
            points.push(Point { count, speed: took.speed(count) });
            if begun.elapsed() > times.limit {
                return Err(MeasureError::Late(times.limit));
            }
        }
        points.reverse();
        gpu = fleet.into_gpu()?;
        Ok((points, gpu))
    };
    let (alike, apart);
    (alike, gpu) = of(gpu, Runs::Alike)?;
    (apart, gpu) = of(gpu, Runs::Apart)?;
    Ok(OnGpu { speed: GpuSpeed { alike, apart }, unsteady, gpu })
}

/// Fewest launches that are measured.
const LAUNCHES_MIN: usize = 3;
/// Number of VMs from which on slices are shorter, so that a launch does not take too long.
const MANY: usize = 4096;

/// Runs VMs launch by launch, after one that is not measured: decoding takes part of it.
fn launches(
    fleet: &mut BareFleet,
    vms: &[u32],
    times: &Times,
) -> Result<LaunchTimes, MeasureError> {
    let slice = if vms.len() < MANY { SLICE } else { SLICE / 4 };
    let mut took = Vec::new();
    let mut sum = Duration::ZERO;
    run(fleet, vms, slice)?;
    while took.len() < LAUNCHES_MIN || sum < times.launches {
        let start = Instant::now();
        run(fleet, vms, slice)?;
        let time = start.elapsed();
        sum += time;
        took.push(time);
    }
    took.sort();
    Ok(LaunchTimes { slice, took })
}

fn run(fleet: &mut BareFleet, vms: &[u32], slice: u32) -> Result<(), MeasureError> {
    let ended = fleet.run_slice(vms, slice)?;
    match ended.iter().find(|(exit, _)| exit.code != ExitCode::Budget) {
        Some((exit, _)) => Err(MeasureError::Ended(format!("{:?} {}", exit.code, exit.arg))),
        None => Ok(()),
    }
}

/// Times of equal launches.
struct LaunchTimes {
    /// Instructions of each VM in a launch.
    slice: u32,
    /// Times, in order.
    took: Vec<Duration>,
}

impl LaunchTimes {
    /// Launches that tell whether they are steady.
    const STEADY_MIN: usize = 8;

    fn median(&self) -> Duration {
        self.took.get(self.took.len() / 2).copied().unwrap_or_default()
    }

    /// Whether a launch usually takes much longer than it can.
    fn is_unsteady(&self) -> bool {
        let best = self.took.first().copied().unwrap_or_default();
        self.took.len() >= Self::STEADY_MIN && self.median() > best * 3 / 2
    }

    /// Returns instructions a second of `count` VMs.
    fn speed(&self, count: u32) -> u64 {
        let instructions = f64::from(self.slice) * f64::from(count);
        (instructions / self.median().as_secs_f64().max(1e-9)) as u64
    }
}

/// Returns how much of a GPU's memory other programs have, if that is more than the driver and this
/// program can have taken: `available` is what this program could still allocate.
pub fn taken_by_others(total: Size, available: Size) -> Option<Size> {
    const OWN: u64 = 2 << 30;
    let taken = total.0.saturating_sub(available.0);
    (taken > OWN + total.0 / 16).then_some(Size(taken))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::emulated::Emulated;

    const SHORT: Times = Times {
        warm_up: Duration::from_millis(20),
        sample: Duration::from_millis(60),
        launches: Duration::from_millis(1),
        limit: Duration::from_secs(600),
    };

    #[test]
    fn the_cpu_backend_is_measured_with_one_thread_and_with_all() {
        let speed = cpu(2, &SHORT).unwrap();
        assert!(speed.threads == 2 && speed.alone > 0 && speed.together > 0, "{speed:?}");
        let one = cpu(1, &SHORT).unwrap();
        assert_eq!(one.alone, one.together);
    }

    #[test]
    fn an_emulated_gpu_is_measured_and_given_back() {
        let device = Box::new(Emulated::new(Size::mib(1024)));
        let OnGpu { speed, gpu, .. } = super::gpu(device, &SHORT).unwrap();
        for points in [&speed.alike, &speed.apart] {
            let counts: Vec<u32> = points.iter().map(|point| point.count).collect();
            assert_eq!(counts, [1, 8, 64, 256]);
            assert!(points.iter().all(|point| point.speed > 0), "{points:?}");
        }
        // It can run something else.
        let fleet = program::fleet(2, Runs::Apart).unwrap();
        let mut bare = BareFleet::start(gpu, &fleet, Choice::default()).unwrap();
        assert_eq!(bare.run_slice(&[0, 1], 1024).unwrap().len(), 2);
    }

    #[test]
    fn a_gpu_that_fails_hangs_or_is_slow_has_no_measurement() {
        let memory = Size::mib(1024);
        let failing = super::gpu(Box::new(Emulated::new(memory).failing_after(20)), &SHORT);
        assert!(matches!(failing, Err(MeasureError::Backend(BackendError::Cuda(_)))));
        let hanging = super::gpu(Box::new(Emulated::new(memory).hanging_after(20)), &SHORT);
        let error = hanging.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("did not answer"), "{error}");
        let times = Times { limit: Duration::ZERO, ..SHORT };
        let late = super::gpu(Box::new(Emulated::new(memory)), &times);
        assert!(matches!(late, Err(MeasureError::Late(_))));
    }

    #[test]
    fn a_gpu_without_memory_has_no_measurement() {
        let full = super::gpu(Box::new(Emulated::new(Size(0))), &SHORT);
        assert!(matches!(full, Err(MeasureError::Backend(BackendError::TooMany { .. }))));
    }

    #[test]
    fn as_many_vms_are_measured_as_fit() {
        assert_eq!(counts(132, u64::MAX), [1, 1056, 8448, 33_792]);
        assert_eq!(counts(132, 40_000), [1, 1056, 8448]);
        assert_eq!(counts(132, 2), [1]);
        assert_eq!(counts(132, 0), [1]);
    }

    #[test]
    fn launches_that_take_turns_with_others_are_unsteady() {
        let times = |ms: &[u64]| LaunchTimes {
            slice: SLICE,
            took: ms.iter().copied().map(Duration::from_millis).collect(),
        };
        assert!(!times(&[10, 10, 10, 10, 10, 11, 11, 40]).is_unsteady());
        assert!(times(&[10, 10, 10, 18, 20, 20, 20, 20]).is_unsteady());
        assert!(!times(&[10, 20, 20]).is_unsteady(), "too few to tell");
        assert_eq!(times(&[10, 10, 99]).speed(2), 6_553_600);
    }

    #[test]
    fn memory_of_others_is_told_from_our_own() {
        let gib = |n: u64| Size(n << 30);
        assert_eq!(taken_by_others(gib(140), gib(138)), None);
        assert_eq!(taken_by_others(gib(8), gib(7)), None);
        assert_eq!(taken_by_others(gib(80), gib(20)), Some(gib(60)));
        assert_eq!(taken_by_others(gib(8), gib(4)), Some(gib(4)));
    }
}

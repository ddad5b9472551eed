//! The calibration: how fast this host and its GPU run VMs, measured once and kept.
//!
//! [`measure`] runs a small bare-metal program ([`program`]) on both backends, [`store`] keeps what
//! comes of it for the same [`hardware`], and a [`Calibration`] estimates the speed of a fleet.

pub mod hardware;
pub mod measure;
pub mod program;
pub mod store;

pub use program::Runs;

use serde::{Deserialize, Serialize};

use self::hardware::Hardware;

/// What was measured on some hardware. All values are whole numbers, so that what is read is what
/// was written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The hardware, and the version of pxvm.
    pub hardware: Hardware,
    /// When it was measured, in seconds of Unix time.
    pub measured_at: u64,
    /// Speed of the CPU backend.
    pub cpu: CpuSpeed,
    /// Speed of the GPU, if there is one.
    pub gpu: Option<GpuSpeed>,
}

/// Speed of the CPU backend, in instructions a second of one thread's processor time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuSpeed {
    /// Number of threads that run at once.
    pub threads: u32,
    /// With one thread.
    pub alone: u64,
    /// With all threads at work.
    pub together: u64,
}

/// Speed of a GPU.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuSpeed {
    /// With VMs that run alike.
    pub alike: Vec<Point>,
    /// With VMs that run apart.
    pub apart: Vec<Point>,
}

/// Speed of a number of VMs on a GPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Number of VMs.
    pub count: u32,
    /// Instructions a second, all VMs together.
    pub speed: u64,
}

/// Speeds that are possible: what lies outside was not measured, but made up or damaged.
const POSSIBLE: std::ops::RangeInclusive<u64> = 10_000..=1_000_000_000_000_000;

impl Calibration {
    /// Whether the values can be those of a measurement.
    pub fn is_possible(&self) -> bool {
        let cpu = &self.cpu;
        let points = |points: &[Point]| {
            let rising = points.windows(2).all(|pair| pair[0].count < pair[1].count);
            let first = points.first().is_some_and(|point| point.count > 0);
            first && rising && points.iter().all(|point| POSSIBLE.contains(&point.speed))
        };
        cpu.threads > 0
            && [cpu.alone, cpu.together].iter().all(|speed| POSSIBLE.contains(speed))
            && self.gpu.as_ref().is_none_or(|gpu| points(&gpu.alike) && points(&gpu.apart))
    }

    /// Returns the number of VMs from which on the GPU is faster than all cores of this host, if
    /// there is one.
    pub fn gpu_wins_from(&self, runs: Runs) -> Option<u32> {
        let gpu = self.gpu.as_ref()?;
        let wins = |&count: &u32| gpu.estimate(count, runs) > self.cpu.estimate(count, u32::MAX);
        // The curves may cross more than once; with this many VMs a card is full.
        let (mut low, mut high) = (0, gpu.points(runs).last()?.count);
        if !wins(&high) {
            return None;
        }
        while low + 1 < high {
            let middle = low.midpoint(high);
            *if wins(&middle) { &mut high } else { &mut low } = middle;
        }
        Some(high)
    }
}

impl CpuSpeed {
    /// Estimates the speed of `count` VMs on so many threads, in instructions a second.
    ///
    /// Each VM that runs has a thread. A thread among others is slower than one alone: they share
    /// caches and cores. That is assumed to go linearly.
    pub fn estimate(&self, count: u32, threads: u32) -> f64 {
        let busy = count.min(threads).min(self.threads).max(1);
        let others = f64::from(busy - 1) / f64::from((self.threads - 1).max(1));
        let loss = (self.alone as f64 - self.together as f64) * others;
        f64::from(busy) * (self.alone as f64 - loss)
    }
}

impl GpuSpeed {
    fn points(&self, runs: Runs) -> &[Point] {
        match runs {
            Runs::Alike => &self.alike,
            Runs::Apart => &self.apart,
        }
    }

    /// Estimates the speed of `count` VMs, in instructions a second.
    ///
    /// Between two points that were measured it is a line between the logarithms. With fewer VMs
    /// than the first point has, each has the same speed as there; with more than the last has, the
    /// card is full and the sum remains.
    pub fn estimate(&self, count: u32, runs: Runs) -> f64 {
        let points = self.points(runs);
        let above = points.partition_point(|point| point.count < count);
        let at = |index: usize| points.get(index).map(|p| (f64::from(p.count), p.speed as f64));
        let count = f64::from(count);
        match (above.checked_sub(1).and_then(at), at(above)) {
            (None, Some((n, speed))) => speed * count / n,
            (Some((_, speed)), None) => speed,
            (Some((n0, v0)), Some((n1, v1))) => {
                let part = (count / n0).ln() / (n1 / n0).ln();
                v0 * (v1 / v0).powf(part)
            }
            (None, None) => 0.0,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const fn point(count: u32, speed: u64) -> Point {
        Point { count, speed }
    }

    /// Returns what an H200 in a host of 32 threads comes to.
    pub fn large() -> Calibration {
        let gpu = GpuSpeed {
            alike: vec![
                point(1, 8_000_000),
                point(1056, 8_000_000_000),
                point(8448, 40_000_000_000),
                point(33_792, 90_000_000_000),
            ],
            apart: vec![
                point(1, 8_000_000),
                point(1056, 6_000_000_000),
                point(8448, 7_000_000_000),
                point(33_792, 9_000_000_000),
            ],
        };
        Calibration {
            hardware: hardware::tests::hardware(),
            measured_at: 1_700_000_000,
            cpu: CpuSpeed { threads: 32, alone: 200_000_000, together: 130_000_000 },
            gpu: Some(gpu),
        }
    }

    fn close(found: f64, expected: f64) -> bool {
        (found / expected - 1.0).abs() < 1e-6
    }

    #[test]
    fn a_processor_is_as_fast_as_the_threads_that_have_a_vm() {
        let cpu = large().cpu;
        assert!(close(cpu.estimate(1, 32), 200e6));
        assert!(close(cpu.estimate(32, 32), 32.0 * 130e6));
        assert!(close(cpu.estimate(1000, 32), 32.0 * 130e6));
        // Fewer threads than the host has, and more.
        assert!(close(cpu.estimate(1000, 1), 200e6));
        assert!(close(cpu.estimate(1000, 64), 32.0 * 130e6));
        // Threads slow each other down little by little.
        let half = cpu.estimate(16, 32) / 16.0;
        assert!(half < 170e6 && half > 160e6, "{half}");
        let one = CpuSpeed { threads: 1, alone: 5_000_000, together: 5_000_000 };
        assert!(close(one.estimate(10, 10), 5e6));
    }

    #[test]
    fn a_gpu_is_as_fast_as_at_the_points_next_to_the_number() {
        let gpu = large().gpu.unwrap();
        for (count, speed) in [(1, 8e6), (1056, 8e9), (33_792, 90e9), (1 << 20, 90e9)] {
            assert!(close(gpu.estimate(count, Runs::Alike), speed), "{count}");
        }
        let between = gpu.estimate(32, Runs::Alike);
        assert!((230e6..=270e6).contains(&between), "{between}");
        assert!(gpu.estimate(8448, Runs::Apart) < gpu.estimate(8448, Runs::Alike) / 5.0);
        // A measurement need not begin with one VM.
        let rest = GpuSpeed { alike: gpu.alike[1..].to_vec(), ..gpu };
        assert!(close(rest.estimate(528, Runs::Alike), 4e9));
    }

    #[test]
    fn a_gpu_wins_from_the_number_at_which_it_is_faster() {
        let calibration = large();
        for runs in [Runs::Alike, Runs::Apart] {
            let from = calibration.gpu_wins_from(runs).unwrap();
            let gpu = calibration.gpu.as_ref().unwrap();
            let faster =
                |count| gpu.estimate(count, runs) > calibration.cpu.estimate(count, u32::MAX);
            assert!(faster(from) && !faster(from - 1), "{from}");
            assert!((500..=1000).contains(&from), "{from}");
        }
        let slow = GpuSpeed { alike: vec![point(1, 20_000)], apart: vec![point(1, 20_000)] };
        let calibration = Calibration { gpu: Some(slow), ..calibration };
        assert_eq!(calibration.gpu_wins_from(Runs::Alike), None);
        assert_eq!(Calibration { gpu: None, ..calibration }.gpu_wins_from(Runs::Apart), None);
    }

    #[test]
    fn values_that_cannot_be_measured_are_noticed() {
        assert!(large().is_possible());
        let changes: [fn(&mut Calibration); 7] = [
            |it| it.cpu.threads = 0,
            |it| it.cpu.alone = 0,
            |it| it.cpu.together = u64::MAX,
            |it| it.gpu.as_mut().unwrap().alike.clear(),
            |it| it.gpu.as_mut().unwrap().apart[1].count = 1,
            |it| it.gpu.as_mut().unwrap().apart[0].count = 0,
            |it| it.gpu.as_mut().unwrap().apart[2].speed = 0,
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut calibration = large();
            change(&mut calibration);
            assert!(!calibration.is_possible(), "{index}");
        }
    }
}

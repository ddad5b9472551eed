//! The launch pacer: chooses how many slices, and of how many instructions, a launch runs.

use std::time::Duration;

use emu_device::protocol::launch::SLICE;

/// Target duration of a launch: long against its overhead (under 0.1 ms), short against what a
/// person notices.
const TARGET: Duration = Duration::from_millis(16);
/// Target duration while warps are full: the more VMs share a warp, the longer they take to
/// converge, and launches end there.
const TARGET_FULL: Duration = Duration::from_millis(32);
/// Target duration while packets come and go: a reply takes at least two launches, and a connection
/// several replies.
const TARGET_TALKING: Duration = Duration::from_millis(3);
/// Shortest slice, in instructions.
const SLICE_MIN: u32 = 1 << 11;
const SLICES_MAX: u32 = 256;

/// Launch pacer: sizes launches by the duration of earlier ones.
///
/// Input waits for the end of the running launch and output for the end of the next: with
/// launches of 16 ms and a quarter more after a change of load, at most 50 ms together. With full
/// warps it is twice that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaunchPacer {
    /// Instructions that a launch has time for.
    budget: u32,
    target: Duration,
}

impl LaunchPacer {
    /// Returns a pacer that begins with one short slice.
    pub fn new() -> Self {
        Self { budget: SLICE / 4, target: TARGET }
    }

    /// Sets whether packets come and go, and the number of VMs per warp.
    pub fn set_load(&mut self, talking: bool, vms_per_warp: u32) {
        self.target = match vms_per_warp {
            _ if talking => TARGET_TALKING,
            32.. => TARGET_FULL,
            _ => TARGET,
        };
    }

    /// Returns the target duration of the next launch.
    pub fn target(&self) -> Duration {
        self.target
    }

    /// Returns the instruction budget of the next launch.
    fn next(&self) -> u32 {
        (u64::from(self.budget) * self.target.as_millis() as u64 / TARGET.as_millis() as u64) as u32
    }

    /// Returns the number of slices per launch.
    pub fn slices(&self) -> u32 {
        (self.next() / SLICE).clamp(1, SLICES_MAX)
    }

    /// Returns the instructions per slice, a power of two.
    pub fn slice(&self) -> u32 {
        let budget = self.next().max(1);
        if budget >= SLICE { SLICE } else { (1 << budget.ilog2()).clamp(SLICE_MIN, SLICE) }
    }

    /// Updates the pacer from a launch in which some VM used up its `budget` of instructions.
    pub fn measured(&mut self, budget: u32, took: Duration) {
        let took = took.as_nanos().max(1);
        let wanted = u128::from(budget) * TARGET.as_nanos() / took;
        // Growth is slow, because a launch may have been short for lack of VMs.
        let most = u128::from(self.budget) * 2;
        self.budget = wanted.min(most).clamp(SLICE_MIN.into(), (SLICES_MAX * SLICE).into()) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(pacer: &LaunchPacer) -> u32 {
        pacer.slices() * pacer.slice()
    }

    /// Lets a device run at `ips` instructions a second and VM for some launches.
    fn run_launches(pacer: &mut LaunchPacer, ips: u64) -> Duration {
        let mut took = Duration::ZERO;
        for _ in 0..20 {
            took = Duration::from_nanos(u64::from(budget(pacer)) * 1_000_000_000 / ips);
            pacer.measured(budget(pacer), took);
        }
        took
    }

    #[test]
    fn launches_come_near_the_target_at_any_speed() {
        for ips in [300_000, 1_000_000, 7_000_000, 100_000_000] {
            let mut pacer = LaunchPacer::new();
            let ms = run_launches(&mut pacer, ips).as_millis();
            assert!((6..=17).contains(&ms), "{ips}: {ms} ms");
            assert!(pacer.slice().is_power_of_two() && pacer.slice() <= SLICE);
        }
    }

    #[test]
    fn launches_are_short_at_once_while_packets_come_and_go() {
        for ips in [1_000_000, 7_000_000, 100_000_000] {
            let mut pacer = LaunchPacer::new();
            run_launches(&mut pacer, ips);
            let before = budget(&pacer);
            pacer.set_load(true, 1);
            let us = u64::from(budget(&pacer)) * 1_000_000 / ips;
            assert!((1000..=4000).contains(&us), "{ips}: {us} us");
            run_launches(&mut pacer, ips);
            pacer.set_load(false, 1);
            assert_eq!(budget(&pacer), before);
        }
    }

    #[test]
    fn a_sudden_load_is_met_at_once() {
        let mut pacer = LaunchPacer::new();
        run_launches(&mut pacer, 100_000_000);
        let before = budget(&pacer);
        pacer.measured(before, 20 * TARGET);
        assert!(budget(&pacer) <= before / 20);
    }
}

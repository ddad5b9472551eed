//! Chooses the instruction loop of launches, by how fast the fleet runs by each.
//!
//! The dispatching loop is the faster one while the VMs of a warp run alike, as in a boot, and the
//! uniform loop when they do different things. Which holds shows in nothing but the speed, so the
//! chooser tries: a few launches by the other loop, when the fleet has become slow by the
//! dispatching one, and now and then while it runs by the uniform one.

use std::time::Duration;

use super::packing::InsnLoop;

/// Launches of a trial. The first one is not measured: what it has at hand is another loop's.
const TRIAL: u32 = 3;
/// Launches by a loop before there may be a trial.
const SETTLED: u32 = 6;
/// Launches until the uniform loop is doubted.
const DOUBT: u32 = 96;
/// The longest time between trials that fail, in launches.
const DOUBT_MAX: u32 = 2048;
/// A fleet is slow by the dispatching loop when a VM gets less than this part of its best speed.
const SLOW: f64 = 0.6;
/// How much faster another loop must be.
const GAIN: f64 = 1.1;

/// The chooser of one fleet.
#[derive(Clone, Debug)]
pub struct LoopChooser {
    current: InsnLoop,
    /// Launches by the current loop since it was chosen or a trial failed.
    launches: u32,
    /// Launches of the current loop until the next trial.
    interval: u32,
    /// Instructions a second and VM by the current loop, averaged over some launches.
    speed: f64,
    /// The best speed by the dispatching loop.
    best: f64,
    /// The trial under way: how many launches of it have been measured, and its speed.
    trial: Option<(u32, f64)>,
}

impl LoopChooser {
    /// Returns the chooser of a fleet that begins to run.
    pub fn new() -> Self {
        let current = InsnLoop::Dispatch;
        Self { current, launches: 0, interval: SETTLED, speed: 0.0, best: 0.0, trial: None }
    }

    /// Returns the loop of the next launch, in which so many VMs share a warp.
    pub fn next(&mut self, vms_per_warp: u32) -> InsnLoop {
        // A VM that is alone in its warp never diverges.
        if vms_per_warp == 1 {
            *self = Self { best: self.best, ..Self::new() };
            return self.current;
        }
        if self.trial.is_none() && self.launches >= self.interval && self.is_doubtful() {
            self.trial = Some((0, 0.0));
        }
        if self.trial.is_some() { self.current.other() } else { self.current }
    }

    /// Whether the other loop may be faster.
    fn is_doubtful(&self) -> bool {
        self.current == InsnLoop::Uniform || self.speed < SLOW * self.best
    }

    /// Records a launch by a loop: what VMs have executed on average, and how long it took.
    pub fn measured(&mut self, insn_loop: InsnLoop, instructions: f64, took: Duration) {
        let speed = instructions / took.as_secs_f64().max(1e-6);
        if insn_loop == InsnLoop::Dispatch {
            self.best = self.best.max(speed);
        }
        let Some((launches, sum)) = self.trial else {
            // Launches of a trial that has ended are still on their way.
            if insn_loop == self.current {
                let weight = if self.launches == 0 { 1.0 } else { 0.25 };
                self.speed += weight * (speed - self.speed);
                self.launches += 1;
            }
            return;
        };
        if insn_loop == self.current {
            return;
        }
        let sum = if launches == 0 { 0.0 } else { sum + speed };
        if launches + 1 < TRIAL {
            self.trial = Some((launches + 1, sum));
            return;
        }
        self.trial = None;
        self.launches = 0;
        let tried = sum / f64::from(TRIAL - 1);
        if tried > GAIN * self.speed {
            self.current = insn_loop;
            self.interval = if insn_loop == InsnLoop::Uniform { DOUBT } else { SETTLED };
        } else {
            self.interval = (self.interval * 2).min(DOUBT_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Runs launches in which each loop has the given speed; returns how many were by the uniform one.
    fn run(chooser: &mut LoopChooser, launches: u32, dispatch: f64, uniform: f64) -> u32 {
        let mut count = 0;
        for _ in 0..launches {
            let insn_loop = chooser.next(32);
            let speed = if insn_loop == InsnLoop::Uniform { uniform } else { dispatch };
            count += u32::from(insn_loop == InsnLoop::Uniform);
            chooser.measured(insn_loop, speed, MS);
        }
        count
    }

    #[test]
    fn a_fleet_that_runs_alike_is_never_disturbed() {
        let mut chooser = LoopChooser::new();
        assert_eq!(run(&mut chooser, 500, 5000.0, 9000.0), 0);
    }

    #[test]
    fn a_fleet_that_diverges_changes_its_loop_and_one_that_converges_changes_back() {
        let mut chooser = LoopChooser::new();
        run(&mut chooser, 50, 5000.0, 1500.0);
        assert!(run(&mut chooser, 100, 500.0, 1500.0) > 80);
        assert!(run(&mut chooser, 400, 5000.0, 1500.0) < 150);
        assert_eq!(run(&mut chooser, 100, 5000.0, 1500.0), 0);
    }

    #[test]
    fn trials_that_fail_become_rare() {
        let mut chooser = LoopChooser::new();
        run(&mut chooser, 20, 5000.0, 100.0);
        assert!(run(&mut chooser, 4000, 500.0, 100.0) < 40);
    }

    #[test]
    fn a_vm_alone_in_its_warp_is_dispatched() {
        let mut chooser = LoopChooser::new();
        run(&mut chooser, 50, 5000.0, 1500.0);
        run(&mut chooser, 100, 500.0, 1500.0);
        assert_eq!(chooser.next(32), InsnLoop::Uniform);
        assert_eq!(chooser.next(1), InsnLoop::Dispatch);
        assert_eq!(chooser.next(32), InsnLoop::Dispatch);
    }
}

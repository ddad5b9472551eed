//! Timers of idle VMs: a queue of when the host has to wake which VM.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Timer queue. At most one timer of each VM is valid: the one that was set last.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u32, u32)>>,
}

impl Timers {
    /// Sets a timer of VM `vm`. `nap` (the timer generation) distinguishes it from the VM's earlier
    /// ones.
    pub fn set(&mut self, at: Instant, vm: u32, nap: u32) {
        self.heap.push(Reverse((at, vm, nap)));
    }

    /// Takes the next timer that has expired. `valid` returns, for a VM and its timer generation,
    /// whether the timer still counts.
    pub fn due(&mut self, now: Instant, valid: impl Fn(u32, u32) -> bool) -> Option<u32> {
        while let Some(&Reverse((at, vm, nap))) = self.heap.peek() {
            let counts = valid(vm, nap);
            if counts && at > now {
                return None;
            }
            self.heap.pop();
            if counts {
                return Some(vm);
            }
        }
        None
    }

    /// Returns when the next timer expires. To be called after [`Timers::due`] has returned `None`.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|&Reverse((at, ..))| at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn alarms_ring_in_order_and_old_ones_do_not() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        timers.set(at(20), 1, 0);
        timers.set(at(10), 2, 0);
        timers.set(at(5), 1, 9);
        let valid = |_, nap| nap == 0;
        assert_eq!(timers.due(at(0), valid), None);
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.due(at(30), valid), Some(2));
        assert_eq!(timers.due(at(30), valid), Some(1));
        assert_eq!(timers.due(at(30), valid), None);
        assert_eq!(timers.next(), None);
    }
}

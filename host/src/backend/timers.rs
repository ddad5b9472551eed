//! Timers of parked VMs: a queue of when the host has to wake which VM.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Timer queue. At most one timer of each VM is valid: the one that was set when it was parked
/// last, and only while it is parked.
#[derive(Debug)]
pub struct Timers {
    /// Timers with their VMs and generations.
    heap: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// Timer generation of each VM: counts how often it was parked, so that an earlier timer is
    /// recognised as stale.
    generations: Vec<u32>,
}

impl Timers {
    /// Returns a queue for `count` VMs without a timer.
    pub fn new(count: u32) -> Self {
        Self { heap: BinaryHeap::new(), generations: vec![0; count as usize] }
    }

    /// Notes that a VM is parked, until `at` if it has set a timer.
    pub fn park(&mut self, vm: u32, at: Option<Instant>) {
        let generation = &mut self.generations[vm as usize];
        *generation = generation.wrapping_add(1);
        if let Some(at) = at {
            self.heap.push(Reverse((at, vm, *generation)));
        }
    }

    /// Takes the next timer that has expired, and returns its VM. `is_parked` returns whether a VM
    /// is still parked; `now` is called only if there is a valid timer.
    pub fn due(
        &mut self,
        mut now: impl FnMut() -> Instant,
        is_parked: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        while let Some(&Reverse((at, vm, generation))) = self.heap.peek() {
            let valid = self.generations[vm as usize] == generation && is_parked(vm);
            if valid && at > now() {
                return None;
            }
            self.heap.pop();
            if valid {
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
    fn timers_expire_in_order_and_only_the_last_of_a_parked_vm_counts() {
        let (mut timers, start) = (Timers::new(4), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        timers.park(1, Some(at(5)));
        timers.park(1, Some(at(20)));
        timers.park(2, Some(at(10)));
        timers.park(0, Some(at(12)));
        timers.park(0, None);
        timers.park(3, Some(at(1)));
        let is_parked = |vm| vm != 3;
        assert_eq!(timers.due(|| at(0), is_parked), None);
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.due(|| at(30), is_parked), Some(2));
        assert_eq!(timers.due(|| at(30), is_parked), Some(1));
        assert_eq!(timers.due(|| at(30), is_parked), None);
        assert_eq!(timers.next(), None);
    }
}

//! The CPU backend's scheduler: which VM runs next. Runnable VMs are in a run queue; parked ones cost
//! nothing until a timer expires or input arrives. A VM's number here is the index of its slot.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use crate::backend::life::State;
use crate::backend::timers::Timers;
use crate::sync::lock;

/// Where the scheduler has a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    /// In the run queue.
    Queued,
    /// With a worker.
    Running,
    /// With a worker, and input or a request has arrived meanwhile.
    Woken,
    /// Nowhere, until its timer expires or input arrives.
    Parked,
    /// Nowhere, until [`Scheduler::summon`].
    Off,
}

#[derive(Clone, Copy)]
struct Scheduled {
    status: Status,
    /// Counts the VM's entries in the run queue, to recognise stale ones.
    ticket: u32,
}

struct Inner {
    vms: Vec<Scheduled>,
    /// Run queue: VMs with their tickets.
    queue: VecDeque<(u32, u32)>,
    timers: Timers,
    stopped: bool,
}

/// The scheduler of a fleet, shared by all workers.
pub struct Scheduler {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Scheduler {
    /// Returns the scheduler of `count` VMs, the first `started` of them runnable.
    pub fn new(count: u32, started: u32) -> Self {
        let scheduled = |vm| {
            let status = if vm < started { Status::Queued } else { Status::Off };
            Scheduled { status, ticket: 0 }
        };
        let inner = Inner {
            vms: (0..count).map(scheduled).collect(),
            queue: (0..started.min(count)).map(|vm| (vm, 0)).collect(),
            timers: Timers::new(count),
            stopped: false,
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Waits for a runnable VM and takes it; `None` once the scheduler is stopped.
    pub fn next(&self) -> Option<u32> {
        let mut inner = self.lock();
        loop {
            if inner.stopped {
                return None;
            }
            let due = inner.wake_due();
            if let Some((vm, ticket)) = inner.queue.pop_front() {
                let scheduled = &mut inner.vms[vm as usize];
                // A stale entry: the VM was moved forward and has run already.
                if scheduled.ticket != ticket {
                    continue;
                }
                scheduled.status = Status::Running;
                if !inner.queue.is_empty() {
                    self.changed.notify_one();
                }
                return Some(vm);
            }
            inner = match due {
                None => self.changed.wait(inner).unwrap_or_else(|e| e.into_inner()),
                Some(at) => {
                    let timeout = at.saturating_duration_since(Instant::now());
                    let waited = self.changed.wait_timeout(inner, timeout);
                    waited.unwrap_or_else(|e| e.into_inner()).0
                }
            };
        }
    }

    /// Whether a runnable VM waits for a worker.
    pub fn is_crowded(&self) -> bool {
        !self.lock().queue.is_empty()
    }

    /// Gives back a VM that [`Scheduler::next`] returned, in the state in which its worker leaves
    /// it. A parked one runs again at `timer`, if it has one.
    pub fn put(&self, vm: u32, state: State, timer: Option<Instant>) {
        let mut inner = self.lock();
        let scheduled = &mut inner.vms[vm as usize];
        let woken = scheduled.status == Status::Woken;
        match state {
            State::Parked if !woken => {
                scheduled.status = Status::Parked;
                inner.timers.park(vm, timer);
                // This worker waits for the timer itself, unless it takes another VM; then one
                // that sleeps on a later timer has to know.
                if timer.is_none() || inner.queue.is_empty() {
                    return;
                }
            }
            State::Stopped | State::Ready | State::Paused | State::OutOfMemory if !woken => {
                scheduled.status = Status::Off;
                return;
            }
            State::Stopped
            | State::Starting
            | State::Runnable
            | State::Parked
            | State::Ready
            | State::Paused
            | State::OutOfMemory => inner.enqueue(vm),
        }
        self.notify(inner);
    }

    /// Wakes a VM for which input has arrived.
    pub fn wake(&self, vm: u32) {
        let mut inner = self.lock();
        let Some(scheduled) = inner.vms.get_mut(vm as usize) else { return };
        match scheduled.status {
            Status::Parked => {
                inner.enqueue(vm);
                self.notify(inner);
            }
            Status::Running => scheduled.status = Status::Woken,
            Status::Queued | Status::Woken | Status::Off => {}
        }
    }

    /// Moves a VM to the front of the run queue, whatever its state.
    pub fn summon(&self, vm: u32) {
        let mut inner = self.lock();
        let Some(scheduled) = inner.vms.get_mut(vm as usize) else { return };
        match scheduled.status {
            Status::Running | Status::Woken => scheduled.status = Status::Woken,
            Status::Queued | Status::Parked | Status::Off => {
                scheduled.status = Status::Queued;
                scheduled.ticket = scheduled.ticket.wrapping_add(1);
                let entry = (vm, scheduled.ticket);
                inner.queue.push_front(entry);
                self.notify(inner);
            }
        }
    }

    /// Makes [`Scheduler::next`] return `None` to all workers.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Wakes a waiting worker, if there is one. Releases the lock first, so that the worker gets
    /// it.
    fn notify(&self, inner: MutexGuard<'_, Inner>) {
        drop(inner);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    /// Appends a VM to the run queue.
    fn enqueue(&mut self, vm: u32) {
        let scheduled = &mut self.vms[vm as usize];
        scheduled.status = Status::Queued;
        scheduled.ticket = scheduled.ticket.wrapping_add(1);
        self.queue.push_back((vm, scheduled.ticket));
    }

    /// Queues the VMs whose timers have expired; returns when the next timer expires.
    fn wake_due(&mut self) -> Option<Instant> {
        let mut now = None;
        loop {
            let clock = || *now.get_or_insert_with(Instant::now);
            let vms = &self.vms;
            let is_parked = |vm: u32| vms[vm as usize].status == Status::Parked;
            match self.timers.due(clock, is_parked) {
                Some(vm) => self.enqueue(vm),
                None => return self.timers.next(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn runnable_vms_take_turns() {
        let sched = Scheduler::new(2, 2);
        assert_eq!(sched.next(), Some(0));
        sched.put(0, State::Runnable, None);
        assert_eq!(sched.next(), Some(1));
        assert_eq!(sched.next(), Some(0));
    }

    #[test]
    fn a_parked_vm_runs_at_its_time() {
        let sched = Scheduler::new(1, 1);
        let start = Instant::now();
        sched.next();
        sched.put(0, State::Parked, Some(start + Duration::from_millis(5)));
        assert_eq!(sched.next(), Some(0));
        assert!(start.elapsed() >= Duration::from_millis(5));
    }

    #[test]
    fn input_wakes_a_parked_vm_once_and_an_old_timer_is_ignored() {
        let sched = Scheduler::new(1, 1);
        sched.next();
        sched.put(0, State::Parked, Some(Instant::now()));
        sched.wake(0);
        sched.wake(0);
        assert_eq!(sched.next(), Some(0));
        sched.put(0, State::Stopped, None);
        sched.wake(0);
        sched.stop();
        assert_eq!(sched.next(), None);
    }

    #[test]
    fn input_that_comes_while_a_vm_runs_is_not_missed() {
        let sched = Scheduler::new(1, 1);
        sched.next();
        sched.wake(0);
        sched.put(0, State::Parked, None);
        assert_eq!(sched.next(), Some(0));
    }

    #[test]
    fn whoever_is_summoned_is_next_and_has_one_turn_for_it() {
        let sched = Scheduler::new(4, 3);
        sched.summon(3);
        sched.summon(1);
        assert_eq!([sched.next(), sched.next(), sched.next()], [Some(1), Some(3), Some(0)]);
        sched.summon(3);
        sched.put(3, State::Stopped, None);
        assert_eq!(sched.next(), Some(2));
        assert_eq!(sched.next(), Some(3));
        sched.put(3, State::Stopped, None);
        sched.put(1, State::Stopped, None);
        sched.put(2, State::Runnable, None);
        assert_eq!(sched.next(), Some(2));
    }
}

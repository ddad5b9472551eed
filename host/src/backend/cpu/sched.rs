//! The CPU backend's scheduler: which VM runs next. Runnable VMs are in a run queue; idle ones cost
//! nothing until a timer expires or input arrives.

use crate::sync::lock;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// State of a VM at the end of its turn (`Rest`), as its worker returns it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rest {
    /// The VM is runnable: it has more to do.
    Runnable,
    /// The VM is idle: it waits for input, or until the time given.
    Idle(Option<Instant>),
    /// The VM does not run until [`Scheduler::summon`].
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    Queued,
    Running,
    /// Running, and input has arrived meanwhile.
    Poked,
    Idle,
    Done,
}

#[derive(Clone, Copy)]
struct Entry {
    status: Status,
    /// Timer generation: counts how often the VM went idle, so that an earlier timer is recognised
    /// as stale.
    nap: u32,
    /// Counts the VM's entries in the run queue, to recognise stale ones in the same way.
    ticket: u32,
}

struct Inner {
    vms: Vec<Entry>,
    /// Run queue: VMs with their tickets.
    queue: VecDeque<(u32, u32)>,
    timers: BinaryHeap<Reverse<(Instant, u32, u32)>>,
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
        let entry = |vm| {
            let status = if vm < started { Status::Queued } else { Status::Done };
            Entry { status, nap: 0, ticket: 0 }
        };
        let inner = Inner {
            vms: (0..count).map(entry).collect(),
            queue: (0..started.min(count)).map(|vm| (vm, 0)).collect(),
            timers: BinaryHeap::new(),
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
                let entry = &mut inner.vms[vm as usize];
                // A stale entry: the VM was moved forward and has run already.
                if entry.ticket != ticket {
                    continue;
                }
                entry.status = Status::Running;
                if !inner.queue.is_empty() {
                    self.changed.notify_one();
                }
                return Some(vm);
            }
            inner = match due {
                None => self.changed.wait(inner).unwrap_or_else(|e| e.into_inner()),
                Some(at) => {
                    let nap = at.saturating_duration_since(Instant::now());
                    let waited = self.changed.wait_timeout(inner, nap);
                    waited.unwrap_or_else(|e| e.into_inner()).0
                }
            };
        }
    }

    /// Whether a runnable VM waits for a worker.
    pub fn is_crowded(&self) -> bool {
        !self.lock().queue.is_empty()
    }

    /// Gives back a VM that [`Scheduler::next`] returned.
    pub fn put(&self, vm: u32, rest: Rest) {
        let mut inner = self.lock();
        let entry = &mut inner.vms[vm as usize];
        let poked = entry.status == Status::Poked;
        match rest {
            Rest::Done if !poked => {
                entry.status = Status::Done;
                return;
            }
            Rest::Idle(until) if !poked => {
                entry.status = Status::Idle;
                entry.nap = entry.nap.wrapping_add(1);
                let nap = entry.nap;
                let Some(at) = until else { return };
                inner.timers.push(Reverse((at, vm, nap)));
                // This worker waits for the timer itself, unless it takes another VM; then one
                // that sleeps on a later timer has to know.
                if inner.queue.is_empty() {
                    return;
                }
            }
            Rest::Idle(_) | Rest::Runnable | Rest::Done => inner.enqueue(vm),
        }
        self.tell(inner);
    }

    /// Wakes a VM for which input has arrived.
    pub fn wake(&self, vm: u32) {
        let mut inner = self.lock();
        let Some(entry) = inner.vms.get_mut(vm as usize) else { return };
        match entry.status {
            Status::Idle => {
                inner.enqueue(vm);
                self.tell(inner);
            }
            Status::Running => entry.status = Status::Poked,
            Status::Queued | Status::Poked | Status::Done => {}
        }
    }

    /// Moves a VM to the front of the run queue, even one that is done.
    pub fn summon(&self, vm: u32) {
        let mut inner = self.lock();
        let Some(entry) = inner.vms.get_mut(vm as usize) else { return };
        match entry.status {
            Status::Running | Status::Poked => entry.status = Status::Poked,
            Status::Queued | Status::Idle | Status::Done => {
                entry.status = Status::Queued;
                entry.ticket = entry.ticket.wrapping_add(1);
                let place = (vm, entry.ticket);
                inner.queue.push_front(place);
                self.tell(inner);
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
    fn tell(&self, inner: MutexGuard<'_, Inner>) {
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
        let entry = &mut self.vms[vm as usize];
        entry.status = Status::Queued;
        entry.ticket = entry.ticket.wrapping_add(1);
        self.queue.push_back((vm, entry.ticket));
    }

    /// Queues the VMs whose timers have expired; returns when the next timer expires.
    fn wake_due(&mut self) -> Option<Instant> {
        let mut now = None;
        while let Some(&Reverse((at, vm, nap))) = self.timers.peek() {
            let entry = &mut self.vms[vm as usize];
            let valid = entry.status == Status::Idle && entry.nap == nap;
            if valid && at > *now.get_or_insert_with(Instant::now) {
                return Some(at);
            }
            self.timers.pop();
            if valid {
                self.enqueue(vm);
            }
        }
        None
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
        sched.put(0, Rest::Runnable);
        assert_eq!(sched.next(), Some(1));
        assert_eq!(sched.next(), Some(0));
    }

    #[test]
    fn an_idle_vm_runs_at_its_time() {
        let sched = Scheduler::new(1, 1);
        let start = Instant::now();
        sched.next();
        sched.put(0, Rest::Idle(Some(start + Duration::from_millis(5))));
        assert_eq!(sched.next(), Some(0));
        assert!(start.elapsed() >= Duration::from_millis(5));
    }

    #[test]
    fn input_wakes_an_idle_vm_once_and_an_old_timer_is_ignored() {
        let sched = Scheduler::new(1, 1);
        sched.next();
        sched.put(0, Rest::Idle(Some(Instant::now())));
        sched.wake(0);
        sched.wake(0);
        assert_eq!(sched.next(), Some(0));
        sched.put(0, Rest::Done);
        sched.wake(0);
        sched.stop();
        assert_eq!(sched.next(), None);
    }

    #[test]
    fn input_that_comes_while_a_vm_runs_is_not_missed() {
        let sched = Scheduler::new(1, 1);
        sched.next();
        sched.wake(0);
        sched.put(0, Rest::Idle(None));
        assert_eq!(sched.next(), Some(0));
    }

    #[test]
    fn whoever_is_summoned_is_next_and_has_one_turn_for_it() {
        let sched = Scheduler::new(4, 3);
        sched.summon(3);
        sched.summon(1);
        assert_eq!([sched.next(), sched.next(), sched.next()], [Some(1), Some(3), Some(0)]);
        sched.summon(3);
        sched.put(3, Rest::Done);
        assert_eq!(sched.next(), Some(2));
        assert_eq!(sched.next(), Some(3));
        sched.put(3, Rest::Done);
        sched.put(1, Rest::Done);
        sched.put(2, Rest::Runnable);
        assert_eq!(sched.next(), Some(2));
    }
}

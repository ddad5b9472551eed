//! Between backends and the network thread: bounded queues, two for each VM, and who to wake.
//!
//! Nobody waits here. A queue that is full drops the frame and counts it, as a switch does;
//! a VM's queues are its own, so that a guest that floods or does not listen harms itself only.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use super::counters::{Counters, Counts, DropReason};
use super::{Frame, Outlet};

/// Frames that wait for a VM: about what a TCP connection of a guest of this size has under way.
pub const INBOUND_MAX: usize = 256;
/// Frames of a VM that wait for the network thread.
pub const OUTBOUND_MAX: usize = 256;

/// Wakes a VM, or the network thread.
pub type Bell<T> = Box<dyn Fn(T) + Send + Sync>;

/// What the network thread hears from the rest of the program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// A frame from a VM.
    Frame(u32, Frame),
    /// A VM has started again or ended.
    Reset(u32),
    /// The end.
    Stop,
}

/// One VM's part.
#[derive(Default)]
struct Station {
    inbound: Mutex<VecDeque<Frame>>,
    /// Length of `inbound`.
    waiting: AtomicU32,
    /// Frames in `Wire::outbound`.
    leaving: AtomicU32,
    counters: Counters,
}

/// The wire.
#[derive(Default)]
pub struct Wire {
    stations: Vec<Station>,
    outbound: Mutex<VecDeque<Message>>,
    /// The network thread was woken and has not looked yet.
    woken: AtomicBool,
    /// Frames have come for a VM that had none.
    ring_vm: OnceLock<Bell<u32>>,
    /// There are messages for the network thread.
    ring_network: OnceLock<Bell<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Wire {
    /// A wire for `count` VMs. Until somebody listens, frames wait.
    pub fn new(count: u32) -> Self {
        Self { stations: (0..count).map(|_| Station::default()).collect(), ..Self::default() }
    }

    fn station(&self, vm: u32) -> Option<&Station> {
        self.stations.get(vm as usize)
    }

    /// Says how a backend wakes a VM for which frames have come. Only the first call counts.
    pub fn on_inbound(&self, bell: Bell<u32>) {
        let _ = self.ring_vm.set(bell);
    }

    /// Says how the network thread is woken. Only the first call counts.
    pub fn on_outbound(&self, bell: Bell<()>) {
        let _ = self.ring_network.set(bell);
    }

    // For backends.

    /// Takes a frame from a VM.
    pub fn send(&self, vm: u32, frame: Frame) {
        let Some(station) = self.station(vm) else { return };
        if station.leaving.fetch_add(1, Ordering::Relaxed) >= OUTBOUND_MAX as u32 {
            station.leaving.fetch_sub(1, Ordering::Relaxed);
            station.counters.dropped(DropReason::OutboundFull, 1);
            return;
        }
        station.counters.sent(frame.len());
        self.post(Message::Frame(vm, frame));
    }

    /// Whether frames wait for a VM.
    pub fn has_inbound(&self, vm: u32) -> bool {
        self.station(vm).is_some_and(|s| s.waiting.load(Ordering::Acquire) > 0)
    }

    /// Moves at most `max` frames for a VM to the end of `to`.
    pub fn take(&self, vm: u32, max: usize, to: &mut VecDeque<Frame>) {
        let Some(station) = self.station(vm) else { return };
        let mut inbound = lock(&station.inbound);
        let n = inbound.len().min(max);
        to.extend(inbound.drain(..n));
        station.waiting.store(inbound.len() as u32, Ordering::Release);
    }

    /// Counts what a guest's card itself has dropped.
    pub fn dropped_by_card(&self, vm: u32, reason: DropReason, n: u64) {
        if let Some(station) = self.station(vm) {
            station.counters.dropped(reason, n);
        }
    }

    // For whoever watches the VMs.

    /// A VM has started again or ended. Frames that were for it are gone.
    pub fn reset(&self, vm: u32) {
        if let Some(station) = self.station(vm) {
            lock(&station.inbound).clear();
            station.waiting.store(0, Ordering::Release);
            self.post(Message::Reset(vm));
        }
    }

    /// Ends the network thread.
    pub fn stop(&self) {
        self.post(Message::Stop);
    }

    fn post(&self, message: Message) {
        lock(&self.outbound).push_back(message);
        if !self.woken.swap(true, Ordering::AcqRel)
            && let Some(ring) = self.ring_network.get()
        {
            ring(());
        }
    }

    /// A VM's counts.
    pub fn counts(&self, vm: u32) -> Counts {
        self.station(vm).map(|s| s.counters.counts()).unwrap_or_default()
    }

    /// Those of all VMs together.
    pub fn total(&self) -> Counts {
        let mut total = Counts::default();
        for station in &self.stations {
            total.add(&station.counters.counts());
        }
        total
    }

    // For the network thread.

    /// Moves at most `max` messages to the end of `to`. Whoever posts afterwards rings again.
    pub fn messages(&self, max: usize, to: &mut VecDeque<Message>) {
        // Before the look, so that a message after it rings.
        self.woken.store(false, Ordering::Release);
        let mut outbound = lock(&self.outbound);
        let n = outbound.len().min(max);
        let before = to.len();
        to.extend(outbound.drain(..n));
        drop(outbound);
        for message in to.iter().skip(before) {
            if let Message::Frame(vm, _) = message
                && let Some(station) = self.station(*vm)
            {
                station.leaving.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn room(&self, vm: u32) -> usize {
        let waiting = self.station(vm).map(|s| s.waiting.load(Ordering::Relaxed) as usize);
        INBOUND_MAX.saturating_sub(waiting.unwrap_or(INBOUND_MAX))
    }

    pub(super) fn deliver(&self, vm: u32, frame: Frame) {
        let Some(station) = self.station(vm) else { return };
        let mut inbound = lock(&station.inbound);
        if inbound.len() >= INBOUND_MAX {
            drop(inbound);
            return station.counters.dropped(DropReason::InboundFull, 1);
        }
        station.counters.received(frame.len());
        inbound.push_back(frame);
        let first = inbound.len() == 1;
        station.waiting.store(inbound.len() as u32, Ordering::Release);
        drop(inbound);
        if first && let Some(ring) = self.ring_vm.get() {
            ring(vm);
        }
    }

    pub(super) fn dropped(&self, vm: u32, reason: DropReason) {
        self.dropped_by_card(vm, reason, 1);
    }

    /// The way to the guests.
    pub fn outlet(&self) -> Outlet<'_> {
        Outlet::new(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn frame(len: usize) -> Frame {
        vec![7; len].into()
    }

    fn counting() -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
        Default::default()
    }

    #[test]
    fn frames_pass_in_order_and_bells_ring_once_until_somebody_looks() {
        let wire = Wire::new(2);
        let (vm_bell, net_bell) = counting();
        let (a, b) = (Arc::clone(&vm_bell), Arc::clone(&net_bell));
        wire.on_inbound(Box::new(move |vm| _ = a.fetch_add(1 + vm as usize, Ordering::Relaxed)));
        wire.on_outbound(Box::new(move |()| _ = b.fetch_add(1, Ordering::Relaxed)));
        wire.send(1, frame(60));
        wire.send(0, frame(61));
        assert_eq!(net_bell.load(Ordering::Relaxed), 1);
        let mut messages = VecDeque::new();
        wire.messages(9, &mut messages);
        assert_eq!(messages, [Message::Frame(1, frame(60)), Message::Frame(0, frame(61))]);
        wire.send(0, frame(62));
        assert_eq!(net_bell.load(Ordering::Relaxed), 2);

        wire.outlet().send(1, frame(63));
        wire.outlet().send(1, frame(64));
        assert_eq!(vm_bell.load(Ordering::Relaxed), 2);
        assert!(wire.has_inbound(1) && !wire.has_inbound(0));
        let mut taken = VecDeque::new();
        wire.take(1, 1, &mut taken);
        assert_eq!((taken.len(), wire.has_inbound(1)), (1, true));
        wire.take(1, 9, &mut taken);
        assert_eq!((taken[1].len(), wire.has_inbound(1)), (64, false));
    }

    #[test]
    fn a_full_queue_drops_and_counts_and_is_its_vms_alone() {
        let wire = Wire::new(2);
        for _ in 0..OUTBOUND_MAX + 3 {
            wire.send(0, frame(60));
        }
        wire.send(1, frame(60));
        assert_eq!(wire.counts(0).drops.get(DropReason::OutboundFull), 3);
        assert_eq!((wire.counts(1).tx_frames, wire.counts(1).drops.total()), (1, 0));
        let mut messages = VecDeque::new();
        wire.messages(usize::MAX, &mut messages);
        assert_eq!(messages.len(), OUTBOUND_MAX + 1);
        wire.send(0, frame(60));
        assert_eq!(wire.counts(0).drops.get(DropReason::OutboundFull), 3);

        for _ in 0..INBOUND_MAX + 1 {
            wire.outlet().send(1, frame(60));
        }
        assert_eq!((wire.outlet().room(1), wire.outlet().room(0)), (0, INBOUND_MAX));
        assert_eq!(wire.counts(1).drops.get(DropReason::InboundFull), 1);
        wire.reset(1);
        assert_eq!(wire.outlet().room(1), INBOUND_MAX);
    }

    #[test]
    fn a_vm_that_does_not_exist_has_no_frames() {
        let wire = Wire::new(0);
        wire.send(3, frame(60));
        wire.outlet().send(3, frame(60));
        wire.dropped(3, DropReason::Rate);
        assert_eq!(wire.total(), Counts::default());
        assert_eq!(wire.outlet().room(3), 0);
    }
}

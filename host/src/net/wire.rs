//! Between backends and the network thread: bounded queues, two for each VM, and who to wake.
//!
//! Nobody waits here. A queue that is full drops the frame and counts it, as a switch does;
//! a VM's queues are its own and are emptied in turns, so that a guest that floods or does not
//! listen harms itself only.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use super::counters::{Counters, Counts, DropReason};
use super::pcap::{Direction, Recorder};
use super::{Frame, Outlet};
use crate::sync::lock;

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
    /// The VM has ended.
    ended: AtomicBool,
    counters: Counters,
}

/// What the network thread has not heard yet.
#[derive(Default)]
struct Outbound {
    /// Each VM's messages, in order.
    queues: Vec<VecDeque<Message>>,
    /// VMs with messages, in the order of their turns. A turn is one message.
    turns: VecDeque<u32>,
    stop: bool,
}

impl Outbound {
    /// The queue of a VM, which gets a message now.
    fn queue(&mut self, vm: u32) -> Option<&mut VecDeque<Message>> {
        let queue = self.queues.get_mut(vm as usize)?;
        if queue.is_empty() {
            self.turns.push_back(vm);
        }
        Some(queue)
    }

    fn next(&mut self) -> Option<Message> {
        if std::mem::take(&mut self.stop) {
            return Some(Message::Stop);
        }
        let vm = self.turns.pop_front()?;
        let queue = self.queues.get_mut(vm as usize)?;
        let message = queue.pop_front();
        if !queue.is_empty() {
            self.turns.push_back(vm);
        }
        message
    }
}

/// The wire.
#[derive(Default)]
pub struct Wire {
    stations: Vec<Station>,
    outbound: Mutex<Outbound>,
    /// The network thread was woken and has not looked yet.
    woken: AtomicBool,
    /// Frames were sent since the last [`Wire::flush`].
    sent: AtomicBool,
    /// Frames have come for a VM that had none.
    ring_vm: OnceLock<Bell<u32>>,
    /// There are messages for the network thread.
    ring_network: OnceLock<Bell<()>>,
    /// Frames from the outside that are for no VM.
    outside: Counters,
    /// Gets a copy of what passes.
    recorder: OnceLock<Recorder>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("vms", &self.stations.len()).finish_non_exhaustive()
    }
}

impl Wire {
    /// A wire for `count` VMs. Until somebody listens, frames wait.
    pub fn new(count: u32) -> Self {
        let outbound =
            Outbound { queues: vec![VecDeque::new(); count as usize], ..Outbound::default() };
        Self {
            stations: (0..count).map(|_| Station::default()).collect(),
            outbound: Mutex::new(outbound),
            ..Self::default()
        }
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

    /// Says who gets a copy of what VMs send and receive. Only the first call counts.
    pub fn record_to(&self, recorder: Recorder) {
        let _ = self.recorder.set(recorder);
    }

    fn record(&self, vm: u32, direction: Direction, frame: &[u8]) {
        if let Some(recorder) = self.recorder.get() {
            recorder.record(vm, direction, frame);
        }
    }

    // For backends.

    /// Takes a frame from a VM. The network thread sees it after the next [`Wire::flush`] at the
    /// latest: to wake it costs more than all it does for a frame.
    pub fn send(&self, vm: u32, frame: Frame) {
        let Some(station) = self.station(vm) else { return };
        self.record(vm, Direction::Outbound, &frame);
        let mut outbound = lock(&self.outbound);
        let Some(queue) = outbound.queue(vm) else { return };
        if queue.len() >= OUTBOUND_MAX {
            drop(outbound);
            return station.counters.dropped(DropReason::OutboundFull, 1);
        }
        station.counters.sent(frame.len());
        queue.push_back(Message::Frame(vm, frame));
        let many = queue.len() == OUTBOUND_MAX / 2;
        drop(outbound);
        self.sent.store(true, Ordering::Release);
        if many {
            self.flush();
        }
    }

    /// The frames that were sent are all for the moment.
    pub fn flush(&self) {
        // Most calls find nothing, and should not fight over the memory.
        if self.sent.load(Ordering::Acquire) && self.sent.swap(false, Ordering::AcqRel) {
            self.ring();
        }
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
        if n > 0
            && let Some(station) = self.station(vm)
        {
            station.counters.dropped(reason, n);
        }
    }

    // For whoever watches the VMs.

    /// A VM has ended: it takes no frame any more.
    pub fn end(&self, vm: u32) {
        if let Some(station) = self.station(vm) {
            station.ended.store(true, Ordering::Release);
        }
        self.reset(vm);
    }

    /// A VM starts, also one that had ended.
    pub fn start(&self, vm: u32) {
        if let Some(station) = self.station(vm) {
            station.ended.store(false, Ordering::Release);
        }
        self.reset(vm);
    }

    /// A VM has started again. Frames that were for it are gone.
    pub fn reset(&self, vm: u32) {
        if let Some(station) = self.station(vm) {
            lock(&station.inbound).clear();
            station.waiting.store(0, Ordering::Release);
            let mut outbound = lock(&self.outbound);
            let Some(queue) = outbound.queue(vm) else { return };
            // One is as good as several in a row.
            if queue.back() != Some(&Message::Reset(vm)) {
                queue.push_back(Message::Reset(vm));
            }
            drop(outbound);
            self.ring();
        }
    }

    /// Ends the network thread.
    pub fn stop(&self) {
        lock(&self.outbound).stop = true;
        self.ring();
    }

    fn ring(&self) {
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

    /// Frames that a VM has received and sent: cheaper than all its counts.
    pub fn frames(&self, vm: u32) -> (u64, u64) {
        self.station(vm).map(|s| s.counters.frames()).unwrap_or_default()
    }

    /// Those of all VMs together, and of frames that were for none.
    pub fn total(&self) -> Counts {
        let mut total = self.outside.counts();
        for station in &self.stations {
            total.add(&station.counters.counts());
        }
        total
    }

    // For the network thread.

    /// Moves at most `max` messages to the end of `to`, VM after VM. Whoever posts afterwards
    /// rings again.
    pub fn messages(&self, max: usize, to: &mut VecDeque<Message>) {
        // Before the look, so that a message after it rings.
        self.woken.store(false, Ordering::Release);
        let mut outbound = lock(&self.outbound);
        to.extend(std::iter::from_fn(|| outbound.next()).take(max));
    }

    pub(super) fn has_ended(&self, vm: u32) -> bool {
        self.station(vm).is_none_or(|s| s.ended.load(Ordering::Acquire))
    }

    pub(super) fn room(&self, vm: u32) -> usize {
        let waiting = self.station(vm).map(|s| s.waiting.load(Ordering::Relaxed) as usize);
        INBOUND_MAX.saturating_sub(waiting.unwrap_or(INBOUND_MAX))
    }

    pub(super) fn deliver(&self, vm: u32, frame: Frame) {
        let Some(station) = self.station(vm) else { return };
        if station.ended.load(Ordering::Acquire) {
            return station.counters.dropped(DropReason::NoBuffer, 1);
        }
        let mut inbound = lock(&station.inbound);
        if inbound.len() >= INBOUND_MAX {
            drop(inbound);
            return station.counters.dropped(DropReason::InboundFull, 1);
        }
        station.counters.received(frame.len());
        self.record(vm, Direction::Inbound, &frame);
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

    pub(super) fn lost(&self, reason: DropReason) {
        self.outside.dropped(reason, 1);
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
    use crate::net::pcap::Capture;

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
        wire.flush();
        wire.send(1, frame(60));
        wire.send(0, frame(61));
        assert_eq!(net_bell.load(Ordering::Relaxed), 0);
        wire.flush();
        wire.flush();
        assert_eq!(net_bell.load(Ordering::Relaxed), 1);
        let mut messages = VecDeque::new();
        wire.messages(9, &mut messages);
        assert_eq!(messages, [Message::Frame(1, frame(60)), Message::Frame(0, frame(61))]);
        wire.send(0, frame(62));
        wire.flush();
        assert_eq!(net_bell.load(Ordering::Relaxed), 2);
        wire.messages(9, &mut messages);
        // Who sends that much is not waited for.
        (0..OUTBOUND_MAX / 2).for_each(|_| wire.send(0, frame(60)));
        assert_eq!(net_bell.load(Ordering::Relaxed), 3);

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
        wire.end(1);
        wire.outlet().send(1, frame(60));
        assert!(wire.outlet().has_ended(1) && !wire.outlet().has_ended(0) && !wire.has_inbound(1));
        assert_eq!(wire.counts(1).drops.get(DropReason::NoBuffer), 1);
        wire.start(1);
        wire.outlet().send(1, frame(60));
        assert!(wire.has_inbound(1));
    }

    #[test]
    fn vms_take_turns_however_much_one_of_them_sends() {
        let wire = Wire::new(3);
        for _ in 0..OUTBOUND_MAX {
            wire.send(2, frame(60));
        }
        wire.send(0, frame(61));
        wire.reset(0);
        wire.reset(0);
        wire.send(1, frame(62));
        let mut messages = VecDeque::new();
        wire.messages(6, &mut messages);
        let flood = || Message::Frame(2, frame(60));
        let (a, b) = (Message::Frame(0, frame(61)), Message::Frame(1, frame(62)));
        assert_eq!(messages, [flood(), a, b, flood(), Message::Reset(0), flood()]);
        wire.stop();
        messages.clear();
        wire.messages(1, &mut messages);
        assert_eq!(messages, [Message::Stop]);
    }

    #[test]
    fn what_passes_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let capture = Capture::create(&dir.path().join("x.pcapng"), &[0, 1], 2).unwrap();
        let wire = Wire::new(2);
        wire.record_to(capture.recorder());
        wire.send(1, frame(60));
        wire.outlet().send(0, frame(60));
        assert_eq!(capture.finish().unwrap().written, 2);
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

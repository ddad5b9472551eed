//! The virtual link between backends and the network thread: two bounded packet queues per VM, and
//! wakers for both sides.
//!
//! Nothing here blocks. A full queue drops the packet and counts it, as a switch does. Each VM has
//! its own queues, and they are served round-robin, so that a guest that floods the network or
//! stops receiving harms only itself.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::counters::{Counters, Counts, DropReason};
use super::pcap::{Direction, Recorder};
use super::{Packet, PacketSender};
use crate::sync::lock;

/// Packets that may wait for a VM: about what a TCP connection of such a guest has in flight.
pub const INBOUND_MAX: usize = 256;
/// Packets of a VM that may wait for the network thread.
pub const OUTBOUND_MAX: usize = 256;

/// Wakes the given VM.
type VmWaker = Arc<dyn Fn(u32) + Send + Sync>;
/// Wakes the network thread.
type NetworkWaker = Box<dyn Fn() + Send + Sync>;

/// A message to the network thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// A packet from a VM.
    Packet(u32, Packet),
    /// A VM has started again or ended.
    Reset(u32),
    /// The network thread is to end.
    Stop,
}

/// A VM's end of the link.
#[derive(Default)]
struct Endpoint {
    inbound: Mutex<VecDeque<Packet>>,
    /// Length of `inbound`.
    waiting: AtomicU32,
    /// Whether the VM has ended.
    ended: AtomicBool,
    /// Wakes the VM for packets when it had none.
    waker: OnceLock<VmWaker>,
    counters: Counters,
}

/// Messages that wait for the network thread.
#[derive(Default)]
struct Outbound {
    /// Queue of each VM's messages, in order.
    queues: Vec<VecDeque<Message>>,
    /// VMs with messages, in round-robin order. A turn is one message.
    turns: VecDeque<u32>,
    stop: bool,
}

impl Outbound {
    /// Returns the queue of a VM, for adding a message.
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

/// The virtual link of a fleet.
#[derive(Default)]
pub struct VirtualLink {
    endpoints: Vec<Endpoint>,
    outbound: Mutex<Outbound>,
    /// Whether the network thread was woken and has not fetched messages since.
    woken: AtomicBool,
    /// Whether packets were sent since the last [`VirtualLink::flush`].
    sent: AtomicBool,
    waker: OnceLock<NetworkWaker>,
    /// Counters of packets from the outside that are for no VM.
    outside: Counters,
    /// Recorder of the packet capture.
    recorder: OnceLock<Recorder>,
}

impl fmt::Debug for VirtualLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualLink").field("vms", &self.endpoints.len()).finish_non_exhaustive()
    }
}

impl VirtualLink {
    /// Returns a link for `count` VMs. Packets wait until a waker is set.
    pub fn new(count: u32) -> Self {
        let outbound =
            Outbound { queues: vec![VecDeque::new(); count as usize], ..Outbound::default() };
        Self {
            endpoints: (0..count).map(|_| Endpoint::default()).collect(),
            outbound: Mutex::new(outbound),
            ..Self::default()
        }
    }

    fn endpoint(&self, vm: u32) -> Option<&Endpoint> {
        self.endpoints.get(vm as usize)
    }

    /// Sets what wakes these VMs when packets arrive for them, called with the VM's number in the
    /// fleet. Each device of a fleet sets it for its own VMs. Only a VM's first waker counts.
    pub fn on_inbound(
        &self,
        vms: impl IntoIterator<Item = u32>,
        wake: impl Fn(u32) + Send + Sync + 'static,
    ) {
        let waker: VmWaker = Arc::new(wake);
        for endpoint in vms.into_iter().filter_map(|vm| self.endpoint(vm)) {
            let _ = endpoint.waker.set(Arc::clone(&waker));
        }
    }

    /// Sets what wakes the network thread. Only the first call counts.
    pub fn on_outbound(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.waker.set(Box::new(wake));
    }

    /// Sets the recorder of what VMs send and receive. Only the first call counts.
    pub fn record_to(&self, recorder: Recorder) {
        let _ = self.recorder.set(recorder);
    }

    fn record(&self, vm: u32, direction: Direction, packet: &[u8]) {
        if let Some(recorder) = self.recorder.get() {
            recorder.record(vm, direction, packet);
        }
    }

    // Methods for backends.

    /// Queues a packet from a VM. The network thread handles it after the next
    /// [`VirtualLink::flush`] at the latest: waking the thread costs more than all that it does for
    /// a packet.
    pub fn send(&self, vm: u32, packet: Packet) {
        let Some(endpoint) = self.endpoint(vm) else { return };
        self.record(vm, Direction::Outbound, &packet);
        let mut outbound = lock(&self.outbound);
        let Some(queue) = outbound.queue(vm) else { return };
        if queue.len() >= OUTBOUND_MAX {
            drop(outbound);
            return endpoint.counters.dropped(DropReason::OutboundFull, 1);
        }
        endpoint.counters.sent(packet.len());
        queue.push_back(Message::Packet(vm, packet));
        let many = queue.len() == OUTBOUND_MAX / 2;
        drop(outbound);
        self.sent.store(true, Ordering::Release);
        if many {
            self.flush();
        }
    }

    /// Wakes the network thread if packets were sent since the last call.
    pub fn flush(&self) {
        // Most calls find nothing to do, and should not contend for the cache line.
        if self.sent.load(Ordering::Acquire) && self.sent.swap(false, Ordering::AcqRel) {
            self.wake_network();
        }
    }

    /// Whether packets wait for a VM.
    pub fn has_inbound(&self, vm: u32) -> bool {
        self.endpoint(vm).is_some_and(|s| s.waiting.load(Ordering::Acquire) > 0)
    }

    /// Moves at most `max` packets for a VM to the end of `to`.
    pub fn take(&self, vm: u32, max: usize, to: &mut VecDeque<Packet>) {
        let Some(endpoint) = self.endpoint(vm) else { return };
        let mut inbound = lock(&endpoint.inbound);
        let n = inbound.len().min(max);
        to.extend(inbound.drain(..n));
        endpoint.waiting.store(inbound.len() as u32, Ordering::Release);
    }

    /// Counts packets that a guest's network card has dropped.
    pub fn dropped_by_card(&self, vm: u32, reason: DropReason, n: u64) {
        if n > 0
            && let Some(endpoint) = self.endpoint(vm)
        {
            endpoint.counters.dropped(reason, n);
        }
    }

    // Methods for whoever keeps the VMs' states.

    /// Notes that a VM has ended: it takes no more packets.
    pub fn end(&self, vm: u32) {
        if let Some(endpoint) = self.endpoint(vm) {
            endpoint.ended.store(true, Ordering::Release);
        }
        self.reset(vm);
    }

    /// Notes that a VM starts, even if it had ended.
    pub fn start(&self, vm: u32) {
        if let Some(endpoint) = self.endpoint(vm) {
            endpoint.ended.store(false, Ordering::Release);
        }
        self.reset(vm);
    }

    /// Notes that a VM has started again. Packets that waited for it are dropped.
    pub fn reset(&self, vm: u32) {
        if let Some(endpoint) = self.endpoint(vm) {
            lock(&endpoint.inbound).clear();
            endpoint.waiting.store(0, Ordering::Release);
            let mut outbound = lock(&self.outbound);
            let Some(queue) = outbound.queue(vm) else { return };
            // Several resets in a row are one.
            if queue.back() != Some(&Message::Reset(vm)) {
                queue.push_back(Message::Reset(vm));
            }
            drop(outbound);
            self.wake_network();
        }
    }

    /// Ends the network thread.
    pub fn stop(&self) {
        lock(&self.outbound).stop = true;
        self.wake_network();
    }

    fn wake_network(&self) {
        if !self.woken.swap(true, Ordering::AcqRel)
            && let Some(wake) = self.waker.get()
        {
            wake();
        }
    }

    /// Returns the counters of a VM.
    pub fn counts(&self, vm: u32) -> Counts {
        self.endpoint(vm).map(|s| s.counters.counts()).unwrap_or_default()
    }

    /// Returns the packets that a VM has received and sent: cheaper than all its counters.
    pub fn packets(&self, vm: u32) -> (u64, u64) {
        self.endpoint(vm).map(|s| s.counters.packets()).unwrap_or_default()
    }

    /// Returns the sums over all VMs, and over packets that were for none.
    pub fn total(&self) -> Counts {
        let mut total = self.outside.counts();
        for endpoint in &self.endpoints {
            total.add(&endpoint.counters.counts());
        }
        total
    }

    // Methods for the network thread.

    /// Moves at most `max` messages to the end of `to`, one VM after the other. A message that is
    /// queued later wakes the thread again.
    pub fn messages(&self, max: usize, to: &mut VecDeque<Message>) {
        // Cleared before messages are fetched, so that a later message wakes the thread.
        self.woken.store(false, Ordering::Release);
        let mut outbound = lock(&self.outbound);
        to.extend(std::iter::from_fn(|| outbound.next()).take(max));
    }

    pub(super) fn has_ended(&self, vm: u32) -> bool {
        self.endpoint(vm).is_none_or(|s| s.ended.load(Ordering::Acquire))
    }

    pub(super) fn room(&self, vm: u32) -> usize {
        let waiting = self.endpoint(vm).map(|s| s.waiting.load(Ordering::Relaxed) as usize);
        INBOUND_MAX.saturating_sub(waiting.unwrap_or(INBOUND_MAX))
    }

    pub(super) fn deliver(&self, vm: u32, packet: Packet) {
        let Some(endpoint) = self.endpoint(vm) else { return };
        if endpoint.ended.load(Ordering::Acquire) {
            return endpoint.counters.dropped(DropReason::NoBuffer, 1);
        }
        let mut inbound = lock(&endpoint.inbound);
        if inbound.len() >= INBOUND_MAX {
            drop(inbound);
            return endpoint.counters.dropped(DropReason::InboundFull, 1);
        }
        endpoint.counters.received(packet.len());
        self.record(vm, Direction::Inbound, &packet);
        inbound.push_back(packet);
        let first = inbound.len() == 1;
        endpoint.waiting.store(inbound.len() as u32, Ordering::Release);
        drop(inbound);
        if first && let Some(wake) = endpoint.waker.get() {
            wake(vm);
        }
    }

    pub(super) fn dropped(&self, vm: u32, reason: DropReason) {
        self.dropped_by_card(vm, reason, 1);
    }

    pub(super) fn lost(&self, reason: DropReason) {
        self.outside.dropped(reason, 1);
    }

    /// Returns a packet sender for the guests.
    pub fn packet_sender(&self) -> PacketSender<'_> {
        PacketSender::new(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::net::pcap::Capture;

    fn packet(len: usize) -> Packet {
        vec![7; len].into()
    }

    fn counting() -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
        Default::default()
    }

    #[test]
    fn packets_pass_in_order_and_wakers_are_called_once_until_somebody_looks() {
        let link = VirtualLink::new(2);
        let (vm_wakes, network_wakes) = counting();
        let (a, b) = (Arc::clone(&vm_wakes), Arc::clone(&network_wakes));
        link.on_inbound(0..2, move |vm| _ = a.fetch_add(1 + vm as usize, Ordering::Relaxed));
        link.on_outbound(move || _ = b.fetch_add(1, Ordering::Relaxed));
        link.flush();
        link.send(1, packet(60));
        link.send(0, packet(61));
        assert_eq!(network_wakes.load(Ordering::Relaxed), 0);
        link.flush();
        link.flush();
        assert_eq!(network_wakes.load(Ordering::Relaxed), 1);
        let mut messages = VecDeque::new();
        link.messages(9, &mut messages);
        assert_eq!(messages, [Message::Packet(1, packet(60)), Message::Packet(0, packet(61))]);
        link.send(0, packet(62));
        link.flush();
        assert_eq!(network_wakes.load(Ordering::Relaxed), 2);
        link.messages(9, &mut messages);
        // A sender of that many packets is not waited for.
        (0..OUTBOUND_MAX / 2).for_each(|_| link.send(0, packet(60)));
        assert_eq!(network_wakes.load(Ordering::Relaxed), 3);

        link.packet_sender().send(1, packet(63));
        link.packet_sender().send(1, packet(64));
        assert_eq!(vm_wakes.load(Ordering::Relaxed), 2);
        assert!(link.has_inbound(1) && !link.has_inbound(0));
        let mut taken = VecDeque::new();
        link.take(1, 1, &mut taken);
        assert_eq!((taken.len(), link.has_inbound(1)), (1, true));
        link.take(1, 9, &mut taken);
        assert_eq!((taken[1].len(), link.has_inbound(1)), (64, false));
    }

    #[test]
    fn packets_wake_the_device_that_runs_their_vm() {
        let link = VirtualLink::new(5);
        let woken: [Arc<Mutex<Vec<u32>>>; 2] = Default::default();
        for (vms, device) in [0..2, 2..4].into_iter().zip(&woken) {
            let device = Arc::clone(device);
            link.on_inbound(vms, move |vm| lock(&device).push(vm));
        }
        // Nobody runs VM 4.
        (0..5).for_each(|vm| link.packet_sender().send(vm, packet(60)));
        assert_eq!(woken.map(|vms| lock(&vms).clone()), [[0, 1], [2, 3]]);
        assert!(link.has_inbound(4));
    }

    #[test]
    fn a_full_queue_drops_and_counts_and_is_its_vms_alone() {
        let link = VirtualLink::new(2);
        for _ in 0..OUTBOUND_MAX + 3 {
            link.send(0, packet(60));
        }
        link.send(1, packet(60));
        assert_eq!(link.counts(0).drops.get(DropReason::OutboundFull), 3);
        assert_eq!((link.counts(1).tx_packets, link.counts(1).drops.total()), (1, 0));
        let mut messages = VecDeque::new();
        link.messages(usize::MAX, &mut messages);
        assert_eq!(messages.len(), OUTBOUND_MAX + 1);
        link.send(0, packet(60));
        assert_eq!(link.counts(0).drops.get(DropReason::OutboundFull), 3);

        for _ in 0..INBOUND_MAX + 1 {
            link.packet_sender().send(1, packet(60));
        }
        assert_eq!((link.packet_sender().room(1), link.packet_sender().room(0)), (0, INBOUND_MAX));
        assert_eq!(link.counts(1).drops.get(DropReason::InboundFull), 1);
        link.reset(1);
        assert_eq!(link.packet_sender().room(1), INBOUND_MAX);
        link.end(1);
        link.packet_sender().send(1, packet(60));
        assert!(
            link.packet_sender().has_ended(1)
                && !link.packet_sender().has_ended(0)
                && !link.has_inbound(1)
        );
        assert_eq!(link.counts(1).drops.get(DropReason::NoBuffer), 1);
        link.start(1);
        link.packet_sender().send(1, packet(60));
        assert!(link.has_inbound(1));
    }

    #[test]
    fn vms_take_turns_however_much_one_of_them_sends() {
        let link = VirtualLink::new(3);
        for _ in 0..OUTBOUND_MAX {
            link.send(2, packet(60));
        }
        link.send(0, packet(61));
        link.reset(0);
        link.reset(0);
        link.send(1, packet(62));
        let mut messages = VecDeque::new();
        link.messages(6, &mut messages);
        let flood = || Message::Packet(2, packet(60));
        let (a, b) = (Message::Packet(0, packet(61)), Message::Packet(1, packet(62)));
        assert_eq!(messages, [flood(), a, b, flood(), Message::Reset(0), flood()]);
        link.stop();
        messages.clear();
        link.messages(1, &mut messages);
        assert_eq!(messages, [Message::Stop]);
    }

    #[test]
    fn what_passes_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let capture = Capture::create(&dir.path().join("x.pcapng"), &[0, 1], 2).unwrap();
        let link = VirtualLink::new(2);
        link.record_to(capture.recorder());
        link.send(1, packet(60));
        link.packet_sender().send(0, packet(60));
        assert_eq!(capture.finish().unwrap().written, 2);
    }

    #[test]
    fn a_vm_that_does_not_exist_has_no_packets() {
        let link = VirtualLink::new(0);
        link.send(3, packet(60));
        link.packet_sender().send(3, packet(60));
        link.dropped(3, DropReason::Rate);
        assert_eq!(link.total(), Counts::default());
        assert_eq!(link.packet_sender().room(3), 0);
    }
}

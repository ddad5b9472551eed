//! virtio-net (section 5.1), with one queue pair and no offloads.

use super::mmio::Transport;
use super::queue::{Budget, Queue, QueueError, QueueStatus, SIZE_MAX};
use super::{Device, DeviceKind, Io, feature};
use crate::disk::Disk;
use crate::mem::Memory;
use crate::port::{PACKET_MAX, Port};

/// The queue of packets to the guest. The other one is of packets from the guest.
const RECEIVE_QUEUE: u32 = 0;

/// VIRTIO_NET_F_MAC: the configuration has a hardware address.
const F_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_STATUS: the configuration has a link status.
const F_STATUS: u64 = 1 << 16;

/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

/// `struct virtio_net_hdr` before a received packet: no offloads, `num_buffers` 1.
const HEADER: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const HEADER_LEN: u32 = HEADER.len() as u32;
/// For a legacy driver the header ends before `num_buffers` (section 5.1.6.1).
const LEGACY_HEADER_LEN: u32 = 10;

/// Two addresses and the type: the header of an Ethernet frame.
const PACKET_MIN: u32 = 14;

/// Statistics of a network card, for the host to read. A driver's reset does not clear them.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Counters {
    /// Packets that were delivered to the guest.
    pub rx_packets: u64,
    /// Packets to the guest that were dropped, because no driver was up or its buffer was too
    /// small.
    pub rx_drops: u64,
    /// Packets that the guest sent.
    pub tx_packets: u64,
    /// Packets from the guest that were dropped, because they were runts or giants.
    pub tx_drops: u64,
}

state!(Counters { rx_packets, rx_drops, tx_packets, tx_drops });

/// A network card.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Net {
    transport: Transport,
    /// For packets to the guest, and from it.
    queues: [Queue; 2],
    /// Configuration: hardware address.
    mac: [u8; 6],
    /// Configuration: link status bits.
    link: u16,
    /// Statistics.
    pub counters: Counters,
}

state!(Net { transport, queues, mac, link, counters });

impl Net {
    /// Makes a card with hardware address `mac`, link up.
    pub const fn new(mac: [u8; 6]) -> Self {
        Self {
            transport: Transport::in_slot(DeviceKind::Net.default_slot()),
            mac,
            link: LINK_UP,
            ..Self::ABSENT
        }
    }

    /// Sets the link up or down, and interrupts the driver if that changes it.
    pub const fn set_link(&mut self, up: bool) {
        let link = if up { LINK_UP } else { 0 };
        if self.link != link {
            self.link = link;
            self.transport.config_changed();
        }
    }

    /// Returns whether the link is up.
    pub const fn link_is_up(&self) -> bool {
        self.link & LINK_UP != 0
    }
}

impl Device for Net {
    const ID: u32 = 1;
    const FEATURES: u64 = feature::COMMON | F_MAC | F_STATUS;
    const ABSENT: Self = Self {
        transport: Transport::ABSENT,
        queues: [Queue::RESET; 2],
        mac: [0; 6],
        link: 0,
        counters: Counters { rx_packets: 0, rx_drops: 0, tx_packets: 0, tx_drops: 0 },
    };

    fn transport(&self) -> &Transport {
        &self.transport
    }

    fn queues(&self) -> &[Queue] {
        &self.queues
    }

    fn transport_and_queues(&mut self) -> (&mut Transport, &mut [Queue]) {
        (&mut self.transport, &mut self.queues)
    }

    /// Returns byte `at` of `struct virtio_net_config`.
    fn config_byte(&self, at: usize) -> u8 {
        let link = self.link.to_le_bytes();
        self.mac.iter().chain(&link).nth(at).copied().unwrap_or(0)
    }

    fn process<M: Memory, D: Disk, P: Port>(
        &mut self,
        index: u32,
        io: &mut Io<'_, M, D, P>,
    ) -> Result<QueueStatus, QueueError> {
        let Self { transport, queues: [receive_queue, transmit_queue], counters, .. } = self;
        let header_len = match transport.has_feature(feature::VERSION_1) {
            true => HEADER_LEN,
            false => LEGACY_HEADER_LEN,
        };
        if index == RECEIVE_QUEUE {
            receive(receive_queue, header_len, io, &mut transport.budget, counters)
        } else {
            transmit(transmit_queue, header_len, io, &mut transport.budget, counters)
        }
    }

    fn poll_input<P: Port>(&mut self, live: bool, port: &mut P) -> Option<u32> {
        port.net_rx_len()?;
        if live {
            return Some(RECEIVE_QUEUE);
        }
        discard(port, &mut self.counters);
        None
    }
}

/// Copies packets from the guest to the port, until the queue is empty or the port is full.
fn transmit<M: Memory, D: Disk, P: Port>(
    queue: &mut Queue,
    header_len: u32,
    io: &mut Io<'_, M, D, P>,
    budget: &mut Budget,
    counters: &mut Counters,
) -> Result<QueueStatus, QueueError> {
    for _ in 0..queue.available(&mut io.ram)? {
        if budget.is_spent() {
            return Ok(QueueStatus::Deferred);
        }
        let head = queue.next_head(&io.ram)?;
        let lengths = queue.validate_chain(&io.ram, head)?;
        if lengths.writable != 0 {
            return Err(QueueError::Broken);
        }
        let packet_len = packet_len(lengths.readable, header_len);
        budget.spend(&lengths, packet_len.unwrap_or(0));
        match packet_len {
            Some(len) => {
                if !io.port.net_tx_begin(len) {
                    return Ok(QueueStatus::Deferred);
                }
                let port = &mut *io.port;
                queue.read_with(&io.ram, head, header_len.into(), len, |at, chunk| {
                    port.net_tx_write(at, chunk);
                })?;
                io.port.net_tx_end();
                counters.tx_packets = counters.tx_packets.wrapping_add(1);
            }
            None => counters.tx_drops = counters.tx_drops.wrapping_add(1),
        }
        queue.complete(&mut io.ram, head, 0)?;
    }
    Ok(QueueStatus::Done)
}

/// Returns the length of the packet in a buffer of `len` bytes, if it is neither a runt nor
/// a giant.
fn packet_len(len: u64, header_len: u32) -> Option<u32> {
    let len = u32::try_from(len).ok()?.checked_sub(header_len)?;
    (PACKET_MIN..=PACKET_MAX).contains(&len).then_some(len)
}

/// Copies packets from the port to the guest, until there is no further packet or no further
/// buffer.
///
/// A packet is removed from the port only when it is in the guest's buffer, so a repeated call loses
/// none.
fn receive<M: Memory, D: Disk, P: Port>(
    queue: &mut Queue,
    header_len: u32,
    io: &mut Io<'_, M, D, P>,
    budget: &mut Budget,
    counters: &mut Counters,
) -> Result<QueueStatus, QueueError> {
    if io.port.net_rx_len().is_none() {
        return Ok(QueueStatus::Done);
    }
    let mut buffers = queue.available(&mut io.ram)?;
    // Packets that fit no buffer take none, hence a second bound.
    for _ in 0..SIZE_MAX {
        if buffers == 0 {
            break;
        }
        let Some(packet_len) = io.port.net_rx_len() else { break };
        if budget.is_spent() {
            return Ok(QueueStatus::Deferred);
        }
        let head = queue.next_head(&io.ram)?;
        let lengths = queue.validate_chain(&io.ram, head)?;
        if lengths.readable != 0 {
            return Err(QueueError::Broken);
        }
        let len = packet_len.saturating_add(header_len);
        budget.spend(&lengths, len.min(PACKET_MAX));
        if !(1..=PACKET_MAX).contains(&packet_len) || u64::from(len) > lengths.writable {
            io.port.net_rx_end();
            counters.rx_drops = counters.rx_drops.wrapping_add(1);
            continue;
        }
        let port = &mut *io.port;
        queue.write_with(&mut io.ram, head, 0, len, |at, chunk| {
            fill(port, header_len, at, chunk);
        })?;
        io.port.net_rx_end();
        queue.complete(&mut io.ram, head, len)?;
        counters.rx_packets = counters.rx_packets.wrapping_add(1);
        buffers -= 1;
    }
    Ok(QueueStatus::Done)
}

/// Fills a chunk with what is at byte `at` of header and packet.
fn fill(port: &mut impl Port, header_len: u32, at: u32, chunk: &mut [u8]) {
    let in_header = header_len.saturating_sub(at).min(chunk.len() as u32);
    let Some((header, packet)) = chunk.split_at_mut_checked(in_header as usize) else { return };
    for (byte, value) in header.iter_mut().zip(HEADER.iter().skip(at as usize)) {
        *byte = *value;
    }
    if !packet.is_empty() {
        port.net_rx_read(at.wrapping_add(in_header).wrapping_sub(header_len), packet);
    }
}

/// Drops packets for a guest whose driver is not up, so that it does not receive stale ones
/// later.
fn discard(port: &mut impl Port, counters: &mut Counters) {
    for _ in 0..SIZE_MAX {
        if port.net_rx_len().is_none() {
            return;
        }
        port.net_rx_end();
        counters.rx_drops = counters.rx_drops.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use virtio_bindings::virtio_net::{
        VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP, virtio_net_hdr_v1,
    };

    use super::*;
    use crate::chacha::ChaCha;
    use crate::dev::virtio::Deferred;
    use crate::dev::virtio::driver::{
        BUFFERS, Guest, Prng, QUEUE_SIZE, WRITE, any_version, for_seeds, reg,
    };
    use crate::dev::virtio::mmio::Version;
    use crate::dev::virtio::rng::Rng;
    use crate::trap::Trap;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const RX: u32 = RECEIVE_QUEUE;
    const TX: u32 = 1;
    /// Room for a header and the largest packet.
    const BUFFER_SIZE: u32 = HEADER_LEN + PACKET_MAX;

    fn guest() -> Guest<Net> {
        Guest::started(Net::new(MAC), 0)
    }

    fn packet(len: u32) -> Vec<u8> {
        (0..len).map(|i| i as u8 ^ 0x5a).collect()
    }

    /// The length of the header before packets.
    fn header_len(guest: &Guest<Net>) -> u32 {
        match guest.version {
            Version::Legacy => 10,
            Version::Modern => 12,
        }
    }

    /// Puts header and `packet` into RAM at `addr` and returns their length.
    fn store_packet(guest: &mut Guest<Net>, addr: u64, packet: &[u8]) -> u32 {
        let header = header_len(guest);
        guest.store(addr, &[0; 12]);
        guest.store(addr + u64::from(header), packet);
        header + packet.len() as u32
    }

    /// Makes `packet` available to be sent.
    fn offer_packet(guest: &mut Guest<Net>, packet: &[u8]) {
        let len = store_packet(guest, BUFFERS, packet);
        guest.offer(TX, &[(BUFFERS, len, 0)]);
    }

    #[test]
    fn features_and_header_are_those_of_linux() {
        assert_eq!(F_MAC, 1 << VIRTIO_NET_F_MAC);
        assert_eq!(F_STATUS, 1 << VIRTIO_NET_F_STATUS);
        assert_eq!(u32::from(LINK_UP), VIRTIO_NET_S_LINK_UP);
        assert_eq!(HEADER.len(), size_of::<virtio_net_hdr_v1>());
        let num_buffers = core::mem::offset_of!(virtio_net_hdr_v1, num_buffers);
        assert_eq!(HEADER[num_buffers..], [1, 0]);
    }

    #[test]
    fn it_offers_mac_and_status_and_no_offloads() {
        let features = guest().device_features();
        assert_eq!(features, 1 << 32 | 1 << 29 | 1 << 16 | 1 << 5);
    }

    #[test]
    fn configuration_has_mac_and_link_status() {
        let mut guest = guest();
        let config: Vec<u8> =
            (0..8).map(|i| guest.device.read(guest.version, reg::CONFIG + i, 1) as u8).collect();
        assert_eq!(config, [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0]);
        guest.device.set_link(false);
        assert_eq!(guest.device.read(guest.version, reg::CONFIG + 6, 2), 0);
    }

    #[test]
    fn a_packet_is_sent_without_its_header() {
        let mut guest = guest();
        offer_packet(&mut guest, &packet(60));
        guest.kick(TX);
        assert_eq!(guest.port.tx, [packet(60)]);
        assert_eq!(guest.take_used(TX), Some((0, 0)));
        assert_eq!(guest.device.counters.tx_packets, 1);
    }

    #[test]
    fn header_and_packet_may_be_cut_anywhere() {
        let mut guest = guest();
        let len = store_packet(&mut guest, BUFFERS, &packet(60));
        let cuts = [(0u32, 5), (5, 0), (5, 8), (13, 1), (14, len - 14)];
        let chain = cuts.map(|(at, len)| (BUFFERS + u64::from(at), len, 0));
        guest.offer(TX, &chain);
        guest.kick(TX);
        assert_eq!(guest.port.tx, [packet(60)]);
    }

    #[test]
    fn a_packet_may_cross_pages() {
        let mut guest = guest();
        let len = store_packet(&mut guest, BUFFERS + 4000, &packet(1000));
        guest.offer(TX, &[(BUFFERS + 4000, len, 0)]);
        guest.kick(TX);
        assert_eq!(guest.port.tx, [packet(1000)]);
    }

    #[test]
    fn the_largest_and_the_smallest_packet_are_sent() {
        let mut guest = guest();
        offer_packet(&mut guest, &packet(PACKET_MAX));
        guest.kick(TX);
        offer_packet(&mut guest, &packet(PACKET_MIN));
        guest.kick(TX);
        assert_eq!(guest.port.tx, [packet(PACKET_MAX), packet(PACKET_MIN)]);
    }

    #[test]
    fn giants_and_runts_are_dropped_and_counted() {
        let mut guest = guest();
        let lens = [PACKET_MAX + 1, 60_000, PACKET_MIN - 1, 0];
        for len in lens {
            guest.offer(TX, &[(BUFFERS, HEADER_LEN + len, 0)]);
        }
        guest.offer(TX, &[(BUFFERS, HEADER_LEN - 1, 0)]);
        guest.kick(TX);
        assert!(guest.port.tx.is_empty());
        assert_eq!(guest.device.counters.tx_drops, 5);
        assert_eq!((0..9).filter_map(|_| guest.take_used(TX)).count(), 5);
    }

    #[test]
    fn a_writable_buffer_in_the_transmit_queue_needs_a_reset() {
        let mut guest = guest();
        guest.offer(TX, &[(BUFFERS, 72, 0), (BUFFERS, 8, WRITE)]);
        guest.kick(TX);
        assert!(guest.needs_reset());
        assert!(guest.port.tx.is_empty());
    }

    #[test]
    fn packets_wait_for_room_in_the_port_and_none_is_lost() {
        let mut guest = guest();
        (0..3).for_each(|i| {
            let len = store_packet(&mut guest, BUFFERS + 0x1000 * i, &packet(60 + i as u32));
            guest.offer(TX, &[(BUFFERS + 0x1000 * i, len, 0)]);
        });
        guest.port.tx_room = 1;
        guest.kick(TX);
        assert_eq!(guest.port.tx, [packet(60)]);
        assert_eq!(guest.device.deferred(), Some(Deferred::Port));
        guest.poll();
        assert_eq!(guest.device.deferred(), Some(Deferred::Port));
        guest.port.tx_room = 5;
        guest.poll();
        assert_eq!(guest.port.tx, [packet(60), packet(61), packet(62)]);
        assert_eq!(guest.device.deferred(), None);
    }

    #[test]
    fn packets_beyond_a_slices_work_are_sent_in_the_next() {
        let mut guest = guest();
        let mut sent = 0;
        while guest.device.deferred().is_none() {
            offer_packet(&mut guest, &packet(PACKET_MAX));
            guest.kick(TX);
            sent += 1;
            assert!(sent < 200);
        }
        assert_eq!(guest.device.deferred(), Some(Deferred::Budget));
        assert_eq!(guest.port.tx.len(), sent - 1);
        guest.poll();
        assert_eq!(guest.port.tx.len(), sent);
        assert_eq!(guest.device.deferred(), None);
    }

    #[test]
    fn a_stopped_queue_has_nothing_left_over() {
        let mut guest = guest();
        offer_packet(&mut guest, &packet(60));
        guest.port.tx_room = 0;
        guest.kick(TX);
        guest.write(reg::QUEUE_SEL, TX);
        guest.write(reg::QUEUE_READY, 0);
        guest.poll();
        assert_eq!(guest.device.deferred(), None);
    }

    #[test]
    fn a_packet_is_received_behind_a_header() {
        let mut guest = guest();
        let head = guest.offer(RX, &[(BUFFERS, BUFFER_SIZE, WRITE)]);
        guest.port.rx.push_back(packet(60));
        guest.poll();
        assert_eq!(guest.take_used(RX), Some((head.into(), 72)));
        assert_eq!(guest.load(BUFFERS, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(guest.load(BUFFERS + 12, 60), packet(60));
        assert!(guest.port.rx.is_empty());
        assert_eq!(guest.device.counters.rx_packets, 1);
    }

    #[test]
    fn the_header_for_a_legacy_driver_has_no_number_of_buffers() {
        let mut guest = Guest::started_with_version(Version::Legacy, Net::new(MAC), 0);
        offer_packet(&mut guest, &packet(60));
        guest.kick(TX);
        assert_eq!(guest.port.tx, [packet(60)]);
        guest.offer(RX, &[(BUFFERS, 10 + 60, WRITE)]);
        guest.port.rx.extend([packet(61), packet(60)]);
        guest.poll();
        assert_eq!(guest.take_used(RX), Some((0, 70)));
        assert_eq!(guest.load(BUFFERS, 10), [0; 10]);
        assert_eq!(guest.load(BUFFERS + 10, 60), packet(60));
        assert_eq!(guest.device.counters.rx_drops, 1);
    }

    #[test]
    fn received_packets_interrupt_once() {
        let mut guest = guest();
        (0..3).for_each(|_| _ = guest.offer(RX, &[(BUFFERS, BUFFER_SIZE, WRITE)]));
        guest.port.rx.extend([packet(60), packet(61), packet(62)]);
        guest.poll();
        assert_eq!(guest.read(reg::INTERRUPT_STATUS), 1);
        assert_eq!((0..9).filter_map(|_| guest.take_used(RX)).count(), 3);
    }

    #[test]
    fn a_packet_may_be_received_into_several_buffers() {
        let mut guest = guest();
        let across = BUFFERS + 0x1000 - 3;
        let parts = [(BUFFERS, 10, WRITE), (BUFFERS + 10, 7, WRITE), (across, 2000, WRITE)];
        guest.offer(RX, &parts);
        guest.port.rx.push_back(packet(60));
        guest.poll();
        assert_eq!(guest.load(BUFFERS + 10, 2), [1, 0]);
        assert_eq!(guest.load(BUFFERS + 12, 5), packet(60)[..5]);
        assert_eq!(guest.load(across, 55), packet(60)[5..]);
    }

    #[test]
    fn packets_wait_for_buffers() {
        let mut guest = guest();
        guest.port.rx.extend([packet(60), packet(61)]);
        guest.offer(RX, &[(BUFFERS, BUFFER_SIZE, WRITE)]);
        guest.poll();
        assert_eq!(guest.port.rx.len(), 1);
        guest.offer(RX, &[(BUFFERS, BUFFER_SIZE, WRITE)]);
        guest.kick(RX);
        assert!(guest.port.rx.is_empty());
        assert_eq!(guest.load(BUFFERS + 12, 61), packet(61));
    }

    #[test]
    fn a_packet_larger_than_the_buffer_is_dropped_and_the_buffer_kept() {
        let mut guest = guest();
        guest.offer(RX, &[(BUFFERS, 12 + 60, WRITE)]);
        guest.port.rx.extend([packet(61), packet(60)]);
        guest.poll();
        assert_eq!(guest.take_used(RX), Some((0, 72)));
        assert_eq!(guest.load(BUFFERS + 12, 60), packet(60));
        assert_eq!(guest.device.counters.rx_drops, 1);
    }

    #[test]
    fn a_host_packet_of_a_length_that_cannot_be_is_dropped() {
        let mut guest = guest();
        guest.offer(RX, &[(BUFFERS, 0x4000, WRITE)]);
        guest.port.rx.extend([packet(0), packet(PACKET_MAX + 1)]);
        guest.poll();
        assert_eq!(guest.take_used(RX), None);
        assert_eq!(guest.device.counters.rx_drops, 2);
    }

    #[test]
    fn a_readable_buffer_in_the_receive_queue_needs_a_reset() {
        let mut guest = guest();
        guest.offer(RX, &[(BUFFERS, 12, 0), (BUFFERS, 2000, WRITE)]);
        guest.port.rx.push_back(packet(60));
        guest.poll();
        assert!(guest.needs_reset());
    }

    #[test]
    fn packets_for_a_guest_without_driver_are_dropped_and_counted() {
        let mut guest = Guest::new(Net::new(MAC));
        guest.port.rx.push_back(packet(60));
        guest.poll();
        assert!(guest.port.rx.is_empty());
        assert_eq!(guest.device.counters.rx_drops, 1);
    }

    #[test]
    fn a_packet_stays_in_the_port_until_there_are_frames_for_it() {
        let mut guest = guest();
        let across = BUFFERS + 0x1000 - 30;
        guest.offer(RX, &[(across, BUFFER_SIZE, WRITE)]);
        guest.port.rx.push_back(packet(60));
        guest.ram.frames_left = 1;
        assert_eq!(guest.try_poll(), Err(Trap::NoFrame));
        assert_eq!((guest.port.rx.len(), guest.device.counters.rx_packets), (1, 0));
        guest.ram.frames_left = 1;
        guest.poll();
        assert_eq!(guest.take_used(RX), Some((0, 72)));
        assert_eq!(guest.load(across + 12, 60), packet(60));
    }

    #[test]
    fn polling_another_device_leaves_packets_alone() {
        let mut guest = Guest::started(Rng::new(ChaCha::new([0; 8])), 0);
        guest.port.rx.push_back(packet(60));
        guest.poll();
        assert_eq!(guest.port.rx.len(), 1);
    }

    /// What a well-behaved driver and host do, at random; no packet may be lost or changed.
    fn exchange(rng: &mut Prng) {
        let features = if rng.one_in(2) { super::feature::EVENT_IDX } else { 0 };
        let mut guest = Guest::started_with_version(any_version(rng), Net::new(MAC), features);
        let header = header_len(&guest);
        let (mut sent, mut delivered) = (Vec::new(), Vec::new());
        let (mut posted, mut expected) = (Vec::new(), std::collections::VecDeque::new());
        let slot = |i: usize| BUFFERS + 0x1000 * i as u64;
        for _ in 0..150 {
            match rng.below(6) {
                0 => {
                    let packet = packet(PACKET_MIN + rng.below(PACKET_MAX - PACKET_MIN + 1));
                    guest.port.rx.push_back(packet.clone());
                    expected.push_back(packet);
                }
                1 if posted.len() < usize::from(QUEUE_SIZE) => {
                    let at = (0..16).find(|i| !posted.contains(i)).expect("a free buffer");
                    posted.push(at);
                    guest.offer(RX, &[(slot(at), BUFFER_SIZE, WRITE)]);
                    guest.kick(RX);
                }
                2 => {
                    let addr = slot(16 + sent.len() % 8);
                    let packet = packet(PACKET_MIN + rng.below(1000));
                    let len = store_packet(&mut guest, addr, &packet);
                    let cut = rng.below(len);
                    guest.offer(TX, &[(addr, cut, 0), (addr + u64::from(cut), len - cut, 0)]);
                    guest.kick(TX);
                    sent.push(packet);
                    // The ring has room for eight of these.
                    while guest.device.deferred().is_some() {
                        guest.port.tx_room = 1 + rng.below(3);
                        guest.poll();
                    }
                    while guest.take_used(TX).is_some() {}
                }
                3 => guest.port.tx_room = rng.below(3),
                4 => guest.write(reg::INTERRUPT_ACK, 3),
                _ => guest.poll(),
            }
            while let Some((_, len)) = guest.take_used(RX) {
                let at: usize = posted.remove(0);
                let received = guest.load(slot(at) + u64::from(header), len - header);
                assert_eq!(Some(&received), expected.front());
                expected.pop_front();
                delivered.push(received);
            }
            assert!(!guest.needs_reset());
        }
        assert_eq!(guest.port.tx, sent);
        assert_eq!(guest.port.rx, expected);
        assert_eq!(guest.device.counters.rx_packets, delivered.len() as u64);
    }

    #[test]
    fn no_packet_is_lost_or_changed() {
        for_seeds(0, 100, exchange);
    }

    #[test]
    fn no_driver_makes_the_card_panic() {
        for_seeds(1000, 200, |rng| {
            let mut guest = Guest::started_with_version(any_version(rng), Net::new(MAC), 0);
            for _ in 0..60 {
                let queue = rng.below(2);
                let addr = BUFFERS + u64::from(rng.below(0x3_0000));
                match rng.below(8) {
                    0..3 => {
                        let len = rng.below(4000);
                        let flags = if rng.one_in(8) { rng.below(8) } else { 2 - 2 * queue } as u16;
                        guest.offer(queue, &[(addr, rng.below(20), flags), (addr, len, flags)]);
                    }
                    3 => guest.port.rx.push_back(packet(rng.below(PACKET_MAX + 2))),
                    4 => guest.port.tx_room = rng.below(3),
                    5 => {
                        guest.ram.frames_left = rng.below(4);
                        let _ = guest.try_write(reg::QUEUE_NOTIFY, queue);
                        let _ = guest.try_poll();
                        guest.ram.frames_left = u32::MAX;
                    }
                    6 => guest.store(addr & !0xfff, &[rng.next_u32() as u8]),
                    _ if guest.needs_reset() => guest.start(0),
                    _ => guest.set_avail_idx(queue, rng.below(0x40) as u16),
                }
            }
        });
    }
}

//! The device half of a split virtqueue (section 2.7).
//!
//! Every index, address and length comes from the driver and must be checked: indexes against the
//! queue's size, ranges against RAM (by [`Dma`]), and the length of a chain against the number of
//! descriptors.

use super::mmio::AddressHalf;
use crate::mem::{Dma, DmaError, Memory};

/// The most descriptors in a queue.
///
/// It is small on purpose. Linux fills the whole receive queue with buffers of 2 KiB, which become
/// private frames of every VM, but needs more than 19 descriptors to transmit at all.
pub const SIZE_MAX: u16 = 64;

/// Descriptor flags (section 2.7.5).
mod desc_flag {
    /// The chain continues at `next`.
    pub const NEXT: u16 = 1;
    /// The device writes the buffer, otherwise it reads it.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors. Not offered.
    pub const INDIRECT: u16 = 4;
}

/// The driver wants no interrupts (section 2.7.6, `VIRTQ_AVAIL_F_NO_INTERRUPT`).
const AVAIL_NO_INTERRUPT: u16 = 1;

const DESC_SIZE: u64 = 16;
const DESC_ALIGN: u64 = 16;
const AVAIL_ALIGN: u64 = 2;
const USED_ALIGN: u64 = 4;
/// `flags` and `idx` in front of both rings.
const RING_HEADER: u64 = 4;
const RING_IDX: u64 = 2;
const AVAIL_ELEM: u64 = 2;
const USED_ELEM: u64 = 8;
/// `used_event` or `avail_event` behind a ring.
const EVENT: u64 = 2;

/// The alignment of legacy queues whose drivers set none, as in QEMU.
const LEGACY_ALIGN: u32 = 4096;

/// Why a queue could not be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueError {
    /// The driver violated the specification, and the device needs a reset.
    Broken,
    /// No private frame is left; repeat later.
    NoFrame,
}

impl From<DmaError> for QueueError {
    fn from(error: DmaError) -> Self {
        match error {
            DmaError::OutOfRange => Self::Broken,
            DmaError::NoFrame => Self::NoFrame,
        }
    }
}

/// Whether a device has finished processing a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueStatus {
    /// The device has done all that it can for now.
    Done,
    /// The device has unfinished work.
    Deferred,
}

/// A virtqueue's registers and positions.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Queue {
    desc: u64,
    avail: u64,
    used: u64,
    size: u16,
    /// The next entry of the available ring to take.
    avail_idx: u16,
    /// The next entry of the used ring to fill.
    used_idx: u16,
    ready: u16,
    /// The alignment of the used ring in the legacy layout.
    align: u32,
    /// Whether the driver is a legacy one.
    legacy: u32,
}

state!(Queue { desc, avail, used, size, avail_idx, used_idx, ready, align, legacy });

/// The number of buffers in a descriptor chain, and their lengths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChainLengths {
    /// Number of buffers.
    pub segments: u32,
    /// Bytes that the device reads.
    pub readable: u64,
    /// Bytes that the device writes.
    pub writable: u64,
}

/// The budget: how much work a device may still do in this slice.
///
/// A few instructions of a guest can request a lot of copying, and other VMs share the CPU. Work
/// beyond the budget waits for the next slice.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Budget {
    bytes_left: u32,
}

impl Budget {
    /// The bytes that a device may copy in a slice.
    const BYTES_MAX: u32 = 128 * 1024;
    /// The cost of reading a descriptor, in bytes of copying.
    const SEGMENT_COST: u32 = 64;

    /// The budget of a whole slice.
    pub const FULL: Self = Self { bytes_left: Self::BYTES_MAX };

    /// Returns whether the budget is used up.
    pub const fn is_spent(&self) -> bool {
        self.bytes_left == 0
    }

    /// Charges a chain to the budget. The last chain may exceed what was left.
    pub const fn spend(&mut self, lengths: &ChainLengths, bytes: u32) {
        let cost = lengths.segments.saturating_mul(Self::SEGMENT_COST).saturating_add(bytes);
        self.bytes_left = self.bytes_left.saturating_sub(cost);
    }
}

/// One buffer of a chain, inside RAM.
struct Segment {
    addr: u64,
    len: u32,
    writable: bool,
}

/// A walk along a chain.
struct Chain {
    next: Option<u16>,
    /// How many more descriptors the chain may have, so that a cycle ends.
    left: u16,
    writable: bool,
}

impl Chain {
    /// Returns the next buffer. Readable buffers come before writable ones (section 2.7.4.2).
    fn next<M: Memory>(
        &mut self,
        queue: &Queue,
        ram: &Dma<'_, M>,
    ) -> Result<Option<Segment>, QueueError> {
        let Some(index) = self.next else { return Ok(None) };
        if index >= queue.size || self.left == 0 {
            return Err(QueueError::Broken);
        }
        self.left -= 1;
        let at = queue.desc.wrapping_add(u64::from(index) * DESC_SIZE);
        let low = ram.read_u32(at)?;
        let high = ram.read_u32(at.wrapping_add(4))?;
        let len = ram.read_u32(at.wrapping_add(8))?;
        let flags_next = ram.read_u32(at.wrapping_add(12))?;
        let (flags, next) = (flags_next as u16, (flags_next >> 16) as u16);
        // Drivers of 32-bit systems cast pointers to 64 bits, which extends the sign. QEMU takes that,
        // and drivers that were written for it rely on it.
        let high = if queue.legacy != 0 { 0 } else { high };
        let addr = u64::from(high) << 32 | u64::from(low);
        let writable = flags & desc_flag::WRITE != 0;
        if flags & desc_flag::INDIRECT != 0
            || self.writable && !writable
            || !ram.contains(addr, len)
            || writable && queue.is_read_from(addr, len)
        {
            return Err(QueueError::Broken);
        }
        self.writable = writable;
        self.next = if flags & desc_flag::NEXT != 0 { Some(next) } else { None };
        Ok(Some(Segment { addr, len, writable }))
    }
}

impl Queue {
    /// Returns whether the device reads the driver's side of the queue from any of `len` bytes at
    /// `addr`. A chain that writes there would change while it is used, which a good one does not.
    const fn is_read_from(&self, addr: u64, len: u32) -> bool {
        const fn overlap(a: u64, a_len: u64, b: u64, b_len: u64) -> bool {
            a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
        }
        let (size, len) = (self.size as u64, len as u64);
        overlap(addr, len, self.desc, size * DESC_SIZE)
            || overlap(addr, len, self.avail, RING_HEADER + size * AVAIL_ELEM + EVENT)
    }

    /// Not ready.
    pub const RESET: Self = Self {
        desc: 0,
        avail: 0,
        used: 0,
        size: SIZE_MAX,
        avail_idx: 0,
        used_idx: 0,
        ready: 0,
        align: LEGACY_ALIGN,
        legacy: 0,
    };

    /// Returns whether the driver has set the queue up.
    pub const fn is_ready(&self) -> bool {
        self.ready != 0
    }

    /// Returns how many buffers have been used so far, modulo 2^16.
    pub const fn used_idx(&self) -> u16 {
        self.used_idx
    }

    /// Sets the size from the driver's QueueNum. An invalid size is stored as zero and refused
    /// later.
    pub(super) fn set_size(&mut self, size: u32) {
        self.size = u16::try_from(size).unwrap_or(0);
    }

    /// Sets one half of an area's address. The descriptor area, the driver area (available ring)
    /// and the device area (used ring) cannot be moved while the queue is ready.
    pub(super) const fn set_address(&mut self, half: AddressHalf, value: u32) {
        half.store(
            match half {
                AddressHalf::DescLow | AddressHalf::DescHigh => &mut self.desc,
                AddressHalf::DriverLow | AddressHalf::DriverHigh => &mut self.avail,
                AddressHalf::DeviceLow | AddressHalf::DeviceHigh => &mut self.used,
            },
            value,
        );
    }

    /// Returns the address of the descriptor area.
    pub(super) const fn desc_address(&self) -> u64 {
        self.desc
    }

    /// Sets the alignment from a legacy driver's QueueAlign. Zero changes nothing, as in QEMU.
    pub(super) const fn set_align(&mut self, align: u32) {
        if align != 0 {
            self.align = align;
        }
    }

    /// Places the areas as legacy drivers have them (section 2.7.2): one behind the other from
    /// `desc`, the used ring at the next multiple of the alignment.
    pub(super) fn place_legacy(&mut self, desc: u64) {
        let size = u64::from(self.size);
        let avail = desc.wrapping_add(size * DESC_SIZE);
        let end = avail.wrapping_add(RING_HEADER + size * AVAIL_ELEM + EVENT);
        let align = u64::from(self.align);
        self.legacy = 1;
        self.desc = desc;
        self.avail = avail;
        self.used = end.wrapping_add(align.wrapping_sub(1)) & align.wrapping_neg();
    }

    /// Starts the queue, if its size is valid and its areas are aligned and in RAM.
    pub(super) fn start<M: Memory>(&mut self, ram: &Dma<'_, M>) -> Result<(), QueueError> {
        let size = u64::from(self.size);
        let fits = |addr: u64, align: u64, len: u64| {
            addr & (align - 1) == 0 && ram.contains(addr, len as u32)
        };
        if !self.size.is_power_of_two()
            || !self.align.is_power_of_two()
            || self.size > SIZE_MAX
            || !fits(self.desc, DESC_ALIGN, size * DESC_SIZE)
            || !fits(self.avail, AVAIL_ALIGN, RING_HEADER + size * AVAIL_ELEM + EVENT)
            || !fits(self.used, USED_ALIGN, self.used_len().into())
        {
            return Err(QueueError::Broken);
        }
        self.avail_idx = 0;
        self.used_idx = 0;
        self.ready = 1;
        Ok(())
    }

    pub(super) const fn stop(&mut self) {
        self.ready = 0;
    }

    /// Returns how many available chains have not been taken, at most the queue's size.
    ///
    /// It also makes the used ring private, so that [`Queue::complete`] cannot run out of frames
    /// after the device has acted on a chain.
    pub fn available<M: Memory>(&self, ram: &mut Dma<'_, M>) -> Result<u16, QueueError> {
        let idx = ram.read_u16(self.avail.wrapping_add(RING_IDX))?;
        let count = idx.wrapping_sub(self.avail_idx);
        if count > self.size {
            return Err(QueueError::Broken);
        }
        if count != 0 {
            ram.write_with(self.used, self.used_len(), |_, _| {})?;
        }
        Ok(count)
    }

    /// Returns the head of the next available chain. Must be called only when there is one.
    pub fn next_head<M: Memory>(&self, ram: &Dma<'_, M>) -> Result<u16, QueueError> {
        let slot = u64::from(self.avail_idx & self.mask());
        let at = self.avail.wrapping_add(RING_HEADER + slot * AVAIL_ELEM);
        Ok(ram.read_u16(at)?)
    }

    /// Validates a whole chain, and returns the lengths of its buffers.
    pub fn validate_chain<M: Memory>(
        &self,
        ram: &Dma<'_, M>,
        head: u16,
    ) -> Result<ChainLengths, QueueError> {
        let mut lengths = ChainLengths { segments: 0, readable: 0, writable: 0 };
        let mut chain = self.chain(head);
        while let Some(segment) = chain.next(self, ram)? {
            let len = u64::from(segment.len);
            // At most 64 lengths of 32 bits: no overflow.
            lengths.segments += 1;
            if segment.writable {
                lengths.writable += len;
            } else {
                lengths.readable += len;
            }
        }
        Ok(lengths)
    }

    /// Calls `f` with each contiguous chunk of the `len` bytes from byte `at` of the chain's
    /// readable part: the chunk's position in the range, and its bytes. The range must lie inside
    /// that part.
    pub fn read_with<M: Memory>(
        &self,
        ram: &Dma<'_, M>,
        head: u16,
        at: u64,
        len: u32,
        mut f: impl FnMut(u32, &[u8]),
    ) -> Result<(), QueueError> {
        let mut range = ChainRange::new(at, len);
        let mut chain = self.chain(head);
        while let Some(segment) = chain.next(self, ram)? {
            if range.is_done() || segment.writable {
                break;
            }
            if let Some((addr, len, position)) = range.cut(&segment) {
                ram.read_with(addr, len, |at, chunk| f(position.wrapping_add(at), chunk))?;
            }
        }
        Ok(())
    }

    /// Calls `f` like [`Queue::read_with`], with chunks of the writable part to fill.
    pub fn write_with<M: Memory>(
        &self,
        ram: &mut Dma<'_, M>,
        head: u16,
        at: u64,
        len: u32,
        mut f: impl FnMut(u32, &mut [u8]),
    ) -> Result<(), QueueError> {
        let mut range = ChainRange::new(at, len);
        let mut chain = self.chain(head);
        while let Some(segment) = chain.next(self, ram)? {
            if range.is_done() {
                break;
            }
            if !segment.writable {
                continue;
            }
            if let Some((addr, len, position)) = range.cut(&segment) {
                ram.write_with(addr, len, |at, chunk| f(position.wrapping_add(at), chunk))?;
            }
        }
        Ok(())
    }

    /// Returns a chain to the driver, with `written` bytes. The driver sees it after
    /// [`Queue::publish`].
    pub fn complete<M: Memory>(
        &mut self,
        ram: &mut Dma<'_, M>,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        let slot = u64::from(self.used_idx & self.mask());
        let at = self.used.wrapping_add(RING_HEADER + slot * USED_ELEM);
        ram.write_u32(at, head.into())?;
        ram.write_u32(at.wrapping_add(4), written)?;
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.used_idx = self.used_idx.wrapping_add(1);
        Ok(())
    }

    /// Makes the buffers that were completed since `used_idx` was `before` visible to the driver.
    /// Returns whether the driver wants an interrupt for them.
    pub fn publish<M: Memory>(
        &self,
        ram: &mut Dma<'_, M>,
        before: u16,
        event_idx: bool,
    ) -> Result<bool, QueueError> {
        let count = self.used_idx.wrapping_sub(before);
        if count == 0 {
            return Ok(false);
        }
        ram.write_u16(self.used.wrapping_add(RING_IDX), self.used_idx)?;
        if !event_idx {
            return Ok(ram.read_u16(self.avail)? & AVAIL_NO_INTERRUPT == 0);
        }
        let size = u64::from(self.size);
        // Ask for a notification of the next chain (section 2.7.10).
        let avail_event = self.used.wrapping_add(RING_HEADER + size * USED_ELEM);
        ram.write_u16(avail_event, self.avail_idx)?;
        // The driver wants the interrupt of the buffer at `used_event` (section 2.7.7).
        let used_event = ram.read_u16(self.avail.wrapping_add(RING_HEADER + size * AVAIL_ELEM))?;
        let since_event = self.used_idx.wrapping_sub(used_event).wrapping_sub(1);
        Ok(since_event < count)
    }

    const fn chain(&self, head: u16) -> Chain {
        Chain { next: Some(head), left: self.size, writable: false }
    }

    const fn mask(&self) -> u16 {
        self.size.wrapping_sub(1)
    }

    fn used_len(&self) -> u32 {
        (RING_HEADER + u64::from(self.size) * USED_ELEM + EVENT) as u32
    }
}

/// A range of a chain's readable or writable part, taken from its segments one after the other.
struct ChainRange {
    /// Bytes to skip before the range.
    skip: u64,
    /// Bytes of the range still to come.
    left: u32,
    /// Bytes of the range so far.
    position: u32,
}

impl ChainRange {
    const fn new(at: u64, len: u32) -> Self {
        Self { skip: at, left: len, position: 0 }
    }

    const fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Returns the part of `segment` that is in the range: its address, length, and position in the
    /// range.
    fn cut(&mut self, segment: &Segment) -> Option<(u64, u32, u32)> {
        let skipped = self.skip.min(u64::from(segment.len));
        self.skip -= skipped;
        let len = (segment.len - skipped as u32).min(self.left);
        if len == 0 {
            return None;
        }
        let position = self.position;
        self.position = self.position.wrapping_add(len);
        self.left -= len;
        Some((segment.addr.wrapping_add(skipped), len, position))
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use virtio_bindings::virtio_ring;

    use super::super::driver::{
        BUFFERS, Descriptor, Guest, INDIRECT, NEXT, Prng, QUEUE_SIZE, RAM_BASE, RAM_END, WRITE,
        any_version, for_seeds, queue_addresses, reg,
    };
    use super::super::mmio::{Version, status};
    use super::super::{Device, feature, rng::Rng};
    use super::*;
    use crate::chacha::ChaCha;
    use crate::mem::Frame;

    /// A whole request.
    const GOOD: Descriptor = Descriptor { addr: BUFFERS, len: 8, flags: WRITE, next: 0 };

    /// Every chain of an entropy source's queue is one request, so it serves to test the queue.
    fn guest() -> Guest<Rng> {
        started(0)
    }

    fn guest_with_event_idx() -> Guest<Rng> {
        started(feature::EVENT_IDX)
    }

    fn started(features: u64) -> Guest<Rng> {
        Guest::started(Rng::new(ChaCha::new([0; 8])), features)
    }

    fn request(guest: &mut Guest<Rng>) -> u16 {
        guest.offer(0, &[(BUFFERS, 8, WRITE)])
    }

    /// Offers one descriptor as it is.
    fn offer_raw(guest: &mut Guest<Rng>, descriptor: Descriptor) {
        guest.write_descriptor(0, 0, descriptor);
        guest.make_available(0, 0);
        guest.kick(0);
    }

    /// The queue of the guest as its device sees it, with a chain of its own choosing.
    fn queue(guest: &Guest<Rng>) -> Queue {
        guest.device.queues()[0].clone()
    }

    #[test]
    fn flags_and_alignments_are_those_of_linux() {
        use virtio_ring::*;
        assert_eq!(u32::from(desc_flag::NEXT), VRING_DESC_F_NEXT);
        assert_eq!(u32::from(desc_flag::WRITE), VRING_DESC_F_WRITE);
        assert_eq!(u32::from(desc_flag::INDIRECT), VRING_DESC_F_INDIRECT);
        assert_eq!(u32::from(AVAIL_NO_INTERRUPT), VRING_AVAIL_F_NO_INTERRUPT);
        assert_eq!(DESC_ALIGN, u64::from(VRING_DESC_ALIGN_SIZE));
        assert_eq!(AVAIL_ALIGN, u64::from(VRING_AVAIL_ALIGN_SIZE));
        assert_eq!(USED_ALIGN, u64::from(VRING_USED_ALIGN_SIZE));
        assert_eq!(feature::EVENT_IDX, 1 << VIRTIO_RING_F_EVENT_IDX);
    }

    #[test]
    fn chains_are_used_in_the_order_in_which_they_were_made_available() {
        let mut guest = guest();
        let chains: Vec<u16> =
            (0..3).map(|_| guest.write_chain(0, &[(BUFFERS, 8, WRITE)])).collect();
        [2, 0, 1].into_iter().for_each(|i| guest.make_available(0, chains[i]));
        guest.kick(0);
        let used = [guest.take_used(0), guest.take_used(0), guest.take_used(0)];
        assert_eq!(used, [Some((2, 8)), Some((0, 8)), Some((1, 8))]);
        assert_eq!(guest.take_used(0), None);
    }

    #[test]
    fn rings_wrap_around() {
        for version in [Version::Legacy, Version::Modern] {
            let device = Rng::new(ChaCha::new([0; 8]));
            wraps_around(Guest::started_with_version(version, device, 0));
        }
    }

    fn wraps_around(mut guest: Guest<Rng>) {
        for i in 0..3 * u32::from(QUEUE_SIZE) {
            request(&mut guest);
            guest.kick(0);
            assert_eq!(guest.take_used(0), Some((i % u32::from(QUEUE_SIZE), 8)));
        }
    }

    #[test]
    fn ring_indexes_wrap_around_at_2_to_the_16() {
        let mut guest = guest();
        for _ in 0..0x1_0000 + 2 {
            request(&mut guest);
            guest.kick(0);
            guest.poll();
            guest.take_used(0).expect("used");
        }
        assert_eq!(queue(&guest).used_idx(), 2);
    }

    #[test]
    fn a_full_queue_is_served_at_once() {
        let mut guest = guest();
        (0..QUEUE_SIZE).for_each(|_| _ = request(&mut guest));
        guest.kick(0);
        assert_eq!((0..20).filter_map(|_| guest.take_used(0)).count(), QUEUE_SIZE.into());
    }

    #[test]
    fn a_notification_without_buffers_does_nothing() {
        let mut guest = guest();
        let before = guest.device.clone();
        guest.kick(0);
        assert_eq!(guest.device, before);
    }

    #[test]
    fn a_used_buffer_interrupts() {
        let mut guest = guest();
        request(&mut guest);
        guest.kick(0);
        assert_eq!(guest.read(reg::INTERRUPT_STATUS), 1);
    }

    #[test]
    fn no_interrupt_is_honoured() {
        let mut guest = guest();
        guest.set_no_interrupt(0);
        request(&mut guest);
        guest.kick(0);
        assert!(guest.take_used(0).is_some());
        assert!(!guest.device.irq());
    }

    #[test]
    fn event_idx_interrupts_when_the_event_is_reached() {
        let mut guest = guest_with_event_idx();
        guest.set_used_event(0, 1);
        request(&mut guest);
        guest.kick(0);
        assert!(!guest.device.irq());
        request(&mut guest);
        guest.kick(0);
        assert!(guest.device.irq());
    }

    #[test]
    fn event_idx_interrupts_when_the_event_is_passed_by_a_batch() {
        let mut guest = guest_with_event_idx();
        guest.set_used_event(0, 1);
        (0..4).for_each(|_| _ = request(&mut guest));
        guest.kick(0);
        assert!(guest.device.irq());
    }

    #[test]
    fn event_idx_does_not_interrupt_for_an_event_of_the_past() {
        let mut guest = guest_with_event_idx();
        guest.set_used_event(0, 0xffff);
        request(&mut guest);
        guest.kick(0);
        assert!(!guest.device.irq());
    }

    #[test]
    fn event_idx_ignores_the_no_interrupt_flag() {
        let mut guest = guest_with_event_idx();
        guest.set_no_interrupt(0);
        request(&mut guest);
        guest.kick(0);
        assert!(guest.device.irq());
    }

    #[test]
    fn the_legacy_layout_has_the_event_indexes_where_the_modern_one_has_them() {
        let device = Rng::new(ChaCha::new([0; 8]));
        let mut guest = Guest::started_with_version(Version::Legacy, device, feature::EVENT_IDX);
        guest.set_used_event(0, 1);
        request(&mut guest);
        guest.kick(0);
        assert!(!guest.device.irq());
        request(&mut guest);
        guest.kick(0);
        assert!(guest.device.irq());
        assert_eq!(guest.avail_event(0), 2);
    }

    #[test]
    fn the_legacy_layout_is_that_of_the_specification() {
        // Section 2.7.2: the used ring begins at the next multiple of the alignment.
        for (size, align, avail, used) in
            [(8, 4096, 128, 4096), (64, 4096, 1024, 4096), (8, 4, 128, 152), (2, 4, 32, 44)]
        {
            let mut queue = Queue::RESET;
            queue.set_size(size);
            queue.set_align(align);
            queue.place_legacy(0x8000_0000);
            let at = |offset: u64| 0x8000_0000 + offset;
            assert_eq!((queue.desc, queue.avail, queue.used), (at(0), at(avail), at(used)));
        }
    }

    #[test]
    fn event_idx_asks_for_a_notification_of_the_next_buffer() {
        let mut guest = guest_with_event_idx();
        (0..3).for_each(|_| _ = request(&mut guest));
        guest.kick(0);
        assert_eq!(guest.avail_event(0), 3);
    }

    #[test]
    fn without_event_idx_nothing_is_written_behind_the_used_ring() {
        let mut guest = guest();
        request(&mut guest);
        guest.kick(0);
        assert_eq!(guest.avail_event(0), 0);
    }

    #[test]
    fn an_available_index_too_far_ahead_needs_a_reset() {
        for idx in [QUEUE_SIZE + 1, 0x8000, 0xffff] {
            let mut guest = guest();
            (0..QUEUE_SIZE).for_each(|_| _ = request(&mut guest));
            guest.set_avail_idx(0, idx);
            guest.kick(0);
            assert!(guest.needs_reset());
            assert_eq!(guest.take_used(0), None);
        }
    }

    #[test]
    fn a_head_past_the_queue_needs_a_reset() {
        for head in [QUEUE_SIZE, 0xffff] {
            let mut guest = guest();
            guest.write_descriptor(0, QUEUE_SIZE, GOOD);
            guest.make_available(0, head);
            guest.kick(0);
            assert!(guest.needs_reset());
        }
    }

    #[test]
    fn a_next_past_the_queue_needs_a_reset() {
        let mut guest = guest();
        guest.write_descriptor(0, QUEUE_SIZE, GOOD);
        let descriptor =
            Descriptor { addr: BUFFERS, len: 8, flags: WRITE | NEXT, next: QUEUE_SIZE };
        offer_raw(&mut guest, descriptor);
        assert!(guest.needs_reset());
    }

    #[test]
    fn a_cyclic_chain_needs_a_reset() {
        let mut guest = guest();
        let descriptor = Descriptor { addr: BUFFERS, len: 8, flags: WRITE | NEXT, next: 0 };
        offer_raw(&mut guest, descriptor);
        assert!(guest.needs_reset());
    }

    #[test]
    fn a_chain_may_be_as_long_as_the_queue() {
        let mut guest = guest();
        guest.offer(0, &[(BUFFERS, 1, WRITE); QUEUE_SIZE as usize]);
        guest.kick(0);
        assert_eq!(guest.take_used(0), Some((0, QUEUE_SIZE.into())));
    }

    #[test]
    fn an_indirect_descriptor_needs_a_reset() {
        let mut guest = guest();
        offer_raw(&mut guest, Descriptor { addr: BUFFERS, len: 16, flags: INDIRECT, next: 0 });
        assert!(guest.needs_reset());
    }

    #[test]
    fn unknown_descriptor_flags_are_ignored() {
        let mut guest = guest();
        offer_raw(&mut guest, Descriptor { addr: BUFFERS, len: 8, flags: WRITE | 0xff00, next: 0 });
        assert_eq!(guest.take_used(0), Some((0, 8)));
    }

    #[test]
    fn a_buffer_outside_ram_needs_a_reset() {
        let outside = [
            (0, 8),
            (u64::from(RAM_BASE) - 1, 8),
            (RAM_END - 7, 8),
            (RAM_END, 1),
            (BUFFERS, u32::MAX),
            (BUFFERS | 1 << 32, 8),
            (u64::MAX - 3, 8),
            (u64::MAX, u32::MAX),
        ];
        for (addr, len) in outside {
            let mut guest = guest();
            offer_raw(&mut guest, Descriptor { addr, len, flags: WRITE, next: 0 });
            assert!(guest.needs_reset());
        }
    }

    /// `(uint64_t)pointer` extends the sign on a 32-bit system.
    #[test]
    fn a_legacy_driver_may_extend_the_sign_of_an_address() {
        let addr = BUFFERS | u64::from(u32::MAX) << 32;
        let descriptor = Descriptor { addr, len: 8, flags: WRITE, next: 0 };
        let device = Rng::new(ChaCha::new([0; 8]));
        let mut guest = Guest::started_with_version(Version::Legacy, device, 0);
        offer_raw(&mut guest, descriptor);
        assert_eq!(guest.take_used(0), Some((0, 8)));
        let mut modern = self::guest();
        offer_raw(&mut modern, descriptor);
        assert!(modern.needs_reset());
    }

    #[test]
    fn a_buffer_may_end_with_ram() {
        let mut guest = guest();
        offer_raw(&mut guest, Descriptor { addr: RAM_END - 8, len: 8, flags: WRITE, next: 0 });
        assert_eq!(guest.take_used(0), Some((0, 8)));
    }

    #[test]
    fn a_readable_buffer_behind_a_writable_one_needs_a_reset() {
        let mut guest = guest();
        guest.offer(0, &[(BUFFERS, 8, WRITE), (BUFFERS, 8, 0)]);
        guest.kick(0);
        assert!(guest.needs_reset());
    }

    #[test]
    fn chains_before_a_bad_one_are_used() {
        let mut guest = guest();
        request(&mut guest);
        guest.make_available(0, 0xffff);
        guest.kick(0);
        assert_eq!(guest.take_used(0), Some((0, 8)));
        assert_eq!(guest.take_used(0), None);
        assert_eq!(guest.read(reg::INTERRUPT_STATUS), 3);
    }

    #[test]
    fn a_device_that_needs_a_reset_does_no_more_work() {
        let mut guest = guest();
        guest.make_available(0, 0xffff);
        guest.kick(0);
        guest.set_avail_idx(0, 0);
        request(&mut guest);
        guest.kick(0);
        guest.poll();
        assert_eq!(guest.take_used(0), None);
    }

    #[test]
    fn a_reset_makes_a_broken_device_work_again() {
        let mut guest = guest();
        guest.make_available(0, 0xffff);
        guest.kick(0);
        guest.start(0);
        request(&mut guest);
        guest.kick(0);
        assert_eq!(guest.take_used(0), Some((0, 8)));
        assert_eq!(guest.read(reg::STATUS) & status::DEVICE_NEEDS_RESET, 0);
    }

    #[test]
    fn a_stopped_queue_is_not_served() {
        let mut guest = guest();
        request(&mut guest);
        guest.write(reg::QUEUE_SEL, 0);
        guest.write(reg::QUEUE_READY, 0);
        guest.kick(0);
        assert_eq!(guest.take_used(0), None);
    }

    #[test]
    fn without_a_frame_for_the_used_ring_nothing_is_done_yet() {
        let mut guest = guest();
        let [desc, avail, _] = queue_addresses(0);
        let shared = BUFFERS + 0x4000;
        guest.write(reg::QUEUE_SEL, 0);
        guest.write(reg::QUEUE_READY, 0);
        guest.place_queue(0, [desc, avail, shared], QUEUE_SIZE.into());
        guest.write(reg::QUEUE_READY, 1);
        request(&mut guest);
        guest.ram.frames_left = 0;
        let before = guest.device.clone();
        assert_eq!(guest.try_write(reg::QUEUE_NOTIFY, 0), Err(crate::trap::Trap::NoFrame));
        assert_eq!(guest.device, before);
        guest.ram.frames_left = 2;
        guest.kick(0);
        assert_eq!(guest.load_u16(shared + 2), 1);
    }

    #[test]
    fn without_a_frame_for_a_buffer_the_chains_before_it_are_used() {
        let mut guest = guest();
        guest.store(BUFFERS, &[1]);
        request(&mut guest);
        guest.offer(0, &[(BUFFERS + 0x1000, 8, WRITE)]);
        guest.ram.frames_left = 0;
        assert!(guest.try_write(reg::QUEUE_NOTIFY, 0).is_err());
        assert_eq!(guest.take_used(0), Some((0, 8)));
        assert_eq!(guest.take_used(0), None);
        guest.ram.frames_left = 1;
        guest.kick(0);
        assert_eq!(guest.take_used(0), Some((1, 8)));
    }

    #[test]
    fn validate_chain_adds_up_both_parts_of_a_chain() {
        let mut guest = guest();
        let head = guest.write_chain(0, &[(BUFFERS, 3, 0), (BUFFERS, 4, 0), (BUFFERS, 5, WRITE)]);
        let queue = queue(&guest);
        let lengths = guest.dma(|ram| queue.validate_chain(ram, head));
        assert_eq!(lengths, Ok(ChainLengths { segments: 3, readable: 7, writable: 5 }));
    }

    #[test]
    fn validate_chain_does_not_overflow() {
        let mut guest = guest();
        let all = (RAM_END - BUFFERS) as u32;
        let head = guest.write_chain(0, &[(BUFFERS, all, WRITE); 16]);
        let queue = queue(&guest);
        let lengths = guest.dma(|ram| queue.validate_chain(ram, head)).expect("in RAM");
        assert_eq!(lengths.writable, u64::from(all) * 16);
    }

    #[test]
    fn a_range_is_read_across_buffers_and_pages() {
        let mut guest = guest();
        let across = BUFFERS + 0x1000 - 2;
        guest.store(BUFFERS, b"abc");
        guest.store(across, b"defg");
        let head = guest.write_chain(
            0,
            &[(BUFFERS, 3, 0), (BUFFERS, 0, 0), (across, 4, 0), (BUFFERS, 3, WRITE)],
        );
        let queue = queue(&guest);
        let mut chunks = Vec::new();
        guest
            .dma(|ram| {
                queue.read_with(ram, head, 1, 5, |at, chunk| chunks.push((at, chunk.to_vec())))
            })
            .expect("in RAM");
        assert_eq!(chunks, [(0, b"bc".to_vec()), (2, b"de".to_vec()), (4, b"f".to_vec())]);
    }

    #[test]
    fn a_range_is_written_across_buffers_and_pages() {
        let mut guest = guest();
        let across = BUFFERS + 0x1000 - 2;
        let head =
            guest.write_chain(0, &[(BUFFERS, 9, 0), (BUFFERS, 3, WRITE), (across, 4, WRITE)]);
        let queue = queue(&guest);
        guest
            .dma(|ram| queue.write_with(ram, head, 2, 4, |at, chunk| chunk.fill(at as u8 + 1)))
            .expect("in RAM");
        assert_eq!(guest.load(BUFFERS, 3), [0, 0, 1]);
        assert_eq!(guest.load(across, 4), [2, 2, 4, 0]);
    }

    /// A descriptor that is mostly right: behind the queues, sometimes in them, sometimes wild.
    fn any_descriptor(rng: &mut Prng) -> Descriptor {
        Descriptor {
            addr: match rng.below(16) {
                0 => rng.next_u64(),
                1 => u64::from(RAM_BASE) + u64::from(rng.below(0x3000)),
                _ => BUFFERS + u64::from(rng.below(0x8000)),
            },
            len: if rng.one_in(16) { rng.next_u32() } else { rng.below(100) },
            flags: if rng.one_in(16) { rng.next_u32() } else { 2 + rng.below(2) } as u16,
            next: if rng.one_in(16) { rng.next_u32() } else { rng.below(16) } as u16,
        }
    }

    #[test]
    fn no_ring_or_table_makes_the_device_panic_or_write_outside_its_buffers() {
        // A request of an entropy source is at most a page long, also if it starts late.
        let first_untouched = (BUFFERS as u32 - RAM_BASE + 0x9000) / 4096;
        for_seeds(0, 300, |rng| {
            let features = if rng.one_in(2) { feature::EVENT_IDX } else { 0 };
            let device = Rng::new(ChaCha::new([0; 8]));
            let mut guest = Guest::started_with_version(any_version(rng), device, features);
            for _ in 0..50 {
                match rng.below(8) {
                    0..4 => {
                        let at = rng.below(QUEUE_SIZE.into()) as u16;
                        guest.write_descriptor(0, at, any_descriptor(rng));
                    }
                    4..6 => guest.make_available(0, rng.below(17) as u16),
                    6 => {
                        guest.ram.frames_left = rng.below(3);
                        let _ = guest.try_write(reg::QUEUE_NOTIFY, 0);
                        guest.ram.frames_left = u32::MAX;
                    }
                    _ if guest.needs_reset() => guest.start(features),
                    _ => guest.poll(),
                }
            }
            for page in first_untouched..guest.ram.pages() {
                assert_eq!(guest.ram.frame(page), Some(Frame::ZERO));
            }
        });
    }
}

//! The device half of a split virtqueue (section 2.7).
//!
//! Every index, address and length comes from the driver. Indexes are checked against the queue's
//! size, ranges against RAM by [`Dma`], and a chain has at most as many descriptors as the queue.

use super::mmio::AddressHalf;
use crate::mem::{Dma, DmaError, Memory};

/// Most descriptors in a queue.
///
/// Small on purpose: Linux fills the whole receive queue with buffers of 2 KiB, which become
/// private frames of every VM. It needs more than 19 descriptors to transmit at all.
pub const SIZE_MAX: u16 = 64;

/// Descriptor flags (section 2.7.5).
mod desc_flag {
    /// The chain goes on at `next`.
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

/// Why a queue could not be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueError {
    /// The driver broke the rules; the device needs a reset.
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

/// How far a device came with a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// All it can do for now.
    Done,
    /// Something is left over.
    Deferred,
}

/// A virtqueue's registers and positions.
#[derive(Clone, PartialEq, Eq, Debug)]
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
}

/// What a chain consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lengths {
    /// Number of buffers.
    pub segments: u32,
    /// Bytes that the device reads.
    pub readable: u64,
    /// Bytes that the device writes.
    pub writable: u64,
}

/// How much work a device may still do in this slice.
///
/// Other machines share the processor, and a few instructions of a guest can ask for a lot of
/// copying. What goes beyond waits for the next slice.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Work {
    bytes_left: u32,
}

impl Work {
    /// Data moved in a slice.
    const BYTES_MAX: u32 = 128 * 1024;
    /// What it costs to look at a descriptor, in bytes that could have been moved.
    const SEGMENT_COST: u32 = 64;

    /// A whole slice's.
    pub const FULL: Self = Self { bytes_left: Self::BYTES_MAX };

    /// Whether nothing is left.
    pub const fn is_used_up(&self) -> bool {
        self.bytes_left == 0
    }

    /// Accounts for a chain. The last one may go beyond what was left.
    pub const fn spend(&mut self, lengths: &Lengths, bytes: u32) {
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
    /// Descriptors it may still have; ends a cycle.
    left: u16,
    writable: bool,
}

impl Chain {
    /// The next buffer. Readable buffers come before writable ones (section 2.7.4.2).
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
        let addr = u64::from(high) << 32 | u64::from(low);
        let writable = flags & desc_flag::WRITE != 0;
        if flags & desc_flag::INDIRECT != 0
            || self.writable && !writable
            || !ram.contains(addr, len)
        {
            return Err(QueueError::Broken);
        }
        self.writable = writable;
        self.next = if flags & desc_flag::NEXT != 0 { Some(next) } else { None };
        Ok(Some(Segment { addr, len, writable }))
    }
}

impl Queue {
    /// Not ready.
    pub const RESET: Self =
        Self { desc: 0, avail: 0, used: 0, size: SIZE_MAX, avail_idx: 0, used_idx: 0, ready: 0 };

    /// Whether the driver has set it up.
    pub const fn is_ready(&self) -> bool {
        self.ready != 0
    }

    /// How many buffers were used so far, modulo 2^16.
    pub const fn used_idx(&self) -> u16 {
        self.used_idx
    }

    /// The driver's QueueNum. A size that no queue can have is kept as zero and refused later.
    pub(super) fn set_size(&mut self, size: u32) {
        self.size = u16::try_from(size).unwrap_or(0);
    }

    /// One half of an area's address. The descriptor area, the driver area (available ring) and
    /// the device area (used ring) cannot move while the queue is ready.
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

    /// Starts the queue, if its size, alignment and place in RAM are right.
    pub(super) fn start<M: Memory>(&mut self, ram: &Dma<'_, M>) -> Result<(), QueueError> {
        let size = u64::from(self.size);
        let fits = |addr: u64, align: u64, len: u64| {
            addr & (align - 1) == 0 && ram.contains(addr, len as u32)
        };
        if !self.size.is_power_of_two()
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

    /// How many chains wait to be served: at most the queue's size.
    ///
    /// Makes the used ring private as well, so that [`Queue::complete`] cannot run out of frames
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

    /// The first descriptor of the chain to serve next. Call it only when one is available.
    pub fn head<M: Memory>(&self, ram: &Dma<'_, M>) -> Result<u16, QueueError> {
        let slot = u64::from(self.avail_idx & self.mask());
        let at = self.avail.wrapping_add(RING_HEADER + slot * AVAIL_ELEM);
        Ok(ram.read_u16(at)?)
    }

    /// Checks the whole chain and adds up its buffers.
    pub fn measure<M: Memory>(&self, ram: &Dma<'_, M>, head: u16) -> Result<Lengths, QueueError> {
        let mut lengths = Lengths { segments: 0, readable: 0, writable: 0 };
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

    /// Calls `f` with each piece of `len` bytes from byte `at` of the chain's readable part
    /// (position in the range, bytes). The range must lie inside that part.
    pub fn read_with<M: Memory>(
        &self,
        ram: &Dma<'_, M>,
        head: u16,
        at: u64,
        len: u32,
        mut f: impl FnMut(u32, &[u8]),
    ) -> Result<(), QueueError> {
        let mut window = Window::new(at, len);
        let mut chain = self.chain(head);
        while let Some(segment) = chain.next(self, ram)? {
            if window.is_done() || segment.writable {
                break;
            }
            if let Some((addr, len, position)) = window.cut(&segment) {
                ram.read_with(addr, len, |at, piece| f(position.wrapping_add(at), piece))?;
            }
        }
        Ok(())
    }

    /// Like [`Queue::read_with`], for the writable part.
    pub fn write_with<M: Memory>(
        &self,
        ram: &mut Dma<'_, M>,
        head: u16,
        at: u64,
        len: u32,
        mut f: impl FnMut(u32, &mut [u8]),
    ) -> Result<(), QueueError> {
        let mut window = Window::new(at, len);
        let mut chain = self.chain(head);
        while let Some(segment) = chain.next(self, ram)? {
            if window.is_done() {
                break;
            }
            if !segment.writable {
                continue;
            }
            if let Some((addr, len, position)) = window.cut(&segment) {
                ram.write_with(addr, len, |at, piece| f(position.wrapping_add(at), piece))?;
            }
        }
        Ok(())
    }

    /// Gives the chain back with `written` bytes. Visible after [`Queue::publish`].
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

    /// Shows the driver all buffers completed since `used_idx` was `before`. Says whether the
    /// driver wants an interrupt for them.
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

/// A range of a chain's readable or writable part, cut from its segments one after the other.
struct Window {
    /// Bytes to skip before the range.
    skip: u64,
    /// Bytes of the range still to come.
    left: u32,
    /// Bytes of the range so far.
    position: u32,
}

impl Window {
    const fn new(at: u64, len: u32) -> Self {
        Self { skip: at, left: len, position: 0 }
    }

    const fn is_done(&self) -> bool {
        self.left == 0
    }

    /// What the range takes of `segment`: address, length, position in the range.
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

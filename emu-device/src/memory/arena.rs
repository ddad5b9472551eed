//! The arena: the memory that holds all frames of a fleet. Who may write which of them, the text of
//! [`super`] says.

use super::layout::{Contiguous, FrameLayout};
use super::words::{BATCH, fill_zero};
#[cfg(feature = "device")]
use crate::intrin::conditional;
use core::marker::PhantomData;
use emu_core::mem::{FRAME_SIZE, Frame, RawFrames, chunks};

/// The memory that holds all frames of a fleet.
#[derive(Clone, Copy, Debug)]
pub struct Arena<L = Contiguous> {
    base: *mut u8,
    frames: u32,
    shared: u32,
    layout: PhantomData<L>,
}

// SAFETY: an `Arena` is an address and two limits; the access rules are those of `FrameMemory`.
unsafe impl<L> Send for Arena<L> {}
// SAFETY: as above.
unsafe impl<L> Sync for Arena<L> {}

impl<L: FrameLayout> Arena<L> {
    /// Describes an arena.
    ///
    /// # Safety
    /// `base` must be aligned to [`FrameLayout::ALIGN`] and valid for reads and writes of `frames`
    /// frames, rounded up to whole units of that, for as long as the value or a copy is used.
    /// Frame 0 must be zero, `shared` at least 1, and nobody may write the first `shared` frames
    /// while a [`FrameMemory`](super::FrameMemory) over this arena exists.
    pub const unsafe fn new(base: *mut u8, frames: u32, shared: u32) -> Self {
        Self { base, frames, shared, layout: PhantomData }
    }

    /// Returns the number of shared frames, which are read-only and common to the fleet.
    pub const fn shared(&self) -> u32 {
        self.shared
    }

    /// Returns the number of frames, shared and private.
    pub const fn frames(&self) -> u32 {
        self.frames
    }

    pub(super) fn is_private(&self, frame: Frame) -> bool {
        frame.raw() >= L::handle(self.shared).raw()
    }

    /// Copies a frame.
    ///
    /// # Safety
    /// They differ, and `to` is private and this VM's.
    pub(super) unsafe fn copy_frame(self, from: Frame, to: Frame) {
        if !cfg!(feature = "device") {
            for at in (0..FRAME_SIZE).step_by(L::CHUNK as usize) {
                // SAFETY: a chunk is contiguous.
                unsafe {
                    let chunk = self.at(from, at);
                    chunk.copy_to_nonoverlapping(self.at(to, at), L::CHUNK as usize);
                }
            }
            return;
        }
        let (from, to) = (self.at(from, 0).cast::<u64>(), self.at(to, 0).cast::<u64>());
        for at in (0..FRAME_SIZE).step_by(8 * BATCH) {
            // SAFETY: words of the two frames, which are aligned.
            unsafe {
                let (from, to) = (from.byte_add(L::distance(at)), to.byte_add(L::distance(at)));
                let distance = |i: usize| L::distance(8 * i as u32);
                let words: [u64; BATCH] =
                    core::array::from_fn(|i| from.byte_add(distance(i)).read_volatile());
                for (i, word) in words.into_iter().enumerate() {
                    to.byte_add(distance(i)).write_volatile(word);
                }
            }
        }
    }

    /// Fills a frame with zero.
    ///
    /// # Safety
    /// It is private and this VM's.
    pub(super) unsafe fn zero_frame(self, frame: Frame) {
        let start = self.at(frame, 0);
        for at in (0..FRAME_SIZE).step_by(L::CHUNK as usize) {
            // SAFETY: a chunk of the frame is contiguous and aligned to its size.
            unsafe { fill_zero(start.add(L::distance(at)).cast(), L::CHUNK as usize / 8) }
        }
    }

    /// Returns the bytes of `offset..offset + len` of a frame, in chunks with their position in that
    /// range.
    ///
    /// # Safety
    /// Nobody writes the frame as long as the chunks are used.
    #[inline(always)]
    pub(super) unsafe fn chunks<'a>(
        self,
        frame: Frame,
        offset: u32,
        len: u32,
    ) -> impl Iterator<Item = (u32, &'a [u8])> {
        chunks(L::CHUNK, offset, len).map(move |(at, len)| {
            // SAFETY: a chunk of a frame of the arena is contiguous; the rest is the caller's.
            (at, unsafe { core::slice::from_raw_parts(self.at(frame, offset + at), len) })
        })
    }

    /// Returns chunks like [`Arena::chunks`], to be written.
    ///
    /// # Safety
    /// The frame is private, and nobody else uses it as long as the chunks are used.
    #[inline(always)]
    pub(super) unsafe fn chunks_mut<'a>(
        self,
        frame: Frame,
        offset: u32,
        len: u32,
    ) -> impl Iterator<Item = (u32, &'a mut [u8])> {
        chunks(L::CHUNK, offset, len).map(move |(at, len)| {
            // SAFETY: as `chunks`; chunks do not overlap.
            (at, unsafe { core::slice::from_raw_parts_mut(self.at(frame, offset + at), len) })
        })
    }

    #[inline(always)]
    pub(super) fn at(self, frame: Frame, offset: u32) -> *mut u8 {
        debug_assert!(L::index(frame) < self.frames);
        #[cfg(feature = "device")]
        let frame = Frame::from_raw(crate::intrin::half(frame.raw()));
        // SAFETY: frames are made from table entries, which are inside the arena
        // (`FrameMemory::new`).
        let slot = unsafe { self.base.add(L::base_offset(frame)) };
        slot.map_addr(|slot| L::address(slot, frame, offset))
    }
}

impl<L: FrameLayout> RawFrames for Arena<L> {
    #[inline(always)]
    fn load8(self, frame: Frame, offset: u32) -> u32 {
        // SAFETY: `at` is inside the arena; see the text of `memory` for who may write it.
        unsafe { self.at(frame, offset).read() as u32 }
    }

    #[inline(always)]
    fn load16(self, frame: Frame, offset: u32) -> u32 {
        // SAFETY: as `load8`; the offset is aligned down and the arena is aligned.
        unsafe { self.at(frame, offset & !1).cast::<u16>().read() as u32 }
    }

    #[inline(always)]
    fn load32(self, frame: Frame, offset: u32) -> u32 {
        // SAFETY: as `load16`.
        unsafe { self.at(frame, offset & !3).cast::<u32>().read() }
    }

    #[inline(always)]
    fn store8(self, frame: Frame, offset: u32, value: u32) {
        debug_assert!(self.is_private(frame));
        // SAFETY: as `load8`; the frame is private, so no other VM sees it.
        unsafe { self.at(frame, offset).write(value as u8) }
    }

    #[inline(always)]
    fn store16(self, frame: Frame, offset: u32, value: u32) {
        debug_assert!(self.is_private(frame));
        // SAFETY: as `store8`, aligned as `load16`.
        unsafe { self.at(frame, offset & !1).cast::<u16>().write(value as u16) }
    }

    #[inline(always)]
    fn store32(self, frame: Frame, offset: u32, value: u32) {
        debug_assert!(self.is_private(frame));
        // SAFETY: as `store8`, aligned as `load32`.
        unsafe { self.at(frame, offset & !3).cast::<u32>().write(value) }
    }

    #[cfg(feature = "device")]
    #[inline(always)]
    fn load32_if(self, condition: bool, frame: Frame, offset: u32) -> u32 {
        // SAFETY: as `load32`; the arena is global memory.
        unsafe { conditional::load32(condition, self.at(frame, offset & !3).cast()) }
    }

    #[cfg(feature = "device")]
    #[inline(always)]
    fn store_if(self, condition: bool, size_shift: u32, frame: Frame, offset: u32, value: u32) {
        let (at, is) = (self.at(frame, offset), |shift| condition & (size_shift == shift));
        // SAFETY: as `store32`; the arena is global memory. The caller's offset is aligned where the
        // condition is true.
        unsafe {
            conditional::store8(is(0), at, value);
            conditional::store16(is(1), at.cast(), value);
            conditional::store32(is(2), at.cast(), value);
        }
    }
}

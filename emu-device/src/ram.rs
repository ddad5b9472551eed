//! Guest memory in frames: one arena of 4 KiB frames for the whole fleet, and a frame table per VM.
//!
//! Many VMs use the arena at the same time, on the CPU and on the GPU, and there must be no data
//! race. So the frames below [`Arena::shared`], which hold the base image, are written before the
//! fleet starts and are read-only from then on. Every other frame belongs to at most one VM, the
//! one whose table names it.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::ablation;
use crate::frame_layout::{Contiguous, FrameLayout};
use emu_core::mem::{FRAME_INSNS, FRAME_SIZE, Frame, Memory, NoFrame, Ram, RawFrames, chunks};

/// A source of free frames, from which VMs get their private ones.
pub trait FrameSource {
    /// Takes a free frame out of the arena and returns its index; `None` when none is left. Its
    /// content is undefined. The index is below the arena's frame count, and the frame is neither
    /// shared nor owned by anybody else.
    fn take(&mut self) -> Option<u32>;
}

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
    /// while a [`FrameMemory`] over this arena exists.
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

    fn is_private(&self, frame: Frame) -> bool {
        frame.raw() >= L::handle(self.shared).raw()
    }

    /// Copies a frame.
    ///
    /// # Safety
    /// They differ, and `to` is private and this VM's.
    unsafe fn copy_frame(self, from: Frame, to: Frame) {
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
    unsafe fn zero_frame(self, frame: Frame) {
        let start = self.at(frame, 0);
        for at in (0..FRAME_SIZE).step_by(L::CHUNK as usize) {
            // SAFETY: a chunk of the frame is contiguous and aligned to its size.
            unsafe { fill_zero(start.add(L::distance(at)).cast(), L::CHUNK as usize / 8) }
        }
    }

    #[inline(always)]
    fn at(self, frame: Frame, offset: u32) -> *mut u8 {
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
        // SAFETY: `at` is inside the arena; see the module text for who may write it.
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
}

/// How many words a copy loads before it stores them, so that the loads overlap.
const BATCH: usize = 16;

// For the GPU, LLVM turns everything that it recognises as a copy or a fill of memory into a loop
// over single bytes. It does not recognise volatile accesses, so these are used here.

/// Copies words.
///
/// # Safety
/// As [`core::ptr::copy_nonoverlapping`].
pub(crate) unsafe fn copy<T: Copy>(from: *const T, to: *mut T, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        if !cfg!(feature = "device") {
            return core::ptr::copy_nonoverlapping(from, to, len);
        }
        let whole = len - len % BATCH;
        for at in whole..len {
            to.add(at).write_volatile(from.add(at).read_volatile());
        }
        for at in (0..whole).step_by(BATCH) {
            let words: [T; BATCH] = core::array::from_fn(|i| from.add(at + i).read_volatile());
            for (i, word) in words.into_iter().enumerate() {
                to.add(at + i).write_volatile(word);
            }
        }
    }
}

/// Fills words with zero.
///
/// # Safety
/// As [`core::ptr::write_bytes`].
unsafe fn fill_zero(to: *mut u64, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        if !cfg!(feature = "device") {
            return to.write_bytes(0, len);
        }
        let whole = len - len % BATCH;
        for at in whole..len {
            to.add(at).write_volatile(0);
        }
        for at in (0..whole).step_by(BATCH) {
            for i in 0..BATCH {
                to.add(at + i).write_volatile(0);
            }
        }
    }
}

/// One VM's memory: a table that maps each of its pages to a frame of the arena.
pub struct FrameMemory<'a, S, L = Contiguous> {
    arena: Arena<L>,
    table: &'a mut [u32],
    source: S,
}

impl<'a, S: FrameSource, L: FrameLayout> FrameMemory<'a, S, L> {
    /// Makes the memory that `table` describes, with a frame index for each page.
    ///
    /// # Safety
    /// Every entry must be below `arena.frames()`, and an entry that is not shared must be in no
    /// other table. A [`Frame`] cached in a VM's state must come from this same table.
    pub unsafe fn new(arena: Arena<L>, table: &'a mut [u32], source: S) -> Self {
        debug_assert!(table.iter().all(|&f| f < arena.frames));
        Self { arena, table, source }
    }
}

impl<S: FrameSource, L: FrameLayout> Memory for FrameMemory<'_, S, L> {
    fn pages(&self) -> u32 {
        self.table.len() as u32
    }

    #[inline]
    fn frame(&self, page: u32) -> Option<Frame> {
        self.table.get(page as usize).copied().map(L::handle)
    }

    #[inline]
    fn is_private(&self, frame: Frame) -> bool {
        self.arena.is_private(frame)
    }

    fn make_private(&mut self, page: u32) -> Result<Frame, NoFrame> {
        let old = self.frame(page).ok_or(NoFrame)?;
        if self.is_private(old) {
            return Ok(old);
        }
        let index = self.source.take().ok_or(NoFrame)?;
        let new = L::handle(index);
        debug_assert!(self.is_private(new));
        // SAFETY: both are frames of the arena; `new` is private and `old` is not, so they differ.
        unsafe {
            match old {
                Frame::ZERO => self.arena.zero_frame(new),
                _ => self.arena.copy_frame(old, new),
            }
        }
        if let Some(entry) = self.table.get_mut(page as usize) {
            *entry = index;
        }
        Ok(new)
    }

    #[inline(always)]
    fn load8(&self, frame: Frame, offset: u32) -> u32 {
        self.arena.load8(frame, offset)
    }
    #[inline(always)]
    fn load16(&self, frame: Frame, offset: u32) -> u32 {
        self.arena.load16(frame, offset)
    }
    #[inline(always)]
    fn load32(&self, frame: Frame, offset: u32) -> u32 {
        self.arena.load32(frame, offset)
    }
    #[inline(always)]
    fn store8(&mut self, frame: Frame, offset: u32, value: u32) {
        self.arena.store8(frame, offset, value);
    }
    #[inline(always)]
    fn store16(&mut self, frame: Frame, offset: u32, value: u32) {
        self.arena.store16(frame, offset, value);
    }
    #[inline(always)]
    fn store32(&mut self, frame: Frame, offset: u32, value: u32) {
        self.arena.store32(frame, offset, value);
    }

    fn read_chunks(&self, frame: Frame, offset: u32, len: u32, mut f: impl FnMut(u32, &[u8])) {
        for (at, chunk) in chunks(L::CHUNK, offset, len) {
            let start = self.arena.at(frame, offset + at);
            // SAFETY: a chunk of a frame of the arena. This VM cannot write it while `self` is
            // borrowed, and no other VM ever does.
            f(at, unsafe { core::slice::from_raw_parts(start, chunk) });
        }
    }

    fn write_chunks(
        &mut self,
        frame: Frame,
        offset: u32,
        len: u32,
        mut f: impl FnMut(u32, &mut [u8]),
    ) {
        if !self.is_private(frame) {
            return;
        }
        for (at, chunk) in chunks(L::CHUNK, offset, len) {
            let start = self.arena.at(frame, offset + at);
            // SAFETY: a chunk of a private frame, reachable through `self` alone, which is
            // borrowed.
            f(at, unsafe { core::slice::from_raw_parts_mut(start, chunk) });
        }
    }
}

const INSNS: usize = FRAME_INSNS as usize;

/// What a CPU reads past the end of a frame's decoded instructions. It is a cold function so that
/// the bounds check is a branch, which a CPU predicts well. Clamping the index, as the GPU does,
/// would make a CPU wait for the result.
#[cold]
fn past_the_end() -> u64 {
    0
}

/// The decoded instructions of a frame, and after them one word that always stays undecoded. The
/// words are atomic because VMs on several threads fill the pages of shared frames; all write the
/// same value.
pub type CodePage = [AtomicU64; INSNS + 1];

/// A cache of the decoded instructions of up to `SLOTS` private frames. All zero is an empty cache.
///
/// Writes to a frame invalidate its decoded instructions only in the cache that the VM runs with. A
/// cache that serves several VMs must therefore be cleared whenever it starts to serve another: the
/// VM may have run with another cache in between.
#[repr(C)]
pub struct CodeCache<const SLOTS: usize = 64> {
    /// The frame in each slot; 0 for an empty slot, as frame 0 is shared and never in this cache.
    frames: [u32; SLOTS],
    pages: [CodePage; SLOTS],
}

impl<const SLOTS: usize> CodeCache<SLOTS> {
    /// Drops all decoded instructions.
    pub fn clear(&mut self) {
        for slot in 0..SLOTS {
            if self.frames[slot] != 0 {
                self.empty(slot);
                self.frames[slot] = 0;
            }
        }
    }

    fn empty(&mut self, slot: usize) {
        let page = &mut self.pages[slot % SLOTS];
        // SAFETY: the page is borrowed, and zero is a valid value of its words.
        unsafe { fill_zero(page.as_mut_ptr().cast(), INSNS) }
    }
}

/// RAM that a hart can execute from: [`FrameMemory`] with a ROM and decoded instructions.
pub struct FrameRam<'a, S, L = Contiguous, const SLOTS: usize = 64> {
    memory: FrameMemory<'a, S, L>,
    /// The frame of each page of the ROM.
    rom: &'a [u32],
    /// The decoded instructions of shared frames, by frame index.
    shared: &'a [CodePage],
    private: &'a mut CodeCache<SLOTS>,
}

impl<'a, S: FrameSource, L: FrameLayout, const SLOTS: usize> FrameRam<'a, S, L, SLOTS> {
    /// Adds a ROM of shared frames and decoded instructions to a memory. `shared` holds those of
    /// the arena's shared frames; it is common to the fleet and all zero at first. `private` holds
    /// those of private frames, and is cleared.
    pub fn new(
        memory: FrameMemory<'a, S, L>,
        rom: &'a [u32],
        shared: &'a [CodePage],
        private: &'a mut CodeCache<SLOTS>,
    ) -> Self {
        private.clear();
        Self::keep(memory, rom, shared, private)
    }

    /// Makes the same as [`FrameRam::new`], but does not clear `private`, which must serve no other
    /// VM.
    pub fn keep(
        memory: FrameMemory<'a, S, L>,
        rom: &'a [u32],
        shared: &'a [CodePage],
        private: &'a mut CodeCache<SLOTS>,
    ) -> Self {
        // The page of the zero frame is always needed, because 0 marks an empty slot of `private`.
        let shared =
            if ablation::SHARED_CODE { shared } else { shared.get(..1).unwrap_or_default() };
        Self { memory, rom, shared, private }
    }
}

impl<S: FrameSource, L: FrameLayout, const SLOTS: usize> Memory for FrameRam<'_, S, L, SLOTS> {
    fn pages(&self) -> u32 {
        self.memory.pages()
    }
    #[inline]
    fn frame(&self, page: u32) -> Option<Frame> {
        self.memory.frame(page)
    }
    #[inline]
    fn is_private(&self, frame: Frame) -> bool {
        self.memory.is_private(frame)
    }
    fn make_private(&mut self, page: u32) -> Result<Frame, NoFrame> {
        self.memory.make_private(page)
    }
    #[inline(always)]
    fn load8(&self, frame: Frame, offset: u32) -> u32 {
        self.memory.load8(frame, offset)
    }
    #[inline(always)]
    fn load16(&self, frame: Frame, offset: u32) -> u32 {
        self.memory.load16(frame, offset)
    }
    #[inline(always)]
    fn load32(&self, frame: Frame, offset: u32) -> u32 {
        self.memory.load32(frame, offset)
    }
    #[inline(always)]
    fn store8(&mut self, frame: Frame, offset: u32, value: u32) {
        self.memory.store8(frame, offset, value);
    }
    #[inline(always)]
    fn store16(&mut self, frame: Frame, offset: u32, value: u32) {
        self.memory.store16(frame, offset, value);
    }
    #[inline(always)]
    fn store32(&mut self, frame: Frame, offset: u32, value: u32) {
        self.memory.store32(frame, offset, value);
    }
    fn read_chunks(&self, frame: Frame, offset: u32, len: u32, f: impl FnMut(u32, &[u8])) {
        self.memory.read_chunks(frame, offset, len, f);
    }
    fn write_chunks(&mut self, frame: Frame, offset: u32, len: u32, f: impl FnMut(u32, &mut [u8])) {
        self.drop_code(frame);
        self.memory.write_chunks(frame, offset, len, f);
    }
}

/// A page of decoded instructions that lives as long as the [`FrameRam`] it came from.
#[derive(Clone, Copy)]
pub struct CodeRef(*const AtomicU64);

impl<'a, S: FrameSource, L: FrameLayout, const SLOTS: usize> Ram for FrameRam<'a, S, L, SLOTS> {
    type RawFrames = Arena<L>;
    type Code = CodeRef;
    type SharedCode = &'a [CodePage];

    #[inline(always)]
    fn shared_code(&self) -> &'a [CodePage] {
        self.shared
    }

    #[inline(always)]
    fn code_in(shared: &'a [CodePage], frame: Frame) -> Option<CodeRef> {
        shared.get(L::index(frame) as usize).map(|page| CodeRef(page.as_ptr()))
    }

    fn rom(&self, page: u32) -> Option<Frame> {
        let frame = L::handle(*self.rom.get(page as usize)?);
        // The ROM's table must never give access to another VM's frames, whatever it contains.
        (!self.is_private(frame)).then_some(frame)
    }

    #[inline]
    fn raw_frames(&self) -> Arena<L> {
        self.memory.arena
    }

    fn no_code(&self) -> CodeRef {
        CodeRef(self.private.pages[0].as_ptr())
    }

    #[inline]
    fn code(&mut self, page: u32, frame: Frame) -> CodeRef {
        if let Some(code) = Self::code_in(self.shared, frame) {
            return code;
        }
        let slot = page as usize % SLOTS;
        if self.private.frames[slot] != frame.raw() {
            if self.private.frames[slot] != 0 {
                self.private.empty(slot);
            }
            self.private.frames[slot] = frame.raw();
        }
        CodeRef(self.private.pages[slot].as_ptr())
    }

    #[inline]
    fn is_code(&self, page: u32, frame: Frame) -> bool {
        self.is_private(frame) && self.private.frames[page as usize % SLOTS] == frame.raw()
    }

    fn drop_code(&mut self, frame: Frame) {
        if !self.is_private(frame) {
            return;
        }
        for slot in 0..SLOTS {
            if self.private.frames[slot] == frame.raw() {
                self.private.empty(slot);
                self.private.frames[slot] = 0;
            }
        }
    }

    #[inline(always)]
    fn decoded(&self, code: CodeRef, index: u32) -> u64 {
        if cfg!(feature = "device") {
            // The last word is the one past the frame's end. An atomic load would pass by the GPU's
            // first-level cache.
            // SAFETY: `code` points to a whole page in `shared` or `private`, both borrowed for as
            // long as `self` lives. All writers write the same value, in one aligned access, and a
            // stale zero only means to decode again.
            unsafe { code.0.add(index.min(FRAME_INSNS) as usize).cast::<u64>().read() }
        } else if index < FRAME_INSNS {
            // SAFETY: as above.
            unsafe { (*code.0.add(index as usize)).load(Ordering::Relaxed) }
        } else {
            past_the_end()
        }
    }

    #[inline(always)]
    fn set_decoded(&mut self, code: CodeRef, index: u32, decoded: u64) {
        // SAFETY: as `decoded`, and never the last word.
        unsafe { (*code.0.add(index as usize % INSNS)).store(decoded, Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[repr(align(4096))]
    #[derive(Clone)]
    struct Page([u8; 4096]);

    struct Upto(u32, u32);
    impl FrameSource for Upto {
        fn take(&mut self) -> Option<u32> {
            (self.0 < self.1).then(|| {
                self.0 += 1;
                self.0 - 1
            })
        }
    }

    fn arena(pages: &mut [Page], shared: u32) -> Arena {
        // SAFETY: the pages outlive the arena in each test, and frame 0 is zero.
        unsafe { Arena::new(pages.as_mut_ptr().cast(), pages.len() as u32, shared) }
    }

    #[test]
    fn first_write_copies_the_shared_frame_and_leaves_it_alone() {
        let mut pages = vec![Page([0; 4096]); 4];
        pages[1].0[8..12].copy_from_slice(&7u32.to_le_bytes());
        let arena = arena(&mut pages, 2);
        let mut table = [1, 0, 1];
        // SAFETY: entries are inside the arena and shared.
        let mut ram = unsafe { FrameMemory::new(arena, &mut table, Upto(2, 4)) };

        let private = ram.make_private(0).unwrap();
        ram.store32(private, 8, 9);

        assert_eq!(ram.load32(private, 8), 9);
        assert_eq!(ram.load32(ram.frame(2).unwrap(), 8), 7);
        assert_eq!(ram.make_private(0), Ok(private));
    }

    #[test]
    fn make_private_says_when_no_frame_is_left() {
        let mut pages = vec![Page([0; 4096]); 2];
        let arena = arena(&mut pages, 1);
        let mut table = [0, 0];
        // SAFETY: entries are inside the arena and shared.
        let mut ram = unsafe { FrameMemory::new(arena, &mut table, Upto(1, 2)) };

        assert!(ram.make_private(0).is_ok());
        assert_eq!(ram.make_private(1), Err(NoFrame));
        assert_eq!(ram.frame(1), Some(Frame::ZERO));
        assert_eq!(ram.frame(2), None);
    }
}

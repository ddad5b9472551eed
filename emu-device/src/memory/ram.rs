//! RAM that a hart can execute from: a memory with a ROM and decoded instructions.

use super::arena::Arena;
use super::code::{CodeCache, CodePage, CodePool, CodeRef, NoPool};
use super::layout::{Contiguous, FrameLayout};
use super::table::{FrameMemory, FrameSource};
use crate::ablation;
use emu_core::mem::{Frame, Memory, NoFrame, Ram};

/// RAM that a hart can execute from: [`FrameMemory`] with a ROM and decoded instructions.
pub struct FrameRam<'a, S, L = Contiguous, P = NoPool, const SLOTS: usize = 64> {
    memory: FrameMemory<'a, S, L>,
    /// The frame of each page of the ROM.
    rom: &'a [u32],
    /// The decoded instructions of shared frames, by frame index.
    shared: &'a [CodePage],
    private: CodeCache<'a, P, SLOTS>,
}

impl<'a, S: FrameSource, L: FrameLayout, P: CodePool, const SLOTS: usize>
    FrameRam<'a, S, L, P, SLOTS>
{
    /// Adds a ROM of shared frames and decoded instructions to a memory. `shared` holds those of
    /// the arena's shared frames; it is common to the fleet and all zero at first. `private` holds
    /// those of private frames, and is cleared.
    pub fn new(
        memory: FrameMemory<'a, S, L>,
        rom: &'a [u32],
        shared: &'a [CodePage],
        mut private: CodeCache<'a, P, SLOTS>,
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
        private: CodeCache<'a, P, SLOTS>,
    ) -> Self {
        // The page of the zero frame is always needed, because 0 marks an empty slot of `private`.
        let shared =
            if ablation::SHARED_CODE { shared } else { shared.get(..1).unwrap_or_default() };
        Self { memory, rom, shared, private }
    }
}

impl<S: FrameSource, L: FrameLayout, P: CodePool, const SLOTS: usize> Memory
    for FrameRam<'_, S, L, P, SLOTS>
{
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

impl<'a, S: FrameSource, L: FrameLayout, P: CodePool, const SLOTS: usize> Ram
    for FrameRam<'a, S, L, P, SLOTS>
{
    type RawFrames = Arena<L>;
    type Code = CodeRef;
    type SharedCode = &'a [CodePage];

    #[inline(always)]
    fn shared_code(&self) -> &'a [CodePage] {
        self.shared
    }

    #[inline(always)]
    fn code_in(shared: &'a [CodePage], frame: Frame) -> Option<CodeRef> {
        shared.get(L::index(frame) as usize).map(CodeRef::new)
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

    fn frame_of(&self, code: CodeRef) -> Frame {
        match code.index_in(self.shared) {
            Some(index) => L::handle(index as u32),
            None => self.private.frame_of(code),
        }
    }

    fn no_code(&self) -> CodeRef {
        self.private.any()
    }

    #[inline]
    fn code(&mut self, page: u32, frame: Frame) -> CodeRef {
        match Self::code_in(self.shared, frame) {
            Some(code) => code,
            None => self.private.page(page, frame),
        }
    }

    #[inline]
    fn is_code(&self, page: u32, frame: Frame) -> bool {
        self.is_private(frame) && self.private.holds(page, frame)
    }

    fn drop_code(&mut self, frame: Frame) {
        if self.is_private(frame) {
            self.private.drop_frame(frame);
        }
    }

    fn drop_code_at(&mut self, frame: Frame, offset: u32) -> bool {
        !self.is_private(frame) || self.private.drop_at(frame, offset)
    }

    #[inline(always)]
    fn decoded(&self, code: CodeRef, index: u32) -> u64 {
        // SAFETY: the page is in `shared` or `private`, both borrowed for as long as `self` lives.
        unsafe { code.get(index) }
    }

    #[cfg(feature = "device")]
    #[inline(always)]
    fn decoded_if(&self, condition: bool, code: CodeRef, index: u32) -> u64 {
        // SAFETY: as `decoded`.
        unsafe { code.get_if(condition, index) }
    }
    #[inline(always)]
    fn set_decoded(&mut self, code: CodeRef, index: u32, decoded: u64) {
        // SAFETY: as `decoded`.
        unsafe { code.set(index, decoded) }
    }
}

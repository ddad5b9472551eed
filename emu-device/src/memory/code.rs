//! Decoded instructions, one page of them for each frame.

use super::words::fill_zero;
use core::sync::atomic::{AtomicU64, Ordering};
use emu_core::insn::INSN_SIZE;
use emu_core::mem::{FRAME_INSNS, FRAME_SIZE, Frame};

const INSNS: usize = FRAME_INSNS as usize;

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
    /// The frame whose instructions were last dropped from each slot, or 0. If it is back in the
    /// slot, it holds both code and data.
    dropped: [u32; SLOTS],
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
            self.dropped[slot] = 0;
        }
    }

    /// Returns the page for the decoded instructions of a private frame, to which page `page` maps.
    /// If it has none, they start empty, in place of those of another page.
    #[inline]
    pub(super) fn page(&mut self, page: u32, frame: Frame) -> CodeRef {
        let slot = page as usize % SLOTS;
        if self.frames[slot] != frame.raw() {
            if self.frames[slot] != 0 {
                self.empty(slot);
            }
            self.frames[slot] = frame.raw();
        }
        CodeRef(self.pages[slot].as_ptr())
    }

    /// Returns whether a frame, to which page `page` maps, has decoded instructions here.
    #[inline]
    pub(super) fn holds(&self, page: u32, frame: Frame) -> bool {
        self.frames[page as usize % SLOTS] == frame.raw()
    }

    /// Drops the decoded instructions of a frame, if there are any.
    #[inline]
    pub(super) fn drop_frame(&mut self, frame: Frame) {
        for slot in 0..SLOTS {
            if self.frames[slot] == frame.raw() {
                self.drop_slot(slot);
            }
        }
    }

    /// Drops what a store of at most a word at `offset` changes: all of the frame's instructions,
    /// and returns true; or, if the frame holds data beside its code, only those at `offset`.
    #[inline(never)]
    pub(super) fn drop_at(&mut self, frame: Frame, offset: u32) -> bool {
        for slot in 0..SLOTS {
            if self.frames[slot] != frame.raw() {
                continue;
            }
            if self.dropped[slot] != frame.raw() {
                self.drop_slot(slot);
                continue;
            }
            let first = (offset % FRAME_SIZE / INSN_SIZE) as usize;
            let words = if offset.is_multiple_of(INSN_SIZE) { 1 } else { 2 };
            for word in self.pages[slot].iter_mut().skip(first).take(words) {
                *word.get_mut() = 0;
            }
            return false;
        }
        true
    }

    fn drop_slot(&mut self, slot: usize) {
        self.empty(slot);
        self.dropped[slot] = self.frames[slot];
        self.frames[slot] = 0;
    }

    /// Returns some page, as a placeholder that is never read.
    #[inline]
    pub(super) fn any(&self) -> CodeRef {
        CodeRef(self.pages[0].as_ptr())
    }

    fn empty(&mut self, slot: usize) {
        let page = &mut self.pages[slot % SLOTS];
        // SAFETY: the page is borrowed, and zero is a valid value of its words.
        unsafe { fill_zero(page.as_mut_ptr().cast(), INSNS) }
    }
}

/// A page of decoded instructions that lives as long as the [`FrameRam`](super::FrameRam) it came
/// from.
#[derive(Clone, Copy)]
pub struct CodeRef(*const AtomicU64);

impl CodeRef {
    pub(super) fn new(page: &CodePage) -> Self {
        Self(page.as_ptr())
    }

    /// Returns the decoded instruction at `index`; zero if it is not decoded yet or past the end.
    ///
    /// # Safety
    /// The page must still exist.
    #[inline(always)]
    pub(super) unsafe fn get(self, index: u32) -> u64 {
        if cfg!(feature = "device") {
            // The last word is the one past the frame's end. An atomic load would pass by the GPU's
            // first-level cache.
            // SAFETY: the page has the word. All writers write the same value, in one aligned
            // access, and a stale zero only means to decode again.
            unsafe { self.0.add(index.min(FRAME_INSNS) as usize).cast::<u64>().read() }
        } else if index < FRAME_INSNS {
            // SAFETY: the page has the word.
            unsafe { (*self.0.add(index as usize)).load(Ordering::Relaxed) }
        } else {
            past_the_end()
        }
    }

    /// Stores the decoded instruction at `index`.
    ///
    /// # Safety
    /// As [`CodeRef::get`].
    #[inline(always)]
    pub(super) unsafe fn set(self, index: u32, decoded: u64) {
        // SAFETY: the page has the word, which is never the last one.
        unsafe { (*self.0.add(index as usize % INSNS)).store(decoded, Ordering::Relaxed) }
    }
}

/// What a CPU reads past the end of a frame's decoded instructions. It is a cold function so that
/// the bounds check is a branch, which a CPU predicts well. Clamping the index, as the GPU does,
/// would make a CPU wait for the result.
#[cold]
fn past_the_end() -> u64 {
    0
}

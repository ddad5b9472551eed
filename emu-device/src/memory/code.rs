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

/// A pool of decoded pages, all empty, from which VMs take as they need them.
pub trait CodePool {
    /// Takes a page and returns its index; `None` when none is left. It is below the number of
    /// pages, not zero, and nobody else has it.
    fn take(&mut self) -> Option<u32>;
}

/// The pool of a cache that has a page for each slot.
#[derive(Clone, Copy, Debug)]
pub struct NoPool;

impl CodePool for NoPool {
    fn take(&mut self) -> Option<u32> {
        None
    }
}

/// Which of a VM's private frames have decoded instructions, and in which pages these are.
///
/// There is a slot for each `SLOTS`th page of RAM. A slot without a page gets one when it is first
/// used: one that has become empty, or one from the pool, or, when the pool has none, the page of
/// another slot. So it is the pool's size, not the number of slots, that decides how much memory
/// VMs use. A VM that runs has at least one page.
///
/// All zero are the empty slots, without a page, of a VM that does not run.
#[derive(Debug)]
#[repr(C)]
pub struct CodeSlots<const SLOTS: usize = 64> {
    /// The frame in each slot; 0 for an empty slot, as frame 0 is shared and never in a slot.
    frames: [u32; SLOTS],
    /// The frame whose instructions were last dropped from each slot, or 0. If it is back in the
    /// slot, it holds both code and data.
    dropped: [u32; SLOTS],
    /// The index of each slot's page, or 0. A page whose slot is empty is empty.
    pages: [u32; SLOTS],
    /// The slot that loses its page next, when another needs it.
    hand: u32,
}

impl<const SLOTS: usize> CodeSlots<SLOTS> {
    /// Returns the number of pages in slots.
    pub fn pages(&self) -> u32 {
        self.pages.iter().filter(|&&page| page != 0).count() as u32
    }

    /// Gives the empty slots of a VM that is about to run a page, which must be empty.
    pub const fn begin(&mut self, page: u32) {
        self.pages[0] = page;
    }

    /// Returns empty slots that have a page each: 1 and those after it.
    pub const fn with_all_pages() -> Self {
        let mut slots =
            Self { frames: [0; SLOTS], dropped: [0; SLOTS], pages: [0; SLOTS], hand: 0 };
        let mut slot = 0;
        while slot < SLOTS {
            slots.pages[slot] = slot as u32 + 1;
            slot += 1;
        }
        slots
    }
}

/// A cache of the decoded instructions of up to `SLOTS` private frames.
///
/// Writes to a frame invalidate its decoded instructions only in the cache that the VM runs with. A
/// cache that serves several VMs must therefore be cleared whenever it starts to serve another: the
/// VM may have run with another cache in between.
pub struct CodeCache<'a, P = NoPool, const SLOTS: usize = 64> {
    slots: &'a mut CodeSlots<SLOTS>,
    pages: &'a [CodePage],
    pool: P,
}

impl<'a, P: CodePool, const SLOTS: usize> CodeCache<'a, P, SLOTS> {
    /// Makes the cache that `slots` describes.
    ///
    /// # Safety
    /// All pages of `slots` are below `pages.len()`, and nobody else uses them, or those that `pool`
    /// hands out, while the cache exists. A page whose slot is empty is empty, and so are those of
    /// the pool. There is at least one page in `slots` if code is looked up.
    pub unsafe fn new(slots: &'a mut CodeSlots<SLOTS>, pages: &'a [CodePage], pool: P) -> Self {
        debug_assert!(slots.pages.iter().all(|&page| (page as usize) < pages.len()));
        Self { slots, pages, pool }
    }

    /// Drops all decoded instructions.
    pub fn clear(&mut self) {
        for slot in 0..SLOTS {
            if self.slots.frames[slot] != 0 {
                self.empty(slot);
                self.slots.frames[slot] = 0;
            }
            self.slots.dropped[slot] = 0;
        }
    }

    /// Drops all decoded instructions and gives all pages back, but for page `own`. The slots are
    /// then those of a VM that does not run.
    pub fn release(mut self, own: u32, mut give: impl FnMut(u32)) {
        self.clear();
        for page in self.slots.pages {
            if page != 0 && page != own {
                give(page);
            }
        }
        self.slots.pages = [0; SLOTS];
        self.slots.hand = 0;
    }

    /// Returns the page for the decoded instructions of a private frame, to which page `page` maps.
    /// If it has none, they start empty, in place of those of another page.
    #[inline]
    pub(super) fn page(&mut self, page: u32, frame: Frame) -> CodeRef {
        let slot = page as usize % SLOTS;
        if self.slots.frames[slot] != frame.raw() {
            self.replace(slot, frame);
        }
        CodeRef(self.page_of(slot))
    }

    /// Puts a frame into a slot, whose page is then empty.
    #[cold]
    #[inline(never)]
    fn replace(&mut self, slot: usize, frame: Frame) {
        let slot = slot % SLOTS;
        if self.slots.pages[slot] == 0 {
            self.slots.pages[slot] = self.another_page();
        } else if self.slots.frames[slot] != 0 {
            self.empty(slot);
        }
        self.slots.frames[slot] = frame.raw();
    }

    /// Returns an empty page that is in no slot.
    fn another_page(&mut self) -> u32 {
        for slot in 0..SLOTS {
            if self.slots.frames[slot] == 0 && self.slots.pages[slot] != 0 {
                return core::mem::take(&mut self.slots.pages[slot]);
            }
        }
        if let Some(page) = self.pool.take() {
            return page;
        }
        // Slots lose their pages in turn. Where the turn is depends on what equal VMs have in
        // common, so that they stay in step.
        debug_assert!(self.slots.pages.iter().any(|&page| page != 0));
        loop {
            let slot = self.slots.hand as usize % SLOTS;
            self.slots.hand = slot as u32 + 1;
            if self.slots.pages[slot] != 0 {
                self.empty(slot);
                self.slots.frames[slot] = 0;
                return core::mem::take(&mut self.slots.pages[slot]);
            }
        }
    }

    /// Returns whether a frame, to which page `page` maps, has decoded instructions here.
    #[inline]
    pub(super) fn holds(&self, page: u32, frame: Frame) -> bool {
        self.slots.frames[page as usize % SLOTS] == frame.raw()
    }

    /// Drops the decoded instructions of a frame, if there are any.
    #[inline]
    pub(super) fn drop_frame(&mut self, frame: Frame) {
        for slot in 0..SLOTS {
            if self.slots.frames[slot] == frame.raw() {
                self.drop_slot(slot);
            }
        }
    }

    /// Drops what a store of at most a word at `offset` changes: all of the frame's instructions,
    /// and returns true; or, if the frame holds data beside its code, only those at `offset`.
    #[inline(never)]
    pub(super) fn drop_at(&mut self, frame: Frame, offset: u32) -> bool {
        for slot in 0..SLOTS {
            if self.slots.frames[slot] != frame.raw() {
                continue;
            }
            if self.slots.dropped[slot] != frame.raw() {
                self.drop_slot(slot);
                continue;
            }
            let first = (offset % FRAME_SIZE / INSN_SIZE) as usize;
            let words = if offset.is_multiple_of(INSN_SIZE) { 1 } else { 2 };
            // The last word stays undecoded in any case.
            for word in first..(first + words).min(INSNS) {
                // SAFETY: the page has the word.
                unsafe { CodeRef(self.page_of(slot)).set(word as u32, 0) }
            }
            return false;
        }
        true
    }

    fn drop_slot(&mut self, slot: usize) {
        self.empty(slot);
        self.slots.dropped[slot] = self.slots.frames[slot];
        self.slots.frames[slot] = 0;
    }

    /// Returns the frame that a page belongs to: [`Frame::ZERO`] if it is in no slot.
    pub(super) fn frame_of(&self, code: CodeRef) -> Frame {
        let page = code.index_in(self.pages).map_or(0, |page| page as u32);
        let slot = self.slots.pages.iter().position(|&p| p == page && page != 0);
        slot.and_then(|slot| self.slots.frames.get(slot))
            .map_or(Frame::ZERO, |&f| Frame::from_raw(f))
    }

    /// Returns some page, as a placeholder that is never read.
    #[inline]
    pub(super) fn any(&self) -> CodeRef {
        CodeRef(self.pages.as_ptr().cast())
    }

    fn empty(&mut self, slot: usize) {
        let page = self.page_of(slot).cast_mut().cast();
        // SAFETY: the slot's page is this cache's alone, its words may be written through a shared
        // reference, and zero is a valid value of them.
        unsafe { fill_zero(page, INSNS) }
    }

    /// Returns the address of a slot's page.
    #[inline]
    fn page_of(&self, slot: usize) -> *const AtomicU64 {
        // SAFETY: pages of slots are below `pages.len()`.
        unsafe { self.pages.as_ptr().add(self.slots.pages[slot % SLOTS] as usize).cast() }
    }
}

/// A page of decoded instructions that lives as long as the [`FrameRam`](super::FrameRam) it came
/// from.
#[derive(Clone, Copy)]
pub struct CodeRef(*const AtomicU64);

impl CodeRef {
    /// Returns the page's index among `pages`, if it is one of them.
    pub(super) fn index_in(self, pages: &[CodePage]) -> Option<usize> {
        let distance = self.0.addr().wrapping_sub(pages.as_ptr().addr());
        let index = distance / size_of::<CodePage>();
        (index < pages.len()).then_some(index)
    }

    /// Returns how far the page is from `start`, in words; both are in one allocation.
    #[inline(always)]
    pub(crate) fn distance_from(self, start: *const AtomicU64) -> u32 {
        (self.0.addr().wrapping_sub(start.addr()) / size_of::<AtomicU64>()) as u32
    }

    /// Returns the page at a distance that [`CodeRef::distance_from`] has given.
    #[inline(always)]
    pub(crate) fn at_distance(start: *const AtomicU64, words: u32) -> Self {
        Self(start.wrapping_add(words as usize))
    }

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

    /// Returns the decoded instruction at `index`, which is below [`FRAME_INSNS`], if the condition
    /// is true; otherwise zero.
    ///
    /// # Safety
    /// If the condition is true, as [`CodeRef::get`].
    #[cfg(feature = "device")]
    #[inline(always)]
    pub(super) unsafe fn get_if(self, condition: bool, index: u32) -> u64 {
        // SAFETY: as `get`.
        unsafe {
            let word = self.0.cast::<u64>().add(index as usize % INSNS);
            crate::intrin::conditional::load64(condition, word)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const fn frame_of(page: u32) -> Frame {
        Frame::from_raw(10 + page)
    }

    struct Upto(u32, u32);

    impl CodePool for Upto {
        fn take(&mut self) -> Option<u32> {
            (self.0 < self.1).then(|| {
                self.0 += 1;
                self.0 - 1
            })
        }
    }

    fn empty(pages: usize) -> Vec<CodePage> {
        (0..pages).map(|_| core::array::from_fn(|_| AtomicU64::new(0))).collect()
    }

    fn slots() -> CodeSlots<4> {
        let mut slots = CodeSlots { frames: [0; 4], dropped: [0; 4], pages: [0; 4], hand: 0 };
        slots.begin(1);
        slots
    }

    /// Looks a frame up as page `page`, checks that it is empty if it is `new`, and fills a word.
    fn touch<P: CodePool>(cache: &mut CodeCache<'_, P, 4>, page: u32, new: bool) {
        let frame = frame_of(page);
        assert_eq!(cache.holds(page, frame), !new);
        let code = cache.page(page, frame);
        // SAFETY: the page exists.
        unsafe {
            assert_eq!(code.get(7), if new { 0 } else { u64::from(page) + 1 });
            code.set(7, u64::from(page) + 1);
        }
    }

    #[test]
    fn slots_take_pages_as_they_need_them_and_lose_them_in_turn() {
        let (pages, mut slots) = (empty(3), slots());
        // SAFETY: pages 1 and 2 are the cache's alone.
        let mut cache = unsafe { CodeCache::new(&mut slots, &pages, Upto(2, 3)) };
        for page in [0, 1] {
            touch(&mut cache, page, true);
        }
        for page in [1, 0] {
            touch(&mut cache, page, false);
        }
        // The pool is empty: slot 2 gets the page of slot 0, and slot 3 that of slot 1.
        for page in [2, 3] {
            touch(&mut cache, page, true);
        }
        assert!(!cache.holds(0, frame_of(0)) && !cache.holds(1, frame_of(1)));
        touch(&mut cache, 0, true);
        assert!(!cache.holds(2, frame_of(2)) && cache.holds(3, frame_of(3)));
        // Pages that are 4 apart have one slot.
        touch(&mut cache, 4, true);
        assert!(!cache.holds(0, frame_of(0)) && cache.holds(3, frame_of(3)));
    }

    #[test]
    fn a_page_whose_frame_was_dropped_serves_the_next() {
        let (pages, mut slots) = (empty(2), slots());
        // SAFETY: page 1 is the cache's alone.
        let mut cache = unsafe { CodeCache::new(&mut slots, &pages, NoPool) };
        touch(&mut cache, 0, true);
        cache.drop_frame(frame_of(0));
        touch(&mut cache, 1, true);
        assert!(cache.drop_at(frame_of(1), 28), "all of it");
        touch(&mut cache, 1, true);
        assert!(!cache.drop_at(frame_of(1), 28), "only the word");
        // SAFETY: the page exists.
        assert_eq!(unsafe { cache.page(1, frame_of(1)).get(7) }, 0);
        // The last word of a page is none that is decoded.
        assert!(!cache.drop_at(frame_of(1), FRAME_SIZE - 2));
    }

    #[test]
    fn a_cache_gives_back_empty_all_pages_but_its_own() {
        let (pages, mut slots) = (empty(4), slots());
        // SAFETY: the pages from 1 on are the cache's alone.
        let mut cache = unsafe { CodeCache::new(&mut slots, &pages, Upto(2, 4)) };
        for page in 0..4 {
            touch(&mut cache, page, true);
        }
        let mut given = Vec::new();
        cache.release(1, |page| given.push(page));
        given.sort_unstable();
        assert_eq!(given, [2, 3]);
        assert_eq!(slots.pages(), 0);
        assert!(pages.iter().flatten().all(|word| word.load(Ordering::Relaxed) == 0));
    }
}

//! The TLBs: cached address translations.
//!
//! A lookup must be cheap, so it is one comparison that checks page, alignment and permission
//! together. An entry holds the frame that a page maps to and, in the low bits of its tag, one
//! *deny* bit for every (privilege, access) pair. Changes of privilege or SUM therefore need no
//! flush.
//!
//! The number of entries is the same on all backends, and so is what is in them. A guest that changes
//! page tables without SFENCE.VMA can observe which translations are cached, and the CPU and the GPU
//! must agree on that. They are still no part of a VM's state as [`crate::state`] means it, because
//! frames have other handles in another memory.

use crate::mem::{FRAME_SHIFT, Frame};
use crate::mmu::PAGE_MASK;

/// Bits in the low part of a tag. The two lowest stay zero, so that the comparison also checks
/// alignment.
pub(crate) mod deny {
    pub const U_R: u32 = 1 << 2;
    pub const U_W: u32 = 1 << 3;
    pub const S_R: u32 = 1 << 4;
    pub const S_W: u32 = 1 << 5;
    /// S-mode while `mstatus.SUM` is set.
    pub const SUM_R: u32 = 1 << 6;
    pub const SUM_W: u32 = 1 << 7;
    pub const M_R: u32 = 1 << 8;
    pub const M_W: u32 = 1 << 9;
    pub const U_X: u32 = 1 << 2;
    pub const S_X: u32 = 1 << 3;
    pub const M_X: u32 = 1 << 4;
    pub const ALL: u32 = 0x3fc;
    /// Set if the entry caches one page of a superpage. It denies nothing.
    pub const SUPERPAGE: u32 = 1 << 10;
    /// Denies every store, because the frame has decoded instructions, which must be dropped first.
    pub const CODE: u32 = 1 << 11;
}

/// A cached translation, aligned so that a GPU reads both halves at once.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C, align(8))]
pub(crate) struct Entry {
    frame: Frame,
    tag: u32,
}

impl Entry {
    pub(crate) const EMPTY: Self = Self::new(0, deny::ALL, Frame::ZERO);

    /// Packs the entry into a word.
    #[inline(always)]
    pub(crate) const fn to_bits(self) -> u64 {
        (self.tag as u64) << 32 | self.frame.raw() as u64
    }

    /// Unpacks an entry from a word.
    #[inline(always)]
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self { frame: Frame::from_raw(bits as u32), tag: (bits >> 32) as u32 }
    }

    #[inline(always)]
    pub(crate) const fn frame(self) -> Frame {
        self.frame
    }

    const fn new(va: u32, low: u32, frame: Frame) -> Self {
        Self { frame, tag: va & PAGE_MASK | low }
    }

    #[inline(always)]
    pub(crate) fn hit(self, va: u32, align: u32, denied: u32) -> bool {
        (self.tag ^ va) & (PAGE_MASK | align) | self.tag & denied == 0
    }

    /// Returns whether the entry translates the page of `va`, or might. An entry of a superpage
    /// might, because it does not record which other pages the superpage covers.
    fn covers(self, va: u32) -> bool {
        self.tag & deny::SUPERPAGE != 0 || (self.tag ^ va) & PAGE_MASK == 0
    }
}

const INSN_ENTRIES: usize = 128;

/// A direct-mapped TLB for loads and stores. There are two levels: the instruction loop uses a
/// small L1, kept close to the registers, and a larger L2 saves most page-table walks. Whoever
/// changes or drops an entry must do so in both.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(transparent)]
pub struct DataTlb<const ENTRIES: usize> {
    entries: [Entry; ENTRIES],
}

/// The L1 TLB.
pub type L1Tlb = DataTlb<64>;
/// The L2 TLB.
pub type L2Tlb = DataTlb<256>;

impl<const ENTRIES: usize> DataTlb<ENTRIES> {
    /// A TLB without entries.
    pub const EMPTY: Self = Self { entries: [Entry::EMPTY; ENTRIES] };

    /// Returns the index of the entry for `va`. It mixes in higher bits of the page number, because
    /// stacks, page tables and buffers are often equal distances apart and would collide. That
    /// halves the misses of a Linux boot.
    #[inline(always)]
    pub(crate) const fn index(va: u32) -> usize {
        const { assert!(ENTRIES.is_power_of_two()) };
        (va >> FRAME_SHIFT ^ va >> (FRAME_SHIFT + 6)) as usize % ENTRIES
    }

    /// Returns the entry that a lookup of `va` compares with.
    #[inline(always)]
    pub(crate) fn entry(&self, va: u32) -> Entry {
        self.entries[Self::index(va)]
    }

    /// Looks up the frame of `va`. `align` is the access size minus one, and `denied` holds the
    /// deny bits to test.
    #[inline(always)]
    pub(crate) fn get(&self, va: u32, align: u32, denied: u32) -> Option<Frame> {
        let e = self.entries[Self::index(va)];
        if e.hit(va, align, denied) { Some(e.frame) } else { None }
    }

    /// Looks up `va` in the next level, `behind`, after a miss in this one, and caches a hit here.
    #[inline(always)]
    pub(crate) fn refill<const BEHIND: usize>(
        &mut self,
        behind: &DataTlb<BEHIND>,
        va: u32,
        align: u32,
        denied: u32,
    ) -> Option<Frame> {
        let e = behind.entries[DataTlb::<BEHIND>::index(va)];
        if !e.hit(va, align, denied) {
            return None;
        }
        self.entries[Self::index(va)] = e;
        Some(e.frame)
    }

    /// Caches the page of `va`; `low` are the low bits of the tag.
    pub(crate) fn insert(&mut self, va: u32, low: u32, frame: Frame) {
        self.entries[Self::index(va)] = Entry::new(va, low, frame);
    }

    /// Makes stores to `frame` miss, because it has decoded instructions.
    pub(crate) fn protect_code(&mut self, frame: Frame) {
        for e in self.entries.iter_mut().filter(|e| e.frame == frame) {
            e.tag |= deny::CODE;
        }
    }

    /// Undoes [`DataTlb::protect_code`], so that stores to `frame` can hit again.
    pub(crate) fn unprotect_code(&mut self, frame: Frame) {
        for e in self.entries.iter_mut().filter(|e| e.frame == frame) {
            e.tag &= !deny::CODE;
        }
    }

    /// Forgets everything.
    pub(crate) fn flush(&mut self) {
        self.entries = [Entry::EMPTY; ENTRIES];
    }

    /// Forgets the page of `va`.
    pub(crate) fn flush_page(&mut self, va: u32) {
        for e in self.entries.iter_mut().filter(|e| e.covers(va)) {
            *e = Entry::EMPTY;
        }
    }

    /// Drops the entries of a frame that is no longer part of the VM's memory.
    pub(crate) fn forget(&mut self, frame: Frame) {
        for e in self.entries.iter_mut().filter(|e| e.frame == frame) {
            *e = Entry::EMPTY;
        }
    }
}

/// A cached translation for instruction fetches, with the number of the page of RAM that it maps
/// to. Pages of ROM have a number past RAM's.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
struct InsnEntry {
    entry: Entry,
    /// The page's number, as wide as it takes to leave no padding.
    page: u64,
}

impl InsnEntry {
    const EMPTY: Self = Self { entry: Entry::EMPTY, page: 0 };
}

/// A direct-mapped TLB for instruction fetches. The hart looks it up when execution enters another
/// page, not for every instruction.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct InsnTlb {
    entries: [InsnEntry; INSN_ENTRIES],
}

impl InsnTlb {
    /// A TLB without entries.
    pub const EMPTY: Self = Self { entries: [InsnEntry::EMPTY; INSN_ENTRIES] };

    /// Looks up the page of RAM that `va` maps to, and its frame.
    #[inline(always)]
    pub(crate) fn get(&self, va: u32, denied: u32) -> Option<(u32, Frame)> {
        let e = self.entries[(va >> FRAME_SHIFT) as usize % INSN_ENTRIES];
        if e.entry.hit(va, 0, denied) { Some((e.page as u32, e.entry.frame)) } else { None }
    }

    /// Caches the page of `va`; `low` are the low bits of the tag.
    pub(crate) fn insert(&mut self, va: u32, low: u32, page: u32, frame: Frame) {
        self.entries[(va >> FRAME_SHIFT) as usize % INSN_ENTRIES] =
            InsnEntry { entry: Entry::new(va, low, frame), page: u64::from(page) };
    }

    /// Forgets everything.
    pub(crate) fn flush(&mut self) {
        self.entries = [InsnEntry::EMPTY; INSN_ENTRIES];
    }

    /// Forgets the page of `va`.
    pub(crate) fn flush_page(&mut self, va: u32) {
        for e in self.entries.iter_mut().filter(|e| e.entry.covers(va)) {
            *e = InsnEntry::EMPTY;
        }
    }

    /// Drops the entries of a frame that is no longer part of the VM's memory.
    pub(crate) fn forget(&mut self, frame: Frame) {
        for e in self.entries.iter_mut().filter(|e| e.entry.frame == frame) {
            *e = InsnEntry::EMPTY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::mem::FRAME_SIZE;

    const PAGE: u32 = 0x8040_3000;
    const FRAME: Frame = Frame::from_raw(7);
    const READABLE: u32 = deny::ALL & !deny::S_R;

    #[test]
    fn the_second_level_gives_back_what_the_first_has_lost() {
        let (mut first, mut second) = (L1Tlb::EMPTY, L2Tlb::EMPTY);
        second.insert(PAGE, READABLE, FRAME);
        assert_eq!(first.get(PAGE, 3, deny::S_R), None);
        assert_eq!(first.refill(&second, PAGE | 8, 3, deny::S_R), Some(FRAME));
        assert_eq!(first.get(PAGE, 3, deny::S_R), Some(FRAME));
    }

    #[test]
    fn a_refill_allows_no_more_than_the_second_level_does() {
        let (mut first, mut second) = (L1Tlb::EMPTY, L2Tlb::EMPTY);
        second.insert(PAGE, READABLE, FRAME);
        assert_eq!(first.refill(&second, PAGE, 3, deny::S_W | deny::CODE), None);
        assert_eq!(first.refill(&second, PAGE | 2, 3, deny::S_R), None);
        assert_eq!(first.refill(&second, PAGE + FRAME_SIZE, 3, deny::S_R), None);
        second.flush_page(PAGE);
        assert_eq!(first.refill(&second, PAGE, 3, deny::S_R), None);
        assert_eq!(first.get(PAGE, 3, deny::S_R), None);
    }

    #[test]
    fn stores_to_code_are_denied_until_it_is_dropped() {
        let mut tlb = L2Tlb::EMPTY;
        tlb.insert(PAGE, deny::ALL & !deny::S_W, FRAME);
        tlb.protect_code(FRAME);
        assert_eq!(tlb.get(PAGE, 0, deny::S_W | deny::CODE), None);
        tlb.unprotect_code(FRAME);
        assert_eq!(tlb.get(PAGE, 0, deny::S_W | deny::CODE), Some(FRAME));
    }
}

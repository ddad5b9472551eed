//! One VM's memory: its frame table over the arena.

use super::arena::Arena;
use super::layout::{Contiguous, FrameLayout};
use emu_core::mem::{Frame, Memory, NoFrame, RawFrames};

/// A source of free frames, from which VMs get their private ones.
pub trait FrameSource {
    /// Takes a free frame out of the arena and returns its index; `None` when none is left. Its
    /// content is undefined. The index is below the arena's frame count, and the frame is neither
    /// shared nor owned by anybody else.
    fn take(&mut self) -> Option<u32>;
}

/// One VM's memory: a table that maps each of its pages to a frame of the arena.
pub struct FrameMemory<'a, S, L = Contiguous> {
    pub(super) arena: Arena<L>,
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
        debug_assert!(table.iter().all(|&f| f < arena.frames()));
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
        // SAFETY: this VM cannot write the frame while `self` is borrowed, and no other VM ever does.
        for (at, chunk) in unsafe { self.arena.chunks(frame, offset, len) } {
            f(at, chunk);
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
        // SAFETY: the frame is private and reachable through `self` alone, which is borrowed.
        for (at, chunk) in unsafe { self.arena.chunks_mut(frame, offset, len) } {
            f(at, chunk);
        }
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

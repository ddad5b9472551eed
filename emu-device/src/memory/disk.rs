//! One VM's disk: pages of its own over an image that it shares with others.

use super::arena::Arena;
use super::layout::{Contiguous, FrameLayout};
use super::table::FrameSource;
use emu_core::disk::{Disk, DiskError, PAGE_SIZE};
use emu_core::mem::{Frame, RawFrames};

/// A disk image: what a VM reads of its disk until it has written it.
pub trait Image {
    /// Copies the bytes of a page from `offset` on to `to`. The range lies in the page.
    fn read(&mut self, page: u32, offset: u32, to: &mut [u8]) -> Result<(), DiskError>;
}

/// What a VM has of its disk: the image's number, and the pages that it has written, in a tree of
/// frames.
///
/// A node of the tree is a frame of 1,024 entries. An entry is zero when there is nothing below it.
/// Else it is a frame's index: that of a node or, in the lowest level, of a page, which may also be
/// `ZEROS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct OwnPages {
    /// The number of the disk image.
    pub image: u32,
    /// Levels of the tree, as many as the disk's size takes. Zero when there is no disk.
    levels: u32,
    /// The frame of the tree's root, or zero.
    root: u32,
    /// The first of the frames that hold nothing any more, or zero. Each begins with the index of
    /// the next.
    spare: u32,
    /// How many frames there are: nodes, pages and spare ones.
    frames: u32,
}

/// The entry of a page that reads as zeros and has no frame.
const ZEROS: u32 = u32::MAX;
/// log2 of the entries of a node.
const NODE_SHIFT: u32 = 10;
/// The most levels of a tree: pages have numbers of 32 bits.
const LEVELS_MAX: u32 = 4;

impl OwnPages {
    /// Returns what a VM has of a disk of `pages` pages before it has written anything.
    pub const fn new(image: u32, pages: u64) -> Self {
        let mut levels = 1;
        while levels < LEVELS_MAX && pages > 1 << (levels * NODE_SHIFT) {
            levels += 1;
        }
        Self { image, levels, root: 0, spare: 0, frames: 0 }
    }

    /// Returns the most frames that a VM can have for a disk of `pages` pages.
    pub const fn most(pages: u64) -> u64 {
        // A node for each 1,024 pages, one for each 1,024 of those, and so on.
        pages + pages / 1000 + LEVELS_MAX as u64
    }

    /// Returns how many frames the VM has for its disk.
    pub const fn frames(&self) -> u32 {
        self.frames
    }

    /// Returns the offset in its node of a page's entry, `level` levels above the lowest.
    const fn offset(page: u32, level: u32) -> u32 {
        (page >> (level * NODE_SHIFT)) % (1 << NODE_SHIFT) * 4
    }

    /// Calls `give` with each frame, and leaves the VM without pages of its own.
    ///
    /// # Safety
    /// As [`FrameDisk::new`], for what becomes of the frames as well.
    pub unsafe fn release<L: FrameLayout>(&mut self, arena: Arena<L>, mut give: impl FnMut(u32)) {
        let mut spare = self.spare;
        while spare != 0 {
            let next = arena.load32(L::handle(spare), 0);
            give(spare);
            spare = next;
        }
        // The nodes from the root to where the walk is, and the offset of the next entry in each.
        let mut path = [(self.root, 0); LEVELS_MAX as usize];
        let mut depth = usize::from(self.root != 0);
        while let Some((node, at)) = path.get_mut(..depth).and_then(|path| path.last_mut()) {
            if *at == PAGE_SIZE {
                give(*node);
                depth -= 1;
                continue;
            }
            let entry = arena.load32(L::handle(*node), *at);
            *at += 4;
            if entry == 0 || entry == ZEROS {
                continue;
            }
            match path.get_mut(depth) {
                Some(next) if (depth as u32) < self.levels => {
                    *next = (entry, 0);
                    depth += 1;
                }
                _ => give(entry),
            }
        }
        (self.root, self.spare, self.frames) = (0, 0, 0);
    }
}

/// What a VM has of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Own {
    /// Nothing: the page is the image's.
    Nothing,
    /// Zeros.
    Zeros,
    /// A frame.
    Frame(Frame),
}

/// One VM's disk: its own pages over a disk image.
pub struct FrameDisk<'a, S, I, L = Contiguous> {
    arena: Arena<L>,
    own: &'a mut OwnPages,
    source: S,
    image: I,
    /// The page that was looked up last, and what the VM has of it.
    last: Option<(u32, Own)>,
}

impl<'a, S: FrameSource, I: Image, L: FrameLayout> FrameDisk<'a, S, I, L> {
    /// Makes the disk of a VM with these pages of its own over `image`.
    ///
    /// # Safety
    /// `own` was made by [`OwnPages::new`] and changed by disks over this arena only. What their
    /// sources of frames gave them nobody else has, as [`FrameSource::take`] says.
    pub unsafe fn new(arena: Arena<L>, own: &'a mut OwnPages, source: S, image: I) -> Self {
        Self { arena, own, source, image, last: None }
    }

    /// Returns a frame for the VM alone, with zeros in it.
    fn take(&mut self) -> Result<u32, DiskError> {
        let frame = match self.own.spare {
            0 => {
                let frame = self.source.take().ok_or(DiskError::NoFrame)?;
                self.own.frames += 1;
                frame
            }
            spare => {
                self.own.spare = self.arena.load32(L::handle(spare), 0);
                spare
            }
        };
        // SAFETY: it is the VM's, so it is private, and in no tree.
        unsafe { self.arena.zero_frame(L::handle(frame)) };
        Ok(frame)
    }

    /// Keeps a frame that is in no tree any more for the next page that the VM writes.
    fn put_back(&mut self, frame: u32) {
        self.arena.store32(L::handle(frame), 0, self.own.spare);
        self.own.spare = frame;
    }

    /// Returns the lowest node there is on the way to a page, and how many levels it is above the
    /// lowest one.
    fn node(&self, page: u32) -> Option<(Frame, u32)> {
        let mut level = self.own.levels.checked_sub(1)?;
        if self.own.root == 0 {
            return None;
        }
        let mut node = L::handle(self.own.root);
        while level > 0 {
            match self.arena.load32(node, OwnPages::offset(page, level)) {
                0 => break,
                next => node = L::handle(next),
            }
            level -= 1;
        }
        Some((node, level))
    }

    /// Returns what the VM has of a page.
    fn find(&mut self, page: u32) -> Own {
        if let Some((last, own)) = self.last
            && last == page
        {
            return own;
        }
        let entry = match self.node(page) {
            Some((node, 0)) => self.arena.load32(node, OwnPages::offset(page, 0)),
            _ => 0,
        };
        let own = match entry {
            0 => Own::Nothing,
            ZEROS => Own::Zeros,
            frame => Own::Frame(L::handle(frame)),
        };
        self.last = Some((page, own));
        own
    }

    /// Returns the node with a page's entry. Makes those that are missing on the way there.
    fn make_node(&mut self, page: u32) -> Result<Frame, DiskError> {
        if self.own.root == 0 {
            self.own.root = self.take()?;
        }
        loop {
            let (node, level) = self.node(page).ok_or(DiskError::Failed)?;
            if level == 0 {
                return Ok(node);
            }
            let next = self.take()?;
            self.arena.store32(node, OwnPages::offset(page, level), next);
        }
    }

    /// Returns the frame of a page that the VM is about to write. `whole` says that it needs nothing
    /// of what the page holds.
    fn make_own(&mut self, page: u32, whole: bool) -> Result<Frame, DiskError> {
        let own = self.find(page);
        if let Own::Frame(frame) = own {
            return Ok(frame);
        }
        let node = self.make_node(page)?;
        let frame = self.take()?;
        if own == Own::Nothing
            && !whole
            && let Err(error) = self.copy_image(page, L::handle(frame))
        {
            self.put_back(frame);
            return Err(error);
        }
        self.arena.store32(node, OwnPages::offset(page, 0), frame);
        self.last = Some((page, Own::Frame(L::handle(frame))));
        Ok(L::handle(frame))
    }

    /// Copies a page of the image into a frame of the VM's.
    fn copy_image(&mut self, page: u32, frame: Frame) -> Result<(), DiskError> {
        // SAFETY: the frame is the VM's.
        let chunks = unsafe { self.arena.chunks_mut(frame, 0, PAGE_SIZE) };
        for (at, chunk) in chunks {
            self.image.read(page, at, chunk)?;
        }
        Ok(())
    }
}

impl<S: FrameSource, I: Image, L: FrameLayout> Disk for FrameDisk<'_, S, I, L> {
    fn read(&mut self, page: u32, offset: u32, to: &mut [u8]) -> Result<(), DiskError> {
        match self.find(page) {
            Own::Nothing => return self.image.read(page, offset, to),
            Own::Zeros => to.fill(0),
            Own::Frame(frame) => {
                // SAFETY: the VM, which alone writes the frame, is borrowed.
                for (at, chunk) in unsafe { self.arena.chunks(frame, offset, to.len() as u32) } {
                    for (to, from) in to.iter_mut().skip(at as usize).zip(chunk) {
                        *to = *from;
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, page: u32, offset: u32, from: &[u8], whole: bool) -> Result<(), DiskError> {
        let frame = self.make_own(page, whole)?;
        // SAFETY: the frame is the VM's.
        for (at, chunk) in unsafe { self.arena.chunks_mut(frame, offset, from.len() as u32) } {
            for (to, from) in chunk.iter_mut().zip(from.iter().skip(at as usize)) {
                *to = *from;
            }
        }
        Ok(())
    }

    fn zero(&mut self, page: u32) -> Result<(), DiskError> {
        let node = self.make_node(page)?;
        if let Own::Frame(frame) = self.find(page) {
            self.put_back(L::index(frame));
        }
        self.arena.store32(node, OwnPages::offset(page, 0), ZEROS);
        self.last = None;
        Ok(())
    }

    /// Frees the frame of a page that the VM has written, which reads as zeros then. A page of the
    /// image stays what it is, because forgetting it would cost a node.
    fn discard(&mut self, page: u32) -> u32 {
        self.last = None;
        let Some((node, level)) = self.node(page) else { return u32::MAX };
        if level > 0 {
            // Nothing else is below this entry, so the next page is that of the next one.
            let span = 1u64 << (level * NODE_SHIFT);
            let next = (u64::from(page) | (span - 1)) + 1;
            return next.min(u32::MAX.into()) as u32;
        }
        let at = OwnPages::offset(page, 0);
        let entry = self.arena.load32(node, at);
        if entry != 0 && entry != ZEROS {
            self.put_back(entry);
            self.arena.store32(node, at, ZEROS);
        }
        page.saturating_add(1)
    }

    /// Does nothing: what the VM writes ends with it.
    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(())
    }
}

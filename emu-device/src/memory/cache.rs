//! Disk images in a device's memory: a cache of bounded size, which the host fills.

use super::disk::Image;
use emu_core::disk::{DiskError, PAGE_SIZE};

/// Pages in a line of the cache, which are loaded together.
pub const LINE_PAGES: u32 = 16;
/// Bytes in a line.
pub const LINE_SIZE: u32 = LINE_PAGES * PAGE_SIZE;
/// Lines in a set: places that a line can be in.
pub const WAYS: u32 = 8;

/// What is in a line of the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Line {
    /// The number of the disk image, plus one; zero when nothing is in the line.
    image: u32,
    /// Which of the image's lines it is.
    number: u32,
    /// A bit map of its pages that cannot be read.
    pub bad: u32,
}

impl Line {
    /// Returns line `number` of disk image `image`, all of it good.
    pub const fn new(image: u32, number: u32) -> Self {
        Self { image: image.wrapping_add(1), number, bad: 0 }
    }

    /// Whether this is the same part of the same image.
    pub const fn is(&self, other: &Self) -> bool {
        self.image == other.image && self.number == other.number
    }

    /// Returns the first of the [`WAYS`] places where the line can be, in a cache of `lines` lines: a
    /// power of two of sets. Neighbours are in different sets, so that an image that fits is loaded
    /// once.
    pub const fn first_place(&self, lines: u32) -> u32 {
        const SPREAD: u32 = 0x9e37_79b1;
        let hash = self.number.wrapping_add(self.image.wrapping_mul(SPREAD));
        (hash & (lines / WAYS).wrapping_sub(1)) * WAYS
    }
}

/// A disk image as a VM reads it from the cache.
pub struct CachedImage<'a> {
    image: u32,
    lines: &'a [Line],
    /// The bytes of all lines.
    bytes: &'a [u8],
    /// The line that was looked up last, and where it is.
    last: Option<(u32, usize)>,
}

impl<'a> CachedImage<'a> {
    /// Returns disk image `image` over a cache.
    pub const fn new(image: u32, lines: &'a [Line], bytes: &'a [u8]) -> Self {
        Self { image, lines, bytes, last: None }
    }

    /// Returns where a line is.
    fn find(&mut self, number: u32) -> Option<usize> {
        if let Some((last, at)) = self.last
            && last == number
        {
            return Some(at);
        }
        let wanted = Line::new(self.image, number);
        let first = wanted.first_place(self.lines.len() as u32) as usize;
        let mut set = self.lines.get(first..)?.iter().take(WAYS as usize);
        let at = first + set.position(|line| line.is(&wanted))?;
        self.last = Some((number, at));
        Some(at)
    }
}

impl Image for CachedImage<'_> {
    fn read(&mut self, page: u32, offset: u32, to: &mut [u8]) -> Result<(), DiskError> {
        let at = self.find(page / LINE_PAGES).ok_or(DiskError::NotLoaded(page))?;
        let line = self.lines.get(at).ok_or(DiskError::NotLoaded(page))?;
        if line.bad & 1 << (page % LINE_PAGES) != 0 {
            return Err(DiskError::Failed);
        }
        let start = at * LINE_SIZE as usize + (page % LINE_PAGES * PAGE_SIZE + offset) as usize;
        let from = self.bytes.get(start..).ok_or(DiskError::Failed)?;
        for (to, from) in to.iter_mut().zip(from) {
            *to = *from;
        }
        Ok(())
    }
}

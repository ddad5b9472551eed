//! The base image: the frames (4 KiB of guest memory each) that all VMs of a fleet share,
//! copy-on-write.

use std::collections::HashMap;

use emu_core::mem::{FRAME_SHIFT, FRAME_SIZE};

use crate::image::Segment;

const FRAME: usize = FRAME_SIZE as usize;

/// Shared frames of a fleet, and the page of RAM or ROM that each one backs.
#[derive(Clone, Debug, Default)]
pub struct BaseImage {
    /// Contents of the frames, frame 0 (all zero) first.
    pub frames: Vec<u8>,
    /// Frame of each page of RAM (initial page table); one row per program.
    pub rows: Vec<Vec<u32>>,
    /// Frame of each page of the ROM; empty without a ROM.
    pub rom: Vec<u32>,
}

impl BaseImage {
    /// Returns the base image with `contents` in `memory` bytes of RAM from `ram_base` on, and `rom`.
    ///
    /// Segments must lie in RAM and not overlap; `Plan` guarantees both. Pages that are all zero
    /// share frame 0. Equal pages within kernel and initrd are not merged, because there are few.
    pub fn new(ram_base: u32, memory: u32, contents: &[Segment], rom: Option<&[u8]>) -> Self {
        let mut base = Self { frames: vec![0; FRAME], ..Self::default() };
        base.row(ram_base, memory, contents, |base, page| base.add(page));
        if let Some(rom) = rom {
            base.rom = rom.chunks(FRAME).map(|chunk| base.add(chunk)).collect();
        }
        base
    }

    /// Returns the base image of several programs, each of which has RAM of its own. Equal pages of
    /// different programs are merged into one frame.
    pub fn several<'a>(
        ram_base: u32,
        memory: u32,
        programs: impl IntoIterator<Item = &'a [Segment]>,
    ) -> Self {
        let mut base = Self { frames: vec![0; FRAME], ..Self::default() };
        let mut known: HashMap<Box<[u8]>, u32> = HashMap::new();
        for contents in programs {
            base.row(ram_base, memory, contents, |base, page| {
                *known.entry(page.into()).or_insert_with(|| base.add(page))
            });
        }
        base
    }

    /// Returns the number of pages of RAM.
    pub fn pages(&self) -> u32 {
        self.rows.first().map_or(0, |row| row.len() as u32)
    }

    fn row(
        &mut self,
        ram_base: u32,
        memory: u32,
        contents: &[Segment],
        mut frame: impl FnMut(&mut Self, &[u8]) -> u32,
    ) {
        let mut pages: HashMap<u32, Box<[u8; FRAME]>> = HashMap::new();
        for segment in contents {
            let mut at = segment.addr.wrapping_sub(ram_base) as usize;
            let mut rest = &segment.bytes[..];
            while !rest.is_empty() {
                let offset = at % FRAME;
                let (piece, more) = rest.split_at(rest.len().min(FRAME - offset));
                let page =
                    pages.entry((at >> FRAME_SHIFT) as u32).or_insert_with(|| Box::new([0; FRAME]));
                page[offset..offset + piece.len()].copy_from_slice(piece);
                at += piece.len();
                rest = more;
            }
        }
        let row = (0..memory >> FRAME_SHIFT)
            .map(|page| pages.get(&page).map_or(0, |bytes| frame(self, &bytes[..])))
            .collect();
        self.rows.push(row);
    }

    /// Returns the number of shared frames, the zero frame included.
    pub fn shared(&self) -> u32 {
        (self.frames.len() >> FRAME_SHIFT) as u32
    }

    fn add(&mut self, bytes: &[u8]) -> u32 {
        if bytes.iter().all(|&b| b == 0) {
            return 0;
        }
        let frame = self.shared();
        self.frames.extend_from_slice(bytes);
        self.frames.resize((frame as usize + 1) << FRAME_SHIFT, 0);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_frames_and_zero_pages_share_frame_zero() {
        let segment =
            |addr, bytes: &[u8]| Segment { addr, bytes: bytes.to_vec(), size: bytes.len() as u32 };
        let contents = [segment(0x8000_0ffe, &[1, 2, 3]), segment(0x8000_3000, &[0; 64])];
        let mut rom = [7; 3 * 4096];
        rom[4096..8192].fill(0);
        let base = BaseImage::new(0x8000_0000, 5 * 4096, &contents, Some(&rom));

        assert_eq!(base.rows, [[1, 2, 0, 0, 0]]);
        assert_eq!(base.rom, [3, 0, 4]);
        assert_eq!(base.shared(), 5);
        assert_eq!(base.frames[4096 + 0xffe..4096 + 0x1001], [1, 2, 3]);
        assert_eq!(base.frames.len(), 5 * 4096);
    }

    #[test]
    fn programs_share_the_pages_that_are_equal() {
        let page = |addr, byte| Segment { addr, bytes: vec![byte; 4096], size: 4096 };
        let programs = [[page(0, 1), page(0x1000, 2)], [page(0, 2), page(0x2000, 3)]];
        let base = BaseImage::several(0, 3 * 4096, programs.iter().map(|p| &p[..]));
        assert_eq!(base.rows, [[1, 2, 0], [2, 0, 3]]);
        assert_eq!((base.shared(), base.pages()), (4, 3));
    }
}

//! The layout of an arena's frames in memory.

use emu_core::mem::{FRAME_SHIFT, FRAME_SIZE, Frame};

/// A layout of frames in an arena, whose base is aligned to [`FrameLayout::ALIGN`].
///
/// Frame n owns the n-th 4 KiB slot of the arena. A layout that interleaves frames spreads each over
/// the slots of its group, so that a slot holds parts of all frames of the group.
///
/// Frame tables hold frame indices. A [`Frame`] is a handle made of the index, in the form from
/// which an address is computed fastest. Handles sort as their indices do, and that of index 0 is
/// [`Frame::ZERO`].
pub trait FrameLayout: Copy {
    /// Bytes in the unit that the layout repeats: a frame, or a group of frames. A power of two.
    const ALIGN: usize;
    /// Bytes in a chunk of a frame: those between multiples of it are contiguous in memory. A power
    /// of two.
    const CHUNK: u32;
    /// How many frame indices there are at most.
    const FRAMES: u32;

    /// Returns the handle of frame `index`, which must be below [`FrameLayout::FRAMES`].
    fn handle(index: u32) -> Frame;
    /// Returns the index of a frame.
    fn index(frame: Frame) -> u32;
    /// Returns the offset of a frame's 4 KiB slot from the arena's base.
    fn base_offset(frame: Frame) -> usize;
    /// Returns the address of byte `offset`, modulo the frame size, of `frame`, whose slot is at
    /// address `slot`.
    fn address(slot: usize, frame: Frame, offset: u32) -> usize;

    /// Returns how far byte `offset` of a frame is from the frame's first byte.
    fn distance(offset: u32) -> usize;

    /// Returns the offset of byte `offset` of frame `index` from the arena's base.
    fn offset_of(index: u32, offset: u32) -> usize {
        let frame = Self::handle(index);
        Self::address(Self::base_offset(frame), frame, offset)
    }
}

/// The layout for CPUs, which run one VM at a time: each frame is contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Contiguous;

impl FrameLayout for Contiguous {
    const ALIGN: usize = FRAME_SIZE as usize;
    const CHUNK: u32 = FRAME_SIZE;
    const FRAMES: u32 = u32::MAX >> 1;

    #[inline(always)]
    fn handle(index: u32) -> Frame {
        Frame::from_raw(index)
    }
    #[inline(always)]
    fn index(frame: Frame) -> u32 {
        frame.raw()
    }
    #[inline(always)]
    fn base_offset(frame: Frame) -> usize {
        (frame.raw() as usize) << FRAME_SHIFT
    }
    #[inline(always)]
    fn address(slot: usize, _: Frame, offset: u32) -> usize {
        slot + Self::distance(offset % FRAME_SIZE)
    }
    #[inline(always)]
    fn distance(offset: u32) -> usize {
        offset as usize
    }
}

/// The layout for GPUs: the 32 frames of a group are interleaved, so that the first chunk of each
/// comes first, then the second chunk of each, and so on.
///
/// VMs that share a warp allocate frames at the same time and access the same offsets in them.
/// Interleaving coalesces these accesses into few cache lines and few rows of DRAM. Correctness
/// does not depend on which frames form a group.
///
/// A handle is the frame index, shifted left so that its low bits, which are the index in the
/// group, are where an address has them.
#[derive(Clone, Copy, Debug)]
pub struct Interleaved;

/// The layout of a GPU's arena.
#[cfg(not(feature = "ablate-interleaving"))]
pub type OnGpu = Interleaved;
/// The layout of a GPU's arena, in a build without interleaving.
#[cfg(feature = "ablate-interleaving")]
pub type OnGpu = Contiguous;

/// log2 of the frames in a group.
const GROUP_SHIFT: u32 = 5;
/// log2 of the bytes in a chunk: one sector, the least that a GPU's caches fetch.
const CHUNK_SHIFT: u32 = 5;

impl Interleaved {
    /// Masks of address bits: those that select the byte in a chunk; those and the bits that select
    /// the frame in its group; those that select the chunk.
    const BYTES: usize = (1 << CHUNK_SHIFT) - 1;
    const BYTES_AND_FRAME: usize = (1 << (CHUNK_SHIFT + GROUP_SHIFT)) - 1;
    const CHUNKS: usize = (Self::ALIGN - 1) & !Self::BYTES_AND_FRAME;
}

impl FrameLayout for Interleaved {
    const ALIGN: usize = 1 << (FRAME_SHIFT + GROUP_SHIFT);
    const CHUNK: u32 = 1 << CHUNK_SHIFT;
    const FRAMES: u32 = 1 << (u32::BITS - CHUNK_SHIFT);

    #[inline(always)]
    fn handle(index: u32) -> Frame {
        Frame::from_raw(index << CHUNK_SHIFT)
    }
    #[inline(always)]
    fn index(frame: Frame) -> u32 {
        frame.raw() >> CHUNK_SHIFT
    }
    #[inline(always)]
    fn base_offset(frame: Frame) -> usize {
        (frame.raw() as usize) << (FRAME_SHIFT - CHUNK_SHIFT)
    }
    #[inline(always)]
    fn address(slot: usize, frame: Frame, offset: u32) -> usize {
        let (handle, offset) = (frame.raw() as usize, offset as usize);
        let chunk = slot & !Self::CHUNKS | offset << GROUP_SHIFT & Self::CHUNKS;
        let rest = handle & !Self::BYTES | offset & Self::BYTES;
        chunk | rest & Self::BYTES_AND_FRAME
    }
    #[inline(always)]
    fn distance(offset: u32) -> usize {
        let offset = offset as usize;
        (offset & !Self::BYTES) << GROUP_SHIFT | offset & Self::BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    /// Checks that frames fill their units, that no two bytes share an address, and that handles
    /// and addresses can be computed back and forth.
    fn check<L: FrameLayout>() {
        let (first, frames) = (7 * L::ALIGN as u32 / FRAME_SIZE, 2 * L::ALIGN as u32 / FRAME_SIZE);
        let base = first as usize * FRAME_SIZE as usize;
        let mut taken = vec![false; 2 * L::ALIGN];
        for index in first..first + frames {
            let frame = L::handle(index);
            assert_eq!(L::index(frame), index);
            assert!(L::handle(index - 1).raw() < frame.raw());
            assert_eq!(L::base_offset(frame), index as usize * FRAME_SIZE as usize);
            for offset in 0..FRAME_SIZE {
                let at = L::offset_of(index, offset);
                assert_eq!(at, L::offset_of(index, 0) + L::distance(offset));
                assert_eq!(at, L::offset_of(index, offset + FRAME_SIZE));
                assert_eq!(at % L::CHUNK as usize, (offset % L::CHUNK) as usize);
                assert!(!core::mem::replace(&mut taken[at - base], true));
            }
        }
        assert_eq!(L::handle(0), Frame::ZERO);
        assert_eq!(L::index(L::handle(L::FRAMES - 1)), L::FRAMES - 1);
    }

    #[test]
    fn frames_share_no_byte() {
        check::<Contiguous>();
        check::<Interleaved>();
    }

    #[test]
    fn the_same_bytes_of_a_group_lie_side_by_side() {
        for offset in [0, Interleaved::CHUNK, FRAME_SIZE - Interleaved::CHUNK] {
            let offsets = (64..96).map(|index| Interleaved::offset_of(index, offset));
            let first = Interleaved::offset_of(64, offset);
            let expected = (0..32).map(|lane| first + lane * Interleaved::CHUNK as usize);
            assert!(offsets.eq(expected));
        }
    }
}

//! The layout of an arena's frames in memory.

use emu_core::mem::{FRAME_SHIFT, FRAME_SIZE, Frame};

/// A layout of frames in an arena, whose base is aligned to [`Placement::ALIGN`].
///
/// Frame number n owns the n-th 4 KiB slot of the arena. A layout that interleaves frames spreads
/// each over the slots of its group, so a slot then holds parts of all frames of the group.
///
/// Frame tables hold frame numbers. A [`Frame`] is a handle made of the number, in the form from
/// which an address is computed fastest. Handles sort as their numbers do, and that of number 0 is
/// [`Frame::ZERO`].
pub trait Placement: Copy {
    /// Bytes in the unit that the layout repeats: a frame, or a group of frames. A power of two.
    const ALIGN: usize;
    /// Bytes in a chunk of a frame: those between multiples of it are contiguous in memory. A power
    /// of two.
    const PIECE: u32;
    /// How many frame numbers there are at most.
    const FRAMES: u32;

    /// Returns the handle of frame `number`, which must be below [`Placement::FRAMES`].
    fn name(number: u32) -> Frame;
    /// Returns the number of a frame.
    fn number(frame: Frame) -> u32;
    /// Returns the offset of a frame's 4 KiB slot from the arena's base.
    fn start(frame: Frame) -> usize;
    /// Returns the address of byte `offset`, modulo the frame size, of `frame`, whose slot is at
    /// address `start`.
    fn address(start: usize, frame: Frame, offset: u32) -> usize;

    /// Returns how far byte `offset` of a frame is from the frame's first byte.
    fn distance(offset: u32) -> usize;

    /// Returns the offset of byte `offset` of frame `number` from the arena's base.
    fn place(number: u32, offset: u32) -> usize {
        let frame = Self::name(number);
        Self::address(Self::start(frame), frame, offset)
    }
}

/// The layout for CPUs, which run one VM at a time: each frame is contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Contiguous;

impl Placement for Contiguous {
    const ALIGN: usize = FRAME_SIZE as usize;
    const PIECE: u32 = FRAME_SIZE;
    const FRAMES: u32 = u32::MAX >> 1;

    #[inline(always)]
    fn name(number: u32) -> Frame {
        Frame::new(number)
    }
    #[inline(always)]
    fn number(frame: Frame) -> u32 {
        frame.index()
    }
    #[inline(always)]
    fn start(frame: Frame) -> usize {
        (frame.index() as usize) << FRAME_SHIFT
    }
    #[inline(always)]
    fn address(start: usize, _: Frame, offset: u32) -> usize {
        start + Self::distance(offset % FRAME_SIZE)
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
/// A handle is the frame number, shifted left so that its low bits, which are the index in the
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
const PIECE_SHIFT: u32 = 5;

impl Interleaved {
    /// Masks of address bits: those that select the byte in a chunk; those and the bits that select
    /// the frame in its group; and those that select the chunk.
    const BYTES: usize = (1 << PIECE_SHIFT) - 1;
    const BYTES_AND_WHOSE: usize = (1 << (PIECE_SHIFT + GROUP_SHIFT)) - 1;
    const PIECES: usize = (Self::ALIGN - 1) & !Self::BYTES_AND_WHOSE;
}

impl Placement for Interleaved {
    const ALIGN: usize = 1 << (FRAME_SHIFT + GROUP_SHIFT);
    const PIECE: u32 = 1 << PIECE_SHIFT;
    const FRAMES: u32 = 1 << (u32::BITS - PIECE_SHIFT);

    #[inline(always)]
    fn name(number: u32) -> Frame {
        Frame::new(number << PIECE_SHIFT)
    }
    #[inline(always)]
    fn number(frame: Frame) -> u32 {
        frame.index() >> PIECE_SHIFT
    }
    #[inline(always)]
    fn start(frame: Frame) -> usize {
        (frame.index() as usize) << (FRAME_SHIFT - PIECE_SHIFT)
    }
    #[inline(always)]
    fn address(start: usize, frame: Frame, offset: u32) -> usize {
        let (name, offset) = (frame.index() as usize, offset as usize);
        let piece = start & !Self::PIECES | offset << GROUP_SHIFT & Self::PIECES;
        let rest = name & !Self::BYTES | offset & Self::BYTES;
        piece | rest & Self::BYTES_AND_WHOSE
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
    fn check<L: Placement>() {
        let (first, frames) = (7 * L::ALIGN as u32 / FRAME_SIZE, 2 * L::ALIGN as u32 / FRAME_SIZE);
        let base = first as usize * FRAME_SIZE as usize;
        let mut taken = vec![false; 2 * L::ALIGN];
        for number in first..first + frames {
            let frame = L::name(number);
            assert_eq!(L::number(frame), number);
            assert!(L::name(number - 1).index() < frame.index());
            assert_eq!(L::start(frame), number as usize * FRAME_SIZE as usize);
            for offset in 0..FRAME_SIZE {
                let at = L::place(number, offset);
                assert_eq!(at, L::place(number, 0) + L::distance(offset));
                assert_eq!(at, L::place(number, offset + FRAME_SIZE));
                assert_eq!(at % L::PIECE as usize, (offset % L::PIECE) as usize);
                assert!(!core::mem::replace(&mut taken[at - base], true));
            }
        }
        assert_eq!(L::name(0), Frame::ZERO);
        assert_eq!(L::number(L::name(L::FRAMES - 1)), L::FRAMES - 1);
    }

    #[test]
    fn frames_share_no_byte() {
        check::<Contiguous>();
        check::<Interleaved>();
    }

    #[test]
    fn the_same_bytes_of_a_group_lie_side_by_side() {
        for offset in [0, Interleaved::PIECE, FRAME_SIZE - Interleaved::PIECE] {
            let places = (64..96).map(|number| Interleaved::place(number, offset));
            let first = Interleaved::place(64, offset);
            let expected = (0..32).map(|lane| first + lane * Interleaved::PIECE as usize);
            assert!(places.eq(expected));
        }
    }
}

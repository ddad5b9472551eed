//! Where the bytes of an arena's frames lie.

use emu_core::mem::{FRAME_SHIFT, FRAME_SIZE, Frame};

/// Where the bytes of an arena's frames lie. Its base is aligned to [`Placement::ALIGN`], and frame
/// after frame has 4 KiB from there on, but perhaps not all of its own bytes in them.
///
/// Tables hold the numbers of frames. A [`Frame`] is one's name: what an address takes least to be
/// computed from. Names are in the order of the numbers, and 0 is [`Frame::ZERO`].
pub trait Placement: Copy {
    /// Bytes that frames are laid out in units of; a power of two.
    const ALIGN: usize;
    /// Bytes that lie side by side, from a multiple of it in the frame; a power of two.
    const PIECE: u32;
    /// Numbers of frames that have names.
    const FRAMES: u32;

    /// The name of frame `number`, which is below [`Placement::FRAMES`].
    fn name(number: u32) -> Frame;
    /// The number of a frame.
    fn number(frame: Frame) -> u32;
    /// The distance from the arena's base to the 4 KiB of a frame's number.
    fn start(frame: Frame) -> usize;
    /// The address of byte `offset`, modulo the frame size, of the frame whose 4 KiB are at `start`.
    fn address(start: usize, frame: Frame, offset: u32) -> usize;

    /// The distance from a frame's first byte to byte `offset`.
    fn distance(offset: u32) -> usize;

    /// The distance from the arena's base to byte `offset` of frame `number`.
    fn place(number: u32, offset: u32) -> usize {
        let frame = Self::name(number);
        Self::address(Self::start(frame), frame, offset)
    }
}

/// One frame after the other: for processors, which run one VM after the other.
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

/// Groups of 32 frames, piece by piece: the first piece of each, then the second, and so on.
///
/// VMs that share a warp take frames at the same time and touch the same bytes of them. So they find
/// these side by side, in few lines of the caches and few rows of the memory. Nothing depends on
/// which frames are a group.
///
/// A name is the number, moved to where its lower bits, the place in the group, are in an address.
#[derive(Clone, Copy, Debug)]
pub struct Interleaved;

/// A GPU's arena.
#[cfg(not(feature = "ablate-interleaving"))]
pub type OnGpu = Interleaved;
/// A GPU's arena, without interleaving.
#[cfg(feature = "ablate-interleaving")]
pub type OnGpu = Contiguous;

/// log2 of the frames in a group.
const GROUP_SHIFT: u32 = 5;
/// log2 of the bytes in a piece: what a GPU's caches fetch at least.
const PIECE_SHIFT: u32 = 5;

impl Interleaved {
    /// The bits of an address that tell the byte in a piece, these and whose piece it is, and which
    /// piece.
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

    /// Frames take all of their units, each byte once, and find it again.
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

//! Guest memory as 4 KiB frames, and checked access to it by guest-physical address.

use crate::insn::INSN_SIZE;

/// log2 of the frame size.
pub const FRAME_SHIFT: u32 = 12;
/// Bytes in a frame; the size of an Sv32 page.
pub const FRAME_SIZE: u32 = 1 << FRAME_SHIFT;
/// Instructions in a frame.
pub const FRAME_INSNS: u32 = FRAME_SIZE / INSN_SIZE;
const OFFSET_MASK: u32 = FRAME_SIZE - 1;

/// The name of a frame in its [`Memory`]. Frame 0 always exists and is all zero.
///
/// Only implementations of [`Memory`] make frames; everything else keeps and returns what it was
/// given. That is what lets an implementation trust the number on the hot path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(transparent)]
pub struct Frame(u32);

impl Frame {
    /// The frame that is all zero and never written.
    pub const ZERO: Self = Self(0);

    /// Names a frame. For implementations of [`Memory`] only.
    #[inline]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The name as a number, which means something to the [`Memory`] alone.
    #[inline]
    pub const fn index(self) -> u32 {
        self.0
    }
}

/// There is no free frame left for a private copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoFrame;

/// One VM's memory (or disk): a table from page number to frame.
///
/// A frame is *shared* (read-only, part of the base image, one copy for the fleet) or *private*
/// (made by [`Memory::make_private`] before the first write). Offsets are taken modulo the frame
/// size and aligned down to the access size.
pub trait Memory {
    /// Number of pages.
    fn pages(&self) -> u32;
    /// The frame behind page `page`, or `None` past the end.
    fn frame(&self, page: u32) -> Option<Frame>;
    /// Whether the frame may be written.
    fn is_private(&self, frame: Frame) -> bool;
    /// Gives page `page` a private frame, a copy of the one it has. Does nothing when it has one.
    fn make_private(&mut self, page: u32) -> Result<Frame, NoFrame>;

    /// Reads a byte.
    fn load8(&self, frame: Frame, offset: u32) -> u32;
    /// Reads an aligned half word.
    fn load16(&self, frame: Frame, offset: u32) -> u32;
    /// Reads an aligned word.
    fn load32(&self, frame: Frame, offset: u32) -> u32;
    /// Writes a byte. The frame must be private.
    fn store8(&mut self, frame: Frame, offset: u32, value: u32);
    /// Writes an aligned half word. The frame must be private.
    fn store16(&mut self, frame: Frame, offset: u32, value: u32);
    /// Writes an aligned word. The frame must be private.
    fn store32(&mut self, frame: Frame, offset: u32, value: u32);

    /// Calls `f` with each piece of `len` bytes from `offset` on: its position among these, and its
    /// bytes. All lie in the frame, and each piece side by side.
    fn read_pieces(&self, frame: Frame, offset: u32, len: u32, f: impl FnMut(u32, &[u8]));
    /// The same for writing. The frame must be private.
    fn write_pieces(&mut self, frame: Frame, offset: u32, len: u32, f: impl FnMut(u32, &mut [u8]));
}

/// Guest RAM: memory that instructions are fetched from.
///
/// Keeps pages of decoded instructions ([`crate::insn::Decoded`]), filled one by one as they are
/// executed. Shared frames never change; before a private frame with decoded instructions is
/// written, [`Ram::drop_code`] must be called, and that it is needed shows in
/// [`Ram::is_code`].
pub trait Ram: Memory {
    /// Whether the instruction loop reads both source registers and the next instruction before
    /// it knows what for.
    const READ_AHEAD: bool = false;

    /// The frame behind page `page` of the ROM, or `None` past its end. Always a shared one.
    fn rom(&self, _page: u32) -> Option<Frame> {
        None
    }

    /// The value, of which the compiler knows nothing. What a rare way of the loop computes from it
    /// is not computed ahead, where it would cost all others.
    #[inline(always)]
    fn aside(value: u64) -> u64 {
        value
    }

    /// Where the ways through an instruction join. Lanes of a warp that parted go on together.
    #[inline(always)]
    fn rejoin() {}

    /// Access to frames without going through `self`: see [`Window`].
    type Window: Window;
    /// The window of this RAM, good for as long as the RAM is.
    fn window(&self) -> Self::Window;

    /// A frame's decoded instructions.
    type Code: Copy;
    /// Those of all shared frames, as a value that the instruction loop can keep in registers.
    type SharedCode: Copy;
    /// The decoded instructions of shared frames, good for as long as the RAM is.
    fn shared_code(&self) -> Self::SharedCode;
    /// Those of `frame`, if it is a shared one that has some.
    fn code_in(shared: Self::SharedCode, frame: Frame) -> Option<Self::Code>;
    /// No frame's: never read.
    fn no_code(&self) -> Self::Code;
    /// The decoded instructions of `frame`, which is page `page`. Makes an empty page for it if
    /// there is none; a page got earlier is then no longer valid.
    ///
    /// Which pages are kept depends on `page` alone, so that equal VMs stay in step on a GPU.
    fn code(&mut self, page: u32, frame: Frame) -> Self::Code;
    /// Whether `frame`, which is page `page`, is private and has decoded instructions.
    fn is_code(&self, page: u32, frame: Frame) -> bool;
    /// Forgets the decoded instructions of a private frame, if it has any.
    fn drop_code(&mut self, frame: Frame);
    /// The decoded instruction number `index`; zero if it has not been decoded, or past the end.
    fn decoded(&self, code: Self::Code, index: u32) -> u64;
    /// Sets the decoded instruction number `index`.
    fn set_decoded(&mut self, code: Self::Code, index: u32, decoded: u64);
}

/// Loads and stores by frame, as a value that the instruction loop can keep in a register.
///
/// The methods are those of [`Memory`]: offsets modulo the frame size and aligned down, stores to
/// private frames only.
#[allow(missing_docs)]
pub trait Window: Copy {
    fn load8(self, frame: Frame, offset: u32) -> u32;
    fn load16(self, frame: Frame, offset: u32) -> u32;
    fn load32(self, frame: Frame, offset: u32) -> u32;
    fn store8(self, frame: Frame, offset: u32, value: u32);
    fn store16(self, frame: Frame, offset: u32, value: u32);
    fn store32(self, frame: Frame, offset: u32, value: u32);
}

/// Why an access by guest-physical address did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmaError {
    /// Some of the range is not RAM.
    OutOfRange,
    /// A private frame was needed and none is left. The access can be repeated later.
    NoFrame,
}

/// A VM's RAM as devices see it: guest-physical addresses, every range checked before use.
/// Nothing else is memory to a device, the ROM neither.
///
/// Remembers whether a shared frame was replaced by a private one, because cached translations
/// must then be dropped ([`Dma::replaced`]).
pub struct Dma<'a, M> {
    mem: &'a mut M,
    base: u32,
    replaced: bool,
    wrote: bool,
}

impl<'a, M: Memory> Dma<'a, M> {
    /// Views `mem` as RAM that starts at guest-physical address `base`.
    pub fn new(mem: &'a mut M, base: u32) -> Self {
        Self { mem, base, replaced: false, wrote: false }
    }

    /// Whether a write replaced a frame since this view was made.
    pub fn replaced(&self) -> bool {
        self.replaced
    }

    /// Whether anything was written since this view was made.
    pub fn wrote(&self) -> bool {
        self.wrote
    }

    /// Whether all of `len` bytes at `addr` are RAM.
    pub fn contains(&self, addr: u64, len: u32) -> bool {
        let base = u64::from(self.base);
        let size = u64::from(self.mem.pages()) << FRAME_SHIFT;
        addr >= base && addr - base <= size && u64::from(len) <= size - (addr - base)
    }

    fn page_of(&self, addr: u64, len: u32) -> Result<(u32, u32), DmaError> {
        if !self.contains(addr, len) {
            return Err(DmaError::OutOfRange);
        }
        let off = addr - u64::from(self.base);
        Ok(((off >> FRAME_SHIFT) as u32, off as u32 & OFFSET_MASK))
    }

    /// Calls `f` with each piece of the range in turn (its position in the range, its bytes). Pieces
    /// end where memory does not lie side by side, which is elsewhere on each backend: what a guest
    /// sees must not depend on it.
    pub fn read_with(
        &self,
        addr: u64,
        len: u32,
        mut f: impl FnMut(u32, &[u8]),
    ) -> Result<(), DmaError> {
        let (mut page, mut off) = self.page_of(addr, len)?;
        let mut done = 0;
        while done < len {
            let n = (FRAME_SIZE - off).min(len - done);
            let frame = self.mem.frame(page).ok_or(DmaError::OutOfRange)?;
            self.mem.read_pieces(frame, off, n, |at, piece| f(done + at, piece));
            done += n;
            off = 0;
            page += 1;
        }
        Ok(())
    }

    /// Calls `f` with each piece of the range in turn, to be filled.
    ///
    /// All frames are made private first, so that [`DmaError::NoFrame`] leaves memory unchanged
    /// and the call can be repeated.
    pub fn write_with(
        &mut self,
        addr: u64,
        len: u32,
        mut f: impl FnMut(u32, &mut [u8]),
    ) -> Result<(), DmaError> {
        let (first, start) = self.page_of(addr, len)?;
        if len == 0 {
            return Ok(());
        }
        self.wrote = true;
        let last = ((u64::from(start) + u64::from(len) - 1) >> FRAME_SHIFT) as u32 + first;
        for page in first..=last {
            self.private(page)?;
        }
        let (mut page, mut off, mut done) = (first, start, 0);
        while done < len {
            let n = (FRAME_SIZE - off).min(len - done);
            let frame = self.private(page)?;
            self.mem.write_pieces(frame, off, n, |at, piece| f(done + at, piece));
            done += n;
            off = 0;
            page += 1;
        }
        Ok(())
    }

    fn private(&mut self, page: u32) -> Result<Frame, DmaError> {
        let frame = self.mem.frame(page).ok_or(DmaError::OutOfRange)?;
        if self.mem.is_private(frame) {
            return Ok(frame);
        }
        self.replaced = true;
        self.mem.make_private(page).map_err(|NoFrame| DmaError::NoFrame)
    }

    /// Copies bytes out of RAM.
    pub fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), DmaError> {
        self.read_with(addr, dst.len() as u32, |at, piece| {
            if let Some(d) = dst.get_mut(at as usize..at as usize + piece.len()) {
                copy(d, piece);
            }
        })
    }

    /// Copies bytes into RAM.
    pub fn write(&mut self, addr: u64, src: &[u8]) -> Result<(), DmaError> {
        self.write_with(addr, src.len() as u32, |at, piece| {
            if let Some(s) = src.get(at as usize..at as usize + piece.len()) {
                copy(piece, s);
            }
        })
    }

    /// Reads a little-endian half word.
    pub fn read_u16(&self, addr: u64) -> Result<u16, DmaError> {
        let mut b = [0; 2];
        self.read(addr, &mut b)?;
        Ok(u16::from_le_bytes(b))
    }

    /// Reads a little-endian word.
    pub fn read_u32(&self, addr: u64) -> Result<u32, DmaError> {
        let mut b = [0; 4];
        self.read(addr, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    /// Writes a little-endian half word.
    pub fn write_u16(&mut self, addr: u64, value: u16) -> Result<(), DmaError> {
        self.write(addr, &value.to_le_bytes())
    }

    /// Writes a little-endian word.
    pub fn write_u32(&mut self, addr: u64, value: u32) -> Result<(), DmaError> {
        self.write(addr, &value.to_le_bytes())
    }
}

/// The position and the length of each piece of `len` bytes from `offset` on, as far as they are in a
/// frame of which bytes lie side by side between multiples of `size`. For implementations of
/// [`Memory`].
// Inlined, as a GPU divides by a constant only at no cost.
#[inline(always)]
pub fn pieces(size: u32, offset: u32, len: u32) -> impl Iterator<Item = (u32, usize)> {
    let end = offset.saturating_add(len).min(FRAME_SIZE);
    let mut at = offset;
    core::iter::from_fn(move || {
        let piece = (size - at % size).min(end.saturating_sub(at));
        at += piece;
        (piece != 0).then_some((at - piece - offset, piece as usize))
    })
}

/// Copies as many bytes as both have: without the panic of `copy_from_slice`, which a GPU build
/// would carry along although the lengths are equal.
fn copy(dst: &mut [u8], src: &[u8]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = *s;
    }
}

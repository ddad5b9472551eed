//! Guest memory as 4 KiB frames, and checked access to it by guest-physical address.

use crate::insn::INSN_SIZE;

/// log2 of the frame size.
pub const FRAME_SHIFT: u32 = 12;
/// Bytes in a frame; the size of an Sv32 page.
pub const FRAME_SIZE: u32 = 1 << FRAME_SHIFT;
/// Instructions in a frame.
pub const FRAME_INSNS: u32 = FRAME_SIZE / INSN_SIZE;
const OFFSET_MASK: u32 = FRAME_SIZE - 1;

/// A handle to a 4 KiB frame of its [`Memory`]. Frame 0 always exists and is all zero.
///
/// Only implementations of [`Memory`] make handles; all other code passes on the ones it got. An
/// implementation can therefore trust a handle on the hot path without checking it.
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

    /// Makes the handle of a frame. Only implementations of [`Memory`] may call it.
    #[inline]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// Returns the handle as a number, whose meaning only the [`Memory`] knows.
    #[inline]
    pub const fn raw(self) -> u32 {
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
    /// Returns the frame that page `page` maps to, or `None` past the last page.
    fn frame(&self, page: u32) -> Option<Frame>;
    /// Returns whether the frame is private, so that it may be written.
    fn is_private(&self, frame: Frame) -> bool;
    /// Replaces the frame of page `page` by a private copy. Does nothing if it is private already.
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

    /// Calls `f` with each chunk of `offset..offset + len` that is contiguous in memory: the
    /// chunk's position in that range, and its bytes. The range must lie in the frame.
    fn read_chunks(&self, frame: Frame, offset: u32, len: u32, f: impl FnMut(u32, &[u8]));
    /// Calls `f` like [`Memory::read_chunks`], with chunks to fill. The frame must be private.
    fn write_chunks(&mut self, frame: Frame, offset: u32, len: u32, f: impl FnMut(u32, &mut [u8]));
}

/// Guest RAM: memory that instructions are fetched from.
///
/// It caches decoded instructions ([`crate::insn::Decoded`]) in one page for each frame, filled as
/// instructions are first executed. Shared frames never change, so their decoded instructions stay
/// valid. Before a private frame is written for which [`Ram::is_code`] is true, [`Ram::drop_code`]
/// or [`Ram::drop_code_at`] must be called.
pub trait Ram: Memory {
    /// Returns the frame of page `page` of the ROM, or `None` past its end. It is always shared.
    fn rom(&self, _page: u32) -> Option<Frame> {
        None
    }

    /// Raw access to frames, without going through `self`: see [`RawFrames`].
    type RawFrames: RawFrames;
    /// Returns raw access to this RAM's frames, valid for as long as the RAM is.
    fn raw_frames(&self) -> Self::RawFrames;

    /// A handle to one frame's decoded instructions.
    type Code: Copy;
    /// A handle to the decoded instructions of all shared frames, small enough for the instruction
    /// loop to keep it in registers.
    type SharedCode: Copy;
    /// Returns the decoded instructions of all shared frames, valid for as long as the RAM is.
    fn shared_code(&self) -> Self::SharedCode;
    /// Returns the decoded instructions of `frame`, or `None` if it is not a shared frame that has
    /// some.
    fn code_in(shared: Self::SharedCode, frame: Frame) -> Option<Self::Code>;
    /// Returns a placeholder that belongs to no frame and is never read.
    fn no_code(&self) -> Self::Code;
    /// Returns the decoded instructions of `frame`, to which page `page` maps. If it has none, they
    /// start empty, and may evict those of another page: handles returned earlier are then invalid.
    ///
    /// Which page is evicted depends on `page` alone, so that equal VMs stay in step on a GPU.
    fn code(&mut self, page: u32, frame: Frame) -> Self::Code;
    /// Returns the frame that a handle's decoded instructions belong to.
    fn frame_of(&self, code: Self::Code) -> Frame;
    /// Returns whether `frame`, to which page `page` maps, is private and has decoded instructions.
    fn is_code(&self, page: u32, frame: Frame) -> bool;
    /// Drops the decoded instructions of a private frame, if it has any.
    fn drop_code(&mut self, frame: Frame);
    /// Drops what a store of at most a word at `offset` of a private frame changes. Returns whether
    /// the frame has no decoded instructions any more. Otherwise it holds code and data, and would
    /// be decoded again and again: it keeps the others, and each store must call this.
    fn drop_code_at(&mut self, frame: Frame, offset: u32) -> bool;
    /// Returns the decoded instruction at `index`; zero if it is not decoded yet or past the end.
    fn decoded(&self, code: Self::Code, index: u32) -> u64;
    /// Returns the decoded instruction at `index`, which is below [`FRAME_INSNS`], if the condition
    /// is true; otherwise zero.
    #[inline(always)]
    fn decoded_if(&self, condition: bool, code: Self::Code, index: u32) -> u64 {
        if condition { self.decoded(code, index) } else { 0 }
    }
    /// Stores the decoded instruction at `index`.
    fn set_decoded(&mut self, code: Self::Code, index: u32, decoded: u64);
}

/// Raw loads and stores by frame, as a value that the instruction loop can keep in a register.
///
/// The methods behave as those of [`Memory`]: offsets are taken modulo the frame size and aligned
/// down, and stores must be to private frames.
#[allow(missing_docs)]
pub trait RawFrames: Copy {
    fn load8(self, frame: Frame, offset: u32) -> u32;
    fn load16(self, frame: Frame, offset: u32) -> u32;
    fn load32(self, frame: Frame, offset: u32) -> u32;
    fn store8(self, frame: Frame, offset: u32, value: u32);
    fn store16(self, frame: Frame, offset: u32, value: u32);
    fn store32(self, frame: Frame, offset: u32, value: u32);

    /// Reads an aligned word if the condition is true. Otherwise returns any value.
    #[inline(always)]
    fn load32_if(self, condition: bool, frame: Frame, offset: u32) -> u32 {
        if condition { self.load32(frame, offset) } else { 0 }
    }

    /// Writes a byte, half word or word if the condition is true: `1 << size_shift` bytes.
    #[inline(always)]
    fn store_if(self, condition: bool, size_shift: u32, frame: Frame, offset: u32, value: u32) {
        match size_shift {
            _ if !condition => {}
            0 => self.store8(frame, offset, value),
            1 => self.store16(frame, offset, value),
            _ => self.store32(frame, offset, value),
        }
    }
}

/// Why an access by guest-physical address did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmaError {
    /// Some of the range is not RAM.
    OutOfRange,
    /// A private frame was needed and none is left. The access can be repeated later.
    NoFrame,
}

/// A VM's RAM as devices access it: by guest-physical address, with every range checked before use.
/// Devices reach nothing but RAM, in particular not the ROM.
///
/// It records whether a write replaced a shared frame by a private one, because cached translations
/// must then be dropped ([`Dma::replaced`]).
pub struct Dma<'a, M> {
    mem: &'a mut M,
    base: u32,
    replaced: bool,
    wrote: bool,
}

impl<'a, M: Memory> Dma<'a, M> {
    /// Gives devices access to `mem`, whose first byte is at guest-physical address `base`.
    pub fn new(mem: &'a mut M, base: u32) -> Self {
        Self { mem, base, replaced: false, wrote: false }
    }

    /// Returns whether a write through this value has replaced a frame.
    pub fn replaced(&self) -> bool {
        self.replaced
    }

    /// Returns whether anything was written through this value.
    pub fn wrote(&self) -> bool {
        self.wrote
    }

    /// Returns whether all `len` bytes at `addr` are RAM.
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

    /// Calls `f` with each contiguous chunk of the range in turn: its position in the range, and
    /// its bytes. Where chunks end depends on the backend's frame layout, so nothing that a guest
    /// sees may depend on it.
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
            self.mem.read_chunks(frame, off, n, |at, chunk| f(done + at, chunk));
            done += n;
            off = 0;
            page += 1;
        }
        Ok(())
    }

    /// Calls `f` with each contiguous chunk of the range in turn, for `f` to fill.
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
            self.mem.write_chunks(frame, off, n, |at, chunk| f(done + at, chunk));
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
        self.read_with(addr, dst.len() as u32, |at, chunk| {
            if let Some(d) = dst.get_mut(at as usize..at as usize + chunk.len()) {
                copy(d, chunk);
            }
        })
    }

    /// Copies bytes into RAM.
    pub fn write(&mut self, addr: u64, src: &[u8]) -> Result<(), DmaError> {
        self.write_with(addr, src.len() as u32, |at, chunk| {
            if let Some(s) = src.get(at as usize..at as usize + chunk.len()) {
                copy(chunk, s);
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

/// Splits `offset..offset + len` of a frame, up to the frame's end, into chunks that are contiguous
/// in memory, which they are between multiples of `size`. Yields each chunk's position in the range
/// and its length.
// Inlined, because a division is cheap on a GPU only when the divisor is a constant.
#[inline(always)]
pub fn chunks(size: u32, offset: u32, len: u32) -> impl Iterator<Item = (u32, usize)> {
    let end = offset.saturating_add(len).min(FRAME_SIZE);
    let mut at = offset;
    core::iter::from_fn(move || {
        let chunk = (size - at % size).min(end.saturating_sub(at));
        at += chunk;
        (chunk != 0).then_some((at - chunk - offset, chunk as usize))
    })
}

/// Copies as many bytes as both slices have. Unlike `copy_from_slice` it cannot panic; a GPU build
/// would keep the code of that panic although the lengths are always equal.
fn copy(dst: &mut [u8], src: &[u8]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = *s;
    }
}

//! The disk behind virtio-blk, as the device sees it: pages of bytes, some of which may have to be
//! loaded first.

use crate::mem::FRAME_SIZE;

/// Bytes in a page of a disk.
pub const PAGE_SIZE: u32 = FRAME_SIZE;

/// Why an access to a disk did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskError {
    /// The disk image cannot be read or written there.
    Failed,
    /// A private frame was needed and none is left. The access can be repeated later.
    NoFrame,
    /// The host must load this page of the disk image first. The access can be repeated then.
    NotLoaded(u32),
}

/// One VM's disk. What it writes is its own, or goes to the disk image; which of them is the host's
/// decision.
///
/// Ranges of bytes lie in one page. A page that lies partly or wholly behind the end of the disk
/// image reads as zeros there; the device checks that no request reaches so far.
pub trait Disk {
    /// Copies the bytes of a page from `offset` on to `to`.
    fn read(&mut self, page: u32, offset: u32, to: &mut [u8]) -> Result<(), DiskError>;

    /// Copies `from` to the bytes of a page from `offset` on. `whole` says that this call and those
    /// that follow write all of the page, so that what it holds need not be loaded for them.
    fn write(&mut self, page: u32, offset: u32, from: &[u8], whole: bool) -> Result<(), DiskError>;

    /// Fills a page with zeros.
    fn zero(&mut self, page: u32) -> Result<(), DiskError>;

    /// Frees a page, which may read as zeros from then on or as before. Returns the next page that
    /// may hold something to be freed.
    fn discard(&mut self, page: u32) -> u32;

    /// Makes what was written durable, where it is meant to outlive the VM.
    fn flush(&mut self) -> Result<(), DiskError>;
}

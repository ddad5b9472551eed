//! A VM's disk on the CPU: its image is read when the guest reads it, by the worker that runs the
//! VM. The host's kernel keeps what was read, for all VMs, so there is no cache here.

use emu_core::disk::{Disk, DiskError, PAGE_SIZE};
use emu_device::memory::{FrameDisk, FrameSource, Image};

use crate::backend::images::Images;

/// A disk image.
pub struct FileImage<'a> {
    /// The images of the fleet.
    pub images: &'a Images,
    /// Which of them it is.
    pub image: u32,
}

/// Returns where a page begins, or a byte of it.
fn at(page: u32, offset: u32) -> u64 {
    u64::from(page) * u64::from(PAGE_SIZE) + u64::from(offset)
}

impl Image for FileImage<'_> {
    fn read(&mut self, page: u32, offset: u32, to: &mut [u8]) -> Result<(), DiskError> {
        self.images.read(self.image, at(page, offset), to)
    }
}

/// A VM's disk.
pub enum GuestDisk<'a, S> {
    /// What the VM writes is its own.
    Own(FrameDisk<'a, S, FileImage<'a>>),
    /// What the VM writes goes to the image at once: to the host's kernel, which keeps it whatever
    /// becomes of the VM and of pxvm. A flush makes it durable.
    WriteBack(FileImage<'a>),
}

impl<S: FrameSource> Disk for GuestDisk<'_, S> {
    fn read(&mut self, page: u32, offset: u32, to: &mut [u8]) -> Result<(), DiskError> {
        match self {
            Self::Own(disk) => disk.read(page, offset, to),
            Self::WriteBack(image) => image.read(page, offset, to),
        }
    }

    fn write(&mut self, page: u32, offset: u32, from: &[u8], whole: bool) -> Result<(), DiskError> {
        match self {
            Self::Own(disk) => disk.write(page, offset, from, whole),
            Self::WriteBack(FileImage { images, image }) => {
                images.write(*image, at(page, offset), from)
            }
        }
    }

    fn zero(&mut self, page: u32) -> Result<(), DiskError> {
        match self {
            Self::Own(disk) => disk.zero(page),
            Self::WriteBack(_) => self.write(page, 0, &[0; PAGE_SIZE as usize], true),
        }
    }

    fn discard(&mut self, page: u32) -> u32 {
        match self {
            Self::Own(disk) => disk.discard(page),
            // An image may keep what is discarded.
            Self::WriteBack(_) => u32::MAX,
        }
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        match self {
            Self::Own(disk) => disk.flush(),
            Self::WriteBack(FileImage { images, image }) => images.sync(*image),
        }
    }
}

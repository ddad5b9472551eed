//! Disks: where their bytes come from, and whether what guests write goes back there.
//!
//! A disk image is not trusted. Nothing in it leads to another file, and it may become shorter
//! while guests use it, so it is read, never mapped.

mod raw;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{ImageError, LIMIT, Problem, Role};

/// Unit of a disk's size and of its requests, in bytes.
pub const SECTOR: u64 = 512;
/// Disk image formats that must be converted first, by their first bytes.
const FORMATS: [(&[u8], &str); 3] =
    [(b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx")];

/// A disk image: bytes at offsets.
///
/// Several threads may read and write at once; what a read returns of a range that is being
/// written is old or new, byte by byte.
pub trait Source: Send + Sync + fmt::Debug {
    /// Returns the size, a multiple of [`SECTOR`]. It does not change.
    fn size(&self) -> u64;

    /// Fills `bytes` with the contents from `at` on; all of them are before the end.
    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Returns the first offset from `at` on that may hold something other than zeros, or the
    /// size. A reader may skip what is before it.
    fn next_data(&self, at: u64) -> u64 {
        at
    }

    /// Writes `bytes` at `at`; all of them are before the end. An error unless the disk was opened
    /// with [`Access::WriteBack`].
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when all that was written is on stable storage.
    fn sync(&self) -> io::Result<()>;
}

/// What becomes of what guests write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Access {
    /// It stays with the VM that wrote it, and is lost at its end.
    #[default]
    CopyOnWrite,
    /// Guests cannot write.
    ReadOnly,
    /// It goes back to the image, which is one VM's own.
    WriteBack,
}

/// The disks of a fleet: one source for all VMs, or several.
#[derive(Clone, Debug)]
pub struct Disks {
    sources: Vec<Arc<dyn Source>>,
    /// Index of each VM's source; empty when all VMs have the first.
    of: Vec<u32>,
    access: Access,
}

impl Disks {
    /// Returns a disk that all VMs read.
    pub fn one(source: Arc<dyn Source>, access: Access) -> Self {
        Self { sources: vec![source], of: Vec::new(), access }
    }

    /// Opens a disk image that all VMs read.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let source = raw::open(path).map_err(|problem| problem.of(Role::Disk, path))?;
        Ok(Self::one(source, Access::CopyOnWrite))
    }

    /// Returns the sources; at least one.
    pub fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    /// Returns the index of a VM's source in [`Disks::sources`].
    pub fn of(&self, vm: u32) -> usize {
        self.of.get(vm as usize).map_or(0, |&index| index as usize)
    }

    /// Returns the size of a VM's disk in bytes.
    pub fn size(&self, vm: u32) -> u64 {
        self.sources.get(self.of(vm)).map_or(0, |source| source.size())
    }

    /// Returns the contents of the first source, which must be small enough for memory.
    pub fn contents(&self, path: &Path) -> Result<Vec<u8>, ImageError> {
        let read = |source: &Arc<dyn Source>| {
            if source.size() > LIMIT.0 {
                return Err(Problem::TooLarge);
            }
            let mut bytes = vec![0; source.size() as usize];
            source.read_at(0, &mut bytes).map_err(Problem::Read)?;
            Ok(bytes)
        };
        let contents = self.sources.first().map(read).transpose();
        contents.map(Option::unwrap_or_default).map_err(|problem| problem.of(Role::Disk, path))
    }

    /// Returns what becomes of what guests write.
    pub fn access(&self) -> Access {
        self.access
    }
}

/// Refuses a disk image in a format that is not supported, by the `start` of its file.
fn refuse_format(start: &[u8]) -> Result<(), Problem> {
    match FORMATS.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, name)) => Err(Problem::Format(format!(
            "a {name} image; make it a raw one with `qemu-img convert -O raw`"
        ))),
        None => Ok(()),
    }
}

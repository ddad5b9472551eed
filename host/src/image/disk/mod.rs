//! Disks: where their bytes come from, and whether what guests write goes back there.
//!
//! A disk image is not trusted. Nothing in it leads to another file, and it may become shorter
//! while guests use it, so it is read, never mapped.

mod file;
mod format;
mod lock;
mod qcow2;
mod raw;
mod spec;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use emu_core::dev::virtio::blk::Blk;

use self::file::Identity;
use self::format::Format;
use self::qcow2::Qcow2;
use self::raw::Raw;
pub use self::spec::{Access, DiskSpec};
use super::{ImageError, Problem, Role};
use crate::host;

/// Unit of a disk's size and of its requests, in bytes.
pub const SECTOR: u64 = 512;
/// Size of the largest disk.
const SIZE_MAX: u64 = Blk::CAPACITY_MAX * SECTOR;

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

/// The disks of a fleet: one source for all VMs, or several.
#[derive(Clone, Debug)]
pub struct Disks {
    sources: Vec<Arc<dyn Source>>,
    /// Path of each source.
    paths: Vec<PathBuf>,
    /// Index of each VM's source; empty when all VMs have the first.
    of: Vec<u32>,
    access: Access,
}

impl Disks {
    /// Returns a disk that all VMs have, and that has no path.
    pub fn one(source: Arc<dyn Source>, access: Access) -> Self {
        Self { sources: vec![source], paths: vec![PathBuf::new()], of: Vec::new(), access }
    }

    /// Opens the disks of `count` VMs. VMs share an image that they only read, by whatever names.
    pub fn open(spec: &DiskSpec, count: u32) -> Result<Self, ImageError> {
        if !spec.is_pattern() {
            let path = spec.path(0);
            if spec.access == Access::WriteBack && count > 1 {
                return Err(shared_by(count).of(Role::Disk, &path));
            }
            let source = open(&path, spec).map_err(|problem| problem.of(Role::Disk, &path))?;
            return Ok(Self { paths: vec![path], ..Self::one(source, spec.access) });
        }
        host::raise_open_files();
        let (sources, paths, of) = (Vec::new(), Vec::new(), Vec::new());
        let mut disks = Self { sources, paths, of, access: spec.access };
        let mut first_vms = HashMap::new();
        for vm in 0..count {
            let path = spec.path(vm);
            disks.add(vm, &path, spec, &mut first_vms).map_err(|p| p.of(Role::Disk, &path))?;
        }
        Ok(disks)
    }

    /// Adds the disk of a VM, the next one. `first_vms` has the first VM of each image.
    fn add(
        &mut self,
        vm: u32,
        path: &Path,
        spec: &DiskSpec,
        first_vms: &mut HashMap<Identity, u32>,
    ) -> Result<(), Problem> {
        let index = match first_vms.entry(file::identify(path)?) {
            Entry::Occupied(first) if spec.access == Access::WriteBack => {
                return Err(Problem::InUse(format!(
                    "the same file is the disk of vm{}; a machine that writes back needs its own",
                    first.get()
                )));
            }
            Entry::Occupied(first) => self.of(*first.get()) as u32,
            Entry::Vacant(entry) => {
                self.sources.push(open(path, spec)?);
                self.paths.push(path.into());
                entry.insert(vm);
                self.sources.len() as u32 - 1
            }
        };
        self.of.push(index);
        Ok(())
    }

    /// Returns the sources; at least one.
    pub fn sources(&self) -> &[Arc<dyn Source>] {
        &self.sources
    }

    /// Returns the path of each source.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Returns the index of a VM's source in [`Disks::sources`].
    pub fn of(&self, vm: u32) -> usize {
        self.of.get(vm as usize).map_or(0, |&index| index as usize)
    }

    /// Returns the size of a VM's disk in bytes.
    pub fn size(&self, vm: u32) -> u64 {
        self.sources.get(self.of(vm)).map_or(0, |source| source.size())
    }

    /// Returns what becomes of what guests write.
    pub fn access(&self) -> Access {
        self.access
    }
}

fn shared_by(count: u32) -> Problem {
    Problem::Format(format!(
        "{count} machines cannot write back to one file; give each one of its own, by a pattern \
         with %d for its number, such as disk-%d.img:rw"
    ))
}

/// Opens one image.
fn open(path: &Path, spec: &DiskSpec) -> Result<Arc<dyn Source>, Problem> {
    let written = spec.access == Access::WriteBack;
    let (file, len) = file::open(path, written)?;
    let format = if spec.raw {
        Format::Raw
    } else {
        format::detect(&file::start(&file, format::START).map_err(Problem::Read)?)?
    };
    let source: Arc<dyn Source> = match format {
        Format::Raw => Arc::new(Raw::new(file, len)),
        Format::Qcow2 => Arc::new(Qcow2::open(file, len, written)?),
    };
    if source.size() > SIZE_MAX {
        return Err(Problem::Format("larger than 16 TiB, the limit for a disk".to_owned()));
    }
    Ok(source)
}

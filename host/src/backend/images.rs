//! Disk images as backends read and write them for guests.
//!
//! An error of an image is one of the guest's request, and the first of each image is a warning.

use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, io};

use emu_core::disk::{DiskError, PAGE_SIZE};

use crate::image::disk::{Access, Disks, Source};

/// The disk images of a fleet.
#[derive(Default)]
pub struct Images {
    disks: Option<Disks>,
    /// Whether an error was reported, for each image.
    warned: Vec<AtomicBool>,
}

impl Images {
    /// Returns the images of a fleet's disks, if it has any.
    pub fn new(disks: Option<&Disks>) -> Self {
        let count = disks.map_or(0, |disks| disks.sources().len());
        let warned = (0..count).map(|_| AtomicBool::new(false)).collect();
        Self { disks: disks.cloned(), warned }
    }

    /// Whether what guests write goes to the images.
    pub fn write_back(&self) -> bool {
        self.disks.as_ref().is_some_and(|disks| disks.access() == Access::WriteBack)
    }

    /// Returns the size of each image in pages, the last of which may not be whole.
    pub fn pages(&self) -> impl Iterator<Item = u64> {
        let sources = self.disks.as_ref().map_or(&[][..], Disks::sources);
        sources.iter().map(|source| source.size().div_ceil(PAGE_SIZE.into()))
    }

    /// Fills `to` with the contents of an image from `at` on, and with zeros behind its end.
    pub fn read(&self, image: u32, at: u64, to: &mut [u8]) -> Result<(), DiskError> {
        let source = self.source(image)?;
        let inside = source.size().saturating_sub(at).min(to.len() as u64) as usize;
        let (contents, behind) = to.split_at_mut(inside);
        behind.fill(0);
        if contents.is_empty() {
            return Ok(());
        }
        self.checked(image, "read", source.read_at(at, contents))
    }

    /// Writes to an image that guests write back to; not behind its end, where a last page that is
    /// not whole reads as zeros.
    pub fn write(&self, image: u32, at: u64, from: &[u8]) -> Result<(), DiskError> {
        let source = self.source(image)?;
        let inside = source.size().saturating_sub(at).min(from.len() as u64) as usize;
        self.checked(image, "written", source.write_at(at, &from[..inside]))
    }

    /// Makes what was written to an image durable.
    pub fn sync(&self, image: u32) -> Result<(), DiskError> {
        self.checked(image, "flushed", self.source(image)?.sync())
    }

    /// Makes what a VM wrote to its image durable at its end, whatever that is.
    pub fn end(&self, image: u32) {
        if self.write_back() {
            // An error is reported, and there is no guest any more to be told.
            let _ = self.sync(image);
        }
    }

    fn source(&self, image: u32) -> Result<&dyn Source, DiskError> {
        let sources = self.disks.as_ref().map_or(&[][..], Disks::sources);
        sources.get(image as usize).map(AsRef::as_ref).ok_or(DiskError::Failed)
    }

    /// Reports the first error of an image.
    fn checked(&self, image: u32, done: &str, result: io::Result<()>) -> Result<(), DiskError> {
        result.map_err(|error| {
            if !self.warned[image as usize].swap(true, Ordering::Relaxed) {
                let paths = self.disks.as_ref().map_or(&[][..], Disks::paths);
                let path = paths.get(image as usize).map(|path| path.display().to_string());
                let path = path.unwrap_or_default();
                tracing::warn!("disk {path} cannot be {done}, and guests get errors: {error}");
            }
            DiskError::Failed
        })
    }
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.disks.fmt(f)
    }
}

/// Disk images for tests.
#[cfg(test)]
pub mod testing {
    use std::sync::atomic::{AtomicU32, AtomicU64};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// An image of any size, whose bytes follow from their place until they are written. It can
    /// become shorter, and it counts.
    #[derive(Debug)]
    pub struct Pattern {
        size: u64,
        /// Where reads begin to fail.
        pub end: AtomicU64,
        /// Number of reads.
        pub reads: AtomicU32,
        /// Number of times that it was synced.
        pub syncs: AtomicU32,
        /// What was written, in order.
        pub written: Mutex<Vec<(u64, Vec<u8>)>>,
        /// Whether it can be written.
        pub writable: AtomicBool,
    }

    impl Pattern {
        /// Returns an image of `size` bytes.
        pub fn new(size: u64) -> Arc<Self> {
            Arc::new(Self {
                size,
                end: AtomicU64::new(size),
                reads: AtomicU32::new(0),
                syncs: AtomicU32::new(0),
                written: Mutex::default(),
                writable: AtomicBool::new(true),
            })
        }

        /// Returns the word at `at`, a multiple of four, as long as nobody has written it.
        pub fn word(at: u64) -> u32 {
            (at >> 2) as u32 ^ (at >> 34) as u32 ^ 0xa5a5_0000
        }
    }

    impl Source for Pattern {
        fn size(&self) -> u64 {
            self.size
        }

        fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            assert!(at + bytes.len() as u64 <= self.size, "a read behind the end");
            if at + bytes.len() as u64 > self.end.load(Ordering::Relaxed) {
                return Err(io::Error::other("the test has cut it"));
            }
            for (at, byte) in (at..).zip(&mut *bytes) {
                *byte = Self::word(at & !3).to_le_bytes()[(at & 3) as usize];
            }
            for (start, written) in &*self.written.lock().expect("no panic") {
                for (to, from) in (*start..).zip(written) {
                    if let Some(byte) = to.checked_sub(at).and_then(|i| bytes.get_mut(i as usize)) {
                        *byte = *from;
                    }
                }
            }
            Ok(())
        }

        fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
            assert!(at + bytes.len() as u64 <= self.size, "a write behind the end");
            if !self.writable.load(Ordering::Relaxed) {
                return Err(io::Error::other("the test wants no writes"));
            }
            self.written.lock().expect("no panic").push((at, bytes.to_vec()));
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            self.syncs.fetch_add(1, Ordering::Relaxed);
            if self.writable.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err(io::Error::other("the test wants no writes"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::testing::Pattern;
    use super::*;

    #[test]
    fn nothing_is_written_behind_the_end() {
        let image = Pattern::new(5120);
        let source = Arc::clone(&image) as Arc<dyn Source>;
        let images = Images::new(Some(&Disks::one(source, Access::WriteBack)));
        images.write(0, 4096, &[1; 4096]).unwrap();
        assert_eq!(*image.written.lock().unwrap(), [(4096, vec![1; 1024])]);
    }
}

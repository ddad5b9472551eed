//! Disk images in QEMU's format qcow2, which the crate `imago` reads and writes.
//!
//! Such an image can name other files: what it does not have itself is in a backing file, or all
//! data is in a data file. A guest could write such a name. So no other file is opened, and images
//! that need one are refused.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use imago::file::File as Storage;
use imago::qcow2::Qcow2 as Driver;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};

use super::{SECTOR, Source, file};
use crate::image::Problem;

/// Largest cluster, the first of which has the header with all its extensions.
const CLUSTER_MAX: u64 = 2 << 20;
/// Number of mappings after which a search for data gives up: an image can have far more.
const MAPPINGS_MAX: usize = 1024;

/// Incompatible features (bits of the header), with what makes the image one that can be used.
const FEATURES: [(u32, &str, &str); 4] = [
    (0, "was not closed properly", "`qemu-img check -r all` repairs it"),
    (1, "is damaged", "`qemu-img check -r all` repairs it"),
    (3, "has other compression than zlib", CONVERT),
    (4, "has extended L2 entries", CONVERT),
];
const DATA_FILE: u32 = 2;
const CONVERT: &str = "`qemu-img convert -O qcow2` makes it one without";

/// An image in the format qcow2. Zeros pad the disk in it to whole sectors.
pub struct Qcow2 {
    disk: FormatAccess<Storage>,
    /// The file, and its length when it was opened.
    file: File,
    len: u64,
}

impl fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Qcow2 {
    /// Opens the image in a file of `len` bytes.
    pub fn open(file: File, len: u64, written: bool) -> Result<Self, Problem> {
        check_header(&file::start(&file, CLUSTER_MAX).map_err(Problem::Read)?)?;
        if written {
            check_refcounts(&file)?;
        }
        let storage = file.try_clone().and_then(Storage::try_from).map_err(Problem::Read)?;
        let opened = Driver::<Storage>::builder(storage)
            .write(written)
            .backing(None)
            .data_file(None)
            .open(DenyImplicitOpenGate::default());
        let disk = opened.map_err(|e| Problem::Format(format!("not a valid qcow2 image: {e}")))?;
        let disk = FormatAccess::new(disk);
        match disk.size() {
            0 => Err(Problem::Empty),
            1..=MAX => Ok(Self { disk, file, len }),
            size => Err(Problem::Format(format!("a disk of {size} bytes is too large"))),
        }
    }
}

/// Largest disk: what offsets of files can count.
const MAX: u64 = i64::MAX as u64 - SECTOR;

/// Refuses images with encryption, parts in other files, and features that `imago` lacks.
fn check_header(start: &[u8]) -> Result<(), Problem> {
    let half = |at: usize| start.get(at..).and_then(|rest| rest.first_chunk()).copied();
    let word = |at| half(at).map(u32::from_be_bytes);
    let long = |at| Some(u64::from(word(at)?) << 32 | u64::from(word(at + 4)?));
    let truncated = || Problem::Truncated("a qcow2 image needs a header of 72 bytes".into());

    if long(8).ok_or_else(truncated)? != 0 {
        return Err(Problem::Format(
            "this qcow2 image has only what differs from a backing file, and no other file is \
             opened for an image; `qemu-img convert -O qcow2` makes one file of both"
                .into(),
        ));
    }
    if word(32).ok_or_else(truncated)? != 0 {
        return Err(Problem::Format(
            "an encrypted qcow2 image; `qemu-img convert -O qcow2` makes one without encryption"
                .into(),
        ));
    }
    if word(4) == Some(2) {
        return Ok(());
    }
    let features = long(72).ok_or_else(truncated)?;
    if features & 1 << DATA_FILE != 0 {
        return Err(Problem::Format(
            "this qcow2 image has its data in another file, and no other file is opened for an \
             image; `qemu-img convert -O qcow2` makes one file of both"
                .into(),
        ));
    }
    if let Some((_, what, how)) = FEATURES.iter().find(|(bit, ..)| features & 1 << bit != 0) {
        return Err(Problem::Format(format!("this qcow2 image {what}; {how}")));
    }
    check_extensions(word, word(100).ok_or_else(truncated)?)
}

/// Refuses a table of feature names that ends within a name's first bytes: `imago` panics there.
fn check_extensions(word: impl Fn(usize) -> Option<u32>, from: u32) -> Result<(), Problem> {
    const FEATURE_NAMES: u32 = 0x6803_f857;
    const NAME: u32 = 48;
    let mut at = from as usize;
    while let (Some(kind @ 1..), Some(len)) = (word(at), word(at.saturating_add(4))) {
        if kind == FEATURE_NAMES && !len.is_multiple_of(NAME) {
            return Err(Problem::Format(format!(
                "not a valid qcow2 image: its names of features have {len} bytes"
            )));
        }
        at += 8 + (len as usize).next_multiple_of(8);
    }
    Ok(())
}

/// Refuses an image to be written whose own header has no reference count: `imago` would look for
/// a place for one without end.
fn check_refcounts(file: &File) -> Result<(), Problem> {
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).map(|()| u64::from_be_bytes(bytes))
    };
    // Where the table of reference counts is, and the number of its clusters in the upper half.
    let table = word(48).and_then(|table| Ok((table, word(56)? >> 32)));
    let first = table.and_then(|(table, clusters)| Ok(clusters != 0 && word(table)? != 0));
    match first {
        Ok(true) => Ok(()),
        _ => Err(Problem::Format(
            "this qcow2 image has no reference counts; `qemu-img check -r all` repairs it".into(),
        )),
    }
}

impl Source for Qcow2 {
    fn size(&self) -> u64 {
        self.disk.size().next_multiple_of(SECTOR)
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        // Behind the end of its file the format has zeros.
        if self.file.metadata()?.len() < self.len {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file has become shorter since it was opened",
            ));
        }
        self.disk.read(bytes, at)
    }

    fn next_data(&self, mut at: u64) -> u64 {
        for _ in 0..MAPPINGS_MAX {
            match self.disk.get_mapping(at, self.size() - at) {
                Ok((Mapping::Zero { .. }, len @ 1..)) => at += len,
                Ok((Mapping::Eof { .. }, _)) => return self.size(),
                // An error is one of the read that follows.
                _ => break,
            }
        }
        at
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        // The disk need not end with a whole sector, the padding is nowhere.
        let in_disk = self.disk.size().saturating_sub(at).min(bytes.len() as u64) as usize;
        self.disk.write(&bytes[..in_disk], at)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.flush()?;
        self.disk.sync()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::process::Command;

    use pxvm_tests::needs;
    use tempfile::NamedTempFile;

    use super::*;
    use crate::exit::sentence;
    use crate::image::LIMIT;
    use crate::image::compress::{Format, decompress};
    use crate::image::testing::damage;

    /// Two images of the same disk: 128 sectors with the bytes 1 to 128, a hole up to 2 MiB, 16 with
    /// the bytes 200 to 215, a hole of 504 KiB. Made by `qemu-img convert -O qcow2 -o
    /// cluster_size=4096`, one of them with -c (compressed clusters).
    const PLAIN: &[u8] = include_bytes!("../testdata/plain.qcow2.xz");
    const PACKED: &[u8] = include_bytes!("../testdata/packed.qcow2.xz");
    const HIGH: u64 = 2 << 20;
    const SIZE: u64 = HIGH + (512 << 10);

    fn bytes(image: &[u8]) -> Vec<u8> {
        decompress(Format::Xz, image, LIMIT.0).unwrap().0
    }

    fn file(bytes: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn open(file: &NamedTempFile, written: bool) -> Result<Qcow2, Problem> {
        let opened = File::options().read(true).write(written).open(file.path()).unwrap();
        let len = opened.metadata().unwrap().len();
        Qcow2::open(opened, len, written)
    }

    fn sector(disk: &Qcow2, at: u64) -> u8 {
        let mut bytes = [0; 512];
        disk.read_at(at, &mut bytes).unwrap();
        assert_eq!(bytes, [bytes[0]; 512], "at {at}");
        bytes[0]
    }

    #[test]
    fn a_disk_reads_as_it_was_converted() {
        for image in [PLAIN, PACKED] {
            let file = file(&bytes(image));
            let disk = open(&file, false).unwrap();
            assert_eq!(disk.size(), SIZE);
            for i in 0..128 {
                assert_eq!(u64::from(sector(&disk, i * SECTOR)), i + 1);
            }
            for i in 0..16 {
                assert_eq!(u64::from(sector(&disk, HIGH + i * SECTOR)), 200 + i);
            }
            assert_eq!(sector(&disk, 128 * SECTOR), 0);
            assert_eq!(sector(&disk, SIZE - SECTOR), 0);
            // Across mappings of all kinds.
            let mut all = vec![0; SIZE as usize];
            disk.read_at(0, &mut all).unwrap();
            assert_eq!(all.iter().filter(|&&b| b != 0).count(), 144 * 512);

            assert_eq!(disk.next_data(700), 700);
            assert_eq!(disk.next_data(128 * SECTOR), HIGH);
            assert_eq!(disk.next_data(HIGH + 16 * SECTOR), SIZE);
        }
    }

    #[test]
    fn what_is_written_is_there_again() {
        for image in [PLAIN, PACKED] {
            let file = file(&bytes(image));
            let disk = open(&file, true).unwrap();
            // Where there is data, and where there was a hole.
            disk.write_at(1024, &[0xaa; 512]).unwrap();
            disk.write_at(1 << 20, &[0xbb; 9000]).unwrap();
            disk.sync().unwrap();
            // What was synchronized is there even if the disk is never closed.
            let copy = self::file(&fs::read(file.path()).unwrap());
            std::mem::forget(disk);
            let again = open(&copy, false).unwrap();
            assert_eq!(
                (sector(&again, 512), sector(&again, 1024), sector(&again, 1536)),
                (2, 0xaa, 4)
            );
            assert_eq!((sector(&again, 1 << 20), sector(&again, SIZE - SECTOR)), (0xbb, 0));
            if needs::program("qemu-img") {
                let check =
                    Command::new("qemu-img").arg("check").arg(copy.path()).output().unwrap();
                assert!(check.status.success(), "{check:?}");
            }
        }
    }

    #[test]
    fn images_that_need_more_than_themselves_are_refused() {
        let refused = |at: usize, patch: &[u8], words: &[&str]| {
            let mut image = bytes(PLAIN);
            image[at..at + patch.len()].copy_from_slice(patch);
            let why = sentence(&open(&file(&image), false).unwrap_err());
            assert!(words.iter().all(|word| why.contains(word)), "{why}");
        };
        let feature = |bit: u32| (1u64 << bit).to_be_bytes();
        refused(8, &[0, 0, 0, 0, 0, 0, 2, 0], &["a backing file", "qemu-img convert"]);
        refused(32, &[0, 0, 0, 2], &["encrypted", "qemu-img convert"]);
        refused(72, &feature(0), &["was not closed", "qemu-img check -r all"]);
        refused(72, &feature(1), &["is damaged", "qemu-img check -r all"]);
        refused(72, &feature(2), &["data in another file", "qemu-img convert"]);
        refused(72, &feature(3), &["compression", "qemu-img convert"]);
        refused(72, &feature(4), &["extended L2", "qemu-img convert"]);
        refused(72, &feature(40), &["not a valid qcow2", "feature(s) 40"]);
        refused(4, &[0, 0, 0, 9], &["not a valid qcow2", "v9"]);
        refused(20, &[0, 0, 0, 60], &["not a valid qcow2", "cluster size"]);
        refused(24, &[0; 8], &["empty"]);
        refused(24, &[0xff; 8], &["too large"]);
        refused(36, &[0x7f; 4], &["not a valid qcow2", "L1 table"]);
        let mut uncounted = bytes(PLAIN);
        uncounted[0x1000..0x1008].fill(0);
        let why = sentence(&open(&file(&uncounted), true).unwrap_err());
        assert!(why.contains("no reference counts") && why.contains("check -r all"), "{why}");
        assert!(open(&file(&uncounted), false).is_ok());
        let short = sentence(&open(&file(b"QFI\xfb\0\0\0\x03"), false).unwrap_err());
        assert!(short.contains("truncated"), "{short}");
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let file = file(&bytes(PLAIN));
        let disk = open(&file, false).unwrap();
        assert_eq!(sector(&disk, 0), 1);
        file.as_file().set_len(8192).unwrap();
        let error = disk.read_at(0, &mut [0; 512]).unwrap_err();
        assert!(error.to_string().contains("has become shorter"), "{error}");
    }

    #[test]
    fn damaged_images_never_panic() {
        for image in [PLAIN, PACKED] {
            damage(&bytes(image), 400, |image| {
                let file = file(&image);
                if let Ok(disk) = open(&file, false) {
                    let size = disk.size().min(4 << 20);
                    let _ = disk.read_at(0, &mut vec![0; size as usize]);
                    let _ = disk.next_data(0);
                }
                if let Ok(disk) = open(&file, true) {
                    let at = disk.size().min(4 << 20) / 2 / SECTOR * SECTOR;
                    for at in [0, at] {
                        let _ = disk.write_at(at, &[0xcc; 512]);
                    }
                    let _ = disk.sync();
                }
            });
        }
    }
}

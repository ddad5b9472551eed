//! Raw disk images: files and block devices whose bytes are the disk's.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{OFlags, SeekFrom as Position, seek};
use rustix::io::Errno;

use super::{SECTOR, Source, refuse_format};
use crate::image::{Problem, check_regular};

/// Bytes at the start of an image by which its format is recognised.
const START: usize = 512;

/// A file or block device whose bytes are the disk's. Zeros pad it to whole sectors.
#[derive(Debug)]
struct Raw {
    file: File,
    /// Length of the file when it was opened.
    len: u64,
}

/// Opens a raw disk image.
pub fn open(path: &Path) -> Result<Arc<dyn Source>, Problem> {
    // Checked before opening, because opening a socket fails with an error that helps nobody.
    check_kind(&std::fs::metadata(path).map_err(Problem::Read)?)?;
    // The path may name another file by now, and opening a pipe must not wait for its writer.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(Problem::Read)?;
    check_kind(&file.metadata().map_err(Problem::Read)?)?;
    // The length in the metadata of a block device is 0.
    let len = file.seek(SeekFrom::End(0)).map_err(Problem::Read)?;
    if len == 0 {
        return Err(Problem::Empty);
    }
    let raw = Raw { file, len };
    let mut start = [0; START];
    raw.read_at(0, &mut start).map_err(Problem::Read)?;
    refuse_format(&start)?;
    Ok(Arc::new(raw))
}

fn check_kind(meta: &Metadata) -> Result<(), Problem> {
    if meta.file_type().is_block_device() { Ok(()) } else { check_regular(meta) }
}

impl Source for Raw {
    fn size(&self) -> u64 {
        self.len.next_multiple_of(SECTOR)
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let in_file = self.len.saturating_sub(at).min(bytes.len() as u64) as usize;
        let (contents, padding) = bytes.split_at_mut(in_file);
        padding.fill(0);
        self.file.read_exact_at(contents, at).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(
                e.kind(),
                format!(
                    "the file ends before offset {}; it has become shorter",
                    at + in_file as u64
                ),
            ),
            _ => e,
        })
    }

    fn next_data(&self, at: u64) -> u64 {
        match seek(&self.file, Position::Data(at)) {
            Ok(data) => data.min(self.size()),
            Err(Errno::NXIO) => self.size(),
            // Neither block devices nor all file systems know.
            Err(_) => at,
        }
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tempfile::NamedTempFile;

    use super::*;

    fn image(bytes: &[u8]) -> (NamedTempFile, Arc<dyn Source>) {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let source = open(file.path()).unwrap();
        (file, source)
    }

    #[test]
    fn zeros_pad_the_last_sector() {
        let (_file, source) = image(&[7; 700]);
        assert_eq!(source.size(), 1024);
        let mut bytes = [1; 600];
        source.read_at(424, &mut bytes).unwrap();
        assert_eq!(bytes[..276], [7; 276]);
        assert_eq!(bytes[276..], [0; 324]);
        // A read of nothing but padding.
        source.read_at(1000, &mut bytes[..24]).unwrap();
        assert_eq!(bytes[..24], [0; 24]);
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let (file, source) = image(&[7; 4096]);
        file.as_file().set_len(1024).unwrap();
        let mut bytes = [0; 512];
        source.read_at(512, &mut bytes).unwrap();
        let error = source.read_at(1024, &mut bytes).unwrap_err();
        assert!(error.to_string().contains("ends before offset 1536"), "{error}");
        assert_eq!(source.size(), 4096);
    }

    #[test]
    fn holes_are_skipped() {
        let (file, source) = image(&[7; 512]);
        assert_eq!(source.next_data(0), 0);
        drop(source);
        // A file system may have blocks of up to 64 KiB.
        file.as_file().set_len(1 << 30).unwrap();
        file.as_file().write_all_at(&[1], 512 << 20).unwrap();
        let source = open(file.path()).unwrap();
        let data = source.next_data(1 << 20);
        assert!((512 << 20) - data <= 64 << 10 && data <= 512 << 20, "{data}");
        assert_eq!(source.next_data(513 << 20), 1 << 30);
    }
}

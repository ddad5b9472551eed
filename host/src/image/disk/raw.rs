//! Raw disk images: files and block devices whose bytes are the disk's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::{SECTOR, Source};

/// A file or block device whose bytes are the disk's. Zeros pad it to whole sectors.
#[derive(Debug)]
pub struct Raw {
    file: File,
    /// Length of the file when it was opened.
    len: u64,
}

impl Raw {
    /// Returns the disk in a file of `len` bytes.
    pub fn new(file: File, len: u64) -> Self {
        Self { file, len }
    }
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
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(e.kind(), "the file has become shorter since it was opened")
            }
            _ => e,
        })
    }

    fn next_data(&self, at: u64) -> u64 {
        match seek(&self.file, SeekFrom::Data(at)) {
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

    fn image(bytes: &[u8]) -> (NamedTempFile, Raw) {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let raw = Raw::new(file.reopen().unwrap(), bytes.len() as u64);
        (file, raw)
    }

    #[test]
    fn zeros_pad_the_last_sector() {
        let (file, raw) = image(&[7; 700]);
        assert_eq!(raw.size(), 1024);
        let mut bytes = [1; 600];
        raw.read_at(424, &mut bytes).unwrap();
        assert_eq!(bytes[..276], [7; 276]);
        assert_eq!(bytes[276..], [0; 324]);
        // A read of nothing but padding.
        raw.read_at(1000, &mut bytes[..24]).unwrap();
        assert_eq!(bytes[..24], [0; 24]);

        // Reading does not add the padding to the file, writing a sector does.
        assert_eq!(file.as_file().metadata().unwrap().len(), 700);
        let writer = File::options().read(true).write(true).open(file.path()).unwrap();
        let raw = Raw::new(writer, 700);
        raw.write_at(512, &[9; 512]).unwrap();
        raw.sync().unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), [[7; 512], [9; 512]].concat());
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let (file, raw) = image(&[7; 4096]);
        file.as_file().set_len(1024).unwrap();
        let mut bytes = [0; 512];
        raw.read_at(512, &mut bytes).unwrap();
        let error = raw.read_at(1024, &mut bytes).unwrap_err();
        assert!(error.to_string().contains("has become shorter"), "{error}");
        assert_eq!(raw.size(), 4096);
    }

    #[test]
    fn holes_are_skipped() {
        let (file, raw) = image(&[7; 512]);
        assert_eq!(raw.next_data(0), 0);
        file.as_file().set_len(1 << 30).unwrap();
        file.as_file().write_all_at(&[1], 512 << 20).unwrap();
        let raw = Raw::new(file.reopen().unwrap(), 1 << 30);
        let data = raw.next_data(1 << 20);
        // A file system may have blocks of up to 64 KiB.
        assert!((512 << 20) - data <= 64 << 10 && data <= 512 << 20, "{data}");
        assert_eq!(raw.next_data(513 << 20), 1 << 30);
    }
}

//! The files of calibrations: one for each hardware and version of pxvm, in a folder of the cache.
//!
//! A file is replaced as a whole, and read with suspicion: what is damaged, or of other hardware, is
//! measured again.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Calibration;
use super::hardware::Hardware;
use crate::units::hex;

/// Version of the files, to be raised when their content gets another meaning.
const FORMAT: u32 = 1;
/// Largest file that is read; ours have about 1 KiB.
const SIZE_MAX: u64 = 64 << 10;
/// How long another process may take for its calibration before this one does its own.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Content of a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    format: u32,
    /// SHA-256 of the calibration as JSON, in hexadecimal.
    sha256: String,
    calibration: Calibration,
}

/// Any file of this kind, of whatever version.
#[derive(Deserialize)]
struct Header {
    format: u32,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The file cannot be read.
    #[error("cannot be read")]
    Unreadable(#[source] io::Error),
    /// The file is no file, or too large.
    #[error("is no calibration")]
    Kind,
    /// The file is cut short or overwritten.
    #[error("is damaged")]
    Garbled(#[source] serde_json::Error),
    /// A value has changed since the file was written, or was never possible.
    #[error("has values that were not measured")]
    Changed,
    /// The file was moved here.
    #[error("is of other hardware")]
    Hardware,
}

/// Returns where the calibration of some hardware is.
pub fn path(folder: &Path, hardware: &Hardware) -> PathBuf {
    folder.join(format!("{}.json", &digest(hardware)[..16]))
}

fn digest(value: &impl Serialize) -> String {
    // Structures of text and numbers always have a JSON form.
    hex(&Sha256::digest(serde_json::to_vec(value).unwrap_or_default()))
}

/// Returns the calibration of some hardware, if there is one.
pub fn read(folder: &Path, hardware: &Hardware) -> Result<Option<Calibration>, Damage> {
    let path = path(folder, hardware);
    match path.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Damage::Unreadable(error)),
        Ok(found) if !found.is_file() || found.len() > SIZE_MAX => return Err(Damage::Kind),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(SIZE_MAX).read_to_end(&mut bytes))
        .map_err(Damage::Unreadable)?;
    let Header { format } = serde_json::from_slice(&bytes).map_err(Damage::Garbled)?;
    if format != FORMAT {
        return Ok(None);
    }
    let content: Content = serde_json::from_slice(&bytes).map_err(Damage::Garbled)?;
    let Content { sha256, calibration, .. } = content;
    if digest(&calibration) != sha256 || !calibration.is_possible() {
        return Err(Damage::Changed);
    }
    if calibration.hardware != *hardware {
        return Err(Damage::Hardware);
    }
    Ok(Some(calibration))
}

/// Keeps a calibration, in place of an earlier one of this hardware.
pub fn write(folder: &Path, calibration: &Calibration) -> io::Result<()> {
    make(folder)?;
    let path = path(folder, &calibration.hardware);
    let content =
        Content { format: FORMAT, sha256: digest(calibration), calibration: calibration.clone() };
    let mut text = serde_json::to_vec_pretty(&content)?;
    text.push(b'\n');
    let new = path.with_extension("new");
    let written = create(&new).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &path)
    });
    if written.is_err() {
        // What is left of it would be replaced the next time.
        let _ = fs::remove_file(&new);
    }
    written
}

fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Waits until no other process measures, and keeps others from it while the result lives. Two that
/// measure at once would find half of the speed. Returns `None` where that cannot be had: then they
/// do.
pub fn lock(folder: &Path) -> Option<File> {
    lock_within(folder, LOCK_TIMEOUT)
}

fn lock_within(folder: &Path, timeout: Duration) -> Option<File> {
    make(folder).ok()?;
    let file = create(&folder.join("lock")).ok()?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < timeout => {
                thread::sleep(LOCK_POLL);
            }
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::large;
    use super::*;

    struct Kept {
        folder: tempfile::TempDir,
        calibration: Calibration,
    }

    impl Kept {
        fn new() -> Self {
            let kept = Self { folder: tempfile::tempdir().unwrap(), calibration: large() };
            write(kept.folder(), &kept.calibration).unwrap();
            kept
        }

        fn folder(&self) -> &Path {
            self.folder.path()
        }

        fn path(&self) -> PathBuf {
            path(self.folder(), &self.calibration.hardware)
        }

        fn read(&self) -> Result<Option<Calibration>, Damage> {
            read(self.folder(), &self.calibration.hardware)
        }
    }

    #[test]
    fn what_is_kept_is_read_again_and_nothing_else_is_left() {
        let kept = Kept::new();
        assert_eq!(kept.read().unwrap().as_ref(), Some(&kept.calibration));
        let newer = Calibration { measured_at: 1, ..kept.calibration.clone() };
        write(kept.folder(), &newer).unwrap();
        assert_eq!(kept.read().unwrap(), Some(newer));
        assert_eq!(fs::read_dir(kept.folder()).unwrap().count(), 1);
    }

    #[test]
    fn other_hardware_and_other_versions_have_none() {
        let kept = Kept::new();
        let changes: [fn(&mut Hardware); 8] = [
            |it| it.version += "x",
            |it| it.cpu += "x",
            |it| it.cores = 2,
            |it| it.affinity = "0,16".to_owned(),
            |it| it.gpu = None,
            |it| it.gpu.as_mut().unwrap().name += "x",
            |it| it.gpu.as_mut().unwrap().uuid += "x",
            |it| it.gpu.as_mut().unwrap().driver += "x",
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut hardware = kept.calibration.hardware.clone();
            change(&mut hardware);
            assert!(matches!(read(kept.folder(), &hardware), Ok(None)), "{index}");
            // Nor is that of another taken for it.
            fs::copy(kept.path(), path(kept.folder(), &hardware)).unwrap();
            let found = read(kept.folder(), &hardware);
            assert!(matches!(found, Err(Damage::Hardware)), "{index}: {found:?}");
        }
    }

    #[test]
    fn every_damage_is_noticed() {
        let kept = Kept::new();
        let whole = fs::read(kept.path()).unwrap();
        for length in 0..whole.len() - 2 {
            fs::write(kept.path(), &whole[..length]).unwrap();
            assert!(kept.read().is_err(), "cut to {length}");
        }
        for at in 0..whole.len() {
            for bit in [0, at % 8] {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                fs::write(kept.path(), bytes).unwrap();
                // Other white space is as good; another version is none.
                let good = match kept.read() {
                    Ok(Some(read)) => read == kept.calibration,
                    Ok(None) => true,
                    Err(_) => true,
                };
                assert!(good, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_file_of_another_version_is_none() {
        let kept = Kept::new();
        let text = fs::read_to_string(kept.path()).unwrap();
        fs::write(kept.path(), text.replace("\"format\": 1", "\"format\": 0")).unwrap();
        assert!(matches!(kept.read(), Ok(None)));
        fs::write(kept.path(), r#"{"format": 2, "new": "fields"}"#).unwrap();
        assert!(matches!(kept.read(), Ok(None)));
    }

    #[test]
    fn a_value_that_nobody_measured_is_noticed_even_with_its_digest() {
        let mut calibration = large();
        calibration.cpu.alone = 1;
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &calibration).unwrap();
        let found = read(folder.path(), &calibration.hardware);
        assert!(matches!(found, Err(Damage::Changed)), "{found:?}");
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let kept = Kept::new();
        fs::remove_file(kept.path()).unwrap();
        fs::create_dir(kept.path()).unwrap();
        assert!(matches!(kept.read(), Err(Damage::Kind)));
        assert!(write(kept.folder(), &kept.calibration).is_err());
        fs::remove_dir(kept.path()).unwrap();
        let file = File::create(kept.path()).unwrap();
        file.set_len(1 << 40).unwrap();
        assert!(matches!(kept.read(), Err(Damage::Kind)));
        // Nor is anything left of what could not be written.
        assert_eq!(fs::read_dir(kept.folder()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_keeps_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "in the way").unwrap();
        let below = file.join("calibration");
        assert!(write(&below, &large()).is_err() && lock(&below).is_none());
        assert!(read(&below, &large().hardware).is_err());
    }

    #[test]
    fn one_process_measures_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path());
        assert!(first.is_some());
        assert!(lock_within(folder.path(), Duration::ZERO).is_none());
        drop(first);
        assert!(lock_within(folder.path(), Duration::ZERO).is_some());
    }
}

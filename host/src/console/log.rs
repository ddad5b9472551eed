//! Console logs: one file per VM (`vm0.log`, `vm1.log`, ...), readable only by their owner.
//!
//! Files are opened to append and closed again, so that a fleet may have more VMs than a process
//! may have open files. Bytes wait in memory until there are many, or until a flush.
//!
//! A guest decides how much it writes, so the size is limited: a full file becomes `vm0.log.1`, in
//! place of an earlier one, and a new file begins (log rotation). A log that cannot be written
//! ends; the fleet continues without it.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::exit::sentence;
use crate::machine::fleet;
use crate::stdio::say;
use crate::units::Size;

/// Bytes of a VM that may wait before they are written.
const BUFFER_MAX: usize = 8 << 10;
/// Permissions of a file: the owner reads and writes.
const MODE: u32 = 0o600;

/// Destination of console output.
pub trait Sink {
    /// Writes output of a VM.
    fn write(&mut self, vm: u32, bytes: &[u8]) -> Result<(), Closed>;
    /// Writes all bytes that wait in memory.
    fn flush(&mut self);
}

/// Error: the reader of the consoles has gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

/// Log files of a fleet.
#[derive(Debug)]
pub struct Logs {
    dir: PathBuf,
    /// Largest size of a file.
    max: Size,
    logs: HashMap<u32, Log>,
    /// VMs that may have bytes waiting.
    dirty: Vec<u32>,
    /// Whether the user was warned that a file could not be written.
    told: bool,
}

/// The log file of one VM.
#[derive(Debug, Default)]
struct Log {
    waiting: Vec<u8>,
    /// Bytes in the file.
    written: u64,
    /// Whether the file could not be written; nothing more is.
    ended: bool,
}

impl Logs {
    /// Returns logs in `dir`, which is made if it is missing; earlier logs of these VMs are
    /// removed.
    pub fn new(dir: &Path, count: u32, max: Size) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let logs =
            Self { dir: dir.into(), max, logs: HashMap::new(), dirty: Vec::new(), told: false };
        for vm in 0..count {
            let file = options().write(true).truncate(true).open(logs.path(vm))?;
            // The file may be left from an earlier run.
            if file.metadata()?.is_file() {
                file.set_permissions(Permissions::from_mode(MODE))?;
            }
            match fs::remove_file(logs.older(vm)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(logs)
    }

    /// Returns the path of a VM's log.
    pub fn path(&self, vm: u32) -> PathBuf {
        self.dir.join(fleet::name(vm) + ".log")
    }

    /// Returns the path of a VM's rotated log.
    fn older(&self, vm: u32) -> PathBuf {
        self.dir.join(fleet::name(vm) + ".log.1")
    }

    /// Writes the waiting bytes of a VM to its file.
    fn write_out(&mut self, vm: u32) {
        let (path, older) = (self.path(vm), self.older(vm));
        let Some(log) = self.logs.get_mut(&vm) else { return };
        let waiting = std::mem::take(&mut log.waiting);
        if waiting.is_empty() {
            return;
        }
        let Err(error) = log.append(&path, &older, self.max, &waiting) else { return };
        log.ended = true;
        if !std::mem::replace(&mut self.told, true) {
            let (path, error) = (path.display(), sentence(&error));
            say(&format!(
                "pxvm: cannot write {path}: {error}; it ends here, and so does each log that \
                 cannot be written (told once)"
            ));
        }
    }
}

fn options() -> OpenOptions {
    let mut options = File::options();
    options.create(true).mode(MODE);
    options
}

impl Log {
    fn append(&mut self, path: &Path, older: &Path, max: Size, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len() as u64;
        if self.written > 0 && self.written + len > max.0 {
            fs::rename(path, older)?;
            self.written = 0;
        }
        options().append(true).open(path)?.write_all(bytes)?;
        self.written += len;
        Ok(())
    }
}

impl Sink for Logs {
    fn write(&mut self, vm: u32, bytes: &[u8]) -> Result<(), Closed> {
        let log = self.logs.entry(vm).or_default();
        if log.ended {
            return Ok(());
        }
        if log.waiting.is_empty() {
            self.dirty.push(vm);
        }
        log.waiting.extend_from_slice(bytes);
        if log.waiting.len() >= BUFFER_MAX {
            self.write_out(vm);
        }
        Ok(())
    }

    fn flush(&mut self) {
        std::mem::take(&mut self.dirty).into_iter().for_each(|vm| self.write_out(vm));
    }
}

/// Returns a name for the logs of a run that starts now: `20261120-101500-4711`.
pub fn run_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil((now / 86_400) as i64);
    let (h, m, s) = (now / 3600 % 24, now / 60 % 60, now % 60);
    format!("{year:04}{month:02}{day:02}-{h:02}{m:02}{s:02}-{}", std::process::id())
}

/// Returns the date of a day counted from 1970-01-01 (Howard Hinnant, "chrono-compatible low-level
/// date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vm_has_its_own_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut logs = Logs::new(dir.path(), 2, Size::mib(1)).unwrap();
        logs.write(1, b"hello ").unwrap();
        logs.write(1, &[b'x'; BUFFER_MAX]).unwrap();
        logs.write(1, b"!").unwrap();
        logs.flush();
        assert_eq!(fs::read(logs.path(1)).unwrap().len(), 7 + BUFFER_MAX);
        assert_eq!(fs::read(logs.path(0)).unwrap(), b"");
    }

    #[test]
    fn files_are_bounded_and_keep_what_came_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut logs = Logs::new(dir.path(), 1, Size(100)).unwrap();
        let all: Vec<u8> = (0..250).collect();
        for bytes in all.chunks(10) {
            logs.write(0, bytes).unwrap();
            logs.flush();
            let len = |path| fs::metadata(path).map_or(0, |m| m.len());
            assert!(len(logs.path(0)) <= 100 && len(logs.older(0)) <= 100);
        }
        let kept = [fs::read(logs.older(0)).unwrap(), fs::read(logs.path(0)).unwrap()].concat();
        assert_eq!(kept, all[100..]);
        drop(logs);
        // The next run starts with new logs.
        let logs = Logs::new(dir.path(), 1, Size(100)).unwrap();
        assert_eq!(fs::read(logs.path(0)).unwrap(), b"");
        assert!(!logs.older(0).exists());
    }

    #[test]
    fn files_are_for_their_owner_also_those_that_were_there() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for _ in 0..2 {
            let mut logs = Logs::new(&dir, 1, Size(10)).unwrap();
            for _ in 0..2 {
                logs.write(0, b"0123456").unwrap();
                logs.flush();
            }
            let files = [logs.path(0), logs.older(0)];
            assert_eq!((mode(&dir), files.each_ref().map(|f| mode(f))), (0o700, [MODE; 2]));
            files
                .iter()
                .for_each(|f| fs::set_permissions(f, Permissions::from_mode(0o644)).unwrap());
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_ends_and_the_others_go_on() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("vm0.log")).unwrap();
        let mut logs = Logs::new(dir.path(), 2, Size::mib(1)).unwrap();
        for _ in 0..3 {
            for vm in 0..2 {
                logs.write(vm, &[b'x'; BUFFER_MAX]).unwrap();
            }
            logs.flush();
        }
        assert!(logs.told && logs.logs[&0].ended && logs.logs[&0].waiting.is_empty());
        assert_eq!(fs::read(logs.path(1)).unwrap().len(), 3 * BUFFER_MAX);
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(20_777), (2026, 11, 20));
        assert_eq!(civil(11_016), (2000, 2, 29));
    }
}

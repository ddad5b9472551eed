//! Consoles in files: `vm0.log`, `vm1.log`, ...
//!
//! Files are opened to append and closed again, so that a fleet may be larger than the number of
//! files a process may have open. Bytes wait in memory until there are many, or until a flush.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::machine::fleet;

/// Bytes that wait for a VM before they are written.
const BUFFER_MAX: usize = 8 << 10;

/// Where console output goes.
pub trait Sink {
    /// Takes output of a VM.
    fn write(&mut self, vm: u32, bytes: &[u8]) -> io::Result<()>;
    /// Leaves nothing in memory.
    fn flush(&mut self) -> io::Result<()>;
}

/// One file a VM.
#[derive(Debug)]
pub struct Logs {
    dir: PathBuf,
    waiting: HashMap<u32, Vec<u8>>,
}

impl Logs {
    /// Logs in `dir`, which is made if it is missing; earlier logs of these VMs are emptied.
    pub fn new(dir: &Path, count: u32) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let logs = Self { dir: dir.into(), waiting: HashMap::new() };
        for vm in 0..count {
            File::create(logs.path(vm))?;
        }
        Ok(logs)
    }

    /// Where the log of a VM is.
    pub fn path(&self, vm: u32) -> PathBuf {
        self.dir.join(fleet::name(vm) + ".log")
    }
}

impl Sink for Logs {
    fn write(&mut self, vm: u32, bytes: &[u8]) -> io::Result<()> {
        let waiting = self.waiting.entry(vm).or_default();
        waiting.extend_from_slice(bytes);
        if waiting.len() < BUFFER_MAX {
            return Ok(());
        }
        let all = std::mem::take(waiting);
        append(&self.path(vm), &all)
    }

    fn flush(&mut self) -> io::Result<()> {
        for (vm, bytes) in std::mem::take(&mut self.waiting) {
            append(&self.path(vm), &bytes)?;
        }
        Ok(())
    }
}

fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).open(path)?.write_all(bytes)
}

/// A name for the logs of a run that starts now: `20261120-101500-4711`.
pub fn run_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil((now / 86_400) as i64);
    let (h, m, s) = (now / 3600 % 24, now / 60 % 60, now % 60);
    format!("{year:04}{month:02}{day:02}-{h:02}{m:02}{s:02}-{}", std::process::id())
}

/// The date of a day counted from 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date
/// algorithms").
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
        let mut logs = Logs::new(dir.path(), 2).unwrap();
        logs.write(1, b"hello ").unwrap();
        logs.write(1, &[b'x'; BUFFER_MAX]).unwrap();
        logs.write(1, b"!").unwrap();
        logs.flush().unwrap();
        assert_eq!(fs::read(logs.path(1)).unwrap().len(), 7 + BUFFER_MAX);
        assert_eq!(fs::read(logs.path(0)).unwrap(), b"");
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(20_777), (2026, 11, 20));
        assert_eq!(civil(11_016), (2000, 2, 29));
    }
}

//! Mutual exclusion at a VM's console: one `pxvm exec` at a time.
//!
//! The lock is on a file beside the fleet's socket. The file is there as long as a process holds
//! the lock or waits for it, and the kernel releases the lock when its owner dies.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The right to type at a VM's console.
#[derive(Debug)]
pub struct ConsoleLock {
    path: PathBuf,
    /// Lock file; locked until it is closed.
    _file: File,
}

impl ConsoleLock {
    /// Takes the lock, unless another process has it. `socket` is the fleet's.
    pub fn take(socket: &Path, vm: u32) -> io::Result<Option<Self>> {
        let path = socket.with_extension(format!("vm{vm}"));
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The previous owner has removed its file, and this may be that file.
        let same = fs::metadata(&path).is_ok_and(|m| Some(m.ino()) == ino(&file));
        Ok(same.then_some(Self { path, _file: file }))
    }
}

fn ino(file: &File) -> Option<u64> {
    file.metadata().ok().map(|m| m.ino())
}

impl Drop for ConsoleLock {
    fn drop(&mut self) {
        // A file that cannot be removed does no harm.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_it_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("lab.sock");
        let take = |vm| ConsoleLock::take(&socket, vm).unwrap();
        let first = take(1).unwrap();
        assert!(take(1).is_none() && take(2).is_some());
        drop(first);
        assert!(take(1).is_some());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! The files behind disks: regular ones and block devices, locked while they are in use.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, major, minor};
use rustix::io::Errno;

use super::lock::{Locked, lock};
use crate::image::{Problem, check_regular};

/// What a file or device is, by whatever name: two names of one have the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Identity {
    /// Device and number of a regular file.
    File(u64, u64),
    /// Number of a block device.
    BlockDevice(u64),
}

/// Returns the identity of an image before it is opened: opening a socket fails with an error that
/// helps nobody.
pub fn identify(path: &Path) -> Result<Identity, Problem> {
    identity(&std::fs::metadata(path).map_err(Problem::Read)?)
}

fn identity(meta: &Metadata) -> Result<Identity, Problem> {
    if meta.file_type().is_block_device() {
        return Ok(Identity::BlockDevice(meta.rdev()));
    }
    check_regular(meta)?;
    Ok(Identity::File(meta.dev(), meta.ino()))
}

/// Opens and locks an image, for writing too if it is to be `written`. Returns its length, which is
/// not 0.
pub fn open(path: &Path, written: bool) -> Result<(File, u64), Problem> {
    let is_device = matches!(identify(path)?, Identity::BlockDevice(_));
    // The path may name another file by now, and opening a pipe must not wait for its writer.
    let mut flags = OFlags::NONBLOCK;
    if written && is_device {
        // The kernel then refuses a device that is mounted, and refuses to mount it.
        flags |= OFlags::EXCL;
    }
    let opened = OpenOptions::new()
        .read(true)
        .write(written)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let mut file = opened.map_err(|e| match e.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::BUSY) => Problem::InUse("the host uses this device; unmount it first".into()),
        Some(Errno::MFILE) => Problem::OpenFiles(e),
        _ if written => Problem::Write(e),
        _ => Problem::Read(e),
    })?;
    let found = identity(&file.metadata().map_err(Problem::Read)?)?;
    if written && is_read_only(found) {
        return Err(Problem::Write(Errno::ROFS.into()));
    }
    match lock(&file, written).map_err(Problem::Lock)? {
        Locked::Yes => {}
        Locked::InUse => {
            let why = match written {
                true => "another program uses it, so it cannot be written to",
                false => "another program writes to it",
            };
            return Err(Problem::InUse(format!("{why}; `fuser FILE` says which one")));
        }
        Locked::Unsupported if written => tracing::warn!(
            "disk {}: its file system has no locks; nobody else must use it meanwhile",
            path.display()
        ),
        Locked::Unsupported => {}
    }
    // The length in the metadata of a block device is 0.
    match file.seek(SeekFrom::End(0)).map_err(Problem::Read)? {
        0 => Err(Problem::Empty),
        len => Ok((file, len)),
    }
}

/// Whether no write to a block device can succeed. Opening it for writing can, nevertheless.
fn is_read_only(image: Identity) -> bool {
    let Identity::BlockDevice(device) = image else { return false };
    let name = format!("/sys/dev/block/{}:{}/ro", major(device), minor(device));
    std::fs::read(name).is_ok_and(|flag| flag.starts_with(b"1"))
}

/// Returns the first bytes of an image, at most `len`.
pub fn start(file: &File, len: u64) -> io::Result<Vec<u8>> {
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

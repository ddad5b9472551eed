//! Disk images: any file of whole sectors, read-only for the fleet.

use std::path::Path;

use super::{ImageError, Problem, Role, load};

const SECTOR: usize = 512;

/// The contents of the disk at `path`.
pub fn disk(path: &Path) -> Result<Vec<u8>, ImageError> {
    load(Role::Disk, path, |bytes| {
        if !bytes.len().is_multiple_of(SECTOR) {
            let len = bytes.len();
            return Err(Problem::Format(format!("{len} bytes are not whole 512-byte sectors")));
        }
        Ok(bytes)
    })
}

//! Disk images: any file of whole sectors, read-only for the fleet.

use std::path::Path;

use super::{ImageError, Problem, Role, load};

const SECTOR: usize = 512;
/// Disk image formats that must be converted first, by their first bytes.
const FORMATS: [(&[u8], &str); 3] =
    [(b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx")];

/// Returns the contents of the disk image at `path`.
pub fn disk(path: &Path) -> Result<Vec<u8>, ImageError> {
    load(Role::Disk, path, parse)
}

fn parse(bytes: Vec<u8>) -> Result<Vec<u8>, Problem> {
    if let Some((_, name)) = FORMATS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Err(Problem::Format(format!(
            "a {name} image; make it a raw one with `qemu-img convert -O raw`"
        )));
    }
    if !bytes.len().is_multiple_of(SECTOR) {
        return Err(Problem::Format(format!(
            "{} bytes are not whole {SECTOR}-byte sectors; `truncate -s %{SECTOR} FILE` adds zeros",
            bytes.len()
        )));
    }
    Ok(bytes)
}

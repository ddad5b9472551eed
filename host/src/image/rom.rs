//! ROM images: raw bytes that all VMs of a fleet read and execute where they lie.

use std::path::Path;

use emu_core::layout::Region;
use emu_core::mem::FRAME_SIZE;

use super::{ImageError, Problem, Role, load};
use crate::units::Size;

/// First word of a cramfs, the root file system that is executed in place. Its size comes next.
const CRAMFS: u32 = 0x28cd_3d45;

/// Returns the contents of a machine's ROM `window` with the image at `path`, padded with zeros to
/// a power of two, because Linux maps no other size.
pub fn rom(path: &Path, window: Region) -> Result<Vec<u8>, ImageError> {
    load(Role::Rom, path, |bytes| fill(bytes, window))
}

fn fill(mut bytes: Vec<u8>, window: Region) -> Result<Vec<u8>, Problem> {
    let len = bytes.len();
    if window.size == 0 {
        return Err(Problem::Format(
            "this machine has no place for a ROM; use --machine virt".into(),
        ));
    }
    if len > window.size as usize {
        let most = Size(window.size.into());
        return Err(Problem::Format(format!("{len} bytes; this machine has room for {most}")));
    }
    let word =
        |at: usize| bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    if let (Some(CRAMFS), Some(size)) = (word(0), word(4))
        && size as usize > len
    {
        return Err(Problem::Truncated(format!("a cramfs of {size} bytes in a file of {len}")));
    }
    bytes.resize(len.next_power_of_two().max(FRAME_SIZE as usize), 0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use emu_core::layout::{SEMU, VIRT};

    use super::*;

    fn refused(bytes: Vec<u8>, window: Region) -> String {
        fill(bytes, window).unwrap_err().to_string()
    }

    #[test]
    fn a_rom_is_filled_up_to_a_power_of_two() {
        assert_eq!(fill(vec![7; 5], VIRT.rom).unwrap().len(), 4096);
        let rom = fill(vec![7; 4097], VIRT.rom).unwrap();
        assert_eq!((rom.len(), rom[4096], rom[4097]), (8192, 7, 0));
        assert_eq!(fill(vec![7; 8192], VIRT.rom).unwrap().len(), 8192);
    }

    #[test]
    fn what_cannot_be_a_rom_is_refused() {
        let large = refused(vec![7; 8193], Region { base: 0, size: 8192 });
        assert!(large.contains("room for 8 KiB"), "{large}");
        assert!(refused(vec![7], SEMU.rom).contains("--machine virt"));
        let mut cramfs = vec![0; 100];
        cramfs[..8].copy_from_slice(&[0x45, 0x3d, 0xcd, 0x28, 101, 0, 0, 0]);
        assert!(refused(cramfs.clone(), VIRT.rom).contains("101 bytes"));
        cramfs[4] = 100;
        assert!(fill(cramfs, VIRT.rom).is_ok());
    }
}

//! Loader for kernels and firmware: RISC-V `Image` (plain or compressed) and ELF; firmware also as
//! a raw binary.

use std::path::Path;

use super::{ImageError, Payload, Problem, Role, compress, elf, load};
use crate::units::Size;

/// The header of a RISC-V `Image` (Documentation/riscv/boot-image-header.rst).
mod field {
    use std::ops::Range;
    pub const TEXT_OFFSET: Range<usize> = 0x08..0x10;
    pub const IMAGE_SIZE: Range<usize> = 0x10..0x18;
    pub const MAGIC2: Range<usize> = 0x38..0x3c;
    pub const END: usize = 0x40;
}
const RISCV_MAGIC2: &[u8] = b"RSC\x05";
const ARM64_MAGIC: &[u8] = b"ARM\x64";

/// Value of `text_offset` in an rv64 kernel: one large page of its MMU.
const TEXT_OFFSET_RV64: u64 = 0x20_0000;

/// Returns the kernel at `path`: `Image`, compressed `Image`, or ELF.
pub fn kernel(path: &Path) -> Result<Payload, ImageError> {
    load(Role::Kernel, path, |bytes| parse_kernel(compress::expand(bytes)?))
}

/// Returns the firmware at `path`: ELF, or a raw binary that runs at the start of RAM.
pub fn firmware(path: &Path) -> Result<Payload, ImageError> {
    load(Role::Firmware, path, |bytes| {
        let bytes = compress::expand(bytes)?;
        if elf::is_elf(&bytes) {
            return Ok(elf::parse(&bytes)?.payload);
        }
        refuse_foreign(&bytes)?;
        let size = bytes.len() as u32;
        Ok(Payload::flat(bytes, size))
    })
}

/// Parses a decompressed kernel.
pub fn parse_kernel(bytes: Vec<u8>) -> Result<Payload, Problem> {
    if elf::is_elf(&bytes) {
        return Ok(elf::parse(&bytes)?.payload);
    }
    if bytes.get(field::MAGIC2) == Some(RISCV_MAGIC2) {
        return parse_image(bytes);
    }
    refuse_foreign(&bytes)?;
    if bytes.len() < field::END {
        return Err(Problem::Truncated("too short for a kernel's header".into()));
    }
    Err(Problem::Format(
        "not a kernel: neither a RISC-V Image (plain or compressed) nor ELF".into(),
    ))
}

fn u64_at(bytes: &[u8], range: std::ops::Range<usize>) -> u64 {
    bytes.get(range).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Parses an `Image`. Its header does not state XLEN, so this looks at two things: `text_offset`,
/// which the build sets to 4 MiB on rv32 and 2 MiB on rv64, and the first instruction, which is the
/// compressed `c.li s4,-13` ("MZ") when the kernel was built with the C extension and EFI.
fn parse_image(bytes: Vec<u8>) -> Result<Payload, Problem> {
    if u64_at(&bytes, field::TEXT_OFFSET) == TEXT_OFFSET_RV64 {
        return Err(Problem::Architecture(
            "64-bit RISC-V kernel (it wants to be 2 MiB aligned)".into(),
        ));
    }
    if bytes.first().is_some_and(|first| first & 3 != 3) {
        return Err(Problem::Architecture(
            "kernel with compressed instructions (the C extension)".into(),
        ));
    }
    let size = u64_at(&bytes, field::IMAGE_SIZE);
    if size > super::LIMIT.0 {
        return Err(Problem::TooLarge);
    }
    // `image_size` counts the zeroed data after the file's end, so a file may be shorter, but not
    // by much: a kernel's zeroed data is smaller than the rest of it.
    if (bytes.len() as u64) < size / 2 {
        let (have, want) = (Size(bytes.len() as u64), Size(size));
        return Err(Problem::Truncated(format!("{have} of a kernel that needs {want}")));
    }
    Ok(Payload::flat(bytes, size as u32))
}

/// Refuses well-known formats of other processors and boot loaders by their names.
fn refuse_foreign(bytes: &[u8]) -> Result<(), Problem> {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..offset + magic.len()) == Some(magic);
    let name = if at(0x38, ARM64_MAGIC) {
        "64-bit Arm kernel"
    } else if at(0x24, &0x016f_2818u32.to_le_bytes()) {
        "Arm zImage"
    } else if at(0x202, b"HdrS") {
        "x86 bzImage"
    } else if at(0, &0x2705_1956u32.to_be_bytes()) {
        return Err(Problem::Format("a U-Boot uImage; give the Image inside it".into()));
    } else if at(0, &0xd00d_feedu32.to_be_bytes()) {
        return Err(Problem::Format("a device tree or FIT image; give a plain Image".into()));
    } else if at(0, b"070701") {
        return Err(Problem::Format("a cpio archive; it belongs to --initrd".into()));
    } else {
        return Ok(());
    };
    Err(Problem::Architecture(name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::damage;

    fn image(text_offset: u64, size: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[0..4].copy_from_slice(&0x0000_006fu32.to_le_bytes());
        bytes[field::TEXT_OFFSET].copy_from_slice(&text_offset.to_le_bytes());
        bytes[field::IMAGE_SIZE].copy_from_slice(&size.to_le_bytes());
        bytes[0x30..0x38].copy_from_slice(b"RISCV\0\0\0");
        bytes[field::MAGIC2].copy_from_slice(RISCV_MAGIC2);
        bytes
    }

    fn refused(bytes: Vec<u8>) -> String {
        parse_kernel(bytes).unwrap_err().to_string()
    }

    #[test]
    fn an_image_needs_the_memory_its_header_says() {
        let kernel = parse_kernel(image(0x40_0000, 0x3000, 0x2000)).unwrap();
        assert_eq!((kernel.start(), kernel.end()), (0, 0x3000));
        assert!(!kernel.fixed);
    }

    #[test]
    fn kernels_that_cannot_run_are_told_apart() {
        assert!(refused(image(0x20_0000, 0x2000, 0x2000)).contains("64-bit RISC-V"));
        assert!(refused(image(0x40_0000, 0x9000, 0x1000)).contains("truncated"));
        assert!(refused(image(0x40_0000, 1 << 40, 0x1000)).contains("larger than"));
        assert!(refused(vec![0; 20]).contains("truncated"));
        assert!(refused(vec![0; 4096]).contains("not a kernel"));

        let mut compressed = image(0x40_0000, 0x2000, 0x2000);
        compressed[0..2].copy_from_slice(b"MZ");
        assert!(refused(compressed).contains("compressed"));

        let mut arm = vec![0; 4096];
        arm[0x38..0x3c].copy_from_slice(ARM64_MAGIC);
        assert!(refused(arm).contains("64-bit Arm"));

        let mut x86 = vec![0; 4096];
        x86[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(refused(x86).contains("bzImage"));
    }

    #[test]
    fn damaged_files_never_panic() {
        damage(&image(0x40_0000, 0x200, 0x200), 5_000, |bytes| drop(parse_kernel(bytes)));
    }
}

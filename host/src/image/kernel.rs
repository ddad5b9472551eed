//! Loader for what a machine boots: kernels and firmware, as RISC-V `Image`, ELF or raw binary, plain
//! or compressed.

use std::path::Path;
use std::str::FromStr;

use super::{ImageError, LoadAddress, Payload, Problem, Role, Segment, compress, elf, load};
use crate::units::Size;

/// The header of a RISC-V `Image` (Documentation/riscv/boot-image-header.rst).
mod field {
    use std::ops::Range;
    pub const TEXT_OFFSET: Range<usize> = 0x08..0x10;
    pub const IMAGE_SIZE: Range<usize> = 0x10..0x18;
    pub const MAGIC: Range<usize> = 0x30..0x38;
    pub const MAGIC2: Range<usize> = 0x38..0x3c;
    pub const END: usize = 0x40;
}
/// Magic number of version 0.1 of the header, of Linux 5.3; later versions have both.
const RISCV_MAGIC: &[u8] = b"RISCV\0\0\0";
const RISCV_MAGIC2: &[u8] = b"RSC\x05";
const ARM64_MAGIC: &[u8] = b"ARM\x64";

/// Value of `text_offset` in a kernel for M-mode (without an MMU).
const TEXT_OFFSET_M_MODE: u64 = 0;
/// Value of `text_offset` in an rv64 kernel: one large page of its MMU.
const TEXT_OFFSET_RV64: u64 = 0x20_0000;

/// Format of a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// `Image` or ELF, by their magic numbers.
    #[default]
    Auto,
    /// RISC-V `Image`.
    Image,
    /// ELF.
    Elf,
    /// Code without a header, which starts at its first byte and is linked to this address; without
    /// one, to where QEMU loads such a kernel.
    Raw(Option<u32>),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = |text: &str| {
            let digits = text.strip_prefix("0x")?.replace('_', "");
            u32::from_str_radix(&digits, 16).ok().filter(|address| address % 4 == 0)
        };
        match text {
            "auto" => Ok(Self::Auto),
            "image" => Ok(Self::Image),
            "elf" => Ok(Self::Elf),
            "raw" => Ok(Self::Raw(None)),
            _ => match text.strip_prefix("raw@").map(address) {
                Some(Some(address)) => Ok(Self::Raw(Some(address))),
                Some(None) => Err("write the address like raw@0x80200000".into()),
                None => Err("it is auto, image, elf, raw or raw@ADDR".into()),
            },
        }
    }
}

/// Returns the kernel at `path`. Any format may be compressed.
pub fn kernel(path: &Path, format: Format) -> Result<Payload, ImageError> {
    load(Role::Kernel, path, |bytes| parse_kernel(compress::expand(bytes)?, format))
}

/// Returns the firmware at `path`: ELF, `Image` (a kernel that runs in M-mode), or a raw binary that
/// runs at the start of RAM.
pub fn firmware(path: &Path) -> Result<Payload, ImageError> {
    load(Role::Firmware, path, |bytes| {
        let bytes = compress::expand(bytes)?;
        if elf::is_elf(&bytes) {
            return parse_elf(&bytes);
        }
        if is_image(&bytes) {
            return parse_image(bytes);
        }
        refuse_foreign(&bytes)?;
        let load_address = LoadAddress::Headerless;
        Ok(Payload { load_address, ..Payload::flat(bytes, 0) })
    })
}

/// Parses a decompressed kernel.
pub fn parse_kernel(bytes: Vec<u8>, format: Format) -> Result<Payload, Problem> {
    let image = is_image(&bytes);
    match format {
        Format::Auto | Format::Elf if elf::is_elf(&bytes) => return parse_elf(&bytes),
        Format::Auto | Format::Image if image => {
            if u64_at(&bytes, field::TEXT_OFFSET) == TEXT_OFFSET_M_MODE {
                tracing::warn!(
                    "the kernel wants to be at the start of RAM, as Linux for M-mode does; \
                     such a kernel is --firmware, without --kernel"
                );
            }
            return parse_image(bytes);
        }
        Format::Raw(address) => {
            let size = bytes.len() as u32;
            let (load_address, addr) = match address {
                Some(address) => (LoadAddress::Fixed, address),
                None => (LoadAddress::Headerless, 0),
            };
            let segments = vec![Segment { addr, bytes, size }];
            return Ok(Payload { load_address, ..Payload::linked(segments, addr) });
        }
        Format::Auto | Format::Image | Format::Elf => refuse_foreign(&bytes)?,
    }
    if bytes.len() < field::END {
        return Err(Problem::Truncated("too short for a kernel's header".into()));
    }
    Err(Problem::Format(match format {
        Format::Elf => "not an ELF file".into(),
        Format::Image => "not a RISC-V Image".into(),
        Format::Auto | Format::Raw(_) => "not a kernel: neither a RISC-V Image (plain or compressed) \
            nor ELF; for a raw binary give --kernel-format raw, or --firmware if it starts in M-mode"
            .into(),
    }))
}

/// Parses an ELF file that may use what the machine lacks, if it asks first: Linux has code for many
/// extensions, and a device tree that names none of them.
fn parse_elf(bytes: &[u8]) -> Result<Payload, Problem> {
    let program = elf::parse(bytes)?;
    if !program.lacks.is_empty() {
        tracing::info!("ELF attributes name extensions that are not there: {:?}", program.lacks);
    }
    Ok(program.payload)
}

fn is_image(bytes: &[u8]) -> bool {
    bytes.get(field::MAGIC2) == Some(RISCV_MAGIC2) || bytes.get(field::MAGIC) == Some(RISCV_MAGIC)
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
        bytes[field::MAGIC].copy_from_slice(RISCV_MAGIC);
        bytes[field::MAGIC2].copy_from_slice(RISCV_MAGIC2);
        bytes
    }

    fn refused(bytes: Vec<u8>) -> String {
        parse_kernel(bytes, Format::Auto).unwrap_err().to_string()
    }

    #[test]
    fn an_image_needs_the_memory_its_header_says() {
        let kernel = parse_kernel(image(0x40_0000, 0x3000, 0x2000), Format::Auto).unwrap();
        assert_eq!((kernel.start(), kernel.end()), (0, 0x3000));
        assert_eq!(kernel.load_address, LoadAddress::Free);
    }

    #[test]
    fn an_image_of_linux_5_3_has_the_older_header() {
        let mut old = image(0x40_0000, 0x3000, 0x2000);
        old[field::MAGIC2].fill(0);
        assert_eq!(parse_kernel(old, Format::Auto).unwrap().end(), 0x3000);
    }

    #[test]
    fn the_format_can_be_named() {
        let raw = parse_kernel(vec![0x13; 100], Format::Raw(None)).unwrap();
        assert_eq!((raw.load_address, raw.end()), (LoadAddress::Headerless, 100));
        let raw = parse_kernel(vec![0x13; 100], Format::Raw(Some(0x8020_0000))).unwrap();
        assert_eq!(
            (raw.load_address, raw.entry, raw.end()),
            (LoadAddress::Fixed, 0x8020_0000, 0x8020_0064)
        );
        assert_eq!("raw".parse(), Ok(Format::Raw(None)));
        assert_eq!("raw@0x8020_0000".parse(), Ok(Format::Raw(Some(0x8020_0000))));
        assert!("raw@2".parse::<Format>().unwrap_err().contains("raw@0x80200000"));
        assert!("zip".parse::<Format>().unwrap_err().contains("raw@ADDR"));
        let image = || image(0x40_0000, 0x3000, 0x2000);
        assert_eq!(parse_kernel(image(), Format::Image).unwrap().end(), 0x3000);
        let refused = |bytes, format| parse_kernel(bytes, format).unwrap_err().to_string();
        assert_eq!(refused(image(), Format::Elf), "not an ELF file");
        assert_eq!(refused(vec![0; 4096], Format::Image), "not a RISC-V Image");
        assert!(refused(vec![0; 4096], Format::Auto).contains("--kernel-format raw"));
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
        damage(&image(0x40_0000, 0x200, 0x200), 5_000, |bytes| {
            drop(parse_kernel(bytes, Format::Auto))
        });
    }
}

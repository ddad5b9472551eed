//! Formats of disk images, recognised by their first bytes.

use crate::image::{Problem, compress};

/// Number of bytes by which formats are recognised.
pub const START: u64 = 512;

/// A format of disk images.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// The file's bytes are the disk's.
    Raw,
    /// QEMU's, version 2 or 3.
    Qcow2,
}

/// Formats that must be converted first: where in the file, which bytes, the name.
const CONVERTIBLE: [(usize, &[u8], &str); 10] = [
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
];

/// Returns the format of an image that begins with `start`. A format that cannot be used is refused
/// with what makes it one that can.
pub fn detect(start: &[u8]) -> Result<Format, Problem> {
    for (at, magic, name) in CONVERTIBLE {
        if start.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            return Err(Problem::Format(format!(
                "a {name} image; make it a raw one with `qemu-img convert -f {name} -O raw`"
            )));
        }
    }
    if start.starts_with(b"QFI\xfb") {
        return Ok(Format::Qcow2);
    }
    match compress::detect(start) {
        Ok(None) => Ok(Format::Raw),
        Ok(Some(format)) => Err(compressed(&format.to_string())),
        Err(Problem::Compression(name)) => Err(compressed(name)),
        Err(other) => Err(other),
    }
}

fn compressed(name: &str) -> Problem {
    Problem::Format(format!(
        "compressed with {name}, and disks are read as they are; decompress the file first"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::sentence;

    fn starting(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        bytes
    }

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        assert_eq!(detect(&[0; 512]).unwrap(), Format::Raw);
        assert_eq!(detect(b"short").unwrap(), Format::Raw);
        assert_eq!(detect(&starting(0, b"QFI\xfb\0\0\0\x03")).unwrap(), Format::Qcow2);
        assert_eq!(detect(&starting(0x41, b"\x7f\x10\xda\xbe")).unwrap(), Format::Raw);
        for (at, magic, name) in CONVERTIBLE {
            let refused = sentence(&detect(&starting(at, magic)).unwrap_err());
            assert!(refused.contains(&format!("qemu-img convert -f {name} -O raw")), "{refused}");
        }
        for (magic, name) in [
            (&b"\x1f\x8b"[..], "gzip"),
            (b"\xfd7zXZ\0", "xz"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"BZh9", "bzip2"),
        ] {
            let refused = sentence(&detect(&starting(0, magic)).unwrap_err());
            let words = [name, "decompress the file first"];
            assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
        }
    }
}

//! Loaders for guest files: kernels, initrds, ROMs, firmware, programs, disks.
//!
//! No file is trusted: sizes are limited, every offset is checked, and a file that cannot work is
//! refused with one sentence that says why.

pub mod cache;
pub mod compress;
pub mod disk;
pub mod elf;
pub mod initrd;
pub mod kernel;
pub mod rom;

use std::fmt;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::units::Size;

/// Largest file that is read, and largest size of a decompressed one.
pub const LIMIT: Size = Size::mib(1024);

/// Role of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The operating system's kernel.
    Kernel,
    /// The initial root file system.
    Initrd,
    /// A ROM.
    Rom,
    /// M-mode firmware.
    Firmware,
    /// A device tree blob.
    DeviceTree,
    /// A disk.
    Disk,
    /// A bare-metal program.
    Program,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Rom => "ROM",
            Self::Firmware => "firmware",
            Self::DeviceTree => "device tree",
            Self::Disk => "disk",
            Self::Program => "program",
        })
    }
}

/// Error of a file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{role} {}", path.display())]
pub struct ImageError {
    /// Role of the file.
    pub role: Role,
    /// Path of the file.
    pub path: PathBuf,
    /// Problem of the file.
    #[source]
    pub problem: Problem,
}

/// Problem of a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The host cannot read the file.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// The host does not let the file be written.
    #[error("cannot be opened for writing")]
    Write(#[source] io::Error),
    /// The host has no more open files.
    #[error("no more open files are allowed; `ulimit -n` raises the limit")]
    OpenFiles(#[source] io::Error),
    /// The host cannot lock the file.
    #[error("cannot be locked")]
    Lock(#[source] io::Error),
    /// Somebody else uses the file.
    #[error("{0}")]
    InUse(String),
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// The file is not a regular one but a directory, a pipe or a device.
    #[error("not a regular file but {0}")]
    NotAFile(&'static str),
    /// The file is larger than [`LIMIT`], as it is or decompressed.
    #[error("larger than {LIMIT}, the limit for an image, as it is or decompressed")]
    TooLarge,
    /// The file ends before its contents do.
    #[error("truncated: {0}")]
    Truncated(String),
    /// Compressed data is damaged.
    #[error("its {format} data is damaged")]
    Damaged {
        /// Compression format.
        format: compress::Format,
        /// The decompressor's error.
        source: io::Error,
    },
    /// The compression format is not supported.
    #[error("compressed with {0}, which is not supported; use gzip, xz or zstd")]
    Compression(&'static str),
    /// The file is for another processor.
    #[error("{0}; this machine is 32-bit RISC-V (rv32ima)")]
    Architecture(String),
    /// The format is unknown.
    #[error("{0}")]
    Format(String),
}

impl Problem {
    /// Adds the file's role and path to the problem.
    pub fn of(self, role: Role, path: &Path) -> ImageError {
        ImageError { role, path: path.into(), problem: self }
    }
}

/// Returns the contents of a regular file of at most [`LIMIT`].
pub fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    // Checked before opening, because opening a socket fails with an error that helps nobody.
    check_regular(&std::fs::metadata(path).map_err(Problem::Read)?)?;
    // The path may name another file by now, and opening a pipe must not wait for its writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(Problem::Read)?;
    let meta = file.metadata().map_err(Problem::Read)?;
    check_regular(&meta)?;
    if meta.len() > LIMIT.0 {
        return Err(Problem::TooLarge);
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(LIMIT.0 + 1).read_to_end(&mut bytes).map_err(Problem::Read)?;
    match bytes.len() as u64 {
        0 => Err(Problem::Empty),
        n if n > LIMIT.0 => Err(Problem::TooLarge),
        _ => Ok(bytes),
    }
}

fn check_regular(meta: &Metadata) -> Result<(), Problem> {
    let kind = meta.file_type();
    Err(Problem::NotAFile(if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe; write what comes out of it to a file"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device; copy its contents to a file"
    }))
}

/// Loads the file at `path` with `parse`, and adds its name to any error.
pub fn load<T>(
    role: Role,
    path: &Path,
    parse: impl FnOnce(Vec<u8>) -> Result<T, Problem>,
) -> Result<T, ImageError> {
    read(path).and_then(parse).map_err(|problem| problem.of(role, path))
}

/// A segment of a program in guest memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// First address.
    pub addr: u32,
    /// Contents of its first bytes.
    pub bytes: Vec<u8>,
    /// Length in memory, at least that of `bytes`; the rest is zero.
    pub size: u32,
}

impl Segment {
    /// Returns one past the last address, which may be 4 GiB.
    pub fn end(&self) -> u64 {
        u64::from(self.addr) + u64::from(self.size)
    }
}

/// A program or image that is loaded into memory and started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload {
    /// Segments; at least one.
    pub segments: Vec<Segment>,
    /// Address of the first instruction.
    pub entry: u32,
    /// Whether the addresses are fixed by linking; otherwise they count from the load address.
    pub fixed: bool,
}

impl Payload {
    /// Returns a flat image that runs at any suitable address and needs `size` bytes of memory.
    pub fn flat(bytes: Vec<u8>, size: u32) -> Self {
        let size = size.max(bytes.len() as u32);
        Self { segments: vec![Segment { addr: 0, bytes, size }], entry: 0, fixed: false }
    }

    /// Returns the first address.
    pub fn start(&self) -> u32 {
        self.segments.iter().map(|s| s.addr).min().unwrap_or(0)
    }

    /// Returns one past the last address.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(Segment::end).max().unwrap_or(0)
    }

    /// Returns the payload moved so that `start()` becomes `base` plus its offset in a page.
    pub fn moved_to(mut self, base: u32) -> Self {
        let delta = base.wrapping_sub(self.start() & !0xfff);
        for segment in &mut self.segments {
            segment.addr = segment.addr.wrapping_add(delta);
        }
        self.entry = self.entry.wrapping_add(delta);
        self
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Seeded random damage for the loaders' tests.

    /// A small deterministic generator of pseudo-random numbers (xorshift64*).
    pub struct Random(pub u64);

    impl Random {
        /// Returns the next number.
        pub fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        /// Returns a number below `n`.
        pub fn below(&mut self, n: usize) -> usize {
            (self.next() % n as u64) as usize
        }
    }

    /// Calls `f` with `rounds` damaged copies of `seed`: cut short, bytes changed, or both.
    pub fn damage(seed: &[u8], rounds: u32, mut f: impl FnMut(Vec<u8>)) {
        let mut random = Random(0x7078_766d);
        for _ in 0..rounds {
            let mut bytes = seed.to_vec();
            if random.below(2) == 0 {
                bytes.truncate(random.below(seed.len() + 1));
            }
            for _ in 0..random.below(8) {
                if !bytes.is_empty() {
                    // Headers matter most: half of the changes go to the first 128 bytes.
                    let reach =
                        if random.below(2) == 0 { bytes.len().min(128) } else { bytes.len() };
                    let at = random.below(reach);
                    bytes[at] = random.next() as u8;
                }
            }
            f(bytes);
        }
    }
}

//! Loaders for guest files: kernels, initrds, ROMs, firmware, programs, disks.
//!
//! No file is trusted: sizes are limited, every offset is checked, and a file that cannot work is
//! refused with one sentence that says why.

pub mod attributes;
pub mod cache;
pub mod compress;
pub mod disk;
pub mod elf;
pub mod initrd;
pub mod kernel;
pub mod opensbi;
pub mod rom;

use std::fmt;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::units::Size;

/// Largest file that is read, and largest size of a decompressed one.
pub const LIMIT: Size = Size::mib(1024);

/// Options of GCC and Clang with which programs for this machine are compiled.
const COMPILE_WITH: &str = "-march=rv32ima_zicsr_zifencei -mabi=ilp32";

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
    /// The file is for a RISC-V processor with more than this one has.
    #[error("{0}; this machine has rv32ima: compile with {COMPILE_WITH}")]
    Extension(String),
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

/// Where a payload may be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadAddress {
    /// Anywhere: its addresses count from where it is loaded.
    Free,
    /// Where QEMU puts code that does not say where it belongs: it may be linked to that address. Its
    /// addresses count from there.
    Headerless,
    /// At the addresses to which it is linked, and nowhere else.
    Fixed,
    /// At its addresses where those are RAM; anywhere, as a whole, where none of them is.
    Movable,
}

/// A word of a payload that holds an address of the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relocation {
    /// Address of the word, as linked.
    pub at: u32,
    /// Address that the word holds, as linked.
    pub value: u32,
}

/// A program or image that is loaded into memory and started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload {
    /// Segments, by rising addresses; at least one.
    pub segments: Vec<Segment>,
    /// Address of the first instruction.
    pub entry: u32,
    /// Where it may be loaded.
    pub load_address: LoadAddress,
    /// Words that change when it moves.
    pub relocations: Vec<Relocation>,
    /// Addresses of what the program does not use: the file's own headers and tables for linkers,
    /// at the start of a segment. Memory need not hold them.
    pub headers: Option<Range<u32>>,
}

impl Payload {
    /// Returns a flat image that runs at any suitable address and needs `size` bytes of memory.
    pub fn flat(bytes: Vec<u8>, size: u32) -> Self {
        let size = size.max(bytes.len() as u32);
        Self {
            load_address: LoadAddress::Free,
            ..Self::linked(vec![Segment { addr: 0, bytes, size }], 0)
        }
    }

    /// Returns a program that runs at the addresses of its segments only.
    pub fn linked(segments: Vec<Segment>, entry: u32) -> Self {
        Self {
            segments,
            entry,
            load_address: LoadAddress::Fixed,
            relocations: Vec::new(),
            headers: None,
        }
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
    pub fn moved_to(self, base: u32) -> Self {
        let delta = base.wrapping_sub(self.start() & !0xfff);
        self.moved_by(delta)
    }

    /// Returns the payload moved by `delta` bytes, with its relocations applied. Relocations
    /// outside of all segments do nothing.
    pub fn moved_by(mut self, delta: u32) -> Self {
        for &Relocation { at, value } in &self.relocations {
            let after = self.segments.partition_point(|segment| segment.addr <= at);
            let Some(segment) = after.checked_sub(1).and_then(|i| self.segments.get_mut(i)) else {
                continue;
            };
            let from = (at - segment.addr) as usize;
            if from + 4 <= segment.size as usize {
                // The word may lie behind the contents, in the zeros.
                segment.bytes.resize(segment.bytes.len().max(from + 4), 0);
                segment.bytes[from..from + 4]
                    .copy_from_slice(&value.wrapping_add(delta).to_le_bytes());
            }
        }
        let shift = |addr: &mut u32| *addr = addr.wrapping_add(delta);
        self.segments.iter_mut().for_each(|segment| shift(&mut segment.addr));
        for Relocation { at, value } in &mut self.relocations {
            shift(at);
            shift(value);
        }
        if let Some(range) = &mut self.headers {
            shift(&mut range.start);
            shift(&mut range.end);
        }
        shift(&mut self.entry);
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

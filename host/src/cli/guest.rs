//! Options that describe the machines of a fleet.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use emu_core::layout::MachineKind;
use emu_core::mem::FRAME_SIZE;

use super::VirtioArgs;
use crate::backend::ClockSource;
use crate::error::Error;
use crate::image::disk::DiskSpec;
use crate::image::kernel::Format;
use crate::machine::{GuestOptions, Kernel, Link, Macs};
use crate::units::Size;

/// Which machine, and what is in it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct GuestArgs {
    /// Kernel: RISC-V Image (plain, gzip, xz, zstd) or ELF; `default` is that of the image in the
    /// cache [default: none with --firmware, else `default`]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Format of the kernel: auto (Image or ELF), image, elf, raw (code without a header, which
    /// starts 4 MiB above the start of RAM, as in QEMU), or raw@ADDR, which starts at that address
    #[arg(long, value_name = "FORMAT", default_value = "auto", requires = "kernel")]
    pub kernel_format: Format,
    /// Initial root file system: cpio (plain, gzip, xz, zstd) [default: none with a
    /// kernel of yours, --firmware or --rom; else the one in the cache, if the machine has no ROM]
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// ROM that all machines share, up to 64 MiB; without --initrd it holds the root file system,
    /// a cramfs [default: none with a kernel of yours, --firmware, --initrd or --dtb, else the one in
    /// the cache]
    #[arg(long, value_name = "FILE")]
    pub rom: Option<PathBuf>,
    /// Device tree blob to use instead of the machine's own (see `pxvm dtb`)
    #[arg(long, value_name = "FILE")]
    pub dtb: Option<PathBuf>,
    /// Change the tree of --dtb, as the machines get it, where it describes another machine; a
    /// warning lists what
    #[arg(long, requires = "dtb")]
    pub dtb_fix: bool,
    /// Add to the kernel's command line; words replace defaults that they contradict (`pxvm dtb`
    /// shows the result)
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true)]
    #[arg(allow_hyphen_values = true)]
    pub append: String,
    /// RAM of each machine
    #[arg(long, value_name = "SIZE", default_value = "24M")]
    pub memory: Size,
    /// Memory that each machine is expected to write, which decides how many of them a GPU has room
    /// for [default: what the same machine wrote in earlier runs until it was ready]
    #[arg(long, value_name = "SIZE", value_parser = memory_per_vm)]
    pub memory_per_vm: Option<Size>,
    /// Memory map: that of QEMU's virt, or that of semu
    #[arg(long, value_enum, default_value_t = Machine::Virt)]
    pub machine: Machine,
    /// M-mode firmware instead of the built-in SBI: OpenSBI, a boot loader, a kernel for M-mode; raw,
    /// ELF or Image. It starts alone, or with the kernel that --kernel names above it
    #[arg(long, value_name = "FILE")]
    pub firmware: Option<PathBuf>,
    /// Disk (virtio-blk): a raw or qcow2 image, or a block device. What a machine writes is its own
    /// and lost at its end; FILE:rw writes it back, FILE:ro refuses it. %d in FILE is the machine's
    /// number
    #[arg(long, value_name = "FILE[:OPTION]")]
    pub disk: Option<DiskSpec>,
    /// Serve guests' semihosting requests: console, exit and time, no files
    #[arg(long)]
    pub semihosting: bool,
    /// Its virtio devices.
    #[command(flatten)]
    pub virtio: VirtioArgs,
    /// Seed of all randomness in the fleet; each machine has its own part of it
    /// [default: random, printed and reported by boot; 0 with --clock instret and elsewhere]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl GuestArgs {
    /// The same for the library.
    pub fn options(self, count: u32, clock: ClockSource) -> Result<GuestOptions, Error> {
        let kernel = match self.kernel {
            None => None,
            Some(path) if path.as_os_str() != "default" => {
                Some(Kernel::File(path, self.kernel_format))
            }
            Some(_) if self.kernel_format == Format::Auto => Some(Kernel::Default),
            Some(_) => {
                let why = "--kernel-format is for a kernel of yours; with --kernel default leave \
                           it out, or give --kernel ./default for a file of that name";
                return Err(Error::Usage(why.into()));
            }
        };
        Ok(GuestOptions {
            count,
            kind: self.machine.into(),
            memory: self.memory,
            memory_per_vm: self.memory_per_vm,
            kernel,
            initrd: self.initrd,
            rom: self.rom,
            firmware: self.firmware,
            dtb: self.dtb,
            dtb_fix: self.dtb_fix,
            disk: self.disk,
            append: self.append,
            seed: self.seed.unwrap_or(0),
            host_time: clock == ClockSource::Host,
            macs: Macs::Same,
            link: Link::Up,
            virtio: self.virtio.into(),
            semihosting: self.semihosting,
        })
    }
}

fn memory_per_vm(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if size.0 < u64::from(FRAME_SIZE) {
        return Err(format!("it must be {} or more", Size(FRAME_SIZE.into())));
    }
    Ok(size)
}

/// `--machine`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Machine {
    /// RAM at 0x8000_0000, as QEMU's virt
    Virt,
    /// RAM at 0, as the semu emulator
    Semu,
}

impl From<Machine> for MachineKind {
    fn from(machine: Machine) -> Self {
        match machine {
            Machine::Virt => Self::Virt,
            Machine::Semu => Self::Semu,
        }
    }
}

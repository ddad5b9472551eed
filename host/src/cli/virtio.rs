//! Options of virtio devices.

use clap::{Args, ValueEnum};
use emu_core::dev::virtio::mmio::Version;

use crate::virtio::{Choice, NamedSlots};

/// How guests find their virtio devices.
#[derive(Clone, Copy, Debug, Args)]
pub struct VirtioArgs {
    /// Version of the virtio transports [default: modern for a Linux Image, else legacy, as QEMU's]
    #[arg(long, value_enum, value_name = "VERSION")]
    pub virtio: Option<VirtioVersion>,
    /// Virtio transports of devices, numbered from 0 [default: net=0,rng=1,blk=2 for a Linux Image,
    /// else blk=0,net=1,rng=2; a device that is not named makes room]
    #[arg(long, value_name = "DEVICE=N,...")]
    pub virtio_slot: Option<NamedSlots>,
}

/// `--virtio`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum VirtioVersion {
    /// virtio-mmio version 1, as QEMU without force-legacy=false
    Legacy,
    /// virtio-mmio version 2, of virtio 1.0 and later
    Modern,
}

impl From<VirtioArgs> for Choice {
    fn from(args: VirtioArgs) -> Self {
        let version = args.virtio.map(|version| match version {
            VirtioVersion::Legacy => Version::Legacy,
            VirtioVersion::Modern => Version::Modern,
        });
        Self { version, slots: args.virtio_slot.unwrap_or_default() }
    }
}

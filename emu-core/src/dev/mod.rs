//! Devices, as pure state machines.
//!
//! The guest drives a device through its registers (`read`, `write`), and the device drives an
//! interrupt line (`irq`). No device waits, and none touches anything but its own state, guest RAM
//! through [`crate::mem::Dma`] and the VM's [`crate::port::Port`].

/// Which accesses a register supports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Reads only.
    R,
    /// Writes only.
    W,
    /// Both.
    RW,
}

impl Access {
    const fn reads(self) -> bool {
        matches!(self, Self::R | Self::RW)
    }

    const fn writes(self) -> bool {
        matches!(self, Self::W | Self::RW)
    }
}

/// Declares a device's 32-bit registers once: name, offset, access.
macro_rules! registers {
    (
        $(#[$doc:meta])*
        enum $Registers:ident { $($(#[$reg_doc:meta])* $Name:ident = $offset:literal, $access:ident;)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[cfg_attr(test, derive(Debug))]
        enum $Registers { $($(#[$reg_doc])* $Name,)* }

        impl $Registers {
            /// Returns the register that a load from `offset` reads, if there is one.
            const fn for_read(offset: u32) -> Option<Self> {
                match Self::at(offset) {
                    Some((register, access)) if access.reads() => Some(register),
                    _ => None,
                }
            }

            /// Returns the register that a store to `offset` writes, if there is one.
            const fn for_write(offset: u32) -> Option<Self> {
                match Self::at(offset) {
                    Some((register, access)) if access.writes() => Some(register),
                    _ => None,
                }
            }

            const fn at(offset: u32) -> Option<(Self, $crate::dev::Access)> {
                $(if offset == $offset {
                    return Some((Self::$Name, $crate::dev::Access::$access));
                })*
                None
            }
        }
    };
}

pub mod clint;
pub mod finisher;
pub mod plic;
pub mod rtc;
pub mod uart;
pub mod virtio;

use crate::layout::MachineKind;

/// All devices of one VM.
#[derive(Clone)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Devices {
    /// Core-local interruptor.
    pub clint: clint::Clint,
    /// 16550 UART.
    pub uart: uart::Uart,
    /// Platform-level interrupt controller.
    pub plic: plic::Plic,
    /// Goldfish real-time clock.
    pub rtc: rtc::Rtc,
    /// Virtio devices.
    pub virtio: virtio::VirtioDevices,
}

state!(Devices { clint, uart, plic, rtc, virtio });

impl Devices {
    /// Makes all devices in their state after reset, without those that the host must attach
    /// (virtio).
    pub const fn new(kind: MachineKind) -> Self {
        Self {
            clint: clint::Clint::RESET,
            uart: uart::Uart::RESET,
            plic: plic::Plic::new(kind.map().plic_sources),
            rtc: rtc::Rtc::RESET,
            virtio: virtio::VirtioDevices::ABSENT,
        }
    }
}

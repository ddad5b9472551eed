//! Virtio devices (virtio 1.2) behind the MMIO transport.
//!
//! They have three layers: the transport's registers ([`mmio`]), the split virtqueue ([`queue`])
//! and the devices. A device is a file with an implementation of [`Device`], and a row of the table
//! [`VirtioDevices`]; nothing else here knows it by name.
//!
//! The machine has more transports than devices. The number of a transport is called a slot, and
//! the slot in which a device is, is part of the device's state, as the host placed it. The other
//! transports answer that they have no device.
//!
//! A driver that violates the rules of the ring gets DEVICE_NEEDS_RESET, and the device does
//! nothing more until the driver resets it. Nothing that a driver writes can reach another VM.
//!
//! A device processes a queue when the driver notifies it. If it cannot finish, because the host
//! has no room for a packet or the slice's budget of work is used up, [`Device::poll`]
//! continues later.

pub mod blk;
#[cfg(any(test, feature = "test-util"))]
pub mod driver;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;

use crate::disk::Disk;
use crate::mem::{Dma, Memory};
use crate::port::Port;
use crate::trap::Trap;
use mmio::{Identity, Transport, Version};
use queue::{Queue, QueueError, QueueStatus};

/// Feature bits of every device (section 6).
pub mod feature {
    /// Interrupts and notifications suppressed by ring index (VIRTIO_F_EVENT_IDX).
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device (VIRTIO_F_VERSION_1).
    pub const VERSION_1: u64 = 1 << 32;
    pub(super) const COMMON: u64 = VERSION_1 | EVENT_IDX;
}

/// What a device may access besides its own state.
pub struct Io<'a, M, D, P> {
    /// Guest RAM.
    pub ram: Dma<'a, M>,
    /// The disk behind virtio-blk.
    pub disk: &'a mut D,
    /// The host.
    pub port: &'a mut P,
}

/// Why a device stopped before it had processed all available buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deferred {
    /// The port has no room. The device continues when the host has drained it.
    Port,
    /// The slice's budget of work is used up. The device continues in the next slice.
    Budget,
    /// This page of the disk is not loaded. The device continues when the host has loaded it.
    Disk(u32),
}

/// A virtio device: what the transport must know of it, and what it does with its queues.
///
/// The methods with a body are the same for every device; those without are the device's own.
pub trait Device {
    /// Device type number (section 5).
    const ID: u32;
    /// The features that it offers.
    const FEATURES: u64;
    /// The device of a machine that does not have it: in no slot.
    const ABSENT: Self;

    /// Returns the features that it offers as it is: [`Device::FEATURES`], and what the host has
    /// attached may add some.
    fn features(&self) -> u64 {
        Self::FEATURES
    }

    /// Returns the registers of its transport.
    fn transport(&self) -> &Transport;

    /// Returns its queues, in the order of their numbers.
    fn queues(&self) -> &[Queue];

    /// Returns the registers of its transport, and its queues.
    fn transport_and_queues(&mut self) -> (&mut Transport, &mut [Queue]);

    /// Returns byte `at` of its configuration space, which drivers can only read.
    fn config_byte(&self, at: usize) -> u8;

    /// Processes the buffers that the driver made available in queue `index`, one of its own.
    ///
    /// After [`QueueError::NoFrame`] the same call can be repeated and continues.
    fn process<M: Memory, D: Disk, P: Port>(
        &mut self,
        index: u32,
        io: &mut Io<'_, M, D, P>,
    ) -> Result<QueueStatus, QueueError>;

    /// Looks for input on the port, and returns the queue that it is for. The device drops the
    /// input if it is not `live`: its driver is not up, or must reset it first.
    fn poll_input<P: Port>(&mut self, live: bool, port: &mut P) -> Option<u32>;

    /// Returns the level of the interrupt line.
    fn irq(&self) -> bool {
        self.transport().irq()
    }

    /// Returns why the device has unfinished work, which [`Device::poll`] continues; `None` if it
    /// has none.
    ///
    /// A machine must not execute instructions while there is some. A notification is then atomic
    /// for the guest, which can observe neither how fast the host drains output nor where slices
    /// end.
    fn deferred(&self) -> Option<Deferred> {
        self.transport().deferred()
    }

    /// Loads `size` bytes from the register at `offset`.
    fn read(&self, version: Version, offset: u32, size: u32) -> u32 {
        if let Some(at) = offset.checked_sub(mmio::CONFIG_BASE) {
            return mmio::read_config(at, size, |at| self.config_byte(at));
        }
        let identity = Identity { id: Self::ID, features: self.features() };
        self.transport().read(self.queues(), version, identity, offset, size)
    }

    /// Stores `size` bytes to the register at `offset`.
    ///
    /// If it returns [`Trap::NoFrame`], the same store can be repeated.
    fn write<M: Memory, D: Disk, P: Port>(
        &mut self,
        version: Version,
        offset: u32,
        size: u32,
        value: u32,
        io: &mut Io<'_, M, D, P>,
    ) -> Result<(), Trap> {
        let features = self.features();
        let (transport, queues) = self.transport_and_queues();
        match transport.write(queues, version, features, offset, size, value, &io.ram) {
            Some(index) => self.serve(version, index, io),
            None => Ok(()),
        }
    }

    /// Continues unfinished work, and takes input from the port. Called between slices.
    ///
    /// If it returns [`Trap::NoFrame`], the same call can be repeated and continues.
    fn poll<M: Memory, D: Disk, P: Port>(
        &mut self,
        version: Version,
        io: &mut Io<'_, M, D, P>,
    ) -> Result<(), Trap> {
        let (transport, queues) = self.transport_and_queues();
        let deferred = transport.begin_slice();
        if deferred != 0 {
            for index in 0..queues.len() as u32 {
                if deferred & 1 << index != 0 {
                    self.serve(version, index, io)?;
                }
            }
        }
        let live = self.transport().is_live(version);
        match self.poll_input(live, io.port) {
            Some(index) => self.serve(version, index, io),
            None => Ok(()),
        }
    }

    /// Lets the device process queue `index`, and publishes what it used. The driver chooses the
    /// index, so it may be that of no queue.
    fn serve<M: Memory, D: Disk, P: Port>(
        &mut self,
        version: Version,
        index: u32,
        io: &mut Io<'_, M, D, P>,
    ) -> Result<(), Trap> {
        let (transport, queues) = self.transport_and_queues();
        let Some(queue) = queues.get(index as usize) else { return Ok(()) };
        if !transport.is_live(version) || !queue.is_ready() {
            transport.set_deferred(index, false);
            return Ok(());
        }
        let used_before = queue.used_idx();
        let outcome = self.process(index, io);
        let (transport, queues) = self.transport_and_queues();
        let Some(queue) = queues.get(index as usize) else { return Ok(()) };
        // Also after an error, because what was used before it is done and must be seen.
        let event_idx = transport.has_feature(feature::EVENT_IDX);
        let published = queue.publish(&mut io.ram, used_before, event_idx);
        if let Ok(true) = published {
            transport.used_buffer();
        }
        match published.and(outcome) {
            Ok(QueueStatus::Done) => transport.set_deferred(index, false),
            Ok(QueueStatus::Deferred) => transport.set_deferred(index, true),
            Err(QueueError::NoFrame) => return Err(Trap::NoFrame),
            Err(QueueError::Broken) => transport.fail(),
        }
        Ok(())
    }
}

/// Makes of one row for each device the devices of a VM, and what finds them by their slot.
macro_rules! virtio_devices {
    ($($(#[$doc:meta])* $Kind:ident, $field:ident: $Device:ty;)*) => {
        /// Which virtio device, in the order of the rows.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum DeviceKind {
            $($(#[$doc])* $Kind,)*
        }

        impl DeviceKind {
            /// All devices.
            pub const ALL: [Self; [$(Self::$Kind),*].len()] = [$(Self::$Kind),*];

            /// Returns the name of the device: `net`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Kind => stringify!($field),)*
                }
            }

            /// Returns the slot in which the device is unless the host places it.
            pub const fn default_slot(self) -> u32 {
                self as u32
            }
        }

        /// The virtio devices of one VM.
        #[derive(Clone, PartialEq, Eq, Debug)]
        #[cfg_attr(
            feature = "zerocopy",
            derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
        )]
        #[repr(C)]
        pub struct VirtioDevices {
            /// The version of all transports, which the host chooses.
            pub version: Version,
            /// The versions of which drivers have written registers that the other one does not
            /// have: the bits with their numbers.
            versions_written: u32,
            $($(#[$doc])* pub $field: $Device,)*
        }

        state!(VirtioDevices { version, versions_written, $($field),* });

        impl VirtioDevices {
            /// No devices.
            pub const ABSENT: Self = Self {
                version: Version::Modern,
                versions_written: 0,
                $($field: <$Device>::ABSENT,)*
            };

            /// Returns whether drivers took the devices for those of the other version. Some write
            /// registers of both; those know this one. For the host, which can tell the user why
            /// nothing happens.
            pub const fn wrong_version(&self) -> bool {
                self.versions_written != 0 && self.versions_written & 1 << self.version as u32 == 0
            }

            /// Returns the slot in which a device is; [`mmio::NO_SLOT`] when the machine does not
            /// have the device.
            pub fn slot(&self, device: DeviceKind) -> u32 {
                match device {
                    $(DeviceKind::$Kind => self.$field.transport().slot(),)*
                }
            }

            /// Returns whether the machine has a device.
            pub fn has(&self, device: DeviceKind) -> bool {
                self.slot(device) != mmio::NO_SLOT
            }

            /// Returns the device in a slot, if there is one.
            pub fn device(&self, slot: u32) -> Option<DeviceKind> {
                DeviceKind::ALL.into_iter().find(|&device| self.slot(device) == slot)
            }

            /// Moves a device to a slot that is free, before the machine starts.
            pub fn place(&mut self, device: DeviceKind, slot: u32) {
                match device {
                    $(DeviceKind::$Kind => {
                        self.$field.transport_and_queues().0.move_to(slot);
                    })*
                }
            }

            /// Returns the level of the interrupt line of a device.
            pub fn irq(&self, device: DeviceKind) -> bool {
                match device {
                    $(DeviceKind::$Kind => self.$field.irq(),)*
                }
            }

            /// Takes note that the interrupt controller forwarded the interrupt of the device in a
            /// slot. Legacy drivers may never acknowledge it: QEMU's line is one request for each
            /// notification, and drivers that were written for it rely on that.
            pub fn claimed(&mut self, slot: u32) {
                if self.version == mmio::Version::Modern {
                    return;
                }
                match self.device(slot) {
                    $(Some(DeviceKind::$Kind) => self.$field.transport_and_queues().0.claimed(),)*
                    None => {}
                }
            }

            /// Returns why a device has unfinished work ([`Device::deferred`]).
            pub fn deferred(&self) -> Option<Deferred> {
                None$(.or_else(|| self.$field.deferred()))*
            }

            /// Loads from a register of the transport with number `slot` ([`Device::read`]).
            pub fn read(&self, slot: u32, offset: u32, size: u32) -> u32 {
                match self.device(slot) {
                    $(Some(DeviceKind::$Kind) => self.$field.read(self.version, offset, size),)*
                    None => mmio::read_empty(self.version, offset),
                }
            }

            /// Stores to a register of the transport with number `slot` ([`Device::write`]).
            pub fn write<M: Memory, D: Disk, P: Port>(
                &mut self,
                slot: u32,
                offset: u32,
                size: u32,
                value: u32,
                io: &mut Io<'_, M, D, P>,
            ) -> Result<(), Trap> {
                let Some(device) = self.device(slot) else { return Ok(()) };
                let version = self.version;
                if let Some(written) = mmio::only_version(offset) {
                    self.versions_written |= 1 << written as u32;
                }
                match device {
                    $(DeviceKind::$Kind => self.$field.write(version, offset, size, value, io),)*
                }
            }

            /// Polls all devices ([`Device::poll`]).
            // Once a slice, so its code stays out of the function with the instruction loop.
            #[inline(never)]
            pub fn poll<M: Memory, D: Disk, P: Port>(
                &mut self,
                io: &mut Io<'_, M, D, P>,
            ) -> Result<(), Trap> {
                $(self.$field.poll(self.version, io)?;)*
                Ok(())
            }
        }
    };
}

virtio_devices! {
    /// Network card.
    Net, net: net::Net;
    /// Entropy source.
    Rng, rng: rng::Rng;
    /// Disk.
    Blk, blk: blk::Blk;
}

//! Virtio devices (virtio 1.2) behind the MMIO transport.
//!
//! They have three layers: the transport's registers ([`mmio`]), the split virtqueue ([`queue`])
//! and the devices themselves ([`net`], [`rng`], [`blk`]).
//!
//! A driver that violates the rules of the ring gets DEVICE_NEEDS_RESET, and the device does
//! nothing more until the driver resets it. Nothing that a driver writes can reach another VM.
//!
//! A device processes a queue when the driver notifies it. If it cannot finish, because the host
//! has no room for a packet or the slice's budget of work is used up, [`Virtio::poll`]
//! continues later.

pub mod blk;
#[cfg(any(test, feature = "test-util"))]
pub mod driver;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;

use crate::chacha::ChaCha;
use crate::mem::{Dma, Memory};
use crate::port::Port;
use crate::trap::Trap;
use mmio::{Transport, interrupt};
use queue::{Budget, Queue, QueueError, QueueStatus};

/// Device type numbers (section 5).
pub mod device_id {
    /// No device behind this transport.
    pub const ABSENT: u32 = 0;
    /// Network card.
    pub const NET: u32 = 1;
    /// Block device.
    pub const BLK: u32 = 2;
    /// Entropy source.
    pub const RNG: u32 = 4;
}

/// Feature bits of every device (section 6).
pub mod feature {
    /// Interrupts and notifications suppressed by ring index (VIRTIO_F_EVENT_IDX).
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device (VIRTIO_F_VERSION_1).
    pub const VERSION_1: u64 = 1 << 32;
    pub(super) const COMMON: u64 = VERSION_1 | EVENT_IDX;
}

/// The most queues that a device has.
const QUEUES: usize = 2;

/// What a device may access besides its own state.
pub struct Io<'a, M, D, P> {
    /// Guest RAM.
    pub ram: Dma<'a, M>,
    /// The disk behind virtio-blk, from its first byte.
    pub disk: &'a mut D,
    /// The host.
    pub port: &'a mut P,
    /// Randomness for virtio-rng.
    pub rng: &'a mut ChaCha,
}

/// The contents of a device's configuration space. Each type of device uses some of the fields.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Config {
    /// virtio-blk: size in sectors of 512 bytes.
    pub capacity: u64,
    /// virtio-net: hardware address.
    pub mac: [u8; 6],
    /// virtio-net: link status bits.
    pub link: u16,
}

/// Statistics of a network device, for the host to read. A driver's reset does not clear them.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Counters {
    /// Packets that were delivered to the guest.
    pub rx_packets: u64,
    /// Packets to the guest that were dropped, because no driver was up or its buffer was
    /// too small.
    pub rx_drops: u64,
    /// Packets that the guest sent.
    pub tx_packets: u64,
    /// Packets from the guest that were dropped, because they were runts or giants.
    pub tx_drops: u64,
}

/// Why a device stopped before it had processed all available buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deferred {
    /// The port has no room. The device continues when the host has drained it.
    Port,
    /// The slice's budget of work is used up. The device continues in the next slice.
    Budget,
}

/// One virtio device and its transport.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Virtio {
    transport: Transport,
    queues: [Queue; QUEUES],
    /// The contents of the configuration space.
    pub config: Config,
    /// Statistics.
    pub counters: Counters,
    /// How much work the device may do in this slice. Apart from the transport, because a driver's
    /// reset must not renew it.
    budget: Budget,
    /// Keeps what follows aligned.
    reserved: u32,
}

impl Virtio {
    /// A transport without a device.
    pub const ABSENT: Self = Self::new(device_id::ABSENT);

    /// An entropy source.
    pub const RNG: Self = Self::new(device_id::RNG);

    /// A network card with hardware address `mac`, link up.
    pub const fn net(mac: [u8; 6]) -> Self {
        let mut device = Self::new(device_id::NET);
        device.config.mac = mac;
        device.config.link = net::LINK_UP;
        device
    }

    /// A disk of `capacity` sectors of 512 bytes.
    pub const fn blk(capacity: u64) -> Self {
        let mut device = Self::new(device_id::BLK);
        device.config.capacity = capacity;
        device
    }

    const fn new(device_id: u32) -> Self {
        Self {
            transport: Transport::new(device_id),
            queues: [const { Queue::RESET }; QUEUES],
            config: Config { capacity: 0, mac: [0; 6], link: 0 },
            counters: Counters { rx_packets: 0, rx_drops: 0, tx_packets: 0, tx_drops: 0 },
            budget: Budget::FULL,
            reserved: 0,
        }
    }

    /// Returns the type of the device, one of [`device_id`].
    pub const fn device_id(&self) -> u32 {
        self.transport.device_id
    }

    /// Returns the level of the interrupt line.
    pub const fn irq(&self) -> bool {
        self.transport.interrupt_status != 0
    }

    /// Returns why the device has unfinished work, which [`Virtio::poll`] continues; `None` if it
    /// has none.
    ///
    /// A machine must not execute instructions while there is some. A notification is then atomic
    /// for the guest, which can observe neither how fast the host drains output nor where slices
    /// end.
    pub const fn deferred(&self) -> Option<Deferred> {
        if self.transport.deferred == 0 {
            None
        } else if self.budget.is_spent() {
            Some(Deferred::Budget)
        } else {
            Some(Deferred::Port)
        }
    }

    /// Sets the link of a network device up or down, and interrupts the driver if that changes it.
    pub const fn set_link(&mut self, up: bool) {
        let link = if up { net::LINK_UP } else { 0 };
        if self.config.link != link {
            self.config.link = link;
            self.transport.config_changed();
        }
    }

    /// Continues unfinished work and delivers packets from the port. Called between slices.
    ///
    /// If it returns [`Trap::NoFrame`], the same call can be repeated and continues.
    pub fn poll<M: Memory, D: Memory, P: Port>(
        &mut self,
        io: &mut Io<'_, M, D, P>,
    ) -> Result<(), Trap> {
        self.budget = Budget::FULL;
        let deferred = self.transport.deferred;
        if deferred != 0 {
            for index in 0..QUEUES as u32 {
                if deferred & 1 << index != 0 {
                    self.serve(index, io)?;
                }
            }
        }
        if self.device_id() == device_id::NET && io.port.net_rx_len().is_some() {
            if self.transport.is_live() {
                self.serve(net::RECEIVE_QUEUE, io)?;
            } else {
                net::discard(io.port, &mut self.counters);
            }
        }
        Ok(())
    }

    /// Processes the buffers that the driver made available in queue `index`.
    fn serve<M: Memory, D: Memory, P: Port>(
        &mut self,
        index: u32,
        io: &mut Io<'_, M, D, P>,
    ) -> Result<(), Trap> {
        let event_idx = self.transport.has_feature(feature::EVENT_IDX);
        let Some(queue) = self.queues.get_mut(index as usize) else { return Ok(()) };
        if !self.transport.is_live() || !queue.is_ready() {
            self.transport.deferred &= !(1 << index);
            return Ok(());
        }
        let used_before = queue.used_idx();
        let budget = &mut self.budget;
        let outcome = match (self.transport.device_id, index) {
            (device_id::NET, net::RECEIVE_QUEUE) => {
                net::receive(queue, io, budget, &mut self.counters)
            }
            (device_id::NET, net::TRANSMIT_QUEUE) => {
                net::transmit(queue, io, budget, &mut self.counters)
            }
            (device_id::RNG, 0) => rng::serve(queue, io, budget),
            (device_id::BLK, 0) => blk::serve(queue, io, budget, self.config.capacity),
            _ => return Ok(()),
        };
        // Also after an error, because what was used before it is done and must be seen.
        let published = queue.publish(&mut io.ram, used_before, event_idx);
        if let Ok(true) = published {
            self.transport.interrupt_status |= interrupt::USED_BUFFER;
        }
        match published.and(outcome) {
            Ok(QueueStatus::Done) => self.transport.deferred &= !(1 << index),
            Ok(QueueStatus::Deferred) => self.transport.deferred |= 1 << index,
            Err(QueueError::NoFrame) => return Err(Trap::NoFrame),
            Err(QueueError::Broken) => self.transport.fail(),
        }
        Ok(())
    }
}

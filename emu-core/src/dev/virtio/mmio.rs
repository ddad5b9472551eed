//! The MMIO transport (section 4.2): registers, device status and feature negotiation.

use super::queue::SIZE_MAX;
use super::{Io, Virtio, blk, device_id, feature, net, rng};
use crate::mem::{Dma, Memory};
use crate::port::Port;
use crate::trap::Trap;

registers! {
    /// Registers (section 4.2.2, table 4.1).
    enum Register {
        /// "virt".
        MagicValue = 0x000, R;
        /// Version of the transport.
        Version = 0x004, R;
        /// Device type.
        DeviceId = 0x008, R;
        /// Who made it.
        VendorId = 0x00c, R;
        /// Offered features, 32 of them.
        DeviceFeatures = 0x010, R;
        /// Which 32.
        DeviceFeaturesSel = 0x014, W;
        /// Accepted features, 32 of them.
        DriverFeatures = 0x020, W;
        /// Which 32.
        DriverFeaturesSel = 0x024, W;
        /// The queue that the next registers are about.
        QueueSel = 0x030, W;
        /// Largest size of the queue; zero when there is no such queue.
        QueueNumMax = 0x034, R;
        /// Size of the queue.
        QueueNum = 0x038, W;
        /// Starts and stops the queue.
        QueueReady = 0x044, RW;
        /// There is something to do in this queue.
        QueueNotify = 0x050, W;
        /// Why the device interrupts.
        InterruptStatus = 0x060, R;
        /// Clears those reasons.
        InterruptAck = 0x064, W;
        /// Device status.
        Status = 0x070, RW;
        /// Descriptor area.
        QueueDescLow = 0x080, W;
        /// Its upper half.
        QueueDescHigh = 0x084, W;
        /// Driver area, the available ring.
        QueueDriverLow = 0x090, W;
        /// Its upper half.
        QueueDriverHigh = 0x094, W;
        /// Device area, the used ring.
        QueueDeviceLow = 0x0a0, W;
        /// Its upper half.
        QueueDeviceHigh = 0x0a4, W;
        /// Length of a shared memory region.
        ShmLenLow = 0x0b0, R;
        /// Its upper half.
        ShmLenHigh = 0x0b4, R;
        /// Place of a shared memory region.
        ShmBaseLow = 0x0b8, R;
        /// Its upper half.
        ShmBaseHigh = 0x0bc, R;
        /// Changes with the configuration space.
        ConfigGeneration = 0x0fc, R;
    }
}

const CONFIG_BASE: u32 = 0x100;
/// Registers are read and written whole.
const REGISTER_SIZE: u32 = 4;

const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR_ID: u32 = u32::from_le_bytes(*b"pxvm");
/// Length and place of a region that does not exist.
const NO_SHM: u32 = u32::MAX;

/// Bits of InterruptStatus.
pub(super) mod interrupt {
    /// The device used a buffer.
    pub const USED_BUFFER: u32 = 1;
    /// The configuration, or DEVICE_NEEDS_RESET, changed.
    pub const CONFIG_CHANGE: u32 = 2;
}

/// Device status bits (section 2.1).
pub mod status {
    /// The driver found the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u32 = 2;
    /// The driver is up.
    pub const DRIVER_OK: u32 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u32 = 8;
    /// The driver broke the rules and must reset the device.
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    /// The driver gave up.
    pub const FAILED: u32 = 128;
    /// What the driver may write.
    pub(super) const DRIVER_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// A status bit and the bits that must be set with or before it (section 3.1.1).
const STATUS_STEPS: [(u32, u32); 4] = [
    (status::ACKNOWLEDGE, 0),
    (status::DRIVER, status::ACKNOWLEDGE),
    (status::FEATURES_OK, status::ACKNOWLEDGE | status::DRIVER),
    (status::DRIVER_OK, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK),
];

/// One of the registers that hold half of a queue's address.
#[derive(Clone, Copy)]
pub(super) enum AddressHalf {
    DescLow,
    DescHigh,
    DriverLow,
    DriverHigh,
    DeviceLow,
    DeviceHigh,
}

impl AddressHalf {
    pub(super) const fn store(self, address: &mut u64, value: u32) {
        const LOW_WORD: u64 = 0xffff_ffff;
        *address = match self {
            Self::DescLow | Self::DriverLow | Self::DeviceLow => {
                *address & !LOW_WORD | value as u64
            }
            Self::DescHigh | Self::DriverHigh | Self::DeviceHigh => {
                *address & LOW_WORD | (value as u64) << 32
            }
        };
    }
}

/// Registers of the transport.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C)]
pub(super) struct Transport {
    driver_features: u64,
    pub(super) device_id: u32,
    status: u32,
    pub(super) interrupt_status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    config_generation: u32,
    /// Queues with work left over, by bit.
    pub(super) deferred: u32,
}

impl Transport {
    pub(super) const fn new(device_id: u32) -> Self {
        Self {
            driver_features: 0,
            device_id,
            status: 0,
            interrupt_status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            config_generation: 0,
            deferred: 0,
        }
    }

    /// Whether buffers may be used: the driver is up and has not broken the rules.
    pub(super) const fn is_live(&self) -> bool {
        self.status & (status::DRIVER_OK | status::DEVICE_NEEDS_RESET) == status::DRIVER_OK
    }

    pub(super) const fn has_feature(&self, feature: u64) -> bool {
        self.driver_features & feature != 0
    }

    pub(super) const fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.status & status::DRIVER_OK != 0 {
            self.interrupt_status |= interrupt::CONFIG_CHANGE;
        }
    }

    /// Stops service until the driver resets the device (section 2.1.2).
    pub(super) const fn fail(&mut self) {
        self.status |= status::DEVICE_NEEDS_RESET;
        self.deferred = 0;
        if self.status & status::DRIVER_OK != 0 {
            self.interrupt_status |= interrupt::CONFIG_CHANGE;
        }
    }

    const fn features(&self) -> u64 {
        match self.device_id {
            device_id::NET => net::FEATURES,
            device_id::RNG => rng::FEATURES,
            device_id::BLK => blk::FEATURES,
            _ => 0,
        }
    }

    const fn queue_count(&self) -> u32 {
        match self.device_id {
            device_id::NET => net::QUEUE_COUNT,
            device_id::RNG => rng::QUEUE_COUNT,
            device_id::BLK => blk::QUEUE_COUNT,
            _ => 0,
        }
    }

    /// Half `sel` of a set of features.
    const fn feature_word(features: u64, sel: u32) -> u32 {
        match sel {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        }
    }

    const fn write_driver_features(&mut self, value: u32) {
        // What was agreed on stays.
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_features_sel {
            0 => AddressHalf::DescLow.store(&mut self.driver_features, value),
            1 => AddressHalf::DescHigh.store(&mut self.driver_features, value),
            _ => {}
        }
    }

    /// A store to Status other than zero. A driver never clears a bit (section 2.1.1), so a
    /// store that would is ignored, as is one that skips a step.
    fn write_status(&mut self, value: u32) {
        let value = value & status::DRIVER_BITS;
        let before = self.status & status::DRIVER_BITS;
        let orderly = STATUS_STEPS
            .iter()
            .all(|&(bit, required)| value & bit == 0 || value & required == required);
        if before & !value != 0 || !orderly {
            return;
        }
        let mut set = value & !before;
        if set & status::FEATURES_OK != 0 && !self.features_acceptable() {
            // The driver reads back that it was refused (section 3.1.1, step 6).
            set &= !(status::FEATURES_OK | status::DRIVER_OK);
        }
        self.status |= set;
    }

    const fn features_acceptable(&self) -> bool {
        self.driver_features & !self.features() == 0 && self.has_feature(feature::VERSION_1)
    }
}

impl Virtio {
    /// A load of `size` bytes from `offset`.
    pub fn read(&self, offset: u32, size: u32) -> u32 {
        if offset >= CONFIG_BASE {
            return self.read_config(offset - CONFIG_BASE, size);
        }
        let (true, Some(register)) = (size == REGISTER_SIZE, Register::for_read(offset)) else {
            return 0;
        };
        let transport = &self.transport;
        match register {
            Register::MagicValue => MAGIC_VALUE,
            Register::Version => VERSION,
            Register::DeviceId => transport.device_id,
            Register::VendorId => VENDOR_ID,
            Register::DeviceFeatures => {
                Transport::feature_word(transport.features(), transport.device_features_sel)
            }
            Register::QueueNumMax => match self.selected() {
                Some(_) => SIZE_MAX.into(),
                None => 0,
            },
            Register::QueueReady => self.selected().is_some_and(|q| q.is_ready()).into(),
            Register::InterruptStatus => transport.interrupt_status,
            Register::Status => transport.status,
            Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh => NO_SHM,
            Register::ConfigGeneration => transport.config_generation,
            _ => 0,
        }
    }

    /// A store of `size` bytes to `offset`.
    ///
    /// [`Trap::NoFrame`] leaves a state in which the same store can be repeated.
    pub fn write<M: Memory, D: Memory, P: Port>(
        &mut self,
        offset: u32,
        size: u32,
        value: u32,
        io: &mut Io<'_, M, D, P>,
    ) -> Result<(), Trap> {
        let transport = &mut self.transport;
        // The configuration space of these devices is read-only.
        if transport.device_id == device_id::ABSENT || size != REGISTER_SIZE {
            return Ok(());
        }
        let Some(register) = Register::for_write(offset) else { return Ok(()) };
        match register {
            Register::DeviceFeaturesSel => transport.device_features_sel = value,
            Register::DriverFeatures => transport.write_driver_features(value),
            Register::DriverFeaturesSel => transport.driver_features_sel = value,
            Register::QueueSel => transport.queue_sel = value,
            Register::QueueNum => {
                if let Some(queue) = self.stopped() {
                    queue.set_size(value);
                }
            }
            Register::QueueReady => self.write_queue_ready(value, &io.ram),
            Register::QueueNotify => return self.serve(value, io),
            Register::InterruptAck => transport.interrupt_status &= !value,
            Register::Status if value == 0 => self.reset(),
            Register::Status => transport.write_status(value),
            Register::QueueDescLow => self.write_address(AddressHalf::DescLow, value),
            Register::QueueDescHigh => self.write_address(AddressHalf::DescHigh, value),
            Register::QueueDriverLow => self.write_address(AddressHalf::DriverLow, value),
            Register::QueueDriverHigh => self.write_address(AddressHalf::DriverHigh, value),
            Register::QueueDeviceLow => self.write_address(AddressHalf::DeviceLow, value),
            Register::QueueDeviceHigh => self.write_address(AddressHalf::DeviceHigh, value),
            _ => {}
        }
        Ok(())
    }

    /// A device reset by the driver: what the host attached stays.
    fn reset(&mut self) {
        let config_generation = self.transport.config_generation;
        self.transport = Transport::new(self.transport.device_id);
        self.transport.config_generation = config_generation;
        for queue in &mut self.queues {
            *queue = super::Queue::RESET;
        }
    }

    fn write_queue_ready<M: Memory>(&mut self, value: u32, ram: &Dma<'_, M>) {
        if value & 1 == 0 {
            if let Some(queue) = self.selected_mut() {
                queue.stop();
            }
            return;
        }
        let Some(queue) = self.stopped() else { return };
        if queue.start(ram).is_err() {
            self.transport.fail();
        }
    }

    fn write_address(&mut self, half: AddressHalf, value: u32) {
        if let Some(queue) = self.stopped() {
            queue.set_address(half, value);
        }
    }

    fn selected(&self) -> Option<&super::Queue> {
        let index = self.transport.queue_sel;
        if index < self.transport.queue_count() { self.queues.get(index as usize) } else { None }
    }

    fn selected_mut(&mut self) -> Option<&mut super::Queue> {
        let index = self.transport.queue_sel;
        if index < self.transport.queue_count() {
            self.queues.get_mut(index as usize)
        } else {
            None
        }
    }

    /// The selected queue, if its registers may be written now.
    fn stopped(&mut self) -> Option<&mut super::Queue> {
        self.selected_mut().filter(|queue| !queue.is_ready())
    }

    /// Configuration space, little-endian, as bytes so that every access size works.
    fn read_config(&self, offset: u32, size: u32) -> u32 {
        let mut value = 0;
        for i in (0..size.min(REGISTER_SIZE)).rev() {
            value = value << 8 | u32::from(self.config_byte(offset.wrapping_add(i)));
        }
        value
    }

    fn config_byte(&self, offset: u32) -> u8 {
        let at = offset as usize;
        match self.transport.device_id {
            device_id::NET => net::config_byte(&self.config, at),
            device_id::BLK => blk::config_byte(&self.config, at),
            _ => 0,
        }
    }
}

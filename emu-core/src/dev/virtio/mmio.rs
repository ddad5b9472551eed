//! The MMIO transport (section 4.2): registers, device status and feature negotiation.

use super::queue::{Budget, Queue, SIZE_MAX};
use super::{Deferred, feature};
use crate::mem::{Dma, Memory};
use crate::state::{State, Visitor};

registers! {
    /// Registers (section 4.2.2, table 4.1) and those of the legacy interface (section 4.2.4).
    enum Register {
        /// The text "virt".
        MagicValue = 0x000, R;
        /// Version of the transport.
        Version = 0x004, R;
        /// Device type.
        DeviceId = 0x008, R;
        /// The vendor of the device.
        VendorId = 0x00c, R;
        /// 32 of the features that the device offers.
        DeviceFeatures = 0x010, R;
        /// Selects the 32 features of DeviceFeatures.
        DeviceFeaturesSel = 0x014, W;
        /// 32 of the features that the driver accepts.
        DriverFeatures = 0x020, W;
        /// Selects the 32 features of DriverFeatures.
        DriverFeaturesSel = 0x024, W;
        /// The unit of QueuePfn, in bytes.
        GuestPageSize = 0x028, W;
        /// Selects the queue of the registers whose names begin with Queue.
        QueueSel = 0x030, W;
        /// The largest size of the queue; zero when there is no such queue.
        QueueNumMax = 0x034, R;
        /// The size of the queue.
        QueueNum = 0x038, W;
        /// The alignment of the queue's used ring.
        QueueAlign = 0x03c, W;
        /// Places and starts the queue, in pages; zero stops it.
        QueuePfn = 0x040, RW;
        /// Starts and stops the queue.
        QueueReady = 0x044, RW;
        /// Notifies the device that the queue with this number has buffers.
        QueueNotify = 0x050, W;
        /// Why the device interrupts.
        InterruptStatus = 0x060, R;
        /// Clears bits of InterruptStatus.
        InterruptAck = 0x064, W;
        /// Device status.
        Status = 0x070, RW;
        /// Lower half of the address of the descriptor area.
        QueueDescLow = 0x080, W;
        /// Upper half of the address of the descriptor area.
        QueueDescHigh = 0x084, W;
        /// Lower half of the address of the driver area, the available ring.
        QueueDriverLow = 0x090, W;
        /// Upper half of the address of the driver area.
        QueueDriverHigh = 0x094, W;
        /// Lower half of the address of the device area, the used ring.
        QueueDeviceLow = 0x0a0, W;
        /// Upper half of the address of the device area.
        QueueDeviceHigh = 0x0a4, W;
        /// Lower half of the length of a shared memory region.
        ShmLenLow = 0x0b0, R;
        /// Upper half of the length of a shared memory region.
        ShmLenHigh = 0x0b4, R;
        /// Lower half of the address of a shared memory region.
        ShmBaseLow = 0x0b8, R;
        /// Upper half of the address of a shared memory region.
        ShmBaseHigh = 0x0bc, R;
        /// A number that changes with the configuration space.
        ConfigGeneration = 0x0fc, R;
    }
}

/// The interface that a driver finds (register Version). All transports of a machine have the same.
///
/// Devices and queues are the same behind both. A legacy device has 32 feature bits, and its queues
/// lie in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(u32)]
pub enum Version {
    /// That from before virtio 1.0 (section 4.2.4), QEMU's default.
    Legacy = 1,
    /// That of virtio 1.0 and later.
    Modern = 2,
}

impl State for Version {
    fn visit(&self, visitor: &mut impl Visitor) {
        (*self as u32).visit(visitor);
    }
}

impl Register {
    /// Returns whether transports of a version have the register.
    const fn is_in(self, version: Version) -> bool {
        match self {
            Self::GuestPageSize | Self::QueueAlign | Self::QueuePfn => {
                matches!(version, Version::Legacy)
            }
            Self::QueueReady
            | Self::QueueDescLow
            | Self::QueueDescHigh
            | Self::QueueDriverLow
            | Self::QueueDriverHigh
            | Self::QueueDeviceLow
            | Self::QueueDeviceHigh
            | Self::ConfigGeneration => matches!(version, Version::Modern),
            Self::MagicValue
            | Self::Version
            | Self::DeviceId
            | Self::VendorId
            | Self::DeviceFeatures
            | Self::DeviceFeaturesSel
            | Self::DriverFeatures
            | Self::DriverFeaturesSel
            | Self::QueueSel
            | Self::QueueNumMax
            | Self::QueueNum
            | Self::QueueNotify
            | Self::InterruptStatus
            | Self::InterruptAck
            | Self::Status
            | Self::ShmLenLow
            | Self::ShmLenHigh
            | Self::ShmBaseLow
            | Self::ShmBaseHigh => true,
        }
    }
}

/// Returns the version to which the register at `offset` belongs alone, if a driver can store to it.
pub(super) fn only_version(offset: u32) -> Option<Version> {
    let register = Register::for_write(offset)?;
    match (register.is_in(Version::Legacy), register.is_in(Version::Modern)) {
        (true, false) => Some(Version::Legacy),
        (false, true) => Some(Version::Modern),
        _ => None,
    }
}

pub(super) const CONFIG_BASE: u32 = 0x100;
/// Registers are read and written whole.
const REGISTER_SIZE: u32 = 4;

const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
/// Drivers in tutorials insist on this one.
const VENDOR_ID: u32 = u32::from_le_bytes(*b"QEMU");
/// Length and place of a region that does not exist.
const NO_SHM: u32 = u32::MAX;

/// Bits of InterruptStatus.
mod interrupt {
    /// The device used a buffer.
    pub const USED_BUFFER: u32 = 1;
    /// The configuration, or DEVICE_NEEDS_RESET, changed.
    pub const CONFIG_CHANGE: u32 = 2;
}

/// Beside the causes of an interrupt, and not for the driver: the interrupt controller forwarded it.
const CLAIMED: u32 = 1 << 31;

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

/// What the transport shows of the device behind it.
#[derive(Clone, Copy)]
pub(super) struct Identity {
    /// Device type number.
    pub id: u32,
    /// The features that the device offers.
    pub features: u64,
}

/// The slot of a device that the machine does not have.
pub const NO_SLOT: u32 = u32::MAX;

/// Registers of the transport.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Transport {
    driver_features: u64,
    /// The number of the transport, among those of the memory map. The host chooses it.
    slot: u32,
    status: u32,
    interrupt_status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    config_generation: u32,
    /// A bit map of the queues with unfinished work.
    deferred: u32,
    /// How much work the device may do in this slice. A driver's reset does not renew it. Not part
    /// of the machine's state: it depends on where slices end, which guests cannot see.
    pub(super) budget: Budget,
    /// The logarithm of GuestPageSize. Linux writes that once, before it resets the device.
    page_shift: u32,
}

state!(Transport {
    driver_features, slot, status, interrupt_status, device_features_sel, driver_features_sel,
    queue_sel, config_generation, deferred, page_shift,
} except { budget });

impl Transport {
    /// Registers of a device that the machine does not have.
    pub(super) const ABSENT: Self = Self {
        driver_features: 0,
        slot: NO_SLOT,
        status: 0,
        interrupt_status: 0,
        device_features_sel: 0,
        driver_features_sel: 0,
        queue_sel: 0,
        config_generation: 0,
        deferred: 0,
        budget: Budget::FULL,
        page_shift: 0,
    };

    /// Registers after reset, in slot `slot`.
    pub(super) const fn in_slot(slot: u32) -> Self {
        Self { slot, ..Self::ABSENT }
    }

    /// Returns the slot, which is [`NO_SLOT`] when the machine does not have the device.
    pub(super) const fn slot(&self) -> u32 {
        self.slot
    }

    /// Moves the device to slot `slot`. Before its driver is up, or it would lose it.
    pub(super) const fn move_to(&mut self, slot: u32) {
        self.slot = slot;
    }

    /// Returns whether the device may use buffers: the driver is up and has not violated the
    /// specification. Legacy drivers may use a device before they say that they are up (section
    /// 3.1.2).
    pub(super) const fn is_live(&self, version: Version) -> bool {
        let up = match version {
            Version::Legacy => status::DRIVER_BITS,
            Version::Modern => status::DRIVER_OK,
        };
        self.status & up != 0 && self.status & status::DEVICE_NEEDS_RESET == 0
    }

    pub(super) const fn has_feature(&self, feature: u64) -> bool {
        self.driver_features & feature != 0
    }

    /// Returns the level of the interrupt line.
    pub(super) const fn irq(&self) -> bool {
        self.interrupt_status != 0 && self.interrupt_status & CLAIMED == 0
    }

    /// Takes note that the interrupt controller forwarded the interrupt: the line falls until there
    /// is another cause.
    pub(super) const fn claimed(&mut self) {
        if self.interrupt_status != 0 {
            self.interrupt_status |= CLAIMED;
        }
    }

    const fn interrupt(&mut self, cause: u32) {
        self.interrupt_status = (self.interrupt_status | cause) & !CLAIMED;
    }

    /// Returns why there is unfinished work, if there is some.
    pub(super) const fn deferred(&self) -> Option<Deferred> {
        if self.deferred == 0 {
            None
        } else if self.budget.is_spent() {
            Some(Deferred::Budget)
        } else {
            Some(Deferred::Port)
        }
    }

    /// Records whether queue `index` has unfinished work.
    pub(super) const fn set_deferred(&mut self, index: u32, deferred: bool) {
        if deferred {
            self.deferred |= 1 << index;
        } else {
            self.deferred &= !(1 << index);
        }
    }

    /// Renews the budget, and returns the bit map of the queues with unfinished work.
    pub(super) const fn begin_slice(&mut self) -> u32 {
        self.budget = Budget::FULL;
        self.deferred
    }

    /// Interrupts the driver, because the device used a buffer.
    pub(super) const fn used_buffer(&mut self) {
        self.interrupt(interrupt::USED_BUFFER);
    }

    /// Tells the driver, if it is up, that the configuration space changed.
    pub(super) const fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.status & status::DRIVER_OK != 0 {
            self.interrupt(interrupt::CONFIG_CHANGE);
        }
    }

    /// Stops the device until the driver resets it (section 2.1.2).
    pub(super) const fn fail(&mut self) {
        self.status |= status::DEVICE_NEEDS_RESET;
        self.deferred = 0;
        if self.status & status::DRIVER_OK != 0 {
            self.interrupt(interrupt::CONFIG_CHANGE);
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

    const fn write_driver_features(&mut self, version: Version, offered: u64, value: u32) {
        // What was agreed on stays.
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        match (version, self.driver_features_sel) {
            // A legacy driver does not ask whether the device agrees.
            (Version::Legacy, 0) => self.driver_features = offered & value as u64,
            (Version::Modern, 0) => AddressHalf::DescLow.store(&mut self.driver_features, value),
            (Version::Modern, 1) => AddressHalf::DescHigh.store(&mut self.driver_features, value),
            (Version::Legacy | Version::Modern, _) => {}
        }
    }

    /// Handles a store to Status other than zero. A driver must not clear a bit (section 2.1.1), so
    /// a store that would is ignored, as is one that skips a step of the initialisation. Legacy
    /// drivers take the steps in their own order, and some write the last one's bit alone.
    fn write_status(&mut self, version: Version, offered: u64, value: u32) {
        let value = value & status::DRIVER_BITS;
        if version == Version::Legacy {
            self.status = value | self.status & status::DEVICE_NEEDS_RESET;
            return;
        }
        let before = self.status & status::DRIVER_BITS;
        let orderly = STATUS_STEPS
            .iter()
            .all(|&(bit, required)| value & bit == 0 || value & required == required);
        if before & !value != 0 || !orderly {
            return;
        }
        let mut set = value & !before;
        if set & status::FEATURES_OK != 0 && !self.features_acceptable(offered) {
            // The driver reads back that it was refused (section 3.1.1, step 6).
            set &= !(status::FEATURES_OK | status::DRIVER_OK);
        }
        self.status |= set;
    }

    const fn features_acceptable(&self, offered: u64) -> bool {
        self.driver_features & !offered == 0 && self.has_feature(feature::VERSION_1)
    }

    /// Loads `size` bytes from the register at `offset`.
    // One copy for all devices, as of `write`.
    #[inline(never)]
    pub(super) fn read(
        &self,
        queues: &[Queue],
        version: Version,
        device: Identity,
        offset: u32,
        size: u32,
    ) -> u32 {
        let register = Register::for_read(offset).filter(|register| register.is_in(version));
        let (true, Some(register)) = (size == REGISTER_SIZE, register) else {
            return 0;
        };
        let selected = queues.get(self.queue_sel as usize);
        match register {
            Register::MagicValue => MAGIC_VALUE,
            Register::Version => version as u32,
            Register::DeviceId => device.id,
            Register::VendorId => VENDOR_ID,
            Register::DeviceFeatures => {
                Self::feature_word(offered(version, device.features), self.device_features_sel)
            }
            Register::QueuePfn => {
                let address =
                    selected.filter(|queue| queue.is_ready()).map_or(0, Queue::desc_address);
                // At most 31, so the number that was written comes back.
                (address >> (self.page_shift & 31)) as u32
            }
            Register::QueueNumMax => selected.map_or(0, |_| SIZE_MAX.into()),
            Register::QueueReady => selected.is_some_and(Queue::is_ready).into(),
            Register::InterruptStatus => self.interrupt_status & !CLAIMED,
            Register::Status => self.status,
            Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh => NO_SHM,
            Register::ConfigGeneration => self.config_generation,
            Register::DeviceFeaturesSel
            | Register::DriverFeatures
            | Register::DriverFeaturesSel
            | Register::GuestPageSize
            | Register::QueueSel
            | Register::QueueNum
            | Register::QueueAlign
            | Register::QueueNotify
            | Register::InterruptAck
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh => 0,
        }
    }

    /// Stores `size` bytes to the register at `offset`, with `features` those of the device.
    /// Returns the queue that the driver notifies; it may be one that the device does not have.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "one copy for all devices")]
    pub(super) fn write<M: Memory>(
        &mut self,
        queues: &mut [Queue],
        version: Version,
        features: u64,
        offset: u32,
        size: u32,
        value: u32,
        ram: &Dma<'_, M>,
    ) -> Option<u32> {
        // The configuration space of these devices is read-only.
        if size != REGISTER_SIZE {
            return None;
        }
        let selected = queues.get_mut(self.queue_sel as usize);
        let offered = offered(version, features);
        match Register::for_write(offset).filter(|register| register.is_in(version))? {
            Register::DeviceFeaturesSel => self.device_features_sel = value,
            Register::DriverFeatures => self.write_driver_features(version, offered, value),
            Register::DriverFeaturesSel => self.driver_features_sel = value,
            Register::GuestPageSize => self.page_shift = page_shift(value),
            Register::QueueSel => self.queue_sel = value,
            Register::QueueNum => {
                if let Some(queue) = stopped(selected) {
                    queue.set_size(value);
                }
            }
            Register::QueueAlign => {
                if let Some(queue) = stopped(selected) {
                    queue.set_align(value);
                }
            }
            Register::QueuePfn => self.write_queue_pfn(selected, value, ram),
            Register::QueueReady => self.write_queue_ready(selected, value, ram),
            Register::QueueNotify => return Some(value),
            Register::InterruptAck => self.interrupt_status &= !(value | CLAIMED),
            Register::Status if value == 0 => self.reset(queues),
            Register::Status => self.write_status(version, offered, value),
            Register::QueueDescLow => write_address(selected, AddressHalf::DescLow, value),
            Register::QueueDescHigh => write_address(selected, AddressHalf::DescHigh, value),
            Register::QueueDriverLow => write_address(selected, AddressHalf::DriverLow, value),
            Register::QueueDriverHigh => write_address(selected, AddressHalf::DriverHigh, value),
            Register::QueueDeviceLow => write_address(selected, AddressHalf::DeviceLow, value),
            Register::QueueDeviceHigh => write_address(selected, AddressHalf::DeviceHigh, value),
            Register::MagicValue
            | Register::Version
            | Register::DeviceId
            | Register::VendorId
            | Register::DeviceFeatures
            | Register::QueueNumMax
            | Register::InterruptStatus
            | Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh
            | Register::ConfigGeneration => {}
        }
        None
    }

    /// Resets the device, as the driver requests it. What the host has attached stays.
    fn reset(&mut self, queues: &mut [Queue]) {
        *self = Self {
            config_generation: self.config_generation,
            budget: self.budget.clone(),
            page_shift: self.page_shift,
            ..Self::in_slot(self.slot)
        };
        for queue in queues {
            *queue = Queue::RESET;
        }
    }

    fn write_queue_ready<M: Memory>(
        &mut self,
        selected: Option<&mut Queue>,
        value: u32,
        ram: &Dma<'_, M>,
    ) {
        if value & 1 == 0 {
            if let Some(queue) = selected {
                queue.stop();
            }
            return;
        }
        let Some(queue) = stopped(selected) else { return };
        if queue.start(ram).is_err() {
            self.fail();
        }
    }

    /// Handles a store to QueuePfn, in which a legacy driver has all areas of a queue.
    fn write_queue_pfn<M: Memory>(
        &mut self,
        selected: Option<&mut Queue>,
        value: u32,
        ram: &Dma<'_, M>,
    ) {
        let Some(queue) = selected else { return };
        if value != 0 && !queue.is_ready() {
            queue.place_legacy(u64::from(value) << (self.page_shift & 31));
        }
        self.write_queue_ready(Some(queue), u32::from(value != 0), ram);
    }
}

/// Returns the features that a device can offer in a version: a legacy one has 32 bits of them.
const fn offered(version: Version, features: u64) -> u64 {
    match version {
        Version::Legacy => features as u32 as u64,
        Version::Modern => features,
    }
}

/// Returns the logarithm of a page size, which is 0 without one, as in QEMU: some drivers never
/// write it, and QueuePfn is then an address.
const fn page_shift(size: u32) -> u32 {
    if size == 0 { 0 } else { size.trailing_zeros() }
}

/// Loads from the register at `offset` of a transport without a device. Drivers learn from device
/// type 0 that it has none (section 4.2.3.1.1).
pub(super) const fn read_empty(version: Version, offset: u32) -> u32 {
    match Register::for_read(offset) {
        Some(Register::MagicValue) => MAGIC_VALUE,
        Some(Register::Version) => version as u32,
        Some(Register::VendorId) => VENDOR_ID,
        _ => 0,
    }
}

/// Returns the selected queue, if its registers may be written now.
fn stopped(selected: Option<&mut Queue>) -> Option<&mut Queue> {
    selected.filter(|queue| !queue.is_ready())
}

fn write_address(selected: Option<&mut Queue>, half: AddressHalf, value: u32) {
    if let Some(queue) = stopped(selected) {
        queue.set_address(half, value);
    }
}

/// Reads the configuration space, little-endian, as bytes so that every access size works.
pub(super) fn read_config(offset: u32, size: u32, byte: impl Fn(usize) -> u8) -> u32 {
    let mut value = 0;
    for i in (0..size.min(REGISTER_SIZE)).rev() {
        value = value << 8 | u32::from(byte(offset.wrapping_add(i) as usize));
    }
    value
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::vec::Vec;

    use virtio_bindings::{virtio_config, virtio_ids, virtio_mmio};

    use super::super::driver::{
        BUFFERS, Guest, LEGACY_PAGE, Prng, QUEUE_SIZE, RAM_BASE, RAM_END, WRITE, any_version,
        for_seeds, queue_addresses, reg,
    };
    use super::super::{Device, Io, blk::Blk, net::Net, rng::Rng};
    use super::*;
    use crate::chacha::ChaCha;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const DRIVER_UP: u32 =
        status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;

    fn net() -> Guest<Net> {
        Guest::new(Net::new(MAC))
    }

    fn rng() -> Rng {
        Rng::new(ChaCha::new([0; 8]))
    }

    /// A network card with queue 0 placed where `addresses` says, and started.
    fn with_queue_at(addresses: [u64; 3], size: u32) -> Guest<Net> {
        let mut guest = net();
        guest.negotiate(feature::VERSION_1);
        guest.place_queue(0, addresses, size);
        guest.write(reg::QUEUE_READY, 1);
        guest
    }

    #[test]
    fn identification_says_virt_version_2() {
        let guest = net();
        assert_eq!(guest.read(reg::MAGIC_VALUE), 0x7472_6976);
        assert_eq!(guest.read(reg::VERSION), 2);
        assert_eq!(guest.read(reg::DEVICE_ID), 1);
        assert_eq!(guest.read(reg::VENDOR_ID), 0x554d_4551);
    }

    #[test]
    fn a_transport_without_a_device_says_so_and_nothing_else() {
        for (version, number) in [(Version::Legacy, 1), (Version::Modern, 2)] {
            let read = |offset| read_empty(version, offset);
            assert_eq!(read(reg::MAGIC_VALUE), 0x7472_6976);
            assert_eq!(read(reg::VERSION), number);
            assert_eq!(read(reg::VENDOR_ID), 0x554d_4551);
            for offset in (reg::DEVICE_FEATURES..0x1000).chain([reg::DEVICE_ID]) {
                assert_eq!(read(offset), 0, "{offset:#x}");
            }
        }
    }

    #[test]
    fn device_ids_are_those_of_linux() {
        let ids = [Net::ID, Blk::ID, Rng::ID];
        let linux =
            [virtio_ids::VIRTIO_ID_NET, virtio_ids::VIRTIO_ID_BLOCK, virtio_ids::VIRTIO_ID_RNG];
        assert_eq!(ids, linux);
    }

    #[test]
    fn register_offsets_are_those_of_linux() {
        use Register::*;
        use virtio_mmio::*;
        let read = [
            (VIRTIO_MMIO_MAGIC_VALUE, MagicValue),
            (VIRTIO_MMIO_VERSION, Version),
            (VIRTIO_MMIO_DEVICE_ID, DeviceId),
            (VIRTIO_MMIO_VENDOR_ID, VendorId),
            (VIRTIO_MMIO_DEVICE_FEATURES, DeviceFeatures),
            (VIRTIO_MMIO_QUEUE_NUM_MAX, QueueNumMax),
            (VIRTIO_MMIO_QUEUE_PFN, QueuePfn),
            (VIRTIO_MMIO_QUEUE_READY, QueueReady),
            (VIRTIO_MMIO_INTERRUPT_STATUS, InterruptStatus),
            (VIRTIO_MMIO_STATUS, Status),
            (VIRTIO_MMIO_SHM_LEN_LOW, ShmLenLow),
            (VIRTIO_MMIO_SHM_LEN_HIGH, ShmLenHigh),
            (VIRTIO_MMIO_SHM_BASE_LOW, ShmBaseLow),
            (VIRTIO_MMIO_SHM_BASE_HIGH, ShmBaseHigh),
            (VIRTIO_MMIO_CONFIG_GENERATION, ConfigGeneration),
        ];
        let write = [
            (VIRTIO_MMIO_DEVICE_FEATURES_SEL, DeviceFeaturesSel),
            (VIRTIO_MMIO_DRIVER_FEATURES, DriverFeatures),
            (VIRTIO_MMIO_DRIVER_FEATURES_SEL, DriverFeaturesSel),
            (VIRTIO_MMIO_GUEST_PAGE_SIZE, GuestPageSize),
            (VIRTIO_MMIO_QUEUE_SEL, QueueSel),
            (VIRTIO_MMIO_QUEUE_NUM, QueueNum),
            (VIRTIO_MMIO_QUEUE_ALIGN, QueueAlign),
            (VIRTIO_MMIO_QUEUE_PFN, QueuePfn),
            (VIRTIO_MMIO_QUEUE_READY, QueueReady),
            (VIRTIO_MMIO_QUEUE_NOTIFY, QueueNotify),
            (VIRTIO_MMIO_INTERRUPT_ACK, InterruptAck),
            (VIRTIO_MMIO_STATUS, Status),
            (VIRTIO_MMIO_QUEUE_DESC_LOW, QueueDescLow),
            (VIRTIO_MMIO_QUEUE_DESC_HIGH, QueueDescHigh),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, QueueDriverLow),
            (VIRTIO_MMIO_QUEUE_AVAIL_HIGH, QueueDriverHigh),
            (VIRTIO_MMIO_QUEUE_USED_LOW, QueueDeviceLow),
            (VIRTIO_MMIO_QUEUE_USED_HIGH, QueueDeviceHigh),
        ];
        let readable: Vec<_> = (0..CONFIG_BASE)
            .filter_map(|offset| Register::for_read(offset).map(|register| (offset, register)))
            .collect();
        let writable: Vec<_> = (0..CONFIG_BASE)
            .filter_map(|offset| Register::for_write(offset).map(|register| (offset, register)))
            .collect();
        assert_eq!(readable, read);
        assert_eq!(writable, write);
        assert_eq!(CONFIG_BASE, VIRTIO_MMIO_CONFIG);
    }

    #[test]
    fn status_and_interrupt_bits_are_those_of_linux() {
        use virtio_config::*;
        assert_eq!(status::ACKNOWLEDGE, VIRTIO_CONFIG_S_ACKNOWLEDGE);
        assert_eq!(status::DRIVER, VIRTIO_CONFIG_S_DRIVER);
        assert_eq!(status::DRIVER_OK, VIRTIO_CONFIG_S_DRIVER_OK);
        assert_eq!(status::FEATURES_OK, VIRTIO_CONFIG_S_FEATURES_OK);
        assert_eq!(status::DEVICE_NEEDS_RESET, VIRTIO_CONFIG_S_NEEDS_RESET);
        assert_eq!(status::FAILED, VIRTIO_CONFIG_S_FAILED);
        assert_eq!(interrupt::USED_BUFFER, virtio_mmio::VIRTIO_MMIO_INT_VRING);
        assert_eq!(interrupt::CONFIG_CHANGE, virtio_mmio::VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(feature::VERSION_1, 1 << VIRTIO_F_VERSION_1);
    }

    #[test]
    fn the_initialisation_sequence_brings_the_driver_up() {
        let guest = Guest::started(Net::new(MAC), 0);
        assert_eq!(guest.read(reg::STATUS), DRIVER_UP);
        assert_eq!(guest.read(reg::QUEUE_READY), 1);
    }

    #[test]
    fn a_status_step_cannot_be_skipped() {
        for value in [
            status::DRIVER,
            status::ACKNOWLEDGE | status::FEATURES_OK,
            status::DRIVER_OK,
            status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK,
        ] {
            let mut guest = net();
            guest.write(reg::STATUS, value);
            assert_eq!(guest.read(reg::STATUS), 0);
        }
    }

    #[test]
    fn a_status_bit_cannot_be_cleared_one_by_one() {
        let mut guest = Guest::started(Net::new(MAC), 0);
        guest.write(reg::STATUS, status::ACKNOWLEDGE);
        guest.write(reg::STATUS, status::FAILED);
        assert_eq!(guest.read(reg::STATUS), DRIVER_UP);
    }

    #[test]
    fn the_driver_may_give_up_at_any_time() {
        let mut guest = net();
        guest.write(reg::STATUS, status::ACKNOWLEDGE);
        guest.add_status(status::FAILED);
        assert_eq!(guest.read(reg::STATUS), status::ACKNOWLEDGE | status::FAILED);
    }

    #[test]
    fn the_driver_cannot_set_needs_reset() {
        let mut guest = net();
        guest.write(reg::STATUS, status::ACKNOWLEDGE | status::DEVICE_NEEDS_RESET);
        assert_eq!(guest.read(reg::STATUS), status::ACKNOWLEDGE);
    }

    #[test]
    fn writing_zero_to_status_resets_all_but_what_the_host_attached() {
        let mut guest = Guest::started(Net::new(MAC), feature::EVENT_IDX);
        guest.write(reg::STATUS, 0);
        assert_eq!(guest.device, Net::new(MAC));
    }

    #[test]
    fn features_ok_needs_version_1() {
        let mut guest = net();
        guest.negotiate(0);
        assert_eq!(guest.read(reg::STATUS), status::ACKNOWLEDGE | status::DRIVER);
    }

    #[test]
    fn features_ok_is_refused_with_features_that_were_not_offered() {
        let mut guest = net();
        guest.negotiate(feature::VERSION_1 | 1 << 28);
        assert_eq!(guest.read(reg::STATUS), status::ACKNOWLEDGE | status::DRIVER);
    }

    #[test]
    fn driver_ok_is_refused_together_with_bad_features() {
        let mut guest = net();
        guest.write_driver_features(u64::MAX);
        guest.write(reg::STATUS, DRIVER_UP);
        assert_eq!(guest.read(reg::STATUS), status::ACKNOWLEDGE | status::DRIVER);
    }

    #[test]
    fn all_offered_features_can_be_accepted() {
        let mut guest = net();
        let features = guest.device_features();
        guest.negotiate(features);
        assert_ne!(guest.read(reg::STATUS) & status::FEATURES_OK, 0);
    }

    #[test]
    fn features_cannot_change_after_features_ok() {
        let mut guest = net();
        guest.negotiate(feature::VERSION_1);
        guest.write_driver_features(feature::VERSION_1 | feature::EVENT_IDX);
        assert!(!guest.device.transport().has_feature(feature::EVENT_IDX));
    }

    #[test]
    fn there_are_64_feature_bits() {
        let mut guest = net();
        guest.write(reg::DEVICE_FEATURES_SEL, 2);
        assert_eq!(guest.read(reg::DEVICE_FEATURES), 0);
        guest.write(reg::DRIVER_FEATURES_SEL, 2);
        guest.write(reg::DRIVER_FEATURES, u32::MAX);
        assert_eq!(guest.device.transport().driver_features, 0);
    }

    #[test]
    fn queue_num_max_is_zero_for_a_queue_that_does_not_exist() {
        let mut guest = net();
        guest.write(reg::QUEUE_SEL, 1);
        assert_eq!(guest.read(reg::QUEUE_NUM_MAX), u32::from(SIZE_MAX));
        for index in [2, u32::MAX] {
            guest.write(reg::QUEUE_SEL, index);
            assert_eq!(guest.read(reg::QUEUE_NUM_MAX), 0);
        }
    }

    #[test]
    fn a_device_with_one_queue_has_no_second() {
        let mut guest = Guest::new(rng());
        guest.write(reg::QUEUE_SEL, 1);
        guest.write(reg::QUEUE_READY, 1);
        assert_eq!(guest.read(reg::QUEUE_NUM_MAX), 0);
        assert_eq!(guest.read(reg::QUEUE_READY), 0);
    }

    #[test]
    fn linux_can_transmit_with_the_largest_queue() {
        // Two descriptors and MAX_SKB_FRAGS more must be free (drivers/net/virtio_net.c).
        const { assert!(SIZE_MAX > 2 + 17) };
    }

    #[test]
    fn a_queue_with_a_bad_size_needs_a_reset() {
        for size in [0, 3, u32::from(SIZE_MAX) * 2, 0x1_0010, u32::MAX] {
            let guest = with_queue_at(queue_addresses(0), size);
            assert_eq!(guest.read(reg::QUEUE_READY), 0);
            assert!(guest.needs_reset());
        }
    }

    #[test]
    fn a_queue_outside_ram_needs_a_reset() {
        let good = queue_addresses(0);
        let bad = [0, u64::from(RAM_BASE) - 16, RAM_END - 16, RAM_END, 1 << 32, u64::MAX - 15];
        for part in 0..3 {
            for addr in bad {
                let mut addresses = good;
                addresses[part] = addr;
                let guest = with_queue_at(addresses, QUEUE_SIZE.into());
                assert_eq!(guest.read(reg::QUEUE_READY), 0);
                assert!(guest.needs_reset());
            }
        }
    }

    #[test]
    fn an_unaligned_queue_needs_a_reset() {
        for (part, misalignment) in [(0, 8), (1, 1), (2, 2)] {
            let mut addresses = queue_addresses(0);
            addresses[part] += misalignment;
            assert!(with_queue_at(addresses, QUEUE_SIZE.into()).needs_reset());
        }
    }

    #[test]
    fn a_queue_may_end_with_ram() {
        let [_, avail, used] = queue_addresses(0);
        let desc = RAM_END - u64::from(QUEUE_SIZE) * 16;
        let guest = with_queue_at([desc, avail, used], QUEUE_SIZE.into());
        assert_eq!(guest.read(reg::QUEUE_READY), 1);
    }

    #[test]
    fn a_ready_queue_cannot_move() {
        let mut guest = with_queue_at(queue_addresses(0), QUEUE_SIZE.into());
        let before = guest.device.clone();
        guest.place_queue(0, [0; 3], 3);
        assert_eq!(guest.device, before);
    }

    #[test]
    fn a_queue_can_be_stopped() {
        let mut guest = with_queue_at(queue_addresses(0), QUEUE_SIZE.into());
        guest.write(reg::QUEUE_READY, 0);
        assert_eq!(guest.read(reg::QUEUE_READY), 0);
    }

    #[test]
    fn notifications_before_driver_ok_do_nothing() {
        let mut guest = Guest::new(rng());
        guest.negotiate(feature::VERSION_1);
        guest.set_up_queue(0);
        guest.offer(0, &[(BUFFERS, 8, WRITE)]);
        guest.kick(0);
        assert_eq!(guest.take_used(0), None);
    }

    #[test]
    fn notifications_of_queues_that_do_not_exist_do_nothing() {
        let mut guest = Guest::started(Net::new(MAC), 0);
        let before = guest.device.clone();
        [2, 31, 32, u32::MAX].into_iter().for_each(|index| guest.kick(index));
        assert_eq!(guest.device, before);
    }

    #[test]
    fn interrupt_ack_clears_the_bits_written() {
        let mut guest = Guest::started(Net::new(MAC), 0);
        guest.device.transport_and_queues().0.interrupt_status = 3;
        guest.write(reg::INTERRUPT_ACK, 1);
        assert_eq!(guest.read(reg::INTERRUPT_STATUS), 2);
        assert!(guest.device.irq());
        guest.write(reg::INTERRUPT_ACK, 2);
        assert!(!guest.device.irq());
    }

    #[test]
    fn a_link_change_interrupts_and_moves_the_generation() {
        let mut guest = Guest::started(Net::new(MAC), 0);
        let generation = guest.read(reg::CONFIG_GENERATION);
        guest.device.set_link(false);
        assert_eq!(guest.read(reg::INTERRUPT_STATUS), interrupt::CONFIG_CHANGE);
        assert_ne!(guest.read(reg::CONFIG_GENERATION), generation);
    }

    #[test]
    fn a_link_change_does_not_interrupt_without_a_driver() {
        let mut guest = net();
        guest.device.set_link(false);
        assert!(!guest.device.irq());
    }

    #[test]
    fn registers_are_accessed_whole() {
        let mut guest = net();
        let byte = |device: &mut Net, io: &mut Io<'_, _, _, _>| {
            device.write(Version::Modern, reg::STATUS, 1, 1, io)
        };
        guest.with_io(byte).expect("ignored");
        assert_eq!(guest.read(reg::STATUS), 0);
        assert_eq!(guest.device.read(Version::Modern, reg::MAGIC_VALUE, 1), 0);
        assert_eq!(guest.read(reg::MAGIC_VALUE + 2), 0);
    }

    #[test]
    fn configuration_space_is_read_in_any_size() {
        let guest = net();
        for version in [Version::Legacy, Version::Modern] {
            let read = |offset, size| guest.device.read(version, offset, size);
            assert_eq!(read(reg::CONFIG, 1), 0x52);
            assert_eq!(read(reg::CONFIG + 1, 2), 0x0054);
            assert_eq!(read(reg::CONFIG, 4), 0x1200_5452);
        }
    }

    #[test]
    fn configuration_space_is_read_only_and_ends() {
        let mut guest = net();
        let before = guest.device.clone();
        guest.write(reg::CONFIG, 0);
        assert_eq!(guest.device, before);
        assert_eq!(guest.read(reg::CONFIG + 8), 0);
        assert_eq!(guest.read(u32::MAX), 0);
    }

    #[test]
    fn there_is_no_shared_memory() {
        let guest = net();
        assert_eq!(guest.read(reg::SHM_LEN_LOW), u32::MAX);
        assert_eq!(guest.read(reg::SHM_LEN_HIGH), u32::MAX);
    }

    fn legacy(features: u64) -> Guest<Rng> {
        Guest::started_with_version(Version::Legacy, rng(), features)
    }

    #[test]
    fn a_legacy_transport_has_version_1_and_32_feature_bits() {
        let mut guest = Guest::with_version(Version::Legacy, Net::new(MAC));
        assert_eq!(guest.read(reg::VERSION), 1);
        assert_eq!(guest.read(reg::DEVICE_ID), 1);
        assert_eq!(guest.device_features(), Net::FEATURES & !feature::VERSION_1);
        guest.write_driver_features(u64::MAX);
        let accepted = guest.device.transport().driver_features;
        assert_eq!(accepted, Net::FEATURES & !feature::VERSION_1);
    }

    #[test]
    fn a_legacy_driver_brings_a_queue_up_with_its_page_number() {
        let guest = legacy(0);
        let [desc, avail, used] = guest.queue_addresses(0);
        let queue = format!("{:?}", guest.device.queues()[0]);
        for at in [desc, avail, used] {
            assert!(queue.contains(&format!(": {at},")), "{queue}");
        }
        assert_eq!(guest.read(reg::QUEUE_PFN), desc as u32 / LEGACY_PAGE);
    }

    /// A driver that never acknowledges gets a request for each buffer, and one that does loses none.
    #[test]
    fn a_claimed_interrupt_waits_for_the_next_cause() {
        let mut transport = Transport::in_slot(0);
        transport.claimed();
        assert!(!transport.irq());
        for _ in 0..2 {
            transport.used_buffer();
            assert!(transport.irq());
            transport.claimed();
            assert!(!transport.irq());
        }
        let mut guest = legacy(0);
        *guest.device.transport_and_queues().0 = transport;
        assert_eq!(guest.read(reg::INTERRUPT_STATUS), interrupt::USED_BUFFER);
        guest.device.transport_and_queues().0.interrupt(interrupt::CONFIG_CHANGE);
        guest.device.transport_and_queues().0.claimed();
        guest.write(reg::INTERRUPT_ACK, interrupt::USED_BUFFER);
        assert_eq!(guest.read(reg::INTERRUPT_STATUS), interrupt::CONFIG_CHANGE);
        assert!(guest.device.irq());
        guest.write(reg::INTERRUPT_ACK, interrupt::CONFIG_CHANGE);
        assert!(!guest.device.irq());
    }

    #[test]
    fn the_page_size_outlives_a_reset() {
        // Linux writes it before it resets the device for the first time.
        let mut guest = legacy(0);
        let page = guest.read(reg::QUEUE_PFN);
        guest.write(reg::STATUS, 0);
        assert_eq!(guest.read(reg::QUEUE_PFN), 0);
        guest.write(reg::QUEUE_PFN, page);
        assert_eq!(guest.read(reg::QUEUE_PFN), page);
        assert!(!guest.needs_reset());
    }

    #[test]
    fn without_page_size_and_alignment_the_page_number_is_an_address() {
        let mut guest = Guest::with_version(Version::Legacy, rng());
        guest.write(reg::QUEUE_NUM, QUEUE_SIZE.into());
        guest.write(reg::QUEUE_ALIGN, 0);
        guest.write(reg::QUEUE_PFN, RAM_BASE);
        let mut other = legacy(0);
        assert_eq!(guest.device.queues(), other.device.queues());
        guest.write(reg::STATUS, status::DRIVER_OK);
        other.offer(0, &[(BUFFERS, 8, WRITE)]);
        (guest.ram, other.ram) = (other.ram.clone(), guest.ram.clone());
        guest.kick(0);
        assert_eq!(guest.take_used(0), Some((0, 8)));
    }

    #[test]
    fn a_page_number_of_zero_stops_the_queue() {
        let mut guest = legacy(0);
        guest.write(reg::QUEUE_PFN, 0);
        assert_eq!(guest.read(reg::QUEUE_PFN), 0);
        guest.offer(0, &[(BUFFERS, 8, WRITE)]);
        guest.kick(0);
        assert_eq!(guest.take_used(0), None);
    }

    #[test]
    fn a_legacy_driver_takes_the_steps_in_its_own_order() {
        let mut guest = Guest::with_version(Version::Legacy, rng());
        for bits in [status::ACKNOWLEDGE, status::DRIVER, status::DRIVER_OK, DRIVER_UP] {
            guest.write(reg::STATUS, bits);
            assert_eq!(guest.read(reg::STATUS), bits);
        }
    }

    #[test]
    fn a_legacy_driver_may_use_the_device_before_it_is_up() {
        let mut guest = Guest::with_version(Version::Legacy, rng());
        guest.negotiate(0);
        guest.set_up_queue(0);
        guest.offer(0, &[(BUFFERS, 8, WRITE)]);
        guest.kick(0);
        assert_eq!(guest.take_used(0), Some((0, 8)));
    }

    #[test]
    fn registers_of_the_other_version_are_not_there() {
        for (version, others) in [
            (Version::Legacy, &[reg::QUEUE_READY, reg::QUEUE_DESC_LOW, reg::CONFIG_GENERATION][..]),
            (Version::Modern, &[reg::GUEST_PAGE_SIZE, reg::QUEUE_ALIGN, reg::QUEUE_PFN]),
        ] {
            let mut guest = Guest::started_with_version(version, Net::new(MAC), 0);
            guest.device.set_link(false);
            let before = guest.device.clone();
            for &offset in others {
                guest.write(offset, 1);
                assert_eq!(guest.read(offset), 0, "{version:?} {offset:#x}");
                let known = only_version(offset).is_some_and(|only| only != version);
                assert_eq!(known, offset != reg::CONFIG_GENERATION);
            }
            assert_eq!(guest.device, before);
        }
    }

    #[test]
    fn a_legacy_queue_that_cannot_be_needs_a_reset() {
        let page = RAM_BASE / LEGACY_PAGE;
        let last = (RAM_END / u64::from(LEGACY_PAGE)) as u32 - 1;
        for (size, align, page) in [
            (0, LEGACY_PAGE, page),
            (3, LEGACY_PAGE, page),
            (u32::from(SIZE_MAX) * 2, LEGACY_PAGE, page),
            (u32::MAX, LEGACY_PAGE, page),
            (16, 1, page),
            (16, 3, page),
            (16, 1 << 31, page),
            (16, u32::MAX, page),
            (16, LEGACY_PAGE, 1),
            (16, LEGACY_PAGE, last),
            (16, LEGACY_PAGE, u32::MAX),
        ] {
            let mut guest = Guest::with_version(Version::Legacy, rng());
            guest.negotiate(0);
            guest.start_legacy_queue(0, size, align, page);
            assert_eq!(guest.read(reg::QUEUE_PFN), 0, "{size} {align} {page:#x}");
            assert!(guest.needs_reset(), "{size} {align} {page:#x}");
            guest.start(0);
            assert!(!guest.needs_reset());
        }
    }

    #[test]
    fn a_page_size_that_is_none_hurts_nobody() {
        for size in [0, 3, 1 << 31, u32::MAX] {
            let mut guest = Guest::with_version(Version::Legacy, rng());
            guest.write(reg::GUEST_PAGE_SIZE, size);
            guest.start_legacy_queue(0, 16, LEGACY_PAGE, u32::MAX);
            assert!(guest.needs_reset());
        }
    }

    /// Accesses registers of `device` at random.
    fn access_at_random(device: impl Device, rng: &mut Prng) {
        let mut guest = Guest::with_version(any_version(rng), device);
        let version = guest.version;
        if rng.one_in(2) {
            guest.start(0);
        }
        for _ in 0..200 {
            let offset = rng.below(0x140) & if rng.one_in(8) { u32::MAX } else { !3 };
            let size = rng.pick(&[1, 2, 4, 4, 4, 4]);
            let value = match rng.below(4) {
                0 => rng.next_u32(),
                1 => RAM_BASE + (rng.below(0x4_0000) & !15),
                2 => 1 << rng.below(32),
                _ => rng.below(16),
            };
            guest.device.read(version, offset, size);
            let _ = guest.with_io(|device, io| device.write(version, offset, size, value, io));
            let _ = guest.try_poll();
            assert!(guest.device.queues().iter().all(|queue| {
                // What is ready was checked.
                !queue.is_ready()
                    || queue.clone().start(&Dma::new(&mut guest.ram, RAM_BASE)).is_ok()
            }));
        }
    }

    #[test]
    fn no_register_access_panics() {
        for_seeds(0, 200, |prng| match prng.below(3) {
            0 => access_at_random(Net::new(MAC), prng),
            1 => access_at_random(rng(), prng),
            _ => access_at_random(Blk::new(64), prng),
        });
    }
}

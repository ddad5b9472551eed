//! The driver's half of virtio, and mocks of everything around a device, for tests.
//!
//! [`Guest`] is a machine reduced to one virtio device: RAM with virtqueues in it, a disk, a port
//! and the device's registers. Its methods do what a driver does, also when that is wrong.

extern crate std;

use std::boxed::Box;
use std::collections::{BTreeSet, VecDeque};
use std::vec::Vec;

use super::mmio::{Version, status};
use super::{Device, Io, feature};
use crate::disk::{Disk, DiskError, PAGE_SIZE};
use crate::mem::{Dma, FRAME_SIZE, Frame, Memory, NoFrame, chunks};
use crate::port::Port;
use crate::trap::Trap;

/// Registers of the MMIO transport, from the driver's point of view.
#[allow(missing_docs)]
pub mod reg {
    pub const MAGIC_VALUE: u32 = 0x000;
    pub const VERSION: u32 = 0x004;
    pub const DEVICE_ID: u32 = 0x008;
    pub const VENDOR_ID: u32 = 0x00c;
    pub const DEVICE_FEATURES: u32 = 0x010;
    pub const DEVICE_FEATURES_SEL: u32 = 0x014;
    pub const DRIVER_FEATURES: u32 = 0x020;
    pub const DRIVER_FEATURES_SEL: u32 = 0x024;
    pub const GUEST_PAGE_SIZE: u32 = 0x028;
    pub const QUEUE_SEL: u32 = 0x030;
    pub const QUEUE_NUM_MAX: u32 = 0x034;
    pub const QUEUE_NUM: u32 = 0x038;
    pub const QUEUE_ALIGN: u32 = 0x03c;
    pub const QUEUE_PFN: u32 = 0x040;
    pub const QUEUE_READY: u32 = 0x044;
    pub const QUEUE_NOTIFY: u32 = 0x050;
    pub const INTERRUPT_STATUS: u32 = 0x060;
    pub const INTERRUPT_ACK: u32 = 0x064;
    pub const STATUS: u32 = 0x070;
    pub const QUEUE_DESC_LOW: u32 = 0x080;
    pub const QUEUE_DESC_HIGH: u32 = 0x084;
    pub const QUEUE_DRIVER_LOW: u32 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u32 = 0x094;
    pub const QUEUE_DEVICE_LOW: u32 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u32 = 0x0a4;
    pub const SHM_LEN_LOW: u32 = 0x0b0;
    pub const SHM_LEN_HIGH: u32 = 0x0b4;
    pub const SHM_BASE_LOW: u32 = 0x0b8;
    pub const SHM_BASE_HIGH: u32 = 0x0bc;
    pub const CONFIG_GENERATION: u32 = 0x0fc;
    pub const CONFIG: u32 = 0x100;
}

/// A small deterministic generator (splitmix64) for fuzzing from a seed.
#[derive(Clone, Debug)]
pub struct Prng(u64);

impl Prng {
    /// Numbers that depend on `seed` only.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next 32 bits.
    pub const fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    /// A number below `end`, which must not be zero.
    pub const fn below(&mut self, end: u32) -> u32 {
        self.next_u32() % end
    }

    /// True once in `n` times.
    pub const fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }
}

/// One of the two versions.
pub fn any_version(rng: &mut Prng) -> Version {
    rng.pick(&[Version::Legacy, Version::Modern])
}

/// Calls `f` with a generator for each of `count` seeds from `first`, and says which seed it was
/// when `f` panics.
pub fn for_seeds(first: u64, count: u64, mut f: impl FnMut(&mut Prng)) {
    for seed in first..first + count {
        let run = std::panic::AssertUnwindSafe(|| f(&mut Prng::new(seed)));
        if let Err(panic) = std::panic::catch_unwind(run) {
            std::eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Frames in vectors: shared ones first, private ones as they are made.
#[derive(Clone, Debug)]
pub struct MockMemory {
    pages: Vec<u32>,
    frames: Vec<Box<[u8; FRAME_SIZE as usize]>>,
    shared: u32,
    /// How many private frames can still be made.
    pub frames_left: u32,
}

impl MockMemory {
    /// `pages` pages of shared zeros.
    pub fn new(pages: u32) -> Self {
        Self {
            pages: std::vec![0; pages as usize],
            frames: std::vec![Box::new([0; FRAME_SIZE as usize])],
            shared: 1,
            frames_left: u32::MAX,
        }
    }

    fn value<const N: usize>(&self, frame: Frame, offset: u32) -> [u8; N] {
        let at = (offset % FRAME_SIZE) as usize & !(N - 1);
        self.frames[frame.raw() as usize][at..at + N].try_into().expect("N bytes")
    }

    fn private(&mut self, frame: Frame) -> &mut [u8; FRAME_SIZE as usize] {
        assert!(self.is_private(frame), "write to shared frame {}", frame.raw());
        &mut self.frames[frame.raw() as usize]
    }

    fn set_value<const N: usize>(&mut self, frame: Frame, offset: u32, value: [u8; N]) {
        let at = (offset % FRAME_SIZE) as usize & !(N - 1);
        self.private(frame)[at..at + N].copy_from_slice(&value);
    }
}

/// Chunks are small, so that tests reach their ends.
const CHUNK: u32 = 16;

impl Memory for MockMemory {
    fn pages(&self) -> u32 {
        self.pages.len() as u32
    }
    fn frame(&self, page: u32) -> Option<Frame> {
        self.pages.get(page as usize).map(|&index| Frame::from_raw(index))
    }
    fn is_private(&self, frame: Frame) -> bool {
        frame.raw() >= self.shared
    }
    fn make_private(&mut self, page: u32) -> Result<Frame, NoFrame> {
        let frame = Frame::from_raw(self.pages[page as usize]);
        if self.is_private(frame) {
            return Ok(frame);
        }
        self.frames_left = self.frames_left.checked_sub(1).ok_or(NoFrame)?;
        let copy = self.frames[frame.raw() as usize].clone();
        self.pages[page as usize] = self.frames.len() as u32;
        self.frames.push(copy);
        Ok(Frame::from_raw(self.pages[page as usize]))
    }
    fn load8(&self, frame: Frame, offset: u32) -> u32 {
        u8::from_le_bytes(self.value(frame, offset)).into()
    }
    fn load16(&self, frame: Frame, offset: u32) -> u32 {
        u16::from_le_bytes(self.value(frame, offset)).into()
    }
    fn load32(&self, frame: Frame, offset: u32) -> u32 {
        u32::from_le_bytes(self.value(frame, offset))
    }
    fn store8(&mut self, frame: Frame, offset: u32, value: u32) {
        self.set_value(frame, offset, (value as u8).to_le_bytes());
    }
    fn store16(&mut self, frame: Frame, offset: u32, value: u32) {
        self.set_value(frame, offset, (value as u16).to_le_bytes());
    }
    fn store32(&mut self, frame: Frame, offset: u32, value: u32) {
        self.set_value(frame, offset, value.to_le_bytes());
    }
    fn read_chunks(&self, frame: Frame, offset: u32, len: u32, mut f: impl FnMut(u32, &[u8])) {
        for (at, n) in chunks(CHUNK, offset, len) {
            f(at, &self.frames[frame.raw() as usize][(offset + at) as usize..][..n]);
        }
    }
    fn write_chunks(
        &mut self,
        frame: Frame,
        offset: u32,
        len: u32,
        mut f: impl FnMut(u32, &mut [u8]),
    ) {
        for (at, n) in chunks(CHUNK, offset, len) {
            f(at, &mut self.private(frame)[(offset + at) as usize..][..n]);
        }
    }
}

/// A disk in a vector, of which pages can be missing or broken.
#[derive(Clone, Debug, Default)]
pub struct MockDisk {
    /// Its bytes: whole pages.
    pub bytes: Vec<u8>,
    /// Pages that are not loaded.
    pub missing: BTreeSet<u32>,
    /// Pages that cannot be read, and written only as a whole.
    pub broken: BTreeSet<u32>,
    /// Pages that the VM has written.
    pub own: BTreeSet<u32>,
    /// How many more pages the VM can write.
    pub frames_left: Option<u32>,
    /// How often it was flushed.
    pub flushes: u32,
    /// Whether it cannot be flushed.
    pub flush_fails: bool,
}

impl MockDisk {
    /// A disk with `image` in it, padded to a page with zeros.
    pub fn new(image: &[u8]) -> Self {
        let mut bytes = image.to_vec();
        bytes.resize(bytes.len().next_multiple_of(PAGE_SIZE as usize), 0);
        Self { bytes, ..Self::default() }
    }

    fn page(&self, page: u32) -> Result<(), DiskError> {
        if self.missing.contains(&page) && !self.own.contains(&page) {
            return Err(DiskError::NotLoaded(page));
        }
        let exists = (page as usize) < self.bytes.len() / PAGE_SIZE as usize;
        if !exists || self.broken.contains(&page) && !self.own.contains(&page) {
            return Err(DiskError::Failed);
        }
        Ok(())
    }

    fn make_own(&mut self, page: u32) -> Result<(), DiskError> {
        if !self.own.contains(&page) {
            if let Some(left) = &mut self.frames_left {
                *left = left.checked_sub(1).ok_or(DiskError::NoFrame)?;
            }
            self.own.insert(page);
        }
        Ok(())
    }

    fn part(&mut self, page: u32, offset: u32, len: usize) -> Result<&mut [u8], DiskError> {
        assert!(offset as usize + len <= PAGE_SIZE as usize, "a range that leaves its page");
        let at = page as usize * PAGE_SIZE as usize + offset as usize;
        self.bytes.get_mut(at..at + len).ok_or(DiskError::Failed)
    }
}

impl Disk for MockDisk {
    fn read(&mut self, page: u32, offset: u32, to: &mut [u8]) -> Result<(), DiskError> {
        self.page(page)?;
        to.copy_from_slice(self.part(page, offset, to.len())?);
        Ok(())
    }
    fn write(&mut self, page: u32, offset: u32, from: &[u8], whole: bool) -> Result<(), DiskError> {
        if !whole {
            self.page(page)?;
        }
        self.part(page, offset, from.len())?;
        self.make_own(page)?;
        self.part(page, offset, from.len())?.copy_from_slice(from);
        Ok(())
    }
    fn zero(&mut self, page: u32) -> Result<(), DiskError> {
        self.write(page, 0, &[0; PAGE_SIZE as usize], true)
    }
    fn discard(&mut self, page: u32) -> u32 {
        if self.own.contains(&page) {
            let _ = self.zero(page);
        }
        self.own.range(page + 1..).next().copied().unwrap_or(u32::MAX)
    }
    fn flush(&mut self) -> Result<(), DiskError> {
        self.flushes += 1;
        if self.flush_fails { Err(DiskError::Failed) } else { Ok(()) }
    }
}

/// A host in vectors. Panics when a device writes or reads outside of a frame.
#[derive(Clone, Debug)]
pub struct MockPort {
    /// Console bytes for the guest.
    pub input: VecDeque<u8>,
    /// Console bytes of the guest.
    pub output: Vec<u8>,
    /// How many more console bytes there is room for.
    pub output_room: u32,
    /// Packets for the guest.
    pub rx: VecDeque<Vec<u8>>,
    /// Packets of the guest.
    pub tx: Vec<Vec<u8>>,
    /// How many more packets there is room for.
    pub tx_room: u32,
    begun: Option<Vec<u8>>,
}

impl Default for MockPort {
    fn default() -> Self {
        Self {
            input: VecDeque::new(),
            output: Vec::new(),
            output_room: u32::MAX,
            rx: VecDeque::new(),
            tx: Vec::new(),
            tx_room: u32::MAX,
            begun: None,
        }
    }
}

impl Port for MockPort {
    fn console_room(&self) -> u32 {
        self.output_room
    }
    fn console_put(&mut self, byte: u8) -> bool {
        let Some(room) = self.output_room.checked_sub(1) else { return false };
        self.output_room = room;
        self.output.push(byte);
        true
    }
    fn console_get(&mut self) -> Option<u8> {
        self.input.pop_front()
    }
    fn net_tx_begin(&mut self, len: u32) -> bool {
        let Some(room) = self.tx_room.checked_sub(1) else { return false };
        self.tx_room = room;
        self.begun = Some(std::vec![0; len as usize]);
        true
    }
    fn net_tx_write(&mut self, at: u32, bytes: &[u8]) {
        let packet = self.begun.as_mut().expect("net_tx_begin");
        packet[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }
    fn net_tx_end(&mut self) {
        self.tx.push(self.begun.take().expect("net_tx_begin"));
    }
    fn net_rx_len(&mut self) -> Option<u32> {
        self.rx.front().map(|packet| packet.len() as u32)
    }
    fn net_rx_read(&mut self, at: u32, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.rx[0][at as usize..at as usize + bytes.len()]);
    }
    fn net_rx_end(&mut self) {
        self.rx.pop_front().expect("a packet");
    }
}

/// A descriptor as a driver writes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Where the buffer is.
    pub addr: u64,
    /// Its length.
    pub len: u32,
    /// NEXT, WRITE, INDIRECT.
    pub flags: u16,
    /// The next descriptor of the chain.
    pub next: u16,
}

/// Descriptor flag: the chain continues.
pub const NEXT: u16 = 1;
/// Descriptor flag: for the device to write.
pub const WRITE: u16 = 2;
/// Descriptor flag: a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Guest-physical address of RAM.
pub const RAM_BASE: u32 = 0x8000_0000;
/// Pages of RAM.
pub const RAM_PAGES: u32 = 64;
/// First address behind RAM.
pub const RAM_END: u64 = RAM_BASE as u64 + RAM_PAGES as u64 * FRAME_SIZE as u64;
/// Where buffers may be: behind the queues.
pub const BUFFERS: u64 = RAM_BASE as u64 + 0x8000;
/// Descriptors in each queue that [`Guest`] sets up.
pub const QUEUE_SIZE: u16 = 16;

/// Where queue `index` has its descriptor table, available ring and used ring.
pub const fn queue_addresses(index: u32) -> [u64; 3] {
    let base = RAM_BASE as u64 + index as u64 * 0x3000;
    [base, base + 0x1000, base + 0x2000]
}

/// The same in the layout that legacy drivers use, in which the used ring has a page of its own.
pub const fn legacy_queue_addresses(index: u32) -> [u64; 3] {
    let [desc, ..] = queue_addresses(index);
    [desc, desc + QUEUE_SIZE as u64 * 16, desc + LEGACY_PAGE as u64]
}

/// Page size of legacy drivers, and alignment of their rings.
pub const LEGACY_PAGE: u32 = 4096;

/// A device and a driver for it.
#[derive(Clone, Debug)]
pub struct Guest<V> {
    /// The device.
    pub device: V,
    /// The version of its transport, which is also that of the driver.
    pub version: Version,
    /// Guest RAM at [`RAM_BASE`].
    pub ram: MockMemory,
    /// The disk.
    pub disk: MockDisk,
    /// The host.
    pub port: MockPort,
    /// Next descriptor to use, by queue.
    free: Vec<u16>,
    /// Chains made available, by queue.
    avail_idx: Vec<u16>,
    /// Chains taken back, by queue.
    used_idx: Vec<u16>,
}

impl<V: Device> Guest<V> {
    /// `device` after reset.
    pub fn new(device: V) -> Self {
        Self::with_version(Version::Modern, device)
    }

    /// `device` after reset, behind a transport of a version.
    pub fn with_version(version: Version, device: V) -> Self {
        let by_queue = std::vec![0; device.queues().len()];
        Self {
            device,
            version,
            ram: MockMemory::new(RAM_PAGES),
            disk: MockDisk::default(),
            port: MockPort::default(),
            free: by_queue.clone(),
            avail_idx: by_queue.clone(),
            used_idx: by_queue,
        }
    }

    /// `device` with its driver up: all queues set up, `features` accepted beside VERSION_1.
    pub fn started(device: V, features: u64) -> Self {
        Self::started_with_version(Version::Modern, device, features)
    }

    /// `device` with a driver of a version up.
    pub fn started_with_version(version: Version, device: V, features: u64) -> Self {
        let mut guest = Self::with_version(version, device);
        guest.start(features);
        guest
    }

    /// Calls `f` with the device and what it reaches.
    pub fn with_io<R>(
        &mut self,
        f: impl FnOnce(&mut V, &mut Io<'_, MockMemory, MockDisk, MockPort>) -> R,
    ) -> R {
        let mut io = Io {
            ram: Dma::new(&mut self.ram, RAM_BASE),
            disk: &mut self.disk,
            port: &mut self.port,
        };
        f(&mut self.device, &mut io)
    }

    /// Loads a register.
    pub fn read(&self, offset: u32) -> u32 {
        self.device.read(self.version, offset, 4)
    }

    /// Stores to a register and expects that it completes.
    pub fn write(&mut self, offset: u32, value: u32) {
        self.try_write(offset, value).expect("store completes");
    }

    /// Stores to a register.
    pub fn try_write(&mut self, offset: u32, value: u32) -> Result<(), Trap> {
        let version = self.version;
        self.with_io(|device, io| device.write(version, offset, 4, value, io))
    }

    /// Polls the device and expects that it completes.
    pub fn poll(&mut self) {
        self.try_poll().expect("poll completes");
    }

    /// Polls the device.
    pub fn try_poll(&mut self) -> Result<(), Trap> {
        let version = self.version;
        self.with_io(|device, io| device.poll(version, io))
    }

    /// All features that the device offers.
    pub fn device_features(&mut self) -> u64 {
        self.write(reg::DEVICE_FEATURES_SEL, 1);
        let high = self.read(reg::DEVICE_FEATURES);
        self.write(reg::DEVICE_FEATURES_SEL, 0);
        u64::from(high) << 32 | u64::from(self.read(reg::DEVICE_FEATURES))
    }

    /// Accepts exactly these features.
    pub fn write_driver_features(&mut self, features: u64) {
        self.write(reg::DRIVER_FEATURES_SEL, 0);
        self.write(reg::DRIVER_FEATURES, features as u32);
        self.write(reg::DRIVER_FEATURES_SEL, 1);
        self.write(reg::DRIVER_FEATURES, (features >> 32) as u32);
    }

    /// Adds `bits` to the device status as drivers do.
    pub fn add_status(&mut self, bits: u32) {
        let status = self.read(reg::STATUS);
        self.write(reg::STATUS, status | bits);
    }

    /// The initialisation sequence (section 3.1.1), or that of legacy drivers (section 3.1.2).
    pub fn start(&mut self, features: u64) {
        self.negotiate(features | feature::VERSION_1);
        for index in 0..self.device.queues().len() as u32 {
            self.set_up_queue(index);
        }
        self.add_status(status::DRIVER_OK);
    }

    /// The sequence up to FEATURES_OK, which legacy drivers do not know.
    pub fn negotiate(&mut self, features: u64) {
        self.write(reg::STATUS, 0);
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        self.write_driver_features(features);
        match self.version {
            Version::Legacy => self.write(reg::GUEST_PAGE_SIZE, LEGACY_PAGE),
            Version::Modern => self.add_status(status::FEATURES_OK),
        }
    }

    /// Where queue `index` has its areas.
    pub const fn queue_addresses(&self, index: u32) -> [u64; 3] {
        match self.version {
            Version::Legacy => legacy_queue_addresses(index),
            Version::Modern => queue_addresses(index),
        }
    }

    /// Places queue `index` and makes it ready.
    pub fn set_up_queue(&mut self, index: u32) {
        let [desc, avail, used] = self.queue_addresses(index);
        match self.version {
            Version::Legacy => {
                let page = desc as u32 / LEGACY_PAGE;
                self.start_legacy_queue(index, QUEUE_SIZE.into(), LEGACY_PAGE, page);
            }
            Version::Modern => {
                self.place_queue(index, [desc, avail, used], QUEUE_SIZE.into());
                self.write(reg::QUEUE_READY, 1);
            }
        }
        self.free[index as usize] = 0;
        self.avail_idx[index as usize] = 0;
        self.used_idx[index as usize] = 0;
        for ring in [avail, used] {
            self.dma(|ram| ram.write(ring, &[0; 4096])).expect("ring in RAM");
        }
    }

    /// Writes a queue's registers but not QueueReady.
    pub fn place_queue(&mut self, index: u32, [desc, avail, used]: [u64; 3], size: u32) {
        self.write(reg::QUEUE_SEL, index);
        self.write(reg::QUEUE_NUM, size);
        self.write(reg::QUEUE_DESC_LOW, desc as u32);
        self.write(reg::QUEUE_DESC_HIGH, (desc >> 32) as u32);
        self.write(reg::QUEUE_DRIVER_LOW, avail as u32);
        self.write(reg::QUEUE_DRIVER_HIGH, (avail >> 32) as u32);
        self.write(reg::QUEUE_DEVICE_LOW, used as u32);
        self.write(reg::QUEUE_DEVICE_HIGH, (used >> 32) as u32);
    }

    /// Writes a queue's registers as legacy drivers do, which starts it.
    pub fn start_legacy_queue(&mut self, index: u32, size: u32, align: u32, page: u32) {
        self.write(reg::QUEUE_SEL, index);
        self.write(reg::QUEUE_NUM, size);
        self.write(reg::QUEUE_ALIGN, align);
        self.write(reg::QUEUE_PFN, page);
    }

    /// Calls `f` with RAM.
    pub fn dma<R>(&mut self, f: impl FnOnce(&mut Dma<'_, MockMemory>) -> R) -> R {
        f(&mut Dma::new(&mut self.ram, RAM_BASE))
    }

    /// Writes to RAM.
    pub fn store(&mut self, addr: u64, bytes: &[u8]) {
        self.dma(|ram| ram.write(addr, bytes)).expect("address in RAM");
    }

    /// Reads from RAM.
    pub fn load(&mut self, addr: u64, len: u32) -> Vec<u8> {
        let mut bytes = std::vec![0; len as usize];
        self.dma(|ram| ram.read(addr, &mut bytes)).expect("address in RAM");
        bytes
    }

    /// Reads a half word of RAM.
    pub fn load_u16(&mut self, addr: u64) -> u16 {
        self.dma(|ram| ram.read_u16(addr)).expect("address in RAM")
    }

    /// Writes a half word of RAM.
    pub fn store_u16(&mut self, addr: u64, value: u16) {
        self.store(addr, &value.to_le_bytes());
    }

    /// Writes entry `at` of a queue's descriptor table.
    pub fn write_descriptor(&mut self, queue: u32, at: u16, descriptor: Descriptor) {
        let addr = self.queue_addresses(queue)[0] + u64::from(at) * 16;
        self.store(addr, &descriptor.addr.to_le_bytes());
        self.store(addr + 8, &descriptor.len.to_le_bytes());
        self.store_u16(addr + 12, descriptor.flags);
        self.store_u16(addr + 14, descriptor.next);
    }

    /// Writes a chain of buffers (address, length, [`WRITE`] or 0) and returns its head.
    pub fn write_chain(&mut self, queue: u32, buffers: &[(u64, u32, u16)]) -> u16 {
        let head = self.free[queue as usize];
        let end = head + buffers.len() as u16;
        for (index, &(addr, len, flags)) in (head..).zip(buffers) {
            let next = (index + 1) % QUEUE_SIZE;
            let flags = if index + 1 == end { flags } else { flags | NEXT };
            let descriptor = Descriptor { addr, len, flags, next };
            self.write_descriptor(queue, index % QUEUE_SIZE, descriptor);
        }
        self.free[queue as usize] = end % QUEUE_SIZE;
        head
    }

    /// Makes the chain from `head` available, without a notification.
    pub fn make_available(&mut self, queue: u32, head: u16) {
        let avail = self.queue_addresses(queue)[1];
        let idx = self.avail_idx[queue as usize];
        self.store_u16(avail + 4 + u64::from(idx % QUEUE_SIZE) * 2, head);
        self.set_avail_idx(queue, idx.wrapping_add(1));
    }

    /// Sets the available ring's index, whatever is in the ring.
    pub fn set_avail_idx(&mut self, queue: u32, idx: u16) {
        self.avail_idx[queue as usize] = idx;
        self.store_u16(self.queue_addresses(queue)[1] + 2, idx);
    }

    /// Writes a chain and makes it available.
    pub fn offer(&mut self, queue: u32, buffers: &[(u64, u32, u16)]) -> u16 {
        let head = self.write_chain(queue, buffers);
        self.make_available(queue, head);
        head
    }

    /// Notifies the device of new buffers.
    pub fn kick(&mut self, queue: u32) {
        self.write(reg::QUEUE_NOTIFY, queue);
    }

    /// The next used buffer, if any: head of the chain, bytes written.
    pub fn take_used(&mut self, queue: u32) -> Option<(u32, u32)> {
        let used = self.queue_addresses(queue)[2];
        let idx = self.used_idx[queue as usize];
        if self.load_u16(used + 2) == idx {
            return None;
        }
        self.used_idx[queue as usize] = idx.wrapping_add(1);
        let elem = used + 4 + u64::from(idx % QUEUE_SIZE) * 8;
        let mut word = |addr| self.dma(|ram| ram.read_u32(addr)).expect("ring in RAM");
        Some((word(elem), word(elem + 4)))
    }

    /// Sets the flag that asks for no interrupts.
    pub fn set_no_interrupt(&mut self, queue: u32) {
        self.store_u16(self.queue_addresses(queue)[1], 1);
    }

    /// Asks for the interrupt of buffer `idx` (EVENT_IDX).
    pub fn set_used_event(&mut self, queue: u32, idx: u16) {
        self.store_u16(self.queue_addresses(queue)[1] + 4 + u64::from(QUEUE_SIZE) * 2, idx);
    }

    /// The buffer whose notification the device asks for (EVENT_IDX).
    pub fn avail_event(&mut self, queue: u32) -> u16 {
        self.load_u16(self.queue_addresses(queue)[2] + 4 + u64::from(QUEUE_SIZE) * 8)
    }

    /// Whether the device asked for a reset.
    pub fn needs_reset(&self) -> bool {
        self.read(reg::STATUS) & status::DEVICE_NEEDS_RESET != 0
    }
}

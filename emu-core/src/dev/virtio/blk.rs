//! virtio-blk (section 5.2) over a [`Disk`].

use super::mmio::Transport;
use super::queue::{Budget, Queue, QueueError, QueueStatus, SIZE_MAX as QUEUE_SIZE_MAX};
use super::{Deferred, Device, DeviceKind, Io, feature};
use crate::disk::{Disk, DiskError, PAGE_SIZE};
use crate::mem::{Dma, Memory};
use crate::port::Port;

/// VIRTIO_BLK_F_SIZE_MAX.
const F_SIZE_MAX: u64 = 1 << 1;
/// VIRTIO_BLK_F_SEG_MAX.
const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
const F_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE.
const F_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH.
const F_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_DISCARD.
const F_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES.
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Bytes in a sector.
pub const SECTOR_SIZE: u32 = 512;
/// Bytes in a block; what the disk does at once.
const BLK_SIZE: u32 = SECTOR_SIZE;
/// Most bytes in a segment: a page.
const SIZE_MAX: u32 = 4096;
/// Most segments in a request: all descriptors but those of header and status.
const SEG_MAX: u32 = QUEUE_SIZE_MAX as u32 - 2;
/// Most data in a request, which follows from the two.
const DATA_MAX: u32 = SIZE_MAX * SEG_MAX;
/// Most bytes that a request may discard or fill with zeros: what is work for a slice.
const ERASE_MAX: u32 = 32 << 20;
/// The cost of discarding a page, or of making it one of zeros, in bytes of copying.
const ERASE_COST: u32 = 16;

/// Request types (section 5.2.6).
mod request_type {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Request status.
mod status {
    pub const OK: u8 = 0;
    pub const IOERR: u8 = 1;
    pub const UNSUPP: u8 = 2;
}

/// Flag of a range to be filled with zeros: it may be freed as well.
const FLAG_UNMAP: u32 = 1;

/// `type`, `reserved`, `sector` in front of a request.
const HEADER_LEN: usize = 16;
/// `sector`, `num_sectors`, `flags` of a range to be discarded or filled with zeros.
const RANGE_LEN: usize = 16;
/// The status byte behind it.
const STATUS_LEN: u32 = 1;
/// The device ID that GET_ID returns.
const ID: [u8; 20] = *b"pxvm\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// `struct virtio_blk_config` after the capacity.
const CONFIG_WORDS: [u32; 13] = [
    SIZE_MAX,
    SEG_MAX,
    0, // geometry
    BLK_SIZE,
    0, // topology
    0, // opt_io_size
    0, // writeback, num_queues
    ERASE_MAX / SECTOR_SIZE,
    1, // max_discard_seg
    PAGE_SIZE / SECTOR_SIZE,
    ERASE_MAX / SECTOR_SIZE,
    1, // max_write_zeroes_seg
    1, // write_zeroes_may_unmap
];

/// The value of [`Blk::wanted`] when the device waits for no page.
const NO_PAGE: u32 = u32::MAX;

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Blk {
    transport: Transport,
    queues: [Queue; 1],
    /// Configuration: size in sectors of 512 bytes.
    capacity: u64,
    /// Non-zero when the guest cannot write.
    read_only: u32,
    /// The page that has to be loaded before the device can go on.
    wanted: u32,
    /// The request that waits for it.
    progress: Progress,
}

state!(Blk { transport, queues, capacity, read_only, wanted, progress });

/// How far a request is that waits for a page. It goes on from there, so that it needs one page at
/// a time, however few the host can keep loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
struct Progress {
    /// The request's header, kept because what was read may lie over it.
    sector: u64,
    request_type: u32,
    /// Non-zero when the header has been read.
    begun: u32,
    /// How many bytes are done.
    done: u32,
    /// Keeps what follows aligned.
    reserved: u32,
}

state!(Progress { sector, request_type, begun, done } except { reserved });

impl Progress {
    const NONE: Self = Self { sector: 0, request_type: 0, begun: 0, done: 0, reserved: 0 };
}

impl Blk {
    /// The largest disk, in sectors: its pages have numbers of 32 bits.
    pub const CAPACITY_MAX: u64 = NO_PAGE as u64 * (PAGE_SIZE / SECTOR_SIZE) as u64;

    /// Makes a disk of `capacity` sectors of 512 bytes.
    pub const fn new(capacity: u64) -> Self {
        Self {
            transport: Transport::in_slot(DeviceKind::Blk.default_slot()),
            capacity,
            ..Self::ABSENT
        }
    }

    /// Makes the disk one that the guest cannot write.
    pub const fn read_only(mut self) -> Self {
        self.read_only = 1;
        self
    }
}

impl Device for Blk {
    const ID: u32 = 2;
    const FEATURES: u64 = feature::COMMON
        | F_SIZE_MAX
        | F_SEG_MAX
        | F_BLK_SIZE
        | F_FLUSH
        | F_DISCARD
        | F_WRITE_ZEROES;
    const ABSENT: Self = Self {
        transport: Transport::ABSENT,
        queues: [Queue::RESET],
        capacity: 0,
        read_only: 0,
        wanted: NO_PAGE,
        progress: Progress::NONE,
    };

    fn features(&self) -> u64 {
        Self::FEATURES | if self.read_only != 0 { F_RO } else { 0 }
    }

    fn transport(&self) -> &Transport {
        &self.transport
    }

    fn queues(&self) -> &[Queue] {
        &self.queues
    }

    fn transport_and_queues(&mut self) -> (&mut Transport, &mut [Queue]) {
        (&mut self.transport, &mut self.queues)
    }

    /// Returns byte `at` of `struct virtio_blk_config`.
    fn config_byte(&self, at: usize) -> u8 {
        let word = match at / 4 {
            0 => self.capacity as u32,
            1 => (self.capacity >> 32) as u32,
            n => CONFIG_WORDS.get(n - 2).copied().unwrap_or(0),
        };
        (word >> (at % 4 * 8)) as u8
    }

    fn process<M: Memory, D: Disk, P: Port>(
        &mut self,
        _index: u32,
        io: &mut Io<'_, M, D, P>,
    ) -> Result<QueueStatus, QueueError> {
        let Self { transport, queues: [queue], capacity, read_only, wanted, progress } = self;
        *wanted = NO_PAGE;
        let size = Size { capacity: *capacity, read_only: *read_only != 0 };
        let outcome = process(queue, io, &mut transport.budget, size, progress);
        if let Err(Stop::NotLoaded(page)) = outcome {
            *wanted = page;
            return Ok(QueueStatus::Deferred);
        }
        // What is repeated because frames ran out begins anew, because the guest may run before.
        *progress = Progress::NONE;
        match outcome {
            Ok(status) => Ok(status),
            Err(Stop::Queue(error)) => Err(error),
            Err(Stop::NotLoaded(_)) => Ok(QueueStatus::Deferred),
        }
    }

    fn deferred(&self) -> Option<Deferred> {
        match self.wanted {
            NO_PAGE => self.transport.deferred(),
            page => Some(Deferred::Disk(page)),
        }
    }

    fn poll_input<P: Port>(&mut self, _live: bool, _port: &mut P) -> Option<u32> {
        None
    }
}

/// Why a request could not be completed.
enum Stop {
    /// Its chain or the ring cannot be used, or there is no frame.
    Queue(QueueError),
    /// The host must load this page of the disk.
    NotLoaded(u32),
}

impl From<QueueError> for Stop {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

/// Processes requests. After [`QueueError::NoFrame`] the call can be repeated, because a request
/// counts as done only once its status is written. After [`Stop::NotLoaded`] it must be, with the
/// same `progress`, before the guest executes anything.
fn process<M: Memory, D: Disk, P>(
    queue: &mut Queue,
    io: &mut Io<'_, M, D, P>,
    budget: &mut Budget,
    size: Size,
    progress: &mut Progress,
) -> Result<QueueStatus, Stop> {
    for _ in 0..queue.available(&mut io.ram)? {
        if budget.is_spent() {
            return Ok(QueueStatus::Deferred);
        }
        let head = queue.next_head(&io.ram)?;
        let lengths = queue.validate_chain(&io.ram, head)?;
        let (Some(out_len), Some(in_len)) = (
            lengths.readable.checked_sub(HEADER_LEN as u64),
            lengths.writable.checked_sub(STATUS_LEN.into()),
        ) else {
            // Without room for the status byte, the request cannot be completed.
            return Err(QueueError::Broken.into());
        };
        let request = Request { queue, head, out_len, in_len, size };
        let outcome = request.execute(io, progress)?;
        queue.write_with(&mut io.ram, head, in_len, STATUS_LEN, |_, chunk| {
            chunk.fill(outcome.status);
        })?;
        // The used length counts from the first byte on, so the status only when there is no gap.
        let gap = u64::from(outcome.written) != in_len;
        let written = if gap { outcome.written } else { outcome.written + STATUS_LEN };
        queue.complete(&mut io.ram, head, written)?;
        *progress = Progress::NONE;
        budget.spend(&lengths, outcome.moved);
    }
    Ok(QueueStatus::Done)
}

/// A request whose chain has been validated.
struct Request<'a> {
    queue: &'a Queue,
    head: u16,
    /// Bytes behind the header.
    out_len: u64,
    /// Bytes before the status.
    in_len: u64,
    size: Size,
}

/// What requests are checked against.
#[derive(Clone, Copy)]
struct Size {
    /// Sectors of the disk.
    capacity: u64,
    /// Whether the guest cannot write.
    read_only: bool,
}

/// The outcome of a request.
struct Outcome {
    status: u8,
    /// Bytes written to the guest, from the first writable one.
    written: u32,
    /// Bytes copied either way.
    moved: u32,
}

impl Outcome {
    const fn new(status: u8) -> Self {
        Self { status, written: 0, moved: 0 }
    }
}

/// Bytes of the disk, whole sectors.
#[derive(Clone, Copy)]
struct Extent {
    at: u64,
    len: u32,
}

impl Extent {
    /// Returns the `len` bytes from `sector` on, if they are whole sectors inside the disk and not
    /// more than `max`.
    fn new(sector: u64, len: u64, capacity: u64, max: u32) -> Option<Self> {
        let end = sector.checked_add(len / u64::from(SECTOR_SIZE))?;
        if !len.is_multiple_of(SECTOR_SIZE.into()) || len > max.into() || end > capacity {
            return None;
        }
        Some(Self { at: sector.checked_mul(SECTOR_SIZE.into())?, len: len as u32 })
    }

    /// Returns where byte `position` of the extent is: its page, its offset there, and how many bytes
    /// of the extent follow in that page.
    fn place(&self, position: u32) -> (u32, u32, u32) {
        let at = self.at + u64::from(position);
        let offset = at as u32 % PAGE_SIZE;
        let rest = (PAGE_SIZE - offset).min(self.len.saturating_sub(position));
        ((at / u64::from(PAGE_SIZE)) as u32, offset, rest)
    }

    /// Whether the extent covers all of page `page`.
    fn covers(&self, page: u32) -> bool {
        let start = u64::from(page) * u64::from(PAGE_SIZE);
        let end = start + u64::from(PAGE_SIZE);
        self.at <= start && self.at + u64::from(self.len) >= end
    }
}

impl Request<'_> {
    /// Executes the request from where it is, and counts on.
    fn execute<M: Memory, D: Disk, P>(
        &self,
        io: &mut Io<'_, M, D, P>,
        progress: &mut Progress,
    ) -> Result<Outcome, Stop> {
        if progress.begun == 0 {
            let header: [u8; HEADER_LEN] = self.bytes(&io.ram, 0)?;
            let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
            progress.request_type = u32::from_le_bytes([t0, t1, t2, t3]);
            progress.sector = u64::from_le_bytes(sector);
            progress.begun = 1;
        }
        let Progress { sector, request_type, ref mut done, .. } = *progress;
        let extent = |len| Extent::new(sector, len, self.size.capacity, DATA_MAX);
        match request_type {
            request_type::OUT | request_type::DISCARD | request_type::WRITE_ZEROES
                if self.size.read_only =>
            {
                Ok(Outcome::new(status::IOERR))
            }
            request_type::IN => match extent(self.in_len) {
                Some(extent) => self.read(io, extent, done),
                None => Ok(Outcome::new(status::IOERR)),
            },
            request_type::OUT => match extent(self.out_len) {
                Some(extent) => self.write(io, extent, done),
                None => Ok(Outcome::new(status::IOERR)),
            },
            request_type::FLUSH => outcome_of(io.disk.flush(), Outcome::new(status::OK)),
            request_type::GET_ID => self.get_id(&mut io.ram),
            kind @ (request_type::DISCARD | request_type::WRITE_ZEROES) => {
                self.erase(io, kind == request_type::WRITE_ZEROES, done)
            }
            _ => Ok(Outcome::new(status::UNSUPP)),
        }
    }

    /// Returns bytes of the readable part, from `at` on.
    fn bytes<M: Memory, const N: usize>(
        &self,
        ram: &Dma<'_, M>,
        at: u64,
    ) -> Result<[u8; N], QueueError> {
        let mut bytes = [0; N];
        self.queue.read_with(ram, self.head, at, N as u32, |at, chunk| {
            for (byte, value) in bytes.iter_mut().skip(at as usize).zip(chunk) {
                *byte = *value;
            }
        })?;
        Ok(bytes)
    }

    fn read<M: Memory, D: Disk, P>(
        &self,
        io: &mut Io<'_, M, D, P>,
        extent: Extent,
        done: &mut u32,
    ) -> Result<Outcome, Stop> {
        let (disk, from, mut access) = (&mut *io.disk, *done, Ok(()));
        let left = extent.len.saturating_sub(from);
        self.queue.write_with(&mut io.ram, self.head, from.into(), left, |_, mut chunk| {
            while access.is_ok() && !chunk.is_empty() {
                let (page, offset, rest) = extent.place(*done);
                let n = chunk.len().min(rest as usize);
                let Some((piece, more)) = chunk.split_at_mut_checked(n).filter(|_| n > 0) else {
                    break;
                };
                access = disk.read(page, offset, piece);
                if access.is_ok() {
                    *done += n as u32;
                }
                chunk = more;
            }
        })?;
        let len = extent.len;
        outcome_of(access, Outcome { status: status::OK, written: len, moved: len })
    }

    fn write<M: Memory, D: Disk, P>(
        &self,
        io: &mut Io<'_, M, D, P>,
        extent: Extent,
        done: &mut u32,
    ) -> Result<Outcome, Stop> {
        let (disk, from, mut access) = (&mut *io.disk, *done, Ok(()));
        let left = extent.len.saturating_sub(from);
        let at = HEADER_LEN as u64 + u64::from(from);
        self.queue.read_with(&io.ram, self.head, at, left, |_, mut chunk| {
            while access.is_ok() && !chunk.is_empty() {
                let (page, offset, rest) = extent.place(*done);
                let n = chunk.len().min(rest as usize);
                let Some((piece, more)) = chunk.split_at_checked(n).filter(|_| n > 0) else {
                    break;
                };
                access = disk.write(page, offset, piece, extent.covers(page));
                if access.is_ok() {
                    *done += n as u32;
                }
                chunk = more;
            }
        })?;
        outcome_of(access, Outcome { status: status::OK, written: 0, moved: extent.len })
    }

    fn get_id<M: Memory>(&self, ram: &mut Dma<'_, M>) -> Result<Outcome, Stop> {
        let len = self.in_len.min(ID.len() as u64) as u32;
        self.queue.write_with(ram, self.head, 0, len, |at, chunk| {
            for (byte, value) in chunk.iter_mut().zip(ID.iter().skip(at as usize)) {
                *byte = *value;
            }
        })?;
        Ok(Outcome { status: status::OK, written: len, moved: len })
    }

    /// Discards a range of the disk, or fills it with zeros.
    fn erase<M: Memory, D: Disk, P>(
        &self,
        io: &mut Io<'_, M, D, P>,
        zeros: bool,
        done: &mut u32,
    ) -> Result<Outcome, Stop> {
        if self.out_len < RANGE_LEN as u64 {
            return Err(QueueError::Broken.into());
        }
        if self.out_len > RANGE_LEN as u64 {
            // More ranges than `max_discard_seg`.
            return Ok(Outcome::new(status::UNSUPP));
        }
        let range: [u8; RANGE_LEN] = self.bytes(&io.ram, HEADER_LEN as u64)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let len = u64::from(u32::from_le_bytes([n0, n1, n2, n3])) * u64::from(SECTOR_SIZE);
        let Some(extent) = Extent::new(sector, len, self.size.capacity, ERASE_MAX) else {
            return Ok(Outcome::new(status::IOERR));
        };
        let known = if zeros { FLAG_UNMAP } else { 0 };
        if u32::from_le_bytes(flags) & !known != 0 {
            return Ok(Outcome::new(status::UNSUPP));
        }
        let access = if zeros {
            fill_with_zeros(io.disk, extent, done)
        } else {
            discard(io.disk, extent);
            Ok(())
        };
        let moved = extent.len / PAGE_SIZE * ERASE_COST;
        outcome_of(access, Outcome { status: status::OK, written: 0, moved })
    }
}

/// Discards the pages that an extent covers. What else it has of a page stays.
fn discard<D: Disk>(disk: &mut D, extent: Extent) {
    let end = (extent.at + u64::from(extent.len)) / u64::from(PAGE_SIZE);
    let mut page = extent.at.div_ceil(u64::from(PAGE_SIZE));
    while page < end {
        page = u64::from(disk.discard(page as u32)).max(page + 1);
    }
}

/// Fills an extent with zeros, of whose bytes the first `done` are done.
fn fill_with_zeros<D: Disk>(disk: &mut D, extent: Extent, done: &mut u32) -> Result<(), DiskError> {
    const ZEROS: [u8; SECTOR_SIZE as usize] = [0; SECTOR_SIZE as usize];
    while *done < extent.len {
        let (page, offset, _) = extent.place(*done);
        *done += if extent.covers(page) {
            disk.zero(page)?;
            PAGE_SIZE
        } else {
            disk.write(page, offset, &ZEROS, false)?;
            SECTOR_SIZE
        };
    }
    Ok(())
}

/// Returns `done`, or the outcome of a failed access to the disk.
fn outcome_of(access: Result<(), DiskError>, done: Outcome) -> Result<Outcome, Stop> {
    match access {
        Ok(()) => Ok(done),
        // A guest that repeats the request costs as much work as with one that succeeds.
        Err(DiskError::Failed) => Ok(Outcome { status: status::IOERR, written: 0, ..done }),
        Err(DiskError::NoFrame) => Err(Stop::Queue(QueueError::NoFrame)),
        Err(DiskError::NotLoaded(page)) => Err(Stop::NotLoaded(page)),
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use virtio_bindings::virtio_blk;

    use super::*;
    use crate::dev::virtio::driver::{
        BUFFERS, Guest, MockDisk, WRITE, for_seeds, queue_addresses, reg,
    };
    use crate::dev::virtio::mmio::status::DEVICE_NEEDS_RESET;
    use crate::state::{State, Visitor};
    use crate::trap::Trap;

    const HEADER: u64 = BUFFERS;
    const STATUS: u64 = BUFFERS + 0x100;
    const DATA: u64 = BUFFERS + 0x1000;
    const SECTORS: u64 = 64;
    /// The value of the status byte before the request completes.
    const NONE: u8 = 0xff;

    /// Every sector is filled with its number.
    fn image() -> Vec<u8> {
        (0..SECTORS as u32 * SECTOR_SIZE).map(|at| (at / SECTOR_SIZE) as u8).collect()
    }

    fn guest() -> Guest<Blk> {
        let mut guest = Guest::started(Blk::new(SECTORS), 0);
        guest.disk = MockDisk::new(&image());
        guest
    }

    fn store_header(guest: &mut Guest<Blk>, request_type: u32, sector: u64) {
        guest.store(HEADER, &request_type.to_le_bytes());
        guest.store(HEADER + 8, &sector.to_le_bytes());
        guest.store(STATUS, &[NONE]);
    }

    /// Offers a request with `data` (length, WRITE or not) between header and status.
    fn offer(guest: &mut Guest<Blk>, request_type: u32, sector: u64, data: &[(u64, u32, u16)]) {
        store_header(guest, request_type, sector);
        let mut chain = std::vec![(HEADER, 16, 0)];
        chain.extend(data);
        chain.push((STATUS, 1, WRITE));
        guest.offer(0, &chain);
    }

    /// Makes a request and returns its status.
    fn request(
        guest: &mut Guest<Blk>,
        request_type: u32,
        sector: u64,
        data: &[(u64, u32, u16)],
    ) -> u8 {
        offer(guest, request_type, sector, data);
        guest.kick(0);
        guest.load(STATUS, 1)[0]
    }

    fn disk_bytes(guest: &Guest<Blk>, sector: u64, len: u32) -> Vec<u8> {
        guest.disk.bytes[sector as usize * 512..][..len as usize].to_vec()
    }

    /// A range for DISCARD and WRITE_ZEROES.
    fn store_range(guest: &mut Guest<Blk>, sector: u64, sectors: u32, flags: u32) {
        guest.store(DATA, &sector.to_le_bytes());
        guest.store(DATA + 8, &sectors.to_le_bytes());
        guest.store(DATA + 12, &flags.to_le_bytes());
    }

    /// Discards a range, or fills it with zeros, and returns the status.
    fn erase(guest: &mut Guest<Blk>, request_type: u32, range: (u64, u32, u32)) -> u8 {
        store_range(guest, range.0, range.1, range.2);
        request(guest, request_type, 0, &[(DATA, 16, 0)])
    }

    #[test]
    fn constants_are_those_of_linux() {
        use virtio_blk::*;
        assert_eq!(F_SIZE_MAX, 1 << VIRTIO_BLK_F_SIZE_MAX);
        assert_eq!(F_SEG_MAX, 1 << VIRTIO_BLK_F_SEG_MAX);
        assert_eq!(F_BLK_SIZE, 1 << VIRTIO_BLK_F_BLK_SIZE);
        assert_eq!(F_FLUSH, 1 << VIRTIO_BLK_F_FLUSH);
        assert_eq!(F_DISCARD, 1 << VIRTIO_BLK_F_DISCARD);
        assert_eq!(F_WRITE_ZEROES, 1 << VIRTIO_BLK_F_WRITE_ZEROES);
        assert_eq!(request_type::IN, VIRTIO_BLK_T_IN);
        assert_eq!(request_type::OUT, VIRTIO_BLK_T_OUT);
        assert_eq!(request_type::FLUSH, VIRTIO_BLK_T_FLUSH);
        assert_eq!(request_type::GET_ID, VIRTIO_BLK_T_GET_ID);
        assert_eq!(request_type::DISCARD, VIRTIO_BLK_T_DISCARD);
        assert_eq!(request_type::WRITE_ZEROES, VIRTIO_BLK_T_WRITE_ZEROES);
        assert_eq!(FLAG_UNMAP, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
        assert_eq!(u32::from(status::OK), VIRTIO_BLK_S_OK);
        assert_eq!(u32::from(status::IOERR), VIRTIO_BLK_S_IOERR);
        assert_eq!(u32::from(status::UNSUPP), VIRTIO_BLK_S_UNSUPP);
        assert_eq!(ID.len() as u32, VIRTIO_BLK_ID_BYTES);
    }

    #[test]
    fn configuration_has_capacity_and_limits() {
        use core::mem::offset_of;
        use virtio_blk::virtio_blk_config;
        let guest = Guest::new(Blk::new(0x1_2345_6789));
        let word = |offset: usize| guest.read(reg::CONFIG + offset as u32);
        assert_eq!(word(offset_of!(virtio_blk_config, capacity)), 0x2345_6789);
        assert_eq!(word(4), 1);
        assert_eq!(word(offset_of!(virtio_blk_config, size_max)), 4096);
        assert_eq!(word(offset_of!(virtio_blk_config, seg_max)), 62);
        assert_eq!(word(offset_of!(virtio_blk_config, blk_size)), 512);
        assert_eq!(word(offset_of!(virtio_blk_config, physical_block_exp)), 0);
        for (at, value) in [
            (offset_of!(virtio_blk_config, max_discard_sectors), 65_536),
            (offset_of!(virtio_blk_config, max_discard_seg), 1),
            (offset_of!(virtio_blk_config, discard_sector_alignment), 8),
            (offset_of!(virtio_blk_config, max_write_zeroes_sectors), 65_536),
            (offset_of!(virtio_blk_config, max_write_zeroes_seg), 1),
            (offset_of!(virtio_blk_config, write_zeroes_may_unmap), 1),
        ] {
            assert_eq!(word(at), value, "{at}");
        }
    }

    #[test]
    fn in_reads_sectors() {
        let mut guest = guest();
        assert_eq!(request(&mut guest, 0, 7, &[(DATA, 1024, WRITE)]), 0);
        assert_eq!(guest.take_used(0), Some((0, 1025)));
        assert_eq!(guest.load(DATA, 1024), image()[7 * 512..9 * 512]);
    }

    #[test]
    fn in_reads_into_several_segments_across_pages() {
        let mut guest = guest();
        let parts = [(DATA, 100, WRITE), (DATA + 0x1fff, 412, WRITE), (DATA + 0x3000, 4096, WRITE)];
        assert_eq!(request(&mut guest, 0, 3, &parts), 0);
        assert_eq!(guest.load(DATA, 100), [3; 100]);
        assert_eq!(guest.load(DATA + 0x1fff, 412), [3; 412]);
        assert_eq!(guest.load(DATA + 0x3000, 4096), image()[4 * 512..12 * 512]);
    }

    #[test]
    fn out_writes_sectors() {
        let mut guest = guest();
        guest.store(DATA, &[0xaa; 512]);
        assert_eq!(request(&mut guest, 1, 9, &[(DATA, 512, 0)]), 0);
        assert_eq!(guest.take_used(0), Some((0, 1)));
        assert_eq!(disk_bytes(&guest, 9, 512), [0xaa; 512]);
        assert_eq!(disk_bytes(&guest, 10, 512), [10; 512]);
        assert_eq!(disk_bytes(&guest, 8, 512), [8; 512]);
    }

    #[test]
    fn out_makes_only_what_it_writes_private() {
        let mut guest = guest();
        request(&mut guest, 1, 9, &[(DATA, 512, 0)]);
        assert_eq!(guest.disk.own.len(), 1);
        request(&mut guest, 0, 0, &[(DATA, 4096, WRITE)]);
        assert_eq!(guest.disk.own.len(), 1);
    }

    #[test]
    fn header_and_data_may_share_a_buffer() {
        let mut guest = guest();
        store_header(&mut guest, 1, 5);
        guest.store(HEADER + 16, &[0xbb; 512]);
        guest.offer(0, &[(HEADER, 3, 0), (HEADER + 3, 13 + 512, 0), (DATA, 1, WRITE)]);
        guest.store(DATA, &[NONE]);
        guest.kick(0);
        assert_eq!(guest.load(DATA, 1), [0]);
        assert_eq!(disk_bytes(&guest, 5, 512), [0xbb; 512]);
    }

    #[test]
    fn data_and_status_may_share_a_buffer() {
        let mut guest = guest();
        store_header(&mut guest, 0, 5);
        guest.offer(0, &[(HEADER, 16, 0), (DATA, 513, WRITE)]);
        guest.store(DATA + 512, &[NONE]);
        guest.kick(0);
        assert_eq!(guest.load(DATA, 512), [5; 512]);
        assert_eq!(guest.load(DATA + 512, 1), [0]);
    }

    #[test]
    fn flush_is_done() {
        let mut guest = guest();
        assert_eq!(request(&mut guest, 4, 0, &[]), 0);
        assert_eq!(guest.take_used(0), Some((0, 1)));
        assert_eq!(guest.disk.flushes, 1);
        guest.disk.flush_fails = true;
        assert_eq!(request(&mut guest, 4, 0, &[]), 1);
    }

    #[test]
    fn get_id_says_pxvm() {
        let mut guest = guest();
        assert_eq!(request(&mut guest, 8, 0, &[(DATA, 20, WRITE)]), 0);
        assert_eq!(guest.load(DATA, 5), *b"pxvm\0");
        assert_eq!(guest.take_used(0), Some((0, 21)));
    }

    #[test]
    fn get_id_into_a_small_buffer_is_cut() {
        let mut guest = guest();
        assert_eq!(request(&mut guest, 8, 0, &[(DATA, 2, WRITE)]), 0);
        assert_eq!(guest.load(DATA, 3), *b"px\0");
    }

    #[test]
    fn unknown_requests_are_unsupported() {
        let mut guest = guest();
        for request_type in [2, 10, 12, 14, u32::MAX] {
            assert_eq!(request(&mut guest, request_type, 0, &[]), 2);
        }
    }

    #[test]
    fn the_last_sector_can_be_read_and_the_next_not() {
        let mut guest = guest();
        assert_eq!(request(&mut guest, 0, SECTORS - 1, &[(DATA, 512, WRITE)]), 0);
        assert_eq!(request(&mut guest, 0, SECTORS, &[(DATA, 512, WRITE)]), 1);
        assert_eq!(request(&mut guest, 0, SECTORS - 1, &[(DATA, 1024, WRITE)]), 1);
    }

    #[test]
    fn sectors_far_beyond_the_disk_are_an_error() {
        let mut guest = guest();
        for sector in [1 << 55, u64::MAX, u64::MAX / 512, u64::MAX - 1] {
            assert_eq!(request(&mut guest, 0, sector, &[(DATA, 1024, WRITE)]), 1);
            assert_eq!(request(&mut guest, 1, sector, &[(DATA, 1024, 0)]), 1);
        }
        assert!(guest.disk.own.is_empty());
    }

    #[test]
    fn an_error_says_that_nothing_was_written() {
        let mut guest = guest();
        request(&mut guest, 0, SECTORS, &[(DATA, 512, WRITE)]);
        assert_eq!(guest.take_used(0), Some((0, 0)));
    }

    #[test]
    fn part_of_a_sector_is_an_error() {
        let mut guest = guest();
        assert_eq!(request(&mut guest, 0, 0, &[(DATA, 511, WRITE)]), 1);
        assert_eq!(request(&mut guest, 1, 0, &[(DATA, 513, 0)]), 1);
    }

    #[test]
    fn more_than_a_request_may_have_is_an_error() {
        let mut guest = Guest::started(Blk::new(8192), 0);
        guest.disk = MockDisk::new(&[0; 8192 * 512]);
        let part = (BUFFERS + 0x1000, DATA_MAX / 2, WRITE);
        assert_eq!(request(&mut guest, 0, 0, &[part, part]), 0);
        guest.poll();
        assert_eq!(request(&mut guest, 0, 0, &[part, part, (DATA, 512, WRITE)]), 1);
    }

    #[test]
    fn a_disk_smaller_than_its_capacity_is_an_error() {
        let mut guest = Guest::started(Blk::new(SECTORS), 0);
        assert_eq!(request(&mut guest, 0, 0, &[(DATA, 512, WRITE)]), 1);
        assert_eq!(request(&mut guest, 1, 0, &[(DATA, 512, 0)]), 1);
    }

    #[test]
    fn an_empty_request_is_done() {
        let mut guest = guest();
        assert_eq!(request(&mut guest, 0, SECTORS, &[]), 0);
    }

    #[test]
    fn a_request_without_header_or_status_needs_a_reset() {
        for chain in [&[(HEADER, 15, 0), (STATUS, 1, WRITE)][..], &[(HEADER, 16, 0)]] {
            let mut guest = guest();
            guest.offer(0, chain);
            guest.kick(0);
            assert!(guest.needs_reset());
        }
    }

    #[test]
    fn in_is_repeated_when_guest_frames_run_out() {
        let mut guest = guest();
        offer(&mut guest, 0, 7, &[(DATA, 4096, WRITE), (DATA + 0x1000, 4096, WRITE)]);
        guest.ram.frames_left = 1;
        assert_eq!(guest.try_write(reg::QUEUE_NOTIFY, 0), Err(Trap::NoFrame));
        assert_eq!(guest.load(STATUS, 1), [NONE]);
        assert_eq!(guest.take_used(0), None);
        guest.ram.frames_left = 1;
        guest.kick(0);
        assert_eq!(guest.load(DATA, 8192), image()[7 * 512..23 * 512]);
        assert_eq!(guest.take_used(0), Some((0, 8193)));
    }

    #[test]
    fn out_is_repeated_when_disk_frames_run_out() {
        let mut guest = guest();
        guest.store(DATA, &[0xcc; 4096]);
        offer(&mut guest, 1, 7, &[(DATA, 4096, 0)]);
        guest.disk.frames_left = Some(1);
        assert_eq!(guest.try_write(reg::QUEUE_NOTIFY, 0), Err(Trap::NoFrame));
        assert_eq!(guest.load(STATUS, 1), [NONE]);
        guest.disk.frames_left = Some(1);
        guest.kick(0);
        assert_eq!(disk_bytes(&guest, 7, 4096), [0xcc; 4096]);
        assert_eq!(guest.load(STATUS, 1), [0]);
    }

    #[test]
    fn a_read_only_disk_says_so_and_cannot_be_written() {
        let mut guest = Guest::started(Blk::new(SECTORS).read_only(), 0);
        guest.disk = MockDisk::new(&image());
        assert_ne!(guest.device_features() & 1 << virtio_blk::VIRTIO_BLK_F_RO, 0);
        assert_eq!(request(&mut guest, 0, 7, &[(DATA, 512, WRITE)]), 0);
        assert_eq!(request(&mut guest, 1, 7, &[(DATA, 512, 0)]), 1);
        assert_eq!(erase(&mut guest, 11, (8, 8, 0)), 1);
        assert_eq!(erase(&mut guest, 13, (8, 8, 0)), 1);
        assert!(guest.disk.own.is_empty());
        assert_eq!(self::guest().device_features() & F_RO, 0);
    }

    #[test]
    fn zeros_fill_whole_pages_and_parts_of_them() {
        let mut guest = guest();
        // Half of page 1, page 2 and half of page 3.
        assert_eq!(erase(&mut guest, 13, (12, 16, 0)), 0);
        assert_eq!(guest.take_used(0), Some((0, 1)));
        assert_eq!(disk_bytes(&guest, 12, 16 * 512), [0; 16 * 512]);
        assert_eq!([guest.disk.bytes[12 * 512 - 1], guest.disk.bytes[28 * 512]], [11, 28]);
        assert_eq!(erase(&mut guest, 13, (40, 8, FLAG_UNMAP)), 0);
        assert_eq!(disk_bytes(&guest, 40, 4096), [0; 4096]);
    }

    #[test]
    fn a_discard_frees_whole_pages_of_the_guests_own_and_nothing_else() {
        let mut guest = guest();
        guest.store(DATA, &[0xaa; 4096]);
        for sector in [8, 16, 48] {
            assert_eq!(request(&mut guest, 1, sector, &[(DATA, 4096, 0)]), 0);
        }
        assert_eq!(erase(&mut guest, 11, (9, 36, 0)), 0);
        assert_eq!(disk_bytes(&guest, 8, 4096), [0xaa; 4096]);
        assert_eq!(disk_bytes(&guest, 16, 4096), [0; 4096]);
        assert_eq!(disk_bytes(&guest, 48, 4096), [0xaa; 4096]);
        assert_eq!(guest.disk.bytes[24 * 512], 24);
    }

    #[test]
    fn ranges_are_checked_as_qemu_does() {
        for request_type in [11, 13] {
            let mut guest = guest();
            assert_eq!(erase(&mut guest, request_type, (SECTORS - 8, 9, 0)), 1);
            assert_eq!(erase(&mut guest, request_type, (u64::MAX, 8, 0)), 1);
            assert_eq!(erase(&mut guest, request_type, (0, 65_537, 0)), 1);
            assert_eq!(erase(&mut guest, request_type, (0, u32::MAX, 0)), 1);
            assert_eq!(erase(&mut guest, request_type, (0, 8, 2)), 2);
            let unmap = if request_type == 11 { 2 } else { 0 };
            assert_eq!(erase(&mut guest, request_type, (0, 8, 1)), unmap);
            assert_eq!(request(&mut guest, request_type, 0, &[(DATA, 32, 0)]), 2);
            offer(&mut guest, request_type, 0, &[(DATA, 15, 0)]);
            guest.kick(0);
            assert!(guest.needs_reset());
        }
    }

    #[test]
    fn the_largest_range_is_the_work_of_a_slice() {
        let mut guest = Guest::started(Blk::new(1 << 20), 0);
        assert_eq!(erase(&mut guest, 11, (0, 65_536, 0)), 0);
        assert_eq!(erase(&mut guest, 11, (0, 65_536, 0)), NONE);
        assert_eq!(guest.device.deferred(), Some(Deferred::Budget));
        guest.poll();
        assert_eq!(guest.load(STATUS, 1), [0]);
    }

    #[test]
    fn a_request_waits_for_each_page_that_is_not_loaded() {
        let mut guest = guest();
        guest.disk.missing = [1, 2].into();
        offer(&mut guest, 0, 7, &[(DATA, 4096, WRITE), (DATA + 0x1000, 4096, WRITE)]);
        guest.kick(0);
        for page in [1, 2] {
            assert_eq!(guest.device.deferred(), Some(Deferred::Disk(page)));
            assert_eq!((guest.load(STATUS, 1)[0], guest.take_used(0)), (NONE, None));
            // Nothing happens as long as it is not there.
            guest.poll();
            assert_eq!(guest.device.deferred(), Some(Deferred::Disk(page)));
            // One page at a time is enough.
            guest.disk.missing = [0, 1, 2].into();
            guest.disk.missing.remove(&page);
            guest.poll();
        }
        assert_eq!(guest.device.deferred(), None);
        assert_eq!(guest.take_used(0), Some((0, 8193)));
        assert_eq!(guest.load(DATA, 8192), image()[7 * 512..23 * 512]);
    }

    #[test]
    fn what_a_request_reads_may_lie_over_its_header_whatever_is_loaded() {
        let read = |missing: &[u32]| {
            let mut guest = guest();
            guest.disk.missing = missing.iter().copied().collect();
            offer(&mut guest, 0, 7, &[(HEADER - 8, 8192, WRITE)]);
            guest.store(STATUS, &[NONE]);
            guest.kick(0);
            while let Some(Deferred::Disk(page)) = guest.device.deferred() {
                guest.disk.missing.remove(&page);
                guest.poll();
            }
            (guest.take_used(0), guest.load(HEADER - 8, 8192), guest.device.clone())
        };
        assert_eq!(read(&[]), read(&[1, 2]));
    }

    // A chain that could change while its request waits is none of a good driver's.
    #[test]
    fn what_a_request_reads_may_not_lie_over_the_ring() {
        let [desc, avail, _] = queue_addresses(0);
        for at in [desc, avail] {
            let mut guest = guest();
            offer(&mut guest, 0, 7, &[(at, 512, WRITE)]);
            guest.kick(0);
            assert_ne!(guest.read(reg::STATUS) & DEVICE_NEEDS_RESET, 0, "{at:#x}");
        }
    }

    #[test]
    fn a_page_that_is_written_whole_need_not_be_loaded() {
        let mut guest = guest();
        guest.disk.missing = (0..8).collect();
        guest.store(DATA, &[0xbb; 3 * 4096]);
        offer(&mut guest, 1, 9, &[(DATA, 3 * 4096, 0)]);
        guest.kick(0);
        assert_eq!(guest.device.deferred(), Some(Deferred::Disk(1)));
        guest.disk.missing.remove(&1);
        guest.poll();
        // Pages 2 and 3 are whole; the last has one sector.
        assert_eq!(guest.device.deferred(), Some(Deferred::Disk(4)));
        guest.disk.missing.remove(&4);
        guest.poll();
        assert_eq!(guest.load(STATUS, 1), [0]);
        let mut expected = image();
        expected[9 * 512..33 * 512].fill(0xbb);
        assert_eq!(guest.disk.bytes, expected);
    }

    #[test]
    fn a_page_that_cannot_be_read_fails_its_request_and_no_other() {
        let mut guest = guest();
        guest.disk.broken = [2].into();
        assert_eq!(request(&mut guest, 0, 8, &[(DATA, 8192, WRITE)]), 1);
        assert_eq!(guest.take_used(0), Some((0, 0)));
        assert_eq!(request(&mut guest, 1, 17, &[(DATA, 512, 0)]), 1);
        assert_eq!(erase(&mut guest, 13, (17, 1, 0)), 1);
        assert_eq!(request(&mut guest, 0, 8, &[(DATA, 4096, WRITE)]), 0);
        assert_eq!(request(&mut guest, 1, 16, &[(DATA, 4096, 0)]), 0);
    }

    #[test]
    fn waiting_leaves_the_state_that_not_waiting_does() {
        let end = |missing: &[u32]| {
            let mut guest = guest();
            guest.disk.missing = missing.iter().copied().collect();
            store_header(&mut guest, 0, 0);
            for at in [0u64, 1] {
                let data = (DATA + at * 0x4000, 16 * 512, WRITE);
                guest.offer(0, &[(HEADER, 16, 0), data, (STATUS, 1, WRITE)]);
            }
            guest.kick(0);
            while let Some(Deferred::Disk(page)) = guest.device.deferred() {
                guest.disk.missing.remove(&page);
                guest.poll();
            }
            let mut state = Values(Vec::new());
            guest.device.visit(&mut state);
            (state.0, guest.load(DATA, 0x6000), guest.take_used(0), guest.take_used(0))
        };
        assert_eq!(end(&[0, 1]), end(&[]));
        assert_eq!(end(&[1]), end(&[]));
    }

    struct Values(Vec<u64>);

    impl Visitor for Values {
        fn value(&mut self, value: u64, _: usize) {
            self.0.push(value);
        }
    }

    #[test]
    fn requests_beyond_a_slices_work_wait_for_the_next() {
        let mut guest = guest();
        let page = (BUFFERS + 0x1_0000, 16 * 1024, WRITE);
        for _ in 0..8 {
            request(&mut guest, 0, 0, &[page]);
        }
        assert_eq!(request(&mut guest, 0, 0, &[page]), NONE);
        assert_eq!(guest.device.deferred(), Some(Deferred::Budget));
        guest.poll();
        assert_eq!(guest.load(STATUS, 1), [0]);
        assert_eq!(guest.device.deferred(), None);
    }

    #[test]
    fn a_reset_does_not_renew_a_slices_work() {
        let mut guest = guest();
        let page = (BUFFERS + 0x1_0000, 16 * 1024, WRITE);
        for _ in 0..8 {
            request(&mut guest, 0, 0, &[page]);
        }
        guest.start(0);
        assert_eq!(request(&mut guest, 0, 0, &[page]), NONE);
    }

    /// Reads and writes at random, cut at random, against a plain copy of the disk.
    #[test]
    fn behaves_like_a_plain_disk() {
        for_seeds(0, 60, |rng| {
            let mut guest = guest();
            let mut model = image();
            for _ in 0..60 {
                let sector = rng.below(SECTORS as u32 + 4);
                let len = 512 * rng.below(12);
                let cut = rng.below(len + 1);
                let addr = DATA + u64::from(rng.below(0x1000));
                let second = addr + 0x4000;
                let inside = sector * 512 + len <= SECTORS as u32 * 512;
                let range = (sector * 512) as usize..(sector * 512 + len) as usize;
                let is_out = rng.one_in(2);
                let flags = if is_out { 0 } else { WRITE };
                let data: Vec<u8> = (0..len).map(|_| rng.next_u32() as u8).collect();
                if is_out {
                    guest.store(addr, &data[..cut as usize]);
                    guest.store(second, &data[cut as usize..]);
                }
                let parts = [(addr, cut, flags), (second, len - cut, flags)];
                offer(&mut guest, is_out.into(), sector.into(), &parts);
                guest.ram.frames_left = rng.below(3);
                guest.disk.frames_left = Some(rng.below(3));
                guest.disk.missing = (0..8).filter(|_| rng.one_in(3)).collect();
                let _ = guest.try_write(reg::QUEUE_NOTIFY, 0);
                guest.ram.frames_left = u32::MAX;
                guest.disk.frames_left = None;
                guest.kick(0);
                while let Some(Deferred::Disk(page)) = guest.device.deferred() {
                    guest.disk.missing.remove(&page);
                    guest.poll();
                }
                guest.poll();
                assert_eq!(guest.load(STATUS, 1)[0], if inside { 0 } else { 1 });
                if inside && is_out {
                    model[range].copy_from_slice(&data);
                } else if inside {
                    let mut read = guest.load(addr, cut);
                    read.extend(guest.load(second, len - cut));
                    assert_eq!(read, model[range]);
                }
            }
            assert_eq!(disk_bytes(&guest, 0, SECTORS as u32 * 512), model);
        });
    }

    #[test]
    fn no_request_panics() {
        for_seeds(1000, 200, |rng| {
            let mut guest = guest();
            for _ in 0..40 {
                let mut sector = rng.next_u64() >> rng.below(64);
                if rng.one_in(2) {
                    sector %= SECTORS;
                }
                store_header(&mut guest, rng.below(15), sector);
                store_range(&mut guest, sector, rng.next_u32() >> rng.below(32), rng.below(3));
                let chain: Vec<_> = (0..1 + rng.below(6))
                    .map(|i| {
                        let addr = BUFFERS + u64::from(rng.below(0x3_8000));
                        let len = rng.pick(&[0, 1, 15, 16, 512, 1024, 4096, 40_000]);
                        let flags = if i > 2 { WRITE } else { rng.below(8) as u16 & 3 };
                        if i == 0 {
                            (HEADER, rng.pick(&[16, 16, 8, 32, 528]), 0)
                        } else {
                            (addr, len, flags)
                        }
                    })
                    .collect();
                guest.offer(0, &chain);
                guest.ram.frames_left = rng.below(10);
                guest.disk.frames_left = Some(rng.below(3));
                guest.disk.missing = [rng.below(8), rng.below(8)].into();
                guest.disk.broken = [rng.below(8)].into();
                let _ = guest.try_write(reg::QUEUE_NOTIFY, 0);
                let _ = guest.try_poll();
                guest.ram.frames_left = u32::MAX;
                guest.disk.frames_left = None;
                guest.disk.missing.clear();
                if guest.needs_reset() {
                    guest.start(0);
                }
            }
        });
    }
}

//! virtio-blk (section 5.2) over a [`Memory`]: shared image frames under private copies.

use super::mmio::Transport;
use super::queue::{Budget, Queue, QueueError, QueueStatus, SIZE_MAX as QUEUE_SIZE_MAX};
use super::{Device, DeviceKind, Io, feature};
use crate::mem::{Dma, DmaError, Memory};
use crate::port::Port;

/// VIRTIO_BLK_F_SIZE_MAX.
const F_SIZE_MAX: u64 = 1 << 1;
/// VIRTIO_BLK_F_SEG_MAX.
const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_BLK_SIZE.
const F_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH.
const F_FLUSH: u64 = 1 << 9;

/// Bytes in a sector.
const SECTOR_SIZE: u32 = 512;
/// Bytes in a block; what the disk does at once.
const BLK_SIZE: u32 = SECTOR_SIZE;
/// Most bytes in a segment: a page.
const SIZE_MAX: u32 = 4096;
/// Most segments in a request: all descriptors but those of header and status.
const SEG_MAX: u32 = QUEUE_SIZE_MAX as u32 - 2;
/// Most data in a request, which follows from the two.
const DATA_MAX: u32 = SIZE_MAX * SEG_MAX;

/// Request types (section 5.2.6).
mod request_type {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
}

/// Request status.
mod status {
    pub const OK: u8 = 0;
    pub const IOERR: u8 = 1;
    pub const UNSUPP: u8 = 2;
}

/// `type`, `reserved`, `sector` in front of a request.
const HEADER_LEN: usize = 16;
/// The status byte behind it.
const STATUS_LEN: u32 = 1;
/// The device ID that GET_ID returns.
const ID: [u8; 20] = *b"pxvm\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// `struct virtio_blk_config` after the capacity: size_max, seg_max, geometry, blk_size.
const CONFIG_WORDS: [u32; 4] = [SIZE_MAX, SEG_MAX, 0, BLK_SIZE];

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
}

state!(Blk { transport, queues, capacity });

impl Blk {
    /// Makes a disk of `capacity` sectors of 512 bytes.
    pub const fn new(capacity: u64) -> Self {
        Self {
            transport: Transport::in_slot(DeviceKind::Blk.default_slot()),
            capacity,
            ..Self::ABSENT
        }
    }
}

impl Device for Blk {
    const ID: u32 = 2;
    const FEATURES: u64 = feature::COMMON | F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
    const ABSENT: Self = Self { transport: Transport::ABSENT, queues: [Queue::RESET], capacity: 0 };

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

    fn process<M: Memory, D: Memory, P: Port>(
        &mut self,
        _index: u32,
        io: &mut Io<'_, M, D, P>,
    ) -> Result<QueueStatus, QueueError> {
        let Self { transport, queues: [queue], capacity } = self;
        process(queue, io, &mut transport.budget, *capacity)
    }

    fn poll_input<P: Port>(&mut self, _live: bool, _port: &mut P) -> Option<u32> {
        None
    }
}

/// Processes requests. After [`QueueError::NoFrame`] the call can be repeated, because a request
/// counts as done only once its status is written.
fn process<M: Memory, D: Memory, P>(
    queue: &mut Queue,
    io: &mut Io<'_, M, D, P>,
    budget: &mut Budget,
    capacity: u64,
) -> Result<QueueStatus, QueueError> {
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
            return Err(QueueError::Broken);
        };
        let outcome = Request { queue, head, out_len, in_len }.execute(io, capacity)?;
        queue.write_with(&mut io.ram, head, in_len, STATUS_LEN, |_, chunk| {
            chunk.fill(outcome.status);
        })?;
        // The used length counts from the first byte on, so the status only when there is no gap.
        let gap = u64::from(outcome.written) != in_len;
        let written = if gap { outcome.written } else { outcome.written + STATUS_LEN };
        queue.complete(&mut io.ram, head, written)?;
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

impl Request<'_> {
    fn execute<M: Memory, D: Memory, P>(
        &self,
        io: &mut Io<'_, M, D, P>,
        capacity: u64,
    ) -> Result<Outcome, QueueError> {
        let (request_type, sector) = self.header(&io.ram)?;
        match request_type {
            request_type::IN => match disk_range(sector, self.in_len, capacity) {
                Some((at, len)) => self.read(io, at, len),
                None => Ok(Outcome::new(status::IOERR)),
            },
            request_type::OUT => match disk_range(sector, self.out_len, capacity) {
                Some((at, len)) => self.write(io, at, len),
                None => Ok(Outcome::new(status::IOERR)),
            },
            // Writes reach the disk before their request completes, so there is nothing to flush.
            request_type::FLUSH => Ok(Outcome::new(status::OK)),
            request_type::GET_ID => self.get_id(&mut io.ram),
            _ => Ok(Outcome::new(status::UNSUPP)),
        }
    }

    /// `type` and `sector`.
    fn header<M: Memory>(&self, ram: &Dma<'_, M>) -> Result<(u32, u64), QueueError> {
        let mut header = [0; HEADER_LEN];
        self.queue.read_with(ram, self.head, 0, HEADER_LEN as u32, |at, chunk| {
            for (byte, value) in header.iter_mut().skip(at as usize).zip(chunk) {
                *byte = *value;
            }
        })?;
        let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        Ok((u32::from_le_bytes([t0, t1, t2, t3]), sector))
    }

    fn read<M: Memory, D: Memory, P>(
        &self,
        io: &mut Io<'_, M, D, P>,
        at: u64,
        len: u32,
    ) -> Result<Outcome, QueueError> {
        let disk = Dma::new(&mut *io.disk, 0);
        let mut access = Ok(());
        self.queue.write_with(&mut io.ram, self.head, 0, len, |position, chunk| {
            access = access.and(disk.read(at.wrapping_add(position.into()), chunk));
        })?;
        outcome_of(access, Outcome { status: status::OK, written: len, moved: len })
    }

    fn write<M: Memory, D: Memory, P>(
        &self,
        io: &mut Io<'_, M, D, P>,
        at: u64,
        len: u32,
    ) -> Result<Outcome, QueueError> {
        let mut disk = Dma::new(&mut *io.disk, 0);
        let mut access = Ok(());
        self.queue.read_with(&io.ram, self.head, HEADER_LEN as u64, len, |position, chunk| {
            if access.is_ok() {
                access = disk.write(at.wrapping_add(position.into()), chunk);
            }
        })?;
        outcome_of(access, Outcome { status: status::OK, written: 0, moved: len })
    }

    fn get_id<M: Memory>(&self, ram: &mut Dma<'_, M>) -> Result<Outcome, QueueError> {
        let len = self.in_len.min(ID.len() as u64) as u32;
        self.queue.write_with(ram, self.head, 0, len, |at, chunk| {
            for (byte, value) in chunk.iter_mut().zip(ID.iter().skip(at as usize)) {
                *byte = *value;
            }
        })?;
        Ok(Outcome { status: status::OK, written: len, moved: len })
    }
}

/// Returns the byte range of `len` bytes from `sector` on the disk, if they are whole sectors
/// inside the disk and not more than a request may have.
fn disk_range(sector: u64, len: u64, capacity: u64) -> Option<(u64, u32)> {
    let end = sector.checked_add(len / u64::from(SECTOR_SIZE))?;
    if !len.is_multiple_of(SECTOR_SIZE.into()) || len > DATA_MAX.into() || end > capacity {
        return None;
    }
    Some((sector.checked_mul(SECTOR_SIZE.into())?, len as u32))
}

/// Returns `done`, or the outcome of a failed access to the disk or to RAM.
fn outcome_of(access: Result<(), DmaError>, done: Outcome) -> Result<Outcome, QueueError> {
    match access {
        Ok(()) => Ok(done),
        // The host promised more sectors than it attached.
        Err(DmaError::OutOfRange) => Ok(Outcome::new(status::IOERR)),
        Err(DmaError::NoFrame) => Err(QueueError::NoFrame),
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use virtio_bindings::virtio_blk;

    use super::*;
    use crate::dev::virtio::Deferred;
    use crate::dev::virtio::driver::{BUFFERS, Guest, MockMemory, WRITE, for_seeds, reg};
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
        guest.disk = MockMemory::with_image(&image());
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

    fn disk_bytes(guest: &mut Guest<Blk>, sector: u64, len: u32) -> Vec<u8> {
        let mut bytes = std::vec![0; len as usize];
        Dma::new(&mut guest.disk, 0).read(sector * 512, &mut bytes).expect("on the disk");
        bytes
    }

    #[test]
    fn constants_are_those_of_linux() {
        use virtio_blk::*;
        assert_eq!(F_SIZE_MAX, 1 << VIRTIO_BLK_F_SIZE_MAX);
        assert_eq!(F_SEG_MAX, 1 << VIRTIO_BLK_F_SEG_MAX);
        assert_eq!(F_BLK_SIZE, 1 << VIRTIO_BLK_F_BLK_SIZE);
        assert_eq!(F_FLUSH, 1 << VIRTIO_BLK_F_FLUSH);
        assert_eq!(request_type::IN, VIRTIO_BLK_T_IN);
        assert_eq!(request_type::OUT, VIRTIO_BLK_T_OUT);
        assert_eq!(request_type::FLUSH, VIRTIO_BLK_T_FLUSH);
        assert_eq!(request_type::GET_ID, VIRTIO_BLK_T_GET_ID);
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
        assert_eq!(disk_bytes(&mut guest, 9, 512), [0xaa; 512]);
        assert_eq!(disk_bytes(&mut guest, 10, 512), [10; 512]);
        assert_eq!(disk_bytes(&mut guest, 8, 512), [8; 512]);
    }

    #[test]
    fn out_makes_only_what_it_writes_private() {
        let mut guest = guest();
        request(&mut guest, 1, 9, &[(DATA, 512, 0)]);
        assert_eq!(guest.disk.private_frames(), 1);
        request(&mut guest, 0, 0, &[(DATA, 4096, WRITE)]);
        assert_eq!(guest.disk.private_frames(), 1);
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
        assert_eq!(disk_bytes(&mut guest, 5, 512), [0xbb; 512]);
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
        for request_type in [2, 11, 13, u32::MAX] {
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
        assert_eq!(guest.disk.private_frames(), 0);
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
        guest.disk = MockMemory::new(1024);
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
        guest.disk.frames_left = 1;
        assert_eq!(guest.try_write(reg::QUEUE_NOTIFY, 0), Err(Trap::NoFrame));
        assert_eq!(guest.load(STATUS, 1), [NONE]);
        guest.disk.frames_left = 1;
        guest.kick(0);
        assert_eq!(disk_bytes(&mut guest, 7, 4096), [0xcc; 4096]);
        assert_eq!(guest.load(STATUS, 1), [0]);
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
                guest.disk.frames_left = rng.below(3);
                let _ = guest.try_write(reg::QUEUE_NOTIFY, 0);
                guest.ram.frames_left = u32::MAX;
                guest.disk.frames_left = u32::MAX;
                guest.kick(0);
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
            assert_eq!(disk_bytes(&mut guest, 0, SECTORS as u32 * 512), model);
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
                store_header(&mut guest, rng.below(10), sector);
                let chain: Vec<_> = (0..1 + rng.below(6))
                    .map(|i| {
                        let addr = BUFFERS + u64::from(rng.below(0x3_8000));
                        let len = rng.pick(&[0, 1, 15, 16, 512, 1024, 4096, 40_000]);
                        let flags = if i > 2 { WRITE } else { rng.below(8) as u16 & 3 };
                        if i == 0 {
                            (HEADER, rng.pick(&[16, 16, 8, 528]), 0)
                        } else {
                            (addr, len, flags)
                        }
                    })
                    .collect();
                guest.offer(0, &chain);
                guest.ram.frames_left = rng.below(10);
                guest.disk.frames_left = rng.below(3);
                let _ = guest.try_write(reg::QUEUE_NOTIFY, 0);
                let _ = guest.try_poll();
                guest.ram.frames_left = u32::MAX;
                guest.disk.frames_left = u32::MAX;
                if guest.needs_reset() {
                    guest.start(0);
                }
            }
        });
    }
}

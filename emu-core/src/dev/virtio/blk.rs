//! virtio-blk (section 5.2) over a [`Memory`]: shared image frames under private copies.

use super::queue::{Progress, Queue, QueueError, SIZE_MAX as QUEUE_SIZE_MAX, Work};
use super::{Config, Io, feature};
use crate::mem::{Dma, DmaError, Memory};

pub(super) const QUEUE_COUNT: u32 = 1;

/// VIRTIO_BLK_F_SIZE_MAX.
const F_SIZE_MAX: u64 = 1 << 1;
/// VIRTIO_BLK_F_SEG_MAX.
const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_BLK_SIZE.
const F_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH.
const F_FLUSH: u64 = 1 << 9;
pub(super) const FEATURES: u64 = feature::COMMON | F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH;

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
/// Answer to GET_ID.
const ID: [u8; 20] = *b"pxvm\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// `struct virtio_blk_config` after the capacity: size_max, seg_max, geometry, blk_size.
const CONFIG_WORDS: [u32; 4] = [SIZE_MAX, SEG_MAX, 0, BLK_SIZE];

/// Byte `at` of `struct virtio_blk_config`.
pub(super) fn config_byte(config: &Config, at: usize) -> u8 {
    let word = match at / 4 {
        0 => config.capacity as u32,
        1 => (config.capacity >> 32) as u32,
        n => CONFIG_WORDS.get(n - 2).copied().unwrap_or(0),
    };
    (word >> (at % 4 * 8)) as u8
}

/// Serves requests. All of them can be repeated after [`QueueError::NoFrame`], because a request
/// is done when its status is.
pub(super) fn serve<M: Memory, D: Memory, P>(
    queue: &mut Queue,
    io: &mut Io<'_, M, D, P>,
    work: &mut Work,
    capacity: u64,
) -> Result<Progress, QueueError> {
    for _ in 0..queue.available(&mut io.ram)? {
        if work.is_used_up() {
            return Ok(Progress::Deferred);
        }
        let head = queue.head(&io.ram)?;
        let lengths = queue.measure(&io.ram, head)?;
        let (Some(out_len), Some(in_len)) = (
            lengths.readable.checked_sub(HEADER_LEN as u64),
            lengths.writable.checked_sub(STATUS_LEN.into()),
        ) else {
            // Without room for a status there is no way to answer.
            return Err(QueueError::Broken);
        };
        let answer = Request { queue, head, out_len, in_len }.execute(io, capacity)?;
        queue.write_with(&mut io.ram, head, in_len, STATUS_LEN, |_, piece| {
            piece.fill(answer.status);
        })?;
        // The used length counts from the first byte on, so the status only when there is no gap.
        let gap = u64::from(answer.written) != in_len;
        let written = if gap { answer.written } else { answer.written + STATUS_LEN };
        queue.complete(&mut io.ram, head, written)?;
        work.spend(&lengths, answer.moved);
    }
    Ok(Progress::Done)
}

/// A request whose chain is sound.
struct Request<'a> {
    queue: &'a Queue,
    head: u16,
    /// Bytes behind the header.
    out_len: u64,
    /// Bytes before the status.
    in_len: u64,
}

/// What became of a request.
struct Answer {
    status: u8,
    /// Bytes written to the guest, from the first writable one.
    written: u32,
    /// Bytes copied either way.
    moved: u32,
}

impl Answer {
    const fn new(status: u8) -> Self {
        Self { status, written: 0, moved: 0 }
    }
}

impl Request<'_> {
    fn execute<M: Memory, D: Memory, P>(
        &self,
        io: &mut Io<'_, M, D, P>,
        capacity: u64,
    ) -> Result<Answer, QueueError> {
        let (request_type, sector) = self.header(&io.ram)?;
        match request_type {
            request_type::IN => match disk_range(sector, self.in_len, capacity) {
                Some((at, len)) => self.read(io, at, len),
                None => Ok(Answer::new(status::IOERR)),
            },
            request_type::OUT => match disk_range(sector, self.out_len, capacity) {
                Some((at, len)) => self.write(io, at, len),
                None => Ok(Answer::new(status::IOERR)),
            },
            // Writes reach the disk before they are answered.
            request_type::FLUSH => Ok(Answer::new(status::OK)),
            request_type::GET_ID => self.get_id(&mut io.ram),
            _ => Ok(Answer::new(status::UNSUPP)),
        }
    }

    /// `type` and `sector`.
    fn header<M: Memory>(&self, ram: &Dma<'_, M>) -> Result<(u32, u64), QueueError> {
        let mut header = [0; HEADER_LEN];
        self.queue.read_with(ram, self.head, 0, HEADER_LEN as u32, |at, piece| {
            for (byte, value) in header.iter_mut().skip(at as usize).zip(piece) {
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
    ) -> Result<Answer, QueueError> {
        let disk = Dma::new(&mut *io.disk, 0);
        let mut outcome = Ok(());
        self.queue.write_with(&mut io.ram, self.head, 0, len, |position, piece| {
            outcome = outcome.and(disk.read(at.wrapping_add(position.into()), piece));
        })?;
        answer(outcome, Answer { status: status::OK, written: len, moved: len })
    }

    fn write<M: Memory, D: Memory, P>(
        &self,
        io: &mut Io<'_, M, D, P>,
        at: u64,
        len: u32,
    ) -> Result<Answer, QueueError> {
        let mut disk = Dma::new(&mut *io.disk, 0);
        let mut outcome = Ok(());
        self.queue.read_with(&io.ram, self.head, HEADER_LEN as u64, len, |position, piece| {
            if outcome.is_ok() {
                outcome = disk.write(at.wrapping_add(position.into()), piece);
            }
        })?;
        answer(outcome, Answer { status: status::OK, written: 0, moved: len })
    }

    fn get_id<M: Memory>(&self, ram: &mut Dma<'_, M>) -> Result<Answer, QueueError> {
        let len = self.in_len.min(ID.len() as u64) as u32;
        self.queue.write_with(ram, self.head, 0, len, |at, piece| {
            for (byte, value) in piece.iter_mut().zip(ID.iter().skip(at as usize)) {
                *byte = *value;
            }
        })?;
        Ok(Answer { status: status::OK, written: len, moved: len })
    }
}

/// Where `len` bytes from `sector` lie on the disk, if they are whole sectors inside it and not
/// more than a request may have.
fn disk_range(sector: u64, len: u64, capacity: u64) -> Option<(u64, u32)> {
    let end = sector.checked_add(len / u64::from(SECTOR_SIZE))?;
    if !len.is_multiple_of(SECTOR_SIZE.into()) || len > DATA_MAX.into() || end > capacity {
        return None;
    }
    Some((sector.checked_mul(SECTOR_SIZE.into())?, len as u32))
}

/// `done`, unless the disk said otherwise.
fn answer(outcome: Result<(), DmaError>, done: Answer) -> Result<Answer, QueueError> {
    match outcome {
        Ok(()) => Ok(done),
        // The host promised more sectors than it attached.
        Err(DmaError::OutOfRange) => Ok(Answer::new(status::IOERR)),
        Err(DmaError::NoFrame) => Err(QueueError::NoFrame),
    }
}

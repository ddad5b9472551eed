//! virtio-net (section 5.1): one queue pair, no offloads.

use super::queue::{Progress, Queue, QueueError, SIZE_MAX, Work};
use super::{Config, Counters, Io, feature};
use crate::mem::Memory;
use crate::port::{FRAME_MAX, Port};

/// Frames to the guest.
pub(super) const RECEIVE_QUEUE: u32 = 0;
/// Frames from the guest.
pub(super) const TRANSMIT_QUEUE: u32 = 1;
pub(super) const QUEUE_COUNT: u32 = 2;

/// VIRTIO_NET_F_MAC: the configuration has a hardware address.
const F_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_STATUS: the configuration has a link status.
const F_STATUS: u64 = 1 << 16;
pub(super) const FEATURES: u64 = feature::COMMON | F_MAC | F_STATUS;

/// VIRTIO_NET_S_LINK_UP.
pub(super) const LINK_UP: u16 = 1;

/// `struct virtio_net_hdr` before a received frame: no offloads, `num_buffers` 1.
const HEADER: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const HEADER_LEN: u32 = HEADER.len() as u32;

/// Two addresses and the type of an Ethernet frame.
const FRAME_MIN: u32 = 14;

/// Byte `at` of `struct virtio_net_config`.
pub(super) fn config_byte(config: &Config, at: usize) -> u8 {
    let link = config.link.to_le_bytes();
    config.mac.iter().chain(&link).nth(at).copied().unwrap_or(0)
}

/// Copies frames of the guest to the port until the queue is empty or the port is full.
pub(super) fn transmit<M: Memory, D: Memory, P: Port>(
    queue: &mut Queue,
    io: &mut Io<'_, M, D, P>,
    work: &mut Work,
    counters: &mut Counters,
) -> Result<Progress, QueueError> {
    for _ in 0..queue.available(&mut io.ram)? {
        if work.is_used_up() {
            return Ok(Progress::Deferred);
        }
        let head = queue.head(&io.ram)?;
        let lengths = queue.measure(&io.ram, head)?;
        if lengths.writable != 0 {
            return Err(QueueError::Broken);
        }
        let frame_len = frame_len(lengths.readable);
        work.spend(&lengths, frame_len.unwrap_or(0));
        match frame_len {
            Some(len) => {
                if !io.port.net_tx_begin(len) {
                    return Ok(Progress::Deferred);
                }
                let port = &mut *io.port;
                queue.read_with(&io.ram, head, HEADER_LEN.into(), len, |at, piece| {
                    port.net_tx_write(at, piece);
                })?;
                io.port.net_tx_end();
                counters.tx_frames = counters.tx_frames.wrapping_add(1);
            }
            None => counters.tx_drops = counters.tx_drops.wrapping_add(1),
        }
        queue.complete(&mut io.ram, head, 0)?;
    }
    Ok(Progress::Done)
}

/// Length of the frame in a buffer of `len` bytes, if it is neither runt nor giant.
fn frame_len(len: u64) -> Option<u32> {
    let len = u32::try_from(len).ok()?.checked_sub(HEADER_LEN)?;
    (FRAME_MIN..=FRAME_MAX).contains(&len).then_some(len)
}

/// Copies frames from the port to the guest until one of them has no more.
///
/// A frame leaves the port only when it is in the guest's buffer, so a repeated call loses none.
pub(super) fn receive<M: Memory, D: Memory, P: Port>(
    queue: &mut Queue,
    io: &mut Io<'_, M, D, P>,
    work: &mut Work,
    counters: &mut Counters,
) -> Result<Progress, QueueError> {
    if io.port.net_rx_len().is_none() {
        return Ok(Progress::Done);
    }
    let mut buffers = queue.available(&mut io.ram)?;
    // Frames that fit no buffer take none, hence a second bound.
    for _ in 0..SIZE_MAX {
        if buffers == 0 {
            break;
        }
        let Some(frame_len) = io.port.net_rx_len() else { break };
        if work.is_used_up() {
            return Ok(Progress::Deferred);
        }
        let head = queue.head(&io.ram)?;
        let lengths = queue.measure(&io.ram, head)?;
        if lengths.readable != 0 {
            return Err(QueueError::Broken);
        }
        let len = frame_len.saturating_add(HEADER_LEN);
        work.spend(&lengths, len.min(FRAME_MAX));
        if !(1..=FRAME_MAX).contains(&frame_len) || u64::from(len) > lengths.writable {
            io.port.net_rx_end();
            counters.rx_drops = counters.rx_drops.wrapping_add(1);
            continue;
        }
        let port = &mut *io.port;
        queue.write_with(&mut io.ram, head, 0, len, |at, piece| fill(port, at, piece))?;
        io.port.net_rx_end();
        queue.complete(&mut io.ram, head, len)?;
        counters.rx_frames = counters.rx_frames.wrapping_add(1);
        buffers -= 1;
    }
    Ok(Progress::Done)
}

/// Writes what stands at byte `at` of header and frame.
fn fill(port: &mut impl Port, at: u32, piece: &mut [u8]) {
    let in_header = HEADER_LEN.saturating_sub(at).min(piece.len() as u32);
    let Some((header, frame)) = piece.split_at_mut_checked(in_header as usize) else { return };
    for (byte, value) in header.iter_mut().zip(HEADER.iter().skip(at as usize)) {
        *byte = *value;
    }
    if !frame.is_empty() {
        port.net_rx_read(at.wrapping_add(in_header).wrapping_sub(HEADER_LEN), frame);
    }
}

/// Drops frames for a guest whose driver is not up, so that it later starts with fresh ones.
pub(super) fn discard(port: &mut impl Port, counters: &mut Counters) {
    for _ in 0..SIZE_MAX {
        if port.net_rx_len().is_none() {
            return;
        }
        port.net_rx_end();
        counters.rx_drops = counters.rx_drops.wrapping_add(1);
    }
}

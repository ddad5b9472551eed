//! virtio-rng (section 5.4): fills buffers with random bytes.

use super::queue::{Progress, Queue, QueueError, Work};
use super::{Io, feature};
use crate::mem::Memory;

pub(super) const QUEUE_COUNT: u32 = 1;
pub(super) const FEATURES: u64 = feature::COMMON;

/// A request is answered with at most this much, so that a guest cannot keep the host busy.
/// A driver that wants more asks again (section 5.4.6).
const BYTES_MAX: u32 = 64;

pub(super) fn serve<M: Memory, D: Memory, P>(
    queue: &mut Queue,
    io: &mut Io<'_, M, D, P>,
    work: &mut Work,
) -> Result<Progress, QueueError> {
    for _ in 0..queue.available(&mut io.ram)? {
        if work.is_used_up() {
            return Ok(Progress::Deferred);
        }
        let head = queue.head(&io.ram)?;
        let lengths = queue.measure(&io.ram, head)?;
        if lengths.readable != 0 {
            return Err(QueueError::Broken);
        }
        let len = lengths.writable.min(BYTES_MAX.into()) as u32;
        work.spend(&lengths, len);
        // All frames first: running out of them must not use up randomness, or the guest's
        // numbers would depend on the host's memory.
        queue.write_with(&mut io.ram, head, 0, len, |_, _| {})?;
        let rng = &mut *io.rng;
        queue.write_with(&mut io.ram, head, 0, len, |_, piece| rng.fill(piece))?;
        queue.complete(&mut io.ram, head, len)?;
    }
    Ok(Progress::Done)
}

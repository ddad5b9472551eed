//! virtio-rng (section 5.4): fills buffers with random bytes.

use super::mmio::Transport;
use super::queue::{Budget, Queue, QueueError, QueueStatus};
use super::{Device, DeviceKind, Io, feature};
use crate::chacha::ChaCha;
use crate::disk::Disk;
use crate::mem::Memory;
use crate::port::Port;

/// The most bytes that a request returns, so that a guest cannot keep the host busy. A driver that
/// wants more makes another request (section 5.4.6).
const BYTES_MAX: usize = 64;

/// An entropy source.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Rng {
    transport: Transport,
    queues: [Queue; 1],
    /// Source of the bytes. A driver's reset does not start it anew.
    random: ChaCha,
}

state!(Rng { transport, queues, random });

impl Rng {
    /// Makes an entropy source that returns the bytes of `random`.
    pub const fn new(random: ChaCha) -> Self {
        Self {
            transport: Transport::in_slot(DeviceKind::Rng.default_slot()),
            random,
            ..Self::ABSENT
        }
    }
}

impl Device for Rng {
    const ID: u32 = 4;
    const FEATURES: u64 = feature::COMMON;
    const ABSENT: Self =
        Self { transport: Transport::ABSENT, queues: [Queue::RESET], random: ChaCha::new([0; 8]) };

    fn transport(&self) -> &Transport {
        &self.transport
    }

    fn queues(&self) -> &[Queue] {
        &self.queues
    }

    fn transport_and_queues(&mut self) -> (&mut Transport, &mut [Queue]) {
        (&mut self.transport, &mut self.queues)
    }

    /// The device has no configuration space.
    fn config_byte(&self, _at: usize) -> u8 {
        0
    }

    fn process<M: Memory, D: Disk, P: Port>(
        &mut self,
        _index: u32,
        io: &mut Io<'_, M, D, P>,
    ) -> Result<QueueStatus, QueueError> {
        let Self { transport, queues: [queue], random } = self;
        process(queue, io, &mut transport.budget, random)
    }

    fn poll_input<P: Port>(&mut self, _live: bool, _port: &mut P) -> Option<u32> {
        None
    }
}

/// Fills the available buffers.
fn process<M: Memory, D, P>(
    queue: &mut Queue,
    io: &mut Io<'_, M, D, P>,
    budget: &mut Budget,
    source: &mut ChaCha,
) -> Result<QueueStatus, QueueError> {
    for _ in 0..queue.available(&mut io.ram)? {
        if budget.is_spent() {
            return Ok(QueueStatus::Deferred);
        }
        let head = queue.next_head(&io.ram)?;
        let lengths = queue.validate_chain(&io.ram, head)?;
        if lengths.readable != 0 {
            return Err(QueueError::Broken);
        }
        let len = lengths.writable.min(BYTES_MAX as u64) as u32;
        budget.spend(&lengths, len);
        // All frames first: running out of them must not use up randomness, or the guest's
        // numbers would depend on the host's memory.
        queue.write_with(&mut io.ram, head, 0, len, |_, _| {})?;
        // At once: the stream must not depend on the chunks that the buffer lies in.
        let mut random = [0; BYTES_MAX];
        source.fill(random.get_mut(..len as usize).unwrap_or_default());
        queue.write_with(&mut io.ram, head, 0, len, |at, chunk| {
            for (byte, value) in chunk.iter_mut().zip(random.iter().skip(at as usize)) {
                *byte = *value;
            }
        })?;
        queue.complete(&mut io.ram, head, len)?;
    }
    Ok(QueueStatus::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::virtio::driver::{BUFFERS, Guest, WRITE};
    use crate::trap::Trap;

    fn guest() -> Guest<Rng> {
        Guest::started(Rng::new(ChaCha::new([0; 8])), 0)
    }

    /// The first bytes of the stream that the device has.
    fn stream(len: usize) -> std::vec::Vec<u8> {
        let mut bytes = std::vec![0; len];
        ChaCha::new([0; 8]).fill(&mut bytes);
        bytes
    }

    #[test]
    fn a_buffer_is_filled_with_random_bytes() {
        let mut guest = guest();
        let head = guest.offer(0, &[(BUFFERS, 24, WRITE)]);
        guest.kick(0);
        assert_eq!(guest.take_used(0), Some((head.into(), 24)));
        assert_eq!(guest.load(BUFFERS, 24), stream(24));
    }

    #[test]
    fn a_large_request_is_completed_in_part() {
        let mut guest = guest();
        guest.offer(0, &[(BUFFERS, 0x1_0000, WRITE)]);
        guest.kick(0);
        assert_eq!(guest.take_used(0), Some((0, 64)));
        assert_eq!(guest.load(BUFFERS + 64, 64), [0; 64]);
    }

    #[test]
    fn an_empty_request_is_completed() {
        let mut guest = guest();
        guest.offer(0, &[(BUFFERS, 0, WRITE)]);
        guest.kick(0);
        assert_eq!(guest.take_used(0), Some((0, 0)));
    }

    #[test]
    fn a_readable_buffer_needs_a_reset() {
        let mut guest = guest();
        guest.offer(0, &[(BUFFERS, 8, 0)]);
        guest.kick(0);
        assert!(guest.needs_reset());
    }

    #[test]
    fn running_out_of_frames_uses_up_no_randomness() {
        let mut guest = guest();
        let second = BUFFERS + 0x1000;
        guest.offer(0, &[(BUFFERS, 8, WRITE), (second, 8, WRITE)]);
        guest.ram.frames_left = 1;
        assert_eq!(guest.try_write(super::super::driver::reg::QUEUE_NOTIFY, 0), Err(Trap::NoFrame));
        guest.ram.frames_left = guest.ram.pages();
        guest.kick(0);
        assert_eq!(guest.take_used(0), Some((0, 16)));
        assert_eq!(guest.load(BUFFERS, 8), stream(16)[..8]);
        assert_eq!(guest.load(second, 8), stream(16)[8..]);
    }
}

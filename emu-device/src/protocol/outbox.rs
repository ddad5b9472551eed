//! Output of a launch, device to host: one log of records that all its VMs share.
//!
//! The host reads the log after the launch. With one log, its work is proportional to the amount of
//! output and not to the number of VMs, and host-visible memory stays small however large the fleet
//! is.

use super::RECORD_ALIGN;
use super::launch::At;
use core::sync::atomic::{AtomicU32, Ordering};
use emu_core::abi::Exit;
#[cfg(doc)]
use emu_core::trap::TrapChain;

/// The type of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::TryFromBytes))]
#[repr(u16)]
pub enum RecordKind {
    /// The end of the log: the next record did not fit.
    End = 0,
    /// Console output.
    Console = 1,
    /// A packet.
    Packet = 2,
    /// The VM is parked: an [`ExitRecord`].
    Exit = 3,
    /// How much input the VM has taken, and how many packets its network device has
    /// dropped: an [`InputRecord`].
    Taken = 4,
    /// The traps that the VM is caught in, a [`TrapChain`]. The record that it is parked follows.
    TrapLoop = 5,
}

/// The header of a record. `len` bytes follow, and padding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::TryFromBytes))]
#[repr(C)]
pub struct Record {
    /// The VM's id.
    pub vm: u32,
    /// The type.
    pub kind: RecordKind,
    /// Bytes after the header, without padding.
    pub len: u16,
    /// The VM's instruction count; for output of a running VM, the count at the end of its slice.
    pub instret: u64,
}

/// The body of [`RecordKind::Exit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::TryFromBytes))]
#[repr(C)]
pub struct ExitRecord {
    /// Why the VM stopped.
    pub exit: Exit,
    /// When an idle VM must run again, as the `time` of a VM that started when the fleet did.
    pub wake_at: u64,
}

/// A position in a VM's input: how much there was since the VM started. The counters wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Taken {
    /// Console bytes.
    pub console: u32,
    /// Packets.
    pub packets: u32,
}

/// How many packets a VM's network device has dropped since the VM started. The counters
/// wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct CardDrops {
    /// Those to the guest.
    pub rx: u32,
    /// Those from the guest.
    pub tx: u32,
}

/// The body of [`RecordKind::Taken`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::TryFromBytes))]
#[repr(C)]
pub struct InputRecord {
    /// The end of the input that the host offered in this launch.
    pub offered: Taken,
    /// The end of the input that the VM has taken.
    pub taken: Taken,
    /// What the VM's network device has dropped.
    pub drops: CardDrops,
}

/// The log of records from VMs to the host, in host-visible memory.
#[derive(Debug)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::FromBytes, zerocopy::IntoBytes))]
#[repr(C)]
pub struct Outbox {
    /// Bytes used. Exceeds `capacity` when a record did not fit.
    pub tail: AtomicU32,
    /// The size of the log in bytes.
    pub capacity: u32,
    /// The records, aligned to [`RECORD_ALIGN`].
    pub data: At<u8>,
}

impl Outbox {
    /// Reserves a record and writes its header. Returns the address for the record's bytes, or
    /// `None` if the log has no room for them.
    pub(super) fn record(
        &self,
        vm: u32,
        kind: RecordKind,
        len: u32,
        instret: u64,
    ) -> Option<*mut u8> {
        const HEAD: u32 = size_of::<Record>() as u32;
        let size = (HEAD + len).next_multiple_of(RECORD_ALIGN);
        // Nothing is added once the tail is past the end. So it cannot wrap, and a full log stays
        // full.
        if self.tail.load(Ordering::Relaxed) >= self.capacity {
            return None;
        }
        let at = self.tail.fetch_add(size, Ordering::Relaxed);
        if at > self.capacity || self.capacity - at < HEAD {
            return None;
        }
        let fits = self.capacity - at >= size;
        let (kind, len) = if fits { (kind, len) } else { (RecordKind::End, 0) };
        // SAFETY: the head is inside the log and so are, if it fits, the bytes; by the addition
        // above they are this record's alone.
        unsafe {
            let head = self.data.ptr().add(at as usize);
            let record = Record { vm, kind, len: len as u16, instret };
            head.cast::<Record>().write(record);
            fits.then(|| head.add(size_of::<Record>()))
        }
    }

    /// Writes a complete record. Returns `false` when the log has no room for it.
    pub(super) fn put<T: Copy>(&self, vm: u32, kind: RecordKind, instret: u64, body: T) -> bool {
        const { assert!(align_of::<T>() <= RECORD_ALIGN as usize) };
        match self.record(vm, kind, size_of::<T>() as u32, instret) {
            // SAFETY: the record has room for a `T`, and is aligned for it.
            Some(to) => unsafe {
                to.cast::<T>().write(body);
                true
            },
            None => false,
        }
    }
}

/// The host's end: reads the log of a launch that is over.
#[cfg(feature = "host")]
mod read {
    use super::{ExitRecord, InputRecord, RECORD_ALIGN, Record, RecordKind};
    use emu_core::abi::Exit;
    use emu_core::trap::TrapChain;
    use zerocopy::TryFromBytes;

    /// One record of the log.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Message<'a> {
        /// Number of the VM.
        pub vm: u32,
        /// Instructions that the VM had retired.
        pub instret: u64,
        /// Content of the record.
        pub body: Body<'a>,
    }

    /// Content of a record.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Body<'a> {
        /// Console output.
        Console(&'a [u8]),
        /// Packet that the VM sent.
        Packet(&'a [u8]),
        /// The VM was parked, until the fleet time given.
        Exit(Exit, u64),
        /// How much input the VM has taken, and how many packets its card has dropped.
        Taken(InputRecord),
        /// The traps that the VM is caught in, before it is parked for that.
        TrapLoop(TrapChain),
    }

    /// Iterator over the records of a log, in order. The first malformed record ends it.
    pub struct Messages<'a> {
        rest: &'a [u8],
    }

    /// Returns the records of a log.
    pub fn messages(log: &[u8]) -> Messages<'_> {
        Messages { rest: log }
    }

    /// Reads a value from the beginning of `bytes`. Returns `None` if there is none.
    fn read<T: TryFromBytes>(bytes: &[u8]) -> Option<T> {
        T::try_read_from_prefix(bytes).ok().map(|(value, _)| value)
    }

    impl<'a> Iterator for Messages<'a> {
        type Item = Message<'a>;

        fn next(&mut self) -> Option<Message<'a>> {
            let Record { vm, kind, len, instret } = read(self.rest)?;
            let after = self.rest.get(size_of::<Record>()..)?;
            let bytes = after.get(..len.into())?;
            let body = match kind {
                RecordKind::End => return None,
                RecordKind::Console => Body::Console(bytes),
                RecordKind::Packet => Body::Packet(bytes),
                RecordKind::Exit => {
                    let ExitRecord { exit, wake_at } = read(bytes)?;
                    Body::Exit(exit, wake_at)
                }
                RecordKind::Taken => Body::Taken(read(bytes)?),
                RecordKind::TrapLoop => Body::TrapLoop(read(bytes)?),
            };
            let size = usize::from(len).next_multiple_of(RECORD_ALIGN as usize);
            self.rest = after.get(size..).unwrap_or_default();
            Some(Message { vm, instret, body })
        }
    }
}

#[cfg(feature = "host")]
pub use read::{Body, Message, Messages, messages};

#[cfg(feature = "host")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::inbox::Inbox;
    use crate::protocol::port::{LogPort, PortState};
    use emu_core::abi::{ExitCode, FaultCode};
    use emu_core::port::Port;
    use emu_core::trap::TrapChain;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn what_a_port_writes_is_read_back() {
        let mut data = vec![0u64; 64];
        let at = At::new(data.as_mut_ptr().expose_provenance() as u64);
        let outbox = Outbox { tail: 0.into(), capacity: 512, data: at };
        let mut state = PortState::new(100);
        let mut port = LogPort::new(9, &mut state, &outbox, Inbox::NONE);
        port.begin(0);
        port.console_put(b'h');
        port.console_put(b'i');
        assert!(port.net_tx_begin(3));
        port.net_tx_write(0, b"eth");
        port.net_tx_end();
        let exit = Exit { code: ExitCode::Idle, arg: 0 };
        port.end(77, exit, 0);
        let drops = CardDrops { rx: 3, tx: 4 };
        port.acknowledge_input(false, drops);
        port.park(exit, 5, &TrapChain::EMPTY);
        let fault = Exit { code: ExitCode::Fault, arg: FaultCode::TrapLoop as u32 };
        port.park(fault, 5, &TrapChain::EMPTY);
        let log: Vec<u8> = data.iter().flat_map(|w| w.to_le_bytes()).collect();
        let read: Vec<_> = messages(&log).map(|m| (m.vm, m.instret, m.body)).collect();
        assert_eq!(
            read,
            [
                (9, 32_768, Body::Packet(b"eth")),
                (9, 77, Body::Console(b"hi")),
                (9, 77, Body::Taken(InputRecord { drops, ..InputRecord::default() })),
                (9, 77, Body::Exit(exit, 105)),
                (9, 77, Body::TrapLoop(TrapChain::EMPTY)),
                (9, 77, Body::Exit(fault, 105)),
            ]
        );
    }

    #[test]
    fn a_cut_or_wild_log_ends_early() {
        assert_eq!(messages(&[]).next(), None);
        assert_eq!(messages(&[1; 15]).next(), None);
        assert_eq!(messages(&[0xff; 64]).next(), None);
        let mut log = [0; 32];
        log[4] = RecordKind::Exit as u8;
        log[6] = 16;
        log[16] = 200;
        assert_eq!(messages(&log).next(), None);
    }
}

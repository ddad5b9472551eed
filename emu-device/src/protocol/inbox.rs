//! Input of a launch, host to device: console bytes and packets for VMs, in one buffer.

use super::RECORD_ALIGN;
use super::outbox::Taken;
use emu_core::port::PACKET_MAX;

/// The input that the host offers a VM in a launch. The host offers it again in each launch until
/// an [`InputRecord`](super::outbox::InputRecord) reports that the VM has taken it. Input is
/// numbered, so the VM skips what it has taken already.
///
/// It consists of an [`InboxHead`], the console bytes, and packets, each with a [`PacketHead`] in
/// front. All are padded to [`RECORD_ALIGN`].
#[derive(Clone, Copy, Debug)]
pub struct Inbox<'a> {
    head: InboxHead,
    console: &'a [u8],
    /// The packets that the VM has not taken yet, `left` of them.
    packets: &'a [u8],
    left: u32,
}

/// The header of a VM's part of the inbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
#[repr(C)]
pub struct InboxHead {
    /// The number of the first console byte.
    pub console_at: u32,
    /// How many console bytes there are.
    pub console_len: u32,
    /// The number of the first packet.
    pub packets_at: u32,
    /// How many packets there are.
    pub packets_len: u32,
}

/// The header of a packet in the inbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
#[repr(C)]
pub struct PacketHead {
    /// The packet's length in bytes.
    pub len: u32,
    /// Keeps the packet aligned.
    pub reserved: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

const fn padded(len: u32) -> usize {
    len.saturating_add(RECORD_ALIGN - 1) as usize & !(RECORD_ALIGN as usize - 1)
}

impl<'a> Inbox<'a> {
    /// An inbox without input.
    pub const NONE: Self = Self {
        head: InboxHead { console_at: 0, console_len: 0, packets_at: 0, packets_len: 0 },
        console: &[],
        packets: &[],
        left: 0,
    };

    /// Parses the inbox at the beginning of `bytes`, for a VM that has taken its input up to
    /// `taken`. Returns `None` if `bytes` are too short for the header and the console bytes.
    pub fn new(bytes: &'a [u8], taken: &Taken) -> Option<Self> {
        let head = InboxHead {
            console_at: word(bytes, 0)?,
            console_len: word(bytes, 4)?,
            packets_at: word(bytes, 8)?,
            packets_len: word(bytes, 12)?,
        };
        let rest = bytes.get(size_of::<InboxHead>()..)?;
        let console = rest.get(..head.console_len as usize)?;
        let packets = rest.get(padded(head.console_len)..).unwrap_or_default();
        let mut inbox = Self { head, console, packets, left: head.packets_len };
        for _ in 0..taken.packets.wrapping_sub(head.packets_at).min(head.packets_len) {
            inbox.next_packet();
        }
        Some(inbox)
    }

    /// Returns the end of the input.
    pub(super) fn end(&self) -> Taken {
        let InboxHead { console_at, console_len, packets_at, packets_len } = self.head;
        Taken {
            console: console_at.wrapping_add(console_len),
            packets: packets_at.wrapping_add(packets_len),
        }
    }

    pub(super) fn byte(&self, taken: u32) -> Option<u8> {
        self.console.get(taken.wrapping_sub(self.head.console_at) as usize).copied()
    }

    pub(super) fn packet(&self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        let len = word(self.packets, 0).filter(|&len| len <= PACKET_MAX)?;
        self.packets.get(size_of::<PacketHead>()..)?.get(..len as usize)
    }

    pub(super) fn next_packet(&mut self) {
        let size = self.packet().map_or(0, |f| size_of::<PacketHead>() + padded(f.len() as u32));
        self.packets = self.packets.get(size..).unwrap_or_default();
        self.left = if size == 0 { 0 } else { self.left - 1 };
    }
}

/// The host's end: writes the inbox of a launch.
#[cfg(feature = "host")]
mod write {
    use super::{InboxHead, PacketHead, RECORD_ALIGN};
    use alloc::vec::Vec;
    use zerocopy::IntoBytes;

    /// Console bytes offered to a VM in one launch: its UART takes 16 in a slice.
    pub(super) const CONSOLE_MAX: usize = 512;
    /// Bytes of packets offered to a VM in one launch: more than a guest handles in it.
    const PACKETS_MAX: usize = 24 << 10;

    /// The inbox of one launch.
    #[derive(Debug)]
    pub struct Writer {
        bytes: Vec<u8>,
        capacity: usize,
    }

    /// Input of one VM, with sequence numbers.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Offer<'a, P> {
        /// Sequence number of the first console byte.
        pub console_at: u32,
        /// Console bytes, as the two halves of a ring buffer.
        pub console: (&'a [u8], &'a [u8]),
        /// Sequence number of the first packet.
        pub packets_at: u32,
        /// Packets, as the two halves of a ring buffer.
        pub packets: (&'a [P], &'a [P]),
    }

    impl Writer {
        /// Returns an empty inbox of `capacity` bytes.
        pub fn new(capacity: usize) -> Self {
            Self { bytes: Vec::new(), capacity }
        }

        /// Empties the inbox.
        pub fn clear(&mut self) {
            self.bytes.clear();
        }

        /// Returns the encoded bytes.
        pub fn bytes(&self) -> &[u8] {
            &self.bytes
        }

        /// Adds input of one VM. Returns the inbox offset for the VM's launch entry, or zero when
        /// there is no room.
        pub fn add<P: AsRef<[u8]>>(&mut self, offer: &Offer<'_, P>) -> u32 {
            let (first, second) = offer.console;
            let first = &first[..first.len().min(CONSOLE_MAX)];
            let second = &second[..second.len().min(CONSOLE_MAX - first.len())];
            let start = self.bytes.len();
            let console_len = (first.len() + second.len()) as u32;
            let all = || offer.packets.0.iter().chain(offer.packets.1).map(AsRef::as_ref);
            let fits = |room: &mut usize, packet: &[u8]| {
                *room = room.checked_sub(packet.len())?;
                Some(())
            };
            let packets_len = all().scan(PACKETS_MAX, fits).count();
            let head = InboxHead {
                console_at: offer.console_at,
                console_len,
                packets_at: offer.packets_at,
                packets_len: packets_len as u32,
            };
            self.bytes.extend_from_slice(head.as_bytes());
            self.bytes.extend_from_slice(first);
            self.bytes.extend_from_slice(second);
            self.pad();
            for packet in all().take(packets_len) {
                let head = PacketHead { len: packet.len() as u32, reserved: 0 };
                self.bytes.extend_from_slice(head.as_bytes());
                self.bytes.extend_from_slice(packet);
                self.pad();
            }
            if self.bytes.len() > self.capacity {
                self.bytes.truncate(start);
                return 0;
            }
            start as u32 / RECORD_ALIGN + 1
        }

        fn pad(&mut self) {
            self.bytes.resize(self.bytes.len().next_multiple_of(RECORD_ALIGN as usize), 0);
        }
    }
}

#[cfg(feature = "host")]
pub use write::{Offer, Writer};

#[cfg(feature = "host")]
#[cfg(test)]
mod tests {
    use super::write::CONSOLE_MAX;
    use super::*;
    use crate::protocol::launch::At;
    use crate::protocol::outbox::Outbox;
    use crate::protocol::port::{LogPort, PortState};
    use emu_core::port::Port;

    const NOTHING: Offer<'_, &[u8]> =
        Offer { console_at: 0, console: (&[], &[]), packets_at: 0, packets: (&[], &[]) };

    #[test]
    fn a_port_reads_what_was_written() {
        let mut writer = Writer::new(1 << 12);
        assert_eq!(writer.add(&NOTHING), 1);
        let offer = Offer {
            console_at: 40,
            console: (b"ab", b"c"),
            packets_at: 7,
            packets: (&[&b"first"[..]], &[b"second"]),
        };
        let at = writer.add(&offer);
        let bytes = &writer.bytes()[(at as usize - 1) * 8..];
        let mut state = PortState::new(0);
        state.taken = Taken { console: 41, packets: 8 };
        let inbox = Inbox::new(bytes, &state.taken).unwrap();
        let outbox = Outbox { tail: 0.into(), capacity: 0, data: At::NOWHERE };
        let mut port = LogPort::new(0, &mut state, &outbox, inbox);
        assert_eq!((port.console_get(), port.console_get()), (Some(b'b'), Some(b'c')));
        assert_eq!(port.console_get(), None);
        assert_eq!(port.net_rx_len(), Some(6));
        let mut packet = [0; 6];
        port.net_rx_read(0, &mut packet);
        assert_eq!(&packet, b"second");
    }

    #[test]
    fn a_full_inbox_takes_no_more_and_a_vm_gets_its_share_only() {
        let mut writer = Writer::new(CONSOLE_MAX + 16);
        let long = [1; 2 * CONSOLE_MAX];
        let offer = Offer { console: (&long[..3], &long), ..NOTHING };
        assert_eq!(writer.add(&offer), 1);
        assert_eq!(writer.bytes().len(), CONSOLE_MAX + 16);
        assert_eq!(writer.add(&NOTHING), 0);
        assert_eq!(writer.bytes().len(), CONSOLE_MAX + 16);
    }
}

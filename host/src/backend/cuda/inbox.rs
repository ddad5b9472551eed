//! Input of a launch, host to device: encodes console input and packets for VMs into the inbox.

use emu_device::port::RECORD_ALIGN;

use crate::net::Packet;

/// Console bytes offered to a VM in one launch: its UART takes 16 in a slice.
const CONSOLE_MAX: usize = 512;
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
pub struct Offer<'a> {
    /// Sequence number of the first console byte.
    pub console_at: u32,
    /// Console bytes, as the two halves of a ring buffer.
    pub console: (&'a [u8], &'a [u8]),
    /// Sequence number of the first packet.
    pub packets_at: u32,
    /// Packets, as the two halves of a ring buffer.
    pub packets: (&'a [Packet], &'a [Packet]),
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

    /// Adds input of one VM. Returns the inbox offset for the VM's launch entry, or zero when there
    /// is no room.
    pub fn add(&mut self, offer: &Offer<'_>) -> u32 {
        let (first, second) = offer.console;
        let first = &first[..first.len().min(CONSOLE_MAX)];
        let second = &second[..second.len().min(CONSOLE_MAX - first.len())];
        let start = self.bytes.len();
        let console_len = (first.len() + second.len()) as u32;
        let all = || offer.packets.0.iter().chain(offer.packets.1);
        let fits = |room: &mut usize, packet: &Packet| {
            *room = room.checked_sub(packet.len())?;
            Some(())
        };
        let packets_len = all().scan(PACKETS_MAX, fits).count();
        let head = [offer.console_at, console_len, offer.packets_at, packets_len as u32];
        self.bytes.extend(head.iter().flat_map(|word| word.to_le_bytes()));
        self.bytes.extend_from_slice(first);
        self.bytes.extend_from_slice(second);
        self.pad();
        for packet in all().take(packets_len) {
            self.bytes.extend((packet.len() as u64).to_le_bytes());
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

#[cfg(test)]
mod tests {
    use emu_core::port::Port;
    use emu_device::launch::At;
    use emu_device::port::{Inbox, LogPort, Outbox, PortState, Taken};

    use super::*;

    fn packet(bytes: &[u8]) -> Packet {
        bytes.into()
    }

    #[test]
    fn a_port_reads_what_was_written() {
        let mut writer = Writer::new(1 << 12);
        assert_eq!(writer.add(&Offer::default()), 1);
        let offer = Offer {
            console_at: 40,
            console: (b"ab", b"c"),
            packets_at: 7,
            packets: (&[packet(b"first")], &[packet(b"second")]),
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
        let offer = Offer { console: (&long[..3], &long), ..Offer::default() };
        assert_eq!(writer.add(&offer), 1);
        assert_eq!(writer.bytes().len(), CONSOLE_MAX + 16);
        assert_eq!(writer.add(&Offer::default()), 0);
        assert_eq!(writer.bytes().len(), CONSOLE_MAX + 16);
    }
}

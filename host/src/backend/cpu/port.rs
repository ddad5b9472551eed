//! The CPU backend's `Port`: a VM's console and network card on the host's side.

use std::collections::VecDeque;
use std::sync::Arc;

use emu_core::port::Port;

use crate::net::{Packet, VirtualLink};

/// Console bytes that a VM may write in one slice before it has to wait. The guest's behaviour does
/// not depend on this number, or on how fast the host takes them.
const OUTPUT_MAX: usize = 16 << 10;
/// Packets offered to a VM at a time; the others wait on the link.
pub const RECEIVED_MAX: usize = 64;

/// Buffers between a VM and the host. Empty ones take no memory.
#[derive(Debug, Default)]
pub struct CpuPort {
    /// Console bytes written by the guest since the last slice.
    pub output: Vec<u8>,
    /// Console bytes for the guest.
    pub input: VecDeque<u8>,
    /// Packets for the guest.
    pub received: VecDeque<Packet>,
    /// The packet that the guest is sending.
    sending: Vec<u8>,
    /// Virtual link that takes the guest's packets.
    link: Arc<VirtualLink>,
    /// Whether packets are passed on at once, or together at the end of the slice.
    pub flushes: bool,
    vm: u32,
}

impl CpuPort {
    /// Returns the port of VM `vm`.
    pub fn new(vm: u32, link: Arc<VirtualLink>) -> Self {
        Self { vm, link, ..Self::default() }
    }
}

impl Port for CpuPort {
    fn console_room(&self) -> u32 {
        OUTPUT_MAX.saturating_sub(self.output.len()) as u32
    }

    fn console_put(&mut self, byte: u8) -> bool {
        let room = self.output.len() < OUTPUT_MAX;
        if room {
            self.output.push(byte);
        }
        room
    }

    fn console_get(&mut self) -> Option<u8> {
        self.input.pop_front()
    }

    fn net_tx_begin(&mut self, len: u32) -> bool {
        self.sending = vec![0; len as usize];
        true
    }

    fn net_tx_write(&mut self, at: u32, bytes: &[u8]) {
        let at = at as usize;
        if let Some(to) = self.sending.get_mut(at..).and_then(|to| to.get_mut(..bytes.len())) {
            to.copy_from_slice(bytes);
        }
    }

    fn net_tx_end(&mut self) {
        self.link.send(self.vm, std::mem::take(&mut self.sending).into());
        if self.flushes {
            self.link.flush();
        }
    }

    fn net_rx_len(&mut self) -> Option<u32> {
        self.received.front().map(|packet| packet.len() as u32)
    }

    fn net_rx_read(&mut self, at: u32, bytes: &mut [u8]) {
        let packet = self.received.front().map_or(&[][..], |packet| packet);
        if let Some(from) = packet.get(at as usize..).and_then(|from| from.get(..bytes.len())) {
            bytes.copy_from_slice(from);
        }
    }

    fn net_rx_end(&mut self) {
        self.received.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::link::Message;

    #[test]
    fn packets_are_put_together_and_go_on_the_link() {
        let link = Arc::new(VirtualLink::new(4));
        let mut port = CpuPort::new(3, Arc::clone(&link));
        assert!(port.net_tx_begin(4));
        port.net_tx_write(2, b"cd");
        port.net_tx_write(0, b"ab");
        port.net_tx_write(3, b"no");
        port.net_tx_end();
        let mut messages = VecDeque::new();
        link.messages(9, &mut messages);
        assert_eq!(messages, [Message::Packet(3, Packet::from(&b"abcd"[..]))]);
    }

    #[test]
    fn packets_come_in_order_each_once() {
        let mut port = CpuPort::default();
        port.received.extend([Packet::from(&b"first"[..]), Packet::from(&b"second"[..])]);
        assert_eq!(port.net_rx_len(), Some(5));
        port.net_rx_end();
        let mut bytes = [0; 3];
        port.net_rx_read(3, &mut bytes);
        assert_eq!(&bytes, b"ond");
        port.net_rx_end();
        assert_eq!(port.net_rx_len(), None);
    }
}

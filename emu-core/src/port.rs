//! What a VM exchanges with the host: console bytes and packets, which are Ethernet frames.
//!
//! Output must not be lost, and guest-visible state must not depend on how fast the host drains it.
//! So the core neither waits nor drops: when a port has no room, the VM stops with
//! [`crate::abi::ExitCode::Stalled`] and runs again once the port has room.

/// Largest packet a VM may send or receive: an Ethernet frame without its check sequence, in bytes.
pub const PACKET_MAX: u32 = 1518;

/// One VM's connection to the host.
pub trait Port {
    /// Returns how many console bytes from the guest the port has room for.
    fn console_room(&self) -> u32;
    /// Takes one console byte from the guest; `false` when there is no room.
    fn console_put(&mut self, byte: u8) -> bool;
    /// Takes the next console byte for the guest; `None` when there is none.
    fn console_get(&mut self) -> Option<u8>;

    /// Begins sending a packet of `len` bytes; `false` when the port has no room for it.
    fn net_tx_begin(&mut self, len: u32) -> bool;
    /// Writes `bytes` at byte `at` of the packet that [`Port::net_tx_begin`] began.
    fn net_tx_write(&mut self, at: u32, bytes: &[u8]);
    /// Sends the packet that [`Port::net_tx_begin`] began.
    fn net_tx_end(&mut self);

    /// Returns the length of the next packet for the guest; `None` when there is none.
    fn net_rx_len(&mut self) -> Option<u32>;
    /// Copies from byte `at` of the next packet for the guest, without removing it.
    fn net_rx_read(&mut self, at: u32, bytes: &mut [u8]);
    /// Removes the next packet for the guest.
    fn net_rx_end(&mut self);

    /// Sets the instruction count that output from now on is recorded with. It is the number of
    /// instructions retired before the one that produces the output.
    #[inline(always)]
    fn at(&mut self, _retired: u64) {}
}

/// A port that drops all output and has no input.
#[derive(Debug, Default)]
pub struct NullPort;

impl Port for NullPort {
    fn console_room(&self) -> u32 {
        u32::MAX
    }
    fn console_put(&mut self, _: u8) -> bool {
        true
    }
    fn console_get(&mut self) -> Option<u8> {
        None
    }
    fn net_tx_begin(&mut self, _: u32) -> bool {
        true
    }
    fn net_tx_write(&mut self, _: u32, _: &[u8]) {}
    fn net_tx_end(&mut self) {}
    fn net_rx_len(&mut self) -> Option<u32> {
        None
    }
    fn net_rx_read(&mut self, _: u32, _: &mut [u8]) {}
    fn net_rx_end(&mut self) {}
}

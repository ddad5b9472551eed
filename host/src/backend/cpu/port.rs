//! A VM's console and network on the CPU backend.

use std::collections::VecDeque;

use emu_core::port::Port;

/// Console bytes that a VM may write in one slice before it has to wait. What it sees does not
/// depend on this number or on how fast the host takes them.
const OUTPUT_MAX: usize = 16 << 10;

/// Buffers between a VM and the host. Empty buffers take no memory.
#[derive(Debug, Default)]
pub struct CpuPort {
    /// Written by the guest since the last slice.
    pub output: Vec<u8>,
    /// To be read by the guest.
    pub input: VecDeque<u8>,
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

    // There is no network yet: frames of the guest go nowhere, and none come.
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

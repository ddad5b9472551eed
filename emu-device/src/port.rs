//! A VM's port on the GPU: records in one log that all VMs of a launch share.
//!
//! The host reads the log when the launch is over, so that its work is proportional to what was
//! said, not to the number of VMs, and host-visible memory is one log, however large the fleet.

use core::sync::atomic::{AtomicU32, Ordering};
use emu_core::port::Port;

/// Bytes that a VM collects before it writes a console record.
pub const CONSOLE_BYTES: usize = 120;
/// Records start at multiples of this.
pub const RECORD_ALIGN: u32 = 8;

/// What a record carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum RecordKind {
    /// Console output.
    Console = 1,
    /// An Ethernet frame.
    Frame = 2,
}

/// The head of a record; `len` bytes follow, then padding.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Record {
    /// The VM.
    pub vm: u32,
    /// A [`RecordKind`].
    pub kind: u16,
    /// Bytes.
    pub len: u16,
}

/// The log, in host-visible memory.
#[derive(Debug)]
#[repr(C)]
pub struct Outbox {
    /// Bytes used; more than `capacity` when some record found no room.
    pub tail: AtomicU32,
    /// Bytes there are.
    pub capacity: u32,
    /// The bytes, aligned to [`RECORD_ALIGN`].
    pub data: *mut u8,
}

impl Outbox {
    /// Makes room for a record and writes its head; answers where its bytes go.
    fn record(&self, vm: u32, kind: RecordKind, len: u32) -> Option<*mut u8> {
        let size = (size_of::<Record>() as u32 + len).next_multiple_of(RECORD_ALIGN);
        // Full stays full: the tail does not wrap, because nobody adds once it is past the end.
        if self.tail.load(Ordering::Relaxed) >= self.capacity {
            return None;
        }
        let at = self.tail.fetch_add(size, Ordering::Relaxed);
        if at > self.capacity || self.capacity - at < size {
            return None;
        }
        // SAFETY: the bytes from `at` to `at + size` are inside the log and, by the addition
        // above, this record's alone.
        unsafe {
            let head = self.data.add(at as usize);
            head.cast::<Record>().write(Record { vm, kind: kind as u16, len: len as u16 });
            Some(head.add(size_of::<Record>()))
        }
    }
}

/// What a VM's port keeps between launches.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PortState {
    /// Bytes in `console`.
    pub console_len: u32,
    /// Console output not yet in the log.
    pub console: [u8; CONSOLE_BYTES],
}

/// One VM's port during a launch.
pub struct LogPort<'a> {
    vm: u32,
    state: &'a mut PortState,
    outbox: &'a Outbox,
    /// Where the frame being sent goes, and its length.
    frame: *mut u8,
    frame_len: u32,
}

impl<'a> LogPort<'a> {
    /// A port that writes to `outbox`.
    pub fn new(vm: u32, state: &'a mut PortState, outbox: &'a Outbox) -> Self {
        Self { vm, state, outbox, frame: core::ptr::null_mut(), frame_len: 0 }
    }

    /// Writes the collected console output to the log, if there is room.
    pub fn flush(&mut self) {
        let len = self.state.console_len.min(CONSOLE_BYTES as u32);
        if len == 0 {
            return;
        }
        if let Some(to) = self.outbox.record(self.vm, RecordKind::Console, len) {
            // SAFETY: the record has room for `len` bytes, and `len` is at most the array's.
            unsafe { self.state.console.as_ptr().copy_to_nonoverlapping(to, len as usize) };
            self.state.console_len = 0;
        }
    }
}

impl Port for LogPort<'_> {
    fn console_room(&self) -> u32 {
        (CONSOLE_BYTES as u32).saturating_sub(self.state.console_len)
    }

    fn console_put(&mut self, byte: u8) -> bool {
        if self.state.console_len as usize >= CONSOLE_BYTES {
            self.flush();
        }
        match self.state.console.get_mut(self.state.console_len as usize) {
            Some(slot) => {
                *slot = byte;
                self.state.console_len += 1;
                true
            }
            None => false,
        }
    }

    fn console_get(&mut self) -> Option<u8> {
        None
    }

    fn net_tx_begin(&mut self, len: u32) -> bool {
        match self.outbox.record(self.vm, RecordKind::Frame, len) {
            Some(to) => {
                (self.frame, self.frame_len) = (to, len);
                true
            }
            None => false,
        }
    }

    fn net_tx_write(&mut self, at: u32, bytes: &[u8]) {
        if at <= self.frame_len && bytes.len() <= (self.frame_len - at) as usize {
            // SAFETY: the range is inside the record that `net_tx_begin` made.
            unsafe {
                bytes.as_ptr().copy_to_nonoverlapping(self.frame.add(at as usize), bytes.len());
            }
        }
    }

    fn net_tx_end(&mut self) {
        (self.frame, self.frame_len) = (core::ptr::null_mut(), 0);
    }

    fn net_rx_len(&mut self) -> Option<u32> {
        None
    }

    fn net_rx_read(&mut self, _: u32, _: &mut [u8]) {}

    fn net_rx_end(&mut self) {}
}

//! A VM's port on the GPU: output goes as records into the log of the launch, input comes from the
//! VM's part of its inbox.

use super::RECORD_ALIGN;
use super::inbox::Inbox;
use super::launch::SLICE;
use super::outbox::{CardDrops, ExitRecord, InputRecord, Outbox, RecordKind, Taken};
use emu_core::abi::{Exit, ExitCode, FaultCode};
use emu_core::port::{PACKET_MAX, Port};
use emu_core::trap::TrapChain;

/// How many console bytes a VM buffers before it writes a record.
pub const CONSOLE_BYTES: usize = 120;
/// The most bytes of packets that a VM may send in one launch: what its network device
/// sends in a slice.
const SHARE_MAX: u32 = 128 << 10;

/// Whether a VM is parked, that is, does not run until the host wakes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(u32)]
pub enum Parked {
    /// The VM runs.
    No = 0,
    /// The VM is parked, and the log had room to report that to the host.
    Reported = 1,
    /// The VM is parked, and that must still be reported, because the log was full.
    Pending = 2,
}

/// The state of a VM's port between launches.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct PortState {
    /// The fleet's time when this VM's time was zero.
    pub origin: u64,
    /// The VM's instruction count at the end of its last run.
    pub instret: u64,
    /// How many system calls the VM's programs have made: see `crate::warp`.
    pub syscalls: u32,
    /// Whether the VM is parked.
    pub parked: Parked,
    /// Why the VM is parked.
    pub exit: Exit,
    /// The end of the input that the VM has taken.
    pub taken: Taken,
    /// The drops that were last reported to the host.
    pub drops: CardDrops,
    /// Bytes in `console`.
    pub console_len: u32,
    /// Keeps what follows aligned.
    pub reserved: u32,
    /// Console output not yet in the log.
    pub console: [u64; CONSOLE_BYTES / 8],
}

impl PortState {
    /// Makes the port of a VM that has not run yet.
    pub const fn new(origin: u64) -> Self {
        Self {
            origin,
            instret: 0,
            syscalls: 0,
            parked: Parked::No,
            exit: Exit { code: ExitCode::Budget, arg: 0 },
            taken: Taken { console: 0, packets: 0 },
            drops: CardDrops { rx: 0, tx: 0 },
            console_len: 0,
            reserved: 0,
            console: [0; CONSOLE_BYTES / 8],
        }
    }
}

/// One VM's port during a launch.
pub struct LogPort<'a> {
    vm: u32,
    state: &'a mut PortState,
    outbox: &'a Outbox,
    inbox: Inbox<'a>,
    /// The instruction count that records get.
    instret: u64,
    /// The address in the log of the packet being sent, and its length.
    packet: *mut u8,
    packet_len: u32,
    /// How many bytes of packets the VM may still write to the log.
    share: u32,
}

impl<'a> LogPort<'a> {
    /// Makes a port that writes to `outbox` and reads from `inbox`.
    pub fn new(vm: u32, state: &'a mut PortState, outbox: &'a Outbox, inbox: Inbox<'a>) -> Self {
        let packet = core::ptr::null_mut();
        let share = u32::MAX;
        Self { vm, state, outbox, inbox, instret: 0, packet, packet_len: 0, share }
    }

    /// Limits how much of the log the VM may fill with packets, so that one VM cannot take
    /// the room of the others. Half of the log is divided among the launch's `count` VMs.
    pub fn limit(&mut self, count: u32) {
        let fair = self.outbox.capacity / 2 / count.max(1);
        self.share = fair.clamp(2 * PACKET_MAX, SHARE_MAX);
    }

    /// Returns the fleet's time when this VM's time was zero.
    pub fn origin(&self) -> u64 {
        self.state.origin
    }

    /// Unparks the VM.
    pub fn unpark(&mut self) {
        self.state.parked = Parked::No;
    }

    /// Begins a run. `retired` is the VM's instruction count.
    pub fn begin(&mut self, retired: u64) {
        self.instret = end_of_slice(retired);
    }

    /// Ends a run. `retired` is the VM's instruction count now, `exit` is how the run ended, and
    /// `syscalls` is how many system calls the VM's programs have made.
    pub fn end(&mut self, retired: u64, exit: Exit, syscalls: u32) {
        if retired > self.instret {
            self.flush();
        }
        self.state.instret = retired;
        self.state.syscalls = syscalls;
        self.instret = match exit.code {
            ExitCode::Budget => retired.next_multiple_of(u64::from(SLICE)),
            ExitCode::Idle
            | ExitCode::Stalled
            | ExitCode::NoFrame
            | ExitCode::PowerOff
            | ExitCode::Reset
            | ExitCode::Fault
            | ExitCode::Disk => retired,
        };
        self.flush();
    }

    /// Reports to the host how much input the VM has taken, if some was `offered`, and what its
    /// network device has dropped, if that has changed.
    pub fn acknowledge_input(&mut self, offered: bool, drops: CardDrops) {
        if !offered && drops == self.state.drops {
            return;
        }
        let taken = self.state.taken;
        let offered = if offered { self.inbox.end() } else { taken };
        // If the log is full, this is reported after a later launch: the host offers the same input
        // again, and the drops still differ from those last reported.
        let record = InputRecord { offered, taken, drops };
        if self.outbox.put(self.vm, RecordKind::Taken, self.instret, record) {
            self.state.drops = drops;
        }
    }

    /// Parks the VM, and reports that to the host now or, if the log is full, in a later launch.
    /// `traps` are those that the VM is caught in, if that is why.
    pub fn park(&mut self, exit: Exit, wake_at: u64, traps: &TrapChain) {
        self.state.exit = exit;
        self.instret = self.state.instret;
        self.flush();
        let wake_at = wake_at.saturating_add(self.state.origin);
        let is_trap_loop = exit == Exit { code: ExitCode::Fault, arg: FaultCode::TrapLoop as u32 };
        let reported = self.state.console_len == 0
            && (!is_trap_loop
                || self.outbox.put(self.vm, RecordKind::TrapLoop, self.instret, *traps))
            && self.outbox.put(
                self.vm,
                RecordKind::Exit,
                self.instret,
                ExitRecord { exit, wake_at },
            );
        self.state.parked = if reported { Parked::Reported } else { Parked::Pending };
    }

    /// Writes the collected console output to the log, if there is room.
    pub fn flush(&mut self) {
        let len = self.state.console_len.min(CONSOLE_BYTES as u32);
        if len == 0 {
            return;
        }
        if let Some(to) = self.outbox.record(self.vm, RecordKind::Console, len, self.instret) {
            let words = len.div_ceil(RECORD_ALIGN) as usize;
            // SAFETY: the record has room for `len` bytes and its padding, is aligned, and the
            // words are at most the array's.
            unsafe { self.state.console.as_ptr().copy_to_nonoverlapping(to.cast(), words) };
            self.state.console_len = 0;
        }
    }
}

/// Returns the instruction count at the end of the slice that `retired` is in.
fn end_of_slice(retired: u64) -> u64 {
    retired / u64::from(SLICE) * u64::from(SLICE) + u64::from(SLICE)
}

impl Port for LogPort<'_> {
    fn console_room(&self) -> u32 {
        (CONSOLE_BYTES as u32).saturating_sub(self.state.console_len)
    }

    fn console_put(&mut self, byte: u8) -> bool {
        if self.state.console_len as usize >= CONSOLE_BYTES {
            self.flush();
        }
        let at = self.state.console_len;
        match self.state.console.get_mut(at as usize / 8) {
            Some(word) => {
                let shift = at % 8 * 8;
                *word = *word & !(0xff << shift) | u64::from(byte) << shift;
                self.state.console_len = at + 1;
                true
            }
            None => false,
        }
    }

    fn console_get(&mut self) -> Option<u8> {
        let byte = self.inbox.byte(self.state.taken.console)?;
        self.state.taken.console = self.state.taken.console.wrapping_add(1);
        Some(byte)
    }

    fn net_tx_begin(&mut self, len: u32) -> bool {
        let Some(share) = self.share.checked_sub(len) else { return false };
        match self.outbox.record(self.vm, RecordKind::Packet, len, self.instret) {
            Some(to) => {
                (self.packet, self.packet_len) = (to, len);
                self.share = share;
                true
            }
            None => false,
        }
    }

    fn net_tx_write(&mut self, at: u32, bytes: &[u8]) {
        if at <= self.packet_len && bytes.len() <= (self.packet_len - at) as usize {
            // SAFETY: the range is inside the record that `net_tx_begin` made.
            unsafe {
                bytes.as_ptr().copy_to_nonoverlapping(self.packet.add(at as usize), bytes.len());
            }
        }
    }

    fn net_tx_end(&mut self) {
        (self.packet, self.packet_len) = (core::ptr::null_mut(), 0);
    }

    fn net_rx_len(&mut self) -> Option<u32> {
        self.inbox.packet().map(|packet| packet.len() as u32)
    }

    fn net_rx_read(&mut self, at: u32, bytes: &mut [u8]) {
        let packet = self.inbox.packet().unwrap_or_default();
        let from = packet.get(at as usize..).unwrap_or_default();
        for (to, byte) in bytes.iter_mut().zip(from) {
            *to = *byte;
        }
    }

    fn net_rx_end(&mut self) {
        if self.inbox.packet().is_some() {
            self.inbox.next_packet();
            self.state.taken.packets = self.state.taken.packets.wrapping_add(1);
        }
    }

    #[inline]
    fn at(&mut self, retired: u64) {
        let end = end_of_slice(retired);
        if end != self.instret {
            self.flush();
            self.instret = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::launch::At;
    use core::sync::atomic::Ordering;
    use std::vec;
    use std::vec::Vec;

    struct Log {
        data: Vec<u64>,
        outbox: Outbox,
    }

    fn log(capacity: u32) -> Log {
        let mut data = vec![0u64; capacity as usize / 8];
        let data_at = At::new(data.as_mut_ptr().expose_provenance() as u64);
        let outbox = Outbox { tail: 0.into(), capacity, data: data_at };
        Log { data, outbox }
    }

    impl Log {
        fn bytes(&self) -> Vec<u8> {
            self.data.iter().flat_map(|w| w.to_le_bytes()).collect()
        }
        fn kind(&self, at: usize) -> u16 {
            u16::from_le_bytes(self.bytes()[at + 4..at + 6].try_into().unwrap())
        }
    }

    fn offered(console_at: u32, console: &[u8], packets_at: u32, packets: &[&[u8]]) -> Vec<u8> {
        let head = [console_at, console.len() as u32, packets_at, packets.len() as u32];
        let mut bytes: Vec<u8> = head.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.extend(console);
        for packet in packets {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend((packet.len() as u64).to_le_bytes());
            bytes.extend(*packet);
        }
        bytes
    }

    #[test]
    fn console_output_is_one_record_with_the_count_at_the_end_of_the_slice() {
        let log = log(256);
        let mut state = PortState::new(0);
        let mut port = LogPort::new(7, &mut state, &log.outbox, Inbox::NONE);
        port.begin(5);
        for byte in b"hello, log" {
            assert!(port.console_put(*byte));
        }
        port.end(30_000, Exit { code: ExitCode::Budget, arg: 0 }, 0);
        let bytes = log.bytes();
        assert_eq!(bytes[..8], [7, 0, 0, 0, RecordKind::Console as u8, 0, 10, 0]);
        assert_eq!(bytes[8..16], 32_768u64.to_le_bytes());
        assert_eq!(&bytes[16..26], b"hello, log");
        assert_eq!(log.outbox.tail.load(Ordering::Relaxed), 32);
    }

    #[test]
    fn a_run_over_several_slices_reports_each_as_if_it_had_been_cut() {
        let log = log(256);
        let mut state = PortState::new(0);
        let mut port = LogPort::new(7, &mut state, &log.outbox, Inbox::NONE);
        port.begin(5);
        for (retired, byte) in [(10, b'a'), (32_767, b'b'), (32_768, b'c'), (70_000, b'd')] {
            port.at(retired);
            assert!(port.console_put(byte));
        }
        port.end(99_000, Exit { code: ExitCode::Idle, arg: 0 }, 0);
        let bytes = log.bytes();
        let stamp = |at: usize| u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap());
        assert_eq!([stamp(0), stamp(24), stamp(48)], [32_768, 65_536, 98_304]);
        assert_eq!(&bytes[16..18], b"ab");
    }

    #[test]
    fn a_full_log_ends_with_a_mark_and_the_vm_keeps_its_output() {
        let log = log(48);
        let mut state = PortState::new(0);
        let mut port = LogPort::new(0, &mut state, &log.outbox, Inbox::NONE);
        port.console_put(b'a');
        port.flush();
        for _ in 0..CONSOLE_BYTES {
            assert!(port.console_put(b'b'));
        }
        assert!(!port.console_put(b'c'), "no room in the log, none in the buffer");
        assert_eq!(port.state.console_len, CONSOLE_BYTES as u32);
        assert_eq!(log.kind(24), RecordKind::End as u16);
        let exit = Exit { code: ExitCode::PowerOff, arg: 0 };
        port.park(exit, u64::MAX, &TrapChain::EMPTY);
        assert_eq!(state.parked, Parked::Pending);
        // With room, all of it is reported, in order.
        log.outbox.tail.store(0, Ordering::Relaxed);
        let big = self::log(512);
        LogPort::new(0, &mut state, &big.outbox, Inbox::NONE).park(exit, 0, &TrapChain::EMPTY);
        assert_eq!(state.parked, Parked::Reported);
        assert_eq!(big.kind(0), RecordKind::Console as u16);
        assert_eq!(big.kind(16 + CONSOLE_BYTES), RecordKind::Exit as u16);
    }

    #[test]
    fn input_that_was_taken_is_not_taken_again() {
        let log = log(256);
        let mut state = PortState::new(0);
        state.taken.console = 2;
        let bytes = offered(0, b"abcd", 0, &[]);
        let inbox = Inbox::new(&bytes, &state.taken).unwrap();
        let mut port = LogPort::new(0, &mut state, &log.outbox, inbox);
        assert_eq!(
            [port.console_get(), port.console_get(), port.console_get()],
            [Some(b'c'), Some(b'd'), None]
        );
        assert_eq!(state.taken.console, 4);
    }

    #[test]
    fn packets_come_in_order_each_once() {
        let log = log(256);
        let mut state = PortState::new(0);
        state.taken.packets = u32::MAX;
        let packets: [&[u8]; 3] = [b"taken", b"a queue", b"another"];
        let bytes = offered(0, b"xyz", u32::MAX - 1, &packets);
        let inbox = Inbox::new(&bytes, &state.taken).unwrap();
        let mut port = LogPort::new(0, &mut state, &log.outbox, inbox);
        assert_eq!(port.net_rx_len(), Some(7));
        let mut read = [0; 5];
        port.net_rx_read(2, &mut read);
        assert_eq!(&read, b"queue");
        port.net_rx_end();
        assert_eq!(port.net_rx_len(), Some(7));
        port.net_rx_end();
        assert_eq!(port.net_rx_len(), None);
        port.net_rx_end();
        assert_eq!(state.taken.packets, 1);
    }

    #[test]
    fn a_damaged_inbox_is_no_inbox() {
        let taken = Taken::default();
        assert!(Inbox::new(&[0; 15], &taken).is_none());
        assert!(Inbox::new(&offered(0, b"abc", 0, &[])[..17], &taken).is_none());
        let mut bytes = offered(0, b"", 0, &[b"abc"]);
        bytes[16] = 200;
        assert!(Inbox::new(&bytes, &taken).unwrap().packet().is_none());
    }

    #[test]
    fn a_vm_that_floods_has_its_share_of_the_log_and_no_more() {
        let log = log(64 << 10);
        let mut state = PortState::new(0);
        let mut port = LogPort::new(0, &mut state, &log.outbox, Inbox::NONE);
        port.limit(8);
        let mut sent = 0;
        while port.net_tx_begin(1000) {
            port.net_tx_end();
            sent += 1;
        }
        assert_eq!(sent, 4);
        assert!(port.console_put(b'x'));
        port.flush();
        assert_eq!(port.state.console_len, 0);
    }

    #[test]
    fn what_a_card_drops_is_reported_once() {
        let log = log(256);
        let mut state = PortState::new(0);
        let mut port = LogPort::new(0, &mut state, &log.outbox, Inbox::NONE);
        for drops in [0, 3, 3] {
            port.acknowledge_input(false, CardDrops { rx: drops, tx: 0 });
        }
        assert_eq!(log.outbox.tail.load(Ordering::Relaxed), 40);
        assert_eq!(state.drops, CardDrops { rx: 3, tx: 0 });
    }

    #[test]
    fn a_packet_sent_stays_inside_its_record() {
        let log = log(64);
        let mut state = PortState::new(0);
        let mut port = LogPort::new(3, &mut state, &log.outbox, Inbox::NONE);
        assert!(port.net_tx_begin(4));
        port.net_tx_write(2, b"xyz");
        port.net_tx_write(2, b"ok");
        port.net_tx_end();
        port.net_tx_write(0, b"no");
        assert_eq!(&log.bytes()[16..20], b"\0\0ok");
        assert!(!port.net_tx_begin(100));
    }
}

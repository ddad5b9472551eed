//! Output of a launch, device to host: decodes the log ("outbox") of what VMs wrote, sent and took.

use emu_core::abi::{Exit, ExitCode};
use emu_device::port::{
    CardDrops, ExitRecord, InputRecord, RECORD_ALIGN, Record, RecordKind, Taken,
};

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
}

/// Iterator over the records of a log, in order. The first malformed record ends it.
pub struct Messages<'a> {
    rest: &'a [u8],
}

/// Returns the records of a log.
pub fn messages(log: &[u8]) -> Messages<'_> {
    Messages { rest: log }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

fn exit_code(code: u32) -> Option<ExitCode> {
    use ExitCode::{Budget, Fault, Idle, NoFrame, PowerOff, Reset, Stalled};
    [Budget, Idle, Stalled, NoFrame, PowerOff, Reset, Fault].into_iter().find(|&c| c as u32 == code)
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (vm, head) = (u32_at(self.rest, 0)?, u32_at(self.rest, 4)?);
        let instret = u64_at(self.rest, 8)?;
        let (kind, len) = (head as u16, (head >> 16) as usize);
        let body = self.rest.get(size_of::<Record>()..)?;
        let bytes = body.get(..len)?;
        const CONSOLE: u16 = RecordKind::Console as u16;
        const PACKET: u16 = RecordKind::Packet as u16;
        const EXIT: u16 = RecordKind::Exit as u16;
        const TAKEN: u16 = RecordKind::Taken as u16;
        let message = match kind {
            CONSOLE => Body::Console(bytes),
            PACKET => Body::Packet(bytes),
            EXIT => {
                let code = exit_code(u32_at(bytes, 0)?)?;
                let wake_at = u64_at(bytes, std::mem::offset_of!(ExitRecord, wake_at))?;
                Body::Exit(Exit { code, arg: u32_at(bytes, 4)? }, wake_at)
            }
            TAKEN => {
                let taken = |at| {
                    let packets = u32_at(bytes, at + 4)?;
                    Some(Taken { console: u32_at(bytes, at)?, packets })
                };
                let drops = CardDrops { rx: u32_at(bytes, 16)?, tx: u32_at(bytes, 20)? };
                Body::Taken(InputRecord { offered: taken(0)?, taken: taken(8)?, drops })
            }
            _ => return None,
        };
        self.rest = body.get(len.next_multiple_of(RECORD_ALIGN as usize)..).unwrap_or_default();
        Some(Message { vm, instret, body: message })
    }
}

#[cfg(test)]
mod tests {
    use emu_core::port::Port;
    use emu_device::launch::At;
    use emu_device::port::{Inbox, LogPort, Outbox, PortState};

    use super::*;

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
        port.park(exit, 5);
        let log: Vec<u8> = data.iter().flat_map(|w| w.to_le_bytes()).collect();
        let read: Vec<_> = messages(&log).map(|m| (m.vm, m.instret, m.body)).collect();
        assert_eq!(
            read,
            [
                (9, 32_768, Body::Packet(b"eth")),
                (9, 77, Body::Console(b"hi")),
                (9, 77, Body::Taken(InputRecord { drops, ..InputRecord::default() })),
                (9, 77, Body::Exit(exit, 105)),
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

//! Bare-metal programs: M-mode ELF files that end through `tohost` (HTIF) or the test finisher.

use std::path::Path;
use std::sync::Arc;

use emu_core::abi::ExitCode;
use emu_core::layout::MachineKind;
use emu_core::machine::Now;
use emu_core::mem::DmaError;
use emu_core::trace::Trace;

use crate::backend::Reason;
use crate::backend::cpu::{CpuPort, Guest, HostArena, Lane, Session};
use crate::exit::Error;
use crate::image::elf::{self, Program};
use crate::image::{Role, load};
use crate::machine::{BaseImage, Fleet, plan};
use crate::units::Size;

/// Instructions between two looks at `tohost`.
const SLICE: u32 = 4096;
/// Instructions in which the second half of a 64-bit `tohost` is surely written.
const SETTLE: u32 = 32;
/// Longest text that a program prints at once.
const PRINT_MAX: u32 = 64 << 10;

/// How a program ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// It reported success.
    Passed,
    /// It reported failure, with the number of the test that failed or an exit status.
    Failed(u32),
    /// It ran for as many instructions as it was given.
    Limit,
    /// It waits for an interrupt that never comes.
    Stuck,
    /// It asked for a reset.
    Reset,
    /// It cannot go on.
    Faulted(Reason),
}

/// A bare-metal program in its machine.
pub struct Bare {
    guest: Guest,
    lane: Lane,
    port: CpuPort,
    program: Program,
}

/// What [`Bare::run`] passes on while the program runs.
pub trait Output {
    /// Text that the program printed.
    fn print(&mut self, text: &[u8]);
}

impl Output for Vec<u8> {
    fn print(&mut self, text: &[u8]) {
        self.extend_from_slice(text);
    }
}

/// What the program left in `tohost`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ToHost {
    Nothing,
    Exit(u32),
    Character(u8),
    SystemCall(u64),
    Unknown,
}

impl ToHost {
    /// HTIF: 8 bits of device, 8 of command, 48 of payload.
    fn decode(value: u64) -> Self {
        const PAYLOAD: u64 = (1 << 48) - 1;
        const SYSCALL: u64 = 0;
        const CONSOLE_PUT: u64 = 0x0101;
        match (value >> 48, value & PAYLOAD) {
            (SYSCALL, 0) => Self::Nothing,
            (SYSCALL, payload) if payload & 1 != 0 => Self::Exit((payload >> 1) as u32),
            (SYSCALL, payload) => Self::SystemCall(payload),
            (CONSOLE_PUT, payload) => Self::Character(payload as u8),
            _ => Self::Unknown,
        }
    }
}

impl Bare {
    /// Reads a program.
    pub fn open(path: &Path, kind: MachineKind, memory: Size) -> Result<Self, Error> {
        let program = load(Role::Program, path, |bytes| elf::parse(&bytes))?;
        Self::new(program, kind, memory)
    }

    /// Puts a program into a machine.
    pub fn new(program: Program, kind: MachineKind, memory: Size) -> Result<Self, Error> {
        let plan = plan::bare(kind, memory, program.payload.clone())?;
        let base = BaseImage::new(kind.map().ram_base, plan.memory, &plan.contents, None);
        let lane = Lane::new()?;
        let arena = HostArena::new(&base.frames, base.ram_shared, base.ram.len() as u32)?;
        let fleet = Fleet {
            count: 1,
            plan,
            base,
            tree: None,
            append: String::new(),
            seed: 0,
            host_time: false,
        };
        // The arena has a frame for every page, so none is missing.
        let guest = Guest::new(&Arc::new(arena), &fleet.base, fleet.stage(0), &lane)
            .map_err(|_| Error::Usage("no memory for the program".into()))?;
        Ok(Self { guest, lane, port: CpuPort::default(), program })
    }

    /// Instructions retired.
    pub fn instret(&self) -> u64 {
        self.guest.vm().sys.clock.retired
    }

    /// Runs until the program ends, `max` instructions at most.
    pub fn run<T: Trace>(&mut self, max: u64, trace: &mut T, output: &mut impl Output) -> End {
        let tohost = self.program.symbol("tohost").map(u64::from);
        let fromhost = self.program.symbol("fromhost").map(u64::from);
        let Self { guest, lane, port, .. } = self;
        let mut session = guest.session(lane);
        let mut left = max;
        loop {
            if left == 0 {
                return End::Limit;
            }
            let budget = left.min(SLICE.into()) as u32;
            left -= u64::from(budget);
            let end = slice(&mut session, port, budget, trace);
            if !port.output.is_empty() {
                output.print(&std::mem::take(&mut port.output));
            }
            if let Some(tohost) = tohost {
                let mut request = read(&mut session, tohost);
                if request != ToHost::Nothing && end.is_none() {
                    // A 32-bit program writes it in two halves.
                    slice(&mut session, port, SETTLE, trace);
                    request = read(&mut session, tohost);
                }
                match request {
                    ToHost::Nothing => {}
                    ToHost::Exit(0) => return End::Passed,
                    ToHost::Exit(n) => return End::Failed(n),
                    other => serve(&mut session, other, tohost, fromhost, output),
                }
            }
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// The words from `begin_signature` to `end_signature`, if the program has them.
    pub fn signature(&mut self) -> Option<Vec<u32>> {
        let begin = self.program.symbol("begin_signature")?;
        let end = self.program.symbol("end_signature")?;
        let mut session = self.guest.session(&mut self.lane);
        (begin..end)
            .step_by(4)
            .map(|addr| session.with_ram(|ram| ram.read_u32(addr.into())).ok())
            .collect()
    }
}

fn slice<T: Trace>(
    session: &mut Session<'_>,
    port: &mut CpuPort,
    budget: u32,
    trace: &mut T,
) -> Option<End> {
    let exit = session.run(port, budget, Now::Instret, trace);
    match exit.code {
        ExitCode::Budget | ExitCode::Stalled => None,
        ExitCode::Idle => Some(End::Stuck),
        ExitCode::PowerOff if exit.arg == 0 => Some(End::Passed),
        ExitCode::PowerOff => Some(End::Failed(exit.arg)),
        ExitCode::Reset => Some(End::Reset),
        ExitCode::NoFrame => Some(End::Faulted(Reason::NoMemory)),
        ExitCode::Fault => Some(End::Faulted(Reason::of_fault(exit.arg))),
    }
}

fn read(session: &mut Session<'_>, tohost: u64) -> ToHost {
    let value = session.with_ram(|ram| {
        Ok(u64::from(ram.read_u32(tohost)?) | u64::from(ram.read_u32(tohost + 4)?) << 32)
    });
    ToHost::decode(value.unwrap_or(0))
}

/// Does what a program asked for, and takes the request away.
fn serve(
    session: &mut Session<'_>,
    request: ToHost,
    tohost: u64,
    fromhost: Option<u64>,
    output: &mut impl Output,
) {
    const WRITE: u32 = 64;
    let result = session.with_ram(|ram| {
        match request {
            ToHost::Character(byte) => output.print(&[byte]),
            ToHost::SystemCall(at) => {
                // Eight 64-bit words: number and arguments, on return the result first.
                let (number, text) = (ram.read_u32(at)?, ram.read_u32(at + 16)?);
                let len = ram.read_u32(at + 24)?;
                if number == WRITE && len <= PRINT_MAX {
                    let mut bytes = vec![0; len as usize];
                    ram.read(text.into(), &mut bytes)?;
                    output.print(&bytes);
                    ram.write_u32(at, len)?;
                    ram.write_u32(at + 4, 0)?;
                }
            }
            _ => {}
        }
        Ok::<_, DmaError>(())
    });
    // A request with wild addresses is answered like one that is not known: by nothing.
    let _ = result;
    let acknowledged = session.with_ram(|ram| {
        ram.write_u32(tohost, 0)?;
        ram.write_u32(tohost + 4, 0)?;
        fromhost.map_or(Ok(()), |at| ram.write_u32(at, 1))
    });
    // `tohost` was just read, so it is RAM.
    let _ = acknowledged;
}

#[cfg(test)]
mod tests {
    use emu_core::trace::NoTrace;

    use super::*;
    use crate::image::{Payload, Segment};

    const TOHOST: u32 = 0x8000_1000;

    /// `lui t0, 0x80001` and then `code`, with `tohost` at 0x8000_1000.
    fn program(code: &[u32]) -> Bare {
        let code = [&[0x8000_12b7], code].concat();
        let bytes: Vec<u8> = code.iter().flat_map(|w| w.to_le_bytes()).collect();
        let size = bytes.len() as u32;
        let segments = vec![
            Segment { addr: 0x8000_0000, bytes, size },
            Segment { addr: TOHOST, bytes: vec![], size: 64 },
        ];
        let payload = Payload { segments, entry: 0x8000_0000, fixed: true };
        let names = [("tohost", 0), ("begin_signature", 0), ("end_signature", 8)];
        let symbols = names.map(|(n, at)| (n.to_owned(), TOHOST + at)).to_vec();
        Bare::new(Program { payload, symbols }, MachineKind::Virt, Size::mib(1)).unwrap()
    }

    const LOOP: u32 = 0x0000_006f;
    const SW_T1_TOHOST: u32 = 0x0062_a023;
    const SW_T2_TOHOST_HIGH: u32 = 0x0072_a223;
    const fn li_t1(n: u32) -> u32 {
        0x0000_0313 | n << 20
    }

    #[test]
    fn one_in_tohost_is_success_and_the_signature_can_be_read() {
        let mut bare = program(&[li_t1(1), SW_T1_TOHOST, LOOP]);
        assert_eq!(bare.run(100_000, &mut NoTrace, &mut Vec::new()), End::Passed);
        assert_eq!(bare.signature(), Some(vec![1, 0]));
    }

    #[test]
    fn an_odd_number_is_the_test_that_failed() {
        let mut bare = program(&[li_t1(2 * 5 + 1), SW_T1_TOHOST, LOOP]);
        assert_eq!(bare.run(100_000, &mut NoTrace, &mut Vec::new()), End::Failed(5));
    }

    #[test]
    fn characters_are_printed_even_odd_ones() {
        const LUI_T2_CONSOLE: u32 = 0x0101_03b7;
        let code = [li_t1(u32::from(b'a')), LUI_T2_CONSOLE, SW_T1_TOHOST, SW_T2_TOHOST_HIGH, LOOP];
        let mut printed = Vec::new();
        assert_eq!(program(&code).run(100_000, &mut NoTrace, &mut printed), End::Limit);
        assert_eq!(printed, b"a");
    }

    #[test]
    fn a_program_without_end_runs_to_its_limit() {
        let mut bare = program(&[LOOP]);
        assert_eq!(bare.run(10_000, &mut NoTrace, &mut Vec::new()), End::Limit);
        assert!(bare.instret() <= 10_000);
    }
}

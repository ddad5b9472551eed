//! Bare-metal programs: M-mode ELF files that end through `tohost` (HTIF) or the test finisher.

use std::path::Path;
use std::sync::Arc;

use emu_core::abi::{Exit, ExitCode};
use emu_core::layout::MachineKind;
use emu_core::machine::Now;
use emu_core::trace::{NoTrace, Trace};

use crate::backend::cpu::{CpuPort, Guest, HostArena, Lane, Session};
use crate::backend::cuda::CudaError;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::single::Single;
use crate::backend::{BackendError, Reason};
use crate::exit::Error;
use crate::image::elf::{self, Program};
use crate::image::{Role, load};
use crate::machine::Fleet;
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
    place: Place,
    program: Program,
}

/// Where a program runs.
enum Place {
    Cpu { guest: Box<Guest>, lane: Lane, port: CpuPort },
    Cuda(Box<Single>),
}

/// What the loop needs of a machine.
trait Target {
    /// Runs a slice, and adds what the program printed on the UART.
    fn slice(&mut self, budget: u32, printed: &mut Vec<u8>) -> Result<Exit, CudaError>;
    /// Reads RAM; `None` outside of it.
    fn read(&mut self, addr: u64, bytes: &mut [u8]) -> Option<()>;
    /// Writes a word of RAM.
    fn write_u32(&mut self, addr: u64, word: u32) -> Option<()>;

    fn read_u32(&mut self, addr: u64) -> Option<u32> {
        let mut word = [0; 4];
        self.read(addr, &mut word).map(|()| u32::from_le_bytes(word))
    }
}

/// A program on the CPU, watched.
struct OnCpu<'a, T> {
    session: Session<'a>,
    port: &'a mut CpuPort,
    trace: &'a mut T,
}

impl<T: Trace> Target for OnCpu<'_, T> {
    fn slice(&mut self, budget: u32, printed: &mut Vec<u8>) -> Result<Exit, CudaError> {
        let exit = self.session.run(self.port, budget, Now::Instret, self.trace);
        printed.append(&mut self.port.output);
        Ok(exit)
    }

    fn read(&mut self, addr: u64, bytes: &mut [u8]) -> Option<()> {
        self.session.with_ram(|ram| ram.read(addr, bytes)).ok()
    }

    fn write_u32(&mut self, addr: u64, word: u32) -> Option<()> {
        self.session.with_ram(|ram| ram.write_u32(addr, word)).ok()
    }
}

impl Target for Single {
    fn slice(&mut self, budget: u32, printed: &mut Vec<u8>) -> Result<Exit, CudaError> {
        self.run(budget, printed)
    }

    // What fails here fails again in the next slice, which tells.
    fn read(&mut self, addr: u64, bytes: &mut [u8]) -> Option<()> {
        Single::read(self, addr, bytes).ok()?.then_some(())
    }

    fn write_u32(&mut self, addr: u64, word: u32) -> Option<()> {
        Single::write_u32(self, addr, word).ok()?.then_some(())
    }
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

    /// The same for a program on a GPU, which [`Bare::into_gpu`] gives back.
    pub fn open_on(
        gpu: Box<dyn Gpu>,
        path: &Path,
        kind: MachineKind,
        memory: Size,
    ) -> Result<Self, Error> {
        let program = load(Role::Program, path, |bytes| elf::parse(&bytes))?;
        let fleet = fleet(&program, kind, memory)?;
        let single = Single::start(gpu, &fleet)?;
        Ok(Self { place: Place::Cuda(Box::new(single)), program })
    }

    /// Puts a program into a machine.
    pub fn new(program: Program, kind: MachineKind, memory: Size) -> Result<Self, Error> {
        let fleet = fleet(&program, kind, memory)?;
        let base = &fleet.base;
        let lane = Lane::new()?;
        let arena = HostArena::new(base, base.ram.len() as u32)?;
        // The arena has a frame for every page, so none is missing.
        let guest = Guest::new(&Arc::new(arena), base, fleet.stage(0), &lane)
            .map_err(|_| Error::Usage("no memory for the program".into()))?;
        let place = Place::Cpu { guest: Box::new(guest), lane, port: CpuPort::default() };
        Ok(Self { place, program })
    }

    /// The GPU of a program on one.
    pub fn into_gpu(self) -> Option<Result<Box<dyn Gpu>, BackendError>> {
        match self.place {
            Place::Cpu { .. } => None,
            Place::Cuda(single) => Some(single.into_gpu().map_err(Into::into)),
        }
    }

    /// Instructions retired.
    pub fn instret(&mut self) -> u64 {
        match &mut self.place {
            Place::Cpu { guest, .. } => guest.vm().sys.clock.retired,
            Place::Cuda(single) => single.instret().unwrap_or_default(),
        }
    }

    /// Runs until the program ends, `max` instructions at most. A GPU tells `trace` nothing.
    pub fn run<T: Trace>(&mut self, max: u64, trace: &mut T, output: &mut impl Output) -> End {
        let Self { place, program } = self;
        match place {
            Place::Cpu { guest, lane, port } => {
                let mut target = OnCpu { session: guest.session(lane), port, trace };
                run(&mut target, program, max, output)
            }
            Place::Cuda(single) => run(single.as_mut(), program, max, output),
        }
    }

    /// The words from `begin_signature` to `end_signature`, if the program has them.
    pub fn signature(&mut self) -> Option<Vec<u32>> {
        let begin = self.program.symbol("begin_signature")?;
        let end = self.program.symbol("end_signature")?;
        let words = (begin..end).step_by(4);
        match &mut self.place {
            Place::Cpu { guest, lane, port } => {
                let trace = &mut NoTrace;
                let mut target = OnCpu { session: guest.session(lane), port, trace };
                words.map(|addr| target.read_u32(addr.into())).collect()
            }
            Place::Cuda(single) => words.map(|addr| single.read_u32(addr.into())).collect(),
        }
    }
}

/// The fleet of one VM that a program is.
fn fleet(program: &Program, kind: MachineKind, memory: Size) -> Result<Fleet, Error> {
    Ok(Fleet::bare(1, kind, memory, program.payload.clone())?)
}

fn run(target: &mut impl Target, program: &Program, max: u64, output: &mut impl Output) -> End {
    let tohost = program.symbol("tohost").map(u64::from);
    let fromhost = program.symbol("fromhost").map(u64::from);
    let mut left = max;
    loop {
        if left == 0 {
            return End::Limit;
        }
        let budget = left.min(SLICE.into()) as u32;
        left -= u64::from(budget);
        let end = slice(target, budget, output);
        if let Some(tohost) = tohost {
            let mut request = read(target, tohost);
            if request != ToHost::Nothing && end.is_none() {
                // A 32-bit program writes it in two halves.
                slice(target, SETTLE, output);
                request = read(target, tohost);
            }
            match request {
                ToHost::Nothing => {}
                ToHost::Exit(0) => return End::Passed,
                ToHost::Exit(n) => return End::Failed(n),
                other => serve(target, other, tohost, fromhost, output),
            }
        }
        if let Some(end) = end {
            return end;
        }
    }
}

fn slice(target: &mut impl Target, budget: u32, output: &mut impl Output) -> Option<End> {
    let mut printed = Vec::new();
    let exit = target.slice(budget, &mut printed);
    if !printed.is_empty() {
        output.print(&printed);
    }
    let exit = match exit {
        Ok(exit) => exit,
        Err(error) => return Some(End::Faulted(Reason::Internal(error.to_string()))),
    };
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

fn read(target: &mut impl Target, tohost: u64) -> ToHost {
    let mut value = [0; 8];
    match target.read(tohost, &mut value) {
        Some(()) => ToHost::decode(u64::from_le_bytes(value)),
        None => ToHost::Nothing,
    }
}

/// Does what a program asked for, and takes the request away.
fn serve(
    target: &mut impl Target,
    request: ToHost,
    tohost: u64,
    fromhost: Option<u64>,
    output: &mut impl Output,
) {
    // A request with wild addresses is answered like one that is not known: by nothing.
    match request {
        ToHost::Character(byte) => output.print(&[byte]),
        ToHost::SystemCall(at) => drop(system_call(target, at, output)),
        _ => {}
    }
    for addr in [tohost, tohost + 4] {
        target.write_u32(addr, 0);
    }
    if let Some(at) = fromhost {
        target.write_u32(at, 1);
    }
}

/// Eight 64-bit words: number and arguments, on return the result first.
fn system_call(target: &mut impl Target, at: u64, output: &mut impl Output) -> Option<()> {
    const WRITE: u32 = 64;
    let (number, text) = (target.read_u32(at)?, target.read_u32(at.checked_add(16)?)?);
    let len = target.read_u32(at.checked_add(24)?)?;
    if number == WRITE && len <= PRINT_MAX {
        let mut bytes = vec![0; len as usize];
        target.read(text.into(), &mut bytes)?;
        output.print(&bytes);
        target.write_u32(at, len)?;
        target.write_u32(at + 4, 0)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn the_same_holds_on_an_emulated_gpu() {
        let code = [li_t1(1), SW_T1_TOHOST, LOOP];
        let Bare { program, .. } = program(&code);
        let fleet = fleet(&program, MachineKind::Virt, Size::mib(1)).unwrap();
        let gpu = Box::new(crate::backend::cuda::emulated::Emulated::new(Size::mib(64)));
        let single = Single::start(gpu, &fleet).unwrap();
        let mut bare = Bare { place: Place::Cuda(Box::new(single)), program };
        assert_eq!(bare.run(100_000, &mut NoTrace, &mut Vec::new()), End::Passed);
        assert_eq!(bare.signature(), Some(vec![1, 0]));
        assert!(bare.into_gpu().unwrap().is_ok());
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

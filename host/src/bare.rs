//! Bare-metal programs: M-mode ELF executables that end through `tohost` (HTIF) or the test
//! finisher, such as riscv-tests.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use emu_core::abi::{Exit, ExitCode, Vm};
use emu_core::layout::MachineKind;
use emu_core::mem::FRAME_SIZE;
use emu_core::trace::{NoTrace, Trace};

use crate::backend::cpu::{CpuPort, Guest, HostArena, WorkerContext, check_count};
use crate::backend::cuda::CudaError;
use crate::backend::cuda::bare_fleet::BareFleet;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::fingerprint::fingerprint;
use crate::backend::trap_loop::TrapLoop;
use crate::backend::{BackendError, Reason};
use crate::error::Error;
use crate::host;
use crate::image::elf::{self, Program};
use crate::image::{Role, load};
use crate::machine::Fleet;
use crate::units::Size;
use crate::virtio::{self, Virtio};

/// Instructions between two polls of `tohost`.
const SLICE: u32 = 4096;
/// Instructions within which the second half of a 64-bit `tohost` is written.
const SETTLE: u32 = 32;
/// Longest text that a program can print at once.
const PRINT_MAX: u32 = 64 << 10;

/// How a program ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The program reported success.
    Passed,
    /// The program reported failure, with the number of the test that failed or an exit status.
    Failed(u32),
    /// The program reached its limit of instructions.
    Limit,
    /// The program waits for an interrupt that never comes.
    Stuck,
    /// The program requested a reset.
    Reset,
    /// The VM cannot continue.
    Faulted(Reason),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed(n) => write!(f, "failed with {n}"),
            Self::Limit => f.write_str("did not end"),
            Self::Stuck => f.write_str("waits for an interrupt that never comes"),
            Self::Reset => f.write_str("asked for a reset"),
            Self::Faulted(reason) => write!(f, "cannot go on: {reason}"),
        }
    }
}

/// The machine that each program has.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    /// The memory map.
    pub kind: MachineKind,
    /// Size of RAM.
    pub memory: Size,
    /// How programs find their virtio devices.
    pub virtio: Virtio,
}

impl Hardware {
    /// Returns a `virt` machine.
    pub const fn virt(memory: Size) -> Self {
        Self { kind: MachineKind::Virt, memory, virtio: Virtio::OTHER }
    }
}

/// Bare-metal programs, each in a VM of its own.
pub struct Bare {
    executor: Executor,
    programs: Vec<Program>,
}

/// Where programs run: on the CPU or a GPU.
enum Executor {
    Cpu { guests: Vec<(Guest, CpuPort)>, context: WorkerContext },
    Cuda(Box<BareFleet>),
}

/// What the run loop needs of the VMs, on the CPU or a GPU.
trait Target {
    /// Runs each of `vms` to its next multiple of `slice` instructions. Returns how each VM stopped
    /// and what it printed on the UART.
    fn turn(&mut self, vms: &[u32], slice: u32) -> Result<Vec<(Exit, Vec<u8>)>, CudaError>;
    /// Reads RAM. Returns `false` outside of it.
    fn read(&mut self, vm: u32, addr: u64, bytes: &mut [u8]) -> Result<bool, CudaError>;
    /// Writes a word of RAM that the guest has written before. Returns `false` for any other.
    fn write_u32(&mut self, vm: u32, addr: u64, word: u32) -> Result<bool, CudaError>;

    /// Returns the traps that a VM is caught in.
    fn traps(&mut self, vm: u32) -> Result<TrapLoop, CudaError>;

    fn read_u32(&mut self, vm: u32, addr: u64) -> Result<Option<u32>, CudaError> {
        let mut word = [0; 4];
        let inside = self.read(vm, addr, &mut word)?;
        Ok(inside.then_some(u32::from_le_bytes(word)))
    }
}

/// Programs on the CPU, with a trace of their instructions.
struct OnCpu<'a, T> {
    guests: &'a mut [(Guest, CpuPort)],
    context: &'a mut WorkerContext,
    trace: &'a mut T,
}

impl<T: Trace> Target for OnCpu<'_, T> {
    fn turn(&mut self, vms: &[u32], slice: u32) -> Result<Vec<(Exit, Vec<u8>)>, CudaError> {
        let turns = vms.iter().map(|&vm| {
            let (guest, port) = &mut self.guests[vm as usize];
            let exit = guest.session(self.context).slice(port, slice, self.trace);
            // Their network cards are not connected.
            (exit, std::mem::take(&mut port.output))
        });
        Ok(turns.collect())
    }

    fn read(&mut self, vm: u32, addr: u64, bytes: &mut [u8]) -> Result<bool, CudaError> {
        let mut session = self.guests[vm as usize].0.session(self.context);
        Ok(session.with_ram(|ram| ram.read(addr, bytes)).is_ok())
    }

    fn write_u32(&mut self, vm: u32, addr: u64, word: u32) -> Result<bool, CudaError> {
        let mut session = self.guests[vm as usize].0.session(self.context);
        Ok(session.with_ram(|ram| ram.write_u32(addr, word)).is_ok())
    }

    fn traps(&mut self, vm: u32) -> Result<TrapLoop, CudaError> {
        Ok(TrapLoop::of(self.guests[vm as usize].0.vm()))
    }
}

impl Target for BareFleet {
    fn turn(&mut self, vms: &[u32], slice: u32) -> Result<Vec<(Exit, Vec<u8>)>, CudaError> {
        BareFleet::run_slice(self, vms, slice)
    }

    fn read(&mut self, vm: u32, addr: u64, bytes: &mut [u8]) -> Result<bool, CudaError> {
        BareFleet::read(self, vm, addr, bytes)
    }

    fn write_u32(&mut self, vm: u32, addr: u64, word: u32) -> Result<bool, CudaError> {
        BareFleet::write_u32(self, vm, addr, word)
    }

    fn traps(&mut self, vm: u32) -> Result<TrapLoop, CudaError> {
        Ok(TrapLoop::of(&self.vm(vm)?))
    }
}

/// Receives what programs print while they run.
pub trait Output {
    /// Handles text that a program printed.
    fn print(&mut self, vm: u32, text: &[u8]);
}

impl Output for Vec<u8> {
    fn print(&mut self, _: u32, text: &[u8]) {
        self.extend_from_slice(text);
    }
}

/// A program's request in `tohost`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ToHost {
    Nothing,
    Exit(u32),
    Character(u8),
    SystemCall(u64),
    Unknown,
}

impl ToHost {
    /// Decodes HTIF: 8 bits of device, 8 of command, 48 of payload.
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
    /// Loads a program from a file.
    pub fn load(path: &Path) -> Result<Program, Error> {
        Ok(load(Role::Program, path, elf::program)?)
    }

    /// Returns VMs on the CPU with these programs.
    pub fn new(programs: Vec<Program>, hardware: Hardware) -> Result<Self, Error> {
        let (fleet, programs) = fleet(programs, hardware)?;
        check_count(fleet.count, fleet.plan.memory)?;
        let base = &fleet.base;
        let context = WorkerContext::new()?;
        // A frame for every page, up to the host's free memory.
        let most = host::memory_available().0 / u64::from(FRAME_SIZE);
        let frames = (u64::from(base.ram_pages()) * u64::from(fleet.count)).min(most);
        let frames = frames.min(u64::from(u32::MAX) / 2) as u32;
        let arena = Arc::new(HostArena::new(base, frames)?);
        let guest = |vm| match Guest::new(&arena, base, fleet.stage(vm, 0), &context) {
            Ok(guest) => Ok((guest, CpuPort::default())),
            Err(_) => Err(Error::Usage("no memory for the program".into())),
        };
        let guests = (0..fleet.count).map(guest).collect::<Result<_, Error>>()?;
        Ok(Self { executor: Executor::Cpu { guests, context }, programs })
    }

    /// Returns VMs on a GPU with these programs, `lanes` VMs per warp; the best number when absent.
    /// [`Bare::into_gpu`] returns the GPU.
    pub fn new_on(
        gpu: Box<dyn Gpu>,
        lanes: Option<u32>,
        programs: Vec<Program>,
        hardware: Hardware,
    ) -> Result<Self, Error> {
        let (fleet, programs) = fleet(programs, hardware)?;
        let fleet = BareFleet::start(gpu, &fleet, lanes)?;
        Ok(Self { executor: Executor::Cuda(Box::new(fleet)), programs })
    }

    /// Returns the GPU that the programs ran on, if they did.
    pub fn into_gpu(self) -> Option<Result<Box<dyn Gpu>, BackendError>> {
        match self.executor {
            Executor::Cpu { .. } => None,
            Executor::Cuda(fleet) => Some(fleet.into_gpu().map_err(Into::into)),
        }
    }

    /// Returns how many instructions each program has retired.
    pub fn instrets(&mut self) -> Result<Vec<u64>, BackendError> {
        match &mut self.executor {
            Executor::Cpu { guests, .. } => {
                Ok(guests.iter().map(|(guest, _)| guest.vm().platform.clock.retired).collect())
            }
            Executor::Cuda(fleet) => Ok(fleet.instrets()?),
        }
    }

    /// Returns what is wrong where a program took its virtio transports for those of the other
    /// version.
    pub fn wrong_version(&mut self, vm: u32) -> Result<Option<&'static str>, BackendError> {
        let of = |state: &Vm| virtio::wrong_version(&state.platform.dev.virtio);
        Ok(match &mut self.executor {
            Executor::Cpu { guests, .. } => of(guests[vm as usize].0.vm()),
            Executor::Cuda(fleet) => of(&fleet.state(vm)?.0),
        })
    }

    /// Returns a fingerprint of the state of a program's VM, RAM included.
    pub fn digest(&mut self, vm: u32) -> Result<u64, BackendError> {
        match &mut self.executor {
            Executor::Cpu { guests, context } => {
                let session = guests[vm as usize].0.session(context);
                Ok(fingerprint(session.vm(), session.private_pages()))
            }
            Executor::Cuda(fleet) => {
                let (state, pages) = fleet.state(vm)?;
                Ok(fingerprint(&state, pages))
            }
        }
    }

    /// Runs until each program ends, `max` instructions at most, and returns how each ended.
    /// `trace` gets nothing on a GPU.
    pub fn run<T: Trace>(
        &mut self,
        max: u64,
        trace: &mut T,
        output: &mut impl Output,
    ) -> Result<Vec<End>, BackendError> {
        let Self { executor, programs } = self;
        Ok(match executor {
            Executor::Cpu { guests, context } => {
                run(&mut OnCpu { guests, context, trace }, programs, max, output)?
            }
            Executor::Cuda(fleet) => run(fleet.as_mut(), programs, max, output)?,
        })
    }

    /// Returns the words of the first program from `begin_signature` to `end_signature`, if it has
    /// them.
    pub fn signature(&mut self) -> Result<Option<Vec<u32>>, BackendError> {
        let symbol = |name| self.programs.first().and_then(|program| program.symbol(name));
        let Some((begin, end)) = symbol("begin_signature").zip(symbol("end_signature")) else {
            return Ok(None);
        };
        let words = (begin..end).step_by(4).map(u64::from);
        let words: Result<Option<_>, CudaError> = match &mut self.executor {
            Executor::Cpu { guests, context } => {
                let mut target = OnCpu { guests, context, trace: &mut NoTrace };
                words.map(|addr| target.read_u32(0, addr)).collect::<Result<Vec<_>, _>>()
            }
            Executor::Cuda(fleet) => words.map(|addr| fleet.read_u32(0, addr)).collect(),
        }
        .map(|words| words.into_iter().collect());
        Ok(words?)
    }
}

/// Returns the fleet of these programs, and the programs with the addresses that they have there.
fn fleet(mut programs: Vec<Program>, hardware: Hardware) -> Result<(Fleet, Vec<Program>), Error> {
    let Hardware { kind, memory, virtio } = hardware;
    let payloads = programs.iter().map(|program| program.payload.clone()).collect();
    let fleet = Fleet { virtio, ..Fleet::several(kind, memory, payloads)? };
    for (program, &entry) in programs.iter_mut().zip(&fleet.entries) {
        let moved = entry.wrapping_sub(program.payload.entry);
        program.symbols.iter_mut().for_each(|(_, addr)| *addr = addr.wrapping_add(moved));
    }
    Ok((fleet, programs))
}

fn run(
    target: &mut impl Target,
    programs: &[Program],
    max: u64,
    output: &mut impl Output,
) -> Result<Vec<End>, CudaError> {
    let mut ends: Vec<Option<End>> = vec![None; programs.len()];
    let mut left = max;
    while left > 0 {
        let running: Vec<u32> =
            (0..).zip(&ends).filter(|(_, end)| end.is_none()).map(|(vm, _)| vm).collect();
        if running.is_empty() {
            break;
        }
        // A power of two, so that VMs stop at its multiples on every backend.
        let slice = 1 << left.min(SLICE.into()).ilog2();
        left -= u64::from(slice);
        let turns = target.turn(&running, slice)?;
        for (vm, (exit, printed)) in running.into_iter().zip(turns) {
            let end = stopped(target, vm, exit, &printed, output)?;
            let asked = serve_host(target, vm, &programs[vm as usize], end.is_none(), output)?;
            ends[vm as usize] = asked.or(end);
        }
    }
    Ok(ends.into_iter().map(|end| end.unwrap_or(End::Limit)).collect())
}

/// Passes on what a program printed. Returns how it ended, if it has.
fn stopped(
    target: &mut impl Target,
    vm: u32,
    exit: Exit,
    printed: &[u8],
    output: &mut impl Output,
) -> Result<Option<End>, CudaError> {
    if !printed.is_empty() {
        output.print(vm, printed);
    }
    Ok(match exit.code {
        ExitCode::Budget | ExitCode::Stalled | ExitCode::Disk => None,
        ExitCode::Idle => Some(End::Stuck),
        ExitCode::PowerOff if exit.arg == 0 => Some(End::Passed),
        ExitCode::PowerOff => Some(End::Failed(exit.arg)),
        ExitCode::Reset => Some(End::Reset),
        ExitCode::NoFrame => Some(End::Faulted(Reason::NoMemory)),
        ExitCode::Fault => Some(End::Faulted(Reason::of_fault(exit.arg, target.traps(vm)?))),
    })
}

/// Polls a program's `tohost`, if it has one, and executes the request there.
fn serve_host(
    target: &mut impl Target,
    vm: u32,
    program: &Program,
    runs: bool,
    output: &mut impl Output,
) -> Result<Option<End>, CudaError> {
    let Some(tohost) = program.symbol("tohost").map(u64::from) else { return Ok(None) };
    let mut request = read(target, vm, tohost)?;
    if request != ToHost::Nothing && runs {
        // A 32-bit program writes `tohost` in two halves.
        for (exit, printed) in target.turn(&[vm], SETTLE)? {
            if let Some(end) = stopped(target, vm, exit, &printed, output)? {
                return Ok(Some(end));
            }
        }
        request = read(target, vm, tohost)?;
    }
    match request {
        ToHost::Nothing => {}
        ToHost::Exit(0) => return Ok(Some(End::Passed)),
        ToHost::Exit(n) => return Ok(Some(End::Failed(n))),
        other => {
            let fromhost = program.symbol("fromhost").map(u64::from);
            serve(target, vm, other, tohost, fromhost, output)?;
        }
    }
    Ok(None)
}

fn read(target: &mut impl Target, vm: u32, tohost: u64) -> Result<ToHost, CudaError> {
    let mut value = [0; 8];
    Ok(match target.read(vm, tohost, &mut value)? {
        true => ToHost::decode(u64::from_le_bytes(value)),
        false => ToHost::Nothing,
    })
}

/// Executes a program's request and clears it.
fn serve(
    target: &mut impl Target,
    vm: u32,
    request: ToHost,
    tohost: u64,
    fromhost: Option<u64>,
    output: &mut impl Output,
) -> Result<(), CudaError> {
    // A request with addresses outside of RAM is ignored, as an unknown one is.
    match request {
        ToHost::Character(byte) => output.print(vm, &[byte]),
        ToHost::SystemCall(at) => system_call(target, vm, at, output)?,
        _ => {}
    }
    for addr in [tohost, tohost + 4] {
        target.write_u32(vm, addr, 0)?;
    }
    if let Some(at) = fromhost {
        target.write_u32(vm, at, 1)?;
    }
    Ok(())
}

/// Executes an HTIF system call: eight 64-bit words with number and arguments, the first of which
/// becomes the result. Ignores unknown calls and those that point outside of RAM.
fn system_call(
    target: &mut impl Target,
    vm: u32,
    at: u64,
    output: &mut impl Output,
) -> Result<(), CudaError> {
    const WRITE: u32 = 64;
    let mut argument = |n: u64| target.read_u32(vm, at.saturating_add(8 * n));
    let (number, text, len) = (argument(0)?, argument(2)?, argument(3)?);
    let (Some(WRITE), Some(text), Some(len @ ..=PRINT_MAX)) = (number, text, len) else {
        return Ok(());
    };
    let mut bytes = vec![0; len as usize];
    if target.read(vm, text.into(), &mut bytes)? {
        output.print(vm, &bytes);
        target.write_u32(vm, at, len)?;
        target.write_u32(vm, at + 4, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use emu_core::trap::cause;

    use super::*;
    use crate::backend::cuda::emulated::Emulated;
    use crate::exit::Code;
    use crate::image::{LoadAddress, Payload, Segment};

    const TOHOST: u32 = 0x8000_1000;

    /// Returns the program `lui t0, 0x80001` followed by `code`, with `tohost` at 0x8000_1000.
    fn program(code: &[u32]) -> Program {
        let code = [&[0x8000_12b7], code].concat();
        let bytes: Vec<u8> = code.iter().flat_map(|w| w.to_le_bytes()).collect();
        let size = bytes.len() as u32;
        let segments = vec![
            Segment { addr: 0x8000_0000, bytes, size },
            Segment { addr: TOHOST, bytes: vec![], size: 64 },
        ];
        let payload = Payload::linked(segments, 0x8000_0000);
        let names = [("tohost", 0), ("begin_signature", 0), ("end_signature", 8)];
        let symbols = names.map(|(n, at)| (n.to_owned(), TOHOST + at)).to_vec();
        Program { payload, symbols, lacks: Vec::new() }
    }

    fn on_cpu(code: &[&[u32]]) -> Bare {
        let programs = code.iter().map(|code| program(code)).collect();
        Bare::new(programs, Hardware::virt(Size::mib(1))).unwrap()
    }

    fn on_emulated_gpu(code: &[&[u32]]) -> Bare {
        let gpu = Box::new(Emulated::new(Size::mib(64)));
        let programs = code.iter().map(|code| program(code)).collect();
        Bare::new_on(gpu, None, programs, Hardware::virt(Size::mib(1))).unwrap()
    }

    fn run(bare: &mut Bare, max: u64) -> Vec<End> {
        bare.run(max, &mut NoTrace, &mut Vec::new()).unwrap()
    }

    #[test]
    fn the_same_holds_on_an_emulated_gpu() {
        let mut bare = on_emulated_gpu(&[&[li_t1(1), SW_T1_TOHOST, LOOP]]);
        assert_eq!(run(&mut bare, 100_000), [End::Passed]);
        assert_eq!(bare.signature().unwrap(), Some(vec![1, 0]));
        assert!(bare.into_gpu().unwrap().is_ok());
    }

    #[test]
    fn programs_side_by_side_end_each_in_its_own_way_and_alike_everywhere() {
        let code: [&[u32]; 4] =
            [&[li_t1(1), SW_T1_TOHOST, LOOP], &[LOOP], &[li_t1(7), SW_T1_TOHOST, LOOP], &[0]];
        let (mut cpu, mut gpu) = (on_cpu(&code), on_emulated_gpu(&code));
        let ends = run(&mut cpu, 10_000);
        assert_eq!(run(&mut gpu, 10_000), ends);
        assert_eq!(ends[..3], [End::Passed, End::Limit, End::Failed(3)]);
        let End::Faulted(Reason::TrapLoop(traps)) = &ends[3] else { panic!("{:?}", ends[3]) };
        assert_eq!((traps.first.pc, traps.first.cause), (0x8000_0004, cause::ILLEGAL_INSN));
        let instrets = cpu.instrets().unwrap();
        assert_eq!((instrets[1], &instrets), (10_000, &gpu.instrets().unwrap()));
        for vm in 0..4 {
            assert_eq!(cpu.digest(vm).unwrap(), gpu.digest(vm).unwrap(), "{vm}");
        }
        assert_ne!(cpu.digest(0).unwrap(), cpu.digest(2).unwrap());
    }

    #[test]
    fn a_lost_gpu_is_no_fault_of_the_program() {
        let gpu = Box::new(Emulated::new(Size::mib(64)).failing_after(2));
        let programs = vec![program(&[LOOP])];
        let mut bare = Bare::new_on(gpu, None, programs, Hardware::virt(Size::mib(1))).unwrap();
        let error = bare.run(100_000, &mut NoTrace, &mut Vec::new()).unwrap_err();
        assert_eq!(Error::from(error).code(), Code::Failure);
    }

    const LOOP: u32 = 0x0000_006f;
    const SW_T1_TOHOST: u32 = 0x0062_a023;
    const SW_T2_TOHOST_HIGH: u32 = 0x0072_a223;
    const fn li_t1(n: u32) -> u32 {
        0x0000_0313 | n << 20
    }

    #[test]
    fn one_in_tohost_is_success_and_the_signature_can_be_read() {
        let mut bare = on_cpu(&[&[li_t1(1), SW_T1_TOHOST, LOOP]]);
        assert_eq!(run(&mut bare, 100_000), [End::Passed]);
        assert_eq!(bare.signature().unwrap(), Some(vec![1, 0]));
    }

    #[test]
    fn the_symbols_of_a_program_move_with_it() {
        let code = [li_t1(1), SW_T1_TOHOST, LOOP];
        let mut moved = program(&code);
        moved.payload =
            Payload { load_address: LoadAddress::Movable, ..moved.payload }.moved_by(0x8000_0000);
        moved.symbols.iter_mut().for_each(|(_, addr)| *addr = addr.wrapping_add(0x8000_0000));
        let mut bare = Bare::new(vec![moved], Hardware::virt(Size::mib(1))).unwrap();
        assert_eq!(run(&mut bare, 100_000), [End::Passed]);
    }

    #[test]
    fn an_odd_number_is_the_test_that_failed() {
        let mut bare = on_cpu(&[&[li_t1(2 * 5 + 1), SW_T1_TOHOST, LOOP]]);
        assert_eq!(run(&mut bare, 100_000), [End::Failed(5)]);
    }

    #[test]
    fn characters_are_printed_even_odd_ones() {
        const LUI_T2_CONSOLE: u32 = 0x0101_03b7;
        let code = [li_t1(u32::from(b'a')), LUI_T2_CONSOLE, SW_T1_TOHOST, SW_T2_TOHOST_HIGH, LOOP];
        let mut printed = Vec::new();
        let end = on_cpu(&[&code]).run(100_000, &mut NoTrace, &mut printed);
        assert_eq!(end.unwrap(), [End::Limit]);
        assert_eq!(printed, b"a");
    }

    #[test]
    fn a_program_without_end_runs_to_its_limit() {
        let mut bare = on_cpu(&[&[LOOP]]);
        assert_eq!(run(&mut bare, 10_001), [End::Limit]);
        assert_eq!(bare.instrets().unwrap(), [10_001]);
    }
}

//! Bare-metal programs: M-mode ELF executables that end through `tohost` (HTIF), the test finisher,
//! or semihosting, such as riscv-tests.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use emu_core::abi::{Exit, ExitCode, Vm};
use emu_core::layout::MachineKind;
use emu_core::trace::{NoTrace, Trace};

use crate::backend::cpu::{CpuPort, Guest, HostArena, WorkerContext, check_count, private_frames};
use crate::backend::cuda::bare_fleet::BareFleet;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::{Choice, CudaError};
use crate::backend::fingerprint::fingerprint;
use crate::backend::images::Images;
use crate::backend::trap_loop::TrapLoop;
use crate::backend::{BackendError, Reason};
use crate::error::Error;
use crate::image::disk::Disks;
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
/// Bytes of input that may wait for a program.
const INPUT_MAX: usize = 64 << 10;

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
    /// The program waits for input, and there is none.
    NoInput,
    /// The user left the program.
    Left,
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
            Self::NoInput => f.write_str("waits for input, of which there is no more"),
            Self::Left => f.write_str("did not end before the user left"),
            Self::Reset => f.write_str("asked for a reset"),
            Self::Faulted(reason) => write!(f, "cannot go on: {reason}"),
        }
    }
}

/// The machine that each program has.
#[derive(Clone, Debug)]
pub struct Hardware {
    /// The memory map.
    pub kind: MachineKind,
    /// Size of RAM.
    pub memory: Size,
    /// How programs find their virtio devices.
    pub virtio: Virtio,
    /// Whether semihosting requests are served.
    pub semihosting: bool,
    /// Disks, the first of which is that of the first program.
    pub disks: Option<Disks>,
}

impl Hardware {
    /// Returns a `virt` machine.
    pub const fn virt(memory: Size) -> Self {
        let (kind, virtio) = (MachineKind::Virt, Virtio::OTHER);
        Self { kind, memory, virtio, semihosting: false, disks: None }
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
    /// Queues console input for a VM.
    fn queue_input(&mut self, vm: u32, bytes: &[u8]);
    /// Returns how many bytes of console input the VM has not read.
    fn input_waiting(&self, vm: u32) -> usize;
    /// Whether console input may wake a VM that is idle.
    fn wants_input(&mut self, vm: u32) -> Result<bool, CudaError>;
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

    fn queue_input(&mut self, vm: u32, bytes: &[u8]) {
        self.guests[vm as usize].1.input.extend(bytes);
    }

    fn input_waiting(&self, vm: u32) -> usize {
        self.guests[vm as usize].1.input.len()
    }

    fn wants_input(&mut self, vm: u32) -> Result<bool, CudaError> {
        Ok(self.guests[vm as usize].0.vm().wants_input())
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

    fn queue_input(&mut self, vm: u32, bytes: &[u8]) {
        BareFleet::queue_input(self, vm, bytes);
    }

    fn input_waiting(&self, vm: u32) -> usize {
        BareFleet::input_waiting(self, vm)
    }

    fn wants_input(&mut self, vm: u32) -> Result<bool, CudaError> {
        BareFleet::wants_input(self, vm)
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

/// The host's end of programs' consoles.
pub trait Console {
    /// Handles text that a program printed.
    fn print(&mut self, vm: u32, text: &[u8]);

    /// Returns at most `max` bytes of input for a program that runs alone. It may wait for them,
    /// and has to when the program `waits`.
    fn read(&mut self, max: usize, waits: bool) -> Input {
        let _ = (max, waits);
        Input::Ended
    }
}

/// Input of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// The next bytes.
    Bytes(Vec<u8>),
    /// There are none now.
    Nothing,
    /// There will be no more.
    Ended,
    /// The user leaves the program.
    Left,
}

impl Console for Vec<u8> {
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
        check_count(&fleet)?;
        let base = &fleet.base;
        let context = WorkerContext::new()?;
        let images = Images::new(fleet.disks.as_ref());
        let arena = Arc::new(HostArena::new(base, images, private_frames(&fleet))?);
        let guest = |vm| match Guest::new(&arena, base, fleet.stage(vm, 0), &context) {
            Ok(guest) => Ok((guest, CpuPort::default())),
            Err(_) => Err(Error::Usage("no memory for the program".into())),
        };
        let guests = (0..fleet.count).map(guest).collect::<Result<_, Error>>()?;
        Ok(Self { executor: Executor::Cpu { guests, context }, programs })
    }

    /// Returns VMs on a GPU with these programs, packed as `packing` says.
    /// [`Bare::into_gpu`] returns the GPU.
    pub fn new_on(
        gpu: Box<dyn Gpu>,
        packing: Choice,
        programs: Vec<Program>,
        hardware: Hardware,
    ) -> Result<Self, Error> {
        let (fleet, programs) = fleet(programs, hardware)?;
        let fleet = BareFleet::start(gpu, &fleet, packing)?;
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

    /// Runs until each program ends, `max` instructions at most, and returns how each ended. Only a
    /// program that runs alone gets input. `trace` gets nothing on a GPU.
    pub fn run<T: Trace>(
        &mut self,
        max: u64,
        trace: &mut T,
        console: &mut impl Console,
    ) -> Result<Vec<End>, BackendError> {
        let Self { executor, programs } = self;
        Ok(match executor {
            Executor::Cpu { guests, context } => {
                run(&mut OnCpu { guests, context, trace }, programs, max, console)?
            }
            Executor::Cuda(fleet) => run(fleet.as_mut(), programs, max, console)?,
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
    let Hardware { kind, memory, virtio, semihosting, disks } = hardware;
    let payloads = programs.iter().map(|program| program.payload.clone()).collect();
    let fleet = Fleet { virtio, semihosting, disks, ..Fleet::several(kind, memory, payloads)? };
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
    console: &mut impl Console,
) -> Result<Vec<End>, CudaError> {
    let mut ends: Vec<Option<End>> = vec![None; programs.len()];
    let mut left = max;
    // Whether the program that runs alone does nothing until it gets input.
    let mut waits = false;
    while left > 0 {
        if let [end @ None] = &mut ends[..] {
            *end = pass_input_on(target, console, waits);
        }
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
            let end = stopped(target, vm, exit, &printed, console)?;
            let asked = serve_host(target, vm, &programs[vm as usize], end.is_none(), console)?;
            let end = asked.or(end);
            waits = end == Some(End::NoInput) && programs.len() == 1;
            ends[vm as usize] = if waits { None } else { end };
        }
    }
    Ok(ends.into_iter().map(|end| end.unwrap_or(End::Limit)).collect())
}

/// Passes input on to the program that runs alone. Returns how it ended, if it has: it `waits` for
/// input that never comes, or the user leaves it.
fn pass_input_on(target: &mut impl Target, console: &mut impl Console, waits: bool) -> Option<End> {
    let room = INPUT_MAX.saturating_sub(target.input_waiting(0));
    match console.read(room, waits) {
        Input::Bytes(bytes) => target.queue_input(0, &bytes),
        Input::Nothing => {}
        Input::Ended => return waits.then_some(End::NoInput),
        Input::Left => return Some(End::Left),
    }
    None
}

/// Passes on what a program printed. Returns how it ended, if it has.
fn stopped(
    target: &mut impl Target,
    vm: u32,
    exit: Exit,
    printed: &[u8],
    console: &mut impl Console,
) -> Result<Option<End>, CudaError> {
    if !printed.is_empty() {
        console.print(vm, printed);
    }
    Ok(match exit.code {
        ExitCode::Budget | ExitCode::Stalled | ExitCode::Disk => None,
        ExitCode::Idle if target.wants_input(vm)? => Some(End::NoInput),
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
    console: &mut impl Console,
) -> Result<Option<End>, CudaError> {
    let Some(tohost) = program.symbol("tohost").map(u64::from) else { return Ok(None) };
    let mut request = read(target, vm, tohost)?;
    if request != ToHost::Nothing && runs {
        // A 32-bit program writes `tohost` in two halves.
        for (exit, printed) in target.turn(&[vm], SETTLE)? {
            if let Some(end) = stopped(target, vm, exit, &printed, console)? {
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
            serve(target, vm, other, tohost, fromhost, console)?;
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
    console: &mut impl Console,
) -> Result<(), CudaError> {
    // A request with addresses outside of RAM is ignored, as an unknown one is.
    match request {
        ToHost::Character(byte) => console.print(vm, &[byte]),
        ToHost::SystemCall(at) => system_call(target, vm, at, console)?,
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
    console: &mut impl Console,
) -> Result<(), CudaError> {
    const WRITE: u32 = 64;
    let mut argument = |n: u64| target.read_u32(vm, at.saturating_add(8 * n));
    let (number, text, len) = (argument(0)?, argument(2)?, argument(3)?);
    let (Some(WRITE), Some(text), Some(len @ ..=PRINT_MAX)) = (number, text, len) else {
        return Ok(());
    };
    let mut bytes = vec![0; len as usize];
    if target.read(vm, text.into(), &mut bytes)? {
        console.print(vm, &bytes);
        target.write_u32(vm, at, len)?;
        target.write_u32(vm, at + 4, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use emu_core::trap::cause;

    use pxvm_tests::guests::{self, Guest};

    use super::*;
    use crate::backend::cuda::emulated::Emulated;
    use crate::backend::images::testing::Pattern;
    use crate::exit::Code;
    use crate::image::disk::Access;
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
        Bare::new_on(gpu, Choice::default(), programs, Hardware::virt(Size::mib(1))).unwrap()
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
        let mut bare =
            Bare::new_on(gpu, Choice::default(), programs, Hardware::virt(Size::mib(1))).unwrap();
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

    /// A console with input that comes in pieces.
    struct Pieces {
        input: Vec<Input>,
        printed: Vec<u8>,
    }

    impl Console for Pieces {
        fn print(&mut self, _: u32, text: &[u8]) {
            self.printed.extend_from_slice(text);
        }

        fn read(&mut self, max: usize, _: bool) -> Input {
            match self.input.first_mut() {
                None => Input::Ended,
                Some(Input::Bytes(bytes)) if bytes.len() > max => {
                    Input::Bytes(bytes.drain(..max).collect())
                }
                Some(_) => self.input.remove(0),
            }
        }
    }

    /// Runs a guest with input. Returns how it ended, and what it printed.
    fn with_input(bare: &mut Bare, input: &[Input]) -> (End, String) {
        let mut console = Pieces { input: input.to_vec(), printed: Vec::new() };
        let ends = bare.run(4 << 20, &mut NoTrace, &mut console).unwrap();
        (ends[0].clone(), String::from_utf8(console.printed).unwrap())
    }

    /// Returns a guest on the CPU, and on an emulated GPU.
    fn everywhere(guest: &Guest) -> [Bare; 2] {
        let program = || vec![elf::parse(&guest.elf).unwrap()];
        let memory = Size(guests::MEMORY.into());
        let hardware = Hardware { semihosting: true, ..Hardware::virt(memory) };
        let gpu = Box::new(Emulated::new(Size::mib(64)));
        [
            Bare::new(program(), hardware.clone()).unwrap(),
            Bare::new_on(gpu, Choice::default(), program(), hardware).unwrap(),
        ]
    }

    #[test]
    fn a_program_has_a_disk_alike_everywhere() {
        let guest = guests::with_disk().remove(0);
        let program = || vec![elf::parse(&guest.elf).unwrap()];
        let image = || Disks::one(Pattern::new(1 << 20), Access::CopyOnWrite);
        let memory = Size(guests::MEMORY.into());
        let hardware = || Hardware { disks: Some(image()), ..Hardware::virt(memory) };
        let gpu = Box::new(Emulated::new(Size::mib(64)));
        let mut cpu = Bare::new(program(), hardware()).unwrap();
        let mut gpu = Bare::new_on(gpu, Choice::default(), program(), hardware()).unwrap();
        for bare in [&mut cpu, &mut gpu] {
            let mut printed = Vec::new();
            let ends = bare.run(1_000_000, &mut NoTrace, &mut printed).unwrap();
            assert_eq!((ends, printed), (vec![End::Passed], b"ok\n".to_vec()));
        }
        assert_eq!(cpu.digest(0).unwrap(), gpu.digest(0).unwrap());
        let mut without = Bare::new(program(), Hardware::virt(memory)).unwrap();
        assert!(matches!(run(&mut without, 1_000_000)[..], [End::Failed(_)]));
    }

    #[test]
    fn a_program_gets_its_input_by_its_uart_and_loses_nothing() {
        let text: String = (0..5000).map(|n| char::from(b'a' + (n * n % 26) as u8)).collect();
        let pieces = [text.clone().into(), Vec::new(), b"\n!too much".to_vec()];
        let mut input = pieces.map(Input::Bytes).to_vec();
        input.insert(1, Input::Nothing);
        for mut bare in everywhere(&guests::echo()) {
            let expected = (End::Passed, text.clone() + "\n!");
            assert_eq!(with_input(&mut bare, &input), expected);
        }
        // More than may wait for it.
        let long = "x".repeat(3 * INPUT_MAX) + "!";
        let [mut cpu, _] = everywhere(&guests::echo());
        let (end, printed) = with_input(&mut cpu, &[Input::Bytes(long.clone().into())]);
        assert!(end == End::Passed && printed == long, "{end}, {} bytes", printed.len());
    }

    #[test]
    fn semihosting_gives_a_console_and_a_status_alike_everywhere() {
        let run = |mut bare: Bare, input: &[&str]| {
            let input: Vec<Input> =
                input.iter().map(|&text| Input::Bytes(text.as_bytes().to_vec())).collect();
            let (end, printed) = with_input(&mut bare, &input);
            (end, printed, bare.digest(0).unwrap())
        };
        let [cpu, gpu] = everywhere(&guests::semihosting());
        let all = run(cpu, &["one\ntwo!"]);
        assert_eq!(all.0, End::Failed(7));
        assert!(
            all.1.starts_with("What is") && all.1.ends_with("record. \none\ntwo!"),
            "{}",
            all.1
        );
        assert_eq!(run(gpu, &["one\ntwo!"]), all);
        // The program waits for each piece.
        for bare in everywhere(&guests::semihosting()) {
            let pieces = run(bare, &["one", "\n", "two!"]);
            assert_eq!((&pieces.0, &pieces.1), (&all.0, &all.1));
        }
    }

    #[test]
    fn a_program_that_waits_for_input_ends_with_the_input_or_when_it_is_left() {
        for (input, expected) in [(&[][..], End::NoInput), (&[Input::Left], End::Left)] {
            for mut bare in everywhere(&guests::semihosting()) {
                assert_eq!(with_input(&mut bare, input).0, expected);
            }
        }
        // One that no input can wake does not wait for any.
        const WFI: u32 = 0x1050_0073;
        let mut idle = on_cpu(&[&[WFI, LOOP]]);
        assert_eq!(with_input(&mut idle, &vec![Input::Nothing; 2000]).0, End::Stuck);
    }

    #[test]
    fn a_program_without_end_runs_to_its_limit() {
        let mut bare = on_cpu(&[&[LOOP]]);
        assert_eq!(run(&mut bare, 10_001), [End::Limit]);
        assert_eq!(bare.instrets().unwrap(), [10_001]);
    }
}

//! `pxvm run`: runs bare-metal programs.

mod input;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use emu_core::trace::NoTrace;
use serde::Serialize;

use self::input::ProgramInput;
use super::{gpu_for, on_cpu, printing};
use crate::bare::{Bare, Console, End, Hardware, Input};
use crate::cli::{BackendArgs, Codes, INTERRUPTED, Machine, PackingArgs, VirtioArgs, long_help};
use crate::console::plain;
use crate::error::Error;
use crate::exit::Code;
use crate::image::disk::{DiskSpec, Disks};
use crate::machine::AssembleError;
use crate::report::print_json;
use crate::stdio::{print, say};
use crate::trace::CommitLog;
use crate::units::Size;
use crate::virtio::{self, Virtio};

const EXAMPLES: &str = "Examples:\n  \
        pxvm run rv32ui-p-add\n  \
        pxvm run a.elf b.elf b.elf --backend cuda --digest\n  \
        pxvm run prog.elf --semihosting < input\n  \
        pxvm run kernel.elf --disk fs.img:rw\n  \
        pxvm run prog.elf --trace prog.log --max-instructions 1000000\n  \
        pxvm run arch-test.elf --signature out.sig";

const CODES: &Codes = &[
    (Code::Success, "every program passed, or the user left"),
    (Code::Failure, "the GPU failed, a file cannot be written"),
    (Code::Usage, "wrong usage or bad input; nothing was started"),
    (Code::Timeout, "a program did not end within --max-instructions, none failed"),
    (Code::Guest, "a program failed"),
    INTERRUPTED,
];

/// `pxvm run`.
#[derive(Debug, Args)]
#[command(
    long_about = "Run bare-metal programs: 32-bit RISC-V ELF files that start in M-mode at their \
        entry points, each in a machine of its own, side by side.\n\nA program ends by \
        writing to its symbol `tohost` (1 for success, 2*n+1 for failure n; HTIF characters are \
        printed) or to the test finisher at 0x100000, or, with --semihosting, by the exit of its C \
        library.\n\nA single program has its console here: standard input goes to its UART. On a \
        terminal every key does, and Ctrl-A x leaves (Ctrl-A h helps). Several programs get no \
        input.",
    after_help = EXAMPLES,
    after_long_help = long_help(EXAMPLES, CODES)
)]
pub struct Run {
    /// The programs; machine 0 runs the first, machine 1 the second, ...
    #[arg(value_name = "ELF", required = true)]
    pub programs: Vec<PathBuf>,
    /// Print how each machine ended, with a fingerprint of its state and of the memory that it has
    /// written: the same wherever it runs, and whatever runs beside it
    #[arg(long)]
    pub digest: bool,
    /// Print one JSON object, with the programs' output in it
    #[arg(long)]
    pub json: bool,
    /// Write a commit log in Spike's format, one line an instruction (one program only)
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write the words from begin_signature to end_signature, one line each (one program only)
    #[arg(long, value_name = "FILE")]
    pub signature: Option<PathBuf>,
    /// Stop each program after this many instructions (exit code 3) [default: 1000000000; none
    /// while its input is typed]
    #[arg(long, value_name = "N")]
    pub max_instructions: Option<u64>,
    /// Serve semihosting requests, as C libraries for bare-metal programs make them: console, exit
    /// and time, no files; and newlib's exit, read and write by `ecall`
    #[arg(long)]
    pub semihosting: bool,
    /// Where they run.
    #[command(flatten)]
    pub backend: BackendArgs,
    /// How they are packed on a GPU.
    #[command(flatten)]
    pub packing: PackingArgs,
    /// RAM of each machine
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub memory: Size,
    /// Disk of each machine, as for `pxvm boot`
    #[arg(long, value_name = "FILE[:OPTION]")]
    pub disk: Option<DiskSpec>,
    /// Memory map
    #[arg(long, value_enum, default_value_t = Machine::Virt)]
    pub machine: Machine,
    /// Their virtio devices.
    #[command(flatten)]
    pub virtio: VirtioArgs,
}

/// Instructions that a program may execute when nobody says how many.
const INSTRUCTIONS_MAX: u64 = 1_000_000_000;
/// Longest line that is printed in one piece beside those of other programs.
const LINE_MAX: usize = 1024;
/// Output of a program that is kept for the report.
const KEPT_MAX: usize = 1 << 20;

/// One VM in the report.
#[derive(Debug, Serialize)]
struct Line {
    id: usize,
    program: String,
    passed: bool,
    /// How the program ended.
    end: String,
    instructions: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// Output of the program; bytes that are not text are replaced.
    output: String,
}

#[derive(Debug, Serialize)]
struct Report {
    backend: &'static str,
    vms: Vec<Line>,
}

/// Runs bare-metal programs.
pub fn run(args: Run) -> Result<Code, Error> {
    let (kind, memory, semihosting) = (args.machine.into(), args.memory, args.semihosting);
    let virtio = Virtio::new(kind, virtio::Guest::Other, &args.virtio.into());
    let virtio = virtio.map_err(AssembleError::from)?;
    let count = args.programs.len() as u32;
    let disks = args.disk.as_ref().map(|spec| Disks::open(spec, count)).transpose()?;
    let hardware = Hardware { kind, memory, virtio, semihosting, disks };
    let alone = args.programs.len() == 1;
    if !alone && (args.trace.is_some() || args.signature.is_some()) {
        return Err(Error::Usage("--trace and --signature are for one program".into()));
    }
    let programs = args.programs.iter().map(|path| Bare::load(path)).collect::<Result<_, _>>()?;
    let (backend, mut bare) = match gpu_for(args.backend)? {
        None => {
            on_cpu(None, Some(&args.packing))?;
            ("cpu", Bare::new(programs, hardware)?)
        }
        Some(_) if args.trace.is_some() => {
            return Err(Error::Usage("--trace needs --backend cpu".into()));
        }
        Some(gpu) => ("cuda", Bare::new_on(gpu, args.packing.choice(), programs, hardware)?),
    };
    let input = if alone { Some(ProgramInput::new(args.json)?) } else { None };
    let max = match args.max_instructions {
        Some(max) => max,
        None if input.as_ref().is_some_and(ProgramInput::is_typed) => u64::MAX,
        None => INSTRUCTIONS_MAX,
    };
    let mut shown = Shown::new(&args, input);
    // If the trace file cannot be written, the program continues, and its end is reported first.
    let (ends, traced) = match &args.trace {
        None => (bare.run(max, &mut NoTrace, &mut shown), Ok(())),
        Some(path) => {
            let mut log = CommitLog::new(BufWriter::new(create(path)?));
            let ends = bare.run(max, &mut log, &mut shown);
            (ends, log.finish().map(drop).map_err(|e| cannot_write(path, e)))
        }
    };
    let outputs = shown.finish();
    let ends = ends?;
    let signed = match &args.signature {
        None => Ok(()),
        Some(path) => sign(&mut bare, &args.programs[0], path),
    };

    for id in (0..).zip(&ends).filter(|(_, end)| **end == End::Limit).map(|(id, _)| id) {
        if let Some(what) = bare.wrong_version(id)? {
            say(&format!("pxvm: vm{id} {what}"));
        }
    }
    let instrets = bare.instrets()?;
    let mut lines = Vec::with_capacity(ends.len());
    for (id, ((end, instructions), output)) in ends.iter().zip(instrets).zip(outputs).enumerate() {
        let digest = match args.digest {
            true => Some(format!("{:016x}", bare.digest(id as u32)?)),
            false => None,
        };
        let program = args.programs[id].display().to_string();
        let (passed, end) = (*end == End::Passed, end.to_string());
        lines.push(Line { id, program, passed, end, instructions, digest, output });
    }
    let code = worst(&ends);
    if args.json {
        print_json(&Report { backend, vms: lines }).map_err(printing)?;
    } else if !alone || args.digest {
        let mut text = String::new();
        for Line { id, program, end, instructions, digest, .. } in &lines {
            let digest = digest.as_ref().map(|d| format!(", digest {d}")).unwrap_or_default();
            text += &format!("vm{id}: {program} {end}, {instructions} instructions{digest}\n");
        }
        print(text.as_bytes()).map_err(printing)?;
    } else if let [Line { end, instructions, passed: false, .. }] = &lines[..] {
        say(&format!("pxvm: the program {end}, after {instructions} instructions"));
    }
    traced.and(signed).map(|()| code)
}

/// Writes the signature of the only program to a file.
fn sign(bare: &mut Bare, program: &Path, path: &Path) -> Result<(), Error> {
    let words = bare.signature()?.ok_or_else(|| {
        let program = program.display();
        Error::Usage(format!("program {program} has no begin_signature and end_signature"))
    })?;
    let mut out = BufWriter::new(create(path)?);
    let lines = words.iter().try_for_each(|word| writeln!(out, "{word:08x}"));
    lines.and_then(|()| out.flush()).map_err(|e| cannot_write(path, e))
}

/// Returns the worst exit code: a program that failed outweighs one that did not end.
fn worst(ends: &[End]) -> Code {
    let all = |good: &[End]| ends.iter().all(|end| good.contains(end));
    match () {
        () if all(&[End::Passed]) || all(&[End::Left]) => Code::Success,
        () if all(&[End::Passed, End::Limit]) => Code::Timeout,
        () => Code::Guest,
    }
}

/// Prints the programs' output at once, so that all output of one that hangs is seen: as it comes
/// from a single program, in lines with the VM's name from several.
struct Shown {
    json: bool,
    alone: bool,
    /// Output of each program: all of it for the report, else the incomplete last line.
    kept: Vec<Vec<u8>>,
    /// Input of a program that runs alone.
    input: Option<ProgramInput>,
}

impl Shown {
    fn new(args: &Run, input: Option<ProgramInput>) -> Self {
        let count = args.programs.len();
        Self { json: args.json, alone: count == 1, kept: vec![Vec::new(); count], input }
    }

    /// Prints the rest.
    fn finish(mut self) -> Vec<String> {
        if !self.json {
            for vm in 0..self.kept.len() {
                self.lines(vm, true);
            }
        }
        self.kept.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    /// Prints the complete lines, or everything.
    fn lines(&mut self, vm: usize, all: bool) {
        let kept = &mut self.kept[vm];
        let whole = match kept.iter().rposition(|&byte| byte == b'\n') {
            _ if all || kept.len() > LINE_MAX => kept.len(),
            end => end.map_or(0, |at| at + 1),
        };
        let text: Vec<u8> = kept.drain(..whole).collect();
        let mut shown = String::new();
        for line in plain::lines(&text) {
            shown += &format!("vm{vm}| {line}\n");
        }
        out(shown.as_bytes());
    }
}

fn out(bytes: &[u8]) {
    // The programs continue without the output.
    let _ = print(bytes);
}

impl Console for Shown {
    fn print(&mut self, vm: u32, text: &[u8]) {
        if self.alone && !self.json {
            return out(text);
        }
        let kept = &mut self.kept[vm as usize];
        if self.json {
            let room = KEPT_MAX - kept.len().min(KEPT_MAX);
            kept.extend_from_slice(&text[..text.len().min(room)]);
        } else {
            kept.extend_from_slice(text);
            self.lines(vm as usize, false);
        }
    }

    fn read(&mut self, max: usize, waits: bool) -> Input {
        self.input.as_mut().map_or(Input::Ended, |input| input.read(max, waits))
    }
}

fn create(path: &Path) -> Result<File, Error> {
    File::create(path).map_err(|e| cannot_write(path, e))
}

fn cannot_write(path: &Path, source: io::Error) -> Error {
    Error::io(format!("write {}", path.display()), source)
}

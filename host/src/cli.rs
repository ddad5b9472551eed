//! The command line: subcommands, options and help texts, with clap.

mod client;

pub use client::{Act, Add, Console, Exec, Ids, Logs, Ps, Which};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, ValueEnum};
use emu_core::layout::MachineKind;

use crate::api::access::TOKEN_MIN;
use crate::backend::ClockSource;
use crate::console::ready::ReadyPattern;
use crate::engine::Until;
use crate::exit::{self, Code};
use crate::machine::{GuestOptions, Link, Macs};
use crate::net::Publish;
use crate::net::addresses::Subnet;
use crate::net::switch::Rate;
use crate::net::tap;
use crate::net::user::HostPorts;
use crate::units::Size;

const EXAMPLES: &str = "Examples:\n  \
        pxvm boot                                  one machine, its console on this terminal\n  \
        pxvm boot --count 64 --until ready --json  64 machines, until each one serves\n  \
        pxvm doctor                                what this host has, and what to do about it\n\n\
        `pxvm help COMMAND` tells more.";

const BOOT_EXAMPLES: &str = "Examples:\n  \
        pxvm boot                                         one machine on this terminal\n  \
        pxvm boot --count 4 --until ready                 four, until they serve\n  \
        pxvm boot --count 64 --until ready --timeout 120 --json\n  \
        echo 'cat /proc/cpuinfo; poweroff' | pxvm boot    a script for one machine\n  \
        pxvm boot --count 8 --publish 4000:80             curl http://127.0.0.1:4003/ asks vm3\n  \
        pxvm boot --count 8 --net tap --pcap run.pcapng   vm3 is 10.77.0.5; its packets are recorded\n  \
        pxvm boot --count 16 --dashboard                  sixteen in the browser\n  \
        pxvm boot --machine semu --until ready            semu's memory map\n  \
        pxvm boot --firmware fw_dynamic.bin               OpenSBI in M-mode\n  \
        pxvm boot --kernel Image --initrd root.cpio.gz --append 'ip=off debug'\n  \
        pxvm boot --rom root.cramfs                       another root file system in ROM";

const RUN_EXAMPLES: &str = "Examples:\n  \
        pxvm run rv32ui-p-add\n  \
        pxvm run a.elf b.elf b.elf --backend cuda --digest\n  \
        pxvm run prog.elf --trace prog.log --max-instructions 1000000\n  \
        pxvm run arch-test.elf --signature out.sig";

const BENCH_EXAMPLES: &str = "Examples:\n  \
        pxvm bench                                       what this machine can do\n  \
        pxvm bench --workload compute --count 256,8448 --packing auto,1,8,32\n  \
        pxvm bench --backend cpu --count 1,64 --packing 1,2 --json";

const CONFORM_EXAMPLES: &str = "Examples:\n  \
        pxvm conform riscv-tests/isa\n  \
        pxvm conform isa/rv32ui-p-add isa/rv32ui-v-add --json";

const DTB_EXAMPLES: &str = "Examples:\n  \
        pxvm dtb                          the default machine's tree, as source\n  \
        pxvm dtb --machine semu --blob semu.dtb";

const COMPLETIONS_EXAMPLES: &str = "Example:\n  \
        pxvm completions bash > ~/.local/share/bash-completion/completions/pxvm";

const MAN_EXAMPLES: &str = "Examples:\n  \
        pxvm man | man -l -\n  \
        pxvm man --dir ~/.local/share/man/man1";

/// Exit codes of a command, with their meanings.
type Codes = [(Code, &'static str)];

const INTERRUPTED: (Code, &str) = (Code::Interrupted, "ended by Ctrl-C, SIGTERM or the like");

const ALL_CODES: &Codes = &[
    (Code::Success, "it did what was asked for"),
    (Code::Failure, "anything not named here"),
    (Code::Usage, "wrong usage or bad input; nothing was started"),
    (Code::Timeout, "time was up first"),
    (Code::Guest, "a guest failed, a test failed"),
    INTERRUPTED,
];

const BOOT_CODES: &Codes = &[
    (Code::Success, "every machine met --until, or the user left"),
    (Code::Failure, "the backend failed, a file cannot be written"),
    (Code::Usage, "wrong usage or bad input; nothing was started"),
    (Code::Timeout, "--timeout expired first"),
    (Code::Guest, "a machine faulted, failed, or ended too early"),
    INTERRUPTED,
];

const RUN_CODES: &Codes = &[
    (Code::Success, "every program passed"),
    (Code::Failure, "the GPU failed, a file cannot be written"),
    (Code::Usage, "wrong usage or bad input; nothing was started"),
    (Code::Timeout, "a program did not end within --max-instructions, none failed"),
    (Code::Guest, "a program failed"),
    INTERRUPTED,
];

const CONFORM_CODES: &Codes = &[
    (Code::Success, "every test passed or was skipped"),
    (Code::Failure, "the GPU failed"),
    (Code::Usage, "wrong usage, or no tests in what was given"),
    (Code::Guest, "a test failed"),
    INTERRUPTED,
];

const BENCH_CODES: &Codes = &[
    (Code::Success, "everything that fits was measured"),
    (Code::Failure, "the backend failed"),
    (Code::Usage, "wrong usage or bad input; nothing was started"),
    (Code::Timeout, "a line took longer than --timeout"),
    (Code::Guest, "a guest failed or came to a wrong result"),
    INTERRUPTED,
];

const PLAIN_CODES: &Codes = &[
    (Code::Success, "done"),
    (Code::Failure, "a file cannot be read or written"),
    (Code::Usage, "wrong usage or bad input"),
    INTERRUPTED,
];

/// Returns the end of a command's `--help`: examples and exit codes.
fn long_help(examples: &str, meanings: &Codes) -> String {
    format!("{examples}\n\n{}", exit::help(meanings))
}

/// `pxvm` and its options.
#[derive(Debug, Parser)]
#[command(
    name = "pxvm",
    version,
    about = "A fleet of real RISC-V Linux machines",
    long_about = "Runs one or many RISC-V (rv32ima) Linux machines.\n\n\
        The guest image is built once by `buildroot/build`; `pxvm doctor` tells what is missing.",
    after_help = EXAMPLES,
    after_long_help = long_help(EXAMPLES, ALL_CODES),
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Say more on standard error (twice: much more); PXVM_LOG takes a tracing filter
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub subcommand: Subcommand,
}

/// What `pxvm` can do.
#[derive(Debug, clap::Subcommand)]
pub enum Subcommand {
    /// Boot one or many Linux machines
    Boot(Box<Boot>),
    /// List the machines of a running fleet
    Ps(Ps),
    /// Go to the console of a machine of a running fleet
    Console(Console),
    /// Run a command in the shell of a machine
    Exec(Exec),
    /// Print what a machine has said
    Logs(Logs),
    /// Let machines stand still
    Pause(Act),
    /// Let machines go on
    Resume(Act),
    /// Start machines from their first instruction, whatever they do
    Reset(Act),
    /// End machines and give their memory back to the fleet
    Stop(Act),
    /// Start more machines in a running fleet
    Add(Add),
    /// Run bare-metal programs (M-mode ELF)
    Run(Run),
    /// Run riscv-tests and count
    Conform(Conform),
    /// Measure how fast fleets run here
    Bench(Bench),
    /// Show the device tree of a machine
    Dtb(Dtb),
    /// List the guest images in the cache
    Images(Images),
    /// Tell what this host has, what is missing, and what to do about it; compile for its GPU
    Doctor(Doctor),
    /// Print a shell's completion script
    Completions(Completions),
    /// Print the manual page, or write all of them to a folder
    Man(Man),
}

/// Which machine, and what is in it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct Guest {
    /// Kernel: RISC-V Image (plain, gzip, xz, zstd) or ELF [default: the image in the cache]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial root file system: cpio (plain, gzip, xz, zstd) [default: none with --kernel or
    /// --rom; else the one in the cache, where the machine cannot have it in ROM]
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// ROM that all machines share, up to 64 MiB; without --initrd it holds the root file system,
    /// a cramfs [default: none with --kernel, --initrd or --dtb, else the one in the cache]
    #[arg(long, value_name = "FILE")]
    pub rom: Option<PathBuf>,
    /// Device tree blob to use instead of the machine's own (see `pxvm dtb`)
    #[arg(long, value_name = "FILE")]
    pub dtb: Option<PathBuf>,
    /// Add to the kernel's command line; words replace defaults that they contradict (`pxvm dtb`
    /// shows the result)
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true)]
    #[arg(allow_hyphen_values = true)]
    pub append: String,
    /// RAM of each machine
    #[arg(long, value_name = "SIZE", default_value = "24M")]
    pub memory: Size,
    /// Memory map: that of QEMU's virt, or that of semu
    #[arg(long, value_enum, default_value_t = Machine::Virt)]
    pub machine: Machine,
    /// M-mode firmware instead of the built-in SBI: OpenSBI's fw_dynamic (or fw_jump, which wants
    /// --memory 64M), raw or ELF; the kernel goes 4 MiB above it
    #[arg(long, value_name = "FILE")]
    pub firmware: Option<PathBuf>,
    /// Disk image (virtio-blk); all machines read it, what each writes is its own and is lost
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// All randomness of the fleet comes from this number; machine I has its own part of it
    /// [default: boot: drawn, printed and reported; 0 with --clock instret and elsewhere]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl Guest {
    /// The same for the library.
    pub fn options(self, count: u32, clock: ClockSource) -> GuestOptions {
        GuestOptions {
            count,
            kind: self.machine.into(),
            memory: self.memory,
            kernel: self.kernel,
            initrd: self.initrd,
            rom: self.rom,
            firmware: self.firmware,
            dtb: self.dtb,
            disk: self.disk,
            append: self.append,
            seed: self.seed.unwrap_or(0),
            host_time: clock == ClockSource::Host,
            macs: Macs::Same,
            link: Link::Up,
        }
    }
}

/// `pxvm boot`.
#[derive(Debug, Args)]
#[command(
    long_about = "Boot one or many Linux machines.\n\n\
        One machine has its console here: on a terminal every key goes to the guest, and Ctrl-A x \
        leaves (Ctrl-A h helps); otherwise standard input is passed on when the guest is ready, \
        or after 5 seconds. Several machines, or --json, have one log file each, and a line on \
        standard error tells how they do.",
    after_help = BOOT_EXAMPLES,
    after_long_help = long_help(BOOT_EXAMPLES, BOOT_CODES)
)]
pub struct Boot {
    /// Number of machines; machine I is the host vmI
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    pub count: u32,
    /// Machines that there is room for; those above --count are added while the fleet runs
    /// [default: --count]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    pub capacity: Option<u32>,
    /// How the fleet is seen and steered.
    #[command(flatten)]
    pub control: Controlling,
    /// The machines.
    #[command(flatten)]
    pub guest: Guest,
    /// How the machines are connected.
    #[command(flatten)]
    pub network: Networking,
    /// How the machines are run.
    #[command(flatten)]
    pub running: Running,
}

/// How a fleet is seen and steered while it runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Control")]
pub struct Controlling {
    /// Serve the dashboard and the control API at 127.0.0.1:8080, or the next free port; without
    /// --until the fleet runs until Ctrl-C
    #[arg(long)]
    pub dashboard: bool,
    /// The same at this address; one that is not of loopback asks clients for a token
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// The token, at least 16 characters [default: made up and printed, where one is needed]
    #[arg(long, value_name = "TOKEN", env = "PXVM_TOKEN", hide_env_values = true)]
    #[arg(value_parser = token)]
    pub token: Option<String>,
    /// The fleet's name, for `pxvm ps --fleet NAME` and such [default: fleet-PID]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

fn token(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.len() >= TOKEN_MIN && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Err(format!("a token has {TOKEN_MIN} or more letters, digits, - and _"))
}

/// How machines are connected to the outside.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct Networking {
    /// What the machines' network cards are connected to: nothing; published ports of this host
    /// (needs no privileges); or an interface of this host, with an address for each machine
    /// [default: user; none with --backend lockstep]
    #[arg(long, value_name = "none|user|tap[=NAME]")]
    pub net: Option<NetChoice>,
    /// Port HOST + I of 127.0.0.1 leads to port GUEST of machine I (may be given several times)
    #[arg(long, value_name = "HOST:GUEST")]
    pub publish: Vec<Publish>,
    /// Requests to this port of 127.0.0.1 go to port 80 of the machine they name:
    /// `http://vm7.localhost:PORT/`
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub publish_http: Option<u16>,
    /// Ports of 127.0.0.1 that machines reach at their gateway, 10.0.2.2; not those of this fleet
    /// itself [default: none]
    #[arg(long, value_name = "PORTS", default_value = "", hide_default_value = true)]
    #[arg(value_parser = host_ports)]
    pub net_host_ports: HostPorts,
    /// Hardware addresses: the same in all machines, which so are identical, or one each
    #[arg(long, value_enum, default_value_t = NetMac::Same)]
    pub net_mac: NetMac,
    /// Machines may talk to each other, each at its address of --net-subnet
    #[arg(long)]
    pub net_mesh: bool,
    /// Addresses of the machines as others see them: the host has the first, machine I that plus
    /// 1 + I
    #[arg(long, value_name = "NETWORK", default_value = Subnet::DEFAULT)]
    pub net_subnet: Subnet,
    /// Bits that each machine may send in a second, like 10M for 10 million [default: no limit]
    #[arg(long, value_name = "RATE")]
    pub net_rate: Option<Rate>,
    /// Record what machines send and receive, as pcapng; a named pipe needs a reader first
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// Record these machines only
    #[arg(long, value_name = "I,...", value_delimiter = ',', requires = "pcap")]
    pub pcap_vm: Vec<u32>,
}

fn host_ports(text: &str) -> Result<HostPorts, String> {
    if text.is_empty() { Ok(HostPorts::default()) } else { text.parse() }
}

/// `--net`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NetChoice {
    /// Nothing.
    None,
    /// Published ports of this host; needs no privileges.
    User,
    /// An interface of this host, of this name, with an address for each machine.
    Tap(String),
}

impl FromStr for NetChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "none" => Ok(Self::None),
            None if text == "user" => Ok(Self::User),
            None if text == "tap" => Ok(Self::Tap(tap::DEFAULT_NAME.into())),
            Some(("tap", name)) => Ok(Self::Tap(name.into())),
            _ => Err("it is none, user, tap or tap=NAME".into()),
        }
    }
}

/// `--net-mac`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum NetMac {
    /// All have one
    Same,
    /// Each has its own
    Each,
}

impl From<NetMac> for Macs {
    fn from(mac: NetMac) -> Self {
        match mac {
            NetMac::Same => Self::Same,
            NetMac::Each => Self::Each,
        }
    }
}

/// Smallest size of a console log before it is rotated.
const LOG_MIN: Size = Size(64 << 10);

/// Largest number of VMs of a fleet; the host's memory usually allows fewer.
const COUNT_MAX: i64 = 1_000_000;

/// How a fleet is run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
pub struct Running {
    /// What runs the machines; auto takes the best that is there
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,
    /// Which GPU, as nvidia-smi counts them [default: 0]
    #[arg(long, value_name = "N")]
    pub device: Option<u32>,
    /// Machines that share a warp of the GPU [default: chosen for each launch]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub lanes: Option<u32>,
    /// Guest time: the host's (idle guests sleep), or retired instructions (the same in every
    /// run; idle guests skip to their next timer)
    #[arg(long, value_enum, default_value_t = Clock::Host)]
    pub clock: Clock,
    /// Host threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Write each console to DIR/vmI.log [default for several machines:
    /// ~/.local/state/pxvm/TIME]
    #[arg(long, value_name = "DIR")]
    pub console_dir: Option<PathBuf>,
    /// Largest size of such a file; what came before it is kept in DIR/vmI.log.1, up to as much
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = log_size)]
    pub console_max: Size,
    /// End when every machine was ready, when every one has powered off, or only by Ctrl-C
    /// [default: halt; never with --dashboard or --listen]
    #[arg(long, value_enum)]
    pub until: Option<UntilChoice>,
    /// A machine is ready when a line of its console matches this regular expression
    #[arg(long, value_name = "REGEX", default_value = ReadyPattern::DEFAULT)]
    pub ready_pattern: String,
    /// Give up after this many seconds (exit code 3)
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Print one JSON object on standard output at the end
    #[arg(long)]
    pub json: bool,
}

fn log_size(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if size < LOG_MIN {
        return Err(format!("it must be {LOG_MIN} or more"));
    }
    Ok(size)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if seconds <= 0.0 {
        return Err("it must be more than zero".into());
    }
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

/// `--machine`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Machine {
    /// RAM at 0x8000_0000, as QEMU's virt
    Virt,
    /// RAM at 0, as the semu emulator
    Semu,
}

impl From<Machine> for MachineKind {
    fn from(machine: Machine) -> Self {
        match machine {
            Machine::Virt => Self::Virt,
            Machine::Semu => Self::Semu,
        }
    }
}

/// `--backend`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum BackendChoice {
    /// The best that is there
    Auto,
    /// The host's processors
    Cpu,
    /// An NVIDIA GPU
    Cuda,
    /// Both, compared after every slice (boot only)
    Lockstep,
}

/// Where a bare-metal program runs.
#[derive(Clone, Copy, Debug, Args)]
pub struct Where {
    /// What runs it; auto is the CPU
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,
    /// Which GPU, as nvidia-smi counts them [default: 0]
    #[arg(long, value_name = "N")]
    pub device: Option<u32>,
}

/// `--clock`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Clock {
    /// The host's clock
    Host,
    /// Retired instructions
    Instret,
}

impl From<Clock> for ClockSource {
    fn from(clock: Clock) -> Self {
        match clock {
            Clock::Host => Self::Host,
            Clock::Instret => Self::Instret,
        }
    }
}

/// `--until`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum UntilChoice {
    /// Every machine was ready
    Ready,
    /// Every machine has powered off
    Halt,
    /// Ctrl-C
    Never,
}

impl From<UntilChoice> for Until {
    fn from(until: UntilChoice) -> Self {
        match until {
            UntilChoice::Ready => Self::Ready,
            UntilChoice::Halt => Self::Halt,
            UntilChoice::Never => Self::Never,
        }
    }
}

/// `pxvm run`.
#[derive(Debug, Args)]
#[command(
    long_about = "Run bare-metal programs: 32-bit RISC-V ELF files that start in M-mode at their \
        entry points, each in a machine of its own, side by side.\n\nA program ends by \
        writing to its symbol `tohost` (1 for success, 2*n+1 for failure n; HTIF characters are \
        printed) or to the test finisher at 0x100000.",
    after_help = RUN_EXAMPLES,
    after_long_help = long_help(RUN_EXAMPLES, RUN_CODES)
)]
pub struct Run {
    /// The programs; machine I runs the one at place I, from 0
    #[arg(value_name = "ELF", required = true)]
    pub programs: Vec<PathBuf>,
    /// Tell of each machine's end, with a fingerprint of its whole state: the same wherever it
    /// runs, and whatever runs beside it
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
    /// Give each up after this many instructions (exit code 3)
    #[arg(long, value_name = "N", default_value_t = 1_000_000_000)]
    pub max_instructions: u64,
    /// Where they run.
    #[command(flatten)]
    pub place: Where,
    /// Machines that share a warp of the GPU [default: by their number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub lanes: Option<u32>,
    /// RAM of each machine
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub memory: Size,
    /// Memory map
    #[arg(long, value_enum, default_value_t = Machine::Virt)]
    pub machine: Machine,
}

/// `pxvm conform`.
#[derive(Debug, Args)]
#[command(
    long_about = "Run riscv-tests and count what passes.\n\n\
        Folders are searched for files named rv32{ui,um,ua,si,mi}-{p,v}-NAME; files are run \
        whatever their name. Tests of other extensions (rv32uc, rv32uf, ...) are listed as \
        skipped.",
    after_help = CONFORM_EXAMPLES,
    after_long_help = long_help(CONFORM_EXAMPLES, CONFORM_CODES)
)]
pub struct Conform {
    /// Test files, or folders with test files
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Print one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
    /// Where they run.
    #[command(flatten)]
    pub place: Where,
    /// Instructions that each test has
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    pub max_instructions: u64,
    /// Host threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// What a fleet of [`Bench`] does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Linux, from reset until every machine is ready
    Boot,
    /// A loop of integer arithmetic, loads and stores
    Compute,
    /// Booted machines that wait, under the host's clock
    Idle,
}

/// How many VMs share what runs them: a number, or `auto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct Packing(pub Option<u32>);

fn packing(text: &str) -> Result<Packing, String> {
    match text.parse() {
        _ if text == "auto" => Ok(Packing(None)),
        Ok(n @ 1..=1024) => Ok(Packing(Some(n))),
        _ => Err("it is `auto`, or a number from 1 to 32 (CPU: 1024)".into()),
    }
}

/// `pxvm bench`.
#[derive(Debug, Args)]
#[command(
    long_about = "Measure how fast fleets run here: each workload with each number of machines \
        and each packing, one line each.\n\n\
        `compute` checks each machine's result. What does not fit, or takes too long, is a line \
        that says so.",
    after_help = BENCH_EXAMPLES,
    after_long_help = long_help(BENCH_EXAMPLES, BENCH_CODES)
)]
pub struct Bench {
    /// What the machines do
    #[arg(long, value_enum, value_name = "WORKLOAD,...", value_delimiter = ',')]
    #[arg(default_value = "boot,compute,idle")]
    pub workload: Vec<Workload>,
    /// Numbers of machines [default: 1,256,8448 on a GPU, 1,16,64 on a CPU]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    pub count: Vec<u32>,
    /// Machines that share a warp of the GPU, 1 to 32; on a CPU, host threads
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = packing)]
    #[arg(default_value = "auto")]
    pub packing: Vec<Packing>,
    /// What runs the machines; auto takes the best that is there
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,
    /// Which GPU, as nvidia-smi counts them [default: 0]
    #[arg(long, value_name = "N")]
    pub device: Option<u32>,
    /// How long `idle` is looked at
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "5")]
    pub idle_seconds: Duration,
    /// Longest that a line may take (exit code 3)
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "120")]
    pub timeout: Duration,
    /// A machine is ready when a line of its console matches this regular expression
    #[arg(long, value_name = "REGEX", default_value = ReadyPattern::DEFAULT)]
    pub ready_pattern: String,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
    /// The machines of `boot` and `idle`.
    #[command(flatten)]
    pub guest: Guest,
}

/// `pxvm dtb`.
#[derive(Debug, Args)]
#[command(after_help = DTB_EXAMPLES, after_long_help = long_help(DTB_EXAMPLES, PLAIN_CODES))]
pub struct Dtb {
    /// The machine.
    #[command(flatten)]
    pub guest: Guest,
    /// Which machine of a fleet
    #[arg(long, value_name = "I", default_value_t = 0)]
    pub vm: u32,
    /// Write the blob to FILE instead of printing source
    #[arg(long, value_name = "FILE")]
    pub blob: Option<PathBuf>,
}

/// `pxvm images`.
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(PLAIN_CODES))]
pub struct Images {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `pxvm doctor`.
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(PLAIN_CODES))]
pub struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `pxvm completions`.
#[derive(Debug, Args)]
#[command(
    after_help = COMPLETIONS_EXAMPLES,
    after_long_help = long_help(COMPLETIONS_EXAMPLES, PLAIN_CODES)
)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `pxvm man`.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES, after_long_help = long_help(MAN_EXAMPLES, PLAIN_CODES))]
pub struct Man {
    /// Write pxvm.1 and one page for each command to this folder
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn boot(args: &[&str]) -> Result<Boot, clap::Error> {
        let args = ["pxvm", "boot"].iter().chain(args);
        Cli::try_parse_from(args).map(|cli| match cli.subcommand {
            Subcommand::Boot(boot) => *boot,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn boot_has_sensible_defaults() {
        let boot = boot(&[]).unwrap();
        assert_eq!((boot.count, boot.guest.memory), (1, Size::mib(24)));
        assert_eq!(boot.running.until, None);
        assert_eq!(boot.running.clock, Clock::Host);
    }

    #[test]
    fn boot_takes_all_its_options() {
        let line = "--count 64 --kernel k --initrd i --rom r --dtb d --append -x --memory 32M \
            --machine semu --firmware f --disk q --backend cpu --clock instret --threads 2 \
            --console-dir c --until ready --ready-pattern ^up --timeout 1.5 --json --seed 9 \
            --net tap=p0 --net-mesh --net-subnet 10.9.0.0/16 --net-rate 10M \
            --pcap c.pcapng --pcap-vm 0,3 --publish 4000:80 --publish 5000:22 --publish-http 8080 \
            --net-host-ports 8000,9000-9010 --net-mac each --capacity 80 --dashboard \
            --listen 127.0.0.1:9000 --token 0123456789abcdef --name lab";
        let boot = boot(&line.split_ascii_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!((boot.count, boot.guest.seed), (64, Some(9)));
        assert_eq!(boot.guest.append, "-x");
        assert_eq!(boot.running.timeout, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            &["--count", "0"][..],
            &["--count", "99999999999"],
            &["--memory", "lots"],
            &["--timeout", "-1"],
            &["--timeout", "nan"],
            &["--threads", "0"],
            &["--machine", "pdp11"],
            &["--net", "wifi"],
            &["--net", "user=x"],
            &["--net-subnet", "10.77.0.1/16"],
            &["--net-rate", "0"],
            &["--net-rate", "10T"],
            &["--pcap-vm", "1"],
            &["--publish", "80"],
            &["--publish", "4000:0"],
            &["--publish-http", "0"],
            &["--net-host-ports", "9000-8000"],
            &["--net-host-ports", "x"],
            &["--capacity", "0"],
            &["--listen", "8080"],
            &["--token", "short"],
            &["--token", "with spaces in between"],
        ] {
            assert!(boot(args).is_err(), "{args:?}");
        }
    }
}

//! The command line and the subcommands: arguments and implementation of each in one file.

pub mod bench;
pub mod boot;
mod calibrate;
mod choose;
pub mod client;
pub mod conform;
pub mod doctor;
pub mod dtb;
pub mod generate;
pub mod images;
mod network;
pub mod run;
mod server;

use clap::{ArgAction, Parser};

use self::bench::Bench;
use self::boot::Boot;
use self::client::{Add, Console, Exec, FleetCommand, Logs, Ps};
use self::conform::Conform;
use self::doctor::Doctor;
use self::dtb::Dtb;
use self::generate::{Completions, Man};
use self::images::Images;
use self::run::Run;
use crate::backend::BackendError;
use crate::backend::cuda::{self, gpu::Gpu};
use crate::cli::{BackendArgs, BackendChoice, Codes, INTERRUPTED, PackingArgs, long_help};
use crate::error::Error;
use crate::exit::Code;

const EXAMPLES: &str = "Examples:\n  \
        pxvm boot                                  one machine, its console on this terminal\n  \
        pxvm boot --count 64 --until ready --json  64 machines, until each one serves\n  \
        pxvm doctor                                what this host has, and what to do about it\n\n\
        `pxvm help COMMAND` tells more.";

const ALL_CODES: &Codes = &[
    (Code::Success, "success"),
    (Code::Failure, "anything not named here"),
    (Code::Usage, "wrong usage or bad input; nothing was started"),
    (Code::Timeout, "a time limit was reached first"),
    (Code::Guest, "a guest failed, a test failed"),
    INTERRUPTED,
];

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
    /// Log more on standard error (twice: much more); PXVM_LOG takes a tracing filter
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub subcommand: Subcommand,
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Subcommand {
    /// Boot one or many Linux machines
    Boot(Box<Boot>),
    /// List the machines of a running fleet
    Ps(Ps),
    /// Attach to the console of a machine
    Console(Console),
    /// Run a command in the shell of a machine
    Exec(Exec),
    /// Print the console output of a machine
    Logs(Logs),
    /// Pause machines, and the other commands of the table.
    #[command(flatten)]
    Fleet(FleetCommand),
    /// Start more machines in a running fleet
    Add(Add),
    /// Run bare-metal programs (M-mode ELF)
    Run(Run),
    /// Run riscv-tests and report which pass
    Conform(Conform),
    /// Measure how fast fleets run here
    Bench(Bench),
    /// Show the device tree of a machine
    Dtb(Dtb),
    /// List the guest images in the cache
    Images(Images),
    /// Check what this host has and what is missing, and compile the program for its GPU
    Doctor(Doctor),
    /// Print a shell's completion script
    Completions(Completions),
    /// Print the manual page, or write all of them to a folder
    Man(Man),
}

/// Executes the subcommand of the command line.
pub fn run(subcommand: Subcommand) -> Result<Code, Error> {
    match subcommand {
        Subcommand::Boot(args) => boot::boot(*args),
        Subcommand::Ps(args) => client::ps(args),
        Subcommand::Console(args) => client::console(args),
        Subcommand::Exec(args) => client::exec(args),
        Subcommand::Logs(args) => client::logs(args),
        Subcommand::Fleet(command) => client::command(command),
        Subcommand::Add(args) => client::add(args),
        Subcommand::Bench(args) => bench::bench(args),
        Subcommand::Run(args) => run::run(args),
        Subcommand::Conform(args) => conform::conform(args),
        Subcommand::Dtb(args) => dtb::dtb(args),
        Subcommand::Images(args) => images::images(args),
        Subcommand::Doctor(args) => doctor::doctor(args),
        Subcommand::Completions(args) => generate::completions(args),
        Subcommand::Man(args) => generate::man(args),
    }
}

/// Turns an error of printing to standard output into ours.
fn printing(source: std::io::Error) -> Error {
    Error::io("write to standard output", source)
}

/// Prints what takes time, on standard error.
fn say(text: &str) {
    crate::stdio::say(&format!("pxvm: {text}"));
}

/// Refuses options of a GPU for VMs that run on the CPU.
fn on_cpu(device: Option<u32>, packing: Option<&PackingArgs>) -> Result<(), Error> {
    let given = [
        ("--device", device.is_some()),
        ("--lanes", packing.is_some_and(|packing| packing.lanes.is_some())),
        ("--loop", packing.is_some_and(|packing| packing.insn_loop.get().is_some())),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => {
            let why = format!("{flag} is for a GPU, and this runs on the CPU: see --backend");
            Err(Error::Usage(why))
        }
        None => Ok(()),
    }
}

/// Returns the GPU that a bare-metal program is to run on, if any.
fn gpu_for(args: BackendArgs) -> Result<Option<Box<dyn Gpu>>, Error> {
    match args.backend {
        BackendChoice::Auto | BackendChoice::Cpu => on_cpu(args.device, None).map(|()| None),
        BackendChoice::Cuda => {
            let gpu = cuda::open(args.device.unwrap_or_default(), &say);
            Ok(Some(gpu.map_err(BackendError::from)?))
        }
        BackendChoice::Lockstep => {
            Err(Error::Usage("--backend lockstep compares fleets: see pxvm boot".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}

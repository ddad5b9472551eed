//! The command line: subcommands, options and help texts, with clap.

pub mod backend;
pub mod fleet;
pub mod guest;

use std::time::Duration;

use clap::{ArgAction, Parser};

pub use self::backend::{BackendArgs, BackendChoice, Clock};
pub use self::fleet::{FLEET_CODES, FleetArgs, VmRange};
pub use self::guest::{GuestArgs, Machine};
use crate::commands::bench::Bench;
use crate::commands::boot::Boot;
use crate::commands::client::{Add, CommandArgs, Console, Exec, Logs, Ps};
use crate::commands::conform::Conform;
use crate::commands::doctor::Doctor;
use crate::commands::dtb::Dtb;
use crate::commands::generate::{Completions, Man};
use crate::commands::images::Images;
use crate::commands::run::Run;
use crate::exit::{self, Code};

const EXAMPLES: &str = "Examples:\n  \
        pxvm boot                                  one machine, its console on this terminal\n  \
        pxvm boot --count 64 --until ready --json  64 machines, until each one serves\n  \
        pxvm doctor                                what this host has, and what to do about it\n\n\
        `pxvm help COMMAND` tells more.";

/// Exit codes of a command, with their meanings.
pub type Codes = [(Code, &'static str)];

/// Exit code after a signal that ended the program.
pub const INTERRUPTED: (Code, &str) = (Code::Interrupted, "ended by Ctrl-C, SIGTERM or the like");

const ALL_CODES: &Codes = &[
    (Code::Success, "it did what was asked for"),
    (Code::Failure, "anything not named here"),
    (Code::Usage, "wrong usage or bad input; nothing was started"),
    (Code::Timeout, "time was up first"),
    (Code::Guest, "a guest failed, a test failed"),
    INTERRUPTED,
];

/// Exit codes of the subcommands that only read and write files.
pub const PLAIN_CODES: &Codes = &[
    (Code::Success, "done"),
    (Code::Failure, "a file cannot be read or written"),
    (Code::Usage, "wrong usage or bad input"),
    INTERRUPTED,
];

/// Returns the end of a command's `--help`: examples and exit codes.
pub fn long_help(examples: &str, meanings: &Codes) -> String {
    format!("{examples}\n\n{}", exit::help(meanings))
}

/// Largest number of VMs of a fleet; the host's memory usually allows fewer.
pub const COUNT_MAX: i64 = 1_000_000;

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

/// The subcommands. The arguments of each stand beside its implementation, in [`crate::commands`].
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
    Pause(CommandArgs),
    /// Let machines go on
    Resume(CommandArgs),
    /// Start machines from their first instruction, whatever they do
    Reset(CommandArgs),
    /// End machines and give their memory back to the fleet
    Stop(CommandArgs),
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

/// Parses a number of seconds that is more than zero.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if seconds <= 0.0 {
        return Err("it must be more than zero".into());
    }
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
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

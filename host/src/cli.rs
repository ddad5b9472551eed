//! What subcommands have in common on the command line: options, values, exit codes in help texts.

pub mod backend;
pub mod fleet;
pub mod guest;
pub mod virtio;

use std::time::Duration;

pub use self::backend::{BackendArgs, BackendChoice, Clock, LoopArgs, PackingArgs};
pub use self::fleet::{FLEET_CODES, FleetArgs, VmRange};
pub use self::guest::{GuestArgs, Machine};
pub use self::virtio::{VirtioArgs, VirtioVersion};
use crate::exit::{self, Code};

/// Exit codes of a command, with their meanings.
pub type Codes = [(Code, &'static str)];

/// Exit code after a signal that ended the program.
pub const INTERRUPTED: (Code, &str) = (Code::Interrupted, "ended by Ctrl-C, SIGTERM or the like");

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

/// Parses a number of seconds that is more than zero.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if seconds <= 0.0 {
        return Err("it must be more than zero".into());
    }
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

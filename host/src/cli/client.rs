//! Command line of the commands that act on a fleet that runs already.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use regex::bytes::Regex;

use super::{Codes, INTERRUPTED, long_help, seconds};
use crate::client::exec::prompt::Line;
use crate::exit::{self, Code};

const EXEC_EXAMPLES: &str = "Examples:\n  \
        pxvm exec 3 -- uname -a\n  \
        pxvm exec 3 -- 'ps | grep -c nginx'\n  \
        pxvm exec 3 --timeout 5 --json -- ping -c 1 10.0.2.2";

const ACT_EXAMPLES: &str = "Examples:\n  \
        pxvm pause 3\n  \
        pxvm resume vm3 8-15\n  \
        pxvm reset all";

const FLEET_CODES: &Codes = &[
    (Code::Success, "done"),
    (Code::Failure, "the fleet refuses (a wrong state, no room), or has ended"),
    (Code::Usage, "wrong usage; no such fleet or machine"),
    (Code::Timeout, "the fleet does not answer in time"),
    INTERRUPTED,
];

const EXEC_CODES: &Codes = &[
    (Code::Success, "the command did; another number: its own exit code"),
    (Code::Failure, "the machine takes no command: a wrong state, no shell at its prompt"),
    (Code::Usage, "wrong usage; no such fleet or machine"),
    (Code::Timeout, "--timeout expired first; the command was interrupted"),
    (Code::Guest, "the machine ended or started again meanwhile"),
    INTERRUPTED,
];

/// Which fleet.
#[derive(Clone, Debug, Args)]
pub struct Which {
    /// The fleet's name; needed where several run
    #[arg(long, value_name = "NAME")]
    pub fleet: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `pxvm ps`.
#[derive(Debug, Args)]
#[command(
    long_about = "List the machines of a running fleet, and what each is doing.",
    after_long_help = exit::help(FLEET_CODES)
)]
pub struct Ps {
    /// Only machines in this state
    #[arg(long, value_name = "STATE")]
    #[arg(value_parser = ["booting", "ready", "paused", "halted", "faulted", "stopped"])]
    pub state: Option<String>,
    /// Which fleet.
    #[command(flatten)]
    pub which: Which,
}

/// `pxvm pause` and such.
#[derive(Debug, Args)]
#[command(after_help = ACT_EXAMPLES, after_long_help = long_help(ACT_EXAMPLES, FLEET_CODES))]
pub struct Act {
    /// Machines: numbers, names, ranges, or all, which leaves out those that cannot
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<Ids>,
    /// Which fleet.
    #[command(flatten)]
    pub which: Which,
}

/// `pxvm add`.
#[derive(Debug, Args)]
#[command(
    long_about = "Start more machines, as far as the fleet's --capacity goes.",
    after_long_help = exit::help(FLEET_CODES)
)]
pub struct Add {
    /// How many
    #[arg(value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// Which fleet.
    #[command(flatten)]
    pub which: Which,
}

/// `pxvm console`.
#[derive(Debug, Args)]
#[command(
    long_about = "Go to the console of a machine: what it has said, what it says, and a keyboard.\
        \n\nOn a terminal every key goes to the guest; Ctrl-A x leaves it as it is, Ctrl-A h \
        helps. Otherwise standard input is passed on, and the console is followed until Ctrl-C.",
    after_long_help = exit::help(FLEET_CODES)
)]
pub struct Console {
    /// The machine
    #[arg(value_name = "ID", value_parser = one)]
    pub id: u32,
    /// The fleet's name; needed where several run
    #[arg(long, value_name = "NAME")]
    pub fleet: Option<String>,
}

/// `pxvm logs`.
#[derive(Debug, Args)]
#[command(
    long_about = "Print what a machine has said: the newest 64 KiB.",
    after_long_help = exit::help(FLEET_CODES)
)]
pub struct Logs {
    /// The machine
    #[arg(value_name = "ID", value_parser = one)]
    pub id: u32,
    /// Go on with what it says from now on, until Ctrl-C
    #[arg(short, long, conflicts_with = "json")]
    pub follow: bool,
    /// Which fleet.
    #[command(flatten)]
    pub which: Which,
}

/// `pxvm exec`.
#[derive(Debug, Args)]
#[command(
    long_about = "Run a command in a machine's shell, by way of its console, and print its output. \
        The shell must be at its prompt.\n\nThe words of the command are put together with \
        spaces and read by the guest's shell. It has no input; its standard error is part of the \
        output. The exit code is the command's own; should something else fail, a message on \
        standard error says so.",
    after_help = EXEC_EXAMPLES,
    after_long_help = format!("{}\n\nThose of the command are the same numbers; --json tells them \
        apart.", long_help(EXEC_EXAMPLES, EXEC_CODES))
)]
pub struct Exec {
    /// The machine
    #[arg(value_name = "ID", value_parser = one)]
    pub id: u32,
    /// The command
    #[arg(value_name = "CMD", required = true, last = true)]
    pub command: Vec<String>,
    /// Give up after this many seconds (exit code 3); the command gets a Ctrl-C
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "60")]
    pub timeout: Duration,
    /// What the line with the shell's prompt looks like, as a regular expression; an empty one types
    /// at whatever runs there
    #[arg(long, value_name = "REGEX", default_value = Line::DEFAULT)]
    pub prompt: Regex,
    /// Which fleet.
    #[command(flatten)]
    pub which: Which,
}

/// Selection of VMs: all, or a range of numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ids {
    /// From the first to the last.
    Range(u32, u32),
    /// All there are.
    All,
}

fn one(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("vm").unwrap_or(text);
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    number.ok_or_else(|| "a machine is a number, like 3 or vm3".to_owned())
}

impl FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (one(first), one(last)) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self::Range(first, last)),
            _ => Err("machines are numbers, names or ranges, like 3, vm3 or 0-15, or all".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_numbers_names_ranges_or_all() {
        assert_eq!("3".parse(), Ok(Ids::Range(3, 3)));
        assert_eq!("vm3".parse(), Ok(Ids::Range(3, 3)));
        assert_eq!("0-15".parse(), Ok(Ids::Range(0, 15)));
        assert_eq!("all".parse(), Ok(Ids::All));
        for wrong in ["", "x", "3-1", "-1", "1-", "vm", "99999999999", "1-2-3", "+1"] {
            assert!(wrong.parse::<Ids>().is_err(), "{wrong}");
        }
    }
}

//! Options that name a running fleet and its machines.

use std::str::FromStr;

use clap::Args;

use super::{Codes, INTERRUPTED};
use crate::exit::Code;

/// Exit codes of the subcommands that act on a running fleet.
pub const FLEET_CODES: &Codes = &[
    (Code::Success, "done"),
    (Code::Failure, "the fleet refuses (a wrong state, no room), or has ended"),
    (Code::Usage, "wrong usage; no such fleet or machine"),
    (Code::Timeout, "the fleet does not answer in time"),
    INTERRUPTED,
];

/// Which fleet.
#[derive(Clone, Debug, Args)]
pub struct FleetArgs {
    /// Name of the fleet; needed where several run
    #[arg(long, value_name = "NAME")]
    pub fleet: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Selection of VMs: all, or a range of numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmRange {
    /// From the first to the last.
    Range(u32, u32),
    /// All there are.
    All,
}

/// Parses the number or name of a machine.
pub fn one(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("vm").unwrap_or(text);
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    number.ok_or_else(|| "a machine is a number, like 3 or vm3".to_owned())
}

impl FromStr for VmRange {
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
        assert_eq!("3".parse(), Ok(VmRange::Range(3, 3)));
        assert_eq!("vm3".parse(), Ok(VmRange::Range(3, 3)));
        assert_eq!("0-15".parse(), Ok(VmRange::Range(0, 15)));
        assert_eq!("all".parse(), Ok(VmRange::All));
        for wrong in ["", "x", "3-1", "-1", "1-", "vm", "99999999999", "1-2-3", "+1"] {
            assert!(wrong.parse::<VmRange>().is_err(), "{wrong}");
        }
    }
}

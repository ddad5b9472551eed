//! Says what kept a fleet from the condition of its run, what the guests said last, and what helps.

use std::collections::HashMap;

use super::consoles::Consoles;
use super::{RunOutcome, RunSummary, Until};
use crate::console::plain;
use crate::machine::fleet;

/// Largest number of VMs that are named.
const NAMED_MAX: usize = 5;
/// Bytes at the end of a console that are shown.
const SHOWN_MAX: usize = 1024;
/// Lines at the end of a console that are shown.
const LINES_MAX: usize = 8;
/// Bytes of output below which a kernel may have ended before its console worked.
const FEW: u64 = 100;
/// How the line begins that OpenSBI prints last, before the kernel.
const FIRMWARE_LAST: &str = "Boot HART ";
/// Word of the command line that makes a kernel print before its console works.
const EARLY: &str = "earlycon";

/// What kept a fleet from the condition of its run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shortfall {
    sentence: String,
    /// VMs that did not meet the condition, unless the user wanted none.
    vms: Vec<u32>,
}

impl RunSummary {
    /// Returns what kept the fleet from the condition; `None` when it was met or the user ended the
    /// run.
    pub fn shortfall(&self, until: Until) -> Option<Shortfall> {
        let (resolved, what) = match (self.outcome, until) {
            (RunOutcome::Met | RunOutcome::Left | RunOutcome::Interrupted, _) => return None,
            (RunOutcome::Timeout, Until::Never) => {
                return Some(Shortfall { sentence: "ended by --timeout".into(), vms: Vec::new() });
            }
            (RunOutcome::Timeout, Until::Ready) => (None, "not ready before --timeout"),
            (RunOutcome::Timeout, Until::Halt) => (None, "not powered off before --timeout"),
            (RunOutcome::Failed, Until::Ready) => (Some(false), "ended without being ready"),
            (RunOutcome::Failed, _) => (Some(false), "failed"),
        };
        let vms = (0..).zip(&self.vms).filter(|(_, vm)| vm.resolved() == resolved);
        let vms: Vec<u32> = vms.map(|(id, _)| id).collect();
        let some: Vec<String> = vms.iter().take(NAMED_MAX).map(|&vm| fleet::name(vm)).collect();
        let some = some.join(", ");
        let more = if vms.len() > NAMED_MAX { ", ..." } else { "" };
        let sentence = format!("{} of {} machines {what}: {some}{more}", vms.len(), self.vms.len());
        Some(Shortfall { sentence, vms })
    }
}

impl Shortfall {
    /// Returns the message: what was missed; unless the user has `seen` it, the end of the console
    /// that most of the VMs have; and what helps a kernel that says nothing. `append` is what the
    /// user gave of the command line.
    pub fn message(&self, consoles: &Consoles, seen: bool, append: &str) -> String {
        let mut message = self.sentence.clone();
        let Some((vm, alike)) = self.representative(consoles) else { return message };
        let name = fleet::name(vm);
        let lines = ending(&consoles.tail(vm).bytes);
        let others = match alike {
            0 => String::new(),
            n => format!(" (and {n} more like it)"),
        };
        if lines.is_empty() {
            message += &format!("\nthe console of {name}{others} is empty");
        } else if !seen {
            message += &format!("\nthe console of {name}{others} ends with");
            lines.iter().for_each(|line| message += &format!("\n  | {line}"));
        }
        let after_firmware = lines.last().is_some_and(|line| line.starts_with(FIRMWARE_LAST));
        let silent = consoles.written(vm) < FEW || after_firmware;
        if silent && !append.contains(EARLY) {
            message += &format!(
                "\nif this is Linux, --append 'loglevel=8 {EARLY}=sbi' shows what it does before \
                 its console works"
            );
        }
        message
    }

    /// Returns the first of the VMs whose consoles end alike, but for numbers, and how many more
    /// there are; of the most that do.
    fn representative(&self, consoles: &Consoles) -> Option<(u32, usize)> {
        let mut groups: HashMap<String, (u32, usize)> = HashMap::new();
        for &vm in &self.vms {
            let mut last = ending(&consoles.tail(vm).bytes).pop().unwrap_or_default();
            last.retain(|c| !c.is_ascii_digit());
            groups.entry(last).and_modify(|(_, more)| *more += 1).or_insert((vm, 0));
        }
        // Of groups of one size, that of the first VM.
        groups.into_values().max_by_key(|&(vm, more)| (more, u32::MAX - vm))
    }
}

/// Returns the last lines of console output that are not empty.
fn ending(output: &[u8]) -> Vec<String> {
    let output = output.trim_ascii_end();
    let mut lines = plain::lines(&output[output.len().saturating_sub(SHOWN_MAX)..]);
    lines.retain(|line| !line.is_empty());
    lines.drain(..lines.len().saturating_sub(LINES_MAX));
    lines
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backend::{Event, EventKind, Totals};
    use crate::engine::FleetState;

    /// Returns what kept VMs of a fleet of which VM 0 got ready from being so before the timeout.
    fn timed_out(count: u32) -> Shortfall {
        let mut fleet = FleetState::new(count, count, Until::Ready);
        fleet.note(&Event { vm: 0, instret: 1, kind: EventKind::Ready });
        let run = RunSummary {
            outcome: RunOutcome::Timeout,
            vms: fleet.records().to_vec(),
            counts: fleet.counts(),
            wall: Duration::ZERO,
            totals: Totals::default(),
            usage: None,
        };
        run.shortfall(Until::Ready).unwrap()
    }

    #[test]
    fn the_console_that_most_have_is_shown_safe_and_within_bounds() {
        let consoles = Consoles::new(6);
        consoles.write(1, b"something else\n");
        for vm in 2..6 {
            consoles.write(vm, &b"long ago\r\n\r\n".repeat(1000));
            consoles.write(vm, format!("[{vm}.5] \x1b[31mKernel panic on vm{vm}\r\n").as_bytes());
        }
        let message = timed_out(6).message(&consoles, false, "");
        let lines: Vec<&str> = message.lines().collect();
        assert_eq!(lines[0], "5 of 6 machines not ready before --timeout: vm1, vm2, vm3, vm4, vm5");
        assert_eq!(lines[1], "the console of vm2 (and 3 more like it) ends with");
        assert_eq!(lines[2..9], ["  | long ago"; 7]);
        assert_eq!(lines[9..], ["  | [2.5] \\u{1b}[31mKernel panic on vm2"]);
        let seen = timed_out(6).message(&consoles, true, "");
        assert_eq!(seen, lines[0]);
        consoles.write(2, &[b'x'; 9 * SHOWN_MAX]);
        assert!(timed_out(3).message(&consoles, false, "").len() < 2 * SHOWN_MAX);
    }

    #[test]
    fn a_kernel_that_said_nothing_gets_a_hint() {
        let hint = "--append 'loglevel=8 earlycon=sbi'";
        let consoles = Consoles::new(2);
        let empty = timed_out(2).message(&consoles, true, "");
        assert!(empty.contains("the console of vm1 is empty") && empty.contains(hint), "{empty}");
        assert!(!timed_out(2).message(&consoles, true, "earlycon=sbi").contains(hint));
        consoles.write(1, &b"OpenSBI v1.6\nPlatform Name : riscv-virtio,qemu\n".repeat(9));
        consoles.write(1, b"Boot HART MEDELEG           : 0x0000b109\n");
        assert!(timed_out(2).message(&consoles, true, "debug").contains(hint));
        consoles.write(1, b"[    0.000000] Linux version 6.1.192\n");
        assert!(!timed_out(2).message(&consoles, true, "").contains(hint));
    }

    #[test]
    fn a_run_without_a_condition_misses_none() {
        let fleet = FleetState::new(2, 2, Until::Never);
        let run = RunSummary {
            outcome: RunOutcome::Timeout,
            vms: fleet.records().to_vec(),
            counts: fleet.counts(),
            wall: Duration::ZERO,
            totals: Totals::default(),
            usage: None,
        };
        let message = run.shortfall(Until::Never).unwrap().message(&Consoles::new(2), false, "");
        assert_eq!(message, "ended by --timeout");
        let met = RunSummary { outcome: RunOutcome::Met, ..run };
        assert_eq!(met.shortfall(Until::Halt), None);
    }
}

//! The work of the workload `busy`: lines that are typed at the consoles of booted guests, and what
//! they must print.
//!
//! Each line starts a program that runs for ever over data that depends on the VM's number. It
//! prints `B 0 0` when it begins, and after each of its rounds `B`, the number of the round and a
//! result, which the host computes as well: with code of its own, or the crates that it uses anyway.

use flate2::Crc;
use sha2::{Digest, Sha256};

use super::args::Busy;

/// The lines: the name of the work, a space, what is typed. `tests/gpu/busy.py` reads them, too.
const LINES: &str = include_str!("works.txt");

/// What a busy guest does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// A loop of the shell: arithmetic and patterns.
    Shell,
    /// busybox awk: floating point without hardware for it, arrays and strings.
    Awk,
    /// A text is compressed, and unpacked again.
    Gzip,
    /// A file is hashed.
    Sha256sum,
    /// The guest's own nginx is asked for a page, which is hashed.
    Wget,
}

impl Work {
    /// All kinds, in the order in which the VMs of a mix have them.
    pub const ALL: [Self; 5] = [Self::Shell, Self::Awk, Self::Gzip, Self::Sha256sum, Self::Wget];

    /// Returns the work of a VM.
    pub fn of(busy: Busy, vm: u32) -> Self {
        match busy {
            Busy::Mix => Self::ALL[vm as usize % Self::ALL.len()],
            Busy::Shell => Self::Shell,
            Busy::Awk => Self::Awk,
            Busy::Gzip => Self::Gzip,
            Busy::Sha256sum => Self::Sha256sum,
            Busy::Wget => Self::Wget,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Awk => "awk",
            Self::Gzip => "gzip",
            Self::Sha256sum => "sha256sum",
            Self::Wget => "wget",
        }
    }

    /// Returns the line that starts it.
    pub fn line(self) -> &'static str {
        let mut lines = LINES.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == self.name()).map_or("", |(_, line)| line)
    }

    /// Returns what VM `vm` must print in each of its rounds, from the first one on.
    pub fn results(self, vm: u32) -> Box<dyn Iterator<Item = String>> {
        let n = u64::from(vm);
        match self {
            Self::Shell => Box::new(shell(n)),
            Self::Awk => Box::new(awk(n)),
            Self::Gzip => Box::new(rounds(numbers(n)).map(|page| {
                let mut crc = Crc::new();
                crc.update(&page);
                format!("{:08x}{:08x}", crc.sum(), crc.amount())
            })),
            Self::Sha256sum => Box::new(rounds(repeated(n, 8000)).map(|page| sha256(&page))),
            Self::Wget => Box::new(rounds(repeated(n, 2000)).map(|page| sha256(&page))),
        }
    }
}

/// The file of each round: its number, and what stays.
fn rounds(rest: Vec<u8>) -> impl Iterator<Item = Vec<u8>> {
    (1u32..).map(move |round| [format!("{round}\n").as_bytes(), &rest].concat())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A VM's number again and again: what `yes` writes.
fn repeated(n: u64, least: u64) -> Vec<u8> {
    let len = least + n % 64 * 64;
    format!("{n}\n").bytes().collect::<Vec<_>>().into_iter().cycle().take(len as usize).collect()
}

/// The generator of Park and Miller.
fn next(x: u64) -> u64 {
    x * 16_807 % 2_147_483_647
}

fn numbers(n: u64) -> Vec<u8> {
    let (mut x, mut text) = (n + 1, String::new());
    for _ in 0..800 {
        x = next(x);
        text += &format!("{} ", x % 997);
    }
    text.into_bytes()
}

fn shell(n: u64) -> impl Iterator<Item = String> {
    let (mut x, mut y) = (n, 0u64);
    std::iter::repeat_with(move || {
        for _ in 0..60 {
            x = (x * 75 + 74) % 65_537;
            match x % 10 {
                3 | 7 => y += x,
                0 | 5 => y ^= x,
                _ => {}
            }
        }
        (y & 65_535).to_string()
    })
}

fn awk(n: u64) -> impl Iterator<Item = String> {
    let (mut x, mut z, mut length) = (n + 1, 0, 0);
    let mut sums = [0u64; 97];
    std::iter::repeat_with(move || {
        for i in 0..80 {
            x = next(x);
            if x % 3 == 0 {
                sums[x as usize % 97] += i;
            } else if x % 7 == 1 {
                length += 1;
            }
            if length > 20 {
                // From the 15th character on.
                length -= 14;
            }
            z = (z + x) % 1_000_003;
        }
        ((z + length + sums[x as usize % 97]) % 65_536).to_string()
    })
}

/// What a VM has printed of its work so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The line that is not complete yet.
    line: Vec<u8>,
    /// Results, that of the beginning first.
    found: Vec<String>,
    /// Instruction counts of the VM when it began and when its latest round ended.
    begun: u64,
    latest: u64,
    /// A line that did not count the rounds as it should.
    astray: Option<String>,
}

/// Longest line that is looked at.
const LINE_MAX: usize = 100;

impl Progress {
    /// Handles console output, which the VM wrote up to instruction count `instret`.
    pub fn feed(&mut self, bytes: &[u8], instret: u64) {
        for &byte in bytes {
            match byte {
                b'\r' | b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    self.line_ends(&line, instret);
                }
                _ if self.line.len() < LINE_MAX => self.line.push(byte),
                _ => {}
            }
        }
    }

    fn line_ends(&mut self, line: &[u8], instret: u64) {
        // The console shows what was typed, too, in which results are still variables.
        let Some((round, result)) = str::from_utf8(line)
            .ok()
            .and_then(|line| line.strip_prefix("B ")?.split_once(' '))
            .filter(|(_, result)| result.bytes().all(|b| b.is_ascii_hexdigit()))
        else {
            return;
        };
        if round.parse() == Ok(self.found.len()) {
            if self.found.is_empty() {
                self.begun = instret;
            }
            self.latest = instret;
            self.found.push(result.to_owned());
        } else if self.astray.is_none() {
            self.astray = Some(String::from_utf8_lossy(line).into_owned());
        }
    }

    /// Whether the work has begun.
    pub fn has_begun(&self) -> bool {
        !self.found.is_empty()
    }

    /// Number of complete rounds.
    pub fn rounds(&self) -> u64 {
        self.found.len().saturating_sub(1) as u64
    }

    /// Returns the instructions that a round takes.
    pub fn cost(&self) -> f64 {
        (self.latest - self.begun) as f64 / self.rounds().max(1) as f64
    }

    /// Compares the results of VM `vm` with the host's. Returns what is wrong.
    pub fn check(&self, work: Work, vm: u32) -> Result<(), String> {
        let name = work.name();
        if let Some(line) = &self.astray {
            let round = self.found.len();
            return Err(format!("vm{vm} ({name}) printed \"{line}\" in round {round}"));
        }
        let found = self.found.iter().skip(1);
        for (round, (found, expected)) in (1..).zip(found.zip(work.results(vm))) {
            if *found != expected {
                return Err(format!(
                    "vm{vm} ({name}) came to {found} in round {round}, which should be {expected}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(work: Work, output: &[&[u8]]) -> Result<u64, String> {
        let mut progress = Progress::default();
        output.iter().for_each(|bytes| progress.feed(bytes, 0));
        progress.check(work, 3).map(|()| progress.rounds())
    }

    #[test]
    fn every_work_has_a_line_that_the_guests_shell_takes() {
        // Its editor takes 1,024 characters.
        for work in Work::ALL {
            let line = work.line();
            assert!(line.contains("B 0 0") && line.len() < 1000, "{work:?}: {line}");
        }
        assert_eq!(LINES.lines().count(), Work::ALL.len());
    }

    #[test]
    fn results_differ_from_vm_to_vm_and_from_round_to_round() {
        for work in Work::ALL {
            let mut results: Vec<String> =
                (0..100).flat_map(|vm| work.results(vm).take(4)).collect();
            results.sort();
            results.dedup();
            // Those of 16 bits may be equal by chance.
            assert!(results.len() > 390, "{work:?}: {}", results.len());
        }
    }

    #[test]
    fn results_are_found_among_what_else_a_console_shows() {
        let right: Vec<String> = Work::Shell.results(3).take(2).collect();
        let typed = b"vm3:~# x=$n;r=0;echo B 0 0;r=$((r+1));echo B $r $((y&6\r\n5535))\r\n";
        let (first, second) = (format!("B 1 {}\r\n", right[0]), format!("B 2 {}\r\n", right[1]));
        let (head, tail) = second.split_at(3);
        let output = [typed, &b"B 0 0\r\n"[..], first.as_bytes(), head.as_bytes(), tail.as_bytes()];
        assert_eq!(progress(Work::Shell, &output), Ok(2));
        assert_eq!(progress(Work::Shell, &output[..4]), Ok(1));
        assert_eq!(progress(Work::Shell, &[]), Ok(0));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let wrong = progress(Work::Awk, &[b"B 0 0\nB 1 99999\n"]).unwrap_err();
        assert!(
            wrong.starts_with("vm3 (awk) came to 99999 in round 1, which should be "),
            "{wrong}"
        );
        let right = Work::Awk.results(3).next().unwrap();
        let skipped = progress(Work::Awk, &[b"B 0 0\nB 2 1\n"]).unwrap_err();
        assert_eq!(skipped, "vm3 (awk) printed \"B 2 1\" in round 1");
        let again = format!("B 0 0\nB 1 {right}\nB 1 {right}\n");
        assert!(progress(Work::Awk, &[again.as_bytes()]).is_err());
    }
}

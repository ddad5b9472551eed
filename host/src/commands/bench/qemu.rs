//! The work of the workload `busy` in guests under QEMU, one process for each core of the host.
//!
//! QEMU counts no instructions here, because that would slow it down. Rounds are counted, and what a
//! round takes is known from pxvm's CPU.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::process::{Pid, Signal, kill_process};

use super::args::Busy;
use super::busy::{Progress, Work};
use super::report::Measured;
use crate::cli::{GuestArgs, Machine};
use crate::console::ready::{ReadyMatcher, ReadyPattern};
use crate::image::cache;
use crate::signals;
use crate::sync::lock;

const PROGRAM: &str = "qemu-system-riscv32";
/// Time from the last guest's beginning to the measurement.
const WARM_UP: Duration = Duration::from_secs(1);
/// Pieces of console output that may wait.
const OUTPUT_MAX: usize = 1024;

/// Why nothing was measured under QEMU.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// It cannot be run.
    #[error("{PROGRAM} cannot be run")]
    Run(#[source] io::Error),
    /// There is nothing that it could boot.
    #[error("{0}")]
    Images(String),
    /// A guest was not done in time.
    #[error("guests under QEMU were not done after {0} s")]
    Time(f64),
    /// A process ended by itself.
    #[error("QEMU of vm{vm} ended: {said}")]
    Ended {
        /// Number of the VM.
        vm: usize,
        /// The last line that it wrote.
        said: String,
    },
    /// A guest came to a wrong result.
    #[error("under QEMU, {0}")]
    Guest(String),
}

/// Returns the version line.
pub fn version() -> Result<String, QemuError> {
    let output = Command::new(PROGRAM)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(QemuError::Run)?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// What QEMU boots.
#[derive(Clone, Debug)]
pub struct Images {
    /// The kernel.
    pub kernel: PathBuf,
    /// The root file system.
    pub initrd: PathBuf,
    /// RAM in MiB: OpenSBI, which QEMU starts first, takes 4.
    memory: u64,
    /// Words for the kernel's command line.
    append: String,
}

impl Images {
    /// Returns those of the machine's options.
    pub fn of(guest: &GuestArgs) -> Result<Self, QemuError> {
        let refused = |why: &str| Err(QemuError::Images(why.to_owned()));
        if guest.firmware.is_some() || guest.dtb.is_some() || guest.machine != Machine::Virt {
            return refused("QEMU is compared on its own machine: no --firmware, --dtb, --machine");
        }
        let (memory, append) = ((guest.memory.0 >> 20) + 4, guest.append.clone());
        if let Some(kernel) = guest.kernel.as_ref().filter(|path| path.as_os_str() != "default") {
            return match &guest.initrd {
                Some(initrd) => {
                    Ok(Self { kernel: kernel.clone(), initrd: initrd.clone(), memory, append })
                }
                None => refused("QEMU needs the root file system as --initrd"),
            };
        }
        let image = cache::default_image().map_err(|e| QemuError::Images(e.to_string()))?;
        let initrd = guest.initrd.clone().unwrap_or(image.initrd);
        Ok(Self { kernel: image.kernel, initrd, memory, append })
    }
}

/// Runs `count` guests that are busy, and measures them for `time`. `costs` has the instructions of a
/// round of each.
pub fn busy(
    images: &Images,
    busy: Busy,
    costs: &[f64],
    ready: &ReadyPattern,
    (time, timeout): (Duration, Duration),
) -> Result<Measured, QemuError> {
    let mut fleet = Fleet::start(images, costs.len(), ready, busy, timeout)?;
    fleet.work(fleet.limit, Progress::has_begun)?;
    let never = |_: &Progress| false;
    fleet.work(Instant::now() + WARM_UP, never)?;
    let (start, first) = (Instant::now(), fleet.rounds());
    fleet.work(start + time, never)?;
    let (wall, last) = (start.elapsed(), fleet.rounds());
    fleet.work(fleet.limit, |progress| progress.rounds() > 0)?;
    for (vm, guest) in (0..).zip(&fleet.guests) {
        guest.progress.check(Work::of(busy, vm), vm).map_err(QemuError::Guest)?;
    }
    let rounds = first.iter().zip(&last).map(|(a, b)| b - a);
    let instructions = rounds.clone().zip(costs).map(|(n, cost)| n as f64 * cost).sum::<f64>();
    Ok(Measured::of_rounds(wall, instructions as u64, rounds.sum(), costs.len() as u32))
}

struct Fleet {
    guests: Vec<Guest>,
    /// Processes, also for a signal that ends pxvm.
    children: Arc<Mutex<Vec<Child>>>,
    output: Receiver<(usize, Vec<u8>)>,
    busy: Busy,
    timeout: Duration,
    limit: Instant,
}

struct Guest {
    input: Option<ChildStdin>,
    matcher: ReadyMatcher,
    progress: Progress,
    /// The end of what it wrote, for messages.
    said: Vec<u8>,
}

impl Fleet {
    fn start(
        images: &Images,
        count: usize,
        ready: &ReadyPattern,
        busy: Busy,
        timeout: Duration,
    ) -> Result<Self, QemuError> {
        let (sender, output) = bounded(OUTPUT_MAX);
        let now = Instant::now();
        let limit = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(1 << 30));
        let children = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::clone(&children);
        signals::on_interrupt(move || {
            terminate(&lock(&ended));
            signals::end();
        });
        let mut fleet = Self { guests: Vec::new(), children, output, busy, timeout, limit };
        for vm in 0..count {
            // What it says of itself comes with the console.
            let (output, writer) = io::pipe().map_err(QemuError::Run)?;
            let errors = writer.try_clone().map_err(QemuError::Run)?;
            let mut command = command(images, vm, timeout);
            command.stdin(Stdio::piped()).stdout(writer).stderr(errors);
            let mut child = command.spawn().map_err(QemuError::Run)?;
            let input = child.stdin.take();
            lock(&fleet.children).push(child);
            let matcher = ReadyMatcher::new(ready.clone());
            let progress = Progress::default();
            fleet.guests.push(Guest { input, matcher, progress, said: Vec::new() });
            let sender = sender.clone();
            thread::spawn(move || pass_on(vm, output, &sender));
        }
        Ok(fleet)
    }

    /// Handles console output until each guest is `done`, or until `end`.
    fn work(&mut self, end: Instant, done: impl Fn(&Progress) -> bool) -> Result<(), QemuError> {
        while !self.guests.iter().all(|guest| done(&guest.progress)) {
            let (vm, bytes) = match self.output.recv_deadline(end) {
                Ok(received) => received,
                Err(RecvTimeoutError::Timeout) if end < self.limit => return Ok(()),
                Err(_) => return Err(QemuError::Time(self.timeout.as_secs_f64())),
            };
            let guest = &mut self.guests[vm];
            if bytes.is_empty() {
                let said = String::from_utf8_lossy(&guest.said);
                let said = said.trim().lines().last().unwrap_or_default().to_owned();
                return Err(QemuError::Ended { vm, said });
            }
            guest.said.extend(&bytes);
            guest.said.drain(..guest.said.len().saturating_sub(200));
            guest.progress.feed(&bytes, 0);
            if guest.matcher.feed(&bytes)
                && let Some(mut input) = guest.input.as_ref()
            {
                let line = Work::of(self.busy, vm as u32).line();
                // One that has ended is noticed by its output.
                let _ = writeln!(input, "{line}");
            }
        }
        Ok(())
    }

    fn rounds(&self) -> Vec<u64> {
        self.guests.iter().map(|guest| guest.progress.rounds()).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let mut children = lock(&self.children);
        terminate(&children);
        for mut child in children.drain(..) {
            let _ = child.wait();
        }
    }
}

/// Asks the processes to end.
fn terminate(children: &[Child]) {
    for child in children {
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // `timeout` passes it on. It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// `timeout` ends QEMU also when pxvm was killed, and cannot.
fn command(images: &Images, vm: usize, timeout: Duration) -> Command {
    let seconds = (timeout.as_secs().saturating_mul(3)).saturating_add(60).min(1 << 30);
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &seconds.to_string(), PROGRAM]);
    command.args(["-M", "virt", "-cpu", "rv32", "-m", &format!("{}M", images.memory)]);
    command.args(["-display", "none"]);
    command.args(["-monitor", "none", "-serial", "stdio", "-no-user-config", "-no-reboot"]);
    command.args(["-nic", "none"]).arg("-kernel").arg(&images.kernel);
    command.arg("-initrd").arg(&images.initrd);
    let words = &images.append;
    command.arg("-append").arg(format!("console=ttyS0 quiet panic=1 pxvm.host=vm{vm} {words}"));
    command
}

/// Passes output on until it ends, which is told by an empty piece.
fn pass_on(vm: usize, mut output: impl Read, sender: &Sender<(usize, Vec<u8>)>) {
    let mut buffer = [0; 4096];
    loop {
        let read = output.read(&mut buffer).unwrap_or(0);
        let sent = sender.send((vm, buffer[..read].to_vec()));
        if read == 0 || sent.is_err() {
            return;
        }
    }
}

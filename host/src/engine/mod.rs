//! The engine: runs a fleet until the condition that the user named. It receives the backend's
//! events, keeps the state of each VM, and passes console output on.
//!
//! One thread does that. Its state is in a [`FleetHandle`], through which others read it;
//! requests from others arrive as [`Request`] messages.

mod commands;
pub mod consoles;
mod handle;
mod shortfall;
mod state;
#[cfg(test)]
mod tests;

use commands::{CommandQueues, respond};
pub use handle::FleetHandle;
pub use state::{ControlError, FleetState, VmRecord};

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, at, bounded, never, select, tick};
use tokio::sync::oneshot;

use crate::backend::{Backend, BackendError, Event, EventKind, Inspection, Totals};
use crate::console::escape;
use crate::console::keyboard::Typed;
use crate::console::log::{Closed, Sink};
use crate::console::warning::warnings;
use crate::control::{Call, Reply, StateCounts, VmState};
use crate::exit::Code;
use crate::progress::Progress;
use crate::usage::Usage;
use crate::virtio;

/// Interval at which progress is shown and logs are flushed.
const TICK: Duration = Duration::from_millis(250);
/// Number of resets of a VM after which a message is printed.
const RESETS_NOTED: u32 = 5;
/// Number of guests' warnings that are printed.
const WARNED_MAX: u32 = 5;
/// How long a guest's state may take at the end of a run.
const INSPECTION_MAX: Duration = Duration::from_secs(1);
/// How long input from a pipe waits for a guest that never becomes ready.
const INPUT_HOLD_MAX: Duration = Duration::from_secs(5);
/// Bytes of console input that may wait for a VM.
const INPUT_MAX: usize = 64 << 10;
/// Interval at which the engine checks whether a VM has read its waiting input.
const ROOM_EVERY: Duration = Duration::from_millis(10);

/// Condition that ends a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// Every VM was ready once.
    Ready,
    /// Every VM has powered off.
    Halt,
    /// Only the user ends the run.
    Never,
}

/// Channel for the response to a [`Request`].
pub type Responder<T> = oneshot::Sender<Result<T, ControlError>>;

/// Requests that may wait for the fleet's thread, which receives many times a second.
pub const REQUESTS_MAX: usize = 4096;

/// A request to a running fleet.
#[derive(Debug)]
pub enum Request {
    /// Show the help of the console (Ctrl-A h).
    Help,
    /// Execute a command on a VM.
    Execute {
        /// Number of the VM.
        vm: u32,
        /// The command.
        call: Call,
        /// Receives the result when the command was completed.
        responder: Responder<Reply>,
    },
    /// Add VMs.
    Add {
        /// Number of VMs to add.
        count: u32,
        /// Receives the VMs' numbers when they are being started.
        responder: Responder<Vec<u32>>,
    },
}

/// Inputs of a run from outside the fleet. All of them are bounded.
#[derive(Debug)]
pub struct Inputs {
    /// Requests to the fleet.
    pub requests: Receiver<Request>,
    /// Requests to end the run, each with the outcome to report.
    pub end: Receiver<RunOutcome>,
    /// Console input for VM 0.
    pub typed: Typed,
}

/// Outcome of a run: why it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunOutcome {
    /// Every VM met the condition.
    Met,
    /// Every VM met the condition or failed, and at least one failed.
    Failed,
    /// The time limit was reached.
    Timeout,
    /// The user left with Ctrl-A x, or closed the console's output.
    Left,
    /// A signal ended the run: Ctrl-C, SIGTERM or the like.
    Interrupted,
}

impl RunOutcome {
    /// Returns the exit code of the program.
    pub fn code(self) -> Code {
        match self {
            Self::Met | Self::Left => Code::Success,
            Self::Failed => Code::Guest,
            Self::Timeout => Code::Timeout,
            Self::Interrupted => Code::Interrupted,
        }
    }
}

/// Result of a run.
#[derive(Clone, Debug)]
pub struct RunSummary {
    /// Why the run ended.
    pub outcome: RunOutcome,
    /// Records of the VMs.
    pub vms: Vec<VmRecord>,
    /// Number of VMs in each state.
    pub counts: StateCounts,
    /// Time from the start to the end of the run.
    pub wall: Duration,
    /// Sums over the fleet at the end of the run.
    pub totals: Totals,
    /// What VMs used of memory, if all were ready at some time.
    pub usage: Option<Usage>,
}

/// Options of a run.
#[derive(Debug)]
pub struct Options {
    /// Time limit of the run.
    pub timeout: Option<Duration>,
    /// Whether console input waits until the guest is ready to take it.
    pub hold_input: bool,
}

/// Runs a fleet to its end, then stops it and drains its last output.
pub fn run(
    fleet: &FleetHandle,
    options: &Options,
    inputs: &Inputs,
    sink: &mut dyn Sink,
    progress: &mut Progress,
) -> Result<RunSummary, BackendError> {
    let (start, backend) = (fleet.started(), fleet.backend());
    let timeout = match options.timeout.and_then(|t| start.checked_add(t)) {
        Some(end) => at(end),
        None => never(),
    };
    let held_long = at(Instant::now() + INPUT_HOLD_MAX);
    let ticker = tick(TICK);
    let typing = Typing::new(&inputs.typed, options.hold_input);
    let commands = CommandQueues::default();
    let memory = MemoryWatch::default();
    let mut run = Run { fleet, sink, progress, typing, commands, warned: 0, memory };

    let result = loop {
        if let Some(outcome) = fleet.state().outcome() {
            break Ok(outcome);
        }
        let again = run.typing.pass_on(backend);
        let written = select! {
            recv(backend.events()) -> event => match event {
                Ok(event) => run.handle_event(&event),
                Err(_) => break Err(backend.failure()),
            },
            recv(inputs.requests) -> request => match request {
                Ok(request) => run.handle_request(request),
                Err(_) => break Ok(RunOutcome::Interrupted),
            },
            recv(inputs.end) -> outcome => break Ok(outcome.unwrap_or(RunOutcome::Interrupted)),
            recv(run.typing.added) -> received => {
                run.typing.input_added(received.is_ok());
                Ok(())
            }
            recv(again) -> _ => Ok(()),
            recv(held_long) -> _ => {
                run.typing.release();
                Ok(())
            }
            recv(timeout) -> _ => break Ok(RunOutcome::Timeout),
            recv(ticker) -> _ => {
                let instructions = backend.totals().instructions;
                run.progress.show(fleet.counts(), instructions, start.elapsed());
                run.memory.look(fleet);
                run.sink.flush();
                Ok(())
            }
        };
        if let Err(Closed) = written {
            break Ok(RunOutcome::Left);
        }
    };

    if let Ok(RunOutcome::Timeout) = result {
        run.tell_wrong_version();
    }
    run.memory.look(fleet);
    fleet.ends();
    let (wall, totals) = (start.elapsed(), backend.totals());
    backend.stop();
    // Output that guests wrote before they were stopped.
    for event in backend.events() {
        if let EventKind::Console(bytes) = &event.kind {
            // The run is over: a write error changes nothing any more.
            let _ = run.write(event.vm, bytes);
        }
    }
    run.sink.flush();
    let (counts, vms) = (fleet.counts(), fleet.state().records().to_vec());
    run.progress.finish(counts, totals.instructions, wall);
    let outcome = result?;
    Ok(RunSummary { outcome, vms, counts, wall, totals, usage: run.memory.usage() })
}

/// What the thread that runs a fleet works on.
struct Run<'a> {
    fleet: &'a FleetHandle,
    sink: &'a mut dyn Sink,
    progress: &'a mut Progress,
    typing: Typing<'a>,
    commands: CommandQueues,
    /// Number of guests' warnings so far.
    warned: u32,
    memory: MemoryWatch,
}

/// What a fleet's VMs have used of memory so far.
#[derive(Debug, Default)]
struct MemoryWatch {
    /// Private frames of a VM, on average, when all were ready first.
    ready: Option<u32>,
    /// The same at the most.
    most: u32,
}

impl MemoryWatch {
    /// Looks at what they use now.
    fn look(&mut self, fleet: &FleetHandle) {
        let counts = fleet.counts();
        let count = counts.iter().map(|(_, count)| count).sum::<u32>().max(1);
        let each = fleet.backend().totals().private_frames.div_ceil(count);
        self.most = self.most.max(each);
        if counts[VmState::Ready] == count {
            self.ready.get_or_insert(each);
        }
    }

    fn usage(&self) -> Option<Usage> {
        self.ready.map(|ready| Usage { ready, most: self.most })
    }
}

impl Run<'_> {
    fn handle_event(&mut self, event: &Event) -> Result<(), Closed> {
        self.fleet.state().note(event);
        match &event.kind {
            EventKind::Console(bytes) => return self.write(event.vm, bytes),
            EventKind::Ready => {
                self.typing.release();
                self.memory.look(self.fleet);
                self.pass_warnings_on(event.vm);
            }
            EventKind::Completed(command, result) => {
                self.commands.complete(self.fleet, event.vm, *command, result.clone());
            }
            EventKind::Reset | EventKind::Halted(_) | EventKind::Faulted(_) => {
                print_event(self.fleet, self.progress, event);
            }
        }
        Ok(())
    }

    fn handle_request(&mut self, request: Request) -> Result<(), Closed> {
        match request {
            Request::Help => return self.sink.write(0, escape::HELP.as_bytes()),
            Request::Execute { vm, call, responder } => {
                self.commands.push(self.fleet, vm, call, Some(responder));
            }
            Request::Add { count, responder } => {
                respond(Some(responder), self.commands.add(self.fleet, count));
            }
        }
        Ok(())
    }

    /// Says so where the first guest that misses the condition waits for virtio devices of the other
    /// version. Its neighbours boot what it boots.
    fn tell_wrong_version(&mut self) {
        let mut vms = (0..).zip(self.fleet.state().records().to_vec());
        let Some((vm, _)) = vms.find(|(_, record)| record.resolved().is_none()) else { return };
        let (sender, inspected) = bounded(1);
        let inspector = Box::new(move |inspection| drop(sender.send(inspection)));
        if self.fleet.backend().inspect(vm, inspector).is_err() {
            return;
        }
        if let Ok(Some(Inspection { vm: state, .. })) = inspected.recv_timeout(INSPECTION_MAX)
            && let Some(what) = virtio::wrong_version(&state.platform.dev.virtio)
        {
            self.progress.say(&format!("vm{vm} {what}"));
        }
    }

    /// Prints what a guest that has become ready warns of.
    fn pass_warnings_on(&mut self, vm: u32) {
        for warning in warnings(&self.fleet.consoles.tail(vm).bytes) {
            self.warned = self.warned.saturating_add(1);
            match self.warned.cmp(&(WARNED_MAX + 1)) {
                Ordering::Less => self.progress.say(&format!("vm{vm} warns: {warning}")),
                Ordering::Equal => self.progress.say("more machines warn, on their consoles"),
                Ordering::Greater => {}
            }
        }
    }

    /// Writes console output of a VM for all who see it.
    fn write(&mut self, vm: u32, bytes: &[u8]) -> Result<(), Closed> {
        self.fleet.consoles.write(vm, bytes);
        self.sink.write(vm, bytes)
    }
}

/// Prints an event of a VM that concerns the user.
fn print_event(fleet: &FleetHandle, progress: &Progress, event: &Event) {
    let &Event { vm, instret, ref kind } = event;
    match kind {
        EventKind::Faulted(reason) => progress.say(&format!("vm{vm} faulted: {reason}")),
        EventKind::Reset => {
            tracing::info!(vm, instret, "starts again");
            if fleet.record(vm).is_ok_and(|record| record.resets == RESETS_NOTED) {
                progress.say(&format!("vm{vm} resets again and again"));
            }
        }
        EventKind::Halted(0) => tracing::info!(vm, instret, "powered off"),
        EventKind::Halted(status) => progress.say(&format!("vm{vm} failed with status {status}")),
        EventKind::Console(_) | EventKind::Ready | EventKind::Completed(..) => {}
    }
}

/// Forwards standard input to VM 0, no faster than the VM reads it.
struct Typing<'a> {
    typed: &'a Typed,
    added: Receiver<()>,
    /// Whether input is held back because the guest is not ready yet.
    held: bool,
}

impl<'a> Typing<'a> {
    fn new(typed: &'a Typed, held: bool) -> Self {
        Self { typed, added: typed.added.clone(), held }
    }

    /// Handles news of standard input; `more` is false when the input has ended.
    fn input_added(&mut self, more: bool) {
        if !more {
            self.added = never();
        }
    }

    fn release(&mut self) {
        self.held = false;
    }

    /// Forwards what the VM has room for. The returned channel fires when there may be more room.
    fn pass_on(&self, backend: &dyn Backend) -> Receiver<Instant> {
        if self.held || self.typed.is_empty() {
            return never();
        }
        let bytes = self.typed.take(INPUT_MAX.saturating_sub(backend.waiting(0)));
        if !bytes.is_empty() {
            backend.input(0, &bytes);
        }
        if self.typed.is_empty() { never() } else { after(ROOM_EVERY) }
    }
}

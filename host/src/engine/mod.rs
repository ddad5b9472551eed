//! Runs a fleet until the condition that the user asked for: listens to the backend, keeps the
//! state of each VM, passes consoles on.
//!
//! One thread does that. What it knows is in a [`Hub`], where others read it; what others want
//! done comes as a [`Control`].

pub mod consoles;
mod hub;
mod ledger;
#[cfg(test)]
mod tests;

pub use hub::Hub;
pub use ledger::{ControlError, Counts, Ledger, Record, State};

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, at, never, select, tick};
use tokio::sync::oneshot;

use crate::backend::{Backend, Event, EventKind, Order, Totals};
use crate::console::escape;
use crate::console::keyboard::Typed;
use crate::console::log::{Closed, Sink};
use crate::exit::{Code, Error};
use crate::progress::Progress;

/// How often progress is shown and logs are flushed.
const TICK: Duration = Duration::from_millis(250);
/// Resets of a VM after which the user is told.
const RESETS_NOTED: u32 = 5;
/// Input from a pipe waits this long for a guest that never says it is ready.
const INPUT_PATIENCE: Duration = Duration::from_secs(5);
/// Console input that may wait for a VM.
const INPUT_MAX: usize = 64 << 10;
/// How often it is looked whether a VM has read what waited.
const ROOM_EVERY: Duration = Duration::from_millis(10);

/// When a fleet ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// When every VM was ready once.
    Ready,
    /// When every VM has powered off.
    Halt,
    /// When the user says so.
    Never,
}

/// Where the answer to a [`Control`] goes.
pub type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

/// Controls that may wait for the thread that runs a fleet; it looks at them many times a second.
pub const CONTROLS_MAX: usize = 4096;

/// What is asked of a fleet while it runs.
#[derive(Debug)]
pub enum Control {
    /// Ctrl-A h.
    Help,
    /// Something is to be done with a VM.
    Order {
        /// Which VM.
        vm: u32,
        /// What.
        order: Order,
        /// Told when it was done.
        reply: Reply<()>,
    },
    /// VMs are to be added.
    Add {
        /// How many.
        count: u32,
        /// Told their numbers when they are being started.
        reply: Reply<Vec<u32>>,
    },
}

/// What comes from outside while a fleet runs. All of it is bounded.
#[derive(Debug)]
pub struct Inputs {
    /// What is asked of the fleet.
    pub controls: Receiver<Control>,
    /// The run is to end, and this is why.
    pub end: Receiver<Verdict>,
    /// Console input for VM 0.
    pub typed: Typed,
}

/// Why a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Every VM met the condition.
    Met,
    /// Every VM met the condition or failed, and at least one failed.
    Failed,
    /// Time was up.
    Timeout,
    /// The user left with Ctrl-A x, or closed what the console was written to.
    Left,
    /// A signal: Ctrl-C, SIGTERM or the like.
    Interrupted,
}

impl Verdict {
    /// The exit code that tells it.
    pub fn code(self) -> Code {
        match self {
            Self::Met | Self::Left => Code::Success,
            Self::Failed => Code::Guest,
            Self::Timeout => Code::Timeout,
            Self::Interrupted => Code::Interrupted,
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why.
    pub verdict: Verdict,
    /// The VMs.
    pub vms: Vec<Record>,
    /// How many are in which state.
    pub counts: Counts,
    /// From the start to the verdict.
    pub wall: Duration,
    /// Sums at the verdict.
    pub totals: Totals,
}

/// VMs that are named when a run ends otherwise than it should.
const NAMED_MAX: usize = 5;

impl Outcome {
    /// What kept the fleet from the condition, as a sentence; nothing when it was met or the user
    /// ended it.
    pub fn shortfall(&self, until: Until) -> Option<String> {
        let (settled, what) = match (self.verdict, until) {
            (Verdict::Met | Verdict::Left | Verdict::Interrupted, _) => return None,
            (Verdict::Timeout, Until::Never) => return Some("ended by --timeout".to_owned()),
            (Verdict::Timeout, Until::Ready) => (None, "not ready before --timeout"),
            (Verdict::Timeout, Until::Halt) => (None, "not powered off before --timeout"),
            (Verdict::Failed, Until::Ready) => (Some(false), "ended without being ready"),
            (Verdict::Failed, _) => (Some(false), "failed"),
        };
        let vms = (0..).zip(&self.vms).filter(|(_, vm)| vm.settled() == settled);
        let names: Vec<String> = vms.map(|(id, _)| crate::machine::fleet::name(id)).collect();
        let some = names[..names.len().min(NAMED_MAX)].join(", ");
        let more = if names.len() > NAMED_MAX { ", ..." } else { "" };
        Some(format!("{} of {} machines {what}: {some}{more}", names.len(), self.vms.len()))
    }
}

/// What a run needs to know.
#[derive(Debug)]
pub struct Options {
    /// When it ends at the latest.
    pub timeout: Option<Duration>,
    /// Whether input waits until the guest is ready to take it.
    pub hold_input: bool,
}

/// Orders of one VM that may wait for each other.
const ORDERS_MAX: usize = 16;

/// An order, and who wants to know when it is obeyed.
type Given = (Order, Option<Reply<()>>);

/// Orders that were given and not obeyed yet, by VM. The first of each was passed on.
#[derive(Default)]
struct Orders(HashMap<u32, VecDeque<Given>>);

impl Orders {
    /// Takes an order; passes it on, unless an earlier one is under way.
    fn give(&mut self, hub: &Hub, vm: u32, order: Order, reply: Option<Reply<()>>) {
        let queue = self.0.entry(vm).or_default();
        if queue.len() >= ORDERS_MAX {
            return answer(reply, Err(ControlError::Busy(vm)));
        }
        queue.push_back((order, reply));
        if queue.len() == 1 {
            self.pass_on(hub, vm);
        }
    }

    /// Passes on the first order of a VM that can be obeyed.
    fn pass_on(&mut self, hub: &Hub, vm: u32) {
        let Some(queue) = self.0.get_mut(&vm) else { return };
        while let Some((order, _)) = queue.front() {
            let allowed = hub.ledger().allows(vm, *order);
            match allowed.and_then(|()| Ok(hub.backend().order(vm, *order)?)) {
                Ok(()) => return,
                Err(error) => {
                    answer(queue.pop_front().and_then(|(_, reply)| reply), Err(error));
                }
            }
        }
        self.0.remove(&vm);
    }

    /// A VM has obeyed.
    fn obeyed(&mut self, hub: &Hub, vm: u32, order: Order) {
        let first = self.0.get_mut(&vm).and_then(VecDeque::pop_front);
        answer(first.and_then(|(_, reply)| reply), hub.ledger().outcome(vm, order));
        self.pass_on(hub, vm);
    }

    /// Adds VMs.
    fn add(&mut self, hub: &Hub, count: u32) -> Result<Vec<u32>, ControlError> {
        let first = hub.ledger().add(count)?;
        let added: Vec<u32> = (first..first + count).collect();
        for &vm in &added {
            self.give(hub, vm, Order::Start, None);
        }
        Ok(added)
    }
}

fn answer<T>(reply: Option<Reply<T>>, result: Result<T, ControlError>) {
    // Whoever asked may have gone.
    drop(reply.map(|reply| reply.send(result)));
}

/// Runs the fleet of `hub` to its end, then stops it and takes its last output.
pub fn run(
    hub: &Hub,
    options: &Options,
    inputs: &Inputs,
    sink: &mut dyn Sink,
    progress: &mut Progress,
) -> Result<Outcome, Error> {
    let (start, backend) = (hub.started(), hub.backend());
    let mut orders = Orders::default();
    let timeout = match options.timeout.and_then(|t| start.checked_add(t)) {
        Some(end) => at(end),
        None => never(),
    };
    let patience = at(Instant::now() + INPUT_PATIENCE);
    let ticker = tick(TICK);
    let mut typing = Typing::new(&inputs.typed, options.hold_input);

    let result: Result<Verdict, Error> = loop {
        if let Some(verdict) = hub.ledger().verdict() {
            break Ok(verdict);
        }
        let again = typing.pass_on(backend);
        select! {
            recv(backend.events()) -> event => {
                let Ok(event) = event else {
                    break Err(backend.failure().into());
                };
                hub.ledger().note(&event);
                match &event.kind {
                    EventKind::Console(bytes) => {
                        hub.consoles.write(event.vm, bytes);
                        if let Err(Closed) = sink.write(event.vm, bytes) {
                            break Ok(Verdict::Left);
                        }
                    }
                    EventKind::Ready => typing.release(),
                    EventKind::Obeyed(order) => orders.obeyed(hub, event.vm, *order),
                    _ => tell(hub, progress, &event),
                }
            }
            recv(inputs.controls) -> control => match control {
                Ok(Control::Help) => {
                    if let Err(Closed) = sink.write(0, escape::HELP.as_bytes()) {
                        break Ok(Verdict::Left);
                    }
                }
                Ok(Control::Order { vm, order, reply }) => {
                    orders.give(hub, vm, order, Some(reply));
                }
                Ok(Control::Add { count, reply }) => {
                    answer(Some(reply), orders.add(hub, count));
                }
                Err(_) => break Ok(Verdict::Interrupted),
            },
            recv(inputs.end) -> verdict => break Ok(verdict.unwrap_or(Verdict::Interrupted)),
            recv(typing.bell) -> rung => typing.rung(rung.is_ok()),
            recv(again) -> _ => {}
            recv(patience) -> _ => typing.release(),
            recv(timeout) -> _ => break Ok(Verdict::Timeout),
            recv(ticker) -> _ => {
                progress.show(hub.counts(), backend.totals(), start.elapsed());
                sink.flush();
            }
        }
    };

    hub.ends();
    let (wall, totals) = (start.elapsed(), backend.totals());
    backend.stop();
    // What guests wrote before they stood still.
    for event in backend.events() {
        if let EventKind::Console(bytes) = &event.kind {
            hub.consoles.write(event.vm, bytes);
            // Nobody is left to tell.
            let _ = sink.write(event.vm, bytes);
        }
    }
    sink.flush();
    let (counts, vms) = (hub.counts(), hub.ledger().records().to_vec());
    progress.finish(counts, totals, wall);
    let verdict = result?;
    Ok(Outcome { verdict, vms, counts, wall, totals })
}

/// Tells the user about something that happened to a VM.
fn tell(hub: &Hub, progress: &Progress, event: &Event) {
    let &Event { vm, instret, ref kind } = event;
    match kind {
        EventKind::Faulted(reason) => progress.say(&format!("vm{vm} faulted: {reason}")),
        EventKind::Reset => {
            tracing::info!(vm, instret, "starts again");
            if hub.record(vm).is_ok_and(|record| record.resets == RESETS_NOTED) {
                progress.say(&format!("vm{vm} resets again and again"));
            }
        }
        EventKind::Halted(0) => tracing::info!(vm, instret, "powered off"),
        EventKind::Halted(status) => progress.say(&format!("vm{vm} failed with status {status}")),
        EventKind::Console(_) | EventKind::Ready | EventKind::Obeyed(_) => {}
    }
}

/// Passes standard input on to VM 0, no faster than the VM reads it.
struct Typing<'a> {
    typed: &'a Typed,
    bell: Receiver<()>,
    /// The guest is not ready yet.
    held: bool,
}

impl<'a> Typing<'a> {
    fn new(typed: &'a Typed, held: bool) -> Self {
        Self { typed, bell: typed.bell.clone(), held }
    }

    /// The bell has rung, or its rope was cut: standard input has ended.
    fn rung(&mut self, goes_on: bool) {
        if !goes_on {
            self.bell = never();
        }
    }

    fn release(&mut self) {
        self.held = false;
    }

    /// Passes on what there is room for. The channel tells when to look again for more room.
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

//! Runs a fleet until the condition that the user asked for: listens to the backend, keeps the
//! state of each VM, passes consoles on.

use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select, tick};

use crate::backend::{Backend, Event, EventKind, Totals};
use crate::console::escape;
use crate::console::log::Sink;
use crate::exit::{Code, Error};
use crate::progress::Progress;

/// How often progress is shown and logs are flushed.
const TICK: Duration = Duration::from_millis(250);
/// Resets of a VM after which the user is told.
const RESETS_NOTED: u32 = 5;
/// Input from a pipe waits this long for a guest that never says it is ready.
const INPUT_PATIENCE: Duration = Duration::from_secs(5);

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

/// What comes from the user while a fleet runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    /// Ctrl-C or SIGTERM.
    Interrupt,
    /// Ctrl-A x.
    Leave,
    /// Ctrl-A h.
    Help,
    /// Console input for VM 0.
    Input(Vec<u8>),
}

/// What a VM is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Started, not ready yet.
    Booting,
    /// Its console showed the ready pattern.
    Ready,
    /// Powered off.
    Halted,
    /// Cannot go on, or powered off with a failure.
    Faulted,
}

/// What is known of one VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it is doing.
    pub state: State,
    /// Instructions it had retired when it was ready.
    pub ready_instret: Option<u64>,
    /// How often it started again.
    pub resets: u32,
    /// Why it failed.
    pub reason: Option<String>,
    /// Whether it counts for the condition: met, failed, or still open.
    settled: Option<bool>,
}

/// How many VMs are in each state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// [`State::Booting`].
    pub booting: u32,
    /// [`State::Ready`].
    pub ready: u32,
    /// [`State::Halted`].
    pub halted: u32,
    /// [`State::Faulted`].
    pub faulted: u32,
}

impl Counts {
    fn of(&mut self, state: State) -> &mut u32 {
        match state {
            State::Booting => &mut self.booting,
            State::Ready => &mut self.ready,
            State::Halted => &mut self.halted,
            State::Faulted => &mut self.faulted,
        }
    }
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
    /// The user left with Ctrl-A x.
    Left,
    /// Ctrl-C or SIGTERM.
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

/// What a run needs to know.
#[derive(Debug)]
pub struct Options {
    /// When it ends.
    pub until: Until,
    /// When it ends at the latest.
    pub timeout: Option<Duration>,
    /// Whether input waits until the guest is ready to take it.
    pub hold_input: bool,
}

/// The bookkeeping of a fleet, apart from all waiting.
#[derive(Debug)]
struct Ledger {
    until: Until,
    vms: Vec<Record>,
    counts: Counts,
    /// VMs whose part in the condition is open.
    open: u32,
    failed: u32,
}

impl Ledger {
    fn new(count: u32, until: Until) -> Self {
        let record = Record {
            state: State::Booting,
            ready_instret: None,
            resets: 0,
            reason: None,
            settled: None,
        };
        let counts = Counts { booting: count, ..Counts::default() };
        Self { until, vms: vec![record; count as usize], counts, open: count, failed: 0 }
    }

    /// Notes an event.
    fn note(&mut self, event: &Event) {
        let Some(vm) = self.vms.get_mut(event.vm as usize) else { return };
        let until = self.until;
        let (state, settled) = match &event.kind {
            EventKind::Console(_) => return,
            EventKind::Ready => {
                vm.ready_instret = Some(event.instret);
                (State::Ready, (until == Until::Ready).then_some(true))
            }
            EventKind::Reset => {
                vm.ready_instret = None;
                vm.resets += 1;
                (State::Booting, None)
            }
            EventKind::Halted(0) => (State::Halted, Some(until == Until::Halt)),
            EventKind::Halted(status) => {
                vm.reason = Some(format!("it powered off with status {status}"));
                (State::Faulted, Some(false))
            }
            EventKind::Faulted(reason) => {
                vm.reason = Some(reason.to_string());
                (State::Faulted, Some(false))
            }
        };
        *self.counts.of(vm.state) -= 1;
        *self.counts.of(state) += 1;
        vm.state = state;
        if vm.settled.is_none() && settled.is_some() {
            vm.settled = settled;
            self.open -= 1;
            self.failed += u32::from(settled == Some(false));
        }
    }

    fn resets(&self, vm: u32) -> u32 {
        self.vms.get(vm as usize).map_or(0, |vm| vm.resets)
    }

    /// Whether the run is over by what the VMs did.
    fn verdict(&self) -> Option<Verdict> {
        match (self.until, self.open, self.failed) {
            (Until::Never, ..) => None,
            (_, 0, 0) => Some(Verdict::Met),
            (_, 0, _) => Some(Verdict::Failed),
            _ => None,
        }
    }
}

/// Runs the fleet on `backend` to its end, then stops it and takes its last output.
pub fn run(
    backend: &dyn Backend,
    count: u32,
    options: &Options,
    controls: &Receiver<Control>,
    sink: &mut dyn Sink,
    progress: &mut Progress,
) -> Result<Outcome, Error> {
    let start = Instant::now();
    let mut ledger = Ledger::new(count, options.until);
    let timeout = match options.timeout.and_then(|t| start.checked_add(t)) {
        Some(end) => at(end),
        None => never(),
    };
    let patience = at(start + INPUT_PATIENCE);
    let ticker = tick(TICK);
    let mut held = options.hold_input.then(Vec::new);
    let failed = |e: io::Error| Error::io("write a console", e);

    let result = loop {
        if let Some(verdict) = ledger.verdict() {
            break Ok(verdict);
        }
        select! {
            recv(backend.events()) -> event => {
                let Ok(event) = event else {
                    break Err(backend.failure().into());
                };
                ledger.note(&event);
                match &event.kind {
                    EventKind::Console(bytes) => {
                        if let Err(e) = sink.write(event.vm, bytes) {
                            break Err(failed(e));
                        }
                    }
                    EventKind::Ready => release(backend, &mut held),
                    EventKind::Faulted(reason) => {
                        progress.say(&format!("vm{} faulted: {reason}", event.vm));
                    }
                    EventKind::Reset => {
                        tracing::info!(vm = event.vm, instret = event.instret, "starts again");
                        if ledger.resets(event.vm) == RESETS_NOTED {
                            progress.say(&format!("vm{} resets again and again", event.vm));
                        }
                    }
                    EventKind::Halted(0) => {
                        tracing::info!(vm = event.vm, instret = event.instret, "powered off");
                    }
                    EventKind::Halted(status) => {
                        progress.say(&format!("vm{} failed with status {status}", event.vm));
                    }
                }
            }
            recv(controls) -> control => match control {
                Ok(Control::Input(bytes)) => match &mut held {
                    Some(held) => held.extend(bytes),
                    None => backend.input(0, &bytes),
                },
                Ok(Control::Help) => {
                    if let Err(e) = sink.write(0, escape::HELP.as_bytes()) {
                        break Err(failed(e));
                    }
                }
                Ok(Control::Leave) => break Ok(Verdict::Left),
                Ok(Control::Interrupt) => break Ok(Verdict::Interrupted),
                Err(_) => break Ok(Verdict::Interrupted),
            },
            recv(patience) -> _ => release(backend, &mut held),
            recv(timeout) -> _ => break Ok(Verdict::Timeout),
            recv(ticker) -> _ => {
                progress.show(ledger.counts, backend.totals(), start.elapsed());
                if let Err(e) = sink.flush() {
                    break Err(failed(e));
                }
            }
        }
    };

    let (wall, totals) = (start.elapsed(), backend.totals());
    backend.stop();
    // What guests wrote before they stood still.
    for event in backend.events() {
        if let EventKind::Console(bytes) = &event.kind {
            sink.write(event.vm, bytes).map_err(failed)?;
        }
    }
    sink.flush().map_err(failed)?;
    progress.finish(ledger.counts, totals, wall);
    let verdict = result?;
    Ok(Outcome { verdict, vms: ledger.vms, counts: ledger.counts, wall, totals })
}

/// Gives VM 0 the input that waited.
fn release(backend: &dyn Backend, held: &mut Option<Vec<u8>>) {
    if let Some(bytes) = held.take()
        && !bytes.is_empty()
    {
        backend.input(0, &bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Reason;

    fn ledger(count: u32, until: Until, events: &[(u32, EventKind)]) -> Ledger {
        let mut ledger = Ledger::new(count, until);
        for (vm, kind) in events {
            ledger.note(&Event { vm: *vm, instret: 10, kind: kind.clone() });
        }
        ledger
    }

    #[test]
    fn a_fleet_is_ready_when_all_its_vms_were() {
        let open = ledger(2, Until::Ready, &[(0, EventKind::Ready), (0, EventKind::Ready)]);
        assert_eq!(open.verdict(), None);
        let met = ledger(2, Until::Ready, &[(0, EventKind::Ready), (1, EventKind::Ready)]);
        assert_eq!(met.verdict(), Some(Verdict::Met));
        assert_eq!((met.counts.ready, met.vms[1].ready_instret), (2, Some(10)));
    }

    #[test]
    fn a_vm_that_ends_too_early_fails_the_fleet_but_not_its_neighbours() {
        let events = [(0, EventKind::Halted(0)), (1, EventKind::Ready)];
        let ledger = ledger(2, Until::Ready, &events);
        assert_eq!(ledger.verdict(), Some(Verdict::Failed));
        assert_eq!((ledger.counts.halted, ledger.counts.ready), (1, 1));
    }

    #[test]
    fn halting_with_a_failure_is_a_fault() {
        let events = [(0, EventKind::Halted(0)), (1, EventKind::Halted(3))];
        let ledger = ledger(2, Until::Halt, &events);
        assert_eq!(ledger.verdict(), Some(Verdict::Failed));
        assert_eq!((ledger.counts.halted, ledger.counts.faulted), (1, 1));
    }

    #[test]
    fn never_means_that_no_guest_ends_the_run() {
        let events = [(0, EventKind::Faulted(Reason::NoMemory))];
        assert_eq!(ledger(1, Until::Never, &events).verdict(), None);
    }

    #[test]
    fn a_reset_vm_boots_again() {
        let events = [(0, EventKind::Ready), (0, EventKind::Reset)];
        let ledger = ledger(1, Until::Halt, &events);
        assert_eq!((ledger.counts.booting, ledger.vms[0].ready_instret), (1, None));
        assert_eq!(ledger.vms[0].resets, 1);
    }
}

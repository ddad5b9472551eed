//! A worker thread of the CPU backend: takes runnable VMs from the scheduler and runs them, slice
//! after slice.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::Sender;
use emu_core::abi::{Exit, ExitCode, Vm};
use emu_core::trace::NoTrace;

use super::arena::{Guest, Session, WorkerContext};
use super::port::{CpuPort, RECEIVED_MAX};
use super::{Request, Shared, VmSlot};
use crate::backend::clock::GuestClock;
use crate::backend::life::{Action, Life, State, Trigger};
use crate::backend::part::VmLink;
use crate::backend::trap_loop::TrapLoop;
use crate::backend::{ClockSource, Event, EventKind, Inspection, Reason, Settings};
use crate::control::{Call, Command, Reply};
use crate::net::DropReason;
use crate::sync::lock;

/// Instructions in a slice. Slices end at multiples of this, so that a value taken after a slice
/// (the instruction count of a ready VM) is the same in every run of a deterministic fleet.
pub use emu_device::protocol::launch::SLICE;
/// Speed that is assumed until one has been measured, in instructions a second.
const FIRST_IPS: u64 = 200_000_000;
/// Slices that a VM runs before the next VM gets its turn: about 4 ms.
const BATCH: u32 = 32;

/// What only the worker touches that runs a VM: the VM's life and, while the VM has memory, the
/// running guest.
pub struct VmRun {
    life: Life,
    guest: Option<Box<RunningGuest>>,
}

impl VmRun {
    /// Returns a VM that is started at once, or waits for a reset.
    pub fn new(starts: bool, settings: &Settings) -> Self {
        Self { life: Life::new(starts, settings), guest: None }
    }
}

/// A guest with memory.
struct RunningGuest {
    guest: Guest,
    port: CpuPort,
    clock: GuestClock,
    /// Packets to and from the guest that its network card has dropped.
    card_drops: (u64, u64),
}

/// How a batch of slices ended.
struct BatchEnd {
    /// What is to be done with the VM.
    action: Action,
    /// Events to report.
    events: Vec<EventKind>,
    /// When a parked VM is to be woken.
    timer: Option<Instant>,
}

/// One worker thread of the backend.
pub struct Worker<'a> {
    shared: &'a Shared,
    events: Sender<Event>,
    context: WorkerContext,
}

impl<'a> Worker<'a> {
    /// Returns a worker that reports to `events`.
    pub fn new(shared: &'a Shared, events: Sender<Event>, context: WorkerContext) -> Self {
        Self { shared, events, context }
    }

    /// Runs VMs until the fleet is stopped.
    pub fn work(&mut self) {
        let shared = self.shared;
        while let Some(index) = shared.sched.next() {
            let Some(slot) = shared.slots.get(index as usize) else { continue };
            let mut run = lock(&slot.run);
            // The core does not panic, whatever a guest does. Should it have a bug, only the guest
            // that met it ends.
            let turn = catch_unwind(AssertUnwindSafe(|| self.turn(index, slot, &mut run)));
            let timer = turn.unwrap_or_else(|panic| {
                let reason = Reason::Internal(message(panic.as_ref()));
                self.report(
                    index,
                    slot.instret.load(Ordering::Relaxed),
                    EventKind::Faulted(reason),
                );
                let action = run.life.on(Trigger::Failure);
                debug_assert_eq!(action, Action::Free);
                self.free(index, slot, &mut run);
                None
            });
            let state = run.life.state();
            drop(run);
            shared.sched.put(index, state, timer);
        }
    }

    fn report(&self, index: u32, instret: u64, kind: EventKind) {
        // Blocks while the listener is busy. Sending fails only when the program ends.
        let _ = self.events.send(self.shared.part.event(index, instret, kind));
    }

    /// Runs a VM's turn: starts the VM if need be, executes pending requests, and runs a batch of
    /// slices. Returns when to wake the VM if it is parked.
    fn turn(&mut self, index: u32, slot: &VmSlot, run: &mut VmRun) -> Option<Instant> {
        loop {
            if run.life.state() == State::Starting {
                self.start(index, slot, run);
            }
            self.execute_requests(index, slot, run);
            // A parked VM has a turn because its timer expired, input arrived, or it had a request.
            // Running it shows whether it has something to do.
            let _ = run.life.on(Trigger::Wake);
            let guest = run.guest.as_mut().filter(|_| run.life.is_runnable())?;
            let BatchEnd { action, events, timer } = self.batch(index, slot, &mut run.life, guest);
            let instret = slot.instret.load(Ordering::Relaxed);
            for kind in events {
                self.report(index, instret, kind);
            }
            match action {
                Action::Restart | Action::Start => {
                    self.shared.part.link(index).reset();
                    self.start(index, slot, run);
                }
                Action::Free => self.free(index, slot, run),
                Action::Nothing | Action::Run | Action::RunOn | Action::Park => {}
            }
            if !slot.has_requests.load(Ordering::Acquire) {
                return timer;
            }
        }
    }

    /// Starts a VM, or ends it when there is no memory for it.
    fn start(&self, index: u32, slot: &VmSlot, run: &mut VmRun) {
        if !self.make(index, slot, run) {
            self.refuse(index, slot, run);
        }
    }

    /// Makes a VM at its first instruction. Returns `false` when there is no memory for it.
    fn make(&self, index: u32, slot: &VmSlot, run: &mut VmRun) -> bool {
        let shared = self.shared;
        // The frames of the old guest are freed before the new one takes some.
        let input = run.guest.take().map(|old| old.port.input).unwrap_or_default();
        let staged = shared.part.stage(index, run.life.earlier());
        let guest = Guest::new(&shared.arena, &shared.part.fleet.base, staged, &self.context);
        let Ok(guest) = guest else {
            slot.waiting.fetch_sub(input.len(), Ordering::Relaxed);
            return false;
        };
        let timebase = shared.part.fleet.plan.kind.map().timebase;
        let mut port = CpuPort::new(shared.part.vm(index), Arc::clone(&shared.part.settings.link));
        port.input = input;
        let clock = GuestClock::new(shared.part.settings.clock, timebase, FIRST_IPS);
        run.guest = Some(Box::new(RunningGuest { guest, port, clock, card_drops: (0, 0) }));
        let action = run.life.on(Trigger::Started);
        debug_assert_eq!(action, Action::Run);
        true
    }

    /// Ends a VM for which there is no memory.
    fn refuse(&self, index: u32, slot: &VmSlot, run: &mut VmRun) {
        let instret = slot.instret.load(Ordering::Relaxed);
        self.report(index, instret, EventKind::Faulted(Reason::NoMemory));
        let action = run.life.on(Trigger::NoMemory);
        debug_assert_eq!(action, Action::Free);
        self.free(index, slot, run);
    }

    /// Gives a VM's memory back, and drops input that waits for it.
    fn free(&self, index: u32, slot: &VmSlot, run: &mut VmRun) {
        let taken = run.guest.take().map_or(0, |old| old.port.input.len());
        let mut input = lock(&slot.input);
        slot.waiting.fetch_sub(taken + input.len(), Ordering::Relaxed);
        input.clear();
        self.shared.part.link(index).end();
    }

    /// Executes pending commands and inspections.
    fn execute_requests(&self, index: u32, slot: &VmSlot, run: &mut VmRun) {
        if !slot.has_requests.swap(false, Ordering::Acquire) {
            return;
        }
        let requests = std::mem::take(&mut *lock(&slot.requests));
        for request in requests {
            let instret = slot.instret.load(Ordering::Relaxed);
            match request {
                Request::Execute(call) => self.execute(index, slot, run, &call, instret),
                Request::Inspect(inspector) => {
                    inspector(run.guest.as_ref().map(|running| Inspection {
                        vm: Box::new(running.guest.vm().clone()),
                        instret,
                        private_frames: running.guest.private_frames(),
                    }));
                }
            }
        }
    }

    /// Executes a command: the place for each new one on the CPU.
    fn execute(&self, index: u32, slot: &VmSlot, run: &mut VmRun, call: &Call, instret: u64) {
        let command = call.command();
        let (result, has_memory) = match call {
            Call::Pause(_) | Call::Resume(_) | Call::Reset(_) | Call::Stop(_) => {
                (Ok(Reply::None), self.change_life(index, slot, run, command, instret))
            }
        };
        self.report(index, instret, EventKind::Completed(command, result));
        if !has_memory {
            self.refuse(index, slot, run);
        }
    }

    /// Changes a VM's life by a command. Returns `false` when there is no memory to start the VM.
    fn change_life(
        &self,
        index: u32,
        slot: &VmSlot,
        run: &mut VmRun,
        command: Command,
        instret: u64,
    ) -> bool {
        match run.life.command(command, instret, &self.shared.part.settings) {
            Action::Start | Action::Restart => {
                self.shared.part.link(index).start();
                return self.make(index, slot, run);
            }
            Action::Free => self.free(index, slot, run),
            Action::Nothing | Action::Run | Action::RunOn | Action::Park => {}
        }
        true
    }

    /// Runs a batch of slices of a runnable VM.
    fn batch(
        &mut self,
        index: u32,
        slot: &VmSlot,
        life: &mut Life,
        running: &mut RunningGuest,
    ) -> BatchEnd {
        let Self { shared, events, context } = self;
        let (settings, link) = (&shared.part.settings, shared.part.link(index));
        // As in `Worker::report`.
        let report = |instret, kind| drop(events.send(shared.part.event(index, instret, kind)));
        let RunningGuest { guest, port, clock, card_drops } = running;
        let mut session = guest.session(context);
        let mut at = Instant::now();
        for _ in 0..BATCH {
            if shared.stopped.load(Ordering::Relaxed) || slot.has_requests.load(Ordering::Relaxed) {
                break;
            }
            fetch_input(slot, port, link);
            let exit = slice(shared, slot, &mut session, port, clock, &mut at);
            let instret = life.earlier() + session.vm().platform.clock.retired;
            slot.instret.store(instret, Ordering::Relaxed);
            count_drops(session.vm(), card_drops, link);
            if !port.output.is_empty() {
                let output = std::mem::take(&mut port.output);
                // Rounded up to the slice's end, which exceptions may have brought forward a
                // little.
                let instret = match exit.code {
                    ExitCode::Budget => instret.next_multiple_of(SLICE.into()),
                    _ => instret,
                };
                let ready = life.output(&output, instret, settings);
                report(instret, EventKind::Console(output));
                if ready {
                    report(instret, EventKind::Ready);
                }
            }
            let idle = exit.code == ExitCode::Idle;
            let timer = if idle { clock.at(session.vm().wake_at()) } else { None };
            let due = idle && (timer.is_some_and(|timer| timer <= at) || has_input(port, link));
            let traps = TrapLoop::of(session.vm());
            let (action, events) = life.exit(exit, traps, due, instret, settings);
            if !life.is_runnable() {
                return BatchEnd { action, events, timer };
            }
        }
        BatchEnd { action: Action::Nothing, events: Vec::new(), timer: None }
    }
}

/// Returns the message of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    panic.downcast_ref::<String>().cloned().or(text).unwrap_or_default()
}

/// Moves input for a VM into its port.
fn fetch_input(slot: &VmSlot, port: &mut CpuPort, link: VmLink<'_>) {
    if slot.has_input.swap(false, Ordering::Acquire) {
        port.input.append(&mut lock(&slot.input));
    }
    if link.has_inbound() {
        link.take(RECEIVED_MAX - port.received.len(), &mut port.received);
    }
}

/// Whether there is input that an idle VM may take in its next slice.
fn has_input(port: &CpuPort, link: VmLink<'_>) -> bool {
    !port.input.is_empty() || (link.has_inbound() && port.received.len() < RECEIVED_MAX)
}

/// Runs one slice from host time `at`, which is then its end under the host's clock.
fn slice(
    shared: &Shared,
    slot: &VmSlot,
    session: &mut Session<'_>,
    port: &mut CpuPort,
    clock: &mut GuestClock,
    at: &mut Instant,
) -> Exit {
    let now = clock.now(*at);
    let before = session.vm().platform.clock.retired;
    let budget = SLICE - (before as u32 & (SLICE - 1));
    let typed = port.input.len();
    // With an idle worker, the reply to a packet can be there before the slice is over.
    port.flushes = !shared.sched.is_crowded();
    let exit = session.run(port, budget, now, &mut NoTrace);
    shared.part.settings.link.flush();
    if typed > 0 {
        slot.waiting.fetch_sub(typed - port.input.len(), Ordering::Relaxed);
    }
    let retired = session.vm().platform.clock.retired.wrapping_sub(before);
    shared.instructions.fetch_add(retired, Ordering::Relaxed);
    if shared.part.settings.clock == ClockSource::Host {
        let end = Instant::now();
        clock.measured(retired, end - *at);
        *at = end;
    }
    exit
}

/// Counts packets that a VM's network card has dropped since the last call.
fn count_drops(state: &Vm, before: &mut (u64, u64), link: VmLink<'_>) {
    let card = &state.platform.dev.virtio.net.counters;
    let drops = (card.rx_drops, card.tx_drops);
    if drops != *before {
        link.dropped_by_card(DropReason::NoBuffer, drops.0.wrapping_sub(before.0));
        link.dropped_by_card(DropReason::BadLength, drops.1.wrapping_sub(before.1));
        *before = drops;
    }
}

//! A worker thread of the CPU backend: takes runnable VMs from the scheduler and runs them, slice
//! after slice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::Sender;
use emu_core::abi::ExitCode;
use emu_core::layout::virtio_slot;
use emu_core::trace::NoTrace;

use super::arena::{Guest, WorkerContext};
use super::port::{CpuPort, RECEIVED_MAX};
use super::sched::Rest;
use super::{Request, Shared, Slot};
use crate::backend::clock::GuestClock;
use crate::backend::{BOOTS_MAX, ClockSource, Command, Event, EventKind, Inspection, Reason};
use crate::console::ready::ReadyMatcher;
use crate::net::DropReason;
use crate::sync::lock;

/// Instructions in a slice. Slices end at multiples of this, so that a value taken after a slice
/// (the instruction count of a ready VM) is the same in every run of a deterministic fleet.
pub use emu_device::launch::SLICE;
/// Speed that is assumed until one has been measured, in instructions a second.
const FIRST_IPS: u64 = 200_000_000;
/// Slices that a VM runs before the next VM gets its turn: about 4 ms.
const BATCH: u32 = 32;

/// The content of a VM's slot: the running VM, and whether it is to run.
pub struct Place {
    /// The running VM; `None` before its first slice and after its end.
    instance: Option<Box<Instance>>,
    phase: Phase,
}

/// Whether a VM is to run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The VM was not started, or has ended.
    Off,
    Live,
    Paused,
}

impl Place {
    /// Returns the place of a VM that is started, or waits for a start command.
    pub fn new(live: bool) -> Self {
        Self { instance: None, phase: if live { Phase::Live } else { Phase::Off } }
    }
}

/// A running VM.
struct Instance {
    guest: Guest,
    port: CpuPort,
    clock: GuestClock,
    /// Matcher of the ready pattern; `None` once the VM was ready.
    matcher: Option<ReadyMatcher>,
    /// Instructions retired before the last reset.
    earlier: u64,
    /// Starts since the VM was last ready, this one included.
    boots: u32,
    /// Packets to and from the guest that its network card has dropped.
    card_drops: (u64, u64),
}

/// Why a batch of slices ended.
enum End {
    /// The VM is idle, done, or has to let others run.
    Rest(Rest),
    /// The guest requested a reset.
    Reset,
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
        while let Some(vm) = shared.sched.next() {
            let Some(slot) = shared.slots.get(vm as usize) else { continue };
            let mut place = lock(&slot.place);
            // The core does not panic, whatever a guest does. Should it have a bug, only the guest
            // that met it ends.
            let turn = || self.turn(vm, slot, &mut place);
            let rest = catch_unwind(AssertUnwindSafe(turn)).unwrap_or_else(|panic| {
                let what = panic.downcast_ref::<String>().cloned();
                let what = what.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                let reason = Reason::Internal(what.unwrap_or_default());
                self.tell(vm, slot.instret.load(Ordering::Relaxed), EventKind::Faulted(reason));
                self.end(vm, slot, &mut place);
                Rest::Done
            });
            drop(place);
            shared.sched.put(vm, rest);
        }
    }

    fn tell(&self, vm: u32, instret: u64, kind: EventKind) {
        // Blocks while the listener is busy. Sending fails only when the program ends.
        let _ = self.events.send(Event { vm, instret, kind });
    }

    /// Makes the VM at its first instruction; `None` when there is no memory for it.
    fn start(&self, vm: u32, earlier: u64, boots: u32) -> Option<Instance> {
        let shared = self.shared;
        let staged = shared.fleet.stage(vm, earlier);
        let guest = Guest::new(&shared.arena, &shared.fleet.base, staged, &self.context).ok()?;
        let timebase = shared.fleet.plan.kind.map().timebase;
        Some(Instance {
            guest,
            port: CpuPort::new(vm, Arc::clone(&shared.settings.link)),
            clock: GuestClock::new(shared.settings.clock, timebase, FIRST_IPS),
            matcher: Some(ReadyMatcher::new(shared.settings.ready.clone())),
            earlier,
            boots,
            card_drops: (0, 0),
        })
    }

    /// Starts the VM in `place`, unless there is no memory for it.
    fn place(&self, vm: u32, place: &mut Place, instret: u64, boots: u32) {
        // The frames of the old VM are freed before the new one takes some.
        let input = place.instance.take().map(|old| old.port.input);
        match self.start(vm, instret, boots) {
            Some(mut live) => {
                live.port.input = input.unwrap_or_default();
                *place = Place { instance: Some(Box::new(live)), phase: Phase::Live };
            }
            None => place.phase = Phase::Off,
        }
    }

    /// Ends a VM and gives its memory back.
    fn end(&self, vm: u32, slot: &Slot, place: &mut Place) {
        let taken = place.instance.take().map_or(0, |old| old.port.input.len());
        let mut input = lock(&slot.input);
        slot.waiting.fetch_sub(taken + input.len(), Ordering::Relaxed);
        input.clear();
        place.phase = Phase::Off;
        self.shared.settings.link.end(vm);
    }

    /// Executes pending commands and inspections.
    fn handle_requests(&self, vm: u32, slot: &Slot, place: &mut Place) {
        if !slot.has_requests.swap(false, Ordering::Acquire) {
            return;
        }
        let requests = std::mem::take(&mut *lock(&slot.requests));
        for request in requests {
            let instret = slot.instret.load(Ordering::Relaxed);
            let command = match request {
                Request::Execute(command) => command,
                Request::Inspect(inspector) => {
                    inspector(place.instance.as_ref().map(|live| Inspection {
                        vm: Box::new(live.guest.vm().clone()),
                        instret,
                        private_frames: live.guest.private_frames(),
                    }));
                    continue;
                }
            };
            match (command, place.phase) {
                (Command::Pause, Phase::Live) => place.phase = Phase::Paused,
                (Command::Resume, Phase::Paused) => place.phase = Phase::Live,
                (Command::Pause | Command::Resume, _) => {}
                (Command::Stop, _) => self.end(vm, slot, place),
                (Command::Reset, _) => {
                    self.shared.settings.link.start(vm);
                    self.place(vm, place, instret, 1);
                }
            }
            self.tell(vm, instret, EventKind::Completed(command));
            if command == Command::Reset && place.instance.is_none() {
                self.tell(vm, instret, EventKind::Faulted(Reason::NoMemory));
                self.end(vm, slot, place);
            }
        }
    }

    /// Runs a VM's turn: executes pending requests, starts the VM if need be, and runs a batch of
    /// slices.
    fn turn(&mut self, vm: u32, slot: &Slot, place: &mut Place) -> Rest {
        loop {
            if place.phase == Phase::Live && place.instance.is_none() {
                self.place(vm, place, 0, 1);
                if place.instance.is_none() {
                    self.tell(vm, 0, EventKind::Faulted(Reason::NoMemory));
                    self.end(vm, slot, place);
                }
            }
            self.handle_requests(vm, slot, place);
            let live = match (place.phase, &mut place.instance) {
                (Phase::Live, Some(live)) => live,
                (Phase::Paused, _) => return Rest::Idle(None),
                _ => return Rest::Done,
            };
            if self.shared.settings.until_ready && live.matcher.is_none() {
                return Rest::Idle(None);
            }
            let rest = match self.batch(vm, slot, live) {
                End::Rest(rest) => rest,
                End::Reset => {
                    let boots = live.boots + 1;
                    self.reset(vm, slot, place, boots)
                }
            };
            if rest == Rest::Done {
                self.end(vm, slot, place);
            }
            if !slot.has_requests.load(Ordering::Acquire) {
                return rest;
            }
        }
    }

    /// Resets a VM whose guest requested it.
    fn reset(&self, vm: u32, slot: &Slot, place: &mut Place, boots: u32) -> Rest {
        let instret = slot.instret.load(Ordering::Relaxed);
        self.tell(vm, instret, EventKind::Reset);
        self.shared.settings.link.reset(vm);
        if self.shared.settings.until_ready && boots > BOOTS_MAX {
            self.tell(vm, instret, EventKind::Faulted(Reason::BootLoop));
            return Rest::Done;
        }
        self.place(vm, place, instret, boots);
        if place.instance.is_none() {
            self.tell(vm, instret, EventKind::Faulted(Reason::NoMemory));
            return Rest::Done;
        }
        Rest::Runnable
    }

    /// Runs a batch of slices.
    fn batch(&mut self, vm: u32, slot: &Slot, live: &mut Instance) -> End {
        let shared = self.shared;
        let events = self.events.clone();
        let tell = |instret, kind| drop(events.send(Event { vm, instret, kind }));
        let Instance { guest, port, clock, matcher, earlier, boots, card_drops } = live;
        let mut session = guest.session(&mut self.context);
        let link = &shared.settings.link;
        let mut at = Instant::now();
        for _ in 0..BATCH {
            if shared.stopped.load(Ordering::Relaxed) || slot.has_requests.load(Ordering::Relaxed) {
                break;
            }
            if slot.has_input.swap(false, Ordering::Acquire) {
                port.input.append(&mut lock(&slot.input));
            }
            if link.has_inbound(vm) {
                link.take(vm, RECEIVED_MAX - port.received.len(), &mut port.received);
            }

            let now = clock.now(at);
            let before = session.vm().platform.clock.retired;
            let budget = SLICE - (before as u32 & (SLICE - 1));
            let typed = port.input.len();
            // With an idle worker, the reply to a packet can be there before the slice is over.
            port.flushes = !shared.sched.is_crowded();
            let exit = session.run(port, budget, now, &mut NoTrace);
            link.flush();
            if typed > 0 {
                slot.waiting.fetch_sub(typed - port.input.len(), Ordering::Relaxed);
            }
            let retired = session.vm().platform.clock.retired.wrapping_sub(before);
            if shared.settings.clock == ClockSource::Host {
                let end = Instant::now();
                clock.measured(retired, end - at);
                at = end;
            }

            let instret = *earlier + session.vm().platform.clock.retired;
            slot.instret.store(instret, Ordering::Relaxed);
            shared.instructions.fetch_add(retired, Ordering::Relaxed);
            let card = &session.vm().platform.dev.virtio[virtio_slot::NET].counters;
            let drops = (card.rx_drops, card.tx_drops);
            if drops != *card_drops {
                link.dropped_by_card(vm, DropReason::NoBuffer, drops.0.wrapping_sub(card_drops.0));
                link.dropped_by_card(vm, DropReason::BadLength, drops.1.wrapping_sub(card_drops.1));
                *card_drops = drops;
            }
            if !port.output.is_empty() {
                let output = std::mem::take(&mut port.output);
                // Rounded up to the slice's end, which exceptions may have brought forward a
                // little.
                let instret = match exit.code {
                    ExitCode::Budget => instret.next_multiple_of(SLICE.into()),
                    _ => instret,
                };
                let ready = matcher.as_mut().is_some_and(|m| m.feed(&output));
                tell(instret, EventKind::Console(output));
                if ready {
                    (*matcher, *boots) = (None, 0);
                    tell(instret, EventKind::Ready);
                    let goes_on = matches!(exit.code, ExitCode::Budget | ExitCode::Idle);
                    if shared.settings.until_ready && goes_on {
                        return End::Rest(Rest::Idle(None));
                    }
                }
            }
            match exit.code {
                ExitCode::Budget | ExitCode::Stalled => {}
                ExitCode::Idle => {
                    let timer = clock.at(session.vm().wake_at());
                    let due = timer.is_some_and(|timer| timer <= at);
                    let packets = link.has_inbound(vm) && port.received.len() < RECEIVED_MAX;
                    if !due && port.input.is_empty() && !packets {
                        return End::Rest(Rest::Idle(timer));
                    }
                }
                ExitCode::Reset => return End::Reset,
                ExitCode::PowerOff | ExitCode::Fault | ExitCode::NoFrame => {
                    tell(instret, EventKind::of_end(exit));
                    return End::Rest(Rest::Done);
                }
            }
        }
        End::Rest(Rest::Runnable)
    }
}

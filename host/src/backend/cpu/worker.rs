//! Runs VMs, one slice after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::Sender;
use emu_core::abi::ExitCode;
use emu_core::layout::virtio_slot;
use emu_core::trace::NoTrace;

use super::arena::{Guest, Lane};
use super::port::{CpuPort, RECEIVED_MAX};
use super::sched::Rest;
use super::{Shared, Slot};
use crate::backend::clock::GuestClock;
use crate::backend::{BOOTS_MAX, ClockSource, Event, EventKind, Reason};
use crate::console::ready::ReadyMatcher;
use crate::net::DropReason;

/// Instructions in a slice. Slices end at multiples of this, so that what is noted after a slice
/// (a ready VM's instruction count) is the same in every run of a deterministic fleet.
pub use emu_device::launch::SLICE;
/// Speed that is assumed before it has been measured, in instructions a second.
const FIRST_IPS: u64 = 200_000_000;
/// Slices that a VM runs before the next one gets its turn: about 4 ms.
const BATCH: u32 = 32;

/// One VM as long as it lives.
pub struct Instance {
    guest: Guest,
    port: CpuPort,
    clock: GuestClock,
    /// `None` once the VM was ready.
    matcher: Option<ReadyMatcher>,
    /// Instructions retired before the last reset.
    earlier: u64,
    /// Starts since the VM was last ready, this one included.
    boots: u32,
    /// Frames to and from the guest that its card has dropped.
    card_drops: (u64, u64),
}

/// Why a batch ended.
enum End {
    /// The VM rests.
    Rest(Rest),
    /// It wants to start again.
    Reset,
}

/// One thread of the backend.
pub struct Worker<'a> {
    shared: &'a Shared,
    events: Sender<Event>,
    lane: Lane,
}

impl<'a> Worker<'a> {
    /// A worker that tells what happens to `events`.
    pub fn new(shared: &'a Shared, events: Sender<Event>, lane: Lane) -> Self {
        Self { shared, events, lane }
    }

    /// Runs VMs until the fleet is stopped.
    pub fn work(&mut self) {
        let shared = self.shared;
        while let Some(vm) = shared.sched.next() {
            let Some(slot) = shared.slots.get(vm as usize) else { continue };
            let mut instance = slot.instance.lock().unwrap_or_else(|e| e.into_inner());
            // The core does not panic, whatever a guest does. Should it have a bug, the guest
            // that met it ends and the others go on.
            let turn = || self.turn(vm, slot, &mut instance);
            let rest = catch_unwind(AssertUnwindSafe(turn)).unwrap_or_else(|panic| {
                let what = panic.downcast_ref::<String>().cloned();
                let what = what.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                let reason = Reason::Internal(what.unwrap_or_default());
                self.tell(vm, slot.instret.load(Ordering::Relaxed), EventKind::Faulted(reason));
                Rest::Done
            });
            if rest == Rest::Done {
                *instance = None;
                shared.settings.wire.end(vm);
            }
            drop(instance);
            shared.sched.put(vm, rest);
        }
    }

    fn tell(&self, vm: u32, instret: u64, kind: EventKind) {
        // Waits while the listener is busy. It is gone only when the program ends.
        let _ = self.events.send(Event { vm, instret, kind });
    }

    /// Makes the VM at its first instruction; `None` without memory for it.
    fn start(&self, vm: u32, earlier: u64, boots: u32) -> Option<Instance> {
        let shared = self.shared;
        let staged = shared.fleet.stage(vm);
        let guest = Guest::new(&shared.arena, &shared.fleet.base, staged, &self.lane).ok()?;
        let timebase = shared.fleet.plan.kind.map().timebase;
        Some(Instance {
            guest,
            port: CpuPort::new(vm, Arc::clone(&shared.settings.wire)),
            clock: GuestClock::new(shared.settings.clock, timebase, FIRST_IPS),
            matcher: Some(ReadyMatcher::new(shared.settings.ready.clone())),
            earlier,
            boots,
            card_drops: (0, 0),
        })
    }

    /// A VM's turn: starts it if need be and runs it for a while.
    fn turn(&mut self, vm: u32, slot: &Slot, instance: &mut Option<Instance>) -> Rest {
        if instance.is_none() {
            *instance = self.start(vm, 0, 1);
        }
        let Some(live) = instance else {
            self.tell(vm, 0, EventKind::Faulted(Reason::NoMemory));
            return Rest::Done;
        };
        match self.batch(vm, slot, live) {
            End::Rest(rest) => rest,
            End::Reset => {
                let instret = slot.instret.load(Ordering::Relaxed);
                let boots = live.boots + 1;
                let input = std::mem::take(&mut live.port.input);
                self.tell(vm, instret, EventKind::Reset);
                self.shared.settings.wire.reset(vm);
                if self.shared.settings.until_ready && boots > BOOTS_MAX {
                    self.tell(vm, instret, EventKind::Faulted(Reason::BootLoop));
                    return Rest::Done;
                }
                // The frames of the old VM come back before the new one takes some.
                *instance = None;
                *instance = self.start(vm, instret, boots);
                match instance {
                    Some(live) => {
                        live.port.input = input;
                        Rest::Runnable
                    }
                    None => {
                        self.tell(vm, instret, EventKind::Faulted(Reason::NoMemory));
                        Rest::Done
                    }
                }
            }
        }
    }

    /// Runs some slices.
    fn batch(&mut self, vm: u32, slot: &Slot, live: &mut Instance) -> End {
        let shared = self.shared;
        let events = self.events.clone();
        let tell = |instret, kind| drop(events.send(Event { vm, instret, kind }));
        let Instance { guest, port, clock, matcher, earlier, boots, card_drops } = live;
        let mut session = guest.session(&mut self.lane);
        let wire = &shared.settings.wire;
        let mut at = Instant::now();
        for _ in 0..BATCH {
            if shared.stopped.load(Ordering::Relaxed) {
                break;
            }
            if slot.has_input.swap(false, Ordering::Acquire) {
                port.input.append(&mut slot.input.lock().unwrap_or_else(|e| e.into_inner()));
            }
            if wire.has_inbound(vm) {
                wire.take(vm, RECEIVED_MAX - port.received.len(), &mut port.received);
            }

            let now = clock.now(at);
            let before = session.vm().sys.clock.retired;
            let budget = SLICE - (before as u32 & (SLICE - 1));
            let exit = session.run(port, budget, now, &mut NoTrace);
            wire.flush();
            let retired = session.vm().sys.clock.retired.wrapping_sub(before);
            if shared.settings.clock == ClockSource::Host {
                let end = Instant::now();
                clock.measured(retired, end - at);
                at = end;
            }

            let instret = *earlier + session.vm().sys.clock.retired;
            slot.instret.store(instret, Ordering::Relaxed);
            shared.instructions.fetch_add(retired, Ordering::Relaxed);
            let card = &session.vm().sys.dev.virtio[virtio_slot::NET].counters;
            let drops = (card.rx_drops, card.tx_drops);
            if drops != *card_drops {
                wire.dropped_by_card(vm, DropReason::NoBuffer, drops.0.wrapping_sub(card_drops.0));
                wire.dropped_by_card(vm, DropReason::BadLength, drops.1.wrapping_sub(card_drops.1));
                *card_drops = drops;
            }
            if !port.output.is_empty() {
                let output = std::mem::take(&mut port.output);
                // The slice's end, also when exceptions made it a little shorter.
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
                    let frames = wire.has_inbound(vm) && port.received.len() < RECEIVED_MAX;
                    if !due && port.input.is_empty() && !frames {
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

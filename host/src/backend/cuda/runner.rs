//! The launch loop: the thread that keeps the device busy, and does the host's work between
//! launches (events, timers, input, packets, commands).
//!
//! Launches and the host's work overlap: while one launch runs, the results of the one before are
//! handled. A VM that was parked is therefore listed once more; the device skips it. The host's
//! work is proportional to what VMs wrote, and to the launch list when that has changed.
//!
//! VMs are numbered here, as on the device, by the index of their slots: see [`part`].
//!
//! [`part`]: crate::backend::part

mod commands;
mod launch;
mod results;
mod starts;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use emu_device::protocol::inbox::Writer;
use emu_device::protocol::launch::Entry;

use super::chooser::LoopChooser;
use super::error::CudaError;
use super::fleet::{Completed, DeviceFleet, INBOX};
use super::pacer::LaunchPacer;
use super::slot::VmSlot;
use super::{Request, Shared};
use crate::backend::clock::GuestClock;
use crate::backend::life::{Action, State, Trigger};
use crate::backend::timers::Timers;
use crate::backend::{Event, EventKind};
use crate::sync::lock;

/// Speed that is assumed until one has been measured, in instructions a second for each VM.
const FIRST_IPS: u64 = 5_000_000;
/// How long launches stay short after a packet, or after a page of a disk.
const SHORT_AFTER_IO: Duration = Duration::from_millis(50);

/// State of the launch loop of one fleet.
pub struct Runner {
    shared: Arc<Shared>,
    fleet: DeviceFleet,
    events: Sender<Event>,
    requests: Receiver<Request>,
    slots: Vec<VmSlot>,
    /// Launch list: the VMs to launch, in order, so that neighbours share a warp.
    list: Vec<Entry>,
    /// Whether VMs in the launch list are not runnable any more.
    list_is_stale: bool,
    /// VMs to be added to the launch list.
    added: Vec<u32>,
    /// Parked VMs that the device must wake.
    waking: Vec<u32>,
    /// VMs with queued input.
    with_input: Vec<u32>,
    /// VMs that wait for a page of their disk, each with the page.
    waiting_for_disk: Vec<(u32, u32)>,
    /// VMs that are out of memory.
    out_of_memory: Vec<u32>,
    /// Since when there are such VMs.
    out_of_memory_since: Option<Instant>,
    /// VMs whose memory is to be freed.
    to_free: Vec<u32>,
    /// VMs to be made at their first instruction, after that.
    to_start: Vec<u32>,
    timers: Timers,
    clock: GuestClock,
    pacer: LaunchPacer,
    chooser: LoopChooser,
    inbox: Writer,
    /// The last launch, until its results have been handled.
    unread: Option<Completed>,
    /// When the last packet was sent or received, or the last page of a disk loaded.
    io_at: Option<Instant>,
    /// Requests that are handled between two launches.
    pending: Vec<Request>,
    /// When instruction counts may be published again.
    publish_at: Instant,
}

impl Runner {
    /// Returns the launch loop of a fleet whose VMs were not started yet.
    pub fn new(
        shared: Arc<Shared>,
        fleet: DeviceFleet,
        events: Sender<Event>,
        requests: Receiver<Request>,
    ) -> Self {
        let count = shared.part.count();
        let started = shared.part.started();
        let timebase = shared.part.fleet.plan.kind.map().timebase;
        Self {
            slots: (0..count)
                .map(|index| VmSlot::new(index < started, &shared.part.settings))
                .collect(),
            list: (0..started).map(|index| Entry { vm: index, inbox: 0 }).collect(),
            list_is_stale: false,
            added: Vec::new(),
            waking: Vec::new(),
            with_input: Vec::new(),
            waiting_for_disk: Vec::new(),
            out_of_memory: Vec::new(),
            out_of_memory_since: None,
            to_free: Vec::new(),
            to_start: Vec::new(),
            timers: Timers::new(count),
            clock: GuestClock::new(shared.part.settings.clock, timebase, FIRST_IPS),
            pacer: LaunchPacer::new(),
            chooser: LoopChooser::new(),
            inbox: Writer::new(INBOX),
            unread: None,
            io_at: None,
            pending: Vec::new(),
            publish_at: Instant::now(),
            shared,
            fleet,
            events,
            requests,
        }
    }

    /// Runs the fleet until it is stopped or the device fails.
    pub fn run(mut self) {
        if let Err(error) = self.work() {
            // The results of the last good launch are in host memory. Those of a device that has
            // failed are of no use.
            let _ = self.handle_unread();
            *lock(&self.shared.failure) = Some(error);
        }
    }

    fn work(&mut self) -> Result<(), CudaError> {
        self.start_all()?;
        loop {
            while let Ok(request) = self.requests.try_recv() {
                self.receive(request);
            }
            if self.stopped() {
                break;
            }
            self.wake_due(Instant::now());
            self.recycle()?;
            self.handle_pending()?;
            self.publish()?;
            self.load_disk()?;
            let launched = self.launch()?;
            if !self.handle_unread()? && !launched {
                self.sleep();
            }
            if launched {
                self.unread = Some(self.fleet.wait()?);
            }
        }
        self.drain()
    }

    /// Fetches what VMs have still to report, after all have been stopped.
    fn drain(&mut self) -> Result<(), CudaError> {
        while let Some(completed) = self.unread.take() {
            let result = self.fleet.result(completed)?;
            self.handle_result(&result);
            if result.full && !self.update_list().is_empty() {
                let packing = self.packing();
                self.submit(0, packing)?;
                self.unread = Some(self.fleet.wait()?);
            }
        }
        // What VMs have retired is counted before their memory is given back.
        let retired = self.fleet.instrets()?;
        for ((slot, instret), since_start) in
            self.slots.iter().zip(&self.shared.instret).zip(retired)
        {
            // A VM that is starting has been counted.
            if slot.life.state() != State::Starting {
                instret.store(slot.life.retired(since_start), Ordering::Relaxed);
            }
        }
        self.to_start.clear();
        self.recycle()?;
        let private = self.fleet.private_frames()?;
        self.shared.private_frames.store(private, Ordering::Relaxed);
        Ok(())
    }

    fn stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Relaxed)
    }

    fn report(&self, index: u32, instret: u64, kind: EventKind) {
        // Blocks while the listener is busy. Sending fails only when the program ends.
        let _ = self.events.send(self.shared.part.event(index, instret, kind));
    }

    /// Does what a change of a VM's life asks for.
    fn apply(&mut self, index: u32, action: Action) {
        match action {
            Action::Nothing => {}
            Action::Run => {
                self.added.push(index);
                self.waking.push(index);
            }
            Action::RunOn => self.waking.push(index),
            Action::Park => self.list_is_stale = true,
            Action::Start => self.to_start.push(index),
            Action::Restart => {
                self.list_is_stale = true;
                self.to_free.push(index);
                self.to_start.push(index);
            }
            Action::Free => {
                let slot = &mut self.slots[index as usize];
                self.shared.has_taken(index, slot.console_waiting());
                slot.drop_input();
                self.shared.part.link(index).end();
                self.list_is_stale = true;
                self.to_free.push(index);
            }
        }
    }

    /// Changes the state of a VM.
    fn trigger(&mut self, index: u32, trigger: Trigger) {
        let action = self.slots[index as usize].life.on(trigger);
        self.apply(index, action);
    }

    /// Wakes VMs whose timer has expired.
    fn wake_due(&mut self, now: Instant) {
        loop {
            let slots = &self.slots;
            let is_parked = |index: u32| slots[index as usize].life.state() == State::Parked;
            match self.timers.due(|| now, is_parked) {
                Some(index) => self.trigger(index, Trigger::Wake),
                None => return,
            }
        }
    }

    /// Loads pages of disks that VMs wait for, and wakes these VMs. Only while no launch is under way.
    fn load_disk(&mut self) -> Result<(), CudaError> {
        if self.waiting_for_disk.is_empty() {
            return Ok(());
        }
        self.io_at = Some(Instant::now());
        // One that was paused, stopped or reset meanwhile is not in the launch list, or not parked.
        self.waking.extend(self.fleet.load_disk(&mut self.waiting_for_disk)?);
        Ok(())
    }

    /// Adds a VM to those with queued input, if it has some.
    fn note_input(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.has_input() && !slot.has_input_queued {
            slot.has_input_queued = true;
            self.with_input.push(index);
        }
    }

    /// Handles a request, or keeps it until no launch is under way.
    fn receive(&mut self, request: Request) {
        let index = match request {
            Request::Input(index, _) | Request::Packets(index) => index,
            Request::Execute(..) | Request::Inspect(..) => return self.pending.push(request),
            Request::Stop => return,
        };
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        let is_stopped = slot.life.state() == State::Stopped;
        match request {
            Request::Input(_, bytes) if is_stopped => {
                return self.shared.has_taken(index, bytes.len());
            }
            Request::Input(_, bytes) => slot.queue_console(&bytes),
            _ if is_stopped => return,
            _ => {
                self.io_at = Some(Instant::now());
                slot.fetch_packets(self.shared.part.link(index));
            }
        }
        let has_input = slot.has_input();
        self.note_input(index);
        if has_input {
            self.trigger(index, Trigger::Wake);
        }
    }

    /// Waits for the next timer or request, while no VM is runnable.
    fn sleep(&mut self) {
        let work = [&self.to_free, &self.to_start, &self.out_of_memory];
        if work.iter().any(|vms| !vms.is_empty()) || !self.pending.is_empty() {
            return;
        }
        let request = match self.timers.next() {
            Some(at) => match self.requests.recv_deadline(at) {
                Err(e) if e.is_timeout() => return,
                other => other.ok(),
            },
            None => self.requests.recv().ok(),
        };
        match request {
            Some(request) => self.receive(request),
            None => self.shared.stopped.store(true, Ordering::Relaxed),
        }
    }
}

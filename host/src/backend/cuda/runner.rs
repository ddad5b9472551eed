//! The launch loop: the thread that keeps the device busy, and does the host's work between
//! launches (events, timers, input, packets, commands).
//!
//! Launches and the host's work overlap: while one launch runs, the results of the one before are
//! handled. A VM that was parked is therefore listed once more; the device skips it. The host's
//! work is proportional to what VMs wrote, and to the launch list when that has changed.
//!
//! The launch list is kept on the host and not built on the device: it changes only with what VMs
//! report, copying it takes microseconds (8 bytes for each runnable VM), and it keeps its order, by
//! which neighbours share a warp. On an H200, everything around launches is 0.5 % of the time with
//! 8,448 VMs.

mod control;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use emu_core::abi::{Exit, ExitCode};
use emu_device::launch::{Entry, WAKE};

use super::error::CudaError;
use super::fleet::{Completed, DeviceFleet, LaunchArgs, LaunchResult, Start};
use super::inbox::Writer;
use super::outbox::{Body, Message, messages};
use super::pacer::LaunchPacer;
use super::packing;
use super::seat::{Seat, State};
use super::timers::Timers;
use super::{Request, Shared};
use crate::backend::clock::GuestClock;
use crate::backend::{BOOTS_MAX, Event, EventKind, Reason};
use crate::net::DropReason;
use crate::sync::lock;

/// Speed that is assumed until one has been measured, in instructions a second for each VM.
const FIRST_IPS: u64 = 5_000_000;
/// How long VMs may be out of memory (without a free frame) before one of them is stopped to make
/// room.
const STARVED_MAX: Duration = Duration::from_secs(2);
/// How long launches stay short after a packet.
const TALK: Duration = Duration::from_millis(50);
/// Bytes of input in one launch, all VMs together.
const INBOX: usize = 1 << 20;

/// State of the launch loop of one fleet.
pub struct Runner {
    shared: Arc<Shared>,
    fleet: DeviceFleet,
    events: Sender<Event>,
    requests: Receiver<Request>,
    seats: Vec<Seat>,
    /// Launch list: the VMs to launch, in order, so that neighbours share a warp.
    entries: Vec<Entry>,
    /// Whether the launch list has to be rebuilt from the active VMs.
    stale: bool,
    /// VMs to be added to the launch list.
    added: Vec<u32>,
    /// Parked VMs that the device must wake.
    waking: Vec<u32>,
    /// VMs with queued input.
    talking: Vec<u32>,
    /// VMs that are out of memory: they wait for free frames.
    starved: Vec<u32>,
    /// Since when VMs have been out of memory.
    dry_since: Option<Instant>,
    /// Stopped VMs whose frames can be freed.
    ended: Vec<u32>,
    /// VMs to reset.
    restarts: Vec<u32>,
    timers: Timers,
    clock: GuestClock,
    pacer: LaunchPacer,
    inbox: Writer,
    /// The last launch, until its results have been handled.
    unread: Option<Completed>,
    /// When the last packet was sent or received.
    packet_at: Option<Instant>,
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
        let count = shared.fleet.count;
        let started = shared.started();
        let timebase = shared.fleet.plan.kind.map().timebase;
        let pattern = &shared.settings.ready;
        Self {
            seats: (0..count).map(|vm| Seat::new(pattern, vm < started)).collect(),
            entries: (0..started).map(|vm| Entry { vm, inbox: 0 }).collect(),
            stale: false,
            added: Vec::new(),
            waking: Vec::new(),
            talking: Vec::new(),
            starved: Vec::new(),
            dry_since: None,
            ended: Vec::new(),
            restarts: Vec::new(),
            timers: Timers::default(),
            clock: GuestClock::new(shared.settings.clock, timebase, FIRST_IPS),
            pacer: LaunchPacer::new(),
            inbox: Writer::new(INBOX),
            unread: None,
            packet_at: None,
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
            // The results of the last good launch are in host memory.
            let unread = self.unread.take();
            if let Some(Ok(result)) = unread.map(|completed| self.fleet.result(completed)) {
                self.hear(&result);
            }
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
            self.ring(Instant::now());
            self.recycle()?;
            self.execute_pending()?;
            self.publish()?;
            let launched = !self.list().is_empty();
            if launched {
                let talking = self.packet_at.is_some_and(|at| at.elapsed() < TALK);
                let vms_per_warp = self.vms_per_warp();
                self.pacer.set_load(talking, vms_per_warp);
                self.submit(self.pacer.slices(), vms_per_warp)?;
            }
            match self.unread.take() {
                Some(completed) => {
                    let result = self.fleet.result(completed)?;
                    self.hear(&result);
                }
                None if !launched => self.sleep(),
                None => {}
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
            self.hear(&result);
            if result.full && !self.list().is_empty() {
                self.submit(0, self.vms_per_warp())?;
                self.unread = Some(self.fleet.wait()?);
            }
        }
        self.restarts.clear();
        self.recycle()?;
        let private = self.fleet.private_frames()?;
        self.shared.private_frames.store(private, Ordering::Relaxed);
        for (vm, instret) in self.fleet.instrets()?.into_iter().enumerate() {
            let seat = &self.seats[vm];
            let instret = seat.paused_at.unwrap_or(seat.earlier + instret);
            self.shared.instret[vm].store(instret, Ordering::Relaxed);
        }
        Ok(())
    }

    fn stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Relaxed)
    }

    fn tell(&self, vm: u32, instret: u64, kind: EventKind) {
        // Blocks while the listener is busy. Sending fails only when the program ends.
        let _ = self.events.send(Event { vm, instret, kind });
    }

    /// Stages and starts all VMs. Staging uses all the host's threads, and overlaps with starting.
    fn start_all(&mut self) -> Result<(), CudaError> {
        let all: Vec<u32> = (0..self.shared.started()).collect();
        let shared = Arc::clone(&self.shared);
        let threads = shared.settings.threads.clamp(1, 64);
        let piece = DeviceFleet::START_MAX.div_ceil(threads);
        let stage = |vms: &[u32]| -> Vec<Start> {
            let stage = |&vm: &u32| Start { vm, origin: 0, staged: shared.fleet.stage(vm, 0) };
            vms.iter().map(stage).collect()
        };
        let stage_all = |vms: &[u32]| -> Vec<Start> {
            thread::scope(|scope| {
                let work: Vec<_> =
                    vms.chunks(piece).map(|vms| scope.spawn(|| stage(vms))).collect();
                work.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect()
            })
        };
        thread::scope(|scope| {
            let (sender, receiver) = bounded(1);
            scope.spawn(|| {
                let chunks = all.chunks(DeviceFleet::START_MAX);
                let goes_on = |_: &&[u32]| !shared.stopped.load(Ordering::Relaxed);
                // Nobody receives any more once something has failed.
                let _ = chunks.take_while(goes_on).try_for_each(|c| sender.send(stage_all(c)));
                // Ends the loop below.
                drop(sender);
            });
            let mut started = 0;
            for starts in receiver {
                started += starts.len();
                self.fleet.start(&starts)?;
            }
            if started < all.len() && !self.stopped() {
                return Err(CudaError::Contract("a VM could not be staged"));
            }
            Ok(())
        })
    }

    /// Frees the frames of stopped VMs, resets VMs, and stops one where all are out of memory. Only
    /// while no launch is under way.
    fn recycle(&mut self) -> Result<(), CudaError> {
        if self.ended.is_empty() && self.restarts.is_empty() {
            let patient = self.dry_since.is_none_or(|since| since.elapsed() < STARVED_MAX);
            if self.starved.is_empty() || (patient && !self.list().is_empty()) {
                return Ok(());
            }
            // No VM gives a frame back by itself. The last one to run out is stopped, so that the
            // others can go on.
            if let Some(vm) = self.starved.pop() {
                let instret = self.shared.instret[vm as usize].load(Ordering::Relaxed);
                self.end(vm, instret, EventKind::Faulted(Reason::NoMemory));
            }
        }
        let mut free = std::mem::take(&mut self.ended);
        let restarts = std::mem::take(&mut self.restarts);
        free.extend_from_slice(&restarts);
        self.fleet.release(&free)?;
        let origin = self.clock.ticks(Instant::now());
        let again = |&vm: &u32| {
            let earlier = self.seats[vm as usize].earlier;
            Start { vm, origin, staged: self.shared.fleet.stage(vm, earlier) }
        };
        let starts: Vec<Start> = restarts.iter().map(again).collect();
        self.fleet.start(&starts)?;
        let private = self.fleet.private_frames()?;
        self.shared.private_frames.store(private, Ordering::Relaxed);
        for vm in restarts {
            self.activate(vm);
        }
        for vm in std::mem::take(&mut self.starved) {
            self.wake(vm);
        }
        self.dry_since = None;
        Ok(())
    }

    /// Brings the launch list up to date and returns it.
    fn list(&mut self) -> &[Entry] {
        if self.stale {
            let seats = &self.seats;
            self.entries.retain(|e| seats[e.vm as usize].state == State::Active);
        }
        if !self.added.is_empty() {
            let added = self.added.drain(..).map(|vm| Entry { vm, inbox: 0 });
            self.entries.extend(added);
            self.entries.sort_unstable_by_key(|e| e.vm);
            self.entries.dedup_by_key(|e| e.vm);
            let seats = &self.seats;
            self.entries.retain(|e| seats[e.vm as usize].state == State::Active);
        }
        self.stale = false;
        &self.entries
    }

    /// Returns the number of VMs per warp.
    fn vms_per_warp(&self) -> u32 {
        let count = self.entries.len() as u32;
        let vms_per_warp = self.shared.options.vms_per_warp;
        vms_per_warp.unwrap_or_else(|| packing::vms_per_warp(count, self.fleet.multiprocessors()))
    }

    fn submit(&mut self, slices: u32, vms_per_warp: u32) -> Result<(), CudaError> {
        let find = |entries: &[Entry], vm: u32| entries.binary_search_by_key(&vm, |e| e.vm).ok();
        let mut marked = Vec::new();
        self.inbox.clear();
        let seats = &mut self.seats;
        self.talking.retain(|&vm| {
            let seat = &mut seats[vm as usize];
            seat.talks = seat.has_input();
            seat.talks
        });
        // Rotated, so that another VM is first in the next launch if there is no room for all.
        if !self.talking.is_empty() {
            self.talking.rotate_left(1);
        }
        for &vm in &self.talking {
            if let Some(at) = find(&self.entries, vm) {
                self.entries[at].inbox = self.inbox.add(&self.seats[vm as usize].offer());
                marked.push(at);
            }
        }
        let wake: Vec<usize> =
            self.waking.drain(..).filter_map(|vm| find(&self.entries, vm)).collect();
        for &at in &wake {
            self.entries[at].vm |= WAKE;
        }
        marked.extend(wake);

        let args = LaunchArgs {
            active: &self.entries,
            inbox: self.inbox.bytes(),
            slices,
            slice: self.pacer.slice(),
            now: self.clock.now(Instant::now()),
            vms_per_warp,
            time: Some(self.pacer.target()),
        };
        self.fleet.submit(&args)?;
        for at in marked {
            let entry = &mut self.entries[at];
            *entry = Entry { vm: entry.vm & !WAKE, inbox: 0 };
        }
        Ok(())
    }

    /// Handles the results of a launch.
    fn hear(&mut self, result: &LaunchResult) {
        if result.busy > 0 {
            self.clock.measured(result.ran.into(), result.took);
            self.pacer.measured(result.ran, result.took);
        }
        tracing::trace!(
            busy = result.busy,
            log = result.log.len(),
            instructions = result.instructions,
            us = result.took.as_micros() as u64,
            ran = result.ran,
            listed = result.listed,
            "launch"
        );
        self.shared.launches.fetch_add(1, Ordering::Relaxed);
        self.shared.device_ns.fetch_add(result.took.as_nanos() as u64, Ordering::Relaxed);
        self.shared.instructions.store(result.instructions, Ordering::Relaxed);
        self.shared.private_frames.store(result.private_frames, Ordering::Relaxed);
        for message in messages(&result.log) {
            self.handle(&message);
        }
        self.shared.settings.link.flush();
    }

    fn handle(&mut self, message: &Message<'_>) {
        let vm = message.vm;
        let Some(seat) = self.seats.get_mut(vm as usize) else { return };
        let instret = seat.earlier + message.instret;
        let over = seat.paused_at.is_some_and(|at| instret > at);
        if seat.state == State::Done || over {
            return;
        }
        match message.body {
            Body::Console(bytes) => {
                let ready = seat.matcher.as_mut().is_some_and(|m| m.feed(bytes));
                if ready {
                    (seat.matcher, seat.boots) = (None, 0);
                    if self.shared.settings.until_ready {
                        seat.paused_at = Some(instret);
                        seat.state = State::Paused;
                        self.stale = true;
                    }
                }
                self.tell(vm, instret, EventKind::Console(bytes.to_vec()));
                if ready {
                    self.tell(vm, instret, EventKind::Ready);
                }
            }
            Body::Packet(bytes) => {
                self.packet_at = Some(Instant::now());
                self.shared.settings.link.send(vm, bytes.into());
            }
            Body::Taken(record) => {
                let typed = seat.typed();
                let drops = seat.took(&record);
                self.shared.has_taken(vm, typed - seat.typed());
                let link = &self.shared.settings.link;
                seat.fetch(vm, link);
                link.dropped_by_card(vm, DropReason::NoBuffer, drops.rx.into());
                link.dropped_by_card(vm, DropReason::BadLength, drops.tx.into());
                self.talk(vm);
            }
            Body::Exit(exit, wake_at) => {
                self.shared.instret[vm as usize].store(instret, Ordering::Relaxed);
                self.rest(vm, instret, exit, wake_at);
            }
        }
    }

    /// Handles a VM that was parked.
    fn rest(&mut self, vm: u32, instret: u64, exit: Exit, wake_at: u64) {
        let seat = &mut self.seats[vm as usize];
        match exit.code {
            ExitCode::Idle if seat.state == State::Paused => {}
            ExitCode::Idle => {
                let timer = self.clock.at(wake_at);
                let due = timer.is_some_and(|at| at <= Instant::now());
                if due || seat.wants_to_run() {
                    self.waking.push(vm);
                    return;
                }
                seat.state = State::Idle;
                seat.nap = seat.nap.wrapping_add(1);
                self.stale = true;
                if let Some(at) = timer {
                    self.timers.set(at, vm, seat.nap);
                }
            }
            // The argument distinguishes a VM that could not even start from one that can go on.
            ExitCode::NoFrame if exit.arg == 0 => {
                seat.state = State::Starved;
                self.stale = true;
                self.starved.push(vm);
                self.dry_since.get_or_insert_with(Instant::now);
            }
            ExitCode::Reset => {
                self.tell(vm, instret, EventKind::Reset);
                let seat = &mut self.seats[vm as usize];
                if self.shared.settings.until_ready && seat.boots >= BOOTS_MAX {
                    self.end(vm, instret, EventKind::Faulted(Reason::BootLoop));
                    return;
                }
                self.shared.settings.link.reset(vm);
                let seat = &mut self.seats[vm as usize];
                seat.restart(&self.shared.settings.ready, instret);
                seat.state = State::Idle;
                self.stale = true;
                self.restarts.push(vm);
            }
            _ => self.end(vm, instret, EventKind::of_end(exit)),
        }
    }

    fn end(&mut self, vm: u32, instret: u64, kind: EventKind) {
        self.give_up(vm);
        self.tell(vm, instret, kind);
    }

    /// Adds a VM to the launch list.
    fn activate(&mut self, vm: u32) {
        self.seats[vm as usize].state = State::Active;
        self.added.push(vm);
    }

    /// Adds a VM to the launch list that is parked on the device, and has the device wake it.
    fn wake(&mut self, vm: u32) {
        self.activate(vm);
        self.waking.push(vm);
    }

    /// Wakes VMs whose timer has expired.
    fn ring(&mut self, now: Instant) {
        loop {
            let seats = &self.seats;
            let valid = |vm: u32, nap: u32| {
                let seat = &seats[vm as usize];
                seat.state == State::Idle && seat.nap == nap
            };
            match self.timers.due(now, valid) {
                Some(vm) => self.wake(vm),
                None => return,
            }
        }
    }

    /// Adds a VM to those with queued input, if it has some.
    fn talk(&mut self, vm: u32) {
        let seat = &mut self.seats[vm as usize];
        if seat.has_input() && !seat.talks {
            seat.talks = true;
            self.talking.push(vm);
        }
    }

    fn receive(&mut self, request: Request) {
        let vm = match request {
            Request::Input(vm, _) | Request::Packets(vm) => vm,
            Request::Execute(..) | Request::Inspect(..) => return self.pending.push(request),
            Request::Stop => return,
        };
        let Some(seat) = self.seats.get_mut(vm as usize) else { return };
        match request {
            Request::Input(_, bytes) if seat.state == State::Done => {
                return self.shared.has_taken(vm, bytes.len());
            }
            Request::Input(_, bytes) => seat.give(&bytes),
            _ if seat.state == State::Done => return,
            _ => {
                self.packet_at = Some(Instant::now());
                seat.fetch(vm, &self.shared.settings.link);
            }
        }
        // A VM that starts again is woken by that.
        let wake = seat.state == State::Idle && seat.has_input();
        self.talk(vm);
        if wake && !self.restarts.contains(&vm) {
            self.wake(vm);
        }
    }

    /// Waits for the next timer or request, while no VM is runnable.
    fn sleep(&mut self) {
        let waits = !self.ended.is_empty() || !self.restarts.is_empty() || !self.starved.is_empty();
        if waits || !self.pending.is_empty() {
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

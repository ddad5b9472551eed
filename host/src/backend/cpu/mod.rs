//! The CPU backend, the reference for the others: a pool of worker threads runs VMs, a slice at a
//! time.

mod arena;
mod disk;
mod port;
mod sched;
mod worker;

use arena::MAGAZINE;
pub use arena::{Guest, HostArena, Session, WorkerContext};
pub use port::CpuPort;
pub use worker::SLICE;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use emu_core::mem::FRAME_SIZE;

use self::sched::Scheduler;
use self::worker::{VmRun, Worker};
use super::images::Images;
use super::part::Part;
use super::{Backend, BackendError, Event, Inspector, Settings, Totals, Unsupported};
use crate::control::Call;
use crate::host;
use crate::machine::{Fleet, Source};
use crate::sync::lock;
use crate::units::Size;

/// Events that may wait for the listener before workers block.
const EVENTS_MAX: usize = 1024;
/// Memory that a VM needs where nothing is known of it: a Linux guest with a busy server has 2.1 MiB
/// of private frames.
const VM_MEMORY: Size = Size::mib(3);
/// Memory that a VM needs beside its frames, for tables and state.
const VM_FIXED: u64 = 100 << 10;

/// A request to a VM from outside its worker.
enum Request {
    Execute(Call),
    Inspect(Inspector),
}

/// A VM's slot in the CPU backend.
struct VmSlot {
    /// The VM itself, for the worker that runs it.
    run: Mutex<VmRun>,
    /// Console input that the VM has not fetched yet.
    input: Mutex<VecDeque<u8>>,
    has_input: AtomicBool,
    /// Number of bytes of console input that the VM has not read.
    waiting: AtomicUsize,
    /// Requests to execute before the VM's next slice.
    requests: Mutex<Vec<Request>>,
    has_requests: AtomicBool,
    /// Instructions retired at the end of its last slice.
    instret: AtomicU64,
}

/// State shared by the workers and the backend's owner.
struct Shared {
    part: Part,
    arena: Arc<HostArena>,
    slots: Vec<VmSlot>,
    sched: Scheduler,
    stopped: AtomicBool,
    instructions: AtomicU64,
}

/// A fleet on the CPU.
pub struct CpuBackend {
    shared: Arc<Shared>,
    events: Receiver<Event>,
}

/// Returns for how many VMs of a fleet this host has memory.
pub fn room(fleet: &Fleet) -> u64 {
    host::memory_available().0 / each(fleet).0.max(1)
}

/// Returns the memory that a VM is expected to need.
fn each(fleet: &Fleet) -> Size {
    let memory = Size(fleet.plan.memory.into());
    match fleet.expected.source {
        Source::Typical => VM_MEMORY.min(memory),
        Source::Given | Source::EarlierRuns => Size(fleet.expected.size().min(memory).0 + VM_FIXED),
    }
}

/// Checks that the VMs of a fleet have a chance to fit on this host.
pub fn check_count(fleet: &Fleet) -> Result<(), BackendError> {
    let (count, each) = (fleet.count, each(fleet));
    let available = host::memory_available();
    let fits = available.0 / each.0.max(1);
    if u64::from(count) > fits {
        let place = "this host";
        let expected = Some(fleet.expected).filter(|known| known.source != Source::Typical);
        return Err(BackendError::TooMany { place, count, available, each, fits, expected });
    }
    Ok(())
}

/// Returns how many private frames a fleet may have: what its VMs can use, and what the host has
/// free memory for, or guests could exhaust it.
pub fn private_frames(fleet: &Fleet) -> u32 {
    let frames = host::memory_available().0 / u64::from(FRAME_SIZE);
    fleet.private_frames().min(frames).min(u64::from(u32::MAX) / 2) as u32
}

impl CpuBackend {
    /// Starts a fleet. Its VMs are staged by the workers, one by one.
    pub fn start(fleet: Fleet, settings: Settings) -> Result<Self, BackendError> {
        check_count(&fleet)?;
        let images = Images::new(fleet.disks.as_ref());
        let threads = settings.threads.clamp(1, fleet.count.max(1) as usize);
        // What a thread has taken ahead must not be missing for the VMs of others.
        let frames = private_frames(&fleet).saturating_add((threads * MAGAZINE) as u32);
        let arena = Arc::new(HostArena::new(&fleet.base, images, frames)?);
        let part = Part { fleet, settings };
        let started = part.started();
        let slot = |index| VmSlot {
            run: Mutex::new(VmRun::new(index < started, &part.settings)),
            input: Mutex::default(),
            has_input: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            requests: Mutex::default(),
            has_requests: AtomicBool::new(false),
            instret: AtomicU64::new(0),
        };
        part.end_unstarted();
        let (sender, events) = bounded(EVENTS_MAX);
        let shared = Arc::new(Shared {
            slots: (0..part.count()).map(slot).collect(),
            sched: Scheduler::new(part.count(), started),
            stopped: AtomicBool::new(false),
            instructions: AtomicU64::new(0),
            arena,
            part,
        });
        let waker = Arc::downgrade(&shared);
        shared.part.on_inbound(move |index| {
            if let Some(shared) = waker.upgrade() {
                shared.sched.wake(index);
            }
        });
        let backend = Self { shared, events };
        for i in 0..threads {
            let (shared, sender) = (Arc::clone(&backend.shared), sender.clone());
            let context = WorkerContext::new()?;
            thread::Builder::new()
                .name(format!("cpu{i}"))
                .spawn(move || Worker::new(&shared, sender, context).work())
                .map_err(BackendError::Thread)?;
        }
        Ok(backend)
    }
}

impl CpuBackend {
    /// Returns the slot of a VM, and its index.
    fn slot(&self, vm: u32) -> Option<(u32, &VmSlot)> {
        let index = self.shared.part.slot(vm)?;
        Some((index, self.shared.slots.get(index as usize)?))
    }

    fn request(&self, vm: u32, request: Request) {
        let Some((index, slot)) = self.slot(vm) else { return };
        lock(&slot.requests).push(request);
        slot.has_requests.store(true, Ordering::Release);
        self.shared.sched.summon(index);
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    fn input(&self, vm: u32, bytes: &[u8]) {
        let Some((index, slot)) = self.slot(vm) else { return };
        slot.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        lock(&slot.input).extend(bytes);
        slot.has_input.store(true, Ordering::Release);
        self.shared.sched.wake(index);
    }

    fn waiting(&self, vm: u32) -> usize {
        self.slot(vm).map_or(0, |(_, slot)| slot.waiting.load(Ordering::Relaxed))
    }

    fn submit(&self, vm: u32, call: Call) -> Result<(), Unsupported> {
        self.request(vm, Request::Execute(call));
        Ok(())
    }

    fn inspect(&self, vm: u32, inspector: Inspector) -> Result<(), Unsupported> {
        self.request(vm, Request::Inspect(inspector));
        Ok(())
    }

    fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.shared.sched.stop();
    }

    fn totals(&self) -> Totals {
        Totals {
            instructions: self.shared.instructions.load(Ordering::Relaxed),
            shared_frames: self.shared.arena.shared(),
            private_frames: self.shared.arena.in_use(),
        }
    }

    fn fixed(&self) -> u64 {
        let table = u64::from(self.shared.part.fleet.base.pages()) * size_of::<u32>() as u64;
        size_of::<VmSlot>() as u64 + table
    }

    fn instret(&self, vm: u32) -> u64 {
        self.slot(vm).map_or(0, |(_, slot)| slot.instret.load(Ordering::Relaxed))
    }
}

impl Drop for CpuBackend {
    fn drop(&mut self) {
        self.stop();
        let images = self.shared.arena.images();
        if !images.write_back() {
            return;
        }
        // No VM writes any more once all workers have ended, and with them the events.
        while self.events.recv().is_ok() {}
        for image in 0..images.pages().count() as u32 {
            images.end(image);
        }
    }
}

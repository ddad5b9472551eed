//! The CUDA backend: runs a fleet on an NVIDIA GPU.
//!
//! [`gpu`] is the interface to a device; [`driver`] implements it with CUDA, [`emulated`] with host
//! memory. [`fleet`] lays a fleet out in device memory and launches the kernels over it; `runner`
//! decides, on a thread of its own, what to launch, and handles what VMs wrote.

pub mod bare_fleet;
mod chooser;
pub mod compiled;
#[cfg(test)]
mod control_tests;
mod disk;
pub mod driver;
pub mod emulated;
pub mod error;
pub mod fleet;
pub mod gpu;
mod module;
mod pacer;
pub mod packing;
#[cfg(test)]
mod part_tests;
mod runner;
pub mod sizing;
mod slot;
#[cfg(test)]
mod tests;

pub use error::CudaError;

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use self::driver::{Device, Say};
pub use self::fleet::DeviceFleet;
use self::gpu::Gpu;
pub use self::packing::{Choice, InsnLoop};
use self::runner::Runner;
use super::part::Part;
use super::{Backend, BackendError, Event, Inspector, Launches, Settings, Totals, Unsupported};
use crate::control::Call;
use crate::machine::Fleet;
use crate::sync::lock;

/// PTX of this build; empty when it was built without.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/pxvm.ptx"));
/// Why this build has no PTX.
const NO_PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/no-ptx.txt"));

/// Events that may wait for the listener before the runner's thread blocks.
const EVENTS_MAX: usize = 1 << 16;

/// Options of the CUDA backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Index of the CUDA device.
    pub device: u32,
    /// How VMs are packed into warps.
    pub packing: packing::Choice,
}

/// Returns an error where this build has no code for GPUs.
pub fn has_ptx() -> Result<(), CudaError> {
    if PTX.is_empty() {
        return Err(CudaError::NoPtx(NO_PTX.lines().next().unwrap_or_default()));
    }
    Ok(())
}

/// Returns the PTX of this build, which is empty where it has none.
pub fn ptx() -> &'static str {
    PTX
}

/// Returns what is known of the device, or an error where it cannot be used.
pub fn available(index: u32) -> Result<driver::Info, CudaError> {
    has_ptx()?;
    driver::info(index)
}

/// Opens a device and loads the program. Calls `say` when that takes long: the driver compiles the
/// program once for each kind of card ([`compiled`]).
pub fn open(index: u32, say: Say) -> Result<Box<dyn Gpu>, CudaError> {
    has_ptx()?;
    let ptx = CString::new(PTX).map_err(|_| CudaError::Contract("PTX with a zero byte"))?;
    Ok(Box::new(Device::open(index, &ptx, say)?))
}

/// State shared by the runner's thread and the backend's owner.
pub(crate) struct Shared {
    part: Part,
    options: Options,
    stopped: AtomicBool,
    instructions: AtomicU64,
    private_frames: AtomicU32,
    launches: AtomicU64,
    device_ns: AtomicU64,
    shared_frames: u32,
    instret: Vec<AtomicU64>,
    /// Console bytes that each VM has not read.
    waiting: Vec<AtomicUsize>,
    begun: Instant,
    /// Time until which somebody watches instruction counts, in milliseconds since `begun`.
    watched_until: AtomicU64,
    failure: Mutex<Option<CudaError>>,
}

/// How long instruction counts are published after [`Backend::watched`].
const WATCH: Duration = Duration::from_secs(3);

impl Shared {
    /// Notes that the VM in a slot has read console input, or never will.
    fn has_taken(&self, index: u32, bytes: usize) {
        if let Some(waiting) = self.waiting.get(index as usize).filter(|_| bytes > 0) {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn is_watched(&self) -> bool {
        let until = Duration::from_millis(self.watched_until.load(Ordering::Relaxed));
        self.begun.elapsed() < until
    }
}

/// A request to the runner's thread. VMs are numbered by their slots.
pub(crate) enum Request {
    /// Console input for a VM.
    Input(u32, Vec<u8>),
    /// Packets wait for a VM.
    Packets(u32),
    /// Execute a command on a VM.
    Execute(u32, Call),
    /// Inspect a VM.
    Inspect(u32, Inspector),
    /// The fleet is stopped.
    Stop,
}

/// A fleet on a GPU.
pub struct CudaBackend {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    requests: Sender<Request>,
    thread: Option<JoinHandle<()>>,
}

impl CudaBackend {
    /// Starts a fleet that was laid out on a device by [`DeviceFleet::new`], with this fleet's base
    /// image and count.
    pub fn start(
        device: DeviceFleet,
        fleet: Fleet,
        settings: Settings,
        options: Options,
    ) -> Result<Self, BackendError> {
        let part = Part { fleet, settings };
        let shared = Arc::new(Shared {
            shared_frames: device.shared(),
            instret: (0..part.count()).map(|_| AtomicU64::new(0)).collect(),
            waiting: (0..part.count()).map(|_| AtomicUsize::new(0)).collect(),
            begun: Instant::now(),
            watched_until: AtomicU64::new(0),
            part,
            options,
            stopped: AtomicBool::new(false),
            instructions: AtomicU64::new(0),
            private_frames: AtomicU32::new(0),
            launches: AtomicU64::new(0),
            device_ns: AtomicU64::new(0),
            failure: Mutex::new(None),
        });
        let (sender, events) = bounded(EVENTS_MAX);
        let (requests, received) = unbounded();
        let waker = requests.clone();
        shared.part.on_inbound(move |index| drop(waker.send(Request::Packets(index))));
        shared.part.end_unstarted();
        let runner = Runner::new(Arc::clone(&shared), device, sender, received);
        let thread = thread::Builder::new()
            .name("cuda".to_owned())
            .spawn(move || runner.run())
            .map_err(BackendError::Thread)?;
        Ok(Self { shared, events, requests, thread: Some(thread) })
    }

    fn request(&self, request: Request) {
        // Sending fails only when the thread has ended, which then reported why.
        let _ = self.requests.send(request);
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    fn input(&self, vm: u32, bytes: &[u8]) {
        let Some(index) = self.shared.part.slot(vm) else { return };
        self.shared.waiting[index as usize].fetch_add(bytes.len(), Ordering::Relaxed);
        self.request(Request::Input(index, bytes.to_vec()));
    }

    fn waiting(&self, vm: u32) -> usize {
        let index = self.shared.part.slot(vm);
        index.map_or(0, |i| self.shared.waiting[i as usize].load(Ordering::Relaxed))
    }

    fn submit(&self, vm: u32, call: Call) -> Result<(), Unsupported> {
        if let Some(index) = self.shared.part.slot(vm) {
            self.request(Request::Execute(index, call));
        }
        Ok(())
    }

    fn inspect(&self, vm: u32, inspector: Inspector) -> Result<(), Unsupported> {
        if let Some(index) = self.shared.part.slot(vm) {
            self.request(Request::Inspect(index, inspector));
        }
        Ok(())
    }

    fn watched(&self) {
        let until = self.shared.begun.elapsed() + WATCH;
        self.shared.watched_until.store(until.as_millis() as u64, Ordering::Relaxed);
    }

    fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.request(Request::Stop);
    }

    fn totals(&self) -> Totals {
        Totals {
            instructions: self.shared.instructions.load(Ordering::Relaxed),
            shared_frames: self.shared.shared_frames,
            private_frames: self.shared.private_frames.load(Ordering::Relaxed),
        }
    }

    fn fixed(&self) -> u64 {
        sizing::fixed(self.shared.part.fleet.base.pages())
    }

    fn launches(&self) -> Option<Launches> {
        let time = Duration::from_nanos(self.shared.device_ns.load(Ordering::Relaxed));
        Some(Launches { count: self.shared.launches.load(Ordering::Relaxed), time })
    }

    fn instret(&self, vm: u32) -> u64 {
        let index = self.shared.part.slot(vm);
        index.map_or(0, |i| self.shared.instret[i as usize].load(Ordering::Relaxed))
    }

    fn failure(&self) -> BackendError {
        let mut failure = lock(&self.shared.failure);
        failure.take().map_or(BackendError::Ended, BackendError::Cuda)
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        self.stop();
        // The thread may be blocked until somebody receives its events.
        while self.events.recv().is_ok() {}
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the GPU ended in a panic");
        }
    }
}

#[cfg(test)]
mod text {
    #[test]
    fn the_ptx_is_what_it_must_be() {
        let Some(()) = pxvm_tests::needs::found("ptx", super::has_ptx()) else { return };
        let features: &[&str] = if super::InsnLoop::HAS_UNIFORM { &["uniform-loop"] } else { &[] };
        let entries = ptx_builder::entries(features);
        assert_eq!(ptx_builder::check::problems(super::PTX, &entries), Vec::<String>::new());
        assert_eq!(ptx_builder::check::traps(super::PTX), 0);
    }
}

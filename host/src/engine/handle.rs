//! Handle on a running fleet, through which the control API and the terminal observe it and command
//! it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use tokio::sync::{Semaphore, oneshot};

use super::consoles::Consoles;
use super::state::{ControlError, FleetState, VmRecord};
use super::{INPUT_MAX, Request, Until};
use crate::backend::{Backend, Inspection};
use crate::control::{Call, Reply, StateCounts};
use crate::sync::lock;

/// Time limit for a fleet's response: many launches.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest number of inspections at a time.
const INSPECTIONS_MAX: usize = 256;

/// Handle on a fleet, shared by the thread that runs it and by its users.
pub struct FleetHandle {
    /// Console output of the VMs.
    pub consoles: Consoles,
    backend: Arc<dyn Backend>,
    state: Mutex<FleetState>,
    requests: Sender<Request>,
    started: Instant,
    alive: AtomicBool,
    inspections: Arc<Semaphore>,
}

impl FleetHandle {
    /// Returns the handle of a fleet on `backend` with `count` VMs started and room for `capacity`.
    /// The fleet's thread receives from `requests`.
    pub fn new(
        backend: Arc<dyn Backend>,
        count: u32,
        capacity: u32,
        until: Until,
        requests: Sender<Request>,
    ) -> Self {
        Self {
            consoles: Consoles::new(capacity),
            backend,
            state: Mutex::new(FleetState::new(count, capacity, until)),
            requests,
            started: Instant::now(),
            alive: AtomicBool::new(true),
            inspections: Arc::new(Semaphore::new(INSPECTIONS_MAX)),
        }
    }

    /// Returns the backend.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// Locks the fleet state. To be held for moments only, because the fleet's events wait
    /// meanwhile.
    pub fn state(&self) -> MutexGuard<'_, FleetState> {
        lock(&self.state)
    }

    /// Returns the record of a VM.
    pub fn record(&self, vm: u32) -> Result<VmRecord, ControlError> {
        self.state().record(vm).cloned()
    }

    /// Returns the number of VMs in each state.
    pub fn counts(&self) -> StateCounts {
        self.state().counts()
    }

    /// Returns when the fleet was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether the backend is running.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    pub(super) fn ends(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    /// Queues console input for a VM.
    pub fn input(&self, vm: u32, bytes: &[u8]) -> Result<(), ControlError> {
        let state = self.record(vm)?.state;
        if !state.is_alive() {
            return Err(ControlError::NotListening { vm, state });
        }
        self.backend.takes_input()?;
        let waiting = self.backend.waiting(vm);
        if waiting + bytes.len() > INPUT_MAX {
            return Err(ControlError::InputFull { vm, waiting });
        }
        self.backend.input(vm, bytes);
        Ok(())
    }

    /// Sends a command to a VM, waits until it is completed, and returns its reply.
    pub async fn execute(&self, vm: u32, call: Call) -> Result<Reply, ControlError> {
        let (responder, response) = oneshot::channel();
        self.request(Request::Execute { vm, call, responder })?;
        in_time(response).await?
    }

    /// Adds VMs and returns their numbers.
    pub async fn add(&self, count: u32) -> Result<Vec<u32>, ControlError> {
        let (responder, response) = oneshot::channel();
        self.request(Request::Add { count, responder })?;
        in_time(response).await?
    }

    fn request(&self, request: Request) -> Result<(), ControlError> {
        self.requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => ControlError::Overloaded,
            TrySendError::Disconnected(_) => ControlError::Silent,
        })
    }

    /// Returns a VM's state between two slices; `None` when it has no memory.
    pub async fn inspect(&self, vm: u32) -> Result<Option<Inspection>, ControlError> {
        self.record(vm)?;
        // The permit is released by the inspection itself, even when its caller has stopped
        // waiting.
        let permit = Arc::clone(&self.inspections).try_acquire_owned();
        let permit = permit.map_err(|_| ControlError::Overloaded)?;
        let (responder, response) = oneshot::channel();
        let inspector = move |inspection| {
            drop(permit);
            drop(responder.send(inspection));
        };
        self.backend.inspect(vm, Box::new(inspector))?;
        in_time(response).await
    }
}

async fn in_time<T>(answer: oneshot::Receiver<T>) -> Result<T, ControlError> {
    let answered = tokio::time::timeout(REPLY_TIMEOUT, answer).await;
    answered.ok().and_then(Result::ok).ok_or(ControlError::Silent)
}

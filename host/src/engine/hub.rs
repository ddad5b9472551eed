//! A running fleet, as others see it and act on it: the control API and the terminal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use tokio::sync::{Semaphore, oneshot};

use super::consoles::Consoles;
use super::ledger::{ControlError, Counts, Ledger, Record};
use super::{Control, INPUT_MAX, Until};
use crate::backend::{Backend, Inspection, Order};
use crate::sync::lock;

/// How long a fleet has for an answer: many launches.
const PATIENCE: Duration = Duration::from_secs(10);
/// VMs that are looked at at a time.
const INSPECTIONS_MAX: usize = 256;

/// What is shared by the thread that runs a fleet and those who look at it.
pub struct Hub {
    /// What VMs have said.
    pub consoles: Consoles,
    backend: Arc<dyn Backend>,
    ledger: Mutex<Ledger>,
    controls: Sender<Control>,
    started: Instant,
    alive: AtomicBool,
    inspections: Arc<Semaphore>,
}

impl Hub {
    /// A fleet on `backend` of which `count` VMs were started and as many as `capacity` may be.
    /// Its thread listens to `controls`.
    pub fn new(
        backend: Arc<dyn Backend>,
        count: u32,
        capacity: u32,
        until: Until,
        controls: Sender<Control>,
    ) -> Self {
        Self {
            consoles: Consoles::new(capacity),
            backend,
            ledger: Mutex::new(Ledger::new(count, capacity, until)),
            controls,
            started: Instant::now(),
            alive: AtomicBool::new(true),
            inspections: Arc::new(Semaphore::new(INSPECTIONS_MAX)),
        }
    }

    /// What steps the fleet.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// The VMs' states. Held for moments only: the fleet's events wait.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// What is known of a VM.
    pub fn record(&self, vm: u32) -> Result<Record, ControlError> {
        self.ledger().record(vm).cloned()
    }

    /// How many VMs are in which state.
    pub fn counts(&self) -> Counts {
        self.ledger().counts()
    }

    /// When the fleet was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether the backend lives.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    pub(super) fn ends(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    /// Gives a VM console input.
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

    /// Gives a VM an order and waits until it is obeyed.
    pub async fn order(&self, vm: u32, order: Order) -> Result<(), ControlError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Control::Order { vm, order, reply })?;
        in_time(answer).await?
    }

    /// Adds VMs; answers their numbers.
    pub async fn add(&self, count: u32) -> Result<Vec<u32>, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Control::Add { count, reply })?;
        in_time(answer).await?
    }

    fn ask(&self, control: Control) -> Result<(), ControlError> {
        self.controls.try_send(control).map_err(|error| match error {
            TrySendError::Full(_) => ControlError::Overloaded,
            TrySendError::Disconnected(_) => ControlError::Silent,
        })
    }

    /// A VM's state between two slices; `None` when it has no memory.
    pub async fn inspect(&self, vm: u32) -> Result<Option<Inspection>, ControlError> {
        self.record(vm)?;
        // Given back by whoever looks, also when nobody waits for the answer any more.
        let permit = Arc::clone(&self.inspections).try_acquire_owned();
        let permit = permit.map_err(|_| ControlError::Overloaded)?;
        let (reply, answer) = oneshot::channel();
        let inspector = move |inspection| {
            drop(permit);
            drop(reply.send(inspection));
        };
        self.backend.inspect(vm, Box::new(inspector))?;
        in_time(answer).await
    }
}

async fn in_time<T>(answer: oneshot::Receiver<T>) -> Result<T, ControlError> {
    let answered = tokio::time::timeout(PATIENCE, answer).await;
    answered.ok().and_then(Result::ok).ok_or(ControlError::Silent)
}

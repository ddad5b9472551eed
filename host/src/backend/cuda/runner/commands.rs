//! Executes the user's commands on single VMs, between two launches, once everything that VMs
//! reported has been handled.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Runner;
use crate::backend::cuda::Request;
use crate::backend::cuda::error::CudaError;
use crate::backend::life::{Action, State};
use crate::backend::{EventKind, Inspection, Inspector};
use crate::control::{Call, Command, CommandError, Reply};

/// Shortest time between two publications of instruction counts.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);
/// Publications take at most one part in this many of the time.
const PUBLISH_SHARE: u32 = 100;

impl Runner {
    /// Executes all pending commands and inspections. Only while no launch is under way.
    pub(super) fn handle_pending(&mut self) -> Result<(), CudaError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.handle_unread()?;
        // VMs that are to be reset are reset first.
        self.recycle()?;
        let mut completed = Vec::new();
        for request in std::mem::take(&mut self.pending) {
            match request {
                Request::Execute(index, call) if (index as usize) < self.slots.len() => {
                    self.finish_start(index)?;
                    let instret = self.retired(index)?;
                    self.shared.instret[index as usize].store(instret, Ordering::Relaxed);
                    let result = self.execute(index, &call, instret);
                    completed.push((index, instret, EventKind::Completed(call.command(), result)));
                }
                Request::Inspect(index, inspector) if (index as usize) < self.slots.len() => {
                    self.finish_start(index)?;
                    self.inspect(index, inspector)?;
                }
                Request::Execute(..) | Request::Inspect(..) => {}
                // These are handled when they arrive.
                Request::Input(..) | Request::Packets(_) | Request::Stop => {}
            }
        }
        self.recycle()?;
        for (index, instret, event) in completed {
            self.report(index, instret, event);
        }
        Ok(())
    }

    /// Starts a VM that an earlier command has reset.
    fn finish_start(&mut self, index: u32) -> Result<(), CudaError> {
        match self.slots[index as usize].life.state() {
            State::Starting => self.recycle(),
            _ => Ok(()),
        }
    }

    /// Executes a command: the place for each new one on a GPU.
    fn execute(&mut self, index: u32, call: &Call, instret: u64) -> Result<Reply, CommandError> {
        match call {
            Call::Pause(_) | Call::Resume(_) | Call::Reset(_) | Call::Stop(_) => {
                self.change_life(index, call.command(), instret);
                Ok(Reply::None)
            }
        }
    }

    fn change_life(&mut self, index: u32, command: Command, instret: u64) {
        let slot = &mut self.slots[index as usize];
        let before = slot.life.state();
        let action = slot.life.command(command, instret, &self.shared.part.settings);
        if let Action::Start | Action::Restart = action {
            slot.restart();
            self.shared.part.link(index).start();
        }
        if before == State::OutOfMemory && slot.life.state() != before {
            self.out_of_memory.retain(|&other| other != index);
            if self.out_of_memory.is_empty() {
                self.out_of_memory_since = None;
            }
        }
        self.apply(index, action);
    }

    /// Returns the instructions that a VM has retired since its first start.
    fn retired(&mut self, index: u32) -> Result<u64, CudaError> {
        let since_start = self.fleet.instret(index)?;
        Ok(self.slots[index as usize].life.retired(since_start))
    }

    fn inspect(&mut self, index: u32, inspector: Inspector) -> Result<(), CudaError> {
        if self.slots[index as usize].life.state() == State::Stopped {
            inspector(None);
            return Ok(());
        }
        inspector(Some(Inspection {
            vm: Box::new(self.fleet.vm(index)?),
            instret: self.retired(index)?,
            private_frames: self.fleet.private_frames_of(index)?,
        }));
        Ok(())
    }

    /// Publishes VMs' instruction counts, at intervals while somebody watches. Only while no launch
    /// is under way.
    pub(super) fn publish(&mut self) -> Result<(), CudaError> {
        let now = Instant::now();
        if now < self.publish_at || !self.shared.is_watched() {
            return Ok(());
        }
        let counts = self.fleet.instrets()?;
        for ((slot, shared), instret) in self.slots.iter().zip(&self.shared.instret).zip(counts) {
            shared.store(slot.life.retired(instret), Ordering::Relaxed);
        }
        self.publish_at = now + PUBLISH_EVERY.max(now.elapsed() * PUBLISH_SHARE);
        Ok(())
    }
}

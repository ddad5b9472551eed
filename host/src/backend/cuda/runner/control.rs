//! Executes the user's commands on single VMs, between two launches, once everything that VMs
//! reported has been handled.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Runner;
use crate::backend::cuda::Request;
use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::seat::State;
use crate::backend::{Command, EventKind, Inspection, Inspector};

/// Shortest time between two publications of instruction counts.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);
/// Publications take at most one part in this many of the time.
const PUBLISH_SHARE: u32 = 100;

impl Runner {
    /// Handles all pending requests. Only while no launch is under way.
    pub(super) fn execute_pending(&mut self) -> Result<(), CudaError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if let Some(completed) = self.unread.take() {
            let result = self.fleet.result(completed)?;
            self.hear(&result);
        }
        // VMs that are to be reset are reset first.
        self.recycle()?;
        let mut completed = Vec::new();
        for request in std::mem::take(&mut self.pending) {
            match request {
                Request::Execute(vm, command) if (vm as usize) < self.seats.len() => {
                    let instret = self.retired(vm)?;
                    self.shared.instret[vm as usize].store(instret, Ordering::Relaxed);
                    self.execute(vm, command, instret);
                    completed.push((vm, instret, command));
                }
                Request::Inspect(vm, inspector) if (vm as usize) < self.seats.len() => {
                    self.show(vm, inspector)?;
                }
                _ => {}
            }
        }
        self.recycle()?;
        for (vm, instret, command) in completed {
            self.tell(vm, instret, EventKind::Completed(command));
        }
        Ok(())
    }

    fn execute(&mut self, vm: u32, command: Command, instret: u64) {
        let seat = &mut self.seats[vm as usize];
        match (command, seat.state) {
            (Command::Pause | Command::Resume, State::Done) => {}
            (Command::Pause, _) => {
                seat.state = State::Held;
                self.rests(vm);
            }
            (Command::Resume, State::Held) => {
                // The VM was ready, and the run needs no more of it.
                if seat.paused_at.is_some() {
                    seat.state = State::Paused;
                } else {
                    self.wake(vm);
                }
            }
            (Command::Resume, _) => {}
            (Command::Stop, State::Done) => {}
            (Command::Stop, _) => self.give_up(vm),
            (Command::Reset, _) => {
                seat.restart(&self.shared.settings.ready, instret);
                (seat.boots, seat.state) = (1, State::Idle);
                self.shared.settings.link.start(vm);
                self.rests(vm);
                self.restarts.push(vm);
            }
        }
    }

    /// Stops a VM; its memory is freed soon.
    pub(super) fn give_up(&mut self, vm: u32) {
        let seat = &mut self.seats[vm as usize];
        seat.state = State::Done;
        self.shared.has_taken(vm, seat.typed());
        seat.forget();
        self.shared.settings.link.end(vm);
        self.rests(vm);
        self.ended.push(vm);
    }

    /// Takes a VM off the launch list; nothing that it waited for wakes it.
    fn rests(&mut self, vm: u32) {
        let seat = &mut self.seats[vm as usize];
        seat.nap = seat.nap.wrapping_add(1);
        self.stale = true;
        self.starved.retain(|&other| other != vm);
        if self.starved.is_empty() {
            self.dry_since = None;
        }
    }

    /// Returns the instructions that a VM has retired since its first start.
    fn retired(&mut self, vm: u32) -> Result<u64, CudaError> {
        let seat = &self.seats[vm as usize];
        match seat.paused_at {
            Some(at) => Ok(at),
            None => Ok(seat.earlier + self.fleet.instret(vm)?),
        }
    }

    fn show(&mut self, vm: u32, inspector: Inspector) -> Result<(), CudaError> {
        if self.seats[vm as usize].state == State::Done {
            inspector(None);
            return Ok(());
        }
        inspector(Some(Inspection {
            vm: Box::new(self.fleet.vm(vm)?),
            instret: self.retired(vm)?,
            private_frames: self.fleet.private_frames_of(vm)?,
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
        for ((seat, shared), instret) in self.seats.iter().zip(&self.shared.instret).zip(counts) {
            if seat.paused_at.is_none() {
                shared.store(seat.earlier + instret, Ordering::Relaxed);
            }
        }
        self.publish_at = now + PUBLISH_EVERY.max(now.elapsed() * PUBLISH_SHARE);
        Ok(())
    }
}

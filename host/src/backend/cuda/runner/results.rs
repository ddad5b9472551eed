//! Handles what VMs wrote, sent and took in a launch, and why they stopped.

use std::sync::atomic::Ordering;
use std::time::Instant;

use emu_core::abi::{Exit, ExitCode};
use emu_device::protocol::outbox::{Body, Message, messages};

use super::Runner;
use crate::backend::EventKind;
use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::fleet::LaunchResult;
use crate::backend::life::{Action, State, Trigger};
use crate::backend::trap_loop::TrapLoop;
use crate::net::DropReason;

impl Runner {
    /// Handles the results of the last launch. Returns `false` when that was done already.
    pub(super) fn handle_unread(&mut self) -> Result<bool, CudaError> {
        let Some(completed) = self.unread.take() else { return Ok(false) };
        let result = self.fleet.result(completed)?;
        self.handle_result(&result);
        Ok(true)
    }

    /// Handles the results of a launch.
    pub(super) fn handle_result(&mut self, result: &LaunchResult) {
        if result.busy > 0 {
            self.clock.measured(result.ran.into(), result.took);
            self.pacer.measured(result.ran, result.took);
            self.chooser.measured(result.insn_loop, result.ran.into(), result.took);
        }
        tracing::trace!(
            busy = result.busy,
            log = result.log.len(),
            instructions = result.instructions,
            us = result.took.as_micros() as u64,
            ran = result.ran,
            listed = result.listed,
            insn_loop = ?result.insn_loop,
            code = result.code_pages,
            "launch"
        );
        self.shared.launches.fetch_add(1, Ordering::Relaxed);
        self.shared.device_ns.fetch_add(result.took.as_nanos() as u64, Ordering::Relaxed);
        self.shared.instructions.store(result.instructions, Ordering::Relaxed);
        self.shared.private_frames.store(result.private_frames, Ordering::Relaxed);
        for message in messages(&result.log) {
            self.handle_record(&message);
        }
        self.shared.part.settings.link.flush();
    }

    fn handle_record(&mut self, message: &Message<'_>) {
        let index = message.vm;
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        let instret = slot.life.earlier() + message.instret;
        if !slot.life.counts(instret) {
            return;
        }
        match message.body {
            Body::Console(bytes) => {
                let ready = slot.life.output(bytes, instret, &self.shared.part.settings);
                self.list_is_stale |= ready && !slot.life.is_runnable();
                self.report(index, instret, EventKind::Console(bytes.to_vec()));
                if ready {
                    self.report(index, instret, EventKind::Ready);
                }
            }
            Body::Packet(bytes) => {
                self.io_at = Some(Instant::now());
                self.shared.part.link(index).send(bytes.into());
            }
            Body::Taken(record) => {
                let waiting = slot.console_waiting();
                let drops = slot.acknowledge(&record);
                self.shared.has_taken(index, waiting - slot.console_waiting());
                let link = self.shared.part.link(index);
                slot.fetch_packets(link);
                link.dropped_by_card(DropReason::NoBuffer, drops.rx.into());
                link.dropped_by_card(DropReason::BadLength, drops.tx.into());
                self.note_input(index);
            }
            Body::TrapLoop(traps) => slot.traps = traps,
            Body::Exit(exit, wake_at) => {
                self.shared.instret[index as usize].store(instret, Ordering::Relaxed);
                self.handle_exit(index, instret, exit, wake_at);
            }
        }
    }

    /// Handles that a VM has stopped executing: the device skips it until it is woken.
    fn handle_exit(&mut self, index: u32, instret: u64, exit: Exit, wake_at: u64) {
        let slot = &mut self.slots[index as usize];
        let timer = self.clock.at(wake_at);
        let due = timer.is_some_and(|at| at <= Instant::now()) || slot.wants_to_run();
        let (action, events) = match exit.code {
            // The argument distinguishes a VM that could not even start from one that can continue.
            ExitCode::Disk => {
                self.waiting_for_disk.push((index, exit.arg));
                return;
            }
            ExitCode::NoFrame if exit.arg == 0 => (slot.life.on(Trigger::NoFrame), Vec::new()),
            _ => {
                let part = &self.shared.part;
                let traps = TrapLoop::new(part.fleet.plan.kind, &slot.traps);
                slot.life.exit(exit, traps, due, instret, &part.settings)
            }
        };
        match (action, slot.life.state()) {
            (Action::Park, State::Parked) => self.timers.park(index, timer),
            (Action::Park, State::OutOfMemory) => {
                self.out_of_memory.push(index);
                self.out_of_memory_since.get_or_insert_with(Instant::now);
            }
            (Action::Restart, _) => {
                slot.restart();
                self.shared.part.link(index).reset();
            }
            _ => {}
        }
        self.apply(index, action);
        for kind in events {
            self.report(index, instret, kind);
        }
    }
}

//! Starts VMs and frees their memory, while no launch is under way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::Runner;
use crate::backend::cuda::Shared;
use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::fleet::{DeviceFleet, Start};
use crate::backend::life::{State, Trigger};
use crate::backend::{EventKind, Reason};

/// How long VMs may be out of memory before some of them are stopped to make room.
const OUT_OF_MEMORY_MAX: Duration = Duration::from_secs(2);
/// One in this many of those VMs is stopped at a time. The frames of one are many times what each of
/// so few others lacks; and where thousands wait, they do not wait for hours.
const ENDED_SHARE: usize = 8;

impl Runner {
    /// Stages and starts all VMs. Staging uses all the host's threads, and overlaps with starting.
    pub(super) fn start_all(&mut self) -> Result<(), CudaError> {
        let count = self.shared.part.started();
        let all: Vec<u32> = (0..count).collect();
        let shared = Arc::clone(&self.shared);
        thread::scope(|scope| {
            let (sender, receiver) = bounded(1);
            scope.spawn(|| {
                let chunks = all.chunks(DeviceFleet::START_MAX);
                let running = |_: &&[u32]| !shared.stopped.load(Ordering::Relaxed);
                // Nobody receives any more once something has failed.
                let _ = chunks.take_while(running).try_for_each(|c| sender.send(stage(&shared, c)));
                // Ends the loop below.
                drop(sender);
            });
            let mut started = 0;
            for starts in receiver {
                started += starts.len() as u32;
                self.fleet.start(&starts)?;
            }
            if started < count && !self.stopped() {
                return Err(CudaError::Contract("a VM could not be staged"));
            }
            // They are in the launch list already.
            for slot in &mut self.slots[..started as usize] {
                let _ = slot.life.on(Trigger::Started);
            }
            Ok(())
        })
    }

    /// Frees memory of VMs, starts VMs, and stops some where all are out of memory. Only while no
    /// launch is under way.
    pub(super) fn recycle(&mut self) -> Result<(), CudaError> {
        if self.to_free.is_empty() && self.to_start.is_empty() {
            if !self.is_stuck() {
                return Ok(());
            }
            self.make_room();
        }
        let free = std::mem::take(&mut self.to_free);
        self.fleet.release(&free)?;
        let origin = self.clock.ticks(Instant::now());
        let mut vms = std::mem::take(&mut self.to_start);
        // The user may have stopped one of them meanwhile.
        vms.retain(|&index| self.slots[index as usize].life.state() == State::Starting);
        let start = |&index: &u32| {
            let earlier = self.slots[index as usize].life.earlier();
            Start { vm: index, origin, staged: self.shared.part.stage(index, earlier) }
        };
        let starts: Vec<Start> = vms.iter().map(start).collect();
        self.fleet.start(&starts)?;
        let private = self.fleet.private_frames()?;
        self.shared.private_frames.store(private, Ordering::Relaxed);
        for index in vms {
            let _ = self.slots[index as usize].life.on(Trigger::Started);
            self.added.push(index);
        }
        for index in std::mem::take(&mut self.out_of_memory) {
            self.trigger(index, Trigger::FramesFreed);
        }
        self.out_of_memory_since = None;
        Ok(())
    }

    /// Whether VMs are out of memory, and no other will give frames back: none is runnable, or none
    /// of those has for long.
    fn is_stuck(&mut self) -> bool {
        let waits = |since: Instant| since.elapsed() < OUT_OF_MEMORY_MAX;
        let is_patient = self.out_of_memory_since.is_none_or(waits);
        !self.out_of_memory.is_empty() && (!is_patient || self.update_list().is_empty())
    }

    /// Ends those VMs that ran out of memory last, so that the others can continue.
    fn make_room(&mut self) {
        let stay = self.out_of_memory.len() - self.out_of_memory.len().div_ceil(ENDED_SHARE);
        for index in self.out_of_memory.split_off(stay) {
            let instret = self.shared.instret[index as usize].load(Ordering::Relaxed);
            self.trigger(index, Trigger::NoMemory);
            self.report(index, instret, EventKind::Faulted(Reason::NoMemory));
        }
    }
}

/// Stages VMs for their first start, on as many threads as the settings allow.
fn stage(shared: &Shared, vms: &[u32]) -> Vec<Start> {
    let threads = shared.part.settings.threads.clamp(1, 64);
    let stage = |&index: &u32| Start { vm: index, origin: 0, staged: shared.part.stage(index, 0) };
    let stage_some = |vms: &[u32]| -> Vec<Start> { vms.iter().map(stage).collect() };
    thread::scope(|scope| {
        let chunks = vms.chunks(DeviceFleet::START_MAX.div_ceil(threads));
        let work: Vec<_> = chunks.map(|vms| scope.spawn(move || stage_some(vms))).collect();
        work.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect()
    })
}

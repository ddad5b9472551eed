//! The launch list, and launches over it.
//!
//! The list is kept on the host and not built on the device: it changes only with what VMs report,
//! copying it takes microseconds (8 bytes for each runnable VM), and it keeps its order, by which
//! neighbours share a warp. On an H200, everything around launches is 0.5 % of the time with 8,448
//! VMs.

use std::time::Instant;

use emu_device::protocol::launch::{Entry, WAKE};

use super::{Runner, SHORT_AFTER_IO};
use crate::backend::cuda::InsnLoop;
use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::fleet::LaunchArgs;
use crate::backend::cuda::packing::Packing;

impl Runner {
    /// Launches the runnable VMs. Returns `false` when there are none.
    pub(super) fn launch(&mut self) -> Result<bool, CudaError> {
        if self.update_list().is_empty() {
            return Ok(false);
        }
        let io = self.io_at.is_some_and(|at| at.elapsed() < SHORT_AFTER_IO);
        let packing = self.packing();
        self.pacer.set_load(io, packing.vms_per_warp);
        self.submit(self.pacer.slices(), packing)?;
        Ok(true)
    }

    /// Brings the launch list up to date and returns it.
    pub(super) fn update_list(&mut self) -> &[Entry] {
        let slots = &self.slots;
        let is_runnable = |entry: &Entry| slots[entry.vm as usize].life.is_runnable();
        if self.list_is_stale {
            self.list.retain(is_runnable);
        }
        if !self.added.is_empty() {
            let added = self.added.drain(..).map(|index| Entry { vm: index, inbox: 0 });
            self.list.extend(added);
            self.list.sort_unstable_by_key(|e| e.vm);
            self.list.dedup_by_key(|e| e.vm);
            self.list.retain(is_runnable);
        }
        self.list_is_stale = false;
        &self.list
    }

    /// Returns how the next launch packs VMs into warps.
    pub(super) fn packing(&mut self) -> Packing {
        let (count, multiprocessors) = (self.list.len() as u32, self.fleet.multiprocessors());
        let choice = &self.shared.options.packing;
        let packing = choice.packing(count, multiprocessors, InsnLoop::Dispatch);
        match choice.insn_loop {
            None if InsnLoop::HAS_UNIFORM => {
                Packing { insn_loop: self.chooser.next(packing.vms_per_warp), ..packing }
            }
            _ => packing,
        }
    }

    /// Submits a launch with the input that waits for VMs.
    pub(super) fn submit(&mut self, slices: u32, packing: Packing) -> Result<(), CudaError> {
        let marked = self.mark_list();
        let args = LaunchArgs {
            active: &self.list,
            inbox: self.inbox.bytes(),
            slices,
            slice: self.pacer.slice(),
            now: self.clock.now(Instant::now()),
            packing,
            time: Some(self.pacer.target()),
        };
        self.fleet.submit(&args)?;
        for at in marked {
            let entry = &mut self.list[at];
            *entry = Entry { vm: entry.vm & !WAKE, inbox: 0 };
        }
        Ok(())
    }

    /// Fills the inbox, and marks in the launch list who has input in it and whom the device has to
    /// wake. Returns the marked positions.
    fn mark_list(&mut self) -> Vec<usize> {
        let find = |list: &[Entry], index: u32| list.binary_search_by_key(&index, |e| e.vm).ok();
        let mut marked = Vec::new();
        self.inbox.clear();
        let slots = &mut self.slots;
        self.with_input.retain(|&index| {
            let slot = &mut slots[index as usize];
            slot.has_input_queued = slot.has_input();
            slot.has_input_queued
        });
        // Rotated, so that another VM is first in the next launch if there is no room for all.
        if !self.with_input.is_empty() {
            self.with_input.rotate_left(1);
        }
        for &index in &self.with_input {
            if let Some(at) = find(&self.list, index) {
                self.list[at].inbox = self.inbox.add(&self.slots[index as usize].offer());
                marked.push(at);
            }
        }
        let wake: Vec<usize> =
            self.waking.drain(..).filter_map(|index| find(&self.list, index)).collect();
        for &at in &wake {
            self.list[at].vm |= WAKE;
        }
        marked.extend(wake);
        marked
    }
}

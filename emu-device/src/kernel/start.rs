//! Starts VMs, and frees the memory of those that have ended.

use super::tables::{DeviceFrames, code, give, own_code, row};
use crate::memory::{Arena, FrameMemory, OnGpu, copy};
use crate::protocol::launch::{CODE_SLOTS, Launch, StagedVm, WAKE};
use crate::protocol::port::{Parked, PortState};
use emu_core::abi::{Exit, ExitCode, Vm};
use emu_core::mem::Memory;

/// Returns a VM's private frames and its pages of decoded instructions to the free ones and leaves
/// it without memory. No launch that runs VMs may execute at the same time.
///
/// # Safety
/// As [`super::step`].
pub unsafe fn release(launch: &Launch, index: u32) {
    // SAFETY: as `step`. The stacks of what is returned have room for all there is.
    unsafe {
        let id = (*launch.active.ptr().add(index as usize)).vm & !WAKE;
        let control = &*launch.control.ptr();
        let give_frame = |frame| give(&control.free, frame);
        for entry in row(launch, id) {
            if *entry >= launch.shared {
                give_frame(*entry);
            }
            *entry = 0;
        }
        let arena = Arena::<OnGpu>::new(launch.arena.ptr(), launch.frames, launch.shared);
        (*launch.disks.ptr().add(id as usize)).release(arena, give_frame);
        code(launch, id).release(own_code(launch, id), |page| give(&control.free_code, page));
    }
}

/// Starts a VM that has no memory yet, `launch.staged[index]`: gives it its pages and its initial
/// state.
///
/// # Safety
/// As [`super::step`], for `staged` in place of `active`; the pages of each staged VM exist.
pub unsafe fn start(launch: &Launch, index: u32) {
    // SAFETY: as `step`.
    unsafe {
        let staged: &StagedVm = &*launch.staged.ptr().add(index as usize);
        let id = staged.id;
        let control = &*launch.control.ptr();
        let arena = Arena::<OnGpu>::new(launch.arena.ptr(), launch.frames, launch.shared);
        let ram = row(launch, id);
        let base = launch.base.ptr().add(staged.row as usize * ram.len());
        copy(base, ram.as_mut_ptr(), ram.len());
        *launch.disks.ptr().add(id as usize) = staged.disk;
        (*launch.code_slots.ptr().add(id as usize)).begin(own_code(launch, id));
        let mut memory = FrameMemory::new(arena, ram, DeviceFrames(&control.free));
        let state = &mut *launch.ports.ptr().add(id as usize);
        *state = PortState::new(staged.origin);
        let pages = core::slice::from_raw_parts(
            launch.staged_pages.ptr().add(staged.first_page as usize),
            staged.page_count as usize,
        );
        let mut missing = false;
        for page in pages {
            match memory.make_private(page.page) {
                Ok(frame) => {
                    for (at, word) in (0..).step_by(4).zip(page.bytes.as_chunks().0) {
                        memory.store32(frame, at, u32::from_le_bytes(*word));
                    }
                }
                Err(_) => missing = true,
            }
        }
        const WORDS: usize = size_of::<Vm>() / 8;
        let vm = launch.vms.ptr().add(id as usize);
        copy((&raw const staged.vm).cast::<u64>(), vm.cast::<u64>(), WORDS);
        if missing {
            // The VM never runs. The next launch reports its exit to the host.
            state.exit = Exit { code: ExitCode::NoFrame, arg: 1 };
            state.parked = Parked::Pending;
        }
    }
}

const _: () = assert!(CODE_SLOTS.is_power_of_two());
const _: () = assert!(size_of::<Vm>().is_multiple_of(8) && align_of::<Vm>() == 8);

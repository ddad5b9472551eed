//! The GPU entry points.

use crate::intrin::{shared_mem, thread};
use crate::launch::{FreeFrames, Launch};
use crate::port::LogPort;
use crate::ram::{Arena, FrameMemory, FrameRam, FrameSource};
use core::sync::atomic::Ordering;
use emu_core::abi::{Exit, ExitCode, FaultCode, Hot, VERSION};
use emu_core::machine::{Machine, Now};

/// Threads a block: one warp, so that a warp's end frees its shared memory.
const WARP: u32 = 32;

struct DeviceFrames<'a>(&'a FreeFrames);

impl FrameSource for DeviceFrames<'_> {
    fn take(&mut self) -> Option<u32> {
        let free = self.0;
        if free.taken.load(Ordering::Relaxed) < free.returned_len {
            let taken = free.taken.fetch_add(1, Ordering::Relaxed);
            if taken < free.returned_len {
                // SAFETY: the index is below the list's length.
                return Some(unsafe {
                    *free.returned.add((free.returned_len - 1 - taken) as usize)
                });
            }
        }
        if free.next.load(Ordering::Relaxed) >= free.limit {
            return None;
        }
        let next = free.next.fetch_add(1, Ordering::Relaxed);
        (next < free.limit).then_some(next)
    }
}

/// Runs every active VM for a budget of instructions: one VM a thread, `lanes` of them a warp.
///
/// # Safety
/// `launch` must describe memory as [`Launch`] says, not used by anybody else meanwhile, with
/// each VM at most once in `active`; the block has 32 threads and `lanes * size_of::<Hot>()`
/// bytes of shared memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pxvm_step(launch: &Launch) {
    let lane = thread::thread_idx_x();
    let index = thread::block_idx_x() * launch.lanes + lane;
    if lane >= launch.lanes || index >= launch.count {
        return;
    }
    // SAFETY: the pointers and counts are the launch's; `index` and what it leads to are in range.
    unsafe {
        let id = *launch.active.add(index as usize);
        let exit = launch.exits.add(index as usize);
        if launch.version != VERSION {
            *exit = Exit { code: ExitCode::Fault, arg: FaultCode::BadState as u32 };
            return;
        }
        let vm = &mut *launch.vms.add(id as usize);
        let hot = &mut *shared_mem().cast::<Hot>().add(lane as usize);
        *hot = vm.hot.clone();

        let arena = Arena::new(launch.arena, launch.frames, launch.shared);
        let table = launch.tables.add(id as usize * launch.pages as usize);
        let table = core::slice::from_raw_parts_mut(table, launch.pages as usize);
        let memory = FrameMemory::new(arena, table, DeviceFrames(&*launch.free));
        let shared = core::slice::from_raw_parts(launch.shared_code, launch.shared as usize);
        let mut ram = FrameRam::keep(memory, shared, &mut *launch.private_code.add(id as usize));
        let mut disk = FrameMemory::new(arena, &mut [], DeviceFrames(&*launch.free));
        let mut port = LogPort::new(id, &mut *launch.ports.add(id as usize), &*launch.outbox);
        let now = match launch.rate {
            0 => Now::Instret,
            rate => Now::Host { ticks: launch.ticks, rate },
        };
        *exit = Machine::with_hot(hot, &mut vm.sys, &mut ram, &mut disk, &mut port)
            .run(launch.budget, now);
        port.flush();
        vm.hot = hot.clone();
    }
}

const _: () = assert!(WARP == 32);

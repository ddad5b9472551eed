//! What a kernel launch does for one VM, and the GPU's entry points that call it.
//!
//! All but the entry points is ordinary Rust, so that tests can run a fleet with it in host memory.

use crate::memory::{Arena, FrameMemory, FrameRam, FrameSource, OnGpu, copy};
use crate::protocol::inbox::Inbox;
use crate::protocol::launch::{CODE_SLOTS, FreeFrames, Launch, SLICE, StagedVm, WAKE};
use crate::protocol::outbox::CardDrops;
use crate::protocol::port::{LogPort, Parked, PortState};
use crate::simt::Simt;
use crate::warp::Warp;
use core::sync::atomic::Ordering;
use emu_core::abi::{Exit, ExitCode, FaultCode, Hart, VERSION, Vm};
use emu_core::machine::{Machine, Now};
use emu_core::mem::{FRAME_SIZE, Memory};

/// How many runs a slice may take to reach its end. A run can retire fewer instructions than asked.
pub const SLICE_PARTS: u64 = 8;

/// By how much the instruction budget of a launch that ends by the clock is multiplied. VMs are not
/// equally fast, and none should use up its budget before the time is over. Where the clock stands
/// still, the budget is what ends the launch.
const fn runs<S: Simt>() -> u64 {
    if S::CLOCK_RUNS { 4 } else { 1 }
}

/// Instructions that a VM may run past its budget so that its warp can reconverge.
const GRACE: u64 = SLICE as u64 / 2;

struct DeviceFrames<'a>(&'a FreeFrames);

impl FrameSource for DeviceFrames<'_> {
    fn take(&mut self) -> Option<u32> {
        let free = self.0;
        if free.top.load(Ordering::Relaxed) as i32 > 0 {
            let top = free.top.fetch_sub(1, Ordering::Relaxed) as i32;
            if top > 0 {
                // SAFETY: entries below the first `top` exist, and this one is now ours alone.
                return Some(unsafe { *free.returned.ptr().add(top as usize - 1) });
            }
            // An empty stack stays empty, because a launch that takes frames never returns any.
            free.top.fetch_add(1, Ordering::Relaxed);
        }
        if free.next.load(Ordering::Relaxed) >= free.limit {
            return None;
        }
        let next = free.next.fetch_add(1, Ordering::Relaxed);
        (next < free.limit).then_some(next)
    }
}

/// Returns the row of VM `id` in the frame tables: its pages of RAM, and those of its disk.
///
/// # Safety
/// As [`step`], and nobody else has the row.
unsafe fn row(launch: &Launch, id: u32) -> (&'static mut [u32], &'static mut [u32]) {
    let width = launch.pages as usize + launch.disk_pages as usize;
    // SAFETY: the launch has a row of this width for every VM.
    let row = unsafe {
        core::slice::from_raw_parts_mut(launch.tables.ptr().add(id as usize * width), width)
    };
    row.split_at_mut_checked(launch.pages as usize).unwrap_or_default()
}

/// Runs one VM of a launch, `launch.active[index]`, with its hart registers and L1 TLB in `hart`.
///
/// # Safety
/// `launch` must describe memory as [`Launch`] says, which nobody else uses meanwhile but calls
/// for other entries, with each VM at most once in `active`; `index` is below `count`. `hart` is
/// this call's alone; its content does not matter.
// Inlined, so that the compiler sees that `hart` is in shared memory.
#[inline(always)]
pub unsafe fn step<S: Simt>(launch: &Launch, index: u32, hart: *mut Hart) {
    // SAFETY: the pointers and counts are the launch's; `index` and what it leads to are in range.
    unsafe {
        let entry = *launch.active.ptr().add(index as usize);
        let id = entry.vm & !WAKE;
        let control = &*launch.control.ptr();
        let state = &mut *launch.ports.ptr().add(id as usize);
        if state.parked == Parked::Reported && entry.vm & WAKE == 0 {
            return;
        }
        let inbox = match entry.inbox {
            0 => None,
            at => {
                let at = (at - 1) as usize * 8;
                let len = (launch.inbox_len as usize).saturating_sub(at);
                let bytes = core::slice::from_raw_parts(launch.inbox.ptr().add(at), len);
                Inbox::new(bytes, &state.taken)
            }
        };
        let vm = &mut *launch.vms.ptr().add(id as usize);
        let (parked, exit) = (state.parked, state.exit);
        let (offered, inbox) = (inbox.is_some(), inbox.unwrap_or(Inbox::NONE));
        let mut warp = Warp::<S>::alone(state.syscalls);
        let mut port = LogPort::new(id, state, &control.outbox, inbox);
        if launch.version != VERSION {
            let code = FaultCode::BadState as u32;
            return port.park(Exit { code: ExitCode::Fault, arg: code }, u64::MAX);
        }
        if parked == Parked::Pending {
            return port.park(exit, vm.wake_at());
        }
        if launch.slices == 0 {
            return port.flush();
        }
        port.unpark();
        port.limit(launch.count);
        const HOT_WORDS: usize = size_of::<Hart>() / 4;
        copy((&raw const vm.hart).cast::<u32>(), hart.cast::<u32>(), HOT_WORDS);
        let hart = &mut *hart;

        let arena = Arena::<OnGpu>::new(launch.arena.ptr(), launch.frames, launch.shared);
        let (table, disk) = row(launch, id);
        let memory = FrameMemory::new(arena, table, DeviceFrames(&control.free));
        let shared =
            core::slice::from_raw_parts(launch.shared_code.ptr(), launch.shared_code_len as usize);
        let rom = core::slice::from_raw_parts(launch.rom.ptr(), launch.rom_pages as usize);
        let code = &mut *launch.private_code.ptr().add(id as usize);
        let mut ram = FrameRam::keep(memory, rom, shared, code);
        let mut disk = FrameMemory::new(arena, disk, DeviceFrames(&control.free));
        let now = match launch.rate {
            0 => Now::Instret,
            rate => Now::Host { ticks: launch.ticks.saturating_sub(port.origin()), rate },
        };
        let before = vm.platform.clock.retired;
        let mut exit = Exit { code: ExitCode::Budget, arg: 0 };
        // Exact launches end at a multiple of their slice, the same on all backends. Others end by
        // the clock, where the VMs that share a warp have reconverged. The lanes of a warp reach
        // the end of a slice at different places in the program, so ending a run there makes them
        // diverge. Only a VM that has pending input or is alone in its warp ends runs there
        // (`cut`).
        let budget = u64::from(launch.slices) * u64::from(launch.slice);
        let reconverges = launch.time_limit_ns != 0;
        let run = budget + budget / 2;
        let (slice, limit, runs, cut) = if reconverges {
            let goal = before + run * runs::<S>();
            warp.begin(before, hart.x[2], goal, launch.time_limit_ns);
            let alone = launch.vms_per_warp == 1;
            let slice = if alone { launch.slice } else { SLICE };
            (slice, goal + GRACE, u64::MAX, alone | offered)
        } else {
            let start = before & !u64::from(launch.slice - 1);
            let runs = u64::from(launch.slices) * SLICE_PARTS;
            (launch.slice, start + budget, runs, true)
        };
        let (mut first, mut goes, mut done, mut stuck) = (true, true, 0, 0);
        loop {
            if S::region_begin(entry.inbox) {
                if goes {
                    let retired = vm.platform.clock.retired;
                    let left = limit.saturating_sub(retired);
                    let over = retired as u32 & (slice - 1);
                    let most = if cut { u64::from(slice - over) } else { warp.quantum(run) };
                    let n = most.min(left) as u32;
                    port.begin(retired);
                    warp.polls = first | !reconverges | (over == 0);
                    let mut machine = Machine::on(
                        &mut warp,
                        hart,
                        &mut vm.platform,
                        &mut ram,
                        &mut disk,
                        &mut port,
                    );
                    exit = machine.run(n, now);
                    port.end(vm.platform.clock.retired, exit, warp.syscalls);
                    stuck = if vm.platform.clock.retired == retired { stuck + 1 } else { 0 };
                    (first, done) = (false, done + 1);
                }
                warp.wait();
            }
            S::region_end();
            // An exception counts against the budget but retires no instruction, so a run may end
            // before its slice does, and another run follows at once. A VM that does nothing but
            // take exceptions (`stuck`) continues in the next launch.
            // Without `||`: a branch here would let the compiler make two votes of the one in `retire`,
            // each of which only some of the lanes would execute.
            let over =
                (vm.platform.clock.retired >= limit) | (done >= runs) | (stuck >= SLICE_PARTS);
            if warp.retire(over | (exit.code != ExitCode::Budget)) {
                break;
            }
            goes = warp.pick_leader(vm.platform.clock.retired);
            if warp.ended {
                break;
            }
        }
        let card = &vm.platform.dev.virtio.net.counters;
        let drops = CardDrops { rx: card.rx_drops as u32, tx: card.tx_drops as u32 };
        port.acknowledge_input(offered, drops);
        let spent = vm.platform.clock.retired.wrapping_sub(before);
        match exit.code {
            ExitCode::Budget => {
                control.busy.fetch_add(1, Ordering::Relaxed);
                control.ran.fetch_add(spent, Ordering::Relaxed);
            }
            ExitCode::Stalled => {}
            _ => port.park(exit, vm.wake_at()),
        }
        control.instructions.fetch_add(spent, Ordering::Relaxed);
        copy((&raw const *hart).cast::<u32>(), (&raw mut vm.hart).cast::<u32>(), HOT_WORDS);
    }
}

/// Returns a VM's private frames to the free ones and leaves it without memory. No launch that runs
/// VMs may execute at the same time.
///
/// # Safety
/// As [`step`].
pub unsafe fn release(launch: &Launch, index: u32) {
    // SAFETY: as `step`. The stack of returned frames has room for all there are.
    unsafe {
        let id = (*launch.active.ptr().add(index as usize)).vm & !WAKE;
        let free = &(*launch.control.ptr()).free;
        let (ram, disk) = row(launch, id);
        for entry in ram.iter_mut().chain(disk) {
            if *entry >= launch.shared {
                let at = free.top.fetch_add(1, Ordering::Relaxed);
                *free.returned.ptr().add(at as usize) = *entry;
            }
            *entry = 0;
        }
        (*launch.private_code.ptr().add(id as usize)).clear();
    }
}

/// Starts a VM that has no memory yet, `launch.staged[index]`: gives it its pages and its initial
/// state.
///
/// # Safety
/// As [`step`], for `staged` in place of `active`; the pages of each staged VM exist.
pub unsafe fn start(launch: &Launch, index: u32) {
    // SAFETY: as `step`.
    unsafe {
        let staged: &StagedVm = &*launch.staged.ptr().add(index as usize);
        let id = staged.id;
        let control = &*launch.control.ptr();
        let arena = Arena::<OnGpu>::new(launch.arena.ptr(), launch.frames, launch.shared);
        let (ram, disk) = row(launch, id);
        let width = ram.len() + disk.len();
        let base = launch.base.ptr().add(staged.row as usize * width);
        copy(base, ram.as_mut_ptr(), ram.len());
        copy(base.add(ram.len()), disk.as_mut_ptr(), disk.len());
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

/// Adds the fingerprint of some private pages of RAM of VM `launch.active[index]` to its entry in
/// `digests`: those of page `part` and each `parts`th page after it.
///
/// # Safety
/// As [`step`]; other calls for the same entry and another part may run at the same time.
pub unsafe fn digest(launch: &Launch, index: u32, part: u32, parts: u32) {
    // SAFETY: as `step`; `digests` has room for `count`. The table is only read.
    unsafe {
        let id = (*launch.active.ptr().add(index as usize)).vm & !WAKE;
        let arena = Arena::<OnGpu>::new(launch.arena.ptr(), launch.frames, launch.shared);
        let (ram, _) = row(launch, id);
        let memory = FrameMemory::new(arena, ram, DeviceFrames(&(*launch.control.ptr()).free));
        let sum = private_pages(&memory, part, parts);
        (*launch.digests.ptr().add(index as usize)).fetch_add(sum, Ordering::Relaxed);
    }
}

/// Returns a fingerprint of a memory's private pages, of their numbers and their content. It covers
/// page `part` and each `parts`th page after it. The sum over all parts is the fingerprint of the
/// whole memory.
pub fn private_pages(memory: &impl Memory, part: u32, parts: u32) -> u64 {
    const PRIME: u64 = 0x0100_0000_01b3;
    let mut sum = 0u64;
    for page in (part..memory.pages()).step_by(parts as usize) {
        let Some(frame) = memory.frame(page).filter(|&f| memory.is_private(f)) else { continue };
        let mut hash = 0xcbf2_9ce4_8422_2325 ^ u64::from(page);
        for at in (0..FRAME_SIZE).step_by(4) {
            hash = (hash ^ u64::from(memory.load32(frame, at))).wrapping_mul(PRIME);
            hash ^= hash >> 29;
        }
        sum = sum.wrapping_add(hash);
    }
    sum
}

const _: () = assert!(CODE_SLOTS.is_power_of_two());
const _: () = assert!(size_of::<Vm>().is_multiple_of(8) && align_of::<Vm>() == 8);

/// The kernels' entry points on the GPU. Each thread runs one VM, and [`Launch::vms_per_warp`]
/// threads of a warp do. A block is one warp, so that its shared memory is free as soon as that warp has ended.
#[cfg(feature = "device")]
mod entry {
    use super::Launch;
    use crate::intrin::{shared_mem, thread};
    use crate::simt::Gpu;
    use emu_core::abi::Hart;

    fn index(launch: &Launch) -> Option<u32> {
        let lane = thread::thread_idx_x();
        let index = thread::block_idx_x() * launch.vms_per_warp + lane;
        (lane < launch.vms_per_warp && index < launch.count).then_some(index)
    }

    /// # Safety
    /// As [`super::step`]; the block has 32 threads and `vms_per_warp * size_of::<Hart>()` bytes of
    /// shared memory.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn pxvm_step(launch: &Launch) {
        if let Some(index) = index(launch) {
            // SAFETY: each lane has its part of shared memory.
            unsafe {
                let hart = shared_mem().cast::<Hart>().add(thread::thread_idx_x() as usize);
                super::step::<Gpu>(launch, index, hart);
            }
        }
    }

    /// # Safety
    /// As [`super::release`].
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn pxvm_release(launch: &Launch) {
        if let Some(index) = index(launch) {
            // SAFETY: the caller's.
            unsafe { super::release(launch, index) }
        }
    }

    /// # Safety
    /// As [`super::start`].
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn pxvm_start(launch: &Launch) {
        if let Some(index) = index(launch) {
            // SAFETY: the caller's.
            unsafe { super::start(launch, index) }
        }
    }

    /// Computes digests, with one block for each VM, whose threads divide its pages among them.
    ///
    /// # Safety
    /// As [`super::digest`].
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn pxvm_digest(launch: &Launch) {
        let index = thread::block_idx_x();
        if index < launch.count {
            // SAFETY: the caller's.
            unsafe { super::digest(launch, index, thread::thread_idx_x(), 32) }
        }
    }
}

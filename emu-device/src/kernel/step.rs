//! A launch's main part: runs one VM until the launch ends.

use super::tables::{DeviceFrames, code, disk, row};
use crate::memory::{Arena, FrameMemory, FrameRam, OnGpu, copy};
use crate::protocol::inbox::Inbox;
use crate::protocol::launch::{Control, Entry, Launch, SLICE, WAKE};
use crate::protocol::outbox::{CardDrops, Taken};
use crate::protocol::port::{LogPort, Parked};
use crate::simt::Simt;
use crate::warp::Warp;
use core::sync::atomic::Ordering;
use emu_core::abi::{Exit, ExitCode, FaultCode, Hart, Platform, VERSION, Vm};
use emu_core::clock::Now;
use emu_core::disk::Disk;
use emu_core::machine::Machine;
use emu_core::mem::Ram;
use emu_core::trap::TrapChain;

/// How many runs a slice may take to reach its end. A run can retire fewer instructions than asked.
pub const SLICE_PARTS: u64 = 8;

/// Instructions that a VM may run past its budget so that its warp can reconverge.
const GRACE: u64 = SLICE as u64 / 2;

/// Runs one VM of a launch, `launch.active[index]`, with its hart registers and L1 TLB in `hart`.
///
/// # Safety
/// `launch` must describe memory as [`Launch`] says, which nobody else uses meanwhile but calls
/// for other entries, with each VM at most once in `active`; `index` is below `count`. `hart` is
/// this call's alone; its content does not matter.
// Inlined, with what it calls, so that the compiler sees that `hart` is in shared memory.
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
        let inbox = inbox(launch, &entry, &state.taken);
        let vm = &mut *launch.vms.ptr().add(id as usize);
        let (parked, exit) = (state.parked, state.exit);
        let (offered, inbox) = (inbox.is_some(), inbox.unwrap_or(Inbox::NONE));
        let mut warp = Warp::<S>::alone(state.syscalls);
        let mut port = LogPort::new(id, state, &control.outbox, inbox);
        if launch.version != VERSION {
            let code = FaultCode::BadState as u32;
            let exit = Exit { code: ExitCode::Fault, arg: code };
            return port.park(exit, u64::MAX, &TrapChain::EMPTY);
        }
        if parked == Parked::Pending {
            return port.park(exit, vm.wake_at(), &vm.platform.trap_chain);
        }
        if launch.slices == 0 {
            return port.flush();
        }
        port.unpark();
        port.limit(launch.count);
        const WORDS: usize = size_of::<Hart>() / 4;
        copy((&raw const vm.hart).cast::<u32>(), hart.cast::<u32>(), WORDS);
        let hart = &mut *hart;

        let arena = Arena::<OnGpu>::new(launch.arena.ptr(), launch.frames, launch.shared);
        let memory = FrameMemory::new(arena, row(launch, id), DeviceFrames(&control.free));
        let shared = core::slice::from_raw_parts(launch.code.ptr(), launch.shared_code as usize);
        let rom = core::slice::from_raw_parts(launch.rom.ptr(), launch.rom_pages as usize);
        let mut ram = FrameRam::keep(memory, rom, shared, code(launch, id));
        let mut disk = disk(launch, id);
        let now = match launch.rate {
            0 => Now::Instret,
            rate => Now::Host { ticks: launch.ticks.saturating_sub(port.origin()), rate },
        };
        let before = vm.platform.clock.retired;
        let bounds = Bounds::new::<S>(launch, before, offered);
        if !bounds.exact {
            warp.begin(before, hart.x[2], bounds.goal, launch.time_limit_ns);
        }
        let platform = &mut vm.platform;
        let mut guest =
            Guest { hart, platform, ram: &mut ram, disk: &mut disk, port: &mut port, now };
        let exit = guest.run_to(&bounds, &mut warp, &entry);
        finish(control, vm, &mut port, offered, before, exit);
        copy((&raw const *hart).cast::<u32>(), (&raw mut vm.hart).cast::<u32>(), WORDS);
    }
}

/// Returns a VM's part of the launch's inbox, if it has one.
///
/// # Safety
/// As [`step`].
#[inline(always)]
unsafe fn inbox(launch: &Launch, entry: &Entry, taken: &Taken) -> Option<Inbox<'static>> {
    let at = entry.inbox.checked_sub(1)? as usize * 8;
    let len = (launch.inbox_len as usize).saturating_sub(at);
    // SAFETY: the inbox has that many bytes from there on.
    let bytes = unsafe { core::slice::from_raw_parts(launch.inbox.ptr().add(at), len) };
    Inbox::new(bytes, taken)
}

/// How far a VM runs in a launch.
///
/// Exact launches end at a multiple of their slice, the same on all backends. Others end by the
/// clock, where the VMs that share a warp have reconverged.
struct Bounds {
    /// Whether the launch is exact.
    exact: bool,
    /// Instructions in a slice.
    slice: u32,
    /// Whether runs are cut at the ends of slices. These make lanes diverge, because lanes reach them
    /// at different places of the program. So in a launch that ends by the clock, only VMs with
    /// pending input or alone in their warp are cut at them.
    cut: bool,
    /// The most instructions of a run that is not cut.
    run: u64,
    /// The instruction count from which a launch that ends by the clock may end.
    goal: u64,
    /// The instruction count at which the VM's part of the launch ends.
    limit: u64,
    /// The most runs.
    runs: u64,
}

impl Bounds {
    /// Returns the bounds of a VM that has retired `before` instructions. `offered` says whether it
    /// has pending input.
    #[inline(always)]
    fn new<S: Simt>(launch: &Launch, before: u64, offered: bool) -> Self {
        let budget = u64::from(launch.slices) * u64::from(launch.slice);
        let run = budget + budget / 2;
        if launch.time_limit_ns == 0 {
            let start = before & !u64::from(launch.slice - 1);
            let runs = u64::from(launch.slices) * SLICE_PARTS;
            let (slice, limit) = (launch.slice, start + budget);
            return Self { exact: true, slice, cut: true, run, goal: limit, limit, runs };
        }
        // VMs are not equally fast, and none should use up its budget before the time is over. Where
        // the clock stands still, the budget is what ends the launch.
        let goal = before + if S::CLOCK_RUNS { 4 * run } else { run };
        let alone = launch.vms_per_warp == 1;
        let slice = if alone { launch.slice } else { SLICE };
        let (cut, limit) = (alone | offered, goal + GRACE);
        Self { exact: false, slice, cut, run, goal, limit, runs: u64::MAX }
    }

    /// Returns how far a VM that has retired `retired` instructions is in its slice.
    #[inline(always)]
    fn in_slice(&self, retired: u64) -> u32 {
        retired as u32 & (self.slice - 1)
    }
}

/// A VM that is being run.
struct Guest<'a, 'p, M, D> {
    hart: &'a mut Hart,
    platform: &'a mut Platform,
    ram: &'a mut M,
    disk: &'a mut D,
    port: &'a mut LogPort<'p>,
    now: Now,
}

impl<M: Ram, D: Disk> Guest<'_, '_, M, D> {
    /// Runs the VM until it reaches its bounds, the launch ends, or the VM exits. Returns how the
    /// last run ended.
    #[inline(always)]
    fn run_to<S: Simt>(&mut self, bounds: &Bounds, warp: &mut Warp<S>, entry: &Entry) -> Exit {
        let mut exit = Exit { code: ExitCode::Budget, arg: 0 };
        let (mut first, mut goes, mut done, mut stuck) = (true, true, 0, 0);
        loop {
            if S::region_begin(entry.inbox) {
                if goes {
                    let retired = self.platform.clock.retired;
                    let left = bounds.limit.saturating_sub(retired);
                    let over = bounds.in_slice(retired);
                    let most = if bounds.cut {
                        u64::from(bounds.slice - over)
                    } else {
                        warp.quantum(bounds.run)
                    };
                    warp.polls = first | bounds.exact | (over == 0);
                    exit = self.run(warp, most.min(left) as u32);
                    stuck = if self.platform.clock.retired == retired { stuck + 1 } else { 0 };
                    (first, done) = (false, done + 1);
                }
                warp.wait();
            }
            S::region_end();
            // An exception counts against the budget but retires no instruction, so a run may end
            // before its slice does, and another run follows at once. A VM that does nothing but
            // take exceptions (`stuck`) continues in the next launch. Without `||`: see `warp`.
            let retired = self.platform.clock.retired;
            let over = (retired >= bounds.limit) | (done >= bounds.runs) | (stuck >= SLICE_PARTS);
            if warp.retire(over | (exit.code != ExitCode::Budget)) {
                return exit;
            }
            goes = warp.pick_leader(retired);
            if warp.ended {
                return exit;
            }
        }
    }

    /// Runs the VM for at most `budget` instructions.
    #[inline(always)]
    fn run<S: Simt>(&mut self, warp: &mut Warp<S>, budget: u32) -> Exit {
        self.port.begin(self.platform.clock.retired);
        let (hart, platform) = (&mut *self.hart, &mut *self.platform);
        let exit = Machine::on(&mut *warp, hart, platform, self.ram, self.disk, self.port)
            .run(budget, self.now);
        self.port.end(self.platform.clock.retired, exit, warp.syscalls);
        exit
    }
}

/// Reports what has come of a VM's part of the launch: its input, its exit, and its instructions.
#[inline(always)]
fn finish(
    control: &Control,
    vm: &Vm,
    port: &mut LogPort<'_>,
    offered: bool,
    before: u64,
    exit: Exit,
) {
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
        ExitCode::Idle
        | ExitCode::NoFrame
        | ExitCode::PowerOff
        | ExitCode::Reset
        | ExitCode::Fault
        | ExitCode::Disk => port.park(exit, vm.wake_at(), &vm.platform.trap_chain),
    }
    control.instructions.fetch_add(spent, Ordering::Relaxed);
}

//! A launch's main part: runs one VM until the launch ends.

use super::hot::HotLane;
use super::tables::{DeviceDisk, DeviceFrames, DevicePages, code, disk, row};
use crate::memory::{Arena, CodeRef, FrameMemory, FrameRam, OnGpu, copy};
use crate::protocol::inbox::Inbox;
use crate::protocol::launch::CODE_SLOTS;
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

/// The most instructions of a run by the uniform loop, after which lanes look at the time.
const UNIFORM_QUANTUM: u64 = 1 << 11;

/// The RAM of a VM on a device.
type DeviceRam<'a> = FrameRam<'a, DeviceFrames<'a>, OnGpu, DevicePages<'static>, CODE_SLOTS>;

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
    const WORDS: usize = size_of::<Hart>() / 4;
    // SAFETY: the caller's; a `Hart` is made of words.
    unsafe {
        run_entry::<S>(launch, index, |vm, mut guest, bounds, entry, before| {
            copy((&raw const vm.hart).cast::<u32>(), hart.cast::<u32>(), WORDS);
            let hart = &mut *hart;
            let warp = &mut guest.warp;
            if !bounds.exact {
                warp.begin(before, hart.x[2], bounds.goal, launch.time_limit_ns);
            }
            let exit = guest.run_to(hart, &mut vm.platform, bounds, entry);
            copy((&raw const *hart).cast::<u32>(), (&raw mut vm.hart).cast::<u32>(), WORDS);
            exit
        });
    }
}

/// Does what [`step`] does, by the uniform loop, with the hart's hot state in `hot`.
///
/// # Safety
/// As [`step`].
#[inline(always)]
pub unsafe fn step_uniform<S: Simt>(launch: &Launch, index: u32, hot: HotLane) {
    // SAFETY: the caller's.
    unsafe {
        run_entry::<S>(launch, index, |vm, mut guest, bounds, _, _| {
            let end = S::now_ns().saturating_add(launch.time_limit_ns.into());
            guest.run_uniform_to(vm, hot, bounds, end)
        });
    }
}

/// Prepares an entry of a launch, lets `run` run it, and reports what has come of it. `run` gets the
/// number of instructions that the VM has retired before, last.
///
/// # Safety
/// As [`step`].
#[inline(always)]
unsafe fn run_entry<S: Simt>(
    launch: &Launch,
    index: u32,
    run: impl FnOnce(&mut Vm, Guest<'_, '_, DeviceRam<'_>, DeviceDisk, S>, &Bounds, &Entry, u64) -> Exit,
) {
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
        let warp = Warp::<S>::alone(state.syscalls);
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
        let guest = Guest { ram: &mut ram, disk: &mut disk, port: &mut port, warp, now };
        let exit = run(vm, guest, &bounds, &entry, before);
        finish(control, vm, &mut port, offered, before, exit);
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

    /// Returns the most instructions of the next run of a VM that has retired `retired`; `uncut` if it
    /// is not cut at the end of a slice.
    #[inline(always)]
    fn most(&self, retired: u64, uncut: u64) -> u32 {
        let left = self.limit.saturating_sub(retired);
        let most = if self.cut { u64::from(self.slice - self.in_slice(retired)) } else { uncut };
        most.min(left) as u32
    }

    /// Returns how far a VM that has retired `retired` instructions is in its slice.
    #[inline(always)]
    fn in_slice(&self, retired: u64) -> u32 {
        retired as u32 & (self.slice - 1)
    }
}

/// What a VM is run with.
struct Guest<'a, 'p, M, D, S> {
    ram: &'a mut M,
    disk: &'a mut D,
    port: &'a mut LogPort<'p>,
    warp: Warp<S>,
    now: Now,
}

impl<S: Simt, M: Ram<Code = CodeRef>, D: Disk> Guest<'_, '_, M, D, S> {
    /// Runs the VM until it reaches its bounds, the launch ends, or the VM exits. Returns how the
    /// last run ended.
    #[inline(always)]
    fn run_to(
        &mut self,
        hart: &mut Hart,
        platform: &mut Platform,
        bounds: &Bounds,
        entry: &Entry,
    ) -> Exit {
        let mut exit = Exit { code: ExitCode::Budget, arg: 0 };
        let (mut goes, mut progress) = (true, Progress::NONE);
        loop {
            if S::region_begin(entry.inbox) {
                if goes {
                    let retired = platform.clock.retired;
                    let over = bounds.in_slice(retired);
                    let most = bounds.most(retired, self.warp.quantum(bounds.run));
                    self.warp.polls = progress.is_none() | bounds.exact | (over == 0);
                    exit = self.run(hart, platform, most);
                    progress.add(retired, platform.clock.retired);
                }
                self.warp.wait();
            }
            S::region_end();
            let over = progress.is_over(bounds, platform.clock.retired);
            if self.warp.retire(over | (exit.code != ExitCode::Budget)) {
                return exit;
            }
            goes = self.warp.pick_leader(platform.clock.retired);
            if self.warp.ended {
                return exit;
            }
        }
    }

    /// Runs the VM for at most `budget` instructions.
    #[inline(always)]
    fn run(&mut self, hart: &mut Hart, platform: &mut Platform, budget: u32) -> Exit {
        self.port.begin(platform.clock.retired);
        let (hart, platform) = (&mut *hart, &mut *platform);
        let exit = Machine::on(&mut self.warp, hart, platform, self.ram, self.disk, self.port)
            .run(budget, self.now);
        self.port.end(platform.clock.retired, exit, self.warp.syscalls);
        exit
    }

    /// Does what [`Guest::run_to`] does, by the uniform loop. A launch that is not exact ends at `end`
    /// on the lanes' clock.
    #[inline(always)]
    fn run_uniform_to(&mut self, vm: &mut Vm, hot: HotLane, bounds: &Bounds, end: u64) -> Exit {
        self.warp.join();
        let Vm { hart, platform } = vm;
        let mut progress = Progress::NONE;
        let mut before = platform.clock.retired;
        self.port.begin(before);
        let first = bounds.most(before, UNIFORM_QUANTUM);
        Machine::on(&mut self.warp, hart, platform, self.ram, self.disk, self.port).run_uniform(
            hot,
            first,
            self.now,
            |port, warp, retired, exit| {
                port.end(retired, exit, warp.syscalls);
                progress.add(before, retired);
                let late = !bounds.exact && S::now_ns() >= end;
                let over = progress.is_over(bounds, retired) | late;
                if over | (exit.code != ExitCode::Budget) {
                    return None;
                }
                before = retired;
                port.begin(retired);
                warp.polls = bounds.exact | (bounds.in_slice(retired) == 0);
                Some(bounds.most(retired, UNIFORM_QUANTUM))
            },
        )
    }
}

/// What the runs of a VM's part of a launch have come to.
struct Progress {
    /// Runs.
    done: u64,
    /// The last runs that retired nothing.
    stuck: u64,
}

impl Progress {
    const NONE: Self = Self { done: 0, stuck: 0 };

    fn is_none(&self) -> bool {
        self.done == 0
    }

    /// Counts a run before which the VM had retired `before` instructions, and after it `after`.
    #[inline(always)]
    fn add(&mut self, before: u64, after: u64) {
        self.stuck = if after == before { self.stuck + 1 } else { 0 };
        self.done += 1;
    }

    /// Returns whether the VM's part of the launch is over, after `retired` instructions.
    ///
    /// An exception counts against the budget but retires no instruction, so a run may end before its
    /// slice does, and another run follows at once. A VM that does nothing but take exceptions
    /// (`stuck`) continues in the next launch. Without `||`: see `warp`.
    #[inline(always)]
    fn is_over(&self, bounds: &Bounds, retired: u64) -> bool {
        (retired >= bounds.limit) | (self.done >= bounds.runs) | (self.stuck >= SLICE_PARTS)
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

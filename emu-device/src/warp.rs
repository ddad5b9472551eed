//! Reconvergence of the lanes of a warp, each of which runs one VM.
//!
//! A warp is fast while its lanes execute the same instruction. VMs that run the same program do,
//! until a host name of another length or another random number puts one of them some instructions
//! behind. From then on the warp executes the instructions of both at each step, and nothing makes
//! the lanes reconverge by themselves. So this module makes lanes wait for each other.
//!
//! Lanes check whether they have diverged where that costs nothing: at a sync point, which is an
//! instruction that ends the instruction loop ([`Lane::sync_point`]). Instructions that disable or
//! enable interrupts are frequent in kernels, and end the loop only to reconverge: when lanes have
//! diverged, or when the launch's time is over ([`Lane::wants_sync`]). If all lanes are there and
//! at the same instruction, they continue. If not, each lane's run ends. When all runs have ended,
//! the lanes pick the leader, which runs first ([`Warp::pick_leader`]), together with all lanes that
//! are where it is; the others wait. It is meant to be one that will come past the place where the
//! others wait:
//!
//! 1. one of those that have made the fewest system calls, which measure a program's progress (page
//!    faults do not: their number depends on a program's random addresses);
//! 2. of these, lanes in the kernel before lanes in programs;
//! 3. of these, those deepest in function calls, by their `sp`;
//! 4. of these, those with the lowest `pc`.
//!
//! A program may run for long without ending the loop. So lanes that have converged also check at
//! each return from a function whether all are there, and end their runs if some are not. Lanes
//! that run while others wait know where the first of the waiting ones is, and skip sync points
//! until they are there ([`Lane::skips_sync`]).
//!
//! A launch ends once its time is over and its lanes have converged, so that the next launch starts
//! with converged lanes. It is limited by the clock and not by instructions, because a launch lasts
//! as long as its slowest warp.
//!
//! VMs that run different programs would wait in vain. So there is a sync timeout: the number of
//! instructions that lanes wait for a lane is halved each time it does not come, and doubled each
//! time it does. When lanes have given up waiting, they stop checking at returns until all have
//! converged again.
//!
//! A vote or a barrier makes lanes wait for each other but does not reconverge them: each group
//! that arrived by itself continues to execute the same code by itself. The hardware reconverges
//! lanes only where the paths of a branch join, and only lanes that were converged before the
//! branch. Lanes that wait there are released early if others arrive by way of a loop in which the
//! compiler suspects that lanes wait for each other. So runs are inside a branch that all lanes
//! take, at whose end they all wait at a barrier ([`Warp::wait`]).
//!
//! What lanes vote on is computed with `&` and `|`. With `&&` and `||` the compiler may make two votes
//! of one, on the two sides of a branch by which the lanes diverge.

use crate::ablation;
use crate::simt::Simt;
use core::marker::PhantomData;
use emu_core::lane::{Lane, SyncPoint};

/// Limits of the sync timeout, in instructions.
const SYNC_TIMEOUT_MAX: u32 = 1 << 15;
const SYNC_TIMEOUT_MIN: u32 = 1 << 8;
/// Instructions after which lanes that run while others wait check the time.
const QUANTUM: u64 = 1 << 11;

/// One lane's view of its warp.
#[derive(Debug)]
pub struct Warp<S> {
    /// Whether lanes wait for each other. They do not in an exact launch.
    reconverges: bool,
    /// How many instructions lanes may run while others wait for them. All lanes have the same
    /// value.
    sync_timeout: u32,
    /// The instructions that this lane had retired when the lanes last converged or gave up
    /// waiting.
    synced_at: u64,
    /// How many system calls this lane has made. Lanes that converge agree on one number.
    pub syscalls: u32,
    /// `sp` of this lane when the lanes last converged or gave up waiting.
    synced_sp: u32,
    /// The mask of all lanes that have not retired.
    live: u32,
    /// The mask of lanes that this lane expects at each return from a function; 0 for no check.
    expected: u32,
    /// The mask of lanes that run together with this one, this one included.
    running: u32,
    /// The `sp` and `pc` of the waiting lane that these lanes reach first.
    sync_place: (u32, u32),
    /// The instruction count from which the launch may end when its lanes have converged.
    goal: u64,
    /// The time from which the launch may end when its lanes have converged, and the time at which
    /// it ends in any case.
    times: (u64, u64),
    /// The sync point at which this lane's run ended, while it waits.
    arrived: Option<Arrival>,
    /// Whether the next run polls time and input: it does not continue one that a sync point ended.
    pub polls: bool,
    /// Whether the launch has ended.
    pub ended: bool,
    simt: PhantomData<S>,
}

/// The sync point at which a lane's run ended.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    key: PriorityKey,
    retired: u64,
    sp: u32,
}

impl<S: Simt> Warp<S> {
    /// Makes the view of a lane that waits for no other.
    pub const fn alone(syscalls: u32) -> Self {
        Self {
            reconverges: false,
            sync_timeout: SYNC_TIMEOUT_MAX,
            synced_at: 0,
            syscalls,
            synced_sp: 0,
            live: 0,
            expected: 0,
            running: 0,
            sync_place: PASSED,
            goal: u64::MAX,
            times: (u64::MAX, u64::MAX),
            arrived: None,
            polls: true,
            ended: false,
            simt: PhantomData,
        }
    }

    /// Makes the lanes that execute this call together wait for each other from now on. `retired`
    /// and `sp` are this lane's. The launch ends when the lanes have converged after `goal`
    /// instructions or after `ns` nanoseconds.
    pub fn begin(&mut self, retired: u64, sp: u32, goal: u64, ns: u32) {
        let (now, ns) = (S::now_ns(), u64::from(ns));
        self.reconverges = true;
        (self.synced_at, self.synced_sp, self.goal) = (retired, sp, goal);
        self.times = (now.saturating_add(ns), now.saturating_add(ns + ns / 16));
        self.live = S::active_mask();
        (self.expected, self.running) = (self.live, self.live);
    }

    /// Makes the lanes that execute this call together take each step of the uniform loop together.
    pub fn join(&mut self) {
        self.live = S::active_mask();
    }

    /// Handles a sync point. Returns whether this lane's run must end, either to wait for other
    /// lanes or because the launch has ended.
    fn arrive(&mut self, hart: &SyncPoint) -> bool {
        if !self.reconverges {
            return false;
        }
        if hart.syscall {
            self.syscalls = self.syscalls.wrapping_add(1);
        }
        let key = PriorityKey::new(hart, self.syscalls, self.synced_sp);
        let arrival = Arrival { key, retired: hart.retired, sp: hart.sp };
        let lanes = S::active_mask();
        if lanes == self.live && key.is_everywhere::<S>(lanes) {
            self.converged(&arrival, lanes);
            return self.ended;
        }
        self.arrived = Some(arrival);
        true
    }

    /// Records that all lanes have converged, and decides whether the launch ends here.
    fn converged(&mut self, arrival: &Arrival, lanes: u32) {
        let leader = lanes.trailing_zeros();
        self.sync_timeout = (self.sync_timeout * 2).min(SYNC_TIMEOUT_MAX);
        (self.synced_at, self.synced_sp) = (arrival.retired, arrival.sp);
        (self.expected, self.running, self.sync_place) = (lanes, lanes, PASSED);
        self.syscalls = S::shuffle(lanes, self.syscalls, leader);
        let over = (arrival.retired >= self.goal) | (S::now_ns() >= self.times.0);
        self.ended = S::ballot(lanes, over) != 0;
    }

    /// Waits until all lanes' runs have ended.
    pub fn wait(&self) {
        if self.reconverges {
            S::sync(self.live);
        }
    }

    /// Retires the lanes that are `over`: nobody waits for them any more. Returns `over`.
    pub fn retire(&mut self, over: bool) -> bool {
        if self.reconverges {
            self.live &= !S::ballot(self.live, over);
        }
        over
    }

    /// Returns how many of `most` instructions the next run may execute: few while lanes wait.
    pub fn quantum(&self, most: u64) -> u64 {
        if self.running == self.live { most } else { most.min(QUANTUM) }
    }

    /// Picks the lane that runs first, after all lanes' runs have ended. `retired` is this lane's
    /// instruction count. Returns whether this lane is the leader or runs together with it.
    pub fn pick_leader(&mut self, retired: u64) -> bool {
        if !self.reconverges || self.ended {
            return true;
        }
        let lanes = self.live;
        self.ended = S::ballot(lanes, S::now_ns() >= self.times.1) != 0;
        // A lane whose run ended for another reason has not reached a sync point, so it runs first.
        let on_its_way = Arrival { key: PriorityKey::FIRST, retired, sp: self.synced_sp };
        let arrival = self.arrived.take().unwrap_or(on_its_way);
        let key = arrival.key;
        if key.is_everywhere::<S>(lanes) {
            if key != PriorityKey::FIRST {
                self.converged(&arrival, lanes);
            }
            return true;
        }
        if self.gives_up(&arrival, lanes) {
            return true;
        }
        let first = key.least::<S>(lanes, lanes);
        let runs = key.runs_with(first);
        let running = S::ballot(lanes, runs);
        if !runs {
            self.arrived = Some(arrival);
        }
        // The lanes that ran are still on their way to a sync point.
        if first == PriorityKey::FIRST && running == self.running {
            return runs;
        }
        let near = S::ballot(lanes, (key.syscalls == first.syscalls) & (key.kind == first.kind));
        (self.expected, self.running, self.sync_place) = (running, running, PASSED);
        // If others wait in the same kind of code and with as many system calls, the running lanes
        // may come past them, so they expect all lanes at returns. Otherwise they expect only each
        // other.
        if near != running {
            self.expected = lanes;
            let next = key.least::<S>(lanes, near & !running);
            self.sync_place = next.place(self.synced_sp);
        }
        runs
    }

    /// Makes all lanes run by themselves if one has been waited for beyond the sync timeout. Returns
    /// whether it has.
    #[inline(always)]
    fn gives_up(&mut self, arrival: &Arrival, lanes: u32) -> bool {
        let waited = arrival.retired.wrapping_sub(self.synced_at);
        if S::ballot(lanes, waited > u64::from(self.sync_timeout)) == 0 {
            return false;
        }
        self.sync_timeout = (self.sync_timeout / 2).max(SYNC_TIMEOUT_MIN);
        (self.synced_at, self.synced_sp) = (arrival.retired, arrival.sp);
        (self.expected, self.running, self.sync_place) = (0, 0, PASSED);
        true
    }
}

impl<S: Simt> Lane for &mut Warp<S> {
    const PREFETCH: bool = S::PREFETCH;

    #[inline(always)]
    fn opaque(value: u64) -> u64 {
        S::opaque(value)
    }

    #[inline(always)]
    fn select(condition: bool, a: u32, b: u32) -> u32 {
        S::select(condition, a, b)
    }

    #[inline(always)]
    fn lanes(&self) -> u32 {
        self.live
    }

    #[inline(always)]
    fn ballot(mask: u32, predicate: bool) -> u32 {
        S::ballot(mask, predicate)
    }

    #[inline(always)]
    fn sync(mask: u32) {
        S::sync(mask);
    }

    #[inline(always)]
    fn prefetch<T>(value: &T) {
        S::prefetch((&raw const *value).cast(), size_of::<T>());
    }

    #[inline(always)]
    fn region_begin(value: u32) -> bool {
        S::region_begin(value)
    }

    #[inline(always)]
    fn region_end() {
        S::region_end();
    }

    #[inline(always)]
    fn is_alone(&self) -> bool {
        ablation::ALONE_LOOP && self.live & self.live.wrapping_sub(1) == 0
    }

    #[inline(always)]
    fn polls(&self) -> bool {
        self.polls
    }

    #[inline(always)]
    fn expected(&self) -> u32 {
        self.expected
    }

    #[inline(always)]
    #[track_caller]
    fn diverged(expected: u32) -> bool {
        S::diverged(expected)
    }

    #[inline(always)]
    fn skips_sync(&self, sp: u32, pc: u32) -> bool {
        (sp, pc) < self.sync_place && !S::diverged(self.running)
    }

    #[inline]
    fn wants_sync(&self) -> bool {
        self.reconverges && (S::diverged(self.live) || S::now_ns() >= self.times.0)
    }

    #[inline]
    fn sync_point(&mut self, hart: SyncPoint) -> bool {
        self.arrive(&hart)
    }
}

/// The `sp` and `pc` of a place that every lane has passed already.
const PASSED: (u32, u32) = (0, 0);

/// The key that lanes are ordered by: the one with the least key runs first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct PriorityKey {
    /// How many system calls the lane has made.
    syscalls: u32,
    /// Whether the lane is in the kernel, in a program, or at a system call or WFI.
    kind: u32,
    /// `sp`, less what it was when lanes last converged if the lane is in a program. The deeper the
    /// lane is in function calls, the smaller it is.
    depth: u32,
    pc: u32,
}

impl PriorityKey {
    const KERNEL: u32 = 0;
    const PROGRAM: u32 = 1;
    const BLOCKED: u32 = 2;
    /// The key of a lane that has not reached a sync point.
    const FIRST: Self = Self { syscalls: 0, kind: 0, depth: 0, pc: 0 };

    /// Makes the key of a hart whose `sp` was `synced_sp` when the lanes last converged.
    fn new(hart: &SyncPoint, syscalls: u32, synced_sp: u32) -> Self {
        // A program's stack is at another address in each VM, so only its growth can be compared.
        let grown = hart.sp.wrapping_sub(synced_sp).wrapping_add(1 << 31);
        let (kind, depth) = match (hart.syscall | hart.waiting, hart.user) {
            (true, _) => (Self::BLOCKED, 0),
            (false, false) => (Self::KERNEL, hart.sp),
            (false, true) => (Self::PROGRAM, grown),
        };
        Self { syscalls, kind, depth, pc: hart.pc }
    }

    /// Returns the key of lane `lane`.
    fn of_lane<S: Simt>(self, lanes: u32, lane: u32) -> Self {
        Self {
            syscalls: S::shuffle(lanes, self.syscalls, lane),
            kind: S::shuffle(lanes, self.kind, lane),
            depth: S::shuffle(lanes, self.depth, lane),
            pc: S::shuffle(lanes, self.pc, lane),
        }
    }

    /// Returns whether all lanes are at the same instruction, and in the same kind of code.
    fn is_everywhere<S: Simt>(self, lanes: u32) -> bool {
        let leader = lanes.trailing_zeros();
        let (pc, kind) = (S::shuffle(lanes, self.pc, leader), S::shuffle(lanes, self.kind, leader));
        S::ballot(lanes, (pc == self.pc) & (kind == self.kind)) == lanes
    }

    /// Returns the least key among the lanes of the mask `some`, which must not be empty.
    fn least<S: Simt>(self, lanes: u32, some: u32) -> Self {
        let mut lane = some.trailing_zeros();
        loop {
            let least = self.of_lane::<S>(lanes, lane);
            let less = S::ballot(lanes, self < least) & some;
            if less == 0 {
                return least;
            }
            lane = less.trailing_zeros();
        }
    }

    /// Returns the `sp` and `pc` that a lane has at this key, if its `sp` was `synced_sp` when the
    /// lanes last converged.
    fn place(self, synced_sp: u32) -> (u32, u32) {
        match self.kind {
            Self::KERNEL => (self.depth, self.pc),
            Self::PROGRAM => (self.depth.wrapping_sub(1 << 31).wrapping_add(synced_sp), self.pc),
            _ => PASSED,
        }
    }

    /// Returns whether this lane runs together with the lane whose key is `first`.
    fn runs_with(self, first: Self) -> bool {
        // `depth` is not compared, because stacks can be at another address in each VM.
        (self.syscalls == first.syscalls) & (self.kind == first.kind) & (self.pc == first.pc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simt::OneLane;

    const KERNEL: SyncPoint = SyncPoint {
        retired: 0,
        syscall: false,
        waiting: false,
        user: false,
        sp: 0xc100_0000,
        pc: 0xc000_1000,
    };
    const PROGRAM: SyncPoint = SyncPoint { user: true, sp: 0x9d00_0000, pc: 0x1_0000, ..KERNEL };

    fn key(hart: SyncPoint, syscalls: u32) -> PriorityKey {
        PriorityKey::new(&hart, syscalls, PROGRAM.sp)
    }

    #[test]
    fn those_run_first_that_the_others_wait_for() {
        let syscall = SyncPoint { syscall: true, ..PROGRAM };
        let waits = SyncPoint { waiting: true, ..KERNEL };
        let deeper = SyncPoint { sp: PROGRAM.sp - 64, pc: PROGRAM.pc + 400, ..PROGRAM };
        let earlier = SyncPoint { pc: PROGRAM.pc - 4, ..PROGRAM };
        let order = [
            key(waits, 3),
            key(KERNEL, 4),
            key(deeper, 4),
            key(earlier, 4),
            key(PROGRAM, 4),
            key(syscall, 4),
            key(KERNEL, 5),
        ];
        assert!(order.is_sorted(), "{order:?}");
    }

    #[test]
    fn a_programs_stack_may_lie_anywhere() {
        let elsewhere = SyncPoint { sp: PROGRAM.sp - 0x5_0000, ..PROGRAM };
        let there = PriorityKey::new(&elsewhere, 4, elsewhere.sp);
        assert_eq!(there, key(PROGRAM, 4));
    }

    #[test]
    fn a_lane_alone_is_with_all_the_others() {
        let mut warp = Warp::<OneLane>::alone(0);
        assert!(!warp.arrive(&KERNEL), "nobody waits in an exact launch");
        warp.begin(0, KERNEL.sp, 100, 1_000_000);
        assert!(!warp.arrive(&KERNEL) && !warp.ended);
        assert!(warp.arrive(&SyncPoint { retired: 100, ..PROGRAM }) && warp.ended);
    }

    #[test]
    fn a_system_call_is_counted_and_a_lane_that_is_over_retires() {
        let mut warp = Warp::<OneLane>::alone(7);
        warp.begin(0, KERNEL.sp, u64::MAX, 1_000_000);
        assert!(!warp.arrive(&SyncPoint { syscall: true, ..PROGRAM }));
        assert_eq!(warp.syscalls, 8);
        assert!(!warp.retire(false));
        assert!(warp.pick_leader(10) && !warp.ended);
        assert!(warp.retire(true));
        assert_eq!(warp.live, 0);
    }
}

//! Reconvergence of the lanes of a warp, each of which runs one VM.
//!
//! A warp is fast while its lanes execute the same instruction. VMs that run the same program do,
//! until a host name of another length or another random number puts one of them some instructions
//! behind. From then on the warp executes the instructions of both at each step, and nothing makes
//! the lanes reconverge by themselves. So this module makes lanes wait for each other.
//!
//! Lanes check whether they have diverged where that costs nothing: when an instruction ends the
//! instruction loop. Instructions that disable or enable interrupts are frequent in kernels, and
//! end the loop only to reconverge: when lanes have diverged, or when the launch's time is over
//! ([`Lane::wants_sync`]). If all lanes are there and at the same instruction, they continue. If
//! not, each lane's run ends ([`Warp::arrive`]). When all runs have ended, the lanes choose which
//! of them run first ([`Warp::settle`]), and the others wait. The choice is meant to be of those
//! that will come past the place where the others wait:
//!
//! 1. those that have made the fewest system calls, which measure a program's progress (page faults
//!    do not: their number depends on a program's random addresses);
//! 2. of these, lanes in the kernel before lanes in programs;
//! 3. of these, those deepest in function calls, by their `sp`;
//! 4. of these, those with the lowest `pc`.
//!
//! A program may run for long without ending the loop. So lanes that have converged also check at
//! each return from a function whether all are there, and end their runs if some are not. Lanes
//! that run while others wait know where the first of the waiting ones is, and keep running until
//! they are there.
//!
//! A launch ends once its time is over and its lanes have converged, so that the next launch starts
//! with converged lanes. It is limited by the clock and not by instructions, because a launch lasts
//! as long as its slowest warp.
//!
//! VMs that run different programs would wait in vain. So the number of instructions that lanes
//! wait for a lane is halved each time it does not come, and doubled each time it does. When lanes
//! have given up waiting, they stop checking at returns until all have converged again.
//!
//! A vote or a barrier makes lanes wait for each other but does not reconverge them: each group
//! that arrived by itself continues to execute the same code by itself. The hardware reconverges
//! lanes only where the paths of a branch join, and only lanes that were converged before the
//! branch. Lanes that wait there are released early if others arrive by way of a loop in which the
//! compiler suspects that lanes wait for each other. So runs are inside a branch that all lanes
//! take, at whose end they all wait at a barrier ([`Warp::wait`]).

use crate::ablation;
use emu_core::lane::{Lane, SyncPoint};

// Votes, shuffles and barriers. In a build without reconvergence, each lane acts as if it were
// alone.
#[cfg(all(feature = "device", not(feature = "ablate-reconvergence")))]
use crate::intrin::warp::{
    activemask as here, sync_warp as sync, warp_ballot_sync as ballot,
    warp_shuffle_sync_idx as from_lane,
};
#[cfg(not(all(feature = "device", not(feature = "ablate-reconvergence"))))]
use one_lane::{ballot, from_lane, here, sync};

/// Limits of [`Warp::patience`].
const PATIENCE_MAX: u32 = 1 << 15;
const PATIENCE_MIN: u32 = 1 << 8;
/// Instructions after which lanes that run while others wait check the time.
const STINT: u64 = 1 << 11;

/// One lane's view of its warp.
#[derive(Debug)]
pub struct Warp {
    /// Whether lanes wait for each other. They do not in an exact launch.
    meeting: bool,
    /// How many instructions lanes may run while others wait for them. All lanes have the same
    /// value.
    patience: u32,
    /// The instructions that this lane had retired when the lanes last converged or gave up
    /// waiting.
    met: u64,
    /// How many system calls this lane has made. Lanes that converge agree on one number.
    pub calls: u32,
    /// `sp` of this lane when the lanes last converged or gave up waiting.
    sp: u32,
    /// The mask of all lanes that have not left.
    lanes: u32,
    /// The mask of lanes that this lane expects at each return from a function; 0 for no check.
    company: u32,
    /// The mask of lanes that run together with this one, this one included.
    going: u32,
    /// The `sp` and `pc` of the waiting lane that these lanes reach first.
    until: (u32, u32),
    /// The instruction count from which the launch may end when its lanes have converged.
    goal: u64,
    /// The time from which the launch may end when its lanes have converged, and the time at which
    /// it ends in any case.
    times: (u64, u64),
    /// Where this lane's run ended to reconverge, while it waits.
    at: Option<Stop>,
    /// Whether the next run polls time and input: it does not continue one that a sync point ended.
    pub polls: bool,
    /// Whether the launch has ended.
    pub ended: bool,
}

/// The place where a lane's run ended so that lanes can reconverge.
#[derive(Clone, Copy, Debug)]
struct Stop {
    turn: Turn,
    retired: u64,
    sp: u32,
}

impl Warp {
    /// A place that every lane has passed already.
    const NOWHERE: (u32, u32) = (0, 0);

    /// Makes the view of a lane that waits for no other.
    pub const fn alone(calls: u32) -> Self {
        Self {
            meeting: false,
            patience: PATIENCE_MAX,
            met: 0,
            calls,
            sp: 0,
            lanes: 0,
            company: 0,
            going: 0,
            until: Self::NOWHERE,
            goal: u64::MAX,
            times: (u64::MAX, u64::MAX),
            at: None,
            polls: true,
            ended: false,
        }
    }

    /// Makes the lanes that execute this call together wait for each other from now on. `retired`
    /// and `sp` are this lane's. The launch ends when the lanes have converged after `goal`
    /// instructions or after `ns` nanoseconds.
    pub fn gather(&mut self, retired: u64, sp: u32, goal: u64, ns: u32) {
        let (now, ns) = (now_ns(), u64::from(ns));
        self.meeting = true;
        (self.met, self.sp, self.goal) = (retired, sp, goal);
        self.times = (now.saturating_add(ns), now.saturating_add(ns + ns / 16));
        self.lanes = here();
        (self.company, self.going) = (self.lanes, self.lanes);
    }

    /// Handles a sync point: an instruction has ended the instruction loop. Returns whether this
    /// lane's run must end, either to wait for other lanes or because the launch has ended.
    fn arrive(&mut self, place: &SyncPoint) -> bool {
        if !self.meeting {
            return false;
        }
        if place.syscall {
            self.calls = self.calls.wrapping_add(1);
        }
        let turn = Turn::of(place, self.calls, self.sp);
        let stop = Stop { turn, retired: place.retired, sp: place.sp };
        let lanes = here();
        if lanes == self.lanes && turn.same_place(lanes) {
            self.go_on(&stop, lanes);
            return self.ended;
        }
        self.at = Some(stop);
        true
    }

    /// Records that all lanes have converged, and decides whether the launch ends here.
    fn go_on(&mut self, stop: &Stop, lanes: u32) {
        let leader = lanes.trailing_zeros();
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
        (self.met, self.sp) = (stop.retired, stop.sp);
        (self.company, self.going, self.until) = (lanes, lanes, Self::NOWHERE);
        self.calls = from_lane(lanes, self.calls, leader);
        self.ended = ballot(lanes, stop.retired >= self.goal || now_ns() >= self.times.0) != 0;
    }

    /// Waits until all lanes' runs have ended.
    pub fn wait(&self) {
        if self.meeting {
            sync(self.lanes);
        }
    }

    /// Removes the lanes that are `over` from those that are waited for. Returns `over`.
    pub fn leave(&mut self, over: bool) -> bool {
        if self.meeting {
            self.lanes &= !ballot(self.lanes, over);
        }
        over
    }

    /// Returns how many of `most` instructions the next run may execute: few while lanes wait.
    pub fn stint(&self, most: u64) -> u64 {
        if self.going == self.lanes { most } else { most.min(STINT) }
    }

    /// Chooses the lanes that run next, after all lanes' runs have ended. `retired` is this lane's
    /// instruction count. Returns whether this lane is one of them.
    pub fn settle(&mut self, retired: u64) -> bool {
        if !self.meeting || self.ended {
            return true;
        }
        let lanes = self.lanes;
        self.ended = ballot(lanes, now_ns() >= self.times.1) != 0;
        // A lane whose run ended for another reason has not reached a sync point, so it runs first.
        let nowhere = Stop { turn: Turn::FIRST, retired, sp: self.sp };
        let stop = self.at.take().unwrap_or(nowhere);
        let turn = stop.turn;
        if turn.same_place(lanes) {
            if turn != Turn::FIRST {
                self.go_on(&stop, lanes);
            }
            return true;
        }
        let waited = stop.retired.wrapping_sub(self.met);
        if ballot(lanes, waited > u64::from(self.patience)) != 0 {
            self.patience = (self.patience / 2).max(PATIENCE_MIN);
            (self.met, self.sp) = (stop.retired, stop.sp);
            (self.company, self.going, self.until) = (0, 0, Self::NOWHERE);
            return true;
        }
        let first = turn.first(lanes, lanes);
        let goes = turn.comes_with(first);
        let going = ballot(lanes, goes);
        if !goes {
            self.at = Some(stop);
        }
        // The lanes that ran are still on their way to a sync point.
        if first == Turn::FIRST && going == self.going {
            return goes;
        }
        let near = ballot(lanes, turn.calls == first.calls && turn.kind == first.kind);
        (self.company, self.going, self.until) = (going, going, Self::NOWHERE);
        // If others wait in the same kind of code and with as many system calls, the running lanes
        // may come past them, so they expect all lanes at returns. Otherwise they expect only each
        // other.
        if near != going {
            self.company = lanes;
            self.until = turn.first(lanes, near & !going).place(self.sp);
        }
        goes
    }
}

impl Lane for &mut Warp {
    const PREFETCH: bool = cfg!(feature = "device") && ablation::PREFETCH;

    #[inline(always)]
    fn opaque(value: u64) -> u64 {
        #[cfg(feature = "device")]
        return crate::intrin::opaque(value);
        #[cfg(not(feature = "device"))]
        value
    }

    #[inline(always)]
    fn region_end() {
        rejoin();
    }

    #[inline(always)]
    fn is_alone(&self) -> bool {
        ablation::ALONE_LOOP && self.lanes & self.lanes.wrapping_sub(1) == 0
    }

    #[inline(always)]
    fn polls(&self) -> bool {
        self.polls
    }

    #[inline(always)]
    fn expected(&self) -> u32 {
        self.company
    }

    #[inline(always)]
    fn diverged(&self, expected: u32) -> bool {
        parted(expected)
    }

    #[inline(always)]
    fn skips_sync(&self, sp: u32, pc: u32) -> bool {
        (sp, pc) < self.until && self.going & !here() == 0
    }

    #[inline]
    fn wants_sync(&self) -> bool {
        self.meeting && (parted(self.lanes) || now_ns() >= self.times.0)
    }

    #[inline]
    fn sync_point(&mut self, hart: SyncPoint) -> bool {
        self.arrive(&hart)
    }
}

/// The key that lanes are ordered by: those with the least key run first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Turn {
    /// How many system calls the lane has made.
    calls: u32,
    /// Whether the lane is in the kernel, in a program, or at a system call or WFI.
    kind: u32,
    /// `sp`, less what it was when lanes last converged if the lane is in a program. The deeper the
    /// lane is in function calls, the smaller it is.
    depth: u32,
    /// The lane's `pc`.
    at: u32,
}

impl Turn {
    const KERNEL: u32 = 0;
    const PROGRAM: u32 = 1;
    const REST: u32 = 2;
    const FIRST: Self = Self { calls: 0, kind: 0, depth: 0, at: 0 };

    fn of(place: &SyncPoint, calls: u32, met_sp: u32) -> Self {
        // A program's stack is at another address in each VM, so only its growth can be compared.
        let grown = place.sp.wrapping_sub(met_sp).wrapping_add(1 << 31);
        let (kind, depth) = match (place.syscall | place.waiting, place.user) {
            (true, _) => (Self::REST, 0),
            (false, false) => (Self::KERNEL, place.sp),
            (false, true) => (Self::PROGRAM, grown),
        };
        Self { calls, kind, depth, at: place.pc }
    }

    /// Returns the key of lane `lane`.
    fn from(self, lanes: u32, lane: u32) -> Self {
        Self {
            calls: from_lane(lanes, self.calls, lane),
            kind: from_lane(lanes, self.kind, lane),
            depth: from_lane(lanes, self.depth, lane),
            at: from_lane(lanes, self.at, lane),
        }
    }

    /// Returns whether all lanes are at the same instruction, and in the same kind of code.
    fn same_place(self, lanes: u32) -> bool {
        let leader = lanes.trailing_zeros();
        let (at, kind) = (from_lane(lanes, self.at, leader), from_lane(lanes, self.kind, leader));
        ballot(lanes, at == self.at && kind == self.kind) == lanes
    }

    /// Returns the least key among the lanes of the mask `some`, which must not be empty.
    fn first(self, lanes: u32, some: u32) -> Self {
        let mut lane = some.trailing_zeros();
        loop {
            let first = self.from(lanes, lane);
            let before = ballot(lanes, self < first) & some;
            if before == 0 {
                return first;
            }
            lane = before.trailing_zeros();
        }
    }

    /// Returns the `sp` and `pc` that a lane has at this key, if its `sp` was `met_sp` when the
    /// lanes last converged.
    fn place(self, met_sp: u32) -> (u32, u32) {
        match self.kind {
            Self::KERNEL => (self.depth, self.at),
            Self::PROGRAM => (self.depth.wrapping_sub(1 << 31).wrapping_add(met_sp), self.at),
            _ => Warp::NOWHERE,
        }
    }

    /// Returns whether this lane runs together with the lane whose key is `first`.
    fn comes_with(self, first: Self) -> bool {
        // `depth` is not compared, because stacks can be at another address in each VM.
        self.calls == first.calls && self.kind == first.kind && self.at == first.at
    }
}

/// Votes, shuffles and barriers of a warp with a single lane.
#[cfg(not(all(feature = "device", not(feature = "ablate-reconvergence"))))]
mod one_lane {
    #[inline(always)]
    pub fn here() -> u32 {
        1
    }
    #[inline(always)]
    pub fn sync(lanes: u32) {
        debug_assert_eq!(lanes, 1);
    }
    #[inline(always)]
    pub fn ballot(lanes: u32, predicate: bool) -> u32 {
        u32::from(predicate) & lanes
    }
    #[inline(always)]
    pub fn from_lane(lanes: u32, value: u32, lane: u32) -> u32 {
        debug_assert_eq!((lanes, lane), (1, 0));
        value
    }
}

/// Returns whether the lanes of the mask `company` have diverged, so that not all of them execute
/// this together.
#[inline(always)]
fn parted(company: u32) -> bool {
    company & !here() != 0
}

/// Returns true, and hides from the compiler that it does. Used as the condition of a branch, it
/// makes a convergence region: lanes that diverge inside the branch reconverge at its end.
#[inline(always)]
pub fn bracket(value: u32) -> bool {
    #[cfg(feature = "device")]
    return crate::intrin::opaque(value.into()) != u64::MAX;
    #[cfg(not(feature = "device"))]
    {
        let _ = value;
        true
    }
}

/// Marks the end of a convergence region, where the paths of a branch join.
#[inline(always)]
pub fn rejoin() {
    #[cfg(feature = "device")]
    crate::intrin::warp::rejoin();
}

/// Returns the device's clock, in nanoseconds. On the host it stands still.
#[inline(always)]
fn now_ns() -> u64 {
    #[cfg(feature = "device")]
    return crate::intrin::now_ns();
    #[cfg(not(feature = "device"))]
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: SyncPoint = SyncPoint {
        retired: 0,
        syscall: false,
        waiting: false,
        user: false,
        sp: 0xc100_0000,
        pc: 0xc000_1000,
    };
    const PROGRAM: SyncPoint = SyncPoint { user: true, sp: 0x9d00_0000, pc: 0x1_0000, ..KERNEL };

    fn turn(place: SyncPoint, calls: u32) -> Turn {
        Turn::of(&place, calls, PROGRAM.sp)
    }

    #[test]
    fn those_go_first_that_the_others_wait_for() {
        let call = SyncPoint { syscall: true, ..PROGRAM };
        let waits = SyncPoint { waiting: true, ..KERNEL };
        let deeper = SyncPoint { sp: PROGRAM.sp - 64, pc: PROGRAM.pc + 400, ..PROGRAM };
        let earlier = SyncPoint { pc: PROGRAM.pc - 4, ..PROGRAM };
        let order = [
            turn(waits, 3),
            turn(KERNEL, 4),
            turn(deeper, 4),
            turn(earlier, 4),
            turn(PROGRAM, 4),
            turn(call, 4),
            turn(KERNEL, 5),
        ];
        assert!(order.is_sorted(), "{order:?}");
    }

    #[test]
    fn a_programs_stack_may_lie_anywhere() {
        let elsewhere = SyncPoint { sp: PROGRAM.sp - 0x5_0000, ..PROGRAM };
        let there = Turn::of(&elsewhere, 4, elsewhere.sp);
        assert_eq!(there, turn(PROGRAM, 4));
    }

    #[test]
    fn a_lane_alone_is_with_all_the_others() {
        let mut warp = Warp::alone(0);
        assert!(!warp.arrive(&KERNEL), "nobody waits in an exact launch");
        warp.gather(0, KERNEL.sp, 100, 1_000_000);
        assert!(!warp.arrive(&KERNEL) && !warp.ended);
        assert!(warp.arrive(&SyncPoint { retired: 100, ..PROGRAM }) && warp.ended);
    }

    #[test]
    fn a_call_is_counted_and_a_lane_that_is_over_leaves() {
        let mut warp = Warp::alone(7);
        warp.gather(0, KERNEL.sp, u64::MAX, 1_000_000);
        assert!(!warp.arrive(&SyncPoint { syscall: true, ..PROGRAM }));
        assert_eq!(warp.calls, 8);
        assert!(!warp.leave(false));
        assert!(warp.settle(10) && !warp.ended);
        assert!(warp.leave(true));
        assert_eq!(warp.lanes, 0);
    }
}

//! Lanes of a warp that wait for each other.
//!
//! VMs that run alike run together only as long as they are at the same instruction. A host name
//! of another length, or other random numbers, and one VM is some instructions behind; from then
//! on a warp executes both instructions at each step, and lanes never meet again by themselves.
//! So they look for each other where that costs nothing to find out: when an instruction ends the
//! loop. One that opens or closes interrupts, as kernels do all the time, ends it for this purpose
//! only, when some are missing or the launch's time is over ([`Warp::would_meet`]). If all are
//! there, and at the same one, they go on. If not, each lane's run ends ([`Warp::arrive`]), and
//! when all have come out, they settle who goes first ([`Warp::settle`]): those that have made the
//! fewest system calls, which tell how far a program is (page faults do not, there are more or
//! fewer of them by where its random addresses lie). Then the kernel goes before programs, those
//! deepest in calls before the others, and the lowest address, as these will come by where the rest
//! waits.
//!
//! A program may run for long without any of that. So lanes that came from a meeting together look
//! at each return from a function whether all are there; when some are not, their runs end, too.
//! Lanes that go before others know where the first of these wait, and go on until they are there.
//!
//! A launch ends where all have met, so that the next one finds them side by side, once its time is
//! over: by the clock and not by instructions, because a launch is as long as its slowest warp.
//!
//! VMs that do not run alike would wait for nothing: how long a lane is waited for is halved each
//! time it does not come, and doubled when it does; and until all have met again, returns are
//! nothing special.
//!
//! A vote or a barrier makes lanes wait for each other, and leaves them apart: each group that came
//! by itself goes on to execute the same code by itself. Only where the ways of a branch join does
//! the hardware put lanes together that were together before it; but those that wait there are let
//! go as soon as others come by a loop in which the compiler fears that somebody is waited for. So
//! runs are inside of a branch that all take, at whose end all wait at a barrier ([`Warp::wait`]).

use crate::ablation;
use emu_core::port::Place;

// What lanes ask each other. In a build without meetings each takes itself for the only one.
#[cfg(all(feature = "device", not(feature = "ablate-meeting")))]
use crate::intrin::warp::{
    activemask as here, sync_warp as sync, warp_ballot_sync as ballot,
    warp_shuffle_sync_idx as from_lane,
};
#[cfg(not(all(feature = "device", not(feature = "ablate-meeting"))))]
use one_lane::{ballot, from_lane, here, sync};

/// Instructions that a lane may run while others wait for it.
const PATIENCE_MAX: u32 = 1 << 15;
const PATIENCE_MIN: u32 = 1 << 8;
/// Instructions after which lanes that go while others wait look at the time.
const STINT: u64 = 1 << 11;

/// One lane's view of its warp. All lanes come to the same `patience`.
#[derive(Debug)]
pub struct Warp {
    /// Whether lanes wait for each other.
    meeting: bool,
    patience: u32,
    /// Instructions that this lane had retired when all last met, or gave up.
    met: u64,
    /// System calls passed, as this lane's company counts.
    pub calls: u32,
    /// `sp` where all last met.
    sp: u32,
    /// All lanes that take part.
    lanes: u32,
    /// Those that this one looks for at each return.
    pub company: u32,
    /// Those that it goes with, when others wait near, and the `sp` and `pc` of the first of these.
    going: u32,
    until: (u32, u32),
    /// Instructions after which the launch may end where all meet.
    goal: u64,
    /// When it may, and when it ends in any case.
    times: (u64, u64),
    /// Where this lane's run has ended.
    at: Option<Stop>,
    /// The launch has ended.
    pub ended: bool,
}

/// Where a run has ended for a meeting.
#[derive(Clone, Copy, Debug)]
struct Stop {
    turn: Turn,
    retired: u64,
    sp: u32,
}

impl Warp {
    /// All places are past this one.
    const NOWHERE: (u32, u32) = (0, 0);

    /// A lane that goes its way.
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
            ended: false,
        }
    }

    /// From now on this lane, which has retired so many instructions and whose `sp` is given, goes
    /// with those that are here. The launch ends where they meet after `goal` instructions, or when
    /// `ns` nanoseconds have passed.
    pub fn gather(&mut self, retired: u64, sp: u32, goal: u64, ns: u32) {
        let (now, ns) = (now_ns(), u64::from(ns));
        self.meeting = true;
        (self.met, self.sp, self.goal) = (retired, sp, goal);
        self.times = (now.saturating_add(ns), now.saturating_add(ns + ns / 16));
        self.lanes = here();
        (self.company, self.going) = (self.lanes, self.lanes);
    }

    /// Whether there are no others to wait for.
    pub fn is_alone(&self) -> bool {
        ablation::ALONE_LOOP && self.lanes & self.lanes.wrapping_sub(1) == 0
    }

    /// Whether lanes have a reason to meet where nothing else ends the loop: some are elsewhere, or
    /// the launch may end.
    pub fn would_meet(&self) -> bool {
        self.meeting && (parted(self.lanes) || now_ns() >= self.times.0)
    }

    /// A lane's run has come to a place where it may end. Answers whether it does.
    pub fn arrive(&mut self, place: &Place) -> bool {
        if !self.meeting {
            return false;
        }
        if place.call {
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

    /// All lanes are at the same place.
    fn go_on(&mut self, stop: &Stop, lanes: u32) {
        let leader = lanes.trailing_zeros();
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
        (self.met, self.sp) = (stop.retired, stop.sp);
        (self.company, self.going, self.until) = (lanes, lanes, Self::NOWHERE);
        self.calls = from_lane(lanes, self.calls, leader);
        self.ended = ballot(lanes, stop.retired >= self.goal || now_ns() >= self.times.0) != 0;
    }

    /// A lane of which some company is missing returns to `pc` with this `sp`. Answers whether that
    /// is right so: all that go are here, and those that wait are to be met later.
    #[inline(always)]
    pub fn goes_on(&self, sp: u32, pc: u32) -> bool {
        (sp, pc) < self.until && self.going & !here() == 0
    }

    /// Waits until all lanes' runs have ended.
    pub fn wait(&self) {
        if self.meeting {
            sync(self.lanes);
        }
    }

    /// Takes those lanes out that are `over`, and answers whether this one is.
    pub fn leave(&mut self, over: bool) -> bool {
        if self.meeting {
            self.lanes &= !ballot(self.lanes, over);
        }
        over
    }

    /// How many of `most` instructions the next run may have.
    pub fn stint(&self, most: u64) -> u64 {
        if self.going == self.lanes { most } else { most.min(STINT) }
    }

    /// All lanes' runs have ended, this one's after so many instructions. Answers whether it goes on
    /// first.
    pub fn settle(&mut self, retired: u64) -> bool {
        if !self.meeting || self.ended {
            return true;
        }
        let lanes = self.lanes;
        self.ended = ballot(lanes, now_ns() >= self.times.1) != 0;
        // One that ended for another reason than a meeting has yet to come to one.
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
        // Still on their way.
        if first == Turn::FIRST && going == self.going {
            return goes;
        }
        let near = ballot(lanes, turn.calls == first.calls && turn.kind == first.kind);
        (self.company, self.going, self.until) = (going, going, Self::NOWHERE);
        // Where nobody waits that these lanes may come upon, they are a company of their own.
        if near != going {
            self.company = lanes;
            self.until = turn.first(lanes, near & !going).place(self.sp);
        }
        goes
    }
}

/// Which lanes go first: those with the least turn.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Turn {
    /// System calls passed.
    calls: u32,
    kind: u32,
    /// `sp`, which tells how deep in calls the lane is.
    depth: u32,
    /// `pc`
    at: u32,
}

impl Turn {
    const KERNEL: u32 = 0;
    const PROGRAM: u32 = 1;
    const REST: u32 = 2;
    const FIRST: Self = Self { calls: 0, kind: 0, depth: 0, at: 0 };

    fn of(place: &Place, calls: u32, met_sp: u32) -> Self {
        // Programs' stacks lie elsewhere in each VM; what they have grown by can be compared.
        let grown = place.sp.wrapping_sub(met_sp).wrapping_add(1 << 31);
        let (kind, depth) = match (place.call | place.waits, place.user) {
            (true, _) => (Self::REST, 0),
            (false, false) => (Self::KERNEL, place.sp),
            (false, true) => (Self::PROGRAM, grown),
        };
        Self { calls, kind, depth, at: place.pc }
    }

    /// That of another lane.
    fn from(self, lanes: u32, lane: u32) -> Self {
        Self {
            calls: from_lane(lanes, self.calls, lane),
            kind: from_lane(lanes, self.kind, lane),
            depth: from_lane(lanes, self.depth, lane),
            at: from_lane(lanes, self.at, lane),
        }
    }

    /// Whether all lanes are at the same place.
    fn same_place(self, lanes: u32) -> bool {
        let leader = lanes.trailing_zeros();
        let (at, kind) = (from_lane(lanes, self.at, leader), from_lane(lanes, self.kind, leader));
        ballot(lanes, at == self.at && kind == self.kind) == lanes
    }

    /// The least of some lanes, of which there is one.
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

    /// `sp` and `pc` of a lane there that had `met_sp` where all last met.
    fn place(self, met_sp: u32) -> (u32, u32) {
        match self.kind {
            Self::KERNEL => (self.depth, self.at),
            Self::PROGRAM => (self.depth.wrapping_sub(1 << 31).wrapping_add(met_sp), self.at),
            _ => Warp::NOWHERE,
        }
    }

    /// Whether a lane goes on when `first` does.
    fn comes_with(self, first: Self) -> bool {
        // Stacks may lie elsewhere in each VM.
        self.calls == first.calls && self.kind == first.kind && self.at == first.at
    }
}

/// What lanes ask each other, if there is one.
#[cfg(not(all(feature = "device", not(feature = "ablate-meeting"))))]
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

/// Whether lanes of `company` are elsewhere.
#[inline(always)]
pub fn parted(company: u32) -> bool {
    company & !here() != 0
}

/// A condition that holds, of which the compiler knows nothing. Lanes that part under it are
/// together again behind it.
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

/// Where the ways of a branch join.
#[inline(always)]
pub fn rejoin() {
    #[cfg(feature = "device")]
    crate::intrin::warp::rejoin();
}

/// A clock of the device's, in nanoseconds; elsewhere it stands still.
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

    const KERNEL: Place = Place {
        retired: 0,
        call: false,
        waits: false,
        user: false,
        sp: 0xc100_0000,
        pc: 0xc000_1000,
    };
    const PROGRAM: Place = Place { user: true, sp: 0x9d00_0000, pc: 0x1_0000, ..KERNEL };

    fn turn(place: Place, calls: u32) -> Turn {
        Turn::of(&place, calls, PROGRAM.sp)
    }

    #[test]
    fn those_go_first_that_the_others_wait_for() {
        let call = Place { call: true, ..PROGRAM };
        let waits = Place { waits: true, ..KERNEL };
        let deeper = Place { sp: PROGRAM.sp - 64, pc: PROGRAM.pc + 400, ..PROGRAM };
        let earlier = Place { pc: PROGRAM.pc - 4, ..PROGRAM };
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
        let elsewhere = Place { sp: PROGRAM.sp - 0x5_0000, ..PROGRAM };
        let there = Turn::of(&elsewhere, 4, elsewhere.sp);
        assert_eq!(there, turn(PROGRAM, 4));
    }

    #[test]
    fn a_lane_alone_is_with_all_the_others() {
        let mut warp = Warp::alone(0);
        assert!(!warp.arrive(&KERNEL), "nobody waits in an exact launch");
        warp.gather(0, KERNEL.sp, 100, 1_000_000);
        assert!(!warp.arrive(&KERNEL) && !warp.ended);
        assert!(warp.arrive(&Place { retired: 100, ..PROGRAM }) && warp.ended);
    }

    #[test]
    fn a_call_is_counted_and_a_lane_that_is_over_leaves() {
        let mut warp = Warp::alone(7);
        warp.gather(0, KERNEL.sp, u64::MAX, 1_000_000);
        assert!(!warp.arrive(&Place { call: true, ..PROGRAM }));
        assert_eq!(warp.calls, 8);
        assert!(!warp.leave(false));
        assert!(warp.settle(10) && !warp.ended);
        assert!(warp.leave(true));
        assert_eq!(warp.lanes, 0);
    }
}

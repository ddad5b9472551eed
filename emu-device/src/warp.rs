//! Lanes of a warp that wait for each other.
//!
//! VMs that run alike run together only as long as they are at the same instruction. A host name
//! of another length, or other random numbers, and one VM is some instructions behind; from then
//! on a warp executes both instructions at each step, and lanes never meet again by themselves.
//! So they wait for each other where that costs nothing to find out: when an instruction ends the
//! loop. Lanes that are at the same one go on together. Of the others those go first that are
//! deepest in calls, then those at the lowest address, as these will come by where the rest waits;
//! the kernel goes before programs, and at landmarks (traps, waits for an interrupt) those that
//! have passed the fewest. A launch ends where all have met, so that the next one finds them side
//! by side.
//!
//! VMs that do not run alike would wait for nothing: how long a lane is waited for is halved each
//! time it does not come, and doubled when it does.

use emu_core::port::Place;

/// Instructions that a lane may run while others wait for it.
const PATIENCE_MAX: u32 = 1 << 15;
const PATIENCE_MIN: u32 = 1 << 8;

/// One lane's view of its warp. All lanes come to the same `patience`.
#[derive(Debug)]
pub struct Warp {
    patience: u32,
    /// Instructions that this lane had retired when all last met, or gave up.
    met: u64,
    /// Landmarks since all last met.
    pub landmarks: u32,
    /// Instructions after which the launch may end where all meet.
    goal: u64,
    /// It has ended.
    pub ended: bool,
}

impl Warp {
    /// A lane that has retired so many instructions, passed so many landmarks since all met, and
    /// may end its launch after `goal`.
    pub const fn new(retired: u64, landmarks: u32, goal: u64) -> Self {
        Self { patience: PATIENCE_MAX, met: retired, landmarks, goal, ended: false }
    }

    /// Waits for the other lanes, and answers whether the launch ends.
    pub fn meet(&mut self, place: Place) -> bool {
        if place.landmark {
            self.landmarks = self.landmarks.saturating_add(1);
        }
        let turn = Turn::of(&place, self.landmarks);
        loop {
            let lanes = ballot(true);
            let leader = lanes.trailing_zeros();
            // All lanes take part in each exchange, whatever they got from the one before.
            let (pc, kind) = (from_lane(place.pc, leader), from_lane(turn.kind, leader));
            let together = ballot(pc == place.pc && kind == turn.kind) == lanes;
            let late = ballot(place.retired.wrapping_sub(self.met) > u64::from(self.patience)) != 0;
            let goal = ballot(place.retired >= self.goal) != 0;
            if together || late {
                let patience = if together { self.patience * 2 } else { self.patience / 2 };
                self.patience = patience.clamp(PATIENCE_MIN, PATIENCE_MAX);
                self.met = place.retired;
                if together {
                    self.landmarks = 0;
                }
                self.ended = together && goal;
                return self.ended;
            }
            if turn.comes_with(turn.first(lanes)) {
                return false;
            }
        }
    }
}

/// Which lanes go first: those with the least turn.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Turn {
    kind: u32,
    /// `sp` in the kernel, where it tells how deep in calls the lane is; landmarks.
    depth: u32,
    /// `pc`, but for landmarks.
    at: u32,
}

impl Turn {
    fn of(place: &Place, landmarks: u32) -> Self {
        match (place.landmark, place.user) {
            (false, false) => Self { kind: 0, depth: place.sp, at: place.pc },
            (false, true) => Self { kind: 1, depth: 0, at: place.pc },
            (true, _) => Self { kind: 2, depth: landmarks, at: 0 },
        }
    }

    /// The least of all lanes.
    fn first(self, lanes: u32) -> Self {
        let mut first = Self { kind: u32::MAX, ..self };
        let mut left = lanes;
        while left != 0 {
            let lane = left.trailing_zeros();
            let other = Self {
                kind: from_lane(self.kind, lane),
                depth: from_lane(self.depth, lane),
                at: from_lane(self.at, lane),
            };
            first = first.min(other);
            left &= left - 1;
        }
        first
    }

    /// Whether a lane goes on when `first` does.
    fn comes_with(self, first: Self) -> bool {
        // Stacks may lie elsewhere in each VM.
        self.kind == first.kind
            && if self.kind == 2 { self.depth == first.depth } else { self.at == first.at }
    }
}

/// The lanes for which the predicate holds. Those that have ended are not waited for.
#[inline(always)]
fn ballot(predicate: bool) -> u32 {
    #[cfg(feature = "device")]
    return crate::intrin::warp::warp_ballot_sync(u32::MAX, predicate);
    #[cfg(not(feature = "device"))]
    u32::from(predicate)
}

/// The value that a lane has.
#[inline(always)]
fn from_lane(value: u32, lane: u32) -> u32 {
    #[cfg(feature = "device")]
    return crate::intrin::warp::warp_shuffle_sync_idx(u32::MAX, value, lane);
    #[cfg(not(feature = "device"))]
    {
        debug_assert_eq!(lane, 0);
        value
    }
}

//! A simulator of a GPU's warps on the CPU, so that what lanes do to each other can be tested
//! without a GPU.
//!
//! Each lane is a thread, of which one runs at a time, chosen at random from a seed: the same seed
//! gives the same run. A lane stops at each vote, shuffle, barrier and look at the active mask, and
//! another one runs. Votes, shuffles and barriers wait for all lanes of their mask, as the hardware
//! does. What would hang on a GPU or give an undefined value there fails the test instead: lanes that
//! wait for each other in different places, or for one that has ended, and values of lanes that take
//! no part.
//!
//! A GPU executes an instruction of the interpreter for all lanes at the same time, so lanes that come
//! to a place of the code after equally many turns of the instruction loop are there together, and
//! see each other in the active mask. Others are not: they have diverged. A lane counts its turns by
//! the ends of convergence regions; lanes that have waited for each other continue at the same count.
//! CUDA promises none of that, so the simulator can also split up lanes that are together.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use emu_core::dev::virtio::driver::Prng;
use emu_device::simt::{Simt, WarpRunner};

/// A launch in which a lane does more turns than that does not end. Those of tests end by the clock
/// or by their budget, after a tenth of that at most.
const TURNS_MAX: u64 = 1 << 24;
/// How long a turn takes, in nanoseconds of the warp's clock.
const TURN_NS: u64 = 100;

/// Runs warps with simulated lanes.
#[derive(Clone, Debug)]
pub struct Simulator {
    seed: u64,
    splits: bool,
    report: Arc<Mutex<Report>>,
}

/// What the lanes of all warps have done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Looks at the active mask that saw all lanes that had not ended.
    pub converged: u64,
    /// Those that saw some of them.
    pub diverged: u64,
    /// Those that saw all of them after one that saw some.
    pub reconverged: u64,
    /// Votes, shuffles and barriers.
    pub synced: u64,
}

impl Simulator {
    /// Makes a simulator whose lanes run in an order that follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, splits: false, report: Arc::default() }
    }

    /// Sometimes splits up lanes that are in the same place of the code.
    pub fn splitting(self) -> Self {
        Self { splits: true, ..self }
    }

    /// Returns what the lanes have done.
    pub fn report(&self) -> Report {
        *lock(&self.report)
    }
}

impl WarpRunner for Simulator {
    type Lanes = SimulatedLanes;

    fn run(&self, lanes: u32, lane: &(dyn Fn(u32) + Sync)) {
        let warp = Arc::new(Warp::new(lanes, self.seed, self.splits));
        thread::scope(|scope| {
            for number in 0..lanes {
                let warp = Arc::clone(&warp);
                scope.spawn(move || warp.run_lane(number, lane));
            }
        });
        let state = lock(&warp.state);
        if let Some(failure) = &state.failure {
            panic!("{failure}");
        }
        let mut all = lock(&self.report);
        let Report { converged, diverged, reconverged, synced } = state.report;
        all.converged += converged;
        all.diverged += diverged;
        all.reconverged += reconverged;
        all.synced += synced;
    }
}

/// The lanes of the warp that the calling thread is one of.
#[derive(Clone, Copy, Debug)]
pub struct SimulatedLanes;

thread_local! {
    static CURRENT: RefCell<Option<(Arc<Warp>, u32)>> = const { RefCell::new(None) };
    /// How many turns of the instruction loop the lane has done, and the operations that it has.
    static TURNS: Cell<u64> = const { Cell::new(0) };
}

/// Does an operation as the lane that the calling thread is.
fn operate(operation: Operation) -> u32 {
    let current = CURRENT.with_borrow(Clone::clone);
    let (warp, lane) = current.expect("a lane of a simulated warp");
    warp.operate(lane, operation)
}

impl Simt for SimulatedLanes {
    const PREFETCH: bool = true;
    const CLOCK_RUNS: bool = true;

    #[track_caller]
    fn active_mask() -> u32 {
        operate(Operation::ActiveMask(Location::caller()))
    }

    fn ballot(mask: u32, predicate: bool) -> u32 {
        operate(Operation::Ballot { mask, predicate })
    }

    fn shuffle(mask: u32, value: u32, lane: u32) -> u32 {
        operate(Operation::Shuffle { mask, value, lane })
    }

    fn sync(mask: u32) {
        operate(Operation::Sync { mask });
    }

    fn now_ns() -> u64 {
        TURNS.get() * TURN_NS
    }

    fn region_end() {
        TURNS.set(TURNS.get() + 1);
    }

    #[track_caller]
    fn diverged(mask: u32) -> bool {
        // An empty mask needs no look, which takes the simulator long.
        mask != 0 && mask & !Self::active_mask() != 0
    }
}

/// What a lane waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    ActiveMask(&'static Location<'static>),
    Ballot { mask: u32, predicate: bool },
    Shuffle { mask: u32, value: u32, lane: u32 },
    Sync { mask: u32 },
}

impl Operation {
    /// Returns whether both are votes, shuffles or barriers.
    fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// Returns the mask of the lanes that do this together; `None` if they need not.
    fn mask(&self) -> Option<u32> {
        match *self {
            Self::ActiveMask(_) => None,
            Self::Ballot { mask, .. } | Self::Shuffle { mask, .. } | Self::Sync { mask } => {
                Some(mask)
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lane {
    /// Runs, or will as soon as its thread has woken up.
    Running,
    /// May run, with the result of the operation that it has waited for.
    Ready(u32),
    Waiting(Operation),
    Ended,
}

#[derive(Debug)]
struct Warp {
    state: Mutex<State>,
    /// Wake the threads of the lanes.
    wakers: Vec<Condvar>,
}

#[derive(Debug)]
struct State {
    lanes: Vec<Lane>,
    /// The lane whose thread is to run on, and the result of what it waited for.
    next: Option<(u32, u32)>,
    random: Prng,
    splits: bool,
    /// How many turns each lane had done when it began to wait.
    turns: Vec<u64>,
    /// Whether the last look at the active mask saw all lanes.
    converged: bool,
    report: Report,
    failure: Option<String>,
}

/// Ends a lane's thread because another lane has failed.
struct Abandoned;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Warp {
    fn new(lanes: u32, seed: u64, splits: bool) -> Self {
        let mut state = State {
            lanes: vec![Lane::Ready(0); lanes as usize],
            next: None,
            random: Prng::new(seed),
            splits,
            turns: vec![0; lanes as usize],
            converged: true,
            report: Report::default(),
            failure: None,
        };
        state.choose_next();
        let wakers = (0..lanes).map(|_| Condvar::new()).collect();
        Self { state: Mutex::new(state), wakers }
    }

    fn run_lane(self: Arc<Self>, lane: u32, f: &(dyn Fn(u32) + Sync)) {
        CURRENT.set(Some((Arc::clone(&self), lane)));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.wait_for_turn(lock(&self.state), lane);
            f(lane);
        }));
        let mut state = lock(&self.state);
        if outcome.is_err_and(|panic| !panic.is::<Abandoned>()) {
            state.fail(format!("lane {lane} panicked"));
        }
        state.lanes[lane as usize] = Lane::Ended;
        state.choose_next();
        self.wake(&state);
    }

    fn operate(&self, lane: u32, operation: Operation) -> u32 {
        let mut state = lock(&self.state);
        state.turns[lane as usize] = TURNS.get() + 1;
        state.check(lane, &operation);
        state.lanes[lane as usize] = Lane::Waiting(operation);
        state.choose_next();
        self.wake(&state);
        self.wait_for_turn(state, lane)
    }

    /// Wakes the lane whose turn it is, or all if one has failed.
    fn wake(&self, state: &State) {
        if state.failure.is_some() {
            self.wakers.iter().for_each(Condvar::notify_one);
        } else if let Some((lane, _)) = state.next {
            self.wakers[lane as usize].notify_one();
        }
    }

    /// Waits until it is the lane's turn, and returns the result of its operation.
    fn wait_for_turn(&self, mut state: MutexGuard<'_, State>, lane: u32) -> u32 {
        loop {
            if state.failure.is_some() {
                drop(state);
                resume_unwind(Box::new(Abandoned));
            }
            if let Some((next, result)) = state.next
                && next == lane
            {
                state.next = None;
                TURNS.set(state.turns[lane as usize]);
                return result;
            }
            state = self.wakers[lane as usize].wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    /// Returns the lanes that something holds for, as a mask.
    fn mask(&self, holds: impl Fn(&Lane) -> bool) -> u32 {
        self.lanes
            .iter()
            .enumerate()
            .filter(|(_, lane)| holds(lane))
            .fold(0, |m, (n, _)| m | 1 << n)
    }

    /// Fails if the operation would hang on a GPU, or have an undefined result there.
    fn check(&mut self, lane: u32, operation: &Operation) {
        if self.turns[lane as usize] > TURNS_MAX {
            self.fail("the launch does not end".to_owned());
        }
        let Some(mask) = operation.mask() else { return };
        let ended = self.mask(|lane| *lane == Lane::Ended);
        if mask & 1 << lane == 0 {
            self.fail(format!("lane {lane} is not in the mask of its {operation:x?}"));
        } else if mask & ended != 0 {
            self.fail(format!("lane {lane} waits for lanes that have ended: {operation:x?}"));
        } else if let Operation::Shuffle { mask, lane: from, .. } = *operation
            && (from > 31 || mask & 1 << from == 0)
        {
            self.fail(format!("lane {lane} takes the value of a lane that takes no part: {from}"));
        }
    }

    /// Chooses the lane that runs next. Completes operations as far as it must for that.
    fn choose_next(&mut self) {
        if self.failure.is_some() {
            return;
        }
        self.complete();
        let ready = |lane: &Lane| matches!(lane, Lane::Ready(_));
        if self.mask(ready) == 0 {
            self.look_at_active_mask();
        }
        let ready: Vec<u32> = bits(self.mask(ready)).collect();
        if ready.is_empty() {
            if self.mask(|lane| *lane != Lane::Ended) != 0 {
                let mut why = String::from("the lanes wait for each other:");
                for (number, lane) in self.lanes.iter().enumerate() {
                    let _ = write!(why, "\n  lane {number}: {lane:x?}");
                }
                self.fail(why);
            }
            return;
        }
        let lane = ready[self.random.below(ready.len() as u32) as usize];
        if let Lane::Ready(result) = self.lanes[lane as usize] {
            self.lanes[lane as usize] = Lane::Running;
            self.next = Some((lane, result));
        }
    }

    /// Completes the votes, shuffles and barriers at which all lanes of the mask have arrived.
    fn complete(&mut self) {
        let mut left = self.mask(|lane| matches!(lane, Lane::Waiting(_)));
        while left != 0 {
            let first = left.trailing_zeros();
            left &= !(1 << first);
            let Lane::Waiting(operation) = self.lanes[first as usize] else { continue };
            let Some(mask) = operation.mask() else { continue };
            let with_it = self.mask(|lane| match lane {
                Lane::Waiting(other) => other.mask() == Some(mask) && other.is_like(&operation),
                Lane::Running | Lane::Ready(_) | Lane::Ended => false,
            });
            if with_it & mask == mask {
                left &= !mask;
                self.report.synced += 1;
                let results: Vec<u32> = bits(mask).map(|lane| self.result(lane, mask)).collect();
                let turns = bits(mask).map(|lane| self.turns[lane as usize]).max().unwrap_or(0);
                for (lane, result) in bits(mask).zip(results) {
                    self.lanes[lane as usize] = Lane::Ready(result);
                    self.turns[lane as usize] = turns;
                }
            }
        }
    }

    /// Returns the result of a lane's operation, whose mask all lanes have arrived.
    fn result(&self, lane: u32, mask: u32) -> u32 {
        match self.lanes[lane as usize] {
            Lane::Waiting(Operation::Ballot { .. }) => {
                let votes = |lane: &Lane| {
                    matches!(lane, Lane::Waiting(Operation::Ballot { predicate: true, .. }))
                };
                self.mask(votes) & mask
            }
            Lane::Waiting(Operation::Shuffle { lane: from, .. }) => {
                match self.lanes[from as usize] {
                    Lane::Waiting(Operation::Shuffle { value, .. }) => value,
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Lets the lanes that look at the active mask first see it, together with those that do so at
    /// the same time and in the same place of the code, or, if the simulator splits lanes up, with
    /// some of these.
    fn look_at_active_mask(&mut self) {
        let looks = self.lanes.iter().zip(&self.turns).map(|(lane, &turns)| match *lane {
            Lane::Waiting(Operation::ActiveMask(place)) => Some((turns, place)),
            Lane::Waiting(_) | Lane::Running | Lane::Ready(_) | Lane::Ended => None,
        });
        let looks: Vec<_> = looks.collect();
        let Some(turns) = looks.iter().flatten().map(|(turns, _)| *turns).min() else { return };
        let first: Vec<_> =
            looks.iter().copied().flatten().filter(|look| look.0 == turns).collect();
        let here = self.random.pick(&first);
        let mut seen = bits(u32::MAX)
            .filter(|&lane| looks.get(lane as usize) == Some(&Some(here)))
            .fold(0, |mask, lane| mask | 1 << lane);
        if self.splits && self.random.one_in(16) {
            let some = seen & self.random.next_u32();
            seen = if some == 0 { seen & seen.wrapping_neg() } else { some };
        }
        for lane in bits(seen) {
            self.lanes[lane as usize] = Lane::Ready(seen);
        }
        let converged = seen == self.mask(|lane| *lane != Lane::Ended);
        self.report.converged += u64::from(converged);
        self.report.diverged += u64::from(!converged);
        self.report.reconverged += u64::from(converged && !self.converged);
        self.converged = converged;
    }
}

/// Returns the lanes of a mask.
fn bits(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |lane| mask & 1 << lane != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `lane` in each lane of a warp, and returns why that failed.
    fn failure(lanes: u32, lane: impl Fn(u32) + Sync) -> String {
        let run = AssertUnwindSafe(|| Simulator::new(1).run(lanes, &lane));
        let panic = catch_unwind(run).expect_err("a failure");
        *panic.downcast::<String>().expect("a message")
    }

    #[test]
    fn votes_and_shuffles_are_among_the_lanes_of_their_mask() {
        for seed in 0..20 {
            Simulator::new(seed).run(32, &|lane| {
                let half = if lane < 16 { 0xffff } else { 0xffff_0000 };
                assert_eq!(SimulatedLanes::ballot(half, lane % 2 == 0), half & 0x5555_5555);
                assert_eq!(SimulatedLanes::shuffle(u32::MAX, lane * 3, 31 - lane), (31 - lane) * 3);
                SimulatedLanes::sync(half);
            });
        }
    }

    #[test]
    fn lanes_are_active_together_after_equally_many_turns() {
        let simulator = Simulator::new(7);
        simulator.run(8, &|lane| {
            if lane < 3 {
                SimulatedLanes::region_end();
            }
            let half = if lane < 3 { 0b111 } else { 0b1111_1000 };
            assert_eq!(SimulatedLanes::active_mask(), half);
            assert!(SimulatedLanes::diverged(0xff));
            SimulatedLanes::sync(0xff);
            assert!(!SimulatedLanes::diverged(0xff));
        });
        let report = simulator.report();
        assert_eq!((report.converged, report.diverged, report.reconverged), (1, 4, 1));
    }

    #[test]
    fn lanes_in_two_places_of_the_code_are_not_active_together() {
        Simulator::new(3).run(2, &|lane| match lane {
            0 => assert_eq!(SimulatedLanes::active_mask(), 0b01),
            _ => assert_eq!(SimulatedLanes::active_mask(), 0b10),
        });
    }

    #[test]
    fn lanes_that_are_split_up_see_only_each_other() {
        let sizes = Mutex::new(Vec::new());
        for seed in 0..64 {
            Simulator::new(seed).splitting().run(8, &|lane| {
                let mask = SimulatedLanes::active_mask();
                assert_eq!(SimulatedLanes::ballot(mask, true), mask);
                assert!(mask & 1 << lane != 0);
                lock(&sizes).push(mask.count_ones());
            });
        }
        let sizes = lock(&sizes);
        assert!(sizes.contains(&8) && sizes.iter().any(|&size| size < 8));
    }

    #[test]
    fn what_would_hang_or_be_undefined_fails() {
        let elsewhere = failure(2, |lane| match lane {
            0 => SimulatedLanes::sync(0b11),
            _ => assert_eq!(SimulatedLanes::ballot(0b11, true), 0b11),
        });
        assert!(elsewhere.starts_with("the lanes wait for each other"), "{elsewhere}");
        let other_mask =
            failure(3, |lane| SimulatedLanes::sync([0b011, 0b111, 0b111][lane as usize]));
        assert!(other_mask.starts_with("the lanes wait for each other"), "{other_mask}");
        let ended = failure(2, |lane| {
            if lane == 0 {
                SimulatedLanes::sync(0b11);
            }
        });
        assert!(ended.contains("nded"), "{ended}");
        let stranger = failure(2, |_| SimulatedLanes::sync(0b1));
        assert!(stranger.contains("is not in the mask"), "{stranger}");
        let source = failure(2, |_| assert_eq!(SimulatedLanes::shuffle(0b11, 1, 5), 1));
        assert!(source.contains("takes no part"), "{source}");
        assert!(failure(2, |lane| assert_eq!(lane, 0)).contains("panicked"));
        let endless = failure(1, |_| {
            const TURNS: u64 = 1 << 16;
            for _ in 0..=TURNS_MAX / TURNS {
                (0..TURNS).for_each(|_| SimulatedLanes::region_end());
                SimulatedLanes::sync(0b1);
            }
        });
        assert!(endless.contains("does not end"), "{endless}");
    }
}

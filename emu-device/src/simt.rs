//! What the lanes of a warp do together: votes, shuffles and barriers, and the clock that they read.
//!
//! [`Simt`] is the interface that reconvergence (`warp.rs`) is written against. It has three
//! implementations: `Gpu` with the GPU's instructions, [`OneLane`] for a warp with a single lane, and,
//! in `tests/`, a simulator of warps of up to 32 lanes.

/// How the lane that calls these functions acts together with the others of its warp. A mask has bit
/// `n` set for lane `n`.
pub trait Simt {
    /// Whether the instruction loop prefetches: see
    /// [`Lane::PREFETCH`](emu_core::lane::Lane::PREFETCH).
    const PREFETCH: bool = false;
    /// Whether time passes during a launch, so that its time limit can end it.
    const CLOCK_RUNS: bool;

    /// Returns the mask of the lanes that execute this call together. The lanes that run the same
    /// code need not all be among them.
    #[track_caller]
    fn active_mask() -> u32;

    /// Waits until all lanes of `mask` call this, and returns the mask of those whose predicate
    /// holds.
    fn ballot(mask: u32, predicate: bool) -> u32;

    /// Waits until all lanes of `mask` call this, and returns the `value` of lane `lane`, which must
    /// be one of them.
    fn shuffle(mask: u32, value: u32, lane: u32) -> u32;

    /// Waits until all lanes of `mask` call this.
    fn sync(mask: u32);

    /// Returns the time, in nanoseconds.
    fn now_ns() -> u64;

    /// Returns whether not all lanes of `mask` execute this call together.
    #[inline(always)]
    #[track_caller]
    fn diverged(mask: u32) -> bool {
        mask & !Self::active_mask() != 0
    }

    /// Returns `value`, and hides from the compiler that it does: an optimisation barrier.
    #[inline(always)]
    fn opaque(value: u64) -> u64 {
        value
    }

    /// Returns `a` if the condition is true, else `b`: see
    /// [`Lane::select`](emu_core::lane::Lane::select).
    #[inline(always)]
    fn select(condition: bool, a: u32, b: u32) -> u32 {
        if condition { a } else { b }
    }

    /// Begins to bring near the `bytes` bytes at `at`.
    #[inline(always)]
    fn prefetch(_at: *const u8, _bytes: usize) {}

    /// Returns true, and hides from the compiler that it does. Used as the condition of a branch, it
    /// makes a convergence region: lanes that diverge inside the branch reconverge at its end.
    #[inline(always)]
    fn region_begin(_value: u32) -> bool {
        true
    }

    /// Marks the end of a convergence region, where the paths of a branch join.
    #[inline(always)]
    fn region_end() {}
}

/// The only lane of its warp, on a CPU. Its clock stands still.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneLane;

impl Simt for OneLane {
    const CLOCK_RUNS: bool = false;

    #[inline(always)]
    fn active_mask() -> u32 {
        1
    }

    #[inline(always)]
    fn ballot(mask: u32, predicate: bool) -> u32 {
        u32::from(predicate) & mask
    }

    #[inline(always)]
    fn shuffle(mask: u32, value: u32, lane: u32) -> u32 {
        debug_assert_eq!((mask, lane), (1, 0));
        value
    }

    #[inline(always)]
    fn sync(mask: u32) {
        debug_assert_eq!(mask, 1);
    }

    #[inline(always)]
    fn now_ns() -> u64 {
        0
    }
}

/// Runs the lanes of warps on a CPU.
pub trait WarpRunner {
    /// What the lanes are to each other.
    type Lanes: Simt;

    /// Calls `lane` for each lane of a warp, with its number, and returns when all have returned.
    /// The calls may use [`WarpRunner::Lanes`].
    fn run(&self, lanes: u32, lane: &(dyn Fn(u32) + Sync));
}

/// Runs one lane after the other, each as if it were alone in its warp.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneByOne;

impl WarpRunner for OneByOne {
    type Lanes = OneLane;

    fn run(&self, lanes: u32, lane: &(dyn Fn(u32) + Sync)) {
        (0..lanes).for_each(lane);
    }
}

#[cfg(feature = "device")]
pub use gpu::Gpu;

#[cfg(feature = "device")]
mod gpu {
    use super::{OneLane, Simt};
    use crate::ablation;
    use crate::intrin::{self, warp};

    /// A lane of a GPU's warp. In a build without reconvergence, it acts as if it were alone.
    #[derive(Clone, Copy)]
    pub struct Gpu;

    impl Simt for Gpu {
        const PREFETCH: bool = ablation::PREFETCH;
        const CLOCK_RUNS: bool = true;

        #[inline(always)]
        fn active_mask() -> u32 {
            if ablation::RECONVERGENCE { warp::activemask() } else { OneLane::active_mask() }
        }

        #[inline(always)]
        fn ballot(mask: u32, predicate: bool) -> u32 {
            if ablation::RECONVERGENCE {
                warp::warp_ballot_sync(mask, predicate)
            } else {
                OneLane::ballot(mask, predicate)
            }
        }

        #[inline(always)]
        fn shuffle(mask: u32, value: u32, lane: u32) -> u32 {
            if ablation::RECONVERGENCE {
                warp::warp_shuffle_sync_idx(mask, value, lane)
            } else {
                OneLane::shuffle(mask, value, lane)
            }
        }

        #[inline(always)]
        fn sync(mask: u32) {
            if ablation::RECONVERGENCE {
                warp::sync_warp(mask);
            }
        }

        #[inline(always)]
        fn now_ns() -> u64 {
            intrin::now_ns()
        }

        #[inline(always)]
        fn opaque(value: u64) -> u64 {
            intrin::opaque(value)
        }

        #[inline(always)]
        fn select(condition: bool, a: u32, b: u32) -> u32 {
            intrin::select(condition, a, b)
        }

        #[inline(always)]
        fn prefetch(at: *const u8, bytes: usize) {
            // A line of the cache has 128 bytes.
            for offset in (0..bytes).step_by(128) {
                intrin::prefetch(at.wrapping_add(offset));
            }
            intrin::prefetch(at.wrapping_add(bytes - 1));
        }

        #[inline(always)]
        fn region_begin(value: u32) -> bool {
            intrin::opaque(value.into()) != u64::MAX
        }

        #[inline(always)]
        fn region_end() {
            warp::region_end();
        }
    }
}

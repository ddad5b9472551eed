//! Where a hart executes: by itself on a CPU, or as one lane of a GPU's warp.
//!
//! The lanes of a warp execute one instruction at a time for all of them, so they are fast only
//! while they have converged. Guests cannot observe anything of this: an implementation of [`Lane`]
//! decides how fast a VM runs and where its runs end, not what its instructions do.

/// The state of a hart after an instruction that ended the instruction loop. Lanes of a warp
/// compare it to decide whether they have reconverged.
#[derive(Clone, Copy, Debug)]
pub struct SyncPoint {
    /// Instructions retired since reset.
    pub retired: u64,
    /// Whether the hart has just executed an ECALL in U-mode. VMs that run the same program make
    /// the same system calls in the same order, whereas page faults and interrupts differ between
    /// them.
    pub syscall: bool,
    /// Whether the hart waits for an interrupt (WFI).
    pub waiting: bool,
    /// Whether the hart is in U-mode and stays there, because the instruction did not trap.
    pub user: bool,
    /// Stack pointer, `x2`.
    pub sp: u32,
    /// Program counter.
    pub pc: u32,
}

/// What a hart executes on. The defaults are those of a CPU.
pub trait Lane {
    /// Whether the instruction loop reads both source registers and prefetches the next instruction
    /// before it knows whether it needs them. That hides latency on a GPU and costs time on a CPU.
    const PREFETCH: bool = false;

    /// Returns `value`. This is an optimisation barrier: it keeps LLVM from hoisting what only the
    /// slow path computes into the hot path.
    #[inline(always)]
    fn opaque(value: u64) -> u64 {
        value
    }

    /// Returns `a` if the condition is true, else `b`. On a GPU this never becomes a branch, which
    /// lanes would take one group after the other.
    #[inline(always)]
    fn select(condition: bool, a: u32, b: u32) -> u32 {
        if condition { a } else { b }
    }

    /// Returns the mask of the lanes that run together by the uniform loop.
    #[inline(always)]
    fn lanes(&self) -> u32 {
        1
    }

    /// Waits until all lanes of `mask` call this, and returns the mask of those whose predicate
    /// holds.
    #[inline(always)]
    fn ballot(_mask: u32, predicate: bool) -> u32 {
        predicate.into()
    }

    /// Waits until all lanes of `mask` call this.
    #[inline(always)]
    fn sync(_mask: u32) {}

    /// Returns true, and hides from the compiler that it does. Used as the condition of a branch, it
    /// makes a convergence region: lanes that diverge inside the branch, and wait for each other at
    /// its end, reconverge there.
    #[inline(always)]
    fn region_begin(_value: u32) -> bool {
        true
    }

    /// Begins to bring a value near that will be used some steps later.
    #[inline(always)]
    fn prefetch<T>(_value: &T) {}

    /// Marks the end of a convergence region. All control-flow paths through an instruction join
    /// there, and diverged lanes reconverge.
    #[inline(always)]
    fn region_end() {}

    /// Returns whether the VM is the only one in its warp.
    #[inline(always)]
    fn is_alone(&self) -> bool {
        true
    }

    /// Returns whether a run that begins now polls time and input first. It does not if it continues
    /// a run that a sync point ended.
    #[inline(always)]
    fn polls(&self) -> bool {
        true
    }

    /// Returns the mask of the lanes that are expected to execute the next function return together
    /// with this one; 0 when convergence is not worth checking.
    #[inline(always)]
    fn expected(&self) -> u32 {
        0
    }

    /// Returns whether the lanes of the mask `expected` have diverged, so that not all of them
    /// execute this call together.
    #[inline(always)]
    fn diverged(_expected: u32) -> bool {
        false
    }

    /// Called on a function return while the warp is diverged. Returns true to keep running: this
    /// lane has not yet reached the `sp` and `pc` where other lanes wait for it.
    #[inline(always)]
    fn skips_sync(&self, _sp: u32, _pc: u32) -> bool {
        true
    }

    /// Returns whether the instruction loop should end at the next instruction where that is cheap,
    /// only to reach a sync point: the warp is diverged, or the launch's time is over.
    #[inline(always)]
    fn wants_sync(&self) -> bool {
        false
    }

    /// Reports that an instruction has ended the instruction loop. Returns true if the run must end
    /// here, so that the lane can wait for the other lanes.
    #[inline(always)]
    fn sync_point(&mut self, _hart: SyncPoint) -> bool {
        false
    }
}

/// A CPU, which runs one VM at a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scalar;

impl Lane for Scalar {}

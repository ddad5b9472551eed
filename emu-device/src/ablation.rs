//! Optimisations that a build can leave out, to measure what each one gains.
//!
//! Each is a cargo feature. The crate `pxvm` has the same features and passes them on to both of
//! its builds of this crate. They change speed only; guests cannot observe them.

/// Whether VMs share the decoded instructions of shared frames.
pub const SHARED_CODE: bool = !cfg!(feature = "ablate-shared-code");
/// Whether the instruction loop prefetches the next instruction while it executes one.
pub const PREFETCH: bool = !cfg!(feature = "ablate-prefetch");
/// Whether VMs that share a warp wait for each other to reconverge.
pub const RECONVERGENCE: bool = !cfg!(feature = "ablate-reconvergence");
/// Whether a VM that is alone in its warp runs a variant of the loop without reconvergence.
pub const ALONE_LOOP: bool = !cfg!(feature = "ablate-alone-loop");
/// Whether frames are interleaved in memory for VMs that share a warp.
pub const INTERLEAVING: bool = !cfg!(feature = "ablate-interleaving");

/// Returns the names of the optimisations that this build leaves out.
pub fn left_out() -> impl Iterator<Item = &'static str> {
    let accelerators = [
        ("shared-code", SHARED_CODE),
        ("prefetch", PREFETCH),
        ("reconvergence", RECONVERGENCE),
        ("alone-loop", ALONE_LOOP),
        ("interleaving", INTERLEAVING),
    ];
    accelerators.into_iter().filter_map(|(name, there)| (!there).then_some(name))
}

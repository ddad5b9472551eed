//! Accelerators that a build can leave out, to see what each gives: cargo features, which `pxvm` has
//! as well and hands on to both of its builds of this crate. Guests do not notice.

/// VMs share the decoded instructions of shared frames.
pub const SHARED_CODE: bool = !cfg!(feature = "ablate-shared-code");
/// The loop reads the next instruction while it executes one.
pub const READ_AHEAD: bool = !cfg!(feature = "ablate-read-ahead");
/// VMs that share a warp wait for each other.
pub const MEETING: bool = !cfg!(feature = "ablate-meeting");
/// A VM that is alone in its warp has a loop of its own.
pub const ALONE_LOOP: bool = !cfg!(feature = "ablate-alone-loop");
/// Frames lie as VMs that share a warp use them.
pub const INTERLEAVING: bool = !cfg!(feature = "ablate-interleaving");

/// What this build leaves out.
pub fn left_out() -> impl Iterator<Item = &'static str> {
    let accelerators = [
        ("shared-code", SHARED_CODE),
        ("read-ahead", READ_AHEAD),
        ("meeting", MEETING),
        ("alone-loop", ALONE_LOOP),
        ("interleaving", INTERLEAVING),
    ];
    accelerators.into_iter().filter_map(|(name, there)| (!there).then_some(name))
}

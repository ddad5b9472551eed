//! What a kernel launch does for one VM, and the GPU's entry points that call it.
//!
//! All but the entry points is ordinary Rust, so that tests can run a fleet with it in host memory.

mod digest;
#[cfg(feature = "device")]
mod entry;
mod hot;
mod start;
mod step;
mod tables;

pub use digest::{digest, private_pages};
pub use hot::HotLane;
pub use start::{release, start};
pub use step::{SLICE_PARTS, step, step_uniform};

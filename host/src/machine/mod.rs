//! Machine set-up: from image files to VMs at their first instruction.
//!
//! [`assemble`](mod@assemble) reads the images, [`plan`] decides the memory layout, [`base`] lays
//! the images out once as the frames that the fleet shares, [`fleet`] makes each VM's own state,
//! [`cmdline`] the kernel's command line, [`expected`] says how much memory a VM may use.

pub mod assemble;
pub mod base;
pub mod cmdline;
pub mod expected;
pub mod fleet;
pub mod plan;

pub use assemble::{AssembleError, GuestOptions, Kernel, assemble};
pub use base::BaseImage;
pub use expected::{Expected, Source};
pub use fleet::{Fleet, Link, Macs, Staged};
pub use plan::{Plan, PlanError};

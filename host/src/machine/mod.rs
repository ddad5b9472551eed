//! From images to VMs at their first instruction.
//!
//! [`assemble`](mod@assemble) reads the images, [`plan`] decides where everything lies, [`base`] lays
//! it out once as the frames that the fleet shares, [`fleet`] says what is each VM's own,
//! [`cmdline`] what its kernel is told.

pub mod assemble;
pub mod base;
pub mod cmdline;
pub mod fleet;
pub mod plan;

pub use assemble::{GuestOptions, assemble};
pub use base::BaseImage;
pub use fleet::{Fleet, Link, Macs, Staged};
pub use plan::{Plan, PlanError};

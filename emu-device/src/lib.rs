//! What surrounds `emu-core` on a device, shared by the CPU backend and the GPU build.
//!
//! [`memory`] holds guest memory in frames. [`protocol`] is what host and device exchange for a
//! kernel launch, and [`kernel`] is what a launch executes. With the feature
//! `device` the crate is compiled for the GPU and adds the kernels' entry points and the few
//! intrinsics they need.
#![no_std]

pub mod ablation;
pub mod kernel;
pub mod memory;
pub mod protocol;
pub mod simt;
mod warp;

#[cfg(feature = "device")]
mod intrin;

#[cfg(feature = "host")]
extern crate alloc;
#[cfg(test)]
extern crate std;

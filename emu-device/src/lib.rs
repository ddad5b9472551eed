//! What the CPU backend and the GPU build share around `emu-core`: guest memory in frames
//! ([`ram`]), the contract of a launch ([`launch`], [`port`]) and what a launch does ([`kernel`]).
//! With the feature `device` it is the GPU build itself: entry points and the few intrinsics under
//! them.
#![no_std]

pub mod ablation;
pub mod kernel;
pub mod launch;
pub mod placement;
pub mod port;
pub mod ram;
mod warp;

#[cfg(feature = "device")]
mod intrin;

#[cfg(test)]
extern crate std;

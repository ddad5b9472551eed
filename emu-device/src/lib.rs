//! What the CPU backend and the GPU build share around `emu-core`: guest memory in frames
//! ([`ram`]) and the contract of a launch ([`launch`]). With the feature `device` it is the GPU
//! build itself: the entry points ([`kernel`]) and the few intrinsics under them.
#![no_std]

pub mod launch;
pub mod port;
pub mod ram;

#[cfg(feature = "device")]
mod intrin;
#[cfg(feature = "device")]
pub mod kernel;

#[cfg(test)]
extern crate std;

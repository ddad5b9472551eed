//! What both the CPU backend and the GPU build need around `emu-core`: guest memory in frames.
//!
//! The GPU's entry points and the builder that turns them into PTX come here too.
#![no_std]

pub mod ram;

#[cfg(test)]
extern crate std;

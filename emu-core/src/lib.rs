//! One RV32IMA machine: hart, Sv32 MMU, SBI and devices.
//!
//! The crate is compiled twice: for the host CPU, whose build is the reference, and for the GPU,
//! which runs the fleet. Both must compute the same, so the crate has no `std`, no allocation, no
//! unsafe code, no clock, and no panic that guest data can reach. It reaches guest memory through
//! [`mem::Memory`] and the outside world through [`port::Port`]. [`machine::Machine::run`] takes an
//! instruction budget and the current time, and returns why it stopped.
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
pub mod state;

pub mod abi;
pub mod bus;
pub mod chacha;
pub mod clock;
pub mod csr;
pub mod dev;
pub mod disk;
mod fast_path;
mod hart;
pub mod insn;
pub mod lane;
pub mod layout;
pub mod machine;
pub mod mem;
pub mod mmu;
pub mod pmp;
pub mod port;
pub mod sbi;
pub mod semihosting;
mod slow_path;
pub mod tlb;
pub mod trace;
pub mod trap;
pub mod uniform;

#[cfg(test)]
extern crate std;

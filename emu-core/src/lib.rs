//! One RV32IMA machine: hart, Sv32 MMU, SBI and devices.
//!
//! The crate is compiled twice, to the host CPU (the reference) and to the GPU (the fleet), so it
//! has no `std`, no allocation, no unsafe, no clock and no panic that guest data can reach.
//! Guest memory comes in through [`mem::Memory`], the outside world through [`port::Port`],
//! and [`machine::Machine::run`] takes a budget of instructions and the time.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod bus;
pub mod chacha;
pub mod csr;
pub mod dev;
mod general;
mod hart;
pub mod insn;
pub mod layout;
pub mod machine;
pub mod mem;
pub mod mmu;
pub mod pmp;
pub mod port;
pub mod sbi;
pub mod tlb;
pub mod trace;
pub mod trap;

#[cfg(test)]
extern crate std;

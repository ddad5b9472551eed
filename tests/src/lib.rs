//! The building blocks of pxvm's cross-crate tests: a machine for tests, an assembler, a
//! fingerprint of a machine's state, generators of random programs, and oracles.
//!
//! The tests themselves are in `tests/`, the benchmarks in `benches/`.

pub mod asm;
pub mod careless;
pub mod disk;
pub mod elf;
pub mod fuzz;
pub mod guests;
pub mod hash;
pub mod loops;
pub mod machine;
pub mod memory;
pub mod needs;
pub mod program;
pub mod qemu;
pub mod simt;
pub mod tutorial;

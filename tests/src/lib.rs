//! What pxvm's cross-crate suites are built from: a machine to try things on, an assembler,
//! a fingerprint of a machine's state, generators of random programs, and oracles.
//!
//! The tests themselves are in `tests/`, the benchmarks in `benches/`.

pub mod asm;
pub mod elf;
pub mod fuzz;
pub mod guests;
pub mod hash;
pub mod machine;
pub mod memory;
pub mod needs;
pub mod program;
pub mod qemu;

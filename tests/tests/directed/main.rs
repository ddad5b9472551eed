//! Directed tests: one behaviour each, quoting the specification it comes from.
//!
//! "Unprivileged" and "privileged" are the RISC-V ISA manual's two volumes, 20240411; SBI is the
//! Supervisor Binary Interface specification 2.0.
#![expect(clippy::tests_outside_test_module, reason = "the whole crate is a test")]

use pxvm_tests::machine::TestMachine;

mod atomics;
mod clock;
mod code;
mod control;
mod csrs;
mod devices;
mod frames;
mod hostile;
mod integer;
mod interrupts;
mod loads_stores;
mod multiply;
mod pmp;
mod privileged;
mod rom;
mod sbi;
mod semihosting;
mod slices;
mod sv32;
mod traps;

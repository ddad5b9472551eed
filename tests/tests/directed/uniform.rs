//! The directed tests by the uniform loop. See `main.rs`, whose suites these are.
#![expect(clippy::tests_outside_test_module, reason = "the whole crate is a test")]

use pxvm_tests::machine::UniformMachine as TestMachine;

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

//! The official riscv-tests, given as built ELF files: `PXVM_RISCV_TESTS=DIR cargo test`.
#![expect(clippy::tests_outside_test_module, reason = "the whole crate is a test")]

use std::path::Path;

use emu_core::abi::ExitCode;
use goblin::elf::{Elf, program_header::PT_LOAD};
use pxvm_tests::loops::{Dispatch, InsnLoop, Uniform};
use pxvm_tests::machine::MachineBy;
use pxvm_tests::needs;

/// More than the longest test needs.
const INSTRUCTIONS_MAX: u32 = 2_000_000;
const SLICE: u32 = 5000;

/// Runs one test by an instruction loop. `Err` says what went wrong.
fn run<I: InsnLoop>(path: &Path) -> Result<(), String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let elf = Elf::parse(&bytes).map_err(|e| e.to_string())?;
    let mut m = MachineBy::<I>::new();
    for segment in elf.program_headers.iter().filter(|h| h.p_type == PT_LOAD) {
        m.write(segment.p_paddr as u32, &bytes[segment.file_range()]);
    }
    let tohost = elf
        .syms
        .iter()
        .find(|s| elf.strtab.get_at(s.st_name) == Some("tohost"))
        .ok_or("there is no symbol `tohost`")?
        .st_value as u32;
    m.vm.boot_machine(elf.entry as u32, 0, 0);
    for _ in 0..INSTRUCTIONS_MAX / SLICE {
        let exit = m.run(SLICE);
        match m.word(tohost) {
            0 => {}
            1 => return Ok(()),
            value => return Err(format!("test {} failed", value >> 1)),
        }
        if !matches!(exit.code, ExitCode::Budget | ExitCode::Idle) {
            return Err(format!("{exit:?} at {:#x}", m.vm.hart.pc));
        }
    }
    Err(format!("does not end, at {:#x}", m.vm.hart.pc))
}

/// Compressed instructions, floating point and 64 bits are not what this machine has.
fn applies(name: &str) -> bool {
    ["rv32ui-", "rv32um-", "rv32ua-", "rv32si-", "rv32mi-"].iter().any(|p| name.starts_with(p))
        && Path::new(name).extension().is_none()
}

#[test]
fn riscv_tests_pass() {
    let dir = std::env::var_os("PXVM_RISCV_TESTS");
    let dir = dir.ok_or("PXVM_RISCV_TESTS names no folder; docs/testing.md says how to make one");
    let Some(dir) = needs::found("riscv-tests", dir) else { return };
    let entries = std::fs::read_dir(dir).expect("PXVM_RISCV_TESTS is a folder");
    let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.retain(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(applies));
    paths.sort();
    assert!(!paths.is_empty(), "PXVM_RISCV_TESTS has no riscv-tests");
    let results = paths.iter().map(|p| (p, run::<Dispatch>(p).and_then(|()| run::<Uniform>(p))));
    let results: Vec<_> = results.collect();
    let failed: Vec<_> = results.iter().filter(|(_, r)| r.is_err()).collect();
    println!("{} passed, {} failed", results.len() - failed.len(), failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
}

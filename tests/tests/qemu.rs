//! Random programs on our core and on QEMU: registers, CSRs, traps, memory and page tables agree.
//!
//! `PXVM_SEED` runs one seed, `PXVM_SEEDS` that many.
#![expect(clippy::tests_outside_test_module, reason = "the whole crate is a test")]

use emu_core::abi::ExitCode;
use pxvm_tests::machine::{RAM, TestMachine};
use pxvm_tests::memory::{Frames, Space};
use pxvm_tests::needs;
use pxvm_tests::program::{IMAGE_SIZE, Image};
use pxvm_tests::qemu;

const BLOCKS: u32 = 400;
const SEEDS: u64 = 40;

/// RAM after our core has run the image to its end.
fn run_ours(image: &Image) -> Vec<u8> {
    let pages: Vec<[u8; 4096]> =
        image.bytes.chunks(4096).map(|p| p.try_into().expect("a page")).collect();
    let frames = Frames::new(&pages, pages.len() as u32);
    let table = (1..=pages.len() as u32).collect();
    let mut m = TestMachine::with_space(Space::new(&frames, table));
    for _ in 0..100 {
        let exit = m.run(1_000_000);
        match exit.code {
            ExitCode::Budget => {}
            ExitCode::PowerOff => return m.read(RAM, IMAGE_SIZE),
            _ => panic!("seed {}: {exit:?} at {:#x}", image.seed, m.vm.hart.pc),
        }
    }
    panic!("seed {}: does not end, pc {:#x}", image.seed, m.vm.hart.pc);
}

#[test]
fn random_programs_end_as_under_qemu() {
    let Some(version) = needs::found("qemu-system-riscv32", qemu::version()) else { return };
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let (first, count) = match number("PXVM_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("PXVM_SEEDS").unwrap_or(SEEDS)),
    };
    println!("{version}; seeds {first} to {}, {BLOCKS} blocks each", first + count - 1);
    let dir = tempfile::tempdir().expect("a temporary directory");
    for seed in first..first + count {
        let image = Image::new(seed, BLOCKS);
        let ours = run_ours(&image);
        let theirs = qemu::run(&image.bytes, dir.path()).expect("QEMU runs the image");
        if let Some(text) = image.difference(&ours, &theirs) {
            panic!("{text}PXVM_SEED={seed} runs this one again");
        }
    }
}

//! Loads and stores, aligned and not.

use pxvm_tests::asm::reg::*;
use pxvm_tests::machine::{DATA, RAM, RAM_SIZE, Sv32, pte, to_m};

use emu_core::mmu::Privilege;

use crate::TestMachine;

const LOAD_ACCESS: u32 = 5;
const STORE_ACCESS: u32 = 7;
const LOAD_PAGE: u32 = 13;
const STORE_PAGE: u32 = 15;

#[test]
fn loads_extend_as_their_names_say() {
    let mut m = TestMachine::program(|a| {
        a.lb(A0, 0, S0).lbu(A1, 0, S0).lh(A2, 0, S0).lhu(A3, 0, S0).lw(A4, 0, S0).lb(A5, 3, S0);
    });
    m.write_words(DATA, &[0x7fff_8180]).set_x(S0, DATA).run_out();
    assert_eq!(
        [A0, A1, A2, A3, A4, A5].map(|r| m.x(r)),
        [0xffff_ff80, 0x80, 0xffff_8180, 0x8180, 0x7fff_8180, 0x7f]
    );
}

#[test]
fn stores_change_their_bytes_only() {
    let mut m = TestMachine::program(|a| {
        a.li(A0, 0x1234_5678).sb(A0, 1, S0).sh(A0, 6, S0).sw(A0, 8, S0);
    });
    m.write_words(DATA, &[0xaaaa_aaaa; 4]).set_x(S0, DATA).run_out();
    let words = [0, 4, 8, 12].map(|at| m.word(DATA + at));
    assert_eq!(words, [0xaaaa_78aa, 0x5678_aaaa, 0x1234_5678, 0xaaaa_aaaa]);
}

#[test]
fn offsets_are_sign_extended_and_addresses_wrap() {
    let mut m = TestMachine::program(|a| {
        a.lw(A0, -4, S0).lw(A1, -2048, S1).li(S2, DATA.wrapping_sub(2047)).lw(A2, 2047, S2);
    });
    m.write_words(DATA, &[7]).set_x(S0, DATA + 4).set_x(S1, DATA + 2048).run_out();
    assert_eq!([A0, A1, A2].map(|r| m.x(r)), [7, 7, 7]);
}

#[test]
fn the_loaded_register_may_be_the_base() {
    let mut m = TestMachine::program(|a| {
        a.lw(A0, 0, A0);
    });
    m.write_words(DATA, &[9]).set_x(A0, DATA).run_out();
    assert_eq!(m.x(A0), 9);
}

#[test]
fn misaligned_accesses_work_inside_a_page() {
    let mut m = TestMachine::program(|a| {
        a.lw(A0, 1, S0).lhu(A1, 3, S0).lh(A2, 3, S0).sw(A3, 9, S0).sh(A3, 15, S0);
    });
    m.write_words(DATA, &[0x4433_2211, 0x8877_6685, 0, 0, 0]);
    m.set_x(S0, DATA).set_x(A3, 0xaabb_ccdd).run_out();
    assert_eq!([A0, A1, A2].map(|r| m.x(r)), [0x8544_3322, 0x8544, 0xffff_8544]);
    assert_eq!([8, 12, 16].map(|at| m.word(DATA + at)), [0xbbcc_dd00, 0xdd00_00aa, 0xcc]);
}

#[test]
fn misaligned_accesses_work_across_pages() {
    let mut m = TestMachine::program(|a| {
        a.lw(A0, -2, S0).lhu(A1, -1, S0).sw(A2, -3, S0).sh(A2, 0xfff - 0x800, S1);
    });
    m.write_words(DATA + 0xffc, &[0x2211_0000, 0x0000_4433]);
    m.set_x(S0, DATA + 0x1000).set_x(S1, DATA + 0x1800).set_x(A2, 0xaabb_ccdd).run_out();
    assert_eq!([A0, A1].map(|r| m.x(r)), [0x4433_2211, 0x3322]);
    assert_eq!([0xffc, 0x1000].map(|at| m.word(DATA + at)), [0xbbcc_dd00, 0x0000_44aa]);
    assert_eq!([0x1ffc, 0x2000].map(|at| m.word(DATA + at)), [0xdd00_0000, 0xcc]);
}

#[test]
fn a_misaligned_store_into_two_shared_frames_makes_both_private() {
    let mut m = TestMachine::program(|a| {
        a.sw(A0, -2, S0);
    });
    m.set_x(S0, DATA + 0x1000).set_x(A0, 0x4433_2211).run_out();
    assert!(m.is_private(DATA) && m.is_private(DATA + 0x1000));
    assert_eq!((m.word(DATA + 0xffc), m.word(DATA + 0x1000)), (0x2211_0000, 0x4433));
}

/// S-mode with RAM mapped to itself and two data pages at `VA`, the second with `bits`.
fn two_pages(bits: u32) -> TestMachine {
    let mut m = TestMachine::new();
    let mut tables = Sv32::new();
    tables.map_super(&mut m, RAM, RAM, pte::S_ALL);
    tables.map(&mut m, VA, DATA, pte::S_ALL).map(&mut m, VA + 0x1000, DATA + 0x5000, bits);
    tables.enable(&mut m, Privilege::Supervisor);
    m
}
const VA: u32 = 0x4000_0000;

#[test]
fn a_misaligned_store_writes_nothing_when_the_second_page_faults() {
    let mut m = two_pages(pte::V | pte::R | pte::A);
    m.load(|a| {
        a.sw(A0, -2, S0);
    });
    m.write_words(DATA + 0xffc, &[0x5555_5555]).set_x(S0, VA + 0x1000).set_x(A0, u32::MAX);
    m.run_out();
    // "mtval is written with the [...] virtual address of the portion of the access that caused
    // the fault" (privileged 3.1.16)
    assert_eq!(m.taken(), to_m(STORE_PAGE, RAM, VA + 0x1000));
    assert_eq!((m.word(DATA + 0xffc), m.word(DATA + 0x5000)), (0x5555_5555, 0));
}

#[test]
fn a_misaligned_load_keeps_its_register_when_the_second_page_faults() {
    let mut m = two_pages(0);
    m.load(|a| {
        a.lw(A0, -1, S0);
    });
    m.set_x(S0, VA + 0x1000).set_x(A0, 77).run_out();
    assert_eq!(m.taken(), to_m(LOAD_PAGE, RAM, VA + 0x1000));
    assert_eq!(m.x(A0), 77);
}

#[test]
fn a_misaligned_access_uses_both_translations() {
    let mut m = two_pages(pte::S_ALL);
    m.load(|a| {
        a.sw(A0, -2, S0).lw(A1, -2, S0);
    });
    m.set_x(S0, VA + 0x1000).set_x(A0, 0x4433_2211).run_out();
    assert_eq!(m.x(A1), 0x4433_2211);
    assert_eq!((m.word(DATA + 0xffc), m.word(DATA + 0x5000)), (0x2211_0000, 0x4433));
}

#[test]
fn a_misaligned_access_across_the_end_of_ram_faults_and_writes_nothing() {
    let end = RAM + RAM_SIZE;
    let mut m = TestMachine::program(|a| {
        a.sw(A0, -2, S0);
    });
    m.set_x(S0, end).set_x(A0, u32::MAX).run_out();
    assert_eq!(m.taken().map(|t| (t.cause, t.tval)), Some((STORE_ACCESS, end)));
    assert_eq!(m.word(end - 4), 0);
}

#[test]
fn accesses_without_memory_behind_are_access_faults() {
    let m = TestMachine::ran(|a| {
        a.li(S0, 0x7fff_fffc).lw(A0, 0, S0);
    });
    assert_eq!(m.taken(), to_m(LOAD_ACCESS, RAM + 8, 0x7fff_fffc));
    let m = TestMachine::ran(|a| {
        a.li(S0, RAM + RAM_SIZE).sb(A0, 0, S0);
    });
    assert_eq!(m.taken(), to_m(STORE_ACCESS, RAM + 4, RAM + RAM_SIZE));
}

#[test]
fn misaligned_device_accesses_are_access_faults() {
    let m = TestMachine::ran(|a| {
        a.li(S0, 0x1000_0000).lw(A0, 1, S0);
    });
    assert_eq!(m.taken(), to_m(LOAD_ACCESS, RAM + 4, 0x1000_0001));
    let m = TestMachine::ran(|a| {
        a.li(S0, 0x1000_0000).sh(A0, 1, S0);
    });
    assert_eq!(m.taken(), to_m(STORE_ACCESS, RAM + 4, 0x1000_0001));
}

// "LBU [loads] 8-bit values [...] zero-extended" (unprivileged 2.6): also from a register that is
// wider.
#[test]
fn narrow_loads_from_wide_registers_are_extended() {
    let mut m = TestMachine::program(|a| {
        a.li(S0, 0x0200_4000).lbu(A0, 0, S0).lhu(A1, 0, S0).lb(A2, 0, S0).lh(A3, 0, S0);
    });
    m.vm.platform.clock.set_timecmp(0x1234_5688_9abc);
    m.run_out();
    assert_eq!(m.x(A0), 0xbc);
    assert_eq!(m.x(A1), 0x9abc);
    assert_eq!(m.x(A2), 0xffff_ffbc);
    assert_eq!(m.x(A3), 0xffff_9abc);
}

#[test]
fn narrow_stores_hand_devices_their_bytes_only() {
    // A byte of 0x5555 is not the word that ends the machine.
    let mut m = TestMachine::program(|a| {
        a.li(A0, 0x5555).li(S0, 0x10_0000).sb(A0, 0, S0).li(A1, 1);
    });
    m.run_out();
    assert_eq!(m.x(A1), 1);
}

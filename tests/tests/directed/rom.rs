//! The ROM: shared frames beside RAM that are read and executed, and never written. Its physical
//! memory attributes (privileged 3.6) are those of main memory without writes, atomics that write,
//! and page tables.

use std::rc::Rc;

use pxvm_tests::asm::{Asm, csr::*, reg::*};
use pxvm_tests::machine::{DATA, RAM, ROM, Sv32, pte, to_m};
use pxvm_tests::memory::Frames;

use emu_core::mem::FRAME_SIZE;
use emu_core::mmu::Privilege::{self, Supervisor, User};
use emu_core::sbi::eid;

use crate::TestMachine;

const INSN_ACCESS: u32 = 1;
const LOAD_ACCESS: u32 = 5;
const STORE_MISALIGNED: u32 = 6;
const STORE_ACCESS: u32 = 7;
const STORE_PAGE: u32 = 15;
/// SBI_ERR_INVALID_PARAM.
const INVALID_PARAM: i32 = -3;

/// Pages of the ROM in these tests: one with a program, one of `0x11`, one of zeros.
const PAGES: u32 = 3;

/// Frames with `f`'s program in the first of the ROM's pages.
fn frames(f: impl FnOnce(&mut Asm)) -> Rc<Frames> {
    let mut text = [0; FRAME_SIZE as usize];
    let words = Asm::build(ROM, f);
    for (to, word) in text.as_chunks_mut().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
    Frames::new(&[text, [0x11; FRAME_SIZE as usize]], 32)
}

/// A machine over them that is about to execute `f` in RAM, `s0` at the ROM's second page.
fn over(frames: &Rc<Frames>, f: impl FnOnce(&mut Asm)) -> TestMachine {
    let mut m = TestMachine::with_rom(frames, Vec::new(), vec![1, 2, 0]);
    m.load(f).set_x(S0, ROM + 0x1000).set_x(S1, DATA);
    m
}

fn ran(f: impl FnOnce(&mut Asm)) -> TestMachine {
    let mut m = over(&frames(|_| {}), f);
    m.run_out();
    m
}

#[test]
fn loads_of_every_size_read_it_and_copy_nothing() {
    let frames = frames(|_| {});
    let mut m = over(&frames, |a| {
        a.lb(A0, 3, S0).lhu(A1, 6, S0).lw(A2, 8, S0).lw(A3, 1, S0).lw(A4, -2, S0).lw(A5, 0, S0);
        a.lw(A6, 0, S1);
    });
    let before = frames.private_in_use();
    m.set_x(S1, ROM + 2 * FRAME_SIZE).run_out();
    // The page before is zero behind its (empty) program.
    let expected = [0x11, 0x1111, 0x1111_1111, 0x1111_1111, 0x1111_0000, 0x1111_1111, 0];
    assert_eq!([A0, A1, A2, A3, A4, A5, A6].map(|r| m.x(r)), expected);
    assert_eq!((m.taken(), frames.private_in_use()), (None, before));
}

#[test]
fn every_way_to_write_it_is_a_store_access_fault() {
    let image = frames(|_| {}).shared_bytes();
    let writes: [fn(&mut Asm); 8] = [
        |a| {
            a.sb(A0, 8, S0);
        },
        |a| {
            a.sh(A0, 8, S0);
        },
        |a| {
            a.sw(A0, 8, S0);
        },
        |a| {
            a.sw(A0, 9, S0);
        },
        |a| {
            a.addi(S0, S0, 8).amoswap_w(A1, A0, S0);
        },
        |a| {
            a.addi(S0, S0, 8).sc_w(A1, A0, S0);
        },
        // Also when it was read just before, and is in the TLB.
        |a| {
            a.lw(A1, 8, S0).sw(A0, 8, S0);
        },
        |a| {
            a.addi(S0, S0, 8).lr_w(A1, S0).sc_w(A1, A0, S0);
        },
    ];
    for (i, write) in writes.into_iter().enumerate() {
        let m = ran(write);
        let taken = m.taken().unwrap_or_else(|| panic!("write {i} passed"));
        let at = ROM + 0x1008 + u32::from(i == 3);
        assert_eq!((taken.cause, taken.tval), (STORE_ACCESS, at), "write {i}");
        assert!(m.frames().shared_bytes() == image, "write {i}");
    }
}

#[test]
fn a_store_across_its_edge_writes_neither_side() {
    // The last bytes of a page of RAM, mapped in front of the ROM.
    let mut m = over(&frames(|_| {}), |a| {
        a.sw(A0, -2, S0);
    });
    let mut tables = Sv32::new();
    tables.map_super(&mut m, RAM, RAM, pte::S_ALL);
    tables.map(&mut m, 0x4000_0000, DATA, pte::S_ALL);
    tables.map(&mut m, 0x4000_1000, ROM + 0x1000, pte::S_ALL);
    m.set_x(S0, 0x4000_1000).set_x(A0, u32::MAX);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.taken(), to_m(STORE_ACCESS, RAM, 0x4000_1000));
    assert_eq!(m.word(DATA + 0xffc), 0);
}

#[test]
fn lr_reads_it_as_a_load_does() {
    let m = ran(|a| {
        a.lr_w(A0, S0);
    });
    assert_eq!((m.taken(), m.x(A0)), (None, 0x1111_1111));
}

#[test]
fn a_misaligned_atomic_is_misaligned_there_too() {
    let m = ran(|a| {
        a.addi(S0, S0, 2).amoadd_w(A0, A1, S0);
    });
    assert_eq!(m.taken(), to_m(STORE_MISALIGNED, RAM + 4, ROM + 0x1002));
}

#[test]
fn programs_run_from_it_for_all_machines_at_once() {
    let frames = frames(|a| {
        a.addi(A0, A0, 1).sw(A0, 0, S1).lw(A1, 0, S0).stop();
    });
    let mut machines = [5, 6].map(|n| {
        let mut m = over(&frames, |_| {});
        m.set_x(A0, n).vm.hart.pc = ROM;
        m
    });
    for m in &mut machines {
        m.run(100);
    }
    let [a, b] = &mut machines;
    assert_eq!((a.word(DATA), b.word(DATA), a.x(A1)), (6, 7, 0x1111_1111));
}

fn mapped(privilege: Privilege, bits: u32, f: impl FnOnce(&mut Asm)) -> TestMachine {
    let frames = frames(|a| {
        a.addi(A0, A0, 1).ret();
    });
    let mut m = over(&frames, f);
    let mut tables = Sv32::new();
    let ram = if privilege == User { pte::U_ALL } else { pte::S_ALL };
    tables.map_super(&mut m, RAM, RAM, ram);
    tables.map(&mut m, 0x4000_0000, ROM, bits);
    m.set_x(S0, 0x4000_0000).set_x(A0, 7);
    tables.enable(&mut m, privilege);
    m.run_out();
    m
}

#[test]
fn translated_pages_of_it_are_read_and_executed() {
    for (privilege, user) in [(User, pte::U), (Supervisor, 0)] {
        let m = mapped(privilege, pte::V | pte::R | pte::X | user, |a| {
            a.lw(A1, 0, S0).jalr(RA, 0, S0).jalr(RA, 0, S0);
        });
        assert_eq!((m.taken(), m.x(A0)), (None, 9));
        assert_eq!(m.x(A1), 0x0015_0513);
    }
}

#[test]
fn the_page_table_speaks_before_the_rom() {
    let store = |bits| {
        mapped(User, bits | pte::U, |a| {
            a.sw(A0, 0, S0);
        })
    };
    assert_eq!(store(pte::V | pte::R).taken(), to_m(STORE_PAGE, RAM, 0x4000_0000));
    assert_eq!(store(pte::S_ALL).taken(), to_m(STORE_ACCESS, RAM, 0x4000_0000));
}

#[test]
fn page_tables_in_it_are_access_faults() {
    let mut m = over(&frames(|_| {}), |_| {});
    m.set_csr(SATP, 1 << 31 | ROM >> 12).enter(Supervisor).run_out();
    assert_eq!(m.taken(), to_m(INSN_ACCESS, RAM, RAM));
}

#[test]
fn behind_its_end_there_is_nothing() {
    let end = ROM + PAGES * FRAME_SIZE;
    let m = ran(|a| {
        a.li(S0, end).lw(A0, 0, S0);
    });
    assert_eq!(m.taken().map(|t| (t.cause, t.tval)), Some((LOAD_ACCESS, end)));
    let m = ran(|a| {
        a.li(S0, end).jalr(RA, 0, S0);
    });
    assert_eq!(m.taken(), to_m(INSN_ACCESS, end, end));
    let m = ran(|a| {
        a.li(S0, end - 2).lw(A0, 0, S0);
    });
    assert_eq!(m.taken().map(|t| (t.cause, t.tval)), Some((LOAD_ACCESS, end)));
}

#[test]
fn a_machine_without_one_has_nothing_there() {
    let mut m = TestMachine::program(|a| {
        a.lw(A0, 0, S0);
    });
    m.set_x(S0, ROM).run_out();
    assert_eq!(m.taken(), to_m(LOAD_ACCESS, RAM, ROM));
}

#[test]
fn devices_and_firmware_do_not_reach_it() {
    let mut m = over(&frames(|_| {}), |a| {
        a.ecall();
    });
    m.vm.boot_supervisor(RAM, 0, 0);
    // Debug console write of four bytes.
    m.set_x(A7, eid::DBCN).set_x(A6, 0).set_x(A0, 4).set_x(A1, ROM + 0x1000).set_x(A2, 0);
    m.run_out();
    assert_eq!((m.x(A0) as i32, m.port.output.is_empty()), (INVALID_PARAM, true));
}

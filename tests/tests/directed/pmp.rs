//! Physical memory protection (privileged 3.7). The granularity is one page.

use pxvm_tests::asm::{Asm, csr::*, reg::*};
use pxvm_tests::machine::{DATA, RAM, Sv32, TABLES, pte, to_m};

use emu_core::csr::mstatus;
use emu_core::mmu::Privilege::{self, Machine, Supervisor, User};

use crate::TestMachine;

const INSN_ACCESS: u32 = 1;
const LOAD_ACCESS: u32 = 5;
const STORE_ACCESS: u32 = 7;

const R: u32 = 1;
const W: u32 = 2;
const X: u32 = 4;
const TOR: u32 = 1 << 3;
const NAPOT: u32 = 3 << 3;
const L: u32 = 1 << 7;
const ALL_RAM: u32 = (RAM >> 2) | ((8 << 20) / 8 - 1);

/// `pmpaddr` of the page at `pa`.
const fn page(pa: u32) -> u32 {
    pa >> 2 | 0x1ff
}

/// Entry 0 is the page at `DATA` with permission `cfg`, entry 1 all of RAM with everything.
fn protected(cfg: u32, f: impl FnOnce(&mut Asm)) -> TestMachine {
    let mut m = TestMachine::program(f);
    m.set_csr(PMPADDR0, page(DATA)).set_csr(PMPADDR0 + 1, ALL_RAM);
    m.set_csr(PMPCFG0, cfg | (NAPOT | R | W | X) << 8).set_x(S0, DATA);
    m
}

/// Causes that a load, a store, and a jump to `DATA` end with. Zeros there are illegal.
fn causes(privilege: Privilege, cfg: u32) -> [Option<u32>; 3] {
    let run = |f: fn(&mut Asm)| {
        let mut m = protected(cfg, f);
        m.enter(privilege).run_out();
        m.taken().map(|t| {
            assert_eq!(t.tval & !0xfff, if t.cause == 2 { 0 } else { DATA });
            t.cause
        })
    };
    let load = |a: &mut Asm| {
        a.lw(A0, 4, S0);
    };
    let store = |a: &mut Asm| {
        a.sw(ZERO, 4, S0);
    };
    let fetch = |a: &mut Asm| {
        a.jalr(ZERO, 0, S0);
    };
    [run(load), run(store), run(fetch)]
}

const ILLEGAL: Option<u32> = Some(2);

#[test]
fn permission_is_per_access() {
    for privilege in [User, Supervisor] {
        let c = |cfg| causes(privilege, NAPOT | cfg);
        assert_eq!(c(0), [Some(LOAD_ACCESS), Some(STORE_ACCESS), Some(INSN_ACCESS)]);
        assert_eq!(c(R), [None, Some(STORE_ACCESS), Some(INSN_ACCESS)]);
        assert_eq!(c(R | W), [None, None, Some(INSN_ACCESS)]);
        assert_eq!(c(X), [Some(LOAD_ACCESS), Some(STORE_ACCESS), ILLEGAL]);
    }
}

#[test]
fn machine_mode_is_bound_by_locked_entries_only() {
    assert_eq!(causes(Machine, NAPOT), [None, None, ILLEGAL]);
    let locked = causes(Machine, NAPOT | L | R);
    assert_eq!(locked, [None, Some(STORE_ACCESS), Some(INSN_ACCESS)]);
}

#[test]
fn mprv_is_checked_as_the_mode_it_stands_for() {
    let mut m = protected(NAPOT, |a| {
        a.lw(A0, 0, S0);
    });
    m.set_csr(MSTATUS, mstatus::MPRV).run_out();
    assert_eq!(m.taken(), to_m(LOAD_ACCESS, RAM, DATA));
}

#[test]
fn the_lowest_entry_decides() {
    // The page is also in entry 1, which allows everything.
    assert_eq!(causes(User, NAPOT)[0], Some(LOAD_ACCESS));
    assert_eq!(causes(User, 0)[0], None);
}

#[test]
fn without_a_matching_entry_lower_modes_are_refused() {
    let mut m = TestMachine::program(|a| {
        a.li(S0, 0x1000_0000).lbu(A0, 5, S0);
    });
    m.set_csr(PMPADDR0, ALL_RAM).set_csr(PMPCFG0, NAPOT | R | W | X).enter(Supervisor).run_out();
    assert_eq!(m.taken().map(|t| (t.cause, t.tval)), Some((LOAD_ACCESS, 0x1000_0005)));
}

#[test]
fn tor_reaches_from_the_entry_below_to_its_own_address() {
    let mut m = TestMachine::program(|a| {
        a.lw(A0, 0, S0).lw(A1, -4, S1).lw(A2, 0, S1);
    });
    m.set_csr(PMPADDR0, RAM >> 2).set_csr(PMPADDR0 + 1, (DATA + 0x2000) >> 2);
    m.set_csr(PMPCFG0, (TOR | R | X) << 8);
    m.set_x(S0, DATA).set_x(S1, DATA + 0x2000).enter(User).run_out();
    assert_eq!(m.taken(), to_m(LOAD_ACCESS, RAM + 8, DATA + 0x2000));
}

#[test]
fn changes_take_effect_at_once() {
    let mut m = protected(NAPOT | R | W, |a| {
        a.lw(A0, 0, S0).csrrw(ZERO, PMPCFG0, ZERO).csrrw(ZERO, PMPCFG0, A1).lw(A0, 0, S0);
    });
    // M-mode through MPRV, so that it may write PMP registers in between.
    m.set_csr(MSTATUS, mstatus::MPRV).set_x(A1, NAPOT | (NAPOT | R) << 8).run_out();
    assert_eq!(m.taken(), to_m(LOAD_ACCESS, RAM + 12, DATA));
}

#[test]
fn locked_entries_cannot_be_written() {
    let mut m = protected(NAPOT | R | L, |_| {});
    let (cfg, addr) = (m.csr(PMPCFG0), m.csr(PMPADDR0));
    m.set_csr(PMPCFG0, 0).set_csr(PMPADDR0, 0);
    assert_eq!((m.csr(PMPCFG0), m.csr(PMPADDR0)), (cfg & 0xff, addr));
}

// "if pmpicfg.A is set to TOR [and locked], writes to pmpaddr(i-1) are ignored" (3.7.1.2)
#[test]
fn a_locked_tor_entry_locks_the_address_below() {
    let mut m = TestMachine::new();
    m.set_csr(PMPADDR0, RAM >> 2).set_csr(PMPADDR0 + 1, DATA >> 2);
    m.set_csr(PMPCFG0, (TOR | L | R) << 8).set_csr(PMPADDR0, 0);
    assert_eq!(m.csr(PMPADDR0), RAM >> 2);
}

#[test]
fn the_granularity_is_found_as_the_specification_says() {
    // "writing zero to pmp0cfg, then writing all ones to pmpaddr0, then reading back pmpaddr0"
    let mut m = TestMachine::new();
    m.set_csr(PMPCFG0, 0).set_csr(PMPADDR0, u32::MAX);
    assert_eq!(m.csr(PMPADDR0), 0xffff_fc00);
}

#[test]
fn na4_is_not_selectable_at_this_granularity() {
    let mut m = TestMachine::new();
    m.set_csr(PMPCFG0, 0).set_csr(PMPCFG0, 2 << 3 | R);
    assert_eq!(m.csr(PMPCFG0) >> 3 & 3, 0);
}

#[test]
fn a_misaligned_access_needs_permission_for_both_pages() {
    let mut m = protected(NAPOT | R, |a| {
        a.sw(A0, -2, S0);
    });
    m.set_x(A0, u32::MAX).enter(User).run_out();
    assert_eq!(m.taken(), to_m(STORE_ACCESS, RAM, DATA));
    assert_eq!(m.word(DATA - 4), 0);
}

// "PMP checks are also applied to page-table accesses for virtual-address translation, for which
// the effective privilege mode is S." (3.7)
#[test]
fn page_tables_are_protected_as_supervisor_reads() {
    let run = |cfg: u32| {
        let mut m = TestMachine::program(|a| {
            a.lw(A0, 0, S0);
        });
        let mut tables = Sv32::new();
        tables.map_super(&mut m, RAM, RAM, pte::S_ALL);
        m.set_csr(PMPADDR0, page(TABLES)).set_csr(PMPADDR0 + 1, ALL_RAM);
        m.set_csr(PMPCFG0, cfg | (NAPOT | R | W | X) << 8).set_x(S0, DATA);
        tables.enable(&mut m, Supervisor);
        m.run_out();
        m.taken().map(|t| t.cause)
    };
    assert_eq!(run(NAPOT), Some(INSN_ACCESS));
    assert_eq!(run(NAPOT | R), None);
}

#[test]
fn setting_a_bit_in_a_page_table_needs_write_permission() {
    let mut m = TestMachine::program(|a| {
        a.lw(A0, 0, S0);
    });
    let mut tables = Sv32::new();
    tables.map_super(&mut m, RAM, RAM, pte::S_ALL);
    tables.map_super(&mut m, 0x4000_0000, RAM, pte::V | pte::R);
    m.set_csr(PMPADDR0, page(TABLES)).set_csr(PMPADDR0 + 1, ALL_RAM);
    m.set_csr(PMPCFG0, NAPOT | R | (NAPOT | R | W | X) << 8).set_x(S0, 0x4000_0000);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.taken(), to_m(LOAD_ACCESS, RAM, 0x4000_0000));
    assert_eq!(m.word(Sv32::root_entry(0x4000_0000)) & pte::A, 0);
}

// "If no PMP entry matches an S-mode or U-mode access, but at least one PMP entry is implemented,
// the access fails." (3.7.1.3)
#[test]
fn with_every_entry_off_lower_modes_can_do_nothing() {
    let mut m = TestMachine::program(|a| {
        a.nop();
    });
    m.set_csr(PMPCFG0, 0).enter(Supervisor).run_out();
    assert_eq!(m.taken(), to_m(INSN_ACCESS, RAM, RAM));
}

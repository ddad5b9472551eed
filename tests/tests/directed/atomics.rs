//! RV32A.

use pxvm_tests::asm::{Asm, Reg, reg::*};
use pxvm_tests::machine::{DATA, RAM, Sv32, pte, to_m};

use emu_core::mmu::Privilege;
use emu_core::sbi::eid;

use crate::TestMachine;

type Amo = fn(&mut Asm, Reg, Reg, Reg) -> &mut Asm;

const LOAD_MISALIGNED: u32 = 4;
const STORE_MISALIGNED: u32 = 6;
const STORE_ACCESS: u32 = 7;
const LOAD_ACCESS: u32 = 5;
const STORE_PAGE: u32 = 15;

/// Result register and memory of an AMO on `old` with `operand`.
fn amo(op: Amo, old: u32, operand: u32) -> (u32, u32) {
    let mut m = TestMachine::program(|a| {
        op(a, A0, A1, S0);
    });
    m.write_words(DATA, &[old]).set_x(S0, DATA).set_x(A1, operand).run_out();
    (m.x(A0), m.word(DATA))
}

#[test]
fn amos_return_the_old_value_and_store_the_result() {
    let minus_1 = u32::MAX;
    assert_eq!(amo(Asm::amoswap_w, 3, 5), (3, 5));
    assert_eq!(amo(Asm::amoadd_w, minus_1, 2), (minus_1, 1));
    assert_eq!(amo(Asm::amoxor_w, 0b1100, 0b1010), (0b1100, 0b0110));
    assert_eq!(amo(Asm::amoand_w, 0b1100, 0b1010), (0b1100, 0b1000));
    assert_eq!(amo(Asm::amoor_w, 0b1100, 0b1010), (0b1100, 0b1110));
}

#[test]
fn min_and_max_compare_signed_minu_and_maxu_unsigned() {
    let minus_1 = u32::MAX;
    assert_eq!(amo(Asm::amomin_w, 1, minus_1).1, minus_1);
    assert_eq!(amo(Asm::amomax_w, 1, minus_1).1, 1);
    assert_eq!(amo(Asm::amominu_w, 1, minus_1).1, 1);
    assert_eq!(amo(Asm::amomaxu_w, 1, minus_1).1, minus_1);
}

#[test]
fn an_amo_reads_its_operand_before_it_writes_rd() {
    let mut m = TestMachine::program(|a| {
        a.amoadd_w(A1, A1, S0).amoadd_w(S0, A1, S0);
    });
    m.write_words(DATA, &[10]).set_x(S0, DATA).set_x(A1, 5).run_out();
    assert_eq!((m.x(A1), m.x(S0), m.word(DATA)), (10, 15, 25));
}

#[test]
fn acquire_and_release_bits_change_nothing() {
    let mut m = TestMachine::program(|a| {
        // amoadd.w.aqrl, lr.w.aqrl, sc.w.rl
        a.word(0x06b4_252f).word(0x1604_262f).word(0x1ab4_26af);
    });
    m.write_words(DATA, &[10]).set_x(S0, DATA).set_x(A1, 5).run_out();
    assert_eq!((m.x(A0), m.x(A2), m.x(A3), m.word(DATA)), (10, 15, 0, 5));
}

// "If the address is not naturally aligned, an address-misaligned exception or an access-fault
// exception will be generated." (unprivileged 14.2, 14.4)
#[test]
fn misaligned_atomics_trap_and_write_nothing() {
    let run = |f: fn(&mut Asm)| {
        let mut m = TestMachine::program(f);
        m.write_words(DATA, &[1, 2]).set_x(S0, DATA + 2).set_x(A1, 5).run_out();
        assert_eq!((m.word(DATA), m.word(DATA + 4), m.x(A0)), (1, 2, 0));
        m.taken().map(|t| (t.cause, t.epc, t.tval))
    };
    assert_eq!(
        run(|a| {
            a.amoadd_w(A0, A1, S0);
        }),
        Some((STORE_MISALIGNED, RAM, DATA + 2))
    );
    assert_eq!(
        run(|a| {
            a.sc_w(A0, A1, S0);
        }),
        Some((STORE_MISALIGNED, RAM, DATA + 2))
    );
    assert_eq!(
        run(|a| {
            a.lr_w(A0, S0);
        }),
        Some((LOAD_MISALIGNED, RAM, DATA + 2))
    );
}

#[test]
fn atomics_on_devices_are_access_faults() {
    let run = |f: fn(&mut Asm)| {
        let mut m = TestMachine::program(f);
        m.set_x(S0, 0x0200_4000).run_out();
        m.taken().map(|t| (t.cause, t.tval))
    };
    assert_eq!(
        run(|a| {
            a.amoswap_w(A0, A1, S0);
        }),
        Some((STORE_ACCESS, 0x0200_4000))
    );
    assert_eq!(
        run(|a| {
            a.lr_w(A0, S0);
        }),
        Some((LOAD_ACCESS, 0x0200_4000))
    );
}

// "AMOs [...] never raise [...] load [...] exceptions": an AMO without read or write permission
// is a store fault (privileged 10.3.2 and table 3.6).
#[test]
fn an_amo_on_a_page_that_cannot_be_read_is_a_store_page_fault() {
    let mut m = TestMachine::program(|a| {
        a.amoadd_w(A0, A1, S0);
    });
    let mut tables = Sv32::new();
    tables.map_super(&mut m, RAM, RAM, pte::S_ALL).map(&mut m, 0x4000_0000, DATA, 0);
    m.set_x(S0, 0x4000_0000);
    tables.enable(&mut m, Privilege::Supervisor);
    m.run_out();
    assert_eq!(m.taken(), to_m(STORE_PAGE, RAM, 0x4000_0000));
}

#[test]
fn sc_after_lr_succeeds_once() {
    let mut m = TestMachine::program(|a| {
        a.lr_w(A0, S0).sc_w(A2, A1, S0).li(A1, 9).sc_w(A3, A1, S0);
    });
    m.write_words(DATA, &[4]).set_x(S0, DATA).set_x(A1, 5).run_out();
    assert_eq!((m.x(A0), m.x(A2), m.x(A3), m.word(DATA)), (4, 0, 1, 5));
}

#[test]
fn sc_without_lr_fails_and_writes_nothing() {
    let mut m = TestMachine::program(|a| {
        a.sc_w(A2, A1, S0);
    });
    m.set_x(S0, DATA).set_x(A1, 5).run_out();
    assert_eq!((m.x(A2), m.word(DATA)), (1, 0));
}

#[test]
fn sc_to_another_address_fails_and_uses_the_reservation_up() {
    let mut m = TestMachine::program(|a| {
        a.lr_w(A0, S0).sc_w(A2, A1, S1).sc_w(A3, A1, S0);
    });
    m.set_x(S0, DATA).set_x(S1, DATA + 64).set_x(A1, 5).run_out();
    assert_eq!((m.x(A2), m.x(A3)), (1, 1));
    assert_eq!((m.word(DATA), m.word(DATA + 64)), (0, 0));
}

#[test]
fn a_second_lr_moves_the_reservation() {
    let mut m = TestMachine::program(|a| {
        a.lr_w(A0, S0).lr_w(A0, S1).sc_w(A2, A1, S0).lr_w(A0, S0).sc_w(A3, A1, S0);
    });
    m.set_x(S0, DATA).set_x(S1, DATA + 4).set_x(A1, 5).run_out();
    assert_eq!((m.x(A2), m.x(A3)), (1, 0));
}

#[test]
fn a_trap_between_lr_and_sc_drops_the_reservation() {
    let mut m = TestMachine::program(|a| {
        let handler = a.label();
        a.la(T0, handler).csrrw(ZERO, 0x305, T0);
        a.lr_w(A0, S0).ecall().sc_w(A2, A1, S0).stop();
        a.place(handler).csrr(T0, 0x341).addi(T0, T0, 4).csrrw(ZERO, 0x341, T0).mret();
    });
    m.set_x(S0, DATA).set_x(A1, 5).run_out();
    assert_eq!((m.x(A2), m.word(DATA)), (1, 0));
}

#[test]
fn xret_between_lr_and_sc_drops_the_reservation() {
    let mut m = TestMachine::program(|a| {
        let back = a.label();
        a.la(T0, back).csrrw(ZERO, 0x141, T0).li(T1, 0x100).csrrs(ZERO, 0x300, T1);
        a.lr_w(A0, S0).sret().place(back).sc_w(A2, A1, S0);
    });
    m.set_x(S0, DATA).set_x(A1, 5).run_out();
    assert_eq!((m.x(A2), m.word(DATA)), (1, 0));
}

// The reservation is on physical memory: after a change of what the virtual address means, the
// SC writes bytes that the LR did not reserve and "must fail" (unprivileged 14.2).
#[test]
fn a_reservation_does_not_follow_the_virtual_address_to_another_page() {
    let mut m = TestMachine::program(|a| {
        // M-mode; the LR goes through MPRV to the page that VA maps, the SC to VA itself.
        a.li(T0, 1 << 17).csrrs(ZERO, 0x300, T0);
        a.lr_w(A0, S0).csrrc(ZERO, 0x300, T0).sc_w(A2, A1, S0);
    });
    let mut tables = Sv32::new();
    tables.map(&mut m, DATA, DATA + 0x3000, pte::S_ALL);
    m.set_csr(0x180, Sv32::satp()).set_csr(0x300, 1 << 11);
    m.set_x(S0, DATA).set_x(A1, 5).run_out();
    assert_eq!((m.x(A2), m.word(DATA)), (1, 0));
}

/// S-mode with a page at `VA`, an LR to it, `between`, and an SC to it.
fn reserves_across(between: impl FnOnce(&mut Asm)) -> TestMachine {
    let mut m = TestMachine::program(|a| {
        a.lr_w(A0, S0);
        between(a);
        a.sc_w(A2, A1, S0);
    });
    let mut tables = Sv32::new();
    tables.map_super(&mut m, RAM, RAM, pte::S_ALL).map(&mut m, VA, DATA, pte::S_ALL);
    let entry = tables.entry(&mut m, VA);
    m.set_x(S0, VA).set_x(A1, 9).set_x(S1, entry).set_x(S2, pte::leaf(OTHER.into(), pte::S_ALL));
    tables.map(&mut m, EVICTS, DATA + 0x2000, pte::S_ALL);
    tables.enable(&mut m, Privilege::Supervisor);
    m
}

const VA: u32 = 0x4000_0000;
/// A page that has the same entries in both levels of the TLB as `VA`.
const EVICTS: u32 = VA + 0x104_1000;
/// Another page.
const OTHER: u32 = DATA + 0x1000;

/// Makes the TLB lose the translation of `VA`.
fn evicts(a: &mut Asm) {
    a.li(T0, EVICTS).lw(T1, 0, T0);
}

// The page table has changed without a fence, and the TLB has lost the old translation. So the SC is
// to bytes that the LR has not reserved, although they are equal.
#[test]
fn sc_fails_when_its_address_stands_for_another_page_now() {
    for private in [false, true] {
        let mut m = reserves_across(|a| {
            a.sw(S2, 0, S1);
            evicts(a);
        });
        if private {
            // Each page has a frame of its own; else all share the zero page.
            m.write_words(DATA, &[4]).write_words(OTHER, &[4]);
        }
        m.run_out();
        assert_eq!((m.x(A2), m.is_private(DATA), private), (1, private, private));
        assert_eq!(m.word(OTHER), m.x(A0));
    }
}

#[test]
fn sc_succeeds_after_the_tlb_has_lost_its_page() {
    for written in [false, true] {
        let mut m = reserves_across(evicts);
        if written {
            m.write_words(DATA, &[4]);
        }
        m.run_out();
        assert_eq!((m.x(A2), m.word(DATA)), (0, 9));
    }
}

#[test]
fn a_store_beside_the_reserved_bytes_does_not_break_the_reservation() {
    // It gives the page, which is the shared zero page, a frame of its own.
    let mut m = reserves_across(|a| {
        a.sw(A1, 8, S0);
    });
    m.run_out();
    assert_eq!((m.x(A2), m.word(DATA), m.word(DATA + 8)), (0, 9, 9));
}

#[test]
fn a_store_to_the_reserved_bytes_breaks_the_reservation_even_by_another_address() {
    let mut m = reserves_across(|a| {
        a.li(T0, DATA).li(T1, 7).sw(T1, 0, T0);
    });
    m.run_out();
    assert_eq!((m.x(A2), m.word(DATA)), (1, 7));
}

#[test]
fn a_reservation_does_not_survive_that_its_page_is_unknown() {
    // The LR hits the TLB, whose entry the page table no longer has.
    let mut m = reserves_across(|_| {});
    m.load(|a| {
        a.lw(A0, 0, S0).sw(S2, 0, S1).lr_w(A0, S0);
        evicts(a);
        a.sc_w(A2, A1, S0);
    });
    m.write_words(OTHER, &[4]).run_out();
    assert_eq!((m.x(A2), m.word(OTHER), m.word(DATA)), (1, 4, 0));
}

// "An SC must fail if a write from some other device to the bytes accessed by the LR can be observed
// to occur between the LR and SC." (unprivileged 14.2)
#[test]
fn console_input_written_by_firmware_between_lr_and_sc_breaks_the_reservation() {
    let mut m = TestMachine::supervisor(|a| {
        a.lr_w(T0, S0);
        a.li(A7, eid::DBCN).li(A6, 1).li(A0, 4).mv(A1, S0).li(A2, 0).ecall();
        a.sc_w(S2, ZERO, S0);
    });
    m.port.input.extend(*b"abcd");
    m.set_x(S0, DATA).run_out();
    assert_eq!((m.x(S2), m.word(DATA)), (1, u32::from_le_bytes(*b"abcd")));
}

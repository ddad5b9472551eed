//! What is forbidden to whom: TVM, TW, TSR and the privileged instructions.

use pxvm_tests::asm::{Asm, csr::*, reg::*};
use pxvm_tests::machine::{RAM, to_m};

use emu_core::csr::mstatus;
use emu_core::mmu::Privilege::{self, Machine, Supervisor, User};

use crate::TestMachine;

const ILLEGAL: u32 = 2;

fn is_illegal(privilege: Privilege, status: u32, f: impl FnOnce(&mut Asm)) -> bool {
    let mut m = TestMachine::program(f);
    m.set_csr(MSTATUS, status).set_csr(SEPC, RAM + 4).set_csr(MEPC, RAM + 4);
    m.enter(privilege).run(10);
    let word = m.word(RAM);
    m.taken() == to_m(ILLEGAL, RAM, word)
}

#[test]
fn mret_is_for_machine_mode() {
    let run = |p| {
        is_illegal(p, 0, |a| {
            a.mret();
        })
    };
    assert_eq!([User, Supervisor, Machine].map(run), [true, true, false]);
}

#[test]
fn sret_is_for_supervisor_and_machine_mode() {
    let run = |p| {
        is_illegal(p, 0, |a| {
            a.sret();
        })
    };
    assert_eq!([User, Supervisor, Machine].map(run), [true, false, false]);
}

#[test]
fn tsr_takes_sret_from_supervisor_mode() {
    let run = |p| {
        is_illegal(p, mstatus::TSR, |a| {
            a.sret();
        })
    };
    assert_eq!([User, Supervisor, Machine].map(run), [true, true, false]);
}

// "When S-mode is implemented, then executing WFI in U-mode causes an illegal-instruction
// exception" (privileged 3.3.3)
#[test]
fn wfi_is_for_supervisor_and_machine_mode() {
    let run = |p| {
        is_illegal(p, 0, |a| {
            a.wfi();
        })
    };
    assert_eq!([User, Supervisor, Machine].map(run), [true, false, false]);
}

#[test]
fn tw_takes_wfi_from_supervisor_mode() {
    let run = |p| {
        is_illegal(p, mstatus::TW, |a| {
            a.wfi();
        })
    };
    assert_eq!([User, Supervisor, Machine].map(run), [true, true, false]);
}

#[test]
fn sfence_vma_is_for_supervisor_and_machine_mode() {
    let run = |p| {
        is_illegal(p, 0, |a| {
            a.sfence_vma(A0, A1);
        })
    };
    assert_eq!([User, Supervisor, Machine].map(run), [true, false, false]);
}

#[test]
fn tvm_takes_sfence_vma_and_satp_from_supervisor_mode() {
    let fence = |p| {
        is_illegal(p, mstatus::TVM, |a| {
            a.sfence_vma(ZERO, ZERO);
        })
    };
    let read = |p| {
        is_illegal(p, mstatus::TVM, |a| {
            a.csrr(A0, SATP);
        })
    };
    let write = |p| {
        is_illegal(p, mstatus::TVM, |a| {
            a.csrrw(ZERO, SATP, ZERO);
        })
    };
    assert_eq!([Supervisor, Machine].map(fence), [true, false]);
    assert_eq!([Supervisor, Machine].map(read), [true, false]);
    assert_eq!([Supervisor, Machine].map(write), [true, false]);
}

#[test]
fn fences_of_instructions_and_memory_are_for_all() {
    assert!(!is_illegal(User, 0, |a| {
        a.fence_i().fence();
    }));
}

#[test]
fn counters_need_mcounteren_and_in_user_mode_scounteren_too() {
    let allowed = |privilege, m_enable, s_enable| {
        let mut m = TestMachine::program(|a| {
            a.csrr(A0, INSTRET);
        });
        m.set_csr(MCOUNTEREN, m_enable).set_csr(SCOUNTEREN, s_enable);
        m.enter(privilege).run(10);
        m.taken().is_none()
    };
    const IR: u32 = 4;
    assert!(allowed(Machine, 0, 0));
    assert!(!allowed(Supervisor, 0, IR) && allowed(Supervisor, IR, 0));
    assert!(!allowed(User, IR, 0) && !allowed(User, 0, IR) && allowed(User, IR, IR));
    assert!(!allowed(Supervisor, !IR, 0));
}

#[test]
fn counters_that_do_not_exist_cannot_be_enabled() {
    let mut m = TestMachine::new();
    m.set_csr(MCOUNTEREN, u32::MAX).set_csr(SCOUNTEREN, u32::MAX);
    assert_eq!((m.csr(MCOUNTEREN), m.csr(SCOUNTEREN)), (7, 7));
    m.load(|a| {
        a.csrr(A0, HPMCOUNTER3);
    });
    m.enter(Supervisor).run(10);
    assert_eq!(m.taken().map(|t| t.cause), Some(ILLEGAL));
}

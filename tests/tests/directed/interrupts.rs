//! Interrupts: who takes which, in what order, and when.

use pxvm_tests::asm::{csr::*, reg::*};
use pxvm_tests::machine::{M_HANDLER, RAM, S_HANDLER, to_m, to_s};

use emu_core::csr::{irq, mstatus};
use emu_core::mmu::Privilege::{Machine, Supervisor, User};

use crate::TestMachine;

const INTERRUPT: u32 = 1 << 31;
const SSI: u32 = 1;
const MSI: u32 = 3;
const STI: u32 = 5;
const MTI: u32 = 7;
const SEI: u32 = 9;

/// A machine at the start of a program that does nothing, all interrupts enabled by `mie`.
fn quiet() -> TestMachine {
    let mut m = TestMachine::program(|a| {
        a.nop();
    });
    m.set_csr(MIE, irq::ALL);
    m
}

#[test]
fn a_pending_interrupt_is_taken_before_the_first_instruction() {
    let mut m = quiet();
    m.set_csr(MSTATUS, mstatus::MIE).set_csr(MIP, irq::SSI).run(0);
    assert_eq!(m.taken(), to_m(INTERRUPT | SSI, RAM, 0));
    assert_eq!(m.vm.platform.clock.retired, 0);
}

#[test]
fn machine_mode_without_mie_takes_none() {
    let mut m = quiet();
    m.set_csr(MIP, irq::S_ALL).run_out();
    assert_eq!(m.taken(), None);
}

#[test]
fn an_interrupt_that_mie_masks_is_not_taken() {
    let mut m = quiet();
    m.set_csr(MIE, irq::ALL & !irq::SSI).set_csr(MSTATUS, mstatus::MIE).set_csr(MIP, irq::SSI);
    m.run_out();
    assert_eq!(m.taken(), None);
}

// "interrupts for higher-privilege modes, y>x, are always globally enabled regardless of the
// setting of the global yIE bit" (privileged 3.1.6.1)
#[test]
fn lower_modes_are_interrupted_for_machine_mode_without_mie() {
    for privilege in [User, Supervisor] {
        let mut m = quiet();
        m.set_csr(MIP, irq::STI).enter(privilege).run_out();
        assert_eq!(m.taken(), to_m(INTERRUPT | STI, RAM, 0));
    }
}

#[test]
fn delegated_interrupts_wait_while_in_machine_mode() {
    let mut m = quiet();
    m.set_csr(MIDELEG, irq::S_ALL).set_csr(MSTATUS, mstatus::MIE | mstatus::SIE);
    m.set_csr(MIP, irq::S_ALL).run_out();
    assert_eq!(m.taken(), None);
}

#[test]
fn supervisor_needs_sie_for_delegated_interrupts() {
    let mut m = quiet();
    m.set_csr(MIDELEG, irq::S_ALL).set_csr(MIP, irq::STI).enter(Supervisor).run_out();
    assert_eq!(m.taken(), None);
    m.set_csr(MSTATUS, mstatus::SIE).run_out();
    assert_eq!(m.taken().map(|t| (t.to, t.cause)), Some((Supervisor, INTERRUPT | STI)));
    assert_eq!(m.csr(SSTATUS) & (mstatus::SIE | mstatus::SPIE), mstatus::SPIE);
}

#[test]
fn user_mode_is_interrupted_for_supervisor_without_sie() {
    let mut m = quiet();
    m.set_csr(MIDELEG, irq::S_ALL).set_csr(MIP, irq::SSI).enter(User).run_out();
    assert_eq!(m.taken(), to_s(INTERRUPT | SSI, RAM, 0));
}

// "Multiple simultaneous interrupts destined for M-mode are handled in the following decreasing
// priority order: MEI, MSI, MTI, SEI, SSI, STI" (privileged 3.1.9)
#[test]
fn simultaneous_interrupts_come_by_priority() {
    let mut m = quiet();
    m.set_csr(MIP, irq::S_ALL).set_csr(MSTATUS, mstatus::MIE);
    m.vm.platform.dev.clint.msip = 1;
    m.vm.platform.clock.set_timecmp(0);
    let mut order = Vec::new();
    for _ in 0..5 {
        m.run(0);
        let cause = m.csr(MCAUSE) & !INTERRUPT;
        order.push(cause);
        // The handler masks what it has seen and lets the next one in.
        let rest = m.csr(MIE) & !(1 << cause);
        m.set_csr(MIE, rest).set_csr(MSTATUS, mstatus::MIE);
    }
    assert_eq!(order, [MSI, MTI, SEI, SSI, STI]);
}

#[test]
fn machine_interrupts_come_before_delegated_ones() {
    let mut m = quiet();
    m.set_csr(MIDELEG, irq::SEI).set_csr(MIP, irq::SEI | irq::STI).enter(User).run(0);
    assert_eq!(m.taken().map(|t| (t.to, t.cause)), Some((Machine, INTERRUPT | STI)));
}

#[test]
fn interrupts_spread_over_a_vectored_table() {
    let mut m = quiet();
    m.set_csr(MTVEC, M_HANDLER | 1).set_csr(MIP, irq::SEI).enter(User).run(0);
    assert_eq!(m.vm.hart.pc, M_HANDLER + 4 * SEI);
    let mut m = quiet();
    m.set_csr(STVEC, S_HANDLER | 1).set_csr(MIDELEG, irq::STI).set_csr(MIP, irq::STI);
    m.enter(User).run(0);
    assert_eq!(m.vm.hart.pc, S_HANDLER + 4 * STI);
}

#[test]
fn enabling_interrupts_takes_a_pending_one_at_once() {
    let mut m = TestMachine::program(|a| {
        a.csrrsi(ZERO, MSTATUS, 8).li(A0, 1);
    });
    m.set_csr(MIE, irq::ALL).set_csr(MIP, irq::SSI).run_out();
    assert_eq!(m.taken(), to_m(INTERRUPT | SSI, RAM + 4, 0));
    assert_eq!(m.x(A0), 0);
}

#[test]
fn setting_the_enable_bit_takes_a_pending_one_at_once() {
    let mut m = TestMachine::program(|a| {
        a.csrrsi(ZERO, MIE, 2).li(A0, 1);
    });
    m.set_csr(MSTATUS, mstatus::MIE).set_csr(MIP, irq::SSI).run_out();
    assert_eq!(m.taken(), to_m(INTERRUPT | SSI, RAM + 4, 0));
}

#[test]
fn software_interrupts_itself_through_mip_and_clint() {
    let mut m = TestMachine::program(|a| {
        a.csrrsi(ZERO, MIP, 2).nop();
    });
    m.set_csr(MIE, irq::ALL).set_csr(MSTATUS, mstatus::MIE).run_out();
    assert_eq!(m.taken(), to_m(INTERRUPT | SSI, RAM + 4, 0));

    let mut m = TestMachine::program(|a| {
        a.li(A0, 1).li(S0, 0x0200_0000).sw(A0, 0, S0).nop();
    });
    m.set_csr(MIE, irq::ALL).set_csr(MSTATUS, mstatus::MIE).run_out();
    assert_eq!(m.taken(), to_m(INTERRUPT | MSI, RAM + 12, 0));
}

#[test]
fn returning_to_a_lower_mode_takes_what_waited() {
    let mut m = TestMachine::program(|a| {
        a.li(T0, RAM + 0x100).csrrw(ZERO, MEPC, T0).mret();
    });
    m.set_csr(MIE, irq::ALL).set_csr(MIP, irq::SSI).run_out();
    assert_eq!(m.taken(), to_m(INTERRUPT | SSI, RAM + 0x100, 0));
}

#[test]
fn the_external_interrupt_bit_is_the_line_or_what_software_set() {
    let mut m = quiet();
    m.set_csr(MIP, irq::SEI);
    assert_eq!(m.csr(MIP), irq::SEI);
    m.vm.platform.csr.mip_hardware = irq::SEI;
    m.set_csr(MIP, 0);
    assert_eq!(m.csr(MIP), irq::SEI);
}

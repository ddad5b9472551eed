//! Exceptions: causes, values, delegation, and the stacks of privilege and interrupt enable.

use pxvm_tests::asm::{Asm, csr::*, reg::*};
use pxvm_tests::machine::{DATA, M_HANDLER, RAM, S_HANDLER, Sv32, pte, to_m, to_s};

use emu_core::abi::{Exit, ExitCode, FaultCode};
use emu_core::clock::Now;
use emu_core::csr::{irq, mstatus};
use emu_core::insn::{Format, ROWS};
use emu_core::mmu::Privilege::{self, Machine, Supervisor, User};
use emu_core::trap::TakenTrap;

use crate::TestMachine;

const ILLEGAL: u32 = 2;
const BREAKPOINT: u32 = 3;
const ECALL_U: u32 = 8;
const ECALL_S: u32 = 9;
const ECALL_M: u32 = 11;

fn ran_in(privilege: Privilege, f: impl FnOnce(&mut Asm)) -> TestMachine {
    let mut m = TestMachine::program(f);
    m.enter(privilege).run_out();
    m
}

#[test]
fn ecall_names_the_mode_it_comes_from() {
    for (privilege, cause) in [(User, ECALL_U), (Supervisor, ECALL_S), (Machine, ECALL_M)] {
        let m = ran_in(privilege, |a| {
            a.nop().ecall();
        });
        assert_eq!(m.taken(), to_m(cause, RAM + 4, 0));
    }
}

#[test]
fn ebreak_reports_its_own_address() {
    let m = ran_in(Machine, |a| {
        a.nop().ebreak();
    });
    assert_eq!(m.taken(), to_m(BREAKPOINT, RAM + 4, RAM + 4));
}

#[test]
fn illegal_instructions_report_themselves() {
    // Zero, ones, a compressed instruction, a 64-bit load, slli by 32, an atomic doubleword, a
    // floating-point load, sfence.vma with rd, mret with rs1.
    for word in [
        0,
        u32::MAX,
        0x0000_4501,
        0x0000_3003,
        0x0200_1013,
        0x0000_302f,
        0x0000_2007,
        0x1200_00f3,
        0x3020_8073,
    ] {
        let m = ran_in(Machine, |a| {
            a.word(word);
        });
        assert_eq!(m.taken(), to_m(ILLEGAL, RAM, word));
    }
}

#[test]
fn an_exception_changes_no_register_and_does_not_retire() {
    let mut m = TestMachine::program(|a| {
        a.nop().word(0);
    });
    let before = m.vm.hart.x;
    m.run(2);
    assert_eq!(m.vm.hart.x, before);
    assert_eq!((m.vm.hart.pc, m.vm.platform.clock.retired), (M_HANDLER, 1));
}

#[test]
fn exceptions_go_where_medeleg_sends_them() {
    let mut m = TestMachine::program(|a| {
        a.ecall();
    });
    m.set_csr(MEDELEG, 1 << ECALL_U).enter(User).run_out();
    assert_eq!(m.taken(), to_s(ECALL_U, RAM, 0));
    assert_eq!(m.vm.hart.ctx.privilege, Supervisor);
}

// "Traps never transition from a more-privileged mode to a less-privileged mode." (privileged
// 3.1.8)
#[test]
fn delegation_does_not_apply_to_machine_mode() {
    let mut m = TestMachine::program(|a| {
        a.ebreak();
    });
    m.set_csr(MEDELEG, 0xb3ff).run_out();
    assert_eq!(m.taken(), to_m(BREAKPOINT, RAM, RAM));
}

#[test]
fn supervisor_takes_its_own_delegated_exceptions() {
    let mut m = TestMachine::program(|a| {
        a.word(0);
    });
    m.set_csr(MEDELEG, 1 << ILLEGAL).enter(Supervisor).run_out();
    assert_eq!(m.taken(), to_s(ILLEGAL, RAM, 0));
    assert_ne!(m.csr(SSTATUS) & mstatus::SPP, 0);
}

#[test]
fn a_trap_to_machine_stacks_enable_and_privilege() {
    for (privilege, mpp) in [(User, 0), (Supervisor, 1), (Machine, 3)] {
        let mut m = TestMachine::program(|a| {
            a.word(0);
        });
        m.set_csr(MSTATUS, mstatus::MIE | mstatus::SIE).enter(privilege).run_out();
        let expected = mstatus::SIE | mstatus::MPIE | mpp << mstatus::MPP_SHIFT;
        assert_eq!(m.csr(MSTATUS), expected);
    }
}

#[test]
fn a_trap_to_supervisor_stacks_enable_and_privilege() {
    for (privilege, spp) in [(User, 0), (Supervisor, mstatus::SPP)] {
        let mut m = TestMachine::program(|a| {
            a.word(0);
        });
        m.set_csr(MEDELEG, u32::MAX).set_csr(MSTATUS, mstatus::MIE | mstatus::SIE);
        m.enter(privilege).run_out();
        assert_eq!(m.csr(MSTATUS), mstatus::MIE | mstatus::SPIE | spp);
    }
}

// "When executing an xRET instruction, supposing xPP holds the value y, xIE is set to xPIE; the
// privilege mode is changed to y; xPIE is set to 1; and xPP is set to the least-privileged
// supported mode. If y≠M, xRET also sets MPRV=0." (privileged 3.1.6.1)
#[test]
fn mret_unstacks() {
    let mut m = TestMachine::program(|a| {
        a.mret();
    });
    m.set_csr(MEPC, S_HANDLER);
    m.set_csr(MSTATUS, mstatus::MPIE | mstatus::MPRV | 1 << mstatus::MPP_SHIFT).run_out();
    assert_eq!((m.vm.hart.pc, m.vm.hart.ctx.privilege), (S_HANDLER, Supervisor));
    assert_eq!(m.csr(MSTATUS), mstatus::MIE | mstatus::MPIE);
}

#[test]
fn mret_to_machine_keeps_mprv() {
    let mut m = TestMachine::program(|a| {
        a.mret();
    });
    m.set_csr(MEPC, M_HANDLER);
    m.set_csr(MSTATUS, mstatus::MPRV | mstatus::MPP).run_out();
    assert_eq!(m.vm.hart.ctx.privilege, Machine);
    assert_eq!(m.csr(MSTATUS), mstatus::MPIE | mstatus::MPRV);
}

#[test]
fn sret_unstacks() {
    let mut m = TestMachine::program(|a| {
        a.sret();
    });
    m.set_csr(SEPC, M_HANDLER).set_csr(MSTATUS, mstatus::SPIE | mstatus::MIE);
    m.enter(Supervisor).run_out();
    assert_eq!((m.vm.hart.pc, m.vm.hart.ctx.privilege), (M_HANDLER, User));
    assert_eq!(m.csr(MSTATUS), mstatus::SIE | mstatus::SPIE | mstatus::MIE);
}

#[test]
fn sret_in_machine_mode_clears_mprv() {
    let mut m = TestMachine::program(|a| {
        a.sret();
    });
    m.set_csr(SEPC, S_HANDLER).set_csr(MSTATUS, mstatus::MPRV | mstatus::SPP).run_out();
    assert_eq!(m.vm.hart.ctx.privilege, Supervisor);
    assert_eq!(m.csr(MSTATUS), mstatus::SPIE);
}

#[test]
fn exceptions_go_to_the_base_of_a_vectored_table() {
    let mut m = TestMachine::program(|a| {
        a.ecall();
    });
    m.set_csr(MTVEC, M_HANDLER | 1).run_out();
    assert_eq!(m.taken(), to_m(ECALL_M, RAM, 0));
}

#[test]
fn a_handler_can_go_on_behind_the_instruction() {
    let mut m = TestMachine::program(|a| {
        let handler = a.label();
        a.la(T0, handler).csrrw(ZERO, MTVEC, T0);
        a.li(A0, 1).ecall().addi(A0, A0, 1).word(0).addi(A0, A0, 1).stop();
        a.place(handler).csrr(T0, MEPC).addi(T0, T0, 4).csrrw(ZERO, MEPC, T0);
        a.addi(A1, A1, 1).mret();
    });
    m.run_out();
    assert_eq!((m.x(A0), m.x(A1)), (3, 2));
}

#[test]
fn a_vector_that_traps_to_itself_ends_the_machine() {
    let mut m = TestMachine::program(|a| {
        a.word(0);
    });
    m.set_csr(MTVEC, 0x4000_0000);
    let exit = m.run(1000);
    assert_eq!(exit, Exit { code: ExitCode::Fault, arg: FaultCode::TrapLoop as u32 });
}

#[test]
fn a_handler_that_traps_further_on_is_no_trap_loop() {
    let mut m = TestMachine::new();
    m.load(|a| {
        a.word(0);
    });
    m.load_at(M_HANDLER, |a| {
        a.addi(A0, A0, 1).word(0);
    });
    assert_eq!(m.run(1000).code, ExitCode::Budget);
    assert!(m.x(A0) > 100);
}

#[test]
fn a_handler_instruction_that_traps_once_is_no_trap_loop() {
    // The handler's first instruction is illegal until the handler of that, at the same address
    // but in S-mode, is left by M-mode.
    let mut m = TestMachine::program(|a| {
        a.ecall().li(A0, 1);
    });
    m.set_csr(MEDELEG, 1 << ECALL_U).set_csr(STVEC, RAM + 0x5000);
    m.load_at(RAM + 0x5000, |a| {
        // Illegal in S-mode, which brings M-mode; it skips the instruction.
        a.csrr(A1, MSTATUS).csrr(T0, SEPC).addi(T0, T0, 4).csrrw(ZERO, SEPC, T0).sret();
    });
    m.load_at(M_HANDLER, |a| {
        a.csrr(T0, MEPC).addi(T0, T0, 4).csrrw(ZERO, MEPC, T0).mret();
    });
    m.enter(User);
    assert_eq!(m.run(1000).code, ExitCode::Budget);
    assert_eq!(m.x(A0), 1);
}

/// A handler whose first instruction is legal in M-mode alone, at the same address in all modes.
const ANY_HANDLER: u32 = RAM + 0x5000;

#[test]
fn a_handler_that_a_higher_mode_has_at_the_same_address_is_no_trap_loop() {
    // U-mode traps to S-mode, which may not read `mstatus` either and traps to M-mode, which may:
    // three times the same instruction at the same address.
    let mut m = TestMachine::new();
    m.load_at(ANY_HANDLER, |a| {
        a.csrr(A0, MSTATUS).li(A1, 1).stop();
    });
    m.set_csr(MEDELEG, 1 << ILLEGAL).set_csr(MTVEC, ANY_HANDLER).set_csr(STVEC, ANY_HANDLER);
    m.enter(User).vm.hart.pc = ANY_HANDLER;
    m.run(1);
    assert_eq!(m.vm.hart.ctx.privilege, Supervisor);
    m.set_csr(MEDELEG, 0);
    assert_eq!(m.run(1000).code, ExitCode::Budget);
    assert_eq!(m.x(A1), 1);
}

/// S-mode traps to its own handler, whose first instruction is illegal. M-mode's handler counts its
/// interrupts in `a0`, and gives S-mode a good handler the third time.
fn saved_by_machine_mode(handler: impl FnOnce(&mut Asm)) -> TestMachine {
    let mut m = TestMachine::program(|a| {
        a.word(0);
    });
    m.load_at(ANY_HANDLER, |a| {
        a.word(0).li(A1, 1).stop();
    });
    m.load_at(M_HANDLER, |a| {
        let again = a.label();
        a.addi(A0, A0, 1).li(T0, 3);
        handler(a);
        a.blt(A0, T0, again).csrr(T0, MEPC).addi(T0, T0, 4).csrrw(ZERO, MEPC, T0);
        a.place(again).mret();
    });
    m.set_csr(MEDELEG, 1 << ILLEGAL).set_csr(STVEC, ANY_HANDLER).enter(Supervisor);
    m
}

/// Sets the timer to `ticks` from now.
fn sets_timer(a: &mut Asm, ticks: u32) {
    const MTIMECMP: u32 = 0x0200_4000;
    a.csrr(T1, TIME).li(T2, ticks).add(T1, T1, T2).li(T2, MTIMECMP).sw(T1, 0, T2);
}

#[test]
fn the_timer_of_machine_mode_saves_supervisor_mode_from_its_trap_loop() {
    let host = |ticks| Now::Host { ticks, rate: 1 << 20 };
    for now in [Now::Instret, host(0)] {
        let mut m = saved_by_machine_mode(|a| sets_timer(a, 1_000_000));
        m.set_csr(MIE, irq::MTI);
        m.vm.platform.clock.set_timecmp(100);
        m.now = now;
        // It needs no more instructions than a hart that waits.
        let mut exit = m.run(1000);
        for _ in 0..3 {
            if exit.code == ExitCode::Idle {
                m.now = host(m.vm.wake_at());
                exit = m.run(1000);
            }
        }
        assert_eq!((exit.code, m.x(A0), m.x(A1)), (ExitCode::Budget, 3, 1), "{now:?}");
    }
}

#[test]
fn a_trap_loop_ends_when_nothing_can_save_it() {
    // The timer was never set, is off, or is set to never.
    for (set, timecmp, enabled) in
        [(false, 0, irq::MTI), (true, 100, 0), (true, u64::MAX, irq::MTI), (true, 0, irq::MSI)]
    {
        let mut m = saved_by_machine_mode(|_| {});
        m.set_csr(MIE, enabled);
        if set {
            m.vm.platform.clock.set_timecmp(timecmp);
        }
        let exit = m.run(1000);
        assert_eq!(exit, Exit { code: ExitCode::Fault, arg: FaultCode::TrapLoop as u32 });
        assert_eq!((m.x(A0), m.vm.platform.clock.retired), (0, 0));
    }
}

#[test]
fn a_trap_loop_ends_when_the_timer_of_machine_mode_saves_nothing() {
    let mut m = TestMachine::program(|a| {
        a.nop().lw(A0, 0, ZERO);
    });
    m.load_at(M_HANDLER, |a| {
        a.addi(A0, A0, 1);
        sets_timer(a, 1000);
        a.mret();
    });
    m.set_csr(MEDELEG, u32::MAX).set_csr(STVEC, 0).set_csr(MIE, irq::MTI).enter(Supervisor);
    m.vm.platform.clock.set_timecmp(100);
    let exit = m.run(20_000);
    assert_eq!(exit, Exit { code: ExitCode::Fault, arg: FaultCode::TrapLoop as u32 });
    let first = m.vm.platform.trap_chain.first;
    assert_eq!((first.cause, first.pc, m.x(A0)), (5, RAM + 4, 256));
}

#[test]
fn a_trap_loop_ends_that_goes_through_firmware() {
    // Firmware hands the trap down: to a handler whose first instruction raises it.
    const FLW: u32 = 0x0000_2007;
    let mut m = TestMachine::program(|a| {
        let kernel = a.label();
        a.la(T0, kernel).csrrw(ZERO, STVEC, T0).csrrw(ZERO, MEPC, T0);
        a.csr_li(MSTATUS, 1 << mstatus::MPP_SHIFT).mret().place(kernel).word(FLW);
    });
    m.load_at(M_HANDLER, |a| {
        a.addi(A0, A0, 1).csrr(T0, STVEC).csrrw(ZERO, MEPC, T0).mret();
    });
    let exit = m.run(20_000);
    assert_eq!(exit, Exit { code: ExitCode::Fault, arg: FaultCode::TrapLoop as u32 });
    let chain = &m.vm.platform.trap_chain;
    assert_eq!((chain.first.from, chain.insn(), m.x(A0)), (Supervisor, Some(FLW), 255));
}

#[test]
fn firmware_may_return_to_one_instruction_as_often_as_it_likes() {
    // It waits for something: with an ECALL that it repeats, and outside of a handler.
    for word in [0x0000_0073, 0] {
        let mut m = TestMachine::program(|a| {
            a.word(word);
        });
        m.load_at(M_HANDLER, |a| {
            a.addi(A0, A0, 1).mret();
        });
        m.set_csr(STVEC, if word == 0 { M_HANDLER } else { RAM }).enter(Supervisor);
        assert_eq!(m.run(20_000).code, ExitCode::Budget);
        assert!(m.x(A0) > 5000);
    }
}

#[test]
fn a_device_can_save_supervisor_mode_from_its_trap_loop() {
    const PLIC: u32 = 0x0c00_0000;
    const UART: u32 = 0x1000_0000;
    let mut m = saved_by_machine_mode(|a| {
        // Takes interrupt and byte, and is content with the first one.
        a.li(T1, PLIC + 0x20_0004).lw(T2, 0, T1).li(A0, UART).lbu(A2, 0, A0).sw(T2, 0, T1);
        a.li(A0, 3);
    });
    m.load_at(RAM + 0x7000, |a| {
        a.store_li(PLIC + 4 * 10, 1).store_li(PLIC + 0x2000, 1 << 10);
        a.li(T0, UART).li(T1, 1).sb(T1, 1, T0).stop();
    });
    m.enter(Machine).vm.hart.pc = RAM + 0x7000;
    m.run(30);
    m.set_csr(MIE, irq::MEI).enter(Supervisor).vm.hart.pc = RAM;
    assert_eq!(m.run(1000).code, ExitCode::Idle);
    m.port.input.extend(*b"x");
    assert_eq!(m.run(1000).code, ExitCode::Budget);
    assert_eq!((m.x(A2), m.x(A1)), (u32::from(b'x'), 1));
}

/// Returns the first trap of a machine that is in an endless loop of traps, with the instruction.
fn first_of_loop(m: &mut TestMachine) -> (TakenTrap, Option<u32>) {
    assert_eq!(m.run(1000).arg, FaultCode::TrapLoop as u32);
    let chain = &m.vm.platform.trap_chain;
    (chain.first, chain.insn())
}

#[test]
fn a_trap_loop_tells_its_first_trap() {
    const FLW: u32 = 0x0000_2007;
    let mut m = TestMachine::program(|a| {
        a.nop().ecall().word(FLW);
    });
    m.load_at(M_HANDLER, |a| {
        // The ECALL is none of the loop.
        a.csrr(T0, MEPC).addi(T0, T0, 4).csrrw(ZERO, MEPC, T0);
        a.li(T1, 0x4000_0000).csrrw(ZERO, MTVEC, T1).mret();
    });
    let first = TakenTrap { cause: ILLEGAL, pc: RAM + 8, tval: FLW, from: Machine, to: Machine };
    assert_eq!(first_of_loop(&mut m), (first, Some(FLW)));

    // From U-mode to an S-mode handler that cannot be fetched, which goes to M-mode, whose neither.
    let mut m = TestMachine::program(|a| {
        a.lw(A0, 0, S0);
    });
    m.set_csr(MTVEC, 0).set_csr(STVEC, 0x4000_0000).set_csr(MEDELEG, 1 << 5).enter(User);
    let load = m.word(RAM);
    let first = TakenTrap { cause: 5, pc: RAM, tval: 0, from: User, to: Supervisor };
    assert_eq!(first_of_loop(&mut m), (first, Some(load)));

    // A jump to nowhere: there is no instruction.
    let mut m = TestMachine::program(|a| {
        a.jalr(ZERO, 0, ZERO);
    });
    m.set_csr(MTVEC, 0);
    let first = TakenTrap { cause: 1, pc: 0, tval: 0, from: Machine, to: Machine };
    assert_eq!(first_of_loop(&mut m), (first, None));

    // An interrupt whose handler is not there.
    let mut m = TestMachine::program(|_| {});
    m.set_csr(MTVEC, 0).set_csr(MIE, irq::SSI).set_csr(MSTATUS, mstatus::MIE);
    m.set_csr(MIP, irq::SSI);
    let cause = 1 << 31 | 1;
    let first = TakenTrap { cause, pc: RAM, tval: 0, from: Machine, to: Machine };
    assert_eq!(first_of_loop(&mut m), (first, None));
}

#[test]
fn the_instruction_of_a_trap_loop_is_read_as_it_was_executed() {
    // Through the page table of S-mode, which M-mode's trap loop does not use.
    const PAGE: u32 = 0x4000_0000;
    let mut m = TestMachine::new();
    m.write_words(DATA, &[0x0000_4501]).set_csr(MTVEC, 0);
    let mut tables = Sv32::new();
    tables.map(&mut m, PAGE, DATA, pte::S_ALL);
    tables.enable(&mut m, Supervisor);
    m.vm.hart.pc = PAGE;
    let first = TakenTrap { cause: ILLEGAL, pc: PAGE, tval: 0x4501, from: Supervisor, to: Machine };
    assert_eq!(first_of_loop(&mut m), (first, Some(0x4501)));
}

#[test]
fn no_instruction_of_the_table_is_illegal() {
    for row in ROWS {
        let upper = match row.format {
            Format::Csr | Format::CsrImm => MSCRATCH,
            _ => 8,
        };
        let operands = upper << 20 | S0 << 15 | T0 << 7;
        let mut m = TestMachine::program(|a| {
            a.word(operands & !row.mask | row.matches);
        });
        m.set_x(S0, DATA).run(1);
        assert!(m.taken().is_none_or(|trap| trap.cause != ILLEGAL), "{}", row.name);
    }
}

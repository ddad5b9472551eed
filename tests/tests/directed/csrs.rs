//! Control and status registers, through instructions.

use pxvm_tests::asm::{Asm, csr::*, reg::*};
use pxvm_tests::machine::{M_HANDLER, RAM, to_m};

use emu_core::csr::{irq, mstatus};
use emu_core::mmu::Privilege::{self, Machine, Supervisor};
use emu_core::trace::Trace;

use crate::TestMachine;

const ILLEGAL: u32 = 2;

/// `mtval` of the illegal instruction that a program in `privilege` ends with.
fn illegal_in(privilege: Privilege, f: impl FnOnce(&mut Asm)) -> bool {
    let mut m = TestMachine::program(f);
    m.enter(privilege).run_out();
    let word = m.word(RAM);
    m.taken() == to_m(ILLEGAL, RAM, word)
}

#[test]
fn csrrw_swaps_csrrs_sets_and_csrrc_clears() {
    let mut m = TestMachine::program(|a| {
        a.csrrw(A0, MSCRATCH, A3).csrrs(A1, MSCRATCH, A4).csrrc(A2, MSCRATCH, A5);
    });
    m.set_csr(MSCRATCH, 1).set_x(A3, 0b0110).set_x(A4, 0b1000).set_x(A5, 0b0010).run_out();
    assert_eq!([A0, A1, A2].map(|r| m.x(r)), [1, 0b0110, 0b1110]);
    assert_eq!(m.csr(MSCRATCH), 0b1100);
}

#[test]
fn immediate_forms_use_five_unsigned_bits() {
    let mut m = TestMachine::program(|a| {
        a.csrrwi(A0, MSCRATCH, 31).csrrsi(A1, MSCRATCH, 0).csrrci(A2, MSCRATCH, 1);
    });
    m.set_csr(MSCRATCH, u32::MAX).run_out();
    assert_eq!([A0, A1, A2].map(|r| m.x(r)), [u32::MAX, 31, 31]);
    assert_eq!(m.csr(MSCRATCH), 30);
}

#[test]
fn source_and_destination_may_be_one_register() {
    let mut m = TestMachine::program(|a| {
        a.csrrw(A0, MSCRATCH, A0);
    });
    m.set_csr(MSCRATCH, 1).set_x(A0, 2).run_out();
    assert_eq!((m.x(A0), m.csr(MSCRATCH)), (1, 2));
}

// "For both CSRRS and CSRRC, if rs1=x0, then the instruction will not write to the CSR at all,
// and so shall not [...] raise illegal-instruction exceptions on accesses to read-only CSRs."
// (unprivileged 7.1)
#[test]
fn read_only_registers_can_be_read_and_not_written() {
    let mut m = TestMachine::program(|a| {
        a.csrrs(A0, MHARTID, ZERO).csrrci(A0, CYCLE, 0);
    });
    m.run_out();
    assert_eq!(m.taken(), None);
    // Writing the value it has, or a register that happens to be zero, is a write all the same.
    assert!(illegal_in(Privilege::Machine, |a| {
        a.csrrw(A0, MHARTID, ZERO);
    }));
    assert!(illegal_in(Privilege::Machine, |a| {
        a.csrrs(A0, CYCLE, A1);
    }));
    assert!(illegal_in(Privilege::Machine, |a| {
        a.csrrsi(A0, TIME, 1);
    }));
}

#[test]
fn numbers_that_do_not_exist_are_illegal_and_change_no_register() {
    for number in
        [0x000, 0x001, 0x003, 0x015, 0x200, 0x280, 0x5a8, 0x600, 0x7b0, 0x7c0, 0x800, 0xfff]
    {
        let mut m = TestMachine::program(|a| {
            a.csrrs(A0, number, ZERO);
        });
        m.set_x(A0, 7).run_out();
        assert_eq!(m.taken().map(|t| t.cause), Some(ILLEGAL), "{number:#x}");
        assert_eq!(m.x(A0), 7);
    }
}

// "csr[9:8] encode the lowest privilege level that can access the CSR." (privileged 2.1)
#[test]
fn registers_of_higher_privilege_are_illegal() {
    assert!(illegal_in(Privilege::Supervisor, |a| {
        a.csrr(A0, MSTATUS);
    }));
    assert!(illegal_in(Privilege::User, |a| {
        a.csrr(A0, SSTATUS);
    }));
    assert!(illegal_in(Privilege::User, |a| {
        a.csrrw(ZERO, SSCRATCH, A0);
    }));
    assert!(!illegal_in(Privilege::Supervisor, |a| {
        a.csrr(A0, SSTATUS);
    }));
}

#[test]
fn misa_says_rv32imasu() {
    let mut m = TestMachine::program(|a| {
        a.csrr(A0, MISA).csrrw(ZERO, MISA, ZERO).csrr(A1, MISA);
    });
    m.run_out();
    let letters = |s: &str| s.bytes().map(|b| 1u32 << (b - b'A')).sum::<u32>();
    assert_eq!(m.x(A0), 1 << 30 | letters("IMASU"));
    assert_eq!(m.x(A1), m.x(A0));
}

#[test]
fn epc_keeps_two_low_bits_zero() {
    let mut m = TestMachine::new();
    m.set_csr(MEPC, u32::MAX).set_csr(SEPC, u32::MAX);
    assert_eq!((m.csr(MEPC), m.csr(SEPC)), (!3, !3));
}

#[test]
fn tvec_has_two_modes() {
    let mut m = TestMachine::new();
    m.set_csr(MTVEC, RAM | 1).set_csr(STVEC, RAM | 2);
    assert_eq!((m.csr(MTVEC), m.csr(STVEC)), (RAM | 1, RAM));
}

#[test]
fn mstatus_keeps_reserved_bits_zero() {
    let mut m = TestMachine::new();
    m.set_csr(MSTATUS, u32::MAX);
    // SIE MIE SPIE MPIE SPP MPP MPRV SUM MXR TVM TW TSR; no FS, VS, XS, UBE.
    assert_eq!(m.csr(MSTATUS), 0x007e_19aa);
    assert_eq!(m.csr(SSTATUS), 0x000c_0122);
}

#[test]
fn sstatus_writes_leave_machine_fields_alone() {
    let mut m = TestMachine::new();
    m.set_csr(MSTATUS, 0x0042_1888).set_csr(SSTATUS, 0);
    assert_eq!(m.csr(MSTATUS), 0x0042_1888);
    m.set_csr(SSTATUS, u32::MAX);
    assert_eq!(m.csr(MSTATUS), 0x004e_19aa);
}

#[test]
fn delegation_registers_keep_what_can_be_delegated() {
    let mut m = TestMachine::new();
    m.set_csr(MEDELEG, u32::MAX).set_csr(MIDELEG, u32::MAX);
    assert_eq!((m.csr(MEDELEG), m.csr(MIDELEG)), (0xb3ff, 0x222));
}

#[test]
fn supervisor_interrupt_registers_show_delegated_bits() {
    let mut m = TestMachine::new();
    m.set_csr(MIE, u32::MAX).set_csr(MIP, u32::MAX);
    assert_eq!((m.csr(MIE), m.csr(SIE), m.csr(SIP)), (0xaaa, 0, 0));
    m.set_csr(MIDELEG, 0x202);
    assert_eq!((m.csr(SIE), m.csr(SIP)), (0x202, 0x202));
}

// "STIP is read-only in sip", "SEIP is read-only in sip" (privileged 10.1.3)
#[test]
fn supervisor_can_write_its_software_interrupt_alone() {
    let mut m = TestMachine::new();
    m.set_csr(MIDELEG, 0x222).set_csr(SIP, u32::MAX);
    assert_eq!(m.csr(MIP), 0x002);
    m.set_csr(MIP, 0x222).set_csr(SIP, 0);
    assert_eq!(m.csr(MIP), 0x220);
}

#[test]
fn machine_interrupt_bits_of_mip_cannot_be_written() {
    let mut m = TestMachine::new();
    m.set_csr(MIP, u32::MAX);
    assert_eq!(m.csr(MIP), 0x222);
}

#[test]
fn satp_has_no_address_space_ids() {
    let mut m = TestMachine::new();
    m.set_csr(SATP, u32::MAX);
    assert_eq!(m.csr(SATP), 0x803f_ffff);
    m.set_csr(SATP, 0);
    assert_eq!(m.csr(SATP), 0);
}

#[test]
fn trigger_registers_are_present_and_inert() {
    let mut m = TestMachine::program(|a| {
        a.li(A0, u32::MAX);
        for number in [TSELECT, TDATA1, TDATA1 + 1, TDATA1 + 2] {
            a.csrrw(ZERO, number, A0).csrrs(A1, number, ZERO).or(A2, A2, A1);
        }
    });
    m.run_out();
    assert_eq!((m.taken(), m.x(A2)), (None, 0));
}

#[test]
fn scratch_and_cause_registers_hold_any_value() {
    for number in [MSCRATCH, SSCRATCH, MCAUSE, SCAUSE, MTVAL, STVAL] {
        let mut m = TestMachine::new();
        m.set_csr(number, 0xdead_beef);
        assert_eq!(m.csr(number), 0xdead_beef, "{number:#x}");
    }
}

/// The CSRs that a commit log lists.
#[derive(Default)]
struct Written(Vec<(u32, u32)>);

impl Trace for Written {
    fn csr(&mut self, number: u32, value: u32) {
        self.0.push((number, value));
    }
}

fn written(
    privilege: Privilege,
    prepare: impl FnOnce(&mut TestMachine),
    n: u32,
) -> Vec<(u32, u32)> {
    let mut m = TestMachine::new();
    prepare(&mut m);
    let mut log = Written::default();
    m.enter(privilege).run_traced(n, &mut log);
    log.0
}

// As Spike, whose counters do not count the instruction that writes them.
#[test]
fn a_log_shows_counters_as_they_were_written() {
    let log = written(
        Machine,
        |m| {
            m.load(|a| {
                a.nop().nop().csrrwi(ZERO, MCYCLE, 7).csrrwi(ZERO, MINSTRET, 9);
                a.csrrwi(ZERO, MINSTRETH, 3).csrrsi(ZERO, MCOUNTINHIBIT, 4);
                a.csrrwi(ZERO, MINSTRET, 1);
            });
        },
        7,
    );
    let expected = [(MCYCLE, 7), (MINSTRET, 9), (MINSTRETH, 3), (MCOUNTINHIBIT, 4), (MINSTRET, 1)];
    assert_eq!(log, expected);
}

#[test]
fn a_log_names_the_csr_that_a_view_changes() {
    let log = written(
        Supervisor,
        |m| {
            m.set_csr(MIDELEG, irq::S_ALL).set_csr(MIE, irq::MTI).set_csr(MSTATUS, mstatus::MIE);
            m.load(|a| {
                a.csrrsi(ZERO, SSTATUS, 2).csrrsi(ZERO, SIE, 2).csrrsi(ZERO, SIP, 0);
            });
        },
        3,
    );
    let status = mstatus::MIE | mstatus::SIE;
    // Setting no bits is no write.
    assert_eq!(log, [(MSTATUS, status), (MIE, irq::MTI | irq::SSI)]);
}

#[test]
fn a_log_lists_what_returns_from_traps_change() {
    let load = |m: &mut TestMachine, f: fn(&mut Asm) -> &mut Asm| {
        m.load(|a| _ = f(a)).set_csr(MEPC, M_HANDLER).set_csr(SEPC, M_HANDLER);
        m.set_csr(MSTATUS, mstatus::MPIE | mstatus::SPIE | mstatus::MPP);
    };
    let mret = written(Machine, |m| load(m, Asm::mret), 1);
    let status = mstatus::MIE | mstatus::MPIE | mstatus::SPIE;
    assert_eq!(mret, [(MSTATUS, status), (0x310, 0)]);
    let sret = written(Supervisor, |m| load(m, Asm::sret), 1);
    let status = mstatus::SIE | mstatus::SPIE | mstatus::MPIE | mstatus::MPP;
    assert_eq!(sret, [(MSTATUS, status)]);
}

//! The built-in SBI, through `ecall` from S-mode.

use pxvm_tests::asm::{csr::*, reg::*};
use pxvm_tests::machine::{DATA, RAM, RAM_SIZE, to_s};

use emu_core::abi::{ExitCode, FaultCode};
use emu_core::csr::{irq, mstatus};
use emu_core::mmu::Privilege::User;
use emu_core::sbi::eid;

use crate::TestMachine;

const INTERRUPT: u32 = 1 << 31;
const SUCCESS: u32 = 0;
const NOT_SUPPORTED: u32 = -2i32 as u32;
const INVALID_PARAM: u32 = -3i32 as u32;
const ALREADY_AVAILABLE: u32 = -6i32 as u32;
const SPURIOUS: u32 = 0x0bad_0bad;

/// A machine at an `ecall` with these arguments. `a1` has a value that only the call changes.
fn call(extension: u32, function: u32, args: [u32; 3]) -> TestMachine {
    let mut m = TestMachine::supervisor(|a| {
        a.ecall().li(S11, 1);
    });
    m.set_x(A7, extension).set_x(A6, function);
    m.set_x(A0, args[0]).set_x(A1, args[1]).set_x(A2, args[2]).set_x(A3, 0);
    m
}

/// Executes an SBI call and returns `a0` and `a1`.
fn sbi_call(extension: u32, function: u32, args: [u32; 3]) -> (u32, u32) {
    let mut m = call(extension, function, args);
    m.run_out();
    assert_eq!(m.x(S11), 1, "the call returned");
    (m.x(A0), m.x(A1))
}

#[test]
fn base_tells_versions_and_ids() {
    assert_eq!(sbi_call(eid::BASE, 0, [0; 3]), (SUCCESS, 2 << 24));
    assert_eq!(sbi_call(eid::BASE, 1, [0; 3]).0, SUCCESS);
    assert_eq!(sbi_call(eid::BASE, 2, [0; 3]).0, SUCCESS);
    for id in 4..=6 {
        assert_eq!(sbi_call(eid::BASE, id, [0; 3]), (SUCCESS, 0));
    }
    assert_eq!(sbi_call(eid::BASE, 7, [0; 3]), (NOT_SUPPORTED, 0));
}

#[test]
fn base_probes_extensions() {
    let probe = |id| sbi_call(eid::BASE, 3, [id, 0, 0]);
    for id in [eid::BASE, eid::TIME, eid::IPI, eid::RFENCE, eid::HSM, eid::SRST, eid::DBCN, 0, 8] {
        assert_eq!(probe(id).0, SUCCESS);
        assert_ne!(probe(id).1, 0, "{id:#x}");
    }
    for id in [9, 0xf, 0x11, 0x504d55, 0x53555350, u32::MAX] {
        assert_eq!(probe(id), (SUCCESS, 0), "{id:#x}");
    }
}

#[test]
fn unknown_extensions_and_functions_are_not_supported() {
    assert_eq!(sbi_call(0xdead_beef, 0, [SPURIOUS; 3]).0, NOT_SUPPORTED);
    assert_eq!(sbi_call(0x9, 0, [0; 3]).0, NOT_SUPPORTED);
    for id in [eid::TIME, eid::IPI, eid::RFENCE, eid::HSM, eid::SRST, eid::DBCN] {
        assert_eq!(sbi_call(id, 99, [0; 3]).0, NOT_SUPPORTED, "{id:#x}");
    }
}

// "All registers except a0 & a1 must be preserved across an SBI call by the callee." (SBI 3)
#[test]
fn a_call_keeps_all_other_registers() {
    let mut m = call(eid::BASE, 0, [0; 3]);
    for r in (1..32).filter(|r| ![A0, A1, A6, A7, S11].contains(r)) {
        m.set_x(r, 0x100 + r);
    }
    let before = m.vm.hart.x;
    m.run_out();
    for r in (1..32).filter(|r| ![A0, A1, S11].contains(r)) {
        assert_eq!(m.x(r), before[r as usize]);
    }
}

#[test]
fn user_mode_calls_its_supervisor_not_the_sbi() {
    let mut m = call(eid::BASE, 0, [0; 3]);
    m.enter(User).run_out();
    assert_eq!(m.taken(), to_s(8, RAM, 0));
}

#[test]
fn set_timer_raises_and_clears_the_supervisor_timer() {
    let mut m = call(eid::TIME, 0, [0, 0, 0]);
    m.run_out();
    assert_eq!((m.x(A0), m.csr(MIP)), (SUCCESS, irq::STI));
    // "If the supervisor wishes to clear the timer interrupt without scheduling the next timer
    // event, it can [...] request a timer interrupt infinitely far into the future" (SBI 6.1)
    m.set_x(A0, u32::MAX).set_x(A1, u32::MAX).vm.hart.pc = RAM;
    m.run_out();
    assert_eq!(m.csr(MIP), 0);
}

#[test]
fn set_timer_takes_64_bits() {
    let mut m = call(eid::TIME, 0, [5, 1, 0]);
    m.run_out();
    assert_eq!((m.vm.platform.clock.timecmp(), m.csr(MIP)), (1 << 32 | 5, 0));
    let mut m = call(eid::LEGACY_SET_TIMER, 0, [5, 1, 0]);
    m.run_out();
    assert_eq!((m.x(A0), m.vm.platform.clock.timecmp()), (0, 1 << 32 | 5));
}

#[test]
fn the_timer_interrupts_supervisor_mode() {
    let mut m = TestMachine::supervisor(|a| {
        a.csrr(A0, TIME).addi(A0, A0, 30).li(A1, 0).li(A7, eid::TIME).li(A6, 0).ecall();
        a.li(T0, irq::STI).csrrs(ZERO, SIE, T0).csrrsi(ZERO, SSTATUS, mstatus::SIE).wfi().nop();
    });
    m.run_out();
    assert_eq!(m.taken().map(|t| t.cause), Some(INTERRUPT | 5));
}

#[test]
fn send_ipi_to_itself_sets_the_software_interrupt() {
    for (mask, base) in [(1, 0), (0, u32::MAX), (1, u32::MAX)] {
        let mut m = call(eid::IPI, 0, [mask, base, 0]);
        m.run_out();
        assert_eq!((m.x(A0), m.csr(SIP)), (SUCCESS, irq::SSI));
    }
}

#[test]
fn hart_masks_may_be_empty_and_not_name_what_is_not_there() {
    assert_eq!(sbi_call(eid::IPI, 0, [0, 0, 0]).0, SUCCESS);
    assert_eq!(sbi_call(eid::IPI, 0, [2, 0, 0]).0, INVALID_PARAM);
    assert_eq!(sbi_call(eid::IPI, 0, [1, 1, 0]).0, INVALID_PARAM);
    for function in 0..=2 {
        assert_eq!(sbi_call(eid::RFENCE, function, [1, 0, 0]).0, SUCCESS);
        assert_eq!(sbi_call(eid::RFENCE, function, [3, 0, 0]).0, INVALID_PARAM);
    }
    // The hypervisor's fences.
    assert_eq!(sbi_call(eid::RFENCE, 3, [1, 0, 0]).0, NOT_SUPPORTED);
}

#[test]
fn legacy_ipi_and_fences_answer_zero() {
    let mut m = call(eid::LEGACY_SEND_IPI, 0, [DATA, SPURIOUS, 0]);
    m.run_out();
    assert_eq!((m.x(A0), m.x(A1), m.csr(SIP)), (0, SPURIOUS, irq::SSI));
    m.set_x(A7, eid::LEGACY_CLEAR_IPI).vm.hart.pc = RAM;
    m.run_out();
    assert_eq!((m.x(A0), m.csr(SIP)), (0, 0));
    for id in [
        eid::LEGACY_REMOTE_FENCE_I,
        eid::LEGACY_REMOTE_SFENCE_VMA,
        eid::LEGACY_REMOTE_SFENCE_VMA_ASID,
    ] {
        assert_eq!(sbi_call(id, 0, [DATA, 0, 0]).0, 0);
    }
}

#[test]
fn hart_state_management_of_the_only_hart() {
    assert_eq!(sbi_call(eid::HSM, 0, [0, RAM, 0]).0, ALREADY_AVAILABLE);
    assert_eq!(sbi_call(eid::HSM, 0, [1, RAM, 0]).0, INVALID_PARAM);
    assert_eq!(sbi_call(eid::HSM, 2, [0, 0, 0]), (SUCCESS, 0));
    assert_eq!(sbi_call(eid::HSM, 2, [1, 0, 0]).0, INVALID_PARAM);
    assert_eq!(sbi_call(eid::HSM, 3, [0x8000_0000, 0, 0]).0, NOT_SUPPORTED);
}

#[test]
fn stopping_the_only_hart_powers_off() {
    assert_eq!(call(eid::HSM, 1, [0; 3]).run_out().code, ExitCode::PowerOff);
}

#[test]
fn a_retentive_suspend_waits_like_wfi_and_returns() {
    let mut m = call(eid::HSM, 3, [0, RAM, 0]);
    assert_eq!(m.run_out().code, ExitCode::Idle);
    assert_eq!(m.x(S11), 0);
    m.set_csr(SIE, irq::SSI).set_csr(SIP, irq::SSI).run_out();
    assert_eq!((m.x(S11), m.x(A0)), (1, SUCCESS));
}

#[test]
fn system_reset_ends_the_machine() {
    let exit = |args| {
        let exit = call(eid::SRST, 0, args).run_out();
        (exit.code, exit.arg)
    };
    assert_eq!(exit([0, 0, 0]), (ExitCode::PowerOff, 0));
    assert_eq!(exit([0, 1, 0]), (ExitCode::Fault, FaultCode::SystemFailure as u32));
    assert_eq!(exit([1, 0, 0]), (ExitCode::Reset, 0));
    assert_eq!(exit([2, 0, 0]), (ExitCode::Reset, 0));
    assert_eq!(call(eid::LEGACY_SHUTDOWN, 0, [0; 3]).run_out().code, ExitCode::PowerOff);
}

// "SBI_ERR_INVALID_PARAM: At least one of reset_type or reset_reason is reserved or is
// platform-specific and unimplemented." (SBI table 10.4)
#[test]
fn reserved_reset_types_and_reasons_are_refused() {
    for args in [[3, 0, 0], [0xf000_0000, 0, 0], [0, 2, 0], [1, 0xe000_0000, 0]] {
        let mut m = call(eid::SRST, 0, args);
        assert_eq!(m.run_out().code, ExitCode::Budget, "{args:#x?}");
        assert_eq!(m.x(A0), INVALID_PARAM, "{args:#x?}");
    }
}

#[test]
fn debug_console_writes_from_memory() {
    let mut m = call(eid::DBCN, 0, [5, DATA + 0xffe, 0]);
    m.write(DATA + 0xffe, b"hello").run_out();
    assert_eq!((m.x(A0), m.x(A1)), (SUCCESS, 5));
    assert_eq!(m.port.output, b"hello");
}

#[test]
fn debug_console_writes_a_byte() {
    let mut m = call(eid::DBCN, 2, [0x1_41, 0, 0]);
    m.run_out();
    assert_eq!((m.x(A0), m.x(A1), &m.port.output[..]), (SUCCESS, 0, &b"A"[..]));
}

#[test]
fn debug_console_reads_what_there_is() {
    let mut m = call(eid::DBCN, 1, [16, DATA, 0]);
    m.run_out();
    assert_eq!((m.x(A0), m.x(A1)), (SUCCESS, 0));
    m.port.input.extend(b"abc");
    m.set_x(A0, 16).set_x(A1, DATA).vm.hart.pc = RAM;
    m.run_out();
    assert_eq!((m.x(A0), m.x(A1)), (SUCCESS, 3));
    assert_eq!(m.read(DATA, 4), b"abc\0");
}

#[test]
fn debug_console_reads_no_more_than_asked() {
    let mut m = call(eid::DBCN, 1, [2, DATA + 0xfff, 0]);
    m.port.input.extend(b"abc");
    m.run_out();
    assert_eq!((m.x(A0), m.x(A1)), (SUCCESS, 2));
    assert_eq!(m.read(DATA + 0xfff, 3), b"ab\0");
}

// "SBI_ERR_INVALID_PARAM: The memory pointed to by the num_bytes, base_addr_lo, and base_addr_hi
// parameters does not satisfy the requirements described in the shared memory section" (SBI
// tables 12.1 and 12.2)
#[test]
fn debug_console_refuses_memory_that_is_not_ram() {
    for function in [0, 1] {
        for (len, low, high) in [
            (1, 0, 0),
            (4, RAM - 1, 0),
            (4, RAM + RAM_SIZE - 3, 0),
            (1, RAM, 1),
            (1, u32::MAX, u32::MAX),
            (u32::MAX, 0x1000_0000, 0),
        ] {
            let mut m = call(eid::DBCN, function, [len, low, high]);
            m.port.input.extend(b"abcd");
            m.run_out();
            assert_eq!(m.x(A0), INVALID_PARAM, "{function} {len:#x} {low:#x} {high:#x}");
            assert!(m.port.output.is_empty());
        }
    }
}

#[test]
fn legacy_console_puts_and_gets() {
    let mut m = call(eid::LEGACY_CONSOLE_PUTCHAR, 0, [u32::from(b'x'), SPURIOUS, 0]);
    m.run_out();
    assert_eq!((m.x(A0), m.x(A1), &m.port.output[..]), (0, SPURIOUS, &b"x"[..]));
    assert_eq!(sbi_call(eid::LEGACY_CONSOLE_GETCHAR, 0, [0; 3]).0, u32::MAX);
}

// Input goes to whoever asks first, and in order: the UART's receiver must not hide bytes from a
// guest whose console is the SBI.
#[test]
fn the_sbi_console_gets_the_first_byte_first() {
    let mut m = call(eid::LEGACY_CONSOLE_GETCHAR, 0, [0; 3]);
    m.port.input.extend(b"ab");
    m.run_out();
    assert_eq!(m.x(A0), u32::from(b'a'));
}

//! Counters, time, the timer and WFI.

use pxvm_tests::asm::{csr::*, reg::*};
use pxvm_tests::machine::{RAM, to_m};

use emu_core::abi::ExitCode;
use emu_core::clock::{INSTRET_CLOCK_IPS, Now};
use emu_core::csr::{irq, mstatus};
use emu_core::mmu::Privilege::Supervisor;

use crate::TestMachine;

const INTERRUPT: u32 = 1 << 31;
const MTI: u32 = 7;
/// CLINT.
const MTIMECMP: u32 = 0x0200_4000;
const MTIME: u32 = 0x0200_bff8;
/// Instructions a tick of the 10 MHz timebase.
const IPT: u32 = INSTRET_CLOCK_IPS / 10_000_000;

#[test]
fn instret_does_not_count_the_instruction_that_reads_it() {
    let m = TestMachine::ran(|a| {
        a.nop().nop().csrr(A0, INSTRET).nop().csrr(A1, MINSTRET).csrr(A2, CYCLE);
    });
    assert_eq!([A0, A1, A2].map(|r| m.x(r)), [2, 4, 5]);
}

#[test]
fn instructions_that_trap_are_not_counted() {
    let m = TestMachine::ran(|a| {
        let handler = a.label();
        a.la(T0, handler).csrrw(ZERO, MTVEC, T0).word(0).stop();
        a.place(handler).csrr(A0, INSTRET);
    });
    assert_eq!(m.x(A0), 3);
}

// "writes take effect [...] after the writing instruction has otherwise completed" (privileged
// 3.1.10, unprivileged 8.1)
#[test]
fn a_written_counter_goes_on_from_the_written_value() {
    let m = TestMachine::ran(|a| {
        a.li(A0, 100).csrrw(ZERO, MINSTRET, A0).csrr(A1, MINSTRET).nop().csrr(A2, INSTRET);
    });
    assert_eq!((m.x(A1), m.x(A2)), (100, 102));
}

#[test]
fn counters_carry_into_their_high_half() {
    let m = TestMachine::ran(|a| {
        a.li(A0, u32::MAX).csrrw(ZERO, MINSTRETH, ZERO).csrrw(ZERO, MINSTRET, A0);
        a.nop().csrr(A1, MINSTRETH).csrr(A2, MINSTRET);
    });
    assert_eq!((m.x(A1), m.x(A2)), (1, 1));
}

#[test]
fn mcountinhibit_stops_counters_one_by_one() {
    let m = TestMachine::ran(|a| {
        a.csrrwi(ZERO, MCOUNTINHIBIT, 5).csrr(A0, MINSTRET).nop().csrr(A1, MINSTRET);
        a.csrrwi(ZERO, MCOUNTINHIBIT, 1).nop().csrr(A2, MINSTRET);
        a.csrr(A3, MCYCLE).nop().csrr(A4, MCYCLE).csrr(A5, MCOUNTINHIBIT);
    });
    assert_eq!(m.x(A0), m.x(A1));
    assert!(m.x(A2) > m.x(A1));
    assert_eq!((m.x(A3), m.x(A5)), (m.x(A4), 1));
}

#[test]
fn time_follows_instructions_under_the_instret_clock() {
    let mut m = TestMachine::program(|a| {
        a.csrr(A0, TIME);
        for _ in 0..10 * IPT - 1 {
            a.nop();
        }
        a.csrr(A1, TIME).csrr(A2, TIMEH);
    });
    m.run_out();
    // The rate has 24 fractional bits, so a tick may come an instruction late.
    assert!((9..=10).contains(&(m.x(A1) - m.x(A0))));
    assert_eq!(m.x(A2), 0);
}

#[test]
fn time_follows_the_host_under_the_host_clock() {
    let mut m = TestMachine::program(|a| {
        a.csrr(A0, TIME).csrr(A1, TIMEH);
    });
    m.now = Now::Host { ticks: 0x3_0000_0007, rate: 1 };
    m.run(2);
    assert_eq!((m.x(A0), m.x(A1)), (7, 3));
}

#[test]
fn host_time_never_goes_back() {
    let mut m = TestMachine::program(|a| {
        a.csrr(A0, TIME).csrr(A1, TIME);
    });
    m.now = Now::Host { ticks: 1000, rate: 1 };
    m.run(1);
    m.now = Now::Host { ticks: 10, rate: 1 };
    m.run(1);
    assert!(m.x(A1) >= m.x(A0));
}

#[test]
fn mtime_reads_as_time_and_can_be_written() {
    let m = TestMachine::ran(|a| {
        a.li(S0, MTIME).li(A0, 0x1234).li(A1, 2).sw(A1, 4, S0).sw(A0, 0, S0);
        a.lw(A2, 0, S0).lw(A3, 4, S0).csrr(A4, TIME);
    });
    assert_eq!((m.x(A2), m.x(A3), m.x(A4)), (0x1234, 2, 0x1234));
}

/// Writes `mtime` and reads it back: as `mtime`, and as `time`.
fn writes_mtime(now: Now, value: u64) -> TestMachine {
    let mut m = TestMachine::program(|a| {
        a.li(S0, MTIME).li(A0, value as u32).li(A1, (value >> 32) as u32);
        a.sw(A1, 4, S0).sw(A0, 0, S0).lw(A2, 0, S0).lw(A3, 4, S0).csrr(A4, TIME).csrr(A5, TIMEH);
    });
    m.now = now;
    m.run(20);
    m
}

#[test]
fn mtime_can_be_written_under_the_host_clock_forwards_and_backwards() {
    let host = |ticks| Now::Host { ticks, rate: 1 };
    for value in [5, 999_999, 0x7_0000_0003] {
        let mut m = writes_mtime(host(1_000_000), value);
        let (low, high) = (value as u32, (value >> 32) as u32);
        assert_eq!([A2, A3, A4, A5].map(|r| m.x(r)), [low, high, low, high]);
        // It goes on from there as the host's time does.
        m.now = host(1_000_500);
        m.run(1);
        assert_eq!(m.vm.platform.clock.time(), value + 500);
    }
}

#[test]
fn a_written_mtime_brings_the_timer_nearer_or_takes_it_away() {
    for now in [Now::Instret, Now::Host { ticks: 1000, rate: 1 }] {
        let m = {
            let mut m = TestMachine::program(|a| {
                a.li(S0, MTIMECMP).li(A0, 1_000_000).sw(A0, 0, S0).csrr(A1, MIP);
                a.li(S1, MTIME).sw(A0, 0, S1).csrr(A2, MIP).sw(ZERO, 0, S1).csrr(A3, MIP);
            });
            m.now = now;
            m.run(30);
            m
        };
        assert_eq!([A1, A2, A3].map(|r| m.x(r)), [0, irq::MTI, 0], "{now:?}");
    }
}

#[test]
fn wfi_wakes_when_the_written_mtime_reaches_the_timer() {
    let machine = |now| {
        let mut m = TestMachine::program(|a| {
            a.li(S0, MTIMECMP).li(A0, 1_000_000).sw(A0, 0, S0).csr_li(MIE, irq::MTI);
            a.li(S1, MTIME).li(A0, 999_000).sw(A0, 0, S1).wfi().csrr(A1, TIME);
        });
        m.now = now;
        m
    };
    let mut m = machine(Now::Instret);
    m.run_out();
    assert_eq!(m.x(A1), 1_000_000);
    let mut m = machine(Now::Host { ticks: 50_000, rate: 1 });
    assert_eq!(m.run(30).code, ExitCode::Idle);
    // The host knows nothing of what the guest calls the time.
    assert_eq!(m.vm.wake_at(), 51_000);
    m.now = Now::Host { ticks: 51_000, rate: 1 };
    m.run(30);
    assert_eq!(m.x(A1), 1_000_000);
}

#[test]
fn the_time_of_day_does_not_follow_a_written_mtime() {
    const RTC: u32 = 0x10_1000;
    for now in [Now::Instret, Now::Host { ticks: 1000, rate: 1 }] {
        let mut m = TestMachine::program(|a| {
            a.li(S0, RTC).li(S1, MTIME).li(A0, 1_000_000).lw(A1, 0, S0).sw(A0, 0, S1);
            a.lw(A2, 0, S0).sw(ZERO, 0, S1).lw(A3, 0, S0);
        });
        m.now = now;
        m.run(30);
        // Ticks of 100 ns.
        assert!(m.x(A3) - m.x(A1) <= 500, "{now:?}");
        assert!(m.x(A1) <= m.x(A2) && m.x(A2) <= m.x(A3), "{now:?}");
    }
}

// A hart that traps again and again would otherwise wait for ever for its timer.
#[test]
fn an_exception_takes_the_time_of_an_instruction_and_retires_none() {
    let m = TestMachine::ran(|a| {
        let handler = a.label();
        a.la(T0, handler).csrrw(ZERO, MTVEC, T0).li(S0, 1000).place(handler);
        a.csrr(A0, TIME).csrr(A1, INSTRET).addi(S0, S0, -1);
        let out = a.label();
        a.beq(S0, ZERO, out).word(0).place(out);
    });
    assert!(m.x(A0).abs_diff((m.x(A1) + 999) / IPT) <= 1);
}

#[test]
fn the_timer_interrupt_is_pending_from_mtimecmp_on() {
    let m = TestMachine::ran(|a| {
        a.csrr(A0, MIP).li(S0, MTIMECMP).sw(ZERO, 4, S0).sw(ZERO, 0, S0).csrr(A1, MIP);
        a.li(A2, u32::MAX).sw(A2, 0, S0).csrr(A3, MIP);
    });
    assert_eq!([A0, A1, A3].map(|r| m.x(r)), [0, irq::MTI, 0]);
}

// As `mtimecmp` of QEMU, whose high word is 0 until it is written. Guests that need no more than
// 2^32 ticks write the low one alone.
#[test]
fn a_timer_of_the_low_word_alone_interrupts() {
    let mut m = TestMachine::program(|a| {
        a.li(S0, MTIMECMP).lw(A0, 0, S0).lw(A1, 4, S0).csrr(A2, MIP);
        a.li(A3, 100).sw(A3, 0, S0).csrr(A4, MIP).csr_li(MIE, irq::MTI).wfi().csrr(A5, TIME);
    });
    m.run_out();
    assert_eq!([A0, A1, A2, A4, A5].map(|r| m.x(r)), [0, 0, 0, 0, 100]);
}

#[test]
fn a_timer_that_was_never_set_does_not_interrupt() {
    let mut m = TestMachine::program(|a| {
        a.csr_li(MIE, irq::MTI).li(S0, MTIME).li(A0, u32::MAX).sw(A0, 4, S0).csrr(A1, MIP).wfi();
    });
    assert_eq!((m.run_out().code, m.x(A1)), (ExitCode::Idle, 0));
}

// "posted whenever mtime contains a value greater than or equal to mtimecmp, treating the values as
// unsigned integers" (privileged 3.2.1).
#[test]
fn a_timer_is_due_no_more_once_time_wraps() {
    let run = |slice| {
        let mut m = TestMachine::program(|a| {
            let again = a.mark();
            a.csrr(A0, MIP).add(A1, A1, A0).j(again);
        });
        m.vm.platform.clock.set_time(0u64.wrapping_sub(100));
        m.vm.platform.clock.set_timecmp(0u64.wrapping_sub(50));
        for _ in 0..1200 / slice {
            m.run(slice);
        }
        (m.x(A0), m.x(A1), m.hash())
    };
    let whole = run(1200);
    assert_eq!(whole.0, 0);
    assert_ne!(whole.1, 0);
    for slice in [1, 100] {
        assert_eq!(run(slice), whole, "{slice}");
    }
}

#[test]
fn the_timer_interrupts_at_its_instruction() {
    let ticks = 100;
    let mut m = TestMachine::new();
    m.load(|_| {});
    m.set_csr(MIE, irq::MTI).set_csr(MSTATUS, mstatus::MIE);
    m.vm.platform.clock.set_timecmp(ticks);
    m.run_out();
    assert_eq!(m.taken(), to_m(INTERRUPT | MTI, RAM, 0));
    let mut m = TestMachine::new();
    m.load(|_| {});
    m.set_csr(MIE, irq::MTI).set_csr(MSTATUS, mstatus::MIE);
    m.vm.platform.clock.set_timecmp(ticks);
    // One instruction before it is due, and when it is.
    let due = (ticks as u32 * IPT..).find(|&n| {
        let mut clock = m.vm.platform.clock.clone();
        clock.retired = u64::from(n);
        clock.now() >= ticks
    });
    let due = due.expect("time passes");
    m.run(due - 1);
    assert_eq!(m.taken(), None);
    m.run(1);
    assert_eq!(m.taken(), to_m(INTERRUPT | MTI, RAM, 0));
    assert_eq!(m.vm.platform.clock.retired, u64::from(due));
}

#[test]
fn wfi_jumps_to_the_timer_under_the_instret_clock() {
    let mut m = TestMachine::program(|a| {
        a.wfi().csrr(A0, TIME);
    });
    m.set_csr(MIE, irq::MTI);
    m.vm.platform.clock.set_timecmp(1_000_000);
    assert_eq!(m.run(10).code, ExitCode::Budget);
    assert_eq!(m.x(A0), 1_000_000);
}

#[test]
fn wfi_wakes_into_the_handler_when_enabled() {
    let mut m = TestMachine::program(|a| {
        a.wfi().li(A0, 1);
    });
    m.set_csr(MIE, irq::MTI).set_csr(MSTATUS, mstatus::MIE);
    m.vm.platform.clock.set_timecmp(500);
    m.run_out();
    assert_eq!(m.taken(), to_m(INTERRUPT | MTI, RAM + 4, 0));
    assert_eq!(m.x(A0), 0);
}

// "If an enabled interrupt is present or later becomes present while the hart is stalled, [...]
// the hart will resume execution at the following instruction" when interrupts are globally
// disabled (privileged 3.3.3).
#[test]
fn wfi_goes_on_when_an_interrupt_is_pending_but_disabled_globally() {
    let mut m = TestMachine::program(|a| {
        a.wfi().li(A0, 1);
    });
    m.set_csr(MIE, irq::SSI).set_csr(MIP, irq::SSI).run_out();
    assert_eq!((m.taken(), m.x(A0)), (None, 1));
}

#[test]
fn wfi_without_a_timer_idles_until_there_is_an_interrupt() {
    let mut m = TestMachine::program(|a| {
        a.wfi().li(A0, 1);
    });
    m.set_csr(MIE, irq::MSI);
    assert_eq!(m.run(10).code, ExitCode::Idle);
    assert_eq!(m.run(10).code, ExitCode::Idle);
    assert_eq!((m.x(A0), m.vm.platform.clock.retired), (0, 1));
    m.vm.platform.dev.clint.msip = 1;
    m.run(10);
    assert_eq!(m.x(A0), 1);
}

#[test]
fn wfi_does_not_wake_for_a_timer_that_is_not_enabled() {
    let mut m = TestMachine::program(|a| {
        a.wfi().li(A0, 1);
    });
    m.vm.platform.clock.set_timecmp(100);
    assert_eq!(m.run(10).code, ExitCode::Idle);
}

#[test]
fn wfi_ends_the_slice_under_the_host_clock() {
    let mut m = TestMachine::program(|a| {
        a.wfi().li(A0, 1);
    });
    m.set_csr(MIE, irq::MTI);
    m.vm.platform.clock.set_timecmp(1000);
    m.now = Now::Host { ticks: 10, rate: 1 << 20 };
    assert_eq!(m.run(10).code, ExitCode::Idle);
    m.now = Now::Host { ticks: 1000, rate: 1 << 20 };
    assert_eq!(m.run(10).code, ExitCode::Budget);
    assert_eq!(m.x(A0), 1);
}

#[test]
fn a_program_that_waits_for_time_ends_inside_one_slice() {
    let mut m = TestMachine::supervisor(|a| {
        a.csrr(A0, TIME).addi(A0, A0, 50);
        let wait = a.mark();
        a.csrr(A1, TIME).bltu(A1, A0, wait).li(A2, 1);
    });
    m.enter(Supervisor).run_out();
    assert_eq!(m.x(A2), 1);
}

//! Semihosting: requests by EBREAK between two marks, and newlib's system calls (RISC-V Semihosting
//! 1.0, and the operations that it takes from Arm's Semihosting for AArch32 and AArch64).

use pxvm_tests::asm::{Asm, csr::*, reg::*};
use pxvm_tests::machine::{DATA, RAM, RAM_SIZE, Sv32, pte, to_m, to_s};

use emu_core::abi::{Exit, ExitCode};
use emu_core::csr::{irq, mstatus};
use emu_core::mmu::Privilege::{Supervisor, User};
use emu_core::semihosting::Semihosting;

use crate::TestMachine;

/// Where a request's block of words is.
const BLOCK: u32 = DATA;
/// Where texts are.
const TEXT: u32 = DATA + 0x1000;
const FAILED: u32 = u32::MAX;
const END_OF_RAM: u32 = RAM + RAM_SIZE;
const APPLICATION_EXIT: u32 = 0x2_0026;

const OPEN: u32 = 0x01;
const CLOSE: u32 = 0x02;
const WRITEC: u32 = 0x03;
const WRITE0: u32 = 0x04;
const WRITE: u32 = 0x05;
const READ: u32 = 0x06;
const READC: u32 = 0x07;
const ISERROR: u32 = 0x08;
const ISTTY: u32 = 0x09;
const SEEK: u32 = 0x0a;
const FLEN: u32 = 0x0c;
const REMOVE: u32 = 0x0e;
const CLOCK: u32 = 0x10;
const TIME: u32 = 0x11;
const ERRNO: u32 = 0x13;
const GET_CMDLINE: u32 = 0x15;
const HEAPINFO: u32 = 0x16;
const EXIT: u32 = 0x18;
const EXIT_EXTENDED: u32 = 0x20;
const ELAPSED: u32 = 0x30;
const TICKFREQ: u32 = 0x31;

/// Returns a machine with semihosting that has loaded a program.
fn machine(f: impl FnOnce(&mut Asm)) -> TestMachine {
    let mut m = TestMachine::program(f);
    m.vm.platform.semihosting = Semihosting::new(true);
    m
}

/// Returns a machine at a request with this operation and parameter, which it has not made yet.
fn request(operation: u32, parameter: u32) -> TestMachine {
    let mut m = machine(|a| {
        a.semihost();
    });
    m.set_x(A0, operation).set_x(A1, parameter);
    m
}

/// Makes another request, and returns its result.
fn ask(m: &mut TestMachine, operation: u32, parameter: u32) -> u32 {
    m.set_x(A0, operation).set_x(A1, parameter).vm.hart.pc = RAM;
    m.run_out();
    assert_eq!(m.vm.hart.pc, RAM + 12, "the request returned");
    m.x(A0)
}

/// Makes a request with a block of words.
fn ask_with(m: &mut TestMachine, operation: u32, block: &[u32]) -> u32 {
    m.write_words(BLOCK, block);
    ask(m, operation, BLOCK)
}

fn open(m: &mut TestMachine, name: &str, mode: u32) -> u32 {
    m.write(TEXT, name.as_bytes());
    ask_with(m, OPEN, &[TEXT, mode, name.len() as u32])
}

#[test]
fn without_the_option_it_is_a_breakpoint() {
    let mut m = request(WRITEC, DATA);
    m.vm.platform.semihosting = Semihosting::new(false);
    m.run_out();
    assert_eq!(m.taken(), to_m(3, RAM + 4, RAM + 4));
}

// "slli x0, x0, 0x1f; ebreak; srai x0, x0, 7 [...] must be uncompressed" and in one page.
#[test]
fn an_ebreak_without_its_marks_is_a_breakpoint() {
    let marks = [0x01f0_1013, 0x4070_5013];
    for [before, after] in [[0x13, marks[1]], [marks[0], 0x13]] {
        let mut m = machine(|a| {
            a.word(before).ebreak().word(after);
        });
        m.set_x(A0, ERRNO).run_out();
        assert_eq!(m.taken(), to_m(3, RAM + 4, RAM + 4));
    }
    for (at, is_request) in [(0xff4, true), (0xff8, false), (0xffc, false)] {
        let mut m = machine(|a| {
            a.pad_to(RAM + at).semihost();
        });
        m.vm.hart.pc = RAM + at;
        m.set_x(A0, ERRNO).run_out();
        let ebreak = RAM + at + 4;
        let expected = if is_request { None } else { to_m(3, ebreak, ebreak) };
        assert_eq!(m.taken(), expected, "{at:#x}");
    }
}

#[test]
fn user_programs_make_no_requests() {
    let mut m = request(ERRNO, 0);
    m.enter(User).run_out();
    assert_eq!(m.taken(), to_m(3, RAM + 4, RAM + 4));
}

#[test]
fn texts_go_to_the_console() {
    let mut m = request(0, 0);
    let long = "0123456789".repeat(700);
    m.write(TEXT, long.as_bytes()).write(TEXT + 7000, &[0, b'!']);
    ask(&mut m, WRITE0, TEXT);
    assert_eq!(m.port.output, long.as_bytes());
    m.port.output.clear();
    ask(&mut m, WRITEC, TEXT + 7001);
    assert_eq!(ask_with(&mut m, WRITE, &[2, TEXT, 130]), 0);
    assert_eq!(ask_with(&mut m, WRITE, &[3, TEXT, 0]), 0);
    assert_eq!(m.port.output, format!("!{}", &long[..130]).as_bytes());
    // Handles that are not open for writing.
    for handle in [0, 1, 4, 5, FAILED] {
        assert_eq!(ask_with(&mut m, WRITE, &[handle, TEXT, 7]), 7);
        assert_eq!(ask(&mut m, ERRNO, 0), 9);
    }
}

#[test]
fn a_text_waits_for_room_and_comes_once_however_little_there_is() {
    let run = |room: u32| {
        let mut m = request(WRITE0, TEXT);
        m.write(TEXT, "x".repeat(1000).as_bytes());
        loop {
            m.port.output_room = room;
            match m.run(100 - m.vm.platform.clock.retired as u32).code {
                ExitCode::Stalled => {}
                code => break assert_eq!((code, m.port.output.len()), (ExitCode::Budget, 1000)),
            }
        }
        m.hash()
    };
    let expected = run(u32::MAX);
    for room in [64, 65, 120, 127, 1000] {
        assert_eq!(run(room), expected, "{room}");
    }
}

// While a request waits for room, a device of the guest's may write to what it refers to.
#[test]
fn a_request_may_change_while_it_waits() {
    let waits = || {
        let mut m = request(WRITE, BLOCK);
        m.write(TEXT, &[b'x'; 300]).write_words(BLOCK, &[2, TEXT, 200]).port.output_room = 64;
        assert_eq!(m.run(10).code, ExitCode::Stalled);
        m.port.output_room = u32::MAX;
        m
    };
    // What is left of a text that is shorter than what was written.
    let mut m = waits();
    m.write_words(BLOCK + 8, &[10]).run_out();
    assert_eq!((m.vm.hart.pc, m.x(A0), m.port.output.len()), (RAM + 12, 0, 64));
    // A breakpoint is no request, so nothing is left of that: interrupts come, and the next one
    // begins with its first byte.
    let mut m = waits();
    m.write_words(RAM + 8, &[0x13]).run_out();
    assert_eq!(m.taken(), to_m(3, RAM + 4, RAM + 4));
    m.write_words(RAM + 8, &[0x4070_5013]).port.output.clear();
    assert_eq!(ask_with(&mut m, WRITE, &[2, TEXT, 200]), 0);
    assert_eq!(m.port.output.len(), 200);
}

#[test]
fn a_text_is_not_interrupted() {
    let mut m = request(WRITE0, TEXT);
    m.write(TEXT, "x".repeat(1000).as_bytes());
    m.run(5);
    assert!(!m.port.output.is_empty() && m.port.output.len() < 1000);
    // The timer is due.
    m.vm.platform.clock.set_timecmp(0);
    m.set_csr(MIE, irq::MTI).set_csr(MSTATUS, mstatus::MIE);
    m.run_out();
    assert_eq!((m.port.output.len(), m.taken()), (1000, to_m(1 << 31 | 7, RAM + 8, 0)));
}

#[test]
fn input_is_waited_for() {
    let mut m = request(READC, 0);
    assert_eq!(m.run(100).code, ExitCode::Idle);
    assert!(m.vm.wants_input());
    m.port.input.extend(b"abc");
    m.run_out();
    assert_eq!((m.vm.hart.pc, m.x(A0)), (RAM + 12, u32::from(b'a')));
    // Fewer bytes than asked for.
    assert_eq!(ask_with(&mut m, READ, &[1, TEXT, 10]), 8);
    assert_eq!(m.read(TEXT, 3), b"bc\0");
    m.port.input.extend([b'x'; 1000]);
    assert_eq!(ask_with(&mut m, READ, &[1, TEXT, 10]), 0);
    assert_eq!(ask_with(&mut m, READ, &[1, TEXT, 0]), 0);
    assert_eq!(ask_with(&mut m, READ, &[2, TEXT, 10]), 10);
    // Nothing is lost where it cannot be stored.
    let left = m.port.input.len();
    assert_eq!(ask_with(&mut m, READ, &[1, END_OF_RAM, 10]), FAILED);
    assert_eq!(ask(&mut m, ERRNO, 0), 14);
    assert_eq!(m.port.input.len(), left);
}

#[test]
fn interrupts_come_while_input_is_waited_for() {
    let mut m = request(READC, 0);
    m.set_csr(MIE, irq::MTI).set_csr(MSTATUS, mstatus::MIE);
    m.vm.platform.clock.set_timecmp(1000);
    m.run(100);
    assert_eq!(m.taken(), to_m(1 << 31 | 7, RAM + 4, 0));
}

#[test]
fn a_program_ends_with_its_status() {
    let exit = |operation, parameter| {
        let mut m = request(operation, parameter);
        m.write_words(BLOCK, &[APPLICATION_EXIT, 7, 0x2_0022, 7]);
        m.run_out()
    };
    let powered_off = |arg| Exit { code: ExitCode::PowerOff, arg };
    assert_eq!(exit(EXIT, APPLICATION_EXIT), powered_off(0));
    // A run-time error.
    assert_eq!(exit(EXIT, 0x2_0023), powered_off(1));
    assert_eq!(exit(EXIT_EXTENDED, BLOCK), powered_off(7));
    assert_eq!(exit(EXIT_EXTENDED, BLOCK + 8), powered_off(1));
}

#[test]
fn the_console_is_a_terminal_and_the_only_file() {
    let mut m = request(0, 0);
    for (mode, handle) in [(0, 1), (3, 1), (4, 2), (7, 2), (8, 3), (11, 3), (12, FAILED)] {
        assert_eq!(open(&mut m, ":tt", mode), handle, "{mode}");
    }
    for handle in 1..=3 {
        assert_eq!(ask_with(&mut m, ISTTY, &[handle]), 1);
        assert_eq!(ask_with(&mut m, SEEK, &[handle, 0]), FAILED);
        assert_eq!(ask(&mut m, ERRNO, 0), 29);
        assert_eq!(ask_with(&mut m, FLEN, &[handle]), FAILED);
        assert_eq!(ask_with(&mut m, CLOSE, &[handle]), 0);
    }
    for name in ["/etc/passwd", ":t", ":tty", "", "x"] {
        assert_eq!(open(&mut m, name, 0), FAILED, "{name}");
        assert_eq!(ask(&mut m, ERRNO, 0), 13);
    }
    for operation in [CLOSE, ISTTY, SEEK, FLEN] {
        assert_eq!(ask_with(&mut m, operation, &[5, 0]), FAILED);
        assert_eq!(ask(&mut m, ERRNO, 0), 9);
    }
    for operation in [REMOVE, 0, 0x7fff, FAILED] {
        assert_eq!(ask_with(&mut m, operation, &[TEXT, 1]), FAILED);
        assert_eq!(ask(&mut m, ERRNO, 0), 88);
    }
}

#[test]
fn the_file_of_features_tells_that_an_exit_has_a_status() {
    let mut m = request(0, 0);
    assert_eq!(open(&mut m, ":semihosting-features", 4), FAILED);
    let handle = open(&mut m, ":semihosting-features", 0);
    assert_eq!(ask_with(&mut m, ISTTY, &[handle]), 0);
    assert_eq!(ask_with(&mut m, FLEN, &[handle]), 5);
    assert_eq!(ask_with(&mut m, READ, &[handle, TEXT, 4]), 0);
    assert_eq!(m.read(TEXT, 4), b"SHFB");
    assert_eq!(ask_with(&mut m, READ, &[handle, TEXT, 4]), 3);
    assert_eq!(m.read(TEXT, 1), [3]);
    assert_eq!(ask_with(&mut m, READ, &[handle, TEXT, 4]), 4);
    assert_eq!(ask_with(&mut m, SEEK, &[handle, 1]), 0);
    assert_eq!(ask_with(&mut m, READ, &[handle, TEXT, 100]), 96);
    assert_eq!(m.read(TEXT, 4), b"HFB\x03");
    assert_eq!(ask_with(&mut m, SEEK, &[handle, 6]), FAILED);
}

#[test]
fn time_is_the_guests() {
    let mut m = request(0, 0);
    m.vm.platform.dev.rtc.epoch_ns = 1_767_225_600_000_000_000;
    m.vm.platform.clock.set_timecmp(u64::MAX);
    assert_eq!(ask(&mut m, TICKFREQ, 0), 10_000_000);
    assert_eq!(ask(&mut m, ELAPSED, BLOCK), 0);
    let ticks = m.word(BLOCK);
    assert!(ticks > 0 && m.word(BLOCK + 4) == 0, "{ticks}");
    assert_eq!(ask(&mut m, TIME, 0), 1_767_225_600);
    assert_eq!(ask(&mut m, CLOCK, 0), m.word(BLOCK) / 100_000);
}

#[test]
fn what_is_not_known_is_empty() {
    let mut m = request(0, 0);
    m.write(TEXT, b"xx");
    assert_eq!(ask_with(&mut m, GET_CMDLINE, &[TEXT, 2]), 0);
    assert_eq!((m.read(TEXT, 2), m.word(BLOCK + 4)), (b"\0x".to_vec(), 0));
    assert_eq!(ask_with(&mut m, GET_CMDLINE, &[TEXT, 0]), FAILED);
    m.write_words(TEXT, &[1; 5]);
    assert_eq!(ask_with(&mut m, HEAPINFO, &[TEXT]), 0);
    assert_eq!([m.word(TEXT), m.word(TEXT + 12), m.word(TEXT + 16)], [0, 0, 1]);
    assert_eq!(ask_with(&mut m, ISERROR, &[5]), 0);
    assert_ne!(ask_with(&mut m, ISERROR, &[FAILED]), 0);
}

// Blocks and texts that are not in RAM, or not to their end.
#[test]
fn wild_pointers_fail() {
    const DEVICE: u32 = 0x1000_0000;
    let mut m = request(0, 0);
    for at in [0, DEVICE, RAM - 1, END_OF_RAM - 2, FAILED - 1] {
        for operation in [OPEN, CLOSE, WRITE, READ, ISTTY, EXIT_EXTENDED, ELAPSED, HEAPINFO] {
            assert_eq!(ask(&mut m, operation, at), FAILED, "{operation:#x} {at:#x}");
            assert_eq!(ask(&mut m, ERRNO, 0), 14);
        }
    }
    assert_eq!(ask_with(&mut m, OPEN, &[DEVICE, 0, 3]), FAILED);
    assert_eq!(ask_with(&mut m, WRITE, &[2, DEVICE, 3]), 3);
    m.write(END_OF_RAM - 70, &[b'e'; 70]);
    assert_eq!(ask_with(&mut m, WRITE, &[2, END_OF_RAM - 70, u32::MAX]), u32::MAX - 70);
    assert_eq!(m.port.output.len(), 70);
    ask(&mut m, WRITE0, END_OF_RAM - 70);
    assert_eq!(m.port.output.len(), 140);
    assert_eq!(m.taken(), None);
}

#[test]
fn pointers_are_the_programs_own_addresses() {
    const VA: u32 = 0x4000_0000;
    let mut m = request(WRITE0, VA);
    m.write(TEXT, b"virtual\0");
    let mut tables = Sv32::new();
    tables.map(&mut m, RAM, RAM, pte::S_ALL).map(&mut m, VA, TEXT, pte::S_ALL);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!((m.port.output.as_slice(), m.taken()), (&b"virtual"[..], None));
    assert_eq!(m.vm.hart.pc, RAM + 12);
    // What it may not read, others may not read for it.
    tables.map(&mut m, VA + 0x1000, TEXT, pte::U_ALL);
    assert_eq!(ask(&mut m, WRITEC, VA + 0x1000), FAILED);
}

/// Returns a machine that makes one of newlib's system calls, with no trap handler.
fn newlib(number: u32, args: [u32; 3]) -> TestMachine {
    let mut m = machine(|a| {
        a.ecall();
    });
    m.set_csr(MTVEC, 0).set_x(A7, number).set_x(A0, args[0]).set_x(A1, args[1]);
    m.set_x(A2, args[2]);
    m
}

#[test]
fn newlibs_system_calls_print_read_and_end() {
    const FAULT: u32 = -14i32 as u32;
    let call = |number, args| {
        let mut m = newlib(number, args);
        m.write(TEXT, b"hello");
        m.port.input.extend(b"in");
        let exit = m.run_out();
        (m, exit)
    };
    let (m, _) = call(64, [1, TEXT, 5]);
    assert_eq!((m.port.output.as_slice(), m.x(A0), m.vm.hart.pc), (&b"hello"[..], 5, RAM + 4));
    assert_eq!(call(64, [2, TEXT, 0]).0.x(A0), 0);
    assert_eq!(call(64, [2, 0, 5]).0.x(A0), FAULT);
    assert_eq!(call(64, [3, TEXT, 5]).0.x(A0), -9i32 as u32);
    let (mut m, _) = call(63, [0, TEXT, 5]);
    assert_eq!((m.read(TEXT, 5), m.x(A0)), (b"inllo".to_vec(), 2));
    assert_eq!(call(63, [0, 0, 5]).0.x(A0), FAULT);
    for number in [80, 214, FAILED] {
        assert_eq!(call(number, [1, TEXT, 0]).0.x(A0), -38i32 as u32);
    }
    for number in [93, 94] {
        assert_eq!(call(number, [7, 0, 0]).1, Exit { code: ExitCode::PowerOff, arg: 7 });
    }
}

#[test]
fn a_program_that_handles_its_traps_serves_its_own_calls() {
    let mut m = newlib(93, [0; 3]);
    m.set_csr(MTVEC, pxvm_tests::machine::M_HANDLER).run_out();
    assert_eq!(m.taken(), to_m(11, RAM, 0));
    let mut m = newlib(93, [0; 3]);
    m.set_csr(MEDELEG, 1 << 9).enter(Supervisor).run_out();
    assert_eq!(m.taken(), to_s(9, RAM, 0));
}

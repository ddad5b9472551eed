//! Copy on write, and what happens when the host has no room.

use pxvm_tests::asm::{csr::*, reg::*};
use pxvm_tests::hash::StateHash;
use pxvm_tests::machine::{DATA, RAM, Sv32, pte};
use pxvm_tests::memory::Frames;

use emu_core::abi::ExitCode;
use emu_core::csr::mstatus;
use emu_core::mmu::Privilege::Supervisor;
use emu_core::sbi::eid;

use crate::TestMachine;

const UART: u32 = 0x1000_0000;

#[test]
fn a_store_leaves_the_shared_frame_alone() {
    let frames = Frames::new(&[[0x11; 4096]], 16);
    let mut a = TestMachine::on(&frames, vec![0, 1, 1]);
    let mut b = TestMachine::on(&frames, vec![0, 1, 1]);
    for m in [&mut a, &mut b] {
        m.load(|a| {
            a.lw(A0, 0, S0).sw(A1, 0, S0).lw(A2, 0, S0);
        });
        m.set_x(S0, RAM + 0x1000);
    }
    let image = frames.shared_bytes();
    a.set_x(A1, 7).run_out();
    b.set_x(A1, 8).run_out();
    assert_eq!((a.x(A0), a.x(A2), b.x(A0), b.x(A2)), (0x1111_1111, 7, 0x1111_1111, 8));
    // The page with the same frame is another page.
    assert_eq!(a.word(RAM + 0x2000), 0x1111_1111);
    assert!(a.is_private(RAM + 0x1000) && !a.is_private(RAM + 0x2000));
    assert_eq!(frames.shared_bytes(), image);
}

#[test]
fn loads_copy_nothing() {
    let frames = Frames::new(&[[0x11; 4096]], 16);
    let mut m = TestMachine::on(&frames, vec![0, 1]);
    m.load(|a| {
        a.lw(A0, 0, S0).lr_w(A1, S0).lbu(A2, 0xff - 0x200, S0);
    });
    let before = frames.private_in_use();
    m.set_x(S0, RAM + 0x1800).run_out();
    assert_eq!((m.x(A0), frames.private_in_use()), (0x1111_1111, before));
}

#[test]
fn the_rest_of_a_copied_page_keeps_its_content() {
    let frames = Frames::new(&[[0x22; 4096]], 16);
    let mut m = TestMachine::on(&frames, vec![0, 1]);
    m.load(|a| {
        a.sb(ZERO, 5, S0);
    });
    m.set_x(S0, RAM + 0x1000).run_out();
    let mut expected = vec![0x22; 4096];
    expected[5] = 0;
    assert_eq!(m.read(RAM + 0x1000, 4096), expected);
}

/// A program that writes to many fresh pages in every way there is, in S-mode under Sv32 so that
/// page tables are copied too.
fn greedy() -> TestMachine {
    let mut m = TestMachine::program(|a| {
        let top = a.li(S2, 40).mark();
        a.sw(S2, 8, S0).add(S0, S0, S1).sw(S2, -2, S0).add(S0, S0, S1);
        a.amoadd_w(T0, S2, S0).add(S0, S0, S1).lr_w(T0, S0).sc_w(T1, S2, S0);
        a.add(S3, S3, T1).add(S0, S0, S1).addi(S2, S2, -1).bne(S2, ZERO, top);
    });
    let mut tables = Sv32::new();
    tables.map_super(&mut m, RAM, RAM, pte::S_ALL);
    for page in 0..161 {
        let va = 0x4000_0000 + page * 0x1000;
        tables.map(&mut m, va, DATA + page * 0x1000, pte::V | pte::R | pte::W);
    }
    m.set_x(S0, 0x4000_0000).set_x(S1, 0x1000);
    tables.enable(&mut m, Supervisor);
    m
}

#[test]
fn without_frames_a_machine_stops_and_goes_on_where_it_was() {
    let mut free = greedy();
    free.run_out();
    let mut poor = greedy();
    poor.frames().limit(0);
    let mut stops = 0;
    let mut retired = 0;
    loop {
        let exit = poor.run(20_000);
        match exit.code {
            ExitCode::Budget => break,
            ExitCode::NoFrame => {
                // Asking again without a frame changes nothing.
                let before = poor.hash();
                assert_eq!(poor.run(20_000).code, ExitCode::NoFrame);
                assert_eq!(poor.hash(), before);
                assert!(poor.vm.platform.clock.retired >= retired);
                retired = poor.vm.platform.clock.retired;
                stops += 1;
                poor.frames().limit(1);
            }
            code => panic!("{code:?}"),
        }
    }
    assert!(stops > 100, "{stops} stops");
    assert_eq!(free.x(S3), poor.x(S3));
    let (a, b) = (free.hash(), poor.hash());
    assert_eq!((a.ram, a.csr, a.devices), (b.ram, b.csr, b.devices));
    assert_eq!(free.vm.hart.x, poor.vm.hart.x);
}

#[test]
fn frames_go_back_to_the_pool_with_their_machine() {
    let frames = Frames::new(&[], 16);
    {
        let mut m = TestMachine::on(&frames, Vec::new());
        m.load(|a| {
            a.sw(ZERO, 0, S0);
        });
        m.set_x(S0, DATA).run_out();
        assert!(frames.private_in_use() > 1);
    }
    assert_eq!(frames.private_in_use(), 0);
}

/// Runs a machine whose port has room for `room` bytes at a time. Returns its output, its state at
/// the end, and how often it stalled.
fn printed(mut m: TestMachine, room: u32) -> (Vec<u8>, StateHash, usize) {
    m.port.output_room = 0;
    let mut stalls = 0;
    let mut left = 3000;
    loop {
        let before = m.vm.platform.clock.retired;
        let exit = m.run(left);
        left -= (m.vm.platform.clock.retired - before) as u32;
        match exit.code {
            ExitCode::Stalled => {
                stalls += 1;
                m.port.output_room = m.port.output_room.saturating_add(room);
            }
            ExitCode::Budget => break,
            code => panic!("{code:?}"),
        }
    }
    let hash = m.hash();
    (std::mem::take(&mut m.port.output), hash, stalls)
}

fn compare_rooms(machine: impl Fn() -> TestMachine, rooms: [u32; 3]) {
    let (all, state, _) = printed(machine(), 1 << 20);
    assert!(!all.is_empty());
    for room in rooms {
        let (output, hash, stalls) = printed(machine(), room);
        assert!(stalls > 3, "room {room}");
        assert_eq!(output, all, "room {room}");
        assert_eq!(hash, state, "room {room}");
    }
}

#[test]
fn a_full_console_stalls_the_uart_and_loses_nothing() {
    let machine = || {
        TestMachine::program(|a| {
            let top = a.li(S0, UART).li(S2, 100).mark();
            a.sb(S2, 0, S0).lbu(T0, 5, S0).add(S3, S3, T0).csrr(T1, TIME).xor(S4, S4, T1);
            a.addi(S2, S2, -1).bne(S2, ZERO, top);
        })
    };
    compare_rooms(machine, [1, 2, 7]);
}

#[test]
fn a_full_console_stalls_the_debug_console_and_loses_nothing() {
    let machine = || {
        let mut m = TestMachine::supervisor(|a| {
            let top = a.li(S2, 20).mark();
            a.li(A7, eid::DBCN).li(A6, 0).li(A0, 64).li(A1, DATA).li(A2, 0).ecall();
            a.add(S3, S3, A1).li(A6, 2).mv(A0, S2).ecall();
            a.li(A7, eid::LEGACY_CONSOLE_PUTCHAR).mv(A0, S2).ecall();
            a.addi(S2, S2, -1).bne(S2, ZERO, top);
        });
        let text: Vec<u8> = (0..64).map(|i| b'0' + i).collect();
        m.write(DATA, &text);
        m
    };
    compare_rooms(machine, [64, 65, 100]);
}

#[test]
fn a_stall_with_interrupts_enabled_repeats_only_the_store() {
    // The timer is due while the machine waits for room; it comes once, at its own instruction.
    let machine = || {
        let mut m = TestMachine::program(|a| {
            let handler = a.label();
            a.la(T0, handler).csrrw(ZERO, MTVEC, T0);
            let top = a.li(S0, UART).li(S2, 60).mark();
            a.sb(S2, 0, S0).addi(S2, S2, -1).bne(S2, ZERO, top).stop();
            a.place(handler).csrr(T0, MEPC).xor(S4, S4, T0).addi(S5, S5, 1);
            a.csrr(T1, TIME).addi(T1, T1, 3).li(T2, 0x0200_4000).sw(T1, 0, T2).sw(ZERO, 4, T2);
            a.mret();
        });
        m.set_csr(MIE, 1 << 7).set_csr(MSTATUS, mstatus::MIE);
        m.vm.platform.clock.set_timecmp(5);
        m
    };
    compare_rooms(machine, [1, 3, 5]);
}

//! Devices end to end: from their registers through PLIC and CLINT to the trap handler.

use pxvm_tests::asm::{Asm, csr::*, reg::*};
use pxvm_tests::machine::{DATA, RAM, RAM_SIZE, to_m};
use pxvm_tests::memory::{Frames, Space};
use pxvm_tests::tutorial;

use emu_core::abi::{Exit, ExitCode, Vm};
use emu_core::chacha::ChaCha;
use emu_core::csr::{irq, mstatus};
use emu_core::dev::virtio::driver::reg;
use emu_core::dev::virtio::mmio::Version;
use emu_core::dev::virtio::{DeviceKind, blk::Blk, net::Net, rng::Rng};
use emu_core::layout::MachineKind;
use emu_core::mmu::Privilege::User;

use crate::TestMachine;

const INTERRUPT: u32 = 1 << 31;
const SEI: u32 = 9;
const MEI: u32 = 11;

const UART: u32 = 0x1000_0000;
const UART_IRQ: u32 = 10;
const FINISHER: u32 = 0x10_0000;
const PLIC: u32 = 0x0c00_0000;
const PLIC_ENABLE: u32 = PLIC + 0x2000;
const PLIC_CONTEXT: u32 = PLIC + 0x20_0000;
const VIRTIO: u32 = 0x1000_1000;

fn exit_after_store(value: u32) -> Exit {
    TestMachine::program(|a| {
        a.store_li(FINISHER, value);
    })
    .run_out()
}

#[test]
fn the_finisher_powers_off_fails_and_resets() {
    assert_eq!(exit_after_store(0x5555), Exit { code: ExitCode::PowerOff, arg: 0 });
    assert_eq!(exit_after_store(0x002a_3333), Exit { code: ExitCode::PowerOff, arg: 42 });
    assert_eq!(exit_after_store(0x7777).code, ExitCode::Reset);
    assert_eq!(exit_after_store(0x1234).code, ExitCode::Budget);
}

#[test]
fn the_instruction_that_ends_the_machine_retires() {
    let mut m = TestMachine::program(|a| {
        a.li(A0, FINISHER).li(A1, 0x5555).sw(A1, 0, A0).li(A2, 1);
    });
    let words = Asm::build(RAM, |a| {
        a.li(A0, FINISHER).li(A1, 0x5555).sw(A1, 0, A0);
    });
    m.run_out();
    assert_eq!(m.vm.hart.pc, RAM + 4 * words.len() as u32);
    assert_eq!((m.vm.platform.clock.retired, m.x(A2)), (words.len() as u64, 0));
}

#[test]
fn a_byte_stored_to_the_uart_comes_out() {
    let mut m = TestMachine::program(|a| {
        a.li(S0, UART);
        for byte in b"hi\n" {
            a.li(A0, u32::from(*byte)).sb(A0, 0, S0);
        }
        a.lbu(A1, 5, S0);
    });
    m.run_out();
    assert_eq!((&m.port.output[..], m.x(A1)), (&b"hi\n"[..], 0x60));
}

#[test]
fn input_shows_in_the_line_status_and_is_read_in_order() {
    let mut m = TestMachine::program(|a| {
        a.li(S0, UART).lbu(A0, 5, S0).lbu(A1, 0, S0).lbu(A2, 0, S0).lbu(A3, 5, S0);
    });
    m.port.input.extend(b"xy");
    m.run_out();
    assert_eq!([A0, A1, A2, A3].map(|r| m.x(r)), [0x61, b'x'.into(), b'y'.into(), 0x60]);
}

#[test]
fn a_run_that_continues_another_takes_no_input() {
    let mut m = TestMachine::program(|a| {
        a.li(S0, UART).lbu(A0, 5, S0);
        a.nop().lbu(A1, 5, S0);
    });
    m.port.input.push_back(b'x');
    m.lane.continues = true;
    m.run(3);
    m.lane.continues = false;
    m.run_out();
    assert_eq!([A0, A1].map(|r| m.x(r)), [0x60, 0x61]);
}

/// Lets UART interrupts through the PLIC to context `context`.
fn enable_uart(a: &mut Asm, context: u32) {
    a.store_li(PLIC + 4 * UART_IRQ, 1);
    a.store_li(PLIC_ENABLE + 0x80 * context, 1 << UART_IRQ);
    a.store_li(PLIC_CONTEXT + 0x1000 * context, 0);
    // Receiver interrupts.
    a.li(T0, UART).li(T1, 1).sb(T1, 1, T0);
}

#[test]
fn uart_input_interrupts_machine_mode_through_the_plic() {
    let mut m = TestMachine::program(|a| {
        enable_uart(a, 0);
        a.li(T0, irq::MEI).csrrs(ZERO, MIE, T0).csrrsi(ZERO, MSTATUS, mstatus::MIE);
    });
    m.run_out();
    assert_eq!(m.taken(), None);
    let pc = m.vm.hart.pc;
    m.port.input.push_back(b'!');
    m.run_out();
    assert_eq!(m.taken(), to_m(INTERRUPT | MEI, pc, 0));
}

#[test]
fn uart_input_interrupts_supervisor_mode_through_the_plic() {
    let mut m = TestMachine::program(|a| {
        enable_uart(a, 1);
    });
    m.set_csr(MIDELEG, irq::SEI).set_csr(MIE, irq::SEI).run_out();
    m.enter(User);
    m.port.input.push_back(b'!');
    m.run_out();
    assert_eq!(m.taken().map(|t| t.cause), Some(INTERRUPT | SEI));
}

#[test]
fn claim_and_complete_serve_an_interrupt_once() {
    let mut m = TestMachine::program(|a| {
        enable_uart(a, 0);
        a.li(S0, PLIC_CONTEXT).li(S1, UART);
        a.csrr(A0, MIP).lw(A1, 4, S0).csrr(A2, MIP).lw(A3, 4, S0);
        a.lbu(A4, 0, S1).sw(A1, 4, S0).csrr(A5, MIP).lw(A6, 4, S0);
    });
    m.port.input.push_back(b'!');
    m.run_out();
    assert_eq!([A0, A1, A2, A3].map(|r| m.x(r)), [irq::MEI, UART_IRQ, 0, 0]);
    assert_eq!([A4, A5, A6].map(|r| m.x(r)), [u32::from(b'!'), 0, 0]);
}

#[test]
fn a_line_that_stays_high_interrupts_again_after_completion() {
    let mut m = TestMachine::program(|a| {
        enable_uart(a, 0);
        a.li(S0, PLIC_CONTEXT).lw(A1, 4, S0).sw(A1, 4, S0).csrr(A2, MIP).lw(A3, 4, S0);
    });
    m.port.input.push_back(b'!');
    m.run_out();
    assert_eq!([A1, A2, A3].map(|r| m.x(r)), [UART_IRQ, irq::MEI, UART_IRQ]);
}

#[test]
fn a_waiting_hart_wakes_for_input() {
    let mut m = TestMachine::program(|a| {
        enable_uart(a, 0);
        a.li(T0, irq::MEI).csrrs(ZERO, MIE, T0).wfi().li(A0, 1);
    });
    assert_eq!(m.run_out().code, ExitCode::Idle);
    m.port.input.push_back(b'!');
    m.run_out();
    assert_eq!(m.x(A0), 1);
}

#[test]
fn plic_threshold_masks() {
    let mut m = TestMachine::program(|a| {
        enable_uart(a, 0);
        a.li(S0, PLIC_CONTEXT).li(T0, 1).sw(T0, 0, S0).csrr(A0, MIP).sw(ZERO, 0, S0);
        a.csrr(A1, MIP);
    });
    m.port.input.push_back(b'!');
    m.run_out();
    assert_eq!((m.x(A0), m.x(A1)), (0, irq::MEI));
}

#[test]
fn virtio_transports_answer_with_their_magic() {
    let mut m = TestMachine::program(|a| {
        a.li(S0, VIRTIO).lw(A0, 0, S0).lw(A1, 4, S0).lw(A2, 8, S0);
        a.li(S0, VIRTIO + 0x1000).lw(A3, 8, S0);
    });
    m.vm.platform.dev.virtio.rng = Rng::new(ChaCha::new([0; 8]));
    m.run_out();
    assert_eq!([A0, A1, A2, A3].map(|r| m.x(r)), [0x7472_6976, 2, 0, 4]);
}

/// Looks for a disk as tutorials do, behind each transport, and returns what is in `a0`: the slot,
/// or 8.
fn find_a_disk(disk_in: Option<u32>) -> u32 {
    let mut m = TestMachine::program(|a| {
        let (next, found, wrong) = (a.label(), a.label(), a.label());
        a.li(A0, 0).li(S0, VIRTIO).li(S1, 0x7472_6976).li(S2, 0x554d_4551).li(S3, 2);
        a.li(S4, 8).li(S5, 0x1000);
        let again = a.mark();
        a.lw(T0, 0, S0).bne(T0, S1, wrong).lw(T0, 0xc, S0).bne(T0, S2, wrong);
        a.lw(T0, 8, S0).beq(T0, S3, found).bne(T0, ZERO, next).sw(S1, 0x70, S0);
        a.lw(T0, 0x70, S0).bne(T0, ZERO, wrong);
        a.place(next).add(S0, S0, S5).addi(A0, A0, 1).bne(A0, S4, again).j(found);
        a.place(wrong).li(A0, u32::MAX).place(found);
    });
    if let Some(slot) = disk_in {
        m.vm.platform.dev.virtio.blk = Blk::new(1);
        m.vm.platform.dev.virtio.place(DeviceKind::Blk, slot);
    }
    m.vm.platform.dev.virtio.rng = Rng::new(ChaCha::new([0; 8]));
    m.run_out();
    assert_eq!(m.taken(), None);
    m.x(A0)
}

#[test]
fn a_scan_finds_the_disk_in_any_slot_and_ends_without_one() {
    for slot in [0, 2, 3, 7] {
        assert_eq!(find_a_disk(Some(slot)), slot);
    }
    assert_eq!(find_a_disk(None), 8);
}

/// A machine with a disk of these two sectors in a slot.
fn with_disk(sectors: &[u8; 1024], slot: u32, version: Version) -> TestMachine {
    let frames = Frames::new(&[], 600);
    let space = Space::new(&frames, vec![0; RAM_SIZE as usize / 4096]);
    let mut m = TestMachine::with_space(space.with_disk(sectors));
    let virtio = &mut m.vm.platform.dev.virtio;
    virtio.version = version;
    virtio.rng = Rng::new(ChaCha::new([0; 8]));
    virtio.blk = Blk::new(2);
    virtio.place(DeviceKind::Blk, slot);
    m
}

#[test]
fn a_legacy_driver_reads_and_writes_a_disk_in_any_slot() {
    for slot in [0, 7] {
        let mut m = with_disk(&[0x5a; 1024], slot, Version::Legacy);
        m.write_words(RAM, &tutorial::legacy_disk());
        assert_eq!(m.run_out(), Exit { code: ExitCode::PowerOff, arg: 0 });
        assert_eq!(m.port.output, b"ok\n");
        assert!(!m.vm.platform.dev.virtio.wrong_version());
    }
}

#[test]
fn a_legacy_driver_learns_that_the_transport_is_modern() {
    let mut m = with_disk(&[0; 1024], 0, Version::Modern);
    m.write_words(RAM, &tutorial::legacy_disk());
    assert_eq!(m.run_out(), Exit { code: ExitCode::PowerOff, arg: 1 });
}

#[test]
fn a_driver_that_does_not_look_at_the_version_is_noticed() {
    for (version, register, noticed) in [
        (Version::Modern, reg::QUEUE_PFN, true),
        (Version::Modern, reg::QUEUE_READY, false),
        (Version::Legacy, reg::QUEUE_READY, true),
        (Version::Legacy, reg::QUEUE_PFN, false),
    ] {
        let mut m = with_disk(&[0; 1024], 0, version);
        m.load(|a| {
            a.store_li(VIRTIO + 0x3000 + register, 1).store_li(VIRTIO + register, 1);
        });
        m.run_out();
        assert_eq!(m.vm.platform.dev.virtio.wrong_version(), noticed);
    }
    // Some write the registers of both.
    let mut m = with_disk(&[0; 1024], 0, Version::Legacy);
    m.load(|a| {
        a.store_li(VIRTIO + reg::QUEUE_READY, 0).store_li(VIRTIO + reg::QUEUE_PFN, RAM);
    });
    m.run_out();
    assert!(!m.vm.platform.dev.virtio.wrong_version());
}

#[test]
fn a_scan_sees_what_is_in_each_slot() {
    let mut m = with_disk(&[0; 1024], 7, Version::Legacy);
    m.write_words(RAM, &tutorial::slot_scan());
    assert_eq!(m.run_out(), Exit { code: ExitCode::PowerOff, arg: 0 });
    assert_eq!(m.port.output, b".4.....2");
}

#[test]
fn behind_the_last_transport_there_is_nothing() {
    let mut m = TestMachine::program(|a| {
        a.li(S0, VIRTIO + 0x8000).lw(A0, 0, S0);
    });
    m.run_out();
    assert_eq!(m.taken().map(|t| (t.cause, t.tval)), Some((5, VIRTIO + 0x8000)));
}

/// A machine with semu's map, in S-mode under the built-in SBI.
fn semu(code: impl FnOnce(&mut Asm)) -> TestMachine {
    let mut m = TestMachine::new();
    let words = Asm::build(0, |a| {
        code(a);
        a.stop();
    });
    m.write_words(RAM, &words);
    m.vm = Vm::new(MachineKind::Semu);
    m.vm.boot_supervisor(0, 0, 0);
    m
}

#[test]
fn the_timer_of_semu_is_where_semu_has_it() {
    let mut m = semu(|a| {
        a.li(S0, 0xf430_0000).csrr(A0, SIP).sw(ZERO, 4, S0).sw(ZERO, 0, S0).csrr(A1, SIP);
        a.li(T0, u32::MAX).sw(T0, 4, S0).csrr(A2, SIP).lw(A3, 4, S0);
        a.li(S0, 0xf430_7ff8).lw(A4, 0, S0).nop().nop().lw(A5, 0, S0);
    });
    m.run_out();
    let pending = [A0, A1, A2].map(|r| m.x(r) & irq::STI);
    assert_eq!((pending, m.x(A3)), ([0, irq::STI, 0], u32::MAX));
    assert!(m.x(A4) < m.x(A5));
}

#[test]
fn software_interrupts_of_semu_are_where_semu_has_them() {
    let mut m = semu(|a| {
        a.li(S0, 0xf440_0000).li(S1, 0xf450_0000).li(T0, 1);
        a.sw(T0, 0, S0).csrr(A0, SIP).lw(A1, 0, S0).sw(ZERO, 0, S0).csrr(A2, SIP);
        a.sw(ZERO, 0, S1).csrr(A3, SIP).sw(T0, 0, S1).csrr(A4, SIP).lw(A5, 0, S1);
    });
    m.run_out();
    let pending = [A0, A2, A3, A4].map(|r| m.x(r) & irq::SSI);
    assert_eq!((pending, m.x(A1), m.x(A5)), ([irq::SSI, 0, 0, irq::SSI], 1, 0));
}

#[test]
fn the_virtio_devices_of_semu_are_where_semu_has_them() {
    let mut m = semu(|a| {
        for (register, at) in [(A0, 0xf410_0000), (A1, 0xf420_0000), (A2, 0xf460_0000)] {
            a.li(S0, at).lw(register, 8, S0);
        }
    });
    m.vm.platform.dev.virtio.net = Net::new([2, 0, 0, 0, 0, 1]);
    m.vm.platform.dev.virtio.rng = Rng::new(ChaCha::new([0; 8]));
    m.vm.platform.dev.virtio.blk = Blk::new(1);
    m.run_out();
    assert_eq!([A0, A1, A2].map(|r| m.x(r)), [1, 2, 4]);
}

#[test]
fn the_interrupt_is_that_of_the_slot() {
    let mut m = TestMachine::program(|a| {
        a.store_li(PLIC + 4 * 8, 1).store_li(PLIC_ENABLE, 1 << 8);
        ask_for_entropy_in(7, a, DATA, 64);
        a.li(S0, PLIC_CONTEXT).lw(A0, 4, S0);
    });
    m.vm.platform.dev.virtio.rng = Rng::new(ChaCha::new([0; 8]));
    m.vm.platform.dev.virtio.place(DeviceKind::Rng, 7);
    m.run_out();
    assert_eq!((m.taken(), m.x(A0)), (None, 8));
}

/// Sets up queue 0 of the entropy device with one buffer of `len` bytes at `buffer`.
pub fn ask_for_entropy(a: &mut Asm, buffer: u32, len: u32) {
    ask_for_entropy_in(1, a, buffer, len);
}

/// The same with the device in another slot.
fn ask_for_entropy_in(slot: u32, a: &mut Asm, buffer: u32, len: u32) {
    let transport = VIRTIO + 0x1000 * slot;
    const QUEUE: u32 = DATA + 0x8000;
    let registers = [
        (0x70, 0),
        (0x70, 1 | 2),
        (0x24, 1),
        (0x20, 1),
        (0x24, 0),
        (0x20, 0),
        (0x70, 1 | 2 | 8),
        (0x30, 0),
        (0x38, 8),
        (0x80, QUEUE),
        (0x84, 0),
        (0x90, QUEUE + 0x1000),
        (0x94, 0),
        (0xa0, QUEUE + 0x2000),
        (0xa4, 0),
        (0x44, 1),
        (0x70, 1 | 2 | 8 | 4),
    ];
    for (register, value) in registers {
        a.store_li(transport + register, value);
    }
    // Descriptor 0: for the device to write. Available ring: one entry, descriptor 0.
    a.store_li(QUEUE, buffer).store_li(QUEUE + 8, len).store_li(QUEUE + 12, 2);
    a.store_li(QUEUE + 0x1000, 1 << 16);
    // The notification.
    a.store_li(transport + 0x50, 0);
}

#[test]
fn a_virtio_device_writes_memory_and_interrupts() {
    let mut m = TestMachine::program(|a| {
        a.store_li(PLIC + 4 * 2, 1).store_li(PLIC_ENABLE, 1 << 2);
        ask_for_entropy(a, DATA, 64);
        a.li(S0, PLIC_CONTEXT).lw(A0, 4, S0).li(S0, DATA + 0xa000).lw(A1, 0, S0).lw(A2, 8, S0);
    });
    m.vm.platform.dev.virtio.rng = Rng::new(ChaCha::new([0; 8]));
    m.run_out();
    assert_eq!((m.taken(), m.x(A0), m.x(A1), m.x(A2)), (None, 2, 1 << 16, 64));
    assert_ne!(m.read(DATA, 64), vec![0; 64]);
}

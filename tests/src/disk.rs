//! A bare-metal guest that uses its disk, and what it may find there.

use emu_core::dev::virtio::DeviceKind;
use emu_core::dev::virtio::driver::reg;
use emu_core::layout::VIRT;

use crate::asm::{Asm, reg::*};
use crate::machine::RAM;

const POWER_OFF: u32 = 0x5555;
/// Descriptors, the driver's ring, the device's, the header, the status and the data.
const TABLES: u32 = RAM + 0x1_0000;
const DRIVER_RING: u32 = TABLES + 0x200;
const DEVICE_RING: u32 = TABLES + 0x400;
const HEADER: u32 = TABLES + 0x800;
const STATUS: u32 = TABLES + 0x900;
const DATA: u32 = TABLES + 0x1000;
/// Bytes of data in a request: 16 sectors.
const LEN: u32 = 8192;
const QUEUE_SIZE: u32 = 8;
/// Descriptor flags.
const NEXT: u32 = 1;
const WRITE: u32 = 2;

/// The guest's requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Reads, writes, zeros and discards in turn, and nothing but them.
    Mixed,
    /// Reads alone.
    Reads,
    /// Writes of whole requests alone, and a flush after each.
    Writes,
}

/// Returns a program that makes `rounds` requests of 16 sectors, at places on a disk of `sectors`
/// sectors that follow from `seed`: some far apart, some close together, so that it meets what it
/// has written. Then it prints a checksum of all that it has read, how many requests failed, and
/// powers off, or resets with `ends_with_reset`.
pub fn program(
    work: Work,
    rounds: u32,
    sectors: u32,
    seed: u32,
    ends_with_reset: bool,
) -> Vec<u32> {
    Asm::build(RAM, |a| {
        let slot = DeviceKind::Blk.default_slot() as usize;
        a.li(S1, VIRT.virtio[slot].mmio.base).li(S2, TABLES).li(S3, VIRT.uart.base);
        set_up(a);
        a.li(S0, seed).li(S4, rounds).li(S5, 0).li(S6, 0).li(S7, 0);
        let round = a.mark();
        next_place(a, sectors);
        match work {
            Work::Mixed => {
                let (write, zeros, discard, done) = (a.label(), a.label(), a.label(), a.label());
                a.srli(T0, S0, 9).andi(T0, T0, 7);
                a.beq(T0, ZERO, zeros).addi(T0, T0, -1).beq(T0, ZERO, discard);
                a.addi(T0, T0, -3).bge(ZERO, T0, write);
                read(a);
                a.j(done).place(write);
                self::write(a);
                a.j(done).place(zeros);
                erase(a, 13);
                a.j(done).place(discard);
                erase(a, 11);
                a.place(done);
            }
            Work::Reads => read(a),
            Work::Writes => {
                self::write(a);
                request(a, 4, 0, NEXT | WRITE);
            }
        }
        a.addi(S4, S4, -1).bne(S4, ZERO, round);
        print_word(a, S5);
        print_word(a, S6);
        a.li(T0, u32::from(b'\n')).sb(T0, 0, S3);
        a.store_li(VIRT.finisher.base, if ends_with_reset { 0x7777 } else { POWER_OFF }).stop();
    })
}

/// Sets the device up with one queue, and the three descriptors of every request.
fn set_up(a: &mut Asm) {
    for (register, value) in [
        (reg::STATUS, 0),
        (reg::STATUS, 3),
        (reg::DRIVER_FEATURES_SEL, 1),
        (reg::DRIVER_FEATURES, 1),
        (reg::STATUS, 11),
        (reg::QUEUE_SEL, 0),
        (reg::QUEUE_NUM, QUEUE_SIZE),
        (reg::QUEUE_DESC_LOW, TABLES),
        (reg::QUEUE_DRIVER_LOW, DRIVER_RING),
        (reg::QUEUE_DEVICE_LOW, DEVICE_RING),
        (reg::QUEUE_READY, 1),
        (reg::STATUS, 15),
    ] {
        a.li(T0, value).sw(T0, register as i32, S1);
    }
    let descriptors =
        [[HEADER, 0, 16, NEXT | 1 << 16], [DATA, 0, 0, 0], [STATUS, 0, 1, WRITE]].concat();
    for (at, word) in (0..).step_by(4).zip(descriptors) {
        a.li(T0, word).sw(T0, at, S2);
    }
}

/// Puts the next random number into `s0`, and the sector of the next request into the header.
fn next_place(a: &mut Asm, sectors: u32) {
    a.li(T0, 1_664_525).mul(S0, S0, T0).li(T0, 1_013_904_223).add(S0, S0, T0);
    // One of 8 places from the disk's start to its end, and one of 64 sectors there.
    a.srli(T0, S0, 13).andi(T0, T0, 7).li(T1, sectors.saturating_sub(80) / 7).mul(T0, T0, T1);
    a.srli(T1, S0, 18).andi(T1, T1, 63).add(T0, T0, T1);
    a.li(T1, HEADER).sw(T0, 8, T1).sw(ZERO, 12, T1);
}

/// Makes a request with so much data and waits for it, which takes no time. Counts its error.
fn request(a: &mut Asm, kind: u32, len: u32, flags: u32) {
    a.li(T1, HEADER).li(T0, kind).sw(T0, 0, T1);
    a.li(T0, len).sw(T0, 24, S2).li(T0, flags | 2 << 16).sw(T0, 28, S2);
    a.li(T1, STATUS).li(T0, 0xff).sb(T0, 0, T1);
    a.addi(S7, S7, 1).li(T1, DRIVER_RING).sh(S7, 2, T1).sw(ZERO, reg::QUEUE_NOTIFY as i32, S1);
    let ok = a.label();
    a.li(T1, STATUS).lbu(T0, 0, T1).beq(T0, ZERO, ok).addi(S6, S6, 1).place(ok);
    a.slli(T1, S5, 5).add(S5, S5, T1).add(S5, S5, T0);
}

/// Reads, and adds every word to the checksum.
fn read(a: &mut Asm) {
    request(a, 0, LEN, NEXT | WRITE);
    a.li(T0, DATA).li(T1, DATA + LEN);
    let word = a.mark();
    a.srli(T3, S5, 27)
        .slli(S5, S5, 5)
        .or(S5, S5, T3)
        .lw(T2, 0, T0)
        .add(S5, S5, T2)
        .addi(T0, T0, 4)
        .bne(T0, T1, word);
}

/// Writes words that follow from the random number.
fn write(a: &mut Asm) {
    a.li(T0, DATA).li(T1, DATA + LEN).mv(T2, S0);
    let word = a.mark();
    a.sw(T2, 0, T0).addi(T2, T2, 1).addi(T0, T0, 4).bne(T0, T1, word);
    request(a, 1, LEN, NEXT);
}

/// Fills 16 sectors with zeros, or discards them.
fn erase(a: &mut Asm, kind: u32) {
    a.li(T1, HEADER).lw(T0, 8, T1).li(T1, DATA).sw(T0, 0, T1).sw(ZERO, 4, T1);
    a.li(T0, LEN / 512).sw(T0, 8, T1).sw(ZERO, 12, T1);
    request(a, kind, 16, NEXT);
}

/// Prints a register in hexadecimal, with a space before it.
fn print_word(a: &mut Asm, word: crate::asm::Reg) {
    a.li(T0, u32::from(b' ')).sb(T0, 0, S3).li(T1, 8).mv(T2, word);
    let (digit, put) = (a.mark(), a.label());
    a.srli(T0, T2, 28).slli(T2, T2, 4).addi(T3, T0, -10).addi(T0, T0, i32::from(b'0'));
    a.blt(T3, ZERO, put).addi(T0, T3, i32::from(b'a'));
    a.place(put).sb(T0, 0, S3).addi(T1, T1, -1).bne(T1, ZERO, digit);
}

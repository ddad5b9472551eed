//! Guests as tutorials have them: they know QEMU's `virt` by heart, read no device tree, look for
//! their disk behind the first transports, and drive the legacy interface.

use emu_core::dev::virtio::driver::reg;
use emu_core::layout::{TRANSPORTS, VIRT};

use crate::asm::{Asm, Label, reg::*};
use crate::machine::RAM;

/// A virtqueue in the legacy layout, and what its descriptors point to.
mod place {
    use crate::machine::RAM;

    pub const PAGE: u32 = 4096;
    pub const QUEUE: u32 = RAM + 0x1_0000;
    /// Behind the descriptors.
    pub const AVAIL: u32 = QUEUE + 16 * super::ENTRIES;
    /// On a page of its own.
    pub const USED: u32 = QUEUE + PAGE;
    pub const HEADER: u32 = QUEUE + 2 * PAGE;
    pub const STATUS: u32 = HEADER + 16;
    /// What is read, and what is written and read back.
    pub const SECTORS: u32 = HEADER + PAGE;
}

/// Descriptors in the queue.
const ENTRIES: u32 = 8;
const SECTOR_SIZE: u32 = 512;
const POWER_OFF: u32 = 0x5555;
/// The power-off that says that something is wrong.
const FAIL: u32 = 1 << 16 | 0x3333;

const ENTROPY: u32 = 4;
const DISK: u32 = 2;

/// A request to read a sector, and one to write it.
const READ: u32 = 0;
const WRITE: u32 = 1;
/// Flags of descriptors.
const NEXT: u32 = 1;
const DEVICE_WRITES: u32 = 2;

/// Prints the device type behind each transport, `.` where there is none, and powers off.
pub fn slot_scan() -> Vec<u32> {
    Asm::build(RAM, |a| {
        let (wrong, next) = (a.label(), a.label());
        a.li(S0, VIRT.virtio[0].mmio.base).li(S1, TRANSPORTS as u32).li(S2, 0x1000);
        a.li(S3, VIRT.uart.base).li(S4, u32::from_le_bytes(*b"virt")).li(S5, 0x554d_4551);
        let again = a.mark();
        a.lw(T0, reg::MAGIC_VALUE as i32, S0).bne(T0, S4, wrong);
        a.lw(T0, reg::VENDOR_ID as i32, S0).bne(T0, S5, wrong);
        a.lw(T0, reg::DEVICE_ID as i32, S0).li(T1, u32::from(b'.')).beq(T0, ZERO, next);
        a.addi(T1, T0, i32::from(b'0')).place(next).sb(T1, 0, S3);
        a.add(S0, S0, S2).addi(S1, S1, -1).bne(S1, ZERO, again);
        a.end(POWER_OFF).place(wrong).end(FAIL);
    })
}

/// Asks the entropy device for 32 bytes through the legacy interface, and powers off when it has
/// them.
pub fn legacy_entropy() -> Vec<u32> {
    Asm::build(RAM, |a| {
        let wrong = a.label();
        a.legacy_device(ENTROPY, wrong);
        a.descriptor(0, place::SECTORS, 32, DEVICE_WRITES).li(S1, 0).offer();
        a.li(T0, place::USED).lw(T1, 8, T0).li(T2, 32).bne(T1, T2, wrong);
        a.li(T0, place::SECTORS).lw(T1, 0, T0).beq(T1, ZERO, wrong);
        a.end(POWER_OFF).place(wrong).end(FAIL);
    })
}

/// Starts a queue as of the modern interface, without a look at the version and at an address where
/// no queue can be, and waits until the device says so. Powers off then.
pub fn modern_without_asking() -> Vec<u32> {
    /// ACKNOWLEDGE and DRIVER.
    const STATUS: u32 = 3;
    Asm::build(RAM, |a| {
        a.li(S0, VIRT.virtio[1].mmio.base);
        for (register, value) in [(reg::STATUS, STATUS), (reg::QUEUE_SEL, 0), (reg::QUEUE_READY, 1)]
        {
            a.li(T0, value).sw(T0, register as i32, S0);
        }
        let wait = a.mark();
        a.lw(T0, reg::STATUS as i32, S0).li(T1, STATUS).beq(T0, T1, wait).end(POWER_OFF);
    })
}

/// Reads a sector through the legacy interface, writes it with all bits changed to the next one,
/// reads that back, compares, prints `ok` and powers off.
pub fn legacy_disk() -> Vec<u32> {
    const FIRST: u32 = place::SECTORS;
    const SECOND: u32 = FIRST + SECTOR_SIZE;
    const BACK: u32 = SECOND + SECTOR_SIZE;
    Asm::build(RAM, |a| {
        let [wrong, request, invert, compare] = [(); 4].map(|()| a.label());
        a.legacy_device(DISK, wrong);
        a.descriptor(0, place::HEADER, 16, NEXT | 1 << 16);
        a.descriptor(2, place::STATUS, 1, DEVICE_WRITES).li(S1, 0);
        for (kind, sector, data) in [(READ, 0, FIRST), (WRITE, 1, SECOND), (READ, 1, BACK)] {
            if kind == WRITE {
                a.li(T0, FIRST).li(T1, SECOND).place(invert);
                a.lw(T2, 0, T0).xori(T2, T2, -1).sw(T2, SECTOR_SIZE as i32, T0);
                a.addi(T0, T0, 4).bne(T0, T1, invert);
            }
            let flags = if kind == READ { DEVICE_WRITES } else { 0 };
            a.descriptor(1, data, SECTOR_SIZE, flags | NEXT | 2 << 16);
            a.store_li(place::HEADER, kind).store_li(place::HEADER + 8, sector).jal(RA, request);
        }
        a.li(T0, SECOND).li(T1, BACK).place(compare);
        a.lw(T2, 0, T0).lw(T3, SECTOR_SIZE as i32, T0).bne(T2, T3, wrong);
        a.addi(T0, T0, 4).bne(T0, T1, compare);
        a.li(T0, VIRT.uart.base);
        for letter in *b"ok\n" {
            a.li(T1, letter.into()).sb(T1, 0, T0);
        }
        a.end(POWER_OFF).place(wrong).end(FAIL);
        a.place(request).store_li(place::STATUS, 0xff).offer();
        a.li(T0, place::STATUS).lbu(T1, 0, T0).bne(T1, ZERO, wrong).ret();
    })
}

impl Asm {
    /// Powers off.
    fn end(&mut self, how: u32) -> &mut Self {
        self.store_li(VIRT.finisher.base, how).stop()
    }

    /// Leaves the transport of the first device of a type in `s0`, with queue 0 set up. Jumps to
    /// `wrong` if there is none, or it is not a legacy one.
    fn legacy_device(&mut self, device: u32, wrong: Label) -> &mut Self {
        let (again, found) = (self.label(), self.label());
        self.li(S0, VIRT.virtio[0].mmio.base).li(S1, TRANSPORTS as u32).li(S2, 0x1000);
        self.li(S3, device).place(again).lw(T0, reg::DEVICE_ID as i32, S0).beq(T0, S3, found);
        self.add(S0, S0, S2).addi(S1, S1, -1).bne(S1, ZERO, again).j(wrong).place(found);
        self.lw(T0, reg::VERSION as i32, S0).li(T1, 1).bne(T0, T1, wrong);
        // As old drivers do it: DRIVER_OK before there is a queue.
        for (register, value) in [
            (reg::STATUS, 0),
            (reg::STATUS, 1),
            (reg::STATUS, 3),
            (reg::DRIVER_FEATURES, 0),
            (reg::STATUS, 7),
            (reg::GUEST_PAGE_SIZE, place::PAGE),
            (reg::QUEUE_SEL, 0),
            (reg::QUEUE_NUM, ENTRIES),
            (reg::QUEUE_ALIGN, place::PAGE),
            (reg::QUEUE_PFN, place::QUEUE / place::PAGE),
        ] {
            self.li(T0, value).sw(T0, register as i32, S0);
        }
        self
    }

    /// Writes a descriptor, with `next` in the upper half of its flags.
    fn descriptor(&mut self, index: u32, addr: u32, len: u32, flags: u32) -> &mut Self {
        let at = place::QUEUE + 16 * index;
        self.store_li(at, addr).store_li(at + 4, 0).store_li(at + 8, len).store_li(at + 12, flags)
    }

    /// Makes the chain from descriptor 0 available, of which `s1` have been so far, notifies the
    /// device and waits until it is used.
    fn offer(&mut self) -> &mut Self {
        self.li(T0, place::AVAIL).andi(T1, S1, ENTRIES as i32 - 1).slli(T1, T1, 1);
        self.add(T1, T1, T0).sh(ZERO, 4, T1).addi(S1, S1, 1).sh(S1, 2, T0);
        self.sw(ZERO, reg::QUEUE_NOTIFY as i32, S0).li(T0, place::USED);
        let wait = self.mark();
        self.lhu(T1, 2, T0).bne(T1, S1, wait)
    }
}

//! Guest-physical addresses and interrupt numbers of the two machines.
//!
//! [`VIRT`] follows QEMU's `virt`, so that kernels, firmware and riscv-tests made for it run here
//! unchanged. [`SEMU`] follows the machine of the semu emulator. The device trees in `dts/` and
//! the blob that the host emits are tested against this file.

use crate::dev::virtio::DeviceKind;
use crate::state::{State, Visitor};

/// Which memory map a VM has. Stored in the VM's state, hence the fixed representation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(u32)]
pub enum MachineKind {
    /// QEMU's `virt` machine.
    Virt = 0,
    /// The semu emulator's machine.
    Semu = 1,
}

impl State for MachineKind {
    fn visit(&self, visitor: &mut impl Visitor) {
        (*self as u32).visit(visitor);
    }
}

/// A range of guest-physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// First address.
    pub base: u32,
    /// Length in bytes; zero when the machine lacks the device.
    pub size: u32,
}

impl Region {
    const fn new(base: u32, size: u32) -> Self {
        Self { base, size }
    }

    /// The machine does not have this device.
    pub const NONE: Self = Self::new(0, 0);

    /// Offset of `addr` in the region, if it lies inside.
    #[inline]
    pub const fn offset(self, addr: u32) -> Option<u32> {
        let off = addr.wrapping_sub(self.base);
        if off < self.size { Some(off) } else { None }
    }
}

/// A virtio-mmio transport: its registers and its PLIC source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtioTransport {
    /// Where its registers are.
    pub mmio: Region,
    /// PLIC source number.
    pub irq: u32,
}

/// The most virtio-mmio transports that a machine has: as many as QEMU's `virt`.
pub const TRANSPORTS: usize = 8;

/// One machine's memory map.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// First address of RAM.
    pub ram_base: u32,
    /// The most RAM that the map has room for, in bytes.
    pub ram_max: u32,
    /// The region for a ROM. A VM's ROM starts at its first address and may be smaller.
    pub rom: Region,
    /// Core-local interruptor: `msip`, `mtimecmp`, `mtime`.
    pub clint: Region,
    /// ACLINT MSWI: `msip` as a device of its own.
    pub mswi: Region,
    /// ACLINT MTIMER: `mtimecmp` and `mtime` as a device of their own.
    pub mtimer: Region,
    /// ACLINT SSWI: `setssip`, which S-mode may use.
    pub sswi: Region,
    /// Platform-level interrupt controller.
    pub plic: Region,
    /// Highest PLIC source number.
    pub plic_sources: u32,
    /// The PLIC context that raises the hart's machine external interrupt, if any.
    pub plic_context_m: Option<u32>,
    /// The PLIC context that raises the hart's supervisor external interrupt.
    pub plic_context_s: u32,
    /// 16550 UART.
    pub uart: Region,
    /// The UART's PLIC source.
    pub uart_irq: u32,
    /// The UART's input clock in Hz.
    pub uart_clock: u32,
    /// Test finisher, also the syscon behind poweroff and reboot.
    pub finisher: Region,
    /// Goldfish real-time clock.
    pub rtc: Region,
    /// The clock's PLIC source.
    pub rtc_irq: u32,
    /// virtio-mmio transports, in the order of their numbers, which are called slots. Which device
    /// is in which slot is each VM's own state ([`crate::dev::virtio`]).
    pub virtio: [VirtioTransport; TRANSPORTS],
    /// Ticks of `time` per second.
    pub timebase: u32,
}

/// The default map, that of QEMU's `virt`.
pub const VIRT: Map = Map {
    ram_base: 0x8000_0000,
    ram_max: 0x4000_0000,
    rom: Region::new(0x2000_0000, 0x400_0000),
    clint: Region::new(0x0200_0000, 0x1_0000),
    mswi: Region::NONE,
    mtimer: Region::NONE,
    sswi: Region::NONE,
    plic: Region::new(0x0c00_0000, 0x60_0000),
    plic_sources: 95,
    plic_context_m: Some(0),
    plic_context_s: 1,
    uart: Region::new(0x1000_0000, 0x100),
    uart_irq: 10,
    uart_clock: 3_686_400,
    finisher: Region::new(0x0010_0000, 0x1000),
    rtc: Region::new(0x0010_1000, 0x1000),
    rtc_irq: 11,
    virtio: virt_transports(),
    timebase: 10_000_000,
};

/// Semu gives each device a window of this size.
const SEMU_WINDOW: u32 = 0x10_0000;

/// The semu emulator's map. Timer and software interrupts have devices of their own in place of a
/// CLINT; finisher and clock do not exist, poweroff goes through SBI. Of its virtio devices only
/// those are here that this machine has.
pub const SEMU: Map = Map {
    ram_base: 0,
    ram_max: 0x2000_0000,
    rom: Region::NONE,
    clint: Region::NONE,
    mswi: Region::new(0xf440_0000, 0x4000),
    mtimer: Region::new(0xf430_0000, 0x8000),
    sswi: Region::new(0xf450_0000, 0x4000),
    plic: Region::new(0xf000_0000, 0x400_0000),
    plic_sources: 31,
    plic_context_m: None,
    plic_context_s: 0,
    uart: Region::new(0xf400_0000, SEMU_WINDOW),
    uart_irq: 1,
    uart_clock: 5_000_000,
    finisher: Region::NONE,
    rtc: Region::NONE,
    rtc_irq: 0,
    virtio: semu_transports(),
    timebase: 65_000_000,
};

/// Returns the transports of QEMU's `virt`: one after the other.
const fn virt_transports() -> [VirtioTransport; TRANSPORTS] {
    const FIRST: u32 = 0x1000_1000;
    const SIZE: u32 = 0x1000;
    let mut transports = [VirtioTransport::NONE; TRANSPORTS];
    let mut slot = 0;
    while slot < TRANSPORTS {
        let mmio = Region::new(FIRST + slot as u32 * SIZE, SIZE);
        transports[slot] = VirtioTransport { mmio, irq: 1 + slot as u32 };
        slot += 1;
    }
    transports
}

/// Returns the transports of the semu emulator. It has one for each of these devices, so the slots
/// are those in which a device is unless the host places it.
const fn semu_transports() -> [VirtioTransport; TRANSPORTS] {
    let mut transports = [VirtioTransport::NONE; TRANSPORTS];
    let net = VirtioTransport { mmio: Region::new(0xf410_0000, SEMU_WINDOW), irq: 2 };
    let blk = VirtioTransport { mmio: Region::new(0xf420_0000, SEMU_WINDOW), irq: 3 };
    let rng = VirtioTransport { mmio: Region::new(0xf460_0000, SEMU_WINDOW), irq: 4 };
    transports[DeviceKind::Net as usize] = net;
    transports[DeviceKind::Blk as usize] = blk;
    transports[DeviceKind::Rng as usize] = rng;
    transports
}

impl VirtioTransport {
    /// The machine does not have this transport. PLIC source 0 is none.
    const NONE: Self = Self { mmio: Region::NONE, irq: 0 };
}

impl MachineKind {
    /// The memory map of this machine.
    #[inline]
    pub const fn map(self) -> &'static Map {
        match self {
            Self::Virt => &VIRT,
            Self::Semu => &SEMU,
        }
    }
}

/// How many regions there are beside RAM and the transports.
const OTHERS: usize = 9;

impl Map {
    /// Returns every region but RAM. Absent ones have size zero.
    pub const fn regions(&self) -> [Region; OTHERS + TRANSPORTS] {
        let others: [Region; OTHERS] = [
            self.rom,
            self.clint,
            self.mswi,
            self.mtimer,
            self.sswi,
            self.plic,
            self.uart,
            self.finisher,
            self.rtc,
        ];
        let mut regions = [Region::NONE; OTHERS + TRANSPORTS];
        let mut i = 0;
        while i < regions.len() {
            regions[i] =
                if i < others.len() { others[i] } else { self.virtio[i - others.len()].mmio };
            i += 1;
        }
        regions
    }

    const fn is_disjoint(&self) -> bool {
        let w = self.regions();
        let ram = Region::new(self.ram_base, self.ram_max);
        let mut i = 0;
        while i < w.len() {
            if overlaps(w[i], ram) {
                return false;
            }
            let mut j = i + 1;
            while j < w.len() {
                if overlaps(w[i], w[j]) {
                    return false;
                }
                j += 1;
            }
            i += 1;
        }
        true
    }
}

const fn overlaps(a: Region, b: Region) -> bool {
    a.size != 0
        && b.size != 0
        && (a.base as u64) < b.base as u64 + b.size as u64
        && (b.base as u64) < a.base as u64 + a.size as u64
}

const _: () = assert!(VIRT.is_disjoint() && SEMU.is_disjoint());

//! The bus: accesses to guest-physical addresses that are not RAM go to a device's registers.

use crate::abi::Hart;
use crate::csr::irq;
use crate::dev::{finisher, plic};
use crate::disk::Disk;
use crate::lane::Lane;
use crate::layout::Map;
use crate::machine::Core;
use crate::mem::Ram;
use crate::port::Port;
use crate::trap::Trap;

/// A device and the offset in its register window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Device {
    /// CLINT, or one of the ACLINT devices with its registers.
    Clint(u32),
    Sswi(u32),
    Plic(u32),
    Uart(u32),
    Finisher(u32),
    Rtc(u32),
    /// A virtio-mmio transport, by its slot.
    Virtio(u32, u32),
}

/// A CLINT has the registers of an MSWI, then at this offset those of an MTIMER.
const MTIMER_IN_CLINT: u32 = 0x4000;

fn route(map: &Map, addr: u32) -> Option<Device> {
    if let Some(off) = map.uart.offset(addr) {
        return Some(Device::Uart(off));
    }
    if let Some(off) = map.plic.offset(addr) {
        return Some(Device::Plic(off));
    }
    if let Some(off) = map.clint.offset(addr) {
        return Some(Device::Clint(off));
    }
    if let Some(off) = map.mswi.offset(addr) {
        return Some(Device::Clint(off));
    }
    if let Some(off) = map.mtimer.offset(addr) {
        return Some(Device::Clint(MTIMER_IN_CLINT + off));
    }
    if let Some(off) = map.sswi.offset(addr) {
        return Some(Device::Sswi(off));
    }
    for (slot, transport) in (0..).zip(&map.virtio) {
        if let Some(off) = transport.mmio.offset(addr) {
            return Some(Device::Virtio(slot, off));
        }
    }
    if let Some(off) = map.finisher.offset(addr) {
        return Some(Device::Finisher(off));
    }
    map.rtc.offset(addr).map(Device::Rtc)
}

/// Returns the mask of the bits that an access of `size` bytes transfers.
const fn mask(size: u32) -> u32 {
    if size < 4 { (1 << (8 * size)) - 1 } else { u32::MAX }
}

/// The error of an access that no device handles. It becomes an access fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoDevice;

impl<M: Ram, D: Disk, P: Port, L: Lane> Core<'_, M, D, P, L> {
    /// Reads a device register of `size` bytes.
    pub(crate) fn bus_read(&mut self, addr: u32, size: u32) -> Result<u32, NoDevice> {
        let map = self.platform.kind.map();
        let device = route(map, addr).ok_or(NoDevice)?;
        // Reading may take input or acknowledge an interrupt.
        self.request_poll();
        self.port.at(self.platform.clock.retired);
        let platform = &mut *self.platform;
        let value = match device {
            Device::Uart(off) => platform.dev.uart.read(off, self.port),
            Device::Plic(off) => {
                let value = platform.dev.plic.read(off);
                let slot = map.virtio.iter().position(|transport| transport.irq == value);
                if let (true, Some(slot)) = (plic::is_claim(off), slot) {
                    platform.dev.virtio.claimed(slot as u32);
                }
                value
            }
            Device::Clint(off) => platform.dev.clint.read(&platform.clock, off),
            Device::Sswi(_) | Device::Finisher(_) => 0,
            Device::Rtc(off) => platform.dev.rtc.read(off, platform.clock.now_ns()),
            Device::Virtio(slot, off) => platform.dev.virtio.read(slot, off, size),
        };
        Ok(value & mask(size))
    }

    /// Writes a device register of `size` bytes.
    pub(crate) fn bus_write(
        &mut self,
        hart: &mut Hart,
        addr: u32,
        size: u32,
        value: u32,
    ) -> Result<Result<(), Trap>, NoDevice> {
        let device = route(self.platform.kind.map(), addr).ok_or(NoDevice)?;
        let value = value & mask(size);
        self.request_poll();
        self.port.at(self.platform.clock.retired);
        let platform = &mut *self.platform;
        match device {
            Device::Uart(off) => return Ok(platform.dev.uart.write(off, value, self.port)),
            Device::Plic(off) => platform.dev.plic.write(off, value),
            Device::Clint(off) => platform.dev.clint.write(&mut platform.clock, off, value),
            Device::Sswi(0) if value & 1 != 0 => platform.csr.set_pending(irq::SSI, true),
            Device::Sswi(_) => {}
            Device::Finisher(0) => self.exit = finisher::decode(value).or(self.exit.take()),
            Device::Finisher(_) => {}
            Device::Rtc(off) => platform.dev.rtc.write(off, value, platform.clock.now_ns()),
            Device::Virtio(slot, off) => {
                return Ok(
                    self.with_virtio(hart, |devices, io| devices.write(slot, off, size, value, io))
                );
            }
        }
        Ok(Ok(()))
    }
}

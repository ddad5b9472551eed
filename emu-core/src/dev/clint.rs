//! Core-local interruptor of one hart: `msip`, `mtimecmp`, `mtime`.

use crate::clock::Clock;

/// The registers that are not part of the clock.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Clint {
    /// Machine software interrupt pending.
    pub msip: u32,
}

state!(Clint { msip });

/// Register offsets (SiFive FU540 manual, chapter 9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reg {
    Msip,
    MtimecmpLow,
    MtimecmpHigh,
    MtimeLow,
    MtimeHigh,
}

impl Reg {
    const fn at(offset: u32) -> Option<Self> {
        const MSIP: u32 = 0;
        const MTIMECMP: u32 = 0x4000;
        const MTIMECMP_HIGH: u32 = MTIMECMP + 4;
        const MTIME: u32 = 0xbff8;
        const MTIME_HIGH: u32 = MTIME + 4;
        match offset {
            MSIP => Some(Self::Msip),
            MTIMECMP => Some(Self::MtimecmpLow),
            MTIMECMP_HIGH => Some(Self::MtimecmpHigh),
            MTIME => Some(Self::MtimeLow),
            MTIME_HIGH => Some(Self::MtimeHigh),
            _ => None,
        }
    }
}

const fn low(old: u64, value: u32) -> u64 {
    old >> 32 << 32 | value as u64
}

const fn high(old: u64, value: u32) -> u64 {
    (value as u64) << 32 | old & 0xffff_ffff
}

impl Clint {
    /// Nothing pending.
    pub const RESET: Self = Self { msip: 0 };

    /// Reads a register; other offsets are zero.
    pub fn read(&self, clock: &Clock, offset: u32) -> u32 {
        match Reg::at(offset) {
            Some(Reg::Msip) => self.msip,
            Some(Reg::MtimecmpLow) => clock.timecmp() as u32,
            Some(Reg::MtimecmpHigh) => (clock.timecmp() >> 32) as u32,
            Some(Reg::MtimeLow) => clock.time() as u32,
            Some(Reg::MtimeHigh) => (clock.time() >> 32) as u32,
            None => 0,
        }
    }

    /// Writes a register; other offsets ignore it.
    pub fn write(&mut self, clock: &mut Clock, offset: u32, value: u32) {
        match Reg::at(offset) {
            Some(Reg::Msip) => self.msip = value & 1,
            Some(Reg::MtimecmpLow) => clock.set_timecmp(low(clock.timecmp(), value)),
            Some(Reg::MtimecmpHigh) => clock.set_timecmp(high(clock.timecmp(), value)),
            Some(Reg::MtimeLow) => clock.set_time(low(clock.time(), value)),
            Some(Reg::MtimeHigh) => clock.set_time(high(clock.time(), value)),
            None => {}
        }
    }
}

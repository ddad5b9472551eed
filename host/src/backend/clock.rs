//! The guest's clock: turns host time, or retired instructions, into ticks of the RISC-V `time`
//! CSR.

use std::time::{Duration, Instant};

use emu_core::clock::Now;

use crate::backend::ClockSource;

const RATE_SHIFT: u32 = 24;
/// Shortest slice, in instructions, from which a VM's speed is measured.
const MEASURABLE: u64 = 10_000;

/// The clock of one VM, or of a fleet whose VMs share one clock.
#[derive(Clone, Debug)]
pub struct GuestClock {
    source: ClockSource,
    /// Host time at which the guest's clock was zero.
    origin: Option<Instant>,
    timebase: u64,
    /// Expected ticks per instruction, with 24 fractional bits.
    rate: u64,
}

impl GuestClock {
    /// Returns a clock that starts with the first slice and runs at `timebase` ticks a second.
    /// `ips` is the speed assumed until one has been measured, in instructions a second.
    pub fn new(source: ClockSource, timebase: u32, ips: u64) -> Self {
        let timebase = u64::from(timebase);
        Self { source, origin: None, timebase, rate: (timebase << RATE_SHIFT) / ips }
    }

    /// Returns the guest's time in ticks at `at`; zero before the first slice and under the
    /// `instret` clock.
    pub fn ticks(&self, at: Instant) -> u64 {
        match (self.source, self.origin) {
            (ClockSource::Host, Some(origin)) => {
                let ns = at.saturating_duration_since(origin).as_nanos();
                (ns * u128::from(self.timebase) / 1_000_000_000) as u64
            }
            _ => 0,
        }
    }

    /// Returns what the core needs to know about time for a slice that starts at `at`.
    pub fn now(&mut self, at: Instant) -> Now {
        match self.source {
            ClockSource::Instret => Now::Instret,
            ClockSource::Host => {
                self.origin.get_or_insert(at);
                Now::Host { ticks: self.ticks(at), rate: self.rate as u32 }
            }
        }
    }

    /// Updates the measured speed from a slice.
    pub fn measured(&mut self, instructions: u64, took: Duration) {
        if self.source == ClockSource::Instret || instructions < MEASURABLE {
            return;
        }
        let ticks = took.as_nanos() * u128::from(self.timebase) / 1_000;
        let rate = (ticks << RATE_SHIFT) / (u128::from(instructions) * 1_000_000);
        // A slice during which the host preempted the thread must not count for much.
        let rate = (rate as u64).clamp(1, 4 * self.rate);
        self.rate = ((7 * self.rate + rate) / 8).clamp(1, u32::MAX.into());
    }

    /// Returns the host time at which `time` reaches `ticks`; `None` for never, or not in this
    /// century.
    pub fn at(&self, ticks: u64) -> Option<Instant> {
        let ns = u128::from(ticks) * 1_000_000_000 / u128::from(self.timebase);
        let ns = u64::try_from(ns).ok()?;
        self.origin?.checked_add(Duration::from_nanos(ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u32 = 10_000_000;
    const IPS: u64 = 200_000_000;

    #[test]
    fn guest_time_starts_with_the_first_slice_and_follows_the_host() {
        let mut clock = GuestClock::new(ClockSource::Host, HZ, IPS);
        let start = Instant::now();
        assert!(matches!(clock.now(start), Now::Host { ticks: 0, .. }));
        let later = start + Duration::from_millis(3);
        assert!(matches!(clock.now(later), Now::Host { ticks: 30_000, .. }));
        assert_eq!(clock.at(30_000), Some(later));
        assert_eq!(clock.at(u64::MAX), None);
    }

    #[test]
    fn the_rate_approaches_the_measured_speed() {
        let mut clock = GuestClock::new(ClockSource::Host, HZ, IPS);
        for _ in 0..100 {
            clock.measured(1_000_000, Duration::from_millis(10));
        }
        // 100 million instructions a second: a tenth of a tick each.
        let expected = (1u64 << RATE_SHIFT) / 10;
        assert!(clock.rate.abs_diff(expected) < expected / 50, "{}", clock.rate);
    }

    #[test]
    fn the_instret_clock_takes_nothing_from_the_host() {
        let mut clock = GuestClock::new(ClockSource::Instret, HZ, IPS);
        assert_eq!(clock.now(Instant::now()), Now::Instret);
    }
}

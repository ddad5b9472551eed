//! Guest time.

/// Instructions per second of guest time under the `instret` clock.
pub const INSTRET_CLOCK_IPS: u32 = 50_000_000;
const RATE_SHIFT: u32 = 24;
/// How far ahead, in ticks, a deadline can be computed without overflow: some hours.
const FAR_TICKS: u64 = 1 << 39;

/// Guest time, as a function of retired instructions.
///
/// From one [`Now`] of the host to the next, `time` advances by a fixed number of ticks per
/// instruction. A guest's delay loop thus ends even inside one slice, and time under the `instret`
/// clock is deterministic.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Clock {
    /// Instructions retired since reset. A guest cannot write it.
    pub retired: u64,
    /// The timer's compare value: `mtimecmp`, or the argument of SBI's `set_timer`.
    pub timecmp: u64,
    /// The value of `retired` at which the timer is due.
    deadline: u64,
    base_retired: u64,
    base_ticks: u64,
    /// Ticks per instruction, with 24 fractional bits.
    rate: u32,
    /// The machine's ticks per second.
    timebase: u32,
}

state!(Clock { retired, timecmp, deadline, base_retired, base_ticks, rate, timebase });

/// The time, as the host gives it at the start of a slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Now {
    /// Time follows retired instructions, at [`INSTRET_CLOCK_IPS`]; WFI jumps to the timer.
    Instret,
    /// Time is the host's; WFI ends the slice.
    Host {
        /// `time` now, in ticks of the machine's timebase. Time never goes back: a value below
        /// the VM's own time is ignored.
        ticks: u64,
        /// Expected ticks per instruction, with 24 fractional bits.
        rate: u32,
    },
}

impl Clock {
    pub(crate) const fn new(timebase: u32) -> Self {
        Self {
            retired: 0,
            timecmp: u64::MAX,
            deadline: u64::MAX,
            base_retired: 0,
            base_ticks: 0,
            rate: Self::instret_rate(timebase),
            timebase,
        }
    }

    const fn instret_rate(timebase: u32) -> u32 {
        (((timebase as u64) << RATE_SHIFT) / INSTRET_CLOCK_IPS as u64) as u32
    }

    /// Returns the guest's `time`, in ticks.
    pub fn now(&self) -> u64 {
        let n = self.retired.wrapping_sub(self.base_retired);
        let rate = u64::from(self.rate);
        let part = n & ((1 << RATE_SHIFT) - 1);
        let ticks = (n >> RATE_SHIFT).wrapping_mul(rate).wrapping_add((part * rate) >> RATE_SHIFT);
        self.base_ticks.wrapping_add(ticks)
    }

    /// Returns the guest's `time`, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        let (now, hz) = (self.now(), u64::from(self.timebase.max(1)));
        now / hz * 1_000_000_000 + now % hz * 1_000_000_000 / hz
    }

    /// Sets `mtimecmp`.
    pub fn set_timecmp(&mut self, ticks: u64) {
        self.timecmp = ticks;
        self.schedule();
    }

    /// Sets `mtime`.
    pub(crate) fn set_now(&mut self, ticks: u64) {
        self.base_retired = self.retired;
        self.base_ticks = ticks;
        self.schedule();
    }

    pub(crate) fn due(&self) -> bool {
        self.now() >= self.timecmp
    }

    pub(crate) fn begin(&mut self, now: Now) {
        match now {
            Now::Instret => {
                let rate = Self::instret_rate(self.timebase);
                if self.rate != rate {
                    let ticks = self.now();
                    self.rate = rate;
                    self.set_now(ticks);
                }
            }
            Now::Host { ticks, rate } => {
                let ticks = ticks.max(self.now());
                self.rate = rate.max(1);
                self.set_now(ticks);
            }
        }
        self.schedule();
    }

    /// Computes at which instruction count the timer is due.
    fn schedule(&mut self) {
        self.deadline = self.retired_at(self.timecmp);
    }

    pub(crate) fn until_deadline(&self) -> u64 {
        self.deadline.saturating_sub(self.retired)
    }

    /// Returns the value of `retired` at which `time` reaches `ticks`. If that is more than
    /// [`FAR_TICKS`] ahead it returns an earlier value, at which the caller must ask again.
    pub(crate) fn retired_at(&self, ticks: u64) -> u64 {
        let diff = ticks.saturating_sub(self.base_ticks).min(FAR_TICKS);
        let rate = u64::from(self.rate.max(1));
        self.base_retired.saturating_add((diff << RATE_SHIFT).div_ceil(rate))
    }

    /// Computes the deadline again once the count reaches one that was too far ahead to be exact.
    pub(crate) fn catch_up(&mut self) {
        if self.retired >= self.deadline && !self.due() {
            self.set_now(self.now());
        }
    }

    /// The first tick at which `ns` nanoseconds of guest time have passed.
    pub(crate) fn ticks_at_ns(&self, ns: u64) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        let hz = u64::from(self.timebase);
        (ns / SECOND).saturating_mul(hz).saturating_add((ns % SECOND * hz).div_ceil(SECOND))
    }
}

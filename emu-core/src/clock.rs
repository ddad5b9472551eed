//! Guest time.

/// Instructions per second of guest time under the `instret` clock.
pub const INSTRET_CLOCK_IPS: u32 = 50_000_000;
const RATE_SHIFT: u32 = 24;
/// How far ahead, in ticks, a deadline can be computed without overflow: some hours.
const FAR_TICKS: u64 = 1 << 39;

/// Guest time, as a function of the steps that the hart has taken: instructions that retired, and
/// exceptions, each of which takes as long as an instruction.
///
/// From one [`Now`] of the host to the next, time advances by a fixed number of ticks per step. A
/// guest's delay loop thus ends even inside one slice, and time under the `instret` clock is
/// deterministic.
///
/// The machine's own time never goes back, and devices such as the RTC follow it. The guest's
/// `time` runs beside it, as far ahead or behind as the guest has set it by writing `mtime`.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Clock {
    /// Instructions retired since reset. A guest cannot write it.
    pub retired: u64,
    /// Exceptions taken since reset.
    excepted: u64,
    /// The timer's compare value: `mtimecmp`, or the argument of SBI's `set_timer`. Zero, and
    /// without effect, until it is written for the first time.
    timecmp: u64,
    /// The step at which the timer's interrupt line changes next.
    deadline: u64,
    /// A step, and the machine's time and the guest's at it. The guest's is below zero, that is
    /// wraps, when it was set back to before the base.
    base_step: u64,
    base_ticks: u64,
    base_time: u64,
    /// Ticks per step, with 24 fractional bits.
    rate: u32,
    /// The machine's ticks per second.
    timebase: u32,
    /// Non-zero once `timecmp` was written.
    armed: u32,
    /// Keeps what follows aligned.
    reserved: u32,
}

state!(Clock {
    retired, excepted, timecmp, deadline, base_step, base_ticks, base_time, rate, timebase, armed,
} except { reserved });

/// The time, as the host gives it at the start of a slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Now {
    /// Time follows the hart's steps, at [`INSTRET_CLOCK_IPS`]; WFI jumps to the timer.
    Instret,
    /// Time is the host's; WFI ends the slice.
    Host {
        /// The machine's time now, in ticks of its timebase. It never goes back: a value below the
        /// VM's own time is ignored.
        ticks: u64,
        /// Expected ticks per step, with 24 fractional bits.
        rate: u32,
    },
}

impl Clock {
    pub(crate) const fn new(timebase: u32) -> Self {
        Self {
            retired: 0,
            excepted: 0,
            timecmp: 0,
            deadline: u64::MAX,
            base_step: 0,
            base_ticks: 0,
            base_time: 0,
            rate: Self::instret_rate(timebase),
            timebase,
            armed: 0,
            reserved: 0,
        }
    }

    const fn instret_rate(timebase: u32) -> u32 {
        (((timebase as u64) << RATE_SHIFT) / INSTRET_CLOCK_IPS as u64) as u32
    }

    /// Returns how many steps the hart has taken since reset.
    #[inline]
    pub fn steps(&self) -> u64 {
        self.retired.wrapping_add(self.excepted)
    }

    /// Counts an exception. The time of one instruction passes, so that a timer comes even to a hart
    /// that does nothing but trap.
    pub(crate) fn count_exception(&mut self) {
        self.excepted = self.excepted.wrapping_add(1);
    }

    /// Returns the ticks that have passed since the base.
    fn passed(&self) -> u64 {
        let n = self.steps().wrapping_sub(self.base_step);
        let rate = u64::from(self.rate);
        let part = n & ((1 << RATE_SHIFT) - 1);
        (n >> RATE_SHIFT).wrapping_mul(rate).wrapping_add((part * rate) >> RATE_SHIFT)
    }

    /// Returns the machine's time, in ticks.
    pub fn now(&self) -> u64 {
        self.base_ticks.wrapping_add(self.passed())
    }

    /// Returns the machine's time, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        let (now, hz) = (self.now(), u64::from(self.timebase.max(1)));
        now / hz * 1_000_000_000 + now % hz * 1_000_000_000 / hz
    }

    /// Returns the guest's `time`: `mtime`, and what `rdtime` reads.
    pub fn time(&self) -> u64 {
        self.base_time.wrapping_add(self.passed())
    }

    /// Sets the guest's `time`, as a store to `mtime` does. The machine's own does not change.
    pub fn set_time(&mut self, time: u64) {
        self.base_time = time.wrapping_sub(self.passed());
        self.schedule();
    }

    /// Returns `mtimecmp`.
    pub fn timecmp(&self) -> u64 {
        self.timecmp
    }

    /// Sets `mtimecmp`.
    pub fn set_timecmp(&mut self, time: u64) {
        (self.timecmp, self.armed) = (time, 1);
        self.schedule();
    }

    /// Returns whether the timer interrupts now.
    pub(crate) fn due(&self) -> bool {
        self.armed != 0 && self.time() >= self.timecmp
    }

    /// Returns the machine's time at which the timer is due, which is now if it is, or `u64::MAX`
    /// if it will not be.
    pub(crate) fn due_at(&self) -> u64 {
        if self.armed == 0 || self.timecmp == u64::MAX {
            return u64::MAX;
        }
        self.now().saturating_add(self.timecmp.saturating_sub(self.time()))
    }

    /// Moves the base to this step, and lets time pass until the machine's is `ticks`.
    fn rebase(&mut self, ticks: u64) {
        self.base_time = self.time().wrapping_add(ticks.wrapping_sub(self.now()));
        self.base_step = self.steps();
        self.base_ticks = ticks;
        self.schedule();
    }

    /// Lets time pass at once until the machine's is `ticks`, if it is not later already.
    pub(crate) fn skip_to(&mut self, ticks: u64) {
        self.rebase(ticks.max(self.now()));
    }

    pub(crate) fn begin(&mut self, now: Now) {
        match now {
            Now::Instret => {
                let rate = Self::instret_rate(self.timebase);
                if self.rate != rate {
                    self.rebase(self.now());
                    self.rate = rate;
                }
            }
            Now::Host { ticks, rate } => {
                self.rebase(ticks.max(self.now()));
                self.rate = rate.max(1);
            }
        }
        self.schedule();
    }

    /// Computes at which step the timer is due or, if it is, no more: `time` wraps then.
    fn schedule(&mut self) {
        let ticks = if self.armed == 0 {
            u64::MAX
        } else if self.due() {
            (u64::MAX - self.base_time).saturating_add(1)
        } else {
            self.timecmp.wrapping_sub(self.base_time)
        };
        self.deadline = self.step_after(ticks);
    }

    pub(crate) fn until_deadline(&self) -> u64 {
        self.deadline.saturating_sub(self.steps())
    }

    /// Returns the step at which the machine's time reaches `ticks`. If that is more than
    /// [`FAR_TICKS`] ahead it returns an earlier value, at which the caller must ask again.
    pub(crate) fn step_at(&self, ticks: u64) -> u64 {
        self.step_after(ticks.saturating_sub(self.base_ticks))
    }

    /// Returns the step `ticks` after the base, likewise.
    fn step_after(&self, ticks: u64) -> u64 {
        let rate = u64::from(self.rate.max(1));
        self.base_step.saturating_add((ticks.min(FAR_TICKS) << RATE_SHIFT).div_ceil(rate))
    }

    /// Computes the next deadline once the count reaches one, which may have been too far ahead to be
    /// exact.
    pub(crate) fn catch_up(&mut self) {
        if self.steps() >= self.deadline {
            self.schedule();
        }
        if self.steps() >= self.deadline {
            self.rebase(self.now());
        }
    }

    /// The first tick at which `ns` nanoseconds of the machine's time have passed.
    pub(crate) fn ticks_at_ns(&self, ns: u64) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        let hz = u64::from(self.timebase);
        (ns / SECOND).saturating_mul(hz).saturating_add((ns % SECOND * hz).div_ceil(SECOND))
    }
}

//! Goldfish real-time clock: wall-clock time in nanoseconds and one alarm.
//!
//! Wall-clock time is the guest's `time` plus an epoch that the host sets at the start, so the
//! device needs no input from the host while the VM runs.

registers! {
    /// Registers and their offsets (Linux, `include/clocksource/timer-goldfish.h`).
    enum Register {
        /// Low word of the time; reading it latches the high word.
        TimeLow = 0x00, RW;
        /// High word of the time, as latched.
        TimeHigh = 0x04, RW;
        /// Low word of the alarm; writing it arms the alarm.
        AlarmLow = 0x08, RW;
        /// High word of the alarm.
        AlarmHigh = 0x0c, RW;
        /// Bit 0 lets a passed alarm interrupt.
        IrqEnabled = 0x10, RW;
        /// Disarms the alarm.
        ClearAlarm = 0x14, W;
        /// Whether the alarm is armed.
        AlarmStatus = 0x18, R;
        /// Acknowledges the interrupt.
        ClearInterrupt = 0x1c, W;
    }
}

const LOW_WORD: u64 = 0xffff_ffff;

/// The clock's state.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Rtc {
    /// Unix time at guest time zero, in nanoseconds.
    pub epoch_ns: u64,
    alarm_ns: u64,
    time_high: u32,
    armed: u32,
    irq_enabled: u32,
    irq_pending: u32,
}

state!(Rtc { epoch_ns, alarm_ns, time_high, armed, irq_enabled, irq_pending });

impl Rtc {
    /// The state after power-on: the time is 1970, and no alarm is set.
    pub const RESET: Self =
        Self { epoch_ns: 0, alarm_ns: 0, time_high: 0, armed: 0, irq_enabled: 0, irq_pending: 0 };

    /// Loads from the register at `offset`, at guest time `guest_ns`.
    pub fn read(&mut self, offset: u32, guest_ns: u64) -> u32 {
        let Some(register) = Register::for_read(offset) else { return 0 };
        match register {
            Register::TimeLow => {
                let now = self.now(guest_ns);
                self.time_high = (now >> 32) as u32;
                now as u32
            }
            Register::TimeHigh => self.time_high,
            Register::AlarmLow => self.alarm_ns as u32,
            Register::AlarmHigh => (self.alarm_ns >> 32) as u32,
            Register::IrqEnabled => self.irq_enabled,
            Register::AlarmStatus => self.armed,
            Register::ClearAlarm | Register::ClearInterrupt => 0,
        }
    }

    /// Stores `value` to the register at `offset`, at guest time `guest_ns`.
    pub fn write(&mut self, offset: u32, value: u32, guest_ns: u64) {
        let Some(register) = Register::for_write(offset) else { return };
        match register {
            Register::TimeLow => {
                let now = self.now(guest_ns);
                self.set_time(with_low(now, value), guest_ns);
            }
            Register::TimeHigh => {
                let now = self.now(guest_ns);
                self.set_time(with_high(now, value), guest_ns);
            }
            Register::AlarmLow => {
                self.alarm_ns = with_low(self.alarm_ns, value);
                self.armed = 1;
                self.poll(guest_ns);
            }
            Register::AlarmHigh => self.alarm_ns = with_high(self.alarm_ns, value),
            Register::IrqEnabled => self.irq_enabled = value & 1,
            Register::ClearAlarm => self.armed = 0,
            Register::ClearInterrupt => self.irq_pending = 0,
            Register::AlarmStatus => {}
        }
    }

    /// Fires the alarm when guest time `guest_ns` has reached it.
    pub fn poll(&mut self, guest_ns: u64) {
        if self.armed != 0 && self.now(guest_ns) >= self.alarm_ns {
            self.armed = 0;
            self.irq_pending = 1;
        }
    }

    /// Returns the level of the interrupt line.
    pub const fn irq(&self) -> bool {
        self.irq_pending & self.irq_enabled != 0
    }

    /// Returns the guest time in nanoseconds at which the alarm will interrupt, so that a machine
    /// that waits for an interrupt can be woken then.
    pub const fn next_alarm(&self) -> Option<u64> {
        if self.armed != 0 && self.irq_enabled != 0 {
            Some(self.alarm_ns.saturating_sub(self.epoch_ns))
        } else {
            None
        }
    }

    const fn now(&self, guest_ns: u64) -> u64 {
        self.epoch_ns.wrapping_add(guest_ns)
    }

    const fn set_time(&mut self, now: u64, guest_ns: u64) {
        self.epoch_ns = now.wrapping_sub(guest_ns);
    }
}

const fn with_low(word: u64, low: u32) -> u64 {
    word & !LOW_WORD | low as u64
}

const fn with_high(word: u64, high: u32) -> u64 {
    word & LOW_WORD | (high as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME_LOW: u32 = 0x00;
    const TIME_HIGH: u32 = 0x04;
    const ALARM_LOW: u32 = 0x08;
    const ALARM_HIGH: u32 = 0x0c;
    const IRQ_ENABLED: u32 = 0x10;
    const CLEAR_ALARM: u32 = 0x14;
    const ALARM_STATUS: u32 = 0x18;
    const CLEAR_INTERRUPT: u32 = 0x1c;
    /// Some time in 2023, with both words non-zero.
    const EPOCH_NS: u64 = 1_700_000_000_000_000_000;

    fn rtc() -> Rtc {
        Rtc { epoch_ns: EPOCH_NS, ..Rtc::RESET }
    }

    fn set_alarm(rtc: &mut Rtc, alarm_ns: u64, guest_ns: u64) {
        rtc.write(ALARM_HIGH, (alarm_ns >> 32) as u32, guest_ns);
        rtc.write(ALARM_LOW, alarm_ns as u32, guest_ns);
        rtc.write(IRQ_ENABLED, 1, guest_ns);
    }

    #[test]
    fn time_is_epoch_plus_guest_time() {
        let mut rtc = rtc();
        let low = rtc.read(TIME_LOW, 5);
        let high = rtc.read(TIME_HIGH, 5);
        assert_eq!(u64::from(high) << 32 | u64::from(low), EPOCH_NS + 5);
    }

    #[test]
    fn time_high_is_latched_when_time_low_is_read() {
        let mut rtc = Rtc { epoch_ns: 0xffff_ffff, ..Rtc::RESET };
        assert_eq!(rtc.read(TIME_LOW, 0), 0xffff_ffff);
        assert_eq!(rtc.read(TIME_HIGH, 1), 0);
    }

    #[test]
    fn written_time_counts_on_from_there() {
        let mut rtc = rtc();
        rtc.write(TIME_HIGH, 7, 1000);
        rtc.write(TIME_LOW, 9, 1000);
        assert_eq!(rtc.read(TIME_LOW, 1003), 12);
        assert_eq!(rtc.read(TIME_HIGH, 1003), 7);
    }

    #[test]
    fn alarm_interrupts_when_its_time_comes() {
        let mut rtc = rtc();
        set_alarm(&mut rtc, EPOCH_NS + 100, 0);
        rtc.poll(99);
        assert!(!rtc.irq());
        assert_eq!(rtc.read(ALARM_STATUS, 99), 1);
        rtc.poll(100);
        assert!(rtc.irq());
        assert_eq!(rtc.read(ALARM_STATUS, 100), 0);
    }

    #[test]
    fn an_alarm_in_the_past_fires_when_it_is_armed() {
        let mut rtc = rtc();
        set_alarm(&mut rtc, EPOCH_NS - 1, 0);
        assert!(rtc.irq());
    }

    #[test]
    fn a_passed_alarm_interrupts_only_when_enabled() {
        let mut rtc = rtc();
        set_alarm(&mut rtc, EPOCH_NS, 0);
        rtc.write(IRQ_ENABLED, 0, 0);
        assert!(!rtc.irq());
    }

    #[test]
    fn clear_interrupt_lowers_the_line() {
        let mut rtc = rtc();
        set_alarm(&mut rtc, EPOCH_NS, 0);
        rtc.write(CLEAR_INTERRUPT, 1, 0);
        assert!(!rtc.irq());
    }

    #[test]
    fn clear_alarm_disarms() {
        let mut rtc = rtc();
        set_alarm(&mut rtc, EPOCH_NS + 100, 0);
        rtc.write(CLEAR_ALARM, 1, 0);
        rtc.poll(200);
        assert!(!rtc.irq());
        assert_eq!(rtc.next_alarm(), None);
    }

    #[test]
    fn next_alarm_is_in_guest_time() {
        let mut rtc = rtc();
        set_alarm(&mut rtc, EPOCH_NS + 100, 0);
        assert_eq!(rtc.next_alarm(), Some(100));
    }

    #[test]
    fn alarm_words_read_back() {
        let mut rtc = rtc();
        set_alarm(&mut rtc, u64::MAX, 0);
        assert_eq!(rtc.read(ALARM_LOW, 0), u32::MAX);
        assert_eq!(rtc.read(ALARM_HIGH, 0), u32::MAX);
    }

    #[test]
    fn unmapped_offsets_read_zero_and_ignore_writes() {
        let mut rtc = rtc();
        let before = rtc.clone();
        rtc.write(0x20, u32::MAX, 0);
        rtc.write(ALARM_STATUS, u32::MAX, 0);
        assert_eq!(rtc.read(0x20, 0), 0);
        assert_eq!(rtc.read(CLEAR_ALARM, 0), 0);
        assert_eq!(rtc, before);
    }
}

//! What the host keeps of one VM on the device.

use std::collections::VecDeque;

use emu_device::port::{CardDrops, InputRecord};

use super::inbox::Offer;
use crate::console::ready::{ReadyMatcher, ReadyPattern};
use crate::net::{Frame, Wire};

/// Whether a VM is launched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It is.
    Active,
    /// It waits for input, and perhaps for a timer.
    Idle,
    /// It was ready, and that was all that was asked.
    Paused,
    /// The user wants it to stand still.
    Held,
    /// It waits for frames.
    Starved,
    /// It was not started, or has ended.
    Done,
}

/// One VM.
#[derive(Debug)]
pub struct Seat {
    /// Whether it is launched.
    pub state: State,
    /// Counts its naps, so that the timer of an earlier one is known for what it is.
    pub nap: u32,
    /// Starts since it was last ready, this one included.
    pub boots: u32,
    /// Instructions retired before its last start.
    pub earlier: u64,
    /// Its instruction count when it was paused: what it did since, until the launch was over,
    /// does not count.
    pub paused_at: Option<u64>,
    /// `None` once it was ready.
    pub matcher: Option<ReadyMatcher>,
    /// Console input that it has not taken.
    input: VecDeque<u8>,
    /// The number of the first such byte.
    input_at: u32,
    /// It was offered input, took none, and none came since.
    full: bool,
    /// Frames that it has not taken.
    frames: VecDeque<Frame>,
    /// The number of the first.
    frames_at: u32,
    /// As `full`, for frames.
    frames_full: bool,
    /// Whether it is in the list of VMs with input.
    pub talks: bool,
    /// What its card has dropped.
    card: CardDrops,
}

/// Frames that a VM is offered at a time; the others wait on the wire.
const FRAMES_MAX: usize = 64;

impl Seat {
    /// A VM that starts, or waits to be started.
    pub fn new(pattern: &ReadyPattern, starts: bool) -> Self {
        Self {
            state: if starts { State::Active } else { State::Done },
            nap: 0,
            boots: 1,
            earlier: 0,
            paused_at: None,
            matcher: Some(ReadyMatcher::new(pattern.clone())),
            input: VecDeque::new(),
            input_at: 0,
            full: false,
            frames: VecDeque::new(),
            frames_at: 0,
            frames_full: false,
            talks: false,
            card: CardDrops::default(),
        }
    }

    /// It starts again, with the console input that waits.
    pub fn restart(&mut self, pattern: &ReadyPattern, instret: u64) {
        self.boots += 1;
        self.earlier = instret;
        self.paused_at = None;
        self.matcher = Some(ReadyMatcher::new(pattern.clone()));
        self.input_at = 0;
        self.full = false;
        self.frames.clear();
        self.frames_at = 0;
        self.frames_full = false;
        self.card = CardDrops::default();
    }

    /// Adds console input.
    pub fn give(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
        self.full = false;
    }

    /// Console bytes that it has not taken.
    pub fn typed(&self) -> usize {
        self.input.len()
    }

    /// Forgets all input.
    pub fn forget(&mut self) {
        self.input.clear();
        self.frames.clear();
    }

    /// Takes frames from the wire.
    pub fn fetch(&mut self, vm: u32, wire: &Wire) {
        let before = self.frames.len();
        if wire.has_inbound(vm) {
            wire.take(vm, FRAMES_MAX.saturating_sub(before), &mut self.frames);
        }
        self.frames_full &= self.frames.len() == before;
    }

    /// Notes how much input it has taken; answers how many more frames its card has dropped.
    pub fn took(&mut self, record: &InputRecord) -> CardDrops {
        let InputRecord { offered, taken, drops } = *record;
        let n = (taken.console.wrapping_sub(self.input_at) as usize).min(self.input.len());
        self.input.drain(..n);
        self.input_at = self.input_at.wrapping_add(n as u32);
        let end = self.input_at.wrapping_add(self.input.len() as u32);
        self.full = n == 0 && taken.console != offered.console && offered.console == end;

        let n = (taken.frames.wrapping_sub(self.frames_at) as usize).min(self.frames.len());
        self.frames.drain(..n);
        self.frames_at = self.frames_at.wrapping_add(n as u32);
        let end = self.frames_at.wrapping_add(self.frames.len() as u32);
        self.frames_full = n == 0 && taken.frames != offered.frames && offered.frames == end;

        let before = std::mem::replace(&mut self.card, drops);
        CardDrops { rx: drops.rx.wrapping_sub(before.rx), tx: drops.tx.wrapping_sub(before.tx) }
    }

    /// Whether there is input that it may take now.
    pub fn wants_to_run(&self) -> bool {
        (!self.input.is_empty() && !self.full) || (!self.frames.is_empty() && !self.frames_full)
    }

    /// Whether there is input.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty() || !self.frames.is_empty()
    }

    /// What it is offered.
    pub fn offer(&self) -> Offer<'_> {
        Offer {
            console_at: self.input_at,
            console: self.input.as_slices(),
            frames_at: self.frames_at,
            frames: self.frames.as_slices(),
        }
    }
}

#[cfg(test)]
mod tests {
    use emu_device::port::Taken;

    use super::*;

    fn seat() -> Seat {
        Seat::new(&ReadyPattern::new("x").unwrap(), true)
    }

    fn taken(console: u32, frames: u32, offered: &Seat) -> InputRecord {
        let offer = offered.offer();
        let input = offer.console.0.len() + offer.console.1.len();
        let waiting = offer.frames.0.len() + offer.frames.1.len();
        InputRecord {
            taken: Taken { console, frames },
            offered: Taken {
                console: offer.console_at + input as u32,
                frames: offer.frames_at + waiting as u32,
            },
            drops: CardDrops::default(),
        }
    }

    #[test]
    fn input_is_kept_until_it_was_taken() {
        let mut seat = seat();
        seat.give(b"hello");
        seat.give(b"!");
        let record = taken(4, 0, &seat);
        seat.took(&record);
        assert_eq!(seat.offer().console_at, 4);
        // The same again, as when two launches were told of it.
        seat.took(&record);
        assert!(seat.has_input() && !seat.wants_to_run());
        seat.took(&taken(6, 0, &seat));
        assert!(!seat.has_input());
    }

    #[test]
    fn a_vm_that_takes_nothing_is_not_run_for_it_until_more_comes() {
        let mut seat = seat();
        seat.give(b"x");
        let record = taken(0, 0, &seat);
        seat.took(&record);
        assert!(!seat.wants_to_run());
        seat.give(b"y");
        assert!(seat.wants_to_run());
        // What it says of an earlier launch is not about the new.
        seat.took(&record);
        assert!(seat.wants_to_run());
    }

    #[test]
    fn frames_come_from_the_wire_are_kept_until_taken_and_gone_after_a_restart() {
        let wire = Wire::new(1);
        let mut seat = seat();
        seat.fetch(0, &wire);
        assert!(!seat.has_input());
        for len in 14..14 + 70 {
            wire.outlet().send(0, vec![0; len].into());
        }
        let before = taken(0, 0, &seat);
        seat.fetch(0, &wire);
        assert!(seat.wants_to_run());
        assert_eq!((seat.frames.len(), wire.has_inbound(0)), (FRAMES_MAX, true));
        seat.took(&before);
        assert!(seat.wants_to_run());
        // It has no buffers.
        seat.took(&taken(0, 0, &seat));
        assert!(seat.has_input() && !seat.wants_to_run());
        seat.took(&taken(0, 2, &seat));
        seat.fetch(0, &wire);
        assert!(seat.wants_to_run());
        assert_eq!((seat.offer().frames_at, seat.offer().frames.0[0].len()), (2, 16));
        seat.restart(&ReadyPattern::new("x").unwrap(), 10);
        assert_eq!((seat.has_input(), seat.offer().frames_at), (false, 0));
    }

    #[test]
    fn what_a_card_dropped_is_counted_once() {
        let mut seat = seat();
        let drops = CardDrops { rx: 3, tx: 1 };
        let record = InputRecord { drops, ..InputRecord::default() };
        assert_eq!(seat.took(&record), drops);
        assert_eq!(seat.took(&record), CardDrops::default());
    }

    #[test]
    fn input_outlives_a_restart() {
        let mut seat = seat();
        seat.give(b"abc");
        seat.took(&taken(1, 0, &seat));
        seat.restart(&ReadyPattern::new("x").unwrap(), 10);
        assert_eq!((seat.offer().console_at, seat.boots, seat.earlier), (0, 2, 10));
        assert!(seat.has_input());
    }
}

//! What the host keeps of one VM on the device.

use std::collections::VecDeque;

use emu_device::port::Taken;

use super::inbox::Offer;
use crate::console::ready::{ReadyMatcher, ReadyPattern};

/// Whether a VM is launched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It is.
    Active,
    /// It waits for input, and perhaps for a timer.
    Idle,
    /// It was ready, and that was all that was asked.
    Paused,
    /// It waits for frames.
    Starved,
    /// It never runs again.
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
}

impl Seat {
    /// A VM that starts.
    pub fn new(pattern: &ReadyPattern) -> Self {
        Self {
            state: State::Active,
            nap: 0,
            boots: 1,
            earlier: 0,
            paused_at: None,
            matcher: Some(ReadyMatcher::new(pattern.clone())),
            input: VecDeque::new(),
            input_at: 0,
            full: false,
        }
    }

    /// It starts again, with the input that waits.
    pub fn restart(&mut self, pattern: &ReadyPattern, instret: u64) {
        self.boots += 1;
        self.earlier = instret;
        self.paused_at = None;
        self.matcher = Some(ReadyMatcher::new(pattern.clone()));
        self.input_at = 0;
        self.full = false;
    }

    /// Adds input; `true` when it is the first that waits.
    pub fn give(&mut self, bytes: &[u8]) -> bool {
        let first = self.input.is_empty();
        self.input.extend(bytes);
        self.full = false;
        first && !bytes.is_empty()
    }

    /// Notes how much input it has taken.
    pub fn took(&mut self, taken: Taken) {
        let n = (taken.console.wrapping_sub(self.input_at) as usize).min(self.input.len());
        self.input.drain(..n);
        self.input_at = self.input_at.wrapping_add(n as u32);
        self.full = n == 0 && !self.input.is_empty();
    }

    /// Whether there is input that it may take now.
    pub fn wants_to_run(&self) -> bool {
        self.has_input() && !self.full
    }

    /// Whether there is input.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// What it is offered.
    pub fn offer(&self) -> Offer<'_> {
        Offer {
            console_at: self.input_at,
            console: self.input.as_slices(),
            frames_at: 0,
            frames: &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat() -> Seat {
        Seat::new(&ReadyPattern::new("x").unwrap())
    }

    #[test]
    fn input_is_kept_until_it_was_taken() {
        let mut seat = seat();
        assert!(seat.give(b"hello"));
        assert!(!seat.give(b"!"));
        seat.took(Taken { console: 4, frames: 0 });
        assert_eq!(seat.offer().console_at, 4);
        // The same again, as when two launches were told of it.
        seat.took(Taken { console: 4, frames: 0 });
        assert!(seat.has_input() && !seat.wants_to_run());
        seat.took(Taken { console: 6, frames: 0 });
        assert!(!seat.has_input());
    }

    #[test]
    fn a_vm_that_takes_nothing_is_not_run_for_it_until_more_comes() {
        let mut seat = seat();
        seat.give(b"x");
        seat.took(Taken::default());
        assert!(!seat.wants_to_run());
        seat.give(b"y");
        assert!(seat.wants_to_run());
    }

    #[test]
    fn input_outlives_a_restart() {
        let mut seat = seat();
        seat.give(b"abc");
        seat.took(Taken { console: 1, frames: 0 });
        seat.restart(&ReadyPattern::new("x").unwrap(), 10);
        assert_eq!((seat.offer().console_at, seat.boots, seat.earlier), (0, 2, 10));
        assert!(seat.has_input());
    }
}

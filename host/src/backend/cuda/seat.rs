//! A VM's slot in the CUDA backend (`Seat`): whether the VM is launched, and the input that waits
//! for it on the host.

use std::collections::VecDeque;

use emu_device::port::{CardDrops, InputRecord};

use super::inbox::Offer;
use crate::console::ready::{ReadyMatcher, ReadyPattern};
use crate::net::{Packet, VirtualLink};

/// Scheduling state of a VM in the CUDA backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The VM is launched.
    Active,
    /// The VM is idle: parked until input arrives, or a timer expires if it has set one.
    Idle,
    /// The VM was ready, and the run needs no more of it: ready and parked.
    Paused,
    /// The VM is paused by the user.
    Held,
    /// The VM is out of memory: it waits for free frames.
    Starved,
    /// The VM was not started, or has stopped.
    Done,
}

/// A VM's slot in the CUDA backend.
#[derive(Debug)]
pub struct Seat {
    /// Scheduling state of the VM.
    pub state: State,
    /// Timer generation: counts how often the VM went idle, so that an earlier timer is recognised
    /// as stale.
    pub nap: u32,
    /// Starts since the VM was last ready, the current one included.
    pub boots: u32,
    /// Instructions retired before the VM's last start.
    pub earlier: u64,
    /// Instruction count at which the VM was parked. What it executed after that, until the launch
    /// was over, does not count.
    pub paused_at: Option<u64>,
    /// Matcher of the ready pattern; `None` once the VM was ready.
    pub matcher: Option<ReadyMatcher>,
    /// Console input that the VM has not read.
    input: VecDeque<u8>,
    /// Sequence number of the first byte of `input`.
    input_at: u32,
    /// Whether the VM was offered input and took none, and no more has come since.
    full: bool,
    /// Packets that the VM has not received.
    packets: VecDeque<Packet>,
    /// Sequence number of the first of `packets`.
    packets_at: u32,
    /// The same as `full`, for packets.
    packets_full: bool,
    /// Whether the VM is in the list of VMs with queued input.
    pub talks: bool,
    /// Number of packets that the VM's network card has dropped.
    card: CardDrops,
}

/// Packets offered to a VM at a time; the others wait on the link.
const PACKETS_MAX: usize = 64;

impl Seat {
    /// Returns the slot of a VM that starts at once, or waits to be started.
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
            packets: VecDeque::new(),
            packets_at: 0,
            packets_full: false,
            talks: false,
            card: CardDrops::default(),
        }
    }

    /// Resets the slot for a VM that starts again. Waiting console input is kept.
    pub fn restart(&mut self, pattern: &ReadyPattern, instret: u64) {
        self.boots += 1;
        self.earlier = instret;
        self.paused_at = None;
        self.matcher = Some(ReadyMatcher::new(pattern.clone()));
        self.input_at = 0;
        self.full = false;
        self.packets.clear();
        self.packets_at = 0;
        self.packets_full = false;
        self.card = CardDrops::default();
    }

    /// Queues console input.
    pub fn give(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
        self.full = false;
    }

    /// Returns how many bytes of console input the VM has not read.
    pub fn typed(&self) -> usize {
        self.input.len()
    }

    /// Drops all queued input.
    pub fn forget(&mut self) {
        self.input.clear();
        self.packets.clear();
    }

    /// Fetches packets for the VM from the virtual link.
    pub fn fetch(&mut self, vm: u32, link: &VirtualLink) {
        let before = self.packets.len();
        if link.has_inbound(vm) {
            link.take(vm, PACKETS_MAX.saturating_sub(before), &mut self.packets);
        }
        self.packets_full &= self.packets.len() == before;
    }

    /// Acknowledges the input that the VM has taken. Returns how many more packets its card has
    /// dropped.
    pub fn took(&mut self, record: &InputRecord) -> CardDrops {
        let InputRecord { offered, taken, drops } = *record;
        let n = (taken.console.wrapping_sub(self.input_at) as usize).min(self.input.len());
        self.input.drain(..n);
        self.input_at = self.input_at.wrapping_add(n as u32);
        let end = self.input_at.wrapping_add(self.input.len() as u32);
        self.full = n == 0 && taken.console != offered.console && offered.console == end;

        let n = (taken.packets.wrapping_sub(self.packets_at) as usize).min(self.packets.len());
        self.packets.drain(..n);
        self.packets_at = self.packets_at.wrapping_add(n as u32);
        let end = self.packets_at.wrapping_add(self.packets.len() as u32);
        self.packets_full = n == 0 && taken.packets != offered.packets && offered.packets == end;

        let before = std::mem::replace(&mut self.card, drops);
        CardDrops { rx: drops.rx.wrapping_sub(before.rx), tx: drops.tx.wrapping_sub(before.tx) }
    }

    /// Whether there is input that the VM may take now.
    pub fn wants_to_run(&self) -> bool {
        (!self.input.is_empty() && !self.full) || (!self.packets.is_empty() && !self.packets_full)
    }

    /// Whether there is queued input.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty() || !self.packets.is_empty()
    }

    /// Returns the input to offer in the next launch.
    pub fn offer(&self) -> Offer<'_> {
        Offer {
            console_at: self.input_at,
            console: self.input.as_slices(),
            packets_at: self.packets_at,
            packets: self.packets.as_slices(),
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

    fn taken(console: u32, packets: u32, offered: &Seat) -> InputRecord {
        let offer = offered.offer();
        let input = offer.console.0.len() + offer.console.1.len();
        let waiting = offer.packets.0.len() + offer.packets.1.len();
        InputRecord {
            taken: Taken { console, packets },
            offered: Taken {
                console: offer.console_at + input as u32,
                packets: offer.packets_at + waiting as u32,
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
        // The same record again, as when two launches report it.
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
        // A record of an earlier start does not count for the new one.
        seat.took(&record);
        assert!(seat.wants_to_run());
    }

    #[test]
    fn packets_come_from_the_wire_are_kept_until_taken_and_gone_after_a_restart() {
        let link = VirtualLink::new(1);
        let mut seat = seat();
        seat.fetch(0, &link);
        assert!(!seat.has_input());
        for len in 14..14 + 70 {
            link.packet_sender().send(0, vec![0; len].into());
        }
        let before = taken(0, 0, &seat);
        seat.fetch(0, &link);
        assert!(seat.wants_to_run());
        assert_eq!((seat.packets.len(), link.has_inbound(0)), (PACKETS_MAX, true));
        seat.took(&before);
        assert!(seat.wants_to_run());
        // A record of a VM whose driver has posted no receive buffers.
        seat.took(&taken(0, 0, &seat));
        assert!(seat.has_input() && !seat.wants_to_run());
        seat.took(&taken(0, 2, &seat));
        seat.fetch(0, &link);
        assert!(seat.wants_to_run());
        assert_eq!((seat.offer().packets_at, seat.offer().packets.0[0].len()), (2, 16));
        seat.restart(&ReadyPattern::new("x").unwrap(), 10);
        assert_eq!((seat.has_input(), seat.offer().packets_at), (false, 0));
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

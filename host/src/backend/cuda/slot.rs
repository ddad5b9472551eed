//! A VM's slot in the CUDA backend: the VM's life, and the input that waits for it on the host.

use std::collections::VecDeque;

use emu_core::trap::TrapChain;
use emu_device::protocol::inbox::Offer;
use emu_device::protocol::outbox::{CardDrops, InputRecord};

use crate::backend::Settings;
use crate::backend::life::Life;
use crate::backend::part::VmLink;
use crate::net::Packet;

/// Packets offered to a VM at a time; the others wait on the link.
const PACKETS_MAX: usize = 64;

/// A VM's slot in the CUDA backend.
#[derive(Debug)]
pub struct VmSlot {
    /// Life of the VM.
    pub life: Life,
    /// Whether the VM is in the list of VMs with queued input.
    pub has_input_queued: bool,
    /// Console input that the VM has not read.
    console: InputQueue<u8>,
    /// Packets that the VM has not received.
    packets: InputQueue<Packet>,
    /// Number of packets that the VM's network card has dropped.
    card: CardDrops,
    /// The traps that the VM is caught in, before it ends for that.
    pub traps: TrapChain,
}

/// Input of one kind. It is kept until the VM has taken it.
#[derive(Debug)]
pub(super) struct InputQueue<T> {
    pub queue: VecDeque<T>,
    /// Sequence number of the first of `queue`.
    pub at: u32,
    /// Whether the VM was offered all of `queue` and took nothing.
    refused: bool,
}

impl<T> Default for InputQueue<T> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), at: 0, refused: false }
    }
}

impl<T> InputQueue<T> {
    /// Handles that the VM has taken input up to sequence number `taken`, and was offered it up to
    /// `offered`.
    pub fn acknowledge(&mut self, taken: u32, offered: u32) {
        let n = (taken.wrapping_sub(self.at) as usize).min(self.queue.len());
        self.queue.drain(..n);
        self.at = self.at.wrapping_add(n as u32);
        let end = self.at.wrapping_add(self.queue.len() as u32);
        self.refused = n == 0 && taken != offered && offered == end;
    }

    /// Begins to count for a VM that starts again.
    fn restart(&mut self) {
        (self.at, self.refused) = (0, false);
    }

    /// Whether the VM may take something now.
    fn is_wanted(&self) -> bool {
        !self.queue.is_empty() && !self.refused
    }
}

impl VmSlot {
    /// Returns the slot of a VM that starts at once, or waits to be started.
    pub fn new(starts: bool, settings: &Settings) -> Self {
        Self {
            life: Life::new(starts, settings),
            has_input_queued: false,
            console: InputQueue::default(),
            packets: InputQueue::default(),
            card: CardDrops::default(),
            traps: TrapChain::EMPTY,
        }
    }

    /// Prepares the slot for a VM that starts again. Waiting console input is kept.
    pub fn restart(&mut self) {
        self.console.restart();
        self.packets = InputQueue::default();
        self.card = CardDrops::default();
    }

    /// Queues console input.
    pub fn queue_console(&mut self, bytes: &[u8]) {
        self.console.queue.extend(bytes);
        self.console.refused = false;
    }

    /// Returns how many bytes of console input the VM has not read.
    pub fn console_waiting(&self) -> usize {
        self.console.queue.len()
    }

    /// Drops all queued input.
    pub fn drop_input(&mut self) {
        self.console.queue.clear();
        self.packets.queue.clear();
    }

    /// Fetches packets for the VM from the virtual link.
    pub fn fetch_packets(&mut self, link: VmLink<'_>) {
        let queue = &mut self.packets.queue;
        let before = queue.len();
        if link.has_inbound() {
            link.take(PACKETS_MAX.saturating_sub(before), queue);
        }
        self.packets.refused &= queue.len() == before;
    }

    /// Handles how much input the VM has taken. Returns how many more packets its card has dropped.
    pub fn acknowledge(&mut self, record: &InputRecord) -> CardDrops {
        let InputRecord { offered, taken, drops } = *record;
        self.console.acknowledge(taken.console, offered.console);
        self.packets.acknowledge(taken.packets, offered.packets);
        let before = std::mem::replace(&mut self.card, drops);
        CardDrops { rx: drops.rx.wrapping_sub(before.rx), tx: drops.tx.wrapping_sub(before.tx) }
    }

    /// Whether there is input that the VM may take now.
    pub fn wants_to_run(&self) -> bool {
        self.console.is_wanted() || self.packets.is_wanted()
    }

    /// Whether there is queued input.
    pub fn has_input(&self) -> bool {
        !self.console.queue.is_empty() || !self.packets.queue.is_empty()
    }

    /// Returns the input to offer in the next launch.
    pub fn offer(&self) -> Offer<'_, Packet> {
        Offer {
            console_at: self.console.at,
            console: self.console.queue.as_slices(),
            packets_at: self.packets.at,
            packets: self.packets.queue.as_slices(),
        }
    }
}

#[cfg(test)]
mod tests {
    use emu_device::protocol::outbox::Taken;

    use super::*;
    use crate::backend::ClockSource;
    use crate::backend::cuda::tests::settings;
    use crate::net::VirtualLink;

    fn slot() -> VmSlot {
        VmSlot::new(true, &settings(false, ClockSource::Instret))
    }

    fn taken(console: u32, packets: u32, offered: &VmSlot) -> InputRecord {
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
        let mut slot = slot();
        slot.queue_console(b"hello");
        slot.queue_console(b"!");
        let record = taken(4, 0, &slot);
        slot.acknowledge(&record);
        assert_eq!(slot.offer().console_at, 4);
        // The same record again, as when two launches report it.
        slot.acknowledge(&record);
        assert!(slot.has_input() && !slot.wants_to_run());
        slot.acknowledge(&taken(6, 0, &slot));
        assert!(!slot.has_input());
    }

    #[test]
    fn a_vm_that_takes_nothing_is_not_run_for_it_until_more_comes() {
        let mut slot = slot();
        slot.queue_console(b"x");
        let record = taken(0, 0, &slot);
        slot.acknowledge(&record);
        assert!(!slot.wants_to_run());
        slot.queue_console(b"y");
        assert!(slot.wants_to_run());
        // A record of an earlier start does not count for the new one.
        slot.acknowledge(&record);
        assert!(slot.wants_to_run());
    }

    #[test]
    fn packets_come_from_the_link_are_kept_until_taken_and_gone_after_a_restart() {
        let link = VirtualLink::new(1);
        let mut slot = slot();
        slot.fetch_packets(VmLink::new(&link, 0));
        assert!(!slot.has_input());
        for len in 14..14 + 70 {
            link.packet_sender().send(0, vec![0; len].into());
        }
        let before = taken(0, 0, &slot);
        slot.fetch_packets(VmLink::new(&link, 0));
        assert!(slot.wants_to_run());
        assert_eq!((slot.packets.queue.len(), link.has_inbound(0)), (PACKETS_MAX, true));
        slot.acknowledge(&before);
        assert!(slot.wants_to_run());
        // A record of a VM whose driver has posted no receive buffers.
        slot.acknowledge(&taken(0, 0, &slot));
        assert!(slot.has_input() && !slot.wants_to_run());
        slot.acknowledge(&taken(0, 2, &slot));
        slot.fetch_packets(VmLink::new(&link, 0));
        assert!(slot.wants_to_run());
        assert_eq!((slot.offer().packets_at, slot.offer().packets.0[0].len()), (2, 16));
        slot.restart();
        assert_eq!((slot.has_input(), slot.offer().packets_at), (false, 0));
    }

    #[test]
    fn what_a_card_dropped_is_counted_once() {
        let mut slot = slot();
        let drops = CardDrops { rx: 3, tx: 1 };
        let record = InputRecord { drops, ..InputRecord::default() };
        assert_eq!(slot.acknowledge(&record), drops);
        assert_eq!(slot.acknowledge(&record), CardDrops::default());
    }

    #[test]
    fn input_outlives_a_restart() {
        let mut slot = slot();
        slot.queue_console(b"abc");
        slot.acknowledge(&taken(1, 0, &slot));
        slot.restart();
        assert_eq!(slot.offer().console_at, 0);
        assert!(slot.has_input());
    }
}

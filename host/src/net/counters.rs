//! Network counters: packets passed and dropped, for each VM and in total.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::ser::{Serialize, SerializeMap, Serializer};

/// Reason for dropping a packet (Ethernet frame).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// The guest sent a packet shorter than an Ethernet header or longer than the largest packet.
    BadLength,
    /// The guest has no receive buffer: its driver is not up, the buffer is too small, or the VM
    /// has ended.
    NoBuffer,
    /// Too many packets of the guest wait for the network already.
    OutboundFull,
    /// Too many packets wait for the guest already.
    InboundFull,
    /// The guest sent more than its rate allows.
    Rate,
    /// A header contradicts itself or ends too early.
    Malformed,
    /// A checksum is wrong.
    Checksum,
    /// The source address is not the sender's.
    Spoofed,
    /// An IPv4 fragment that is not passed on.
    Fragment,
    /// Options of IP or TCP are malformed, or would carry addresses of guests.
    Options,
    /// The packet has a VLAN tag.
    Vlan,
    /// The packet is IPv6.
    Ipv6,
    /// The protocol is another one that is not passed on.
    Protocol,
    /// The packet is for another VM, and VMs are isolated.
    Isolated,
    /// The address or port does not exist, or the guest may not reach it.
    Unreachable,
    /// The connection would be one too many.
    Connections,
    /// The connection was given up because the guest acknowledges nothing.
    Unanswered,
    /// The broadcast or multicast limit was exceeded.
    Broadcast,
    /// The host's interface does not take the packet.
    UplinkFull,
}

impl DropReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 19] = [
        Self::BadLength,
        Self::NoBuffer,
        Self::OutboundFull,
        Self::InboundFull,
        Self::Rate,
        Self::Malformed,
        Self::Checksum,
        Self::Spoofed,
        Self::Fragment,
        Self::Options,
        Self::Vlan,
        Self::Ipv6,
        Self::Protocol,
        Self::Isolated,
        Self::Unreachable,
        Self::Connections,
        Self::Unanswered,
        Self::Broadcast,
        Self::UplinkFull,
    ];

    /// Name of the reason in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadLength => "bad_length",
            Self::NoBuffer => "no_buffer",
            Self::OutboundFull => "outbound_full",
            Self::InboundFull => "inbound_full",
            Self::Rate => "rate",
            Self::Malformed => "malformed",
            Self::Checksum => "checksum",
            Self::Spoofed => "spoofed",
            Self::Fragment => "fragment",
            Self::Options => "options",
            Self::Vlan => "vlan",
            Self::Ipv6 => "ipv6",
            Self::Protocol => "protocol",
            Self::Isolated => "isolated",
            Self::Unreachable => "unreachable",
            Self::Connections => "connections",
            Self::Unanswered => "unanswered",
            Self::Broadcast => "broadcast",
            Self::UplinkFull => "uplink_full",
        }
    }
}

const REASONS: usize = DropReason::ALL.len();

/// Counters of a VM, updated by several threads while it runs.
#[derive(Debug, Default)]
pub struct Counters {
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
    drops: [AtomicU64; REASONS],
}

impl Counters {
    /// Counts a packet from the guest that reached the network.
    pub fn sent(&self, bytes: usize) {
        self.tx_packets.fetch_add(1, Relaxed);
        self.tx_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts a packet that was queued for the guest to receive.
    pub fn received(&self, bytes: usize) {
        self.rx_packets.fetch_add(1, Relaxed);
        self.rx_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts `n` dropped packets.
    pub fn dropped(&self, reason: DropReason, n: u64) {
        self.drops[reason as usize].fetch_add(n, Relaxed);
    }

    /// Returns the numbers of packets received and sent.
    pub fn packets(&self) -> (u64, u64) {
        (self.rx_packets.load(Relaxed), self.tx_packets.load(Relaxed))
    }

    /// Returns the current values.
    pub fn counts(&self) -> Counts {
        let read = |n: &AtomicU64| n.load(Relaxed);
        Counts {
            tx_packets: read(&self.tx_packets),
            tx_bytes: read(&self.tx_bytes),
            rx_packets: read(&self.rx_packets),
            rx_bytes: read(&self.rx_bytes),
            drops: Drops(std::array::from_fn(|i| read(&self.drops[i]))),
        }
    }
}

/// Values of the counters of a VM or a fleet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Counts {
    /// Packets from the guest that reached the network.
    #[serde(rename = "tx_frames")]
    pub tx_packets: u64,
    /// Bytes of those packets.
    pub tx_bytes: u64,
    /// Packets for the guest.
    #[serde(rename = "rx_frames")]
    pub rx_packets: u64,
    /// Bytes of those packets.
    pub rx_bytes: u64,
    /// Dropped packets, by reason.
    pub drops: Drops,
}

impl Counts {
    /// Adds another VM's values.
    pub fn add(&mut self, other: &Self) {
        self.tx_packets += other.tx_packets;
        self.tx_bytes += other.tx_bytes;
        self.rx_packets += other.rx_packets;
        self.rx_bytes += other.rx_bytes;
        for (sum, n) in self.drops.0.iter_mut().zip(other.drops.0) {
            *sum += n;
        }
    }
}

/// Dropped packets by reason. Reports show only the reasons that occurred.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drops([u64; REASONS]);

impl Drops {
    /// Returns the count of one reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Returns the count of all reasons.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Serialize for Drops {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (reason, n) in DropReason::ALL.into_iter().zip(self.0).filter(|&(_, n)| n > 0) {
            map.serialize_entry(reason.name(), &n)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_in_order_and_have_names_of_their_own() {
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
            let same = DropReason::ALL.into_iter().filter(|r| r.name() == reason.name());
            assert_eq!(same.count(), 1);
        }
    }

    #[test]
    fn counts_add_up_and_a_report_names_the_reasons_that_there_were() {
        let counters = Counters::default();
        counters.sent(60);
        counters.received(100);
        counters.dropped(DropReason::Spoofed, 2);
        let mut total = counters.counts();
        total.add(&counters.counts());
        assert_eq!((total.tx_bytes, total.drops.get(DropReason::Spoofed)), (120, 4));
        let json = serde_json::to_string(&total).unwrap();
        assert!(json.ends_with(r#""drops":{"spoofed":4}}"#), "{json}");
    }
}

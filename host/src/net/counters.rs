//! What passed and what did not, per VM and in total.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::ser::{Serialize, SerializeMap, Serializer};

/// Why a frame goes nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// From the guest: shorter than an Ethernet header or longer than the largest frame.
    BadLength,
    /// To the guest: its driver is not up, its buffer is too small, or it has ended.
    NoBuffer,
    /// From the guest: too many wait for the network already.
    OutboundFull,
    /// To the guest: too many wait for it already.
    InboundFull,
    /// More than the VM's rate allows.
    Rate,
    /// A header that contradicts itself, or ends too early.
    Malformed,
    /// A wrong checksum.
    Checksum,
    /// A source address that is not the sender's.
    Spoofed,
    /// An IPv4 fragment that is not passed on.
    Fragment,
    /// Options of IP or TCP that are malformed, or would carry addresses of guests.
    Options,
    /// A VLAN tag.
    Vlan,
    /// IPv6.
    Ipv6,
    /// Any other protocol that is not passed on.
    Protocol,
    /// To another VM, and VMs are kept apart.
    Isolated,
    /// To an address or port that the guest may not reach, or that is not there.
    Unreachable,
    /// A connection that would be one too many.
    Connections,
    /// A connection that is given up because the guest acknowledges nothing.
    Unanswered,
    /// To a broadcast or multicast address beyond what is passed on.
    Broadcast,
    /// The host's interface does not take it.
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

    /// Its name in reports.
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

/// What a VM counts while it runs, on several threads.
#[derive(Debug, Default)]
pub struct Counters {
    tx_frames: AtomicU64,
    tx_bytes: AtomicU64,
    rx_frames: AtomicU64,
    rx_bytes: AtomicU64,
    drops: [AtomicU64; REASONS],
}

impl Counters {
    /// A frame from the guest reached the network.
    pub fn sent(&self, bytes: usize) {
        self.tx_frames.fetch_add(1, Relaxed);
        self.tx_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// A frame was put where the guest takes it.
    pub fn received(&self, bytes: usize) {
        self.rx_frames.fetch_add(1, Relaxed);
        self.rx_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// `n` frames were dropped.
    pub fn dropped(&self, reason: DropReason, n: u64) {
        self.drops[reason as usize].fetch_add(n, Relaxed);
    }

    /// Frames received and sent.
    pub fn frames(&self) -> (u64, u64) {
        (self.rx_frames.load(Relaxed), self.tx_frames.load(Relaxed))
    }

    /// The numbers now.
    pub fn counts(&self) -> Counts {
        let read = |n: &AtomicU64| n.load(Relaxed);
        Counts {
            tx_frames: read(&self.tx_frames),
            tx_bytes: read(&self.tx_bytes),
            rx_frames: read(&self.rx_frames),
            rx_bytes: read(&self.rx_bytes),
            drops: Drops(std::array::from_fn(|i| read(&self.drops[i]))),
        }
    }
}

/// What a VM, or a fleet, has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Counts {
    /// Frames from the guest that reached the network.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames for the guest.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames that went nowhere, by reason.
    pub drops: Drops,
}

impl Counts {
    /// Adds another VM's.
    pub fn add(&mut self, other: &Self) {
        self.tx_frames += other.tx_frames;
        self.tx_bytes += other.tx_bytes;
        self.rx_frames += other.rx_frames;
        self.rx_bytes += other.rx_bytes;
        for (sum, n) in self.drops.0.iter_mut().zip(other.drops.0) {
            *sum += n;
        }
    }
}

/// Frames dropped, by reason. In reports only those that there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drops([u64; REASONS]);

impl Drops {
    /// For one reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// For all.
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

//! The switch: between VMs (`--net-mesh`), and between each VM and the uplink; limits the rates.
//!
//! A packet for another VM goes to it directly when VMs may talk to each other (`--net-mesh`), and
//! is dropped when not, also where the uplink could take it, because the host behind it might send
//! it back. Everything else goes to the uplink.

use std::io;
use std::str::FromStr;
use std::time::{Duration, Instant};

use mio::Registry;
use mio::event::Event;

use super::addresses::Addresses;
use super::rewrite::{self, Destination, PACKET_MAX};
use super::{DropReason, InboundConnection, Packet, PacketSender, Uplink};

/// Copies of broadcasts that one sender may cause in a second.
const COPIES: u64 = 1024;
/// Copies of broadcasts that all senders together may cause in a second.
const FLEET_COPIES: u64 = 64 * COPIES;
/// Duration of a burst: a VM may send its link's rate for so long before the limit applies.
const BURST: Duration = Duration::from_millis(100);
/// Smallest burst in bytes: a few packets.
const BURST_MIN: u64 = 16 << 10;

/// Options of the switch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Whether VMs may talk to each other.
    pub mesh: bool,
    /// Rate limit of each VM.
    pub rate: Option<Rate>,
}

/// Smallest rate, in bits a second: one of the largest packets. A slower guest is as good as cut
/// off.
const RATE_MIN: u64 = PACKET_MAX as u64 * 8;

/// A rate in bytes a second; written in bits, as in 10M.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate(u64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = match text.char_indices().next_back() {
            Some((i, 'K' | 'k')) => (&text[..i], 1_000),
            Some((i, 'M')) => (&text[..i], 1_000_000),
            Some((i, 'G')) => (&text[..i], 1_000_000_000),
            _ => (text, 1),
        };
        let bits = digits.parse().ok().and_then(|n: u64| n.checked_mul(unit));
        match bits {
            Some(bits @ RATE_MIN..) => Ok(Self(bits / 8)),
            Some(bits) => Err(format!(
                "{bits} bits a second is less than one packet ({RATE_MIN} bits) a second; \
                 K, M and G stand for thousands, millions and thousand millions, as in 10M"
            )),
            None => Err("not a number of bits a second; write it like 10M".into()),
        }
    }
}

/// A switch in front of an uplink.
pub struct Switch {
    uplink: Box<dyn Uplink>,
    /// Addresses that VMs use for each other; `None` when VMs are isolated.
    addresses: Option<Addresses>,
    mesh: bool,
    /// Rate limit of each VM.
    rates: Vec<Bucket>,
    /// Broadcast limit of each VM.
    copies: Vec<Bucket>,
    flood: Flood,
}

impl Switch {
    /// Returns a switch that connects `count` VMs to each other and to `uplink`.
    pub fn new(
        uplink: Box<dyn Uplink>,
        addresses: Option<Addresses>,
        count: u32,
        rules: Rules,
    ) -> Self {
        let count = count as usize;
        let now = Instant::now();
        let rate = |Rate(rate)| {
            let burst = (rate as f64 * BURST.as_secs_f64()) as u64;
            Bucket::new(rate, burst.max(BURST_MIN), now)
        };
        let mesh = rules.mesh && addresses.is_some();
        let copies = if mesh { count } else { 0 };
        Self {
            uplink,
            addresses,
            mesh,
            rates: rules.rate.map(|r| vec![rate(r); count]).unwrap_or_default(),
            copies: vec![Bucket::new(COPIES, COPIES.max(count as u64), now); copies],
            flood: Flood::new(count as u64, now),
        }
    }

    /// Returns where a packet from VM `vm` goes.
    fn route(&mut self, vm: u32, packet: &[u8]) -> Result<Route, DropReason> {
        if let Some(bucket) = self.rates.get_mut(vm as usize)
            && !bucket.take(packet.len() as u64, Instant::now())
        {
            return Err(DropReason::Rate);
        }
        let Some(addresses) = &self.addresses else { return Ok(Route::Uplink) };
        match rewrite::destination(packet)? {
            Destination::One(ip) => match addresses.vm(ip) {
                Some(to) if self.mesh => Ok(Route::Vm(to)),
                Some(_) => Err(DropReason::Isolated),
                None => Ok(Route::Uplink),
            },
            Destination::Everyone if self.mesh => Ok(Route::Everyone),
            Destination::Everyone => Ok(Route::Uplink),
        }
    }

    /// Sends a packet of VM `from` to VM `to`.
    fn pass(&self, from: u32, to: u32, mut packet: Packet, out: &mut PacketSender<'_>) {
        let Some(addresses) = &self.addresses else { return };
        let translated = addresses.edge(from).outward(&mut packet);
        match translated.and_then(|_| addresses.edge(to).inward(&mut packet)) {
            Ok(()) => out.send(to, packet),
            Err(reason) => out.dropped(from, reason),
        }
    }

    /// Sends copies of a packet to all other VMs, within the broadcast limits.
    fn copy(&mut self, from: u32, packet: &Packet, out: &mut PacketSender<'_>) {
        let Some(addresses) = self.addresses else { return };
        let copies = u64::from(addresses.count()).saturating_sub(1);
        let now = Instant::now();
        let own = self.copies.get_mut(from as usize).is_some_and(|b| b.take(copies, now));
        if !own || !self.flood.passes(copies, now) {
            return out.dropped(from, DropReason::Broadcast);
        }
        let mut translated = packet.clone();
        if addresses.edge(from).outward(&mut translated).is_err() {
            // The uplink refuses the packet too, and counts it.
            return;
        }
        for to in (0..addresses.count()).filter(|&to| to != from) {
            let mut copy = translated.clone();
            if addresses.edge(to).inward(&mut copy).is_ok() {
                out.send(to, copy);
            }
        }
    }
}

enum Route {
    Uplink,
    Vm(u32),
    Everyone,
}

impl Uplink for Switch {
    fn register(&mut self, registry: &Registry) -> io::Result<()> {
        self.uplink.register(registry)
    }

    fn transmit(&mut self, vm: u32, packet: Packet, out: &mut PacketSender<'_>) {
        match self.route(vm, &packet) {
            Ok(Route::Uplink) => self.uplink.transmit(vm, packet, out),
            Ok(Route::Vm(to)) => self.pass(vm, to, packet, out),
            Ok(Route::Everyone) => {
                self.copy(vm, &packet, out);
                self.uplink.transmit(vm, packet, out);
            }
            Err(reason) => out.dropped(vm, reason),
        }
    }

    fn ready(&mut self, event: &Event, out: &mut PacketSender<'_>) {
        self.uplink.ready(event, out);
    }

    fn poll(&mut self, now: Instant, out: &mut PacketSender<'_>) -> Option<Instant> {
        self.uplink.poll(now, out)
    }

    fn reset(&mut self, vm: u32, out: &mut PacketSender<'_>) {
        self.uplink.reset(vm, out);
    }

    fn connect(&mut self, inbound: InboundConnection, now: Instant, out: &mut PacketSender<'_>) {
        self.uplink.connect(inbound, now, out);
    }
}

/// Limit of the copies that broadcasts cause in the whole fleet.
#[derive(Clone, Copy, Debug)]
pub struct Flood(Bucket);

impl Flood {
    /// Returns the limit for a fleet of `count` VMs, which always allows one broadcast to all.
    pub fn new(count: u64, now: Instant) -> Self {
        Self(Bucket::new(FLEET_COPIES, FLEET_COPIES.max(count), now))
    }

    /// Whether that many copies may be made now.
    pub fn passes(&mut self, copies: u64, now: Instant) -> bool {
        self.0.take(copies, now)
    }
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    /// Tokens in a full bucket.
    burst: f64,
    /// Tokens added in a second.
    rate: f64,
    filled: Instant,
}

impl Bucket {
    /// Returns a full bucket.
    fn new(rate: u64, burst: u64, now: Instant) -> Self {
        let (rate, burst) = (rate as f64, burst as f64);
        Self { tokens: burst, burst, rate, filled: now }
    }

    /// Takes `n` tokens, or none when there are fewer.
    fn take(&mut self, n: u64, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * self.rate).min(self.burst);
        self.filled = self.filled.max(now);
        let enough = self.tokens >= n as f64;
        if enough {
            self.tokens -= n as f64;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::Ipv4Addr;
    use std::sync::{Arc, Mutex};

    use etherparse::{Ipv4HeaderSlice, PacketBuilder};

    use super::*;
    use crate::machine::Macs;
    use crate::net::{GATEWAY_MAC, GUEST_IP, VirtualLink};

    /// An uplink that keeps what it is given.
    #[derive(Clone, Default)]
    struct Outside(Arc<Mutex<Vec<(u32, Packet)>>>);

    impl Uplink for Outside {
        fn register(&mut self, _: &Registry) -> io::Result<()> {
            Ok(())
        }
        fn transmit(&mut self, vm: u32, packet: Packet, _: &mut PacketSender<'_>) {
            self.0.lock().unwrap().push((vm, packet));
        }
        fn ready(&mut self, _: &Event, _: &mut PacketSender<'_>) {}
        fn poll(&mut self, _: Instant, _: &mut PacketSender<'_>) -> Option<Instant> {
            None
        }
        fn reset(&mut self, _: u32, _: &mut PacketSender<'_>) {}
    }

    struct Net {
        switch: Switch,
        link: VirtualLink,
        outside: Outside,
    }

    fn net(count: u32, rules: Rules) -> Net {
        let outside = Outside::default();
        let addresses = Addresses::new("10.77.0.0/16".parse().unwrap(), count, Macs::Same).unwrap();
        let switch = Switch::new(Box::new(outside.clone()), Some(addresses), count, rules);
        Net { switch, link: VirtualLink::new(count), outside }
    }

    impl Net {
        fn send(&mut self, vm: u32, packet: Packet) {
            self.switch.transmit(vm, packet, &mut self.link.packet_sender());
        }

        fn received(&self, vm: u32) -> Vec<Packet> {
            let mut packets = VecDeque::new();
            self.link.take(vm, usize::MAX, &mut packets);
            packets.into()
        }

        fn drops(&self, vm: u32, reason: DropReason) -> u64 {
            self.link.counts(vm).drops.get(reason)
        }

        fn outside(&self) -> usize {
            self.outside.0.lock().unwrap().len()
        }
    }

    /// Returns a packet that a guest sends to this address by its gateway.
    fn packet(to: [u8; 4]) -> Packet {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ethernet2(Macs::Same.of(0), GATEWAY_MAC);
        builder.ipv4(GUEST_IP.octets(), to, 64).udp(1000, 7).write(&mut packet, b"hello").unwrap();
        packet.into()
    }

    const VM1: [u8; 4] = [10, 77, 0, 3];

    #[test]
    fn vms_are_apart_unless_meshed_and_the_uplink_is_no_way_around() {
        let mut net = net(3, Rules::default());
        net.send(0, packet(VM1));
        net.send(0, packet([9, 9, 9, 9]));
        net.send(0, packet([255; 4]));
        assert_eq!((net.drops(0, DropReason::Isolated), net.outside()), (1, 2));
        assert!((0..3).all(|vm| net.received(vm).is_empty()));
    }

    #[test]
    fn meshed_vms_see_each_other_under_outside_addresses() {
        let mut net = net(3, Rules { mesh: true, rate: None });
        net.send(0, packet(VM1));
        let received = net.received(1);
        let ip = Ipv4HeaderSlice::from_slice(&received[0][14..]).unwrap();
        assert_eq!(ip.source_addr(), Ipv4Addr::new(10, 77, 0, 2));
        assert_eq!(ip.destination_addr(), GUEST_IP);
        assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
        assert_eq!(received[0][..6], Macs::Same.of(1));
        assert_eq!((net.outside(), net.received(2).len()), (0, 0));

        let mut spoofed = packet(VM1);
        spoofed[29] ^= 1;
        net.send(0, spoofed);
        assert_eq!(net.drops(0, DropReason::Checksum), 1);
        net.send(0, Box::default());
        assert_eq!(net.drops(0, DropReason::BadLength), 1);
        assert!(net.received(1).is_empty());
    }

    #[test]
    fn a_broadcast_reaches_all_others_and_a_flood_of_them_does_not() {
        let mut net = net(200, Rules { mesh: true, rate: None });
        let sent = 100;
        for _ in 0..sent {
            net.send(7, packet([255; 4]));
        }
        let drops = net.drops(7, DropReason::Broadcast);
        assert_eq!(net.received(7).len(), 0);
        let passed = net.received(0).len() as u64;
        assert_eq!(passed, net.received(199).len() as u64);
        assert_eq!(passed + drops, sent);
        // The bucket's content, and what was added while the test ran.
        assert!((5..sent).contains(&passed), "{passed}");
        // Other VMs have buckets of their own.
        net.send(8, packet([255; 4]));
        assert_eq!(net.received(0).len(), 1);
    }

    #[test]
    fn more_than_its_rate_is_dropped_and_is_the_vms_own() {
        let rules = Rules { mesh: false, rate: Some(Rate(1000)) };
        let mut net = net(2, rules);
        let big = |_| packet([9, 9, 9, 9]);
        let n = BURST_MIN as usize / big(()).len() + 200;
        for _ in 0..n {
            net.send(0, big(()));
        }
        net.send(1, packet([9, 9, 9, 9]));
        assert!(net.drops(0, DropReason::Rate) > 0);
        assert_eq!(net.drops(0, DropReason::Rate) as usize + net.outside(), n + 1);
        assert_eq!(net.drops(1, DropReason::Rate), 0);
    }

    #[test]
    fn a_bucket_fills_with_time_up_to_its_burst() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut bucket = Bucket::new(1000, 100, start);
        assert!(bucket.take(100, start) && !bucket.take(1, start));
        assert!(!bucket.take(51, after(50)) && bucket.take(50, after(50)));
        assert!(bucket.take(100, after(60_000)) && !bucket.take(1, after(60_000)));
        // Time does not go back.
        assert!(!bucket.take(1, start));
    }

    #[test]
    fn rates_are_written_in_bits() {
        assert_eq!("10M".parse(), Ok(Rate(1_250_000)));
        assert_eq!("12112".parse(), Ok(Rate(1514)));
        for wrong in ["", "M", "-1", "1T", "99999999999G", "1.5M"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
        // A number without a unit: bits a second are hardly meant.
        for small in ["0", "10", "100", "1K", "12111"] {
            let refused = small.parse::<Rate>().unwrap_err();
            assert!(refused.contains("less than one packet"), "{small}: {refused}");
        }
    }
}

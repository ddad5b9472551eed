//! Tests of the address translation. The oracle is always the same: a packet that etherparse builds
//! with the addresses of one view, translated, equals the packet that etherparse builds with the
//! addresses of the other.

use std::net::Ipv4Addr;

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv4Header, Icmpv4Type, IpFragOffset,
    IpHeaders, Ipv4Header, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TcpHeaderSlice,
    TcpOptionElement,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

const PEER_MAC: Mac = [0x52, 0x54, 0, 1, 2, 3];
const INSIDE: View = View {
    mac: [0x02, b'p', b'x', 0, 0, 0],
    ip: Ipv4Addr::new(10, 0, 2, 15),
    gateway: Ipv4Addr::new(10, 0, 2, 2),
    broadcast: Ipv4Addr::new(10, 0, 2, 255),
};
const OUTSIDE: View = View {
    mac: [0x02, b'p', b'x', 0, 1, 7],
    ip: Ipv4Addr::new(10, 77, 1, 9),
    gateway: Ipv4Addr::new(10, 77, 0, 1),
    broadcast: Ipv4Addr::new(10, 77, 255, 255),
};
const EDGE: Edge = Edge { inside: INSIDE, outside: OUTSIDE };

/// The other end of the VM's conversation.
#[derive(Clone, Copy, Debug)]
enum Peer {
    Gateway,
    Other(u32),
}

impl Peer {
    fn ip(self, view: &View) -> [u8; 4] {
        match self {
            Self::Gateway => view.gateway.octets(),
            Self::Other(a) => a.to_be_bytes(),
        }
    }
}

#[derive(Clone, Debug)]
enum Content {
    Udp(u16, u16),
    Tcp(u16, u16, u32, bool),
    Echo(u16, u16),
    /// An ICMP error of this type and code about a packet of the other direction, with the number
    /// of bytes that it quotes.
    Error(u8, u8, Box<Packet>, usize),
}

#[derive(Clone, Debug)]
struct Packet {
    peer: Peer,
    ttl: u8,
    options: Vec<u8>,
    content: Content,
    payload: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Out,
    In,
}

impl Way {
    fn back(self) -> Self {
        if self == Self::Out { Self::In } else { Self::Out }
    }

    fn pass(self, packet: &mut [u8]) -> Result<(), DropReason> {
        match self {
            Self::Out => EDGE.outward(packet).map(drop),
            Self::In => EDGE.inward(packet),
        }
    }

    /// Returns the view that a packet comes from, and the one that it goes to.
    const fn views(self) -> (&'static View, &'static View) {
        match self {
            Self::Out => (&INSIDE, &OUTSIDE),
            Self::In => (&OUTSIDE, &INSIDE),
        }
    }
}

impl Packet {
    /// Returns the packet as `view` sees it.
    fn bytes(&self, view: &View, way: Way) -> Vec<u8> {
        let (own, peer) = (view.ip.octets(), self.peer.ip(view));
        let (source, destination) = if way == Way::Out { (own, peer) } else { (peer, own) };
        let macs = if way == Way::Out { (view.mac, PEER_MAC) } else { (PEER_MAC, view.mac) };
        let mut ip = Ipv4Header { source, destination, time_to_live: self.ttl, ..<_>::default() };
        ip.options = self.options.as_slice().try_into().unwrap();
        let builder =
            PacketBuilder::ethernet2(macs.0, macs.1).ip(IpHeaders::Ipv4(ip, Default::default()));
        let mut packet = Vec::new();
        match &self.content {
            Content::Udp(from, to) => builder.udp(*from, *to).write(&mut packet, &self.payload),
            Content::Tcp(from, to, seq, syn) => {
                let mut header = TcpHeader::new(*from, *to, *seq, 4096);
                header.syn = *syn;
                if *syn {
                    let options = [
                        TcpOptionElement::MaximumSegmentSize(1460),
                        TcpOptionElement::SelectiveAcknowledgementPermitted,
                        TcpOptionElement::Timestamp(*seq, 0),
                        TcpOptionElement::WindowScale(7),
                    ];
                    header.set_options(&options).unwrap();
                }
                builder.tcp_header(header).write(&mut packet, &self.payload)
            }
            Content::Echo(id, seq) => {
                builder.icmpv4_echo_request(*id, *seq).write(&mut packet, &self.payload)
            }
            Content::Error(kind, code, about, quoted) => {
                let about = about.bytes(view, way.back());
                // Half a checksum at the end stays as it is, unlike what etherparse builds.
                let end = about.len().min(HEADER_LEN + 28 + quoted / 2 * 2);
                let kind =
                    Icmpv4Type::Unknown { type_u8: *kind, code_u8: *code, bytes5to8: [0; 4] };
                builder.icmpv4(kind).write(&mut packet, &about[HEADER_LEN..end])
            }
        }
        .unwrap();
        packet
    }
}

fn peer() -> impl Strategy<Value = Peer> {
    let other = (1u8..223, any::<[u8; 3]>())
        .prop_filter("not a loopback address", |(a, _)| *a != 127)
        .prop_map(|(a, [b, c, d])| u32::from_be_bytes([a, b, c, d]));
    let other = other.prop_filter("has two names", |&a| {
        ![INSIDE, OUTSIDE].iter().any(|view| view.addresses().contains(&a.into()))
    });
    prop_oneof![Just(Peer::Gateway), other.prop_map(Peer::Other)]
}

fn simple_packet() -> impl Strategy<Value = Packet> {
    let content = prop_oneof![
        any::<(u16, u16)>().prop_map(|(a, b)| Content::Udp(a, b)),
        any::<(u16, u16, u32, bool)>().prop_map(|(a, b, c, d)| Content::Tcp(a, b, c, d)),
        any::<(u16, u16)>().prop_map(|(a, b)| Content::Echo(a, b)),
    ];
    // Options: router alert; no-operations and an end.
    let options = select(vec![vec![], vec![148, 4, 0, 0], vec![1, 1, 0, 0]]);
    (peer(), any::<u8>(), options, content, vec(any::<u8>(), 0..1400)).prop_map(
        |(peer, ttl, options, content, payload)| Packet { peer, ttl, options, content, payload },
    )
}

fn packet() -> impl Strategy<Value = Packet> {
    let error = (peer(), select(&[(3u8, 3u8), (3, 4), (11, 0), (12, 0)][..]), 0usize..200);
    let error = (error, simple_packet()).prop_map(|((peer, (kind, code), quoted), about)| {
        let content = Content::Error(kind, code, Box::new(about), quoted);
        Packet { peer, ttl: 64, options: vec![], content, payload: vec![] }
    });
    prop_oneof![3 => simple_packet(), 1 => error]
}

fn way() -> impl Strategy<Value = Way> {
    select(&[Way::Out, Way::In][..])
}

/// Splits an IPv4 packet into fragments of `mtu` bytes.
fn fragments(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let (header, payload) = Ipv4Header::from_slice(&packet[HEADER_LEN..]).unwrap();
    let room = (mtu - header.header_len()) / 8 * 8;
    let count = payload.len().div_ceil(room);
    let cut = |(i, piece): (usize, &[u8])| {
        let mut header = header.clone();
        header.fragment_offset = IpFragOffset::try_new((i * room / 8) as u16).unwrap();
        header.more_fragments = i + 1 < count;
        header.dont_fragment = false;
        header.set_payload_len(piece.len()).unwrap();
        header.header_checksum = header.calc_header_checksum();
        let mut cut = packet[..HEADER_LEN].to_vec();
        header.write(&mut cut).unwrap();
        cut.extend(piece);
        cut
    };
    payload.chunks(room).enumerate().map(cut).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn a_packet_is_as_if_it_had_been_made_with_the_other_addresses(p in packet(), way in way()) {
        let (from, to) = way.views();
        let mut packet = p.bytes(from, way);
        prop_assume!(packet.len() <= PACKET_MAX);
        prop_assert_eq!(way.pass(&mut packet), Ok(()));
        prop_assert_eq!(packet, p.bytes(to, way));
    }

    #[test]
    fn fragments_make_the_same_packet(p in simple_packet(), mtu in 68usize..1500, way in way()) {
        let (from, to) = way.views();
        let mut pieces = fragments(&p.bytes(from, way), mtu);
        for piece in &mut pieces {
            prop_assert_eq!(way.pass(piece), Ok(()));
        }
        prop_assert_eq!(pieces, fragments(&p.bytes(to, way), mtu));
    }

    #[test]
    fn no_single_wrong_bit_passes(p in packet(), way in way(), bit in any::<Index>()) {
        let mut packet = p.bytes(way.views().0, way);
        prop_assume!(packet.len() <= PACKET_MAX);
        let bits = (packet.len() - HEADER_LEN) * 8;
        let bit = HEADER_LEN * 8 + bit.index(bits);
        packet[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(way.pass(&mut packet).is_err());
    }

    #[test]
    fn whatever_leaves_has_the_vms_source(
        p in packet(),
        changes in vec((any::<Index>(), any::<u8>()), 0..4),
        cut in any::<Index>(),
        keep in any::<bool>(),
        way in way(),
    ) {
        let mut packet = p.bytes(&INSIDE, way);
        for (at, value) in changes {
            let at = at.index(packet.len().min(80));
            packet[at] = value;
        }
        if !keep {
            packet.truncate(cut.index(packet.len()));
        }
        repair(&mut packet);
        check_leaving(&mut packet);
        let _ = EDGE.inward(&mut packet);
        let _ = destination(&packet);
    }

    #[test]
    fn noise_neither_passes_nor_panics(
        mut noise in vec(any::<u8>(), 0..1600),
        ethertype in select(&[0x0800u16, 0x0806, 0x86dd, 0x8100, 5][..]),
        version in any::<bool>(),
    ) {
        let _ = EDGE.inward(&mut noise.clone());
        check_leaving(&mut noise);
        if let Some(start) = noise.get_mut(..HEADER_LEN + 1) {
            start[6..12].copy_from_slice(&INSIDE.mac);
            start[12..14].copy_from_slice(&ethertype.to_be_bytes());
            start[14] = if version { 0x45 } else { start[14] };
        }
        repair(&mut noise);
        let _ = EDGE.inward(&mut noise.clone());
        let _ = destination(&noise);
        check_leaving(&mut noise);
    }
}

/// Corrects the checksum of an IPv4 header, so that what is behind it is inspected.
fn repair(packet: &mut [u8]) {
    let Some(ip) = packet.get_mut(HEADER_LEN..) else { return };
    if let Ok((header, _)) = Ipv4Header::from_slice(ip) {
        ip[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    }
}

fn check_leaving(packet: &mut [u8]) {
    if EDGE.outward(packet).is_ok() {
        assert_eq!(packet[6..12], OUTSIDE.mac);
        let sliced = SlicedPacket::from_ethernet(packet).unwrap();
        let source = match sliced.net.unwrap() {
            NetSlice::Arp(arp) => arp.sender_protocol_addr().try_into().unwrap(),
            NetSlice::Ipv4(ip) => ip.header().source(),
            NetSlice::Ipv6(_) => panic!("IPv6 left"),
        };
        let probe = packet[12..14] == [8, 6] && source == [0; 4];
        assert!(source == OUTSIDE.ip.octets() || probe, "{source:?}");
    }
}

fn plain(content: Content) -> Packet {
    let peer = Peer::Other(0x0909_0909);
    Packet { peer, ttl: 64, options: vec![], content, payload: b"text".to_vec() }
}

/// Tries every value of a word under the checksum, and so every checksum: also 0, which UDP sends
/// as 0xffff.
#[test]
fn every_checksum_is_right() {
    for content in [Content::Udp(1, 2), Content::Tcp(1, 2, 3, false)] {
        let mut p = plain(content);
        for word in 0..=u16::MAX {
            p.payload = word.to_be_bytes().to_vec();
            let content = Content::Error(3, 3, Box::new(p.clone()), 100);
            for p in [&p, &plain(content)] {
                for way in [Way::Out, Way::In] {
                    let (from, to) = way.views();
                    let mut packet = p.bytes(from, way);
                    assert_eq!(way.pass(&mut packet), Ok(()));
                    assert_eq!(packet, p.bytes(to, way), "{word:#x}");
                }
            }
        }
    }
}

#[test]
fn the_other_zero_of_tcp_is_as_good() {
    let mut p = plain(Content::Tcp(1, 2, 3, false));
    let zero = (0..=u16::MAX).find_map(|word| {
        p.payload = word.to_be_bytes().to_vec();
        Some(p.bytes(&INSIDE, Way::Out)).filter(|packet| packet[50..52] == [0, 0])
    });
    let mut packet = zero.unwrap();
    packet[50..52].fill(0xff);
    assert!(EDGE.outward(&mut packet).is_ok());
    assert_eq!(packet, p.bytes(&OUTSIDE, Way::Out));
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut packet = plain(Content::Udp(1, 2)).bytes(&INSIDE, Way::Out);
    packet[40..42].fill(0);
    assert!(EDGE.outward(&mut packet).is_ok());
    assert_eq!(packet[40..42], [0, 0]);
}

fn arp(reply: bool, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr), to: Mac) -> Vec<u8> {
    let operation = if reply { ArpOperation::REPLY } else { ArpOperation::REQUEST };
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &sender.0,
        &sender.1.octets(),
        &target.0,
        &target.1.octets(),
    );
    let mut packet = Vec::new();
    let builder = PacketBuilder::ethernet2(sender.0, to).arp(arp.unwrap());
    builder.write(&mut packet).unwrap();
    packet
}

#[test]
fn arp_asks_and_answers_with_the_right_addresses() {
    let (all, none) = ([0xff; 6], [0; 6]);
    let ours = |v: &View| (v.mac, v.ip);
    let host = |v: &View| (PEER_MAC, v.gateway);
    let packets = |v: &View| {
        [
            (Way::Out, arp(false, ours(v), (none, v.gateway), all)),
            (Way::In, arp(true, host(v), ours(v), v.mac)),
            (Way::In, arp(false, host(v), (none, v.ip), all)),
            (Way::Out, arp(true, ours(v), host(v), PEER_MAC)),
            // A probe, and an announcement.
            (Way::Out, arp(false, (v.mac, Ipv4Addr::UNSPECIFIED), (none, v.ip), all)),
            (Way::Out, arp(false, ours(v), (none, v.ip), all)),
        ]
    };
    for (inside, outside) in packets(&INSIDE).into_iter().zip(packets(&OUTSIDE)) {
        let (mut packet, expected) = match inside.0 {
            Way::Out => (inside.1, outside.1),
            Way::In => (outside.1, inside.1),
        };
        assert_eq!(inside.0.pass(&mut packet), Ok(()));
        assert_eq!(packet, expected);
    }
}

#[test]
fn the_destination_is_told_as_the_outside_names_it() {
    let [all, none] = [[0xff; 6], [0; 6]];
    let ours = (INSIDE.mac, INSIDE.ip);
    let one = |ip| Ok(Destination::One(ip));
    let mut ask = arp(false, ours, (none, INSIDE.gateway), all);
    assert_eq!(EDGE.outward(&mut ask), one(OUTSIDE.gateway));
    assert_eq!(destination(&ask), one(OUTSIDE.gateway));
    let mut announce = arp(false, ours, (none, INSIDE.ip), all);
    assert_eq!(EDGE.outward(&mut announce), Ok(Destination::Everyone));

    let mut ping = plain(Content::Echo(1, 2)).bytes(&INSIDE, Way::Out);
    assert_eq!(EDGE.outward(&mut ping), one([9, 9, 9, 9].into()));
    assert_eq!(destination(&ping), one([9, 9, 9, 9].into()));
    for group in [[255; 4], INSIDE.broadcast.octets(), [224, 0, 0, 1]] {
        let peer = Peer::Other(u32::from_be_bytes(group));
        let mut packet = Packet { peer, ..plain(Content::Udp(1, 2)) }.bytes(&INSIDE, Way::Out);
        assert_eq!(EDGE.outward(&mut packet), Ok(Destination::Everyone));
    }
    assert_eq!(destination(&[0; 13]), Err(DropReason::BadLength));
    for packet in [ask, ping] {
        for len in HEADER_LEN..HEADER_LEN + 20 {
            assert_eq!(destination(&packet[..len]), Err(DropReason::Malformed));
        }
    }
}

/// Translates a valid packet with something changed and its IPv4 header's checksum corrected.
/// Returns the refusal, if any.
fn changed(content: Content, way: Way, change: impl Fn(&mut Vec<u8>)) -> Result<(), DropReason> {
    let mut packet = plain(content).bytes(way.views().0, way);
    assert_eq!(way.pass(&mut packet.clone()), Ok(()));
    change(&mut packet);
    repair(&mut packet);
    way.pass(&mut packet)
}

#[test]
fn what_is_wrong_is_refused_with_its_reason() {
    use Content::{Echo, Tcp, Udp};
    use DropReason::*;
    let udp = |change: fn(&mut Vec<u8>)| changed(Udp(1, 2), Way::Out, change);
    let tcp = |change: fn(&mut Vec<u8>)| changed(Tcp(1, 2, 3, true), Way::Out, change);
    let echo = |change: fn(&mut Vec<u8>)| changed(Echo(1, 2), Way::Out, change);
    let came = |change: fn(&mut Vec<u8>)| changed(Udp(1, 2), Way::In, change);
    let cases = [
        // Ethernet.
        ("runt", udp(|f| f.truncate(13)), BadLength),
        ("giant", udp(|f| f.resize(PACKET_MAX + 1, 0)), BadLength),
        ("other MAC", udp(|f| f[11] ^= 1), Spoofed),
        ("a VM's MAC from outside", came(|f| f[6..12].copy_from_slice(&INSIDE.mac)), Unreachable),
        ("VLAN", udp(|f| f[12..14].copy_from_slice(&[0x81, 0])), Vlan),
        ("QinQ", udp(|f| f[12..14].copy_from_slice(&[0x88, 0xa8])), Vlan),
        ("IPv6", udp(|f| f[12..14].copy_from_slice(&[0x86, 0xdd])), Ipv6),
        ("802.3 length", udp(|f| f[12..14].copy_from_slice(&[0, 46])), Protocol),
        // IPv4.
        ("no header", udp(|f| f.truncate(20)), Malformed),
        ("version", udp(|f| f[14] = 0x55), Malformed),
        ("header length", udp(|f| f[14] = 0x44), Malformed),
        ("header past the end", udp(|f| f[14] = 0x4f), Malformed),
        ("total length past the end", udp(|f| f[17] += 1), Malformed),
        ("total length in the header", udp(|f| f[17] = 19), Malformed),
        ("protocol", udp(|f| f[23] = 47), Protocol),
        ("authentication header", udp(|f| f[23] = 51), Protocol),
        ("other source", udp(|f| f[29] = 16), Spoofed),
        (
            "the VM's source from outside",
            came(|f| f[26..30].copy_from_slice(&[10, 77, 1, 9])),
            Unreachable,
        ),
        (
            "an inside address from outside",
            came(|f| f[26..30].copy_from_slice(&[10, 0, 2, 2])),
            Unreachable,
        ),
        (
            "an outside address from inside",
            udp(|f| f[30..34].copy_from_slice(&[10, 77, 0, 1])),
            Unreachable,
        ),
        ("to itself", udp(|f| f[30..34].copy_from_slice(&[10, 0, 2, 15])), Unreachable),
        ("to a loopback address", udp(|f| f[30..34].copy_from_slice(&[127, 0, 0, 1])), Unreachable),
        ("to nobody", udp(|f| f[30..34].fill(0)), Unreachable),
        (
            "from a loopback address",
            came(|f| f[26..30].copy_from_slice(&[127, 0, 0, 1])),
            Unreachable,
        ),
        ("from a group", came(|f| f[26..30].fill(255)), Unreachable),
        ("to another", came(|f| f[33] += 1), Unreachable),
        // Fragments.
        ("tiny first fragment", udp(|f| f[20] = 0x20), Fragment),
        ("second fragment over a header", udp(|f| f[21] = 1), Fragment),
        ("fragment past 64 KiB", udp(|f| f[20..22].copy_from_slice(&[0x1f, 0xff])), Malformed),
        ("fragment of an odd length", tcp(|f| f[20] = 0x20), Fragment),
        // UDP.
        ("short UDP", udp(|f| f[39] = 7), Malformed),
        ("UDP of unknown length", udp(|f| f[39] = 0), Malformed),
        ("UDP past the end", udp(|f| f[39] = 13), Malformed),
        ("UDP checksum", udp(|f| f[41] ^= 1), Checksum),
        // TCP.
        ("TCP header length", tcp(|f| f[46] = 0x40), Malformed),
        ("TCP header past the end", tcp(|f| f[46] = 0xf0), Malformed),
        ("TCP option without length", tcp(|f| f[55] = 0), Options),
        ("TCP option past the header", tcp(|f| f[55] = 40), Options),
        ("TCP checksum", tcp(|f| f[50] ^= 1), Checksum),
        // ICMP.
        ("ICMP checksum", echo(|f| f[36] ^= 1), Checksum),
    ];
    for (what, result, reason) in cases {
        assert_eq!(result, Err(reason), "{what}");
    }
}

#[test]
fn options_that_carry_addresses_are_refused() {
    // Record route, timestamp, loose and strict source route; one that is too long; one without a
    // length.
    let all: [[u8; 4]; 6] = [
        [7, 3, 4, 0],
        [68, 4, 5, 0],
        [131, 3, 4, 0],
        [137, 3, 4, 0],
        [148, 5, 0, 0],
        [1, 1, 1, 148],
    ];
    for options in all.map(Vec::from) {
        let mut packet = Packet { options, ..plain(Content::Udp(1, 2)) }.bytes(&INSIDE, Way::Out);
        assert_eq!(EDGE.outward(&mut packet), Err(DropReason::Options));
    }
}

#[test]
fn options_of_tcp_that_nobody_knows_pass() {
    // Fast open, and two experimental options.
    for option in [[34, 2, 1, 1], [253, 4, 0xf9, 0x89], [254, 3, 7, 1]] {
        let mut packet = plain(Content::Tcp(1, 2, 3, true)).bytes(&INSIDE, Way::Out);
        let header = &mut packet[34..];
        header[20..24].copy_from_slice(&option);
        let sum = TcpHeaderSlice::from_slice(header).unwrap();
        let sum = sum.calc_checksum_ipv4_raw(INSIDE.ip.octets(), [9; 4], b"text").unwrap();
        header[16..18].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(EDGE.outward(&mut packet), Ok(Destination::One([9; 4].into())), "{option:?}");
    }
}

/// Returns a packet with this ICMP message.
fn icmp(way: Way, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let (own, peer) = (way.views().0.ip.octets(), [9; 4]);
    let (source, destination) = if way == Way::Out { (own, peer) } else { (peer, own) };
    let kind = Icmpv4Type::Unknown { type_u8: kind, code_u8: 0, bytes5to8: [0; 4] };
    let mac = if way == Way::Out { INSIDE.mac } else { PEER_MAC };
    let builder = PacketBuilder::ethernet2(mac, PEER_MAC).ipv4(source, destination, 64);
    builder.icmpv4(kind).write(&mut packet, body).unwrap();
    packet
}

#[test]
fn icmp_that_would_steer_others_or_quotes_foreign_packets_is_refused() {
    for kind in [4, 5, 9, 10, 17, 255] {
        let refused = EDGE.outward(&mut icmp(Way::Out, kind, &[0; 64]));
        assert_eq!(refused, Err(DropReason::Protocol), "{kind}");
    }
    let received = plain(Content::Udp(1, 2)).bytes(&INSIDE, Way::In)[HEADER_LEN..].to_vec();
    assert!(EDGE.outward(&mut icmp(Way::Out, 3, &received)).is_ok());
    let sent = plain(Content::Udp(1, 2)).bytes(&INSIDE, Way::Out)[HEADER_LEN..].to_vec();
    assert_eq!(EDGE.outward(&mut icmp(Way::Out, 3, &sent)), Err(DropReason::Spoofed));
    let others = icmp(Way::In, 3, &received);
    assert_eq!(EDGE.inward(&mut others.clone()), Err(DropReason::Unreachable));
    assert_eq!(EDGE.outward(&mut icmp(Way::Out, 3, &[])), Err(DropReason::Malformed));
    assert_eq!(EDGE.outward(&mut icmp(Way::Out, 3, &[0x45; 12])), Err(DropReason::Malformed));
}

#[test]
fn a_timestamp_has_its_whole_header_and_may_be_padded() {
    let ask = |len| EDGE.outward(&mut icmp(Way::Out, 13, &[0; 64][..len]));
    assert_eq!(ask(11), Err(DropReason::Malformed));
    assert!(ask(12).is_ok() && ask(40).is_ok());
}

#[test]
fn views_may_be_the_same() {
    let edge = Edge { inside: INSIDE, outside: INSIDE };
    let packet = plain(Content::Tcp(1, 2, 3, true)).bytes(&INSIDE, Way::Out);
    let mut same = packet.clone();
    assert!(edge.outward(&mut same).is_ok());
    assert_eq!(same, packet);
}

#[test]
fn padding_of_short_packets_stays() {
    let mut packet = plain(Content::Echo(1, 2)).bytes(&INSIDE, Way::Out);
    packet.resize(60, 0);
    assert!(EDGE.outward(&mut packet).is_ok());
    let header = Icmpv4Header::from_slice(&packet[34..46]).unwrap().0;
    assert_eq!(header.checksum, header.icmp_type.calc_checksum(b"text"));
}

//! First handling of a guest's packets, before its TCP/IP stack: checks and counts them, and
//! replies where no stack is needed (ARP, DHCP, ICMP "unreachable").

use std::net::Ipv4Addr;

use etherparse::EtherType;
use smoltcp::wire::{
    ArpHardware, ArpOperation, ArpPacket, ArpRepr, DHCP_CLIENT_PORT, DHCP_SERVER_PORT,
    DhcpMessageType, DhcpPacket, DhcpRepr, ETHERNET_HEADER_LEN as ETHERNET, EthernetAddress,
    EthernetFrame, EthernetProtocol, IPV4_HEADER_LEN as IPV4, Icmpv4DstUnreachable, Icmpv4Message,
    Icmpv4Packet, IpAddress, IpProtocol, Ipv4Packet, TcpPacket, UDP_HEADER_LEN as UDP, UdpPacket,
};

use crate::net::addresses::Addresses;
use crate::net::{DropReason, GATEWAY_IP, GATEWAY_MAC, GUEST_IP, GUEST_NETWORK, Packet};

const ICMP: usize = 8;
const VLAN: u16 = EtherType::VLAN_TAGGED_FRAME.0;
const QINQ: u16 = EtherType::PROVIDER_BRIDGING.0;
/// DHCP lease time in seconds. The address never changes, so renewals are rare.
const LEASE: u32 = 86_400;
const TTL: u8 = 64;

/// A TCP connection that a guest opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    /// The guest's port.
    pub from: u16,
    /// The gateway's port.
    pub to: u16,
}

/// What to do with a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Pass it to the stack; it may open a connection.
    Stack(Option<Opening>),
    /// Reply to the guest.
    Answer(Packet),
    /// Drop it, perhaps with a reply to the guest.
    Drop(DropReason, Option<Packet>),
    /// Ignore it: it needs no reply.
    Ignore,
}

use DropReason::{
    Broadcast, Checksum, Fragment, Ipv6, Isolated, Malformed, Protocol, Spoofed, Unreachable, Vlan,
};

/// Returns why no packet reaches an address other than the gateway's.
fn elsewhere(target: Ipv4Addr, peers: Option<&Addresses>) -> DropReason {
    match peers.and_then(|peers| peers.vm(target)) {
        Some(_) => Isolated,
        None => Unreachable,
    }
}

fn dropped(reason: DropReason) -> Fate {
    Fate::Drop(reason, None)
}

/// Inspects a packet of the guest with MAC address `mac`, which is isolated from `peers`.
pub fn inspect(bytes: &[u8], mac: [u8; 6], peers: Option<&Addresses>) -> Fate {
    let Ok(ethernet) = EthernetFrame::new_checked(bytes) else { return dropped(Malformed) };
    if ethernet.src_addr().0 != mac {
        return dropped(Spoofed);
    }
    match ethernet.ethertype() {
        EthernetProtocol::Arp => arp(ethernet.payload(), mac, peers),
        EthernetProtocol::Ipv4 => ipv4(bytes, ethernet.dst_addr(), ethernet.payload(), mac, peers),
        EthernetProtocol::Ipv6 => dropped(Ipv6),
        EthernetProtocol::Unknown(VLAN | QINQ) => dropped(Vlan),
        EthernetProtocol::Unknown(_) => dropped(Protocol),
    }
}

/// Returns the reply to a guest that requests its address by DHCP, if this packet does.
pub fn dhcp_answer(packet: &[u8], mac: [u8; 6]) -> Option<Packet> {
    let ip = Ipv4Packet::new_checked(payload(packet)).ok()?;
    let udp = UdpPacket::new_checked(ip.payload()).ok()?;
    let asks = ip.next_header() == IpProtocol::Udp && udp.dst_port() == DHCP_SERVER_PORT;
    match asks.then(|| inspect(packet, mac, None))? {
        Fate::Answer(answer) => Some(answer),
        _ => None,
    }
}

/// Returns a packet for the guest with `len` bytes behind the Ethernet header.
fn ethernet(mac: [u8; 6], protocol: EthernetProtocol, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET + len];
    let mut ethernet = EthernetFrame::new_unchecked(&mut bytes[..]);
    ethernet.set_dst_addr(EthernetAddress(mac));
    ethernet.set_src_addr(EthernetAddress(GATEWAY_MAC));
    ethernet.set_ethertype(protocol);
    bytes
}

/// Returns a packet for the guest with `len` bytes of IP, which `fill` writes.
pub fn ip_packet<R>(mac: [u8; 6], len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> (Packet, R) {
    let mut bytes = ethernet(mac, EthernetProtocol::Ipv4, len);
    let result = fill(&mut bytes[ETHERNET..]);
    (bytes.into(), result)
}

/// Returns the part of a packet that the stack handles.
pub fn payload(packet: &[u8]) -> &[u8] {
    packet.get(ETHERNET..).unwrap_or_default()
}

fn arp_packet(mac: [u8; 6], operation: ArpOperation) -> Packet {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(GATEWAY_MAC),
        source_protocol_addr: GATEWAY_IP,
        target_hardware_addr: EthernetAddress(mac),
        target_protocol_addr: GUEST_IP,
    };
    let mut bytes = ethernet(mac, EthernetProtocol::Arp, repr.buffer_len());
    repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[ETHERNET..]));
    bytes.into()
}

/// Returns an ARP request for the guest's MAC address. The reply is known already; but the guest
/// learns the gateway's MAC address from the request, and needs no ARP before its first packet.
pub fn greeting(mac: [u8; 6]) -> Packet {
    arp_packet(mac, ArpOperation::Request)
}

fn arp(payload: &[u8], mac: [u8; 6], peers: Option<&Addresses>) -> Fate {
    let Ok(packet) = ArpPacket::new_checked(payload) else { return dropped(Malformed) };
    if packet.hardware_type() != ArpHardware::Ethernet
        || packet.protocol_type() != EthernetProtocol::Ipv4
    {
        return dropped(Protocol);
    }
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr: source,
        target_protocol_addr: target,
        ..
    }) = ArpRepr::parse(&packet)
    else {
        return dropped(Malformed);
    };
    // A guest that probes whether its address is in use has no address yet.
    if source_hardware_addr.0 != mac || !(source == GUEST_IP || source.is_unspecified()) {
        return dropped(Spoofed);
    }
    match operation {
        ArpOperation::Request if target == GATEWAY_IP => {
            Fate::Answer(arp_packet(mac, ArpOperation::Reply))
        }
        ArpOperation::Request if target != GUEST_IP => dropped(elsewhere(target, peers)),
        _ => Fate::Ignore,
    }
}

fn ipv4(
    bytes: &[u8],
    to: EthernetAddress,
    payload: &[u8],
    mac: [u8; 6],
    peers: Option<&Addresses>,
) -> Fate {
    let Ok(packet) = Ipv4Packet::new_checked(payload) else { return dropped(Malformed) };
    if packet.version() != 4 || usize::from(packet.header_len()) < IPV4 {
        return dropped(Malformed);
    }
    if !packet.verify_checksum() {
        return dropped(Checksum);
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return dropped(Fragment);
    }
    let (source, target) = (packet.src_addr(), packet.dst_addr());
    if packet.next_header() == IpProtocol::Udp {
        let Ok(udp) = UdpPacket::new_checked(packet.payload()) else { return dropped(Malformed) };
        if udp.dst_port() == DHCP_SERVER_PORT && (target == GATEWAY_IP || target.is_broadcast()) {
            return match source == GUEST_IP || source.is_unspecified() {
                true => dhcp(udp.payload(), mac),
                false => dropped(Spoofed),
            };
        }
    }
    if source != GUEST_IP {
        return dropped(Spoofed);
    }
    let all = target.is_broadcast() || Some(target) == GUEST_NETWORK.broadcast();
    if all || target.is_multicast() || !to.is_unicast() {
        return dropped(Broadcast);
    }
    if to.0 != GATEWAY_MAC {
        return dropped(elsewhere(target, peers));
    }
    if target != GATEWAY_IP {
        let told = unreachable(bytes, mac, Icmpv4DstUnreachable::CommProhibited);
        return Fate::Drop(elsewhere(target, peers), told);
    }
    match packet.next_header() {
        IpProtocol::Tcp => tcp(packet.payload()),
        IpProtocol::Icmp => Fate::Stack(None),
        IpProtocol::Udp => {
            let told = unreachable(bytes, mac, Icmpv4DstUnreachable::PortUnreachable);
            Fate::Drop(Unreachable, told)
        }
        _ => dropped(Protocol),
    }
}

fn tcp(payload: &[u8]) -> Fate {
    let Ok(packet) = TcpPacket::new_checked(payload) else { return dropped(Malformed) };
    let from = |ip| IpAddress::Ipv4(ip);
    if !packet.verify_checksum(&from(GUEST_IP), &from(GATEWAY_IP)) {
        return dropped(Checksum);
    }
    if packet.src_port() == 0 || packet.dst_port() == 0 {
        return dropped(Malformed);
    }
    let opening = Opening { from: packet.src_port(), to: packet.dst_port() };
    Fate::Stack((packet.syn() && !packet.ack() && !packet.rst()).then_some(opening))
}

/// Writes an IPv4 header for a packet from the gateway to the guest.
fn ipv4_header(bytes: &mut [u8], protocol: IpProtocol, target: Ipv4Addr) {
    let len = bytes.len() as u16;
    let mut packet = Ipv4Packet::new_unchecked(bytes);
    packet.set_version(4);
    packet.set_header_len(IPV4 as u8);
    packet.set_total_len(len);
    packet.set_hop_limit(TTL);
    packet.set_next_header(protocol);
    packet.set_src_addr(GATEWAY_IP);
    packet.set_dst_addr(target);
    packet.fill_checksum();
}

/// Returns an ICMP "destination unreachable" message with the beginning of the packet that it is
/// about. `None` for an ICMP packet, which may be such a message itself.
fn unreachable(packet: &[u8], mac: [u8; 6], why: Icmpv4DstUnreachable) -> Option<Packet> {
    let about = payload(packet);
    let ip = Ipv4Packet::new_checked(about).ok()?;
    if ip.next_header() == IpProtocol::Icmp {
        return None;
    }
    let quoted = (usize::from(ip.header_len()) + 8).min(ip.total_len().into());
    let (told, ()) = ip_packet(mac, IPV4 + ICMP + quoted, |bytes| {
        ipv4_header(bytes, IpProtocol::Icmp, GUEST_IP);
        let mut icmp = Icmpv4Packet::new_unchecked(&mut bytes[IPV4..]);
        icmp.set_msg_type(Icmpv4Message::DstUnreachable);
        icmp.set_msg_code(why.into());
        icmp.data_mut().copy_from_slice(&about[..quoted]);
        icmp.fill_checksum();
    });
    Some(told)
}

/// Replies to DHCP clients: every guest gets the same address.
fn dhcp(payload: &[u8], mac: [u8; 6]) -> Fate {
    let request = DhcpPacket::new_checked(payload);
    let Some(Ok(request)) = request.as_ref().ok().map(DhcpRepr::parse) else {
        return dropped(Malformed);
    };
    if request.client_hardware_address.0 != mac {
        return dropped(Spoofed);
    }
    let other = |ip: Option<Ipv4Addr>| ip.is_some_and(|ip| ip != GUEST_IP);
    let message_type = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if other(request.requested_ip) => DhcpMessageType::Nak,
        DhcpMessageType::Request => DhcpMessageType::Ack,
        // The client releases its address, or wants options that there are not.
        _ => return Fate::Ignore,
    };
    let granted = message_type != DhcpMessageType::Nak;
    let answer = DhcpRepr {
        message_type,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: EthernetAddress(mac),
        client_ip: if granted { request.client_ip } else { Ipv4Addr::UNSPECIFIED },
        your_ip: if granted { GUEST_IP } else { Ipv4Addr::UNSPECIFIED },
        server_ip: GATEWAY_IP,
        router: granted.then_some(GATEWAY_IP),
        subnet_mask: granted.then_some(GUEST_NETWORK.netmask()),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: true,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY_IP),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: granted.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    // Old clients expect the 300 bytes of BOOTP.
    let len = answer.buffer_len().max(300);
    let (reply, emitted) = ip_packet(mac, IPV4 + UDP + len, |bytes| {
        ipv4_header(bytes, IpProtocol::Udp, Ipv4Addr::BROADCAST);
        let mut udp = UdpPacket::new_unchecked(&mut bytes[IPV4..]);
        udp.set_src_port(DHCP_SERVER_PORT);
        udp.set_dst_port(DHCP_CLIENT_PORT);
        udp.set_len((UDP + len) as u16);
        let emitted = answer.emit(&mut DhcpPacket::new_unchecked(udp.payload_mut()));
        udp.fill_checksum(&IpAddress::Ipv4(GATEWAY_IP), &IpAddress::Ipv4(Ipv4Addr::BROADCAST));
        emitted
    });
    if emitted.is_ok() { Fate::Answer(reply) } else { dropped(Malformed) }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::machine::Macs;

    pub const MAC: [u8; 6] = [2, b'p', b'x', 0, 0, 0];

    /// Returns a packet from the guest.
    pub fn from_guest(protocol: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ethernet(GATEWAY_MAC, protocol, payload.len());
        bytes[6..12].copy_from_slice(&MAC);
        bytes[ETHERNET..].copy_from_slice(payload);
        bytes
    }

    /// Returns an IPv4 packet from the guest.
    pub fn ip(protocol: IpProtocol, source: Ipv4Addr, target: Ipv4Addr, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IPV4 + body.len()];
        bytes[IPV4..].copy_from_slice(body);
        ipv4_header(&mut bytes, protocol, target);
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_src_addr(source);
        packet.fill_checksum();
        from_guest(EthernetProtocol::Ipv4, &bytes)
    }

    fn syn(port: u16) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        let mut tcp = TcpPacket::new_unchecked(&mut bytes[..]);
        tcp.set_src_port(40_000);
        tcp.set_dst_port(port);
        tcp.set_header_len(20);
        tcp.set_syn(true);
        tcp.fill_checksum(&IpAddress::Ipv4(GUEST_IP), &IpAddress::Ipv4(GATEWAY_IP));
        bytes
    }

    fn udp(source: u16, target: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; UDP + body.len()];
        let mut udp = UdpPacket::new_unchecked(&mut bytes[..]);
        udp.set_src_port(source);
        udp.set_dst_port(target);
        udp.set_len((UDP + body.len()) as u16);
        udp.payload_mut().copy_from_slice(body);
        bytes
    }

    fn arp_of_guest(operation: ArpOperation, source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(MAC),
            source_protocol_addr: source,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
        from_guest(EthernetProtocol::Arp, &bytes)
    }

    fn look_at(bytes: &[u8], mac: [u8; 6]) -> Fate {
        let peers = Addresses::new("10.77.0.0/16".parse().unwrap(), 8, Macs::Same).unwrap();
        inspect(bytes, mac, Some(&peers))
    }

    fn reason(bytes: &[u8]) -> Option<DropReason> {
        match look_at(bytes, MAC) {
            Fate::Drop(reason, _) => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn the_gateway_answers_arp_and_nobody_else_is_there() {
        let ask = |target| arp_of_guest(ArpOperation::Request, GUEST_IP, target);
        let Fate::Answer(answer) = look_at(&ask(GATEWAY_IP), MAC) else { panic!("no answer") };
        let packet = ArpPacket::new_checked(payload(&answer)).unwrap();
        assert_eq!(packet.source_hardware_addr(), GATEWAY_MAC);
        assert_eq!(packet.operation(), ArpOperation::Reply);
        assert_eq!(answer[..6], MAC);
        assert_eq!(reason(&ask(Ipv4Addr::new(10, 0, 2, 3))), Some(Unreachable));
        let probe = arp_of_guest(ArpOperation::Request, Ipv4Addr::UNSPECIFIED, GUEST_IP);
        assert_eq!(look_at(&probe, MAC), Fate::Ignore);
        let lie = arp_of_guest(ArpOperation::Reply, GATEWAY_IP, GUEST_IP);
        assert_eq!(reason(&lie), Some(Spoofed));
    }

    #[test]
    fn tcp_and_echo_for_the_gateway_reach_the_stack() {
        let syn = ip(IpProtocol::Tcp, GUEST_IP, GATEWAY_IP, &syn(8000));
        assert_eq!(look_at(&syn, MAC), Fate::Stack(Some(Opening { from: 40_000, to: 8000 })));
        let echo = ip(IpProtocol::Icmp, GUEST_IP, GATEWAY_IP, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
        assert_eq!(look_at(&echo, MAC), Fate::Stack(None));
    }

    #[test]
    fn what_is_not_the_guests_or_not_whole_is_dropped_with_the_reason() {
        let good = ip(IpProtocol::Tcp, GUEST_IP, GATEWAY_IP, &syn(80));
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            reason(&bytes)
        };
        assert_eq!(with(&|b| b[11] ^= 1), Some(Spoofed));
        assert_eq!(with(&|b| b[24] ^= 1), Some(Checksum));
        assert_eq!(with(&|b| b[40] ^= 1), Some(Checksum));
        assert_eq!(with(&|b| b.truncate(33)), Some(Malformed));
        assert_eq!(with(&|b| b.truncate(13)), Some(Malformed));
        assert_eq!(with(&|b| b[14] = 0x44), Some(Malformed));
        assert_eq!(with(&|b| b[12..14].copy_from_slice(&[0x86, 0xdd])), Some(Ipv6));
        assert_eq!(with(&|b| b[12..14].copy_from_slice(&[0x81, 0])), Some(Vlan));
        assert_eq!(with(&|b| b[12..14].copy_from_slice(&[0x88, 0xcc])), Some(Protocol));
        let fragment = |b: &mut Vec<u8>| {
            let mut packet = Ipv4Packet::new_unchecked(&mut b[ETHERNET..]);
            packet.set_more_frags(true);
            packet.fill_checksum();
        };
        assert_eq!(with(&fragment), Some(Fragment));
        let spoofed = ip(IpProtocol::Tcp, Ipv4Addr::new(10, 0, 2, 16), GATEWAY_IP, &syn(80));
        assert_eq!(reason(&spoofed), Some(Spoofed));
        let all = ip(IpProtocol::Icmp, GUEST_IP, Ipv4Addr::new(10, 0, 2, 255), &[8, 0, 0, 0]);
        assert_eq!(reason(&all), Some(Broadcast));
        let gre = ip(IpProtocol::Unknown(47), GUEST_IP, GATEWAY_IP, &[0; 8]);
        assert_eq!(reason(&gre), Some(Protocol));
    }

    #[test]
    fn the_guest_is_told_what_it_cannot_reach() {
        let away = ip(IpProtocol::Tcp, GUEST_IP, Ipv4Addr::new(9, 9, 9, 9), &syn(443));
        let Fate::Drop(Unreachable, Some(told)) = look_at(&away, MAC) else { panic!("not told") };
        let packet = Ipv4Packet::new_checked(payload(&told)).unwrap();
        assert!(packet.verify_checksum());
        assert_eq!((packet.src_addr(), packet.dst_addr()), (GATEWAY_IP, GUEST_IP));
        assert_eq!(packet.payload()[..2], [3, 13]);
        assert_eq!(packet.payload()[8..28], away[14..34]);
        let dns = ip(IpProtocol::Udp, GUEST_IP, GATEWAY_IP, &udp(5000, 53, b"question"));
        let Fate::Drop(Unreachable, Some(told)) = look_at(&dns, MAC) else { panic!("not told") };
        assert_eq!(payload(&told)[20..22], [3, 3]);
        // An ICMP message never causes another.
        let echo = ip(IpProtocol::Icmp, GUEST_IP, Ipv4Addr::new(9, 9, 9, 9), &[3; 36]);
        assert_eq!(look_at(&echo, MAC), Fate::Drop(Unreachable, None));
    }

    #[test]
    fn what_is_for_another_vm_is_counted_as_such() {
        let (peer, nobody) = (Ipv4Addr::new(10, 77, 0, 9), Ipv4Addr::new(10, 77, 0, 10));
        let to = |ip| self::ip(IpProtocol::Tcp, GUEST_IP, ip, &syn(80));
        let Fate::Drop(Isolated, Some(_)) = look_at(&to(peer), MAC) else { panic!("not told") };
        assert_eq!(reason(&to(nobody)), Some(Unreachable));
        let ask = |ip| arp_of_guest(ArpOperation::Request, GUEST_IP, ip);
        assert_eq!(reason(&ask(peer)), Some(Isolated));
        assert_eq!(reason(&ask(nobody)), Some(Unreachable));
    }

    #[test]
    fn dhcp_gives_everyone_the_same_address() {
        let discover = DhcpRepr {
            message_type: DhcpMessageType::Discover,
            transaction_id: 7,
            secs: 0,
            client_hardware_address: EthernetAddress(MAC),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let ask = |repr: &DhcpRepr<'_>| {
            let mut body = vec![0; repr.buffer_len()];
            repr.emit(&mut DhcpPacket::new_unchecked(&mut body[..])).unwrap();
            let udp = udp(DHCP_CLIENT_PORT, DHCP_SERVER_PORT, &body);
            look_at(&ip(IpProtocol::Udp, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &udp), MAC)
        };
        let answer = |repr: &DhcpRepr<'_>| {
            let Fate::Answer(answer) = ask(repr) else { panic!("no answer") };
            let packet = Ipv4Packet::new_checked(payload(&answer)).unwrap();
            let udp = UdpPacket::new_checked(packet.payload()).unwrap();
            let dhcp = DhcpPacket::new_checked(udp.payload()).unwrap();
            let repr = DhcpRepr::parse(&dhcp).unwrap();
            (repr.message_type, repr.your_ip, repr.router, repr.transaction_id)
        };
        assert_eq!(answer(&discover), (DhcpMessageType::Offer, GUEST_IP, Some(GATEWAY_IP), 7));
        let mut request = discover.clone();
        request.message_type = DhcpMessageType::Request;
        request.requested_ip = Some(GUEST_IP);
        assert_eq!(answer(&request).0, DhcpMessageType::Ack);
        request.requested_ip = Some(Ipv4Addr::new(10, 0, 2, 99));
        assert_eq!(answer(&request).0, DhcpMessageType::Nak);
        request.client_hardware_address = EthernetAddress([2; 6]);
        assert_eq!(ask(&request), Fate::Drop(Spoofed, None));
    }
}

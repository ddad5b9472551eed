//! The edge: what a VM calls itself and what the outside calls it, one to one.
//!
//! All guests of a fleet may have the same addresses. Each frame that leaves a VM or comes to it
//! passes here, and the addresses of one view become those of the other, in Ethernet, ARP, IPv4
//! and in what ICMP errors quote. Nothing is remembered between frames. Checksums change by what
//! changed (RFC 1624), so that damage stays visible to whoever receives the frame.
//!
//! What is not understood does not pass: each refusal has a [`DropReason`]. Among what passes, no
//! frame has a source that is not the VM's.
//!
//! Not translated, hence refused: IPv6 (all guests have the same link-local address), VLAN tags
//! (a guest is on an access port), IP options that record addresses, and protocols other than
//! ICMP, TCP and UDP.

mod checksum;
mod ipv4;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

use etherparse::{
    ArpEthIpv4Packet, ArpHardwareId, ArpOperation, ArpPacketSlice, EtherType, Ethernet2Header,
    Ipv4HeaderSlice,
};

use crate::net::DropReason;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Two addresses and the type of an Ethernet frame.
const HEADER_LEN: usize = Ethernet2Header::LEN;
/// Largest frame that passes: a header and an MTU of 1500.
pub const FRAME_MAX: usize = HEADER_LEN + 1500;

/// Whom a frame is for, as the outside names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// A broadcast or multicast group.
    Everyone,
    /// One address.
    One(Ipv4Addr),
}

/// How one side sees a VM and its network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    /// The VM's Ethernet address.
    pub mac: Mac,
    /// The VM's address.
    pub ip: Ipv4Addr,
    /// The router, which is the host.
    pub gateway: Ipv4Addr,
    /// The network's broadcast address.
    pub broadcast: Ipv4Addr,
}

impl View {
    /// The addresses that the two views name differently.
    fn addresses(&self) -> [Ipv4Addr; 3] {
        [self.ip, self.gateway, self.broadcast]
    }
}

/// The border between a VM and the outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edge {
    /// How the VM sees itself.
    pub inside: View,
    /// How the outside sees it.
    pub outside: View,
}

impl Edge {
    /// Translates a frame that the VM sends. One that is refused is to be dropped: it may be half
    /// translated.
    pub fn outward(&self, frame: &mut [u8]) -> Result<Destination, DropReason> {
        Passage { from: &self.inside, to: &self.outside, outward: true }.frame(frame)
    }

    /// Translates a frame for the VM. One that is refused is to be dropped: it may be half
    /// translated.
    pub fn inward(&self, frame: &mut [u8]) -> Result<(), DropReason> {
        Passage { from: &self.outside, to: &self.inside, outward: false }.frame(frame).map(drop)
    }
}

/// Whom a frame on the outside is for, as far as its addresses tell.
pub fn destination(frame: &[u8]) -> Result<Destination, DropReason> {
    let (header, payload) = frame.split_first_chunk().ok_or(DropReason::BadLength)?;
    let target = match Ethernet2Header::from_bytes(*header).ether_type {
        EtherType::ARP => arp_packet(payload)?.target_ipv4_addr(),
        EtherType::IPV4 => ipv4_header(payload)?.destination_addr(),
        other => return Err(refused(other)),
    };
    let everyone = target.is_broadcast() || target.is_multicast();
    Ok(if everyone { Destination::Everyone } else { Destination::One(target) })
}

/// One direction through an edge.
struct Passage<'a> {
    from: &'a View,
    to: &'a View,
    /// From the VM, which must not pose as another; else to the VM.
    outward: bool,
}

impl Passage<'_> {
    fn frame(&self, frame: &mut [u8]) -> Result<Destination, DropReason> {
        if frame.len() > FRAME_MAX {
            return Err(DropReason::BadLength);
        }
        let (place, payload) = frame.split_first_chunk_mut().ok_or(DropReason::BadLength)?;
        let mut header = Ethernet2Header::from_bytes(*place);
        let source = header.source;
        if self.outward && source != self.from.mac {
            return Err(DropReason::Spoofed);
        }
        if !self.outward && (source == self.to.mac && source != self.from.mac || is_group(source)) {
            return Err(DropReason::Unreachable);
        }
        let to = match header.ether_type {
            EtherType::ARP => self.arp(payload)?,
            EtherType::IPV4 => self.ipv4(payload)?,
            other => return Err(refused(other)),
        };
        if self.outward {
            header.source = self.to.mac;
        } else if !is_group(header.destination) {
            header.destination = self.to.mac;
        }
        *place = header.to_bytes();
        Ok(to)
    }

    fn arp(&self, packet: &mut [u8]) -> Result<Destination, DropReason> {
        let mut arp = arp_packet(packet)?;
        if !matches!(arp.operation, ArpOperation::REQUEST | ArpOperation::REPLY) {
            return Err(DropReason::Malformed);
        }
        let (sender, target) = (arp.sender_ipv4_addr(), arp.target_ipv4_addr());
        // "Is anybody at ...?" comes from one who has no address yet (RFC 5227).
        let probe = arp.operation == ArpOperation::REQUEST && sender.is_unspecified();
        let (own, sender_mac) = (self.from.ip, arp.sender_mac);
        if self.outward {
            if sender_mac != self.from.mac {
                return Err(DropReason::Spoofed);
            }
            if sender != own && !probe {
                return Err(DropReason::Spoofed);
            }
            arp.sender_mac = self.to.mac;
        } else if sender == own || sender_mac == self.to.mac && sender_mac != self.from.mac {
            return Err(DropReason::Unreachable);
        }
        if arp.target_mac == self.from.mac {
            arp.target_mac = self.to.mac;
        }
        let new_target = self.address(target)?;
        arp.sender_ipv4 = self.address(sender)?.octets();
        arp.target_ipv4 = new_target.octets();
        *packet.first_chunk_mut().ok_or(DropReason::Malformed)? = arp.to_bytes();
        // An announcement of one's own address is for everyone.
        let announces = self.outward && target == own;
        Ok(if announces { Destination::Everyone } else { Destination::One(new_target) })
    }

    /// What the other side calls this address.
    fn address(&self, address: Ipv4Addr) -> Result<Ipv4Addr, DropReason> {
        let (from, to) = (self.from.addresses(), self.to.addresses());
        match from.iter().position(|&a| a == address) {
            Some(i) => to.get(i).copied().ok_or(DropReason::Unreachable),
            // It would come back as another one.
            None if to.contains(&address) => Err(DropReason::Unreachable),
            None => Ok(address),
        }
    }
}

/// A packet of ARP for Ethernet and IPv4.
fn arp_packet(packet: &[u8]) -> Result<ArpEthIpv4Packet, DropReason> {
    fn address<const N: usize>(bytes: &[u8]) -> Result<[u8; N], DropReason> {
        bytes.try_into().map_err(|_| DropReason::Malformed)
    }
    let packet = ArpPacketSlice::from_slice(packet).map_err(|_| DropReason::Malformed)?;
    let kind = (packet.hw_addr_type(), packet.proto_addr_type());
    if kind != (ArpHardwareId::ETHERNET, EtherType::IPV4) {
        return Err(DropReason::Malformed);
    }
    Ok(ArpEthIpv4Packet {
        operation: packet.operation(),
        sender_mac: address(packet.sender_hw_addr())?,
        sender_ipv4: address(packet.sender_protocol_addr())?,
        target_mac: address(packet.target_hw_addr())?,
        target_ipv4: address(packet.target_protocol_addr())?,
    })
}

/// The header of an IPv4 packet, of which the packet may have no more.
fn ipv4_header(packet: &[u8]) -> Result<Ipv4HeaderSlice<'_>, DropReason> {
    Ipv4HeaderSlice::from_slice(packet).map_err(|_| DropReason::Malformed)
}

/// Why a frame with this EtherType does not pass.
const fn refused(ether_type: EtherType) -> DropReason {
    match ether_type {
        EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING => DropReason::Vlan,
        EtherType::IPV6 => DropReason::Ipv6,
        _ => DropReason::Protocol,
    }
}

/// Whether this is a broadcast or multicast address.
const fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

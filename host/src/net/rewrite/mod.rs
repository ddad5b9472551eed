//! Stateless one-to-one address translation (NAT) at a VM's edge: between the addresses that the VM
//! sees and those that the outside sees.
//!
//! All guests of a fleet may have the same addresses. Each packet that leaves a VM or comes to it
//! passes here; the addresses of one view become those of the other, in Ethernet, ARP, IPv4 and in
//! what ICMP errors quote. No state is kept between packets. Checksums are updated incrementally
//! (RFC 1624), so that the receiver still detects damage.
//!
//! What is not understood does not pass: each refusal has a [`DropReason`]. No packet passes with a
//! source that is not the VM's.
//!
//! Refused because it cannot be translated: IPv6 (all guests have the same link-local address),
//! VLAN tags (a guest is on an access port), IP options that record addresses, and protocols other
//! than ICMP, TCP and UDP.

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

/// An Ethernet (MAC) address.
pub type Mac = [u8; 6];

/// Length of an Ethernet header: two addresses and a type.
const HEADER_LEN: usize = Ethernet2Header::LEN;
/// Length of the largest packet that passes: a header and an MTU of 1500.
pub const PACKET_MAX: usize = HEADER_LEN + 1500;

/// Destination of a packet by its outside address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// A broadcast or multicast group.
    Everyone,
    /// A single address.
    One(Ipv4Addr),
}

/// Addresses of a VM and its network as one side sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    /// MAC address of the VM.
    pub mac: Mac,
    /// IPv4 address of the VM.
    pub ip: Ipv4Addr,
    /// IPv4 address of the router, which is the host.
    pub gateway: Ipv4Addr,
    /// Broadcast address of the network.
    pub broadcast: Ipv4Addr,
}

impl View {
    /// Returns the addresses in which two views differ.
    fn addresses(&self) -> [Ipv4Addr; 3] {
        [self.ip, self.gateway, self.broadcast]
    }
}

/// Address translation between a VM and the outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edge {
    /// Addresses inside, as the VM sees them.
    pub inside: View,
    /// Addresses as the outside sees them.
    pub outside: View,
}

impl Edge {
    /// Translates a packet that the VM sends. A refused packet must be dropped, because it may be
    /// half translated.
    pub fn outward(&self, packet: &mut [u8]) -> Result<Destination, DropReason> {
        Passage { from: &self.inside, to: &self.outside, outward: true }.translate(packet)
    }

    /// Translates a packet for the VM. A refused packet must be dropped, because it may be half
    /// translated.
    pub fn inward(&self, packet: &mut [u8]) -> Result<(), DropReason> {
        Passage { from: &self.outside, to: &self.inside, outward: false }
            .translate(packet)
            .map(drop)
    }
}

/// Returns the destination of a packet on the outside, from its addresses.
pub fn destination(packet: &[u8]) -> Result<Destination, DropReason> {
    let (header, payload) = packet.split_first_chunk().ok_or(DropReason::BadLength)?;
    let target = match Ethernet2Header::from_bytes(*header).ether_type {
        EtherType::ARP => arp_packet(payload)?.target_ipv4_addr(),
        EtherType::IPV4 => ipv4_header(payload)?.destination_addr(),
        other => return Err(refused(other)),
    };
    let everyone = target.is_broadcast() || target.is_multicast();
    Ok(if everyone { Destination::Everyone } else { Destination::One(target) })
}

/// Translation in one direction.
struct Passage<'a> {
    from: &'a View,
    to: &'a View,
    /// Whether the direction is from the VM, which must not use the addresses of others.
    outward: bool,
}

impl Passage<'_> {
    fn translate(&self, packet: &mut [u8]) -> Result<Destination, DropReason> {
        if packet.len() > PACKET_MAX {
            return Err(DropReason::BadLength);
        }
        let (place, payload) = packet.split_first_chunk_mut().ok_or(DropReason::BadLength)?;
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
        // An ARP probe comes from a sender that has no address yet (RFC 5227).
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
        // An ARP announcement goes to everyone.
        let announces = self.outward && target == own;
        Ok(if announces { Destination::Everyone } else { Destination::One(new_target) })
    }

    /// Returns the other side's address for an address.
    fn address(&self, address: Ipv4Addr) -> Result<Ipv4Addr, DropReason> {
        let (from, to) = (self.from.addresses(), self.to.addresses());
        match from.iter().position(|&a| a == address) {
            Some(i) => to.get(i).copied().ok_or(DropReason::Unreachable),
            // On the way back it would be translated to another address.
            None if to.contains(&address) => Err(DropReason::Unreachable),
            None => Ok(address),
        }
    }
}

/// Returns the ARP packet for Ethernet and IPv4 in these bytes.
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

/// Returns the header of an IPv4 packet. The bytes need not hold the rest of the packet.
fn ipv4_header(packet: &[u8]) -> Result<Ipv4HeaderSlice<'_>, DropReason> {
    Ipv4HeaderSlice::from_slice(packet).map_err(|_| DropReason::Malformed)
}

/// Returns why packets of an EtherType do not pass.
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

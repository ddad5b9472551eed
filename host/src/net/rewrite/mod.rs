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

use self::checksum::{be16, be32, put32};
use crate::net::DropReason;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Two addresses and the type of an Ethernet frame.
const HEADER_LEN: usize = 14;
/// Largest frame that passes: a header and an MTU of 1500.
pub const FRAME_MAX: usize = HEADER_LEN + 1500;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_IPV6: u16 = 0x86dd;

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
    fn addresses(&self) -> [u32; 3] {
        [self.ip, self.gateway, self.broadcast].map(u32::from)
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
    let target = match be16(frame, 12).map_err(|_| DropReason::BadLength)? {
        ETHERTYPE_ARP => be32(frame, HEADER_LEN + ARP_TARGET)?,
        ETHERTYPE_IPV4 => be32(frame, HEADER_LEN + ipv4::DESTINATION)?,
        other => return Err(refused(other)),
    };
    let target = Ipv4Addr::from(target);
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

/// `struct arphdr` for Ethernet and IPv4, up to the operation.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_OPERATION: usize = 6;
const ARP_SENDER_MAC: usize = 8;
const ARP_SENDER: usize = 14;
const ARP_TARGET_MAC: usize = 18;
const ARP_TARGET: usize = 24;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

impl Passage<'_> {
    fn frame(&self, frame: &mut [u8]) -> Result<Destination, DropReason> {
        if frame.len() > FRAME_MAX {
            return Err(DropReason::BadLength);
        }
        let (header, payload) =
            frame.split_at_mut_checked(HEADER_LEN).ok_or(DropReason::BadLength)?;
        let (destination, source) = (mac(header, 0)?, mac(header, 6)?);
        if self.outward && source != self.from.mac {
            return Err(DropReason::Spoofed);
        }
        if !self.outward && (source == self.to.mac && source != self.from.mac || is_group(source)) {
            return Err(DropReason::Unreachable);
        }
        let to = match be16(header, 12)? {
            ETHERTYPE_ARP => self.arp(payload)?,
            ETHERTYPE_IPV4 => self.ipv4(payload)?,
            other => return Err(refused(other)),
        };
        if self.outward {
            put_mac(header, 6, self.to.mac)?;
        } else if !is_group(destination) {
            put_mac(header, 0, self.to.mac)?;
        }
        Ok(to)
    }

    fn arp(&self, packet: &mut [u8]) -> Result<Destination, DropReason> {
        let operation = be16(packet, ARP_OPERATION)?;
        if !packet.starts_with(&ARP_KIND) || !(ARP_REQUEST..=ARP_REPLY).contains(&operation) {
            return Err(DropReason::Malformed);
        }
        let (sender, target) = (be32(packet, ARP_SENDER)?, be32(packet, ARP_TARGET)?);
        let own = u32::from(self.from.ip);
        // "Is anybody at ...?" comes from one who has no address yet (RFC 5227).
        let probe = operation == ARP_REQUEST && sender == 0;
        let (sender_mac, target_mac) = (mac(packet, ARP_SENDER_MAC)?, mac(packet, ARP_TARGET_MAC)?);
        if self.outward {
            if sender_mac != self.from.mac {
                return Err(DropReason::Spoofed);
            }
            if sender != own && !probe {
                return Err(DropReason::Spoofed);
            }
            put_mac(packet, ARP_SENDER_MAC, self.to.mac)?;
        } else if sender == own || sender_mac == self.to.mac && sender_mac != self.from.mac {
            return Err(DropReason::Unreachable);
        }
        if target_mac == self.from.mac {
            put_mac(packet, ARP_TARGET_MAC, self.to.mac)?;
        }
        let (sender, new_target) = (self.address(sender)?, self.address(target)?);
        put32(packet, ARP_SENDER, sender)?;
        put32(packet, ARP_TARGET, new_target)?;
        // An announcement of one's own address is for everyone.
        let announces = self.outward && target == own;
        Ok(if announces { Destination::Everyone } else { Destination::One(new_target.into()) })
    }

    /// What the other side calls this address.
    fn address(&self, address: u32) -> Result<u32, DropReason> {
        let (from, to) = (self.from.addresses(), self.to.addresses());
        match from.iter().position(|&a| a == address) {
            Some(i) => to.get(i).copied().ok_or(DropReason::Unreachable),
            // It would come back as another one.
            None if to.contains(&address) => Err(DropReason::Unreachable),
            None => Ok(address),
        }
    }
}

/// Why a frame with this EtherType does not pass.
const fn refused(ethertype: u16) -> DropReason {
    match ethertype {
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => DropReason::Vlan,
        ETHERTYPE_IPV6 => DropReason::Ipv6,
        _ => DropReason::Protocol,
    }
}

/// Whether this is a broadcast or multicast address.
const fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

fn mac(bytes: &[u8], at: usize) -> Result<Mac, DropReason> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().ok_or(DropReason::Malformed)
}

fn put_mac(bytes: &mut [u8], at: usize, mac: Mac) -> Result<(), DropReason> {
    let place =
        bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut).ok_or(DropReason::Malformed)?;
    *place = mac;
    Ok(())
}

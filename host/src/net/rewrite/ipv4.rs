//! IPv4 and what is in it.

use std::net::Ipv4Addr;

use super::checksum::{Change, be16, be32, pseudo_sum, put16, put32, sum};
use super::{Destination, Passage};
use crate::net::DropReason;

const TOTAL_LEN: usize = 2;
const FRAGMENT: usize = 6;
const PROTOCOL: usize = 9;
const CHECKSUM: usize = 10;
const SOURCE: usize = 12;
pub(super) const DESTINATION: usize = 16;
/// Without options.
const HEADER_LEN: usize = 20;

/// More fragments follow.
const MORE: u16 = 1 << 13;
/// Where a fragment belongs, in units of 8 bytes.
const OFFSET: u16 = MORE - 1;
/// No link cuts a packet into less (RFC 1858, 3128): whole headers are in the first fragment.
const FIRST_FRAGMENT_MIN: usize = 24;
const PACKET_MAX: usize = 65535;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_CHECKSUM: usize = 16;
const TCP_HEADER_LEN: usize = 20;
const UDP_LEN: usize = 4;
const UDP_CHECKSUM: usize = 6;
const UDP_HEADER_LEN: usize = 8;
const ICMP_CHECKSUM: usize = 2;
const ICMP_HEADER_LEN: usize = 8;

/// Types of ICMP messages.
mod icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const ECHO: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
    pub const TIMESTAMP: u8 = 13;
    pub const TIMESTAMP_REPLY: u8 = 14;
}

/// Kinds of options. IP and TCP share the first two.
mod option {
    pub const END: u8 = 0;
    pub const NOP: u8 = 1;
    pub const RECORD_ROUTE: u8 = 7;
    pub const TIMESTAMP: u8 = 68;
    pub const LOOSE_SOURCE_ROUTE: u8 = 131;
    pub const STRICT_SOURCE_ROUTE: u8 = 137;
}

/// What a packet's addresses became.
#[derive(Clone, Copy)]
struct Addresses {
    /// Source and destination before.
    old: (u32, u32),
    change: Change,
}

impl Passage<'_> {
    pub(super) fn ipv4(&self, packet: &mut [u8]) -> Result<Destination, DropReason> {
        let header_len = header_len(packet)?;
        let total_len = usize::from(be16(packet, TOTAL_LEN)?);
        // What follows is padding of a short frame.
        let packet = packet.get_mut(..total_len).ok_or(DropReason::Malformed)?;
        let (header, payload) =
            packet.split_at_mut_checked(header_len).ok_or(DropReason::Malformed)?;
        if sum(header) != 0xffff {
            return Err(DropReason::Checksum);
        }
        options(header.get(HEADER_LEN..).unwrap_or_default(), |kind| {
            use option::*;
            !matches!(kind, RECORD_ROUTE | TIMESTAMP | LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE)
        })?;

        let old = (be32(header, SOURCE)?, be32(header, DESTINATION)?);
        let destination = self.check(old.0.into(), old.1.into())?;
        let new = (self.address(old.0)?, self.address(old.1)?);
        let change = Change::default().address(old.0, new.0).address(old.1, new.1);
        put32(header, SOURCE, new.0)?;
        put32(header, DESTINATION, new.1)?;
        let checksum = be16(header, CHECKSUM)?;
        put16(header, CHECKSUM, change.apply(checksum))?;

        let protocol = byte(header, PROTOCOL)?;
        let fragment = be16(header, FRAGMENT)?;
        let (more, offset) = (fragment & MORE != 0, usize::from(fragment & OFFSET) * 8);
        if header_len + offset + payload.len() > PACKET_MAX {
            return Err(DropReason::Malformed);
        }
        let cuts = more && !payload.len().is_multiple_of(8)
            || more && offset == 0 && payload.len() < FIRST_FRAGMENT_MIN
            || (1..FIRST_FRAGMENT_MIN).contains(&offset);
        if cuts {
            return Err(DropReason::Fragment);
        }
        let addresses = Addresses { old, change };
        match (protocol, offset) {
            // Ports and checksums are in the first fragment.
            (ICMP | TCP | UDP, 1..) => {}
            (ICMP, _) => self.icmp(payload, !more)?,
            (TCP, _) => tcp(payload, addresses, !more)?,
            (UDP, _) => udp(payload, addresses, !more)?,
            _ => return Err(DropReason::Protocol),
        }
        Ok(if destination == Destination::Everyone {
            Destination::Everyone
        } else {
            Destination::One(new.1.into())
        })
    }

    /// Whether a packet from `source` to `destination` may go this way.
    fn check(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Result<Destination, DropReason> {
        if self.outward && source != self.from.ip {
            return Err(DropReason::Spoofed);
        }
        // The VM itself does not send from outside.
        if !self.outward && source == self.from.ip {
            return Err(DropReason::Unreachable);
        }
        let group = |a: Ipv4Addr| a.is_multicast() || a.is_broadcast() || a == self.from.broadcast;
        let nobody = |a: Ipv4Addr| a.is_loopback() || a.octets()[0] == 0 || a.octets()[0] >= 240;
        if group(source) || nobody(source) || nobody(destination) && !group(destination) {
            return Err(DropReason::Unreachable);
        }
        if group(destination) {
            return Ok(Destination::Everyone);
        }
        if !self.outward && destination != self.from.ip {
            return Err(DropReason::Unreachable);
        }
        if self.outward && destination == self.from.ip {
            return Err(DropReason::Unreachable);
        }
        Ok(Destination::One(destination))
    }

    /// `whole`: there are no other fragments.
    fn icmp(&self, message: &mut [u8], whole: bool) -> Result<(), DropReason> {
        if message.len() < ICMP_HEADER_LEN {
            return Err(DropReason::Malformed);
        }
        if whole && sum(message) != 0xffff {
            return Err(DropReason::Checksum);
        }
        match byte(message, 0)? {
            icmp::ECHO | icmp::ECHO_REPLY | icmp::TIMESTAMP | icmp::TIMESTAMP_REPLY => Ok(()),
            icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM => {
                let quoted = message.get_mut(ICMP_HEADER_LEN..).unwrap_or_default();
                let change = self.quoted(quoted)?;
                let checksum = be16(message, ICMP_CHECKSUM)?;
                put16(message, ICMP_CHECKSUM, change.apply(checksum))
            }
            // Redirects and router advertisements would change where others send.
            _ => Err(DropReason::Protocol),
        }
    }

    /// Translates the beginning of a packet that went the other way and met an error.
    fn quoted(&self, packet: &mut [u8]) -> Result<Change, DropReason> {
        let header_len = header_len(packet)?;
        let (header, payload) =
            packet.split_at_mut_checked(header_len).ok_or(DropReason::Malformed)?;
        let old = (be32(header, SOURCE)?, be32(header, DESTINATION)?);
        let own = u32::from(self.from.ip);
        if self.outward && old.1 != own {
            return Err(DropReason::Spoofed);
        }
        if !self.outward && old.0 != own {
            return Err(DropReason::Unreachable);
        }
        let new = (self.address(old.0)?, self.address(old.1)?);
        let addresses = Change::default().address(old.0, new.0).address(old.1, new.1);
        put32(header, SOURCE, new.0)?;
        put32(header, DESTINATION, new.1)?;
        let checksum = be16(header, CHECKSUM)?;
        put16(header, CHECKSUM, addresses.apply(checksum))?;
        let change = addresses.and(Change::default().word(checksum, addresses.apply(checksum)));

        let first = be16(header, FRAGMENT)? & OFFSET == 0;
        let (at, apply): (_, fn(Change, u16) -> u16) = match byte(header, PROTOCOL)? {
            TCP if first => (TCP_CHECKSUM, Change::apply),
            UDP if first => (UDP_CHECKSUM, Change::apply_udp),
            _ => return Ok(change),
        };
        // Errors need to quote no more than 8 bytes, which is too short for TCP's.
        let Ok(checksum) = be16(payload, at) else { return Ok(change) };
        let new = apply(addresses, checksum);
        put16(payload, at, new)?;
        Ok(change.and(Change::default().word(checksum, new)))
    }
}

fn tcp(segment: &mut [u8], addresses: Addresses, whole: bool) -> Result<(), DropReason> {
    let header_len = usize::from(byte(segment, 12)? >> 4) * 4;
    if header_len < TCP_HEADER_LEN {
        return Err(DropReason::Malformed);
    }
    let cut = if whole { DropReason::Malformed } else { DropReason::Fragment };
    let header = segment.get(..header_len).ok_or(cut)?;
    options(header.get(TCP_HEADER_LEN..).unwrap_or_default(), |_| true)?;
    let (source, destination) = addresses.old;
    if whole && pseudo_sum(source, destination, TCP, segment) != 0xffff {
        return Err(DropReason::Checksum);
    }
    let checksum = be16(segment, TCP_CHECKSUM)?;
    put16(segment, TCP_CHECKSUM, addresses.change.apply(checksum))
}

fn udp(datagram: &mut [u8], addresses: Addresses, whole: bool) -> Result<(), DropReason> {
    let len = usize::from(be16(datagram, UDP_LEN)?);
    let fits = if whole { len <= datagram.len() } else { len > datagram.len() };
    if len < UDP_HEADER_LEN || !fits {
        return Err(DropReason::Malformed);
    }
    let checksum = be16(datagram, UDP_CHECKSUM)?;
    if whole && checksum != 0 {
        let (source, destination) = addresses.old;
        let covered = datagram.get(..len).ok_or(DropReason::Malformed)?;
        if pseudo_sum(source, destination, UDP, covered) != 0xffff {
            return Err(DropReason::Checksum);
        }
    }
    put16(datagram, UDP_CHECKSUM, addresses.change.apply_udp(checksum))
}

/// Length of an IPv4 header with its options.
fn header_len(packet: &[u8]) -> Result<usize, DropReason> {
    let first = byte(packet, 0)?;
    let len = usize::from(first & 0xf) * 4;
    if first >> 4 != 4 || len < HEADER_LEN {
        return Err(DropReason::Malformed);
    }
    Ok(len)
}

/// Checks options of IP or TCP: each has its length, and `may` pass.
fn options(mut rest: &[u8], may: impl Fn(u8) -> bool) -> Result<(), DropReason> {
    while let Some((&kind, after)) = rest.split_first() {
        rest = match kind {
            option::END => return Ok(()),
            option::NOP => after,
            _ => {
                let len = usize::from(byte(rest, 1).map_err(|_| DropReason::Options)?);
                if len < 2 || !may(kind) {
                    return Err(DropReason::Options);
                }
                rest.get(len..).ok_or(DropReason::Options)?
            }
        };
    }
    Ok(())
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, DropReason> {
    bytes.get(at).copied().ok_or(DropReason::Malformed)
}

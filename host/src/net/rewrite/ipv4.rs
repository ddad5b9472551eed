//! Address translation in IPv4 and in the ICMP, TCP and UDP that it carries.

use std::net::Ipv4Addr;

use etherparse::err::tcp::HeaderSliceError;
use etherparse::icmpv4::{self, TimestampMessage};
use etherparse::{Icmpv4Header, Icmpv4Slice, IpNumber, TcpHeaderSlice, UdpHeader, UdpHeaderSlice};

use super::checksum::{self, Change};
use super::{Destination, Passage, ipv4_header};
use crate::net::DropReason;

/// Offsets in their headers of the fields that change.
const SOURCE: usize = 12;
const IPV4_CHECKSUM: usize = 10;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const ICMP_CHECKSUM: usize = 2;

/// No link splits a packet into smaller first fragments (RFC 1858, 3128): whole headers are in the
/// first one.
const FIRST_FRAGMENT_MIN: usize = 24;
const PACKET_MAX: usize = 65535;

/// Kinds of options. IP and TCP share the first two.
mod option {
    pub const END: u8 = 0;
    pub const NOP: u8 = 1;
    pub const RECORD_ROUTE: u8 = 7;
    pub const TIMESTAMP: u8 = 68;
    pub const LOOSE_SOURCE_ROUTE: u8 = 131;
    pub const STRICT_SOURCE_ROUTE: u8 = 137;
}

/// Addresses of a packet.
#[derive(Clone, Copy)]
struct Addresses {
    source: Ipv4Addr,
    destination: Ipv4Addr,
}

impl Passage<'_> {
    pub(super) fn ipv4(&self, packet: &mut [u8]) -> Result<Destination, DropReason> {
        let header = ipv4_header(packet)?;
        let header_len = header.slice().len();
        let payload_len = header.payload_len().map_err(|_| DropReason::Malformed)?.into();
        // The rest is padding of a short packet.
        if packet.len() < header_len + payload_len {
            return Err(DropReason::Malformed);
        }
        checksum::check(header.slice())?;
        options(header.options(), |kind| {
            use option::*;
            !matches!(kind, RECORD_ROUTE | TIMESTAMP | LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE)
        })?;
        let protocol = header.protocol();
        let (more, offset) = (header.more_fragments(), header.fragments_offset().byte_offset());
        let old =
            Addresses { source: header.source_addr(), destination: header.destination_addr() };
        let destination = self.check(old.source, old.destination)?;

        let (header, payload) =
            packet.split_at_mut_checked(header_len).ok_or(DropReason::Malformed)?;
        let payload = payload.get_mut(..payload_len).ok_or(DropReason::Malformed)?;
        let (new, change, _) = self.readdress(header, old)?;

        let offset = usize::from(offset);
        if header_len + offset + payload.len() > PACKET_MAX {
            return Err(DropReason::Malformed);
        }
        let cuts = more && !payload.len().is_multiple_of(8)
            || more && offset == 0 && payload.len() < FIRST_FRAGMENT_MIN
            || (1..FIRST_FRAGMENT_MIN).contains(&offset);
        if cuts {
            return Err(DropReason::Fragment);
        }
        match (protocol, offset) {
            // Later fragments have no ports and no checksum.
            (IpNumber::ICMP | IpNumber::TCP | IpNumber::UDP, 1..) => {}
            (IpNumber::ICMP, _) => self.icmp(payload, !more)?,
            (IpNumber::TCP, _) => tcp(payload, old, change, !more)?,
            (IpNumber::UDP, _) => udp(payload, old, change, !more)?,
            _ => return Err(DropReason::Protocol),
        }
        Ok(match destination {
            Destination::Everyone => Destination::Everyone,
            Destination::One(_) => Destination::One(new.destination),
        })
    }

    /// Translates the addresses of a header. Returns the new ones, their change, and the change of
    /// the header's checksum.
    fn readdress(
        &self,
        header: &mut [u8],
        old: Addresses,
    ) -> Result<(Addresses, Change, Change), DropReason> {
        let source = self.address(old.source)?;
        let destination = self.address(old.destination)?;
        let change =
            Change::default().address(old.source, source).address(old.destination, destination);
        let place = header.get_mut(SOURCE..).and_then(<[u8]>::first_chunk_mut);
        let [s0, s1, s2, s3] = source.octets();
        let [d0, d1, d2, d3] = destination.octets();
        *place.ok_or(DropReason::Malformed)? = [s0, s1, s2, s3, d0, d1, d2, d3];
        let checksum = change.update(header, IPV4_CHECKSUM, Change::apply);
        let checksum = checksum.ok_or(DropReason::Malformed)?;
        Ok((Addresses { source, destination }, change, checksum))
    }

    /// Returns the destination of a packet from `source` to `destination`, or an error if it may
    /// not pass in this direction.
    fn check(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Result<Destination, DropReason> {
        if self.outward && source != self.from.ip {
            return Err(DropReason::Spoofed);
        }
        // A packet to the VM cannot come from the VM itself.
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

    /// Translates an ICMP message. `whole` means that it is not fragmented.
    fn icmp(&self, message: &mut [u8], whole: bool) -> Result<(), DropReason> {
        // The longest header: a timestamp message may be padded.
        let header = message.get(..TimestampMessage::LEN).unwrap_or(message);
        let header = Icmpv4Slice::from_slice(header).map_err(|_| DropReason::Malformed)?;
        if whole {
            checksum::check(message)?;
        }
        match header.type_u8() {
            icmpv4::TYPE_ECHO_REQUEST
            | icmpv4::TYPE_ECHO_REPLY
            | icmpv4::TYPE_TIMESTAMP
            | icmpv4::TYPE_TIMESTAMP_REPLY => Ok(()),
            icmpv4::TYPE_DEST_UNREACH
            | icmpv4::TYPE_TIME_EXCEEDED
            | icmpv4::TYPE_PARAMETER_PROBLEM => {
                let quoted = message.get_mut(Icmpv4Header::MIN_LEN..).unwrap_or_default();
                let change = self.quoted(quoted)?;
                let updated = change.update(message, ICMP_CHECKSUM, Change::apply);
                updated.map(drop).ok_or(DropReason::Malformed)
            }
            // Redirects and router advertisements would change the routes of others.
            _ => Err(DropReason::Protocol),
        }
    }

    /// Translates the packet quoted in an ICMP error, which went the other way.
    fn quoted(&self, packet: &mut [u8]) -> Result<Change, DropReason> {
        let header = ipv4_header(packet)?;
        let (header_len, protocol) = (header.slice().len(), header.protocol());
        let first = header.fragments_offset().value() == 0;
        let old =
            Addresses { source: header.source_addr(), destination: header.destination_addr() };
        if self.outward && old.destination != self.from.ip {
            return Err(DropReason::Spoofed);
        }
        if !self.outward && old.source != self.from.ip {
            return Err(DropReason::Unreachable);
        }
        let (header, payload) =
            packet.split_at_mut_checked(header_len).ok_or(DropReason::Malformed)?;
        let (_, addresses, checksum) = self.readdress(header, old)?;
        let change = addresses.and(checksum);
        // Errors need to quote only 8 bytes, too few to reach the checksum of TCP.
        let updated = match protocol {
            IpNumber::TCP if first => addresses.update(payload, TCP_CHECKSUM, Change::apply),
            IpNumber::UDP if first => addresses.update(payload, UDP_CHECKSUM, Change::apply_udp),
            _ => None,
        };
        Ok(change.and(updated.unwrap_or_default()))
    }
}

fn tcp(segment: &mut [u8], old: Addresses, change: Change, whole: bool) -> Result<(), DropReason> {
    let header = TcpHeaderSlice::from_slice(segment).map_err(|error| match error {
        HeaderSliceError::Len(_) if !whole => DropReason::Fragment,
        _ => DropReason::Malformed,
    })?;
    options(header.options(), |_| true)?;
    if whole {
        let Addresses { source, destination } = old;
        checksum::check_with_pseudo_header(source, destination, IpNumber::TCP, segment)?;
    }
    let updated = change.update(segment, TCP_CHECKSUM, Change::apply);
    updated.map(drop).ok_or(DropReason::Malformed)
}

fn udp(datagram: &mut [u8], old: Addresses, change: Change, whole: bool) -> Result<(), DropReason> {
    let header = UdpHeaderSlice::from_slice(datagram).map_err(|_| DropReason::Malformed)?;
    let len = usize::from(header.length());
    let fits = if whole { len <= datagram.len() } else { len > datagram.len() };
    if len < UdpHeader::LEN || !fits {
        return Err(DropReason::Malformed);
    }
    if whole && header.checksum() != 0 {
        let Addresses { source, destination } = old;
        let covered = datagram.get(..len).ok_or(DropReason::Malformed)?;
        checksum::check_with_pseudo_header(source, destination, IpNumber::UDP, covered)?;
    }
    let updated = change.update(datagram, UDP_CHECKSUM, Change::apply_udp);
    updated.map(drop).ok_or(DropReason::Malformed)
}

/// Verifies options of IP or TCP: each has its length, and `may` allows it.
fn options(mut rest: &[u8], may: impl Fn(u8) -> bool) -> Result<(), DropReason> {
    while let [kind, after @ ..] = rest {
        rest = match (*kind, after) {
            (option::END, _) => return Ok(()),
            (option::NOP, _) => after,
            (kind, [len, ..]) if *len >= 2 && may(kind) => {
                rest.get(usize::from(*len)..).ok_or(DropReason::Options)?
            }
            _ => return Err(DropReason::Options),
        };
    }
    Ok(())
}

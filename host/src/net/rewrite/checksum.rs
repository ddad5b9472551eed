//! The Internet checksum: verification, and incremental update when addresses change.

use std::net::Ipv4Addr;

use etherparse::IpNumber;

use crate::net::DropReason;

/// Verifies bytes that contain their own checksum.
pub fn check(bytes: &[u8]) -> Result<(), DropReason> {
    verify(0, bytes)
}

/// Verifies TCP or UDP, whose checksum also covers a pseudo header.
pub fn check_with_pseudo_header(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: IpNumber,
    bytes: &[u8],
) -> Result<(), DropReason> {
    let halves = |a: Ipv4Addr| u64::from(a.to_bits() >> 16) + u64::from(a.to_bits() & 0xffff);
    let pseudo = halves(source) + halves(destination) + u64::from(protocol.0);
    verify(pseudo + bytes.len() as u64, bytes)
}

/// Verifies that the ones' complement sum of all words, with the last byte padded, is 0xffff, which
/// it is over bytes that contain their own checksum.
///
/// The sum of swapped words is the swapped sum (RFC 1071), so no word is swapped here, and two
/// words are added at once.
fn verify(start: u64, bytes: &[u8]) -> Result<(), DropReason> {
    let (pairs, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let pairs = pairs.iter().chain([&last]);
    let sum: u64 = pairs.map(|&pair| u64::from(u32::from_ne_bytes(pair))).sum();
    let sum = fold(start + u64::from(u16::from_be(fold(sum))));
    if sum == 0xffff { Ok(()) } else { Err(DropReason::Checksum) }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Change of bytes covered by a checksum: the sum of ~m + m' of RFC 1624.
#[derive(Clone, Copy, Default, Debug)]
pub struct Change(u64);

impl Change {
    fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// Adds the change of an address.
    pub fn address(self, old: Ipv4Addr, new: Ipv4Addr) -> Self {
        let (old, new) = (old.to_bits(), new.to_bits());
        self.word((old >> 16) as u16, (new >> 16) as u16).word(old as u16, new as u16)
    }

    /// Adds another change.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Returns the new checksum: HC' = ~(~HC + ~m + m').
    pub fn apply(self, checksum: u16) -> u16 {
        !fold(u64::from(!checksum) + self.0)
    }

    /// Returns the new checksum of UDP, where 0 means that there is none.
    pub fn apply_udp(self, checksum: u16) -> u16 {
        match (checksum, self.apply(checksum)) {
            (0, _) => 0,
            (_, 0) => 0xffff,
            (_, new) => new,
        }
    }

    /// Updates the checksum at byte `at` by `apply`. Returns how that word changed, or `None` when
    /// the bytes end before it.
    pub fn update(self, bytes: &mut [u8], at: usize, apply: fn(Self, u16) -> u16) -> Option<Self> {
        let place: &mut [u8; 2] = bytes.get_mut(at..)?.first_chunk_mut()?;
        let old = u16::from_be_bytes(*place);
        let new = apply(self, old);
        *place = new.to_be_bytes();
        Some(Self::default().word(old, new))
    }
}

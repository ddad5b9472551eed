//! Words in network order, and the Internet checksum over them.

use crate::net::DropReason;

/// The word at byte `at`.
pub fn be16(bytes: &[u8], at: usize) -> Result<u16, DropReason> {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
    word.map(|&w| u16::from_be_bytes(w)).ok_or(DropReason::Malformed)
}

/// The two words at byte `at`.
pub fn be32(bytes: &[u8], at: usize) -> Result<u32, DropReason> {
    let words = bytes.get(at..).and_then(<[u8]>::first_chunk);
    words.map(|&w| u32::from_be_bytes(w)).ok_or(DropReason::Malformed)
}

/// Writes the word at byte `at`.
pub fn put16(bytes: &mut [u8], at: usize, value: u16) -> Result<(), DropReason> {
    let place =
        bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut).ok_or(DropReason::Malformed)?;
    *place = value.to_be_bytes();
    Ok(())
}

/// Writes the two words at byte `at`.
pub fn put32(bytes: &mut [u8], at: usize, value: u32) -> Result<(), DropReason> {
    let place =
        bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut).ok_or(DropReason::Malformed)?;
    *place = value.to_be_bytes();
    Ok(())
}

/// The ones' complement sum of all words, the last byte padded; 0xffff over what its own checksum
/// is part of.
pub fn sum(bytes: &[u8]) -> u16 {
    add(0, bytes)
}

/// [`sum`], and the pseudo header of TCP and UDP.
pub fn pseudo_sum(source: u32, destination: u32, protocol: u8, bytes: &[u8]) -> u16 {
    let halves = |a: u32| u64::from(a >> 16) + u64::from(a & 0xffff);
    let start = halves(source) + halves(destination) + u64::from(protocol) + bytes.len() as u64;
    add(start, bytes)
}

/// The sum of swapped words is the swapped sum (RFC 1071): nothing is swapped on the way, and two
/// words are added at once.
fn add(start: u64, bytes: &[u8]) -> u16 {
    let (pairs, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let pairs = pairs.iter().chain([&last]);
    let sum: u64 = pairs.map(|&pair| u64::from(u32::from_ne_bytes(pair))).sum();
    fold(start + u64::from(u16::from_be(fold(sum))))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// What changed in bytes under a checksum: the sum of ~m + m' of RFC 1624.
#[derive(Clone, Copy, Default, Debug)]
pub struct Change(u64);

impl Change {
    /// A word changed.
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// An address changed.
    pub fn address(self, old: u32, new: u32) -> Self {
        self.word((old >> 16) as u16, (new >> 16) as u16).word(old as u16, new as u16)
    }

    /// Both changed.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The new checksum: HC' = ~(~HC + ~m + m').
    pub fn apply(self, checksum: u16) -> u16 {
        !fold(u64::from(!checksum) + self.0)
    }

    /// The same for UDP, where 0 says that there is none.
    pub fn apply_udp(self, checksum: u16) -> u16 {
        match (checksum, self.apply(checksum)) {
            (0, _) => 0,
            (_, 0) => 0xffff,
            (_, new) => new,
        }
    }
}

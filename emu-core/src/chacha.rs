//! ChaCha20 keystream (RFC 8439) as a random number generator.
//!
//! The key is the seed, so a VM's randomness is an input of the machine and a run can be repeated.

const WORDS: usize = 16;
const BLOCK_SIZE: usize = WORDS * 4;
const DOUBLE_ROUNDS: u32 = 10;
/// "expand 32-byte k" in little-endian words.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// A random number generator: a key and how many blocks of its stream are used up.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct ChaCha {
    key: [u32; 8],
    blocks: u64,
}

state!(ChaCha { key, blocks });

impl ChaCha {
    /// The stream of `key` from its start.
    pub const fn new(key: [u32; 8]) -> Self {
        Self { key, blocks: 0 }
    }

    /// Fills `dst` with the next bytes of the stream.
    ///
    /// Every call starts a fresh block and forgets what is left of its last one: no output is
    /// kept in the state, where a later snapshot would show it.
    pub fn fill(&mut self, dst: &mut [u8]) {
        for chunk in dst.chunks_mut(BLOCK_SIZE) {
            let counter = [self.blocks as u32, (self.blocks >> 32) as u32, 0, 0];
            self.blocks = self.blocks.wrapping_add(1);
            let stream = block(&self.key, counter);
            for (bytes, word) in chunk.chunks_mut(4).zip(stream) {
                for (byte, value) in bytes.iter_mut().zip(word.to_le_bytes()) {
                    *byte = value;
                }
            }
        }
    }
}

/// The block function (RFC 8439, section 2.3); `counter` is the block counter and the nonce.
fn block(key: &[u32; 8], counter: [u32; 4]) -> [u32; WORDS] {
    let [c0, c1, c2, c3] = CONSTANTS;
    let [k0, k1, k2, k3, k4, k5, k6, k7] = *key;
    let [n0, n1, n2, n3] = counter;
    let start = [c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, k6, k7, n0, n1, n2, n3];
    let mut s = start;
    for _ in 0..DOUBLE_ROUNDS {
        quarter_round::<0, 4, 8, 12>(&mut s);
        quarter_round::<1, 5, 9, 13>(&mut s);
        quarter_round::<2, 6, 10, 14>(&mut s);
        quarter_round::<3, 7, 11, 15>(&mut s);
        quarter_round::<0, 5, 10, 15>(&mut s);
        quarter_round::<1, 6, 11, 12>(&mut s);
        quarter_round::<2, 7, 8, 13>(&mut s);
        quarter_round::<3, 4, 9, 14>(&mut s);
    }
    for (word, first) in s.iter_mut().zip(start) {
        *word = word.wrapping_add(first);
    }
    s
}

#[inline(always)]
fn quarter_round<const A: usize, const B: usize, const C: usize, const D: usize>(
    s: &mut [u32; WORDS],
) {
    s[A] = s[A].wrapping_add(s[B]);
    s[D] = (s[D] ^ s[A]).rotate_left(16);
    s[C] = s[C].wrapping_add(s[D]);
    s[B] = (s[B] ^ s[C]).rotate_left(12);
    s[A] = s[A].wrapping_add(s[B]);
    s[D] = (s[D] ^ s[A]).rotate_left(8);
    s[C] = s[C].wrapping_add(s[D]);
    s[B] = (s[B] ^ s[C]).rotate_left(7);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of_rfc() -> [u32; 8] {
        core::array::from_fn(|i| 0x0302_0100 + 0x0404_0404 * i as u32)
    }

    #[test]
    fn block_matches_rfc_8439_section_2_3_2() {
        let counter = [1, 0x0900_0000, 0x4a00_0000, 0];
        let expected = [
            0xe4e7_f110,
            0x1559_3bd1,
            0x1fdd_0f50,
            0xc471_20a3,
            0xc7f4_d1c7,
            0x0368_c033,
            0x9aaa_2204,
            0x4e6c_d4c3,
            0x4664_82d2,
            0x09aa_9f07,
            0x05d7_c214,
            0xa202_8bd9,
            0xd19c_12b5,
            0xb94e_16de,
            0xe883_d0cb,
            0x4e3c_50a2,
        ];
        assert_eq!(block(&key_of_rfc(), counter), expected);
    }

    #[test]
    fn quarter_round_matches_rfc_8439_section_2_1_1() {
        let mut s = [0; WORDS];
        [s[0], s[1], s[2], s[3]] = [0x1111_1111, 0x0102_0304, 0x9b8d_6f43, 0x0123_4567];
        quarter_round::<0, 1, 2, 3>(&mut s);
        assert_eq!(s[..4], [0xea2a_92f4, 0xcb1c_f8ce, 0x4581_472e, 0x5881_c4bb]);
    }

    #[test]
    fn stream_of_the_zero_key_matches_rfc_8439_appendix_a_1() {
        let mut bytes = [0; 72];
        ChaCha::new([0; 8]).fill(&mut bytes);
        assert_eq!(bytes[..8], [0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]);
        assert_eq!(bytes[64..], [0x9f, 0x07, 0xe7, 0xbe, 0x55, 0x51, 0x38, 0x7a]);
    }

    #[test]
    fn each_call_continues_with_a_fresh_block() {
        let mut rng = ChaCha::new([0; 8]);
        let mut first = [0; 3];
        let mut second = [0; 8];
        rng.fill(&mut first);
        rng.fill(&mut second);
        assert_eq!(second, [0x9f, 0x07, 0xe7, 0xbe, 0x55, 0x51, 0x38, 0x7a]);
    }

    #[test]
    fn an_odd_length_is_filled_to_the_end() {
        let mut bytes = [0; 67];
        ChaCha::new([7; 8]).fill(&mut bytes);
        assert_ne!(bytes[64..], [0; 3]);
    }

    #[test]
    fn the_block_counter_wraps_without_panic() {
        let mut rng = ChaCha { key: [0; 8], blocks: u64::MAX };
        rng.fill(&mut [0; 1]);
        assert_eq!(rng.blocks, 0);
    }
}

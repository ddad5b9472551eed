//! The guest program of the workload `compute`, and its expected results.
//!
//! Each VM fills a table of its own with sums of pseudo-random numbers. The seed comes from the MAC
//! address of its network card, so that neighbours compute different values with the same control
//! flow.

use emu_core::dev::virtio::DeviceKind;
use emu_core::layout::{MachineKind, VIRT};

use crate::error::Error;
use crate::image::{Payload, Segment};
use crate::machine::Fleet;
use crate::units::Size;
use crate::virtio::Virtio;

/// Iterations of the loop.
const ROUNDS: u32 = 1 << 20;
/// Number of seeds: VM `i` has that of VM `i % SEEDS`.
const SEEDS: u32 = 64;
/// Words of the table, which is the second page of RAM.
const TABLE: usize = 512;
const MEMORY: Size = Size::mib(1);

const ZERO: u32 = 0;
const T0: u32 = 5;
const T1: u32 = 6;
const T2: u32 = 7;
/// Register of the random number.
const S0: u32 = 8;
/// Register of the checksum.
const S1: u32 = 9;
/// Register of the remaining iterations.
const S2: u32 = 18;
/// Register of the table's address.
const S3: u32 = 19;

const fn lui(d: u32, value: u32) -> u32 {
    assert!(value & 0xfff == 0);
    0x37 | d << 7 | value
}
const fn op_imm(funct: u32, d: u32, a: u32, imm: u32) -> u32 {
    0x13 | funct << 12 | d << 7 | a << 15 | imm << 20
}
const fn addi(d: u32, a: u32, imm: i32) -> u32 {
    op_imm(0, d, a, imm as u32 & 0xfff)
}
const fn slli(d: u32, a: u32, shift: u32) -> u32 {
    op_imm(1, d, a, shift)
}
const fn srli(d: u32, a: u32, shift: u32) -> u32 {
    op_imm(5, d, a, shift)
}
const fn andi(d: u32, a: u32, imm: u32) -> u32 {
    op_imm(7, d, a, imm)
}
const fn op(funct: u32, d: u32, a: u32, b: u32) -> u32 {
    0x33 | funct << 12 | d << 7 | a << 15 | b << 20
}
const fn add(d: u32, a: u32, b: u32) -> u32 {
    op(0, d, a, b)
}
const fn xor(d: u32, a: u32, b: u32) -> u32 {
    op(4, d, a, b)
}
const fn lbu(d: u32, at: u32, a: u32) -> u32 {
    0x4003 | d << 7 | a << 15 | at << 20
}
const fn lw(d: u32, a: u32) -> u32 {
    0x2003 | d << 7 | a << 15
}
const fn sw(value: u32, a: u32) -> u32 {
    0x2023 | a << 15 | value << 20
}
const fn sb(value: u32, a: u32) -> u32 {
    0x0023 | a << 15 | value << 20
}
/// Branches to the instruction `words` words before this one.
const fn bne_back(a: u32, b: u32, words: u32) -> u32 {
    let offset = (4 * words).wrapping_neg();
    0x1063 | a << 15 | b << 20 | (offset >> 5 & 0x3f) << 25 | (offset >> 1 & 0xf) << 8 | 0x8000_0080
}

const MAC_LOW_BYTE: u32 = 0x105;
const POWER_OFF: u32 = 0x5555;

const PROGRAM: [u32; 33] = [
    lui(S3, VIRT.ram_base + 0x1000),
    lui(T0, VIRT.virtio[Virtio::OTHER.slots.of(DeviceKind::Net) as usize].mmio.base),
    lbu(S0, MAC_LOW_BYTE, T0),
    andi(S0, S0, SEEDS - 1),
    addi(S0, S0, 1),
    addi(S1, ZERO, 0),
    lui(S2, ROUNDS),
    // The loop: a step of xorshift32, then a word of the table and the checksum are updated.
    slli(T0, S0, 13),
    xor(S0, S0, T0),
    srli(T0, S0, 17),
    xor(S0, S0, T0),
    slli(T0, S0, 5),
    xor(S0, S0, T0),
    andi(T1, S0, 4 * (TABLE as u32 - 1)),
    add(T1, T1, S3),
    lw(T2, T1),
    add(S1, S1, T2),
    add(S1, S1, S0),
    sw(S1, T1),
    addi(S2, S2, -1),
    bne_back(S2, ZERO, 13),
    // Four bytes for the console, the low one first.
    lui(T0, VIRT.uart.base),
    sb(S1, T0),
    srli(S1, S1, 8),
    sb(S1, T0),
    srli(S1, S1, 8),
    sb(S1, T0),
    srli(S1, S1, 8),
    sb(S1, T0),
    lui(T0, VIRT.finisher.base),
    lui(T1, POWER_OFF & 0xf000),
    addi(T1, T1, POWER_OFF as i32 & 0xfff),
    sw(T1, T0),
];

/// Returns a fleet that computes.
pub fn fleet(count: u32) -> Result<Fleet, Error> {
    let addr = VIRT.ram_base;
    let bytes: Vec<u8> = PROGRAM.iter().flat_map(|word| word.to_le_bytes()).collect();
    let size = bytes.len() as u32;
    let segments = vec![Segment { addr, bytes, size }];
    let payload = Payload::linked(segments, addr);
    Ok(Fleet::bare(count, MachineKind::Virt, MEMORY, payload)?)
}

/// Returns the results: VM `i` must print the one at index `i % len`.
pub fn results() -> Vec<[u8; 4]> {
    (1..=SEEDS).map(|seed| result(seed).to_le_bytes()).collect()
}

fn result(seed: u32) -> u32 {
    let (mut random, mut sum) = (seed, 0u32);
    let mut table = [0u32; TABLE];
    for _ in 0..ROUNDS {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        let word = &mut table[(random >> 2) as usize % TABLE];
        sum = sum.wrapping_add(*word).wrapping_add(random);
        *word = sum;
    }
    sum
}

#[cfg(test)]
mod tests {
    use emu_core::insn::Insn;

    use super::*;

    #[test]
    fn the_encoders_say_what_they_are_called() {
        let text: Vec<String> = PROGRAM.iter().map(|&word| Insn(word).to_string()).collect();
        let expected = "lui s3,0x80001; lui t0,0x10002; lbu s0,261(t0); andi s0,s0,63; \
            addi s0,s0,1; addi s1,zero,0; lui s2,0x100; slli t0,s0,13; xor s0,s0,t0; \
            srli t0,s0,17; xor s0,s0,t0; slli t0,s0,5; xor s0,s0,t0; andi t1,s0,2044; \
            add t1,t1,s3; lw t2,0(t1); add s1,s1,t2; add s1,s1,s0; sw s1,0(t1); \
            addi s2,s2,-1; bne s2,zero,.-52; lui t0,0x10000; sb s1,0(t0); srli s1,s1,8; \
            sb s1,0(t0); srli s1,s1,8; sb s1,0(t0); srli s1,s1,8; sb s1,0(t0); lui t0,0x100; \
            lui t1,0x5; addi t1,t1,1365; sw t1,0(t0)";
        assert_eq!(text.join("; "), expected);
    }

    #[test]
    fn no_two_seeds_come_to_the_same() {
        let mut results = results();
        results.sort();
        results.dedup();
        assert_eq!(results.len(), SEEDS as usize);
    }
}

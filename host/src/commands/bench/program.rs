//! The guest program of the workload `compute`, and its expected results.
//!
//! Each VM fills a table of its own with sums of pseudo-random numbers. The seed comes from the MAC
//! address of its network card, so that neighbours compute different values with the same control
//! flow.

use emu_core::dev::virtio::DeviceKind;
use emu_core::layout::{MachineKind, VIRT};

use super::asm::reg::*;
use super::asm::*;
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

/// Register of the random number.
const RANDOM: u32 = S0;
/// Register of the checksum.
const SUM: u32 = S1;
/// Register of the remaining iterations.
const LEFT: u32 = S2;
/// Register of the table's address.
const BASE: u32 = S3;

const MAC_LOW_BYTE: i32 = 0x105;
const POWER_OFF: u32 = 0x5555;

const PROGRAM: [u32; 33] = [
    lui(BASE, VIRT.ram_base + 0x1000),
    lui(T0, VIRT.virtio[Virtio::OTHER.slots.of(DeviceKind::Net) as usize].mmio.base),
    lbu(RANDOM, MAC_LOW_BYTE, T0),
    andi(RANDOM, RANDOM, SEEDS as i32 - 1),
    addi(RANDOM, RANDOM, 1),
    addi(SUM, ZERO, 0),
    lui(LEFT, ROUNDS),
    // The loop: a step of xorshift32, then a word of the table and the checksum are updated.
    slli(T0, RANDOM, 13),
    xor(RANDOM, RANDOM, T0),
    srli(T0, RANDOM, 17),
    xor(RANDOM, RANDOM, T0),
    slli(T0, RANDOM, 5),
    xor(RANDOM, RANDOM, T0),
    andi(T1, RANDOM, 4 * (TABLE as i32 - 1)),
    add(T1, T1, BASE),
    lw(T2, 0, T1),
    add(SUM, SUM, T2),
    add(SUM, SUM, RANDOM),
    sw(SUM, 0, T1),
    addi(LEFT, LEFT, -1),
    branch(Cond::Ne, LEFT, ZERO, -52),
    // Four bytes for the console, the low one first.
    lui(T0, VIRT.uart.base),
    sb(SUM, 0, T0),
    srli(SUM, SUM, 8),
    sb(SUM, 0, T0),
    srli(SUM, SUM, 8),
    sb(SUM, 0, T0),
    srli(SUM, SUM, 8),
    sb(SUM, 0, T0),
    lui(T0, VIRT.finisher.base),
    lui(T1, POWER_OFF & 0xf000),
    addi(T1, T1, POWER_OFF as i32 & 0xfff),
    sw(T1, 0, T0),
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

/// Returns what VM `i` must print.
pub fn results() -> impl Fn(u32) -> [u8; 4] {
    let results: Vec<[u8; 4]> = (1..=SEEDS).map(|seed| result(seed).to_le_bytes()).collect();
    move |vm| results[(vm % SEEDS) as usize]
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
        let mut results: Vec<[u8; 4]> = (0..SEEDS).map(results()).collect();
        results.sort();
        results.dedup();
        assert_eq!(results.len(), SEEDS as usize);
    }
}

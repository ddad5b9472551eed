//! The guest program of the workload `apart`, and its expected results.
//!
//! In each round a VM fills tables with pseudo-random numbers, sorts some, takes their CRC, follows a
//! list through memory, multiplies and divides, and calls functions through pointers in an order that
//! the numbers decide. All of it follows from the round's seed, so that VMs with different seeds take
//! different branches. Each VM has its own sequence of seeds. There are so few seeds that the host can
//! compute all their results, and with them the result of every VM.
//!
//! The functions are made of [`Step`]s. A step is known in two ways: as instructions, and as what it
//! does to the numbers.

use std::thread;

use emu_core::dev::virtio::DeviceKind;
use emu_core::layout::{MachineKind, VIRT};
use flate2::Crc;

use super::args::CodeSize;
use super::asm::reg::*;
use super::asm::*;
use crate::error::Error;
use crate::host;
use crate::image::{Payload, Segment};
use crate::machine::Fleet;
use crate::units::Size;
use crate::virtio::Virtio;

/// Number of different rounds.
const SEEDS: u32 = 1024;
/// Words of the table that functions read and write.
const WORDS: u32 = 2048;
/// Length of the list, and of the way along it.
const NODES: u32 = 512;
const HOPS: u32 = 4096;
const MEMORY: Size = Size::mib(2);
/// Addresses of table and list, behind the largest program.
const TABLE: u32 = VIRT.ram_base + (1 << 20);
const LIST: u32 = TABLE + 4 * WORDS;
/// The generator of random numbers: multiplier and increment.
const MULTIPLIER: u32 = 1_664_525;
const INCREMENT: u32 = 1_013_904_223;
/// What makes a first number out of a seed.
const SPREAD: u32 = 0x9e37_79b9;
const POLYNOMIAL: u32 = 0xedb8_8320;
/// MAC address of the network card: its last three bytes are the VM's number.
const MAC_NUMBER: i32 = 0x103;
const POWER_OFF: u32 = 0x5555;

/// What the variants of the program differ in.
struct Shape {
    rounds: u32,
    /// Number of functions, a power of two.
    functions: u32,
    /// Calls in a round.
    calls: u32,
    /// Words that are sorted, a power of two.
    sorted: u32,
}

impl Shape {
    fn of(code: CodeSize) -> Self {
        match code {
            CodeSize::Small => Self { rounds: 48, functions: 8, calls: 400, sorted: 512 },
            CodeSize::Large => Self { rounds: 40, functions: 1024, calls: 3000, sorted: 128 },
        }
    }
}

/// A part of a function of `a` and `b`. Constants have 16 bits.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A word of the table is added to `a`.
    Load(u32),
    /// A word of the table becomes `b` and the constant.
    Store(u32),
    /// The numbers' bits under two masks decide what happens.
    Choose { masks: [u32; 2], factor: u32, shift: u32 },
    /// `b` is rotated, and subtracted from `a`.
    Rotate(u32),
    /// One to four bytes of the table are added to `b`.
    Bytes(u32),
    /// The word that `a` points to changes both.
    Chase(u32),
    /// The upper half of a product.
    Multiply(u32),
    /// A remainder, and a quotient by it.
    Divide(u32),
}

impl Step {
    fn random(dice: &mut impl FnMut() -> u32) -> Self {
        let constant = dice() >> 16;
        match dice() >> 8 & 15 {
            0..3 => Self::Load(constant),
            3..5 => Self::Store(constant),
            5..9 => Self::Choose {
                masks: [constant | 1, dice() >> 16 | 3],
                factor: dice() >> 16 | 1,
                shift: (dice() >> 8) % 13 + 1,
            },
            9..11 => Self::Rotate((dice() >> 8) % 31 + 1),
            11 => Self::Bytes(constant),
            12..14 => Self::Chase(constant),
            14 => Self::Multiply(constant),
            _ => Self::Divide(constant),
        }
    }

    /// Adds its instructions. `a` and `b` are in `a0` and `a1`, temporaries in `t0` to `t3`.
    fn emit(self, code: &mut Assembler) {
        // The address of the table's word with the index in a register.
        let word = |d| [slli(d, d, 2), and(d, d, S4), add(d, d, S3)];
        match self {
            Self::Load(c) => {
                code.li(T0, c);
                code.put([add(T0, T0, A1)]);
                code.put(word(T0));
                code.put([lw(T1, 0, T0), add(A0, A0, T1)]);
            }
            Self::Store(c) => {
                code.li(T0, c);
                code.put([xor(T1, A0, T0), add(T2, A1, T0)]);
                code.put(word(T1));
                code.put([sw(T2, 0, T1)]);
            }
            Self::Choose { masks, factor, shift } => {
                let (less, end) = (code.later(), code.later());
                code.li(T0, masks[0]);
                code.li(T1, masks[1]);
                code.put([and(T0, T0, A0), and(T1, T1, A1)]);
                code.branch(Cond::Ltu, T0, T1, less);
                code.put([srli(T0, A0, shift), xor(A1, A1, T0)]);
                code.jal(ZERO, end);
                code.bind(less);
                code.li(T0, factor);
                code.put([mul(A0, A0, T0), add(A0, A0, A1)]);
                code.bind(end);
            }
            Self::Rotate(k) => {
                code.put([slli(T0, A1, k), srli(A1, A1, 32 - k), or(A1, A1, T0)]);
                code.put([sub(A0, A0, A1)]);
            }
            Self::Bytes(c) => {
                code.put([andi(T0, A0, 3), addi(T1, A0, 0)]);
                code.li(T2, c);
                let next = code.here();
                code.put([and(T3, T1, S5), add(T3, T3, S3), lbu(T3, 0, T3), add(A1, A1, T3)]);
                code.put([add(T1, T1, T2), addi(T3, T0, 0), addi(T0, T0, -1)]);
                code.branch(Cond::Ne, T3, ZERO, next);
            }
            Self::Chase(c) => {
                code.put([addi(T0, A0, 0)]);
                code.put(word(T0));
                code.put([lw(T0, 0, T0)]);
                code.li(T1, c);
                code.put([add(T0, T0, T1), xor(A0, A0, T0), srli(T0, A0, 3), add(A1, A1, T0)]);
            }
            Self::Multiply(c) => {
                code.li(T0, c);
                code.put([or(T0, T0, A1), mulhu(T0, T0, A0), xor(A0, A0, T0)]);
            }
            Self::Divide(c) => {
                code.li(T0, c | 1);
                code.put([remu(T0, A0, T0), ori(T0, T0, 1), divu(T0, A0, T0), add(A1, A1, T0)]);
            }
        }
    }

    /// Does the same to the numbers and the table.
    fn apply(self, a: &mut u32, b: &mut u32, table: &mut [u32]) {
        let index = |n: u32| (n % WORDS) as usize;
        match self {
            Self::Load(c) => *a = a.wrapping_add(table[index(b.wrapping_add(c))]),
            Self::Store(c) => table[index(*a ^ c)] = b.wrapping_add(c),
            Self::Choose { masks: [p, q], factor, shift } => {
                if *a & p < *b & q {
                    *a = a.wrapping_mul(factor).wrapping_add(*b);
                } else {
                    *b ^= *a >> shift;
                }
            }
            Self::Rotate(k) => {
                *b = b.rotate_left(k);
                *a = a.wrapping_sub(*b);
            }
            Self::Bytes(c) => {
                for i in 0..=*a & 3 {
                    let at = a.wrapping_add(c.wrapping_mul(i));
                    let byte = table[index(at / 4)].to_le_bytes()[at as usize % 4];
                    *b = b.wrapping_add(byte.into());
                }
            }
            Self::Chase(c) => {
                *a ^= table[index(*a)].wrapping_add(c);
                *b = b.wrapping_add(*a >> 3);
            }
            Self::Multiply(c) => *a ^= ((u64::from(*a) * u64::from(*b | c)) >> 32) as u32,
            Self::Divide(c) => *b = b.wrapping_add(*a / ((*a % (c | 1)) | 1)),
        }
    }
}

/// A step of the generator.
fn next(random: &mut u32) -> u32 {
    *random = random.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
    *random
}

/// Returns the functions, which are the same in every run.
fn functions(count: u32) -> Vec<Vec<Step>> {
    let mut random = 1;
    let mut dice = || next(&mut random);
    let mut function = || (0..10 + (dice() >> 8) % 6).map(|_| Step::random(&mut dice)).collect();
    (0..count).map(|_| function()).collect()
}

/// Returns the program, which lies at the start of RAM.
fn program(shape: &Shape) -> Vec<u8> {
    let mut code = Assembler::new(VIRT.ram_base);
    let begin = code.later();
    code.jal(ZERO, begin);
    let functions = functions(shape.functions).into_iter().map(|steps| {
        let address = code.address();
        steps.into_iter().for_each(|step| step.emit(&mut code));
        code.put([jalr(ZERO, RA)]);
        address
    });
    let addresses: Vec<u32> = functions.collect();
    let pointers = code.address();
    addresses.into_iter().for_each(|address| code.put([address]));

    code.bind(begin);
    code.li(S3, TABLE);
    code.li(S4, 4 * (WORDS - 1));
    code.li(S5, 4 * WORDS - 1);
    code.li(S6, MULTIPLIER);
    code.li(S7, INCREMENT);
    code.li(S11, pointers);
    // s10: what chooses seeds, from the VM's number on. s9: the result. s2: rounds that are left.
    code.li(T0, VIRT.virtio[Virtio::OTHER.slots.of(DeviceKind::Net) as usize].mmio.base);
    code.put([lbu(A2, MAC_NUMBER, T0), lbu(A3, MAC_NUMBER + 1, T0), lbu(S10, MAC_NUMBER + 2, T0)]);
    code.put([slli(A2, A2, 16), slli(A3, A3, 8), or(S10, S10, A2), or(S10, S10, A3)]);
    code.li(S9, 0);
    code.li(S2, shape.rounds);
    let round = code.here();
    code.put([mul(S10, S10, S6), add(S10, S10, S7), srli(T0, S10, 12)]);
    code.put([andi(T0, T0, SEEDS as i32 - 1), addi(T0, T0, 1)]);
    code.li(T1, SPREAD);
    code.put([mul(S8, T0, T1)]);
    emit_round(shape, &mut code);
    code.put([slli(T0, S9, 5), srli(S9, S9, 27), or(S9, S9, T0), xor(S9, S9, A0)]);
    code.put([addi(S2, S2, -1)]);
    code.branch(Cond::Ne, S2, ZERO, round);

    // Four bytes for the console, the low one first.
    code.li(T0, VIRT.uart.base);
    for _ in 0..4 {
        code.put([sb(S9, 0, T0), srli(S9, S9, 8)]);
    }
    code.li(T0, VIRT.finisher.base);
    code.li(T1, POWER_OFF);
    code.put([sw(T1, 0, T0)]);
    code.finish()
}

/// Adds a round: `s8` has the first random number, and `a0` gets the result.
fn emit_round(shape: &Shape, code: &mut Assembler) {
    let random = [mul(S8, S8, S6), add(S8, S8, S7)];
    let sorted = 4 * shape.sorted;
    // The table.
    code.put([addi(A2, S3, 0)]);
    code.li(A3, WORDS);
    let fill = code.here();
    code.put(random);
    code.put([sw(S8, 0, A2), addi(A2, A2, 4), addi(A3, A3, -1)]);
    code.branch(Cond::Ne, A3, ZERO, fill);

    // Shell's sort: a2 is the gap, a4 the word that goes from a3 to a5, all in bytes.
    code.li(T0, TABLE + sorted);
    code.li(T1, 4);
    code.li(A2, sorted / 2);
    let gap = code.here();
    code.put([add(A3, S3, A2)]);
    let insert = code.here();
    let (shift, place) = (code.later(), code.later());
    code.put([lw(A4, 0, A3), addi(A5, A3, 0)]);
    code.bind(shift);
    code.put([sub(A6, A5, A2)]);
    code.branch(Cond::Ltu, A6, S3, place);
    code.put([lw(A7, 0, A6)]);
    code.branch(Cond::Geu, A4, A7, place);
    code.put([sw(A7, 0, A5), addi(A5, A6, 0)]);
    code.jal(ZERO, shift);
    code.bind(place);
    code.put([sw(A4, 0, A5), addi(A3, A3, 4)]);
    code.branch(Cond::Ltu, A3, T0, insert);
    code.put([srli(A2, A2, 1)]);
    code.branch(Cond::Geu, A2, T1, gap);

    // CRC-32 of what was sorted, in s0.
    code.li(A6, POLYNOMIAL);
    code.put([addi(A2, S3, 0), addi(S0, ZERO, -1)]);
    let byte = code.here();
    code.put([lbu(A4, 0, A2), xor(S0, S0, A4), addi(A5, ZERO, 8)]);
    let bit = code.here();
    let zero = code.later();
    code.put([andi(A4, S0, 1), srli(S0, S0, 1)]);
    code.branch(Cond::Eq, A4, ZERO, zero);
    code.put([xor(S0, S0, A6)]);
    code.bind(zero);
    code.put([addi(A5, A5, -1)]);
    code.branch(Cond::Ne, A5, ZERO, bit);
    code.put([addi(A2, A2, 1)]);
    code.branch(Cond::Ne, A2, T0, byte);
    code.put([xori(S0, S0, -1)]);

    // A list of all nodes in an order that two numbers decide; each node points on and has a value.
    code.li(A2, LIST);
    code.put(random);
    code.put([srli(A6, S8, 8), slli(A6, A6, 2), ori(A6, A6, 1)]);
    code.put(random);
    code.put([srli(A7, S8, 8), ori(A7, A7, 1), addi(A3, A2, 0), addi(A4, ZERO, 0)]);
    code.li(T0, NODES);
    let link = code.here();
    code.put(random);
    code.put([mul(A5, A4, A6), add(A5, A5, A7), andi(A5, A5, NODES as i32 - 1)]);
    code.put([slli(A5, A5, 3), add(A5, A5, A2), sw(A5, 0, A3), sw(S8, 4, A3)]);
    code.put([addi(A3, A3, 8), addi(A4, A4, 1)]);
    code.branch(Cond::Ne, A4, T0, link);
    code.li(A4, HOPS);
    let hop = code.here();
    code.put([lw(A6, 4, A2), lw(A2, 0, A2), add(S0, S0, A6), addi(A4, A4, -1)]);
    code.branch(Cond::Ne, A4, ZERO, hop);

    // Products and quotients of the sorted words, from both ends.
    code.put([addi(A2, S3, 0)]);
    code.li(A3, TABLE + sorted - 4);
    code.li(A4, shape.sorted);
    let pair = code.here();
    code.put([lw(A5, 0, A2), lw(A6, 0, A3), mul(T0, A5, A6), mulhu(T1, A5, A6)]);
    code.put([srli(A6, A6, 16), ori(A6, A6, 1), divu(T0, T0, A6), rem(A5, A5, A6)]);
    code.put([add(S0, S0, T0), xor(S0, S0, T1), add(S0, S0, A5)]);
    code.put([addi(A2, A2, 4), addi(A3, A3, -4), addi(A4, A4, -1)]);
    code.branch(Cond::Ne, A4, ZERO, pair);

    // Calls.
    code.put([addi(A0, S0, 0), addi(A1, ZERO, 2)]);
    code.li(S1, shape.calls);
    let call = code.here();
    code.put(random);
    code.put([srli(TP, S8, 8), andi(TP, TP, shape.functions as i32 - 1), slli(T0, TP, 2)]);
    code.put([add(T0, T0, S11), lw(T0, 0, T0), jalr(RA, T0)]);
    code.put([add(A1, A1, TP), addi(S1, S1, -1)]);
    code.branch(Cond::Ne, S1, ZERO, call);
    code.put([xor(A0, A0, A1)]);
}

/// Returns a fleet that computes.
pub fn fleet(code: CodeSize, count: u32) -> Result<Fleet, Error> {
    let (addr, bytes) = (VIRT.ram_base, program(&Shape::of(code)));
    let size = bytes.len() as u32;
    let payload = Payload::linked(vec![Segment { addr, bytes, size }], addr);
    Ok(Fleet::bare(count, MachineKind::Virt, MEMORY, payload)?)
}

/// The results of a variant's rounds, by seed.
pub struct Results {
    rounds: u32,
    results: Vec<u32>,
}

impl Results {
    /// Computes them on all of the host's cores.
    pub fn new(code: CodeSize) -> Self {
        let shape = Shape::of(code);
        let functions = functions(shape.functions);
        let mut results = vec![0; SEEDS as usize];
        let share = results.len().div_ceil(host::cores());
        thread::scope(|scope| {
            for (first, results) in (0..).step_by(share).zip(results.chunks_mut(share)) {
                let (shape, functions) = (&shape, &functions);
                scope.spawn(move || {
                    for (seed, result) in (first..).zip(results) {
                        *result = self::round(seed, shape, functions);
                    }
                });
            }
        });
        Self { rounds: shape.rounds, results }
    }

    /// Returns what VM `vm` must print.
    pub fn of(&self, vm: u32) -> [u8; 4] {
        let (mut random, mut sum) = (vm, 0u32);
        for _ in 0..self.rounds {
            let seed = next(&mut random) >> 12 & (SEEDS - 1);
            sum = sum.rotate_left(5) ^ self.results[seed as usize];
        }
        sum.to_le_bytes()
    }
}

/// Returns the result of the round with this seed.
fn round(seed: u32, shape: &Shape, functions: &[Vec<Step>]) -> u32 {
    let mut random = (seed + 1).wrapping_mul(SPREAD);
    let mut table: Vec<u32> = (0..WORDS).map(|_| next(&mut random)).collect();
    let sorted = &mut table[..shape.sorted as usize];
    sorted.sort_unstable();
    let mut crc = Crc::new();
    sorted.iter().for_each(|word| crc.update(&word.to_le_bytes()));
    let mut sum = crc.sum();

    let factor = next(&mut random) >> 8 << 2 | 1;
    let offset = next(&mut random) >> 8 | 1;
    let values: Vec<u32> = (0..NODES).map(|_| next(&mut random)).collect();
    let mut node = 0u32;
    for _ in 0..HOPS {
        sum = sum.wrapping_add(values[node as usize]);
        node = node.wrapping_mul(factor).wrapping_add(offset) % NODES;
    }

    for (&low, &high) in sorted.iter().zip(sorted.iter().rev()) {
        let (product, divisor) = (u64::from(low) * u64::from(high), high >> 16 | 1);
        sum = sum.wrapping_add(product as u32 / divisor) ^ (product >> 32) as u32;
        sum = sum.wrapping_add((low as i32 % divisor as i32) as u32);
    }

    let (mut a, mut b) = (sum, 2);
    for _ in 0..shape.calls {
        let index = next(&mut random) >> 8 & (shape.functions - 1);
        functions[index as usize].iter().for_each(|step| step.apply(&mut a, &mut b, &mut table));
        b = b.wrapping_add(index);
    }
    a ^ b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_ends_before_its_data() {
        let small = program(&Shape::of(CodeSize::Small)).len();
        let large = program(&Shape::of(CodeSize::Large)).len();
        assert!(small < 8 << 10, "{small}");
        assert!((300 << 10..1 << 20).contains(&large), "{large}");
        assert!(LIST + 8 * NODES <= VIRT.ram_base + MEMORY.0 as u32);
    }

    #[test]
    fn no_two_neighbours_come_to_the_same() {
        let all = Results::new(CodeSize::Small);
        let mut results: Vec<[u8; 4]> = (0..10_000).map(|vm| all.of(vm)).collect();
        results.sort();
        results.dedup();
        // Some are equal by chance.
        assert!(results.len() > 9_990, "{}", results.len());
    }
}

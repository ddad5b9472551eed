//! The guest program of the calibration.
//!
//! It does what programs do: calls through pointers, branches, short loops, loads and stores of all
//! sizes, some multiplications and divisions. Pseudo-random numbers decide which routine is called
//! and where it branches. VMs that begin with the same number run alike, as booting guests do; VMs
//! that begin with different ones soon execute different instructions, as busy guests do.
//!
//! It never ends, and what it computes is of no use.

use emu_core::dev::virtio::DeviceKind;
use emu_core::insn::Op;
use emu_core::layout::{MachineKind, VIRT};
use emu_core::mem::FRAME_SIZE;

use crate::image::{Payload, Segment};
use crate::machine::{Fleet, PlanError};
use crate::units::Size;
use crate::virtio::Virtio;

/// How the VMs of a fleet run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Runs {
    /// All execute the same instructions.
    Alike,
    /// Each goes its own way.
    Apart,
}

/// Size of a VM's RAM: the code, then the table.
pub const MEMORY: Size = Size(16 * FRAME_SIZE as u64);
/// Address of the routines; the main loop is in the page before.
const ROUTINES: u32 = VIRT.ram_base + FRAME_SIZE;
/// Address of the table, 16 KiB that each VM reads and writes.
const TABLE: u32 = ROUTINES + FRAME_SIZE;
/// Number of routines, which fill a page.
const COUNT: u32 = 64;
/// Words of a routine.
const WORDS: u32 = FRAME_SIZE / 4 / COUNT;

const ZERO: u32 = 0;
const RA: u32 = 1;
const T0: u32 = 5;
const T1: u32 = 6;
const T2: u32 = 7;
/// The random number.
const S0: u32 = 8;
/// The sum.
const S1: u32 = 9;
/// Address of the table.
const S3: u32 = 19;
/// Address of the routines.
const S4: u32 = 20;
const T3: u32 = 28;

/// Returns a fleet whose VMs run for ever.
pub fn fleet(count: u32, runs: Runs) -> Result<Fleet, PlanError> {
    let words = program(runs);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (addr, size) = (VIRT.ram_base, bytes.len() as u32);
    let payload = Payload::linked(vec![Segment { addr, bytes, size }], addr);
    Fleet::bare(count, MachineKind::Virt, MEMORY, payload)
}

/// Low half of the MAC address, which has the VM's number in its last bytes, in the configuration
/// space of the network card.
const MAC_NUMBER: u32 = 0x104;

fn program(runs: Runs) -> Vec<u32> {
    let mac = VIRT.virtio[Virtio::OTHER.slots.of(DeviceKind::Net) as usize].mmio.base;
    let different = match runs {
        Runs::Alike => 0,
        Runs::Apart => 0xff,
    };
    let mut code = vec![
        upper(Op::Lui, S3, TABLE),
        upper(Op::Lui, S4, ROUTINES),
        upper(Op::Lui, T0, mac),
        // The number of the VM, spread over a word.
        imm(Op::Lbu, S0, T0, MAC_NUMBER),
        imm(Op::Lbu, T1, T0, MAC_NUMBER + 1),
        imm(Op::Slli, S0, S0, 8),
        reg(Op::Or, S0, S0, T1),
        upper(Op::Lui, T1, 0x9e37_7000),
        reg(Op::Mul, S0, S0, T1),
        imm(Op::Srli, T1, S0, 16),
        reg(Op::Xor, S0, S0, T1),
        imm(Op::Slli, T1, S0, 16),
        reg(Op::Xor, S0, S0, T1),
        // Nothing of it where VMs run alike.
        imm(Op::Addi, T1, ZERO, different),
        branch(Op::Bne, T1, ZERO, 2),
        imm(Op::Addi, S0, ZERO, 0),
        imm(Op::Ori, S0, S0, 1),
        imm(Op::Addi, S1, ZERO, 0),
    ];
    let start = code.len();
    code.extend([
        // A step of xorshift32.
        imm(Op::Slli, T0, S0, 13),
        reg(Op::Xor, S0, S0, T0),
        imm(Op::Srli, T0, S0, 17),
        reg(Op::Xor, S0, S0, T0),
        imm(Op::Slli, T0, S0, 5),
        reg(Op::Xor, S0, S0, T0),
        // A call of a routine.
        imm(Op::Srli, T0, S0, 8),
        imm(Op::Andi, T0, T0, COUNT - 1),
        imm(Op::Slli, T0, T0, (4 * WORDS).ilog2()),
        reg(Op::Add, T0, T0, S4),
        imm(Op::Jalr, RA, T0, 0),
    ]);
    code.push(branch(Op::Beq, ZERO, ZERO, start as i32 - code.len() as i32));
    code.resize(FRAME_SIZE as usize / 4, NOP);
    for number in 0..COUNT {
        let mut routine = routine(number);
        routine.push(imm(Op::Jalr, ZERO, RA, 0));
        assert!(routine.len() <= WORDS as usize, "routine {number} is too long");
        routine.resize(WORDS as usize, NOP);
        code.extend(routine);
    }
    code
}

/// Returns a routine without its return.
fn routine(number: u32) -> Vec<u32> {
    let shift = number % 16 + 1;
    // The address of a random word of the table.
    let word = [imm(Op::Srli, T1, S0, 20), imm(Op::Slli, T1, T1, 2), reg(Op::Add, T1, T1, S3)];
    match number % 8 {
        0 => [
            &word[..],
            &[
                imm(Op::Lw, T2, T1, 0),
                reg(Op::Add, S1, S1, T2),
                reg(Op::Xor, S1, S1, S0),
                store(Op::Sw, S1, T1, 0),
            ],
        ]
        .concat(),
        1 => vec![
            imm(Op::Andi, T1, S0, 0x7ff),
            reg(Op::Add, T1, T1, S3),
            imm(Op::Lbu, T2, T1, shift),
            imm(Op::Addi, T2, T2, shift),
            store(Op::Sb, T2, T1, shift),
            reg(Op::Add, S1, S1, T2),
        ],
        // A loop of 1 to 8 turns.
        2 => vec![
            imm(Op::Srli, T1, S0, shift),
            imm(Op::Andi, T1, T1, 7),
            imm(Op::Srli, T2, S1, 3),
            reg(Op::Xor, S1, S1, T2),
            imm(Op::Addi, S1, S1, shift),
            imm(Op::Addi, T1, T1, 0xfff),
            branch(Op::Bge, T1, ZERO, -4),
        ],
        3 => vec![
            reg(Op::Mul, T1, S0, S1),
            reg(Op::Mulhu, T2, S0, S1),
            reg(Op::Xor, S1, T1, T2),
            imm(Op::Addi, S1, S1, shift),
        ],
        // Three ways, each taken by some.
        4 => vec![
            imm(Op::Srli, T1, S0, shift),
            imm(Op::Andi, T1, T1, 3),
            branch(Op::Beq, T1, ZERO, 5),
            imm(Op::Addi, T1, T1, 0xfff),
            branch(Op::Beq, T1, ZERO, 4),
            reg(Op::Sub, S1, S1, S0),
            imm(Op::Jalr, ZERO, RA, 0),
            reg(Op::Add, S1, S1, S0),
            reg(Op::Slt, T2, S1, S0),
            reg(Op::Add, S1, S1, T2),
        ],
        // A copy of two words.
        5 => [
            &word[..],
            &[
                imm(Op::Andi, T1, T1, 0xff0),
                imm(Op::Lw, T2, T1, 0),
                imm(Op::Lw, T3, T1, 4),
                store(Op::Sw, T3, T1, 8),
                store(Op::Sw, T2, T1, 12),
            ],
        ]
        .concat(),
        6 => [
            &word[..],
            &[
                imm(Op::Lhu, T2, T1, 0),
                reg(Op::Sltu, T3, T2, S1),
                reg(Op::Add, S1, S1, T3),
                store(Op::Sh, S1, T1, 2),
            ],
        ]
        .concat(),
        _ if number == COUNT - 1 => {
            vec![imm(Op::Ori, T1, S0, 1), reg(Op::Divu, T2, S1, T1), reg(Op::Add, S1, S1, T2)]
        }
        _ => vec![
            imm(Op::Slli, T1, S1, shift),
            imm(Op::Srli, T2, S1, 32 - shift),
            reg(Op::Or, S1, T1, T2),
            reg(Op::Sub, S1, S1, S0),
            imm(Op::Xori, S1, S1, shift),
        ],
    }
}

/// `addi zero,zero,0`
const NOP: u32 = 0x13;

/// Returns the fixed bits of an instruction.
fn fixed(op: Op) -> u32 {
    op.row().map_or(0, |row| row.matches)
}

/// Encodes an instruction of three registers.
fn reg(op: Op, d: u32, a: u32, b: u32) -> u32 {
    fixed(op) | d << 7 | a << 15 | b << 20
}

/// Encodes an instruction with an immediate of 12 bits, or a shift by one.
fn imm(op: Op, d: u32, a: u32, value: u32) -> u32 {
    fixed(op) | d << 7 | a << 15 | value << 20
}

fn upper(op: Op, d: u32, value: u32) -> u32 {
    fixed(op) | d << 7 | value & !0xfff
}

fn store(op: Op, value: u32, a: u32, at: u32) -> u32 {
    fixed(op) | a << 15 | value << 20 | (at >> 5) << 25 | (at & 0x1f) << 7
}

/// Encodes a branch over so many words, itself included.
fn branch(op: Op, a: u32, b: u32, words: i32) -> u32 {
    let offset = (4 * words) as u32;
    let place = (offset >> 12 & 1) << 31
        | (offset >> 5 & 0x3f) << 25
        | (offset >> 1 & 0xf) << 8
        | (offset >> 11 & 1) << 7;
    fixed(op) | a << 15 | b << 20 | place
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use emu_core::abi::ExitCode;
    use emu_core::insn::Insn;
    use emu_core::trace::NoTrace;

    use super::*;
    use crate::backend::cpu::{CpuPort, Guest, HostArena, WorkerContext};
    use crate::backend::images::Images;

    /// Runs each VM of a small fleet for so many instructions. Returns their program counters and
    /// their sums.
    fn after(instructions: u32, runs: Runs) -> Vec<(u32, u32)> {
        let fleet = fleet(6, runs).unwrap();
        let mut context = WorkerContext::new().unwrap();
        let frames = fleet.private_frames() as u32;
        let arena = Arc::new(HostArena::new(&fleet.base, Images::default(), frames).unwrap());
        let vms = (0..fleet.count).map(|vm| {
            let staged = fleet.stage(vm, 0);
            let mut guest = Guest::new(&arena, &fleet.base, staged, &context).unwrap();
            let mut session = guest.session(&mut context);
            for _ in 0..instructions / 1024 {
                let exit = session.slice(&mut CpuPort::default(), 1024, &mut NoTrace);
                assert_eq!(exit.code, ExitCode::Budget, "it never ends");
            }
            let vm = session.vm();
            assert_eq!(vm.platform.clock.retired, u64::from(instructions));
            (vm.hart.pc, vm.hart.x[S1 as usize])
        });
        vms.collect()
    }

    #[test]
    fn vms_run_alike_or_apart_for_ever() {
        let distinct = |runs| after(1 << 20, runs).into_iter().collect::<BTreeSet<_>>().len();
        assert_eq!((distinct(Runs::Alike), distinct(Runs::Apart)), (1, 6));
    }

    #[test]
    fn every_word_is_an_instruction_that_the_machine_has() {
        for word in program(Runs::Apart) {
            let text = Insn(word).to_string();
            assert!(emu_core::insn::decode(word).row().is_some(), "{word:08x} {text}");
        }
        let routine: Vec<String> = routine(2).into_iter().map(|w| Insn(w).to_string()).collect();
        assert_eq!(
            routine.join("; "),
            "srli t1,s0,3; andi t1,t1,7; srli t2,s1,3; xor s1,s1,t2; addi s1,s1,3; \
             addi t1,t1,-1; bge t1,zero,.-16"
        );
    }
}

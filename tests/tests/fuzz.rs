//! Fuzz targets with fixed seeds, and a canary that must be found.
//!
//! `PXVM_SEED` runs one seed.
#![expect(clippy::tests_outside_test_module, reason = "the whole crate is a test")]

use emu_core::dev::virtio::driver::{Prng, for_seeds};
use emu_core::insn::{Decoded, Format, Insn, Op, ROWS, decode};
use pxvm_tests::fuzz;
use raki::{Decode, Isa};

/// Runs a target on random bytes from each seed; the seed is named when it fails.
fn smoke(first: u64, count: u64, bytes: u32, target: fn(&[u8])) {
    let given = std::env::var("PXVM_SEED").ok().and_then(|v| v.parse().ok());
    let (first, count) = given.map_or((first, count), |seed| (seed, 1));
    for_seeds(first, count, |rng| target(&random_bytes(rng, bytes)));
}

fn random_bytes(rng: &mut Prng, n: u32) -> Vec<u8> {
    (0..n).map(|_| rng.next_u32() as u8).collect()
}

#[test]
fn mmu_agrees_with_the_specification_step_by_step() {
    smoke(1, 400, 4000, fuzz::mmu);
}

#[test]
fn machine_survives_random_code() {
    smoke(1, 300, 4000, fuzz::machine);
}

#[test]
fn instruction_loops_agree_on_careless_programs() {
    smoke(1, 150, 1000, fuzz::loops);
}

#[test]
fn both_versions_of_virtio_do_the_same_and_survive_all_registers() {
    smoke(1, 300, 3000, fuzz::virtio);
}

#[test]
fn mmu_canary_is_found() {
    let found = (1..20).any(|seed| {
        let bytes = random_bytes(&mut Prng::new(seed), 4000);
        std::panic::catch_unwind(|| fuzz::mmu_canary(&bytes)).is_err()
    });
    assert!(found, "the oracle did not notice");
}

/// Words near real instructions, and any words.
fn words(count: u32) -> impl Iterator<Item = u32> {
    let mut rng = Prng::new(1);
    (0..count).map(move |i| {
        let row = ROWS[i as usize % ROWS.len()];
        let word = rng.next_u32();
        match rng.below(4) {
            0 => word,
            // One fixed bit is wrong.
            1 => (word & !row.mask | row.matches) ^ 1 << rng.below(32),
            _ => word & !row.mask | row.matches,
        }
    })
}

/// Mnemonic and operands as another decoder sees them. It accepts more words than there are
/// instructions, so only what ours accepts is compared.
#[test]
fn decoder_agrees_with_another_one() {
    for word in words(400_000) {
        let op = decode(word);
        let Some(row) = op.row() else { continue };
        // It does not know reserved fields of fences and operands of sfence.vma, and names counter
        // reads.
        if matches!(op, Op::Fence | Op::FenceI | Op::SfenceVma) || row.format == Format::Csr {
            continue;
        }
        let insn = Insn(word);
        let other = word.decode(Isa::Rv32).unwrap_or_else(|e| panic!("{word:#010x} {insn}: {e:?}"));
        // Its name of one instruction ends in a comma.
        let name = other.opc.to_string();
        assert_eq!(name.trim_end_matches(','), row.name, "{word:#010x}");
        let or_zero = |r: Option<usize>| r.unwrap_or(0);
        let ours = match row.format {
            Format::R => (insn.rd(), insn.rs1(), insn.rs2(), None),
            Format::Amo => (insn.rd(), insn.rs1(), insn.rs2(), None),
            Format::Lr => (insn.rd(), insn.rs1(), 0, None),
            Format::I | Format::Load => (insn.rd(), insn.rs1(), 0, Some(insn.imm_i())),
            Format::Shift => (insn.rd(), insn.rs1(), 0, Some(insn.shamt())),
            Format::S => (0, insn.rs1(), insn.rs2(), Some(insn.imm_s())),
            Format::B => (0, insn.rs1(), insn.rs2(), Some(insn.imm_b())),
            Format::U => (insn.rd(), 0, 0, Some(insn.imm_u() >> 12)),
            Format::J => (insn.rd(), 0, 0, Some(insn.imm_j())),
            Format::Csr | Format::CsrImm | Format::Sfence | Format::None => continue,
        };
        let theirs = (or_zero(other.rd), or_zero(other.rs1), or_zero(other.rs2));
        assert_eq!((ours.0, ours.1, ours.2), theirs, "{word:#010x} {insn}");
        if let (Some(ours), Some(theirs)) = (ours.3, other.imm) {
            assert_eq!(ours as i32, theirs, "{word:#010x} {insn}");
        }
    }
}

/// What the loop works on says the same as the instruction word.
#[test]
fn decoded_form_keeps_every_field() {
    for word in words(400_000) {
        let (op, insn, decoded) = (decode(word), Insn(word), Decoded::new(word));
        // Zero stands for "not decoded yet".
        assert_ne!(decoded.0, 0, "{word:#010x}");
        match decoded.op() {
            Op::Illegal => assert_eq!((op, decoded.insn().0), (Op::Illegal, word)),
            Op::Nop => assert_eq!(insn.rd(), 0, "{word:#010x}"),
            Op::J => assert_eq!((op, decoded.imm() << 2), (Op::Jal, insn.imm_j())),
            Op::Jr => assert_eq!((op, decoded.imm()), (Op::Jalr, insn.imm_i())),
            Op::MisalignedJump | Op::DiscardedLoad => assert_eq!(decoded.insn().0, word),
            other => {
                assert_eq!(other, op, "{word:#010x}");
                // A register that an instruction does not have is none that matters.
                let (rd, rs2) = match op.row().map(|row| row.format) {
                    _ if matches!(op, Op::Fence | Op::FenceI) => (0, insn.rs2()),
                    Some(Format::S | Format::B) => (0, insn.rs2()),
                    Some(Format::I | Format::Shift) => (insn.rd(), 0),
                    _ => (insn.rd(), insn.rs2()),
                };
                let registers = (decoded.rd(), decoded.rs1(), decoded.rs2());
                assert_eq!(registers, (rd, insn.rs1(), rs2), "{word:#010x}");
            }
        }
    }
}

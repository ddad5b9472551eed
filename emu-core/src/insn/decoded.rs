//! The decoded form of an instruction, which the instruction loop executes.

use super::{Class, Format, INSN_SIZE, Insn, Op, decode};

/// A decoded instruction, packed into 64 bits: operation, registers, and the immediate (or the
/// whole instruction word, for operations that use other fields).
///
/// Instructions that would write `x0` are decoded to special operations ([`Op::Nop`], [`Op::J`] and
/// so on), so that the instruction loop can write `rd` without checking for it. Zero means "not
/// decoded yet".
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Decoded(pub u64);

#[allow(missing_docs)]
impl Decoded {
    /// Decodes an instruction word.
    #[cold]
    #[inline(never)]
    pub fn new(word: u32) -> Self {
        let insn = Insn(word);
        let op = decode(word);
        let row = op.row();
        let imm = match row.map_or(Format::None, |row| row.format) {
            Format::I | Format::Load => insn.imm_i(),
            Format::Shift => insn.shamt(),
            Format::S => insn.imm_s(),
            Format::B => insn.imm_b(),
            Format::U => insn.imm_u(),
            Format::J => insn.imm_j(),
            Format::R
            | Format::Csr
            | Format::CsrImm
            | Format::Amo
            | Format::Lr
            | Format::Sfence
            | Format::None => word,
        };
        let discards = insn.rd() == 0;
        let misaligned = imm % INSN_SIZE != 0;
        let distance = (imm as i32 / INSN_SIZE as i32) as u32;
        let (op, imm) = match row.map(|row| row.class) {
            Some(Class::Upper | Class::Alu | Class::AluImm) if discards => (Op::Nop, imm),
            Some(Class::Load) if discards => (Op::DiscardedLoad, word),
            Some(Class::JumpRegister) if discards => (Op::Jr, imm),
            Some(Class::Jump | Class::Branch) if misaligned => (Op::MisalignedJump, word),
            Some(Class::Jump) if discards => (Op::J, distance),
            Some(Class::Jump | Class::Branch) => (op, distance),
            Some(
                Class::Upper
                | Class::Alu
                | Class::AluImm
                | Class::JumpRegister
                | Class::Load
                | Class::Store
                | Class::Fence
                | Class::Csr
                | Class::System
                | Class::LoadReserved
                | Class::StoreConditional
                | Class::Amo,
            )
            | None => (op, imm),
        };
        Self::pack(op, insn, imm)
    }

    fn pack(op: Op, insn: Insn, imm: u32) -> Self {
        let fields = insn.rs1() << 8 | insn.rd() << 16 | insn.rs2() << 24 | 1 << 29;
        Self(u64::from(imm) << 32 | fields as u64 | u64::from(op.slot()))
    }

    /// Returns the operation that the instruction loop dispatches on: [`Op::OTHER`] for all that
    /// have no slot of their own.
    #[inline(always)]
    pub(crate) const fn slot(self) -> Op {
        Op::in_slot(self.0 as u32)
    }
    /// Returns the operation.
    pub fn op(self) -> Op {
        match self.slot() {
            Op::OTHER => decode(self.insn().0),
            op => op,
        }
    }
    #[inline(always)]
    pub const fn rd(self) -> usize {
        (self.0 >> 16) as usize & 31
    }
    #[inline(always)]
    pub const fn rs1(self) -> usize {
        (self.0 >> 8) as usize & 31
    }
    #[inline(always)]
    pub const fn rs2(self) -> usize {
        (self.0 >> 24) as usize & 31
    }
    /// Always 1: the distance to the next instruction. It comes out of this word so that a prefetch
    /// of the next instruction depends on this one having been loaded. Were the two loads
    /// independent, a GPU would wait for both before it executes this instruction.
    #[inline(always)]
    pub const fn one(self) -> u32 {
        self.0 as u32 >> 29
    }
    /// Returns the immediate. For branches and JAL it is in instructions, not bytes.
    #[inline(always)]
    pub const fn imm(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// Returns the instruction word. Only operations without an immediate have it.
    #[inline(always)]
    pub const fn insn(self) -> Insn {
        Insn(self.imm())
    }
}

//! The decoded form of an instruction, which the instruction loop executes.

use super::compute::{AluOp, Condition, UpperOp};
use super::table::match_op;
use super::{Class, Extend, Format, INSN_SIZE, Insn, Op, decode};

/// What executes an instruction in the uniform loop ([`crate::uniform`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Unit {
    /// Not a part of the straight path. Also what is not decoded yet.
    Rare,
    /// [`AluOp`]: of `rs1` and of the sum of `rs2` and the immediate, one of which is zero.
    Alu,
    /// [`UpperOp`].
    Upper,
    /// JAL.
    Jump,
    /// JALR.
    JumpRegister,
    /// A branch on a [`Condition`].
    Branch,
    /// A load; [`Decoded::size_shift`] and [`Decoded::is_unsigned`] say which.
    Load,
    /// A store of a size.
    Store,
}

impl Unit {
    /// Returns what executes an operation, and what it selects there.
    fn of(op: Op) -> (Self, u32) {
        macro_rules! unit {
            (Upper($op:ident)) => {
                (Self::Upper, UpperOp::$op as u32)
            };
            (Alu($op:ident)) => {
                Self::alu(AluOp::$op)
            };
            (AluImm($op:ident)) => {
                Self::alu(AluOp::$op)
            };
            (Jump()) => {
                (Self::Jump, 0)
            };
            (JumpRegister()) => {
                (Self::JumpRegister, 0)
            };
            (Branch($condition:ident)) => {
                (Self::Branch, Condition::$condition as u32)
            };
            (Load($size:literal, $extend:ident)) => {
                (Self::Load, u32::ilog2($size) | (Extend::$extend as u32) << 2)
            };
            (Store($size:literal)) => {
                (Self::Store, u32::ilog2($size))
            };
            (Fence()) => {
                (Self::Alu, 0)
            };
            ($class:ident $meaning:tt) => {{
                const _: () = assert!(!Class::$class.in_loop());
                (Self::Rare, 0)
            }};
        }
        match_op!(op, unit, {
            Op::Nop => (Self::Alu, 0),
            Op::J => (Self::Jump, 0),
            Op::Jr => (Self::JumpRegister, 0),
            Op::Undecoded | Op::DiscardedLoad | Op::MisalignedJump | Op::Illegal => (Self::Rare, 0),
        })
    }

    fn alu(op: AluOp) -> (Self, u32) {
        if (op as u32) < AluOp::PICKED { (Self::Alu, op as u32) } else { (Self::Rare, 0) }
    }
}

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
            // The ALU adds it to `rs2`.
            Format::R => 0,
            Format::Csr
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
        let (unit, select) = match op.as_other() {
            Some(number) => (Unit::Rare, number),
            None => Unit::of(op),
        };
        // Registers that an instruction does not have are `x0`, as far as the uniform loop reads or
        // writes them. Their bits in the instruction are others'.
        let format = op.row().map_or(Format::None, |row| row.format);
        let rd = match (op, format) {
            (Op::Nop | Op::Fence | Op::FenceI | Op::MisalignedJump, _)
            | (_, Format::S | Format::B) => 0,
            _ => insn.rd(),
        };
        let rs2 = match format {
            Format::I | Format::Shift => 0,
            _ => insn.rs2(),
        };
        let registers = insn.rs1() << 8 | rd << 16 | rs2 << 24;
        let unit = (unit as u32) << 13 | (select & 7) << 21 | (select & 8) << 4;
        Self(u64::from(imm) << 32 | registers as u64 | u64::from(op.slot() | unit | 1 << 29))
    }

    /// Returns what executes the instruction in the uniform loop.
    #[inline(always)]
    pub(crate) const fn is_for(self, unit: Unit) -> bool {
        self.0 as u32 >> 13 & 7 == unit as u32
    }
    /// Returns the number of the result, or the condition, that the instruction selects.
    #[inline(always)]
    pub(crate) const fn select(self) -> u32 {
        self.0 as u32 >> 21 & 7 | self.0 as u32 >> 4 & 8
    }
    /// Returns log2 of the bytes that a load or store accesses.
    #[inline(always)]
    pub(crate) const fn size_shift(self) -> u32 {
        self.select() & 3
    }
    /// Returns whether a load fills the bits above those it loads with zeros.
    #[inline(always)]
    pub(crate) const fn is_unsigned(self) -> bool {
        self.select() & 4 != 0
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
            // The loop tells these apart by the instruction word.
            Op::OTHER => Op::other(self.select()),
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

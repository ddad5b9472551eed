//! The instruction table, and what is generated from it: decoder, disassembler, test names.
//!
//! The table covers RV32IMA, Zicsr, Zifencei and the privileged instructions. A row gives the
//! mnemonic, match and mask (the unprivileged specification, chapter "RV32/64G Instruction Set
//! Listings") and the operand format. What an instruction does is defined where the hart executes
//! it, in two `match`es over [`Op`]: in `hart.rs` for those of the instruction loop, in
//! `slow_path.rs` for all others.

use core::fmt;

/// Calls a macro with all rows: `(mnemonic, Op variant, match, mask, Format)`.
#[macro_export]
macro_rules! for_each_insn {
    ($m:ident) => {
        $m! {
            ("lui", Lui, 0x0000_0037, 0x0000_007f, U),
            ("auipc", Auipc, 0x0000_0017, 0x0000_007f, U),
            ("jal", Jal, 0x0000_006f, 0x0000_007f, J),
            ("jalr", Jalr, 0x0000_0067, 0x0000_707f, Load),
            ("beq", Beq, 0x0000_0063, 0x0000_707f, B),
            ("bne", Bne, 0x0000_1063, 0x0000_707f, B),
            ("blt", Blt, 0x0000_4063, 0x0000_707f, B),
            ("bge", Bge, 0x0000_5063, 0x0000_707f, B),
            ("bltu", Bltu, 0x0000_6063, 0x0000_707f, B),
            ("bgeu", Bgeu, 0x0000_7063, 0x0000_707f, B),
            ("lb", Lb, 0x0000_0003, 0x0000_707f, Load),
            ("lh", Lh, 0x0000_1003, 0x0000_707f, Load),
            ("lw", Lw, 0x0000_2003, 0x0000_707f, Load),
            ("lbu", Lbu, 0x0000_4003, 0x0000_707f, Load),
            ("lhu", Lhu, 0x0000_5003, 0x0000_707f, Load),
            ("sb", Sb, 0x0000_0023, 0x0000_707f, S),
            ("sh", Sh, 0x0000_1023, 0x0000_707f, S),
            ("sw", Sw, 0x0000_2023, 0x0000_707f, S),
            ("addi", Addi, 0x0000_0013, 0x0000_707f, I),
            ("slti", Slti, 0x0000_2013, 0x0000_707f, I),
            ("sltiu", Sltiu, 0x0000_3013, 0x0000_707f, I),
            ("xori", Xori, 0x0000_4013, 0x0000_707f, I),
            ("ori", Ori, 0x0000_6013, 0x0000_707f, I),
            ("andi", Andi, 0x0000_7013, 0x0000_707f, I),
            ("slli", Slli, 0x0000_1013, 0xfe00_707f, Shift),
            ("srli", Srli, 0x0000_5013, 0xfe00_707f, Shift),
            ("srai", Srai, 0x4000_5013, 0xfe00_707f, Shift),
            ("add", Add, 0x0000_0033, 0xfe00_707f, R),
            ("sub", Sub, 0x4000_0033, 0xfe00_707f, R),
            ("sll", Sll, 0x0000_1033, 0xfe00_707f, R),
            ("slt", Slt, 0x0000_2033, 0xfe00_707f, R),
            ("sltu", Sltu, 0x0000_3033, 0xfe00_707f, R),
            ("xor", Xor, 0x0000_4033, 0xfe00_707f, R),
            ("srl", Srl, 0x0000_5033, 0xfe00_707f, R),
            ("sra", Sra, 0x4000_5033, 0xfe00_707f, R),
            ("or", Or, 0x0000_6033, 0xfe00_707f, R),
            ("and", And, 0x0000_7033, 0xfe00_707f, R),
            ("fence", Fence, 0x0000_000f, 0x0000_707f, None),
            ("fence.i", FenceI, 0x0000_100f, 0x0000_707f, None),
            ("ecall", Ecall, 0x0000_0073, 0xffff_ffff, None),
            ("ebreak", Ebreak, 0x0010_0073, 0xffff_ffff, None),
            ("csrrw", Csrrw, 0x0000_1073, 0x0000_707f, Csr),
            ("csrrs", Csrrs, 0x0000_2073, 0x0000_707f, Csr),
            ("csrrc", Csrrc, 0x0000_3073, 0x0000_707f, Csr),
            ("csrrwi", Csrrwi, 0x0000_5073, 0x0000_707f, CsrImm),
            ("csrrsi", Csrrsi, 0x0000_6073, 0x0000_707f, CsrImm),
            ("csrrci", Csrrci, 0x0000_7073, 0x0000_707f, CsrImm),
            ("mul", Mul, 0x0200_0033, 0xfe00_707f, R),
            ("mulh", Mulh, 0x0200_1033, 0xfe00_707f, R),
            ("mulhsu", Mulhsu, 0x0200_2033, 0xfe00_707f, R),
            ("mulhu", Mulhu, 0x0200_3033, 0xfe00_707f, R),
            ("div", Div, 0x0200_4033, 0xfe00_707f, R),
            ("divu", Divu, 0x0200_5033, 0xfe00_707f, R),
            ("rem", Rem, 0x0200_6033, 0xfe00_707f, R),
            ("remu", Remu, 0x0200_7033, 0xfe00_707f, R),
            ("lr.w", LrW, 0x1000_202f, 0xf9f0_707f, Lr),
            ("sc.w", ScW, 0x1800_202f, 0xf800_707f, Amo),
            ("amoswap.w", AmoswapW, 0x0800_202f, 0xf800_707f, Amo),
            ("amoadd.w", AmoaddW, 0x0000_202f, 0xf800_707f, Amo),
            ("amoxor.w", AmoxorW, 0x2000_202f, 0xf800_707f, Amo),
            ("amoand.w", AmoandW, 0x6000_202f, 0xf800_707f, Amo),
            ("amoor.w", AmoorW, 0x4000_202f, 0xf800_707f, Amo),
            ("amomin.w", AmominW, 0x8000_202f, 0xf800_707f, Amo),
            ("amomax.w", AmomaxW, 0xa000_202f, 0xf800_707f, Amo),
            ("amominu.w", AmominuW, 0xc000_202f, 0xf800_707f, Amo),
            ("amomaxu.w", AmomaxuW, 0xe000_202f, 0xf800_707f, Amo),
            ("sret", Sret, 0x1020_0073, 0xffff_ffff, None),
            ("mret", Mret, 0x3020_0073, 0xffff_ffff, None),
            ("wfi", Wfi, 0x1050_0073, 0xffff_ffff, None),
            ("sfence.vma", SfenceVma, 0x1200_0073, 0xfe00_7fff, Sfence),
        }
    };
}

/// How an instruction's operands are encoded and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `rd, rs1, rs2`
    R,
    /// `rd, rs1, imm`
    I,
    /// `rd, imm(rs1)`
    Load,
    /// `rs2, imm(rs1)`
    S,
    /// `rs1, rs2, offset`
    B,
    /// `rd, imm`
    U,
    /// `rd, offset`
    J,
    /// `rd, rs1, shamt`
    Shift,
    /// `rd, csr, rs1`
    Csr,
    /// `rd, csr, uimm`
    CsrImm,
    /// `rd, rs2, (rs1)`
    Amo,
    /// `rd, (rs1)`
    Lr,
    /// `rs1, rs2`
    Sfence,
    /// No operands.
    None,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The mnemonic.
    pub name: &'static str,
    /// Value of the fixed bits.
    pub matches: u32,
    /// The fixed bits.
    pub mask: u32,
    /// Operands.
    pub format: Format,
}

macro_rules! define_ops {
    ($(($name:literal, $op:ident, $match:literal, $mask:literal, $format:ident),)*) => {
        /// An operation: one of the table, or one of the few special cases that [`Decoded`] makes
        /// of them.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Op {
            /// The instruction has not been decoded yet.
            Undecoded,
            /// An instruction that computes into `x0`, and so has no effect.
            Nop,
            /// `jal x0`
            J,
            /// `jalr x0`
            Jr,
            /// A load into `x0`, which may still fault.
            DiscardedLoad,
            /// A jump or branch whose target is not a multiple of four.
            MisalignedJump,
            $(#[doc = concat!("`", $name, "`")] $op,)*
            /// An instruction word that no row of the table matches.
            Illegal,
        }

        impl Op {
            /// Returns the operation in slot `slot % Op::SLOTS` of the instruction loop's jump
            /// table. The remainder covers the whole table, so the loop's `match` needs no range
            /// check.
            #[inline(always)]
            #[allow(non_upper_case_globals)]
            const fn in_slot(slot: u32) -> Self {
                $(const $op: u32 = Op::$op as u32;)*
                match slot % Self::SLOTS {
                    0 => Self::Undecoded,
                    1 => Self::Nop,
                    2 => Self::J,
                    3 => Self::Jr,
                    4 => Self::DiscardedLoad,
                    5 => Self::MisalignedJump,
                    $($op => Self::$op,)*
                    _ => Self::OTHER,
                }
            }
        }

        const OPS: &[Op] = &[$(Op::$op),*];

        /// The rows of the table, in the order of [`Op`] from [`Op::Lui`] on.
        pub const ROWS: &[Row] = &[
            $(Row { name: $name, matches: $match, mask: $mask, format: Format::$format },)*
        ];
    };
}
for_each_insn!(define_ops);

// `decode` indexes a table by these bits first: opcode, funct3, and the two bits of funct7 that
// distinguish add, sub and mul. Instructions that these leave ambiguous (AMO, SYSTEM) are found by
// a search of all rows.
const KEY_MASK: u32 = 0x4200_707f;
const KEYS: usize = 1 << 10;

#[inline(always)]
const fn key(insn: u32) -> usize {
    let k = insn >> 2 & 0x1f | insn >> 7 & 0xe0 | insn >> 22 & 0x100 | insn >> 16 & 0x200;
    k as usize & (KEYS - 1)
}

const fn key_bits(key: usize) -> u32 {
    let k = key as u32;
    3 | (k & 0x1f) << 2 | (k & 0xe0) << 7 | (k & 0x100) << 22 | (k & 0x200) << 16
}

static DECODE: [Op; KEYS] = {
    let mut table = [Op::Illegal; KEYS];
    let mut k = 0;
    while k < KEYS {
        let mut row = 0;
        while row < ROWS.len() {
            let known = ROWS[row].mask & KEY_MASK;
            if key_bits(k) & known == ROWS[row].matches & known {
                table[k] = OPS[row];
            }
            row += 1;
        }
        k += 1;
    }
    table
};

impl Op {
    const SLOTS: u32 = 64;
    /// The operation whose slot is shared by all operations that have none of their own.
    pub(crate) const OTHER: Self = Self::AmoswapW;

    const fn slot(self) -> u32 {
        if (self as u32) < Self::OTHER as u32 { self as u32 } else { Self::OTHER as u32 }
    }

    /// Returns the operation's row; `None` for operations that are not in the table.
    pub fn row(self) -> Option<&'static Row> {
        ROWS.get((self as usize).wrapping_sub(Self::Lui as usize))
    }
}

const _: () = assert!(Op::OTHER as u32 == Op::SLOTS - 1);

/// Finds the operation of an instruction word.
pub fn decode(insn: u32) -> Op {
    let op = DECODE[key(insn)];
    match op.row() {
        Some(row) if insn & row.mask == row.matches => op,
        _ => search(insn),
    }
}

#[cold]
fn search(insn: u32) -> Op {
    for (row, op) in ROWS.iter().zip(OPS) {
        if insn & row.mask == row.matches {
            return *op;
        }
    }
    Op::Illegal
}

/// An instruction word and its fields.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Insn(pub u32);

#[allow(missing_docs)]
impl Insn {
    #[inline(always)]
    pub const fn rd(self) -> usize {
        (self.0 >> 7 & 31) as usize
    }
    #[inline(always)]
    pub const fn rs1(self) -> usize {
        (self.0 >> 15 & 31) as usize
    }
    #[inline(always)]
    pub const fn rs2(self) -> usize {
        (self.0 >> 20 & 31) as usize
    }
    #[inline(always)]
    pub const fn imm_i(self) -> u32 {
        (self.0 as i32 >> 20) as u32
    }
    #[inline(always)]
    pub const fn imm_s(self) -> u32 {
        (self.0 as i32 >> 20) as u32 & !31 | self.0 >> 7 & 31
    }
    #[inline(always)]
    pub const fn imm_b(self) -> u32 {
        (self.0 as i32 >> 19) as u32 & !0xfff
            | self.0 << 4 & 0x800
            | self.0 >> 20 & 0x7e0
            | self.0 >> 7 & 0x1e
    }
    #[inline(always)]
    pub const fn imm_u(self) -> u32 {
        self.0 & 0xffff_f000
    }
    #[inline(always)]
    pub const fn imm_j(self) -> u32 {
        (self.0 as i32 >> 11) as u32 & !0xf_ffff
            | self.0 & 0xf_f000
            | self.0 >> 9 & 0x800
            | self.0 >> 20 & 0x7fe
    }
    #[inline(always)]
    pub const fn shamt(self) -> u32 {
        self.0 >> 20 & 31
    }
    #[inline(always)]
    pub const fn csr(self) -> u32 {
        self.0 >> 20
    }
}

/// Bytes in an instruction. All have the same size, as there are no compressed ones.
pub const INSN_SIZE: u32 = 4;

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
        let format = op.row().map_or(Format::None, |row| row.format);
        let imm = match format {
            Format::I | Format::Load => insn.imm_i(),
            Format::Shift => insn.shamt(),
            Format::S => insn.imm_s(),
            Format::B => insn.imm_b(),
            Format::U => insn.imm_u(),
            Format::J => insn.imm_j(),
            _ => word,
        };
        let jumps = matches!(format, Format::B | Format::J);
        let computes = matches!(format, Format::R | Format::I | Format::Shift | Format::U);
        let op = match op {
            _ if computes && insn.rd() == 0 => Op::Nop,
            _ if jumps && imm % INSN_SIZE != 0 => {
                return Self::pack(Op::MisalignedJump, insn, word);
            }
            Op::Lb | Op::Lh | Op::Lw | Op::Lbu | Op::Lhu if insn.rd() == 0 => {
                return Self::pack(Op::DiscardedLoad, insn, word);
            }
            Op::Jal if insn.rd() == 0 => Op::J,
            Op::Jalr if insn.rd() == 0 => Op::Jr,
            op => op,
        };
        Self::pack(op, insn, if jumps { (imm as i32 / INSN_SIZE as i32) as u32 } else { imm })
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

const ABI_NAMES: [&str; 32] = [
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4",
    "a5", "a6", "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4",
    "t5", "t6",
];

/// Writes the instruction as an assembler would, with branch targets relative to its address.
impl fmt::Display for Insn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = decode(self.0);
        let Some(row) = op.row() else {
            return write!(f, ".word {:#010x}", self.0);
        };
        let (rd, rs1, rs2) = (ABI_NAMES[self.rd()], ABI_NAMES[self.rs1()], ABI_NAMES[self.rs2()]);
        let n = row.name;
        match row.format {
            Format::R => write!(f, "{n} {rd},{rs1},{rs2}"),
            Format::I => write!(f, "{n} {rd},{rs1},{}", self.imm_i() as i32),
            Format::Load => write!(f, "{n} {rd},{}({rs1})", self.imm_i() as i32),
            Format::S => write!(f, "{n} {rs2},{}({rs1})", self.imm_s() as i32),
            Format::B => write!(f, "{n} {rs1},{rs2},.{:+}", self.imm_b() as i32),
            Format::U => write!(f, "{n} {rd},{:#x}", self.imm_u() >> 12),
            Format::J => write!(f, "{n} {rd},.{:+}", self.imm_j() as i32),
            Format::Shift => write!(f, "{n} {rd},{rs1},{}", self.shamt()),
            Format::Csr => write!(f, "{n} {rd},{:#x},{rs1}", self.csr()),
            Format::CsrImm => write!(f, "{n} {rd},{:#x},{}", self.csr(), self.rs1()),
            Format::Amo => write!(f, "{n} {rd},{rs2},({rs1})"),
            Format::Lr => write!(f, "{n} {rd},({rs1})"),
            Format::Sfence => write!(f, "{n} {rs1},{rs2}"),
            Format::None => f.write_str(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn no_two_rows_overlap() {
        for (i, a) in ROWS.iter().enumerate() {
            assert_eq!(a.matches & !a.mask, 0, "{}", a.name);
            for b in &ROWS[i + 1..] {
                let common = a.mask & b.mask;
                assert_ne!(a.matches & common, b.matches & common, "{} and {}", a.name, b.name);
            }
        }
    }

    #[test]
    fn decode_agrees_with_a_search_of_the_table() {
        let mut word = 0x1234_5678u32;
        let search = |insn: u32| {
            let mut hits = ROWS.iter().zip(OPS).filter(|(r, _)| insn & r.mask == r.matches);
            hits.next().map_or(Op::Illegal, |(_, op)| *op)
        };
        for i in 0..2_000_000u32 {
            word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let row = ROWS[(i as usize) % ROWS.len()];
            let random = word ^ word >> 15;
            // Both anything at all and something near a real instruction.
            for insn in
                [random, random & !row.mask | row.matches, (random & 0xfe00_0000) ^ row.matches]
            {
                assert_eq!(decode(insn), search(insn), "{insn:#010x}");
            }
        }
    }

    #[test]
    fn immediates_follow_the_base_instruction_formats() {
        assert_eq!(Insn(0xfff0_0013).imm_i() as i32, -1);
        assert_eq!(Insn(0xfe20_ae23).imm_s() as i32, -4);
        assert_eq!(Insn(0xfe00_0ee3).imm_b() as i32, -4);
        assert_eq!(Insn(0x7e00_0fe3).imm_b() as i32, 4094);
        assert_eq!(Insn(0xffdf_f06f).imm_j() as i32, -4);
        assert_eq!(Insn(0x7fff_f06f).imm_j() as i32, 0xf_fffe);
    }

    #[test]
    fn disassembly_reads_like_the_assembler() {
        let text = |word| format!("{}", Insn(word));
        assert_eq!(text(0x00c5_8533), "add a0,a1,a2");
        assert_eq!(text(0xffc1_2083), "lw ra,-4(sp)");
        assert_eq!(text(0x1005_2573), "csrrs a0,0x100,a0");
        assert_eq!(text(0xffff_ffff), ".word 0xffffffff");
    }
}

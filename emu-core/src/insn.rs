//! Instructions: what is made of their table, their fields, and the search for an operation.
//!
//! The table of instructions is in `table.rs`. A row has all that is known of an instruction, also
//! what it means; the rest is generated from the rows. The table covers RV32IMA, Zicsr, Zifencei and
//! the privileged instructions.

pub(crate) mod compute;
mod decoded;
mod disasm;
pub(crate) mod muldiv;
#[macro_use]
pub(crate) mod table;

pub use decoded::Decoded;
pub(crate) use decoded::Unit;

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

/// What kind of instruction a row is, with the form of its meaning. In a meaning, `a` and `b` are
/// the values of `rs1` and `rs2`, and `imm` is the immediate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// `Upper(UpperOp)`: `rd` becomes what is made of an upper immediate and the address of the
    /// instruction.
    Upper,
    /// `Alu(AluOp)`: `rd` becomes what the ALU computes of `a` and `b`.
    Alu,
    /// `AluImm(AluOp)`: `rd` becomes what the ALU computes of `a` and `imm`.
    AluImm,
    /// `Jump()`: jumps by the immediate and links in `rd`.
    Jump,
    /// `JumpRegister()`: jumps to `rs1` plus the immediate and links in `rd`.
    JumpRegister,
    /// `Branch(Condition)`: jumps by the immediate if the condition holds for `a` and `b`.
    Branch,
    /// `Load(size, Extend)`: loads that many bytes into `rd`.
    Load,
    /// `Store(size)`: stores that many bytes of `rs2`.
    Store,
    /// `Fence()`: has nothing to do. There is one hart, devices act only between instructions, and
    /// every store to code drops what was decoded from it.
    Fence,
    /// `Csr(CsrOp)`: reads a CSR into `rd` and changes it by `rs1` or, as [`Format::CsrImm`] says,
    /// by its number.
    Csr,
    /// `System(method)`: is executed by that method of `Core` in `slow_path.rs`.
    System,
    /// `LoadReserved()`: loads a word and reserves its address.
    LoadReserved,
    /// `StoreConditional()`: stores a word if its address is still reserved.
    StoreConditional,
    /// `Amo(|old, b| new)`: replaces a word in memory, and loads the old one into `rd`.
    Amo,
}

impl Class {
    /// Returns whether the instruction loop executes instructions of this class itself, in the
    /// common case at least. All others go to the slow path.
    pub(crate) const fn in_loop(self) -> bool {
        match self {
            Self::Upper
            | Self::Alu
            | Self::AluImm
            | Self::Jump
            | Self::JumpRegister
            | Self::Branch
            | Self::Load
            | Self::Store
            | Self::Fence => true,
            Self::Csr | Self::System | Self::LoadReserved | Self::StoreConditional | Self::Amo => {
                false
            }
        }
    }

    /// Returns whether a row of this class can have that format, which decides what its immediate
    /// is. Classes outside of the loop have formats without one, because [`Decoded::op`] needs the
    /// whole word of an operation that has no slot.
    const fn has(self, format: Format) -> bool {
        match self {
            Self::Upper => matches!(format, Format::U),
            Self::Alu => matches!(format, Format::R),
            Self::AluImm => matches!(format, Format::I | Format::Shift),
            Self::Jump => matches!(format, Format::J),
            Self::JumpRegister | Self::Load => matches!(format, Format::Load),
            Self::Branch => matches!(format, Format::B),
            Self::Store => matches!(format, Format::S),
            Self::Fence => matches!(format, Format::None),
            Self::Csr => matches!(format, Format::Csr | Format::CsrImm),
            Self::System => matches!(format, Format::Sfence | Format::None),
            Self::LoadReserved => matches!(format, Format::Lr),
            Self::StoreConditional | Self::Amo => matches!(format, Format::Amo),
        }
    }
}

/// How a load fills the bits of `rd` above those that it loads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extend {
    /// With the sign.
    Sign,
    /// With zeros.
    Zero,
}

impl Extend {
    /// Extends a value of `size` bytes, whose bits above those are zero.
    #[inline(always)]
    pub(crate) const fn apply(self, value: u32, size: u32) -> u32 {
        match (self, size) {
            (Self::Sign, 1) => value as i8 as u32,
            (Self::Sign, 2) => value as i16 as u32,
            (Self::Sign | Self::Zero, _) => value,
        }
    }
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
    /// The kind of instruction.
    pub class: Class,
}

// Accepts the meanings of each class, and none that has another form.
macro_rules! check_meaning {
    (Upper($op:ident)) => {};
    (Alu($op:ident)) => {};
    (AluImm($op:ident)) => {};
    (Jump()) => {};
    (JumpRegister()) => {};
    (Branch($condition:ident)) => {};
    (Load($size:literal, $extend:ident)) => {};
    (Store($size:literal)) => {};
    (Fence()) => {};
    (Csr($access:ident)) => {};
    (System($method:ident)) => {};
    (LoadReserved()) => {};
    (StoreConditional()) => {};
    (Amo(|$old:pat_param, $b:pat_param| $new:expr)) => {};
}

macro_rules! define_ops {
    ($((
        $name:literal, $op:ident, $match:literal, $mask:literal, $format:ident,
        $class:ident $meaning:tt
    ),)*) => {
        $(check_meaning!($class $meaning);)*

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
            $(#[doc = concat!("`", $name, "`")] $op = NUMBERS[Position::$op as usize],)*
            /// An instruction word that no row of the table matches.
            Illegal = FIRST + TABLE.len() as u32,
        }

        /// The position of an operation's row in the table.
        enum Position {
            $($op,)*
        }

        impl Op {
            /// Returns the operation in slot `slot % SLOTS` of the instruction loop's jump
            /// table. The remainder covers the whole table, so the loop's `match` needs no range
            /// check.
            #[inline(always)]
            #[allow(non_upper_case_globals)]
            const fn in_slot(slot: u32) -> Self {
                const Undecoded: u32 = Op::Undecoded as u32;
                const Nop: u32 = Op::Nop as u32;
                const J: u32 = Op::J as u32;
                const Jr: u32 = Op::Jr as u32;
                const DiscardedLoad: u32 = Op::DiscardedLoad as u32;
                const MisalignedJump: u32 = Op::MisalignedJump as u32;
                $(const $op: u32 = Op::$op as u32;)*
                match slot % SLOTS {
                    Undecoded => Self::Undecoded,
                    Nop => Self::Nop,
                    J => Self::J,
                    Jr => Self::Jr,
                    DiscardedLoad => Self::DiscardedLoad,
                    MisalignedJump => Self::MisalignedJump,
                    $($op => Self::$op,)*
                    _ => Self::OTHER,
                }
            }
        }

        /// The rows as they stand in the table.
        const TABLE: [Row; [$($name),*].len()] = [$(Row {
            name: $name,
            matches: $match,
            mask: $mask,
            format: Format::$format,
            class: Class::$class,
        },)*];

        /// The operations of [`ROWS`].
        const OPS: [Op; TABLE.len()] = by_number([$(Op::$op),*]);
    };
}
for_each_insn!(define_ops);

/// Slots of the instruction loop's jump table.
const SLOTS: u32 = 64;
/// The number of the first operation that has a row.
const FIRST: u32 = 6;
const _: () = assert!(FIRST == Op::MisalignedJump as u32 + 1);

/// The numbers of the operations, in the order of the table. What the instruction loop executes has
/// numbers below `SLOTS - 1`, and so slots of its own in the jump table (see [`Op::slot`]).
///
/// Slots that are left go to the first other operations, where these stand in the table. Were all
/// of the others at the end, LLVM would test for them before it jumps.
const NUMBERS: [u32; TABLE.len()] = {
    let mut spare = SLOTS - 1 - FIRST;
    let mut i = 0;
    while i < TABLE.len() {
        if TABLE[i].class.in_loop() {
            assert!(spare > 0, "the jump table needs more slots");
            spare -= 1;
        }
        i += 1;
    }
    let mut numbers = [0; TABLE.len()];
    let (mut own, mut shared) = (FIRST, SLOTS - 1);
    i = 0;
    while i < TABLE.len() {
        let in_loop = TABLE[i].class.in_loop();
        if in_loop || spare > 0 {
            spare -= !in_loop as u32;
            numbers[i] = own;
            own += 1;
        } else {
            numbers[i] = shared;
            shared += 1;
        }
        i += 1;
    }
    numbers
};

/// Puts what belongs to the rows of the table into the order of their operations' numbers.
const fn by_number<T: Copy>(table: [T; TABLE.len()]) -> [T; TABLE.len()] {
    let mut sorted = table;
    let mut position = 0;
    while position < table.len() {
        sorted[(NUMBERS[position] - FIRST) as usize] = table[position];
        position += 1;
    }
    sorted
}

/// The rows of the table, in the order of their operations' numbers.
pub const ROWS: &[Row] = &by_number(TABLE);

/// Returns the first row that contradicts itself or a row before it.
const fn contradiction(rows: &[Row]) -> Option<Row> {
    let mut i = 0;
    while i < rows.len() {
        let row = rows[i];
        if row.matches & !row.mask != 0 || row.matches & 3 != 3 || !row.class.has(row.format) {
            return Some(row);
        }
        let mut k = 0;
        while k < i {
            let common = row.mask & rows[k].mask;
            if row.matches & common == rows[k].matches & common {
                return Some(row);
            }
            k += 1;
        }
        i += 1;
    }
    None
}

const _: () = {
    if let Some(row) = contradiction(&TABLE) {
        panic!("{}", row.name);
    }
};

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
    /// The operation whose slot is shared by all operations that have none of their own.
    pub(crate) const OTHER: Self = OPS[(SLOTS - 1 - FIRST) as usize];

    /// Returns the operation's slot: its number, except that all numbers past the jump table's end
    /// share the last slot.
    /// Returns the number of an operation among those that share slot [`Op::OTHER`], if it is one of
    /// them: it is below 16.
    fn as_other(self) -> Option<u32> {
        (self as u32).checked_sub(Self::OTHER as u32)
    }

    /// Returns the operation with that number.
    fn other(number: u32) -> Self {
        const { assert!(TABLE.len() as u32 + FIRST - Op::OTHER as u32 <= 16) };
        let at = Self::OTHER as usize - FIRST as usize + number as usize;
        OPS.get(at).copied().unwrap_or(Self::Illegal)
    }

    const fn slot(self) -> u32 {
        if (self as u32) < Self::OTHER as u32 { self as u32 } else { Self::OTHER as u32 }
    }

    /// Returns the class of the operation's row; `None` for operations that are not in the table.
    ///
    /// It is a `match` and not a look-up in [`ROWS`], so that LLVM makes one jump of this and a
    /// `match` over its result.
    #[inline(always)]
    pub(crate) const fn class(self) -> Option<Class> {
        macro_rules! class {
            ($class:ident $meaning:tt) => {
                Some(Class::$class)
            };
        }
        match_op!(self, class, {
            Op::Undecoded
            | Op::Nop
            | Op::J
            | Op::Jr
            | Op::DiscardedLoad
            | Op::MisalignedJump
            | Op::Illegal => None,
        })
    }

    /// Returns how many bytes a load or store accesses, and how a load extends them.
    pub(crate) const fn access(self) -> (u32, Extend) {
        macro_rules! access {
            (Load($size:literal, $extend:ident)) => {
                return ($size, Extend::$extend)
            };
            (Store($size:literal)) => {
                return ($size, Extend::Zero)
            };
            ($class:ident $meaning:tt) => {{}};
        }
        if_op!(self, access);
        (4, Extend::Zero)
    }

    /// Returns the operation's row; `None` for operations that are not in the table.
    pub fn row(self) -> Option<&'static Row> {
        ROWS.get((self as usize).wrapping_sub(FIRST as usize))
    }
}

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
    for (row, op) in ROWS.iter().zip(&OPS) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_contradict_each_other_are_found() {
        let name = |rows: &[Row]| contradiction(rows).map(|row| row.name);
        assert_eq!(name(&TABLE), None);
        let add = *Op::Add.row().unwrap();
        let sub = *Op::Sub.row().unwrap();
        assert_eq!(name(&[add, sub]), None);
        assert_eq!(name(&[add, Row { name: "same word", ..add }]), Some("same word"));
        let wider = Row { name: "wider", mask: 0x7f, matches: 0x33, ..add };
        assert_eq!(name(&[wider, sub]), Some("sub"));
        assert_eq!(name(&[Row { mask: 0x707f, ..sub }]), Some("sub"), "a bit outside of the mask");
        assert_eq!(
            name(&[Row { format: Format::I, ..sub }]),
            Some("sub"),
            "not the class's format"
        );
    }

    #[test]
    fn each_operation_has_its_row_and_what_the_loop_executes_has_its_slot() {
        for (op, row) in OPS.into_iter().zip(ROWS) {
            assert_eq!(op.row().map(|row| row.name), Some(row.name));
            assert_eq!(op.class(), Some(row.class));
            assert_eq!(decode(row.matches), op);
            let slot = Op::in_slot(op.slot());
            assert_eq!(slot, if row.class.in_loop() || slot == op { op } else { Op::OTHER });
        }
        for special in
            [Op::Undecoded, Op::Nop, Op::J, Op::Jr, Op::DiscardedLoad, Op::MisalignedJump]
        {
            assert_eq!(Op::in_slot(special.slot()), special);
        }
        assert_eq!(Op::in_slot(Op::Illegal.slot()), Op::OTHER);
        assert!(Op::Illegal.row().is_none());
        assert!(Op::Illegal.class().is_none());
    }

    #[test]
    fn decode_agrees_with_a_search_of_the_table() {
        let mut word = 0x1234_5678u32;
        let search = |insn: u32| {
            let mut hits = ROWS.iter().zip(OPS).filter(|(r, _)| insn & r.mask == r.matches);
            hits.next().map_or(Op::Illegal, |(_, op)| op)
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
}

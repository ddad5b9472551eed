//! The instructions and what they mean: the one place to add one.

/// Calls the macro `$m` with all rows, after the tokens `$args`. A row is
/// `(mnemonic, Op variant, match, mask, Format, Class(meaning))`.
///
/// Match and mask are those of the unprivileged specification's chapter "RV32/64G Instruction Set
/// Listings": an instruction word is this instruction if its bits under the mask are the match. The
/// [`Format`](crate::insn::Format) says how operands are encoded, and the
/// [`Class`](crate::insn::Class) what kind of instruction it is and which form its meaning has.
///
/// All else is made of the rows: [`Op`](crate::insn::Op), decoder, disassembler, the encoders of
/// the tests' assembler, and each place that executes instructions. Such a place has a macro with
/// one rule for each class, and calls it for all rows by `match_op!` or `if_op!`. To add an
/// instruction of a class that exists takes a row here and its test.
#[macro_export]
macro_rules! for_each_insn {
    ($m:ident $(, $($args:tt)*)?) => {
        $m! {
            $($($args)*)?
            ("lui", Lui, 0x0000_0037, 0x0000_007f, U, Upper(Lui)),
            ("auipc", Auipc, 0x0000_0017, 0x0000_007f, U, Upper(Auipc)),
            ("jal", Jal, 0x0000_006f, 0x0000_007f, J, Jump()),
            ("jalr", Jalr, 0x0000_0067, 0x0000_707f, Load, JumpRegister()),
            ("beq", Beq, 0x0000_0063, 0x0000_707f, B, Branch(Eq)),
            ("bne", Bne, 0x0000_1063, 0x0000_707f, B, Branch(Ne)),
            ("blt", Blt, 0x0000_4063, 0x0000_707f, B, Branch(Lt)),
            ("bge", Bge, 0x0000_5063, 0x0000_707f, B, Branch(Ge)),
            ("bltu", Bltu, 0x0000_6063, 0x0000_707f, B, Branch(Ltu)),
            ("bgeu", Bgeu, 0x0000_7063, 0x0000_707f, B, Branch(Geu)),
            ("lb", Lb, 0x0000_0003, 0x0000_707f, Load, Load(1, Sign)),
            ("lh", Lh, 0x0000_1003, 0x0000_707f, Load, Load(2, Sign)),
            ("lw", Lw, 0x0000_2003, 0x0000_707f, Load, Load(4, Zero)),
            ("lbu", Lbu, 0x0000_4003, 0x0000_707f, Load, Load(1, Zero)),
            ("lhu", Lhu, 0x0000_5003, 0x0000_707f, Load, Load(2, Zero)),
            ("sb", Sb, 0x0000_0023, 0x0000_707f, S, Store(1)),
            ("sh", Sh, 0x0000_1023, 0x0000_707f, S, Store(2)),
            ("sw", Sw, 0x0000_2023, 0x0000_707f, S, Store(4)),
            ("addi", Addi, 0x0000_0013, 0x0000_707f, I, AluImm(Add)),
            ("slti", Slti, 0x0000_2013, 0x0000_707f, I, AluImm(Slt)),
            ("sltiu", Sltiu, 0x0000_3013, 0x0000_707f, I, AluImm(Sltu)),
            ("xori", Xori, 0x0000_4013, 0x0000_707f, I, AluImm(Xor)),
            ("ori", Ori, 0x0000_6013, 0x0000_707f, I, AluImm(Or)),
            ("andi", Andi, 0x0000_7013, 0x0000_707f, I, AluImm(And)),
            ("slli", Slli, 0x0000_1013, 0xfe00_707f, Shift, AluImm(Sll)),
            ("srli", Srli, 0x0000_5013, 0xfe00_707f, Shift, AluImm(Srl)),
            ("srai", Srai, 0x4000_5013, 0xfe00_707f, Shift, AluImm(Sra)),
            ("add", Add, 0x0000_0033, 0xfe00_707f, R, Alu(Add)),
            ("sub", Sub, 0x4000_0033, 0xfe00_707f, R, Alu(Sub)),
            ("sll", Sll, 0x0000_1033, 0xfe00_707f, R, Alu(Sll)),
            ("slt", Slt, 0x0000_2033, 0xfe00_707f, R, Alu(Slt)),
            ("sltu", Sltu, 0x0000_3033, 0xfe00_707f, R, Alu(Sltu)),
            ("xor", Xor, 0x0000_4033, 0xfe00_707f, R, Alu(Xor)),
            ("srl", Srl, 0x0000_5033, 0xfe00_707f, R, Alu(Srl)),
            ("sra", Sra, 0x4000_5033, 0xfe00_707f, R, Alu(Sra)),
            ("or", Or, 0x0000_6033, 0xfe00_707f, R, Alu(Or)),
            ("and", And, 0x0000_7033, 0xfe00_707f, R, Alu(And)),
            ("fence", Fence, 0x0000_000f, 0x0000_707f, None, Fence()),
            ("fence.i", FenceI, 0x0000_100f, 0x0000_707f, None, Fence()),
            ("ecall", Ecall, 0x0000_0073, 0xffff_ffff, None, System(ecall)),
            ("ebreak", Ebreak, 0x0010_0073, 0xffff_ffff, None, System(ebreak)),
            ("csrrw", Csrrw, 0x0000_1073, 0x0000_707f, Csr, Csr(Write)),
            ("csrrs", Csrrs, 0x0000_2073, 0x0000_707f, Csr, Csr(Set)),
            ("csrrc", Csrrc, 0x0000_3073, 0x0000_707f, Csr, Csr(Clear)),
            ("csrrwi", Csrrwi, 0x0000_5073, 0x0000_707f, CsrImm, Csr(Write)),
            ("csrrsi", Csrrsi, 0x0000_6073, 0x0000_707f, CsrImm, Csr(Set)),
            ("csrrci", Csrrci, 0x0000_7073, 0x0000_707f, CsrImm, Csr(Clear)),
            ("mul", Mul, 0x0200_0033, 0xfe00_707f, R, Alu(Mul)),
            ("mulh", Mulh, 0x0200_1033, 0xfe00_707f, R, Alu(Mulh)),
            ("mulhsu", Mulhsu, 0x0200_2033, 0xfe00_707f, R, Alu(Mulhsu)),
            ("mulhu", Mulhu, 0x0200_3033, 0xfe00_707f, R, Alu(Mulhu)),
            ("div", Div, 0x0200_4033, 0xfe00_707f, R, Alu(Div)),
            ("divu", Divu, 0x0200_5033, 0xfe00_707f, R, Alu(Divu)),
            ("rem", Rem, 0x0200_6033, 0xfe00_707f, R, Alu(Rem)),
            ("remu", Remu, 0x0200_7033, 0xfe00_707f, R, Alu(Remu)),
            ("lr.w", LrW, 0x1000_202f, 0xf9f0_707f, Lr, LoadReserved()),
            ("sc.w", ScW, 0x1800_202f, 0xf800_707f, Amo, StoreConditional()),
            ("amoswap.w", AmoswapW, 0x0800_202f, 0xf800_707f, Amo, Amo(|_, b| b)),
            ("amoadd.w", AmoaddW, 0x0000_202f, 0xf800_707f, Amo, Amo(|old, b| old.wrapping_add(b))),
            ("amoxor.w", AmoxorW, 0x2000_202f, 0xf800_707f, Amo, Amo(|old, b| old ^ b)),
            ("amoand.w", AmoandW, 0x6000_202f, 0xf800_707f, Amo, Amo(|old, b| old & b)),
            ("amoor.w", AmoorW, 0x4000_202f, 0xf800_707f, Amo, Amo(|old, b| old | b)),
            ("amomin.w", AmominW, 0x8000_202f, 0xf800_707f, Amo, Amo(|old, b| (old as i32).min(b as i32) as u32)),
            ("amomax.w", AmomaxW, 0xa000_202f, 0xf800_707f, Amo, Amo(|old, b| (old as i32).max(b as i32) as u32)),
            ("amominu.w", AmominuW, 0xc000_202f, 0xf800_707f, Amo, Amo(|old, b| old.min(b))),
            ("amomaxu.w", AmomaxuW, 0xe000_202f, 0xf800_707f, Amo, Amo(|old, b| old.max(b))),
            ("sret", Sret, 0x1020_0073, 0xffff_ffff, None, System(sret)),
            ("mret", Mret, 0x3020_0073, 0xffff_ffff, None, System(mret)),
            ("wfi", Wfi, 0x1050_0073, 0xffff_ffff, None, System(wfi)),
            ("sfence.vma", SfenceVma, 0x1200_0073, 0xfe00_7fff, Sfence, System(sfence_vma)),
        }
    };
}

/// A `match` over an [`Op`](crate::insn::Op) that evaluates, for the operation of a row, to
/// `$meaning!(Class(meaning))`. The operations that have no row are given as ordinary arms.
macro_rules! match_op {
    (@rows ($op:expr) $meaning:ident { $($special:tt)* } $((
        $name:literal, $variant:ident, $match:literal, $mask:literal, $format:ident,
        $class:ident $row:tt
    ),)*) => {
        match $op {
            $($special)*
            $($crate::insn::Op::$variant => $meaning!($class $row),)*
        }
    };
    ($op:expr, $meaning:ident, { $($special:tt)* }) => {
        $crate::for_each_insn!(match_op, @rows ($op) $meaning { $($special)* })
    };
}
pub(crate) use match_op;

/// Runs `$meaning!(Class(meaning))` of the row of an [`Op`](crate::insn::Op) as a statement.
///
/// It is for what concerns few operations: their rules leave by `break` or `return`, the one of all
/// others is `{{}}`, and what follows is the default. A `match` over all operations would do as
/// well, but LLVM makes a larger switch of it, even where most arms are equal.
macro_rules! if_op {
    (@rows ($op:expr) $meaning:ident $((
        $name:literal, $variant:ident, $match:literal, $mask:literal, $format:ident,
        $class:ident $row:tt
    ),)*) => {
        $(if $op as u32 == $crate::insn::Op::$variant as u32 {
            $meaning!($class $row);
        })*
    };
    ($op:expr, $meaning:ident) => {
        $crate::for_each_insn!(if_op, @rows ($op) $meaning)
    };
}
pub(crate) use if_op;

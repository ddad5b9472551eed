//! What instructions compute: the results of the ALU and the conditions of branches.
//!
//! Each is written once. The rows of the instruction table name it, and it is used in two ways: by
//! itself, where the operation is known (`compute`, `holds`), and all of them side by side, with
//! the result picked by number (`pick`). The latter is for lanes of a warp that execute different
//! operations at the same time.

use super::muldiv;

/// Picks among the first `$count` values by bit `$bit` of a number: one of each pair. It is a macro
/// because the compiler would leave a loop as it is.
macro_rules! halve {
    ($select:ident, $n:ident, $bit:literal, $values:ident, [$($i:literal),*], $count:expr) => {
        $($values[$i] = if 2 * $i + 1 < $count {
            $select($n & 1 << $bit != 0, $values[2 * $i + 1], $values[2 * $i])
        } else {
            $values[2 * $i]
        };)*
    };
}

macro_rules! computations {
    (
        $(#[$outer:meta])*
        $Name:ident -> $Result:ty: $one:ident;
        $($Variant:ident(|$a:ident, $b:ident| $value:expr),)*
        ;
        $($Rare:ident(|$c:ident, $d:ident| $rare:expr),)*
    ) => {
        $(#[$outer])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs)]
        pub enum $Name {
            $($Variant,)*
            $($Rare,)*
        }

        impl $Name {
            /// Every one of them, in the order of their numbers.
            #[cfg(test)]
            #[allow(dead_code)]
            pub(crate) const ALL: &[Self] = &[$(Self::$Variant,)* $(Self::$Rare,)*];
            /// How many of them [`Self::pick`] computes: the first ones.
            #[allow(dead_code)]
            pub(crate) const PICKED: u32 = [$(stringify!($Variant)),*].len() as u32;

            /// Computes the result for the values of two operands.
            #[inline(always)]
            #[allow(unused_variables)]
            pub(crate) fn $one(self, a: u32, b: u32) -> $Result {
                match self {
                    $(Self::$Variant => { let ($a, $b) = (a, b); $value })*
                    $(Self::$Rare => { let ($c, $d) = (a, b); $rare })*
                }
            }

            /// Computes the result of number `n`, which is below [`Self::PICKED`], without a branch:
            /// `select` returns its second argument if the first is true, else the third.
            #[inline(always)]
            #[allow(dead_code)]
            pub(crate) fn pick(
                n: u32,
                a: u32,
                b: u32,
                select: impl Fn(bool, $Result, $Result) -> $Result,
            ) -> $Result {
                let mut values = [<$Result>::default(); 16];
                $(values[Self::$Variant as usize] = Self::$Variant.$one(a, b);)*
                halve!(select, n, 0, values, [0, 1, 2, 3, 4, 5, 6, 7], Self::PICKED);
                halve!(select, n, 1, values, [0, 1, 2, 3], Self::PICKED.div_ceil(2));
                halve!(select, n, 2, values, [0, 1], Self::PICKED.div_ceil(4));
                halve!(select, n, 3, values, [0], Self::PICKED.div_ceil(8));
                values[0]
            }
        }
    };
}

computations! {
    /// What the ALU computes. Those behind the semicolon take too long to compute them without need.
    AluOp -> u32: compute;
    Add(|a, b| a.wrapping_add(b)),
    Sub(|a, b| a.wrapping_sub(b)),
    Sll(|a, b| a << (b & 31)),
    Slt(|a, b| u32::from((a as i32) < b as i32)),
    Sltu(|a, b| u32::from(a < b)),
    Xor(|a, b| a ^ b),
    Srl(|a, b| a >> (b & 31)),
    Sra(|a, b| ((a as i32) >> (b & 31)) as u32),
    Or(|a, b| a | b),
    And(|a, b| a & b),
    Mul(|a, b| a.wrapping_mul(b)),
    Mulhu(|a, b| muldiv::mulhu(a, b)),
    ;
    Mulh(|a, b| muldiv::mulh(a, b)),
    Mulhsu(|a, b| muldiv::mulhsu(a, b)),
    Div(|a, b| muldiv::div(a, b)),
    Divu(|a, b| muldiv::divu(a, b)),
    Rem(|a, b| muldiv::rem(a, b)),
    Remu(|a, b| muldiv::remu(a, b)),
}

computations! {
    /// What is made of the address of an instruction and its upper immediate.
    UpperOp -> u32: compute;
    Lui(|_pc, imm| imm),
    Auipc(|pc, imm| pc.wrapping_add(imm)),
    ;
}

computations! {
    /// Conditions of branches.
    Condition -> bool: holds;
    Eq(|a, b| a == b),
    Ne(|a, b| a != b),
    Lt(|a, b| (a as i32) < b as i32),
    Ge(|a, b| a as i32 >= b as i32),
    Ltu(|a, b| a < b),
    Geu(|a, b| a >= b),
    ;
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [u32; 9] = [0, 1, 2, 31, 32, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, u32::MAX];

    fn select(condition: bool, a: u32, b: u32) -> u32 {
        if condition { a } else { b }
    }

    fn choose(condition: bool, a: bool, b: bool) -> bool {
        if condition { a } else { b }
    }

    #[test]
    fn what_is_picked_is_what_is_computed() {
        for (a, b) in VALUES.into_iter().flat_map(|a| VALUES.map(|b| (a, b))) {
            for &op in AluOp::ALL.iter().filter(|&&op| (op as u32) < AluOp::PICKED) {
                assert_eq!(
                    AluOp::pick(op as u32, a, b, select),
                    op.compute(a, b),
                    "{op:?} {a:#x} {b:#x}"
                );
            }
            for &is in Condition::ALL {
                assert_eq!(
                    Condition::pick(is as u32, a, b, choose),
                    is.holds(a, b),
                    "{is:?} {a:#x} {b:#x}"
                );
            }
        }
    }
}

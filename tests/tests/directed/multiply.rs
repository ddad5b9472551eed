//! RV32M.

use pxvm_tests::asm::{Asm, Reg, reg::*};

use crate::TestMachine;

type Binary = fn(&mut Asm, Reg, Reg, Reg) -> &mut Asm;

const MIN: u32 = 0x8000_0000;
const MINUS_1: u32 = u32::MAX;

fn binary(op: Binary, a: u32, b: u32) -> u32 {
    let mut m = TestMachine::program(|asm| {
        op(asm, A2, A0, A1);
    });
    m.set_x(A0, a).set_x(A1, b).run_out();
    m.x(A2)
}

const SAMPLES: [u32; 9] = [0, 1, 2, 0xffff, 0x1_0000, 0x7fff_ffff, MIN, 0xdead_beef, MINUS_1];

fn for_pairs(check: impl Fn(u32, u32)) {
    for a in SAMPLES {
        for b in SAMPLES {
            check(a, b);
        }
    }
}

#[test]
fn mul_keeps_the_low_half() {
    for_pairs(|a, b| assert_eq!(binary(Asm::mul, a, b), a.wrapping_mul(b), "{a:#x} {b:#x}"));
}

#[test]
fn mulh_is_the_high_half_of_signed_by_signed() {
    for_pairs(|a, b| {
        let wide = i128::from(a as i32) * i128::from(b as i32);
        assert_eq!(binary(Asm::mulh, a, b), (wide >> 32) as u32, "{a:#x} {b:#x}");
    });
}

#[test]
fn mulhu_is_the_high_half_of_unsigned_by_unsigned() {
    for_pairs(|a, b| {
        let wide = u128::from(a) * u128::from(b);
        assert_eq!(binary(Asm::mulhu, a, b), (wide >> 32) as u32, "{a:#x} {b:#x}");
    });
}

#[test]
fn mulhsu_is_the_high_half_of_signed_by_unsigned() {
    for_pairs(|a, b| {
        let wide = i128::from(a as i32) * i128::from(b);
        assert_eq!(binary(Asm::mulhsu, a, b), (wide >> 32) as u32, "{a:#x} {b:#x}");
    });
}

// Unprivileged table 13.1: "The quotient of division by zero has all bits set, and the remainder
// of division by zero equals the dividend."
#[test]
fn division_by_zero_has_results() {
    for a in SAMPLES {
        assert_eq!(binary(Asm::div, a, 0), MINUS_1);
        assert_eq!(binary(Asm::divu, a, 0), MINUS_1);
        assert_eq!(binary(Asm::rem, a, 0), a);
        assert_eq!(binary(Asm::remu, a, 0), a);
    }
}

// "The quotient of a signed division with overflow is equal to the dividend, and the remainder is
// zero." (13.2)
#[test]
fn signed_overflow_gives_the_dividend_and_no_remainder() {
    assert_eq!(binary(Asm::div, MIN, MINUS_1), MIN);
    assert_eq!(binary(Asm::rem, MIN, MINUS_1), 0);
    assert_eq!(binary(Asm::divu, MIN, MINUS_1), 0);
    assert_eq!(binary(Asm::remu, MIN, MINUS_1), MIN);
}

// "DIV and REM round towards zero; the sign of a nonzero result of REM equals the sign of the
// dividend." (13.2)
#[test]
fn signed_division_rounds_towards_zero() {
    let minus = |v: u32| v.wrapping_neg();
    assert_eq!((binary(Asm::div, 7, minus(2)), binary(Asm::rem, 7, minus(2))), (minus(3), 1));
    assert_eq!(
        (binary(Asm::div, minus(7), 2), binary(Asm::rem, minus(7), 2)),
        (minus(3), minus(1))
    );
}

#[test]
fn quotient_and_remainder_give_back_the_dividend() {
    for_pairs(|a, b| {
        let (q, r) = (binary(Asm::div, a, b), binary(Asm::rem, a, b));
        assert_eq!(q.wrapping_mul(b).wrapping_add(r), a, "signed {a:#x} {b:#x}");
        let (q, r) = (binary(Asm::divu, a, b), binary(Asm::remu, a, b));
        assert_eq!(q.wrapping_mul(b).wrapping_add(r), a, "unsigned {a:#x} {b:#x}");
    });
}

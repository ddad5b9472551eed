//! RV32I computation.

use pxvm_tests::asm::{Asm, Reg, reg::*};
use pxvm_tests::machine::RAM;

use crate::TestMachine;

type Binary = fn(&mut Asm, Reg, Reg, Reg) -> &mut Asm;
type Immediate = fn(&mut Asm, Reg, Reg, i32) -> &mut Asm;
type Shift = fn(&mut Asm, Reg, Reg, u32) -> &mut Asm;

const MIN: u32 = 0x8000_0000;
const MAX: u32 = 0x7fff_ffff;
const MINUS_1: u32 = u32::MAX;

fn run(a: u32, b: u32, f: impl FnOnce(&mut Asm)) -> u32 {
    let mut m = TestMachine::program(f);
    m.set_x(A0, a).set_x(A1, b).run_out();
    m.x(A2)
}

fn binary(op: Binary, a: u32, b: u32) -> u32 {
    run(a, b, |asm| {
        op(asm, A2, A0, A1);
    })
}

fn immediate(op: Immediate, a: u32, imm: i32) -> u32 {
    run(a, 0, |asm| {
        op(asm, A2, A0, imm);
    })
}

fn shift(op: Shift, a: u32, shamt: u32) -> u32 {
    run(a, 0, |asm| {
        op(asm, A2, A0, shamt);
    })
}

// "Overflows are ignored and the low XLEN bits of results are written to the destination rd."
// (unprivileged 2.4.2)
#[test]
fn add_and_sub_ignore_overflow() {
    assert_eq!(binary(Asm::add, MAX, 1), MIN);
    assert_eq!(binary(Asm::add, MINUS_1, 1), 0);
    assert_eq!(binary(Asm::sub, MIN, 1), MAX);
    assert_eq!(binary(Asm::sub, 0, 1), MINUS_1);
}

#[test]
fn addi_sign_extends_its_immediate_and_ignores_overflow() {
    assert_eq!(immediate(Asm::addi, 0, -2048), 0xffff_f800);
    assert_eq!(immediate(Asm::addi, MAX, 2047), 0x8000_07fe);
    assert_eq!(immediate(Asm::addi, MIN, -1), MAX);
}

#[test]
fn slt_compares_signed_and_sltu_unsigned() {
    assert_eq!(binary(Asm::slt, MIN, MAX), 1);
    assert_eq!(binary(Asm::slt, MAX, MIN), 0);
    assert_eq!(binary(Asm::slt, 5, 5), 0);
    assert_eq!(binary(Asm::sltu, MIN, MAX), 0);
    assert_eq!(binary(Asm::sltu, MAX, MIN), 1);
}

// "SLTU rd, x0, rs2 sets rd to 1 if rs2 is not equal to zero" (2.4.2)
#[test]
fn sltu_with_x0_is_snez() {
    let snez = |v| {
        run(v, 0, |a| {
            a.sltu(A2, ZERO, A0);
        })
    };
    assert_eq!((snez(0), snez(1), snez(MIN)), (0, 1, 1));
}

#[test]
fn slti_compares_with_the_sign_extended_immediate() {
    assert_eq!(immediate(Asm::slti, MINUS_1, 0), 1);
    assert_eq!(immediate(Asm::slti, 0, -1), 0);
}

// "the immediate is first sign-extended to XLEN bits then treated as an unsigned number" (2.4.1)
#[test]
fn sltiu_sign_extends_then_compares_unsigned() {
    assert_eq!(immediate(Asm::sltiu, 5, -1), 1);
    assert_eq!(immediate(Asm::sltiu, MINUS_1, -1), 0);
    assert_eq!(immediate(Asm::sltiu, 0, 1), 1);
}

#[test]
fn logical_immediates_are_sign_extended() {
    assert_eq!(immediate(Asm::xori, 0x0f0f_0f0f, -1), 0xf0f0_f0f0);
    assert_eq!(immediate(Asm::ori, 0, -2048), 0xffff_f800);
    assert_eq!(immediate(Asm::andi, MINUS_1, -16), 0xffff_fff0);
}

#[test]
fn logic_works_bit_by_bit() {
    assert_eq!(binary(Asm::and, 0xff00_ff00, 0x0ff0_0ff0), 0x0f00_0f00);
    assert_eq!(binary(Asm::or, 0xff00_ff00, 0x0ff0_0ff0), 0xfff0_fff0);
    assert_eq!(binary(Asm::xor, 0xff00_ff00, 0x0ff0_0ff0), 0xf0f0_f0f0);
}

// "SLL, SRL, and SRA perform [...] shifts on the value in register rs1 by the shift amount held
// in the lower 5 bits of register rs2." (2.4.2)
#[test]
fn shift_amounts_are_taken_modulo_32() {
    assert_eq!(binary(Asm::sll, 1, 33), 2);
    assert_eq!(binary(Asm::srl, MIN, 32), MIN);
    assert_eq!(binary(Asm::sra, MIN, 0xffff_ffff), MINUS_1);
}

#[test]
fn shifts_by_zero_and_31() {
    assert_eq!(shift(Asm::slli, 0x8000_0001, 0), 0x8000_0001);
    assert_eq!(shift(Asm::slli, 1, 31), MIN);
    assert_eq!(shift(Asm::srli, MIN, 31), 1);
    assert_eq!(shift(Asm::srai, MIN, 31), MINUS_1);
    assert_eq!(shift(Asm::srai, MAX, 31), 0);
}

#[test]
fn lui_fills_the_low_bits_with_zeros() {
    let m = TestMachine::ran(|a| {
        a.lui(A2, 0xfffff);
    });
    assert_eq!(m.x(A2), 0xffff_f000);
}

#[test]
fn auipc_adds_to_its_own_address() {
    let m = TestMachine::ran(|a| {
        a.nop().auipc(A1, 0).auipc(A2, 0x80000);
    });
    assert_eq!((m.x(A1), m.x(A2)), (RAM + 4, 8));
}

#[test]
fn source_and_destination_may_be_the_same_register() {
    let m = TestMachine::ran(|a| {
        a.li(A0, 7).add(A0, A0, A0).sub(A1, A0, A0).xor(A0, A0, A0);
    });
    assert_eq!((m.x(A0), m.x(A1)), (0, 0));
}

// "Register x0 is hardwired with all bits equal to 0." (2.1)
#[test]
fn x0_stays_zero_whatever_writes_it() {
    let mut m = TestMachine::program(|a| {
        a.lui(ZERO, 1).auipc(ZERO, 1).addi(ZERO, ZERO, 5).add(ZERO, A0, A0).srai(ZERO, A0, 1);
        a.lw(ZERO, 0, A0).lbu(ZERO, 1, A0).mul(ZERO, A0, A0).div(ZERO, A0, A0);
        a.csrrw(ZERO, 0x340, A0).csrrs(ZERO, 0x340, ZERO);
        a.lr_w(ZERO, A0).sc_w(ZERO, A0, A0).amoadd_w(ZERO, A0, A0);
        let next = a.label();
        a.jal(ZERO, next).place(next).la(A1, next).jalr(ZERO, 12, A1).addi(A2, ZERO, 0);
    });
    m.set_x(A0, RAM).set_x(A2, 1).run_out();
    assert_eq!((m.x(ZERO), m.x(A2)), (0, 0));
}

#[test]
fn x0_stays_zero_after_a_load_that_hits_the_tlb() {
    let mut m = TestMachine::program(|a| {
        a.lw(A0, 0, S0).lw(ZERO, 0, S0).mv(A1, ZERO).lb(ZERO, 0, S0).addi(A2, ZERO, 0);
    });
    m.set_x(S0, RAM).set_x(A1, 1).set_x(A2, 1).run_out();
    assert_eq!([A1, A2, ZERO].map(|r| m.x(r)), [0; 3]);
}

#[test]
fn fence_and_hints_do_nothing() {
    let mut m = TestMachine::program(|a| {
        // fence.tso, pause, fence with reserved fields, fence.i with an immediate.
        a.fence().word(0x8330_000f).word(0x0100_000f).word(0xfff1_8f8f);
        a.fence_i().word(0xfff1_9f8f).li(A0, 1);
    });
    m.run_out();
    assert_eq!((m.taken(), m.x(A0)), (None, 1));
}

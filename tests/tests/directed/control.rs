//! Jumps and branches.

use pxvm_tests::asm::{Asm, Label, Reg, raw_branch, raw_jal, reg::*};
use pxvm_tests::machine::{RAM, to_m};

use crate::TestMachine;

type Branch = fn(&mut Asm, Reg, Reg, Label) -> &mut Asm;

const MISALIGNED: u32 = 0;
const BEQ: u32 = 0x63;
const BGEU: u32 = 0x7063;

fn taken(op: Branch, a: u32, b: u32) -> bool {
    let mut m = TestMachine::program(|asm| {
        let over = asm.label();
        op(asm, A0, A1, over).li(A2, 1).place(over);
    });
    m.set_x(A0, a).set_x(A1, b).run_out();
    m.x(A2) == 0
}

#[test]
fn branches_compare_as_their_names_say() {
    let (low, high) = (1, u32::MAX);
    let all = |a, b| {
        [Asm::beq as Branch, Asm::bne, Asm::blt, Asm::bge, Asm::bltu, Asm::bgeu]
            .map(|op| taken(op, a, b))
    };
    assert_eq!(all(low, low), [true, false, false, true, false, true]);
    assert_eq!(all(low, high), [false, true, false, true, true, false]);
    assert_eq!(all(high, low), [false, true, true, false, false, true]);
}

#[test]
fn branches_reach_4_kib_both_ways() {
    let mut m = TestMachine::program(|a| {
        let (far, back) = (a.label(), a.label());
        a.j(far).place(back).li(A0, 1).stop();
        a.pad_to(RAM + 4096).place(far).beq(ZERO, ZERO, back);
        // 4 KiB - 4 forward is the longest; the way back above is 4092 bytes.
    });
    m.run_out();
    assert_eq!(m.x(A0), 1);
}

#[test]
fn jal_links_the_next_instruction() {
    let m = TestMachine::ran(|a| {
        let over = a.label();
        a.jal(RA, over).li(A0, 1).place(over);
    });
    assert_eq!((m.x(RA), m.x(A0)), (RAM + 4, 0));
}

// "The target address is obtained by adding the sign-extended 12-bit I-immediate to the register
// rs1, then setting the least-significant bit of the result to zero." (2.5.1)
#[test]
fn jalr_clears_bit_0_of_the_sum() {
    let m = TestMachine::ran(|a| {
        let over = a.label();
        a.la(A0, over).addi(A0, A0, -4).jalr(RA, 5, A0).li(A1, 1).place(over);
    });
    assert_eq!((m.x(RA), m.x(A1)), (RAM + 16, 0));
}

#[test]
fn jalr_may_link_into_its_own_base() {
    let m = TestMachine::ran(|a| {
        let over = a.label();
        a.la(A0, over).jalr(A0, 0, A0).li(A1, 1).place(over);
    });
    assert_eq!((m.x(A0), m.x(A1)), (RAM + 12, 0));
}

// "The JAL and JALR instructions will generate an instruction-address-misaligned exception if the
// target address is not aligned to a four-byte boundary" (2.5.1); "reported on the branch or jump
// instruction, not on the target instruction" (2.2).
#[test]
fn jump_to_a_half_word_traps_at_the_jump_and_links_nothing() {
    let m = TestMachine::ran(|a| {
        a.nop().word(raw_jal(RA, 6));
    });
    assert_eq!(m.taken(), to_m(MISALIGNED, RAM + 4, RAM + 10));
    assert_eq!(m.x(RA), 0);

    let m = TestMachine::ran(|a| {
        a.li(A0, RAM).jalr(RA, 0x102, A0);
    });
    assert_eq!(m.taken(), to_m(MISALIGNED, RAM + 4, RAM + 0x102));
    assert_eq!(m.x(RA), 0);
}

#[test]
fn jump_to_a_half_word_without_link_traps_too() {
    let m = TestMachine::ran(|a| {
        a.word(raw_jal(ZERO, -2));
    });
    assert_eq!(m.taken(), to_m(MISALIGNED, RAM, RAM - 2));

    let m = TestMachine::ran(|a| {
        a.li(A0, RAM + 2).jalr(ZERO, 0, A0);
    });
    assert_eq!(m.taken().map(|t| t.tval), Some(RAM + 2));
}

// "No instruction-address-misaligned exception is generated for a conditional branch that is not
// taken." (2.5.2)
#[test]
fn branch_to_a_half_word_traps_only_when_taken() {
    let m = TestMachine::ran(|a| {
        a.word(raw_branch(BEQ, ZERO, ZERO, 10));
    });
    assert_eq!(m.taken(), to_m(MISALIGNED, RAM, RAM + 10));

    let m = TestMachine::ran(|a| {
        a.li(A0, 1).word(raw_branch(BGEU, ZERO, A0, -6)).li(A1, 1);
    });
    assert_eq!((m.taken(), m.x(A1)), (None, 1));
}

#[test]
fn pc_wraps_around_the_address_space() {
    // The last word of the address space is no RAM, so the jump there faults at its address.
    let m = TestMachine::ran(|a| {
        a.jalr(RA, -4, ZERO);
    });
    assert_eq!(m.taken(), to_m(1, 0xffff_fffc, 0xffff_fffc));
}

#[test]
fn code_runs_across_a_page_boundary() {
    let mut m = TestMachine::new();
    m.load(|_| {});
    m.load_at(RAM + 0x1ff8, |a| {
        a.li(A0, 1).li(A1, 2).li(A2, 3).li(A3, 4).stop();
    });
    m.vm.hart.pc = RAM + 0x1ff8;
    m.run_out();
    assert_eq!([A0, A1, A2, A3].map(|r| m.x(r)), [1, 2, 3, 4]);
}

#[test]
fn an_instruction_at_an_address_without_memory_is_an_access_fault() {
    let m = TestMachine::ran(|a| {
        a.li(A0, 0x4000_0000).jalr(ZERO, 0, A0);
    });
    assert_eq!(m.taken(), to_m(1, 0x4000_0000, 0x4000_0000));
}

#[test]
fn device_registers_cannot_be_executed() {
    let m = TestMachine::ran(|a| {
        a.li(A0, 0x1000_0000).jalr(ZERO, 0, A0);
    });
    assert_eq!(m.taken(), to_m(1, 0x1000_0000, 0x1000_0000));
}

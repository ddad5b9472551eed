//! What a guest does is the same by both instruction loops.
#![expect(clippy::tests_outside_test_module, reason = "the whole crate is a test")]

use emu_core::abi::ExitCode;
use emu_core::clock::Now;
use emu_core::csr::{irq, mstatus};
use pxvm_tests::asm::{csr::*, reg::*};
use pxvm_tests::hash::StateHash;
use pxvm_tests::loops::{Dispatch, InsnLoop, Uniform};
use pxvm_tests::machine::{DATA, M_HANDLER, MachineBy, RAM};
use pxvm_tests::memory::{Frames, Space};
use pxvm_tests::program::{IMAGE_SIZE, Image};

/// A program that uses all parts of a loop, with a timer that is due after `due` instructions.
fn interrupted_at<I: InsnLoop>(due: u64) -> MachineBy<I> {
    let mut m = MachineBy::new();
    m.load(|a| {
        let [top, f, over] = [(); 3].map(|()| a.label());
        a.place(top).lw(T0, 0, S0).addi(T0, T0, 3).sw(T0, 4, S0).lb(T1, 1, S1).sh(T1, 8, S0);
        a.mul(T2, T0, T1).divu(T2, T2, T0).amoadd_w(T3, T2, S0).csrrw(S3, MSCRATCH, T2);
        a.lw(T4, 2, S0).jal(RA, f).jalr(RA, 0, S2).bne(T0, T1, over).word(0).place(over);
        // An exception and a call to the next page, which it reaches by its end.
        a.word(0).add(S4, S4, T2).j(top).place(f).slli(S5, S5, 1).sra(S5, S5, T0).ret();
    });
    m.load_at(RAM + 0x1ff8, |a| {
        a.addi(S6, S6, 1).xor(S7, S7, S6).csrr(S8, INSTRET).ret();
    });
    m.load_at(M_HANDLER, |a| {
        let exception = a.label();
        // Never again.
        a.csrr(A0, MCAUSE).bge(A0, ZERO, exception).csrr(S9, MEPC).csrr(S10, INSTRET);
        a.csrrw(ZERO, MIE, ZERO).mret().place(exception);
        a.csrr(A1, MEPC).addi(A1, A1, 4).csrrw(ZERO, MEPC, A1).mret();
    });
    m.set_x(S0, DATA).set_x(S1, DATA + 0x2000).set_x(S2, RAM + 0x1ff8);
    m.set_csr(MIE, irq::MTI).set_csr(MSTATUS, mstatus::MIE);
    // A tick is an instruction.
    m.now = Now::Host { ticks: 0, rate: 1 << 24 };
    m.vm.platform.clock.set_timecmp(due);
    m
}

#[test]
fn a_timer_interrupts_before_any_instruction() {
    const INSTRUCTIONS: u32 = 200;
    /// Instructions of the program, but for those that trap.
    const INSNS: usize = 23;
    let mut places = Vec::new();
    for due in 1..INSTRUCTIONS.into() {
        let (mut one, mut other) =
            (interrupted_at::<Dispatch>(due), interrupted_at::<Uniform>(due));
        assert_eq!(one.run(INSTRUCTIONS), other.run(INSTRUCTIONS));
        assert_eq!(one.vm.hart.x, other.vm.hart.x, "due {due}");
        assert_eq!(one.hash(), other.hash(), "due {due}");
        places.push(one.x(S9));
    }
    places.sort_unstable();
    places.dedup();
    // Zero, where the timer did not come in time, is no place.
    assert_eq!(places.len() - usize::from(places[0] == 0), INSNS, "{places:x?}");
}

#[test]
fn a_budget_ends_before_any_instruction() {
    for budget in 0..200 {
        let (mut one, mut other) = (interrupted_at::<Dispatch>(77), interrupted_at::<Uniform>(77));
        assert_eq!(one.run(budget), other.run(budget));
        assert_eq!((one.hash(), one.vm.hart.x), (other.hash(), other.vm.hart.x), "{budget}");
    }
}

fn end_of<I: InsnLoop>(image: &Image) -> (StateHash, Vec<u8>) {
    let pages: Vec<[u8; 4096]> =
        image.bytes.chunks(4096).map(|p| p.try_into().expect("a page")).collect();
    let frames = Frames::new(&pages, pages.len() as u32);
    let table = (1..=pages.len() as u32).collect();
    let mut m = MachineBy::<I>::with_space(Space::new(&frames, table));
    let exit = m.run(100_000_000);
    assert_eq!(exit.code, ExitCode::PowerOff, "seed {}", image.seed);
    (m.hash(), m.read(RAM, IMAGE_SIZE))
}

#[test]
fn random_programs_in_all_modes_come_to_the_same_end() {
    for seed in 0..8 {
        let image = Image::new(seed, 100);
        let ((one, expected), (other, found)) =
            (end_of::<Dispatch>(&image), end_of::<Uniform>(&image));
        if let Some(text) = image.difference(&found, &expected) {
            panic!("{text}");
        }
        assert_eq!(one, other, "seed {seed}");
    }
}

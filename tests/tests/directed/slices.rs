//! "Everything else depends on the VM's state alone, not on how its instructions are divided into
//! runs" (`Machine::run`), and a run is a function of its inputs.

use pxvm_tests::asm::{Asm, csr::*, reg::*};
use pxvm_tests::hash::StateHash;
use pxvm_tests::memory::{Frames, Space};
use pxvm_tests::program::Image;

use emu_core::abi::ExitCode;
use emu_core::csr::{irq, mstatus};
use emu_core::dev::virtio::driver::Prng;

use crate::TestMachine;

/// Runs a machine until `budget` is used up or it has powered off.
fn in_slices(m: &mut TestMachine, budget: u32, mut next: impl FnMut() -> u32) -> StateHash {
    let mut left = budget;
    while left > 0 {
        let slice = next().min(left);
        match m.run(slice).code {
            ExitCode::Budget => left -= slice,
            ExitCode::PowerOff => break,
            code => panic!("{code:?}"),
        }
    }
    m.hash()
}

fn image_machine(image: &Image) -> TestMachine {
    let pages: Vec<[u8; 4096]> =
        image.bytes.chunks(4096).map(|p| p.try_into().expect("a page")).collect();
    let frames = Frames::new(&pages, pages.len() as u32);
    let table = (1..=pages.len() as u32).collect();
    TestMachine::with_space(Space::new(&frames, table))
}

#[test]
fn random_programs_do_not_see_slices() {
    for seed in 0..4 {
        let image = Image::new(1000 + seed, 6);
        // Less than the programs need, so that they are compared in the middle.
        for budget in [100_000, 173_217] {
            let whole = in_slices(&mut image_machine(&image), budget, || budget);
            let mut rng = Prng::new(seed);
            let cut = in_slices(&mut image_machine(&image), budget, || 1 + rng.below(1000));
            assert_eq!(cut, whole, "seed {seed} budget {budget}");
        }
    }
}

#[test]
fn random_programs_do_not_see_where_their_lane_waits_for_others() {
    for seed in 0..2 {
        let image = Image::new(2000 + seed, 6);
        let to_its_end = |ends_runs| {
            let mut m = image_machine(&image);
            m.lane.ends_runs = ends_runs;
            let mut runs = (1..1 << 20).map(|n| (n, m.run(1 << 12).code));
            let last = runs.find(|(_, code)| *code != ExitCode::Budget).expect("an end");
            (m.hash(), last)
        };
        let (whole, (few, code)) = to_its_end(false);
        let (cut, (many, _)) = to_its_end(true);
        assert_eq!((cut, code), (whole, ExitCode::PowerOff), "seed {seed}");
        assert!(many > few, "seed {seed}: {many} and {few} runs");
    }
}

#[test]
fn random_programs_do_not_see_single_steps() {
    let image = Image::new(77, 2);
    let whole = in_slices(&mut image_machine(&image), 60_000, || 60_000);
    let steps = in_slices(&mut image_machine(&image), 60_000, || 1);
    assert_eq!(steps, whole);
}

/// Computes, waits, and is interrupted by a timer at odd moments.
fn ticking(seed: u32) -> TestMachine {
    let mut m = TestMachine::program(|a| {
        let (handler, top, busy) = (a.label(), a.label(), a.label());
        a.la(T0, handler).csrrw(ZERO, MTVEC, T0).li(S0, 0x0200_4000).place(top);
        a.li(S2, 13).place(busy).slli(T0, S1, 13).xor(S1, S1, T0).srli(T0, S1, 17);
        a.xor(S1, S1, T0).slli(T0, S1, 5).xor(S1, S1, T0);
        a.addi(S2, S2, -1).bne(S2, ZERO, busy).wfi().word(0).j(top);
        // The handler of everything: the next timer is up to 31 ticks away.
        a.place(handler).csrr(T1, MCAUSE).add(S3, S3, T1).csrr(T1, TIME).xor(S4, S4, T1);
        a.csrr(T2, INSTRET).xor(S4, S4, T2).andi(T2, S1, 31).add(T1, T1, T2);
        a.sw(T1, 0, S0).sw(ZERO, 4, S0).csrr(T1, MCAUSE).srli(T1, T1, 31);
        let interrupt = a.label();
        a.bne(T1, ZERO, interrupt).csrr(T1, MEPC).addi(T1, T1, 4).csrrw(ZERO, MEPC, T1);
        a.place(interrupt).mret();
    });
    m.set_csr(MIE, irq::MTI).set_csr(MSTATUS, mstatus::MIE).set_x(S1, seed);
    m.vm.platform.clock.set_timecmp(40);
    m
}

#[test]
fn timer_interrupts_come_at_the_same_instruction_whatever_the_slices() {
    const BUDGET: u32 = 50_000;
    for seed in 1..6 {
        let whole = in_slices(&mut ticking(seed), BUDGET, || BUDGET);
        let mut rng = Prng::new(seed.into());
        assert_eq!(in_slices(&mut ticking(seed), BUDGET, || 1 + rng.below(1000)), whole);
        assert_eq!(in_slices(&mut ticking(seed), BUDGET, || 1 + rng.below(5)), whole);
        assert_eq!(in_slices(&mut ticking(seed), BUDGET, || 1), whole);
    }
}

#[test]
fn an_empty_slice_changes_nothing() {
    let mut m = ticking(3);
    in_slices(&mut m, 1000, || 1000);
    let before = m.hash();
    m.run(0);
    assert_eq!(m.hash(), before);
}

#[test]
fn a_budget_is_spent_exactly() {
    let mut m = TestMachine::program(|a| {
        let top = a.mark();
        a.addi(A0, A0, 1).j(top);
    });
    for budget in [1, 2, 3, 100, 999] {
        let before = m.vm.platform.clock.retired;
        m.run(budget);
        assert_eq!(m.vm.platform.clock.retired - before, u64::from(budget));
    }
}

#[test]
fn the_largest_budget_is_a_budget() {
    let mut m = TestMachine::program(|a| {
        a.li(A0, 3).store_li(0x10_0000, 0x5555);
    });
    assert_eq!(m.run(u32::MAX).code, ExitCode::PowerOff);
    assert_eq!(m.x(A0), 3);
}

#[test]
fn two_machines_with_the_same_inputs_end_equal() {
    let image = Image::new(5, 8);
    let run = || {
        let mut m = image_machine(&image);
        in_slices(&mut m, 1_000_000, || 100_000)
    };
    assert_eq!(run(), run());
}

#[test]
fn an_alarm_of_the_clock_comes_at_the_same_instruction_whatever_the_slices() {
    let machine = || {
        let mut m = TestMachine::program(|a: &mut Asm| {
            const RTC: u32 = 0x10_1000;
            const PLIC: u32 = 0x0c00_0000;
            a.store_li(PLIC + 4 * 11, 1).store_li(PLIC + 0x2000, 1 << 11);
            a.store_li(RTC + 0x10, 1).store_li(RTC + 0xc, 0).store_li(RTC + 8, 100_000);
            let top = a.mark();
            a.addi(A0, A0, 1).j(top);
        });
        m.set_csr(MIE, irq::MEI).set_csr(MSTATUS, mstatus::MIE);
        m
    };
    let whole = in_slices(&mut machine(), 20_000, || 20_000);
    assert_eq!(in_slices(&mut machine(), 20_000, || 7), whole);
    // It did come: 100 microseconds are 5000 instructions.
    let mut m = machine();
    in_slices(&mut m, 20_000, || 100);
    assert!(m.taken().is_some());
}

#[test]
fn a_timer_is_exact_after_a_day_without_rest() {
    let machine = || {
        let mut m = TestMachine::program(|a| {
            let top = a.mark();
            a.addi(A0, A0, 1).j(top);
        });
        m.set_csr(MIE, irq::MTI).set_csr(MSTATUS, mstatus::MIE);
        // 10 million ticks a second, five instructions a tick.
        let ticks = 24 * 3600 * 10_000_000;
        m.vm.platform.clock.retired = ticks * 5;
        let soon = m.vm.platform.clock.now() + 1000;
        m.vm.platform.clock.set_timecmp(soon);
        m
    };
    let whole = in_slices(&mut machine(), 20_000, || 20_000);
    assert_eq!(in_slices(&mut machine(), 20_000, || 7), whole);
}

#[test]
fn a_trap_loop_is_found_after_the_same_budget_whatever_the_slices() {
    let machine = || {
        let mut m = TestMachine::program(|a| {
            let handler = a.label();
            a.la(T0, handler).csrrw(ZERO, MTVEC, T0).nop().place(handler).word(0);
        });
        m.set_csr(MSTATUS, mstatus::MIE);
        m
    };
    let budget_to_fault = |slice: u32| {
        (1..100u32).find(|&n| {
            let mut m = machine();
            (0..n)
                .step_by(slice as usize)
                .any(|at| m.run(slice.min(n - at)).code == ExitCode::Fault)
        })
    };
    assert_eq!(budget_to_fault(1), budget_to_fault(100));
}

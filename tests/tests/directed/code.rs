//! Code that changes: decoded instructions never show.

use pxvm_tests::asm::{Asm, csr::*, reg::*};
use pxvm_tests::machine::{DATA, M_HANDLER, RAM, Sv32, pte};
use pxvm_tests::memory::{Frames, Space};

use emu_core::chacha::ChaCha;
use emu_core::dev::virtio::rng::Rng;
use emu_core::mem::{Memory, Ram};
use emu_core::mmu::Privilege::Supervisor;
use emu_core::sbi::eid;

use super::devices::ask_for_entropy;

use crate::TestMachine;

/// `ret`.
const RET: u32 = 0x0000_8067;

/// One instruction.
fn insn(f: impl FnOnce(&mut Asm)) -> u32 {
    Asm::build(0, f)[0]
}

fn li_a0(value: i32) -> u32 {
    insn(|a| {
        a.addi(A0, ZERO, value);
    })
}

/// Calls a function, replaces its first instruction by the one in `s1`, as `store` does it with
/// the address in `s0`, and calls it again. Returns the two results, which must be the same if the
/// page has data as well, which was written before.
fn patched(store: impl Fn(&mut Asm)) -> (u32, u32) {
    let of = |writes: u32| {
        let mut m = TestMachine::program(|a| {
            let (f, data) = (a.label(), a.label());
            a.la(S0, f).la(S4, data);
            for _ in 0..writes {
                a.sw(ZERO, 0, S4);
            }
            a.jal(RA, f).mv(S2, A0);
            store(a);
            a.jal(RA, f).mv(S3, A0).stop();
            a.place(f).word(li_a0(1)).ret().place(data).word(0);
        });
        m.set_x(S1, li_a0(2)).run_out();
        results(&m)
    };
    assert_eq!(of(0), of(3));
    of(0)
}

fn results(m: &TestMachine) -> (u32, u32) {
    (m.x(S2), m.x(S3))
}

#[test]
fn a_store_to_code_is_seen_after_fence_i() {
    let results = patched(|a| {
        a.sw(S1, 0, S0).fence_i();
    });
    assert_eq!(results, (1, 2));
}

// More than is asked for: "fence.i" may be left out, on the CPU and on the GPU alike.
#[test]
fn a_store_to_code_is_seen_without_fence_i() {
    let results = patched(|a| {
        a.sw(S1, 0, S0);
    });
    assert_eq!(results, (1, 2));
}

#[test]
fn narrow_and_misaligned_stores_to_code_are_seen() {
    let results = patched(|a| {
        a.sh(S1, 0, S0).srli(S1, S1, 16).sh(S1, 2, S0);
    });
    assert_eq!(results, (1, 2));
    let results = patched(|a| {
        a.srli(S1, S1, 16).sb(S1, 2, S0);
    });
    assert_eq!(results, (1, 2));
    // Bytes 1 to 4 of the function, so the `ret` keeps its first byte.
    let results = patched(|a| {
        a.srli(S1, S1, 8).lw(T0, 4, S0).slli(T0, T0, 24).or(S1, S1, T0).sw(S1, 1, S0);
    });
    assert_eq!(results, (1, 2));
}

#[test]
fn atomic_stores_to_code_are_seen() {
    let results = patched(|a| {
        a.amoswap_w(ZERO, S1, S0);
    });
    assert_eq!(results, (1, 2));
    let results = patched(|a| {
        a.lr_w(T0, S0).sc_w(T0, S1, S0);
    });
    assert_eq!(results, (1, 2));
}

#[test]
fn the_very_next_instruction_can_be_written() {
    let mut m = TestMachine::program(|a| {
        let slot = a.label();
        a.la(S0, slot).sw(S1, 0, S0).place(slot).word(li_a0(1));
    });
    m.set_x(S1, li_a0(2)).run_out();
    assert_eq!(m.x(A0), 2);
}

#[test]
fn a_loop_that_rewrites_itself_runs_each_version() {
    let mut m = TestMachine::program(|a| {
        let slot = a.label();
        let top = a.li(S2, 50).la(S0, slot).mark();
        a.place(slot).word(li_a0(0)).add(S3, S3, A0);
        // The immediate grows by one each time.
        a.lw(T0, 0, S0).li(T1, 1 << 20).add(T0, T0, T1).sw(T0, 0, S0);
        a.addi(S2, S2, -1).bne(S2, ZERO, top);
    });
    m.run_out();
    assert_eq!(m.x(S3), (0..50).sum());
}

#[test]
fn data_beside_code_can_be_written_all_the_time() {
    let mut m = TestMachine::program(|a| {
        let (data, top) = (a.label(), a.label());
        a.la(S0, data).li(S2, 100).place(top).lw(T0, 0, S0).addi(T0, T0, 3).sw(T0, 0, S0);
        a.addi(S2, S2, -1).bne(S2, ZERO, top).lw(A0, 0, S0).stop().place(data).word(0);
    });
    m.run_out();
    assert_eq!(m.x(A0), 300);
}

#[test]
fn a_page_with_data_keeps_the_instructions_that_a_store_does_not_change() {
    let frames = Frames::new(&[[0; 4096]], 1);
    let mut space = Space::new(&frames, vec![1]);
    space.with(|ram, _| {
        let frame = ram.make_private(0).unwrap();
        let code = ram.code(0, frame);
        ram.set_decoded(code, 0, 7);
        // The first store may be one of many that make the page something else.
        assert!(ram.drop_code_at(frame, 4) && !ram.is_code(0, frame));
        let code = ram.code(0, frame);
        (0..3).for_each(|at| ram.set_decoded(code, at, 7));
        for (offset, left) in [(0x100, [7, 7, 7]), (4, [7, 0, 7]), (11, [7, 0, 0])] {
            assert!(!ram.drop_code_at(frame, offset) && ram.is_code(0, frame));
            assert_eq!([0, 1, 2].map(|at| ram.decoded(code, at)), left, "{offset}");
        }
        ram.drop_code_at(frame, 3);
        assert_eq!([0, 1, 2].map(|at| ram.decoded(code, at)), [0, 0, 0]);
    });
}

#[test]
fn a_store_over_the_end_of_a_page_changes_code_on_both() {
    let f = RAM + 0x1ffc;
    let mut m = TestMachine::program(|a| {
        a.li(S0, f).jalr(RA, 0, S0).mv(S2, A0).lw(T0, 2, S0).add(T0, T0, S1).sw(T0, 2, S0);
        a.jalr(RA, 0, S0).mv(S3, A0);
    });
    m.load_at(f, |a| {
        a.li(A0, 1).addi(A0, A0, 0x10).ret();
    });
    // Two immediates: the first one's upper half and the second one's rd.
    m.set_x(S1, 0x0010).run_out();
    assert_eq!(results(&m), (0x11, 0x12));
}

#[test]
fn code_written_through_another_address_is_seen() {
    let mut m = TestMachine::program(|a| {
        a.jalr(RA, 0, S0).mv(S2, A0).sw(S1, 0, S4).jalr(RA, 0, S0).mv(S3, A0);
    });
    let mut tables = Sv32::new();
    tables.map_super(&mut m, RAM, RAM, pte::S_ALL);
    tables.map(&mut m, 0x4000_0000, DATA, pte::V | pte::R | pte::X | pte::A);
    tables.map(&mut m, 0x4000_1000, DATA, pte::V | pte::R | pte::W);
    m.load_at(DATA, |a| {
        a.word(li_a0(1)).ret();
    });
    m.set_x(S0, 0x4000_0000).set_x(S1, li_a0(2)).set_x(S4, 0x4000_1000);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(results(&m), (1, 2));
}

// A page table entry that is executed before and after the walk sets D in it. `jalr x0, 0(ra)`
// reads as V, R, W, G and A; D is the lowest bit of rd, which makes it `jalr ra, 0(ra)`.
#[test]
fn setting_d_in_a_page_table_entry_that_is_also_code_is_seen() {
    let va = 0x4000_0000;
    let mut m = TestMachine::program(|a| {
        a.jalr(RA, 0, S0).mv(S2, RA).sw(ZERO, 0, S1).jalr(RA, 0, S0).mv(S3, RA);
    });
    // The page is at 0x2_0000, where nothing is: the store traps, and is skipped.
    m.load_at(M_HANDLER, |a| {
        a.csrr(T0, MEPC).addi(T0, T0, 4).csrrw(ZERO, MEPC, T0).mret();
    });
    let mut tables = Sv32::new();
    tables.map_super(&mut m, RAM, RAM, pte::S_ALL);
    let entry = tables.entry(&mut m, va);
    assert_eq!(RET & 0xff, pte::V | pte::R | pte::W | pte::G | pte::A);
    m.write_words(entry, &[RET]).set_x(S0, entry).set_x(S1, va);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.word(entry), RET | pte::D);
    assert_eq!(results(&m), (RAM + 4, entry + 4));
}

// The walk of a fetch sets A in a page table that is executed before and after it.
#[test]
fn code_beside_a_page_table_entry_whose_a_is_set_can_be_written() {
    let va = 0x4000_0000;
    // A page that has been executed before, at its physical address.
    let page = DATA + 0x5000;
    let mut m = TestMachine::program(|a| {
        a.jalr(RA, 0, S5)
            .jalr(RA, 0, S0)
            .jalr(RA, 0, S0)
            .jalr(RA, 0, S4)
            .jalr(RA, 0, S0)
            .mv(S2, A0);
        a.sw(S1, 0, S0).jalr(RA, 0, S0).mv(S3, A0);
    });
    let mut tables = Sv32::new();
    tables.map_super(&mut m, RAM, RAM, pte::S_ALL);
    tables.map(&mut m, va, page, pte::V | pte::R | pte::X);
    let entry = tables.entry(&mut m, va);
    let function = entry + 0x800;
    m.write_words(function, &[li_a0(1), RET]).write_words(page, &[RET]);
    m.set_x(S0, function).set_x(S1, li_a0(2)).set_x(S4, va).set_x(S5, page);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.word(entry), pte::leaf(page.into(), pte::V | pte::R | pte::X | pte::A));
    assert_eq!(results(&m), (1, 2));
}

// An LR walks, too, where other pages may have the frame that it loads from.
#[test]
fn code_beside_a_page_table_entry_whose_a_an_lr_sets_can_be_written() {
    let va = 0x4000_0000;
    let mut m = TestMachine::program(|a| {
        a.jalr(ZERO, 0, S7);
    });
    let mut tables = Sv32::new();
    tables.map_super(&mut m, RAM, RAM, pte::S_ALL);
    // Nothing was written to the page, so its frame is that of all zeros.
    tables.map(&mut m, va, DATA, pte::V | pte::R);
    let entry = tables.entry(&mut m, va);
    let (code, function) = (entry + 0x800, entry + 0x900);
    m.load_at(code, |a| {
        // A is set, cleared without a fence, and set again.
        a.lw(T0, 0, S4).sw(S6, 0, S0).lr_w(T0, S4);
        a.jalr(RA, 0, S5).mv(S2, A0).sw(S1, 0, S5).jalr(RA, 0, S5).mv(S3, A0).stop();
    });
    m.write_words(function, &[li_a0(1), RET]);
    m.set_x(S0, entry).set_x(S1, li_a0(2)).set_x(S4, va).set_x(S5, function).set_x(S7, code);
    let before = m.word(entry);
    m.set_x(S6, before);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.word(entry), before | pte::A);
    assert_eq!(results(&m), (1, 2));
}

#[test]
fn a_device_that_writes_over_code_is_seen() {
    // The entropy device fills a page that has been executed: what is there now is executed.
    let page = DATA + 0x4000;
    let mut m = TestMachine::program(|a| {
        a.li(S0, page).jalr(RA, 0, S0).mv(S2, A0);
        ask_for_entropy(a, page, 4);
        a.jalr(RA, 0, S0).mv(S3, A0);
    });
    m.load_at(page, |a| {
        a.word(li_a0(1)).ret();
    });
    m.vm.platform.dev.virtio.rng = Rng::new(ChaCha::new([0; 8]));
    m.run_out();
    let word = m.word(page);
    assert_ne!(word, li_a0(1));
    assert_eq!(m.x(S2), 1);
    // Almost every word is illegal; the trap says which it was.
    let decoded = emu_core::insn::decode(word);
    if decoded == emu_core::insn::Op::Illegal {
        assert_eq!((m.csr(MCAUSE), m.csr(MTVAL), m.csr(MEPC)), (2, word, page));
    }
}

#[test]
fn console_input_written_over_code_is_seen() {
    let mut m = TestMachine::supervisor(|a| {
        a.jalr(RA, 0, S0).mv(S2, A0);
        a.li(A7, eid::DBCN).li(A6, 1).li(A0, 4).mv(A1, S0).li(A2, 0).ecall();
        a.jalr(RA, 0, S0).mv(S3, A0);
    });
    m.load_at(DATA, |a| {
        a.word(li_a0(1)).ret();
    });
    m.port.input.extend(li_a0(2).to_le_bytes());
    m.set_x(S0, DATA).run_out();
    assert_eq!(results(&m), (1, 2));
}

#[test]
fn code_that_the_host_replaces_between_slices_is_seen() {
    let mut m = TestMachine::program(|a| {
        let top = a.mark();
        a.word(li_a0(1)).j(top);
    });
    m.run(100);
    m.write_words(RAM, &[li_a0(2)]).run(100);
    assert_eq!(m.x(A0), 2);
}

#[test]
fn many_pages_of_code_that_change_are_told_apart() {
    // More pages than decoded pages are kept, each called and patched in turn, twice over.
    const PAGES: u32 = 150;
    let mut m = TestMachine::program(|a| {
        let (round, page) = (a.label(), a.label());
        a.li(S4, 3).place(round).li(S0, DATA).li(S2, PAGES).place(page);
        a.jalr(RA, 0, S0).add(S3, S3, A0);
        a.lw(T0, 0, S0).add(T0, T0, S1).sw(T0, 0, S0).add(S0, S0, S5);
        a.addi(S2, S2, -1).bne(S2, ZERO, page).addi(S4, S4, -1).bne(S4, ZERO, round);
    });
    for page in 0..PAGES {
        m.write_words(DATA + page * 0x1000, &[li_a0(page as i32), RET]);
    }
    m.set_x(S1, 1 << 20).set_x(S5, 0x1000).run_out();
    let expected: u32 = (0..3).map(|round| (0..PAGES).map(|p| p + round).sum::<u32>()).sum();
    assert_eq!(m.x(S3), expected);
}

/// Makes two machines that share an image: a function that returns 1, and a program that patches
/// it.
fn fleet_of_two() -> [TestMachine; 2] {
    let mut page = [0; 4096];
    let words = Asm::build(RAM, |a| {
        let f = a.label();
        a.la(S0, f).jal(RA, f).mv(S2, A0).beq(S1, ZERO, f);
        a.sw(S1, 0, S0).jal(RA, f).mv(S3, A0).stop();
        a.place(f).word(li_a0(1)).ret();
    });
    for (bytes, word) in page.chunks_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let frames = Frames::new(&[page], 8);
    [0, 1].map(|_| TestMachine::on(&frames, vec![1]))
}

#[test]
fn code_in_a_shared_frame_is_changed_for_one_machine_alone() {
    let [mut a, mut b] = fleet_of_two();
    let image = a.frames().shared_bytes();
    a.set_x(S1, li_a0(2)).run(100);
    assert_eq!(results(&a), (1, 2));
    b.set_x(S1, li_a0(3)).run(100);
    assert_eq!(results(&b), (1, 3));
    assert_eq!(a.frames().shared_bytes(), image);
    assert!(a.is_private(RAM) && b.is_private(RAM));
}

#[test]
fn machines_that_take_turns_do_not_see_each_others_code() {
    let [mut a, mut b] = fleet_of_two();
    a.set_x(S1, li_a0(2));
    b.set_x(S1, li_a0(3));
    for _ in 0..100 {
        a.run(1);
        b.run(1);
    }
    assert_eq!((results(&a), results(&b)), ((1, 2), (1, 3)));
}

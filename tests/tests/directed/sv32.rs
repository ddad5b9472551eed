//! Sv32 translation (privileged 10.3).

use pxvm_tests::asm::{Asm, csr::*, reg::*};
use pxvm_tests::machine::{DATA, RAM, Sv32, TABLES, pte, to_m};

use emu_core::csr::mstatus;
use emu_core::mmu::Privilege::{self, Machine, Supervisor, User};

use crate::TestMachine;

const LOAD_ACCESS: u32 = 5;
const STORE_ACCESS: u32 = 7;
const INSN_ACCESS: u32 = 1;
const INSN_PAGE: u32 = 12;
const LOAD_PAGE: u32 = 13;
const STORE_PAGE: u32 = 15;

/// The page that tests map.
const VA: u32 = 0x4000_3000;
/// Its frame.
const PA: u32 = DATA + 0x3000;

/// Loads, then stores, at `s0`.
fn load_store(a: &mut Asm) {
    a.lw(A0, 8, S0).sw(A1, 12, S0);
}

/// A machine about to run `f` in `privilege`, RAM mapped to itself for it, `s0` at `VA`.
fn machine(privilege: Privilege, tables: &mut Sv32, f: impl FnOnce(&mut Asm)) -> TestMachine {
    let mut m = TestMachine::program(f);
    let bits = if privilege == User { pte::U_ALL } else { pte::S_ALL };
    tables.map_super(&mut m, RAM, RAM, bits);
    m.set_x(S0, VA).set_x(A1, 5).write_words(PA + 8, &[3]);
    m
}

/// Runs `f` in `privilege` with `VA` mapped to `PA` with permission `bits`.
fn ran(privilege: Privilege, status: u32, bits: u32, f: impl FnOnce(&mut Asm)) -> TestMachine {
    let mut tables = Sv32::new();
    let mut m = machine(privilege, &mut tables, f);
    tables.map(&mut m, VA, PA, bits);
    m.set_csr(MSTATUS, status);
    tables.enable(&mut m, privilege);
    m.run_out();
    m
}

/// Cause and value of the trap that a load, and a store, take.
fn faults(privilege: Privilege, status: u32, bits: u32) -> [Option<u32>; 2] {
    let load = ran(privilege, status, bits, |a| {
        a.lw(A0, 8, S0);
    });
    let store = ran(privilege, status, bits, |a| {
        a.sw(A0, 8, S0);
    });
    [load, store].map(|m| {
        m.taken().map(|t| {
            assert_eq!((t.epc, t.tval), (RAM, VA + 8));
            t.cause
        })
    })
}

/// The page table entry of `VA`.
fn entry_bits(m: &mut TestMachine) -> u32 {
    let entry = Sv32::new().entry(m, VA);
    m.word(entry)
}

const AD: u32 = pte::A | pte::D;
const BOTH_FAULT: [Option<u32>; 2] = [Some(LOAD_PAGE), Some(STORE_PAGE)];

#[test]
fn a_page_translates_loads_and_stores() {
    let mut m = ran(Supervisor, 0, pte::S_ALL, load_store);
    assert_eq!((m.taken(), m.x(A0), m.word(PA + 12)), (None, 3, 5));
}

#[test]
fn bare_mode_does_not_translate() {
    let mut m = TestMachine::program(load_store);
    m.set_csr(SATP, TABLES >> 12).set_x(S0, PA).enter(User).write_words(PA + 8, &[3]).run_out();
    assert_eq!((m.taken(), m.x(A0)), (None, 3));
}

#[test]
fn machine_mode_is_not_translated() {
    let mut m = ran(Machine, 0, pte::S_ALL, load_store);
    assert_eq!(m.taken().map(|t| t.cause), Some(LOAD_ACCESS));
    m.load(load_store).set_x(S0, PA).run_out();
    assert_eq!((m.taken(), m.x(A0)), (None, 3));
}

#[test]
fn unmapped_pages_fault() {
    assert_eq!(faults(Supervisor, 0, 0), BOTH_FAULT);
    assert_eq!(faults(Supervisor, 0, pte::S_ALL & !pte::V), BOTH_FAULT);
}

#[test]
fn permissions_are_per_access() {
    let [v, r, w, x] = [pte::V, pte::R, pte::W, pte::X];
    assert_eq!(faults(Supervisor, 0, v | r | AD), [None, Some(STORE_PAGE)]);
    assert_eq!(faults(Supervisor, 0, v | r | w | AD), [None, None]);
    assert_eq!(faults(Supervisor, 0, v | x | AD), BOTH_FAULT);
    assert_eq!(faults(Supervisor, 0, v | r | x | AD), [None, Some(STORE_PAGE)]);
}

// "the encodings with w=1 and r=0 are reserved" (table 10.4)
#[test]
fn write_without_read_is_reserved() {
    assert_eq!(faults(Supervisor, 0, pte::V | pte::W | AD), BOTH_FAULT);
    assert_eq!(faults(Supervisor, 0, pte::V | pte::W | pte::X | AD), BOTH_FAULT);
}

#[test]
fn user_mode_needs_user_pages() {
    assert_eq!(faults(User, 0, pte::S_ALL), BOTH_FAULT);
    assert_eq!(faults(User, 0, pte::U_ALL), [None, None]);
}

#[test]
fn supervisor_needs_sum_for_user_pages() {
    assert_eq!(faults(Supervisor, 0, pte::U_ALL), BOTH_FAULT);
    assert_eq!(faults(Supervisor, mstatus::SUM, pte::U_ALL), [None, None]);
    assert_eq!(faults(User, mstatus::SUM, pte::S_ALL), BOTH_FAULT);
}

#[test]
fn sum_takes_effect_at_once_both_ways() {
    let m = ran(Supervisor, mstatus::SUM, pte::U_ALL, |a| {
        a.lw(A0, 8, S0).li(T0, mstatus::SUM).csrrc(ZERO, SSTATUS, T0).lw(A2, 8, S0);
    });
    assert_eq!((m.x(A0), m.taken().map(|t| t.cause)), (3, Some(LOAD_PAGE)));
    let m = ran(Supervisor, 0, pte::U_ALL, |a| {
        a.li(T0, mstatus::SUM).csrrs(ZERO, SSTATUS, T0).lw(A2, 8, S0).lw(A3, 8, S0);
    });
    assert_eq!((m.x(A3), m.taken()), (3, None));
}

#[test]
fn mxr_makes_executable_pages_readable() {
    let x_only = pte::V | pte::X | AD;
    assert_eq!(faults(Supervisor, mstatus::MXR, x_only), [None, Some(STORE_PAGE)]);
    assert_eq!(faults(User, mstatus::MXR, x_only | pte::U), [None, Some(STORE_PAGE)]);
}

#[test]
fn mxr_takes_effect_at_once_both_ways() {
    let m = ran(Supervisor, mstatus::MXR, pte::V | pte::X | AD, |a| {
        a.lw(A0, 8, S0).li(T0, mstatus::MXR).csrrc(ZERO, SSTATUS, T0).lw(A2, 8, S0);
    });
    assert_eq!((m.x(A0), m.taken().map(|t| t.cause)), (3, Some(LOAD_PAGE)));
}

// "supervisor code [...] may not execute code on pages with U=1" whatever SUM says (10.1.1.2)
#[test]
fn supervisor_never_executes_user_pages() {
    let m = ran(Supervisor, mstatus::SUM, pte::U_ALL, |a| {
        a.jalr(ZERO, 0, S0);
    });
    assert_eq!(m.taken(), to_m(INSN_PAGE, VA, VA));
}

#[test]
fn fetch_needs_execute_permission() {
    let fetch = |privilege, bits| {
        ran(privilege, 0, bits, |a| {
            a.jalr(ZERO, 0, S0);
        })
        .taken()
        .map(|t| (t.cause, t.epc, t.tval))
    };
    let fault = Some((INSN_PAGE, VA, VA));
    assert_eq!(fetch(Supervisor, pte::V | pte::R | pte::W | AD), fault);
    assert_eq!(fetch(User, pte::S_ALL), fault);
    // Allowed: what is there is illegal.
    assert_eq!(fetch(User, pte::U_ALL), Some((2, VA, 0)));
    assert_eq!(fetch(Supervisor, pte::V | pte::X | pte::A), Some((2, VA, 0)));
}

#[test]
fn mprv_makes_machine_mode_load_and_store_as_mpp_says() {
    let status = |mpp: u32| mstatus::MPRV | mpp << mstatus::MPP_SHIFT;
    let run = |mpp, bits| {
        let mut m = ran(Machine, status(mpp), bits, load_store);
        (m.taken().map(|t| t.cause), m.x(A0), m.word(PA + 12))
    };
    assert_eq!(run(1, pte::S_ALL), (None, 3, 5));
    assert_eq!(run(0, pte::U_ALL), (None, 3, 5));
    assert_eq!(run(0, pte::S_ALL), (Some(LOAD_PAGE), 0, 0));
    assert_eq!(run(1, pte::U_ALL), (Some(LOAD_PAGE), 0, 0));
    assert_eq!(run(3, pte::S_ALL), (Some(LOAD_ACCESS), 0, 0));
}

#[test]
fn mprv_does_not_translate_fetches() {
    // The program's own page is not mapped at all, yet it runs.
    let mut m = TestMachine::program(load_store);
    let mut tables = Sv32::new();
    tables.map(&mut m, VA, PA, pte::S_ALL);
    m.set_csr(SATP, Sv32::satp()).set_csr(MSTATUS, mstatus::MPRV | 1 << mstatus::MPP_SHIFT);
    m.set_x(S0, VA).set_x(A1, 5).run_out();
    assert_eq!((m.taken(), m.word(PA + 12)), (None, 5));
}

#[test]
fn loads_set_a_and_stores_set_a_and_d() {
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, |a| {
        a.lw(A0, 8, S0);
    });
    let bits = pte::V | pte::R | pte::W;
    tables.map(&mut m, VA, PA, bits);
    let entry = tables.entry(&mut m, VA);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.word(entry), pte::leaf(u64::from(PA), bits | pte::A));
    m.load(|a| {
        a.sw(A0, 8, S0);
    });
    m.run_out();
    assert_eq!(m.word(entry), pte::leaf(u64::from(PA), bits | pte::A | pte::D));
}

#[test]
fn a_store_after_a_load_sets_d_without_a_fence() {
    let mut m = ran(Supervisor, 0, pte::V | pte::R | pte::W, load_store);
    assert_eq!(entry_bits(&mut m) & AD, AD);
}

#[test]
fn fetches_set_a() {
    let mut m = ran(Supervisor, 0, pte::V | pte::X, |a| {
        a.jalr(ZERO, 0, S0);
    });
    assert_eq!(entry_bits(&mut m) & AD, pte::A);
}

#[test]
fn an_access_that_is_refused_sets_nothing() {
    let mut m = ran(Supervisor, 0, pte::V | pte::R, |a| {
        a.sw(A0, 8, S0);
    });
    assert_eq!(entry_bits(&mut m) & AD, 0);
}

#[test]
fn a_and_d_of_a_superpage_are_in_its_root_entry() {
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, |a| {
        a.sw(A0, 8, S0);
    });
    tables.map_super(&mut m, VA, RAM, pte::V | pte::R | pte::W);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.word(Sv32::root_entry(VA)) & AD, AD);
}

#[test]
fn a_superpage_translates_22_bits_of_offset() {
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, |a| {
        a.lw(A0, 0, S0);
    });
    tables.map_super(&mut m, 0x4000_0000, RAM, pte::S_ALL);
    m.write_words(RAM + 0x3f_fffc, &[77]).set_x(S0, 0x403f_fffc);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.x(A0), 77);
}

// "If i>0 and pte.ppn[i-1:0] ≠ 0, this is a misaligned superpage; stop and raise a page-fault"
// (10.3.2, step 6)
#[test]
fn a_misaligned_superpage_faults() {
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, |a| {
        a.lw(A0, 0, S0);
    });
    tables.map_super(&mut m, VA, RAM + 0x1000, pte::S_ALL);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.taken(), to_m(LOAD_PAGE, RAM, VA));
}

#[test]
fn a_pointer_at_the_last_level_faults() {
    assert_eq!(faults(Supervisor, 0, pte::V), BOTH_FAULT);
}

// "For non-leaf PTEs, the D, A, and U bits are reserved for future standard use" (10.3.1)
#[test]
fn a_pointer_with_reserved_bits_faults() {
    for bit in [pte::D, pte::A, pte::U] {
        let mut tables = Sv32::new();
        let mut m = machine(Supervisor, &mut tables, |a| {
            a.lw(A0, 0, S0);
        });
        tables.map(&mut m, VA, PA, pte::S_ALL);
        let root = m.word(Sv32::root_entry(VA));
        m.write_words(Sv32::root_entry(VA), &[root | bit]);
        tables.enable(&mut m, Supervisor);
        m.run_out();
        assert_eq!(m.taken(), to_m(LOAD_PAGE, RAM, VA));
    }
}

#[test]
fn global_and_software_bits_mean_nothing_to_one_address_space() {
    assert_eq!(faults(Supervisor, 0, pte::S_ALL | pte::G | 3 << 8), [None, None]);
}

#[test]
fn a_page_table_outside_of_ram_is_an_access_fault() {
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, load_store);
    m.write_words(Sv32::root_entry(VA), &[pte::leaf(0x1000_0000, pte::V)]);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.taken(), to_m(LOAD_ACCESS, RAM, VA + 8));
}

#[test]
fn a_root_table_outside_of_ram_is_an_access_fault() {
    let mut m = TestMachine::program(load_store);
    m.set_csr(SATP, 1 << 31).enter(Supervisor).run_out();
    assert_eq!(m.taken(), to_m(INSN_ACCESS, RAM, RAM));
}

#[test]
fn pages_may_lie_on_devices_and_on_nothing() {
    let access = |pa: u64| {
        let mut tables = Sv32::new();
        let mut m = machine(Supervisor, &mut tables, |a| {
            a.sw(A1, 0, S0);
        });
        let entry = tables.entry(&mut m, VA);
        m.write_words(entry, &[pte::leaf(pa, pte::S_ALL)]);
        tables.enable(&mut m, Supervisor);
        m.run_out();
        (m.taken().map(|t| (t.cause, t.tval)), m.vm.platform.dev.clint.msip)
    };
    assert_eq!(access(0x0200_0000), (None, 1));
    assert_eq!(access(0x4000_0000), (Some((STORE_ACCESS, VA)), 0));
    // "Sv32 [...] 34-bit physical address": above 4 GiB there is nothing, and no wrap to RAM.
    assert_eq!(access(0x1_8000_0000), (Some((STORE_ACCESS, VA)), 0));
    assert_eq!(access(0x3_0200_0000), (Some((STORE_ACCESS, VA)), 0));
}

#[test]
fn two_addresses_of_one_page_see_the_same_memory() {
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, |a| {
        a.lw(A0, 8, S1).sw(A1, 8, S0).lw(A2, 8, S1);
    });
    tables.map(&mut m, VA, PA, pte::S_ALL).map(&mut m, VA + 0x1000, PA, pte::S_ALL);
    m.set_x(S1, VA + 0x1000);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!((m.x(A0), m.x(A2)), (3, 5));
}

#[test]
fn an_address_whose_first_page_became_private_through_another_is_seen() {
    // Both addresses map one page with a shared frame; the store through the first replaces it.
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, |a| {
        a.lw(A0, 0, S1).sw(A1, 0, S0).lw(A2, 0, S1);
    });
    let fresh = DATA + 0x9000;
    tables.map(&mut m, VA, fresh, pte::S_ALL).map(&mut m, VA + 0x1000, fresh, pte::S_ALL);
    m.set_x(S1, VA + 0x1000);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!((m.x(A0), m.x(A2)), (0, 5));
}

/// Reads `VA`, lets `fence` follow a store of `s2` to the page table entry at `s1`, reads again.
fn remapped(fence: fn(&mut Asm)) -> (u32, u32) {
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, |a| {
        // The first load walks, and the second finds what that has cached.
        a.lw(A0, 8, S0).lw(A0, 8, S0).sw(S2, 0, S1);
        fence(a);
        a.lw(A2, 8, S0);
    });
    tables.map(&mut m, VA, PA, pte::S_ALL);
    let entry = tables.entry(&mut m, VA);
    m.write_words(PA + 0x1008, &[4]);
    m.set_x(S1, entry).set_x(S2, pte::leaf(u64::from(PA + 0x1000), pte::S_ALL));
    tables.enable(&mut m, Supervisor);
    m.run_out();
    (m.x(A0), m.x(A2))
}

/// Changes the mapping of `VA` without a fence, while only the L2 TLB has it, and stores there.
/// Returns what is in the frame of the old mapping and in that of the new one.
fn stored_without_a_fence(executed: bool) -> [u32; 2] {
    // It shares an entry of the L1 TLB with `VA`, and none of the L2 TLB.
    const OTHER: u32 = VA ^ 0x4_1000;
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, |a| {
        a.sw(A1, 8, S0);
        if executed {
            a.jalr(RA, 0, S0);
        }
        a.lw(A0, 0, S3).sw(S2, 0, S1).sw(A1, 12, S0);
    });
    tables.map(&mut m, VA, PA, pte::S_ALL).map(&mut m, OTHER, PA + 0x2000, pte::S_ALL);
    let entry = tables.entry(&mut m, VA);
    let ret = Asm::build(0, |a| {
        a.ret();
    });
    m.write_words(PA, &ret);
    m.set_x(S1, entry).set_x(S2, pte::leaf(u64::from(PA + 0x1000), pte::S_ALL)).set_x(S3, OTHER);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.taken(), None);
    [m.word(PA + 12), m.word(PA + 0x1000 + 12)]
}

// Which instructions are decoded is not the same on all backends, so it must not decide.
#[test]
fn without_a_fence_a_store_to_code_uses_the_same_mapping_as_a_store_to_data() {
    assert_eq!(stored_without_a_fence(true), stored_without_a_fence(false));
    assert_eq!(stored_without_a_fence(false), [5, 0]);
}

#[test]
fn sfence_vma_makes_a_new_mapping_seen() {
    assert_eq!(
        remapped(|a| {
            a.sfence_vma(ZERO, ZERO);
        }),
        (3, 4)
    );
    assert_eq!(
        remapped(|a| {
            a.sfence_vma(S0, ZERO);
        }),
        (3, 4)
    );
    assert_eq!(
        remapped(|a| {
            a.sfence_vma(S0, A1);
        }),
        (3, 4)
    );
    assert_eq!(
        remapped(|a| {
            a.sfence_vma(ZERO, A1);
        }),
        (3, 4)
    );
    // Any address of the page will do.
    assert_eq!(
        remapped(|a| {
            a.addi(T0, S0, 0x7ff).sfence_vma(T0, ZERO);
        }),
        (3, 4)
    );
}

#[test]
fn writing_satp_makes_a_new_mapping_seen() {
    assert_eq!(
        remapped(|a| {
            a.csrr(T0, SATP).csrrw(ZERO, SATP, T0);
        }),
        (3, 4)
    );
}

#[test]
fn sfence_vma_of_one_address_covers_the_whole_superpage() {
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, |a| {
        // A piece of the superpage is cached, the fence names another.
        a.lw(A0, 0, S0).lw(A0, 0, S0).sw(ZERO, 0, S1).sfence_vma(S2, ZERO).lw(A2, 0, S0);
    });
    tables.map_super(&mut m, 0x4000_0000, RAM, pte::S_ALL);
    m.set_x(S0, 0x4010_0000).set_x(S1, Sv32::root_entry(0x4000_0000)).set_x(S2, 0x4020_0000);
    m.write_words(DATA, &[9]);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(
        (m.x(A0), m.taken().map(|t| (t.cause, t.tval))),
        (9, Some((LOAD_PAGE, 0x4010_0000)))
    );
}

#[test]
fn sfence_vma_moves_the_code_under_the_hart() {
    // The instruction behind the fence comes from the page that is mapped now.
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, |a| {
        a.jalr(ZERO, 0, S0);
    });
    for (pa, value) in [(PA, 1), (PA + 0x1000, 2)] {
        m.load_at(pa, |a| {
            a.sw(S2, 0, S1).sfence_vma(ZERO, ZERO).li(A0, value).stop();
        });
    }
    tables.map(&mut m, VA, PA, pte::S_ALL);
    let entry = tables.entry(&mut m, VA);
    m.set_x(S1, entry).set_x(S2, pte::leaf(u64::from(PA + 0x1000), pte::S_ALL));
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!(m.x(A0), 2);
}

#[test]
fn an_instruction_fault_in_the_middle_of_a_run_reports_the_page_that_is_missing() {
    let mut tables = Sv32::new();
    let mut m = machine(Supervisor, &mut tables, |a| {
        a.jalr(ZERO, 0x7fc, S0);
    });
    m.set_x(S0, VA + 0x800);
    m.load_at(PA + 0xffc, |a| {
        a.li(A0, 1);
    });
    tables.map(&mut m, VA, PA, pte::S_ALL);
    tables.enable(&mut m, Supervisor);
    m.run_out();
    assert_eq!((m.x(A0), m.taken()), (1, to_m(INSN_PAGE, VA + 0x1000, VA + 0x1000)));
}

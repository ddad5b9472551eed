//! Bare-metal guests that are run side by side: good ones, which come to the same end whatever
//! their neighbours do, and hostile ones, which do what they can against them.

use emu_core::dev::virtio::DeviceKind;
use emu_core::dev::virtio::driver::{Prng, reg};
use emu_core::layout::VIRT;

use crate::asm::{Asm, Label, Reg, csr::*, reg::*};
use crate::elf;
use crate::machine::RAM;
use crate::program::{IMAGE_SIZE, Image};
use crate::tutorial;

/// RAM that each guest needs.
pub const MEMORY: u32 = 8 << 20;

/// A guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// What it is called.
    pub name: String,
    /// An ELF file.
    pub elf: Vec<u8>,
}

const POWER_OFF: u32 = 0x5555;
/// Of a random program.
const BLOCKS: u32 = 20;
/// Where hostile guests may write without losing their own code.
const BEYOND: u32 = 0x1_0000;

fn guest(name: impl Into<String>, words: &[u32]) -> Guest {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    Guest { name: name.into(), elf: elf::executable(RAM, &bytes, RAM) }
}

/// One that does nothing at all, in place of a hostile one.
pub fn quiet() -> Guest {
    guest(
        "quiet",
        &Asm::build(RAM, |a| {
            a.stop();
        }),
    )
}

/// Guests that end well by themselves: `count` of them random programs in all modes and one that
/// lives from interrupts and prints, then those that show what foreign guests rely on.
pub fn good(count: u64) -> Vec<Guest> {
    let random = (1..count).map(|seed| {
        let image = Image::new(seed, BLOCKS);
        Guest { name: format!("random-{seed}"), elf: elf::executable(RAM, &image.bytes, RAM) }
    });
    let others = [
        clockwork(),
        low_word_timer(),
        rescued(),
        remapped(),
        guest("slot-scan", &tutorial::slot_scan()),
        guest("legacy-entropy", &tutorial::legacy_entropy()),
    ];
    random.chain(others).collect()
}

/// One that never ends unless its virtio devices are modern.
pub fn waits_for_modern_virtio() -> Guest {
    guest("modern-without-asking", &tutorial::modern_without_asking())
}

/// Guests that end well with a disk of two sectors or more.
pub fn with_disk() -> Vec<Guest> {
    vec![guest("legacy-disk", &tutorial::legacy_disk())]
}

/// Powers off: with success if `good` is not zero, else with failure.
fn passes_if(a: &mut Asm, good: Reg) {
    const FAIL: u32 = 0x3333 | 1 << 16;
    let bad = a.label();
    a.beq(good, ZERO, bad).store_li(VIRT.finisher.base, POWER_OFF).stop();
    a.place(bad).store_li(VIRT.finisher.base, FAIL).stop();
}

/// Opens all of memory to S-mode and U-mode.
fn opens_memory(a: &mut Asm) {
    a.csr_li(PMPADDR0, u32::MAX).csr_li(PMPCFG0, 0x1f);
}

/// Sets its timer ten times by the low word of `mtimecmp` alone, whose high word is 0 at reset. It
/// fails if time has jumped to where the high word is another.
fn low_word_timer() -> Guest {
    const TIMER: u32 = 1 << 7;
    const MIE_BIT: u32 = 1 << 3;
    let words = Asm::build(RAM, |a| {
        let [handler, again] = [(); 2].map(|()| a.label());
        a.la(T0, handler).csrrw(ZERO, MTVEC, T0).li(S0, 0);
        a.li(S1, VIRT.clint.base + 0x4000).li(S2, VIRT.clint.base + 0xbff8);
        a.csr_li(MIE, TIMER).csr_li(MSTATUS, MIE_BIT);
        a.place(again).lw(T0, 0, S2).li(T1, 1000).add(T0, T0, T1).sw(T0, 0, S1).wfi();
        a.li(T0, 10).bltu(S0, T0, again).csrr(S3, TIMEH).sltiu(S3, S3, 1);
        passes_if(a, S3);
        // Never again, until it is set.
        a.place(handler).addi(S0, S0, 1).li(T0, u32::MAX).sw(T0, 0, S1).mret();
    });
    guest("low-word-timer", &words)
}

/// S-mode is caught in its own trap handler, from which M-mode's timer saves it the third time.
fn rescued() -> Guest {
    const TIMER: u32 = 1 << 7;
    const ILLEGAL: u32 = 1 << 2;
    const MPP_S: u32 = 1 << 11;
    let words = Asm::build(RAM, |a| {
        let [handler, lower, again] = [(); 3].map(|()| a.label());
        a.la(T0, handler).csrrw(ZERO, MTVEC, T0).la(T0, lower).csrrw(ZERO, STVEC, T0);
        a.csrrw(ZERO, MEPC, T0).csr_li(MEDELEG, ILLEGAL).csr_li(MSTATUS, MPP_S).csr_li(MIE, TIMER);
        opens_memory(a);
        a.li(S0, 3).li(S1, VIRT.clint.base + 0x4000).sw(ZERO, 0, S1).mret();

        a.place(handler).addi(S0, S0, -1);
        a.csrr(T0, TIME).li(T1, 1000).add(T0, T0, T1).sw(T0, 0, S1).bne(S0, ZERO, again);
        a.csr_li(MIE, 0).csrr(T0, MEPC).addi(T0, T0, 4).csrrw(ZERO, MEPC, T0).li(S2, 1);
        a.place(again).mret();

        a.place(lower).word(0);
        passes_if(a, S2);
    });
    guest("rescued", &words)
}

/// S-mode maps an address to another page between LR and SC, without a fence, and makes the TLB lose
/// the old translation. The SC must fail, and one without all that succeed.
fn remapped() -> Guest {
    const MPP_S: u32 = 1 << 11;
    /// What S-mode may use for everything.
    const ALL: u32 = 0xcf;
    const ROOT: u32 = RAM + BEYOND;
    const LEAVES: u32 = ROOT + 0x1000;
    const PAGES: u32 = ROOT + 0x2000;
    const VA: u32 = 0x4000_0000;
    /// It has the same entries as `VA` in both levels of the TLB.
    const EVICTS: u32 = VA + 0x0104_1000;
    let words = Asm::build(RAM, |a| {
        let supervisor = a.label();
        opens_memory(a);
        let leaf = |page: u32| page >> 2 | ALL;
        a.store_li(ROOT + (RAM >> 20 & !3), leaf(RAM));
        a.store_li(ROOT + (VIRT.finisher.base >> 20 & !3), ALL);
        for va in [VA, EVICTS] {
            a.store_li(ROOT + (va >> 20 & !3), LEAVES >> 2 | 1);
        }
        let entry = |va: u32| LEAVES + (va >> 10 & 0xffc);
        a.store_li(entry(VA), leaf(PAGES)).store_li(entry(EVICTS), leaf(PAGES));
        a.csr_li(SATP, 1 << 31 | ROOT >> 12).sfence_vma(ZERO, ZERO);
        a.la(T0, supervisor).csrrw(ZERO, MEPC, T0).csr_li(MSTATUS, MPP_S).mret();

        a.place(supervisor).li(S0, VA).li(S1, EVICTS);
        a.lr_w(T2, S0).lw(T3, 0, S1).sc_w(S2, T2, S0);
        a.lr_w(T2, S0).store_li(entry(VA), leaf(PAGES + 0x1000)).lw(T3, 0, S1).sc_w(S3, S0, S0);
        a.lw(T2, 0, S0).sltiu(T2, T2, 1);
        // The first gives 0, the second 1, and the other page is still zero.
        a.sltiu(S2, S2, 1).and(S2, S2, S3).and(S2, S2, T2);
        passes_if(a, S2);
    });
    guest("remapped", &words)
}

/// Waits for its timer a hundred times, and prints a letter each time.
fn clockwork() -> Guest {
    let words = Asm::build(RAM, |a| {
        let (mtimecmp, mtime) = (VIRT.clint.base + 0x4000, VIRT.clint.base + 0xbff8);
        a.li(S0, 100).li(S1, mtimecmp).li(S2, mtime).li(S3, VIRT.uart.base);
        const TIMER: u32 = 1 << 7;
        a.csr_li(MIE, TIMER);
        let again = a.mark();
        a.li(T0, u32::MAX).sw(T0, 4, S1);
        a.lw(T1, 0, S2).lw(T2, 4, S2).addi(T1, T1, 2000).sw(T1, 0, S1);
        a.sw(T2, 4, S1).wfi();
        a.andi(T0, S0, 15).addi(T0, T0, i32::from(b'a')).sb(T0, 0, S3);
        a.addi(S0, S0, -1).bne(S0, ZERO, again);
        a.store_li(VIRT.finisher.base, POWER_OFF).stop();
    });
    guest("clockwork", &words)
}

/// Prints its console's input up to a `!`, byte by byte by its UART, and powers off.
pub fn echo() -> Guest {
    const LSR: i32 = 5;
    const DATA_READY: i32 = 1;
    let words = Asm::build(RAM, |a| {
        a.li(S0, u32::from(b'!')).li(S1, VIRT.uart.base);
        let again = a.mark();
        a.lbu(T0, LSR, S1).andi(T0, T0, DATA_READY).beq(T0, ZERO, again);
        a.lbu(T0, 0, S1).sb(T0, 0, S1).bne(T0, S0, again);
        a.store_li(VIRT.finisher.base, POWER_OFF).stop();
    });
    guest("echo", &words)
}

/// Prints a text by semihosting, then its console's input up to a `!`, and ends with status 7.
pub fn semihosting() -> Guest {
    const WRITEC: u32 = 3;
    const WRITE0: u32 = 4;
    const READC: u32 = 7;
    const EXIT_EXTENDED: u32 = 0x20;
    const APPLICATION_EXIT: u32 = 0x2_0026;
    let words = Asm::build(RAM, |a| {
        let [text, block] = [(); 2].map(|()| a.label());
        a.li(A0, WRITE0).la(A1, text).semihost();
        a.li(S0, u32::from(b'!')).li(SP, RAM + BEYOND);
        let again = a.mark();
        a.li(A0, READC).semihost().sb(A0, 0, SP).mv(S1, A0);
        a.li(A0, WRITEC).mv(A1, SP).semihost().bne(S1, S0, again);
        a.li(A0, EXIT_EXTENDED).la(A1, block).semihost().stop();
        a.place(block).word(APPLICATION_EXIT).word(7).place(text);
        let mut long = "What is printed in one request may be longer than a record. ".repeat(5);
        long += "\n\0";
        long.extend(std::iter::repeat_n('\0', long.len().next_multiple_of(4) - long.len()));
        for word in long.as_bytes().chunks_exact(4) {
            a.word(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        }
    });
    guest("semihosting", &words)
}

/// A program in U-mode that is the same for all seeds but for a number. In each round it does
/// something a number of times that is another for each seed, then the same as all others, and a
/// system call, which prints a letter. It powers off after its rounds.
pub fn similar(seed: u32, rounds: u32) -> Guest {
    let words = Asm::build(RAM, |a| {
        let [trap, user, varying, common, inner] = [(); 5].map(|()| a.label());
        a.la(T0, trap).csrrw(ZERO, MTVEC, T0).csr_li(PMPADDR0, u32::MAX).csr_li(PMPCFG0, 0x1f);
        a.la(T0, user).csrrw(ZERO, MEPC, T0).csr_li(MSTATUS, 0).mret();

        a.place(trap);
        let last = a.label();
        a.csrrci(ZERO, MSTATUS, 8).bne(A7, ZERO, last);
        a.csrr(T0, MEPC).addi(T0, T0, 4).csrrw(ZERO, MEPC, T0);
        a.andi(T0, S0, 15).addi(T0, T0, i32::from(b'a')).li(T1, VIRT.uart.base).sb(T0, 0, T1);
        a.mret();
        a.place(last);
        a.store_li(VIRT.finisher.base, POWER_OFF).stop();

        a.place(user);
        a.li(SP, RAM + BEYOND).li(S0, seed).li(S1, rounds).li(A7, 0);
        let round = a.mark();
        a.li(T0, 1_664_525).mul(S0, S0, T0).li(T0, 1_013_904_223).add(S0, S0, T0);
        a.srli(A0, S0, 28).jal(RA, varying).li(A0, 8).jal(RA, common);
        a.ecall().addi(S1, S1, -1).bne(S1, ZERO, round);
        a.li(A7, 1).ecall();

        // Both call functions, at whose returns lanes find each other. So it matters which lanes run
        // first: not those that are out of `varying` already.
        for place in [varying, common] {
            a.place(place);
            a.addi(SP, SP, -8).sw(RA, 0, SP).sw(S1, 4, SP).addi(S1, A0, 1);
            let again = a.mark();
            a.jal(RA, inner).addi(S1, S1, -1).bne(S1, ZERO, again);
            a.lw(RA, 0, SP).lw(S1, 4, SP).addi(SP, SP, 8).ret();
        }
        a.place(inner).add(S2, S2, S0).slli(T0, S2, 3).xor(S2, S2, T0).ret();
    });
    guest(format!("similar-{seed}"), &words)
}

/// A loop that any trap leads back to, with another random number in `s0` each time.
fn storm(seed: u32, body: impl FnOnce(&mut Asm, Label)) -> Vec<u32> {
    Asm::build(RAM, |a| {
        let again = a.label();
        a.la(T0, again).csrrw(ZERO, MTVEC, T0).li(S0, seed);
        a.place(again);
        a.slli(T0, S0, 13).xor(S0, S0, T0).srli(T0, S0, 17).xor(S0, S0, T0);
        a.slli(T0, S0, 5).xor(S0, S0, T0);
        body(a, again);
        a.j(again);
    })
}

/// Guests that mean harm. Most never end.
pub fn hostile() -> Vec<Guest> {
    vec![
        guest("wild-stores", &wild_stores()),
        guest("bad-descriptors", &bad_descriptors()),
        guest(
            "trap-loop",
            &Asm::build(RAM, |a| {
                a.word(u32::MAX);
            }),
        ),
        guest("trap-storm", &trap_storm()),
        guest("self-modifying", &self_modifying()),
        guest("wfi-storm", &wfi_storm()),
        guest("random-words", &random_words()),
        guest("page-tables", &page_tables()),
        guest("console-flood", &console_flood()),
        guest("memory-hog", &memory_hog()),
        guest("resets", &resets()),
        scribbler(),
    ]
}

/// Stores of each size all over the address space, RAM and devices more often.
fn wild_stores() -> Vec<u32> {
    storm(0x1234_5678, |a, _| {
        a.li(S1, BEYOND).or(T0, S0, S1);
        a.sw(S0, 0, T0).sh(S0, 2, T0).sb(S0, 7, T0).amoadd_w(T1, S0, T0).lw(T1, 0, T0);
        a.place_stores(RAM, MEMORY - 4);
        for device in [VIRT.clint, VIRT.plic, VIRT.uart, VIRT.rtc] {
            a.place_stores(device.base, device.size.next_power_of_two() - 4);
        }
        for slot in VIRT.virtio {
            a.place_stores(slot.mmio.base, slot.mmio.size - 4);
        }
    })
}

impl Asm {
    /// Stores the random number in `s0` at a place by it in a range: `mask` is its size less 4.
    fn place_stores(&mut self, base: u32, mask: u32) -> &mut Self {
        let own_code = if base == RAM { BEYOND } else { 0 };
        self.li(T1, mask).and(T1, S0, T1).li(T2, base | own_code).or(T2, T2, T1);
        self.sw(S0, 0, T2).lw(T3, 0, T2)
    }
}

/// Every queue of every device, with tables of random, mostly absurd descriptors. In its first
/// round it prints, for each device and case, `r` when the device then wants a reset and `u` when
/// it has used a chain.
fn bad_descriptors() -> Vec<u32> {
    const CASES: u32 = 64;
    /// Bytes of a case: descriptors, then the driver's ring, then the device's.
    const CASE: u32 = 512;
    const DRIVER_RING: u32 = 128;
    const DEVICE_RING: u32 = 256;
    const TABLES: u32 = RAM + BEYOND;
    const ENTRIES: u32 = 8;
    let mut words = Asm::build(RAM, |a| {
        let again = a.label();
        a.la(T0, again).csrrw(ZERO, MTVEC, T0).li(S1, TABLES).li(S3, VIRT.uart.base);
        a.place(again);
        a.li(T0, CASE).add(S1, S1, T0).li(T0, TABLES + CASES * CASE);
        let inside = a.label();
        // The second round prints to RAM.
        a.bltu(S1, T0, inside).li(S1, TABLES).li(S3, RAM + MEMORY - 4);
        a.place(inside);
        for device in DeviceKind::ALL {
            a.li(S2, VIRT.virtio[device.default_slot() as usize].mmio.base);
            let set = |a: &mut Asm, register: u32, value: u32| {
                a.li(T0, value).sw(T0, register as i32, S2);
            };
            // Up to FEATURES_OK, with the one feature that the modern version insists on. What
            // belongs to one version only, devices of the other one ignore.
            for (register, value) in [
                (reg::STATUS, 0),
                (reg::STATUS, 3),
                (reg::DRIVER_FEATURES_SEL, 1),
                (reg::DRIVER_FEATURES, 1),
                (reg::STATUS, 11),
                (reg::GUEST_PAGE_SIZE, 1),
            ] {
                set(a, register, value);
            }
            for queue in 0..2 {
                set(a, reg::QUEUE_SEL, queue);
                set(a, reg::QUEUE_NUM, ENTRIES);
                a.sw(S1, reg::QUEUE_DESC_LOW as i32, S2);
                a.addi(T0, S1, DRIVER_RING as i32).sw(T0, reg::QUEUE_DRIVER_LOW as i32, S2);
                a.addi(T0, S1, DEVICE_RING as i32).sw(T0, reg::QUEUE_DEVICE_LOW as i32, S2);
                // Every other case has a ring of the device far outside.
                a.andi(T0, S1, CASE as i32).sw(T0, reg::QUEUE_DEVICE_HIGH as i32, S2);
                set(a, reg::QUEUE_READY, 1);
                // The same places in the legacy layout, or nearly none.
                set(a, reg::QUEUE_ALIGN, CASE / 2);
                let aligned = a.label();
                a.andi(T0, S1, CASE as i32).beq(T0, ZERO, aligned);
                set(a, reg::QUEUE_ALIGN, 1 << 31);
                a.place(aligned).sw(S1, reg::QUEUE_PFN as i32, S2);
            }
            set(a, reg::STATUS, 15);
            set(a, reg::QUEUE_NOTIFY, 0);
            set(a, reg::QUEUE_NOTIFY, 1);
            set(a, reg::QUEUE_NOTIFY, u32::MAX);
            let (told, unused) = (a.label(), a.label());
            a.li(T1, u32::from(b'r')).lw(T0, reg::STATUS as i32, S2).andi(T0, T0, 64);
            a.bne(T0, ZERO, told).li(T1, u32::from(b'u')).lhu(T0, DEVICE_RING as i32 + 2, S1);
            a.beq(T0, ZERO, unused).place(told).sb(T1, 0, S3).place(unused);
        }
        a.j(again);
        a.pad_to(TABLES);
    });
    let mut rng = Prng::new(9);
    for _ in 0..CASES {
        let mut case = [0u32; CASE as usize / 4];
        // One in two is what a driver would do, or nearly: it brings the device to work.
        let tame = rng.one_in(2);
        let direction = 2 * rng.below(2);
        for descriptor in case[..4 * ENTRIES as usize].chunks_exact_mut(4) {
            let (inside, any) = (RAM + rng.below(MEMORY), rng.next_u32());
            if tame {
                descriptor.copy_from_slice(&[inside, 0, 64 + rng.below(1024), direction]);
                continue;
            }
            descriptor[0] = rng.pick(&[inside, inside, RAM + MEMORY - 1, any, 0]);
            descriptor[1] = rng.pick(&[0, 0, 0, 1, u32::MAX]);
            descriptor[2] = rng.pick(&[16, 512, 4096, 1 << 20, u32::MAX, any, 0]);
            // Flags NEXT, WRITE and INDIRECT; loops, and indices past the table.
            descriptor[3] = rng.below(8) | rng.below(ENTRIES + 2) << 16;
        }
        // Flags and index of the driver's ring, then heads.
        let ring = &mut case[DRIVER_RING as usize / 4..];
        let any = rng.next_u32() >> 16;
        let index = if tame { 1 + rng.below(8) } else { rng.pick(&[1, 4, 8, 0x8000, 0xffff, any]) };
        let heads = if tame { ENTRIES } else { ENTRIES + 2 };
        ring[0] = index << 16;
        for head in &mut ring[1..5] {
            *head = rng.below(heads) | rng.below(heads) << 16;
        }
        words.extend(case);
    }
    words
}

/// Traps of every kind, one after the other.
fn trap_storm() -> Vec<u32> {
    storm(7, |a, again| {
        let kinds: [fn(&mut Asm); 7] = [
            |a| {
                a.ecall();
            },
            |a| {
                a.ebreak();
            },
            |a| {
                a.word(0);
            },
            |a| {
                a.word(u32::MAX);
            },
            |a| {
                a.lw(T1, 1, S0);
            },
            |a| {
                a.li(T0, 0x1800_0000).sw(T0, 0, T0);
            },
            |a| {
                a.jalr(ZERO, 0, S0);
            },
        ];
        for (i, kind) in (0..).zip(kinds) {
            let next = a.label();
            a.andi(T0, S0, 7).li(T1, i).bne(T0, T1, next);
            kind(a);
            a.place(next);
        }
        a.j(again);
    })
}

/// Rewrites the instructions ahead of it, in this page and in others, with and without FENCE.I.
fn self_modifying() -> Vec<u32> {
    storm(99, |a, _| {
        let (here, out) = (a.label(), a.label());
        // `addi a0,a0,IMMEDIATE`.
        a.li(T0, 0xfff0_0000).and(T0, S0, T0).li(T1, 0x0005_0513).or(T1, T1, T0);
        a.la(T2, here).sw(T1, 0, T2);
        a.andi(T0, S0, 1).bne(T0, ZERO, out).fence_i();
        a.place(out).place(here).nop();
        // The same across the end of a page that changes with the number, with `ret` behind it.
        a.li(T2, 0x7_f000).and(T2, S0, T2).li(T3, RAM + (1 << 20) + 0xffc).add(T2, T2, T3);
        a.li(T3, 0x0000_8067).sw(T1, 0, T2).sw(T3, 4, T2).jalr(RA, 0, T2);
    })
}

/// Wakes itself for nothing, by timer and by software interrupt.
fn wfi_storm() -> Vec<u32> {
    storm(5, |a, _| {
        a.li(S1, VIRT.clint.base).li(T0, 1 << 3 | 1 << 7).csrrw(ZERO, MIE, T0);
        a.andi(T0, S0, 1).sw(T0, 0, S1).wfi().sw(ZERO, 0, S1);
        a.li(S2, VIRT.clint.base + 0x4000).sw(ZERO, 4, S2).sw(ZERO, 0, S2).wfi();
        a.li(T0, 0x0e0).csrrw(ZERO, SIE, T0).csrrw(ZERO, MIP, S0).wfi();
        // The trap that this asks for comes back here.
        a.csrrsi(ZERO, MSTATUS, 8).sw(S0, 0, S2).wfi();
    })
}

/// Executes random words, with whatever they left in the registers.
fn random_words() -> Vec<u32> {
    storm(31, |a, again| {
        a.la(T0, again).csrrw(ZERO, MTVEC, T0);
        a.li(T1, RAM + 2 * BEYOND).li(T2, RAM + 2 * BEYOND + 256);
        let fill = a.mark();
        a.slli(T0, S0, 13).xor(S0, S0, T0).srli(T0, S0, 17).xor(S0, S0, T0);
        a.slli(T0, S0, 5).xor(S0, S0, T0);
        // All have the low bits of an instruction that is not compressed.
        a.ori(T0, S0, 3).sw(T0, 0, T1).addi(T1, T1, 4).bltu(T1, T2, fill);
        a.fence_i().li(T0, RAM + 2 * BEYOND).jalr(RA, 0, T0);
    })
}

/// S-mode behind page tables of random words, which also point to themselves.
fn page_tables() -> Vec<u32> {
    const TABLE: u32 = RAM + 2 * BEYOND;
    storm(17, |a, _| {
        a.li(T0, TABLE).li(T1, 0xffc).and(T1, S0, T1).add(T0, T0, T1).sw(S0, 0, T0);
        // An entry to the table itself, as a table or as a page.
        a.li(T1, TABLE >> 2 | 1).andi(T2, S0, 0xde).or(T1, T1, T2).xori(T0, T0, 4).sw(T1, 0, T0);
        // All of memory for the less privileged.
        a.li(T0, u32::MAX).csrrw(ZERO, PMPADDR0, T0).li(T0, 0x1f).csrrw(ZERO, PMPCFG0, T0);
        a.li(T0, 1 << 31 | TABLE >> 12).csrrw(ZERO, SATP, T0);
        a.andi(T0, S0, 1);
        let flush = a.label();
        a.bne(T0, ZERO, flush).sfence_vma(ZERO, ZERO).place(flush);
        // MPRV for loads and stores from here, then S-mode.
        const MPRV: u32 = 1 << 17;
        const MPP: u32 = 3 << 11;
        const MPP_S: u32 = 1 << 11;
        a.li(T0, MPP).csrrc(ZERO, MSTATUS, T0).li(T0, MPP_S).csrrs(ZERO, MSTATUS, T0);
        a.csrrw(ZERO, MEPC, S0).andi(T0, S0, 4);
        let jump = a.label();
        a.beq(T0, ZERO, jump).li(T0, MPRV).csrrs(ZERO, MSTATUS, T0).sw(S0, 0, S0);
        a.place(jump).mret();
    })
}

/// Writes to its console for ever.
fn console_flood() -> Vec<u32> {
    Asm::build(RAM, |a| {
        a.li(S0, VIRT.uart.base).li(T0, u32::from(b'!'));
        let again = a.mark();
        a.sb(T0, 0, S0).sb(T0, 0, S0).sb(T0, 0, S0).sb(T0, 0, S0).j(again);
    })
}

/// Writes to every page that it has, again and again.
fn memory_hog() -> Vec<u32> {
    Asm::build(RAM, |a| {
        let again = a.mark();
        a.li(S0, RAM + BEYOND).li(S1, RAM + MEMORY).li(T1, 4096);
        let page = a.mark();
        a.sw(S0, 0, S0).add(S0, S0, T1).bltu(S0, S1, page).j(again);
    })
}

/// Asks for a reset.
fn resets() -> Vec<u32> {
    Asm::build(RAM, |a| {
        a.store_li(VIRT.finisher.base, 0x7777).stop();
    })
}

/// Has the very pages of a good guest, which it overwrites and then executes.
fn scribbler() -> Guest {
    const CODE: u32 = RAM + IMAGE_SIZE;
    let image = Image::new(1, BLOCKS);
    let words = Asm::build(CODE, |a| {
        let again = a.label();
        a.la(T0, again).csrrw(ZERO, MTVEC, T0).li(S0, 77);
        a.place(again).li(S1, RAM).li(S2, CODE).li(T1, 64);
        let word = a.mark();
        a.slli(T0, S0, 13).xor(S0, S0, T0).srli(T0, S0, 17).xor(S0, S0, T0);
        a.slli(T0, S0, 5).xor(S0, S0, T0);
        a.sw(S0, 0, S1).add(S1, S1, T1).bltu(S1, S2, word);
        a.li(T0, RAM).jalr(RA, 0, T0).j(again);
    });
    let mut bytes = image.bytes;
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    Guest { name: "scribbler".into(), elf: elf::executable(RAM, &bytes, CODE) }
}

//! Random programs that any RV32IMA machine with M, S and U mode runs to the same end.
//!
//! An [`Image`] is a flat binary of many short blocks. A block is random code in one privilege
//! mode, bare or under Sv32 with random page tables. Traps are logged by handlers in the image;
//! after each block all registers, the CSRs and hashes of data and page tables are recorded. At the
//! end the program powers off through the test finisher, and all that it did is in RAM: two
//! machines agree when their RAM does.
//!
//! What a conforming machine is free to do is left out: counters and time, SC without a proper LR,
//! PMP finer than a page, stale translations, WARL fields with several legal values. So is what
//! QEMU does otherwise than the specification: the cause of a misaligned AMO.

use emu_core::dev::virtio::driver::Prng;
use emu_core::insn::{Insn, Op, decode};

use crate::asm::{Asm, Reg, csr::*, raw_branch, raw_jal, reg::*};
use crate::machine::RAM;
use crate::machine::pte;

/// Bytes of RAM that an image uses.
pub const IMAGE_SIZE: u32 = 4 << 20;

const M_SAVE: u32 = RAM + 0x2000;
const S_SAVE: u32 = RAM + 0x2200;
const BLOCK_TABLE: u32 = RAM + 0x3000;
/// Root table, two tables of 4 KiB pages.
const TABLES: u32 = RAM + 0x6000;
const TABLES_END: u32 = RAM + 0x9000;
/// A page full of `ret`.
const RET_PAGE: u32 = RAM + 0x9000;
const SCRATCH: u32 = RAM + 0x1_0000;
const SCRATCH_PAGES: u32 = 4;
const RECORDS: u32 = RAM + 0x2_0000;
const M_LOG: u32 = RAM + 0x6_0000;
const S_LOG: u32 = RAM + 0xa_0000;
const LOG_SIZE: u32 = 0x4_0000;
const CODE: u32 = RAM + 0x10_0000;
const FINISHER: u32 = 0x10_0000;
/// Nothing is here on the `virt` machine, nor anywhere in the 4 MiB that follow.
const UNASSIGNED: u64 = 0x1800_0000;

/// S-mode sees RAM here, U-mode where it is.
const S_ALIAS: u32 = 0xc000_0000;
/// Where pages with random entries are: two tables of 4 KiB pages, then superpages.
/// As a physical address it is unassigned, which is what M-mode finds.
const WINDOW: u32 = 0x1400_0000;
const WINDOW_PAGES: u32 = 32;
/// Pages with this number, modulo four, may have nothing behind them. No access crosses into or
/// out of them: which half is reported first is the machine's choice.
const NO_CROSSING: u32 = 3;
const SUPERPAGES: u32 = 4;

/// Most blocks in an image.
pub const BLOCKS_MAX: u32 = 512;
const RECORD_WORDS: u32 = 64;
/// An instruction that exists nowhere: the block is over.
const CHECKPOINT: u32 = 0x0000_000b;
/// Words behind the registers in a save area.
const LOG_AT: i32 = 32 * 4;
const RECORD_AT: i32 = 33 * 4;
const BLOCK_AT: i32 = 34 * 4;
const TRAPS_AT: i32 = 35 * 4;
/// A block that traps more often than that is cut off.
const TRAPS_MAX: u32 = 2000;

const RECORDED_CSRS: [u32; 13] = [
    MSTATUS, SSTATUS, MEDELEG, MIDELEG, MIE, STVEC, SCOUNTEREN, MCOUNTEREN, SSCRATCH, SEPC, SCAUSE,
    STVAL, SATP,
];

const SUM: u32 = 1 << 18;
const MXR: u32 = 1 << 19;
const MPRV: u32 = 1 << 17;
const TVM: u32 = 1 << 20;
const TW: u32 = 1 << 21;
const TSR: u32 = 1 << 22;
const SPP: u32 = 1 << 8;
const SPIE: u32 = 1 << 5;
const MPP_SHIFT: u32 = 11;

/// A privilege mode and how it sees memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// M-mode.
    Machine,
    /// S-mode, bare.
    Supervisor,
    /// U-mode, bare.
    User,
    /// S-mode under Sv32.
    SupervisorSv32,
    /// U-mode under Sv32.
    UserSv32,
}

impl Mode {
    const ALL: [Self; 5] =
        [Self::Machine, Self::Supervisor, Self::User, Self::SupervisorSv32, Self::UserSv32];

    const fn mpp(self) -> u32 {
        match self {
            Self::Machine => 3,
            Self::Supervisor | Self::SupervisorSv32 => 1,
            Self::User | Self::UserSv32 => 0,
        }
    }

    const fn translated(self) -> bool {
        matches!(self, Self::SupervisorSv32 | Self::UserSv32)
    }

    /// Where a physical address of RAM is in this mode.
    const fn see(self, pa: u32) -> u32 {
        match self {
            Self::SupervisorSv32 => pa - RAM + S_ALIAS,
            _ => pa,
        }
    }
}

/// One block of an image.
#[derive(Clone, Debug)]
pub struct Block {
    /// The mode that it runs in.
    pub mode: Mode,
    /// Physical address.
    pub at: u32,
    /// Its code.
    pub words: Vec<u32>,
}

/// A flat binary for address [`RAM`].
#[derive(Clone, Debug)]
pub struct Image {
    /// The seed that it came from.
    pub seed: u64,
    /// Content, from [`RAM`] on.
    pub bytes: Vec<u8>,
    /// The blocks in the order in which they run.
    pub blocks: Vec<Block>,
}

impl Image {
    /// The image of `seed` with `count` blocks.
    pub fn new(seed: u64, count: u32) -> Self {
        assert!(count <= BLOCKS_MAX, "too many blocks");
        let mut rng = Prng::new(seed);
        let mut image = Self { seed, bytes: vec![0; IMAGE_SIZE as usize], blocks: Vec::new() };
        let (boot, m_handler, s_handler) = monitor(count);
        image.put(RAM, &boot);
        image.put(M_HANDLER, &m_handler);
        image.put(S_HANDLER, &s_handler);
        image.put(
            RET_PAGE,
            &[Asm::build(0, |a| {
                a.ret();
            })[0]; 1024],
        );
        image.put_tables(&mut rng);
        let data: Vec<u32> = (0..SCRATCH_PAGES * 1024).map(|_| value(&mut rng)).collect();
        image.put(SCRATCH, &data);
        let mut at = CODE;
        for number in 0..count {
            let mode = rng.pick(&Mode::ALL);
            let mut status = mode.mpp() << MPP_SHIFT;
            for bit in [SUM, MXR, SPP, SPIE] {
                status |= if rng.one_in(2) { bit } else { 0 };
            }
            for bit in [TVM, TW, TSR] {
                status |= if rng.one_in(6) { bit } else { 0 };
            }
            let satp = if mode.translated() || mode == Mode::Machine && rng.one_in(2) {
                1 << 31 | TABLES >> 12
            } else {
                0
            };
            // Illegal instructions end blocks and ECALL from S-mode has no S-mode handler; the
            // S-mode handler is where only a translated mode sees it, and ends in SRET.
            let delegated =
                if mode.translated() && status & TSR == 0 { rng.next_u32() & 0xb1fb } else { 0 };
            let base = mode.see(at);
            let words = Writer { rng: &mut rng, mode, status, satp, asm: Asm::new(base) }.block();
            image.put(BLOCK_TABLE + 16 * number, &[base, status, satp, delegated]);
            image.put(at, &words);
            let len = 4 * words.len() as u32;
            image.blocks.push(Block { mode, at, words });
            // Now and then on the same page as the block before, now and then at its very end.
            at += (len + 15) & !15;
            assert!(at < RAM + IMAGE_SIZE - 0x4000, "image too large");
        }
        image
    }

    fn put(&mut self, at: u32, words: &[u32]) {
        for (i, word) in words.iter().enumerate() {
            let from = (at - RAM) as usize + 4 * i;
            self.bytes[from..from + 4].copy_from_slice(&word.to_le_bytes());
        }
    }

    fn put_tables(&mut self, rng: &mut Prng) {
        let ram = u64::from(RAM);
        self.put(TABLES + (RAM >> 22) * 4, &[pte::leaf(ram, pte::U_ALL)]);
        self.put(TABLES + (S_ALIAS >> 22) * 4, &[pte::leaf(ram, pte::S_ALL)]);
        let table = |n: u64| pte::leaf(u64::from(TABLES) + 0x1000 * n, pte::V);
        // The second table is behind a pointer that may have reserved bits set.
        let reserved = if rng.one_in(2) { rng.pick(&[pte::A, pte::D, pte::U]) } else { 0 };
        self.put(TABLES + (WINDOW >> 22) * 4, &[table(1), table(2) | reserved]);
        for page in 0..2 * WINDOW_PAGES {
            let at = TABLES + 0x1000 * (1 + page / WINDOW_PAGES) + page % WINDOW_PAGES * 4;
            self.put(at, &[random_entry(rng, page)]);
        }
        for n in 0..SUPERPAGES {
            self.put(TABLES + (WINDOW >> 22) * 4 + 8 + 4 * n, &[random_superpage(rng)]);
        }
    }

    /// What two final memories differ in, in words for people; `None` when they agree.
    pub fn difference(&self, ours: &[u8], theirs: &[u8]) -> Option<String> {
        let word = |ram: &[u8], at: u32| {
            let from = (at - RAM) as usize;
            u32::from_le_bytes(ram[from..from + 4].try_into().expect("four bytes"))
        };
        for (number, block) in self.blocks.iter().enumerate() {
            let record = RECORDS + number as u32 * RECORD_WORDS * 4;
            let mut text = String::new();
            for n in 0..RECORD_WORDS {
                let (a, b) = (word(ours, record + 4 * n), word(theirs, record + 4 * n));
                if a != b {
                    text += &format!("  {}: {a:#010x}, expected {b:#010x}\n", field(n));
                }
            }
            let mut differs = !text.is_empty();
            for (name, log, n) in [("M", M_LOG, RECORD_LOG), ("S", S_LOG, RECORD_LOG + 1)] {
                let to_pa = |at: u32| if at >= S_ALIAS { at - S_ALIAS + RAM } else { at };
                let before = number
                    .checked_sub(1)
                    .map_or(log, |_| to_pa(word(ours, record - 4 * RECORD_WORDS + 4 * n)));
                let ends = [ours, theirs].map(|ram| to_pa(word(ram, record + 4 * n)));
                for entry in (before..ends[0].max(ends[1])).step_by(16) {
                    let [a, b] =
                        [ours, theirs].map(|ram| [0, 4, 8, 12].map(|i| word(ram, entry + i)));
                    let mark = if a == b { ' ' } else { '!' };
                    differs |= a != b;
                    text += &format!(
                        "{mark} {name} trap (cause, tval, epc, status) {a:x?}, expected {b:x?}\n"
                    );
                }
            }
            if differs {
                let (seed, mode, code) = (self.seed, block.mode, self.listing(number));
                return Some(format!("seed {seed}: block {number} ({mode:?}):\n{text}{code}"));
            }
        }
        let at = ours.iter().zip(theirs).position(|(a, b)| a != b)?;
        Some(format!("seed {}: RAM differs at {:#x}\n", self.seed, RAM as usize + at))
    }

    /// Disassembly of a block.
    pub fn listing(&self, number: usize) -> String {
        let block = &self.blocks[number];
        let base = block.mode.see(block.at);
        let line = |(i, word): (usize, &u32)| {
            format!("  {:08x}: {word:08x}  {}\n", base + 4 * i as u32, Insn(*word))
        };
        block.words.iter().enumerate().map(line).collect()
    }
}

/// Where a record has the ends of the two logs, in words.
const RECORD_LOG: u32 = 32 + RECORDED_CSRS.len() as u32;
const RECORD_HASH: u32 = RECORD_LOG + 2;

fn field(n: u32) -> String {
    match n {
        0 => "block number".into(),
        1..32 => format!("x{n}"),
        _ if n < RECORD_LOG => format!("CSR {:#x}", RECORDED_CSRS[n as usize - 32]),
        _ if n < RECORD_HASH => "traps logged (pointer)".into(),
        RECORD_HASH => "hash of data".into(),
        _ => "hash of page tables".into(),
    }
}

const M_HANDLER: u32 = RAM + 0x400;
const S_HANDLER: u32 = RAM + 0x1000;

/// Boot code, M-mode handler, S-mode handler.
fn monitor(blocks: u32) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let boot = Asm::build(RAM, |a| {
        // PMP: everything for everyone.
        a.csr_li(PMPADDR0, u32::MAX).csr_li(PMPCFG0, 0x1f);
        a.csr_li(MTVEC, M_HANDLER).csr_li(STVEC, S_HANDLER - RAM + S_ALIAS);
        a.csr_li(MIE, 0).csr_li(MIDELEG, 0x222).csr_li(MCOUNTEREN, 0).csr_li(SCOUNTEREN, 0);
        a.csr_li(SEPC, 0).csr_li(SCAUSE, 0).csr_li(STVAL, 0);
        a.csr_li(SSCRATCH, S_SAVE - RAM + S_ALIAS).csr_li(MSCRATCH, M_SAVE);
        a.store_li(S_SAVE + LOG_AT as u32, S_LOG - RAM + S_ALIAS);
        a.store_li(M_SAVE + LOG_AT as u32, M_LOG);
        // The record before the first.
        a.store_li(M_SAVE + RECORD_AT as u32, RECORDS - 4 * RECORD_WORDS);
        a.store_li(M_SAVE + BLOCK_AT as u32, u32::MAX);
        for r in 1..32 {
            a.li(r, 0);
        }
        a.word(CHECKPOINT);
    });
    let m = Asm::build(M_HANDLER, |a| {
        let (checkpoint, log, resume) = (a.label(), a.label(), a.label());
        save(a, MSCRATCH);
        a.csrr(S0, MCAUSE).csrr(S1, MTVAL).csrr(S2, MEPC).csrr(S3, MSTATUS);
        // The illegal instruction as it stands in memory: QEMU has another in mtval when it is
        // MRET or SRET. The S-mode view of RAM starts at a higher address.
        let physical = a.label();
        a.li(T0, 2).bne(S0, T0, log).mv(S1, S2).li(T0, S_ALIAS).bltu(S1, T0, physical);
        a.li(T0, S_ALIAS - RAM).sub(S1, S1, T0).place(physical).lw(S1, 0, S1);
        a.li(T0, CHECKPOINT).beq(S1, T0, checkpoint).place(log);
        log_trap(a, M_LOG);
        a.lw(T0, TRAPS_AT, SP).addi(T0, T0, 1).sw(T0, TRAPS_AT, SP);
        a.li(T1, TRAPS_MAX).bltu(T1, T0, checkpoint);
        skip(a, resume);
        a.csrrw(ZERO, MEPC, S2);
        let restore_all = a.mark();
        restore(a);
        a.mret();

        a.place(checkpoint).lw(S0, RECORD_AT, SP);
        for r in 1..32 {
            a.lw(T0, 4 * r, SP).sw(T0, 4 * r, S0);
        }
        a.lw(T0, BLOCK_AT, SP).sw(T0, 0, S0);
        for (i, number) in RECORDED_CSRS.iter().enumerate() {
            a.csrr(T0, *number).sw(T0, 4 * (32 + i as i32), S0);
        }
        a.lw(T0, LOG_AT, SP).sw(T0, 4 * RECORD_LOG as i32, S0);
        a.li(T1, S_SAVE).lw(T0, LOG_AT, T1).sw(T0, 4 * RECORD_LOG as i32 + 4, S0);
        for (i, (from, to)) in
            [(SCRATCH, SCRATCH + SCRATCH_PAGES * 0x1000), (TABLES, TABLES_END)].iter().enumerate()
        {
            let words = a.li(A0, 0).li(A1, *from).li(A2, *to).li(A3, 0x0100_0193).mark();
            a.lw(A4, 0, A1).xor(A0, A0, A4).mul(A0, A0, A3).addi(A1, A1, 4).bltu(A1, A2, words);
            a.sw(A0, 4 * (RECORD_HASH as i32 + i as i32), S0);
        }
        let more = a.label();
        a.addi(S0, S0, 4 * RECORD_WORDS as i32).sw(S0, RECORD_AT, SP).sw(ZERO, TRAPS_AT, SP);
        a.lw(S1, BLOCK_AT, SP).addi(S1, S1, 1).sw(S1, BLOCK_AT, SP);
        a.li(T0, blocks).bltu(S1, T0, more).store_li(FINISHER, 0x5555).stop().place(more);
        a.slli(S1, S1, 4).li(S2, BLOCK_TABLE).add(S2, S2, S1);
        for (i, number) in [MEPC, MSTATUS, SATP, MEDELEG].into_iter().enumerate() {
            a.lw(T0, 4 * i as i32, S2).csrrw(ZERO, number, T0);
        }
        a.sfence_vma(ZERO, ZERO).fence_i().j(restore_all);
    });
    let s = Asm::build(S_HANDLER - RAM + S_ALIAS, |a| {
        let resume = a.label();
        save(a, SSCRATCH);
        a.csrr(S0, SCAUSE).csrr(S1, STVAL).csrr(S2, SEPC).csrr(S3, SSTATUS);
        log_trap(a, S_LOG - RAM + S_ALIAS);
        skip(a, resume);
        a.csrrw(ZERO, SEPC, S2);
        restore(a);
        a.sret();
    });
    assert!(boot.len() < 0x100 && m.len() < 0x300 && s.len() < 0x400, "monitor too long");
    (boot, m, s)
}

/// Saves all registers to the area that `scratch` points to, which `sp` then does too.
fn save(a: &mut Asm, scratch: u32) {
    a.csrrw(SP, scratch, SP);
    for r in (1..32).filter(|&r| r != SP) {
        a.sw(r, 4 * r as i32, SP);
    }
    a.csrr(T0, scratch).sw(T0, 4 * SP as i32, SP).csrrw(ZERO, scratch, SP);
}

fn restore(a: &mut Asm) {
    for r in (1..32).filter(|&r| r != SP) {
        a.lw(r, 4 * r as i32, SP);
    }
    a.lw(SP, 4 * SP as i32, SP);
}

/// Appends `s0` to `s3` to a log, which starts again when it is full.
fn log_trap(a: &mut Asm, log: u32) {
    let room = a.label();
    a.lw(T0, LOG_AT, SP).sw(S0, 0, T0).sw(S1, 4, T0).sw(S2, 8, T0).sw(S3, 12, T0);
    a.addi(T0, T0, 16).li(T1, log + LOG_SIZE).bltu(T0, T1, room).li(T0, log).place(room);
    a.sw(T0, LOG_AT, SP);
}

/// Advances `s2` over an instruction that trapped; where none could be fetched, goes back to the
/// caller.
fn skip(a: &mut Asm, resume: crate::asm::Label) {
    let fetch = a.label();
    for cause in [1, 12] {
        a.li(T0, cause).beq(S0, T0, fetch);
    }
    a.addi(S2, S2, 4).j(resume).place(fetch).lw(S2, 4 * RA as i32, SP).place(resume);
}

/// A value with a taste for edges.
fn value(rng: &mut Prng) -> u32 {
    match rng.below(8) {
        0 => rng.pick(&[0, 1, 2, u32::MAX, 0x8000_0000, 0x7fff_ffff, 0xffff_fffe]),
        1 => rng.next_u32() & 0xff,
        2 => 1 << rng.below(32),
        3 => (rng.next_u32() as i32 >> rng.below(32)) as u32,
        _ => rng.next_u32(),
    }
}

fn random_bits(rng: &mut Prng) -> u32 {
    // Mostly something that works, else anything.
    match rng.below(4) {
        0 => rng.next_u32() & 0x3ff,
        1 => pte::S_ALL | if rng.one_in(2) { pte::U } else { 0 },
        _ => {
            let keep = rng.next_u32() | rng.next_u32();
            (pte::U_ALL & keep | pte::V) ^ if rng.one_in(2) { pte::U } else { 0 }
        }
    }
}

/// An entry of a page in the window: data, `ret`s that cannot be overwritten, or nothing at all.
fn random_entry(rng: &mut Prng, page: u32) -> u32 {
    let bits = random_bits(rng);
    match rng.below(12) {
        0..=7 => {
            let page = SCRATCH + 0x1000 * rng.below(SCRATCH_PAGES);
            // Data is not to be executed.
            pte::leaf(u64::from(page), bits & !pte::X)
        }
        8..=9 => pte::leaf(u64::from(RET_PAGE), bits & !pte::W),
        _ if page % 4 != NO_CROSSING => 0,
        // Unassigned, and above 4 GiB.
        10 => pte::leaf(UNASSIGNED, bits),
        _ => pte::leaf(0x1_0000_0000 | u64::from(SCRATCH), bits),
    }
}

fn random_superpage(rng: &mut Prng) -> u32 {
    // With neither R nor X the entry would be a pointer to a table. QEMU raises a page fault, and
    // not the access fault of the specification, for a table outside of RAM.
    let bits = random_bits(rng) & !pte::X | pte::R;
    match rng.below(6) {
        0 => pte::leaf(u64::from(SCRATCH), bits),
        1 => pte::leaf(UNASSIGNED, bits),
        2 => 0,
        _ => pte::leaf(u64::from(RAM), bits),
    }
}

/// Base of the data page, never written by random instructions.
const BASE: Reg = S10;
const COUNTER: Reg = S11;
const ADDRESS: Reg = S9;
const RESERVED: [Reg; 4] = [RA, BASE, COUNTER, ADDRESS];

struct Writer<'a> {
    rng: &'a mut Prng,
    mode: Mode,
    status: u32,
    satp: u32,
    asm: Asm,
}

type Binary = fn(&mut Asm, Reg, Reg, Reg) -> &mut Asm;
type Immediate = fn(&mut Asm, Reg, Reg, i32) -> &mut Asm;
type ShiftBy = fn(&mut Asm, Reg, Reg, u32) -> &mut Asm;
type Access = fn(&mut Asm, Reg, i32, Reg) -> &mut Asm;

const BINARY: [Binary; 10] = [
    Asm::add,
    Asm::sub,
    Asm::sll,
    Asm::slt,
    Asm::sltu,
    Asm::xor,
    Asm::srl,
    Asm::sra,
    Asm::or,
    Asm::and,
];
const MULTIPLY: [Binary; 8] =
    [Asm::mul, Asm::mulh, Asm::mulhsu, Asm::mulhu, Asm::div, Asm::divu, Asm::rem, Asm::remu];
const IMMEDIATE: [Immediate; 6] =
    [Asm::addi, Asm::slti, Asm::sltiu, Asm::xori, Asm::ori, Asm::andi];
const SHIFTS: [ShiftBy; 3] = [Asm::slli, Asm::srli, Asm::srai];
const LOADS: [(Access, i32); 5] =
    [(Asm::lb, 1), (Asm::lbu, 1), (Asm::lh, 2), (Asm::lhu, 2), (Asm::lw, 4)];
const STORES: [(Access, i32); 3] = [(Asm::sb, 1), (Asm::sh, 2), (Asm::sw, 4)];
const AMOS: [Binary; 9] = [
    Asm::amoswap_w,
    Asm::amoadd_w,
    Asm::amoxor_w,
    Asm::amoand_w,
    Asm::amoor_w,
    Asm::amomin_w,
    Asm::amomax_w,
    Asm::amominu_w,
    Asm::amomaxu_w,
];

impl Writer<'_> {
    fn block(mut self) -> Vec<u32> {
        self.prologue();
        let items = 20 + self.rng.below(60);
        for _ in 0..items {
            self.item(0);
        }
        self.asm.word(CHECKPOINT);
        self.asm.finish()
    }

    fn prologue(&mut self) {
        let page = SCRATCH + 0x1000 * self.rng.below(SCRATCH_PAGES) + 0x800;
        self.asm.li(BASE, self.mode.see(page));
        for _ in 0..8 {
            let (r, v) = (self.dest(), value(self.rng));
            self.asm.li(r, v);
        }
    }

    fn any(&mut self) -> Reg {
        self.rng.below(32)
    }

    fn dest(&mut self) -> Reg {
        loop {
            let r = self.any();
            if !RESERVED.contains(&r) {
                return r;
            }
        }
    }

    fn item(&mut self, depth: u32) {
        match self.rng.below(100) {
            0..20 => {
                let op = self.rng.pick(&BINARY);
                let (d, a, b) = (self.dest(), self.any(), self.any());
                op(&mut self.asm, d, a, b);
            }
            20..32 => {
                let op = self.rng.pick(&IMMEDIATE);
                let (d, a, imm) = (self.dest(), self.any(), self.imm());
                op(&mut self.asm, d, a, imm);
            }
            32..36 => {
                let op = self.rng.pick(&SHIFTS);
                let (d, a, by) = (self.dest(), self.any(), self.rng.below(32));
                op(&mut self.asm, d, a, by);
            }
            36..40 => {
                let (d, v) = (self.dest(), value(self.rng));
                match self.rng.below(3) {
                    0 => self.asm.lui(d, v >> 12),
                    1 => self.asm.auipc(d, v >> 12),
                    _ => self.asm.li(d, v),
                };
            }
            40..50 => {
                let op = self.rng.pick(&MULTIPLY);
                let (d, a, b) = (self.dest(), self.any(), self.any());
                op(&mut self.asm, d, a, b);
            }
            50..66 => self.memory(),
            66..70 => self.atomic(),
            70..76 if depth < 3 => self.branch(depth),
            76..78 if depth < 2 => self.repeat(depth),
            78..80 if depth < 3 => self.call(depth),
            80..85 => self.csr(),
            85..88 => self.trap(),
            88..96 if self.satp != 0 => self.window(),
            96..98 if self.satp != 0 => self.remap(),
            98 => self.modify_code(),
            99 => self.xret(),
            _ => {
                let (d, a) = (self.dest(), self.any());
                self.asm.mv(d, a);
            }
        }
    }

    fn imm(&mut self) -> i32 {
        (value(self.rng) as i32) << 20 >> 20
    }

    fn memory(&mut self) {
        let d = self.dest();
        let load = self.rng.one_in(2);
        let source = self.any();
        let ((op, size), r) =
            if load { (self.rng.pick(&LOADS), d) } else { (self.rng.pick(&STORES), source) };
        let mut offset = self.imm();
        if !self.rng.one_in(4) {
            offset &= -size;
        }
        if self.rng.one_in(4) {
            // Through a computed address.
            let a = self.any();
            self.asm.andi(ADDRESS, a, 0x3ff).add(ADDRESS, ADDRESS, BASE);
            op(&mut self.asm, r, offset >> 1, ADDRESS);
        } else {
            op(&mut self.asm, r, offset, BASE);
        }
    }

    fn atomic(&mut self) {
        let (d, b, a) = (self.dest(), self.any(), self.any());
        // Aligned: QEMU reports a misaligned AMO as a misaligned load.
        self.asm.andi(ADDRESS, a, 0x3fc).add(ADDRESS, ADDRESS, BASE);
        if self.rng.one_in(3) {
            self.asm.lr_w(d, ADDRESS);
            let between = self.rng.below(3);
            for _ in 0..between {
                let (d, a, imm) = (self.dest(), self.any(), self.imm());
                self.asm.addi(d, a, imm);
            }
            let d = self.dest();
            self.asm.sc_w(d, b, ADDRESS);
        } else {
            let op = self.rng.pick(&AMOS);
            op(&mut self.asm, d, b, ADDRESS);
        }
    }

    fn branch(&mut self, depth: u32) {
        let over = self.asm.label();
        let (a, b) = (self.any(), self.any());
        match self.rng.below(6) {
            0 => self.asm.beq(a, b, over),
            1 => self.asm.bne(a, b, over),
            2 => self.asm.blt(a, b, over),
            3 => self.asm.bge(a, b, over),
            4 => self.asm.bltu(a, b, over),
            _ => self.asm.bgeu(a, b, over),
        };
        for _ in 0..self.rng.below(5) {
            self.item(depth + 1);
        }
        self.asm.place(over);
    }

    fn repeat(&mut self, depth: u32) {
        if depth > 0 {
            return;
        }
        let times = 2 + self.rng.below(10);
        let top = self.asm.li(COUNTER, times).mark();
        for _ in 0..1 + self.rng.below(6) {
            self.item(2);
        }
        self.asm.addi(COUNTER, COUNTER, -1).bne(COUNTER, ZERO, top);
    }

    fn call(&mut self, depth: u32) {
        let (f, over) = (self.asm.label(), self.asm.label());
        if self.rng.one_in(2) {
            self.asm.jal(RA, f);
        } else {
            self.asm.la(ADDRESS, f).jalr(RA, 0, ADDRESS);
        }
        self.asm.j(over).place(f);
        let link = self.dest();
        // The body may call too.
        self.asm.mv(link, RA);
        let op = self.rng.pick(&BINARY);
        let (d, a, b) = (self.dest(), self.any(), self.any());
        op(&mut self.asm, d, a, b);
        self.asm.ret().place(over);
        if self.rng.one_in(2) {
            self.item(depth + 1);
        }
    }

    /// CSRs whose every bit is the same everywhere, and some that are not there or not allowed.
    fn csr(&mut self) {
        let number = self.rng.pick(&[
            SEPC, SCAUSE, STVAL, SSTATUS, SIE, MTVAL, MCAUSE, MEPC, MISA, MHARTID, MEDELEG, SATP,
            SCOUNTEREN, 0x5c0, 0x7c0, 0x015,
        ]);
        let machine = self.mode == Mode::Machine;
        let d = self.dest();
        let mask = match number {
            SSTATUS => SUM | MXR | SPP | SPIE,
            SCOUNTEREN => 7,
            SIE => 0x222,
            MISA | MEDELEG | SATP => 0,
            SEPC | MEPC => !3,
            // WLRL; what QEMU keeps is enough for every code there is.
            SCAUSE | MCAUSE => 0x8000_000f,
            _ => u32::MAX,
        };
        if mask == 0 || self.rng.one_in(4) {
            self.asm.csrr(d, number);
            return;
        }
        // An interrupt enabled in S-mode would be pending never, as nothing raises one.
        let value = self.rng.next_u32() & mask;
        self.asm.li(ADDRESS, value);
        match self.rng.below(4) {
            0 if mask == u32::MAX => self.asm.csrrw(d, number, ADDRESS),
            1 => self.asm.csrrc(d, number, ADDRESS),
            2 if mask & 31 == 31 => self.asm.csrrsi(d, number, value & 31),
            _ => self.asm.csrrs(d, number, ADDRESS),
        };
        if machine && self.rng.one_in(3) {
            self.asm.li(ADDRESS, self.rng.next_u32() & (SUM | MXR | TVM | TW | TSR | SPP | SPIE));
            self.asm.csrrs(d, MSTATUS, ADDRESS);
        }
    }

    fn trap(&mut self) {
        let machine = self.mode == Mode::Machine;
        match self.rng.below(8) {
            0 => {
                self.asm.ecall();
            }
            1 => {
                self.asm.ebreak();
            }
            2 => {
                let (a, b) = (self.any(), self.any());
                let funct3 = self.rng.pick(&[0u32, 1, 4, 5, 6, 7]);
                self.asm.word(raw_branch(0x63 | funct3 << 12, a, b, 6));
            }
            3 => {
                self.asm.word(raw_jal(RA, 10));
            }
            4 => {
                let to = self.asm.here() + 2 + 4 * self.rng.below(4);
                self.asm.li(ADDRESS, to).jalr(RA, 1, ADDRESS);
            }
            // No WFI: where it is not allowed and the last word of a page, QEMU reports the next
            // page.
            5 if !machine => {
                self.asm.mret();
            }
            _ => {
                let word = self.illegal();
                self.asm.word(word);
            }
        }
    }

    /// A 32-bit word that is no instruction.
    fn illegal(&mut self) -> u32 {
        loop {
            let word = match self.rng.below(3) {
                0 => self.rng.next_u32() | 3,
                1 => self.rng.next_u32() & 0xfff0_707f | 0x73,
                _ => self.rng.next_u32() & 0xffff_f07f | 0x2f,
            };
            if decode(word) == Op::Illegal && word != CHECKPOINT {
                return word;
            }
        }
    }

    /// An access to the pages with random entries. M-mode goes there with MPRV.
    fn window(&mut self) {
        let machine = self.mode == Mode::Machine;
        let (page, crossing) = if self.rng.one_in(4) {
            // A superpage, where it shows data.
            let n = 2 + self.rng.below(SUPERPAGES);
            (WINDOW + n * 0x40_0000 + (SCRATCH - RAM), false)
        } else {
            let n = self.rng.below(2 * WINDOW_PAGES);
            let (table, page) = (n / WINDOW_PAGES, n % WINDOW_PAGES);
            (WINDOW + table * 0x40_0000 + page * 0x1000, n % 4 < NO_CROSSING - 1)
        };
        let offset =
            if crossing && self.rng.one_in(3) { 0xffd } else { self.rng.below(0xff8) & !3 };
        let misalign = if self.rng.one_in(5) { self.rng.below(4) } else { 0 };
        let mut d = self.dest();
        let access = self.rng.below(8);
        let aligned = if access == 6 { !3 } else { !0 };
        self.asm.li(ADDRESS, (page + offset + misalign) & aligned);
        if machine {
            // The register that holds the bits must survive until they are cleared.
            while [ZERO, T6].contains(&d) {
                d = self.dest();
            }
            let mpp = self.rng.pick(&[0u32, 1, 1, 3]);
            self.asm.li(T6, 3 << MPP_SHIFT).csrrc(ZERO, MSTATUS, T6);
            self.asm.li(T6, MPRV | mpp << MPP_SHIFT).csrrs(ZERO, MSTATUS, T6);
        }
        let b = self.any();
        match access {
            0..3 => {
                let (op, _) = self.rng.pick(&LOADS);
                op(&mut self.asm, d, 0, ADDRESS);
            }
            3..6 => {
                let (op, _) = self.rng.pick(&STORES);
                op(&mut self.asm, b, 0, ADDRESS);
            }
            6 => {
                // Only where a load does not trap: for the rest QEMU sets A or reports an access
                // fault where the page may be read and not written. A may be set at any time, but
                // "page-fault exception" comes before "access fault" (privileged 10.3.2).
                const NOT_LOADED: u32 = 0x5eed;
                let op = self.rng.pick(&AMOS);
                let over = self.asm.label();
                let t = if d == T5 { T4 } else { T5 };
                let d = if d == ZERO { T3 } else { d };
                self.asm.li(t, NOT_LOADED).mv(d, t).lw(d, 0, ADDRESS).beq(d, t, over);
                op(&mut self.asm, d, b, ADDRESS);
                self.asm.place(over);
            }
            _ if machine => {}
            _ => {
                self.asm.jalr(RA, 0, ADDRESS);
            }
        }
        if machine {
            self.asm.li(T6, MPRV).csrrc(ZERO, MSTATUS, T6);
        }
    }

    /// A new entry for a page of the window, with the fence that it needs.
    fn remap(&mut self) {
        if self.mode == Mode::UserSv32 || self.mode != Mode::Machine && self.status & TVM != 0 {
            return;
        }
        let (entry, value, va) = if self.rng.one_in(5) {
            let n = 2 + self.rng.below(SUPERPAGES);
            let entry = TABLES + (WINDOW >> 22) * 4 + 4 * n;
            (entry, random_superpage(self.rng), WINDOW + n * 0x40_0000 + self.rng.below(0x40_0000))
        } else {
            let n = self.rng.below(2 * WINDOW_PAGES);
            let (table, page) = (n / WINDOW_PAGES, n % WINDOW_PAGES);
            let entry = TABLES + 0x1000 * (1 + table) + page * 4;
            let va = WINDOW + table * 0x40_0000 + page * 0x1000 + self.rng.below(0x1000);
            (entry, random_entry(self.rng, page), va)
        };
        let (d, entry) = (self.dest(), self.mode.see(entry));
        self.asm.li(ADDRESS, entry).li(d, value).sw(d, 0, ADDRESS);
        if self.rng.one_in(2) {
            self.asm.li(ADDRESS, va).sfence_vma(ADDRESS, ZERO);
        } else {
            self.asm.sfence_vma(ZERO, ZERO);
        }
    }

    /// Code that writes an instruction and then executes it.
    fn modify_code(&mut self) {
        let op = self.rng.pick(&BINARY);
        let (d, a, b) = (self.dest(), self.any(), self.any());
        let word = Asm::build(0, |asm| {
            op(asm, d, a, b);
        })[0];
        let slot = self.asm.label();
        let t = self.dest();
        self.asm.la(ADDRESS, slot).li(t, word).sw(t, 0, ADDRESS).fence_i();
        if self.rng.one_in(2) {
            self.asm.nop();
        }
        self.asm.place(slot).nop();
    }

    fn xret(&mut self) {
        let next = self.asm.label();
        match self.mode {
            Mode::Machine => {
                self.asm.la(ADDRESS, next).csrrw(ZERO, MEPC, ADDRESS);
                self.asm.li(ADDRESS, 3 << MPP_SHIFT).csrrs(ZERO, MSTATUS, ADDRESS).mret();
            }
            Mode::Supervisor | Mode::SupervisorSv32 => {
                self.asm.la(ADDRESS, next).csrrw(ZERO, SEPC, ADDRESS);
                self.asm.li(ADDRESS, SPP).csrrs(ZERO, SSTATUS, ADDRESS).sret();
            }
            Mode::User | Mode::UserSv32 => {
                self.asm.sret();
            }
        }
        self.asm.place(next);
    }
}

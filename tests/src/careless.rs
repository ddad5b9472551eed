//! Random programs that do what software must not: they change page tables without a fence and code
//! without `fence.i`, use page tables as code, and are interrupted at any time.
//!
//! What comes of that is the machine's choice, so no other machine does the same. But each instruction
//! loop and each backend must make the same choice: its TLBs and its decoded instructions must not
//! show otherwise.

use emu_core::dev::virtio::driver::Prng;
use emu_core::layout::VIRT;

use crate::asm::{Asm, Label, Reg, csr::*, raw_branch, reg::*};
use crate::machine::{DATA, M_HANDLER, RAM, Sv32, TABLES, pte};

/// Where pages are mapped in all kinds of ways.
const WINDOW: u32 = 0x4000_0000;
const WINDOW_PAGES: u32 = 64;
/// The window's page table, which is a page of the window, too.
const TABLE: u32 = TABLES + 0x1000;
/// Pages of data and of functions.
const PAGES: u32 = 8;
/// How many interrupts are left, for the handler.
const INTERRUPTS: u32 = M_HANDLER - 0x1000;
/// A program that has lost its way ends after so many interrupts a round.
const INTERRUPTS_MAX: u32 = 30;
/// The values of the registers at the start.
const REGISTERS: u32 = DATA + UPPER;
/// Functions are this far apart.
const FUNCTION: u32 = 0x100;
/// Random stores write to the upper half of a page, so that functions in the lower one remain.
const UPPER: u32 = 0x800;
const POWER_OFF: u32 = 0x5555;

/// Address of what is accessed, rounds left. The handler has `t0` to `t2`.
const ADDRESS: Reg = S10;
const ROUNDS: Reg = S11;
const RESERVED: [Reg; 6] = [RA, T0, T1, T2, ADDRESS, ROUNDS];

/// The modes that programs run in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    User,
    Supervisor,
    Machine,
}

/// Returns a program for address [`RAM`], made of `seed`, and with registers and data made of `data`:
/// so programs of one seed branch at different places. It powers off after so many rounds, of about a
/// thousand instructions each.
pub fn program(seed: u64, data: u64, rounds: u32) -> Vec<u8> {
    let (mut code, mut data) = (Prng::new(seed), Prng::new(data));
    let mode = code.pick(&[Mode::User, Mode::Supervisor, Mode::Supervisor, Mode::Machine]);
    let mut image = Image(Vec::new());
    image.put(RAM, &Writer { rng: &mut code, mode, asm: Asm::new(RAM) }.program(rounds));
    let ticks = code.pick(&[10, 30, 60, 2000]);
    image.put(M_HANDLER, &handler(ticks));
    image.put(INTERRUPTS, &[INTERRUPTS_MAX * rounds]);
    let all = if mode == Mode::User { pte::U_ALL } else { pte::S_ALL };
    for superpage in [RAM, RAM + 0x40_0000] {
        image.put(Sv32::root_entry(superpage), &[pte::leaf(superpage.into(), all)]);
    }
    image.put(Sv32::root_entry(WINDOW), &[pte::leaf(TABLE.into(), pte::V)]);
    let entries: Vec<u32> = (0..WINDOW_PAGES).map(|_| entry(&mut code, mode)).collect();
    let ret = Asm::build(0, |a| {
        a.ret();
    });
    for page in (0..PAGES).map(|page| DATA + 0x1000 * page).chain([TABLE]) {
        let upper: Vec<u32> = (0..(0x1000 - UPPER) / 4).map(|_| data.next_u32()).collect();
        image.put(page + UPPER, &upper);
        for function in (0..UPPER).step_by(FUNCTION as usize) {
            image.put(page + function, &[addi_a0(function / FUNCTION), ret[0]]);
        }
        // One that goes on in the next page.
        image.put(page, &ret);
        image.put(page + 0xffc, &[addi_a0(0x7f)]);
    }
    image.put(TABLE, &entries);
    let registers: Vec<u32> = (0..32).map(|_| data.next_u32() >> data.below(32)).collect();
    image.put(REGISTERS, &registers);
    image.0
}

/// Bytes from [`RAM`] on.
struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: u32, words: &[u32]) {
        let from = (at - RAM) as usize;
        self.0.resize(self.0.len().max(from + 4 * words.len()), 0);
        for (bytes, word) in self.0[from..].chunks_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn addi_a0(value: u32) -> u32 {
    Asm::build(0, |a| {
        a.addi(A0, A0, value as i32);
    })[0]
}

/// A page table entry: mostly one that works for something.
fn entry(rng: &mut Prng, mode: Mode) -> u32 {
    let page = if rng.one_in(8) { TABLE } else { DATA + 0x1000 * rng.below(PAGES) };
    let user = if mode == Mode::User { pte::U } else { 0 };
    let bits = match rng.below(8) {
        0 => 0,
        1 => rng.next_u32() & 0xff,
        2 => pte::S_ALL,
        3 => pte::U_ALL,
        4 => (pte::S_ALL & !pte::A & !pte::D) | user,
        5 => (pte::S_ALL & !pte::W) | user,
        _ => pte::S_ALL | user,
    };
    pte::leaf(page.into(), bits)
}

/// The handler of everything, in M-mode. Where no instruction could be fetched it returns to the
/// caller, else behind the instruction.
fn handler(ticks: u32) -> Vec<u32> {
    Asm::build(M_HANDLER, |a| {
        let [interrupt, fetch, skip, off] = [(); 4].map(|()| a.label());
        a.csrr(T0, MCAUSE).blt(T0, ZERO, interrupt);
        for cause in [1, 12] {
            a.li(T1, cause).beq(T0, T1, fetch);
        }
        // ECALL, from any mode, is a fence, or the end.
        a.li(T1, 8).bltu(T0, T1, skip).li(T1, 12).bgeu(T0, T1, skip);
        a.beq(ROUNDS, ZERO, off).sfence_vma(ZERO, ZERO);
        a.place(skip).csrr(T1, MEPC).addi(T1, T1, 4).csrrw(ZERO, MEPC, T1).mret();
        a.place(fetch).csrrw(ZERO, MEPC, RA).mret();
        a.place(interrupt).li(T2, INTERRUPTS).lw(T1, 0, T2).addi(T1, T1, -1).sw(T1, 0, T2);
        a.beq(T1, ZERO, off).csrr(T1, TIME).addi(T1, T1, ticks as i32);
        a.li(T2, VIRT.clint.base + 0x4000).sw(T1, 0, T2).sw(ZERO, 4, T2).mret();
        a.place(off).store_li(VIRT.finisher.base, POWER_OFF).stop();
    })
}

type Binary = fn(&mut Asm, Reg, Reg, Reg) -> &mut Asm;
type Immediate = fn(&mut Asm, Reg, Reg, i32) -> &mut Asm;
type ShiftBy = fn(&mut Asm, Reg, Reg, u32) -> &mut Asm;
type Access = fn(&mut Asm, Reg, i32, Reg) -> &mut Asm;
type Branch = fn(&mut Asm, Reg, Reg, Label) -> &mut Asm;

const BINARY: [Binary; 18] = [
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
    Asm::mul,
    Asm::mulh,
    Asm::mulhsu,
    Asm::mulhu,
    Asm::div,
    Asm::divu,
    Asm::rem,
    Asm::remu,
];
const IMMEDIATE: [Immediate; 6] =
    [Asm::addi, Asm::slti, Asm::sltiu, Asm::xori, Asm::ori, Asm::andi];
const SHIFTS: [ShiftBy; 3] = [Asm::slli, Asm::srli, Asm::srai];
const LOADS: [Access; 5] = [Asm::lb, Asm::lbu, Asm::lh, Asm::lhu, Asm::lw];
const STORES: [Access; 3] = [Asm::sb, Asm::sh, Asm::sw];
const AMOS: [Binary; 4] = [Asm::amoswap_w, Asm::amoadd_w, Asm::amomin_w, Asm::sc_w];
const BRANCHES: [Branch; 6] = [Asm::beq, Asm::bne, Asm::blt, Asm::bge, Asm::bltu, Asm::bgeu];

struct Writer<'a> {
    rng: &'a mut Prng,
    mode: Mode,
    asm: Asm,
}

impl Writer<'_> {
    fn program(mut self, rounds: u32) -> Vec<u32> {
        const MTI: u32 = 1 << 7;
        const MACHINE_INTERRUPTS: u32 = 1 << 3 | 1 << 7;
        let a = &mut self.asm;
        let start = a.label();
        a.csr_li(PMPADDR0, u32::MAX).csr_li(PMPCFG0, 0x1f).csr_li(MTVEC, M_HANDLER);
        a.csr_li(SATP, Sv32::satp()).csr_li(MIE, MTI).csr_li(MCOUNTEREN, 7).csr_li(SCOUNTEREN, 7);
        a.csr_li(MSTATUS, (self.mode as u32) << 11 | MACHINE_INTERRUPTS);
        a.la(T0, start).csrrw(ZERO, MEPC, T0);
        a.li(T0, VIRT.clint.base + 0x4000).li(T1, 100).sw(T1, 0, T0).sw(ZERO, 4, T0);
        a.li(T0, REGISTERS);
        for r in (1..32).filter(|r| !RESERVED.contains(r)) {
            a.lw(r, 4 * r as i32, T0);
        }
        let top = a.mret().place(start).li(ROUNDS, rounds).mark();
        for _ in 0..120 {
            self.item();
        }
        let (end, a) = (self.asm.label(), &mut self.asm);
        a.addi(ROUNDS, ROUNDS, -1).beq(ROUNDS, ZERO, end).j(top).place(end).ecall().stop();
        let words = self.asm.finish();
        assert!(RAM + 4 * (words.len() as u32) < INTERRUPTS, "too long");
        words
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

    /// A page as the window, or the whole of RAM, shows it.
    fn page(&mut self) -> u32 {
        if self.mode == Mode::Machine || self.rng.one_in(4) {
            DATA + 0x1000 * self.rng.below(PAGES)
        } else {
            // Often one of few, so that it is used again.
            let pages = self.rng.pick(&[4, 4, WINDOW_PAGES]);
            WINDOW + 0x1000 * self.rng.below(pages)
        }
    }

    fn item(&mut self) {
        match self.rng.below(100) {
            0..20 => {
                let op = self.rng.pick(&BINARY);
                let (d, a, b) = (self.dest(), self.any(), self.any());
                op(&mut self.asm, d, a, b);
            }
            20..28 => {
                let op = self.rng.pick(&IMMEDIATE);
                let (d, a, imm) = (self.dest(), self.any(), self.rng.next_u32() as i32 >> 20);
                op(&mut self.asm, d, a, imm);
            }
            28..32 => {
                let op = self.rng.pick(&SHIFTS);
                let (d, a, by) = (self.dest(), self.any(), self.rng.below(32));
                op(&mut self.asm, d, a, by);
            }
            32..34 => {
                let (d, upper) = (self.dest(), self.rng.next_u32() >> 12);
                let op = self.rng.pick(&[Asm::lui, Asm::auipc]);
                op(&mut self.asm, d, upper);
            }
            34..56 => self.access(),
            56..60 => self.atomic(),
            60..68 => self.skip(),
            68..76 => self.call(),
            76..81 => self.patch(),
            81..88 => self.remap(),
            88..90 => self.fence(),
            90..95 => self.csr(),
            95..97 => self.rewrite(),
            97 => self.misaligned(),
            _ => self.jump_to_page_end(),
        }
    }

    fn access(&mut self) {
        let mprv = self.mode == Mode::Machine && self.rng.one_in(2);
        let page = if mprv { WINDOW + 0x1000 * self.rng.below(WINDOW_PAGES) } else { self.page() };
        if mprv {
            let mpp = self.rng.below(2) << 11;
            self.asm.li(T3, 3 << 11).csrrc(ZERO, MSTATUS, T3);
            self.asm.li(T3, 1 << 17 | mpp).csrrs(ZERO, MSTATUS, T3);
        }
        for _ in 0..1 + self.rng.below(2) {
            let size = self.rng.below(5);
            if self.rng.one_in(2) {
                let offset = self.rng.below(0x1000) & !if self.rng.one_in(8) { 0 } else { 3 };
                let (op, d) = (LOADS[size as usize], self.dest());
                self.asm.li(ADDRESS, page + offset);
                op(&mut self.asm, d, 0, ADDRESS);
            } else {
                let misaligned = if self.rng.one_in(8) { self.rng.below(4) } else { 0 };
                let offset = UPPER + (self.rng.below(0x7e0) & !3);
                let (op, b) = (STORES[size as usize % 3], self.any());
                self.asm.li(ADDRESS, page + offset + misaligned);
                op(&mut self.asm, b, 0, ADDRESS);
            }
        }
        if mprv {
            self.asm.li(T3, 1 << 17).csrrc(ZERO, MSTATUS, T3);
        }
    }

    fn atomic(&mut self) {
        let page = self.page();
        self.asm.li(ADDRESS, page + UPPER + (self.rng.below(0x7e0) & !3));
        let (d, b) = (self.dest(), self.any());
        if self.rng.one_in(2) {
            self.asm.lr_w(d, ADDRESS);
        }
        let op = self.rng.pick(&AMOS);
        op(&mut self.asm, d, b, ADDRESS);
    }

    /// A branch over a few instructions.
    fn skip(&mut self) {
        let over = self.asm.label();
        let op = self.rng.pick(&BRANCHES);
        let (a, b) = (self.any(), self.any());
        op(&mut self.asm, a, b, over);
        for _ in 0..1 + self.rng.below(3) {
            let op = self.rng.pick(&BINARY);
            let (d, a, b) = (self.dest(), self.any(), self.any());
            op(&mut self.asm, d, a, b);
        }
        self.asm.place(over);
    }

    /// A function's address on a page.
    fn function(&mut self) -> u32 {
        match self.rng.below(9) {
            8 => 0xffc,
            n => n * FUNCTION,
        }
    }

    fn call(&mut self) {
        for _ in 0..1 + self.rng.below(3) {
            let (page, function) = (self.page(), self.function());
            self.asm.li(ADDRESS, page + function).jalr(RA, 0, ADDRESS);
        }
    }

    /// Another first instruction for a function.
    fn patch(&mut self) {
        let page = self.page();
        let function = page + self.function();
        let word = addi_a0(self.rng.below(0x7ff));
        self.asm.li(ADDRESS, function).li(T3, word).sw(T3, 0, ADDRESS);
        if self.rng.one_in(2) {
            self.asm.jalr(RA, 0, ADDRESS);
        }
    }

    /// A new entry for a page of the window, mostly without a fence.
    fn remap(&mut self) {
        let pages = self.rng.pick(&[4, WINDOW_PAGES]);
        let (page, entry) = (self.rng.below(pages), entry(self.rng, self.mode));
        let va = WINDOW + 0x1000 * page;
        // What is cached of the page before, and whether that still counts.
        let uses = self.rng.below(3);
        for _ in 0..uses {
            self.asm.li(ADDRESS, va + UPPER).lw(T3, 0, ADDRESS);
        }
        self.asm.li(ADDRESS, TABLE + 4 * page).li(T3, entry).sw(T3, 0, ADDRESS);
        if self.rng.one_in(3) {
            self.asm.li(ADDRESS, va).sfence_vma(ADDRESS, ZERO);
        }
        if uses > 0 {
            let (d, b) = (self.dest(), self.any());
            self.asm.li(ADDRESS, va + UPPER).lw(d, 4, ADDRESS).sw(b, 8, ADDRESS);
        }
    }

    fn fence(&mut self) {
        match self.rng.below(4) {
            0 => self.asm.ecall(),
            1 => self.asm.fence_i(),
            _ => self.asm.sfence_vma(ZERO, ZERO),
        };
    }

    fn csr(&mut self) {
        let d = self.dest();
        match self.rng.below(5) {
            0 => self.asm.csrr(d, INSTRET),
            1 => self.asm.csrr(d, TIME),
            2 => self.asm.csrrw(d, SSCRATCH, d),
            // SUM or MXR.
            n => {
                let bits = 1 << (18 + self.rng.below(2));
                self.asm.li(T3, bits);
                if n == 3 { self.asm.csrrs(d, SSTATUS, T3) } else { self.asm.csrrc(d, SSTATUS, T3) }
            }
        };
    }

    /// A store to one of the next instructions.
    fn rewrite(&mut self) {
        let slot = self.asm.label();
        let word = addi_a0(self.rng.below(0x7ff));
        self.asm.la(ADDRESS, slot).li(T3, word).sw(T3, 0, ADDRESS);
        for _ in 0..self.rng.below(3) {
            self.asm.nop();
        }
        self.asm.place(slot).nop();
    }

    /// A branch to an address that is none of an instruction.
    fn misaligned(&mut self) {
        let (a, b) = (self.any(), self.any());
        let funct3 = self.rng.pick(&[0u32, 1, 4, 5, 6, 7]);
        self.asm.word(raw_branch(0x63 | funct3 << 12, a, b, 6));
    }

    /// Goes on at the last instructions of the page, and so on the next one.
    fn jump_to_page_end(&mut self) {
        let used = (self.asm.here() - RAM) / 0x1000;
        if used > 9 {
            return;
        }
        let over = self.asm.label();
        self.asm.j(over);
        while self.asm.here() & 0xfff != 0xff4 {
            self.asm.nop();
        }
        self.asm.place(over);
    }
}

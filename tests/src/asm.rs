//! An assembler in the form of a builder: one method for each row of the core's instruction
//! table, labels, and the few pseudo-instructions that tests need.

use emu_core::for_each_insn;
use pastey::paste;

/// A register number.
pub type Reg = u32;

/// Registers by their ABI names.
#[allow(missing_docs)]
pub mod reg {
    use super::Reg;

    pub const ZERO: Reg = 0;
    pub const RA: Reg = 1;
    pub const SP: Reg = 2;
    pub const GP: Reg = 3;
    pub const TP: Reg = 4;
    pub const T0: Reg = 5;
    pub const T1: Reg = 6;
    pub const T2: Reg = 7;
    pub const S0: Reg = 8;
    pub const S1: Reg = 9;
    pub const A0: Reg = 10;
    pub const A1: Reg = 11;
    pub const A2: Reg = 12;
    pub const A3: Reg = 13;
    pub const A4: Reg = 14;
    pub const A5: Reg = 15;
    pub const A6: Reg = 16;
    pub const A7: Reg = 17;
    pub const S2: Reg = 18;
    pub const S3: Reg = 19;
    pub const S4: Reg = 20;
    pub const S5: Reg = 21;
    pub const S6: Reg = 22;
    pub const S7: Reg = 23;
    pub const S8: Reg = 24;
    pub const S9: Reg = 25;
    pub const S10: Reg = 26;
    pub const S11: Reg = 27;
    pub const T3: Reg = 28;
    pub const T4: Reg = 29;
    pub const T5: Reg = 30;
    pub const T6: Reg = 31;
}

/// CSR numbers that tests name.
#[allow(missing_docs)]
pub mod csr {
    pub const SSTATUS: u32 = 0x100;
    pub const SIE: u32 = 0x104;
    pub const STVEC: u32 = 0x105;
    pub const SCOUNTEREN: u32 = 0x106;
    pub const SENVCFG: u32 = 0x10a;
    pub const SSCRATCH: u32 = 0x140;
    pub const SEPC: u32 = 0x141;
    pub const SCAUSE: u32 = 0x142;
    pub const STVAL: u32 = 0x143;
    pub const SIP: u32 = 0x144;
    pub const SATP: u32 = 0x180;
    pub const MSTATUS: u32 = 0x300;
    pub const MISA: u32 = 0x301;
    pub const MEDELEG: u32 = 0x302;
    pub const MIDELEG: u32 = 0x303;
    pub const MIE: u32 = 0x304;
    pub const MTVEC: u32 = 0x305;
    pub const MCOUNTEREN: u32 = 0x306;
    pub const MENVCFG: u32 = 0x30a;
    pub const MENVCFGH: u32 = 0x31a;
    pub const MCOUNTINHIBIT: u32 = 0x320;
    pub const MSCRATCH: u32 = 0x340;
    pub const MEPC: u32 = 0x341;
    pub const MCAUSE: u32 = 0x342;
    pub const MTVAL: u32 = 0x343;
    pub const MIP: u32 = 0x344;
    pub const PMPCFG0: u32 = 0x3a0;
    pub const PMPADDR0: u32 = 0x3b0;
    pub const TSELECT: u32 = 0x7a0;
    pub const TDATA1: u32 = 0x7a1;
    pub const MCYCLE: u32 = 0xb00;
    pub const MINSTRET: u32 = 0xb02;
    pub const MCYCLEH: u32 = 0xb80;
    pub const MINSTRETH: u32 = 0xb82;
    pub const CYCLE: u32 = 0xc00;
    pub const TIME: u32 = 0xc01;
    pub const INSTRET: u32 = 0xc02;
    pub const HPMCOUNTER3: u32 = 0xc03;
    pub const TIMEH: u32 = 0xc81;
    pub const MHARTID: u32 = 0xf14;
}

/// A place in the program, which may still be unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label(usize);

#[derive(Clone, Copy, Debug)]
enum Fixup {
    Branch,
    Jump,
    /// `lui` and `addi` of the label's address.
    Address,
}

/// A program under construction, at a fixed address.
#[derive(Clone, Debug)]
pub struct Asm {
    base: u32,
    words: Vec<u32>,
    labels: Vec<Option<u32>>,
    fixups: Vec<(usize, Label, Fixup)>,
}

/// Scatters a branch offset over its instruction.
const fn imm_b(offset: u32) -> u32 {
    (offset >> 12 & 1) << 31
        | (offset >> 5 & 0x3f) << 25
        | (offset >> 1 & 0xf) << 8
        | (offset >> 11 & 1) << 7
}

/// Scatters a jump offset over its instruction.
const fn imm_j(offset: u32) -> u32 {
    (offset >> 20 & 1) << 31
        | (offset >> 1 & 0x3ff) << 21
        | (offset >> 11 & 1) << 20
        | offset & 0xf_f000
}

const fn imm_i(imm: i32) -> u32 {
    assert!(imm >= -2048 && imm <= 2047, "immediate does not fit 12 bits");
    (imm as u32) << 20
}

const fn imm_s(imm: i32) -> u32 {
    assert!(imm >= -2048 && imm <= 2047, "immediate does not fit 12 bits");
    (imm as u32 >> 5 & 0x7f) << 25 | (imm as u32 & 0x1f) << 7
}

const fn rd(r: Reg) -> u32 {
    r << 7
}
const fn rs1(r: Reg) -> u32 {
    r << 15
}
const fn rs2(r: Reg) -> u32 {
    r << 20
}

macro_rules! encoder {
    ($name:ident, $doc:literal, $match:literal, R) => {
        #[doc = $doc]
        pub fn $name(&mut self, d: Reg, a: Reg, b: Reg) -> &mut Self {
            self.word($match | rd(d) | rs1(a) | rs2(b))
        }
    };
    ($name:ident, $doc:literal, $match:literal, I) => {
        #[doc = $doc]
        pub fn $name(&mut self, d: Reg, a: Reg, imm: i32) -> &mut Self {
            self.word($match | rd(d) | rs1(a) | imm_i(imm))
        }
    };
    ($name:ident, $doc:literal, $match:literal, Load) => {
        #[doc = $doc]
        pub fn $name(&mut self, d: Reg, imm: i32, a: Reg) -> &mut Self {
            self.word($match | rd(d) | rs1(a) | imm_i(imm))
        }
    };
    ($name:ident, $doc:literal, $match:literal, S) => {
        #[doc = $doc]
        pub fn $name(&mut self, b: Reg, imm: i32, a: Reg) -> &mut Self {
            self.word($match | rs1(a) | rs2(b) | imm_s(imm))
        }
    };
    ($name:ident, $doc:literal, $match:literal, B) => {
        #[doc = $doc]
        pub fn $name(&mut self, a: Reg, b: Reg, to: Label) -> &mut Self {
            self.fixups.push((self.words.len(), to, Fixup::Branch));
            self.word($match | rs1(a) | rs2(b))
        }
    };
    ($name:ident, $doc:literal, $match:literal, U) => {
        #[doc = $doc]
        pub fn $name(&mut self, d: Reg, upper: u32) -> &mut Self {
            self.word($match | rd(d) | upper << 12)
        }
    };
    ($name:ident, $doc:literal, $match:literal, J) => {
        #[doc = $doc]
        pub fn $name(&mut self, d: Reg, to: Label) -> &mut Self {
            self.fixups.push((self.words.len(), to, Fixup::Jump));
            self.word($match | rd(d))
        }
    };
    ($name:ident, $doc:literal, $match:literal, Shift) => {
        #[doc = $doc]
        pub fn $name(&mut self, d: Reg, a: Reg, shamt: u32) -> &mut Self {
            self.word($match | rd(d) | rs1(a) | (shamt & 31) << 20)
        }
    };
    ($name:ident, $doc:literal, $match:literal, Csr) => {
        #[doc = $doc]
        pub fn $name(&mut self, d: Reg, csr: u32, a: Reg) -> &mut Self {
            self.word($match | rd(d) | rs1(a) | csr << 20)
        }
    };
    ($name:ident, $doc:literal, $match:literal, CsrImm) => {
        #[doc = $doc]
        pub fn $name(&mut self, d: Reg, csr: u32, uimm: u32) -> &mut Self {
            self.word($match | rd(d) | rs1(uimm & 31) | csr << 20)
        }
    };
    ($name:ident, $doc:literal, $match:literal, Amo) => {
        #[doc = $doc]
        pub fn $name(&mut self, d: Reg, b: Reg, a: Reg) -> &mut Self {
            self.word($match | rd(d) | rs1(a) | rs2(b))
        }
    };
    ($name:ident, $doc:literal, $match:literal, Lr) => {
        #[doc = $doc]
        pub fn $name(&mut self, d: Reg, a: Reg) -> &mut Self {
            self.word($match | rd(d) | rs1(a))
        }
    };
    ($name:ident, $doc:literal, $match:literal, Sfence) => {
        #[doc = $doc]
        pub fn $name(&mut self, a: Reg, b: Reg) -> &mut Self {
            self.word($match | rs1(a) | rs2(b))
        }
    };
    ($name:ident, $doc:literal, $match:literal, None) => {
        #[doc = $doc]
        pub fn $name(&mut self) -> &mut Self {
            self.word($match)
        }
    };
}

macro_rules! encoders {
    ($((
        $name:literal, $op:ident, $match:literal, $mask:literal, $format:ident,
        $class:ident $meaning:tt
    ),)*) => {
        paste! {
            /// One method an instruction, operands in the assembler's order.
            impl Asm {
                $(encoder!([<$op:snake>], $name, $match, $format);)*
            }
        }
    };
}
for_each_insn!(encoders);

impl Asm {
    /// An empty program that will stand at `base`.
    pub const fn new(base: u32) -> Self {
        Self { base, words: Vec::new(), labels: Vec::new(), fixups: Vec::new() }
    }

    /// The program that `f` writes.
    pub fn build(base: u32, f: impl FnOnce(&mut Self)) -> Vec<u32> {
        let mut asm = Self::new(base);
        f(&mut asm);
        asm.finish()
    }

    /// Address of the next word.
    pub fn here(&self) -> u32 {
        self.base + 4 * self.words.len() as u32
    }

    /// How many words there are.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// A word as it is.
    pub fn word(&mut self, word: u32) -> &mut Self {
        self.words.push(word);
        self
    }

    /// Zeros up to `address`.
    pub fn pad_to(&mut self, address: u32) -> &mut Self {
        assert!(address >= self.here() && address.is_multiple_of(4), "cannot go back");
        self.words.resize(((address - self.base) / 4) as usize, 0);
        self
    }

    /// A label to be placed later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places a label here.
    pub fn place(&mut self, label: Label) -> &mut Self {
        assert!(self.labels[label.0].is_none(), "label placed twice");
        self.labels[label.0] = Some(self.here());
        self
    }

    /// A label placed here.
    pub fn mark(&mut self) -> Label {
        let label = self.label();
        self.place(label);
        label
    }

    /// Loads a constant, in one or two instructions.
    pub fn li(&mut self, d: Reg, value: u32) -> &mut Self {
        let signed = value as i32;
        if (-2048..2048).contains(&signed) {
            return self.addi(d, reg::ZERO, signed);
        }
        let (upper, lower) = split(value);
        self.lui(d, upper);
        if lower == 0 { self } else { self.addi(d, d, lower) }
    }

    /// Loads a label's address, in two instructions.
    pub fn la(&mut self, d: Reg, label: Label) -> &mut Self {
        self.fixups.push((self.words.len(), label, Fixup::Address));
        self.lui(d, 0).addi(d, d, 0)
    }

    /// Jumps.
    pub fn j(&mut self, to: Label) -> &mut Self {
        self.jal(reg::ZERO, to)
    }

    /// Does nothing.
    pub fn nop(&mut self) -> &mut Self {
        self.addi(reg::ZERO, reg::ZERO, 0)
    }

    /// Makes a semihosting request.
    pub fn semihost(&mut self) -> &mut Self {
        self.slli(reg::ZERO, reg::ZERO, 0x1f).ebreak().srai(reg::ZERO, reg::ZERO, 7)
    }

    /// Copies a register.
    pub fn mv(&mut self, d: Reg, a: Reg) -> &mut Self {
        self.addi(d, a, 0)
    }

    /// Jumps to the address in `ra`.
    pub fn ret(&mut self) -> &mut Self {
        self.jalr(reg::ZERO, 0, reg::RA)
    }

    /// Jumps to itself, for ever.
    pub fn stop(&mut self) -> &mut Self {
        let here = self.mark();
        self.j(here)
    }

    /// Writes a constant to a CSR, by way of `t0`.
    pub fn csr_li(&mut self, csr: u32, value: u32) -> &mut Self {
        self.li(reg::T0, value).csrrw(reg::ZERO, csr, reg::T0)
    }

    /// Reads a CSR.
    pub fn csrr(&mut self, d: Reg, csr: u32) -> &mut Self {
        self.csrrs(d, csr, reg::ZERO)
    }

    /// Stores a constant word to an absolute address, by way of `t0` and `t1`.
    pub fn store_li(&mut self, address: u32, value: u32) -> &mut Self {
        self.li(reg::T0, address).li(reg::T1, value).sw(reg::T1, 0, reg::T0)
    }

    /// The finished program.
    pub fn finish(mut self) -> Vec<u32> {
        for (at, label, kind) in std::mem::take(&mut self.fixups) {
            let target = self.labels[label.0].expect("label was never placed");
            let offset = target.wrapping_sub(self.base + 4 * at as u32);
            match kind {
                Fixup::Branch => {
                    assert!((-4096..4096).contains(&(offset as i32)), "branch too far");
                    self.words[at] |= imm_b(offset);
                }
                Fixup::Jump => {
                    assert!((-(1 << 20)..1 << 20).contains(&(offset as i32)), "jump too far");
                    self.words[at] |= imm_j(offset);
                }
                Fixup::Address => {
                    let (upper, lower) = split(target);
                    self.words[at] |= upper << 12;
                    self.words[at + 1] |= imm_i(lower);
                }
            }
        }
        self.words
    }
}

/// Splits a constant for `lui` and `addi`.
const fn split(value: u32) -> (u32, i32) {
    let lower = (value as i32) << 20 >> 20;
    (value.wrapping_sub(lower as u32) >> 12, lower)
}

/// A branch to `offset` from itself, aligned or not: what [`Asm`] does not let through.
pub const fn raw_branch(matches: u32, a: Reg, b: Reg, offset: i32) -> u32 {
    matches | rs1(a) | rs2(b) | imm_b(offset as u32)
}

/// A `jal` to `offset` from itself, aligned or not.
pub const fn raw_jal(d: Reg, offset: i32) -> u32 {
    0x6f | rd(d) | imm_j(offset as u32)
}

#[cfg(test)]
mod tests {
    use super::reg::*;
    use super::*;
    use emu_core::insn::Insn;

    fn text(f: impl FnOnce(&mut Asm)) -> Vec<String> {
        Asm::build(0x8000_0000, f).into_iter().map(|w| Insn(w).to_string()).collect()
    }

    #[test]
    fn every_format_comes_back_from_the_disassembler() {
        let lines = text(|a| {
            let top = a.mark();
            a.sub(A0, A1, A2).xori(T0, T1, -5).lbu(S0, -2048, SP).sh(S1, 2047, GP);
            a.bltu(A3, A4, top).lui(T6, 0xfffff).jal(RA, top).srai(T2, T3, 31);
            a.csrrc(A5, 0x300, A6).csrrwi(A7, 0x340, 31).amomaxu_w(S2, S3, S4);
            a.lr_w(S5, S6).sfence_vma(S7, S8).mret();
        });
        assert_eq!(
            lines,
            [
                "sub a0,a1,a2",
                "xori t0,t1,-5",
                "lbu s0,-2048(sp)",
                "sh s1,2047(gp)",
                "bltu a3,a4,.-16",
                "lui t6,0xfffff",
                "jal ra,.-24",
                "srai t2,t3,31",
                "csrrc a5,0x300,a6",
                "csrrwi a7,0x340,31",
                "amomaxu.w s2,s3,(s4)",
                "lr.w s5,(s6)",
                "sfence.vma s7,s8",
                "mret",
            ]
        );
    }

    #[test]
    fn li_splits_so_that_the_sign_of_the_low_part_cancels() {
        assert_eq!(
            text(|a| {
                a.li(A0, 0x8000_0fff);
            }),
            ["lui a0,0x80001", "addi a0,a0,-1"]
        );
        assert_eq!(
            text(|a| {
                a.li(A0, 0xffff_f800);
            }),
            ["addi a0,zero,-2048"]
        );
        assert_eq!(
            text(|a| {
                a.li(A0, 0x1_0000);
            }),
            ["lui a0,0x10"]
        );
    }
}

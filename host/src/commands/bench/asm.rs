//! The instructions of the bare-metal workloads as words, and programs made of them.

/// A register's number.
pub type Reg = u32;

/// Registers by their ABI names.
#[allow(missing_docs)]
pub mod reg {
    use super::Reg;

    pub const ZERO: Reg = 0;
    pub const RA: Reg = 1;
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
}

/// A branch's condition: its `funct3`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cond {
    /// Equal.
    Eq = 0,
    /// Not equal.
    Ne = 1,
    /// Less, unsigned.
    Ltu = 6,
    /// Greater or equal, unsigned.
    Geu = 7,
}

/// `lui`; the low 12 bits of the value are zero.
pub const fn lui(d: Reg, value: u32) -> u32 {
    assert!(value & 0xfff == 0);
    0x37 | d << 7 | value
}
const fn op_imm(funct: u32, d: Reg, a: Reg, imm: u32) -> u32 {
    assert!(imm <= 0xfff);
    0x13 | funct << 12 | d << 7 | a << 15 | imm << 20
}
/// The 12 bits of an immediate.
const fn imm12(imm: i32) -> u32 {
    assert!(imm >= -2048 && imm < 2048);
    imm as u32 & 0xfff
}
/// `addi`.
pub const fn addi(d: Reg, a: Reg, imm: i32) -> u32 {
    op_imm(0, d, a, imm12(imm))
}
/// `xori`.
pub const fn xori(d: Reg, a: Reg, imm: i32) -> u32 {
    op_imm(4, d, a, imm12(imm))
}
/// `ori`.
pub const fn ori(d: Reg, a: Reg, imm: i32) -> u32 {
    op_imm(6, d, a, imm12(imm))
}
/// `andi`.
pub const fn andi(d: Reg, a: Reg, imm: i32) -> u32 {
    op_imm(7, d, a, imm12(imm))
}
/// `slli`.
pub const fn slli(d: Reg, a: Reg, shift: u32) -> u32 {
    assert!(shift < 32);
    op_imm(1, d, a, shift)
}
/// `srli`.
pub const fn srli(d: Reg, a: Reg, shift: u32) -> u32 {
    assert!(shift < 32);
    op_imm(5, d, a, shift)
}
const fn op(high: u32, funct: u32, d: Reg, a: Reg, b: Reg) -> u32 {
    0x33 | funct << 12 | d << 7 | a << 15 | b << 20 | high << 25
}
/// `add`.
pub const fn add(d: Reg, a: Reg, b: Reg) -> u32 {
    op(0, 0, d, a, b)
}
/// `sub`.
pub const fn sub(d: Reg, a: Reg, b: Reg) -> u32 {
    op(0x20, 0, d, a, b)
}
/// `xor`.
pub const fn xor(d: Reg, a: Reg, b: Reg) -> u32 {
    op(0, 4, d, a, b)
}
/// `or`.
pub const fn or(d: Reg, a: Reg, b: Reg) -> u32 {
    op(0, 6, d, a, b)
}
/// `and`.
pub const fn and(d: Reg, a: Reg, b: Reg) -> u32 {
    op(0, 7, d, a, b)
}
/// `mul`.
pub const fn mul(d: Reg, a: Reg, b: Reg) -> u32 {
    op(1, 0, d, a, b)
}
/// `mulhu`.
pub const fn mulhu(d: Reg, a: Reg, b: Reg) -> u32 {
    op(1, 3, d, a, b)
}
/// `divu`.
pub const fn divu(d: Reg, a: Reg, b: Reg) -> u32 {
    op(1, 5, d, a, b)
}
/// `rem`.
pub const fn rem(d: Reg, a: Reg, b: Reg) -> u32 {
    op(1, 6, d, a, b)
}
/// `remu`.
pub const fn remu(d: Reg, a: Reg, b: Reg) -> u32 {
    op(1, 7, d, a, b)
}
/// `lbu d, at(a)`.
pub const fn lbu(d: Reg, at: i32, a: Reg) -> u32 {
    0x4003 | d << 7 | a << 15 | imm12(at) << 20
}
/// `lw d, at(a)`.
pub const fn lw(d: Reg, at: i32, a: Reg) -> u32 {
    0x2003 | d << 7 | a << 15 | imm12(at) << 20
}
const fn store(funct: u32, value: Reg, at: i32, a: Reg) -> u32 {
    let at = imm12(at);
    0x23 | funct << 12 | (at & 0x1f) << 7 | a << 15 | value << 20 | (at >> 5) << 25
}
/// `sb value, at(a)`.
pub const fn sb(value: Reg, at: i32, a: Reg) -> u32 {
    store(0, value, at, a)
}
/// `sw value, at(a)`.
pub const fn sw(value: Reg, at: i32, a: Reg) -> u32 {
    store(2, value, at, a)
}
/// `jalr d, 0(a)`.
pub const fn jalr(d: Reg, a: Reg) -> u32 {
    0x67 | d << 7 | a << 15
}
/// A branch to the instruction `offset` bytes from this one.
pub const fn branch(cond: Cond, a: Reg, b: Reg, offset: i32) -> u32 {
    assert!(offset >= -4096 && offset < 4096 && offset % 2 == 0);
    let (o, funct) = (offset as u32, cond as u32);
    let high = (o >> 12 & 1) << 31 | (o >> 5 & 0x3f) << 25;
    0x63 | funct << 12 | a << 15 | b << 20 | high | (o >> 1 & 0xf) << 8 | (o >> 11 & 1) << 7
}
/// `jal` to the instruction `offset` bytes from this one.
pub const fn jal(d: Reg, offset: i32) -> u32 {
    assert!(offset >= -(1 << 20) && offset < 1 << 20 && offset % 2 == 0);
    let o = offset as u32;
    let low = (o >> 1 & 0x3ff) << 21 | (o >> 11 & 1) << 20;
    0x6f | d << 7 | (o >> 20 & 1) << 31 | low | (o >> 12 & 0xff) << 12
}

/// A place in a program, which may not be known yet.
#[derive(Clone, Copy, Debug)]
pub struct Label(usize);

/// A jump or branch to a label.
enum Jump {
    Branch(Cond, Reg, Reg),
    Jal(Reg),
}

/// A program that is being made.
pub struct Assembler {
    base: u32,
    words: Vec<u32>,
    /// Index of the word at each label.
    labels: Vec<Option<usize>>,
    /// Jumps, with the index of their word.
    jumps: Vec<(usize, Jump, Label)>,
}

impl Assembler {
    /// Returns an empty program that will lie at `base`.
    pub fn new(base: u32) -> Self {
        Self { base, words: Vec::new(), labels: Vec::new(), jumps: Vec::new() }
    }

    /// Address of the next instruction.
    pub fn address(&self) -> u32 {
        self.base + 4 * self.words.len() as u32
    }

    /// Adds words.
    pub fn put<const N: usize>(&mut self, words: [u32; N]) {
        self.words.extend(words);
    }

    /// Adds instructions that load a constant.
    pub fn li(&mut self, d: Reg, value: u32) {
        let low = ((value << 20) as i32) >> 20;
        match value.wrapping_sub(low as u32) {
            0 => self.put([addi(d, reg::ZERO, low)]),
            high => {
                self.put([lui(d, high)]);
                if low != 0 {
                    self.put([addi(d, d, low)]);
                }
            }
        }
    }

    /// Returns a label for a place that comes later.
    pub fn later(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The place of a label is here.
    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.words.len());
    }

    /// Returns a label for this place.
    pub fn here(&mut self) -> Label {
        let label = self.later();
        self.bind(label);
        label
    }

    /// Adds a branch.
    pub fn branch(&mut self, cond: Cond, a: Reg, b: Reg, to: Label) {
        self.jump(Jump::Branch(cond, a, b), to);
    }

    /// Adds a jump.
    pub fn jal(&mut self, d: Reg, to: Label) {
        self.jump(Jump::Jal(d), to);
    }

    fn jump(&mut self, jump: Jump, to: Label) {
        self.jumps.push((self.words.len(), jump, to));
        self.words.push(0);
    }

    /// Returns the program's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        for (at, jump, to) in self.jumps {
            let to = self.labels[to.0];
            debug_assert!(to.is_some(), "a label without a place");
            let to = to.unwrap_or(at);
            let offset = 4 * (to as i32 - at as i32);
            self.words[at] = match jump {
                Jump::Branch(cond, a, b) => branch(cond, a, b, offset),
                Jump::Jal(d) => jal(d, offset),
            };
        }
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use emu_core::insn::Insn;

    use super::reg::*;
    use super::*;

    #[test]
    fn the_encoders_say_what_they_are_called() {
        let mut program = Assembler::new(0x8000_0000);
        let begin = program.here();
        let end = program.later();
        program.put([xori(A0, A1, -1), ori(S2, S3, 2047), and(T0, T1, T2), or(RA, TP, S0)]);
        program.put([sub(A7, S11, T3), mul(A2, A3, A4), mulhu(A2, A3, A4), divu(S4, S5, S6)]);
        program.put([rem(S7, S8, S9), remu(S10, S0, S1), lbu(A5, -4, A6), lw(A0, 2044, A1)]);
        program.put([sb(A0, 33, A1), sw(A0, -2048, A1), jalr(RA, T1)]);
        program.branch(Cond::Eq, A0, A1, begin);
        program.branch(Cond::Ltu, A0, ZERO, end);
        program.branch(Cond::Geu, A0, A1, end);
        program.jal(RA, begin);
        program.jal(ZERO, end);
        program.bind(end);
        let (li, at) = (program.address(), program.address() as usize - 0x8000_0000);
        program.li(T0, 0x1234_5fff);
        program.li(T0, 0xffff_ffff);
        program.li(T0, 0xedb8_8000);
        assert_eq!(li, 0x8000_0000 + 4 * 20);
        let bytes = program.finish();
        let text: Vec<String> = bytes
            .chunks_exact(4)
            .map(|word| Insn(u32::from_le_bytes(word.try_into().unwrap())).to_string())
            .collect();
        let expected = "xori a0,a1,-1; ori s2,s3,2047; and t0,t1,t2; or ra,tp,s0; \
            sub a7,s11,t3; mul a2,a3,a4; mulhu a2,a3,a4; divu s4,s5,s6; \
            rem s7,s8,s9; remu s10,s0,s1; lbu a5,-4(a6); lw a0,2044(a1); \
            sb a0,33(a1); sw a0,-2048(a1); jalr ra,0(t1); \
            beq a0,a1,.-60; bltu a0,zero,.+16; bgeu a0,a1,.+12; jal ra,.-72; jal zero,.+4";
        assert_eq!(text[..at / 4].join("; "), expected);
        let expected = "lui t0,0x12346; addi t0,t0,-1; addi t0,zero,-1; lui t0,0xedb88";
        assert_eq!(text[at / 4..].join("; "), expected);
    }
}

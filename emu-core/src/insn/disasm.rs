//! The disassembler.

use core::fmt;

use super::{Format, Insn, decode};
use crate::abi::REGISTER_NAMES;

/// Writes the instruction as an assembler would, with branch targets relative to its address.
impl fmt::Display for Insn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = decode(self.0);
        let Some(row) = op.row() else {
            return write!(f, ".word {:#010x}", self.0);
        };
        let (rd, rs1, rs2) =
            (REGISTER_NAMES[self.rd()], REGISTER_NAMES[self.rs1()], REGISTER_NAMES[self.rs2()]);
        let n = row.name;
        match row.format {
            Format::R => write!(f, "{n} {rd},{rs1},{rs2}"),
            Format::I => write!(f, "{n} {rd},{rs1},{}", self.imm_i() as i32),
            Format::Load => write!(f, "{n} {rd},{}({rs1})", self.imm_i() as i32),
            Format::S => write!(f, "{n} {rs2},{}({rs1})", self.imm_s() as i32),
            Format::B => write!(f, "{n} {rs1},{rs2},.{:+}", self.imm_b() as i32),
            Format::U => write!(f, "{n} {rd},{:#x}", self.imm_u() >> 12),
            Format::J => write!(f, "{n} {rd},.{:+}", self.imm_j() as i32),
            Format::Shift => write!(f, "{n} {rd},{rs1},{}", self.shamt()),
            Format::Csr => write!(f, "{n} {rd},{:#x},{rs1}", self.csr()),
            Format::CsrImm => write!(f, "{n} {rd},{:#x},{}", self.csr(), self.rs1()),
            Format::Amo => write!(f, "{n} {rd},{rs2},({rs1})"),
            Format::Lr => write!(f, "{n} {rd},({rs1})"),
            Format::Sfence => write!(f, "{n} {rs1},{rs2}"),
            Format::None => f.write_str(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    #[test]
    fn disassembly_reads_like_the_assembler() {
        let text = |word| format!("{}", Insn(word));
        assert_eq!(text(0x00c5_8533), "add a0,a1,a2");
        assert_eq!(text(0xffc1_2083), "lw ra,-4(sp)");
        assert_eq!(text(0x1005_2573), "csrrs a0,0x100,a0");
        assert_eq!(text(0xffff_ffff), ".word 0xffffffff");
    }
}

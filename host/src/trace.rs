//! Instruction trace: a commit log in the format of Spike's `--log-commits`, one line per retired
//! instruction:
//!
//! ```text
//! core   0: 3 0x80000004 (0x00028067) x1  0x80000008 mem 0x80001000
//! ```
//!
//! As in Spike, a write to `sstatus`, `sie` or `sip` is listed as one to the CSR that it is a view
//! of, a counter as what was written, and `mret` and `sret` with `mstatus`.
//!
//! Difference: interrupts and exceptions, and the CSRs that they change, are not listed (Spike lists
//! those with `-l`).

use std::fmt::Write as _;
use std::io::{self, Write};

use emu_core::csr;
use emu_core::trace::Trace;

/// Writes a line for each retired instruction.
pub struct CommitLog<W> {
    out: W,
    /// Effects of the current instruction so far: registers, loads, stores, CSRs.
    regs: String,
    loads: String,
    stores: String,
    csrs: String,
    error: Option<io::Error>,
}

impl<W: Write> CommitLog<W> {
    /// Returns a log that writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            regs: String::new(),
            loads: String::new(),
            stores: String::new(),
            csrs: String::new(),
            error: None,
        }
    }

    /// Flushes the log. Returns the first error of the run, if there was one.
    pub fn finish(mut self) -> io::Result<W> {
        match self.error.take() {
            Some(error) => Err(error),
            None => self.out.flush().map(|()| self.out),
        }
    }

    fn clear(&mut self) {
        for part in [&mut self.regs, &mut self.loads, &mut self.stores, &mut self.csrs] {
            part.clear();
        }
    }
}

// Writing to a string cannot fail.
impl<W: Write> Trace for CommitLog<W> {
    fn reg(&mut self, rd: usize, value: u32) {
        let _ = write!(self.regs, " x{rd:<2} {value:#010x}");
    }

    fn load(&mut self, addr: u32) {
        let _ = write!(self.loads, " mem {addr:#010x}");
    }

    fn store(&mut self, addr: u32, value: u32, size: u32) {
        let digits = 2 + 2 * size as usize;
        let mask = u32::MAX >> (32 - 8 * size.clamp(1, 4));
        let _ = write!(self.stores, " mem {addr:#010x} {:#0digits$x}", value & mask);
    }

    fn csr(&mut self, number: u32, value: u32) {
        match csr::name(number) {
            Some(name) => write!(self.csrs, " c{number}_{name} {value:#010x}"),
            None => write!(self.csrs, " c{number}_unknown_{number:03x} {value:#010x}"),
        }
        .unwrap_or_default();
    }

    fn retire(&mut self, pc: u32, insn: u32, privilege: u32) {
        if self.error.is_none() {
            let Self { regs, csrs, loads, stores, .. } = self;
            let line = writeln!(
                self.out,
                "core   0: {privilege} {pc:#010x} ({insn:#010x}){regs}{csrs}{loads}{stores}"
            );
            self.error = line.err();
        }
        self.clear();
    }

    fn trap(&mut self, _: u32, _: u32, _: u32) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_spikes() {
        let mut log = CommitLog::new(Vec::new());
        log.retire(0x8000_0000, 0x04c0_006f, 3);
        log.reg(1, 0);
        log.retire(0x8000_004c, 0x0000_0093, 3);
        log.csr(0x305, 0x8000_0174);
        log.retire(0x8000_0138, 0x3052_9073, 3);
        log.reg(11, 1);
        log.load(0x8000_2000);
        log.store(0x8000_2000, 0x1_ff02, 2);
        log.retire(0x8000_0140, 0x0062_a5af, 0);
        log.reg(5, 5);
        log.trap(0x8000_0144, 2, 0);
        log.retire(0x8000_0148, 0x0000_0013, 1);

        let text = String::from_utf8(log.finish().unwrap()).unwrap();
        let expected = "\
core   0: 3 0x80000000 (0x04c0006f)
core   0: 3 0x8000004c (0x00000093) x1  0x00000000
core   0: 3 0x80000138 (0x30529073) c773_mtvec 0x80000174
core   0: 0 0x80000140 (0x0062a5af) x11 0x00000001 mem 0x80002000 mem 0x80002000 0xff02
core   0: 1 0x80000148 (0x00000013)
";
        assert_eq!(text, expected);
    }
}

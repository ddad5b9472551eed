//! Traps as values (privileged specification, section 3.1.15).

use crate::abi::FaultCode;

/// Exception and interrupt numbers as they stand in `mcause` and `scause`.
pub mod cause {
    /// Instruction address misaligned.
    pub const INSN_MISALIGNED: u32 = 0;
    /// Instruction access fault.
    pub const INSN_ACCESS: u32 = 1;
    /// Illegal instruction.
    pub const ILLEGAL_INSN: u32 = 2;
    /// Breakpoint.
    pub const BREAKPOINT: u32 = 3;
    /// Load address misaligned.
    pub const LOAD_MISALIGNED: u32 = 4;
    /// Load access fault.
    pub const LOAD_ACCESS: u32 = 5;
    /// Store or AMO address misaligned.
    pub const STORE_MISALIGNED: u32 = 6;
    /// Store or AMO access fault.
    pub const STORE_ACCESS: u32 = 7;
    /// Environment call from U-mode; S-mode and M-mode are this plus 1 and 3.
    pub const ECALL_U: u32 = 8;
    /// Environment call from S-mode.
    pub const ECALL_S: u32 = 9;
    /// Environment call from M-mode.
    pub const ECALL_M: u32 = 11;
    /// Instruction page fault.
    pub const INSN_PAGE: u32 = 12;
    /// Load page fault.
    pub const LOAD_PAGE: u32 = 13;
    /// Store or AMO page fault.
    pub const STORE_PAGE: u32 = 15;
    /// Set in the cause of an interrupt.
    pub const INTERRUPT: u32 = 1 << 31;
}

/// Why an instruction did not complete.
///
/// Either the guest traps, or the machine stops before the instruction took effect
/// ([`Trap::Stall`], to be repeated later) or for good ([`Trap::Fault`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// A synchronous exception.
    Exception {
        /// Value for `mcause`.
        cause: u32,
        /// Value for `mtval`.
        tval: u32,
    },
    /// The host has no room for what the instruction sends; try again later.
    Stall,
    /// No frame is left for a private page; try again when the host freed some.
    NoFrame,
    /// The machine cannot go on.
    Fault(FaultCode),
}

impl Trap {
    /// An exception.
    #[inline]
    pub const fn new(cause: u32, tval: u32) -> Self {
        Self::Exception { cause, tval }
    }

    /// Illegal instruction `insn`.
    #[inline]
    pub const fn illegal(insn: u32) -> Self {
        Self::new(cause::ILLEGAL_INSN, insn)
    }
}

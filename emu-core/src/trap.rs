//! Traps as values (privileged specification, section 3.1.15).

use crate::abi::{FaultCode, Hart, NO_RESERVATION, Platform};
use crate::csr::{StoredCsr, irq, mstatus};
use crate::mmu::Privilege;

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
/// The guest takes an exception ([`Trap::Exception`]), or the VM stops before the instruction has
/// had any effect, so that it can be repeated later ([`Trap::Stall`], [`Trap::NoFrame`]), or the VM
/// stops for good ([`Trap::Fault`]).
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
    /// The machine cannot continue.
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

/// A trap that was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct TakenTrap {
    /// What `mcause` or `scause` says.
    pub cause: u32,
    /// Address of the instruction that trapped, or before which the interrupt came.
    pub pc: u32,
    /// What `mtval` or `stval` says.
    pub tval: u32,
    /// Privilege that it was taken in.
    pub from: Privilege,
    /// Privilege of its handler.
    pub to: Privilege,
}

state!(TakenTrap { cause, pc, tval, from, to });

/// The traps since the last instruction that retired, to detect those that never end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct TrapChain {
    /// The value of `clock.retired` when the last of them was taken.
    retired: u64,
    /// The value of `clock.retired` when M-mode last returned to a lower mode, until that traps.
    resumed: u64,
    /// The first of them.
    pub first: TakenTrap,
    /// How many exceptions in a row have led from an instruction to itself in the same mode.
    repeats: u32,
    /// How often in a row M-mode has returned, and S-mode trapped at once in its handler.
    futile: u32,
    /// The instruction at `first.pc`, once the chain is known to be endless; zero if there is none.
    insn: u32,
}

state!(TrapChain { retired, resumed, first, repeats, futile, insn });

impl TrapChain {
    /// How often M-mode may return to a handler of S-mode that traps at once.
    const FUTILE_MAX: u32 = 256;

    /// No trap was taken.
    pub const EMPTY: Self = Self {
        retired: u64::MAX,
        resumed: u64::MAX,
        first: TakenTrap {
            cause: 0,
            pc: 0,
            tval: 0,
            from: Privilege::Machine,
            to: Privilege::Machine,
        },
        repeats: 0,
        futile: 0,
        insn: 0,
    };

    /// Adds a trap that was taken after `retired` instructions. Its handler is at `handler`, and
    /// that of S-mode at `stvec`.
    fn add(&mut self, retired: u64, trap: TakenTrap, handler: u32, stvec: u32) {
        let is_exception = trap.cause & cause::INTERRUPT == 0;
        let resumed = core::mem::replace(&mut self.resumed, u64::MAX);
        let is_futile = is_exception
            && resumed == retired
            && (trap.from, trap.pc) == (Privilege::Supervisor, stvec)
            && trap.cause != cause::ECALL_S;
        if !is_futile && resumed != u64::MAX {
            self.futile = 0;
        }
        if self.retired != retired {
            // What a lower mode began goes on when it is back in the handler that traps.
            let continues = self.futile > 0 || is_futile && self.first.from != Privilege::Machine;
            if !continues {
                self.first = trap;
            }
            (self.retired, self.repeats) = (retired, 0);
        }
        self.futile = self.futile.saturating_add(u32::from(is_futile));
        let again = is_exception && (handler, trap.to) == (trap.pc, trap.from);
        self.repeats = if again { self.repeats.saturating_add(1) } else { 0 };
    }

    /// Handles that M-mode returns to a lower mode, which executes the instruction after `retired`
    /// others.
    fn resume(&mut self, retired: u64) {
        self.resumed = retired;
    }

    /// Whether only an interrupt can end the chain.
    ///
    /// A handler whose first instruction traps to that same instruction finds registers, privilege
    /// and translation as they were, so it traps for ever. The first time does not count: it may
    /// have changed what `mstatus.MPRV` makes of the instruction's addresses.
    pub(crate) fn is_loop(&self) -> bool {
        self.repeats > 1 || self.is_futile()
    }

    /// Whether M-mode has returned so often to a handler of S-mode that traps at once that it will
    /// not save it. Firmware does that which hands traps down, as does a timer of M-mode that only
    /// counts.
    pub(crate) fn is_futile(&self) -> bool {
        self.futile >= Self::FUTILE_MAX
    }

    /// Returns the instruction that raised the first trap of an endless chain, if there is one.
    pub fn insn(&self) -> Option<u32> {
        (self.insn != 0).then_some(self.insn)
    }

    /// Keeps the instruction that raised the first trap.
    pub(crate) fn set_insn(&mut self, insn: u32) {
        self.insn = insn;
    }
}

/// Interrupts in the order in which they are taken (section 3.1.9).
const PRIORITY: [(u32, u32); 6] =
    [(irq::MEI, 11), (irq::MSI, 3), (irq::MTI, 7), (irq::SEI, 9), (irq::SSI, 1), (irq::STI, 5)];

impl Platform {
    /// Returns the interrupt to take now, if any, as its cause without the interrupt bit.
    pub(crate) fn pending_interrupt(&self, hart: &Hart) -> Option<u32> {
        let pending = self.csr.mip() & self.csr.get(StoredCsr::Mie);
        if pending == 0 || self.semihosting.done != 0 {
            return None;
        }
        let status = self.csr.get(StoredCsr::Mstatus);
        let delegated = self.csr.get(StoredCsr::Mideleg);
        let privilege = hart.ctx.privilege;
        let m_enabled = privilege != Privilege::Machine || status & mstatus::MIE != 0;
        let s_enabled = privilege == Privilege::User
            || privilege == Privilege::Supervisor && status & mstatus::SIE != 0;
        let machine = if m_enabled { pending & !delegated } else { 0 };
        let supervisor = if s_enabled { pending & delegated } else { 0 };
        let take = if machine != 0 { machine } else { supervisor };
        PRIORITY.iter().find(|(bit, _)| take & bit != 0).map(|&(_, number)| number)
    }

    /// Enters the trap handler for the instruction at `hart.pc`.
    pub(crate) fn take_trap(&mut self, hart: &mut Hart, cause: u32, tval: u32) {
        let number = cause & 31;
        let deleg =
            if cause & cause::INTERRUPT != 0 { StoredCsr::Mideleg } else { StoredCsr::Medeleg };
        let from = hart.ctx.privilege;
        let pc = hart.pc;
        let mut status = self.csr.get(StoredCsr::Mstatus);
        let to_supervisor = from != Privilege::Machine && self.csr.get(deleg) >> number & 1 != 0;
        let (epc, cause_word, tval_word, tvec, to) = if to_supervisor {
            let ie = status & mstatus::SIE != 0;
            status &= !(mstatus::SIE | mstatus::SPIE | mstatus::SPP);
            status |= if ie { mstatus::SPIE } else { 0 };
            status |= if from == Privilege::Supervisor { mstatus::SPP } else { 0 };
            (
                StoredCsr::Sepc,
                StoredCsr::Scause,
                StoredCsr::Stval,
                StoredCsr::Stvec,
                Privilege::Supervisor,
            )
        } else {
            let ie = status & mstatus::MIE != 0;
            status &= !(mstatus::MIE | mstatus::MPIE | mstatus::MPP);
            status |= if ie { mstatus::MPIE } else { 0 };
            status |= (from as u32) << mstatus::MPP_SHIFT;
            (
                StoredCsr::Mepc,
                StoredCsr::Mcause,
                StoredCsr::Mtval,
                StoredCsr::Mtvec,
                Privilege::Machine,
            )
        };
        self.csr.set(StoredCsr::Mstatus, status);
        self.csr.set(epc, pc);
        self.csr.set(cause_word, cause);
        self.csr.set(tval_word, tval);
        let vector = self.csr.get(tvec);
        let base = vector & !3;
        let vectored = vector & 1 != 0 && cause & cause::INTERRUPT != 0;
        hart.pc = base.wrapping_add(if vectored { 4 * number } else { 0 });
        hart.reservation = NO_RESERVATION;
        // A semihosting request that raises a trap after all is over.
        self.semihosting.done = 0;
        self.set_privilege(hart, to);
        let trap = TakenTrap { cause, pc, tval, from, to };
        let stvec = self.csr.get(StoredCsr::Stvec) & !3;
        self.trap_chain.add(self.clock.retired, trap, hart.pc, stvec);
    }

    /// Returns whether an interrupt may come that a hart takes although it does nothing but trap to
    /// itself.
    ///
    /// A trap disables the interrupts of its own mode, so that only those of a higher one can come.
    /// No software runs that would raise one; the timer and devices may.
    pub(crate) fn may_be_interrupted(&self, hart: &Hart) -> bool {
        if hart.ctx.privilege == Privilege::Machine {
            return false;
        }
        let enabled = self.csr.get(StoredCsr::Mie) & !self.csr.get(StoredCsr::Mideleg);
        let timer = enabled & irq::MTI != 0 && self.clock.due_at() != u64::MAX;
        timer || enabled & (self.csr.mip() | irq::MEI | irq::SEI) != 0
    }

    /// MRET; the caller has checked the privilege.
    pub(crate) fn mret(&mut self, hart: &mut Hart) {
        let mut status = self.csr.get(StoredCsr::Mstatus);
        let to = match (status & mstatus::MPP) >> mstatus::MPP_SHIFT {
            0 => Privilege::User,
            1 => Privilege::Supervisor,
            _ => Privilege::Machine,
        };
        let ie = status & mstatus::MPIE != 0;
        status &= !(mstatus::MIE | mstatus::MPP);
        status |= mstatus::MPIE | if ie { mstatus::MIE } else { 0 };
        if to != Privilege::Machine {
            status &= !mstatus::MPRV;
            // The count does not have this instruction yet.
            self.trap_chain.resume(self.clock.retired.wrapping_add(1));
        }
        self.xret(hart, status, to, StoredCsr::Mepc);
    }

    /// SRET; the caller has checked the privilege.
    pub(crate) fn sret(&mut self, hart: &mut Hart) {
        let mut status = self.csr.get(StoredCsr::Mstatus);
        let to = if status & mstatus::SPP != 0 { Privilege::Supervisor } else { Privilege::User };
        let ie = status & mstatus::SPIE != 0;
        status &= !(mstatus::SIE | mstatus::SPP | mstatus::MPRV);
        status |= mstatus::SPIE | if ie { mstatus::SIE } else { 0 };
        self.xret(hart, status, to, StoredCsr::Sepc);
    }

    fn xret(&mut self, hart: &mut Hart, status: u32, to: Privilege, epc: StoredCsr) {
        self.csr.set(StoredCsr::Mstatus, status);
        hart.pc = self.csr.get(epc);
        hart.reservation = NO_RESERVATION;
        self.set_privilege(hart, to);
    }
}

//! Control and status registers.
//!
//! One table defines what each CSR number accesses: a constant, a masked view of a stored CSR,
//! or one of the few CSRs with side effects. The required privilege, and whether the CSR is
//! read-only, follow from the number's bits.

use crate::abi::{Hart, NO_RESERVATION, Platform};
use crate::mmu::Privilege;
use crate::pmp::{self, Pmp};
use crate::state::{Name, State, Visitor, visit_named};

/// Bits of `mstatus`.
#[allow(missing_docs)]
pub mod mstatus {
    pub const SIE: u32 = 1 << 1;
    pub const MIE: u32 = 1 << 3;
    pub const SPIE: u32 = 1 << 5;
    pub const MPIE: u32 = 1 << 7;
    pub const SPP: u32 = 1 << 8;
    pub const MPP_SHIFT: u32 = 11;
    pub const MPP: u32 = 3 << MPP_SHIFT;
    pub const MPRV: u32 = 1 << 17;
    pub const SUM: u32 = 1 << 18;
    pub const MXR: u32 = 1 << 19;
    pub const TVM: u32 = 1 << 20;
    pub const TW: u32 = 1 << 21;
    pub const TSR: u32 = 1 << 22;
    pub(super) const S_VIEW: u32 = SIE | SPIE | SPP | SUM | MXR;
    pub(super) const WRITABLE: u32 = S_VIEW | MIE | MPIE | MPP | MPRV | TVM | TW | TSR;
}

/// Bits of `mip`, `mie` and `mideleg`.
#[allow(missing_docs)]
pub mod irq {
    pub const SSI: u32 = 1 << 1;
    pub const MSI: u32 = 1 << 3;
    pub const STI: u32 = 1 << 5;
    pub const MTI: u32 = 1 << 7;
    pub const SEI: u32 = 1 << 9;
    pub const MEI: u32 = 1 << 11;
    pub const S_ALL: u32 = SSI | STI | SEI;
    pub const ALL: u32 = S_ALL | MSI | MTI | MEI;
}

/// Exceptions that can be delegated: all but environment calls from M-mode.
pub const MEDELEG_WRITABLE: u32 = 0xb3ff;
/// `satp.MODE`: Sv32 when set. ASIDs are not implemented: the field is hardwired to zero.
pub const SATP_MODE: u32 = 1 << 31;
const SATP_PPN: u32 = 0x003f_ffff;
/// RV32 with A, I, M, S and U.
const MISA: u32 = 1 << 30 | 1 << 20 | 1 << 18 | 1 << 12 | 1 << 8 | 1;
/// Numbers of CSRs that other CSRs are views of, and that returns from traps change.
pub(crate) const MSTATUS: u32 = 0x300;
const MIE: u32 = 0x304;
/// The high half of `mstatus`.
pub(crate) const MSTATUSH: u32 = 0x310;
const MIP: u32 = 0x344;
const COUNTERS: u32 = 0b111;
const COUNT_INHIBIT: u32 = 0b101;
const ENVCFG_FIOM: u32 = 1;

/// Lists the CSRs that are stored as they are, with their numbers.
macro_rules! stored_csrs {
    ($($Csr:ident $number:literal,)*) => {
        /// The CSRs that are stored as they are.
        #[allow(missing_docs)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum StoredCsr {
            $($Csr,)*
        }

        /// The numbers of the stored CSRs, in their order.
        const STORED_NUMBERS: [u32; [$($number),*].len()] = [$($number),*];
    };
}

stored_csrs! {
    Mstatus 0x300,
    Medeleg 0x302,
    Mideleg 0x303,
    Mie 0x304,
    Mtvec 0x305,
    Mcounteren 0x306,
    Menvcfg 0x30a,
    Mcountinhibit 0x320,
    Mscratch 0x340,
    Mepc 0x341,
    Mcause 0x342,
    Mtval 0x343,
    Stvec 0x105,
    Scounteren 0x106,
    Senvcfg 0x10a,
    Sscratch 0x140,
    Sepc 0x141,
    Scause 0x142,
    Stval 0x143,
    Satp 0x180,
}
const STORED_CSRS: usize = STORED_NUMBERS.len();

/// CSRs with side effects, or whose value is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SideEffectCsr {
    Mstatus,
    Sstatus,
    Sie,
    Mip,
    Sip,
    Satp,
    Mcountinhibit,
    Pmpcfg,
    Pmpaddr,
    Cycle,
    CycleHigh,
    Time,
    TimeHigh,
    Instret,
    InstretHigh,
}

/// How a CSR instruction accesses what a CSR number names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    /// A CSR that reads as a constant. Writes are ignored if the number allows them.
    Constant(u32),
    /// A stored CSR, and the mask of its writable bits.
    Masked(StoredCsr, u32),
    /// A CSR whose access does more than that.
    SideEffects(SideEffectCsr),
}

const ALL: u32 = u32::MAX;

/// Makes of one row for each CSR, or range of them, what finds them by their number. A row has the
/// numbers, their names and how they are accessed; [`name`] has none for numbers without.
macro_rules! csrs {
    ($($first:literal $(..=$last:literal)? => [$($name:literal),*], $access:expr;)*) => {
        #[inline]
        const fn access(number: u32) -> Option<Access> {
            use Access::{Constant, Masked, SideEffects};
            Some(match number {
                $($first $(..=$last)? => $access,)*
                _ => return None,
            })
        }

        /// Returns the name of a CSR that the machine has. Counters that never count have none.
        pub fn name(number: u32) -> Option<&'static str> {
            let (first, names): (u32, &[&str]) = match number {
                $($first $(..=$last)? => ($first, &[$($name),*]),)*
                _ => return None,
            };
            names.get((number - first) as usize).copied()
        }
    };
}

csrs! {
    // Unprivileged counters and their machine-mode, writable names.
    0xc00 => ["cycle"], SideEffects(SideEffectCsr::Cycle);
    0xb00 => ["mcycle"], SideEffects(SideEffectCsr::Cycle);
    0xc80 => ["cycleh"], SideEffects(SideEffectCsr::CycleHigh);
    0xb80 => ["mcycleh"], SideEffects(SideEffectCsr::CycleHigh);
    0xc01 => ["time"], SideEffects(SideEffectCsr::Time);
    0xc81 => ["timeh"], SideEffects(SideEffectCsr::TimeHigh);
    0xc02 => ["instret"], SideEffects(SideEffectCsr::Instret);
    0xb02 => ["minstret"], SideEffects(SideEffectCsr::Instret);
    0xc82 => ["instreth"], SideEffects(SideEffectCsr::InstretHigh);
    0xb82 => ["minstreth"], SideEffects(SideEffectCsr::InstretHigh);
    // hpmcounter3..31, mhpmcounter3..31 and their high halves, mhpmevent3..31: none counts.
    0xc03..=0xc1f => [], Constant(0);
    0xc83..=0xc9f => [], Constant(0);
    0xb03..=0xb1f => [], Constant(0);
    0xb83..=0xb9f => [], Constant(0);
    0x323..=0x33f => [], Constant(0);
    // Supervisor.
    0x100 => ["sstatus"], SideEffects(SideEffectCsr::Sstatus);
    0x104 => ["sie"], SideEffects(SideEffectCsr::Sie);
    0x105 => ["stvec"], Masked(StoredCsr::Stvec, !2);
    0x106 => ["scounteren"], Masked(StoredCsr::Scounteren, COUNTERS);
    0x10a => ["senvcfg"], Masked(StoredCsr::Senvcfg, ENVCFG_FIOM);
    0x140 => ["sscratch"], Masked(StoredCsr::Sscratch, ALL);
    0x141 => ["sepc"], Masked(StoredCsr::Sepc, !3);
    0x142 => ["scause"], Masked(StoredCsr::Scause, ALL);
    0x143 => ["stval"], Masked(StoredCsr::Stval, ALL);
    0x144 => ["sip"], SideEffects(SideEffectCsr::Sip);
    0x180 => ["satp"], SideEffects(SideEffectCsr::Satp);
    // Machine information.
    0xf11..=0xf15 => ["mvendorid", "marchid", "mimpid", "mhartid", "mconfigptr"], Constant(0);
    // Machine.
    0x300 => ["mstatus"], SideEffects(SideEffectCsr::Mstatus);
    0x301 => ["misa"], Constant(MISA);
    0x302 => ["medeleg"], Masked(StoredCsr::Medeleg, MEDELEG_WRITABLE);
    0x303 => ["mideleg"], Masked(StoredCsr::Mideleg, irq::S_ALL);
    0x304 => ["mie"], Masked(StoredCsr::Mie, irq::ALL);
    0x305 => ["mtvec"], Masked(StoredCsr::Mtvec, !2);
    0x306 => ["mcounteren"], Masked(StoredCsr::Mcounteren, COUNTERS);
    0x30a => ["menvcfg"], Masked(StoredCsr::Menvcfg, ENVCFG_FIOM);
    0x310 => ["mstatush"], Constant(0);
    0x312 => ["medelegh"], Constant(0);
    0x31a => ["menvcfgh"], Constant(0);
    0x320 => ["mcountinhibit"], SideEffects(SideEffectCsr::Mcountinhibit);
    0x340 => ["mscratch"], Masked(StoredCsr::Mscratch, ALL);
    0x341 => ["mepc"], Masked(StoredCsr::Mepc, !3);
    0x342 => ["mcause"], Masked(StoredCsr::Mcause, ALL);
    0x343 => ["mtval"], Masked(StoredCsr::Mtval, ALL);
    0x344 => ["mip"], SideEffects(SideEffectCsr::Mip);
    0x3a0..=0x3a3 => ["pmpcfg0", "pmpcfg1", "pmpcfg2", "pmpcfg3"],
        SideEffects(SideEffectCsr::Pmpcfg);
    0x3b0..=0x3bf => [
        "pmpaddr0", "pmpaddr1", "pmpaddr2", "pmpaddr3", "pmpaddr4", "pmpaddr5", "pmpaddr6",
        "pmpaddr7", "pmpaddr8", "pmpaddr9", "pmpaddr10", "pmpaddr11", "pmpaddr12", "pmpaddr13",
        "pmpaddr14", "pmpaddr15"
    ], SideEffects(SideEffectCsr::Pmpaddr);
    // No trigger exists (tdata1.type is 0).
    0x7a0..=0x7a3 => ["tselect", "tdata1", "tdata2", "tdata3"], Constant(0);
}

impl StoredCsr {
    /// Returns what a write to it, through a masked view, may have changed.
    const fn change(self) -> Change {
        match self {
            Self::Mie | Self::Mideleg => Change::Interrupts,
            // The first three have side effects, and are not written through a view.
            Self::Mstatus
            | Self::Satp
            | Self::Mcountinhibit
            | Self::Medeleg
            | Self::Mtvec
            | Self::Mcounteren
            | Self::Menvcfg
            | Self::Mscratch
            | Self::Mepc
            | Self::Mcause
            | Self::Mtval
            | Self::Stvec
            | Self::Scounteren
            | Self::Senvcfg
            | Self::Sscratch
            | Self::Sepc
            | Self::Scause
            | Self::Stval => Change::Nothing,
        }
    }
}

impl SideEffectCsr {
    /// Returns what a write to it may have changed. `same` says that translation and privilege are
    /// what they were.
    const fn change(self, same: bool) -> Change {
        match self {
            Self::Sie | Self::Mip | Self::Sip => Change::Interrupts,
            Self::Mstatus | Self::Sstatus if same => Change::Interrupts,
            Self::Mstatus
            | Self::Sstatus
            | Self::Satp
            | Self::Mcountinhibit
            | Self::Pmpcfg
            | Self::Pmpaddr
            | Self::Cycle
            | Self::CycleHigh
            | Self::Time
            | Self::TimeHigh
            | Self::Instret
            | Self::InstretHigh => Change::Translation,
        }
    }
}

/// The CSRs' state.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Csrs {
    stored: [u32; STORED_CSRS],
    /// The `mip` bits that software has set.
    mip_software: u32,
    /// The `mip` bits that devices and the timer drive.
    pub mip_hardware: u32,
    /// `mcycle` minus retired instructions; the value itself while inhibited.
    cycle: u64,
    /// `minstret` minus retired instructions; the value itself while inhibited.
    instret: u64,
    /// Physical memory protection.
    pub pmp: Pmp,
    /// Keeps what follows aligned.
    reserved: u32,
}

impl State for Csrs {
    fn visit(&self, visitor: &mut impl Visitor) {
        let Self { stored, mip_software, mip_hardware, cycle, instret, pmp, reserved } = self;
        visitor.enter(Name::Field("stored"));
        for (number, value) in STORED_NUMBERS.into_iter().zip(stored) {
            visit_named(visitor, Name::Field(name(number).unwrap_or_default()), value);
        }
        visitor.leave();
        visit_named(visitor, Name::Field("mip_software"), mip_software);
        visit_named(visitor, Name::Field("mip_hardware"), mip_hardware);
        visit_named(visitor, Name::Field("cycle"), cycle);
        visit_named(visitor, Name::Field("instret"), instret);
        visit_named(visitor, Name::Field("pmp"), pmp);
        visitor.skip("reserved", size_of_val(reserved));
    }
}

impl Csrs {
    /// Values after reset.
    pub const RESET: Self = Self {
        stored: [0; STORED_CSRS],
        mip_software: 0,
        mip_hardware: 0,
        cycle: 0,
        instret: 0,
        pmp: Pmp::RESET,
        reserved: 0,
    };

    /// Returns a stored CSR.
    #[inline]
    pub fn get(&self, register: StoredCsr) -> u32 {
        // Always there; `get` spares the GPU build a panic.
        self.stored.get(register as usize).copied().unwrap_or(0)
    }

    /// Sets a stored CSR without masking. Only for callers that write legal values, such as traps.
    #[inline]
    pub fn set(&mut self, register: StoredCsr, value: u32) {
        if let Some(slot) = self.stored.get_mut(register as usize) {
            *slot = value;
        }
    }

    /// Returns `mip`: the bits that software has set and those that devices drive.
    #[inline]
    pub fn mip(&self) -> u32 {
        self.mip_software | self.mip_hardware
    }

    /// Sets or clears a software-writable bit of `mip`.
    pub fn set_pending(&mut self, bits: u32, on: bool) {
        self.mip_software = if on { self.mip_software | bits } else { self.mip_software & !bits };
    }

    fn merge(&mut self, register: StoredCsr, mask: u32, value: u32) {
        self.set(register, self.get(register) & !mask | value & mask);
    }

    fn merge_status(&mut self, mask: u32, value: u32) {
        let old = self.get(StoredCsr::Mstatus);
        let mut new = old & !mask | value & mask;
        // MPP is WARL: 2 is no privilege.
        if new & mstatus::MPP == 2 << mstatus::MPP_SHIFT {
            new = new & !mstatus::MPP | old & mstatus::MPP;
        }
        self.set(StoredCsr::Mstatus, new);
    }
}

/// The error of a CSR instruction that raises an illegal-instruction exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IllegalCsr;

/// What a CSR instruction does with the old value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CsrOp {
    /// `csrrw`
    Write,
    /// `csrrs`
    Set,
    /// `csrrc`
    Clear,
}

fn low(v: u64) -> u32 {
    v as u32
}
fn high(v: u64) -> u32 {
    (v >> 32) as u32
}
fn with_low(v: u64, new: u32) -> u64 {
    v >> 32 << 32 | u64::from(new)
}
fn with_high(v: u64, new: u32) -> u64 {
    u64::from(new) << 32 | v & 0xffff_ffff
}

/// What a write to a CSR may have changed for the instruction loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Nothing that the loop relies on.
    Nothing,
    /// Which interrupts are pending and enabled.
    Interrupts,
    /// Address translation, or anything else that the loop relies on.
    Translation,
}

impl Platform {
    /// Executes a CSR instruction. `operand` is `None` when the instruction does not write. Returns
    /// the old value and what may have changed.
    ///
    /// `clock.retired` must not yet count this instruction.
    pub fn csr_access(
        &mut self,
        hart: &mut Hart,
        number: u32,
        op: CsrOp,
        operand: Option<u32>,
    ) -> Result<(u32, Change), IllegalCsr> {
        let access = access(number).ok_or(IllegalCsr)?;
        self.check_privilege(hart, number, operand.is_some())?;
        let old = self.csr_read(number, access);
        let Some(operand) = operand else { return Ok((old, Change::Nothing)) };
        // Read-modify-write of mip works on the software bits alone, else a device's line would
        // be latched.
        let base = match access {
            Access::SideEffects(SideEffectCsr::Mip) => self.csr.mip_software,
            Access::SideEffects(SideEffectCsr::Sip) => {
                self.csr.mip_software & self.csr.get(StoredCsr::Mideleg)
            }
            Access::Constant(_) | Access::Masked(..) | Access::SideEffects(_) => old,
        };
        let new = match op {
            CsrOp::Write => operand,
            CsrOp::Set => base | operand,
            CsrOp::Clear => base & !operand,
        };
        Ok((old, self.csr_write(hart, number, access, new)))
    }

    /// Returns the CSR that a write to `number` changes, which is another one if that is a view, and
    /// its value once the instruction that wrote it has retired: what a commit log shows.
    ///
    /// `clock.retired` must not yet count the instruction.
    pub(crate) fn csr_written(&mut self, number: u32) -> (u32, u32) {
        let changed = match access(number) {
            Some(Access::SideEffects(SideEffectCsr::Sstatus)) => MSTATUS,
            Some(Access::SideEffects(SideEffectCsr::Sie)) => MIE,
            Some(Access::SideEffects(SideEffectCsr::Sip)) => MIP,
            Some(Access::Constant(_) | Access::Masked(..) | Access::SideEffects(_)) | None => {
                number
            }
        };
        self.clock.retired = self.clock.retired.wrapping_add(1);
        let value = access(changed).map_or(0, |access| self.csr_read(changed, access));
        self.clock.retired = self.clock.retired.wrapping_sub(1);
        (changed, value)
    }

    fn check_privilege(&self, hart: &Hart, number: u32, write: bool) -> Result<(), IllegalCsr> {
        let privilege = hart.ctx.privilege;
        if (privilege as u32) < number >> 8 & 3 || write && number >> 10 == 3 {
            return Err(IllegalCsr);
        }
        let enabled = match number {
            0xc00..=0xc9f => {
                let bit = 1u32 << (number & 31);
                (privilege == Privilege::Machine || self.csr.get(StoredCsr::Mcounteren) & bit != 0)
                    && (privilege != Privilege::User
                        || self.csr.get(StoredCsr::Scounteren) & bit != 0)
            }
            0x180 => {
                privilege == Privilege::Machine
                    || self.csr.get(StoredCsr::Mstatus) & mstatus::TVM == 0
            }
            _ => true,
        };
        if enabled { Ok(()) } else { Err(IllegalCsr) }
    }

    fn counter(&self, base: u64, bit: u32) -> u64 {
        if self.csr.get(StoredCsr::Mcountinhibit) & bit != 0 {
            base
        } else {
            base.wrapping_add(self.clock.retired)
        }
    }

    fn cycle(&self) -> u64 {
        self.counter(self.csr.cycle, 1)
    }

    fn instret(&self) -> u64 {
        self.counter(self.csr.instret, 4)
    }

    fn csr_read(&self, number: u32, access: Access) -> u32 {
        let csr = &self.csr;
        match access {
            Access::Constant(v) => v,
            Access::Masked(register, _) => csr.get(register),
            Access::SideEffects(register) => match register {
                SideEffectCsr::Mstatus => csr.get(StoredCsr::Mstatus),
                SideEffectCsr::Sstatus => csr.get(StoredCsr::Mstatus) & mstatus::S_VIEW,
                SideEffectCsr::Sie => csr.get(StoredCsr::Mie) & csr.get(StoredCsr::Mideleg),
                SideEffectCsr::Mip => csr.mip(),
                SideEffectCsr::Sip => csr.mip() & csr.get(StoredCsr::Mideleg),
                SideEffectCsr::Satp => csr.get(StoredCsr::Satp),
                SideEffectCsr::Mcountinhibit => csr.get(StoredCsr::Mcountinhibit),
                SideEffectCsr::Pmpcfg => csr.pmp.read_cfg((number & 3) as usize),
                SideEffectCsr::Pmpaddr => csr.pmp.read_addr((number & 15) as usize),
                SideEffectCsr::Cycle => low(self.cycle()),
                SideEffectCsr::CycleHigh => high(self.cycle()),
                SideEffectCsr::Time => low(self.clock.time()),
                SideEffectCsr::TimeHigh => high(self.clock.time()),
                SideEffectCsr::Instret => low(self.instret()),
                SideEffectCsr::InstretHigh => high(self.instret()),
            },
        }
    }

    fn csr_write(&mut self, hart: &mut Hart, number: u32, access: Access, value: u32) -> Change {
        let csr = &mut self.csr;
        match access {
            Access::Constant(_) => Change::Nothing,
            Access::Masked(register, mask) => {
                csr.merge(register, mask, value);
                register.change()
            }
            Access::SideEffects(register) => {
                let before = (hart.ctx, csr.get(StoredCsr::Mstatus) & mstatus::MXR);
                self.csr_write_side_effects(hart, number, register, value);
                let same = before == (hart.ctx, self.csr.get(StoredCsr::Mstatus) & mstatus::MXR);
                register.change(same)
            }
        }
    }

    fn csr_write_side_effects(
        &mut self,
        hart: &mut Hart,
        number: u32,
        register: SideEffectCsr,
        value: u32,
    ) {
        // A counter written by an instruction does not count that instruction.
        let next = self.clock.retired.wrapping_add(1);
        let csr = &mut self.csr;
        match register {
            SideEffectCsr::Mstatus | SideEffectCsr::Sstatus => {
                let old = csr.get(StoredCsr::Mstatus);
                csr.merge_status(
                    if register == SideEffectCsr::Mstatus {
                        mstatus::WRITABLE
                    } else {
                        mstatus::S_VIEW
                    },
                    value,
                );
                if (old ^ csr.get(StoredCsr::Mstatus)) & mstatus::MXR != 0 {
                    self.flush_tlbs(hart);
                }
                // MPRV and MPP change what the reserved virtual address stands for.
                hart.reservation = NO_RESERVATION;
                self.sync_context(hart);
            }
            SideEffectCsr::Sie => {
                let mask = csr.get(StoredCsr::Mideleg);
                csr.merge(StoredCsr::Mie, mask, value);
            }
            SideEffectCsr::Mip => csr.mip_software = value & irq::S_ALL,
            SideEffectCsr::Sip => {
                let mask = irq::SSI & csr.get(StoredCsr::Mideleg);
                csr.mip_software = csr.mip_software & !mask | value & mask;
            }
            SideEffectCsr::Satp => {
                csr.set(StoredCsr::Satp, value & (SATP_MODE | SATP_PPN));
                self.flush_tlbs(hart);
                hart.reservation = NO_RESERVATION;
            }
            SideEffectCsr::Mcountinhibit => {
                let (cycle, instret) = (self.cycle(), self.instret());
                self.csr.set(StoredCsr::Mcountinhibit, value & COUNT_INHIBIT);
                self.set_cycle(cycle, self.clock.retired);
                self.set_instret(instret, self.clock.retired);
            }
            SideEffectCsr::Pmpcfg => {
                csr.pmp.write_cfg((number & 3) as usize, value);
                self.flush_tlbs(hart);
            }
            SideEffectCsr::Pmpaddr => {
                csr.pmp.write_addr((number & (pmp::ENTRIES as u32 - 1)) as usize, value);
                self.flush_tlbs(hart);
            }
            SideEffectCsr::Cycle => self.set_cycle(with_low(self.cycle(), value), next),
            SideEffectCsr::CycleHigh => self.set_cycle(with_high(self.cycle(), value), next),
            SideEffectCsr::Instret => self.set_instret(with_low(self.instret(), value), next),
            SideEffectCsr::InstretHigh => self.set_instret(with_high(self.instret(), value), next),
            SideEffectCsr::Time | SideEffectCsr::TimeHigh => {}
        }
    }

    fn set_cycle(&mut self, value: u64, at: u64) {
        let inhibited = self.csr.get(StoredCsr::Mcountinhibit) & 1 != 0;
        self.csr.cycle = if inhibited { value } else { value.wrapping_sub(at) };
    }

    fn set_instret(&mut self, value: u64, at: u64) {
        let inhibited = self.csr.get(StoredCsr::Mcountinhibit) & 4 != 0;
        self.csr.instret = if inhibited { value } else { value.wrapping_sub(at) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Vm;
    use crate::layout::MachineKind;

    fn access(
        vm: &mut Vm,
        number: u32,
        op: CsrOp,
        operand: Option<u32>,
    ) -> Result<u32, IllegalCsr> {
        vm.platform.csr_access(&mut vm.hart, number, op, operand).map(|(old, _)| old)
    }

    fn read(vm: &mut Vm, number: u32) -> Result<u32, IllegalCsr> {
        access(vm, number, CsrOp::Set, None)
    }

    fn write(vm: &mut Vm, number: u32, value: u32) {
        access(vm, number, CsrOp::Write, Some(value)).unwrap();
    }

    fn machine() -> Vm {
        Vm::new(MachineKind::Virt)
    }

    #[test]
    fn unknown_numbers_are_illegal() {
        for number in [0x200, 0x5c0, 0x7b0, 0xfff, 0x1000] {
            assert_eq!(read(&mut machine(), number), Err(IllegalCsr));
        }
    }

    #[test]
    fn stored_csrs_have_the_numbers_of_their_names() {
        for (index, number) in STORED_NUMBERS.into_iter().enumerate() {
            let mut csrs = Csrs::RESET;
            csrs.stored[index] = 1;
            let access = super::access(number).unwrap();
            if let Access::Masked(register, _) = access {
                assert_eq!(csrs.get(register), 1, "{register:?}");
                assert_eq!(name(number).unwrap(), std::format!("{register:?}").to_lowercase());
            } else {
                assert!(matches!(access, Access::SideEffects(_)), "{number:#x}");
            }
        }
        assert_eq!(name(STORED_NUMBERS[StoredCsr::Mstatus as usize]), Some("mstatus"));
        assert_eq!(name(STORED_NUMBERS[StoredCsr::Satp as usize]), Some("satp"));
        assert_eq!(name(STORED_NUMBERS[StoredCsr::Mcountinhibit as usize]), Some("mcountinhibit"));
    }

    #[test]
    fn numbers_have_the_names_of_the_specification() {
        for (number, expected) in [
            (0x100, Some("sstatus")),
            (0x3a3, Some("pmpcfg3")),
            (0x3bf, Some("pmpaddr15")),
            (0xf14, Some("mhartid")),
            (0xb03, None),
            (0x200, None),
        ] {
            assert_eq!(name(number), expected, "{number:#x}");
        }
    }

    #[test]
    fn read_only_numbers_refuse_writes() {
        let mut vm = machine();
        assert_eq!(access(&mut vm, 0xf14, CsrOp::Write, Some(1)), Err(IllegalCsr));
        assert_eq!(read(&mut vm, 0xf14), Ok(0));
    }

    #[test]
    fn lower_privilege_sees_only_its_own() {
        let mut vm = machine();
        vm.platform.set_privilege(&mut vm.hart, Privilege::Supervisor);
        assert_eq!(read(&mut vm, 0x300), Err(IllegalCsr));
        assert!(read(&mut vm, 0x100).is_ok());
        vm.platform.set_privilege(&mut vm.hart, Privilege::User);
        assert_eq!(read(&mut vm, 0x100), Err(IllegalCsr));
    }

    #[test]
    fn sstatus_is_a_masked_view_of_mstatus() {
        let mut vm = machine();
        write(&mut vm, 0x300, mstatus::TSR | mstatus::SUM);
        assert_eq!(read(&mut vm, 0x100), Ok(mstatus::SUM));
        write(&mut vm, 0x100, mstatus::SIE | mstatus::MIE);
        assert_eq!(read(&mut vm, 0x300), Ok(mstatus::TSR | mstatus::SIE));
    }

    #[test]
    fn mpp_keeps_legal_values() {
        let mut vm = machine();
        write(&mut vm, 0x300, 1 << mstatus::MPP_SHIFT);
        write(&mut vm, 0x300, 2 << mstatus::MPP_SHIFT);
        assert_eq!(read(&mut vm, 0x300), Ok(1 << mstatus::MPP_SHIFT));
    }

    #[test]
    fn sie_and_sip_show_delegated_interrupts_only() {
        let mut vm = machine();
        write(&mut vm, 0x304, irq::ALL);
        write(&mut vm, 0x303, irq::STI);
        assert_eq!(read(&mut vm, 0x104), Ok(irq::STI));
        write(&mut vm, 0x344, irq::SSI | irq::STI);
        assert_eq!(read(&mut vm, 0x144), Ok(irq::STI));
    }

    #[test]
    fn setting_a_bit_of_mip_does_not_latch_a_device_line() {
        let mut vm = machine();
        vm.platform.csr.mip_hardware = irq::SEI;
        access(&mut vm, 0x344, CsrOp::Set, Some(irq::SSI)).unwrap();
        vm.platform.csr.mip_hardware = 0;
        assert_eq!(read(&mut vm, 0x344), Ok(irq::SSI));
    }

    #[test]
    fn counters_need_both_enables_in_user_mode() {
        let mut vm = machine();
        vm.platform.set_privilege(&mut vm.hart, Privilege::User);
        vm.platform.csr.set(StoredCsr::Mcounteren, 1);
        assert_eq!(read(&mut vm, 0xc00), Err(IllegalCsr));
        vm.platform.csr.set(StoredCsr::Scounteren, 1);
        assert!(read(&mut vm, 0xc00).is_ok());
    }

    #[test]
    fn tvm_takes_satp_away_from_supervisor() {
        let mut vm = machine();
        write(&mut vm, 0x300, mstatus::TVM);
        vm.platform.set_privilege(&mut vm.hart, Privilege::Supervisor);
        assert_eq!(read(&mut vm, 0x180), Err(IllegalCsr));
    }

    #[test]
    fn a_written_counter_counts_from_the_next_instruction() {
        let mut vm = machine();
        vm.platform.clock.retired = 100;
        write(&mut vm, 0xb02, 7);
        vm.platform.clock.retired = 101;
        assert_eq!(read(&mut vm, 0xb02), Ok(7));
        vm.platform.clock.retired = 103;
        assert_eq!(read(&mut vm, 0xb02), Ok(9));
    }

    #[test]
    fn an_inhibited_counter_stands_still_and_goes_on() {
        let mut vm = machine();
        vm.platform.clock.retired = 5;
        write(&mut vm, 0x320, 4);
        vm.platform.clock.retired = 50;
        assert_eq!(read(&mut vm, 0xb02), Ok(5));
        write(&mut vm, 0x320, 0);
        vm.platform.clock.retired = 51;
        assert_eq!(read(&mut vm, 0xb02), Ok(6));
    }

    #[test]
    fn triggers_are_present_and_inert() {
        let mut vm = machine();
        for number in 0x7a0..=0x7a3 {
            write(&mut vm, number, u32::MAX);
            assert_eq!(read(&mut vm, number), Ok(0));
        }
    }
}

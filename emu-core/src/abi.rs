//! The contract between host and device: a VM's state and the reasons it stops.
//!
//! The host build and the GPU build must agree on every offset, and VMs are copied between them as
//! bytes. So everything here is `#[repr(C)]` with sized integers and without padding. On the host,
//! `zerocopy` checks that at compile time, and checks that bytes from a device are a valid value.
//! Any change of layout must change [`VERSION`].

use crate::clock::Clock;
use crate::csr::Csrs;
use crate::dev::Devices;
use crate::lane::Lane;
use crate::layout::MachineKind;
use crate::mem::Frame;
use crate::mmu::Context;
use crate::semihosting::Semihosting;
use crate::state::{Name, State, Visitor, visit_named};
use crate::tlb::{InsnTlb, L1Tlb, L2Tlb};
use crate::trap::TrapChain;

/// Layout version; host and device refuse to work together when it differs.
pub const VERSION: u32 = 8;

/// The state of one VM, without its RAM and disk. Fields are ordered by how often they are used:
/// hot (every instruction), warm (traps and CSRs), cold (devices).
#[derive(Clone)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Vm {
    /// The part that every instruction uses, small enough for a GPU's shared memory.
    pub hart: Hart,
    /// The part that traps, CSRs and devices use.
    pub platform: Platform,
}

state!(Vm { hart, platform });

/// The platform: clock, CSRs, devices, and the L2 TLB.
#[derive(Clone)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Platform {
    /// Time and retired instructions.
    pub clock: Clock,
    /// The value of `clock.steps()` before which no device and no timer needs attention. An
    /// instruction that may change that sets it to zero. Not part of the machine's state.
    pub(crate) next_event_at: u64,
    /// Which entries of the TLBs have changed since the uniform loop last asked: bit `n` for those
    /// whose index is `n`, modulo 64; all bits also for pages of instructions. Not part of the
    /// machine's state.
    pub(crate) touched: u64,
    /// Control and status registers.
    pub csr: Csrs,
    /// Devices on the bus.
    pub dev: Devices,
    /// The memory map.
    pub kind: MachineKind,
    /// Non-zero when ECALLs from S-mode go to the built-in SBI instead of trapping to M-mode
    /// firmware.
    pub sbi: u32,
    /// Non-zero while the hart waits for an interrupt, or for console input as well.
    pub waiting: u32,
    /// Non-zero when a frame was replaced since the instruction loop last checked. Not part of the
    /// machine's state.
    pub(crate) replaced: u32,
    /// Requests to a debugger.
    pub semihosting: Semihosting,
    /// The TLB for instruction fetches. The same on all backends, but a cache (see
    /// [`crate::state`]).
    pub itlb: InsnTlb,
    /// The L2 TLB for data, behind the L1 in [`Hart::tlb`]. A cache, too.
    pub dtlb: L2Tlb,
    /// The traps since the last instruction that retired.
    pub trap_chain: TrapChain,
    /// What the LR reservation is on, if there is one.
    pub(crate) reserved_word: ReservedWord,
}

state!(Platform {
    clock, csr, dev, kind, sbi, waiting, semihosting, trap_chain, reserved_word,
} except { next_event_at, replaced, touched, itlb, dtlb });

impl Platform {
    /// Begins to bring near what traps, CSRs and the clock take.
    #[inline(always)]
    pub(crate) fn prefetch_state<L: Lane>(&self) {
        L::prefetch(&self.clock);
        L::prefetch(&self.csr);
        L::prefetch(&self.waiting);
        L::prefetch(&self.trap_chain);
        L::prefetch(&self.reserved_word);
    }
}

/// The bytes that an LR has reserved. Only valid while [`Hart::reservation`] is.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub(crate) struct ReservedWord {
    /// The word that the LR loaded.
    pub value: u32,
    /// The frame that it loaded from. A private frame belongs to one page, so it tells which one
    /// was reserved.
    pub frame: Frame,
    /// The page of RAM that has the frame while that is shared, else [`Self::NO_PAGE`].
    pub page: u32,
    /// Keeps what follows aligned.
    reserved: u32,
}

// A handle of a frame means something to one memory only, so it is not part of the state.
state!(ReservedWord { value } except { frame, page, reserved });

impl ReservedWord {
    /// Value of `page` when the frame says enough.
    const NO_PAGE: u32 = u32::MAX;
    const NOTHING: Self = Self::new(0, Frame::ZERO);

    /// A reservation of a word of a private frame.
    pub const fn new(value: u32, frame: Frame) -> Self {
        Self { value, frame, page: Self::NO_PAGE, reserved: 0 }
    }

    /// Handles that page `page` has another frame now, with the same bytes.
    pub fn moved(&mut self, page: u32, frame: Frame) {
        if self.page == page {
            *self = Self::new(self.value, frame);
        }
    }
}

/// Names of the integer registers in the calling convention (ABI).
pub const REGISTER_NAMES: [&str; 32] = [
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4",
    "a5", "a6", "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4",
    "t5", "t6",
];

/// The hart's registers and its L1 TLB.
#[derive(Clone)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Hart {
    /// Integer registers; `x[0]` is always zero.
    pub x: [u32; 32],
    /// Program counter, always a multiple of four.
    pub pc: u32,
    /// Virtual address of the LR reservation; odd when there is none.
    pub reservation: u32,
    /// What TLB lookups depend on: privilege, SUM, MPRV.
    pub ctx: Context,
    /// The L1 TLB for data. The same on all backends, but a cache (see [`crate::state`]).
    pub tlb: L1Tlb,
}

impl State for Hart {
    fn visit(&self, visitor: &mut impl Visitor) {
        let Self { x, pc, reservation, ctx, tlb } = self;
        visitor.enter(Name::Field("x"));
        for (name, value) in REGISTER_NAMES.into_iter().zip(x) {
            visit_named(visitor, Name::Field(name), value);
        }
        visitor.leave();
        visit_named(visitor, Name::Field("pc"), pc);
        visit_named(visitor, Name::Field("reservation"), reservation);
        visit_named(visitor, Name::Field("ctx"), ctx);
        visitor.skip("tlb", size_of_val(tlb));
    }
}

/// Value of [`Hart::reservation`] without a reservation.
pub const NO_RESERVATION: u32 = 1;

/// Why [`crate::machine::Machine::run`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Exit {
    /// The reason.
    pub code: ExitCode,
    /// Finisher exit status, or the [`FaultCode`], or the page of the disk, or zero.
    pub arg: u32,
}

/// Reasons to return to the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(u32)]
pub enum ExitCode {
    /// The budget is used up. The VM can run on at once.
    Budget = 0,
    /// The hart waits for an interrupt; run again at [`Vm::wake_at`] or when there is input.
    Idle = 1,
    /// The port has no room for output; run again when it has been drained.
    Stalled = 2,
    /// No frame for a private page; run again when frames were freed.
    NoFrame = 3,
    /// Powered off. The argument is the exit status.
    PowerOff = 4,
    /// The guest asked for a reset.
    Reset = 5,
    /// The guest cannot continue. The argument is a [`FaultCode`].
    Fault = 6,
    /// A page of the disk, the argument, is not loaded; run again when it is.
    Disk = 7,
}

/// What was wrong with a guest that cannot continue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum FaultCode {
    /// A trap handler that traps at once, for ever; [`Platform::trap_chain`] has the first trap.
    TrapLoop = 1,
    /// The system reset call reported a failure.
    SystemFailure = 2,
    /// The state handed to the core has another layout version or is damaged.
    BadState = 3,
}

impl Exit {
    pub(crate) const fn new(code: ExitCode) -> Self {
        Self { code, arg: 0 }
    }
}

impl Vm {
    /// A machine after power-on: M-mode, everything zero, `pc` 0.
    pub const fn new(kind: MachineKind) -> Self {
        Self {
            hart: Hart {
                x: [0; 32],
                pc: 0,
                reservation: NO_RESERVATION,
                ctx: Context::RESET,
                tlb: L1Tlb::EMPTY,
            },
            platform: Platform {
                clock: Clock::new(kind.map().timebase),
                next_event_at: 0,
                touched: 0,
                csr: Csrs::RESET,
                dev: Devices::new(kind),
                kind,
                sbi: 0,
                waiting: 0,
                replaced: 0,
                semihosting: Semihosting::new(false),
                itlb: InsnTlb::EMPTY,
                dtlb: L2Tlb::EMPTY,
                trap_chain: TrapChain::EMPTY,
                reserved_word: ReservedWord::NOTHING,
            },
        }
    }
}

// A VM of a large fleet keeps `Hart` in shared memory and must fit 32 KiB with its frame table.
// An odd number of double words puts what 16 neighbouring lanes read at the same time into
// different banks.
const _: () = assert!(size_of::<Hart>() <= 768 && size_of::<Hart>() / 8 % 2 == 1);
const _: () = assert!(size_of::<Vm>() <= 6656);

//! What steps the VMs of a fleet: the CPU, or a GPU.
//!
//! A backend runs on its own threads from the moment it is made. It tells what happens in events,
//! so that the work of whoever listens is proportional to what the guests do, never to how many
//! there are.

pub mod clock;
pub mod control;
pub mod cpu;
pub mod cuda;
pub mod fingerprint;
pub mod lockstep;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use emu_core::abi::{Exit, ExitCode, FaultCode};

pub use self::control::{Inspection, Inspector, Order, Unsupported};

use crate::console::ready::ReadyPattern;
use crate::net::Wire;
use crate::units::Size;

/// Steps a fleet.
pub trait Backend: Send + Sync {
    /// `cpu`, `cuda` or `lockstep`.
    fn name(&self) -> &'static str;

    /// What happens, in order for each VM. Disconnects after [`Backend::stop`], when every VM
    /// stands still and the last event has been received.
    fn events(&self) -> &Receiver<Event>;

    /// Gives a VM bytes of console input.
    fn input(&self, vm: u32, bytes: &[u8]);

    /// Whether VMs take input at all.
    fn takes_input(&self) -> Result<(), Unsupported> {
        Ok(())
    }

    /// Bytes of console input that a VM has not taken yet.
    fn waiting(&self, vm: u32) -> usize;

    /// Asks for something to be done with a VM. Returns at once.
    fn order(&self, vm: u32, order: Order) -> Result<(), Unsupported>;

    /// Asks for a VM's state, which `inspector` is given soon.
    fn inspect(&self, vm: u32, inspector: Inspector) -> Result<(), Unsupported>;

    /// Somebody reads [`Backend::instret`] often for a few seconds from now on.
    fn watched(&self) {}

    /// Asks the backend to stop all VMs. Returns at once; go on receiving events.
    fn stop(&self);

    /// Sums over the fleet, cheap enough for a few calls a second.
    fn totals(&self) -> Totals;

    /// Instructions that a VM has retired since its first start: up to its last rest, or a moment
    /// ago while [`Backend::watched`] is called.
    fn instret(&self, vm: u32) -> u64;

    /// Bytes that a VM takes beside its frames.
    fn fixed(&self) -> u64;

    /// What was launched on a device; `None` where there are no launches.
    fn launches(&self) -> Option<Launches> {
        None
    }

    /// Why it ended although nobody asked it to.
    fn failure(&self) -> BackendError {
        BackendError::Ended
    }
}

/// Something that happened to one VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Which VM.
    pub vm: u32,
    /// Instructions it had retired.
    pub instret: u64,
    /// What happened.
    pub kind: EventKind,
}

/// What can happen to a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// It wrote to its console.
    Console(Vec<u8>),
    /// A line on its console matched the ready pattern, for the first time since its start.
    Ready,
    /// It asked for a reset and starts again.
    Reset,
    /// It powered off, with a status: 0 for success.
    Halted(u32),
    /// It cannot go on.
    Faulted(Reason),
    /// What was asked for was done, as far as the VM's state allowed: one that has ended goes on
    /// only by [`Order::Start`].
    Obeyed(Order),
}

impl EventKind {
    /// What became of a VM that will not run again.
    pub fn of_end(exit: Exit) -> Self {
        match exit.code {
            ExitCode::PowerOff => Self::Halted(exit.arg),
            ExitCode::NoFrame => Self::Faulted(Reason::NoMemory),
            _ => Self::Faulted(Reason::of_fault(exit.arg)),
        }
    }
}

/// Why a VM cannot go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The machine gave up.
    Fault(FaultCode),
    /// A fault that this build has no name for.
    UnknownFault(u32),
    /// It started [`BOOTS_MAX`] times and was never ready.
    BootLoop,
    /// There is no memory left for it.
    NoMemory,
    /// The emulator failed; a bug of ours, not of the guest.
    Internal(String),
}

impl Reason {
    /// The reason behind a fault of the core, by its code.
    pub fn of_fault(code: u32) -> Self {
        let known = [FaultCode::TrapLoop, FaultCode::SystemFailure, FaultCode::BadState];
        let named = known.into_iter().find(|&c| c as u32 == code);
        named.map_or(Self::UnknownFault(code), Self::Fault)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(FaultCode::TrapLoop) => f.write_str("its trap handler traps for ever"),
            Self::Fault(FaultCode::SystemFailure) => f.write_str("it reported a system failure"),
            Self::Fault(FaultCode::BadState) => f.write_str("its state is damaged"),
            Self::UnknownFault(code) => write!(f, "fault {code}"),
            Self::BootLoop => write!(f, "it reset {BOOTS_MAX} times without becoming ready"),
            Self::NoMemory => f.write_str("there is no memory left for it"),
            Self::Internal(what) => write!(f, "internal error: {what}"),
        }
    }
}

/// Sums over a fleet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Instructions retired.
    pub instructions: u64,
    /// Frames of the base image.
    pub shared_frames: u32,
    /// Frames in use by single VMs.
    pub private_frames: u32,
}

/// What ran on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Launches {
    /// How many launches.
    pub count: u64,
    /// How long they took on the device, all together.
    pub time: Duration,
}

/// Where guest time comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClockSource {
    /// Retired instructions: deterministic, and an idle guest's time jumps to its next timer.
    Instret,
    /// The host's clock: idle guests sleep.
    Host,
}

/// How a backend runs a fleet.
#[derive(Clone, Debug)]
pub struct Settings {
    /// VMs that start at once, the first of the fleet's; the others wait for [`Order::Start`] and
    /// have no memory until then.
    pub started: u32,
    /// Host threads; the CPU backend runs as many VMs at once.
    pub threads: usize,
    /// Where guest time comes from.
    pub clock: ClockSource,
    /// What tells that a VM is ready.
    pub ready: ReadyPattern,
    /// Whether being ready is all that is asked: a ready VM stands still, and one that resets
    /// [`BOOTS_MAX`] times without becoming ready has failed.
    pub until_ready: bool,
    /// Where the network cards are connected; a wire for no VMs leads nowhere.
    pub wire: Arc<Wire>,
}

/// Starts that a VM has to become ready, when that is all that is asked.
pub const BOOTS_MAX: u32 = 5;

/// A backend could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The GPU cannot be used, or not any more.
    #[error(transparent)]
    Cuda(#[from] cuda::CudaError),
    /// CPU and GPU came to different results.
    #[error("CPU and GPU go apart: {0}")]
    Apart(String),
    /// More VMs than there is memory for.
    #[error(
        "{count} machines are more than {place} has memory for: it has {available} available, \
         about {fits} machines at {each} each"
    )]
    TooMany {
        /// Whose memory.
        place: &'static str,
        /// How many were asked for.
        count: u32,
        /// Memory that is available.
        available: Size,
        /// What a VM is expected to take.
        each: Size,
        /// How many would fit.
        fits: u64,
    },
    /// Address space for guest memory was refused.
    #[error("cannot reserve {0} of address space for guest memory")]
    Reserve(Size, #[source] io::Error),
    /// It stopped although nobody asked it to.
    #[error("the backend ended by itself")]
    Ended,
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

impl BackendError {
    /// Whether the user asked for something impossible.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::TooMany { .. } => true,
            Self::Cuda(error) => error.is_usage(),
            _ => false,
        }
    }
}

//! Backends: what executes the VMs of a fleet, on the CPU ([`cpu`]), on a GPU ([`cuda`]), or on
//! both and compared ([`lockstep`]).
//!
//! A backend runs on its own threads from the moment it is made. It reports what happens as events,
//! so that the listener's work is proportional to what the guests do, never to the number of VMs.

pub mod clock;
pub mod cpu;
pub mod cuda;
#[cfg(test)]
mod disk_tests;
pub mod fingerprint;
mod guess;
pub mod images;
mod inspect;
pub mod life;
pub mod lockstep;
pub mod part;
mod timers;
pub mod trap_loop;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use emu_core::abi::{Exit, ExitCode, FaultCode};

pub use self::inspect::{Inspection, Inspector};
pub use self::life::BOOTS_MAX;

use self::trap_loop::TrapLoop;
use crate::console::ready::ReadyPattern;
use crate::control::{Call, Command, CommandError, Reply};
use crate::machine::{Expected, Source};
use crate::net::VirtualLink;
use crate::units::Size;

/// A backend: executes the VMs of a fleet, or a part of them. VMs have the numbers of the fleet here;
/// those of others do nothing.
pub trait Backend: Send + Sync {
    /// Name of the backend: `cpu`, `cuda` or `lockstep`.
    fn name(&self) -> &'static str;

    /// Channel of events, in order for each VM. It disconnects after [`Backend::stop`], when every
    /// VM has stopped and the last event has been received.
    fn events(&self) -> &Receiver<Event>;

    /// Queues bytes of console input for a VM.
    fn input(&self, vm: u32, bytes: &[u8]);

    /// Returns an error where VMs take no console input at all.
    fn takes_input(&self) -> Result<(), Unsupported> {
        Ok(())
    }

    /// Number of bytes of console input that the VM has not read yet.
    fn waiting(&self, vm: u32) -> usize;

    /// Queues a command for a VM. Returns at once; [`EventKind::Completed`] follows.
    fn submit(&self, vm: u32, call: Call) -> Result<(), Unsupported>;

    /// Requests a copy of a VM's state, which is passed to `inspector` soon.
    fn inspect(&self, vm: u32, inspector: Inspector) -> Result<(), Unsupported>;

    /// Hint that [`Backend::instret`] will be read often during the next few seconds.
    fn watched(&self) {}

    /// Requests that all VMs stop. Returns at once; the caller keeps receiving events until they
    /// end.
    fn stop(&self);

    /// Sums over the fleet. Cheap enough for a few calls a second.
    fn totals(&self) -> Totals;

    /// Instructions that a VM has retired since its first start, as of when it last went idle or
    /// stopped, or of a moment ago while [`Backend::watched`] is called.
    fn instret(&self, vm: u32) -> u64;

    /// Bytes of memory that a VM needs besides its frames.
    fn fixed(&self) -> u64;

    /// Statistics of the kernel launches on a device; `None` where there are no launches.
    fn launches(&self) -> Option<Launches> {
        None
    }

    /// Why the backend ended although nobody stopped it.
    fn failure(&self) -> BackendError {
        BackendError::Ended
    }
}

/// An operation that this backend does not support.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub &'static str);

/// An event of one VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Number of the VM in the fleet.
    pub vm: u32,
    /// Instructions that the VM had retired.
    pub instret: u64,
    /// What happened.
    pub kind: EventKind,
}

/// What can happen to a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// The VM wrote to its console.
    Console(Vec<u8>),
    /// A line on the VM's console matched the ready pattern, for the first time since its start.
    Ready,
    /// The VM requested a reset and starts again.
    Reset,
    /// The VM powered off, with a status: 0 for success.
    Halted(u32),
    /// The VM cannot continue.
    Faulted(Reason),
    /// A command was completed, or had no effect in the VM's state: a VM that has ended continues
    /// only by [`Command::Reset`].
    Completed(Command, Result<Reply, CommandError>),
}

impl EventKind {
    /// Returns the event for a VM that will not run again; `traps` are those that it is caught in,
    /// if that is why.
    pub fn of_end(exit: Exit, traps: TrapLoop) -> Self {
        match exit.code {
            ExitCode::PowerOff => Self::Halted(exit.arg),
            ExitCode::NoFrame => Self::Faulted(Reason::NoMemory),
            _ => Self::Faulted(Reason::of_fault(exit.arg, traps)),
        }
    }
}

/// Why a VM cannot continue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Its trap handler traps for ever.
    TrapLoop(TrapLoop),
    /// The emulated machine gave up.
    Fault(FaultCode),
    /// The machine gave up with a fault code that this build has no name for.
    UnknownFault(u32),
    /// The VM started [`BOOTS_MAX`] times and was never ready.
    BootLoop,
    /// There is no memory left for the VM.
    NoMemory,
    /// The emulator failed: a bug of pxvm, not of the guest.
    Internal(String),
}

impl Reason {
    /// Returns the reason for a fault code of the core; `traps` are those that the VM is caught in,
    /// if that is why.
    pub fn of_fault(code: u32, traps: TrapLoop) -> Self {
        let known = [FaultCode::TrapLoop, FaultCode::SystemFailure, FaultCode::BadState];
        match known.into_iter().find(|&c| c as u32 == code) {
            Some(FaultCode::TrapLoop) => Self::TrapLoop(traps),
            Some(named) => Self::Fault(named),
            None => Self::UnknownFault(code),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TrapLoop(traps) => write!(f, "its trap handler traps for ever; {traps}"),
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
    /// Frames of the base image, which all VMs share.
    pub shared_frames: u32,
    /// Private frames in use.
    pub private_frames: u32,
}

/// Statistics of the kernel launches on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Launches {
    /// Number of launches.
    pub count: u64,
    /// Device time of all launches together.
    pub time: Duration,
}

/// Source of guest time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClockSource {
    /// Guest time advances with retired instructions: deterministic; an idle guest's time jumps to
    /// its next timer.
    Instret,
    /// Guest time follows the host's clock: idle guests sleep.
    Host,
}

/// Settings of a backend.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of the fleet's VMs that start at once, the first ones; the others wait for
    /// [`Command::Reset`] and have no memory until then.
    pub started: u32,
    /// Number of host threads; the CPU backend runs as many VMs at once.
    pub threads: usize,
    /// Source of guest time.
    pub clock: ClockSource,
    /// Pattern on a VM's console that shows that the VM is ready.
    pub ready: ReadyPattern,
    /// Whether the run is over for a VM once it is ready: it is then parked, and one that resets
    /// [`BOOTS_MAX`] times without becoming ready has failed.
    pub until_ready: bool,
    /// Virtual link that the VMs' network cards are attached to; a link for no VMs leads nowhere.
    pub link: Arc<VirtualLink>,
}

/// Why a backend could not be made or continue.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The GPU cannot be used, or not any more.
    #[error(transparent)]
    Cuda(#[from] cuda::CudaError),
    /// CPU and GPU came to different results.
    #[error("CPU and GPU go apart: {0}")]
    Apart(String),
    /// There is not enough memory for that many VMs.
    #[error(
        "{count} machines are more than {place} has memory for: it has {available} available, \
         about {fits} machines at {each} each{}", basis(.expected.as_ref())
    )]
    TooMany {
        /// Which memory: the host's or the device's.
        place: &'static str,
        /// Number of VMs that were requested.
        count: u32,
        /// Memory that is available.
        available: Size,
        /// Memory that one VM is expected to need.
        each: Size,
        /// Number of VMs that would fit.
        fits: u64,
        /// What they are expected to use, if that was counted.
        expected: Option<Expected>,
    },
    /// The host refused to reserve address space for guest memory.
    #[error("cannot reserve {0} of address space for guest memory")]
    Reserve(Size, #[source] io::Error),
    /// Guests cannot write to disk images there.
    #[error(
        "a disk that guests write back to needs `--backend cpu`: on a GPU, what they write stays \
         with them and ends with them"
    )]
    WriteBack,
    /// The backend ended although nobody stopped it.
    #[error("the backend ended by itself")]
    Ended,
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Says what an estimate is based on, and what helps.
fn basis(expected: Option<&Expected>) -> String {
    let Some(expected) = expected else { return String::new() };
    let (size, source) = (expected.size(), expected.source);
    let other = match source {
        Source::Given => "",
        Source::EarlierRuns | Source::Typical => ", or say with --memory-per-vm what each writes",
    };
    format!(" ({size} that it writes itself, {source}); start fewer{other}")
}

impl BackendError {
    /// Whether the user requested something impossible.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::TooMany { .. } | Self::WriteBack => true,
            Self::Cuda(error) => error.is_usage(),
            _ => false,
        }
    }
}

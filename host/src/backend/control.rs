//! Commands on a single VM while its fleet runs (reset, pause, resume, stop), and inspection of its
//! state.

use std::fmt;

use emu_core::abi::Vm;

/// A command on one VM. When the VM has executed it, [`super::EventKind::Completed`] follows, in
/// order with the VM's other events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Resets the VM to its first instruction, in whatever state it is, and lets it run; its old
    /// memory is given back. The first reset of a VM that was added to the fleet is its power-on.
    Reset,
    /// Pauses the VM. It keeps its memory, and its clock goes on.
    Pause,
    /// Resumes a paused VM.
    Resume,
    /// Stops the VM and gives its memory back.
    Stop,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "reset",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
        })
    }
}

/// A copy of a VM's state, taken between two slices.
#[derive(Clone)]
pub struct Inspection {
    /// State of the hart and the devices.
    pub vm: Box<Vm>,
    /// Instructions that the VM has retired since its first start.
    pub instret: u64,
    /// Number of private frames (4 KiB of guest memory each) of the VM.
    pub private_frames: u32,
}

/// Callback that receives the result of [`super::Backend::inspect`]: `None` for a VM without
/// memory.
pub type Inspector = Box<dyn FnOnce(Option<Inspection>) + Send>;

/// An operation that this backend does not support.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub &'static str);

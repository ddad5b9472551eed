//! What a user can ask of a single VM while its fleet runs.

use std::fmt;

use emu_core::abi::Vm;

/// Something to be done with a VM. Once it is done, the VM's [`super::EventKind::Obeyed`] comes,
/// in order with everything else that happens to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Starts it at its first instruction, whatever it does; memory that it has is given back.
    Start,
    /// Lets it stand still and keep its memory. Its clock goes on.
    Pause,
    /// Lets it go on.
    Resume,
    /// Ends it and gives its memory back.
    Stop,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "reset",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
        })
    }
}

/// A VM as it stands between two slices.
#[derive(Clone)]
pub struct Inspection {
    /// Its state.
    pub vm: Box<Vm>,
    /// Instructions it has retired since its first start.
    pub instret: u64,
    /// Frames that it has for itself.
    pub private_frames: u32,
}

/// Takes the answer to [`super::Backend::inspect`]: nothing for a VM that has no memory.
pub type Inspector = Box<dyn FnOnce(Option<Inspection>) + Send>;

/// A backend cannot do what it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub &'static str);

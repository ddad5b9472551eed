//! Inspection of a VM's state while its fleet runs.

use emu_core::abi::Vm;

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

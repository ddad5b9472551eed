//! The contract of a launch: what the host puts into device memory and what it finds there.

use crate::port::{Outbox, PortState};
use crate::ram::{CodeCache, CodePage};
use core::sync::atomic::AtomicU32;
use emu_core::abi::{Exit, Vm};

/// Pages of decoded instructions that a VM keeps of its private frames, on the GPU.
pub const CODE_SLOTS: usize = 32;

/// One launch. All pointers are device addresses.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Launch {
    /// Layout version, [`emu_core::abi::VERSION`].
    pub version: u32,
    /// VMs to run: entries of `active`.
    pub count: u32,
    /// VMs a warp, 1 to 32.
    pub lanes: u32,
    /// Instructions a VM may execute.
    pub budget: u32,
    /// `time` for all VMs under the `host` clock.
    pub ticks: u64,
    /// Ticks an instruction, 24 fractional bits; zero for the `instret` clock.
    pub rate: u32,
    /// Pages of RAM a VM has, and entries of `tables` for it.
    pub pages: u32,
    /// The arena.
    pub arena: *mut u8,
    /// Frames in the arena.
    pub frames: u32,
    /// Shared frames in the arena.
    pub shared: u32,
    /// Decoded instructions of the shared frames.
    pub shared_code: *const CodePage,
    /// Decoded instructions of private frames, one cache a VM.
    pub private_code: *mut CodeCache<CODE_SLOTS>,
    /// The VMs to run.
    pub active: *const u32,
    /// How each run ended, in the order of `active`.
    pub exits: *mut Exit,
    /// All VMs' states.
    pub vms: *mut Vm,
    /// All VMs' frame tables.
    pub tables: *mut u32,
    /// All VMs' ports.
    pub ports: *mut PortState,
    /// Free frames.
    pub free: *const FreeFrames,
    /// What VMs say to the host.
    pub outbox: *const Outbox,
}

/// The arena's free frames: a stack of returned ones, then the ones never used.
///
/// VMs only take; the host gives frames back between launches.
#[derive(Debug)]
#[repr(C)]
pub struct FreeFrames {
    /// First frame never used.
    pub next: AtomicU32,
    /// End of the arena.
    pub limit: u32,
    /// How many entries of `returned` are taken from the end.
    pub taken: AtomicU32,
    /// Entries of `returned`.
    pub returned_len: u32,
    /// Frames given back.
    pub returned: *const u32,
}

//! The contract of a launch: what the host puts into device memory and what it finds there.

use crate::port::{Outbox, PortState};
use crate::ram::{CodeCache, CodePage};
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, AtomicU64};
use emu_core::abi::Vm;
use emu_core::mem::FRAME_SIZE;

/// Pages of decoded instructions that a VM keeps of its private frames, on the GPU.
pub const CODE_SLOTS: usize = 32;

/// What an event's instruction count is rounded up to, and the longest run between two looks at a
/// VM's input. The same on all backends, so that what is told of a run is, too.
pub const SLICE: u32 = 1 << 15;

/// An address in device memory of one or more `T`. A number, so that host and device exchange it as
/// any other; only the device, and who emulates it, follows it.
#[repr(transparent)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
pub struct At<T> {
    address: u64,
    what: PhantomData<fn() -> T>,
}

impl<T> At<T> {
    /// Nowhere: there are none.
    pub const NOWHERE: Self = Self::new(0);

    /// An address.
    pub const fn new(address: u64) -> Self {
        Self { address, what: PhantomData }
    }

    /// The number.
    pub const fn address(self) -> u64 {
        self.address
    }

    /// A pointer, for who may follow it.
    #[inline(always)]
    pub fn ptr(self) -> *mut T {
        core::ptr::with_exposed_provenance_mut(self.address as usize)
    }
}

impl<T> Clone for At<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for At<T> {}

impl<T> fmt::Debug for At<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.address)
    }
}

/// One launch. All addresses are the device's.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Launch {
    /// Layout version, [`emu_core::abi::VERSION`].
    pub version: u32,
    /// VMs to work on: entries of `active`, or of `staged`.
    pub count: u32,
    /// VMs a warp, 1 to 32.
    pub lanes: u32,
    /// Slices that a VM may run; none only drains its console.
    pub slices: u32,
    /// Instructions in a slice: a power of two, [`SLICE`] at most. A VM's first slice is as short
    /// as it takes to end at a multiple.
    pub slice: u32,
    /// Ticks an instruction, 24 fractional bits; zero for the `instret` clock.
    pub rate: u32,
    /// `time` for a VM that started at zero, under the `host` clock.
    pub ticks: u64,
    /// Pages of RAM a VM has.
    pub pages: u32,
    /// Pages of disk. They follow those of RAM in the VM's row of `tables`.
    pub disk_pages: u32,
    /// Frames in the arena.
    pub frames: u32,
    /// Shared frames in the arena.
    pub shared: u32,
    /// Pages of ROM.
    pub rom_pages: u32,
    /// Pages of `shared_code`: those of the first shared frames, which RAM starts with and ROM has.
    pub shared_code_len: u32,
    /// Bytes of `inbox`.
    pub inbox_len: u32,
    /// Zero for an exact launch, which ends with its slices; else the nanoseconds after which it ends
    /// where the VMs that share a warp meet.
    pub meeting_ns: u32,
    /// The arena, its frames placed as [`crate::placement::OnGpu`] says.
    pub arena: At<u8>,
    /// Decoded instructions of the shared frames.
    pub shared_code: At<CodePage>,
    /// Decoded instructions of private frames, one cache a VM.
    pub private_code: At<CodeCache<CODE_SLOTS>>,
    /// The VMs to run, each once.
    pub active: At<Entry>,
    /// All VMs' states.
    pub vms: At<Vm>,
    /// All VMs' frame tables, one row a VM.
    pub tables: At<u32>,
    /// Rows that VMs start with: only shared frames.
    pub base: At<u32>,
    /// The frames of the ROM, all shared.
    pub rom: At<u32>,
    /// All VMs' ports.
    pub ports: At<PortState>,
    /// What counts up during launches.
    pub control: At<Control>,
    /// What the host says to VMs: see [`crate::port::Inbox`].
    pub inbox: At<u8>,
    /// VMs to start.
    pub staged: At<StagedVm>,
    /// Pages of theirs.
    pub staged_pages: At<StagedPage>,
    /// Where digests go, in the order of `active`.
    pub digests: At<AtomicU64>,
}

/// Flag in [`Entry::vm`]: the VM runs even if it rests.
pub const WAKE: u32 = 1 << 31;

/// A VM in a launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Entry {
    /// Which one, and perhaps [`WAKE`].
    pub vm: u32,
    /// Where in the inbox its part starts, in units of eight bytes, plus one; zero for nowhere.
    pub inbox: u32,
}

/// What VMs count up together during a launch.
#[derive(Debug)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::FromBytes, zerocopy::IntoBytes))]
#[repr(C)]
pub struct Control {
    /// What VMs say to the host.
    pub outbox: Outbox,
    /// VMs that would go on.
    pub busy: AtomicU32,
    /// Keeps what follows aligned.
    pub reserved: u32,
    /// Instructions that these have retired in the launch.
    pub ran: AtomicU64,
    /// Instructions retired, since the fleet's start.
    pub instructions: AtomicU64,
    /// Free frames.
    pub free: FreeFrames,
}

/// The arena's free frames: a stack of returned ones, then the ones never used.
///
/// A launch either takes frames or returns them, never both.
#[derive(Debug)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::FromBytes, zerocopy::IntoBytes))]
#[repr(C)]
pub struct FreeFrames {
    /// First frame never used. May end up to the number of VMs past `limit`.
    pub next: AtomicU32,
    /// End of the arena.
    pub limit: u32,
    /// Entries of `returned`.
    pub top: AtomicU32,
    /// Keeps what follows aligned.
    pub reserved: u32,
    /// Frames given back; there is room for all.
    pub returned: At<u32>,
}

/// A VM before its first instruction.
#[derive(Clone)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct StagedVm {
    /// Which one.
    pub id: u32,
    /// The row of [`Launch::base`] that it starts with.
    pub row: u32,
    /// First of its pages.
    pub first_page: u32,
    /// How many there are.
    pub page_count: u32,
    /// Fleet time that is zero for this VM.
    pub origin: u64,
    /// Its state, without cached frames.
    pub vm: Vm,
}

/// A page of RAM that is a VM's own from the start.
#[derive(Clone)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct StagedPage {
    /// Which page.
    pub page: u32,
    /// Keeps the bytes aligned.
    pub reserved: u32,
    /// Its content.
    pub bytes: [u8; FRAME_SIZE as usize],
}

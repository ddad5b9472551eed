//! The contract between host and device for a kernel launch: the layout of what each writes into
//! device memory for the other.

use super::outbox::Outbox;
use super::port::PortState;
use crate::memory::{CodePage, CodeSlots, Line, OwnPages};
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, AtomicU64};
use emu_core::abi::Vm;
use emu_core::mem::FRAME_SIZE;

/// How many private frames of a VM can have decoded instructions at a time, on the GPU, if there are
/// pages for them.
pub const CODE_SLOTS: usize = 32;

/// Instructions in a slice, the longest run between two polls of a VM's input. An event's
/// instruction count is rounded up to a multiple of it. It is the same on all backends, so that
/// they report the same events for the same run.
pub const SLICE: u32 = 1 << 15;

/// The address of one or more `T` in device memory. It is a plain number for the host. Only the
/// device, or an emulation of one, may dereference it.
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
    /// The address of nothing, for when there is no `T`.
    pub const NOWHERE: Self = Self::new(0);

    /// Makes the address with this number.
    pub const fn new(address: u64) -> Self {
        Self { address, what: PhantomData }
    }

    /// Returns the address as a number.
    pub const fn address(self) -> u64 {
        self.address
    }

    /// Returns the address as a pointer, which only the device may dereference.
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

/// The arguments of one kernel launch. All addresses are in device memory.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Launch {
    /// Layout version, [`emu_core::abi::VERSION`].
    pub version: u32,
    /// How many VMs to work on: entries of `active`, or of `staged`.
    pub count: u32,
    /// VMs per warp, 1 to 32.
    pub vms_per_warp: u32,
    /// Slices that a VM may run. With zero, the launch only drains consoles.
    pub slices: u32,
    /// Instructions in a slice: a power of two, [`SLICE`] at most. Slices end at multiples of it,
    /// so a VM's first slice may be shorter.
    pub slice: u32,
    /// Ticks per instruction, with 24 fractional bits; zero for the `instret` clock.
    pub rate: u32,
    /// `time` for a VM that started at zero, under the `host` clock.
    pub ticks: u64,
    /// Pages of RAM per VM.
    pub pages: u32,
    /// Lines in the cache of disk images; zero without disks.
    pub cache_lines: u32,
    /// Frames in the arena.
    pub frames: u32,
    /// Shared frames in the arena.
    pub shared: u32,
    /// Pages of ROM.
    pub rom_pages: u32,
    /// Pages of `code` that belong to the first shared frames, the ones that hold the ROM and what
    /// RAM contains at the start.
    pub shared_code: u32,
    /// Pages of `code`.
    pub code_pages: u32,
    /// Keeps what follows aligned.
    pub reserved: u32,
    /// Bytes of `inbox`.
    pub inbox_len: u32,
    /// Zero for an exact launch, which ends after its slices. Otherwise the nanoseconds after which
    /// the launch ends, at the next point where the VMs that share a warp have reconverged.
    pub time_limit_ns: u32,
    /// What the uniform loop keeps at hand.
    pub hot: HotSizes,
    /// The arena of frames, in the layout [`crate::memory::OnGpu`].
    pub arena: At<u8>,
    /// Decoded instructions: the pages of the shared frames, then a page for each VM, then those
    /// that VMs take as they need more.
    pub code: At<CodePage>,
    /// Which of these each VM has.
    pub code_slots: At<CodeSlots<CODE_SLOTS>>,
    /// The VMs to run, each once.
    pub active: At<Entry>,
    /// All VMs' states.
    pub vms: At<Vm>,
    /// All VMs' frame tables, one row per VM.
    pub tables: At<u32>,
    /// Frame tables that VMs start with. Their rows name shared frames only.
    pub base: At<u32>,
    /// The frames of the ROM, all shared.
    pub rom: At<u32>,
    /// What each VM has of its disk.
    pub disks: At<OwnPages>,
    /// What is in the lines of the cache of disk images.
    pub cache: At<Line>,
    /// The bytes of these lines.
    pub cache_bytes: At<u8>,
    /// All VMs' ports.
    pub ports: At<PortState>,
    /// What all VMs of a launch share and update: log, counters and free frames.
    pub control: At<Control>,
    /// Input from the host to VMs: see [`super::inbox::Inbox`].
    pub inbox: At<u8>,
    /// VMs to start.
    pub staged: At<StagedVm>,
    /// The private pages that staged VMs start with.
    pub staged_pages: At<StagedPage>,
    /// Where the digests of VMs are written, in the order of `active`.
    pub digests: At<AtomicU64>,
}

/// How much of a VM's state the uniform loop keeps at hand. Both are powers of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct HotSizes {
    /// Translations of data, at most [`emu_core::uniform::TRANSLATIONS_MAX`].
    pub translations: u32,
    /// Pages of instructions.
    pub pages: u32,
    /// Steps that a lane waits for others to leave the straight path with it.
    pub wait_steps: u32,
    /// How many lanes, in 32nds of them all, end that waiting.
    pub crowd: u32,
}

/// Flag in [`Entry::vm`]: the VM runs even if it is parked.
pub const WAKE: u32 = 1 << 31;

/// A VM in a launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Entry {
    /// The VM's id, and [`WAKE`] if that is set.
    pub vm: u32,
    /// Where the VM's input starts in the inbox, in units of eight bytes, plus one; zero when it
    /// has none.
    pub inbox: u32,
}

/// What all VMs of a launch share and update atomically.
#[derive(Debug)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::FromBytes, zerocopy::IntoBytes))]
#[repr(C)]
pub struct Control {
    /// The log of records from VMs to the host.
    pub outbox: Outbox,
    /// How many VMs ended the launch still runnable.
    pub busy: AtomicU32,
    /// Keeps what follows aligned.
    pub reserved: u32,
    /// Instructions that those VMs retired in the launch.
    pub ran: AtomicU64,
    /// Instructions that all VMs have retired since the fleet started.
    pub instructions: AtomicU64,
    /// Free frames.
    pub free: FreeList,
    /// Free pages of decoded instructions, all empty.
    pub free_code: FreeList,
}

/// The free ones of a number of equal things, frames or pages, which are known by their indices: a
/// stack of those returned, and after these the ones never used.
///
/// A launch either takes some or returns some, never both.
#[derive(Debug)]
#[cfg_attr(feature = "zerocopy", derive(zerocopy::FromBytes, zerocopy::IntoBytes))]
#[repr(C)]
pub struct FreeList {
    /// The first one never used. It can exceed `limit` by up to the number of VMs.
    pub next: AtomicU32,
    /// The number of all there are.
    pub limit: u32,
    /// Entries of `returned`.
    pub top: AtomicU32,
    /// Keeps what follows aligned.
    pub reserved: u32,
    /// The stack of those returned, with room for all that can be taken.
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
    /// The VM's id.
    pub id: u32,
    /// The row of [`Launch::base`] that it starts with.
    pub row: u32,
    /// Index in [`Launch::staged_pages`] of the VM's first page.
    pub first_page: u32,
    /// How many pages the VM has there.
    pub page_count: u32,
    /// Fleet time that is zero for this VM.
    pub origin: u64,
    /// What the VM has of its disk.
    pub disk: OwnPages,
    /// Keeps what follows aligned.
    pub reserved: u32,
    /// The VM's state, without any cached translation.
    pub vm: Vm,
}

/// A page of RAM that a VM starts with as a private one.
#[derive(Clone)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct StagedPage {
    /// The page's number.
    pub page: u32,
    /// Keeps the bytes aligned.
    pub reserved: u32,
    /// The page's content.
    pub bytes: [u8; FRAME_SIZE as usize],
}

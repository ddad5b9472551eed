//! The hot state of the uniform loop, interleaved by lane.
//!
//! A GPU's shared memory has 32 banks of one word. Every word of a hart's state lies in another bank
//! for each lane of the warp, whatever number it has: so 32 lanes read 32 different registers at once.

use crate::memory::CodeRef;
use crate::protocol::launch::{HotSizes, Launch};
use core::sync::atomic::AtomicU64;
use emu_core::uniform::HotState;

const REGISTERS: u32 = 32;
/// Bytes of the registers of a lane.
const TRANSLATIONS_AT: u32 = 4 * REGISTERS;

impl HotSizes {
    /// Returns the bytes of the hot state of one lane.
    pub const fn bytes(self) -> u32 {
        TRANSLATIONS_AT + 8 * (self.translations + self.pages)
    }
}

/// A lane's part of the hot state of a warp.
#[derive(Clone, Copy)]
pub struct HotLane {
    /// Where the warp's hot state begins. On a GPU it is the block's shared memory.
    #[cfg(not(feature = "device"))]
    start: *mut u8,
    lane: u32,
    /// Lanes in the warp.
    lanes: u32,
    sizes: HotSizes,
    /// All pages of decoded instructions. Shared memory has no room for whole addresses.
    code: *const AtomicU64,
}

impl HotLane {
    /// Returns the part of lane `lane` of a warp whose hot state begins at `start`.
    ///
    /// # Safety
    /// `start` is aligned to 16 bytes and has [`HotSizes::bytes`] for each lane of a warp. This
    /// lane's part is the caller's alone. On a GPU, `start` is the beginning of the block's dynamic
    /// shared memory.
    #[inline(always)]
    pub unsafe fn new(launch: &Launch, start: *mut u8, lane: u32) -> Self {
        #[cfg(feature = "device")]
        let _ = start;
        Self {
            #[cfg(not(feature = "device"))]
            start,
            lane,
            lanes: launch.vms_per_warp,
            sizes: launch.hot,
            code: launch.code.ptr().cast(),
        }
    }

    /// Returns the address of element `n` of this lane, of a part of the state that begins after
    /// `before` bytes a lane and has elements of type `T`.
    #[inline(always)]
    fn at<T>(self, before: u32, n: u32) -> *mut T {
        // The compiler must see that this is shared memory, also in a function that has got `self`.
        #[cfg(feature = "device")]
        let start = crate::intrin::shared_mem();
        #[cfg(not(feature = "device"))]
        let start = self.start;
        // In 32 bits, because a GPU has no multiplication of 64.
        let offset = before * self.lanes + (n * self.lanes + self.lane) * size_of::<T>() as u32;
        start.wrapping_add(offset as usize).cast()
    }

    #[inline(always)]
    fn register_at(self, n: usize) -> *mut u32 {
        self.at(0, n as u32 % REGISTERS)
    }

    #[inline(always)]
    fn translation_at(self, n: u32) -> *mut u64 {
        self.at(TRANSLATIONS_AT, n & (self.sizes.translations - 1))
    }

    #[inline(always)]
    fn page_at(self, n: u32) -> *mut u64 {
        self.at(TRANSLATIONS_AT + 8 * self.sizes.translations, n & (self.sizes.pages - 1))
    }
}

// SAFETY of all accesses: an index is reduced to the number of elements, which is a power of two, so
// the element is in the part that `new` was given.
impl HotState<CodeRef> for HotLane {
    #[inline(always)]
    fn register(self, n: usize) -> u32 {
        // SAFETY: see above.
        unsafe { self.register_at(n).read() }
    }

    #[inline(always)]
    fn set_register(self, n: usize, value: u32) {
        // SAFETY: see above.
        unsafe { self.register_at(n).write(value) }
    }

    #[inline(always)]
    fn wait_steps(self) -> u32 {
        self.sizes.wait_steps
    }

    #[inline(always)]
    fn crowd(self) -> u32 {
        self.sizes.crowd
    }

    #[inline(always)]
    fn translations(self) -> u32 {
        self.sizes.translations
    }

    #[inline(always)]
    fn translation(self, n: u32) -> u64 {
        // SAFETY: see above.
        unsafe { self.translation_at(n).read() }
    }

    #[inline(always)]
    fn set_translation(self, n: u32, entry: u64) {
        // SAFETY: see above.
        unsafe { self.translation_at(n).write(entry) }
    }

    #[inline(always)]
    fn pages(self) -> u32 {
        self.sizes.pages
    }

    #[inline(always)]
    fn page(self, n: u32) -> (u32, CodeRef) {
        // SAFETY: see above.
        let word = unsafe { self.page_at(n).read() };
        (word as u32, CodeRef::at_distance(self.code, (word >> 32) as u32))
    }

    #[inline(always)]
    fn set_page(self, n: u32, page: u32, code: CodeRef) {
        let word = u64::from(code.distance_from(self.code)) << 32 | u64::from(page);
        // SAFETY: see above.
        unsafe { self.page_at(n).write(word) }
    }
}

//! GPU intrinsics. The functions are defined in `intrinsics.ll`, which the builder links in.

unsafe extern "C" {
    safe fn pxvm_thread_idx_x() -> u32;
    safe fn pxvm_block_idx_x() -> u32;
    safe fn pxvm_shared_mem() -> *mut u8;
    safe fn pxvm_now_ns() -> u64;
    safe fn pxvm_half(value: u32) -> u32;
    safe fn pxvm_opaque(value: u64) -> u64;
    safe fn pxvm_select(condition: bool, a: u32, b: u32) -> u32;
    fn pxvm_load32_if(condition: bool, from: *const u32) -> u32;
    fn pxvm_load64_if(condition: bool, from: *const u64) -> u64;
    fn pxvm_store8_if(condition: bool, to: *mut u8, value: u32);
    fn pxvm_store16_if(condition: bool, to: *mut u16, value: u32);
    fn pxvm_store32_if(condition: bool, to: *mut u32, value: u32);
    safe fn pxvm_prefetch(at: *const u8);
    safe fn pxvm_sync_warp(mask: u32);
    safe fn pxvm_activemask() -> u32;
    safe fn pxvm_ballot_sync(mask: u32, predicate: bool) -> u32;
    safe fn pxvm_shuffle_idx_sync(mask: u32, value: u32, lane: u32) -> u32;
    safe fn pxvm_region_end();
    safe fn pxvm_trap() -> !;
}

/// Indices of the running thread, named as in `cuda_std::thread`.
pub mod thread {
    /// Returns the thread's index in its block.
    #[inline(always)]
    pub fn thread_idx_x() -> u32 {
        super::pxvm_thread_idx_x()
    }

    /// Returns the block's index in the grid.
    #[inline(always)]
    pub fn block_idx_x() -> u32 {
        super::pxvm_block_idx_x()
    }
}

/// Synchronisation of a warp's threads, named as in `cuda_std::warp`.
pub mod warp {
    /// Marks a point that the compiler must keep single: it neither duplicates the code that
    /// follows nor moves it into a branch. Diverged threads can then reconverge there.
    #[inline(always)]
    pub fn region_end() {
        super::pxvm_region_end();
    }

    /// Waits until all threads of `mask` that have not exited call this.
    #[inline(always)]
    pub fn sync_warp(mask: u32) {
        super::pxvm_sync_warp(mask);
    }

    /// Returns the mask of the threads that execute this call together.
    #[inline(always)]
    pub fn activemask() -> u32 {
        super::pxvm_activemask()
    }

    /// Waits until all threads of `mask` that have not exited call this, and returns the `value` of
    /// thread `lane`, which must be one of them.
    #[inline(always)]
    pub fn warp_shuffle_sync_idx(mask: u32, value: u32, lane: u32) -> u32 {
        super::pxvm_shuffle_idx_sync(mask, value, lane)
    }

    /// Waits until all threads of `mask` that have not exited call this, and returns the mask of
    /// those whose predicate holds.
    #[inline(always)]
    pub fn warp_ballot_sync(mask: u32, predicate: bool) -> u32 {
        super::pxvm_ballot_sync(mask, predicate)
    }
}

/// Returns `value`, and hides from the compiler that it does: an optimisation barrier.
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    pxvm_opaque(value)
}

/// Returns `value`, and hides from the compiler that it is half of a 64-bit register, so that it
/// does not compute with all 64 bits.
#[inline(always)]
pub fn half(value: u32) -> u32 {
    pxvm_half(value)
}

/// Returns `a` if the condition is true, else `b`, without a branch.
#[inline(always)]
pub fn select(condition: bool, a: u32, b: u32) -> u32 {
    pxvm_select(condition, a, b)
}

/// Accesses of global memory that a thread does if a condition is true, without a branch. A load that
/// is not done gives zero.
///
/// # Safety
/// If the condition is true, the pointer is aligned, and valid for the access in global memory.
pub mod conditional {
    /// Loads a word.
    ///
    /// # Safety
    /// See above.
    #[inline(always)]
    pub unsafe fn load32(condition: bool, from: *const u32) -> u32 {
        // SAFETY: the caller's.
        unsafe { super::pxvm_load32_if(condition, from) }
    }

    /// Loads a double word.
    ///
    /// # Safety
    /// See above.
    #[inline(always)]
    pub unsafe fn load64(condition: bool, from: *const u64) -> u64 {
        // SAFETY: the caller's.
        unsafe { super::pxvm_load64_if(condition, from) }
    }

    /// Stores the low byte of a word.
    ///
    /// # Safety
    /// See above.
    #[inline(always)]
    pub unsafe fn store8(condition: bool, to: *mut u8, value: u32) {
        // SAFETY: the caller's.
        unsafe { super::pxvm_store8_if(condition, to, value) }
    }

    /// Stores the low half of a word.
    ///
    /// # Safety
    /// See above.
    #[inline(always)]
    pub unsafe fn store16(condition: bool, to: *mut u16, value: u32) {
        // SAFETY: the caller's.
        unsafe { super::pxvm_store16_if(condition, to, value) }
    }

    /// Stores a word.
    ///
    /// # Safety
    /// See above.
    #[inline(always)]
    pub unsafe fn store32(condition: bool, to: *mut u32, value: u32) {
        // SAFETY: the caller's.
        unsafe { super::pxvm_store32_if(condition, to, value) }
    }
}

/// Begins to load a line of memory into the cache. Any address will do.
#[inline(always)]
pub fn prefetch(at: *const u8) {
    pxvm_prefetch(at);
}

/// Returns the device's clock, in nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    pxvm_now_ns()
}

/// Returns the address of the block's dynamic shared memory.
#[inline(always)]
pub fn shared_mem() -> *mut u8 {
    pxvm_shared_mem()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    pxvm_trap()
}

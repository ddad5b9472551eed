//! What only a GPU has. The functions are defined in `intrinsics.ll`, which the builder links in.

unsafe extern "C" {
    safe fn pxvm_thread_idx_x() -> u32;
    safe fn pxvm_block_idx_x() -> u32;
    safe fn pxvm_shared_mem() -> *mut u8;
    safe fn pxvm_now_ns() -> u64;
    safe fn pxvm_half(value: u32) -> u32;
    safe fn pxvm_opaque(value: u64) -> u64;
    safe fn pxvm_sync_warp(mask: u32);
    safe fn pxvm_activemask() -> u32;
    safe fn pxvm_ballot_sync(mask: u32, predicate: bool) -> u32;
    safe fn pxvm_shuffle_idx_sync(mask: u32, value: u32, lane: u32) -> u32;
    safe fn pxvm_rejoin();
    safe fn pxvm_trap() -> !;
}

/// Indices of the running thread, named as in `cuda_std::thread`.
pub mod thread {
    /// Index in the block.
    #[inline(always)]
    pub fn thread_idx_x() -> u32 {
        super::pxvm_thread_idx_x()
    }

    /// Index of the block.
    #[inline(always)]
    pub fn block_idx_x() -> u32 {
        super::pxvm_block_idx_x()
    }
}

/// Votes, named as in `cuda_std::warp`.
pub mod warp {
    /// Keeps what follows in one piece: the compiler neither copies it nor moves it into a branch.
    #[inline(always)]
    pub fn rejoin() {
        super::pxvm_rejoin();
    }

    /// Waits until all threads of `mask` that have not exited call this.
    #[inline(always)]
    pub fn sync_warp(mask: u32) {
        super::pxvm_sync_warp(mask);
    }

    /// The threads that execute this together.
    #[inline(always)]
    pub fn activemask() -> u32 {
        super::pxvm_activemask()
    }

    /// Waits likewise, and answers the value that thread `lane`, which has not exited, gave.
    #[inline(always)]
    pub fn warp_shuffle_sync_idx(mask: u32, value: u32, lane: u32) -> u32 {
        super::pxvm_shuffle_idx_sync(mask, value, lane)
    }

    /// Waits until all threads of `mask` that have not exited call this, and answers for which of
    /// them the predicate holds.
    #[inline(always)]
    pub fn warp_ballot_sync(mask: u32, predicate: bool) -> u32 {
        super::pxvm_ballot_sync(mask, predicate)
    }
}

/// The value, of which the compiler knows nothing.
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    pxvm_opaque(value)
}

/// The value, which is a register's half by itself: the compiler does not compute with both halves.
#[inline(always)]
pub fn half(value: u32) -> u32 {
    pxvm_half(value)
}

/// The device's clock, in nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    pxvm_now_ns()
}

/// The block's dynamic shared memory.
#[inline(always)]
pub fn shared_mem() -> *mut u8 {
    pxvm_shared_mem()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    pxvm_trap()
}

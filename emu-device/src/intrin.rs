//! What only a GPU has. The functions are defined in `intrinsics.ll`, which the builder links in.

unsafe extern "C" {
    safe fn pxvm_thread_idx_x() -> u32;
    safe fn pxvm_block_idx_x() -> u32;
    safe fn pxvm_shared_mem() -> *mut u8;
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

/// The block's dynamic shared memory.
#[inline(always)]
pub fn shared_mem() -> *mut u8 {
    pxvm_shared_mem()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    pxvm_trap()
}

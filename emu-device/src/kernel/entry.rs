//! The kernels' entry points on the GPU. Each thread runs one VM, and [`Launch::vms_per_warp`]
//! threads of a warp do. A block is one warp, so that its shared memory is free as soon as that warp
//! has ended.

use crate::intrin::{shared_mem, thread};
use crate::protocol::launch::Launch;
use crate::simt::Gpu;
use emu_core::abi::Hart;

fn index(launch: &Launch) -> Option<u32> {
    let lane = thread::thread_idx_x();
    let index = thread::block_idx_x() * launch.vms_per_warp + lane;
    (lane < launch.vms_per_warp && index < launch.count).then_some(index)
}

/// # Safety
/// As [`super::step`]; the block has 32 threads and `vms_per_warp * size_of::<Hart>()` bytes of
/// shared memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pxvm_step(launch: &Launch) {
    if let Some(index) = index(launch) {
        // SAFETY: each lane has its part of shared memory.
        unsafe {
            let hart = shared_mem().cast::<Hart>().add(thread::thread_idx_x() as usize);
            super::step::<Gpu>(launch, index, hart);
        }
    }
}

/// # Safety
/// As [`super::step_uniform`]; the block has 32 threads and `vms_per_warp * hot.bytes()` bytes of
/// shared memory.
#[cfg(feature = "uniform-loop")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pxvm_step_uniform(launch: &Launch) {
    if let Some(index) = index(launch) {
        // SAFETY: each lane has its part of shared memory.
        unsafe {
            let hot = super::HotLane::new(launch, shared_mem(), thread::thread_idx_x());
            super::step_uniform::<Gpu>(launch, index, hot);
        }
    }
}

/// # Safety
/// As [`super::release`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pxvm_release(launch: &Launch) {
    if let Some(index) = index(launch) {
        // SAFETY: the caller's.
        unsafe { super::release(launch, index) }
    }
}

/// # Safety
/// As [`super::start`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pxvm_start(launch: &Launch) {
    if let Some(index) = index(launch) {
        // SAFETY: the caller's.
        unsafe { super::start(launch, index) }
    }
}

/// Computes digests, with one block for each VM, whose threads divide its pages among them.
///
/// # Safety
/// As [`super::digest`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pxvm_digest(launch: &Launch) {
    let index = thread::block_idx_x();
    if index < launch.count {
        // SAFETY: the caller's.
        unsafe { super::digest(launch, index, thread::thread_idx_x(), 32) }
    }
}

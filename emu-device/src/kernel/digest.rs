//! Fingerprints of VMs' memories.

use super::tables::{DeviceFrames, row};
use crate::memory::{Arena, FrameMemory, OnGpu};
use crate::protocol::launch::{Launch, WAKE};
use core::sync::atomic::Ordering;
use emu_core::mem::{FRAME_SIZE, Memory};

/// Adds the fingerprint of some private pages of RAM of VM `launch.active[index]` to its entry in
/// `digests`: those of page `part` and each `parts`th page after it.
///
/// # Safety
/// As [`super::step`]; other calls for the same entry and another part may run at the same time.
pub unsafe fn digest(launch: &Launch, index: u32, part: u32, parts: u32) {
    // SAFETY: as `step`; `digests` has room for `count`. The table is only read.
    unsafe {
        let id = (*launch.active.ptr().add(index as usize)).vm & !WAKE;
        let arena = Arena::<OnGpu>::new(launch.arena.ptr(), launch.frames, launch.shared);
        let memory =
            FrameMemory::new(arena, row(launch, id), DeviceFrames(&(*launch.control.ptr()).free));
        let sum = private_pages(&memory, part, parts);
        (*launch.digests.ptr().add(index as usize)).fetch_add(sum, Ordering::Relaxed);
    }
}

/// Returns a fingerprint of a memory's private pages, of their numbers and their content. It covers
/// page `part` and each `parts`th page after it. The sum over all parts is the fingerprint of the
/// whole memory.
pub fn private_pages(memory: &impl Memory, part: u32, parts: u32) -> u64 {
    const PRIME: u64 = 0x0100_0000_01b3;
    let mut sum = 0u64;
    for page in (part..memory.pages()).step_by(parts as usize) {
        let Some(frame) = memory.frame(page).filter(|&f| memory.is_private(f)) else { continue };
        let mut hash = 0xcbf2_9ce4_8422_2325 ^ u64::from(page);
        for at in (0..FRAME_SIZE).step_by(4) {
            hash = (hash ^ u64::from(memory.load32(frame, at))).wrapping_mul(PRIME);
            hash ^= hash >> 29;
        }
        sum = sum.wrapping_add(hash);
    }
    sum
}

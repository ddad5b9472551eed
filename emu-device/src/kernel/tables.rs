//! A launch's memory: where VMs take free frames and pages, the rows of their frame tables, their
//! decoded instructions, and their disks.

use crate::memory::{
    Arena, CachedImage, CodeCache, CodePool, FrameDisk, FrameSource, LINE_SIZE, OnGpu,
};
use crate::protocol::launch::{CODE_SLOTS, FreeList, Launch};
use core::sync::atomic::Ordering;

/// The arena's free frames, from which all VMs of a launch take.
pub struct DeviceFrames<'a>(pub &'a FreeList);

impl FrameSource for DeviceFrames<'_> {
    fn take(&mut self) -> Option<u32> {
        // SAFETY: the launch's lists are as they must be.
        unsafe { take(self.0) }
    }
}

/// The free pages of decoded instructions, from which all VMs of a launch take.
pub struct DevicePages<'a>(&'a FreeList);

impl CodePool for DevicePages<'_> {
    fn take(&mut self) -> Option<u32> {
        // SAFETY: as above.
        unsafe { take(self.0) }
    }
}

/// Takes one out of a list; `None` when none is left.
///
/// # Safety
/// The first `top` entries of `returned` exist.
unsafe fn take(free: &FreeList) -> Option<u32> {
    if free.top.load(Ordering::Relaxed) as i32 > 0 {
        let top = free.top.fetch_sub(1, Ordering::Relaxed) as i32;
        if top > 0 {
            // SAFETY: entries below the first `top` exist, and this one is now ours alone.
            return Some(unsafe { *free.returned.ptr().add(top as usize - 1) });
        }
        // An empty stack stays empty, because a launch that takes some never returns any.
        free.top.fetch_add(1, Ordering::Relaxed);
    }
    if free.next.load(Ordering::Relaxed) >= free.limit {
        return None;
    }
    let next = free.next.fetch_add(1, Ordering::Relaxed);
    (next < free.limit).then_some(next)
}

/// Puts one back into a list.
///
/// # Safety
/// `returned` has room for it. Nobody takes any at the same time.
pub unsafe fn give(free: &FreeList, one: u32) {
    let at = free.top.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the caller's; nobody else has this entry.
    unsafe { *free.returned.ptr().add(at as usize) = one }
}

/// A VM's decoded instructions of private frames on a device.
pub type DeviceCode = CodeCache<'static, DevicePages<'static>, CODE_SLOTS>;

/// Returns the decoded instructions of VM `id`.
///
/// # Safety
/// As [`super::step`], and nobody else has them.
pub unsafe fn code(launch: &Launch, id: u32) -> DeviceCode {
    // SAFETY: the launch has slots for every VM, which `start` has given a page of their own and
    // which only the kernels change.
    unsafe {
        let slots = &mut *launch.code_slots.ptr().add(id as usize);
        let pages = core::slice::from_raw_parts(launch.code.ptr(), launch.code_pages as usize);
        CodeCache::new(slots, pages, DevicePages(&(*launch.control.ptr()).free_code))
    }
}

/// Returns the index of the page of decoded instructions that VM `id` always has.
pub fn own_code(launch: &Launch, id: u32) -> u32 {
    launch.shared_code + id
}

/// Returns the row of VM `id` in the frame tables: its pages of RAM.
///
/// # Safety
/// As [`super::step`], and nobody else has the row.
pub unsafe fn row(launch: &Launch, id: u32) -> &'static mut [u32] {
    let width = launch.pages as usize;
    // SAFETY: the launch has a row of this width for every VM.
    unsafe { core::slice::from_raw_parts_mut(launch.tables.ptr().add(id as usize * width), width) }
}

/// The disk of a VM on a device.
pub type DeviceDisk = FrameDisk<'static, DeviceFrames<'static>, CachedImage<'static>, OnGpu>;

/// Returns the disk of VM `id`.
///
/// # Safety
/// As [`super::step`], and nobody else has the VM's disk.
pub unsafe fn disk(launch: &Launch, id: u32) -> DeviceDisk {
    // SAFETY: the launch has as many lines in the cache, and for every VM what it has of its disk,
    // which only the kernels change. Nobody writes the cache while a launch is under way.
    unsafe {
        let arena = Arena::<OnGpu>::new(launch.arena.ptr(), launch.frames, launch.shared);
        let own = &mut *launch.disks.ptr().add(id as usize);
        let lines = launch.cache_lines as usize;
        let image = if lines == 0 {
            CachedImage::new(own.image, &[], &[])
        } else {
            let bytes = lines * LINE_SIZE as usize;
            CachedImage::new(
                own.image,
                core::slice::from_raw_parts(launch.cache.ptr(), lines),
                core::slice::from_raw_parts(launch.cache_bytes.ptr(), bytes),
            )
        };
        let free = &(*launch.control.ptr()).free;
        FrameDisk::new(arena, own, DeviceFrames(free), image)
    }
}

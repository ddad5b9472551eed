//! A launch's frames: where VMs take free ones, the rows of their frame tables, and their disks.

use crate::memory::{Arena, CachedImage, FrameDisk, FrameSource, LINE_SIZE, OnGpu};
use crate::protocol::launch::{FreeFrames, Launch};
use core::sync::atomic::Ordering;

/// The arena's free frames, from which all VMs of a launch take.
pub struct DeviceFrames<'a>(pub &'a FreeFrames);

impl FrameSource for DeviceFrames<'_> {
    fn take(&mut self) -> Option<u32> {
        let free = self.0;
        if free.top.load(Ordering::Relaxed) as i32 > 0 {
            let top = free.top.fetch_sub(1, Ordering::Relaxed) as i32;
            if top > 0 {
                // SAFETY: entries below the first `top` exist, and this one is now ours alone.
                return Some(unsafe { *free.returned.ptr().add(top as usize - 1) });
            }
            // An empty stack stays empty, because a launch that takes frames never returns any.
            free.top.fetch_add(1, Ordering::Relaxed);
        }
        if free.next.load(Ordering::Relaxed) >= free.limit {
            return None;
        }
        let next = free.next.fetch_add(1, Ordering::Relaxed);
        (next < free.limit).then_some(next)
    }
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

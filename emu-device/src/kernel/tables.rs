//! A launch's frames: where VMs take free ones, and the rows of their frame tables.

use crate::memory::FrameSource;
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

/// Returns the row of VM `id` in the frame tables: its pages of RAM, and those of its disk.
///
/// # Safety
/// As [`super::step`], and nobody else has the row.
pub unsafe fn row(launch: &Launch, id: u32) -> (&'static mut [u32], &'static mut [u32]) {
    let width = launch.pages as usize + launch.disk_pages as usize;
    // SAFETY: the launch has a row of this width for every VM.
    let row = unsafe {
        core::slice::from_raw_parts_mut(launch.tables.ptr().add(id as usize * width), width)
    };
    row.split_at_mut_checked(launch.pages as usize).unwrap_or_default()
}

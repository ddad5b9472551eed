//! Device memory of a fleet: how much it takes, how many frames the arena gets, and whether the
//! fleet fits.

use emu_core::abi::Vm;
use emu_core::mem::FRAME_SIZE;
use emu_device::memory::{
    CodeCache, CodePage, FrameLayout, LINE_PAGES, LINE_SIZE, OnGpu, OwnPages, WAYS,
};
use emu_device::protocol::launch::CODE_SLOTS;
use emu_device::protocol::port::PortState;

use crate::backend::BackendError;
use crate::units::Size;

/// Private frames that a VM is expected to need, with some to spare. This project's guest has 436
/// when it is ready, 477 with a network, and 543 after 160 requests, eight at a time (measured with
/// `pxvm boot --until ready --json` and `/metrics`; the same on all backends).
const TYPICAL_FRAMES: u64 = 600;

/// What the memory of a fleet depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Number of VMs.
    pub count: u32,
    /// Number of frames of the base image.
    pub shared: u32,
    /// Number of pages of RAM of one VM.
    pub pages: u32,
    /// The most private frames that all VMs together can have.
    pub private: u64,
}

/// Returns the bytes that a VM needs besides its frames: state, port, page table of frames, an
/// entry in each list, and the decoded instructions of its private frames, which are most of it.
pub fn fixed(pages: u32) -> u64 {
    const LISTS: u64 = 32;
    let state = size_of::<Vm>()
        + size_of::<PortState>()
        + size_of::<OwnPages>()
        + size_of::<CodeCache<CODE_SLOTS>>();
    state as u64 + 4 * u64::from(pages) + LISTS
}

/// The part of the device's memory that the cache of disk images may take.
const CACHE_SHARE: u64 = 16;

/// Returns the number of lines in the cache of disk images of these sizes, in pages, on a device with
/// `available` bytes: enough for all of them, if that is not too much.
pub fn cache_lines(pages: impl Iterator<Item = u64>, available: u64) -> u32 {
    let lines: u64 = pages.map(|pages| pages.div_ceil(LINE_PAGES.into())).sum();
    if lines == 0 {
        return 0;
    }
    let set = u64::from(WAYS) * u64::from(LINE_SIZE);
    let room = (available / CACHE_SHARE / set).max(1);
    let sets = lines.div_ceil(WAYS.into()).next_power_of_two().min(1 << room.ilog2());
    // Lines have numbers of 32 bits.
    (sets as u32).min(1 << 28) * WAYS
}

/// Bytes that an arena needs besides its frames: for whole units, and for their alignment.
const SLACK: u64 = 2 * OnGpu::ALIGN as u64;

/// Returns the size of an arena of `frames` frames, in bytes.
pub fn arena(frames: u32) -> u64 {
    u64::from(frames) * u64::from(FRAME_SIZE) + SLACK
}

/// Returns the number of frames in the arena, shared ones included, for a fleet on a device with
/// `available` bytes.
///
/// A VM that needs more than its share finds the arena empty only when all of it is in use.
pub fn frames(shape: &Shape, available: u64) -> Result<u32, BackendError> {
    let frame = u64::from(FRAME_SIZE);
    // Each frame has an entry in the stack of returned ones.
    let private = frame + 4;
    let fixed = fixed(shape.pages);
    let base = arena(shape.shared) + u64::from(shape.shared) * size_of::<CodePage>() as u64;
    let pages = u64::from(shape.pages);
    let each = fixed + TYPICAL_FRAMES.min(pages) * private;
    let left = available.saturating_sub(base);
    let fits = left / each;
    if u64::from(shape.count) > fits {
        let available = Size(available);
        let (count, each) = (shape.count, Size(each));
        return Err(BackendError::TooMany { place: "the GPU", count, available, each, fits });
    }
    let room = (left - u64::from(shape.count) * fixed) / private;
    // The kernel counts on room above the last frame's number.
    let private = room.min(shape.private);
    Ok((u64::from(shape.shared) + private).min(u64::from(OnGpu::FRAMES)) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = shape_of(1);

    const fn shape_of(count: u32) -> Shape {
        Shape { count, shared: 1100, pages: 6144, private: 6144 * count as u64 }
    }

    #[test]
    fn a_small_fleet_has_a_frame_for_every_page() {
        let shape = shape_of(10);
        assert_eq!(frames(&shape, 1 << 34).unwrap(), 1100 + 10 * 6144);
    }

    #[test]
    fn a_large_fleet_shares_all_there_is() {
        let shape = shape_of(32_768);
        let available = 139 << 30;
        let n = u64::from(frames(&shape, available).unwrap());
        assert!(n > 32_768 * TYPICAL_FRAMES);
        let used = arena(n as u32) + n * 4 + 32_768 * fixed(SHAPE.pages);
        assert!(used <= available && available - used < 64 << 20);
    }

    #[test]
    fn forty_thousand_fit_on_a_large_card_and_the_refusal_says_how_many_would() {
        let shape = shape_of(40_000);
        assert!(frames(&shape, 139 << 30).is_ok());
        let error = frames(&shape, 1 << 30).unwrap_err();
        let BackendError::TooMany { fits, .. } = error else { panic!("{error}") };
        assert!(frames(&shape_of(fits as u32), 1 << 30).is_ok());
        assert!(frames(&shape_of(fits as u32 + 1), 1 << 30).is_err());
    }

    #[test]
    fn disk_images_get_what_they_need_or_their_share() {
        let lines = |pages: &[u64], available| cache_lines(pages.iter().copied(), available);
        assert_eq!(lines(&[], 1 << 34), 0);
        assert_eq!(lines(&[1], 1 << 34), WAYS);
        assert_eq!(lines(&[16 * 100, 16 * 29], 1 << 34), 256);
        // 20 GB on a card of 64 GiB and on one that has hardly any memory.
        assert_eq!(lines(&[5 << 20], 64 << 30), 65_536);
        assert_eq!(lines(&[5 << 20], 1 << 20), WAYS);
    }

    #[test]
    fn a_vm_beside_its_frames_is_small() {
        assert!(fixed(6144) < 300 << 10);
    }
}

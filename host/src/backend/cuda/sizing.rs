//! Device memory of a fleet: how much it takes, how many frames the arena gets, and whether the
//! fleet fits.

use emu_core::abi::Vm;
use emu_core::mem::FRAME_SIZE;
use emu_device::memory::{
    CodePage, CodeSlots, FrameLayout, LINE_PAGES, LINE_SIZE, OnGpu, OwnPages, WAYS,
};
use emu_device::protocol::launch::CODE_SLOTS;
use emu_device::protocol::port::PortState;

use crate::backend::BackendError;
use crate::machine::Expected;
use crate::machine::expected::size_of_frames;
use crate::units::Size;

/// The part of the memory beyond what VMs are expected to need that the pool of decoded pages may
/// take. With that, fleets of up to half the VMs that fit have a page for every slot. A guest that
/// executes its programs in place, as this project's does, needs none; one with its programs in RAM
/// fills its slots while it boots.
const CODE_SHARE: u64 = 8;

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
    /// What a VM is expected to use.
    pub expected: Expected,
}

/// Returns the bytes that a VM needs besides its frames: state, port, page table of frames, an
/// entry in each list, and the page of decoded instructions that it always has.
pub fn fixed(pages: u32) -> u64 {
    const LISTS: u64 = 32;
    let state = size_of::<Vm>()
        + size_of::<PortState>()
        + size_of::<OwnPages>()
        + size_of::<CodeSlots<CODE_SLOTS>>()
        + size_of::<CodePage>();
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

/// How many of the things that VMs take as they need them there are in device memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Frames in the arena, shared ones included.
    pub frames: u32,
    /// Pages of decoded instructions: those of the shared frames, one for each VM, and the pool.
    pub code: u32,
}

/// Returns the sizes for a fleet on a device with `available` bytes.
///
/// A VM that needs more than its share finds the arena empty only when all of it is in use. When the
/// pool of decoded pages is empty, VMs go on with those they have, slower. So most goes to frames.
pub fn sizes(shape: &Shape, available: u64) -> Result<Sizes, BackendError> {
    // Each frame and each page of the pool has an entry in the stack of returned ones.
    let frame = u64::from(FRAME_SIZE) + 4;
    let code = size_of::<CodePage>() as u64 + 4;
    let count = u64::from(shape.count);
    let base = arena(shape.shared) + u64::from(shape.shared) * size_of::<CodePage>() as u64;
    // A VM's disk can take frames, too.
    let most = shape.private.div_ceil(count.max(1));
    let each = fixed(shape.pages) + u64::from(shape.expected.frames).min(most) * frame;
    let left = available.saturating_sub(base);
    let fits = left / each;
    if count > fits {
        let available = Size(available);
        let (place, count, each) = ("the GPU", shape.count, Size(each));
        let expected = Some(shape.expected);
        return Err(BackendError::TooMany { place, count, available, each, fits, expected });
    }
    let slots = count * (CODE_SLOTS as u64 - 1);
    let pool = slots.min((left - count * each) / CODE_SHARE / code);
    let room = (left - count * fixed(shape.pages) - pool * code) / frame;
    // The kernel counts on room above the last frame's number.
    let most = u64::from(OnGpu::FRAMES) - u64::from(shape.shared);
    let private = room.min(shape.private).min(most);
    Ok(Sizes {
        frames: shape.shared + private as u32,
        code: (u64::from(shape.shared) + count + pool) as u32,
    })
}

/// Says so where VMs would not all find memory if they used as much as in earlier runs.
pub fn shortage(shape: &Shape, sizes: Sizes) -> Option<String> {
    let most = shape.expected.most?;
    let private = sizes.frames.saturating_sub(shape.shared);
    let fits = private / most.max(1);
    (shape.count > fits).then(|| {
        format!(
            "machines wrote up to {} each in earlier runs; if all do so again there is room for \
             {fits} of {}, and those that find none left end",
            size_of_frames(most),
            shape.count
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Source;

    const SHAPE: Shape = shape_of(1);
    const FRAMES: u32 = 480;

    const fn shape_of(count: u32) -> Shape {
        let expected = Expected { frames: FRAMES, most: None, source: Source::EarlierRuns };
        Shape { count, shared: 1100, pages: 6144, private: 6144 * count as u64, expected }
    }

    #[test]
    fn a_small_fleet_has_a_frame_for_every_page_and_a_decoded_page_for_every_slot() {
        let sizes = sizes(&shape_of(10), 1 << 34).unwrap();
        assert_eq!(sizes.frames, 1100 + 10 * 6144);
        assert_eq!(sizes.code, 1100 + 10 * CODE_SLOTS as u32);
    }

    #[test]
    fn a_large_fleet_shares_all_there_is() {
        let available = 139 << 30;
        for (count, slots) in [(32_768, CODE_SLOTS as u64), (65_536, 4)] {
            let Sizes { frames, code } = sizes(&shape_of(count), available).unwrap();
            let (count, frames, code) = (u64::from(count), u64::from(frames), u64::from(code));
            assert!(frames > count * u64::from(FRAMES));
            assert!(code >= 1100 + count * slots && code <= 1100 + count * CODE_SLOTS as u64);
            let pages = (code - count) * size_of::<CodePage>() as u64;
            let lists = (frames - 1100 + code - count - 1100) * 4;
            let used = arena(frames as u32) + pages + lists + count * fixed(SHAPE.pages);
            assert!(used <= available && available - used < 64 << 20);
        }
    }

    #[test]
    fn a_fleet_that_fits_exactly_has_the_frames_it_is_expected_to_need() {
        let error = sizes(&shape_of(40_000), 1 << 30).unwrap_err();
        let BackendError::TooMany { fits, .. } = error else { panic!("{error}") };
        let most = sizes(&shape_of(fits as u32), 1 << 30).unwrap();
        assert!(u64::from(most.frames) >= 1100 + fits * u64::from(FRAMES));
        assert!(u64::from(most.code) >= 1100 + fits);
        assert!(sizes(&shape_of(fits as u32 + 1), 1 << 30).is_err());
    }

    #[test]
    fn what_a_vm_is_expected_to_use_decides_how_many_fit_and_the_refusal_says_so() {
        let fits = |expected| {
            let error = sizes(&Shape { expected, ..shape_of(200_000) }, 139 << 30).unwrap_err();
            let BackendError::TooMany { fits, .. } = error else { panic!("{error}") };
            (fits, error.to_string())
        };
        let (typical, guessed) = fits(Expected::default());
        assert!(typical > 65_536, "{typical}");
        let (each, basis) = guessed.split_once(" (").unwrap();
        assert!(each.ends_with(" at 1.9 MiB each"), "{guessed}");
        assert!(basis.starts_with("1.9 MiB that it writes itself, as is typical of "), "{guessed}");
        assert!(basis.ends_with("say with --memory-per-vm what each writes"), "{guessed}");
        let (more, given) = fits(Expected::given(Size::mib(1)));
        assert!(more > 130_000, "{more}");
        assert!(
            given.ends_with("(1 MiB that it writes itself, by --memory-per-vm); start fewer"),
            "{given}"
        );
        let (fewer, _) = fits(Expected { frames: 960, ..shape_of(1).expected });
        assert!(fewer < typical / 2 + 1000, "{fewer}");
        // No VM can write more than it has.
        let (least, _) = fits(Expected::given(Size(u64::MAX)));
        assert_eq!(least, fits(Expected::given(Size::mib(24))).0);
    }

    #[test]
    fn vms_that_may_find_no_memory_are_told_of_before() {
        let told = |most| {
            let expected = Expected { most, ..shape_of(1).expected };
            let shape = Shape { expected, ..shape_of(65_536) };
            shortage(&shape, sizes(&shape, 139 << 30).unwrap())
        };
        assert_eq!(told(None).or(told(Some(500))), None);
        let text = told(Some(702)).unwrap();
        assert!(text.starts_with("machines wrote up to 2.7 MiB each in earlier runs; "), "{text}");
        assert!(text.contains(" of 65536, "), "{text}");
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
        assert!(fixed(6144) <= 40 << 10);
    }
}

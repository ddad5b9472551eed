//! Disk images in device memory: the host's side of the cache ([`emu_device::memory::CachedImage`]).
//!
//! VMs read from it while a launch is under way; between launches the host loads what they wait for.
//! A cache of any size makes every VM go on: what is loaded for a VM stays until it has run, and a
//! VM needs one page at a time.

use emu_core::disk::PAGE_SIZE;
use emu_device::memory::{LINE_PAGES, LINE_SIZE, Line, WAYS};
use emu_device::protocol::launch::{At, Launch};
use zerocopy::IntoBytes;

use super::error::CudaError;
use super::gpu::{Address, Gpu};
use crate::backend::images::Images;

/// Lines that are loaded ahead of a VM that reads on: 512 KiB.
const READ_AHEAD: u32 = 8;

/// The cache of disk images.
pub struct DiskCache {
    images: Images,
    /// What is in each line.
    lines: Vec<Line>,
    /// The round in which each line was loaded, or found there by somebody who waited for it.
    used: Vec<u64>,
    /// Lines with pages that cannot be read.
    bad: Vec<usize>,
    round: u64,
    lines_at: Address,
    bytes_at: Address,
}

impl DiskCache {
    /// Allocates a cache of `lines` lines: whole sets, a power of two of them, or nothing.
    pub fn new(gpu: &mut dyn Gpu, images: Images, lines: u32) -> Result<Self, CudaError> {
        debug_assert!(lines.is_multiple_of(WAYS) && (lines == 0 || lines.is_power_of_two()));
        let empty = vec![Line::default(); lines as usize];
        let lines_at = gpu.alloc(size_of_val(&empty[..]) as u64)?;
        let bytes_at = gpu.alloc(u64::from(lines) * u64::from(LINE_SIZE))?;
        gpu.upload(lines_at, empty.as_bytes())?;
        let (used, bad, round) = (vec![0; empty.len()], Vec::new(), 0);
        Ok(Self { images, lines: empty, used, bad, round, lines_at, bytes_at })
    }

    /// Returns launch arguments that lead to the cache.
    pub fn complete(&self, launch: Launch) -> Launch {
        Launch {
            cache_lines: self.lines.len() as u32,
            cache: At::new(self.lines_at),
            cache_bytes: At::new(self.bytes_at),
            ..launch
        }
    }

    /// Begins to load for VMs that wait. All that waited in earlier rounds have run since.
    pub fn begin(&mut self, gpu: &mut dyn Gpu) -> Result<(), CudaError> {
        self.round += 1;
        // Who waited for them has had the error; the next one tries again.
        for at in std::mem::take(&mut self.bad) {
            self.used[at] = 0;
            self.set(gpu, at, Line::default())?;
        }
        Ok(())
    }

    /// Loads a page that a VM waits for. Returns `false` if there is no room for it in this round.
    pub fn load(&mut self, gpu: &mut dyn Gpu, image: u32, page: u32) -> Result<bool, CudaError> {
        let number = page / LINE_PAGES;
        let reads_on = number.checked_sub(1).is_some_and(|n| self.find(image, n).is_some());
        if !self.load_line(gpu, image, number)? {
            return Ok(false);
        }
        if reads_on {
            let end = self.images.pages().nth(image as usize).unwrap_or_default();
            let ahead = (number + 1..).take(READ_AHEAD as usize);
            for next in ahead.take_while(|&n| u64::from(n) * u64::from(LINE_PAGES) < end) {
                if self.find(image, next).is_none() && !self.load_line(gpu, image, next)? {
                    break;
                }
            }
        }
        Ok(true)
    }

    /// Returns where a line is.
    fn find(&self, image: u32, number: u32) -> Option<usize> {
        let wanted = Line::new(image, number);
        self.places(&wanted).find(|&at| self.lines[at].is(&wanted))
    }

    /// Returns where a line can be.
    fn places(&self, line: &Line) -> std::ops::Range<usize> {
        let first = line.first_place(self.lines.len() as u32) as usize;
        first..(first + WAYS as usize).min(self.lines.len())
    }

    /// Loads a line unless it is there. Returns `false` if each of its places was used in this round.
    fn load_line(&mut self, gpu: &mut dyn Gpu, image: u32, number: u32) -> Result<bool, CudaError> {
        if let Some(at) = self.find(image, number) {
            self.used[at] = self.round;
            return Ok(true);
        }
        let mut line = Line::new(image, number);
        let oldest = self.places(&line).min_by_key(|&at| self.used[at]);
        let Some(at) = oldest.filter(|&at| self.used[at] < self.round) else { return Ok(false) };
        let mut bytes = vec![0; LINE_SIZE as usize];
        line.bad = self.read(image, number, &mut bytes);
        gpu.upload(self.bytes_at + at as u64 * u64::from(LINE_SIZE), &bytes)?;
        self.used[at] = self.round;
        if line.bad != 0 {
            self.bad.push(at);
        }
        self.set(gpu, at, line)?;
        Ok(true)
    }

    fn set(&mut self, gpu: &mut dyn Gpu, at: usize, line: Line) -> Result<(), CudaError> {
        self.lines[at] = line;
        gpu.upload(self.lines_at + (at * size_of::<Line>()) as u64, line.as_bytes())
    }

    /// Reads a line of an image. Returns a bit map of the pages that cannot be read.
    fn read(&self, image: u32, number: u32, bytes: &mut [u8]) -> u32 {
        let start = u64::from(number) * u64::from(LINE_SIZE);
        if self.images.read(image, start, bytes).is_ok() {
            return 0;
        }
        let mut bad = 0;
        let starts = (start..).step_by(PAGE_SIZE as usize);
        for (i, (at, page)) in starts.zip(bytes.chunks_exact_mut(PAGE_SIZE as usize)).enumerate() {
            if self.images.read(image, at, page).is_err() {
                bad |= 1 << i;
            }
        }
        bad
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::backend::cuda::emulated::Emulated;
    use crate::backend::images::testing::Pattern;
    use crate::image::disk::{Access, Disks};
    use crate::units::Size;

    fn cache(image: &Arc<Pattern>, gpu: &mut Emulated, lines: u32) -> DiskCache {
        let disks = Disks::one(Arc::clone(image) as _, Access::CopyOnWrite);
        DiskCache::new(gpu, Images::new(Some(&disks)), lines).unwrap()
    }

    #[test]
    fn who_reads_on_finds_the_next_lines_loaded() {
        let (image, mut gpu) = (Pattern::new(1 << 30), Emulated::new(Size::mib(64)));
        let mut cache = cache(&image, &mut gpu, 16 * WAYS);
        let reads = || image.reads.load(Ordering::Relaxed);
        cache.begin(&mut gpu).unwrap();
        assert!(cache.load(&mut gpu, 0, 17).unwrap());
        assert_eq!(reads(), 1);
        assert!(cache.load(&mut gpu, 0, 31).unwrap());
        assert_eq!(reads(), 1);
        assert!(cache.load(&mut gpu, 0, 32).unwrap());
        assert_eq!(reads(), 2 + READ_AHEAD);
        // The last line of the disk is the last.
        let last = (1 << 18) - 1;
        assert!(cache.load(&mut gpu, 0, last - 16).unwrap());
        assert!(cache.load(&mut gpu, 0, last).unwrap());
        assert_eq!(reads(), 4 + READ_AHEAD);
    }

    #[test]
    fn what_was_loaded_in_this_round_stays_and_the_oldest_goes() {
        let (image, mut gpu) = (Pattern::new(1 << 30), Emulated::new(Size::mib(64)));
        let mut cache = cache(&image, &mut gpu, WAYS);
        cache.begin(&mut gpu).unwrap();
        let mut load = |cache: &mut DiskCache, line: u32| {
            cache.load(&mut gpu, 0, line * 2 * LINE_PAGES).unwrap()
        };
        for line in 0..WAYS {
            assert!(load(&mut cache, line));
        }
        assert!(!load(&mut cache, WAYS));
        assert!(load(&mut cache, 3));
        cache.begin(&mut Emulated::new(Size::mib(1))).unwrap();
        assert!(load(&mut cache, 0));
        assert!(load(&mut cache, WAYS));
        assert!(cache.find(0, 0).is_some() && cache.find(0, 2).is_none());
    }

    #[test]
    fn a_page_that_cannot_be_read_is_tried_again_in_the_next_round() {
        let (image, mut gpu) = (Pattern::new(1 << 30), Emulated::new(Size::mib(64)));
        image.end.store(40 << 12, Ordering::Relaxed);
        let mut cache = cache(&image, &mut gpu, WAYS);
        cache.begin(&mut gpu).unwrap();
        assert!(cache.load(&mut gpu, 0, 32).unwrap());
        let at = cache.find(0, 2).unwrap();
        assert_eq!(cache.lines[at].bad, 0xff00);
        image.end.store(1 << 30, Ordering::Relaxed);
        cache.begin(&mut gpu).unwrap();
        assert!(cache.load(&mut gpu, 0, 32).unwrap());
        assert_eq!(cache.lines[cache.find(0, 2).unwrap()].bad, 0);
    }
}

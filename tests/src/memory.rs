//! The owner of an arena of frames, and the only unsafe code of this crate.
//!
//! Machines that share an [`Arena`](Frames) are a fleet: the same shared frames, private ones
//! from one pool.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;

use emu_core::dev::virtio::driver::MockDisk;
use emu_core::mem::FRAME_SIZE;
use emu_device::memory::{
    Arena, CodeCache, CodePage, CodeSlots, FrameMemory, FrameRam, FrameSource, NoPool,
};

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; FRAME_SIZE as usize]>);

fn empty_pages(count: u32) -> Vec<CodePage> {
    (0..count).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect()
}

/// An arena of frames with its free list and the decoded pages of its shared frames.
pub struct Frames {
    pages: Box<[Page]>,
    shared: u32,
    free: RefCell<Vec<u32>>,
    /// How many more private frames may be handed out.
    left: Cell<u32>,
    code: Vec<CodePage>,
}

impl Frames {
    /// An arena whose shared frames are a frame of zeros and `image`, and with `private` more.
    pub fn new(image: &[[u8; FRAME_SIZE as usize]], private: u32) -> Rc<Self> {
        let shared = image.len() as u32 + 1;
        let zero = [0; FRAME_SIZE as usize];
        let filled = std::iter::once(&zero).chain(image).copied();
        let empty = (0..private).map(|_| zero);
        Rc::new(Self {
            pages: filled.chain(empty).map(|p| Page(UnsafeCell::new(p))).collect(),
            shared,
            free: RefCell::new((shared..shared + private).rev().collect()),
            left: Cell::new(u32::MAX),
            code: empty_pages(shared),
        })
    }

    /// Allows `count` more private frames and then no more.
    pub fn limit(&self, count: u32) {
        self.left.set(count);
    }

    /// How many private frames are in use.
    pub fn private_in_use(&self) -> u32 {
        self.pages.len() as u32 - self.shared - self.free.borrow().len() as u32
    }

    /// The bytes of every shared frame, one after the other.
    pub fn shared_bytes(&self) -> Vec<u8> {
        let shared = self.pages.iter().take(self.shared as usize);
        // SAFETY: nobody writes shared frames once the arena is made (`FrameMemory`).
        shared.flat_map(|p| unsafe { *p.0.get() }).collect()
    }

    fn arena(&self) -> Arena {
        let base = self.pages.as_ptr().cast_mut().cast::<u8>();
        // SAFETY: `Page` is 4 KiB, aligned and in an `UnsafeCell`; the box lives as long as
        // `self`, which every `FrameMemory` made below borrows. Frame 0 is zero, and shared frames
        // are written in `new` alone.
        unsafe { Arena::new(base, self.pages.len() as u32, self.shared) }
    }
}

/// Hands out an arena's private frames.
pub struct Pool<'a>(&'a Frames);

impl FrameSource for Pool<'_> {
    fn take(&mut self) -> Option<u32> {
        let left = self.0.left.get().checked_sub(1)?;
        let frame = self.0.free.borrow_mut().pop()?;
        self.0.left.set(left);
        Some(frame)
    }
}

/// One VM's memory: its table over an arena, and its decoded instructions.
pub struct Space {
    frames: Rc<Frames>,
    table: Vec<u32>,
    rom: Vec<u32>,
    disk: MockDisk,
    code_slots: CodeSlots,
    code: Vec<CodePage>,
}

impl Space {
    /// Memory whose page `i` is the arena's shared frame `table[i]`.
    pub fn new(frames: &Rc<Frames>, table: Vec<u32>) -> Self {
        Self::with_rom(frames, table, Vec::new())
    }

    /// The same with a ROM.
    pub fn with_rom(frames: &Rc<Frames>, table: Vec<u32>, rom: Vec<u32>) -> Self {
        assert!(table.iter().all(|&f| f < frames.shared), "not a shared frame");
        let code_slots = CodeSlots::with_all_pages();
        let code = empty_pages(1 + code_slots.pages());
        let disk = MockDisk::default();
        Self { frames: Rc::clone(frames), table, rom, disk, code_slots, code }
    }

    /// Adds a disk with `image` in it.
    pub fn with_disk(mut self, image: &[u8]) -> Self {
        self.disk = MockDisk::new(image);
        self
    }

    /// The arena.
    pub fn frames(&self) -> &Rc<Frames> {
        &self.frames
    }

    /// Calls `f` with the memory and the disk.
    ///
    /// A VM that runs on it must not have run on another [`Space`], because it caches frames.
    pub fn with<R>(
        &mut self,
        f: impl FnOnce(&mut FrameRam<'_, Pool<'_>>, &mut MockDisk) -> R,
    ) -> R {
        let arena = self.frames.arena();
        // SAFETY: `table` has frames that `new` checked and frames from the pool, which gives each
        // to one table only.
        let memory = unsafe { FrameMemory::new(arena, &mut self.table, Pool(&self.frames)) };
        // SAFETY: the slots have all pages but the first, each once, and are used with these alone.
        let code = unsafe { CodeCache::new(&mut self.code_slots, &self.code, NoPool) };
        let mut ram = FrameRam::new(memory, &self.rom, &self.frames.code, code);
        f(&mut ram, &mut self.disk)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let shared = self.frames.shared;
        let private = self.table.iter().filter(|&&frame| frame >= shared);
        self.frames.free.borrow_mut().extend(private);
    }
}

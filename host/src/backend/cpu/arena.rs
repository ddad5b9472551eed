//! Guest memory of the CPU backend: an arena of frames (4 KiB of guest memory each), and the pool
//! of free ones. The only file of the host with unsafe code for guest memory.
//!
//! One reservation of address space holds the frames of the whole fleet; the host's kernel backs a
//! frame with memory when it is first touched. Frame numbers stay inside this file: a [`Guest`]
//! keeps its page tables and the state that caches their entries together, and its tables are only
//! changed by [`FrameMemory`] over the pool of their arena. That is what makes the unsafe calls
//! sound.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use emu_core::abi::{Exit, ExitCode, Vm};
use emu_core::clock::Now;
use emu_core::machine::Machine;
use emu_core::mem::{Dma, DmaError, FRAME_SIZE, Memory, NoFrame};
use emu_core::port::Port;
use emu_core::trace::Trace;
use emu_device::kernel::SLICE_PARTS;
use emu_device::memory::{
    Arena, CodeCache, CodePage, CodeSlots, FrameDisk, FrameMemory, FrameRam, FrameSource, NoPool,
    OwnPages,
};
use memmap2::{MmapMut, MmapOptions};

use super::disk::{FileImage, GuestDisk};
use crate::backend::BackendError;
use crate::backend::images::Images;
use crate::machine::{BaseImage, Staged};
use crate::sync::lock;
use crate::units::Size;

/// Number of frames that a thread takes from the pool at a time.
pub const MAGAZINE: usize = 64;

/// The arena: all frames of a fleet, the shared ones with their contents and a pool of private
/// ones.
pub struct HostArena {
    arena: Arena,
    pool: Mutex<Pool>,
    in_use: AtomicU32,
    /// Keeps the mapping alive that `arena` describes.
    _map: MmapMut,
    /// Decoded instructions of shared frames, all zero at first.
    code: CodeMemory,
    /// The frames of the ROM.
    rom: Vec<u32>,
    /// What VMs read of their disks until they have written it.
    images: Images,
}

/// Pool of free private frames.
struct Pool {
    /// Frames that were given back.
    free: Vec<u32>,
    /// First frame that was never handed out.
    fresh: u32,
    /// One past the last frame.
    end: u32,
}

/// What a thread needs to run guests: a few free frames, so that the pool's lock is rarely taken,
/// and the decoded instructions of private frames.
pub struct WorkerContext {
    magazine: RefCell<Vec<u32>>,
    code_slots: Box<CodeSlots>,
    code: CodeMemory,
    /// Number of the last session in this context.
    session: u64,
}

/// Source of session numbers, which start at 1.
static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// Allocates private frames for one VM.
pub struct Source<'a> {
    arena: &'a HostArena,
    magazine: &'a RefCell<Vec<u32>>,
}

/// Reserves address space: zeroed, page aligned, and backed with memory when it is touched.
fn reserve(bytes: u64) -> Result<MmapMut, BackendError> {
    MmapOptions::new()
        .len(bytes as usize)
        .no_reserve_swap()
        .map_anon()
        .map_err(|e| BackendError::Reserve(Size(bytes), e))
}

/// Pages of decoded instructions, all empty at first.
struct CodeMemory(MmapMut);

impl CodeMemory {
    fn new(pages: u32) -> Result<Self, BackendError> {
        Ok(Self(reserve(u64::from(pages) * size_of::<CodePage>() as u64)?))
    }

    fn pages(&self) -> &[CodePage] {
        const { assert!(align_of::<CodePage>() <= FRAME_SIZE as usize) };
        let pages = self.0.len() / size_of::<CodePage>();
        // SAFETY: the mapping is aligned, was all zero, has room for so many pages, is borrowed
        // with `self`, and is only ever seen as these atomic words.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), pages) }
    }
}

impl WorkerContext {
    /// Returns a worker context without frames.
    pub fn new() -> Result<Self, BackendError> {
        let code_slots = Box::new(CodeSlots::with_all_pages());
        // Page 0 is in no slot, and no memory is spent on it.
        let code = CodeMemory::new(1 + code_slots.pages())?;
        Ok(Self { magazine: RefCell::default(), code_slots, code, session: 0 })
    }

    fn parts(&mut self) -> (&RefCell<Vec<u32>>, CodeCache<'_>) {
        // SAFETY: the slots have all pages but the first, each once, and are used with this memory
        // alone. All pages were empty at first, when all slots were.
        let code = unsafe { CodeCache::new(&mut self.code_slots, self.code.pages(), NoPool) };
        (&self.magazine, code)
    }
}

impl HostArena {
    /// Reserves room for the frames of `base` and `private` more, for VMs with disks of `images`.
    pub fn new(base: &BaseImage, images: Images, private: u32) -> Result<Self, BackendError> {
        let shared = &base.frames[..];
        let first = (shared.len() / FRAME_SIZE as usize) as u32;
        let frames = first.saturating_add(private);
        let bytes = u64::from(frames) * u64::from(FRAME_SIZE);
        let mut map = reserve(bytes)?;
        let code = CodeMemory::new(first.max(1))?;
        map[..shared.len()].copy_from_slice(shared);
        assert!(first > 0 && map[..FRAME_SIZE as usize].iter().all(|&b| b == 0));
        // SAFETY: a mapping is page aligned, readable and writable for its whole length, and lives
        // as long as `self`, which every user borrows (`memory`). Frame 0 was checked just now.
        // Shared frames are written above only, before any `FrameMemory` exists.
        let arena = unsafe { Arena::new(map.as_mut_ptr(), frames, first) };
        let pool = Mutex::new(Pool { free: Vec::new(), fresh: first, end: frames });
        let rom = base.rom.clone();
        Ok(Self { arena, pool, in_use: AtomicU32::new(0), _map: map, code, rom, images })
    }

    /// Returns the memory that `table` describes.
    ///
    /// # Safety
    /// Every entry is a shared frame of this arena, or was put in by a `FrameMemory` of this
    /// arena and not given back since. State that caches frames comes from this table.
    unsafe fn memory<'a>(
        &'a self,
        table: &'a mut [u32],
        magazine: &'a RefCell<Vec<u32>>,
    ) -> FrameMemory<'a, Source<'a>> {
        // SAFETY: `Source` hands out frames of this arena that are in no other table: the pool
        // gives each out once until it comes back in `Guest::drop`. The rest is our own contract.
        unsafe { FrameMemory::new(self.arena, table, Source { arena: self, magazine }) }
    }

    /// Returns the disk of which a VM has `own`.
    ///
    /// # Safety
    /// `own` was made by [`OwnPages::new`] and changed by disks of this arena only.
    unsafe fn disk<'a>(
        &'a self,
        own: &'a mut OwnPages,
        magazine: &'a RefCell<Vec<u32>>,
    ) -> GuestDisk<'a, Source<'a>> {
        let image = FileImage { images: &self.images, image: own.image };
        if self.images.write_back() {
            return GuestDisk::WriteBack(image);
        }
        let source = Source { arena: self, magazine };
        // SAFETY: as `memory`, and our own contract.
        GuestDisk::Own(unsafe { FrameDisk::new(self.arena, own, source, image) })
    }

    /// Takes a VM's private frames back.
    ///
    /// # Safety
    /// As [`HostArena::memory`] and [`HostArena::disk`]; the VM uses none of them any more.
    unsafe fn release(&self, table: &mut Vec<u32>, disk: &mut OwnPages) {
        let shared = self.arena.shared();
        let mut pool = self.pool();
        let before = pool.free.len();
        pool.free.extend(table.drain(..).filter(|&f| f >= shared));
        // SAFETY: our own contract.
        unsafe { disk.release(self.arena, |frame| pool.free.push(frame)) };
        let released = pool.free.len() - before;
        self.in_use.fetch_sub(released as u32, Ordering::Relaxed);
    }

    /// Returns the disk images.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Returns the number of shared frames.
    pub fn shared(&self) -> u32 {
        self.arena.shared()
    }

    /// Returns the number of private frames in use.
    pub fn in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Pool> {
        lock(&self.pool)
    }
}

impl Pool {
    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let frame = self.fresh;
            (frame < self.end).then(|| {
                self.fresh += 1;
                frame
            })
        })
    }
}

impl FrameSource for Source<'_> {
    fn take(&mut self) -> Option<u32> {
        let mut magazine = self.magazine.borrow_mut();
        if magazine.is_empty() {
            let mut pool = self.arena.pool();
            magazine.extend(std::iter::from_fn(|| pool.take()).take(MAGAZINE));
        }
        let frame = magazine.pop()?;
        self.arena.in_use.fetch_add(1, Ordering::Relaxed);
        Some(frame)
    }
}

/// A VM and its memory. Dropping it gives its private frames back.
pub struct Guest {
    vm: Vm,
    ram: Vec<u32>,
    disk: OwnPages,
    arena: Arc<HostArena>,
    /// Number of the guest's last session.
    session: u64,
}

/// A guest on a worker context: it can run.
pub struct Session<'a> {
    vm: &'a mut Vm,
    ram: FrameRam<'a, Source<'a>>,
    disk: GuestDisk<'a, Source<'a>>,
}

impl Guest {
    /// Returns a guest with a staged VM over the base image, which must be the one that `arena` was
    /// made with.
    pub fn new(
        arena: &Arc<HostArena>,
        base: &BaseImage,
        staged: Staged,
        context: &WorkerContext,
    ) -> Result<Self, NoFrame> {
        let shared = arena.shared();
        let row = &base.rows[staged.row as usize];
        assert!(row.iter().all(|&f| f < shared), "another fleet's base");
        let mut vm = staged.vm;
        vm.platform.flush_tlbs(&mut vm.hart);
        // Staged pages are those of a VM that has written nothing.
        let (ram, disk) = (row.clone(), staged.disk);
        assert!(disk.frames() == 0, "a disk of another VM");
        let mut guest = Self { vm, ram, disk, arena: Arc::clone(arena), session: 0 };
        // SAFETY: all entries are shared frames, as asserted; the state caches none.
        let mut ram = unsafe { guest.arena.memory(&mut guest.ram, &context.magazine) };
        for (page, bytes) in staged.pages {
            let frame = ram.make_private(page)?;
            ram.write_chunks(frame, 0, FRAME_SIZE, |at, chunk| {
                chunk.copy_from_slice(&bytes[at as usize..][..chunk.len()]);
            });
        }
        Ok(guest)
    }

    /// Returns the VM's state.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Returns the number of the guest's private frames.
    pub fn private_frames(&self) -> u32 {
        let shared = self.arena.shared();
        self.ram.iter().filter(|&&frame| frame >= shared).count() as u32 + self.disk.frames()
    }

    /// Binds the guest to a worker context. Worth it for more than a few thousand instructions
    /// only.
    pub fn session<'a>(&'a mut self, context: &'a mut WorkerContext) -> Session<'a> {
        // A context's cache of decoded instructions is still valid for the guest that ran in it
        // last, if that guest has run nowhere else since.
        let keeps = self.session != 0 && self.session == context.session;
        self.session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        context.session = self.session;
        let (magazine, code) = context.parts();
        // SAFETY: the table started with shared frames of this arena and the disk with none, and both
        // were changed only by a memory and a disk like these. `self.vm` has only ever run with them.
        let (ram, disk) = unsafe {
            (self.arena.memory(&mut self.ram, magazine), self.arena.disk(&mut self.disk, magazine))
        };
        let make = if keeps { FrameRam::keep } else { FrameRam::new };
        let ram = make(ram, &self.arena.rom, self.arena.code.pages(), code);
        Session { vm: &mut self.vm, ram, disk }
    }
}

impl Session<'_> {
    /// Returns the VM's state.
    pub fn vm(&self) -> &Vm {
        self.vm
    }

    /// Runs a slice; see [`Machine::run_traced`].
    pub fn run<P: Port, T: Trace>(
        &mut self,
        port: &mut P,
        budget: u32,
        now: Now,
        trace: &mut T,
    ) -> Exit {
        let Self { vm, ram, disk } = self;
        Machine::new(vm, ram, disk, port).run_traced(budget, now, trace)
    }

    /// Runs to the next multiple of `slice` instructions, a power of two, as the GPU's entry
    /// point does, under the `instret` clock.
    pub fn slice<P: Port, T: Trace>(&mut self, port: &mut P, slice: u32, trace: &mut T) -> Exit {
        let mut exit = Exit { code: ExitCode::Budget, arg: 0 };
        for _ in 0..SLICE_PARTS {
            let over = self.vm.platform.clock.retired as u32 & (slice - 1);
            exit = self.run(port, slice - over, Now::Instret, trace);
            let aligned = self.vm.platform.clock.retired as u32 & (slice - 1) == 0;
            if aligned || exit.code != ExitCode::Budget {
                break;
            }
        }
        exit
    }

    /// Returns a fingerprint of the guest's private pages of RAM.
    pub fn private_pages(&self) -> u64 {
        emu_device::kernel::private_pages(&self.ram, 0, 1)
    }

    /// Reads or writes RAM by guest-physical address.
    pub fn with_ram<R>(
        &mut self,
        f: impl FnOnce(&mut Dma<'_, FrameRam<'_, Source<'_>>>) -> Result<R, DmaError>,
    ) -> Result<R, DmaError> {
        let mut dma = Dma::new(&mut self.ram, self.vm.platform.kind.map().ram_base);
        let result = f(&mut dma);
        if dma.replaced() {
            self.vm.platform.flush_tlbs(&mut self.vm.hart);
        }
        result
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.arena.images.end(self.disk.image);
        // SAFETY: as in `session`. The state may cache frames, and is dropped together with them.
        unsafe { self.arena.release(&mut self.ram, &mut self.disk) };
    }
}

#[cfg(test)]
mod tests {
    use emu_core::layout::MachineKind;
    use emu_core::trace::NoTrace;

    use super::*;

    const BASE: u32 = emu_core::layout::VIRT.ram_base;

    fn base() -> BaseImage {
        let mut frames = vec![0; 2 * FRAME_SIZE as usize];
        frames[FRAME_SIZE as usize] = 7;
        BaseImage { frames, rows: vec![vec![1, 0, 1]], rom: Vec::new() }
    }

    fn guest(arena: &Arc<HostArena>, pages: &[u32]) -> Result<Guest, NoFrame> {
        let own = |&page: &u32| (page, Box::new([page as u8 + 1; FRAME_SIZE as usize]));
        let staged = Staged {
            row: 0,
            vm: Vm::new(MachineKind::Virt),
            disk: OwnPages::default(),
            pages: pages.iter().map(own).collect(),
        };
        Guest::new(arena, &base(), staged, &WorkerContext::new().unwrap())
    }

    fn arena(private: u32) -> Arc<HostArena> {
        Arc::new(HostArena::new(&base(), Images::default(), private).unwrap())
    }

    #[test]
    fn a_guest_has_shared_pages_and_its_own() {
        let mut guest = guest(&arena(1), &[2]).unwrap();
        let mut context = WorkerContext::new().unwrap();
        let mut session = guest.session(&mut context);
        let mut word =
            |page: u32| session.with_ram(|ram| ram.read_u32(u64::from(BASE + page * FRAME_SIZE)));
        assert_eq!(word(0), Ok(7));
        assert_eq!(word(1), Ok(0));
        assert_eq!(word(2), Ok(0x0303_0303));
        assert_eq!(word(3), Err(DmaError::OutOfRange));
    }

    #[test]
    fn frames_come_back_when_a_guest_goes_and_show_nothing_of_it() {
        let arena = arena(1);
        for _ in 0..3 {
            let guest = guest(&arena, &[0]).unwrap();
            assert_eq!(arena.in_use(), 1);
            drop(guest);
            assert_eq!(arena.in_use(), 0);
        }
        let mut context = WorkerContext::new().unwrap();
        let mut guest = guest(&arena, &[]).unwrap();
        let mut session = guest.session(&mut context);
        let at = u64::from(BASE + FRAME_SIZE);
        session.with_ram(|ram| ram.write_u16(at, 5)).unwrap();
        assert_eq!(session.with_ram(|ram| ram.read_u32(at + 8)), Ok(0));
    }

    #[test]
    fn a_worker_context_knows_no_instructions_that_were_replaced() {
        use emu_core::port::NullPort;
        const AT: u32 = BASE + FRAME_SIZE;
        let set_x5 = |value: u32| value << 20 | 0x293;
        let arena = arena(2);
        let mut guest = guest(&arena, &[]).unwrap();
        let mut contexts = [WorkerContext::new().unwrap(), WorkerContext::new().unwrap()];
        // In which worker context an instruction is written, and in which it is then executed.
        for (value, [writer, runner]) in (1..).zip([[0, 0], [0, 0], [1, 0], [1, 1], [0, 1]]) {
            let mut session = guest.session(&mut contexts[writer]);
            session.with_ram(|ram| ram.write_u32(AT.into(), set_x5(value))).unwrap();
            guest.vm.hart.pc = AT;
            guest.session(&mut contexts[runner]).run(&mut NullPort, 1, Now::Instret, &mut NoTrace);
            assert_eq!(guest.vm.hart.x[5], value);
        }
    }

    #[test]
    fn a_guest_without_frames_is_refused() {
        assert!(guest(&arena(1), &[0, 1]).is_err());
    }
}

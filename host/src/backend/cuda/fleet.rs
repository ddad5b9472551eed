//! A fleet in device memory: the allocations, and the kernel launches over them.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use emu_core::abi::Vm;
use emu_core::clock::Now;
use emu_device::protocol::launch::{At, Control, Entry, FreeList, Launch, WAKE};
use emu_device::protocol::outbox::Outbox;
use emu_device::protocol::port::PortState;
use zerocopy::{IntoBytes, TryFromBytes};

mod auxiliary;
mod debug;
mod layout;

use self::auxiliary::Auxiliary;
pub use self::auxiliary::Start;
use self::layout::{BaseTables, VmMemory};
use super::disk::DiskCache;
use super::error::CudaError;
use super::gpu::{Address, Gpu, Mapped};
use super::packing::{InsnLoop, Packing};
use super::sizing::{self, Shape, Sizes};
use crate::backend::BackendError;
use crate::backend::images::Images;
use crate::machine::Fleet;

/// Bytes of the output log that each VM can count on in a launch, within the limits below.
const OUTBOX_EACH: usize = 1 << 10;
const OUTBOX_MIN: usize = 1 << 20;
const OUTBOX_MAX: usize = 32 << 20;
/// Size of the inbox (input of a launch, all VMs together), in bytes.
pub const INBOX: usize = 1 << 20;

/// Arguments of a launch.
pub struct LaunchArgs<'a> {
    /// The launch list: VMs to run, each at most once.
    pub active: &'a [Entry],
    /// Input that the entries' inbox offsets refer to.
    pub inbox: &'a [u8],
    /// Number of slices for each VM.
    pub slices: u32,
    /// Instructions per slice.
    pub slice: u32,
    /// Guest time of the launch.
    pub now: Now,
    /// How the VMs are packed into warps.
    pub packing: Packing,
    /// How long the launch is to take. VMs that share a warp then end it where they converge. With
    /// `None` it ends exactly with its slices.
    pub time: Option<Duration>,
}

/// Results of a launch.
#[derive(Debug)]
pub struct LaunchResult {
    /// Output log of the VMs: see [`emu_device::protocol::outbox`].
    pub log: Vec<u8>,
    /// Whether the log was full: the next launch reports what had no room.
    pub full: bool,
    /// Number of VMs that are still runnable.
    pub busy: u32,
    /// Instructions that the runnable VMs have retired in the launch, on average.
    pub ran: u32,
    /// Number of VMs that were launched.
    pub listed: u32,
    /// The loop that executed them.
    pub insn_loop: InsnLoop,
    /// Instructions retired since the fleet began.
    pub instructions: u64,
    /// Private frames in use.
    pub private_frames: u32,
    /// Pages of decoded instructions that VMs have taken out of the pool.
    pub code_pages: u32,
    /// Device time of the launch.
    pub took: Duration,
}

/// Buffers of one launch, through which host and device pass its input and output. There are two
/// sets, so that the host reads one while the device fills the other.
struct LaunchBuffers {
    outbox: Box<dyn Mapped>,
    outbox_len: usize,
    inbox: Box<dyn Mapped>,
    /// Device copy of `inbox`, because VMs read it byte by byte.
    inbox_device: Address,
    /// `Launch`, header of the outbox, and room for the launch list.
    params: Box<dyn Mapped>,
    /// Device copy of `params`.
    device: Address,
    /// `Control` as it is after the launch.
    control: Box<dyn Mapped>,
    /// Number of VMs in the launch.
    listed: u32,
    /// The loop that executes them.
    insn_loop: InsnLoop,
}

impl LaunchBuffers {
    /// Returns buffers for launches of up to `count` VMs.
    fn new(gpu: &mut dyn Gpu, count: u32) -> Result<Self, CudaError> {
        let outbox_len = (count as usize * OUTBOX_EACH).clamp(OUTBOX_MIN, OUTBOX_MAX);
        let params_len = ENTRIES_AT + count.max(1) as usize * size_of::<Entry>();
        Ok(Self {
            outbox: gpu.map(outbox_len)?,
            outbox_len,
            inbox: gpu.map(INBOX)?,
            inbox_device: gpu.alloc(INBOX as u64)?,
            params: gpu.map(params_len)?,
            device: gpu.alloc(params_len as u64)?,
            control: gpu.map(size_of::<Control>())?,
            listed: 0,
            insn_loop: InsnLoop::Dispatch,
        })
    }
}

const OUTBOX_AT: usize = size_of::<Launch>();
/// Bytes of `Control` that are reset before each launch: the outbox, `busy` and padding.
const RESET: usize = std::mem::offset_of!(Control, instructions);
const ENTRIES_AT: usize = OUTBOX_AT + RESET;

/// A fleet in device memory.
pub struct DeviceFleet {
    shape: Shape,
    shortage: Option<String>,
    launch: Launch,
    control: Address,
    buffers: [LaunchBuffers; 2],
    /// Index of the launch buffers for the next launch.
    next: usize,
    auxiliary: Auxiliary,
    cache: DiskCache,
    /// The disk image of each VM.
    images: Vec<u32>,
    /// Declared last, because the allocations above must be dropped before the device.
    gpu: Box<dyn Gpu>,
}

impl DeviceFleet {
    /// Makes room for the VMs of a fleet, and uploads the base image.
    pub fn new(gpu: Box<dyn Gpu>, fleet: &Fleet) -> Result<Self, BackendError> {
        let images = Images::new(fleet.disks.as_ref());
        let lines = sizing::cache_lines(images.pages(), gpu.available()?);
        Self::with_cache(gpu, fleet, images, lines)
    }

    /// Does what [`DeviceFleet::new`] does, with a cache of so many lines for disk images.
    pub(crate) fn with_cache(
        mut gpu: Box<dyn Gpu>,
        fleet: &Fleet,
        images: Images,
        lines: u32,
    ) -> Result<Self, BackendError> {
        if images.write_back() {
            return Err(BackendError::WriteBack);
        }
        let Fleet { base, count, .. } = fleet;
        let (count, shared) = (*count, base.shared());
        let (private, expected) = (fleet.private_frames(), fleet.expected);
        let shape = Shape { count, shared, pages: base.pages(), private, expected };
        let device = gpu.as_mut();
        // The arena is sized last, from the memory that is left after the small allocations.
        let buffers = [LaunchBuffers::new(device, count)?, LaunchBuffers::new(device, count)?];
        let auxiliary = Auxiliary::new(device, count)?;
        let control = device.alloc(size_of::<Control>() as u64)?;
        let tables = BaseTables::new(device, base)?;
        let cache = DiskCache::new(device, images, lines)?;
        let sizes = sizing::sizes(&shape, device.available()?)?;
        let shortage = sizing::shortage(&shape, sizes);
        let memory = VmMemory::new(device, &shape, sizes)?;
        device.upload(memory.arena, &layout::arranged(&base.frames))?;
        device.upload(control, layout::control(&shape, sizes, &memory).as_mut_bytes())?;
        let launch =
            Launch { control: At::new(control), ..layout::launch(base, sizes, &tables, &memory) };
        let launch = auxiliary.complete(cache.complete(launch));
        let Sizes { frames, code } = sizes;
        tracing::debug!(frames, shared, code, count, lines, "device memory allocated");
        let images = vec![0; count as usize];
        Ok(Self {
            shape,
            shortage,
            launch,
            control,
            buffers,
            next: 0,
            auxiliary,
            cache,
            images,
            gpu,
        })
    }

    /// Makes the arena's frames from `end` on unavailable. To be called before the first VM is
    /// started.
    #[cfg(test)]
    pub fn limit_frames(&mut self, end: u32) {
        self.limit(std::mem::offset_of!(Control, free), end.min(self.launch.frames));
    }

    /// Leaves `count` pages of decoded instructions in the pool. To be called before the first VM is
    /// started.
    #[cfg(test)]
    pub fn limit_code(&mut self, count: u32) {
        let end = layout::pool_from(&self.shape).saturating_add(count);
        self.limit(std::mem::offset_of!(Control, free_code), end.min(self.launch.code_pages));
    }

    #[cfg(test)]
    fn limit(&mut self, list: usize, limit: u32) {
        let at = list + std::mem::offset_of!(FreeList, limit);
        self.gpu.upload(self.control + at as u64, limit.as_bytes()).unwrap();
    }

    /// Returns the number of multiprocessors (SMs) of the device.
    pub fn multiprocessors(&self) -> u32 {
        self.gpu.multiprocessors()
    }

    /// Says so where VMs might not all find memory.
    pub fn shortage(&self) -> Option<&str> {
        self.shortage.as_deref()
    }

    /// Returns the number of frames of the base image.
    pub fn shared(&self) -> u32 {
        self.shape.shared
    }

    /// Loads pages of disk images that VMs wait for, and removes those VMs from `waiting`, which has
    /// each with its page. Returns them, at least one; the others wait for the next call. No launch
    /// may be under way, and the VMs that were returned before have run since.
    pub fn load_disk(&mut self, waiting: &mut Vec<(u32, u32)>) -> Result<Vec<u32>, CudaError> {
        let gpu = self.gpu.as_mut();
        self.cache.begin(gpu)?;
        let mut loaded = Vec::new();
        for (vm, page) in std::mem::take(waiting) {
            if self.cache.load(gpu, self.images[vm as usize], page)? {
                loaded.push(vm);
            } else {
                waiting.push((vm, page));
            }
        }
        Ok(loaded)
    }

    /// Waits for everything that is queued.
    fn finish(&mut self) -> Result<(), CudaError> {
        self.gpu.mark()?;
        self.gpu.wait()
    }

    /// Queues a launch. The launch before must have been waited for.
    pub fn submit(&mut self, args: &LaunchArgs<'_>) -> Result<(), CudaError> {
        assert!(args.active.len() <= self.shape.count as usize && args.inbox.len() <= INBOX);
        debug_assert!(args.active.iter().all(|e| e.vm & !WAKE < self.shape.count));
        let (ticks, rate) = match args.now {
            Now::Instret => (0, 0),
            Now::Host { ticks, rate } => (ticks, rate.max(1)),
        };
        let buffers = &mut self.buffers[self.next];
        let launch = Launch {
            count: args.active.len() as u32,
            vms_per_warp: args.packing.vms_per_warp,
            slices: args.slices,
            time_limit_ns: args.time.map_or(0, |t| t.as_nanos() as u32),
            slice: args.slice,
            rate,
            ticks,
            inbox_len: args.inbox.len() as u32,
            active: At::new(buffers.device + ENTRIES_AT as u64),
            inbox: At::new(buffers.inbox_device),
            ..self.launch
        };
        let mut outbox = Outbox {
            tail: 0.into(),
            capacity: buffers.outbox_len as u32,
            data: At::new(buffers.outbox.address()),
        };
        buffers.listed = args.active.len() as u32;
        buffers.insn_loop = args.packing.insn_loop;
        buffers.inbox.write(0, args.inbox);
        buffers.params.write(0, launch.as_bytes());
        buffers.params.write(OUTBOX_AT, outbox.as_mut_bytes());
        buffers.params.write(ENTRIES_AT, args.active.as_bytes());
        let bytes = ENTRIES_AT + size_of_val(args.active);
        self.gpu.copy(buffers.device, buffers.params.address(), bytes)?;
        if !args.inbox.is_empty() {
            self.gpu.copy(buffers.inbox_device, buffers.inbox.address(), args.inbox.len())?;
        }
        self.gpu.copy(self.control, buffers.device + OUTBOX_AT as u64, RESET)?;
        self.gpu.begin()?;
        if launch.count > 0 {
            let warps = launch.count.div_ceil(launch.vms_per_warp);
            let insn_loop = args.packing.insn_loop;
            let shared = launch.vms_per_warp * insn_loop.shared();
            self.gpu.launch(insn_loop.kernel(), warps, shared, buffers.device)?;
        }
        self.gpu.copy(buffers.control.address(), self.control, size_of::<Control>())?;
        self.gpu.mark()?;
        self.next ^= 1;
        Ok(())
    }

    /// Waits for the launch under way. Its results are read with [`DeviceFleet::result`], before
    /// the launch after the next is submitted.
    pub fn wait(&mut self) -> Result<Completed, CudaError> {
        self.gpu.wait()?;
        Ok(Completed { buffers: self.next ^ 1, took: self.gpu.took()? })
    }

    /// Returns the number of private frames in use. No launch may be under way.
    pub fn private_frames(&mut self) -> Result<u32, CudaError> {
        let (gpu, at) = (&mut self.gpu, self.control);
        let control: Control = value(|bytes| gpu.download(at, bytes))?;
        Ok(self.private_frames_in(&control.free))
    }

    fn private_frames_in(&self, free: &FreeList) -> u32 {
        used(free, self.shape.shared)
    }

    /// Returns the results of a launch.
    pub fn result(&self, completed: Completed) -> Result<LaunchResult, CudaError> {
        let buffers = &self.buffers[completed.buffers];
        let control: Control = value(|bytes| {
            buffers.control.read(0, bytes);
            Ok(())
        })?;
        let Control { outbox, busy, ran, instructions, free, free_code, .. } = &control;
        let busy = busy.load(Relaxed);
        let tail = outbox.tail.load(Relaxed) as usize;
        let mut log = vec![0; tail.min(buffers.outbox_len)];
        buffers.outbox.read(0, &mut log);
        Ok(LaunchResult {
            log,
            full: tail > buffers.outbox_len,
            busy,
            ran: (ran.load(Relaxed) / u64::from(busy.max(1))) as u32,
            listed: buffers.listed,
            insn_loop: buffers.insn_loop,
            instructions: instructions.load(Relaxed),
            private_frames: self.private_frames_in(free),
            code_pages: used(free_code, layout::pool_from(&self.shape)),
            took: completed.took,
        })
    }

    /// Returns a VM's state. No launch may be under way, and the VM must have been started.
    pub fn vm(&mut self, vm: u32) -> Result<Vm, CudaError> {
        assert!(vm < self.shape.count);
        let at = self.launch.vms.address() + u64::from(vm) * size_of::<Vm>() as u64;
        let gpu = &mut self.gpu;
        value(|bytes| gpu.download(at, bytes))
    }

    /// Returns the instructions that each VM has retired since its last start.
    pub fn instrets(&mut self) -> Result<Vec<u64>, CudaError> {
        let (gpu, at) = (&mut self.gpu, self.launch.ports.address());
        // All zero is a valid port, so that unstarted VMs can be read, too.
        let ports: Vec<PortState> =
            values(self.shape.count as usize, |bytes| gpu.download(at, bytes))?;
        Ok(ports.iter().map(|port| port.instret).collect())
    }

    /// Frees the fleet's memory and returns the device, for another fleet.
    pub fn into_gpu(mut self) -> Result<Box<dyn Gpu>, CudaError> {
        self.finish()?;
        self.gpu.clear()?;
        Ok(self.gpu)
    }
}

/// Returns how many things were taken out of a list that began with number `first`.
fn used(free: &FreeList, first: u32) -> u32 {
    let taken = free.next.load(Relaxed).min(free.limit).saturating_sub(first);
    taken.saturating_sub(free.top.load(Relaxed))
}

/// Reads values of types shared with the device, from bytes that `fill` provides, and checks that
/// they are valid.
fn values<T: TryFromBytes>(
    count: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), CudaError>,
) -> Result<Vec<T>, CudaError> {
    let mut bytes = vec![0; count * size_of::<T>()];
    fill(&mut bytes)?;
    let values = bytes.chunks_exact(size_of::<T>()).map(T::try_read_from_bytes);
    values.collect::<Result<_, _>>().map_err(|_| CudaError::Contract("no such value exists"))
}

/// Reads one such value.
fn value<T: TryFromBytes>(
    fill: impl FnOnce(&mut [u8]) -> Result<(), CudaError>,
) -> Result<T, CudaError> {
    values(1, fill)?.pop().ok_or(CudaError::Contract("no value"))
}

/// A launch that is over and whose results were not read yet.
#[derive(Debug)]
pub struct Completed {
    buffers: usize,
    took: Duration,
}

// The parts of `params` must be aligned.
const _: () = assert!(OUTBOX_AT.is_multiple_of(8) && ENTRIES_AT.is_multiple_of(8));

#[cfg(test)]
mod checks {
    use emu_core::layout::MachineKind;
    use emu_device::memory::OwnPages;
    use emu_device::protocol::launch::StagedVm;

    use super::*;

    fn from(bytes: &[u8]) -> Result<Vm, CudaError> {
        value(|to| {
            to.copy_from_slice(bytes);
            Ok(())
        })
    }

    #[test]
    fn a_state_comes_back_as_it_was_and_a_broken_one_does_not() {
        let mut vm = Vm::new(MachineKind::Semu);
        vm.hart.x[10] = 0xdead_beef;
        let bytes = vm.as_bytes();
        assert_eq!(from(bytes).unwrap().as_bytes(), bytes);
        let offset = std::mem::offset_of!(Vm, hart)
            + std::mem::offset_of!(emu_core::abi::Hart, ctx)
            + std::mem::offset_of!(emu_core::mmu::Context, privilege);
        let kind = std::mem::offset_of!(Vm, platform)
            + std::mem::offset_of!(emu_core::abi::Platform, kind);
        // There is no privilege 2 and no third kind of machine.
        for at in [offset, kind] {
            let mut bytes = bytes.to_vec();
            bytes[at] = 2;
            assert!(matches!(from(&bytes), Err(CudaError::Contract(_))));
        }
    }

    #[test]
    fn equal_states_are_equal_bytes() {
        // Nothing lies between the fields that two of them could differ in.
        let [one, two] = [0x55, 0xaa].map(|filling| {
            let mut place = Box::new([filling; size_of::<StagedVm>()]);
            let vm = Vm::new(MachineKind::Virt);
            let staged = StagedVm {
                id: 1,
                row: 2,
                first_page: 3,
                page_count: 4,
                origin: 5,
                disk: OwnPages::new(6, 7),
                reserved: 0,
                vm,
            };
            place.copy_from_slice(staged.as_bytes());
            place
        });
        assert_eq!(one, two);
    }
}

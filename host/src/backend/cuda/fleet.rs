//! A fleet in device memory: the allocations, and the kernel launches over them.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use emu_core::abi::{VERSION, Vm};
use emu_core::machine::Now;
use emu_core::mem::{FRAME_SHIFT, FRAME_SIZE};
use emu_device::memory::{CodeCache, CodePage, FrameLayout, OnGpu};
use emu_device::protocol::launch::{
    At, CODE_SLOTS, Control, Entry, FreeFrames, Launch, StagedPage, StagedVm, WAKE,
};
use emu_device::protocol::outbox::Outbox;
use emu_device::protocol::port::PortState;
use zerocopy::{IntoBytes, TryFromBytes};

mod debug;

use super::error::CudaError;
use super::gpu::{Address, Gpu, Kernel, Mapped};
use super::sizing::{self, Shape};
use crate::backend::BackendError;
use crate::machine::{BaseImage, Staged};

/// Bytes of the output log that each VM can count on in a launch, within the limits below.
const OUTBOX_EACH: usize = 1 << 10;
const OUTBOX_MIN: usize = 1 << 20;
const OUTBOX_MAX: usize = 32 << 20;
/// Size of the inbox (input of a launch), in bytes.
const INBOX: usize = 1 << 20;
/// VMs that are staged at a time, and the pages of all of them: each has one for its device tree.
const STAGED: usize = 512;
const STAGED_PAGES: usize = 1024;

/// A VM to be started at its first instruction.
pub struct Start {
    /// Number of the VM.
    pub vm: u32,
    /// Fleet time at which the VM's clock is zero.
    pub origin: u64,
    /// The VM's initial state.
    pub staged: Staged,
}

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
    /// VMs per warp.
    pub vms_per_warp: u32,
    /// How long the launch is to take. VMs that share a warp then end it where they converge. With
    /// `None` it ends exactly with its slices.
    pub time: Option<Duration>,
}

/// Results of a launch.
#[derive(Debug, Default)]
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
    /// Instructions retired since the fleet began.
    pub instructions: u64,
    /// Private frames in use.
    pub private_frames: u32,
    /// Device time of the launch.
    pub took: Duration,
}

/// Buffers of one launch, through which host and device pass its input and output. There are two
/// sets, so that the host reads one while the device fills the other.
struct LaunchBuffers {
    outbox: Box<dyn Mapped>,
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
}

const OUTBOX_AT: usize = size_of::<Launch>();
/// Bytes of `Control` that are reset before each launch: the outbox, `busy` and padding.
const RESET: usize = std::mem::offset_of!(Control, instructions);
const ENTRIES_AT: usize = OUTBOX_AT + RESET;

/// A fleet in device memory.
pub struct DeviceFleet {
    shape: Shape,
    launch: Launch,
    control: Address,
    buffers: [LaunchBuffers; 2],
    /// Index of the launch buffers for the next launch.
    next: usize,
    staging: Box<dyn Mapped>,
    staged: Address,
    auxiliary_list: Box<dyn Mapped>,
    auxiliary_list_device: Address,
    digests: Address,
    outbox_len: usize,
    /// Declared last, because the allocations above must be dropped before the device.
    gpu: Box<dyn Gpu>,
}

/// Offset of the staged VMs' pages in the staging buffer.
const PAGES_AT: usize = STAGED * size_of::<StagedVm>();
const STAGING: usize = PAGES_AT + STAGED_PAGES * size_of::<StagedPage>();

/// Brings frames into the layout of the arena, from its start on.
fn placed(frames: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; frames.len().next_multiple_of(OnGpu::ALIGN)];
    const CHUNK: usize = OnGpu::CHUNK as usize;
    for (n, chunk) in frames.chunks_exact(CHUNK).enumerate() {
        let at = n * CHUNK;
        let (index, offset) = (at >> FRAME_SHIFT, at % FRAME_SIZE as usize);
        let to = OnGpu::offset_of(index as u32, offset as u32);
        bytes[to..to + CHUNK].copy_from_slice(chunk);
    }
    bytes
}

impl DeviceFleet {
    /// Makes room for `count` VMs over a base image and uploads the image.
    pub fn new(mut gpu: Box<dyn Gpu>, base: &BaseImage, count: u32) -> Result<Self, BackendError> {
        let pages = base.pages();
        let (shared, ram_shared) = (base.shared(), base.ram_shared);
        let shape = Shape { count, shared, ram_shared, pages };
        let outbox_len = (count as usize * OUTBOX_EACH).clamp(OUTBOX_MIN, OUTBOX_MAX);
        let entries = count.max(1) as usize * size_of::<Entry>();
        let params_len = ENTRIES_AT + entries;
        // The arena is sized last, from the memory that is left after the small allocations.
        let launch_buffers = |gpu: &mut dyn Gpu| {
            Ok::<_, CudaError>(LaunchBuffers {
                outbox: gpu.map(outbox_len)?,
                inbox: gpu.map(INBOX)?,
                inbox_device: gpu.alloc(INBOX as u64)?,
                params: gpu.map(params_len)?,
                device: gpu.alloc(params_len as u64)?,
                control: gpu.map(size_of::<Control>())?,
                listed: 0,
            })
        };
        let buffers = [launch_buffers(gpu.as_mut())?, launch_buffers(gpu.as_mut())?];
        let staging = gpu.map(STAGING)?;
        let staged = gpu.alloc(STAGING as u64)?;
        let auxiliary_list = gpu.map(size_of::<Launch>() + entries)?;
        let auxiliary_list_device = gpu.alloc((size_of::<Launch>() + entries) as u64)?;
        let control = gpu.alloc(size_of::<Control>() as u64)?;
        let digests = gpu.alloc(u64::from(count) * 8)?;
        // Initial page tables of the VMs, followed by the ROM's.
        let own = base.rows.iter().flat_map(|ram| ram.iter().chain(&base.disk));
        let rows: Vec<u32> = own.chain(&base.rom).copied().collect();
        assert!(
            rows.iter().all(|&f| f < shared)
                && base.frames[..FRAME_SIZE as usize].iter().all(|&b| b == 0)
        );
        let base_rows = gpu.alloc(rows.len() as u64 * 4)?;
        gpu.upload(base_rows, rows.as_bytes())?;
        let rom = base_rows + 4 * (rows.len() - base.rom.len()) as u64;

        let frames = sizing::frames(&shape, gpu.available()?)?;
        let n = u64::from(count);
        let zeroed = |gpu: &mut dyn Gpu, bytes: u64| {
            let at = gpu.alloc(bytes)?;
            gpu.zero(at, bytes)?;
            Ok::<_, CudaError>(at)
        };
        let shared_code =
            zeroed(gpu.as_mut(), u64::from(ram_shared) * size_of::<CodePage>() as u64)?;
        let private_code = zeroed(gpu.as_mut(), n * size_of::<CodeCache<CODE_SLOTS>>() as u64)?;
        let tables = zeroed(gpu.as_mut(), n * u64::from(pages) * 4)?;
        let ports = zeroed(gpu.as_mut(), n * size_of::<PortState>() as u64)?;
        let vms = gpu.alloc(n * size_of::<Vm>() as u64)?;
        let returned = gpu.alloc(u64::from(frames - shared) * 4)?;
        let arena = gpu.alloc(sizing::arena(frames))?.next_multiple_of(OnGpu::ALIGN as u64);
        gpu.upload(arena, &placed(&base.frames))?;
        let mut first = Control {
            outbox: Outbox { tail: 0.into(), capacity: 0, data: At::NOWHERE },
            busy: 0.into(),
            reserved: 0,
            ran: 0.into(),
            instructions: 0.into(),
            free: FreeFrames {
                next: shared.into(),
                limit: frames,
                top: 0.into(),
                reserved: 0,
                returned: At::new(returned),
            },
        };
        gpu.upload(control, first.as_mut_bytes())?;
        let launch = Launch {
            version: VERSION,
            count: 0,
            vms_per_warp: 1,
            slices: 0,
            slice: 1,
            rate: 0,
            ticks: 0,
            pages: base.ram_pages(),
            disk_pages: base.disk.len() as u32,
            frames,
            shared,
            rom_pages: base.rom.len() as u32,
            shared_code_len: ram_shared,
            inbox_len: 0,
            time_limit_ns: 0,
            arena: At::new(arena),
            shared_code: At::new(shared_code),
            private_code: At::new(private_code),
            active: At::NOWHERE,
            vms: At::new(vms),
            tables: At::new(tables),
            base: At::new(base_rows),
            rom: At::new(rom),
            ports: At::new(ports),
            control: At::new(control),
            inbox: At::NOWHERE,
            staged: At::new(staged),
            staged_pages: At::new(staged + PAGES_AT as u64),
            digests: At::new(digests),
        };
        tracing::debug!(frames, shared, count, "device memory allocated");
        Ok(Self {
            gpu,
            shape,
            launch,
            control,
            buffers,
            next: 0,
            staging,
            staged,
            auxiliary_list,
            auxiliary_list_device,
            digests,
            outbox_len,
        })
    }

    /// Makes the arena's frames from `end` on unavailable. To be called before the first VM is
    /// started.
    #[cfg(test)]
    pub fn limit_frames(&mut self, end: u32) {
        let at = std::mem::offset_of!(Control, free) + std::mem::offset_of!(FreeFrames, limit);
        let limit = end.min(self.launch.frames);
        self.gpu.upload(self.control + at as u64, limit.as_bytes()).unwrap();
    }

    /// Returns the number of multiprocessors (SMs) of the device.
    pub fn multiprocessors(&self) -> u32 {
        self.gpu.multiprocessors()
    }

    /// Returns the number of frames of the base image.
    pub fn shared(&self) -> u32 {
        self.shape.shared
    }

    /// Largest number of VMs that [`DeviceFleet::start`] takes at once.
    pub const START_MAX: usize = STAGED;

    /// Starts VMs, which have no memory yet, at their first instruction. Waits for earlier
    /// launches.
    pub fn start(&mut self, starts: &[Start]) -> Result<(), CudaError> {
        let mut rest = starts;
        while !rest.is_empty() {
            let mut pages = 0;
            let n = rest
                .iter()
                .take(STAGED)
                .take_while(|s| {
                    pages += s.staged.pages.len();
                    pages <= STAGED_PAGES
                })
                .count();
            if n == 0 {
                return Err(CudaError::Contract("a VM has too many pages of its own"));
            }
            let (now, later) = rest.split_at(n);
            self.start_some(now)?;
            rest = later;
        }
        Ok(())
    }

    fn start_some(&mut self, starts: &[Start]) -> Result<(), CudaError> {
        // The device may still read the buffer for the VMs before.
        self.finish()?;
        let mut pages = 0;
        for (at, Start { vm, origin, staged }) in starts.iter().enumerate() {
            assert!(*vm < self.shape.count);
            let head = StagedVm {
                id: *vm,
                row: staged.row,
                first_page: pages as u32,
                page_count: staged.pages.len() as u32,
                origin: *origin,
                vm: staged.vm.clone(),
            };
            self.staging.write(at * size_of::<StagedVm>(), head.as_bytes());
            for (page, bytes) in &staged.pages {
                let page = StagedPage { page: *page, reserved: 0, bytes: **bytes };
                let at = PAGES_AT + pages * size_of::<StagedPage>();
                self.staging.write(at, page.as_bytes());
                pages += 1;
            }
        }
        let from = self.staging.address();
        self.gpu.copy(self.staged, from, size_of::<StagedVm>() * starts.len())?;
        let at = PAGES_AT as u64;
        self.gpu.copy(self.staged + at, from + at, size_of::<StagedPage>() * pages)?;
        self.launch_auxiliary(Kernel::Start, starts.len() as u32, &[])
    }

    /// Frees the private frames of VMs that are parked or were never started.
    pub fn release(&mut self, vms: &[u32]) -> Result<(), CudaError> {
        if vms.is_empty() {
            return Ok(());
        }
        self.finish()?;
        self.launch_auxiliary(Kernel::Release, vms.len() as u32, vms)
    }

    /// Returns fingerprints of VMs' private pages.
    pub fn digests(&mut self, vms: &[u32]) -> Result<Vec<u64>, CudaError> {
        self.finish()?;
        self.gpu.zero(self.digests, vms.len() as u64 * 8)?;
        self.launch_auxiliary(Kernel::Digest, vms.len() as u32, vms)?;
        let (gpu, at) = (&mut self.gpu, self.digests);
        values(vms.len(), |bytes| gpu.download(at, bytes))
    }

    /// Runs an auxiliary kernel (any but `Step`), over a list of VMs or over the staged ones.
    fn launch_auxiliary(
        &mut self,
        kernel: Kernel,
        count: u32,
        vms: &[u32],
    ) -> Result<(), CudaError> {
        // A digest takes a warp for each VM.
        let vms_per_warp = if kernel == Kernel::Digest { 1 } else { 4 };
        const HEAD: usize = size_of::<Launch>();
        let entries: Vec<Entry> = vms.iter().map(|&vm| Entry { vm, inbox: 0 }).collect();
        let active = At::new(self.auxiliary_list_device + HEAD as u64);
        let launch = Launch { count, vms_per_warp, active, ..self.launch };
        self.auxiliary_list.write(0, launch.as_bytes());
        self.auxiliary_list.write(HEAD, entries.as_bytes());
        let from = self.auxiliary_list.address();
        self.gpu.copy(self.auxiliary_list_device, from, HEAD + size_of_val(&entries[..]))?;
        self.gpu.launch(kernel, count.div_ceil(vms_per_warp), 0, self.auxiliary_list_device)?;
        // The next call may overwrite the lists.
        self.finish()
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
            vms_per_warp: args.vms_per_warp,
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
            capacity: self.outbox_len as u32,
            data: At::new(buffers.outbox.address()),
        };
        buffers.listed = args.active.len() as u32;
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
            let shared = launch.vms_per_warp * size_of::<emu_core::abi::Hart>() as u32;
            self.gpu.launch(Kernel::Step, warps, shared, buffers.device)?;
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

    fn private_frames_in(&self, free: &FreeFrames) -> u32 {
        let used = free.next.load(Relaxed).min(self.launch.frames) - self.shape.shared;
        used.saturating_sub(free.top.load(Relaxed))
    }

    /// Returns the results of a launch.
    pub fn result(&self, completed: Completed) -> Result<LaunchResult, CudaError> {
        let buffers = &self.buffers[completed.buffers];
        let control: Control = value(|bytes| {
            buffers.control.read(0, bytes);
            Ok(())
        })?;
        let Control { outbox, busy, ran, instructions, free, .. } = &control;
        let busy = busy.load(Relaxed);
        let tail = outbox.tail.load(Relaxed) as usize;
        let mut log = vec![0; tail.min(self.outbox_len)];
        buffers.outbox.read(0, &mut log);
        Ok(LaunchResult {
            log,
            full: tail > self.outbox_len,
            busy,
            ran: (ran.load(Relaxed) / u64::from(busy.max(1))) as u32,
            listed: buffers.listed,
            instructions: instructions.load(Relaxed),
            private_frames: self.private_frames_in(free),
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
const _: () = assert!(PAGES_AT.is_multiple_of(8));

#[cfg(test)]
mod checks {
    use emu_core::layout::MachineKind;

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
            let staged = StagedVm { id: 1, row: 2, first_page: 3, page_count: 4, origin: 5, vm };
            place.copy_from_slice(staged.as_bytes());
            place
        });
        assert_eq!(one, two);
    }
}

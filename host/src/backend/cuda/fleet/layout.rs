//! Lays a fleet out in device memory.

use emu_core::abi::{VERSION, Vm};
use emu_core::mem::{FRAME_SHIFT, FRAME_SIZE};
use emu_device::memory::{CodePage, CodeSlots, FrameLayout, OnGpu, OwnPages};
use emu_device::protocol::launch::{At, CODE_SLOTS, Control, FreeList, Launch};
use emu_device::protocol::outbox::Outbox;
use emu_device::protocol::port::PortState;
use zerocopy::IntoBytes;

use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::gpu::{Address, Gpu};
use crate::backend::cuda::packing::HOT;
use crate::backend::cuda::sizing::{self, Shape, Sizes};
use crate::machine::BaseImage;

/// Page tables of the base image.
pub(super) struct BaseTables {
    /// Initial page tables of the VMs.
    vms: Address,
    /// Page table of the ROM.
    rom: Address,
}

impl BaseTables {
    /// Uploads the page tables of a base image.
    pub(super) fn new(gpu: &mut dyn Gpu, base: &BaseImage) -> Result<Self, CudaError> {
        let rows: Vec<u32> = base.rows.iter().flatten().chain(&base.rom).copied().collect();
        assert!(
            rows.iter().all(|&f| f < base.shared())
                && base.frames[..FRAME_SIZE as usize].iter().all(|&b| b == 0)
        );
        let vms = gpu.alloc(rows.len() as u64 * 4)?;
        gpu.upload(vms, rows.as_bytes())?;
        let rom = vms + 4 * (rows.len() - base.rom.len()) as u64;
        Ok(Self { vms, rom })
    }
}

/// Memory of the VMs: what each has of its own, and what is theirs together.
pub(super) struct VmMemory {
    code: Address,
    code_slots: Address,
    tables: Address,
    disks: Address,
    ports: Address,
    vms: Address,
    /// Stack of frames that were given back.
    returned: Address,
    /// Stack of decoded pages that were given back.
    returned_code: Address,
    /// The arena, aligned as its layout needs it.
    pub(super) arena: Address,
}

impl VmMemory {
    /// Allocates memory for VMs.
    pub(super) fn new(gpu: &mut dyn Gpu, shape: &Shape, sizes: Sizes) -> Result<Self, CudaError> {
        let n = u64::from(shape.count);
        let mut zeroed = |bytes: u64| {
            let at = gpu.alloc(bytes)?;
            gpu.zero(at, bytes)?;
            Ok::<_, CudaError>(at)
        };
        let code = zeroed(u64::from(sizes.code) * size_of::<CodePage>() as u64)?;
        let code_slots = zeroed(n * size_of::<CodeSlots<CODE_SLOTS>>() as u64)?;
        let tables = zeroed(n * u64::from(shape.pages) * 4)?;
        let disks = zeroed(n * size_of::<OwnPages>() as u64)?;
        let ports = zeroed(n * size_of::<PortState>() as u64)?;
        let vms = gpu.alloc(n * size_of::<Vm>() as u64)?;
        let returned = gpu.alloc(u64::from(sizes.frames - shape.shared) * 4)?;
        let returned_code = gpu.alloc(u64::from(sizes.code - pool_from(shape)) * 4)?;
        let arena = gpu.alloc(sizing::arena(sizes.frames))?.next_multiple_of(OnGpu::ALIGN as u64);
        Ok(Self { code, code_slots, tables, disks, ports, vms, returned, returned_code, arena })
    }
}

/// Brings frames into the layout of the arena, from its start on.
pub(super) fn arranged(frames: &[u8]) -> Vec<u8> {
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

/// Returns the first decoded page of the pool: those of the shared frames come first, and one for
/// each VM.
pub(super) fn pool_from(shape: &Shape) -> u32 {
    shape.shared + shape.count
}

/// Returns the list of the free ones of `limit` things, of which the first `next` are none.
fn free_list(next: u32, limit: u32, returned: Address) -> FreeList {
    let returned = At::new(returned);
    FreeList { next: next.into(), limit, top: 0.into(), reserved: 0, returned }
}

/// Returns the first `Control`: no launch was yet, and all frames that are not shared are free.
pub(super) fn control(shape: &Shape, sizes: Sizes, memory: &VmMemory) -> Control {
    Control {
        outbox: Outbox { tail: 0.into(), capacity: 0, data: At::NOWHERE },
        busy: 0.into(),
        reserved: 0,
        ran: 0.into(),
        instructions: 0.into(),
        free: free_list(shape.shared, sizes.frames, memory.returned),
        free_code: free_list(pool_from(shape), sizes.code, memory.returned_code),
    }
}

/// Returns launch arguments in which all is set that is the same for each launch, but for `control`,
/// the cache of disk images and the memory of auxiliary kernels.
pub(super) fn launch(
    base: &BaseImage,
    sizes: Sizes,
    tables: &BaseTables,
    memory: &VmMemory,
) -> Launch {
    Launch {
        version: VERSION,
        count: 0,
        vms_per_warp: 1,
        slices: 0,
        slice: 1,
        rate: 0,
        ticks: 0,
        pages: base.pages(),
        cache_lines: 0,
        frames: sizes.frames,
        shared: base.shared(),
        rom_pages: base.rom.len() as u32,
        shared_code: base.shared(),
        code_pages: sizes.code,
        reserved: 0,
        inbox_len: 0,
        time_limit_ns: 0,
        hot: HOT,
        arena: At::new(memory.arena),
        code: At::new(memory.code),
        code_slots: At::new(memory.code_slots),
        active: At::NOWHERE,
        vms: At::new(memory.vms),
        tables: At::new(memory.tables),
        base: At::new(tables.vms),
        rom: At::new(tables.rom),
        disks: At::new(memory.disks),
        cache: At::NOWHERE,
        cache_bytes: At::NOWHERE,
        ports: At::new(memory.ports),
        control: At::NOWHERE,
        inbox: At::NOWHERE,
        staged: At::NOWHERE,
        staged_pages: At::NOWHERE,
        digests: At::NOWHERE,
    }
}

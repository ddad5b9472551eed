//! An emulated GPU: host memory, and the entry points of `emu-device` called on the CPU. Tests use it
//! to run all of this backend but CUDA itself.

use std::time::{Duration, Instant};

use emu_core::abi::Hart;
use emu_core::layout::MachineKind;
use emu_device::kernel::{self, HotLane};
use emu_device::protocol::launch::Launch;
use emu_device::simt::{OneByOne, WarpRunner};
use memmap2::MmapMut;

use super::error::CudaError;
use super::gpu::{Address, Gpu, Kernel, Mapped, wait_for};
use crate::units::Size;

/// The emulated device. `W` runs the lanes of its warps.
pub struct Emulated<W = OneByOne> {
    warps: W,
    memory: u64,
    blocks: Vec<MmapMut>,
    /// What happens to the device after some number of launches, to test failures.
    fate: Option<(u32, Fate)>,
    /// Instruction count from which VM 0's register x10 is wrong, to test that lockstep finds it.
    wrong_from: Option<u64>,
    begun: Instant,
}

impl Emulated {
    /// Returns a device with that much memory, whose lanes run one after the other.
    pub fn new(memory: Size) -> Self {
        Self::with_warps(memory, OneByOne)
    }
}

impl<W> Emulated<W> {
    /// Returns a device with that much memory, whose warps `warps` runs.
    pub fn with_warps(memory: Size, warps: W) -> Self {
        Self {
            warps,
            memory: memory.0,
            blocks: Vec::new(),
            fate: None,
            wrong_from: None,
            begun: Instant::now(),
        }
    }

    /// Makes the device fail after some number of launches.
    pub fn failing_after(mut self, launches: u32) -> Self {
        self.fate = Some((launches, Fate::Lost));
        self
    }

    /// Makes the device hang after some number of launches: it does not respond any more.
    pub fn hanging_after(mut self, launches: u32) -> Self {
        self.fate = Some((launches, Fate::Hung));
        self
    }

    /// Returns what has happened to the device, if anything.
    fn fate(&self) -> Option<Fate> {
        self.fate.filter(|&(left, _)| left == 0).map(|(_, fate)| fate)
    }

    /// Whether the device still executes what is queued; an error once it was lost.
    fn alive(&self) -> Result<bool, CudaError> {
        match self.fate() {
            None => Ok(true),
            Some(Fate::Hung) => Ok(false),
            Some(Fate::Lost) => Err(CudaError::Contract("the test wants the device lost")),
        }
    }

    /// Makes the device compute wrongly: VM 0's register x10, from that many instructions on.
    pub fn wrong_from(mut self, instret: u64) -> Self {
        self.wrong_from = Some(instret);
        self
    }
}

/// What can happen to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Lost,
    Hung,
}

fn block(bytes: u64) -> Result<MmapMut, CudaError> {
    let no_memory = |_| CudaError::NoMemory { call: "mmap", bytes: Size(bytes), code: 2 };
    MmapMut::map_anon(bytes.max(256) as usize).map_err(no_memory)
}

impl<W: WarpRunner + Send> Gpu for Emulated<W> {
    fn multiprocessors(&self) -> u32 {
        1
    }

    fn available(&self) -> Result<u64, CudaError> {
        Ok(self.memory)
    }

    fn alloc(&mut self, bytes: u64) -> Result<Address, CudaError> {
        let mut block = block(bytes)?;
        let address = block.as_mut_ptr() as Address;
        self.blocks.push(block);
        Ok(address)
    }

    fn map(&mut self, bytes: usize) -> Result<Box<dyn Mapped>, CudaError> {
        Ok(Box::new(Visible(block(bytes as u64)?)))
    }

    fn zero(&mut self, at: Address, bytes: u64) -> Result<(), CudaError> {
        // SAFETY: the backend passes ranges of its allocations, which live as long as `self`, and
        // no reference to them is kept anywhere.
        unsafe { (at as *mut u8).write_bytes(0, bytes as usize) };
        Ok(())
    }

    fn copy(&mut self, to: Address, from: Address, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as `zero`, for both ranges.
        unsafe { (from as *const u8).copy_to(to as *mut u8, bytes) };
        Ok(())
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), CudaError> {
        wait_for("upload", self.timeout(), || self.alive())?;
        self.copy(to, bytes.as_ptr() as Address, bytes.len())
    }

    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), CudaError> {
        wait_for("download", self.timeout(), || self.alive())?;
        self.copy(bytes.as_mut_ptr() as Address, from, bytes.len())
    }

    fn launch(&mut self, kernel: Kernel, _: u32, _: u32, at: Address) -> Result<(), CudaError> {
        if !self.alive()? {
            return Ok(());
        }
        if let Some((left, _)) = &mut self.fate {
            *left -= 1;
        }
        // SAFETY: the backend describes its memory as `Launch` says, and nothing else runs.
        unsafe {
            let launch = &*(at as *const Launch);
            match kernel {
                Kernel::Step => step_all(&self.warps, launch),
                Kernel::StepUniform => step_all_uniform(&self.warps, launch),
                Kernel::Start => (0..launch.count).for_each(|vm| kernel::start(launch, vm)),
                Kernel::Release => (0..launch.count).for_each(|vm| kernel::release(launch, vm)),
                Kernel::Digest => {
                    (0..launch.count).for_each(|vm| kernel::digest(launch, vm, 0, 1));
                }
            }
            if let (Kernel::Step | Kernel::StepUniform, Some(from)) = (kernel, self.wrong_from) {
                let vm = &mut *launch.vms.ptr();
                if vm.platform.clock.retired >= from {
                    vm.hart.x[10] = 0xdead_beef;
                }
            }
        }
        Ok(())
    }

    fn mark(&mut self) -> Result<(), CudaError> {
        Ok(())
    }

    fn done(&mut self) -> Result<bool, CudaError> {
        // Everything that was launched before is done.
        Ok(self.fate() != Some(Fate::Hung))
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(200)
    }

    fn begin(&mut self) -> Result<(), CudaError> {
        self.begun = Instant::now();
        Ok(())
    }

    fn took(&mut self) -> Result<Duration, CudaError> {
        Ok(self.begun.elapsed())
    }

    fn clear(&mut self) -> Result<(), CudaError> {
        self.blocks.clear();
        Ok(())
    }

    fn abandon(&mut self) {}
}

/// Runs the VMs of a launch, warp by warp.
///
/// # Safety
/// As [`kernel::step`], for all VMs of the launch.
unsafe fn step_all<W: WarpRunner>(warps: &W, launch: &Launch) {
    let width = launch.vms_per_warp;
    for first in (0..launch.count).step_by(width as usize) {
        warps.run(width.min(launch.count - first), &|lane| {
            let mut hart: Hart = emu_core::abi::Vm::new(MachineKind::Virt).hart;
            // SAFETY: the caller's; each lane has another VM and its own `hart`.
            unsafe { kernel::step::<W::Lanes>(launch, first + lane, &mut hart) }
        });
    }
}

/// Does what [`step_all`] does, by the uniform loop.
///
/// # Safety
/// As [`step_all`].
unsafe fn step_all_uniform<W: WarpRunner>(warps: &W, launch: &Launch) {
    let width = launch.vms_per_warp;
    for first in (0..launch.count).step_by(width as usize) {
        let mut shared = vec![0u128; (launch.hot.bytes() * width) as usize / size_of::<u128>()];
        let start = shared.as_mut_ptr() as usize;
        warps.run(width.min(launch.count - first), &|lane| {
            // SAFETY: the caller's; each lane has another VM and its own part of `shared`.
            unsafe {
                let hot = HotLane::new(launch, start as *mut u8, lane);
                kernel::step_uniform::<W::Lanes>(launch, first + lane, hot);
            }
        });
    }
}

struct Visible(MmapMut);

impl Mapped for Visible {
    fn address(&self) -> Address {
        self.0.as_ptr() as Address
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0[at..at + bytes.len()]);
    }
}

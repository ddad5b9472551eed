//! Auxiliary kernels: they start VMs, free their frames, and compute fingerprints, while no launch is
//! under way.

use emu_device::protocol::launch::{At, Entry, Launch, StagedPage, StagedVm};
use zerocopy::IntoBytes;

use super::{DeviceFleet, values};
use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::gpu::{Address, Gpu, Kernel, Mapped};
use crate::machine::Staged;

/// VMs that are staged at a time, and the pages of all of them: each has one for its device tree.
const STAGED: usize = 512;
const STAGED_PAGES: usize = 1024;

/// Offset of the staged VMs' pages in the staging buffer.
const PAGES_AT: usize = STAGED * size_of::<StagedVm>();
const STAGING: usize = PAGES_AT + STAGED_PAGES * size_of::<StagedPage>();

const _: () = assert!(PAGES_AT.is_multiple_of(8));

/// A VM to be started at its first instruction.
pub struct Start {
    /// Number of the VM.
    pub vm: u32,
    /// Fleet time at which the VM's clock is zero.
    pub origin: u64,
    /// The VM's initial state.
    pub staged: Staged,
}

/// Memory for the arguments and results of auxiliary kernels.
pub(super) struct Auxiliary {
    /// VMs to be started, with their pages.
    staging: Box<dyn Mapped>,
    /// Device copy of `staging`.
    staged: Address,
    /// `Launch`, and the VMs that a kernel works on.
    list: Box<dyn Mapped>,
    /// Device copy of `list`.
    list_device: Address,
    /// Fingerprints.
    digests: Address,
}

impl Auxiliary {
    /// Allocates memory for kernels over up to `count` VMs.
    pub(super) fn new(gpu: &mut dyn Gpu, count: u32) -> Result<Self, CudaError> {
        let list_len = size_of::<Launch>() + count.max(1) as usize * size_of::<Entry>();
        Ok(Self {
            staging: gpu.map(STAGING)?,
            staged: gpu.alloc(STAGING as u64)?,
            list: gpu.map(list_len)?,
            list_device: gpu.alloc(list_len as u64)?,
            digests: gpu.alloc(u64::from(count) * 8)?,
        })
    }

    /// Returns launch arguments that lead to this memory.
    pub(super) fn complete(&self, launch: Launch) -> Launch {
        Launch {
            staged: At::new(self.staged),
            staged_pages: At::new(self.staged + PAGES_AT as u64),
            digests: At::new(self.digests),
            ..launch
        }
    }
}

impl DeviceFleet {
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
            self.images[*vm as usize] = staged.disk.image;
            let head = StagedVm {
                id: *vm,
                row: staged.row,
                first_page: pages as u32,
                page_count: staged.pages.len() as u32,
                origin: *origin,
                disk: staged.disk,
                reserved: 0,
                vm: staged.vm.clone(),
            };
            self.auxiliary.staging.write(at * size_of::<StagedVm>(), head.as_bytes());
            for (page, bytes) in &staged.pages {
                let page = StagedPage { page: *page, reserved: 0, bytes: **bytes };
                let at = PAGES_AT + pages * size_of::<StagedPage>();
                self.auxiliary.staging.write(at, page.as_bytes());
                pages += 1;
            }
        }
        let from = self.auxiliary.staging.address();
        self.gpu.copy(self.auxiliary.staged, from, size_of::<StagedVm>() * starts.len())?;
        let at = PAGES_AT as u64;
        self.gpu.copy(self.auxiliary.staged + at, from + at, size_of::<StagedPage>() * pages)?;
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
        self.gpu.zero(self.auxiliary.digests, vms.len() as u64 * 8)?;
        self.launch_auxiliary(Kernel::Digest, vms.len() as u32, vms)?;
        let (gpu, at) = (&mut self.gpu, self.auxiliary.digests);
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
        let active = At::new(self.auxiliary.list_device + HEAD as u64);
        let launch = Launch { count, vms_per_warp, active, ..self.launch };
        self.auxiliary.list.write(0, launch.as_bytes());
        self.auxiliary.list.write(HEAD, entries.as_bytes());
        let from = self.auxiliary.list.address();
        self.gpu.copy(self.auxiliary.list_device, from, HEAD + size_of_val(&entries[..]))?;
        self.gpu.launch(kernel, count.div_ceil(vms_per_warp), 0, self.auxiliary.list_device)?;
        // The next call may overwrite the lists.
        self.finish()
    }
}

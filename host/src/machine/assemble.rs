//! Reads and checks all images of a fleet and puts the fleet together. Nothing runs yet.

use std::path::PathBuf;

use emu_core::layout::MachineKind;

use super::plan::{Inputs, plan, ram};
use super::{BaseImage, Fleet};
use crate::dtb::{self, Shape};
use crate::exit::Error;
use crate::image::{self, Role, cache, disk, initrd, kernel};
use crate::units::Size;

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Number of VMs.
    pub count: u32,
    /// The memory map.
    pub kind: MachineKind,
    /// RAM of each VM.
    pub memory: Size,
    /// The kernel; the default image when absent.
    pub kernel: Option<PathBuf>,
    /// The initrd; the default image's when kernel and initrd are absent.
    pub initrd: Option<PathBuf>,
    /// M-mode firmware instead of the built-in SBI.
    pub firmware: Option<PathBuf>,
    /// A device tree blob instead of the machine's own.
    pub dtb: Option<PathBuf>,
    /// A disk image that all VMs share; what each writes is its own.
    pub disk: Option<PathBuf>,
    /// Words for the end of the kernel's command line.
    pub append: String,
    /// All randomness of the fleet comes from this number.
    pub seed: u64,
    /// Whether guests' clocks show the host's time.
    pub host_time: bool,
}

impl Default for GuestOptions {
    /// One `virt` machine with 24 MiB and the default image.
    fn default() -> Self {
        Self {
            count: 1,
            kind: MachineKind::Virt,
            memory: Size::mib(24),
            kernel: None,
            initrd: None,
            firmware: None,
            dtb: None,
            disk: None,
            append: String::new(),
            seed: 0,
            host_time: false,
        }
    }
}

/// Puts a fleet together.
pub fn assemble(options: &GuestOptions) -> Result<Fleet, Error> {
    let kind = options.kind;
    ram(kind, options.memory)?;
    // `ram` has checked the size against the map.
    let memory = options.memory.0 as u32;

    let (kernel_path, initrd_path) = match (&options.kernel, &options.initrd) {
        (Some(kernel), initrd) => (kernel.clone(), initrd.clone()),
        (None, initrd) => {
            let image = cache::default_image().ok_or_else(|| Error::Usage(cache::missing()))?;
            (image.kernel, Some(initrd.clone().unwrap_or(image.initrd)))
        }
    };
    let kernel = kernel::kernel(&kernel_path)?;
    let initrd = initrd_path.map(|path| initrd::initrd(&path)).transpose()?;
    let firmware = options.firmware.as_ref().map(|path| kernel::firmware(path)).transpose()?;
    let disk = options.disk.as_ref().map(|path| disk::disk(path)).transpose()?;
    let shape = Shape { kind, memory, disk: disk.is_some() };
    let tree = match &options.dtb {
        None => dtb::emit(&shape),
        Some(path) => dtb::given(&image::load(Role::DeviceTree, path, Ok)?, &shape)?,
    };

    let tree_len = Fleet::tree_len(&tree, options.count, &options.append);
    let plan = plan(Inputs { kind, memory: options.memory, kernel, initrd, firmware, tree_len })?;
    tracing::debug!(
        entry = format_args!("{:#x}", plan.entry),
        initrd = ?plan.initrd,
        tree = format_args!("{:#x}", plan.tree),
        "memory layout"
    );
    let base = BaseImage::new(kind.map().ram_base, memory, &plan.contents, disk.as_deref());
    Ok(Fleet {
        count: options.count,
        plan,
        base,
        tree: Some(tree),
        append: options.append.clone(),
        seed: options.seed,
        host_time: options.host_time,
    })
}

//! Assembles a fleet: reads and checks all its images. Nothing runs yet.

use std::path::PathBuf;

use emu_core::layout::MachineKind;

use super::cmdline::{self, bootargs};
use super::fleet::{Link, Root};
use super::plan::{Inputs, PlanError, Span, plan, ram};
use super::{BaseImage, Expected, Fleet, Macs};
use crate::dtb::{self, Shape, TreeError};
use crate::image::cache::{self, CacheError};
use crate::image::disk::{DiskSpec, Disks};
use crate::image::{self, ImageError, LoadAddress, Payload, Role, initrd, kernel, rom};
use crate::units::Size;
use crate::virtio::{self, Guest, SlotError, Virtio};

/// A kernel that the user names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// That of the default image.
    Default,
    /// A file.
    File(PathBuf, kernel::Format),
}

/// Options of a fleet's guests.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Number of VMs.
    pub count: u32,
    /// The memory map.
    pub kind: MachineKind,
    /// RAM of each VM.
    pub memory: Size,
    /// What each VM is expected to use of it, where the user says that.
    pub memory_per_vm: Option<Size>,
    /// The kernel. When absent, the default image's; none when there is firmware.
    pub kernel: Option<Kernel>,
    /// The initrd.
    pub initrd: Option<PathBuf>,
    /// A ROM that all VMs share.
    ///
    /// Without initrd and ROM the default image's kernel has that image's root file system: in ROM
    /// where the machine has one, else as an initrd.
    pub rom: Option<PathBuf>,
    /// M-mode firmware instead of the built-in SBI.
    pub firmware: Option<PathBuf>,
    /// A device tree blob instead of the machine's own.
    pub dtb: Option<PathBuf>,
    /// Whether a given device tree is changed where it does not fit the machine.
    pub dtb_fix: bool,
    /// Disks of the VMs.
    pub disk: Option<DiskSpec>,
    /// Parameters that [`bootargs`] adds to the kernel's command line.
    pub append: String,
    /// Seed of all randomness of the fleet.
    pub seed: u64,
    /// Whether guests' clocks show the host's time.
    pub host_time: bool,
    /// MAC addresses of the network cards.
    pub macs: Macs,
    /// Whether network cards are connected to anything.
    pub link: Link,
    /// How guests find their virtio devices, where the user chooses that.
    pub virtio: virtio::Choice,
    /// Whether guests' semihosting requests are served.
    pub semihosting: bool,
}

impl GuestOptions {
    /// Whether the default image's kernel is used.
    pub fn default_kernel(&self) -> bool {
        match &self.kernel {
            None => self.firmware.is_none(),
            Some(kernel) => *kernel == Kernel::Default,
        }
    }
}

impl Default for GuestOptions {
    /// Returns the options of one `virt` machine with 24 MiB and the default image.
    fn default() -> Self {
        Self {
            count: 1,
            kind: MachineKind::Virt,
            memory: Size::mib(24),
            memory_per_vm: None,
            kernel: None,
            initrd: None,
            rom: None,
            firmware: None,
            dtb: None,
            dtb_fix: false,
            disk: None,
            append: String::new(),
            seed: 0,
            host_time: false,
            macs: Macs::Same,
            link: Link::Up,
            virtio: virtio::Choice::default(),
            semihosting: false,
        }
    }
}

/// Why a fleet cannot be made of images and options. The user can change all of that.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// An input file is invalid.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There is no default image, or it is damaged.
    #[error(transparent)]
    Default(#[from] CacheError),
    /// The images do not fit the VM.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device tree does not fit the VM.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Virtio devices cannot be placed so.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// The kernel would cut its command line.
    #[error(
        "the kernel's command line has {len} bytes, of which it takes {most}; make {what} \
         {more} bytes shorter"
    )]
    CommandLine {
        /// Length of the command line.
        len: usize,
        /// Length that the kernel takes.
        most: usize,
        /// What the user gave of it.
        what: &'static str,
        /// How many bytes are too many.
        more: usize,
    },
}

/// Assembles a fleet.
pub fn assemble(options: &GuestOptions) -> Result<Fleet, AssembleError> {
    let kind = options.kind;
    ram(kind, options.memory)?;
    // `ram` has checked the size against the map.
    let memory = options.memory.0 as u32;

    let images = images(options)?;
    let kernel = images.kernel.map(|(path, format)| kernel::kernel(&path, format)).transpose()?;
    let image = kernel.as_ref().is_some_and(is_image);
    let drives = if image { Guest::Linux } else { Guest::Other };
    let virtio = Virtio::new(kind, drives, &options.virtio)?;
    let initrd = images.initrd.map(|path| initrd::initrd(&path)).transpose()?;
    let rom = images.rom.map(|path| rom::rom(&path, kind.map().rom)).transpose()?;
    let firmware = options.firmware.as_ref().map(|path| kernel::firmware(path)).transpose()?;
    let guest = reads(kernel.as_ref(), firmware.as_ref());
    let open = |spec| Disks::open(spec, options.count);
    let disks = options.disk.as_ref().map(open).transpose()?;
    let rom_len = rom.as_ref().map_or(0, |rom| rom.len() as u32);
    let shape = Shape { kind, memory, rom: rom_len, disk: disks.is_some(), slots: virtio.slots };
    let tree = match &options.dtb {
        None => dtb::emit(&shape),
        Some(path) => {
            dtb::given(&image::load(Role::DeviceTree, path, Ok)?, &shape, options.dtb_fix)?
        }
    };

    let root = match (&rom, &initrd, &kernel) {
        (Some(_), None, _) => Root::Rom,
        (_, _, None) => Root::Unknown,
        (_, _, Some(_)) => Root::Initrd,
    };
    // The last VM has the longest name.
    let last = options.count.saturating_sub(1);
    let given = tree.bootargs();
    let bootargs = bootargs(last, given.as_deref(), root, options.link, &options.append);
    check_length(&bootargs, options)?;
    let tree_len = Fleet::tree_len(&tree, bootargs);
    let reserved = tree.reserved().iter().map(|r| Span { start: r.start, end: r.end }).collect();
    let plan = plan(Inputs {
        kind,
        memory: options.memory,
        kernel,
        initrd,
        firmware,
        reserved,
        tree_len,
    })?;
    tracing::debug!(
        entry = format_args!("{:#x}", plan.entry),
        initrd = ?plan.initrd,
        tree = format_args!("{:#x}", plan.tree),
        "memory layout"
    );
    let base = BaseImage::new(kind.map().ram_base, memory, &plan.contents, rom.as_deref());
    Ok(Fleet {
        first: 0,
        count: options.count,
        plan,
        base,
        expected: options.memory_per_vm.map_or_else(Expected::default, Expected::given),
        disks,
        tree: Some(tree),
        root,
        append: options.append.clone(),
        seed: options.seed,
        host_time: options.host_time,
        macs: options.macs,
        link: options.link,
        guest,
        virtio,
        semihosting: options.semihosting,
        entries: Vec::new(),
    })
}

/// Whether it is a RISC-V `Image`: only those can be loaded anywhere.
fn is_image(payload: &Payload) -> bool {
    payload.load_address == LoadAddress::Free
}

/// Returns what reads the console in the end: Linux also where it is an ELF file (`vmlinux`), which
/// is linked to virtual addresses, and where it runs in M-mode, as an `Image` in place of firmware.
fn reads(kernel: Option<&Payload>, firmware: Option<&Payload>) -> Guest {
    let linux = match (kernel, firmware) {
        (Some(kernel), _) => is_image(kernel) || kernel.load_address == LoadAddress::Movable,
        (None, firmware) => firmware.is_some_and(is_image),
    };
    if linux { Guest::Linux } else { Guest::Other }
}

/// Refuses a command line that the default kernel would cut, and warns when another kernel might.
fn check_length(bootargs: &str, options: &GuestOptions) -> Result<(), AssembleError> {
    let (len, most) = (bootargs.len(), cmdline::LEN_MAX);
    if len <= most {
        return Ok(());
    }
    if options.default_kernel() {
        let more = len - most;
        let what =
            if options.dtb.is_some() { "--append or the tree's bootargs" } else { "--append" };
        return Err(AssembleError::CommandLine { len, most, what, more });
    }
    tracing::warn!("the kernel's command line has {len} bytes; most kernels take {most} of them");
    Ok(())
}

/// Images that a fleet boots from.
struct Images {
    kernel: Option<(PathBuf, kernel::Format)>,
    initrd: Option<PathBuf>,
    rom: Option<PathBuf>,
}

fn images(options: &GuestOptions) -> Result<Images, AssembleError> {
    let (initrd, rom) = (options.initrd.clone(), options.rom.clone());
    match &options.kernel {
        Some(Kernel::File(path, format)) => {
            let kernel = Some((path.clone(), *format));
            return Ok(Images { kernel, initrd, rom });
        }
        None if options.firmware.is_some() => return Ok(Images { kernel: None, initrd, rom }),
        None | Some(Kernel::Default) => {}
    }
    let image = cache::default_image()?;
    let kernel = Some((image.kernel, kernel::Format::Image));
    if initrd.is_some() || rom.is_some() {
        return Ok(Images { kernel, initrd, rom });
    }
    // A device tree from the user need not describe a ROM.
    let has_rom = options.kind.map().rom.size != 0 && options.dtb.is_none();
    Ok(if has_rom {
        Images { kernel, initrd: None, rom: Some(image.rom) }
    } else {
        Images { kernel, initrd: Some(image.initrd), rom: None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_is_told_from_others_in_every_form() {
        let of = |load_address| Payload { load_address, ..Payload::flat(vec![1; 64], 0) };
        let [image, vmlinux, raw, fixed] =
            [LoadAddress::Free, LoadAddress::Movable, LoadAddress::Headerless, LoadAddress::Fixed]
                .map(of);
        for linux in [&image, &vmlinux] {
            assert_eq!(reads(Some(linux), None), Guest::Linux);
            assert_eq!(reads(Some(linux), Some(&raw)), Guest::Linux);
        }
        assert_eq!(reads(None, Some(&image)), Guest::Linux);
        for other in [&raw, &fixed] {
            assert_eq!(reads(Some(other), None), Guest::Other);
            assert_eq!(reads(None, Some(other)), Guest::Other);
        }
        // OpenSBI's own payload, a boot loader, U-Boot.
        assert_eq!(reads(None, Some(&vmlinux)), Guest::Other);
    }
}

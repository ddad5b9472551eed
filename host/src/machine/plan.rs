//! Memory layout: where kernel, initrd, firmware and device tree lie in guest memory.
//!
//! ```text
//! RAM base            kernel (S-mode under the built-in SBI), or firmware
//! next 4 MiB          kernel above firmware; a kernel without a header (virt)
//! ...
//! below the top       initrd, boot information for firmware, device tree, 64 KiB of room
//! ```
//!
//! What has addresses of its own stays there, as it does in QEMU. What lies below the top moves
//! down where the user's device tree reserves memory.

use std::fmt;
use std::ops::Range;

use emu_core::layout::MachineKind;

use crate::image::opensbi::OpenSbi;
use crate::image::{LoadAddress, Payload, Segment};
use crate::units::Size;

/// Alignment that an rv32 kernel needs: one large page. Above firmware it has the next such place.
const KERNEL_ALIGN: u64 = 4 << 20;
/// Room above the device tree: firmware lets it grow in place.
const TREE_ROOM: u64 = 64 << 10;
/// Memory that a kernel needs besides the images to boot at all. How much it needs to be useful
/// depends on the guest: this project's serves with 8 MiB in total.
const WORKING_MEMORY: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// Images and sizes to lay out.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The memory map.
    pub kind: MachineKind,
    /// Size of RAM.
    pub memory: Size,
    /// The kernel; without it the firmware is all that starts.
    pub kernel: Option<Payload>,
    /// The initial root file system.
    pub initrd: Option<Vec<u8>>,
    /// M-mode firmware; without it the built-in SBI serves the kernel.
    pub firmware: Option<Payload>,
    /// Memory that the device tree reserves.
    pub reserved: Vec<Span>,
    /// Largest size of a VM's device tree, in bytes.
    pub tree_len: usize,
}

/// Privilege mode in which a VM starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// S-mode, under the built-in SBI.
    Supervisor,
    /// M-mode: firmware or a bare-metal program.
    Machine,
}

/// Memory layout of a VM. `contents` is what the fleet shares.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The memory map.
    pub kind: MachineKind,
    /// Size of RAM in bytes.
    pub memory: u32,
    /// Shared contents of RAM; segments do not overlap.
    pub contents: Vec<Segment>,
    /// Address of the first instruction.
    pub entry: u32,
    /// Privilege mode at the first instruction.
    pub mode: Mode,
    /// Address of each VM's device tree.
    pub tree: u32,
    /// Addresses of the initrd.
    pub initrd: Option<Range<u32>>,
    /// Address of the `fw_dynamic_info` with which OpenSBI finds the next stage.
    pub next_stage: Option<u32>,
}

/// Why the images do not fit the machine.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The memory size exceeds the map, or is not a multiple of a page.
    #[error("--memory {0}: {1}")]
    Memory(Size, String),
    /// The images need more memory.
    #[error("--memory {have} is too small: with {what} it takes {need}; give --memory {suggest}M")]
    TooSmall {
        /// Memory size of the option.
        have: Size,
        /// Names of the images.
        what: String,
        /// Smallest memory that is enough.
        need: Size,
        /// Smallest memory that is enough, in MiB, rounded up.
        suggest: u64,
    },
    /// An image is linked to an address outside RAM.
    #[error("{what} is linked to {range}, outside of memory ({ram})")]
    Outside {
        /// Name of the image.
        what: &'static str,
        /// Addresses that it is linked to.
        range: Span,
        /// Addresses of RAM.
        ram: Span,
    },
    /// The device tree reserves memory that an image is linked to.
    #[error("{what} is at {range}, but the device tree reserves {reserved}")]
    Taken {
        /// Name of the image.
        what: &'static str,
        /// Addresses of the image.
        range: Span,
        /// The reserved range.
        reserved: Span,
    },
    /// The device tree reserves too much memory.
    #[error("the device tree reserves so much memory that {what} has no place ({need} in a row)")]
    Reserved {
        /// Name of the image without a place.
        what: &'static str,
        /// Size of the image.
        need: Size,
    },
    /// Two images overlap.
    #[error("{a} at {at_a} and {b} at {at_b} overlap; {help}")]
    Overlap {
        /// Name of the first image.
        a: &'static str,
        /// Addresses of the first image.
        at_a: Span,
        /// Name of the second image.
        b: &'static str,
        /// Addresses of the second image.
        at_b: Span,
        /// What the user can do.
        help: String,
    },
    /// Firmware copies the device tree to an address outside RAM, and stands still.
    #[error(
        "the firmware (OpenSBI) copies the device tree to {at:#x}, outside of memory ({ram}); give \
         {help}OpenSBI's fw_dynamic"
    )]
    TreeOutside {
        /// Where the firmware copies it to.
        at: u32,
        /// Addresses of RAM.
        ram: Span,
        /// The memory that is enough, if the machine has room for so much.
        help: String,
    },
    /// There is neither kernel nor firmware.
    #[error("a machine needs a kernel or firmware to start")]
    Nothing,
    /// Firmware without a kernel has nothing to start.
    #[error(
        "the firmware (OpenSBI) starts a kernel, and there is none; \
         give --kernel FILE, or `--kernel default` for that of pxvm's image"
    )]
    NoKernel,
    /// Firmware starts the kernel at another address than the kernel's.
    #[error(
        "the firmware (OpenSBI's fw_jump) starts what is at {next:#x}, but the kernel's first \
         instruction is at {entry:#x}; OpenSBI's fw_dynamic starts kernels at any address"
    )]
    Elsewhere {
        /// Address that the firmware jumps to.
        next: u32,
        /// Entry point of the kernel.
        entry: u32,
    },
}

/// A range of guest-physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end)
    }
}

impl Span {
    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    fn of(payload: &Payload) -> Self {
        Self { start: u64::from(payload.start()), end: payload.end() }
    }
}

/// Returns the RAM of a machine, checked against its memory map.
pub fn ram(kind: MachineKind, memory: Size) -> Result<Span, PlanError> {
    let map = kind.map();
    let refuse = |why: String| Err(PlanError::Memory(memory, why));
    if memory.0 == 0 {
        return refuse("a machine needs memory".into());
    }
    if !memory.0.is_multiple_of(PAGE) {
        return refuse("not a whole number of 4 KiB pages; write it like 24M".into());
    }
    if memory.0 > u64::from(map.ram_max) {
        return refuse(format!("this machine has room for {} at most", Size(map.ram_max.into())));
    }
    let start = u64::from(map.ram_base);
    Ok(Span { start, end: start + memory.0 })
}

/// Returns an image at its place: at its own addresses, or at `base` if it has none.
fn placed(image: Payload, what: &'static str, base: u64, ram: Span) -> Payload {
    let in_ram = |s: &Segment| ram.start < s.end() && u64::from(s.addr) < ram.end;
    match image.load_address {
        LoadAddress::Free | LoadAddress::Headerless => image.moved_to(base as u32),
        LoadAddress::Movable if !image.segments.iter().any(in_ram) => {
            tracing::debug!("{what} is linked to {}, loaded at {base:#x}", Span::of(&image));
            image.moved_to(base as u32)
        }
        LoadAddress::Movable | LoadAddress::Fixed => without_headers(image, what, ram),
    }
}

/// Leaves out headers of the file below RAM. `gcc -nostdlib -Ttext=0x80000000` makes programs whose
/// code begins where RAM does, in a segment that begins with the headers, one page below.
fn without_headers(mut image: Payload, what: &'static str, ram: Span) -> Payload {
    let Some(headers) = image.headers.clone() else { return image };
    let Some(segment) = image.segments.iter_mut().find(|s| s.addr == headers.start) else {
        return image;
    };
    let below = ram.start.min(segment.end()).saturating_sub(segment.addr.into()) as u32;
    if below != 0 && below as usize <= headers.len() {
        tracing::debug!("{what}: left out {below:#x} bytes of ELF headers at {:#x}", segment.addr);
        segment.bytes.drain(..(below as usize).min(segment.bytes.len()));
        segment.size -= below;
        segment.addr = segment.addr.wrapping_add(below);
        image.segments.retain(|s| s.size != 0);
    }
    image
}

/// Returns where a kernel without addresses of its own belongs.
fn kernel_base(kernel: &Payload, firmware: Option<&Payload>, inputs: &Inputs, ram: Span) -> u64 {
    let above = |end: u64| end.max(ram.start + 1).next_multiple_of(KERNEL_ALIGN);
    match (firmware, kernel.load_address, inputs.kind) {
        (Some(firmware), ..) => above(firmware.end()),
        // As QEMU's `virt` with its own firmware below. semu has none.
        (None, LoadAddress::Headerless, MachineKind::Virt) => above(ram.start),
        (None, ..) => ram.start,
    }
}

/// Returns the memory layout, or an error that says what does not fit.
pub fn plan(mut inputs: Inputs) -> Result<Plan, PlanError> {
    let ram = ram(inputs.kind, inputs.memory)?;
    let firmware = inputs.firmware.take().map(|f| placed(f, "the firmware", ram.start, ram));
    let opensbi = firmware.as_ref().and_then(OpenSbi::of);
    let kernel = inputs.kernel.take().map(|kernel| {
        let base = match opensbi {
            Some(OpenSbi::Own { next, .. }) if starts_kernel(opensbi, firmware.as_ref()) => {
                next.into()
            }
            _ => kernel_base(&kernel, firmware.as_ref(), &inputs, ram),
        };
        placed(kernel, "the kernel", base, ram)
    });
    check_next(opensbi, firmware.as_ref(), kernel.as_ref())?;

    let images = Images { firmware, kernel, initrd: inputs.initrd.take() };
    let top = top(&images, opensbi, &inputs, ram)?;
    check(&images, &top, &inputs, ram)?;
    let Images { firmware, kernel, initrd } = images;
    let (entry, mode) = match (&firmware, &kernel) {
        (Some(firmware), _) => (firmware.entry, Mode::Machine),
        (None, Some(kernel)) => (kernel.entry, Mode::Supervisor),
        (None, None) => return Err(PlanError::Nothing),
    };
    let next_stage = firmware.is_some().then_some(top.info as u32);
    let mut contents = Vec::new();
    if let Some(at) = next_stage {
        contents.push(fw_dynamic_info(at, kernel.as_ref().map_or(0, |kernel| kernel.entry)));
    }
    let initrd = initrd.map(|bytes| {
        let (addr, size) = (top.initrd as u32, bytes.len() as u32);
        contents.push(Segment { addr, bytes, size });
        addr..addr + size
    });
    contents.extend(kernel.into_iter().chain(firmware).flat_map(|image| image.segments));
    let (kind, memory) = (inputs.kind, inputs.memory.0 as u32);
    Ok(Plan { kind, memory, contents, entry, mode, tree: top.tree as u32, initrd, next_stage })
}

/// Whether firmware jumps to a kernel outside of itself.
fn starts_kernel(opensbi: Option<OpenSbi>, firmware: Option<&Payload>) -> bool {
    match opensbi {
        None => false,
        Some(OpenSbi::Dynamic) => true,
        Some(OpenSbi::Own { next, .. }) => !firmware.is_some_and(|firmware| {
            firmware.segments.iter().any(|s| s.addr <= next && u64::from(next) < s.end())
        }),
    }
}

/// Checks that what firmware starts is there.
fn check_next(
    opensbi: Option<OpenSbi>,
    firmware: Option<&Payload>,
    kernel: Option<&Payload>,
) -> Result<(), PlanError> {
    if !starts_kernel(opensbi, firmware) {
        return Ok(());
    }
    match (opensbi, kernel) {
        (_, None) => Err(PlanError::NoKernel),
        (Some(OpenSbi::Own { next, .. }), Some(&Payload { entry, .. })) if entry != next => {
            Err(PlanError::Elsewhere { next, entry })
        }
        (_, Some(_)) => Ok(()),
    }
}

/// Images at their places, but for the initrd.
struct Images {
    firmware: Option<Payload>,
    kernel: Option<Payload>,
    initrd: Option<Vec<u8>>,
}

/// Addresses of what lies below the top of RAM.
struct Top {
    initrd: u64,
    initrd_len: u64,
    /// Boot information for firmware.
    info: u64,
    info_len: u64,
    tree: u64,
    tree_len: u64,
    /// Whether firmware says where the tree is.
    tree_fixed: bool,
}

impl Images {
    /// Names the images, for messages.
    fn names(&self) -> String {
        let initrd = self.initrd.as_ref().map(|_| "initrd");
        let firmware = self.firmware.as_ref().map(|_| "firmware");
        let kernel = self.kernel.as_ref().map(|_| "kernel");
        let names: Vec<&str> = [firmware, kernel, initrd].into_iter().flatten().collect();
        format!("{} and device tree", names.join(", "))
    }

    /// Returns the end of what lies at the start of RAM.
    fn low_end(&self) -> u64 {
        self.firmware.iter().chain(&self.kernel).map(Payload::end).max().unwrap_or(0)
    }
}

/// Places what lies below the top of RAM.
fn top(
    images: &Images,
    opensbi: Option<OpenSbi>,
    inputs: &Inputs,
    ram: Span,
) -> Result<Top, PlanError> {
    // Sizes are far below 4 GiB, so the sums cannot overflow.
    let up = |n: u64| n.next_multiple_of(PAGE);
    let tree_len = up(inputs.tree_len as u64) + TREE_ROOM;
    let info_len = if images.firmware.is_some() { PAGE } else { 0 };
    let initrd_len = up(images.initrd.as_ref().map_or(0, |i| i.len() as u64));
    let low_end = images.low_end();
    let sizes = up(low_end.saturating_sub(ram.start)) + initrd_len + info_len + tree_len;
    let need = sizes + WORKING_MEMORY;
    if need > inputs.memory.0 && low_end >= ram.start {
        return Err(PlanError::TooSmall {
            have: inputs.memory,
            what: images.names(),
            need: Size(need),
            suggest: need.div_ceil(1 << 20),
        });
    }
    let mut taken = inputs.reserved.clone();
    let free = |what, len, below, taken: &[Span]| {
        highest(len, below, ram.start, taken).ok_or(PlanError::Reserved { what, need: Size(len) })
    };
    let (info, tree, tree_fixed) = match opensbi {
        // A tree that is there already is not copied.
        Some(OpenSbi::Own { tree: Some(at), .. }) if u64::from(at).is_multiple_of(PAGE) => {
            let tree = Span { start: at.into(), end: u64::from(at) + tree_len };
            if tree.start < ram.start || ram.end < tree.end {
                let needed = tree.start.checked_sub(ram.start).map(|below| below + tree_len);
                let room = u64::from(inputs.kind.map().ram_max);
                let help = match needed.filter(|needed| *needed <= room) {
                    Some(needed) => format!("--memory {}M or more, or ", needed.div_ceil(1 << 20)),
                    None => String::new(),
                };
                return Err(PlanError::TreeOutside { at, ram, help });
            }
            taken.push(tree);
            (free("boot information", info_len, ram.end, &taken)?, tree.start, true)
        }
        _ => {
            let info = free("the device tree", info_len + tree_len, ram.end, &taken)?;
            (info, info + info_len, false)
        }
    };
    let initrd = free("the initrd", initrd_len, info, &taken)?;
    Ok(Top { initrd, initrd_len, info, info_len, tree, tree_len, tree_fixed })
}

/// Returns the layout of a bare-metal program, which is loaded as firmware is.
pub fn bare(kind: MachineKind, memory: Size, program: Payload) -> Result<Plan, PlanError> {
    let ram = ram(kind, memory)?;
    let program = placed(program, "the program", ram.start, ram);
    check_inside("the program", &program, ram)?;
    Ok(Plan {
        kind,
        memory: memory.0 as u32,
        contents: program.segments,
        entry: program.entry,
        mode: Mode::Machine,
        tree: 0,
        initrd: None,
        next_stage: None,
    })
}

/// Checks that every segment of an image lies in RAM, and its entry point.
fn check_inside(what: &'static str, image: &Payload, ram: Span) -> Result<(), PlanError> {
    let entry = Span { start: image.entry.into(), end: u64::from(image.entry) + 1 };
    let segments = image.segments.iter().map(|s| Span { start: s.addr.into(), end: s.end() });
    match segments.chain([entry]).find(|range| range.start < ram.start || ram.end < range.end) {
        Some(range) => Err(PlanError::Outside { what, range, ram }),
        None => Ok(()),
    }
}

/// Checks that everything lies in RAM, apart from each other and from what the tree reserves.
fn check(images: &Images, top: &Top, inputs: &Inputs, ram: Span) -> Result<(), PlanError> {
    let mut places = Vec::new();
    for (what, image) in [("the firmware", &images.firmware), ("the kernel", &images.kernel)] {
        if let Some(image) = image {
            check_inside(what, image, ram)?;
            places.push((what, Span::of(image)));
        }
    }
    let span = |start, len| Span { start, end: start + len };
    places.push(("the initrd", span(top.initrd, top.initrd_len)));
    places.push(("boot information", span(top.info, top.info_len)));
    places.push(("the device tree", span(top.tree, top.tree_len)));
    places.retain(|(_, range)| range.start != range.end);
    for (i, &(a, at_a)) in places.iter().enumerate() {
        if let Some(&(b, at_b)) = places[i + 1..].iter().find(|(_, at)| at.overlaps(&at_a)) {
            let help = match (&images.firmware, b) {
                (Some(firmware), "the kernel") => {
                    let above = (firmware.end() + 1).next_multiple_of(KERNEL_ALIGN);
                    format!(
                        "link the kernel to {above:#x} or above, or give it alone: \
                         as --firmware if it starts in M-mode, else as --kernel"
                    )
                }
                (_, "the device tree") if top.tree_fixed => {
                    "OpenSBI's fw_dynamic leaves the tree where there is room".to_owned()
                }
                _ => "more --memory may help".to_owned(),
            };
            return Err(PlanError::Overlap { a, at_a, b, at_b, help });
        }
        if let Some(&at_b) = inputs.reserved.iter().find(|span| span.overlaps(&at_a)) {
            return Err(PlanError::Taken { what: a, range: at_a, reserved: at_b });
        }
    }
    Ok(())
}

/// Returns the highest whole pages from `floor` to `below` that have `len` bytes and nothing
/// reserved.
fn highest(len: u64, below: u64, floor: u64, reserved: &[Span]) -> Option<u64> {
    let mut end = below;
    if len == 0 {
        return Some(end);
    }
    loop {
        let start = end.checked_sub(len).filter(|&start| start >= floor)?;
        let wanted = Span { start, end };
        // Each round goes below one more span, so there are no more rounds than spans.
        match reserved.iter().filter(|span| span.overlaps(&wanted)).map(|span| span.start).min() {
            Some(taken) => end = taken / PAGE * PAGE,
            None => return Some(start),
        }
    }
}

/// OpenSBI's `struct fw_dynamic_info` (include/sbi/fw_dynamic.h).
fn fw_dynamic_info(addr: u32, next_addr: u32) -> Segment {
    const MAGIC: u32 = 0x4942_534f;
    const VERSION: u32 = 2;
    const NEXT_MODE_S: u32 = 1;
    const OPTIONS: u32 = 0;
    const BOOT_HART: u32 = 0;
    let words = [MAGIC, VERSION, next_addr, NEXT_MODE_S, OPTIONS, BOOT_HART];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let size = bytes.len() as u32;
    Segment { addr, bytes, size }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::opensbi;

    fn inputs() -> Inputs {
        Inputs {
            kind: MachineKind::Virt,
            memory: Size::mib(24),
            kernel: Some(Payload::flat(vec![1; 5000], 0x30_0000)),
            initrd: Some(vec![2; 9000]),
            firmware: None,
            reserved: Vec::new(),
            tree_len: 2000,
        }
    }

    fn elf_at(addr: u32) -> Payload {
        let segment = Segment { addr, bytes: vec![1; 64], size: 4096 };
        Payload::linked(vec![segment], addr + 4)
    }

    fn raw(mib: u32) -> Payload {
        Payload { load_address: LoadAddress::Headerless, ..Payload::flat(vec![1; 5000], mib << 20) }
    }

    fn refused(inputs: Inputs) -> String {
        plan(inputs).unwrap_err().to_string()
    }

    #[test]
    fn a_kernel_starts_at_the_base_and_the_rest_lies_on_top() {
        let plan = plan(inputs()).unwrap();
        assert_eq!((plan.entry, plan.mode), (0x8000_0000, Mode::Supervisor));
        assert_eq!(plan.tree, 0x8180_0000 - 0x1_0000 - 0x1000);
        assert_eq!(plan.initrd, Some(plan.tree - 0x3000..plan.tree - 0x3000 + 9000));
    }

    #[test]
    fn what_is_reserved_stays_free() {
        let span = |start, end| Span { start, end };
        let placed = |reserved| plan(Inputs { reserved, ..inputs() });
        let plain = placed(Vec::new()).unwrap();
        // Reserved: nothing; the whole top, which moves the tree; a part, which moves both.
        for (reserved, tree, initrd) in [
            (vec![span(0x8100_0000, 0x8110_0000)], plain.tree, plain.initrd.clone()),
            (
                vec![span(0x8170_0800, 0x8180_0000)],
                0x8170_0000 - 0x1_1000,
                Some(0x8170_0000 - 0x1_4000..0x8170_0000 - 0x1_4000 + 9000),
            ),
            (
                vec![span(0x817e_d000, 0x817e_d001), span(0x817f_ffff, 0x8180_0000)],
                0x817f_f000 - 0x1_1000,
                Some(0x817e_d000 - 0x3000..0x817e_d000 - 0x3000 + 9000),
            ),
        ] {
            let plan = placed(reserved.clone()).unwrap();
            assert_eq!((plan.tree, plan.initrd), (tree, initrd), "{reserved:x?}");
        }
        let refused = |start, end| placed(vec![span(start, end)]).unwrap_err().to_string();
        let full = refused(0x8000_0000, 0x8180_0000);
        assert!(full.contains("so much memory"), "{full}");
        let kernel = refused(0x8000_0000, 0x8000_1000);
        assert!(kernel.ends_with("but the device tree reserves 0x80000000-0x80001000"), "{kernel}");
    }

    #[test]
    fn firmware_takes_the_base_and_is_told_where_the_kernel_is() {
        // The kernel goes to the next multiple of 4 MiB.
        for (size, kernel) in
            [(100, 0x8040_0000u32), (4 << 20, 0x8040_0000), ((4 << 20) + 1, 0x8080_0000)]
        {
            let firmware = Some(Payload::flat(vec![3; 100], size));
            let plan = plan(Inputs { firmware, ..inputs() }).unwrap();
            assert_eq!((plan.entry, plan.mode), (0x8000_0000, Mode::Machine));
            let info = plan.contents.iter().find(|s| Some(s.addr) == plan.next_stage).unwrap();
            assert_eq!(info.bytes[8..12], kernel.to_le_bytes(), "{size:#x}");
        }
    }

    #[test]
    fn firmware_starts_alone_whatever_its_size() {
        let firmware = Some(Payload::flat(vec![3; 100], 9 << 20));
        let plan = plan(Inputs { kernel: None, firmware, ..inputs() }).unwrap();
        assert_eq!((plan.entry, plan.mode), (0x8000_0000, Mode::Machine));
        let info = plan.contents.iter().find(|s| Some(s.addr) == plan.next_stage).unwrap();
        assert_eq!(info.bytes[8..12], [0; 4]);
        // Boot information, initrd, firmware.
        assert_eq!(plan.contents.len(), 3);
    }

    #[test]
    fn something_has_to_start() {
        let nothing = refused(Inputs { kernel: None, ..inputs() });
        assert!(nothing.contains("needs a kernel or firmware"), "{nothing}");
    }

    #[test]
    fn a_kernel_without_header_is_where_qemu_has_it() {
        let entry = |kind, firmware| {
            plan(Inputs { kind, kernel: Some(raw(1)), firmware, ..inputs() }).map(|plan| plan.entry)
        };
        assert_eq!(entry(MachineKind::Virt, None).unwrap(), 0x8040_0000);
        assert_eq!(entry(MachineKind::Semu, None).unwrap(), 0);
    }

    #[test]
    fn opensbi_finds_tree_and_kernel_where_it_looks() {
        let firmware = || Some(Payload::flat(opensbi::tests::jump(), 1 << 20));
        let with = |memory, kernel| Inputs { memory, kernel, firmware: firmware(), ..inputs() };
        let kernel = || inputs().kernel;
        let told = refused(with(Size::mib(24), kernel()));
        assert!(told.contains("device tree to 0x82200000, outside of memory"), "{told}");
        assert!(told.contains("give --memory 35M or more, or OpenSBI's fw_dynamic"), "{told}");
        // No memory of this machine reaches so far.
        let far = Payload::flat(opensbi::tests::older(), 1 << 20);
        let next = Some(Payload { entry: 0x40_0000, ..elf_at(0x40_0000) });
        let kind = MachineKind::Semu;
        let told = refused(Inputs { kind, kernel: next, firmware: Some(far), ..inputs() });
        assert!(told.ends_with("(0x0-0x1800000); give OpenSBI's fw_dynamic"), "{told}");
        // The other things at the top go below the tree, or above where there is room.
        let (tree, tree_end) = (0x8220_0000, 0x8221_1000);
        let least = plan(with(Size((34 << 20) + 0x1_1000), kernel())).unwrap();
        assert_eq!(least.tree, tree);
        assert!(least.initrd.unwrap().end <= tree && least.next_stage.unwrap() < tree);
        let roomy = plan(with(Size::mib(64), kernel())).unwrap();
        assert_eq!(roomy.tree, tree);
        assert!(roomy.initrd.unwrap().start >= tree_end);

        let with = |kernel| with(Size::mib(64), Some(kernel));
        assert_eq!(plan(with(raw(1))).unwrap().entry, 0x8000_0000);
        let large = refused(with(Payload::flat(vec![1; 5000], 31 << 20)));
        assert!(large.contains("the kernel at 0x80400000-0x82300000"), "{large}");
        assert!(large.contains("0x82200000-0x82211000 overlap; OpenSBI's fw_dynamic"), "{large}");
        let elsewhere = refused(with(elf_at(0x8080_0000)));
        assert!(
            elsewhere.contains("0x80400000") && elsewhere.contains("0x80800004"),
            "{elsewhere}"
        );
        for firmware in [opensbi::tests::jump(), opensbi::tests::dynamic()] {
            let firmware = Some(Payload::flat(firmware, 1 << 20));
            let alone = refused(Inputs { kernel: None, firmware, ..inputs() });
            assert!(alone.contains("`--kernel default`"), "{alone}");
        }
        // The firmware's own memory reaches over what it starts: its payload.
        let payload = Some(Payload::flat(opensbi::tests::jump(), 5 << 20));
        let memory = Size::mib(64);
        assert!(plan(Inputs { kernel: None, firmware: payload, memory, ..inputs() }).is_ok());
    }

    #[test]
    fn an_elf_stays_where_it_is_linked() {
        let planned = |kernel| plan(Inputs { kernel: Some(kernel), ..inputs() });
        let entry = |kernel| planned(kernel).unwrap().entry;
        assert_eq!(entry(elf_at(0x8020_0000)), 0x8020_0004);
        let why = planned(elf_at(0x1000)).unwrap_err().to_string();
        assert!(
            why.starts_with("the kernel is linked to 0x1000-0x2000, outside of memory"),
            "{why}"
        );
        // As a whole, if it can move, and only where nothing of it is in RAM.
        let movable = |addr| Payload { load_address: LoadAddress::Movable, ..elf_at(addr) };
        assert_eq!(entry(movable(0x8020_0000)), 0x8020_0004);
        assert_eq!(entry(movable(0)), 0x8000_0004);
        assert_eq!(entry(movable(0xc000_0000)), 0x8000_0004);
        assert!(planned(movable(0x7fff_f800)).is_err());
    }

    #[test]
    fn headers_below_memory_are_left_out() {
        let odd = |headers: Option<Range<u32>>| {
            let segment =
                Segment { addr: 0x7fff_f000, bytes: [[1; 4096], [2; 4096]].concat(), size: 0x3000 };
            Payload { headers, ..Payload::linked(vec![segment], 0x8000_0000) }
        };
        let headers = Some(0x7fff_f000..0x8000_0000);
        let plan = bare(MachineKind::Virt, Size::mib(1), odd(headers.clone())).unwrap();
        let loaded = Segment { addr: 0x8000_0000, bytes: vec![2; 4096], size: 0x2000 };
        assert_eq!((plan.entry, &plan.contents[..]), (0x8000_0000, &[loaded][..]));
        // Code or data there is not left out, nor is the entry point.
        for headers in [None, Some(0x7fff_f000..0x7fff_fffc)] {
            assert!(bare(MachineKind::Virt, Size::mib(1), odd(headers)).is_err());
        }
        let early = Payload { entry: 0x7fff_f100, ..odd(headers) };
        assert!(bare(MachineKind::Virt, Size::mib(1), early).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let small = refused(Inputs { memory: Size::mib(2), ..inputs() });
        assert!(small.contains("give --memory 6M"), "{small}");
        let large = refused(Inputs { memory: Size::mib(2048), ..inputs() });
        assert!(large.contains("1 GiB at most"), "{large}");
        let odd = refused(Inputs { memory: Size(24), ..inputs() });
        assert!(odd.contains("24M"), "{odd}");
        let clash = refused(Inputs {
            kernel: Some(elf_at(0x8000_0000)),
            firmware: Some(elf_at(0x8000_0800)),
            ..inputs()
        });
        for words in
            ["0x80000800-0x80001800", "0x80000000-0x80001000", "link the kernel to 0x80400000"]
        {
            assert!(clash.contains(words), "{words}: {clash}");
        }
        let top = refused(Inputs { kernel: Some(elf_at(0x817f_8000)), ..inputs() });
        assert!(top.contains("--memory"), "{top}");
        let outside = bare(MachineKind::Virt, Size::mib(1), elf_at(0x1000)).unwrap_err();
        assert!(outside.to_string().contains("outside"), "{outside}");
    }
}

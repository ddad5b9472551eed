//! Memory layout: where kernel, initrd, firmware and device tree lie in guest memory.
//!
//! ```text
//! RAM base            kernel (S-mode under the built-in SBI)
//!   or                firmware, and the kernel 4 MiB above it
//! ...
//! below the top       initrd, boot information for firmware, device tree, 64 KiB of room
//! ```
//!
//! What lies below the top moves down where the user's device tree reserves memory.

use std::fmt;
use std::ops::Range;

use emu_core::layout::MachineKind;

use crate::image::{Payload, Segment};
use crate::units::Size;

/// Offset of the kernel above firmware, and the alignment that an rv32 kernel needs.
pub const KERNEL_ALIGN: u32 = 4 << 20;
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
    /// The kernel.
    pub kernel: Payload,
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
    #[error("{what} wants {range}, outside of memory ({ram})")]
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
    #[error("{a} at {at_a} and {b} at {at_b} overlap; more --memory may help")]
    Overlap {
        /// Name of the first image.
        a: &'static str,
        /// Addresses of the first image.
        at_a: Span,
        /// Name of the second image.
        b: &'static str,
        /// Addresses of the second image.
        at_b: Span,
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

/// Moves a payload to `base` unless it is linked to addresses in RAM.
fn relocate(payload: Payload, base: u64, ram: Span) -> Payload {
    // The load addresses of a kernel's ELF count from 0 or are virtual.
    let in_ram = payload.end() > ram.start && u64::from(payload.start()) >= ram.start;
    if payload.fixed && in_ram && u64::from(payload.start()) < ram.end {
        payload
    } else {
        payload.moved_to(base as u32)
    }
}

/// Returns the memory layout, or an error that says what does not fit.
pub fn plan(inputs: Inputs) -> Result<Plan, PlanError> {
    let ram = ram(inputs.kind, inputs.memory)?;
    let up = |n: u64| n.next_multiple_of(PAGE);
    let kernel_base = match inputs.firmware {
        Some(_) => ram.start + u64::from(KERNEL_ALIGN),
        None => ram.start,
    };
    let kernel = relocate(inputs.kernel, kernel_base, ram);
    let firmware = inputs.firmware.map(|f| relocate(f, ram.start, ram));

    // From the top down. Sizes are far below 4 GiB, so the sums cannot overflow.
    let tree_len = up(inputs.tree_len as u64) + TREE_ROOM;
    let info_len = if firmware.is_some() { PAGE } else { 0 };
    let initrd_len = up(inputs.initrd.as_ref().map_or(0, |i| i.len() as u64));
    let low_end = firmware.iter().map(Payload::end).fold(kernel.end(), u64::max);
    let images = up(low_end.saturating_sub(ram.start)) + initrd_len + info_len + tree_len;
    let need = images + WORKING_MEMORY;
    if need > inputs.memory.0 && low_end >= ram.start {
        return Err(PlanError::TooSmall {
            have: inputs.memory,
            what: match (firmware.is_some(), inputs.initrd.is_some()) {
                (true, true) => "firmware, kernel, initrd and device tree",
                (true, false) => "firmware, kernel and device tree",
                (false, true) => "kernel, initrd and device tree",
                (false, false) => "kernel and device tree",
            }
            .into(),
            need: Size(need),
            suggest: need.div_ceil(1 << 20),
        });
    }
    let free = |what, len, below| {
        highest(len, below, ram.start, &inputs.reserved)
            .ok_or(PlanError::Reserved { what, need: Size(len) })
    };
    let info = free("the device tree", info_len + tree_len, ram.end)?;
    let tree = info + info_len;
    let initrd = free("the initrd", initrd_len, info)?;

    let mut places = vec![("the kernel", Span::of(&kernel))];
    places.extend(firmware.as_ref().map(|f| ("the firmware", Span::of(f))));
    if initrd_len != 0 {
        places.push(("the initrd", Span { start: initrd, end: initrd + initrd_len }));
    }
    places.push(("the device tree", Span { start: info, end: tree + tree_len }));
    check(&places, ram)?;
    for &(a, at_a) in &places {
        if let Some(&at_b) = inputs.reserved.iter().find(|span| span.overlaps(&at_a)) {
            return Err(PlanError::Taken { what: a, range: at_a, reserved: at_b });
        }
    }

    let entry = firmware.as_ref().map_or(kernel.entry, |f| f.entry);
    let mode = if firmware.is_some() { Mode::Machine } else { Mode::Supervisor };
    let next_stage = firmware.is_some().then_some(info as u32);
    let mut contents = Vec::new();
    if let Some(at) = next_stage {
        contents.push(fw_dynamic_info(at, kernel.entry));
    }
    let initrd_range = inputs.initrd.map(|bytes| {
        let (addr, size) = (initrd as u32, bytes.len() as u32);
        contents.push(Segment { addr, bytes, size });
        addr..addr + size
    });
    contents.extend(kernel.segments);
    contents.extend(firmware.into_iter().flat_map(|f| f.segments));
    Ok(Plan {
        kind: inputs.kind,
        memory: inputs.memory.0 as u32,
        contents,
        entry,
        mode,
        tree: tree as u32,
        initrd: initrd_range,
        next_stage,
    })
}

/// Returns the layout of a bare-metal program at its own addresses.
pub fn bare(kind: MachineKind, memory: Size, program: Payload) -> Result<Plan, PlanError> {
    let ram = ram(kind, memory)?;
    check(&[("the program", Span::of(&program))], ram)?;
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

fn check(places: &[(&'static str, Span)], ram: Span) -> Result<(), PlanError> {
    for (i, &(what, range)) in places.iter().enumerate() {
        if range.start < ram.start || range.end > ram.end {
            return Err(PlanError::Outside { what, range, ram });
        }
        for &(b, at_b) in &places[i + 1..] {
            if range.overlaps(&at_b) {
                return Err(PlanError::Overlap { a: what, at_a: range, b, at_b });
            }
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

    fn inputs() -> Inputs {
        Inputs {
            kind: MachineKind::Virt,
            memory: Size::mib(24),
            kernel: Payload::flat(vec![1; 5000], 0x30_0000),
            initrd: Some(vec![2; 9000]),
            firmware: None,
            reserved: Vec::new(),
            tree_len: 2000,
        }
    }

    fn elf_at(addr: u32) -> Payload {
        let segment = Segment { addr, bytes: vec![1; 64], size: 4096 };
        Payload { segments: vec![segment], entry: addr + 4, fixed: true }
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
        let firmware = Some(Payload::flat(vec![3; 100], 100));
        let plan = plan(Inputs { firmware, ..inputs() }).unwrap();
        assert_eq!((plan.entry, plan.mode), (0x8000_0000, Mode::Machine));
        let info = plan.contents.iter().find(|s| Some(s.addr) == plan.next_stage).unwrap();
        assert_eq!(info.bytes[8..12], 0x8040_0000u32.to_le_bytes());
    }

    #[test]
    fn an_elf_stays_where_it_is_linked_or_moves_as_a_whole() {
        let entry = |addr| plan(Inputs { kernel: elf_at(addr), ..inputs() }).unwrap().entry;
        assert_eq!(entry(0x8020_0000), 0x8020_0004);
        assert_eq!(entry(0), 0x8000_0004);
        assert_eq!(entry(0xc000_0000), 0x8000_0004);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let refused = |inputs| plan(inputs).unwrap_err().to_string();
        let small = refused(Inputs { memory: Size::mib(2), ..inputs() });
        assert!(small.contains("give --memory 6M"), "{small}");
        let large = refused(Inputs { memory: Size::mib(2048), ..inputs() });
        assert!(large.contains("1 GiB at most"), "{large}");
        let odd = refused(Inputs { memory: Size(24), ..inputs() });
        assert!(odd.contains("24M"), "{odd}");
        let clash = refused(Inputs {
            kernel: elf_at(0x8000_0000),
            firmware: Some(elf_at(0x8000_0800)),
            ..inputs()
        });
        assert!(clash.contains("overlap"), "{clash}");
        let top = refused(Inputs { kernel: elf_at(0x817f_8000), ..inputs() });
        assert!(top.contains("--memory"), "{top}");
        let outside = bare(MachineKind::Virt, Size::mib(1), elf_at(0x1000)).unwrap_err();
        assert!(outside.to_string().contains("outside"), "{outside}");
    }
}

//! The devices of a given tree: none where the machine has none, and interrupts that arrive where
//! the machine's do.

use emu_core::layout::{Map, Region};

use super::super::{Shape, cells, emit};
use super::memory::is_memory;
use super::misfit::{Misfits, Repair};
use super::node::{
    Node, Window, check_cells, encode_reg, inner_windows, is_compatible, is_enabled, on_bus, reg,
    seen,
};

/// Number of an interrupt in `interrupts-extended` that is none: what a controller's context has
/// whose interrupts belong to somebody else.
const NO_INTERRUPT: u32 = u32::MAX;

/// Checks devices while it goes through the tree.
pub struct Devices<'a> {
    /// The machine.
    pub shape: &'a Shape,
    /// The phandle of the hart's interrupt controller.
    pub hart: Option<u32>,
    /// What is wrong.
    pub misfits: &'a mut Misfits,
}

/// An interrupt controller of the machine: its compatible strings, where it is, and the local
/// interrupts that it raises in the hart, in the order of its contexts.
struct Controller {
    compatible: [&'static str; 2],
    region: Region,
    lines: Vec<u32>,
}

impl Devices<'_> {
    /// Checks the devices below `parent`, whose addresses `windows` map.
    pub fn check(&mut self, parent: Node<'_, '_>, path: &str, windows: &[Window]) {
        if check_cells(parent).is_err() {
            return;
        }
        for node in parent.children().filter(|node| is_enabled(*node)) {
            let path = format!("{path}/{}", node.name);
            if ["/cpus", "/reserved-memory"].contains(&path.as_str()) || is_memory(node) {
                continue;
            }
            if let Some(controller) = controller(self.shape.kind.map(), node) {
                self.check_controller(parent, node, &path, windows, &controller);
                continue;
            }
            let at = reg(node).next().and_then(|range| seen(windows, range.start));
            if at.is_some_and(|at| !self.has(node, at)) {
                self.misfits.add(path, "the machine lacks it", Repair::Disable);
                continue;
            }
            at.into_iter().for_each(|at| self.check_interrupt(node, &path, at));
            if let Some(inner) = inner_windows(parent, node, windows) {
                self.check(node, &path, &inner);
            }
        }
    }

    /// Checks that an interrupt controller is where the machine has it, and raises what the
    /// machine's raises.
    fn check_controller(
        &mut self,
        parent: Node<'_, '_>,
        node: Node<'_, '_>,
        path: &str,
        windows: &[Window],
        ours: &Controller,
    ) {
        let base = u64::from(ours.region.base);
        let at = reg(node).next().and_then(|range| seen(windows, range.start));
        if at != Some(base) {
            let at = at.map_or("nowhere".to_owned(), |at| format!("at {at:#x}"));
            let encoded = on_bus(windows, base)
                .and_then(|base| encode_reg(parent.cell_sizes(), base, ours.region.size.into()));
            let repair = encoded.map_or(Repair::Impossible, |encoded| Repair::Set("reg", encoded));
            self.misfits.add(path, format!("it is {at}, the machine's at {base:#x}"), repair);
        }
        let given = node.property("interrupts-extended").map_or(&[][..], |lines| lines.value);
        let fits = |(i, entry): (usize, &[u8])| {
            let Some(&line) = ours.lines.get(i) else { return false };
            let none = entry[4..] == NO_INTERRUPT.to_be_bytes();
            none || self.hart.is_some_and(|hart| entry == cells(&[hart, line]))
        };
        let entries = given.chunks_exact(8);
        if !entries.remainder().is_empty() || !entries.enumerate().all(fits) {
            let lines: Vec<String> = ours.lines.iter().map(u32::to_string).collect();
            let lines = lines.join(" and ");
            let repair = self.hart.map_or(Repair::Impossible, |hart| {
                let entries = emit::wired(hart, &ours.lines);
                Repair::Set("interrupts-extended", entries)
            });
            let what =
                format!("its contexts are not the machine's, interrupts {lines} of the hart");
            self.misfits.add(path, what, repair);
        }
    }

    /// Checks that a device at `at` has the machine's interrupt, as the PLIC numbers it.
    fn check_interrupt(&mut self, node: Node<'_, '_>, path: &str, at: u64) {
        let Some(ours) = interrupt(self.shape.kind.map(), at) else { return };
        let Some(given) = node.property("interrupts") else { return };
        let Ok(given) = <[u8; 4]>::try_from(given.value).map(u32::from_be_bytes) else {
            self.misfits.add(path, "its interrupt is not one of a PLIC", Repair::Impossible);
            return;
        };
        if given != ours {
            let repair = Repair::Set("interrupts", cells(&[ours]));
            let what = format!("its interrupt is {given}, the machine's {ours}");
            self.misfits.add(path, what, repair);
        }
    }

    /// Whether the machine has this device, or memory, at an address.
    fn has(&self, node: Node<'_, '_>, at: u64) -> bool {
        let map = self.shape.kind.map();
        let ram = Region { base: map.ram_base, size: self.shape.memory };
        let rom = Region { size: self.shape.rom, ..map.rom };
        let Ok(at) = u32::try_from(at) else { return false };
        if rom.offset(at).is_some() {
            // What can be written as flash memory is another device.
            return !is_compatible(node, |name| name.ends_with("-flash"));
        }
        let devices = map.regions().into_iter().filter(|region| *region != map.rom);
        devices.chain([ram]).any(|region| region.offset(at).is_some())
    }
}

/// Returns the machine's controller of the node's kind, if both exist.
fn controller(map: &Map, node: Node<'_, '_>) -> Option<Controller> {
    let plic =
        Controller { compatible: emit::PLIC, region: map.plic, lines: emit::plic_lines(map) };
    let clint = Controller {
        compatible: emit::CLINT,
        region: map.clint,
        lines: emit::CLINT_LINES.to_vec(),
    };
    [plic, clint].into_iter().find(|ours| {
        ours.region.size != 0 && is_compatible(node, |name| ours.compatible.contains(&name))
    })
}

/// Returns the interrupt of the machine's device whose registers begin at `at`.
fn interrupt(map: &Map, at: u64) -> Option<u32> {
    let others = [(map.uart, map.uart_irq), (map.rtc, map.rtc_irq)];
    let virtio = map.virtio.iter().map(|transport| (transport.mmio, transport.irq));
    let is_there = |region: Region| region.size != 0 && u64::from(region.base) == at;
    others.into_iter().chain(virtio).find(|(region, _)| is_there(*region)).map(|(_, irq)| irq)
}

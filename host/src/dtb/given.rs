//! A device tree from the user (`--dtb`): used as it is, but refused when it is for another
//! machine.
//!
//! The crate `fdt` reads the tree. Because it trusts its input and cannot write, `dtoolkit`
//! validates the blob first and changes it afterwards.

use std::ops::Range;

use dtoolkit::fdt::Fdt as Checked;
use dtoolkit::model::DeviceTree;
use emu_core::layout::Region;
use fdt::Fdt;
use fdt::node::FdtNode;

use super::{BLOB_MAX, Shape, Template, TreeError, set};
use crate::units::Size;

/// Parses `blob` and checks that it fits `shape`.
pub fn parse(blob: &[u8], shape: &Shape) -> Result<Template, TreeError> {
    if blob.len() > BLOB_MAX {
        return Err(TreeError::TooLarge(blob.len()));
    }
    // The file may be padded behind the blob.
    let blob = match blob.get(4..8).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize) {
        Some(size) if size < blob.len() => &blob[..size],
        _ => blob,
    };
    let mut tree = DeviceTree::from_fdt(&Checked::new(blob).map_err(TreeError::Blob)?);
    // A blob that was encoded again has nothing that `fdt` could fail on.
    let blob = tree.to_dtb();
    let fdt = Fdt::new(&blob).map_err(|e| TreeError::Misfit(e.to_string()))?;
    let given = Given { fdt, shape };
    let (reserved, absent) = given.check().map_err(TreeError::Misfit)?;
    for path in &absent {
        if let Some(node) = tree.find_node_mut(path) {
            set(node, "status", "disabled");
        }
    }
    if !absent.is_empty() {
        let absent = absent.join(", ");
        tracing::warn!("disabled in the device tree, as this machine lacks it: {absent}");
    }
    Ok(Template { tree, reserved })
}

/// Depth to which devices are searched.
const DEPTH_MAX: usize = 8;

/// The user's tree while it is checked.
struct Given<'a> {
    fdt: Fdt<'a>,
    shape: &'a Shape,
}

/// A node of the tree.
type Node<'b, 'a> = FdtNode<'b, 'a>;

impl Given<'_> {
    /// Checks the tree. Returns the memory that it reserves, and the paths of devices that the
    /// machine does not have.
    fn check(&self) -> Result<(Vec<Range<u64>>, Vec<String>), String> {
        self.check_cpu()?;
        let root = self.fdt.find_node("/").ok_or("it has no root")?;
        check_cells(root)?;
        self.check_memory(root)?;
        let mut absent = Vec::new();
        let everything = Window { from: 0, to: 0, len: 1 << 32 };
        self.devices(root, "", &[everything], &mut absent);
        Ok((self.reserved()?, absent))
    }

    fn check_cpu(&self) -> Result<(), String> {
        let cpus = self.fdt.find_node("/cpus").ok_or("it has no /cpus")?;
        let is_riscv = |node: &Node<'_, '_>| is_compatible(*node, |name| name.contains("riscv"));
        let hart = cpus.children().find(is_riscv).ok_or("it has no RISC-V cpu")?;
        if ["riscv,isa", "riscv,isa-base"].iter().any(|name| text(hart, name).starts_with("rv64")) {
            return Err("its cpu is 64-bit".into());
        }
        let timebase = |node: Node<'_, '_>| node.property("timebase-frequency")?.as_usize();
        let ours = self.shape.kind.map().timebase;
        match timebase(cpus).or_else(|| timebase(hart)) {
            Some(given) if given == ours as usize => Ok(()),
            Some(given) => Err(format!("its timebase is {given} Hz, the machine's {ours} Hz")),
            None => Err("it has no timebase-frequency".into()),
        }
    }

    /// Checks that the tree has all memory of the machine, because images lie at both ends of it,
    /// and no other memory.
    fn check_memory(&self, root: Node<'_, '_>) -> Result<(), String> {
        let is_memory = |node: &Node<'_, '_>| text(*node, "device_type") == "memory";
        let mut given: Vec<Range<u64>> = root.children().filter(is_memory).flat_map(reg).collect();
        given.sort_unstable_by_key(|range| range.start);
        let base = u64::from(self.shape.kind.map().ram_base);
        let end = base + u64::from(self.shape.memory);
        let mut covered = base;
        for range in &given {
            if range.start < base || range.start > covered {
                return Err(format!(
                    "its memory at {:#x} does not follow on the machine's, which is at {base:#x}",
                    range.start
                ));
            }
            covered = covered.max(range.end);
        }
        if covered == base {
            return Err("it has no memory".into());
        }
        if covered != end {
            let (given, ours) = (Size(covered - base), Size(end - base));
            return Err(format!(
                "its memory is {given}, the machine's {ours}; give --memory {}",
                given.option()
            ));
        }
        Ok(())
    }

    /// Returns the ranges in which neither images nor the tree may lie.
    fn reserved(&self) -> Result<Vec<Range<u64>>, String> {
        let block = self.fdt.memory_reservations().map(|r| {
            let start = r.address() as u64;
            start..start.saturating_add(r.size() as u64)
        });
        let mut reserved: Vec<Range<u64>> = block.collect();
        if let Some(parent) = self.fdt.find_node("/reserved-memory") {
            check_cells(parent)?;
            reserved.extend(parent.children().filter(|node| is_enabled(*node)).flat_map(reg));
        }
        reserved.retain(|range| !range.is_empty());
        Ok(reserved)
    }

    /// Finds devices below `parent` with registers at addresses where the machine has none: a
    /// driver that accesses them ends the guest. `windows` maps the children's addresses.
    fn devices(
        &self,
        parent: Node<'_, '_>,
        path: &str,
        windows: &[Window],
        absent: &mut Vec<String>,
    ) {
        if check_cells(parent).is_err() || path.matches('/').count() > DEPTH_MAX {
            return;
        }
        for node in parent.children().filter(|node| is_enabled(*node)) {
            let path = format!("{path}/{}", node.name);
            if ["/cpus", "/reserved-memory"].contains(&path.as_str())
                || text(node, "device_type") == "memory"
            {
                continue;
            }
            let at = reg(node).next().and_then(|range| seen(windows, range.start));
            if at.is_some_and(|at| !self.has(at)) {
                absent.push(path);
            } else if let Some(inner) = inner_windows(parent, node, windows) {
                self.devices(node, &path, &inner, absent);
            }
        }
    }

    /// Whether the machine has a device or memory at an address.
    fn has(&self, at: u64) -> bool {
        let map = self.shape.kind.map();
        let ram = Region { base: map.ram_base, size: self.shape.memory };
        let rom = Region { size: self.shape.rom, ..map.rom };
        let devices = map.regions().into_iter().filter(|region| *region != map.rom);
        let at = u32::try_from(at).ok();
        at.is_some_and(|at| devices.chain([ram, rom]).any(|region| region.offset(at).is_some()))
    }
}

/// A window of a bus: where the hart sees its addresses.
#[derive(Clone, Copy)]
struct Window {
    from: u64,
    to: u64,
    len: u64,
}

/// Returns the address at which the hart sees an address of a bus.
fn seen(windows: &[Window], at: u64) -> Option<u64> {
    windows.iter().find_map(|window| {
        let offset = at.checked_sub(window.from).filter(|offset| *offset < window.len)?;
        window.to.checked_add(offset)
    })
}

/// Returns the windows through which the hart sees the bus `node`, if it does.
fn inner_windows(
    parent: Node<'_, '_>,
    node: Node<'_, '_>,
    windows: &[Window],
) -> Option<Vec<Window>> {
    let ranges = node.property("ranges")?.value;
    if ranges.is_empty() {
        return Some(windows.to_vec());
    }
    check_cells(node).ok()?;
    let (inner, outer) = (node.cell_sizes(), parent.cell_sizes());
    let [from, to, len] =
        [inner.address_cells, outer.address_cells, inner.size_cells].map(|n| 4 * n);
    let one = |entry: &[u8]| {
        let (at, rest) = entry.split_at(from);
        let (outside, length) = rest.split_at(to);
        let to = seen(windows, number(outside)?)?;
        Some(Window { from: number(at)?, to, len: number(length)? })
    };
    Some(ranges.chunks_exact((from + to + len).max(1)).filter_map(one).collect())
}

/// Refuses address and size cells that `fdt` and this module cannot read.
fn check_cells(node: Node<'_, '_>) -> Result<(), String> {
    for name in ["#address-cells", "#size-cells"] {
        if let Some(cells) = node.property(name)
            && (cells.value.len() != 4 || cells.as_usize().is_none_or(|n| n > 4))
        {
            return Err(format!("{name} of /{} is {:?}", node.name, cells.value));
        }
    }
    Ok(())
}

fn is_compatible(node: Node<'_, '_>, with: impl Fn(&str) -> bool) -> bool {
    node.compatible().is_some_and(|names| names.all().any(with))
}

fn is_enabled(node: Node<'_, '_>) -> bool {
    ["", "okay", "ok"].contains(&text(node, "status"))
}

fn text<'a>(node: Node<'_, 'a>, name: &str) -> &'a str {
    node.property(name).and_then(|property| property.as_str()).unwrap_or_default()
}

/// Returns the ranges of the property `reg`.
fn reg<'a>(node: Node<'_, 'a>) -> impl Iterator<Item = Range<u64>> + 'a {
    node.reg().into_iter().flatten().map(|region| {
        let start = region.starting_address as u64;
        start..start.saturating_add(region.size.unwrap_or(0) as u64)
    })
}

/// Returns the number in one or two cells.
fn number(cells: &[u8]) -> Option<u64> {
    [4, 8].contains(&cells.len()).then(|| cells.iter().fold(0, |n, &b| n << 8 | u64::from(b)))
}

#[cfg(test)]
mod tests {
    use dtoolkit::Node as _;
    use dtoolkit::model::DeviceTreeNode;
    use emu_core::layout::MachineKind;

    use super::super::{Chosen, cells, emit, value};
    use super::*;
    use crate::image::testing::damage;
    use crate::virtio::Slots;

    const SHAPE: Shape = Shape {
        kind: MachineKind::Virt,
        memory: 24 << 20,
        rom: 0,
        disk: false,
        slots: Slots::DEFAULT,
    };

    fn chosen(bootargs: &str) -> Chosen {
        Chosen {
            bootargs: bootargs.into(),
            initrd: Some(0x8100_0000..0x8110_0000),
            rng_seed: [7; 8],
        }
    }

    /// Returns the tree of `SHAPE` after a change.
    fn changed(change: impl FnOnce(&mut DeviceTreeNode)) -> Vec<u8> {
        let mut tree = emit(&SHAPE).tree;
        change(&mut tree.root);
        tree.to_dtb()
    }

    fn memory(root: &mut DeviceTreeNode) -> &mut DeviceTreeNode {
        root.child_mut("memory@80000000").unwrap()
    }

    fn refused(blob: &[u8]) -> String {
        parse(blob, &SHAPE).unwrap_err().to_string()
    }

    #[test]
    fn a_tree_that_fits_keeps_what_it_says_but_for_what_is_each_vms_own() {
        let first = emit(&SHAPE).blob(&chosen("console=ttyS0"));
        let template = parse(&first, &SHAPE).unwrap();
        assert_eq!(template.bootargs().as_deref(), Some("console=ttyS0"));
        assert!(template.reserved().is_empty());
        let other = Chosen {
            bootargs: "console=ttyS0 debug".into(),
            initrd: Some(0x8080_0000..0x8080_1000),
            rng_seed: [8; 8],
        };
        assert_eq!(template.blob(&other), emit(&SHAPE).blob(&other));
        let none = Chosen { initrd: None, ..other };
        assert_eq!(parse(&template.blob(&none), &SHAPE).unwrap().blob(&none), template.blob(&none));
        let chosen = template.tree.root.child("chosen").unwrap();
        assert!(value(chosen, "linux,initrd-end").is_some());
        let bare = Checked::new(&template.blob(&none)).map(|fdt| DeviceTree::from_fdt(&fdt));
        assert!(value(bare.unwrap().root.child("chosen").unwrap(), "linux,initrd-end").is_none());
    }

    #[test]
    fn trees_for_other_machines_are_refused() {
        let blob = changed(|_| ());
        let refused_by = |shape: Shape| parse(&blob, &shape).unwrap_err().to_string();
        assert!(refused_by(Shape { memory: 16 << 20, ..SHAPE }).contains("give --memory 24M"));
        assert!(refused_by(Shape { memory: 32 << 20, ..SHAPE }).contains("give --memory 24M"));
        assert!(refused_by(Shape { kind: MachineKind::Semu, ..SHAPE }).contains("timebase"));
    }

    #[test]
    fn memory_may_come_in_pieces_but_must_be_all_of_it() {
        let reg = |words: &'static [u32]| changed(|root| set(memory(root), "reg", cells(words)));
        let halves = [0x80c0_0000, 12 << 20, 0x8000_0000, 12 << 20];
        assert!(parse(&reg(Box::leak(Box::new(halves))), &SHAPE).is_ok());
        assert!(refused(&reg(&[0x8000_0000, 8 << 20, 0x80c0_0000, 12 << 20])).contains("follow"));
        assert!(refused(&reg(&[0x8010_0000, 23 << 20])).contains("follow"));
        assert!(refused(&reg(&[0x8000_0000, 23 << 20])).contains("give --memory 23M"));
        assert!(refused(&reg(&[])).contains("no memory"));
        let odd = changed(|root| set(root, "#size-cells", vec![1u8]));
        assert!(refused(&odd).contains("#size-cells of / is [1]"));
    }

    #[test]
    fn reserved_memory_is_found() {
        let blob = changed(|root| {
            let reserved = root.add_child_mut(DeviceTreeNode::new_unchecked("reserved-memory"));
            set(reserved, "#address-cells", 1u32);
            set(reserved, "#size-cells", 1u32);
            set(reserved, "ranges", Vec::<u8>::new());
            let mut add = |name: &str, words: &[u32], status: &str| {
                let node = reserved.add_child_mut(DeviceTreeNode::new_unchecked(name));
                set(node, "reg", cells(words));
                set(node, "status", status);
            };
            add("a@81000000", &[0x8100_0000, 0x1000, 0x8120_0000, 0x2000], "okay");
            add("b@81400000", &[0x8140_0000, 0x1000], "disabled");
        });
        let reserved = parse(&blob, &SHAPE).unwrap();
        assert_eq!(reserved.reserved(), [0x8100_0000..0x8100_1000, 0x8120_0000..0x8120_2000]);
    }

    #[test]
    fn devices_that_the_machine_lacks_are_disabled() {
        let blob = changed(|root| {
            let soc = root.child_mut("soc").unwrap();
            let add = |bus: &mut DeviceTreeNode, name: &str, at: u32| {
                set(bus.add_child_mut(DeviceTreeNode::new_unchecked(name)), "reg", cells(&[at, 8]));
            };
            add(soc, "virtio@10009000", 0x1000_9000);
            add(soc, "flash@20000000", 0x2000_0000);
            let bus = root.add_child_mut(DeviceTreeNode::new_unchecked("bus@10000000"));
            set(bus, "#address-cells", 1u32);
            set(bus, "#size-cells", 1u32);
            set(bus, "ranges", cells(&[0, 0x1000_0000, 0x1_0000]));
            add(bus, "serial@0", 0);
            add(bus, "virtio@9000", 0x9000);
            // On a bus that the hart does not see.
            add(bus, "far@20000", 0x2_0000);
        });
        let tree = parse(&blob, &SHAPE).unwrap().tree;
        let status = |path: &str| value(tree.find_node(path).unwrap(), "status");
        for path in ["/soc/virtio@10009000", "/soc/flash@20000000", "/bus@10000000/virtio@9000"] {
            assert_eq!(status(path).as_deref(), Some(&b"disabled\0"[..]), "{path}");
        }
        for path in ["/soc/virtio@10001000", "/bus@10000000/serial@0", "/bus@10000000/far@20000"] {
            assert_eq!(status(path), None, "{path}");
        }
    }

    #[test]
    fn damaged_blobs_never_panic() {
        let blob = emit(&SHAPE).blob(&chosen("console=ttyS0"));
        damage(&blob, 20_000, |bytes| {
            if let Ok(template) = parse(&bytes, &SHAPE) {
                template.blob(&chosen("x"));
            }
        });
    }
}

//! A device tree given by the user: kept as it is, but refused when it is for another machine.

use dtoolkit::Node;
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};

use super::{BLOB_MAX, Shape, Template, TreeError, value};
use crate::units::Size;

/// Reads `blob` and checks that it fits `shape`.
pub fn parse(blob: &[u8], shape: &Shape) -> Result<Template, TreeError> {
    if blob.len() > BLOB_MAX {
        return Err(TreeError::TooLarge(blob.len()));
    }
    // A file may be padded after the blob.
    let blob = match blob.get(4..8).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize) {
        Some(size) if size < blob.len() => &blob[..size],
        _ => blob,
    };
    let fdt = Fdt::new(blob).map_err(TreeError::Blob)?;
    let tree = DeviceTree::from_fdt(&fdt);
    check_cpu(&tree, shape).and_then(|()| check_memory(&tree, shape)).map_err(TreeError::Misfit)?;
    Ok(Template { tree })
}

fn number(node: &DeviceTreeNode, name: &str) -> Option<u64> {
    be_number(&value(node, name)?)
}

fn be_number(cells: &[u8]) -> Option<u64> {
    (cells.len() == 4 || cells.len() == 8)
        .then(|| cells.iter().fold(0, |n, &b| n << 8 | u64::from(b)))
}

fn text(node: &DeviceTreeNode, name: &str) -> String {
    let value = value(node, name).unwrap_or_default();
    String::from_utf8_lossy(&value).trim_end_matches('\0').to_owned()
}

fn check_cpu(tree: &DeviceTree, shape: &Shape) -> Result<(), String> {
    let cpus = tree.root.child("cpus").ok_or("it has no /cpus")?;
    let mut harts = cpus.children().filter(|c| text(c, "compatible").contains("riscv"));
    let hart = harts.next().ok_or("it has no RISC-V cpu")?;
    let isa = text(hart, "riscv,isa");
    if isa.starts_with("rv64") || text(hart, "riscv,isa-base").starts_with("rv64") {
        return Err("its cpu is 64-bit".into());
    }
    let timebase = number(cpus, "timebase-frequency").or(number(hart, "timebase-frequency"));
    let ours = shape.kind.map().timebase;
    match timebase {
        Some(given) if given == u64::from(ours) => Ok(()),
        Some(given) => Err(format!("its timebase is {given} Hz, the machine's {ours} Hz")),
        None => Err("it has no timebase-frequency".into()),
    }
}

fn check_memory(tree: &DeviceTree, shape: &Shape) -> Result<(), String> {
    let root = &tree.root;
    let width = |name| match number(root, name).unwrap_or(2) {
        n @ 1..=2 => Ok(4 * n as usize),
        n => Err(format!("{name} is {n}")),
    };
    let (address, size) = (width("#address-cells")?, width("#size-cells")?);
    let base = u64::from(shape.kind.map().ram_base);
    let memory = u64::from(shape.memory);
    let mut found = false;
    for node in root.children().filter(|n| text(n, "device_type") == "memory") {
        let reg = value(node, "reg").unwrap_or_default();
        for entry in reg.chunks_exact(address + size) {
            let (Some(at), Some(len)) =
                (be_number(&entry[..address]), be_number(&entry[address..]))
            else {
                continue;
            };
            let inside = at >= base && at.checked_add(len).is_some_and(|end| end <= base + memory);
            if !inside {
                return Err(format!(
                    "its memory is {} at {at:#x}, the machine has {} at {base:#x} (see --memory)",
                    Size(len),
                    Size(memory)
                ));
            }
            found = true;
        }
    }
    if found { Ok(()) } else { Err("it has no memory".into()) }
}

#[cfg(test)]
mod tests {
    use emu_core::layout::MachineKind;

    use super::super::{Chosen, emit};
    use super::*;
    use crate::image::testing::damage;

    const SHAPE: Shape = Shape { kind: MachineKind::Virt, memory: 24 << 20, rom: 0, disk: false };

    fn chosen(bootargs: &str) -> Chosen {
        Chosen {
            bootargs: bootargs.into(),
            initrd: Some(0x8100_0000..0x8110_0000),
            rng_seed: [7; 8],
        }
    }

    #[test]
    fn a_tree_that_fits_keeps_what_it_says() {
        let blob = emit(&SHAPE).blob(&chosen("console=ttyS0"));
        let template = parse(&blob, &SHAPE).unwrap();
        assert_eq!(template.bootargs().as_deref(), Some("console=ttyS0"));
        assert_eq!(template.blob(&chosen("other")), blob);
    }

    #[test]
    fn trees_for_other_machines_are_refused() {
        let blob = emit(&SHAPE).blob(&chosen(""));
        let refused = |shape: Shape| parse(&blob, &shape).unwrap_err().to_string();
        assert!(refused(Shape { memory: 16 << 20, ..SHAPE }).contains("--memory"));
        assert!(refused(Shape { kind: MachineKind::Semu, ..SHAPE }).contains("timebase"));
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

//! A device tree from the user (`--dtb`): used as it is where it describes the machine, else refused
//! or, with `--dtb-fix`, made to fit.
//!
//! The crate `fdt` reads the tree. Because it trusts its input and cannot write, `dtoolkit`
//! validates the blob first and changes it afterwards.

mod devices;
mod hart;
mod memory;
mod misfit;
mod node;

use dtoolkit::Node as _;
use dtoolkit::fdt::{Fdt as Checked, FdtNode};
use dtoolkit::model::DeviceTree;
use fdt::Fdt;

use self::devices::Devices;
use self::misfit::{Misfits, Repair};
use self::node::{Window, check_cells};
use super::{BLOB_MAX, DEPTH_MAX, FILE_MAX, NODES_MAX, Shape, Template, TreeError};

/// Parses `blob` and checks that it fits `shape`. With `fix` what does not fit is changed.
pub fn parse(blob: &[u8], shape: &Shape, fix: bool) -> Result<Template, TreeError> {
    let mut tree = unpack(blob)?;
    // A blob that was encoded again has no padding, and nothing that `fdt` could fail on.
    let blob = tree.to_dtb();
    if blob.len() > BLOB_MAX {
        return Err(TreeError::TooLarge(blob.len()));
    }
    let fdt = Fdt::new(&blob).map_err(|e| TreeError::Unreadable("/", e.to_string()))?;
    let reserved = memory::reserved(&fdt)?;
    check(&fdt, shape)?.repair(&mut tree, fix)?;
    Ok(Template { tree, reserved })
}

/// Returns the tree of a blob that keeps the limits.
fn unpack(blob: &[u8]) -> Result<DeviceTree, TreeError> {
    if blob.len() > FILE_MAX {
        return Err(TreeError::FileTooLarge(blob.len()));
    }
    let word = |at: usize| {
        let bytes = blob.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?) as usize)
    };
    let (total, nodes) = (word(header::TOTAL_SIZE), word(header::STRUCT_SIZE));
    // The file may be longer than the blob.
    let blob = total.and_then(|total| blob.get(..total)).unwrap_or(blob);
    let checked = Checked::new(blob).map_err(TreeError::Blob)?;
    if let Some(len) = nodes.filter(|len| *len > BLOB_MAX) {
        return Err(TreeError::TooLarge(len));
    }
    measure(&checked.root(), 1, &mut 0)?;
    Ok(DeviceTree::from_fdt(&checked))
}

/// Offsets in the header of a blob.
mod header {
    pub const TOTAL_SIZE: usize = 4;
    pub const STRUCT_SIZE: usize = 36;
}

/// Counts nodes, of which `node` is `depth` deep, and refuses too many: what reads them calls itself
/// for the nodes in a node.
fn measure(node: &FdtNode<'_>, depth: usize, count: &mut usize) -> Result<(), TreeError> {
    *count += 1;
    if *count > NODES_MAX {
        return Err(TreeError::TooMany);
    }
    if depth > DEPTH_MAX {
        return Err(TreeError::TooDeep);
    }
    node.children().try_for_each(|child| measure(&child, depth + 1, count))
}

/// Compares the tree with the machine.
fn check(fdt: &Fdt<'_>, shape: &Shape) -> Result<Misfits, TreeError> {
    let mut misfits = Misfits::default();
    let missing = |what: &str| TreeError::Unreadable("/", what.to_owned());
    let root = fdt.find_node("/").ok_or_else(|| missing("it is not there"))?;
    check_cells(root).map_err(|what| TreeError::Unreadable("/", what))?;
    let hart = match fdt.find_node("/cpus") {
        Some(cpus) => {
            check_cells(cpus).map_err(|what| TreeError::Unreadable("/cpus", what))?;
            hart::check(cpus, shape, &mut misfits)
        }
        None => {
            misfits.add("/", "it has no /cpus", Repair::Impossible);
            None
        }
    };
    memory::check(root, shape, &mut misfits);
    let mut devices = Devices { shape, hart, misfits: &mut misfits };
    devices.check(root, "", &[Window::EVERYTHING]);
    Ok(misfits)
}

#[cfg(test)]
mod tests {
    use dtoolkit::Property;
    use dtoolkit::model::DeviceTreeNode;
    use emu_core::layout::MachineKind;

    use super::super::{Chosen, cells, emit, set, strings, value};
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
        parse(blob, &SHAPE, false).unwrap_err().to_string()
    }

    #[test]
    fn a_tree_that_fits_keeps_what_it_says_but_for_what_is_each_vms_own() {
        let first = emit(&SHAPE).blob(&chosen("console=ttyS0"));
        let template = parse(&first, &SHAPE, false).unwrap();
        assert_eq!(template.bootargs().as_deref(), Some("console=ttyS0"));
        assert!(template.reserved().is_empty());
        let other = Chosen {
            bootargs: "console=ttyS0 debug".into(),
            initrd: Some(0x8080_0000..0x8080_1000),
            rng_seed: [8; 8],
        };
        assert_eq!(template.blob(&other), emit(&SHAPE).blob(&other));
        let none = Chosen { initrd: None, ..other };
        assert_eq!(
            parse(&template.blob(&none), &SHAPE, false).unwrap().blob(&none),
            template.blob(&none)
        );
        let chosen = template.tree.root.child("chosen").unwrap();
        assert!(value(chosen, "linux,initrd-end").is_some());
        let bare = Checked::new(&template.blob(&none)).map(|fdt| DeviceTree::from_fdt(&fdt));
        assert!(value(bare.unwrap().root.child("chosen").unwrap(), "linux,initrd-end").is_none());
    }

    #[test]
    fn trees_for_other_machines_are_refused() {
        let blob = changed(|_| ());
        let refused_by = |shape: Shape| parse(&blob, &shape, false).unwrap_err().to_string();
        assert!(refused_by(Shape { memory: 16 << 20, ..SHAPE }).contains("give --memory 24M"));
        assert!(refused_by(Shape { memory: 32 << 20, ..SHAPE }).contains("give --memory 24M"));
        assert!(refused_by(Shape { kind: MachineKind::Semu, ..SHAPE }).contains("timebase"));
    }

    #[test]
    fn memory_may_come_in_pieces_but_must_be_all_of_it() {
        let reg = |words: &'static [u32]| changed(|root| set(memory(root), "reg", cells(words)));
        let halves = [0x80c0_0000, 12 << 20, 0x8000_0000, 12 << 20];
        assert!(parse(&reg(Box::leak(Box::new(halves))), &SHAPE, false).is_ok());
        assert!(refused(&reg(&[0x8000_0000, 8 << 20, 0x80c0_0000, 12 << 20])).contains("follow"));
        assert!(refused(&reg(&[0x8010_0000, 23 << 20])).contains("follow"));
        assert!(refused(&reg(&[0x8000_0000, 23 << 20])).contains("give --memory 23M"));
        assert!(refused(&reg(&[])).contains("no memory"));
        let odd = changed(|root| set(root, "#size-cells", vec![1u8]));
        assert!(refused(&odd).contains("/: its #size-cells is [1]"));
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
        let reserved = parse(&blob, &SHAPE, false).unwrap();
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
            // QEMU lists all eight transports.
            add(soc, "virtio@10008000", 0x1000_8000);
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
        let tree = parse(&blob, &SHAPE, false).unwrap().tree;
        let status = |path: &str| value(tree.find_node(path).unwrap(), "status");
        for path in ["/soc/virtio@10009000", "/soc/flash@20000000", "/bus@10000000/virtio@9000"] {
            assert_eq!(status(path).as_deref(), Some(&b"disabled\0"[..]), "{path}");
        }
        for path in ["/soc/virtio@10008000", "/bus@10000000/serial@0", "/bus@10000000/far@20000"] {
            assert_eq!(status(path), None, "{path}");
        }
    }

    /// Returns a tree with much that is not so: what QEMU's machines have, and more.
    fn foreign() -> Vec<u8> {
        changed(|root| {
            set(memory(root), "reg", cells(&[0x8000_0000, 128 << 20]));
            let cpus = root.child_mut("cpus").unwrap();
            set(cpus, "timebase-frequency", 1_000_000u32);
            let mut second = cpus.child("cpu@0").unwrap().clone();
            let first = cpus.child_mut("cpu@0").unwrap();
            set(first, "riscv,isa", "rv32imafdc_zicsr_zba_sstc");
            set(first, "riscv,isa-base", "rv64i");
            set(first, "riscv,isa-extensions", strings(&["i", "m", "a", "f", "zicbom"]));
            set(first, "mmu-type", "riscv,sv39");
            set(&mut second, "reg", 1u32);
            set(second.child_mut("interrupt-controller").unwrap(), "phandle", 77u32);
            let mut renamed = DeviceTreeNode::new_unchecked("cpu@1");
            for property in second.properties() {
                set(&mut renamed, property.name(), property.value());
            }
            second.children().for_each(|child| renamed.add_child(child.clone()));
            cpus.add_child(renamed);
            let soc = root.child_mut("soc").unwrap();
            let plic = soc.child_mut("plic@c000000").unwrap();
            set(plic, "interrupts-extended", cells(&[1, 11, 1, 9, 77, 11, 77, 9]));
            set(soc.child_mut("clint@2000000").unwrap(), "reg", cells(&[0x1200_0000, 0x1_0000]));
            set(soc.child_mut("serial@10000000").unwrap(), "interrupts", 12u32);
        })
    }

    #[test]
    fn all_that_does_not_fit_is_named_or_changed() {
        let refused = refused(&foreign());
        for what in [
            "--dtb-fix",
            "/memory@80000000: its memory is 128 MiB, the machine's 24 MiB; give --memory 128M",
            "/cpus: its timebase is 1000000 Hz, the machine's 10000000 Hz",
            "/cpus/cpu@0: its riscv,isa has f, d, c, zba, sstc; the machine is rv32ima",
            "/cpus/cpu@0: its riscv,isa-base is rv64i, the machine's rv32i",
            "/cpus/cpu@0: its riscv,isa-extensions have f, zicbom, which the machine lacks",
            "/cpus/cpu@0: its mmu-type is riscv,sv39, the machine's riscv,sv32",
            "/cpus/cpu@1: the machine has one hart only",
            "/soc/plic@c000000: its contexts are not the machine's, interrupts 11 and 9 of the hart",
            "/soc/clint@2000000: it is at 0x12000000, the machine's at 0x2000000",
            "/soc/serial@10000000: its interrupt is 12, the machine's 10",
        ] {
            assert!(refused.contains(what), "{what}: {refused}");
        }
        let mut fixed = parse(&foreign(), &SHAPE, true).unwrap();
        let second = fixed.tree.find_node("/cpus/cpu@1").unwrap();
        assert_eq!(value(second, "status").as_deref(), Some(&b"disabled\0"[..]));
        assert!(fixed.tree.root.child_mut("cpus").unwrap().remove_child("cpu@1").is_some());
        assert_eq!(fixed.blob(&chosen("x")), emit(&SHAPE).blob(&chosen("x")));
    }

    #[test]
    fn what_cannot_be_changed_is_refused_whatever_the_user_wants() {
        let without = |parent: &str, child: &str| {
            let mut tree = emit(&SHAPE).tree;
            tree.find_node_mut(parent).unwrap().remove_child(child).unwrap();
            tree.to_dtb()
        };
        // As with the interrupt controllers that come after the PLIC.
        let two_cells = changed(|root| {
            let soc = root.child_mut("soc").unwrap();
            set(soc.child_mut("serial@10000000").unwrap(), "interrupts", cells(&[10, 4]));
        });
        for (blob, what) in [
            (without("/", "cpus"), "/: it has no /cpus"),
            (without("/", "memory@80000000"), "/: it has no memory"),
            (without("/cpus", "cpu@0"), "/cpus: it has no RISC-V cpu"),
            (two_cells, "/soc/serial@10000000: its interrupt is not one of a PLIC"),
        ] {
            for fix in [false, true] {
                let error = parse(&blob, &SHAPE, fix).unwrap_err().to_string();
                assert!(error.contains(what) && !error.contains("--dtb-fix"), "{error}");
            }
        }
    }

    #[test]
    fn a_tree_that_promises_less_is_fine() {
        let blob = changed(|root| {
            let hart = root.child_mut("cpus").unwrap().child_mut("cpu@0").unwrap();
            ["riscv,isa-base", "riscv,isa-extensions", "mmu-type"]
                .iter()
                .for_each(|name| drop(hart.remove_property(name)));
            set(hart, "riscv,isa", "rv32im");
            let soc = root.child_mut("soc").unwrap();
            // The M-mode context belongs to firmware.
            let plic = soc.child_mut("plic@c000000").unwrap();
            set(plic, "interrupts-extended", cells(&[1, u32::MAX, 1, 9]));
            drop(soc.remove_child("clint@2000000"));
        });
        assert!(parse(&blob, &SHAPE, false).is_ok());
    }

    /// Returns the blob with this total size, padded as QEMU and `dtc -S` do it.
    fn padded(blob: &[u8], size: usize) -> Vec<u8> {
        let mut padded = blob.to_vec();
        padded.resize(size, 0);
        padded[4..8].copy_from_slice(&(size as u32).to_be_bytes());
        padded
    }

    #[test]
    fn padding_is_no_part_of_a_tree() {
        let blob = emit(&SHAPE).blob(&chosen("x"));
        for size in [1 << 20, FILE_MAX] {
            let tree = parse(&padded(&blob, size), &SHAPE, false).unwrap();
            assert_eq!(tree.blob(&chosen("x")), blob);
        }
        let behind = [&blob[..], &[7; 5000]].concat();
        assert_eq!(parse(&behind, &SHAPE, false).unwrap().blob(&chosen("x")), blob);
        let cut = refused(&padded(&blob, 1 << 20)[..blob.len()]);
        assert!(cut.contains("no valid blob"), "{cut}");
    }

    #[test]
    fn limits_are_named() {
        let with = |change: &dyn Fn(&mut DeviceTreeNode)| changed(change);
        let file = refused(&padded(&with(&|_| ()), FILE_MAX + 1));
        assert!(file.ends_with("the limit is 2097152"), "{file}");
        let large = refused(&with(&|root| set(root, "x", vec![0u8; BLOB_MAX])));
        assert!(large.ends_with("the limit is 65536"), "{large}");
        let many = refused(&with(&|root| {
            (0..NODES_MAX)
                .for_each(|i| root.add_child(DeviceTreeNode::new_unchecked(format!("n{i}"))));
        }));
        assert!(many.contains("more than 2048 nodes"), "{many}");
        let deep = |depth: usize| {
            with(&|mut node| {
                for _ in 0..depth {
                    node = node.add_child_mut(DeviceTreeNode::new_unchecked("n"));
                }
            })
        };
        assert!(parse(&deep(DEPTH_MAX - 1), &SHAPE, false).is_ok());
        for depth in [DEPTH_MAX, 3000] {
            let refused = refused(&deep(depth));
            assert!(refused.contains("deeper than 32 levels"), "{refused}");
        }
    }

    #[test]
    fn damaged_blobs_never_panic_and_what_was_changed_fits() {
        let chosen = chosen("console=ttyS0");
        for blob in [emit(&SHAPE).blob(&chosen), foreign()] {
            damage(&blob, 10_000, |bytes| {
                let _ = parse(&bytes, &SHAPE, false);
                if let Ok(template) = parse(&bytes, &SHAPE, true) {
                    let again = parse(&template.blob(&chosen), &SHAPE, false);
                    assert!(again.is_ok(), "{again:?}");
                }
            });
        }
    }
}

//! Tests that the sources in `dts/`, the generated blob and `emu_core::layout` describe the same
//! machine.

mod common;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::process::Command;

    use dtoolkit::fdt::Fdt;
    use dtoolkit::model::{DeviceTree, DeviceTreeNode};
    use dtoolkit::{Node, Property};
    use emu_core::layout::{MachineKind, VIRT};
    use pxvm::dtb::{self, Chosen, Shape};
    use pxvm::machine::cmdline;
    use pxvm::machine::fleet::{Link, Root};
    use pxvm::virtio::{Choice, Guest, Slots, Virtio};
    use pxvm_tests::needs;

    const MEMORY: u32 = 24 << 20;

    /// Returns every property by its path, with phandles as the path of the node that they refer
    /// to.
    fn properties(blob: &[u8]) -> BTreeMap<String, String> {
        let tree = DeviceTree::from_fdt(&Fdt::new(blob).unwrap());
        let mut nodes = Vec::new();
        walk(&tree.root, String::new(), &mut nodes);
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        let names: BTreeMap<u32, &str> = nodes
            .iter()
            .filter_map(|(path, n)| Some((number(n.property("phandle")?.value()), path.as_str())))
            .collect();
        let mut all = BTreeMap::new();
        for (path, node) in &nodes {
            all.insert(format!("{path}/"), String::new());
            for property in node.properties() {
                let value = property.value();
                let name = property.name();
                let text = match name {
                    "phandle" => continue,
                    "interrupt-parent" | "regmap" => names[&number(value)].to_owned(),
                    "interrupts-extended" => value
                        .chunks(8)
                        .map(|c| format!("{} {}, ", names[&number(&c[..4])], number(&c[4..])))
                        .collect(),
                    _ => format!("{value:02x?}"),
                };
                all.insert(format!("{path}/{name}"), text);
            }
        }
        all
    }

    fn walk<'a>(
        node: &'a DeviceTreeNode,
        path: String,
        nodes: &mut Vec<(String, &'a DeviceTreeNode)>,
    ) {
        for child in node.children() {
            walk(child, format!("{path}/{}", Node::name(child)), nodes);
        }
        nodes.push((path, node));
    }

    fn emitted(kind: MachineKind, disk: bool, slots: Slots) -> Vec<u8> {
        // As with the default image.
        let (root, rom) = match kind {
            MachineKind::Virt => (Root::Rom, 1 << 20),
            MachineKind::Semu => (Root::Initrd, 0),
        };
        let bootargs = cmdline::bootargs(0, None, root, Link::Up, "");
        let chosen = Chosen { bootargs, initrd: None, rng_seed: [0; 8] };
        dtb::emit(&Shape { kind, memory: MEMORY, rom, disk, slots }).blob(&chosen)
    }

    /// Returns the blob of a machine's source; `None` without the device-tree compiler.
    fn compiled(name: &str) -> Option<Vec<u8>> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../dts/{name}.dts"));
        if !needs::program("dtc") {
            return None;
        }
        let dtc = Command::new("dtc").args(["-I", "dts", "-O", "dtb"]).arg(source).output();
        let output = dtc.unwrap();
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && warnings.is_empty(), "{warnings}");
        Some(output.stdout)
    }

    fn compare(name: &str, kind: MachineKind) {
        let Some(source) = compiled(name) else { return };
        let mut ours = properties(&emitted(kind, true, Slots::default()));
        assert!(ours.remove("/chosen/rng-seed").is_some());
        assert_eq!(properties(&source), ours);
    }

    #[test]
    fn the_source_of_virt_is_what_is_emitted() {
        compare("virt", MachineKind::Virt);
    }

    #[test]
    fn the_source_of_semu_is_what_is_emitted() {
        compare("semu", MachineKind::Semu);
    }

    #[test]
    fn the_emitted_tree_has_the_addresses_of_the_layout() {
        let tree = properties(&emitted(MachineKind::Virt, false, Slots::default()));
        let uart = format!("/soc/serial@{:x}/reg", VIRT.uart.base);
        let cells = [VIRT.uart.base, VIRT.uart.size];
        let bytes: Vec<u8> = cells.iter().flat_map(|c| c.to_be_bytes()).collect();
        assert_eq!(tree[&uart], format!("{bytes:02x?}"));
        assert!(!tree.contains_key("/soc/virtio@10003000/"), "a disk that is not there");
    }

    #[test]
    fn devices_are_listed_where_they_are_placed() {
        let choice = Choice { slots: "blk=0,net=7".parse().unwrap(), ..Choice::default() };
        let virtio = Virtio::new(MachineKind::Virt, Guest::Linux, &choice).unwrap();
        let tree = properties(&emitted(MachineKind::Virt, true, virtio.slots));
        let listed: Vec<&str> = tree
            .keys()
            .filter_map(|path| path.strip_prefix("/soc/virtio@")?.strip_suffix('/'))
            .collect();
        assert_eq!(listed, ["10001000", "10002000", "10008000"]);
    }

    #[test]
    fn an_independent_reader_takes_the_blob() {
        let blob = emitted(MachineKind::Virt, true, Slots::default());
        let tree = fdt::Fdt::new(&blob).unwrap();
        let memory: Vec<_> = tree.memory().regions().collect();
        assert_eq!(memory[0].starting_address as usize, VIRT.ram_base as usize);
        assert_eq!(memory[0].size, Some(MEMORY as usize));
        assert!(tree.chosen().bootargs().unwrap().contains("pxvm.host=vm0"));
        assert!(tree.chosen().stdout().is_some());
    }
}

//! Builds the device tree of a machine from its memory map.

use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use emu_core::dev::virtio::DeviceKind;
use emu_core::layout::{MachineKind, Map, Region, VirtioTransport};

use super::{Shape, Template, cells, set, strings};

/// Phandles: numbers of nodes that others refer to.
mod phandle {
    pub const CPU_INTC: u32 = 1;
    pub const PLIC: u32 = 2;
    pub const FINISHER: u32 = 3;
}

/// The hart's instructions, in one word and as base and extensions.
pub const ISA: &str = "rv32ima";
/// Base of [`ISA`].
pub const ISA_BASE: &str = "rv32i";
/// Extensions of [`ISA`], with those that its base once included.
pub const EXTENSIONS: [&str; 6] = ["i", "m", "a", "zicntr", "zicsr", "zifencei"];
/// The hart's address translation.
pub const MMU: &str = "riscv,sv32";
/// Compatible strings of the PLIC.
pub const PLIC: [&str; 2] = ["sifive,plic-1.0.0", "riscv,plic0"];
/// Compatible strings of the CLINT.
pub const CLINT: [&str; 2] = ["sifive,clint0", "riscv,clint0"];
/// Interrupts of the hart that the CLINT raises, in their order.
pub const CLINT_LINES: [u32; 2] = [local::M_SOFTWARE, local::M_TIMER];

/// Local interrupts of the hart, as the privileged specification numbers them.
mod local {
    pub const S_SOFTWARE: u32 = 1;
    pub const M_SOFTWARE: u32 = 3;
    pub const M_TIMER: u32 = 7;
    pub const S_EXTERNAL: u32 = 9;
    pub const M_EXTERNAL: u32 = 11;
}

/// Values that the test finisher takes for "power off" and "reset".
mod finisher {
    pub const PASS: u32 = 0x5555;
    pub const RESET: u32 = 0x7777;
}

/// Returns the tree of `shape`; its `/chosen` has nothing but `stdout-path`.
pub fn emit(shape: &Shape) -> Template {
    let map = shape.kind.map();
    let mut tree = DeviceTree::new();
    let root = &mut tree.root;
    set(root, "#address-cells", 1u32);
    set(root, "#size-cells", 1u32);
    match shape.kind {
        MachineKind::Virt => {
            set(root, "compatible", "riscv-virtio");
            set(root, "model", "pxvm,virt");
        }
        MachineKind::Semu => {
            set(root, "compatible", "pxvm,semu");
            set(root, "model", "semu");
        }
    }

    let uart = node_name("serial", map.uart);
    let chosen = root.add_child_mut(DeviceTreeNode::new_unchecked("chosen"));
    set(chosen, "stdout-path", format!("/soc/{uart}"));
    root.add_child(cpus(map));
    root.add_child(memory(map, shape.memory));
    root.add_child(soc(map, shape));
    if map.finisher.size != 0 {
        root.add_child(syscon("poweroff", "syscon-poweroff", finisher::PASS));
        root.add_child(syscon("reboot", "syscon-reboot", finisher::RESET));
    }
    Template { tree, reserved: Vec::new() }
}

fn node_name(name: &str, region: Region) -> String {
    format!("{name}@{:x}", region.base)
}

fn device(name: &str, region: Region, compatible: &[&str]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(node_name(name, region));
    set(&mut node, "compatible", strings(compatible));
    set(&mut node, "reg", cells(&[region.base, region.size]));
    node
}

fn cpus(map: &Map) -> DeviceTreeNode {
    let mut cpus = DeviceTreeNode::new_unchecked("cpus");
    set(&mut cpus, "#address-cells", 1u32);
    set(&mut cpus, "#size-cells", 0u32);
    set(&mut cpus, "timebase-frequency", map.timebase);

    let cpu = cpus.add_child_mut(DeviceTreeNode::new_unchecked("cpu@0"));
    set(cpu, "device_type", "cpu");
    set(cpu, "reg", 0u32);
    set(cpu, "status", "okay");
    set(cpu, "compatible", "riscv");
    set(cpu, "riscv,isa", ISA);
    set(cpu, "riscv,isa-base", ISA_BASE);
    set(cpu, "riscv,isa-extensions", strings(&EXTENSIONS));
    set(cpu, "mmu-type", MMU);

    let intc = cpu.add_child_mut(DeviceTreeNode::new_unchecked("interrupt-controller"));
    set(intc, "compatible", "riscv,cpu-intc");
    set(intc, "#address-cells", 0u32);
    set(intc, "#interrupt-cells", 1u32);
    set(intc, "interrupt-controller", Vec::<u8>::new());
    set(intc, "phandle", phandle::CPU_INTC);
    cpus
}

fn memory(map: &Map, size: u32) -> DeviceTreeNode {
    let region = Region { base: map.ram_base, size };
    let mut memory = DeviceTreeNode::new_unchecked(node_name("memory", region));
    set(&mut memory, "device_type", "memory");
    set(&mut memory, "reg", cells(&[region.base, region.size]));
    memory
}

fn soc(map: &Map, shape: &Shape) -> DeviceTreeNode {
    let mut soc = DeviceTreeNode::new_unchecked("soc");
    set(&mut soc, "compatible", "simple-bus");
    set(&mut soc, "#address-cells", 1u32);
    set(&mut soc, "#size-cells", 1u32);
    set(&mut soc, "ranges", Vec::<u8>::new());
    set(&mut soc, "interrupt-parent", phandle::PLIC);

    if shape.rom != 0 {
        let region = Region { size: shape.rom, ..map.rom };
        let mut node = device("flash", region, &["mtd-rom"]);
        set(&mut node, "bank-width", 4u32);
        soc.add_child(node);
    }
    if map.finisher.size != 0 {
        let mut node = device("test", map.finisher, &["sifive,test1", "sifive,test0", "syscon"]);
        set(&mut node, "phandle", phandle::FINISHER);
        soc.add_child(node);
    }
    if map.rtc.size != 0 {
        let mut node = device("rtc", map.rtc, &["google,goldfish-rtc"]);
        set(&mut node, "interrupts", map.rtc_irq);
        soc.add_child(node);
    }
    if map.clint.size != 0 {
        let mut node = device("clint", map.clint, &CLINT);
        set(&mut node, "interrupts-extended", wired(phandle::CPU_INTC, &CLINT_LINES));
        soc.add_child(node);
    }
    aclint(map).into_iter().for_each(|node| soc.add_child(node));
    soc.add_child(plic(map));
    soc.add_child(serial(map, shape.kind));
    for slot in devices(shape) {
        soc.add_child(virtio(&map.virtio[slot as usize]));
    }
    soc
}

/// Returns the ACLINT devices, if the machine has them.
fn aclint(map: &Map) -> Vec<DeviceTreeNode> {
    let node = |name, region, line| {
        let mut node = device(name, region, &[&format!("riscv,aclint-{name}")]);
        set(&mut node, "interrupts-extended", cells(&[phandle::CPU_INTC, line]));
        node
    };
    let software = |name, region, line| {
        let mut node = node(name, region, line);
        set(&mut node, "#address-cells", 0u32);
        set(&mut node, "#interrupt-cells", 0u32);
        set(&mut node, "interrupt-controller", Vec::<u8>::new());
        node
    };
    if map.mtimer.size == 0 {
        return Vec::new();
    }
    vec![
        node("mtimer", map.mtimer, local::M_TIMER),
        software("mswi", map.mswi, local::M_SOFTWARE),
        software("sswi", map.sswi, local::S_SOFTWARE),
    ]
}

/// Returns the slots with virtio devices. QEMU lists the others as well, but each costs the kernel
/// time at boot.
fn devices(shape: &Shape) -> Vec<u32> {
    let present = DeviceKind::ALL.into_iter().filter(|device| match device {
        DeviceKind::Net | DeviceKind::Rng => true,
        DeviceKind::Blk => shape.disk,
    });
    let mut slots: Vec<u32> = present.map(|device| shape.slots.of(device)).collect();
    slots.sort_unstable();
    slots
}

/// Returns the interrupts of the hart that the PLIC raises, in the order of its contexts.
pub fn plic_lines(map: &Map) -> Vec<u32> {
    let mut contexts = vec![(map.plic_context_s, local::S_EXTERNAL)];
    contexts.extend(map.plic_context_m.map(|m| (m, local::M_EXTERNAL)));
    contexts.sort_unstable();
    contexts.into_iter().map(|(_, line)| line).collect()
}

/// Returns `interrupts-extended` of a controller that raises these interrupts of a hart.
pub fn wired(hart: u32, lines: &[u32]) -> Vec<u8> {
    lines.iter().flat_map(|&line| cells(&[hart, line])).collect()
}

fn plic(map: &Map) -> DeviceTreeNode {
    let mut node = device("plic", map.plic, &PLIC);
    set(&mut node, "#address-cells", 0u32);
    set(&mut node, "#interrupt-cells", 1u32);
    set(&mut node, "interrupt-controller", Vec::<u8>::new());
    let lines = plic_lines(map);
    set(&mut node, "interrupts-extended", wired(phandle::CPU_INTC, &lines));
    set(&mut node, "riscv,ndev", map.plic_sources);
    set(&mut node, "phandle", phandle::PLIC);
    node
}

fn serial(map: &Map, kind: MachineKind) -> DeviceTreeNode {
    let compatible = match kind {
        MachineKind::Virt => "ns16550a",
        MachineKind::Semu => "ns16550",
    };
    let mut node = device("serial", map.uart, &[compatible]);
    set(&mut node, "interrupts", map.uart_irq);
    set(&mut node, "clock-frequency", map.uart_clock);
    if kind == MachineKind::Semu {
        set(&mut node, "no-loopback-test", Vec::<u8>::new());
    }
    node
}

fn virtio(transport: &VirtioTransport) -> DeviceTreeNode {
    let mut node = device("virtio", transport.mmio, &["virtio,mmio"]);
    set(&mut node, "interrupts", transport.irq);
    node
}

fn syscon(name: &str, compatible: &str, value: u32) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(name);
    set(&mut node, "compatible", compatible);
    set(&mut node, "regmap", phandle::FINISHER);
    set(&mut node, "offset", 0u32);
    set(&mut node, "value", value);
    node
}

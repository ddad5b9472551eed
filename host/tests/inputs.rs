//! Tests of what the user gives a guest: images, command lines, device trees, seeds. With the real
//! kernel.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::process::Command;
    use std::sync::Arc;
    use std::time::Duration;

    use dtoolkit::ToPropertyValue;
    use dtoolkit::fdt::Fdt;
    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
    use emu_core::layout::MachineKind;
    use pxvm::backend::cpu::CpuBackend;
    use pxvm::backend::{Backend, ClockSource, EventKind, Settings};
    use pxvm::console::ready::ReadyPattern;
    use pxvm::dtb::{Chosen, Shape, emit};
    use pxvm::image::cache::default_image;
    use pxvm::machine::cmdline::{LEN_MAX, bootargs};
    use pxvm::machine::fleet::Root;
    use pxvm::machine::{BaseImage, Fleet, GuestOptions, Link, assemble};
    use pxvm::virtio::Slots;
    use pxvm_tests::needs;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use serde_json::Value;
    use tempfile::NamedTempFile;

    use super::common::{cpio, has_image, initrd_with, pxvm, run};

    fn boot(args: &str) -> Command {
        pxvm(["boot", "--timeout", "100"].into_iter().chain(args.split_ascii_whitespace()))
    }

    /// Returns a file with these bytes.
    fn file(bytes: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Returns the output of VM 0 when it runs `script` instead of an init, and the messages of
    /// `pxvm`.
    fn says(args: &str, append: &str, script: &str) -> (String, String) {
        let initrd = initrd_with(&format!("{script}\npoweroff -f"));
        let append = format!("rdinit=/script {append}");
        let mut command = boot(args);
        command.arg("--initrd").arg(initrd.path()).args(["--append", &append]);
        let (code, stdout, stderr) = run(&mut command);
        assert_eq!(code, 0, "{stdout}{stderr}");
        (stdout, stderr)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    /// Script that prints the files of the tests' archives, as found in the guest.
    const LIST: &str = "cd /; echo found: $(cat one two three a 2>/dev/null)\npoweroff -f";

    /// Returns what [`LIST`] has found.
    fn found(console: &str) -> Option<&str> {
        console.lines().find_map(|line| line.trim_end().strip_prefix("found: "))
    }

    fn with_initrd(bytes: &[u8]) -> String {
        let initrd = file(bytes);
        let mut command = boot("--append rdinit=/script --clock instret --initrd");
        let (code, stdout, stderr) = run(command.arg(initrd.path()));
        assert_eq!(code, 0, "{stdout}{stderr}");
        found(&stdout).unwrap_or_else(|| panic!("it found nothing: {stdout}")).to_owned()
    }

    /// Returns the output of a guest with these very bytes as its initrd: the kernel unpacks them.
    fn with_raw_initrd(bytes: &[u8]) -> String {
        let place = file(&cpio(&[("place", 0o100_644, &vec![1; bytes.len()])]));
        let options = GuestOptions {
            initrd: Some(place.path().into()),
            append: "rdinit=/script".into(),
            ..GuestOptions::default()
        };
        let mut fleet: Fleet = assemble(&options).unwrap();
        let plan = &mut fleet.plan;
        let at = plan.initrd.clone().expect("an initrd").start;
        let segment = plan.contents.iter_mut().find(|s| s.addr == at).expect("its place");
        (segment.bytes, segment.size) = (bytes.to_vec(), bytes.len() as u32);
        plan.initrd = Some(at..at + bytes.len() as u32);
        fleet.base = BaseImage::new(plan.kind.map().ram_base, plan.memory, &plan.contents, None);

        let settings = Settings {
            started: 1,
            threads: 1,
            clock: ClockSource::Instret,
            ready: ReadyPattern::new(ReadyPattern::DEFAULT).unwrap(),
            until_ready: false,
            link: Arc::default(),
        };
        let backend = CpuBackend::start(fleet, settings).unwrap();
        let mut console = Vec::new();
        loop {
            let event = backend.events().recv_timeout(Duration::from_secs(90)).expect("an event");
            match event.kind {
                EventKind::Console(bytes) => console.extend(bytes),
                EventKind::Halted(_) => break,
                other => panic!("{other:?}: {}", String::from_utf8_lossy(&console)),
            }
        }
        let console = String::from_utf8_lossy(&console).into_owned();
        found(&console).unwrap_or_else(|| panic!("it found nothing: {console}")).to_owned()
    }

    #[test]
    fn initrds_in_several_pieces_are_what_they_are_to_linux() {
        if !has_image() {
            return;
        }
        let base = fs::read(initrd_with(LIST).path()).unwrap();
        let [one, two, three] = ["one", "two", "three"]
            .map(|name| cpio(&[(name, 0o100_644, format!("{name} ").as_bytes())]));
        let zeros = |n| vec![0; n];
        // The image's kernel has gzip, so its own unpacking is the reference for these.
        for (pieces, expected) in [
            (vec![base.clone(), one.clone(), two.clone(), three.clone()], "one two three"),
            (vec![zeros(512), base.clone(), zeros(64), one.clone(), zeros(1000)], "one"),
            (vec![zeros(5), gzip(&base), zeros(3), gzip(&one), gzip(&two), zeros(7)], "one two"),
            (vec![gzip(&base), gzip(&[&one[..], &zeros(4), &two].concat())], "one two"),
            (vec![base.clone(), zeros(4), gzip(&one), gzip(&three)], "one three"),
        ] {
            let bytes = pieces.concat();
            assert_eq!(with_raw_initrd(&bytes), expected, "{} bytes", bytes.len());
            assert_eq!(with_initrd(&bytes), expected, "{} bytes", bytes.len());
        }
        // The kernel does not know these formats. They are unpacked before it starts.
        let skip = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
        let xz = include_bytes!("../src/image/testdata/archive.xz");
        for (pieces, expected) in [
            (vec![zstd(&base), zstd(&one), skip.to_vec(), zstd(&two), zeros(3)], "one two"),
            (vec![skip.to_vec(), zstd(&base[..999]), zstd(&base[999..]), zstd(&three)], "three"),
            (vec![xz.to_vec(), zeros(4), gzip(&base), xz.to_vec(), one.clone()], "one #!/bin/sh"),
        ] {
            let bytes = pieces.concat();
            assert_eq!(with_initrd(&bytes), expected, "{} bytes", bytes.len());
        }
    }

    #[test]
    fn kernels_in_several_pieces_boot() {
        if !has_image() {
            return;
        }
        let image = fs::read(default_image().unwrap().kernel).unwrap();
        let (head, tail) = image.split_at(image.len() / 3);
        for kernel in [
            [gzip(head), gzip(tail), vec![0; 512]].concat(),
            [zstd(head), b"\x5f\x2a\x4d\x18\x01\0\0\0x".to_vec(), zstd(tail)].concat(),
        ] {
            let kernel = file(&kernel);
            let args = format!("--kernel {}", kernel.path().display());
            assert!(says(&args, "", "echo it is $((6*7))").0.contains("it is 42"));
        }
    }

    #[test]
    fn a_command_line_reaches_the_guest_whole_or_is_refused() {
        if !has_image() {
            return;
        }
        let script = "echo bytes: $(wc -c < /proc/cmdline)";
        let line = |append: &str| bootargs(0, None, Root::Initrd, Link::Up, append);
        let fill = |len| format!("x={}", "y".repeat(len - line("rdinit=/script x=").len()));
        // The kernel adds a line feed.
        let (console, stderr) = says("", &fill(LEN_MAX), script);
        assert!(console.contains("bytes: 1024\r\n") && !stderr.contains("1023"), "{console}");

        let (code, _, stderr) = run(boot("--append").arg(line(&fill(LEN_MAX + 1))));
        assert_eq!(code, 2, "{stderr}");
        assert!(
            stderr.contains("of which it takes 1023") && stderr.contains("shorter"),
            "{stderr}"
        );

        let slots = Slots::default();
        let shape = Shape { kind: MachineKind::Virt, memory: 24 << 20, rom: 0, disk: false, slots };
        let bootargs = "y".repeat(LEN_MAX + 5);
        let tree = emit(&shape).blob(&Chosen { bootargs, initrd: None, rng_seed: [0; 8] });
        let (code, _, stderr) = run(boot("--dtb").arg(file(&tree).path()));
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("the tree's bootargs 5 bytes shorter"), "{stderr}");

        // Another kernel may accept more.
        let kernel = format!("--kernel {}", default_image().unwrap().kernel.display());
        let (console, stderr) = says(&kernel, &fill(LEN_MAX + 9), script);
        assert!(console.contains("bytes: 1024\r\n"), "{console}");
        assert!(stderr.contains("WARN") && stderr.contains("has 1032 bytes"), "{stderr}");
    }

    /// Returns what VM 0 reads from its random number generator, and the messages of `pxvm`.
    fn random(args: &str) -> (String, String) {
        let (console, stderr) = says(args, "", "echo random: $(head -c 16 /dev/hwrng | od -x)");
        let line = console.lines().find(|line| line.starts_with("random: "));
        (line.unwrap_or_else(|| panic!("{console}")).to_owned(), stderr)
    }

    #[test]
    fn randomness_differs_from_run_to_run_and_can_be_had_again() {
        if !has_image() {
            return;
        }
        let (first, stderr) = random("");
        let seed = stderr.lines().find_map(|line| line.strip_prefix("seed: ")).expect(&stderr);
        assert_ne!(random("").0, first);
        let (again, stderr) = random(&format!("--seed {seed}"));
        assert_eq!(again, first);
        assert!(!stderr.contains("seed"), "{stderr}");
        let (fixed, stderr) = random("--clock instret");
        assert_eq!(random("--clock instret --seed 0").0, fixed);
        assert!(!stderr.contains("seed"), "{stderr}");

        let (_, stdout, stderr) = run(&mut boot("--until ready --json"));
        let report: Value = serde_json::from_str(&stdout).unwrap();
        let seed = report["seed"].as_str().expect("a seed");
        assert!(seed.parse::<u64>().is_ok() && stderr.contains(&format!("seed: {seed}\n")));
        let (_, stdout, _) = run(&mut boot("--until ready --json --clock instret"));
        let report: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(report["seed"], "0");
    }

    #[test]
    fn a_machine_that_starts_again_does_not_get_the_same_randomness_again() {
        if !has_image() {
            return;
        }
        let script = "echo random: $(head -c 16 /dev/hwrng | od -x)\nreboot -f";
        let initrd = initrd_with(script);
        // The VM fails after some starts, because it never becomes ready.
        let mut command = boot("--clock instret --until ready --ready-pattern xyzzy --initrd");
        let (code, console, stderr) =
            run(command.arg(initrd.path()).args(["--append", "rdinit=/script"]));
        assert_eq!(code, 4, "{console}{stderr}");
        let mut lines: Vec<&str> =
            console.lines().filter(|line| line.starts_with("random: 0")).collect();
        let starts = lines.len();
        lines.sort_unstable();
        lines.dedup();
        assert!(starts > 2 && lines.len() == starts, "{console}");
    }

    /// Returns a node with these properties.
    fn node(name: &str, properties: &[(&str, Vec<u8>)]) -> DeviceTreeNode {
        let mut node = DeviceTreeNode::new(name).unwrap();
        for (name, value) in properties {
            set(&mut node, name, value.clone());
        }
        node
    }

    fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
        node.add_property(DeviceTreeProperty::new(name, value).unwrap());
    }

    fn cells(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// Returns a tree in the style of semu's own: devices on a bus that translates addresses, an
    /// initrd where semu puts it, 512 MiB, and devices that this machine does not have.
    fn semu_tree() -> Vec<u8> {
        let widths = |address, size| {
            vec![("#address-cells", cells(&[address])), ("#size-cells", cells(&[size]))]
        };
        let text = |text: &str| [text.as_bytes(), &[0]].concat();
        let (cpu_intc, plic) = (1u32, 2u32);

        let mut intc = node("interrupt-controller", &[]);
        set(&mut intc, "compatible", "riscv,cpu-intc");
        set(&mut intc, "#interrupt-cells", 1u32);
        set(&mut intc, "interrupt-controller", Vec::<u8>::new());
        set(&mut intc, "phandle", cpu_intc);
        let mut cpu = node("cpu@0", &[("device_type", text("cpu")), ("reg", cells(&[0]))]);
        set(&mut cpu, "compatible", "riscv");
        set(&mut cpu, "riscv,isa", "rv32ima");
        set(&mut cpu, "mmu-type", "riscv,sv32");
        cpu.add_child(intc);
        let mut cpus = node("cpus", &widths(1, 0));
        set(&mut cpus, "timebase-frequency", 65_000_000u32);
        cpus.add_child(cpu);

        let device = |name: &str, at: u32, compatible: &str, irq: u32| {
            let reg = cells(&[at, 0x200]);
            let compatible = text(compatible);
            node(name, &[("compatible", compatible), ("reg", reg), ("interrupts", cells(&[irq]))])
        };
        let mut soc = node("soc@F0000000", &widths(1, 1));
        set(&mut soc, "compatible", "simple-bus");
        set(&mut soc, "ranges", cells(&[0, 0xf000_0000, 0x1000_0000]));
        set(&mut soc, "interrupt-parent", plic);
        let mut controller = node("interrupt-controller@0", &[]);
        set(&mut controller, "compatible", "sifive,plic-1.0.0");
        set(&mut controller, "reg", cells(&[0, 0x400_0000]));
        set(&mut controller, "#interrupt-cells", 1u32);
        set(&mut controller, "interrupt-controller", Vec::<u8>::new());
        set(&mut controller, "interrupts-extended", cells(&[cpu_intc, 9]));
        set(&mut controller, "riscv,ndev", 31u32);
        set(&mut controller, "phandle", plic);
        soc.add_child(controller);
        let mut serial = device("serial@4000000", 0x400_0000, "ns16550", 1);
        set(&mut serial, "clock-frequency", 5_000_000u32);
        set(&mut serial, "no-loopback-test", Vec::<u8>::new());
        soc.add_child(serial);
        soc.add_child(device("virtio@4100000", 0x410_0000, "virtio,mmio", 2));
        soc.add_child(device("virtio@4200000", 0x420_0000, "virtio,mmio", 3));
        soc.add_child(device("virtio@4600000", 0x460_0000, "virtio,mmio", 4));
        soc.add_child(device("virtio@4900000", 0x490_0000, "virtio,mmio", 7));
        for (name, at, line) in [
            ("riscv,aclint-mtimer", 0x430_0000, 7),
            ("riscv,aclint-mswi", 0x440_0000, 3),
            ("riscv,aclint-sswi", 0x450_0000, 1),
        ] {
            let mut aclint = node(&format!("aclint@{at:x}"), &[("reg", cells(&[at, 0x4000]))]);
            set(&mut aclint, "compatible", name);
            set(&mut aclint, "interrupts-extended", cells(&[cpu_intc, line]));
            soc.add_child(aclint);
        }

        let mut tree = DeviceTree::new();
        for (name, value) in widths(1, 1) {
            set(&mut tree.root, name, value);
        }
        set(&mut tree.root, "model", "semu");
        let mut chosen = node("chosen", &[("bootargs", text("earlycon console=ttyS0"))]);
        set(&mut chosen, "linux,initrd-start", 0x1f70_0000u32);
        set(&mut chosen, "linux,initrd-end", 0x1fef_ffffu32);
        let memory = [("device_type", text("memory")), ("reg", cells(&[0, 0x2000_0000]))];
        for child in [chosen, cpus, node("memory@0", &memory), soc] {
            tree.root.add_child(child);
        }
        tree.to_dtb()
    }

    #[test]
    fn a_tree_in_the_style_of_semu_boots() {
        if !has_image() {
            return;
        }
        let tree = file(&padded(semu_tree()));
        let args = format!("--machine semu --dtb {}", tree.path().display());
        let script = "mount -t sysfs sys /sys; echo cards: $(ls /sys/class/net); cat /proc/cmdline
            echo devices: $(cat /sys/bus/virtio/devices/*/device)";
        let (console, stderr) = says(&format!("{args} --memory 512M"), "", script);
        assert!(console.contains("cards: eth0"), "{console}");
        assert!(console.contains("devices: 0x0001 0x0004"), "{console}");
        assert!(console.contains("earlycon console=ttyS0 rdinit=/script"), "{console}");
        assert!(stderr.contains("/soc@F0000000/virtio@4900000"), "{stderr}");

        let (code, _, stderr) = run(&mut boot(&args));
        assert_eq!(code, 2);
        assert!(stderr.contains("give --memory 512M"), "{stderr}");
    }

    /// Returns the blob with a total size of 1 MiB, as QEMU and `dtc -S` pad blobs.
    fn padded(mut blob: Vec<u8>) -> Vec<u8> {
        blob.resize(1 << 20, 0);
        blob[4..8].copy_from_slice(&(1u32 << 20).to_be_bytes());
        blob
    }

    #[test]
    fn qemus_own_tree_boots_when_it_is_made_to_fit() {
        if !has_image() || !needs::program("qemu-system-riscv32") {
            return;
        }
        let tree = NamedTempFile::new().unwrap();
        let mut qemu = Command::new("qemu-system-riscv32");
        let machine = format!("virt,dumpdtb={}", tree.path().display());
        let (code, _, stderr) = run(qemu.args(["-M", &machine, "-m", "128M"]));
        assert_eq!(code, 0, "{stderr}");
        let tree = file(&padded(fs::read(tree.path()).unwrap()));
        let args = format!("--until ready --memory 128M --dtb {}", tree.path().display());

        let (code, _, stderr) = run(&mut boot(&args));
        assert_eq!(code, 2, "{stderr}");
        for words in ["--dtb-fix", "/cpus/cpu@0: its riscv,isa has f, d, c, "] {
            assert!(stderr.contains(words), "{stderr}");
        }
        let (code, stdout, stderr) = run(boot(&args).arg("--dtb-fix"));
        assert_eq!(code, 0, "{stdout}{stderr}");
        for words in ["riscv,isa has f, d, c, ", "/soc/pci@30000000", "/fw-cfg@10100000"] {
            assert!(stderr.contains(words), "{stderr}");
        }
    }

    #[test]
    fn images_stay_out_of_memory_that_a_tree_reserves() {
        if !has_image() {
            return;
        }
        let slots = Slots::default();
        let shape = Shape { kind: MachineKind::Virt, memory: 24 << 20, rom: 0, disk: false, slots };
        let old = Chosen {
            bootargs: "console=ttyS0 pxvm.host=vm7".into(),
            initrd: Some(0x1000..0x2000),
            rng_seed: [0; 8],
        };
        let blob = emit(&shape).blob(&old);
        let mut tree = DeviceTree::from_fdt(&Fdt::new(&blob).unwrap());
        let mut reserved = node("reserved-memory", &[("ranges", Vec::new())]);
        set(&mut reserved, "#address-cells", 1u32);
        set(&mut reserved, "#size-cells", 1u32);
        let top = cells(&[0x8160_0000, 0x20_0000]);
        reserved.add_child(node("top@81600000", &[("reg", top), ("no-map", Vec::new())]));
        tree.root.add_child(reserved);
        let tree = file(&tree.to_dtb());
        let args = format!("--dtb {}", tree.path().display());
        let (console, _) = says(&args, "", "cat /proc/cmdline");
        assert!(console.contains("console=ttyS0 pxvm.host=vm0 rdinit=/script"), "{console}");
    }

    #[test]
    fn a_kernel_that_says_nothing_is_told_how_to_speak() {
        // An Image whose first instruction jumps to itself.
        let mut image = vec![0; 4096];
        image[0] = 0x6f;
        image[0x10..0x18].copy_from_slice(&4096u64.to_le_bytes());
        image[0x30..0x38].copy_from_slice(b"RISCV\0\0\0");
        image[0x38..0x3c].copy_from_slice(b"RSC\x05");
        let image = file(&image);
        let path = image.path().display();
        for (args, words) in [
            ("--count 3", "the console of vm0 (and 2 more like it) is empty"),
            ("--clock instret", "the console of vm0 is empty"),
        ] {
            let line = format!("boot --kernel {path} --memory 8M --until ready --timeout 1 {args}");
            let (code, _, stderr) = run(&mut pxvm(line.split_ascii_whitespace()));
            assert_eq!(code, 3, "{stderr}");
            for words in [words, "--append 'loglevel=8 earlycon=sbi'"] {
                assert!(stderr.contains(words), "{stderr}");
            }
        }
    }

    #[test]
    fn what_guests_warn_of_reaches_the_user() {
        if !has_image() {
            return;
        }
        let script = "echo PXVM WARNING no disk $(cat /proc/sys/kernel/hostname); echo PXVM READY";
        let initrd = initrd_with(&format!("mount -t proc proc /proc\n{script}\nsleep 100"));
        let mut command = boot("--until ready --count 7 --append rdinit=/script --initrd");
        let (code, stdout, stderr) = run(command.arg(initrd.path()));
        assert_eq!(code, 0, "{stdout}{stderr}");
        let warned = |line: &&str| line.contains(" warns: no disk vm");
        assert_eq!(stderr.lines().filter(warned).count(), 5, "{stderr}");
        assert!(stderr.contains("more machines warn, on their consoles"), "{stderr}");
    }

    #[test]
    fn a_root_that_cannot_be_mounted_is_a_warning() {
        if !has_image() {
            return;
        }
        let (code, stdout, stderr) =
            run(&mut boot("--until ready --json --append pxvm.root=/dev/vda"));
        assert_eq!(code, 0, "{stdout}{stderr}");
        for words in ["vm0 warns: cannot mount /dev/vda", "not pxvm.root=/dev/vda"] {
            assert!(stderr.contains(words), "{stderr}");
        }
    }
}

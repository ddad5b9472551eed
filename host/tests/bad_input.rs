//! Tests of bad input: one clear sentence, exit code 2, nothing started.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use pxvm_tests::needs;

    use super::common::{pxvm, run};

    /// Files for the tests: a kernel that is good enough to be loaded, and bad ones.
    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            let files = Self(tempfile::tempdir().unwrap());
            files.write("Image", &image(0x40_0000, 0x2000, 0x1800));
            files.write("empty", b"");
            files.write("short", &[0x6f, 0, 0]);
            files.write("rv64", &image(0x20_0000, 0x2000, 0x1800));
            files.write("cut", &image(0x40_0000, 0x10_0000, 0x1000));
            files.write("text", &b"hello, this is no kernel\n".repeat(20));
            let mut arm = vec![0; 4096];
            arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
            files.write("arm64", &arm);
            let mut x86 = vec![0; 4096];
            x86[0x202..0x206].copy_from_slice(b"HdrS");
            files.write("bzImage", &x86);
            files.write("elf64", &elf(2, 243, 0, 0x8000_0000, 64));
            files.write("elf-x86", &elf(2, 62, 0, 0x8000_0000, 64));
            files.write("elf-rvc", &elf(1, 243, 1, 0x8000_0000, 64));
            files.write("elf-low", &elf(1, 243, 0, 0x1000, 64));
            files.write("elf-base", &elf(1, 243, 0, 0x8000_0000, 64));
            files.write("fw_jump.bin", &words(&FW_JUMP));
            files.write("fw_dynamic.bin", &words(&FW_DYNAMIC));
            files.write("elf-top", &elf(1, 243, 0, 0x817f_8000, 64));
            files.write("elf-huge", &elf(1, 243, 0, 0x8000_0000, 0x7000_0000));
            files.write("bad.gz", b"\x1f\x8b\x08\x00garbage garbage garbage");
            files.write("bad.xz", b"\xfd7zXZ\0garbage garbage garbage");
            files.write("bad.zst", b"\x28\xb5\x2f\xfdgarbage garbage garbage");
            files.write("old.bz2", b"BZh91AY&SY garbage");
            files.write("disk.vmdk", b"KDMV");
            let mut qcow2 = [0; 512];
            qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            qcow2[15] = 112;
            files.write("top.qcow2", &qcow2);
            files.write("no.dtb", &[7; 300]);
            let large = fs::File::create(files.path("large.rom")).unwrap();
            large.set_len((64 << 20) + 1).unwrap();
            let mut cramfs = [0; 99];
            cramfs[..8].copy_from_slice(&[0x45, 0x3d, 0xcd, 0x28, 0, 0x10, 0, 0]);
            files.write("cut.cramfs", &cramfs);
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            fs::write(self.path(name), bytes).unwrap();
        }
    }

    /// The functions by which OpenSBI's `fw_dynamic` and `fw_jump` (version 1.4) are recognised.
    const FW_DYNAMIC: [u32; 3] = [0x4942_55b7, 0x34f5_8593, 0x0006_2503];
    const FW_JUMP: [u32; 8] = [
        0xfff0_0513,
        0x0000_8067,
        0x0000_8067,
        0x0000_0013, // li a0, -1; ret; ret; nop
        0x8220_0537,
        0x0000_8067,
        0x8040_0537,
        0x0000_8067, // lui a0; ret, twice
    ];

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn image(text_offset: u64, size: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[0] = 0x6f;
        bytes[0x08..0x10].copy_from_slice(&text_offset.to_le_bytes());
        bytes[0x10..0x18].copy_from_slice(&size.to_le_bytes());
        bytes[0x30..0x38].copy_from_slice(b"RISCV\0\0\0");
        bytes[0x38..0x3c].copy_from_slice(b"RSC\x05");
        bytes
    }

    /// Returns an executable with one segment at `addr`; its code is zeros, which look compressed.
    fn elf(class: u8, machine: u16, flags: u32, addr: u32, memory: u32) -> Vec<u8> {
        let mut out = vec![0x7f, b'E', b'L', b'F', class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
        out.extend(machine.to_le_bytes());
        for word in [1, addr, 52, 0, flags] {
            out.extend(word.to_le_bytes());
        }
        for half in [52u16, 32, 1, 40, 0, 0] {
            out.extend(half.to_le_bytes());
        }
        for word in [1, 84, addr, addr, 16, memory, 5, 4] {
            out.extend(word.to_le_bytes());
        }
        out.resize(100, 0);
        out
    }

    /// Checks that `pxvm`, run in `folder`, refuses with one sentence that has all of `words`.
    fn refused(folder: &Path, args: &str, words: &[&str]) {
        let mut command = pxvm(args.split_ascii_whitespace());
        let state = folder.join("state");
        command.current_dir(folder).env("XDG_STATE_HOME", &state).env("PXVM_CACHE", folder);
        let (code, stdout, stderr) = run(&mut command);
        assert_eq!((code, stdout.as_str()), (2, ""), "pxvm {args}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "pxvm {args}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "pxvm {args}: no `{word}` in: {stderr}");
        }
        assert!(!state.exists(), "pxvm {args} has started something");
    }

    #[test]
    fn kernels() {
        let files = Files::new();
        for (kernel, words) in [
            ("missing", &["kernel missing", "cannot be read", "No such file"][..]),
            (".", &["not a regular file"]),
            ("/dev/zero", &["not a regular file"]),
            ("empty", &["empty"]),
            ("short", &["truncated"]),
            ("cut", &["truncated"]),
            ("text", &["not a kernel", "--kernel-format raw"]),
            ("rv64", &["64-bit RISC-V kernel", "rv32ima"]),
            ("arm64", &["64-bit Arm"]),
            ("bzImage", &["x86"]),
            ("elf64", &["64-bit RISC-V ELF"]),
            ("elf-x86", &["x86-64"]),
            ("elf-rvc", &["compressed"]),
            ("elf-top", &["too small"]),
            ("elf-low", &["the kernel is linked to 0x1000-0x1040, outside of memory"]),
            ("elf-base --firmware elf-base", &["overlap", "link the kernel to 0x80400000"]),
            ("text --kernel-format elf", &["not an ELF file"]),
            ("text --kernel-format image", &["not a RISC-V Image"]),
            ("default --kernel-format raw", &["--kernel-format is for a kernel of yours"]),
            ("Image --kernel-format raw@0x1000", &["linked to 0x1000-0x2800, outside of memory"]),
            ("elf-huge", &["take 1.8 GiB"]),
            ("bad.gz", &["gzip"]),
            ("bad.xz", &["xz"]),
            ("bad.zst", &["zstd"]),
            ("old.bz2", &["bzip2", "use gzip"]),
        ] {
            refused(files.0.path(), &format!("boot --kernel {kernel}"), words);
        }
    }

    /// The same for files that are not regular. Opening a pipe without a writer could block.
    #[test]
    fn files_that_are_not_regular() {
        let files = Files::new();
        let pipe = files.path("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = UnixListener::bind(files.path("socket")).unwrap();
        for args in [
            "boot --kernel",
            "boot --kernel Image --initrd",
            "boot --kernel Image --rom",
            "boot --kernel Image --disk",
            "boot --kernel Image --dtb",
            "boot --kernel Image --firmware",
            "dtb --kernel Image --dtb",
            "bench --backend cpu --kernel",
            "run",
        ] {
            let mut command = pxvm(args.split_ascii_whitespace());
            command.arg("pipe").current_dir(files.0.path()).env("PXVM_CACHE", files.0.path());
            let mut child = command.stderr(Stdio::piped()).spawn().expect("pxvm starts");
            let limit = Instant::now() + Duration::from_secs(30);
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                if Instant::now() > limit {
                    child.kill().unwrap();
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            assert_eq!(status.code(), Some(2), "pxvm {args} pipe: {stderr}");
            assert!(stderr.contains("pipe: not a regular file but a pipe"), "{stderr}");
        }
        let disk = |name| format!("boot --kernel Image --disk {name}");
        refused(files.0.path(), &disk("socket"), &["disk socket: not a regular file but a socket"]);
        refused(files.0.path(), &disk("."), &["not a regular file but a folder"]);
        refused(files.0.path(), &disk("/dev/null"), &["not a regular file but a device"]);
    }

    #[test]
    fn other_images() {
        let files = Files::new();
        for (args, words) in [
            ("--initrd text", &["initrd text", "not a cpio"][..]),
            ("--initrd missing", &["initrd missing", "No such file"]),
            ("--initrd old.bz2", &["bzip2"]),
            ("--rom empty", &["ROM empty", "the file is empty"]),
            ("--rom missing", &["No such file"]),
            ("--rom large.rom", &["ROM large.rom", "room for 64 MiB"]),
            ("--rom cut.cramfs", &["truncated", "of 4096 bytes in a file of 99"]),
            ("--rom text --machine semu", &["no place for a ROM", "--machine virt"]),
            ("--firmware elf64", &["firmware elf64", "64-bit"]),
            ("--firmware rv64", &["64-bit RISC-V kernel"]),
            ("--firmware elf-low", &["the firmware is linked to 0x1000-0x1040"]),
            ("--firmware fw_jump.bin", &["device tree to 0x82200000", "--memory 35M"]),
            ("--disk missing", &["disk missing", "No such file"]),
            ("--disk empty:raw", &["disk empty", "the file is empty"]),
            ("--disk disk.vmdk", &["vmdk", "qemu-img convert -f vmdk -O raw"]),
            ("--disk top.qcow2", &["disk top.qcow2", "a backing file", "qemu-img convert"]),
            ("--disk old.bz2", &["compressed with bzip2", "decompress the file first"]),
            ("--disk text:rw --count 2", &["2 machines cannot write back", "disk-%d.img:rw"]),
            ("--disk no-%d.img --count 2", &["disk no-0.img", "No such file"]),
            ("--dtb no.dtb", &["device tree"]),
            ("--dtb empty", &["empty"]),
        ] {
            refused(files.0.path(), &format!("boot --kernel Image {args}"), words);
        }
    }

    /// Where a name could mean something else, it can be written so that it does not.
    #[test]
    fn names_of_disks_that_look_like_options() {
        let files = Files::new();
        for name in ["a:rw", "b:raw", "disk-%d"] {
            files.write(name, &[1; 512]);
        }
        for (disk, found) in [
            ("a:rw:cow", true),
            ("b:raw:rw", true),
            ("disk-%%d", true),
            ("a:rw", false),
            ("disk-%d", false),
        ] {
            // The device tree comes after disks.
            let why: &[&str] =
                if found { &["device tree none"] } else { &["disk ", "No such file"] };
            let args = format!("boot --kernel Image --dtb none --disk {disk}");
            refused(files.0.path(), &args, why);
        }
    }

    /// Firmware comes alone: nothing of the cache's image is missed here.
    #[test]
    fn firmware_that_has_nothing_to_start() {
        let files = Files::new();
        for firmware in ["fw_dynamic.bin", "fw_jump.bin"] {
            let words = &["there is none", "`--kernel default`"];
            refused(files.0.path(), &format!("boot --firmware {firmware} --memory 64M"), words);
        }
        let args = "boot --firmware fw_dynamic.bin --kernel default";
        refused(files.0.path(), args, &["no guest image", "buildroot/build"]);
    }

    #[test]
    fn captures() {
        let files = Files::new();
        for (args, words) in [
            ("--pcap .", &["--pcap . is a folder", "name a file"][..]),
            ("--pcap none/x", &["--pcap none/x", "there is no folder none"]),
            ("--pcap text/x", &["there is no folder text"]),
            ("--pcap /sys/x", &["no right to write"]),
        ] {
            refused(files.0.path(), &format!("boot --kernel Image {args}"), words);
        }
        // An old file survives a run that does not start.
        let refusal = &["kernel missing"];
        refused(files.0.path(), "boot --kernel missing --pcap text", refusal);
        assert!(fs::metadata(files.path("text")).unwrap().len() > 0);
    }

    #[test]
    fn a_device_tree_for_another_machine() {
        let files = Files::new();
        let blob = files.path("virt.dtb");
        let mut make = pxvm(["dtb", "--blob"]);
        make.arg(&blob).env("PXVM_CACHE", files.0.path());
        assert_eq!(run(&mut make).0, 0);
        let boot = "boot --kernel Image --dtb virt.dtb";
        refused(
            files.0.path(),
            &format!("{boot} --memory 16M"),
            &["does not fit", "give --memory 24M"],
        );
        refused(files.0.path(), &format!("{boot} --memory 32M"), &["give --memory 24M"]);
        for (args, words) in [
            ("--dtb virt.dtb --machine semu", &["does not fit", "--dtb-fix", "timebase"][..]),
            ("--dtb-fix", &["required arguments", "--dtb <FILE>"]),
        ] {
            let mut command = pxvm(["boot", "--kernel", "Image"]);
            let (code, stdout, stderr) =
                run(command.args(args.split(' ')).current_dir(files.0.path()));
            assert!(code == 2 && stdout.is_empty(), "{code} {stdout}{stderr}");
            assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
        }
    }

    #[test]
    fn machines() {
        let files = Files::new();
        for (args, words) in [
            ("--memory 0", &["needs memory"][..]),
            ("--memory 24", &["24M"]),
            ("--memory 64K", &["too small", "--memory 3M"]),
            ("--memory 2G", &["1 GiB at most"]),
            ("--machine semu --memory 1G", &["512 MiB at most"]),
            ("--machine semu --virtio-slot blk=0", &["leave --virtio-slot out", "--machine virt"]),
            ("--count 1000000 --memory 1G", &["1000000 machines", "more than this host"]),
            ("--ready-pattern (", &["--ready-pattern", "unclosed group"]),
        ] {
            refused(files.0.path(), &format!("boot --kernel Image {args}"), words);
        }
    }

    #[test]
    fn a_gpu_where_there_is_none() {
        let Err(error) = pxvm::backend::cuda::available(0) else {
            needs::skip("no-gpu", "there is one");
            return;
        };
        let files = Files::new();
        for command in ["boot --kernel Image", "run elf-low", "conform elf-low"] {
            refused(files.0.path(), &format!("{command} --backend cuda"), &[&error.to_string()]);
        }
    }

    #[test]
    fn no_image_at_all() {
        let files = Files::new();
        refused(files.0.path(), "boot", &["buildroot/build"]);
    }

    #[test]
    fn programs() {
        let files = Files::new();
        for (args, words) in [
            ("run elf-low", &["outside of memory"][..]),
            ("run elf64", &["64-bit"]),
            ("run text", &["program text: not an ELF file", "--firmware"]),
            ("run missing", &["No such file"]),
            ("conform missing", &["missing", "No such file"]),
            ("conform state-of-nothing", &["No such file"]),
            ("bench --kernel text --backend cpu", &["not a kernel"]),
            ("bench --backend lockstep", &["lockstep"]),
            ("bench --workload busy --kernel text --backend cpu", &["not a kernel"]),
        ] {
            refused(files.0.path(), args, words);
        }
    }

    /// What the parser of the command line refuses, in several lines.
    #[test]
    fn options() {
        for (args, words) in [
            ("boot --count 0", &["--count"][..]),
            ("boot --memory-per-vm 1K", &["--memory-per-vm", "4 KiB or more"]),
            ("boot --memory-per-vm most", &["--memory-per-vm", "write it like 24M"]),
            ("bench --compare --backend cpu", &["--backend", "--compare"]),
            ("bench --compare --packing 8", &["--packing", "--compare"]),
            ("bench --workload busy --busy doom", &["doom", "gzip"]),
            ("bench --workload busy --busy-seconds 0", &["more than zero"]),
            ("bench --workload apart --apart huge", &["huge", "large"]),
        ] {
            let (code, stdout, stderr) = run(&mut pxvm(args.split(' ')));
            assert!(code == 2 && stdout.is_empty(), "{args}: {code} {stdout}{stderr}");
            assert!(words.iter().all(|word| stderr.contains(word)), "{args}: {stderr}");
        }
    }
}

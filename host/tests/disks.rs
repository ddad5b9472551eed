//! Tests of `--disk`: what guests find on disks of all kinds, and files that cannot be disks.

mod common;

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use pxvm::image::disk::{DiskSpec, Disks};
    use pxvm_tests::{guests, needs};
    use rustix::fs::OFlags;
    use tempfile::TempDir;

    use super::common::{Fleet, has_image, initrd_with, pxvm, run};

    /// A folder for images.
    struct Folder(TempDir);

    impl Folder {
        /// Returns a folder with a kernel that is good enough to be loaded.
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            let mut kernel = vec![0; 4096];
            kernel[0] = 0x6f;
            kernel[0x08..0x10].copy_from_slice(&0x40_0000u64.to_le_bytes());
            kernel[0x10..0x18].copy_from_slice(&4096u64.to_le_bytes());
            kernel[0x30..0x38].copy_from_slice(b"RISCV\0\0\0");
            kernel[0x38..0x3c].copy_from_slice(b"RSC\x05");
            folder.file("Image", &kernel);
            folder
        }

        /// Returns the sentence with which `pxvm boot` refuses to start with this disk. If nothing
        /// is wrong with it, that is about the device tree, which comes after disks.
        fn refusal(&self, disk: &str, more: &[&str]) -> String {
            self.refusal_under(&[], disk, more)
        }

        /// Returns the same of a `pxvm` that another program starts.
        fn refusal_under(&self, program: &[&str], disk: &str, more: &[&str]) -> String {
            let boot = [env!("CARGO_BIN_EXE_pxvm"), "boot", "--kernel", "Image", "--dtb", "none"];
            let line = [program, &boot, &["--disk", disk], more].concat();
            let mut command = self.command(line[0], &line[1..]);
            let state = self.path("state");
            let (code, stdout, stderr) = run(command.env("XDG_STATE_HOME", &state));
            assert_eq!((code, stdout.as_str(), stderr.lines().count()), (2, "", 1), "{stderr}");
            assert!(!state.exists(), "it has started something");
            stderr
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Returns the path of a new file.
        fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
            fs::write(self.path(name), bytes).unwrap();
            self.path(name)
        }

        /// Returns a command that runs a program in this folder.
        fn command(&self, program: &str, args: &[&str]) -> Command {
            let mut command = Command::new(program);
            command.args(args).current_dir(self.0.path());
            command
        }
    }

    /// Returns what VM 0 says that runs `script` with a disk.
    fn says(disk: &Path, script: &str) -> String {
        let initrd = initrd_with(&format!("{script}\npoweroff -f"));
        let mut command = pxvm(["boot", "--timeout", "100", "--append", "rdinit=/script"]);
        command.arg("--initrd").arg(initrd.path()).arg("--disk").arg(disk);
        let (code, stdout, stderr) = run(&mut command);
        assert_eq!(code, 0, "{stdout}{stderr}");
        stdout
    }

    /// Returns a path with options, or with the rest of a name.
    fn with(path: &Path, suffix: &str) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    }

    /// Part of the sentence when nothing is wrong with the disk.
    const FINE: &str = "device tree none";

    fn spec(path: &Path, suffix: &str) -> DiskSpec {
        with(path, suffix).into_os_string().into()
    }

    /// Script that prints the size of the disk in sectors and a digest of all of it.
    const LOOK: &str = "mount -t sysfs sys /sys\n\
        echo size: $(cat /sys/block/vda/size)\necho sum: $(md5sum < /dev/vda)";

    fn md5(bytes: &[u8]) -> String {
        let folder = Folder::new();
        folder.file("bytes", bytes);
        let (_, sum, _) = run(&mut folder.command("md5sum", &["bytes"]));
        sum.split_whitespace().next().unwrap().to_owned()
    }

    #[test]
    fn a_disk_of_any_size_is_padded_with_zeros() {
        if !has_image() {
            return;
        }
        let folder = Folder::new();
        for (len, sectors) in [(1, 1), (512, 1), (5000, 10), (70_000, 137)] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8 + 1).collect();
            let console = says(&folder.file("disk", &bytes), LOOK);
            assert!(console.contains(&format!("size: {sectors}\r\n")), "{console}");
            let padded = [&bytes[..], &vec![0; sectors * 512 - len]].concat();
            assert!(console.contains(&format!("sum: {}", md5(&padded))), "{len}: {console}");
        }
    }

    /// Script that reads the last page of a disk of 20 GB, and writes it and reads it again.
    const FAR: &str = "last='bs=4096 count=1 if=/dev/vda skip=5242879'\n\
        echo far: $(dd $last 2>/dev/null | head -c 15)\n\
        echo 'not what was there' | dd of=/dev/vda bs=4096 seek=5242879 2>/dev/null\n\
        sync\necho 3 > /proc/sys/vm/drop_caches\n\
        echo now: $(dd $last 2>/dev/null | head -c 18)";

    #[test]
    fn a_sparse_disk_of_20_gb_is_read_where_guests_read_it() {
        if !has_image() {
            return;
        }
        let folder = Folder::new();
        let path = folder.file("disk", b"");
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(20 << 30).unwrap();
        file.write_all_at(b"the far end, it is", (20 << 30) - 4096).unwrap();
        let script = format!("mount -t proc proc /proc\n{FAR}");
        let console = says(&path, &script);
        assert!(console.contains("far: the far end, it"), "{console}");
        assert!(console.contains("now: not what was there"), "{console}");
        // What it wrote was its own, but for one that writes back.
        let mut end = [0; 3];
        file_at(&path, &mut end);
        assert_eq!(&end, b"the");
        let console = says(&with(&path, ":rw"), &script);
        assert!(console.contains("now: not what was there"), "{console}");
        file_at(&path, &mut end);
        assert_eq!(&end, b"not");
    }

    /// Reads the beginning of the last page of a disk of 20 GB.
    fn file_at(path: &Path, bytes: &mut [u8]) {
        fs::File::open(path).unwrap().read_exact_at(bytes, (20 << 30) - 4096).unwrap();
    }

    #[test]
    fn a_qcow2_image_is_the_disk_in_it() {
        if !has_image() || !needs::program("qemu-img") {
            return;
        }
        let folder = Folder::new();
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(i) >> 8) as u8).collect();
        let raw = [&bytes[..], &[0; 500_000], &bytes].concat();
        let raw = &raw[..raw.len() / 512 * 512];
        folder.file("disk.raw", raw);
        for options in [&["-O", "qcow2"][..], &["-c", "-O", "qcow2"]] {
            let mut convert = folder.command("qemu-img", &["convert", "-f", "raw"]);
            assert_eq!(run(convert.args(options).args(["disk.raw", "disk.qcow2"])).0, 0);
            let console = says(&folder.path("disk.qcow2"), LOOK);
            assert!(console.contains(&format!("size: {}\r\n", raw.len() / 512)), "{console}");
            assert!(console.contains(&format!("sum: {}", md5(raw))), "{console}");
        }
    }

    #[test]
    fn a_block_device_is_a_disk() {
        let folder = Folder::new();
        let bytes: Vec<u8> = (0..64 * 512).map(|i| (i / 512) as u8).collect();
        folder.file("disk", &bytes);
        let (code, name, why) =
            run(&mut folder.command("losetup", &["--find", "--show", "--read-only", "disk"]));
        if code != 0 {
            needs::skip("loop-device", format!("losetup: {why}"));
            return;
        }
        let device = name.trim_end();
        let looked = std::panic::catch_unwind(|| {
            if has_image() {
                let console = says(Path::new(device), LOOK);
                assert!(console.contains("size: 64\r\n"), "{console}");
                assert!(console.contains(&format!("sum: {}", md5(&bytes))), "{console}");
            }
            let why = folder.refusal(&format!("{device}:rw"), &[]);
            assert!(why.contains("cannot be opened for writing: Read-only"), "{why}");
            // As somebody has it who has mounted it.
            let exclusive = fs::File::options()
                .read(true)
                .custom_flags(OFlags::EXCL.bits().cast_signed())
                .open(device);
            let why = folder.refusal(&format!("{device}:rw"), &[]);
            assert!(why.contains("the host uses this device; unmount it first"), "{why}");
            drop(exclusive);
        });
        assert_eq!(run(&mut folder.command("losetup", &["--detach", device])).0, 0);
        looked.unwrap();
    }

    /// Script that writes to two places of the disk, of which the second is a hole.
    const WRITE: &str = "echo first | dd of=/dev/vda conv=notrunc 2>/dev/null\n\
        echo second | dd of=/dev/vda conv=notrunc bs=4096 seek=40 2>/dev/null\nsync";

    /// Returns what a disk has after [`WRITE`], if it was `before`.
    fn written(before: &[u8]) -> Vec<u8> {
        let mut after = before.to_vec();
        after[..6].copy_from_slice(b"first\n");
        after[40 << 12..(40 << 12) + 7].copy_from_slice(b"second\n");
        after
    }

    #[test]
    fn what_guests_write_goes_where_the_option_says() {
        if !has_image() {
            return;
        }
        let folder = Folder::new();
        // The last sector is not whole; written, it is.
        let before = [vec![7; 150_000], vec![0; 50_000]].concat();
        let path = folder.file("disk", &before);
        let console = says(&with(&path, ":cow"), &format!("{WRITE}\nhead -c 5 /dev/vda"));
        assert!(console.contains("first"), "{console}");
        assert_eq!(fs::read(&path).unwrap(), before);

        let script = "mount -t sysfs sys /sys; echo ro: $(cat /sys/block/vda/ro)\n\
            echo lost > /dev/vda || echo refused";
        let console = says(&with(&path, ":ro"), script);
        assert!(console.contains("ro: 1\r\n") && console.contains("refused"), "{console}");
        assert_eq!(fs::read(&path).unwrap(), before);

        says(&with(&path, ":rw"), WRITE);
        assert_eq!(fs::read(&path).unwrap(), written(&before));
        // The next run finds it, and this one ends with a signal.
        let console = says(&path, "dd if=/dev/vda bs=4096 skip=40 count=1 2>/dev/null | head -c 6");
        assert!(console.contains("second"), "{console}");
        let initrd =
            initrd_with("echo again | dd of=/dev/vda conv=notrunc; sync; echo done\nsleep 99");
        let mut boot = pxvm(["boot", "--append", "rdinit=/script", "--initrd"]);
        boot.arg(initrd.path()).arg("--disk").arg(with(&path, ":rw"));
        let mut fleet = Fleet::start(boot);
        fleet.hear(0, "done");
        fleet.stop();
        assert_eq!(fs::read(&path).unwrap()[..6], *b"again\n");
    }

    #[test]
    fn a_qcow2_image_is_written_back() {
        if !has_image() || !needs::program("qemu-img") {
            return;
        }
        let folder = Folder::new();
        let before = [vec![7; 512 * 300], vec![0; 512 * 700]].concat();
        folder.file("disk.raw", &before);
        let image = |line: &str| {
            let args: Vec<&str> = line.split_whitespace().collect();
            let (code, _, why) = run(&mut folder.command("qemu-img", &args));
            assert_eq!(code, 0, "{line}: {why}");
        };
        image("convert -c -f raw -O qcow2 disk.raw disk.qcow2");
        says(&with(&folder.path("disk.qcow2"), ":rw"), WRITE);
        image("check -f qcow2 disk.qcow2");
        image("convert -f qcow2 -O raw disk.qcow2 after.raw");
        assert!(fs::read(folder.path("after.raw")).unwrap() == written(&before));
    }

    #[test]
    fn each_machine_has_its_own_disk() {
        if !has_image() {
            return;
        }
        let folder = Folder::new();
        for vm in 0..3 {
            folder.file(&format!("disk-{vm:02}"), &vec![b'a' + vm; 512 * (1 + usize::from(vm))]);
        }
        let script = "mount -t sysfs sys /sys; echo has: $(cat /sys/block/vda/size) $(head -c 3 /dev/vda)\n\
            sed 's/.*pxvm.host=\\(vm.\\).*/\\1 was here/' /proc/cmdline | dd of=/dev/vda conv=notrunc; sync\n\
            poweroff -f";
        let initrd = initrd_with(script);
        let consoles = folder.path("consoles");
        let mut boot =
            pxvm(["boot", "--count", "3", "--timeout", "100", "--append", "rdinit=/script"]);
        boot.arg("--console-dir").arg(&consoles).arg("--initrd").arg(initrd.path());
        let (code, _, stderr) = run(boot.arg("--disk").arg(folder.path("disk-%02d:rw")));
        assert_eq!(code, 0, "{stderr}");
        for vm in 0..3 {
            let console = fs::read_to_string(consoles.join(format!("vm{vm}.log"))).unwrap();
            let has = format!("has: {} {}", vm + 1, ["aaa", "bbb", "ccc"][vm]);
            assert!(console.contains(&has), "{console}");
            let disk = fs::read(folder.path(&format!("disk-{vm:02}"))).unwrap();
            assert_eq!(disk.len(), 512 * (1 + vm));
            assert!(disk.starts_with(format!("vm{vm} was here").as_bytes()), "{console}");
        }
    }

    #[test]
    fn a_bare_metal_program_has_a_disk() {
        let folder = Folder::new();
        // It writes the first sector to the second, with all bits changed.
        folder.file("program", &guests::with_disk().remove(0).elf);
        let before = [[0x35; 512], [7; 512]].concat();
        folder.file("disk", &before);
        let run = |line: &str| {
            let mut command = pxvm(line.split_whitespace());
            run(command.current_dir(folder.0.path()))
        };
        assert_eq!(run("run program").0, 4);
        assert_eq!(run("run program --disk disk"), (0, "ok\n".into(), String::new()));
        assert_eq!(fs::read(folder.path("disk")).unwrap(), before);
        let (code, _, why) = run("run program program --disk disk:rw");
        assert!(code == 2 && why.contains("2 machines cannot write back to one file"), "{why}");
        assert_eq!(run("run program --disk disk:rw").0, 0);
        assert_eq!(fs::read(folder.path("disk")).unwrap(), [[0x35; 512], [!0x35; 512]].concat());
    }

    /// The guest gets an error and goes on.
    #[test]
    fn a_disk_may_become_shorter_while_it_is_used() {
        if !has_image() {
            return;
        }
        let folder = Folder::new();
        let path = folder.file("disk", &[1; 64 << 20]);
        let initrd = initrd_with(
            "i=0; while dd if=/dev/vda of=/dev/null bs=64k skip=$i count=1 2>/dev/null; do\n\
             echo now; i=$((i+1)); sleep 0.1; done; echo it failed\nsleep 99",
        );
        let mut boot = pxvm(["boot", "--append", "rdinit=/script", "--initrd"]);
        boot.arg(initrd.path()).arg("--disk").arg(&path);
        let mut fleet = Fleet::start(boot);
        fleet.hear(0, "now");
        fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        fleet.hear(0, "it failed");
        fleet.stop();
    }

    #[test]
    fn a_file_is_written_by_one_program_and_by_nobody_while_others_read() {
        let folder = Folder::new();
        let path = folder.file("disk", &[1; 4096]);
        let open = |suffix| Disks::open(&spec(&path, suffix), 1).unwrap();
        let refused = |disk: &str| folder.refusal(disk, &[]);

        let writer = open(":rw");
        for disk in ["disk", "disk:rw"] {
            let why = refused(disk);
            assert!(why.contains("another program") && why.contains("fuser"), "{why}");
        }
        drop(writer);
        let reader = open("");
        let why = refused("disk:rw");
        assert!(why.contains("another program uses it, so it cannot be written to"), "{why}");
        assert!(refused("disk").contains(FINE), "readers share it");
        drop(reader);
        assert!(refused("disk:rw").contains(FINE), "nobody has it");
    }

    /// QEMU and pxvm keep each other out.
    #[test]
    fn the_locks_are_those_of_qemu() {
        if !needs::program("qemu-img") {
            return;
        }
        let folder = Folder::new();
        let path = folder.file("disk", &[1; 4096]);
        let image = |args: &[&str]| run(&mut folder.command("qemu-img", args));
        let writer = Disks::open(&spec(&path, ":rw"), 1).unwrap();
        let copy = ["convert", "-f", "raw", "-O", "raw", "disk", "copy"];
        let (code, _, why) = image(&copy);
        assert!(code != 0 && why.contains("Is another process using the image"), "{why}");
        drop(writer);
        let _reader = Disks::open(&spec(&path, ""), 1).unwrap();
        assert_eq!(image(&copy).0, 0);
        let (code, _, why) = image(&["resize", "-f", "raw", "disk", "8K"]);
        assert!(code != 0 && why.contains("lock"), "{why}");
    }

    #[test]
    fn one_machine_writes_to_a_file() {
        let folder = Folder::new();
        folder.file("disk", &[1; 4096]);
        for more in [&["--count", "2"][..], &["--capacity", "2"]] {
            let why = folder.refusal("disk:rw", more);
            assert!(why.contains("2 machines cannot write back to one file"), "{why}");
            assert!(why.contains("disk-%d.img:rw"), "{why}");
        }
        // The same file by other names.
        fs::hard_link(folder.path("disk"), folder.path("disk-0")).unwrap();
        folder.file("disk-1", &[2; 512]);
        symlink("disk", folder.path("disk-2")).unwrap();
        let why = folder.refusal("disk-%d:rw", &["--count", "3"]);
        assert!(why.contains("disk-2: the same file is the disk of vm0"), "{why}");
        // Reading it, they share it.
        assert!(folder.refusal("disk-%d", &["--count", "3"]).contains(FINE));
        let shared = Disks::open(&spec(&folder.path("disk-%d"), ""), 3).unwrap();
        assert_eq!((shared.sources().len(), shared.of(0), shared.of(2)), (2, 0, 0));
        assert_eq!((shared.of(1), shared.size(1)), (1, 512));
        assert_eq!(shared.paths(), [folder.path("disk-0"), folder.path("disk-1")]);
        // Each machine that may be added needs its disk, too.
        let why = folder.refusal("disk-%d", &["--count", "3", "--capacity", "4"]);
        assert!(why.contains("disk-3: cannot be read: No such file"), "{why}");
    }

    #[test]
    fn a_file_that_must_not_be_written_is_refused() {
        if !needs::program("setpriv") || !needs::program("unshare") {
            return;
        }
        let folder = Folder::new();
        fs::set_permissions(folder.file("disk", &[1; 4096]), Permissions::from_mode(0o444))
            .unwrap();
        // With what rights the tests have, but for the one to override those of files.
        let weak = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"];
        let why = folder.refusal_under(&weak, "disk:rw", &[]);
        assert!(why.contains("disk disk: cannot be opened for writing: Permission"), "{why}");
        assert!(folder.refusal_under(&weak, "disk", &[]).contains(FINE), "it can be read");

        let (code, _, why) = run(&mut folder.command("unshare", &["-m", "true"]));
        if code != 0 {
            needs::skip("mount-namespace", why);
            return;
        }
        let script = "mount --bind . . && mount -o remount,ro,bind . && cd \"$PWD\" && exec \"$@\"";
        let frozen = ["unshare", "-m", "sh", "-c", script, "sh"];
        let why = folder.refusal_under(&frozen, "disk:rw", &[]);
        assert!(why.contains("cannot be opened for writing: Read-only file system"), "{why}");
        assert!(folder.refusal_under(&frozen, "disk", &[]).contains(FINE), "it can be read");
    }
}

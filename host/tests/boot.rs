//! `pxvm boot` with the real guest, when it has been built.

mod common;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use pxvm::image::cache::default_image;
    use pxvm_tests::needs;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::common::{has_image, pxvm, run};

    fn boot(args: &str) -> Command {
        pxvm(["boot", "--timeout", "100"].into_iter().chain(args.split_ascii_whitespace()))
    }

    /// Boots from the initramfs instead of the ROM.
    fn boot_initramfs(args: &str) -> Command {
        let mut command = boot(args);
        let image = default_image().expect("an image");
        command.arg("--initrd").arg(image.initrd);
        command
    }

    fn json(text: &str) -> Value {
        serde_json::from_str(text).expect("one JSON object on standard output")
    }

    #[test]
    fn a_fleet_gets_ready_over_one_copy_of_its_image() {
        if !has_image() {
            return;
        }
        let (code, stdout, stderr) = run(&mut boot("--count 8 --until ready --json"));
        assert_eq!(code, 0, "{stderr}");
        let report = json(&stdout);
        assert_eq!((&report["ready"], &report["faulted"]), (&8.into(), &0.into()));

        let (_, one, _) = run(&mut boot("--until ready --json"));
        assert_eq!(report["shared_frames"], json(&one)["shared_frames"]);
        let dir = PathBuf::from(report["console_dir"].as_str().unwrap());
        let log = std::fs::read_to_string(dir.join("vm7.log")).unwrap();
        assert!(log.contains("PXVM READY host=vm7"), "{log}");
    }

    #[test]
    fn the_instret_clock_makes_runs_equal() {
        if !has_image() {
            return;
        }
        let vms = |threads: u32| {
            let args =
                format!("--count 3 --clock instret --until ready --json --threads {threads}");
            json(&run(&mut boot(&args)).1)["vms"].clone()
        };
        assert_eq!(vms(1), vms(3));
    }

    #[test]
    fn input_from_a_pipe_reaches_the_shell_and_poweroff_ends_with_success() {
        if !has_image() {
            return;
        }
        let text = session("echo sum=$((40+2)); poweroff\n");
        assert!(text.contains("sum=42"), "{text}");
    }

    /// What a VM says when `script` is typed at its shell; it must end with success.
    fn session(script: &str) -> String {
        session_of(boot(""), script)
    }

    fn session_of(mut command: Command, script: &str) -> String {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().expect("pxvm starts");
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
        text
    }

    #[test]
    fn the_root_is_executed_where_it_lies_in_rom() {
        if !has_image() {
            return;
        }
        let text = session(
            "grep r-xp /proc/self/maps; echo x > /file; echo ke''pt > ~/file && cat ~/file; poweroff\n",
        );
        // The physical address in place of the offset in the file.
        let in_rom = |line: &str| line.contains(" r-xp 200") && line.ends_with(" /bin/busybox");
        assert!(text.lines().any(|line| in_rom(line.trim_end())), "{text}");
        assert!(text.contains("/file: Read-only file system") && text.contains("kept"), "{text}");
    }

    #[test]
    fn the_initramfs_holds_the_same_files_and_takes_more() {
        if !has_image() {
            return;
        }
        let script = "cd /; find init bin etc usr -type f | xargs sha256sum | sort; poweroff\n";
        let sums = |text: String| -> Vec<String> {
            let is_sum = |l: &&str| l.len() > 66 && l[..64].bytes().all(|b| b.is_ascii_hexdigit());
            text.lines().map(str::trim_end).filter(is_sum).map(str::to_owned).collect()
        };
        let (rom, initramfs) = (session(script), session_of(boot_initramfs(""), script));
        let (rom, initramfs) = (sums(rom), sums(initramfs));
        assert!(rom.len() >= 5 && rom == initramfs, "{rom:#?} {initramfs:#?}");

        let frames = |mut command: Command| {
            let report = json(&run(&mut command).1);
            report["private_frames"].as_u64().expect("a ready VM")
        };
        let args = "--clock instret --until ready --json";
        let (rom, initramfs) = (frames(boot(args)), frames(boot_initramfs(args)));
        assert!(rom + 200 < initramfs, "{rom} and {initramfs} private frames");
    }

    #[test]
    fn a_packed_rom_is_read_by_linux_as_it_was_whatever_its_files_sizes() {
        if !has_image() || !needs::program("python3") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        // Around pages, where the format has an odd case: a last block that is whole.
        let sizes = [0, 1, 4095, 4096, 4097, 8192, 8193, 20_480];
        let mut list = String::from("dir /d 0755 0 0\n");
        let mut expected = Vec::new();
        for size in sizes {
            let path = dir.path().join(format!("f{size}"));
            let bytes: Vec<u8> = (0..size).map(|i: u32| (i % 251 + i / 251) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            list += &format!("file /d/f{size} {} 0644 0 0\n", path.display());
            let sum: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            expected.push(format!("{sum}  f{size}"));
        }
        let (list_path, rom) = (dir.path().join("list"), dir.path().join("rom"));
        std::fs::write(&list_path, list).unwrap();
        let packer = concat!(env!("CARGO_MANIFEST_DIR"), "/../buildroot/scripts/cramfs.py");
        let packed = Command::new("python3").args([packer.as_ref(), &*list_path, &rom]).status();
        assert!(packed.unwrap().success());

        let mut command = boot_initramfs("");
        command.arg("--rom").arg(rom);
        let script = "mount -t cramfs mtd0 /mnt; cd /mnt/d; sha256sum f*; poweroff\n";
        let text = session_of(command, script);
        for line in expected {
            assert!(text.lines().any(|l| l.trim_end() == line), "no {line} in {text}");
        }
    }

    #[test]
    fn nginx_serves_a_page_that_moves() {
        if !has_image() {
            return;
        }
        let get = "wget -qO- http://127.0.0.1/ | tr -d '\\n'; echo";
        let text = session(&format!("{get}; sleep 2; {get}; poweroff\n"));
        let pages: Vec<&str> =
            text.lines().filter(|line| line.contains("<html") && line.contains("vm0")).collect();
        assert_eq!(pages.len(), 2, "{text}");
        assert_ne!(pages[0], pages[1]);
    }

    #[test]
    fn the_other_machine_boots_too() {
        if !has_image() {
            return;
        }
        let (code, _, stderr) = run(&mut boot("--machine semu --until ready --json"));
        assert_eq!(code, 0, "{stderr}");
    }

    #[test]
    fn a_pattern_that_never_comes_is_a_timeout() {
        if !has_image() {
            return;
        }
        let mut command = pxvm("boot --until ready --ready-pattern xyzzy --timeout 1".split(' '));
        let (code, ..) = run(&mut command);
        assert_eq!(code, 3);
    }

    #[test]
    fn a_guest_that_never_gets_ready_fails() {
        if !has_image() {
            return;
        }
        // Without an init the kernel panics and resets, again and again.
        let mut command = boot("--until ready --clock instret --json");
        let (code, _, stderr) = run(command.args(["--append", "init=/nothing"]));
        assert_eq!(code, 4, "{stderr}");
        assert!(stderr.contains("without becoming ready"), "{stderr}");
    }

    #[test]
    fn sigterm_ends_cleanly_with_consoles_written() {
        if !has_image() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut child = boot("--count 2 --console-dir")
            .arg(dir.path())
            .stderr(Stdio::null())
            .spawn()
            .expect("pxvm starts");
        let log = dir.path().join("vm1.log");
        wait_for(|| std::fs::read_to_string(&log).is_ok_and(|t| t.contains("READY")));
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }

    fn wait_for(mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(60), "waited for too long");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A person at a terminal.
    struct Terminal {
        child: Child,
        keyboard: File,
        screen: std::sync::mpsc::Receiver<Vec<u8>>,
        seen: String,
    }

    impl Terminal {
        fn boot() -> Self {
            let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
            grantpt(&controller).unwrap();
            unlockpt(&controller).unwrap();
            let name = ptsname(&controller, Vec::new()).unwrap();
            let open = || File::options().read(true).write(true).open(name.to_str().unwrap());
            let tty = |file: File| Stdio::from(OwnedFd::from(file));
            let child = boot("")
                .stdin(tty(open().unwrap()))
                .stdout(tty(open().unwrap()))
                .stderr(Stdio::null())
                .spawn()
                .expect("pxvm starts");
            let keyboard = File::from(controller);
            let mut eyes = keyboard.try_clone().unwrap();
            let (sender, screen) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = eyes.read(&mut buffer) {
                    if sender.send(buffer[..n].to_vec()).is_err() {
                        return;
                    }
                }
            });
            Self { child, keyboard, screen, seen: String::new() }
        }

        fn type_keys(&mut self, keys: &str) {
            self.keyboard.write_all(keys.as_bytes()).unwrap();
        }

        fn see(&mut self, text: &str) {
            while !self.seen.contains(text) {
                let more = self.screen.recv_timeout(Duration::from_secs(60));
                let more = more.unwrap_or_else(|_| panic!("no `{text}` in: {}", self.seen));
                self.seen.push_str(&String::from_utf8_lossy(&more));
            }
        }
    }

    #[test]
    fn a_terminal_gets_a_shell_and_poweroff_ends_it() {
        if !has_image() {
            return;
        }
        let mut terminal = Terminal::boot();
        terminal.see("PXVM READY");
        terminal.type_keys("\r");
        terminal.see("# ");
        terminal.type_keys("echo sum=$((40+2))\r");
        terminal.see("sum=42");
        terminal.type_keys("poweroff\r");
        assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    }

    #[test]
    fn reboot_starts_again() {
        if !has_image() {
            return;
        }
        let mut terminal = Terminal::boot();
        terminal.see("PXVM READY");
        terminal.seen.clear();
        terminal.type_keys("\rreboot\r");
        terminal.see("PXVM READY");
        terminal.type_keys("\rpoweroff\r");
        assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    }

    #[test]
    fn ctrl_a_helps_and_leaves() {
        if !has_image() {
            return;
        }
        let mut terminal = Terminal::boot();
        terminal.type_keys("\x01h");
        terminal.see("Ctrl-A x");
        terminal.type_keys("\x01x");
        assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    }
}

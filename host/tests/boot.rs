//! Tests of `pxvm boot` with the real guest, if it has been built.

mod common;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use pxvm::image::cache::default_image;
    use pxvm_tests::{guests, needs};
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::common::terminal::Terminal;
    use super::common::{has_image, initrd_with, pxvm, run};

    fn boot(args: &str) -> Command {
        pxvm(["boot", "--timeout", "100"].into_iter().chain(args.split_ascii_whitespace()))
    }

    /// Returns a command that boots from the initramfs instead of the ROM.
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
    fn what_machines_used_of_memory_is_expected_of_them_the_next_time() {
        if !has_image() {
            return;
        }
        let cache = tempfile::tempdir().unwrap();
        symlink(pxvm::image::cache::images(), cache.path().join("images")).unwrap();
        let run = |args: &str| {
            let args = format!("--backend cpu --until ready {args}");
            run(boot(&args).env("PXVM_CACHE", cache.path()))
        };
        let files = || {
            let files = cache.path().join("usage").read_dir().unwrap();
            files.map(|file| file.unwrap().path()).collect::<Vec<_>>()
        };
        let (code, stdout, stderr) = run("--count 2 --json");
        assert_eq!(code, 0, "{stderr}");
        let frames = json(&stdout)["private_frames"].as_u64().unwrap() / 2;
        let [file] = &files()[..] else { panic!("{:?}", files()) };
        let kept = std::fs::read_to_string(file).unwrap();
        let expected = format!(r#"{{"format":1,"usage":{{"ready":{frames},"most":{frames}}}}}"#);
        assert_eq!(kept, expected);

        // Far more of these than any host has memory for.
        let of_all = |args: &str| run(&format!("--count 1000000 {args}"));
        std::fs::write(file, kept.replace(&frames.to_string(), "6000")).unwrap();
        let (code, _, stderr) = of_all("");
        assert!(
            code == 2 && stderr.contains("(23.4 MiB that it writes itself, as in "),
            "{stderr}"
        );
        let (code, _, stderr) = of_all("--memory-per-vm 20M");
        assert!(code == 2 && stderr.contains("(20 MiB that it writes itself, by "), "{stderr}");
        // Another condition is met at another time.
        let (code, _, stderr) = run("--ready-pattern READY");
        assert_eq!((code, files().len()), (0, 2), "{stderr}");
    }

    #[test]
    fn a_kernel_as_tutorials_have_it_finds_its_disk() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        };
        file("kernel", &guests::with_disk()[0].elf);
        file("disk", &[0x5a; 1024]);
        let boot =
            |args| run(boot("--kernel kernel --disk disk").args(args).current_dir(folder.path()));
        let (code, stdout, stderr) = boot(&[][..]);
        assert_eq!((code, stdout.as_str()), (0, "ok\n"), "{stderr}");
        let (code, stdout, _) = boot(&["--virtio-slot", "blk=6"]);
        assert_eq!((code, stdout.as_str()), (0, "ok\n"));
        // The guest looks at the version and gives up.
        let (code, stdout, _) = boot(&["--virtio", "modern"]);
        assert_eq!((code, stdout.as_str()), (4, ""));
    }

    #[test]
    fn a_driver_for_the_other_version_of_virtio_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kernel"), guests::waits_for_modern_virtio().elf)
            .unwrap();
        let run = |args: &str| run(pxvm(args.split_ascii_whitespace()).current_dir(folder.path()));
        let hint = "vm0 takes its legacy virtio transports for modern ones; give --virtio modern";
        let (code, _, stderr) = run("boot --kernel kernel --timeout 1");
        assert!(code == 3 && stderr.contains(hint), "{stderr}");
        let (code, _, stderr) = run("run kernel --max-instructions 10000");
        assert!(code == 3 && stderr.contains(hint), "{stderr}");
        assert_eq!(run("run kernel --virtio modern").0, 0);
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

    /// Returns the output of a VM when `script` is typed at its shell; it must end with success.
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
        // The mapping shows the physical address in place of the offset in the file.
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
        // Around page sizes, where the format has an odd case: a last block that is whole.
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
    fn a_prompt_makes_a_guest_ready_although_its_line_has_no_end() {
        if !has_image() {
            return;
        }
        let ready = |command: &mut Command, pattern: &str| {
            command.args(["--until", "ready", "--clock", "instret", "--json"]);
            let (code, json, stderr) = run(command.args(["--ready-pattern", pattern]));
            assert_eq!(code, 0, "{pattern}: {stderr}");
            let report: Value = serde_json::from_str(&json).unwrap();
            report["vms"][0]["ready_instret"].as_u64().expect("it was ready")
        };
        let shell = || boot("--append init=/bin/sh");
        let at = ready(&mut shell(), "^/ # ");
        assert_eq!(at, ready(&mut shell(), "^/ # "));
        let initrd = initrd_with("printf '\\r\\n\\033[1mvm0\\033[0m login: '\nread name\n");
        let mut getty = boot("--append rdinit=/script --initrd");
        ready(getty.arg(initrd.path()), "^vm0 login: ");
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
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }

    fn wait_for(mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(60), "waited for too long");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn at_terminal() -> Terminal {
        Terminal::start(boot(""))
    }

    #[test]
    fn a_terminal_gets_a_shell_and_poweroff_ends_it() {
        if !has_image() {
            return;
        }
        let mut terminal = at_terminal();
        terminal.see("PXVM READY");
        terminal.type_keys("\r");
        terminal.see("# ");
        terminal.type_keys("echo sum=$((40+2))\r");
        terminal.see("sum=42");
        terminal.type_keys("poweroff\r");
        assert_eq!(terminal.code(), Some(0));
    }

    #[test]
    fn reboot_starts_again() {
        if !has_image() {
            return;
        }
        let mut terminal = at_terminal();
        terminal.see("PXVM READY");
        terminal.seen.clear();
        terminal.type_keys("\rreboot\r");
        terminal.see("PXVM READY");
        terminal.type_keys("\rpoweroff\r");
        assert_eq!(terminal.code(), Some(0));
    }

    #[test]
    fn ctrl_a_helps_and_leaves() {
        if !has_image() {
            return;
        }
        let mut terminal = at_terminal();
        terminal.type_keys("\x01h");
        terminal.see("Ctrl-A x");
        terminal.type_keys("\x01x");
        assert_eq!(terminal.code(), Some(0));
    }

    #[test]
    fn signals_leave_the_terminal_as_it_was() {
        if !has_image() {
            return;
        }
        Terminal::check_signals(|| {
            let mut terminal = at_terminal();
            terminal.see("Ctrl-A x leaves");
            terminal
        });
    }

    #[test]
    fn a_terminal_that_others_make_nonblocking_is_waited_for() {
        if !has_image() {
            return;
        }
        let mut terminal = at_terminal();
        terminal.see("PXVM READY");
        terminal.make_nonblocking();
        terminal.type_keys("\recho sum=$((40+2))\r");
        terminal.see("sum=42");
        // More output than the terminal holds, while nothing reads it.
        let eyes = std::sync::Arc::clone(&terminal.eyes);
        let closed = eyes.lock();
        terminal.type_keys("seq 1 5000; echo done=$((1+1))\r");
        std::thread::sleep(Duration::from_secs(1));
        assert!(terminal.child.try_wait().unwrap().is_none(), "it has ended");
        drop(closed);
        terminal.see("done=2");
        let numbers: String = (1..=5000).map(|i| format!("{i}\r\n")).collect();
        assert!(terminal.seen.contains(&numbers), "something is missing");
        terminal.type_keys("poweroff\r");
        assert_eq!(terminal.code(), Some(0));
    }

    #[test]
    fn a_pipe_waits_for_a_guest_that_does_not_read() {
        if !has_image() {
            return;
        }
        const ENOUGH: usize = 8 << 20;
        // The guest is never ready, so that its input is held back for a while.
        let mut child = boot("--ready-pattern xyzzy")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pxvm starts");
        let mut pipe = child.stdin.take().unwrap();
        fcntl_setfl(&pipe, fcntl_getfl(&pipe).unwrap() | OFlags::NONBLOCK).unwrap();
        let (mut taken, mut refused) = (0, 0);
        // When the pipe has been full for a second, its reader waits.
        while taken < ENOUGH && refused < 50 {
            match pipe.write(&[b'x'; 4096]) {
                Ok(n) => (taken, refused) = (taken + n, 0),
                Err(_) => {
                    refused += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        assert!(taken < 1 << 20, "{taken} bytes were read ahead");
    }

    #[test]
    fn a_console_that_nobody_reads_any_more_ends_the_machine_without_a_complaint() {
        if !has_image() {
            return;
        }
        let mut child = boot("").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), stderr.contains("roken pipe")),
            (Some(0), false),
            "{stderr}"
        );
    }

    #[test]
    fn a_full_disk_ends_a_log_and_not_the_fleet() {
        if !has_image() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for vm in 0..2 {
            symlink("/dev/full", dir.path().join(format!("vm{vm}.log"))).unwrap();
        }
        let mut command = boot("--count 3 --until ready --console-dir");
        let (code, _, stderr) = run(command.arg(dir.path()));
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(stderr.matches("No space left on device").count(), 1, "{stderr}");
        let log = dir.path().join("vm2.log");
        assert!(std::fs::read_to_string(&log).unwrap().contains("PXVM READY"));
        assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
        // The same for the terminal's file.
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = boot("--until ready");
        let output = command.stdout(full).stderr(Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(stderr.contains("the machine goes on without it"), "{stderr}");
    }

    #[test]
    fn a_limit_on_files_ends_a_capture_and_not_the_fleet() {
        if !has_image() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let pcap = dir.path().join("run.pcapng");
        let mut command = boot("--pcap");
        command.arg(&pcap).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The file's header is there, and no packet.
        wait_for(|| std::fs::metadata(&pcap).is_ok_and(|m| m.len() > 50));
        let limit = Rlimit { current: Some(50), maximum: Some(50) };
        prlimit(Some(Pid::from_child(&child)), Resource::Fsize, limit).unwrap();
        let script = b"wget -T 1 -qO- http://10.0.2.2:1/; echo goes ''on; poweroff\n";
        child.stdin.take().unwrap().write_all(script).unwrap();
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stdout.contains("\ngoes on"), "{stdout}");
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(stderr.contains("the capture"), "{stderr}");
    }

    #[test]
    fn a_run_that_falls_short_says_of_what() {
        if !has_image() {
            return;
        }
        let mut command = pxvm("boot --count 2 --ready-pattern xyzzy --until ready".split(' '));
        let (code, _, stderr) = run(command.args(["--timeout", "1"]));
        let why = "2 of 2 machines not ready before --timeout: vm0, vm1";
        assert!(code == 3 && stderr.contains(why), "{code} {stderr}");
        let mut command = boot("--until ready --ready-pattern xyzzy");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"poweroff\n").unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let why = "1 of 1 machines ended without being ready: vm0";
        assert!(output.status.code() == Some(4) && stderr.contains(why), "{stderr}");
    }
}

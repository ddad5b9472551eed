//! Tests of the small commands.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use pxvm::backend::cuda::has_ptx;
    use pxvm_tests::guests;
    use pxvm_tests::needs::{self, found};

    use super::common::terminal::Terminal;
    use super::common::{has_image, pxvm, run, unread};

    #[test]
    fn doctor_always_ends_well_and_says_what_to_do() {
        let empty = tempfile::tempdir().unwrap();
        let (code, stdout, _) = run(pxvm(["doctor"]).env("PXVM_CACHE", empty.path()));
        assert_eq!(code, 0);
        assert!(stdout.contains("buildroot/build"), "{stdout}");
        let (code, json, _) = run(&mut pxvm(["doctor", "--json"]));
        let report: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((code, report["checks"].as_array().map(Vec::len)), (0, Some(6)));
    }

    #[test]
    fn the_gpus_driver_keeps_programs_in_the_cache_unless_told_otherwise() {
        let Some(()) = found("ptx", has_ptx()) else { return };
        let cache = tempfile::tempdir().unwrap();
        let mut doctor = pxvm(["-vv", "doctor"]);
        doctor.env("PXVM_CACHE", cache.path());
        doctor.env_remove("CUDA_CACHE_PATH").env_remove("CUDA_CACHE_DISABLE");
        let (_, _, said) = run(&mut doctor);
        let ours = format!("{:?}", cache.path().join("gpu"));
        assert!(said.contains(&format!("Folder({ours})")), "{said}");
        let (_, _, said) = run(doctor.env("CUDA_CACHE_PATH", "/nowhere/else"));
        assert!(said.contains(r#"Folder("/nowhere/else")"#) && !said.contains(&ours), "{said}");
        let (_, _, said) = run(doctor.env("CUDA_CACHE_DISABLE", "1"));
        assert!(said.contains("Nowhere") && !said.contains("Folder"), "{said}");
        // Other users could put programs there.
        let shared = cache.path().join("gpu");
        fs::create_dir_all(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
        doctor.env_remove("CUDA_CACHE_PATH").env_remove("CUDA_CACHE_DISABLE");
        let (_, _, said) = run(&mut doctor);
        assert!(said.contains("Usual") && !said.contains("Folder"), "{said}");
    }

    #[test]
    fn images_of_an_empty_cache_are_none() {
        let empty = tempfile::tempdir().unwrap();
        let (code, stdout, _) = run(pxvm(["images"]).env("PXVM_CACHE", empty.path()));
        assert_eq!(code, 0);
        assert!(stdout.contains("buildroot/build"), "{stdout}");
    }

    #[test]
    fn the_tree_of_a_vm_names_it() {
        let empty = tempfile::tempdir().unwrap();
        let mut dtb = pxvm("dtb --machine semu --vm 12 --append panic=9".split(' '));
        let (code, stdout, _) = run(dtb.env("PXVM_CACHE", empty.path()));
        assert_eq!(code, 0);
        assert!(stdout.contains("pxvm.host=vm12 panic=9") && stdout.contains("semu"), "{stdout}");
    }

    #[test]
    fn the_tree_has_a_rom_that_was_given() {
        let empty = tempfile::tempdir().unwrap();
        let rom = empty.path().join("rom");
        std::fs::write(&rom, [1; 5000]).unwrap();
        let mut dtb = pxvm(["dtb", "--rom"]);
        let (code, stdout, _) = run(dtb.arg(rom).env("PXVM_CACHE", empty.path()));
        assert_eq!(code, 0);
        for words in ["flash@20000000", "\"mtd-rom\"", "<0x20000000 0x2000>", " root=mtd0 "] {
            assert!(stdout.contains(words), "{stdout}");
        }
    }

    #[test]
    fn completions_and_manual_pages_are_made() {
        let (code, script, _) = run(&mut pxvm(["completions", "bash"]));
        assert!(code == 0 && script.contains("--until"));
        let dir = tempfile::tempdir().unwrap();
        let (code, ..) = run(pxvm(["man", "--dir"]).arg(dir.path()));
        assert!(code == 0 && dir.path().join("pxvm-boot.1").is_file());
        let (code, page, _) = run(&mut pxvm(["man"]));
        assert!(code == 0 && page.contains("RISC\\-V"), "{page}");
    }

    fn bench(args: &str) -> (i32, serde_json::Value) {
        let line = format!("bench --backend cpu --json {args}");
        let (code, stdout, stderr) = run(&mut pxvm(line.split_ascii_whitespace()));
        (code, serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}")))
    }

    #[test]
    fn bench_measures_each_combination() {
        let (code, report) = bench("--workload compute --count 1,3 --packing 1,auto");
        let rows = report["rows"].as_array().unwrap();
        assert_eq!((code, rows.len()), (0, 4));
        for (row, (count, packing)) in rows.iter().zip([(1, 1), (1, 0), (3, 1), (3, 0)]) {
            assert_eq!(
                (row["count"].as_u64(), row["packing"].as_u64()),
                (Some(count), (packing > 0).then_some(packing))
            );
            assert!(row["instructions"].as_u64() > Some(14_000_000 * count), "{row}");
            assert!(row["total_gips"].as_f64() > Some(0.0), "{row}");
        }
    }

    #[test]
    fn bench_says_what_does_not_fit_and_goes_on() {
        let (code, report) = bench("--workload compute --count 1000000,1");
        assert_eq!(code, 0);
        assert!(report["rows"][0]["note"].as_str().unwrap().contains("has memory for"), "{report}");
        assert!(report["rows"][1]["wall_seconds"].is_number(), "{report}");
        let (code, report) = bench("--workload compute --timeout 0.000001 --count 1");
        assert!(code == 3 && report["rows"][0]["note"].is_string(), "{report}");
    }

    #[test]
    fn bench_boots_fleets_and_lets_them_idle() {
        if !has_image() {
            return;
        }
        let (code, report) = bench("--workload boot,idle --count 2 --idle-seconds 0.2");
        assert_eq!((code, report["rows"].as_array().map(Vec::len)), (0, Some(2)), "{report}");
        assert!(report["rows"][0]["memory_per_vm"].as_u64() > Some(1 << 20), "{report}");
    }

    #[test]
    fn bench_checks_vms_that_branch_apart() {
        let (code, report) = bench("--workload apart --count 4");
        let sizes: Vec<_> =
            report["rows"].as_array().unwrap().iter().map(|r| r["apart"].as_str()).collect();
        assert_eq!((code, sizes), (0, vec![Some("small"), Some("large")]), "{report}");
        assert!(report["rows"][1]["instructions"].as_u64() > Some(40_000_000), "{report}");
    }

    #[test]
    fn bench_checks_busy_guests() {
        if !has_image() {
            return;
        }
        let (code, report) = bench("--workload busy --busy mix,gzip --count 2 --busy-seconds 0.5");
        let rows = report["rows"].as_array().unwrap();
        assert_eq!((code, rows.len()), (0, 2), "{report}");
        for (row, work) in rows.iter().zip(["mix", "gzip"]) {
            assert_eq!((row["busy"].as_str(), row["unchecked"].as_u64()), (Some(work), Some(0)));
            assert!(row["instructions"].as_u64() > Some(0), "{row}");
        }
        // A guest that takes no lines never begins.
        let (code, report) =
            bench("--workload busy --count 1 --timeout 2 --append init=/bin/nothing");
        assert!(code == 3 || code == 4, "{report}");
        assert!(report["rows"][0]["note"].is_string(), "{report}");
    }

    #[test]
    fn bench_compares_with_qemu() {
        if !has_image() || !needs::program("qemu-system-riscv32") {
            return;
        }
        let line = "bench --compare --workload busy --busy gzip --count 1 --busy-seconds 2 --json";
        let (code, stdout, stderr) = run(&mut pxvm(line.split_ascii_whitespace()));
        let report: serde_json::Value = serde_json::from_str(&stdout).expect(&stderr);
        let rows = report["rows"].as_array().unwrap();
        let of = |name: &str| rows.iter().find(|row| row["backend"] == name);
        assert_eq!(code, 0, "{report}");
        for row in [of("cpu"), of("qemu")] {
            let row = row.unwrap_or_else(|| panic!("{report}"));
            assert!(row["rounds"].as_u64() > Some(0), "{row}");
            assert!(row["total_gips"].as_f64() > Some(0.0), "{row}");
        }
        assert!(report["qemu"].as_str().unwrap().starts_with("QEMU"), "{report}");
        // Without it that is said, and the others are measured.
        let line = "bench --compare --workload apart --apart small --count 1";
        let (code, stdout, _) = run(pxvm(line.split_ascii_whitespace()).env("PATH", ""));
        assert!(
            stdout.contains("qemu: not compared: qemu-system-riscv32 cannot be run"),
            "{stdout}"
        );
        assert!(code == 0 && stdout.contains("\ncpu   apart small"), "{stdout}");
    }

    /// Bare-metal guests as files, and `pxvm run` with some of them.
    struct Guests(tempfile::TempDir);

    impl Guests {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let own = [guests::echo(), guests::semihosting()];
            for guest in guests::good(1).into_iter().chain(guests::hostile()).chain(own) {
                fs::write(dir.path().join(guest.name), guest.elf).unwrap();
            }
            Self(dir)
        }

        fn run(&self, args: &str) -> (i32, String, String) {
            let args = args.split_ascii_whitespace();
            run(pxvm(["run", "--memory", "8M"]).args(args).current_dir(self.0.path()))
        }
    }

    #[test]
    fn programs_side_by_side_are_told_apart() {
        let guests = Guests::new();
        let (code, stdout, _) = guests.run("trap-loop clockwork clockwork --digest");
        let lines: Vec<&str> = stdout.lines().collect();
        let [one, two, fault, first, second] = lines[..] else { panic!("{stdout}") };
        assert!(one.starts_with("vm1| edcba") && two.starts_with("vm2| edcba"), "{stdout}");
        assert!(fault.starts_with("vm0: trap-loop cannot go on: "), "{stdout}");
        assert!(first.starts_with("vm1: clockwork passed, ") && first.contains(", digest "));
        // The VMs differ in the MAC addresses of their network cards.
        assert_ne!(first.rsplit(' ').next(), second.rsplit(' ').next());
        assert_eq!(code, 4);
        let again = guests.run("wfi-storm clockwork clockwork --digest --max-instructions 100000");
        assert_eq!(again.1.lines().last(), Some(second));
        assert_eq!(again.0, 3);
    }

    #[test]
    fn a_digest_depends_on_what_the_documentation_says() {
        let guests = Guests::new();
        let digest = |args: &str| {
            let (_, stdout, stderr) = guests.run(&format!("{args} --digest"));
            let line = stdout.lines().last().unwrap_or_else(|| panic!("{stderr}"));
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let first = digest("clockwork");
        assert_eq!(digest("clockwork"), first);
        let more = ["run", "--memory", "16M", "clockwork", "--digest"];
        let (_, stdout, _) = run(pxvm(more).current_dir(guests.0.path()));
        assert!(stdout.trim_end().ends_with(&first), "{stdout}");
        assert_ne!(digest("clockwork --max-instructions 64"), first);
        assert_ne!(digest("low-word-timer"), first);
    }

    #[test]
    fn a_trap_loop_tells_its_first_trap() {
        let (code, _, stderr) = Guests::new().run("trap-loop");
        let told = "cause 0x2 (illegal instruction) at pc 0x80000000, instruction 0xffffffff";
        assert!(code == 4 && stderr.contains(told) && stderr.contains("there is no code here"));
    }

    #[test]
    fn a_program_alone_prints_as_it_is_and_json_has_it_all() {
        let guests = Guests::new();
        let (code, stdout, stderr) = guests.run("clockwork");
        assert_eq!((code, stdout.len(), stderr.as_str()), (0, 100, ""));
        let (code, json, _) = guests.run("clockwork trap-loop --json --digest");
        let report: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((code, &report["vms"][0]["output"]), (4, &stdout.into()));
        assert_eq!(report["vms"][1]["passed"], false);
        let (code, _, stderr) = guests.run("clockwork trap-loop --trace log");
        assert!(code == 2 && stderr.contains("one program"), "{stderr}");
    }

    #[test]
    fn a_program_alone_reads_standard_input() {
        let guests = Guests::new();
        let long = "more than a UART holds\n".repeat(10_000) + "!";
        let input = guests.0.path().join("input");
        fs::write(&input, &long).unwrap();
        let echo = |options: &str| {
            let args = ["run", "--memory", "8M", "echo"].into_iter().chain(options.split(' '));
            let mut command = pxvm(args);
            command.current_dir(guests.0.path()).stdin(fs::File::open(&input).unwrap());
            run(&mut command)
        };
        let (code, stdout, stderr) = echo("--backend cpu");
        assert!(code == 0 && stdout == long, "{code}, {} bytes: {stderr}", stdout.len());
        let (code, json, _) = echo("--json --digest");
        let report: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((code, report["vms"][0]["output"].as_str()), (0, Some(long.as_str())));
        // Input of a file is there from the beginning, so that all runs are the same.
        assert_eq!(echo("--json --digest").1, json);
        // Its end does not end the program, and several programs get none.
        assert_eq!(guests.run("echo --max-instructions 100000").0, 3);
        assert_eq!(echo("echo --max-instructions 100000").0, 3);
    }

    #[test]
    fn a_program_alone_has_the_terminal() {
        let guests = Guests::new();
        let start = |program: &str| {
            let mut command = pxvm(["run", "--memory", "8M", "--semihosting", program]);
            command.current_dir(guests.0.path());
            let mut terminal = Terminal::start(command);
            terminal.see("Ctrl-A x leaves");
            terminal
        };
        let mut terminal = start("semihosting");
        // A line feed begins a line.
        terminal.see("record. \r\n");
        terminal.type_keys("\x03one\r");
        terminal.see("\x03one\r");
        terminal.type_keys("\x01h!");
        terminal.see("this help");
        terminal.see("failed with 7");
        assert_eq!((terminal.code(), terminal.is_raw()), (Some(4), false));
        Terminal::check_signals(|| start("echo"));
    }

    #[test]
    fn semihosting_is_served_when_it_was_asked_for() {
        let guests = Guests::new();
        let input = guests.0.path().join("input");
        fs::write(&input, "one\ntwo!").unwrap();
        let semihosting = |options: &str| {
            let args = format!("run --memory 8M semihosting {options}");
            let mut command = pxvm(args.split_ascii_whitespace());
            command.current_dir(guests.0.path()).stdin(fs::File::open(&input).unwrap());
            run(&mut command)
        };
        let (code, stdout, stderr) = semihosting("--semihosting");
        assert!(stdout.ends_with("record. \none\ntwo!"), "{stdout}");
        assert!(code == 4 && stderr.contains("the program failed with 7"), "{stderr}");
        let (code, stdout, stderr) = semihosting("");
        assert!(code == 4 && stdout.is_empty() && stderr.contains("cannot go on"), "{stderr}");
        // It waits for input that never comes.
        let (code, _, stderr) = guests.run("semihosting --semihosting");
        assert!(code == 4 && stderr.contains("input, of which there is no more"), "{stderr}");
    }

    #[test]
    fn help_names_the_exit_codes_of_each_command() {
        let help = |name: &str| {
            let (code, stdout, _) = run(&mut pxvm([name, "--help"]));
            assert_eq!(code, 0, "{name}");
            let (_, codes) = stdout.split_once("Exit codes:").unwrap_or_else(|| panic!("{name}"));
            codes.to_owned()
        };
        assert!(help("boot").contains("--until") && help("exec").contains("its own exit code"));
        assert!(help("run").contains("--max-instructions") && help("conform").contains("a test"));
        for name in ["ps", "console", "logs", "pause", "resume", "reset", "stop", "add"] {
            assert!(help(name).contains("no such fleet"), "{name}");
        }
        for name in ["dtb", "images", "doctor", "completions", "man", "bench"] {
            assert!(!help(name).contains("--until"), "{name}");
        }
    }

    #[test]
    fn what_only_a_gpu_has_is_refused_on_a_cpu() {
        let guests = Guests::new();
        for args in ["--lanes 4", "--device 0", "--backend cpu --device 1"] {
            let (code, _, stderr) = guests.run(&format!("clockwork {args}"));
            assert!(code == 2 && stderr.contains("is for a GPU"), "{args}: {code} {stderr}");
        }
        for line in [
            "boot --backend cpu --lanes 4 --until ready",
            "boot --backend cpu --device 0 --until ready",
            "bench --backend cpu --device 0 --workload compute --count 1",
        ] {
            let (code, _, stderr) = run(&mut pxvm(line.split(' ')));
            assert!(code == 2 && stderr.contains("is for a GPU"), "{line}: {code} {stderr}");
        }
    }

    #[test]
    fn a_reader_that_has_enough_is_no_error() {
        let guests = Guests::new();
        let empty = tempfile::tempdir().unwrap();
        for line in [
            "doctor",
            "doctor --json",
            "images",
            "images --json",
            "dtb",
            "completions bash",
            "man",
            "help boot",
            "run --memory 8M clockwork clockwork",
            "run --memory 8M clockwork",
            "run --memory 8M clockwork --json",
            "bench --backend cpu --workload compute --count 1,1",
        ] {
            let mut command = pxvm(line.split(' '));
            unread(command.current_dir(guests.0.path()).env("PXVM_CACHE", empty.path()));
        }
    }

    #[test]
    fn a_trace_that_cannot_be_written_is_told_after_the_programs_end() {
        let guests = Guests::new();
        let (code, json, stderr) = guests.run("clockwork --json --trace /dev/full");
        let report: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((code, &report["vms"][0]["passed"]), (1, &true.into()));
        assert!(stderr.contains("/dev/full: No space left"), "{stderr}");
    }

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        let empty = tempfile::tempdir().unwrap();
        // A warning before a refusal: the fleet's socket cannot be made.
        let warned = || {
            let mut command = pxvm(["boot", "--kernel", "/nonexistent"]);
            command.env("XDG_RUNTIME_DIR", "/proc/pxvm").env("PXVM_CACHE", empty.path());
            command.env("TERM", "xterm").env_remove("NO_COLOR").env_remove("PXVM_LOG");
            command
        };
        let (code, _, stderr) = run(&mut warned());
        assert!(code == 2 && stderr.contains("WARN"), "{stderr}");
        assert!(!stderr.contains('\x1b'), "{stderr:?}");
        let at_terminal = |command| {
            let mut terminal = Terminal::start(command);
            terminal.see("/nonexistent");
            terminal.seen.contains('\x1b')
        };
        assert!(at_terminal(warned()));
        let mut plain = warned();
        plain.env("NO_COLOR", "1");
        assert!(!at_terminal(plain));
    }
}

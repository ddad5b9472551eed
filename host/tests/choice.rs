//! Tests of `--backend auto` and of the calibration, by the program. There is no GPU here, or it is
//! hidden.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use pxvm_tests::guests;
    use rustix::process::{Pid, Signal, kill_process};
    use serde_json::Value;

    use super::common::{pxvm, run};

    /// A folder with a guest that powers off at once, and an empty cache.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("kernel"), &guests::with_disk()[0].elf).unwrap();
            fs::write(folder.path().join("disk"), [0x5a; 1024]).unwrap();
            Self(folder)
        }

        /// Returns a command in this folder, from which GPUs are hidden.
        fn pxvm(&self, line: &str) -> Command {
            let mut command = pxvm(line.split(' '));
            command.current_dir(self.0.path()).env("CUDA_VISIBLE_DEVICES", "");
            command.env("PXVM_CACHE", self.0.path().join("cache"));
            command
        }

        fn boot(&self, args: &str) -> (i32, Value, String) {
            let line = format!("boot --kernel kernel --disk {args} --json");
            let (code, stdout, stderr) = run(&mut self.pxvm(&line));
            let report = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"));
            (code, report, stderr)
        }

        /// Returns the files of calibrations.
        fn kept(&self) -> Vec<PathBuf> {
            let Ok(entries) = fs::read_dir(self.0.path().join("cache/calibration")) else {
                return Vec::new();
            };
            let paths = entries.map(|entry| entry.unwrap().path());
            paths.filter(|path| path.extension().is_some_and(|it| it == "json")).collect()
        }

        fn doctor(&self, args: &str) -> Value {
            let line = format!("doctor --json{args}");
            let (code, stdout, stderr) = run(&mut self.pxvm(&line));
            assert_eq!(code, 0, "{stderr}");
            serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"))
        }
    }

    #[test]
    fn auto_says_why_it_is_the_cpu_and_measures_nothing() {
        let folder = Folder::new();
        for (args, reason) in [
            ("disk", "no GPU ("),
            ("disk --count 3", "no GPU ("),
            ("disk:rw", "disks with :rw work on the CPU backend only"),
        ] {
            let (code, report, stderr) = folder.boot(args);
            assert_eq!((code, &report["backend"]), (0, &"cpu".into()), "{stderr}");
            let choice = &report["choice"];
            assert_eq!((&choice["backend"], &choice["estimates"]), (&"cpu".into(), &Value::Null));
            let said = choice["reason"].as_str().unwrap();
            assert!(said.starts_with(reason), "{said}");
            let lines = stderr.lines().filter(|line| line.starts_with("cpu: "));
            assert_eq!(lines.collect::<Vec<_>>(), [format!("cpu: {said}")], "{stderr}");
        }
        assert!(folder.kept().is_empty());
    }

    #[test]
    fn a_backend_that_is_named_is_no_choice() {
        let (code, report, stderr) = Folder::new().boot("disk --backend cpu");
        assert_eq!((code, report.get("choice")), (0, None));
        assert!(!stderr.contains("cpu: "), "{stderr}");
    }

    #[test]
    fn lanes_that_no_warp_has_are_refused_with_the_numbers_that_are_good() {
        let folder = Folder::new();
        for command in ["boot --kernel kernel", "run kernel"] {
            for lanes in ["0", "33", "-1", "many"] {
                let line = format!("{command} --lanes={lanes}");
                let (code, _, stderr) = run(&mut folder.pxvm(&line));
                let good = stderr.contains("--lanes <N>") && stderr.contains(lanes);
                assert!(code == 2 && good, "{line}: {stderr}");
                assert!(lanes == "many" || stderr.contains("1..=32"), "{line}: {stderr}");
            }
        }
    }

    #[test]
    fn doctor_calibrates_keeps_it_and_shows_it() {
        let folder = Folder::new();
        assert_eq!(folder.doctor("")["calibration"], Value::Null);
        let first = folder.doctor(" --calibrate")["calibration"].clone();
        assert!(first["cpu"]["alone"].as_u64().is_some_and(|speed| speed > 0), "{first}");
        assert_eq!((&first["gpu"], &first["hardware"]["gpu"]), (&Value::Null, &Value::Null));
        let [file] = &folder.kept()[..] else { panic!("{:?}", folder.kept()) };
        assert_eq!(first["file"].as_str(), file.to_str());
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);

        let second = folder.doctor("")["calibration"].clone();
        assert_eq!(
            (&second["cpu"], &second["measured_at"]),
            (&first["cpu"], &first["measured_at"])
        );
        assert!(second["age_seconds"].is_u64(), "{second}");
        let (_, text, _) = run(&mut folder.pxvm("doctor"));
        assert!(text.contains("ok  calibration ") && text.contains(" MIPS on one core"), "{text}");

        // Every kind of damage is none, and the next measurement replaces it.
        let whole = fs::read_to_string(file).unwrap();
        let value = first["cpu"]["alone"].to_string();
        for damaged in [
            String::new(),
            whole[..whole.len() / 2].to_owned(),
            whole.replace(&value, &format!("1{value}")),
            whole.replace("\"format\": 1", "\"format\": 0"),
        ] {
            assert_ne!(damaged, whole);
            fs::write(file, damaged).unwrap();
            assert_eq!(folder.doctor("")["calibration"], Value::Null);
        }
        assert!(folder.doctor(" --calibrate")["calibration"]["cpu"].is_object());
        assert!(folder.doctor("")["calibration"]["cpu"].is_object());
        assert_eq!(folder.kept().len(), 1);
    }

    #[test]
    fn a_calibration_that_cannot_be_kept_is_shown_all_the_same() {
        let folder = Folder::new();
        fs::write(folder.0.path().join("cache"), "in the way").unwrap();
        let (code, text, stderr) = run(&mut folder.pxvm("doctor --calibrate"));
        assert_eq!(code, 0, "{stderr}");
        assert!(text.contains("not kept: it cannot be kept in "), "{text}");
        assert!(stderr.contains("for this run alone"), "{stderr}");
    }

    #[test]
    fn an_interrupted_calibration_leaves_nothing_behind() {
        let folder = Folder::new();
        let mut doctor = folder.pxvm("doctor --calibrate");
        let mut child = doctor.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.starts_with("pxvm: calibrating ")));
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let said = lines.next().unwrap_or_default();
        assert!(said.contains("interrupted") && said.contains("nothing was kept"), "{said}");
        assert!(folder.kept().is_empty());
    }
}

//! What the tests of the program share: commands, fleets, archives, captures.
#![allow(dead_code, reason = "each test file uses a part of this")]

pub mod terminal;

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pxvm::image::cache::{self, CacheError};
use pxvm_tests::needs;
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

/// Returns `pxvm` with these arguments, empty standard input, and console logs in a folder of the
/// target.
pub fn pxvm<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pxvm"));
    command.args(args).stdin(Stdio::null()).env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Runs a command. Returns exit code, standard output and standard error.
pub fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("pxvm starts");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (status.code().unwrap_or(-1), text(&stdout), text(&stderr))
}

/// Runs a command whose standard output has no reader: it must succeed without a message.
pub fn unread(command: &mut Command) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = command.stdout(writer).stderr(Stdio::piped()).spawn().expect("pxvm starts");
    // This closes the last writer of the pipe.
    command.stdout(Stdio::null());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.as_ref()), (Some(0), ""), "{command:?}");
}

/// Whether the guest image was built; prints that the test is skipped when it was not.
pub fn has_image() -> bool {
    match cache::default_image() {
        Err(why @ CacheError::Damaged { .. }) => panic!("{why}"),
        image => needs::found("image", image).is_some(),
    }
}

/// A running fleet whose console logs are in a folder of its own.
pub struct Fleet {
    child: Child,
    consoles: TempDir,
}

impl Fleet {
    /// Starts a `pxvm boot` command, with a report in JSON.
    pub fn start(mut command: Command) -> Self {
        let consoles = tempfile::tempdir().unwrap();
        command.args(["--until", "never", "--timeout", "200", "--json", "--console-dir"]);
        command.arg(consoles.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        Self { child: command.spawn().expect("pxvm starts"), consoles }
    }

    /// Returns the console output of a VM.
    pub fn console(&self, vm: u32) -> String {
        let log = self.consoles.path().join(format!("vm{vm}.log"));
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
    }

    /// Waits until a VM's console output contains `text`.
    pub fn hear(&mut self, vm: u32, text: &str) {
        let start = Instant::now();
        while !self.console(vm).contains(text) {
            let ended = self.child.try_wait().unwrap();
            let late = start.elapsed() > Duration::from_secs(90);
            assert!(ended.is_none() && !late, "vm{vm} said no `{text}`: {}", self.console(vm));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the fleet as Ctrl-C does. Returns its report.
    pub fn stop(self) -> Value {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let output = self.child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        serde_json::from_slice(&output.stdout).expect("one JSON object on standard output")
    }
}

/// Returns a cpio archive of files: name, mode, contents.
pub fn cpio(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for &(name, mode, data) in files.iter().chain([&("TRAILER!!!", 0, &[][..])]) {
        let sizes = [(6, data.len()), (11, name.len() + 1)];
        let field = |i| match sizes.iter().find(|s| s.0 == i) {
            Some((_, size)) => *size as u32,
            None => [0, mode, 0, 0, 1].get(i).copied().unwrap_or(0),
        };
        let header: String = (0..13).map(|i| format!("{:08x}", field(i))).collect();
        archive.extend(format!("070701{header}{name}\0").bytes());
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// Returns the guest's root file system with a shell script that runs instead of its init, for
/// `--append rdinit=/script`.
pub fn initrd_with(script: &str) -> NamedTempFile {
    let image = cache::default_image().expect("the guest image");
    let mut archive = std::fs::read(image.initrd).unwrap();
    archive.resize(archive.len().next_multiple_of(4), 0);
    // The shell finds its commands through /proc.
    let mounts = "/bin/busybox mount -t proc proc /proc\nmount -t devtmpfs dev /dev";
    let script = format!("#!/bin/sh\n{mounts}\n{script}");
    archive.extend(cpio(&[("script", 0o100_755, script.as_bytes())]));
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&archive).unwrap();
    file
}

/// Returns what tshark finds in a capture; `None` without tshark.
pub fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Option<Vec<String>> {
    if !needs::program("tshark") {
        return None;
    }
    let mut command = Command::new("tshark");
    for option in ["ip.check_checksum:TRUE", "tcp.check_checksum:TRUE", "udp.check_checksum:TRUE"] {
        command.args(["-o", option]);
    }
    command.arg("-r").arg(file).args(["-Y", filter, "-T", "fields"]);
    command.args(fields.iter().flat_map(|field| ["-e", field]));
    let output = command.stderr(Stdio::null()).output().expect("tshark starts");
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

//! What the tests of the program share.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

/// `pxvm` with these arguments, standard input empty, consoles in a folder of the target.
pub fn pxvm<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pxvm"));
    command.args(args).stdin(Stdio::null()).env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Runs it: exit code, standard output, standard error.
pub fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("pxvm starts");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (status.code().unwrap_or(-1), text(&stdout), text(&stderr))
}

/// Whether the guest image was built; says so when it was not.
pub fn has_image() -> bool {
    let found = pxvm::image::cache::default_image().is_some();
    if !found {
        println!("skipped: {}", pxvm::image::cache::missing());
    }
    found
}

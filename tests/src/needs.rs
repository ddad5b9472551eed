//! Checks for what tests need from the computer they run on, and skips tests whose needs it lacks.
//!
//! A skipped test says on standard error what is missing. With `PXVM_NO_SKIP=1`, which CI sets, it
//! fails instead, unless `expected-skips.txt` names what is missing.

use std::fmt::Display;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Names that may be missing under `PXVM_NO_SKIP`, and comments.
const EXPECTED: &str = include_str!("../expected-skips.txt");

/// Says that the running test is skipped for want of `need`, and what to do about it.
///
/// The caller returns. Where skipping is a failure, this panics.
#[track_caller]
pub fn skip(need: &str, advice: impl Display) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let strict = std::env::var_os("PXVM_NO_SKIP").is_some_and(|v| !v.is_empty());
    assert!(!strict || is_expected(need), "skipped: {test} needs {need}: {advice}");
    // This writes to the stream itself, because the test harness hides what `eprintln!` prints in a
    // test that passes.
    let _ = writeln!(std::io::stderr(), "skipped: {test} needs {need}: {advice}");
}

fn is_expected(need: &str) -> bool {
    EXPECTED.lines().any(|line| line == need)
}

/// What was looked for, or nothing after saying that the test is skipped.
#[track_caller]
pub fn found<T, E: Display>(need: &str, looked: Result<T, E>) -> Option<T> {
    looked.map_err(|why| skip(need, why)).ok()
}

/// Whether a program can be run; says that the test is skipped when it cannot.
#[track_caller]
pub fn program(name: &str) -> bool {
    let there = path_of(name).is_some();
    if !there {
        skip(name, "it is not installed; on Debian 12 tests/install.sh installs it");
    }
    there
}

fn path_of(name: &str) -> Option<PathBuf> {
    let runs =
        |p: &Path| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|p| runs(p))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    /// Runs one of the ignored tests below, in a process of its own.
    fn test(name: &str, no_skip: Option<&str>, path: &str) -> (bool, String) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", &format!("needs::tests::{name}")]);
        command.env_remove("PXVM_NO_SKIP").env("PATH", path);
        command.envs(no_skip.map(|value| ("PXVM_NO_SKIP", value)));
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = [stdout, stderr].concat();
        (status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    #[test]
    #[ignore = "run by the tests below"]
    fn needs_sh() {
        if super::program("sh") {
            println!("has sh");
        }
    }

    #[test]
    #[ignore = "run by the tests below"]
    fn needs_a_gpu() {
        super::skip("gpu", "there is none");
    }

    #[test]
    fn a_skipped_test_passes_and_says_what_it_misses() {
        for no_skip in [None, Some("")] {
            let (passed, said) = test("needs_sh", no_skip, "/nonexistent");
            assert!(passed && said.contains("skipped: needs::tests::needs_sh needs sh:"), "{said}");
        }
        let (passed, said) = test("needs_sh", None, "/usr/bin:/bin");
        assert!(passed && !said.contains("skipped:"), "{said}");
    }

    #[test]
    fn where_nothing_may_be_skipped_it_fails() {
        let (passed, said) = test("needs_sh", Some("1"), "/nonexistent");
        assert!(!passed && said.contains("needs_sh needs sh:"), "{said}");
        let (passed, said) = test("needs_sh", Some("1"), "/usr/bin:/bin");
        assert!(passed, "{said}");
    }

    #[test]
    fn but_for_what_is_expected() {
        let (passed, said) = test("needs_a_gpu", Some("1"), "/nonexistent");
        assert!(passed && said.contains("skipped: "), "{said}");
    }
}

//! Compiles the device crate to LLVM bitcode.

use crate::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds a package of a workspace for the host, with profile `device` and the features `device`
/// and `features`, and returns the path of the bitcode file. `out` must not be the target directory
/// of the outer cargo, which holds its lock.
pub fn emit(
    workspace: &Path,
    package: &str,
    features: &[String],
    out: &Path,
) -> Result<PathBuf, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command
        .current_dir(workspace)
        // The outer build has fetched whatever there is to fetch.
        .args(["rustc", "--frozen", "--lib", "--crate-type", "cdylib", "--profile", "device"])
        .args(["--package", package, "--features", "device"])
        .args(features.iter().flat_map(|feature| ["--features", feature]))
        .arg("--target-dir")
        .arg(out)
        // The host's vector instructions mean nothing on the device.
        .args(["--", "--emit=llvm-bc", "-C", "no-vectorize-loops", "-C", "no-vectorize-slp"]);
    // Flags for the host's build (coverage, native CPU) must not reach the device's.
    for variable in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(variable);
    }
    let program = cargo.to_string_lossy().into_owned();
    let output =
        command.output().map_err(|source| Error::Run { program: program.clone(), source })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Failed { program, stderr });
    }
    newest(&out.join("device").join("deps"), &package.replace('-', "_"))
}

/// The newest bitcode file of the crate; cargo keeps older ones under other hashes.
fn newest(folder: &Path, stem: &str) -> Result<PathBuf, Error> {
    let file_error = |source| Error::File { path: folder.to_owned(), source };
    let mut best = None;
    for entry in std::fs::read_dir(folder).map_err(file_error)? {
        let path = entry.map_err(file_error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(stem) && name.ends_with(".bc") {
            let time = path.metadata().and_then(|m| m.modified()).map_err(file_error)?;
            if best.as_ref().is_none_or(|(newest, _)| time > *newest) {
                best = Some((time, path));
            }
        }
    }
    best.map(|(_, path)| path)
        .ok_or_else(|| file_error(std::io::Error::other("cargo wrote no bitcode")))
}

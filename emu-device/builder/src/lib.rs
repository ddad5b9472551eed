//! Turns the `emu-device` crate into PTX during an ordinary cargo build, with stable Rust alone.
//!
//! 1. cargo builds the crate for the *host* as a `cdylib`, with fat LTO and `--emit=llvm-bc`: one
//!    bitcode file with everything reachable, libcore's part included ([`bitcode()`]).
//! 2. rustc's own LLVM, which has the NVPTX back end, is opened as a shared library (`llvm`).
//! 3. The module is retargeted and emitted as assembly ([`ptx()`]).

mod bitcode;
pub mod check;
mod llvm;
mod peephole;
mod ptx;

pub use bitcode::emit as bitcode;
pub use ptx::{Options, emit as ptx};

use std::path::{Path, PathBuf};

/// The oldest architecture that the PTX is for: Turing. It schedules the threads of a warp
/// independently, which lanes that have diverged and wait for each other depend on.
pub const CPU: &str = "sm_75";
/// The PTX version, which drivers since CUDA 11.8 can load.
pub const FEATURES: &str = "+ptx78";
/// Warps of each entry point that must fit on a multiprocessor at once, where the compiler is told
/// so. It then uses no more registers than that allows: a block is one warp.
const RESIDENT_WARPS: [(&str, u32); 1] = [(UNIFORM, 16)];
/// Entry points, the only symbols that the PTX exports.
const ENTRIES: [&str; 4] = ["pxvm_step", "pxvm_start", "pxvm_release", "pxvm_digest"];
/// The entry point that is there with feature `uniform-loop` alone.
const UNIFORM: &str = "pxvm_step_uniform";

/// Returns the entry points of a build with these features.
pub fn entries<S: AsRef<str>>(features: &[S]) -> Vec<&'static str> {
    let uniform = features.iter().any(|feature| feature.as_ref() == "uniform-loop");
    ENTRIES.into_iter().chain(uniform.then_some(UNIFORM)).collect()
}

/// Builds package `emu-device` of the workspace at `workspace` to PTX, with more cargo features
/// than `device`, in target directory `out`.
///
/// The same sources and the same toolchain give the same text.
pub fn build(workspace: &Path, features: &[String], out: &Path) -> Result<String, Error> {
    let bitcode = bitcode(workspace, "emu-device", features, out)?;
    let path = workspace.join("emu-device/intrinsics.ll");
    let intrinsics =
        std::fs::read_to_string(&path).map_err(|source| Error::File { path, source })?;
    let entries = entries(features);
    let options = Options {
        cpu: CPU,
        features: FEATURES,
        intrinsics: &intrinsics,
        entries: &entries,
        resident_warps: &RESIDENT_WARPS,
        keep_ir: None,
    };
    let text = peephole::drop_dead_branches(&ptx(&bitcode, &options)?);
    match check::problems(&text, &entries).into_iter().next() {
        None => Ok(text),
        Some(problem) => Err(Error::Refused(problem)),
    }
}

/// Why there is no PTX.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// rustc or cargo could not be run.
    #[error("Could not run {program}")]
    Run {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// rustc or cargo failed.
    #[error("{program} failed:\n{stderr}")]
    Failed {
        /// The program.
        program: String,
        /// What it said.
        stderr: String,
    },
    /// The toolchain has no LLVM that can be opened.
    #[error("No LLVM library in {0}: this Rust toolchain links LLVM statically")]
    NoLlvm(PathBuf),
    /// The library does not have what is needed.
    #[error("rustc's LLVM cannot be used")]
    Library(#[from] libloading::Error),
    /// LLVM refused.
    #[error("LLVM: {0}")]
    Llvm(String),
    /// The bitcode uses something that does not exist on the device.
    #[error("The device code refers to {0}, which does not exist on the device")]
    Undefined(String),
    /// The PTX is not what it must be.
    #[error("The PTX was refused: {0}")]
    Refused(String),
    /// A file could not be read or written.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

//! Builds `emu-device` to PTX and leaves it where the program embeds it.
//!
//! The program builds without it, too: `PXVM_PTX=skip`, clippy, and toolchains whose LLVM cannot
//! be used leave an empty text and the reason.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for path in ["emu-core/src", "emu-core/Cargo.toml", "emu-device", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    println!("cargo::rerun-if-env-changed=PXVM_PTX");
    println!("cargo::rerun-if-env-changed=RUSTC_WORKSPACE_WRAPPER");

    let features = device_features();
    let (ptx, why_not) = match skipped() {
        Some(why) => (String::new(), why),
        None => match ptx_builder::build(&workspace, &features, &target(&out, &features)) {
            Ok(ptx) => (ptx, String::new()),
            Err(error) => {
                let why = sentence(&error);
                let first = why.lines().next().unwrap_or_default();
                println!("cargo::warning=pxvm is built without its GPU part: {first}");
                (String::new(), why)
            }
        },
    };
    for (name, text) in [("pxvm.ptx", ptx), ("no-ptx.txt", why_not)] {
        std::fs::write(out.join(name), text).expect("OUT_DIR can be written");
    }
}

/// Features of this package that `emu-device` has, too, in a fixed order.
fn device_features() -> Vec<String> {
    let features = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let names = features.filter_map(|name| {
        let name = name.strip_prefix("CARGO_FEATURE_")?.to_lowercase().replace('_', "-");
        let ablates = name.starts_with("ablate-") && name != "ablate-all";
        (ablates || name == "uniform-loop").then_some(name)
    });
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Why no PTX is wanted.
fn skipped() -> Option<String> {
    if std::env::var("PXVM_PTX").is_ok_and(|v| v == "skip") {
        return Some("it was built with PXVM_PTX=skip".to_owned());
    }
    // Clippy checks only the host's code.
    let wrapper = std::env::var("RUSTC_WORKSPACE_WRAPPER").unwrap_or_default();
    wrapper.contains("clippy").then(|| "it was built by clippy".to_owned())
}

/// A target directory of the device build's own, one for all profiles of the host's. Other features
/// have another one: what was built last is taken.
fn target(out: &Path, features: &[String]) -> PathBuf {
    let name = ["device"].into_iter().chain(features.iter().map(String::as_str));
    let name = name.collect::<Vec<_>>().join("+");
    // target/PROFILE/build/PACKAGE/out
    match out.ancestors().nth(4) {
        Some(target) if out.iter().rev().nth(2).is_some_and(|n| n == "build") => target.join(name),
        _ => out.join(name),
    }
}

fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

//! `pxvm doctor`: checks the host.

use std::fs::OpenOptions;
use std::io;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;

use super::{printing, say};
use crate::backend::cuda::compiled::{self, CacheLocation};
use crate::backend::cuda::{self, CudaError};
use crate::cli::PLAIN_CODES;
use crate::error::Error;
use crate::exit::{self, Code};
use crate::host;
use crate::image::cache;
use crate::net::tap::TapError;
use crate::report::print_json;
use crate::stdio::print;

/// `pxvm doctor`.
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(PLAIN_CODES))]
pub struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

const TUN: &str = "/dev/net/tun";

/// One check of the host.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    /// What the check found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    checks: Vec<Check>,
}

/// Prints what this host has and what is missing.
pub fn doctor(args: Doctor) -> Result<Code, Error> {
    let mut checks = vec![cores(), memory(), guest_image(), cuda()];
    checks.extend(programs());
    checks.push(tap());
    if args.json {
        let report = Report { version: env!("CARGO_PKG_VERSION"), checks };
        print_json(&report).map_err(printing)?;
        return Ok(Code::Success);
    }
    let mut text = String::new();
    for Check { name, ok, found, advice } in checks {
        let mark = if ok { "ok" } else { "--" };
        text += &format!("{mark}  {name:<12} {found}\n");
        if let Some(advice) = advice {
            text += &format!("    {:<12} {advice}\n", "");
        }
    }
    print(text.as_bytes()).map_err(printing)?;
    Ok(Code::Success)
}

fn cores() -> Check {
    let n = host::cores();
    let found = format!("{n} for the CPU backend");
    Check { name: "cores", ok: true, found, advice: None }
}

fn memory() -> Check {
    let available = host::memory_available();
    let found = match host::memory_total() {
        Some(total) => format!("{available} of {total} available"),
        None => format!("{available} assumed"),
    };
    Check { name: "memory", ok: true, found, advice: None }
}

fn guest_image() -> Check {
    let name = "guest image";
    let folder = cache::default_folder();
    let (found, advice) = if !folder.is_dir() {
        let advice = "run `buildroot/build` (about 5 minutes), or give --kernel";
        (format!("none in {}", folder.display()), advice)
    } else if let Err(damage) = cache::check(&folder) {
        let advice = "run `buildroot/build`, which makes it again";
        (format!("{} is damaged: {damage}", folder.display()), advice)
    } else {
        return Check { name, ok: true, found: folder.display().to_string(), advice: None };
    };
    Check { name, ok: false, found, advice: Some(advice.to_owned()) }
}

fn cuda() -> Check {
    let name = "CUDA";
    match cuda::available(0) {
        Ok(info) => Check { name, ok: true, found: info.to_string(), advice: None },
        Err(error) => Check {
            name,
            ok: false,
            found: "no GPU to use; machines run on the CPU".into(),
            advice: Some(error.to_string()),
        },
    }
}

/// Loads the GPU's program on each kind of card, so that it is compiled ahead of the first fleet.
fn programs() -> Vec<Check> {
    if cuda::has_ptx().is_err() {
        return Vec::new();
    }
    let mut seen = Vec::new();
    let mut checks = Vec::new();
    for index in 0..cuda::driver::count().unwrap_or(0) {
        let Ok(info) = cuda::driver::info(index) else { continue };
        if !seen.contains(&info.capability) {
            seen.push(info.capability);
            let started = Instant::now();
            let result = cuda::open(index, &say).map(|_| started.elapsed());
            checks.push(program(&info.name, result, compiled::cache_location()));
        }
    }
    checks
}

fn program(card: &str, loaded: Result<Duration, CudaError>, location: CacheLocation) -> Check {
    let name = "GPU program";
    let took = match loaded {
        Ok(took) => took.as_secs_f64(),
        Err(error) => {
            let found = format!("not compiled for {card}");
            return Check { name, ok: false, found, advice: Some(error.to_string()) };
        }
    };
    let (ok, kept, advice) = match location {
        CacheLocation::Folder(folder) if compiled::is_kept_in(&folder) => {
            (true, format!("kept in {}", folder.display()), None)
        }
        CacheLocation::Folder(folder) => (
            false,
            format!("cannot be kept in {}", folder.display()),
            Some("make that folder one to write to, or name another with PXVM_CACHE".to_owned()),
        ),
        CacheLocation::Usual => (
            false,
            format!("not kept in {}, but where NVIDIA's driver does", cache::gpu().display()),
            Some("make that a folder of your own, or name another with PXVM_CACHE".to_owned()),
        ),
        CacheLocation::Nowhere => {
            (false, "not kept".to_owned(), Some(format!("{} is set", compiled::DISABLE)))
        }
    };
    let found = format!("loaded on {card} in {took:.1} s, {kept}");
    Check { name, ok, found, advice }
}

fn tap() -> Check {
    let device = OpenOptions::new().read(true).write(true).open(TUN);
    let admin = capabilities(None).is_ok_and(|c| c.effective.contains(CapabilitySet::NET_ADMIN));
    tap_check(device.map(drop), admin)
}

/// Returns the check of TAP, from the result of opening the driver's device and the right to make
/// interfaces.
fn tap_check(device: io::Result<()>, admin: bool) -> Check {
    let name = "TAP network";
    let (ok, found, advice) = match (device, admin) {
        (Ok(()), true) => (true, format!("{TUN} and CAP_NET_ADMIN"), None),
        (Ok(()), false) => (
            false,
            "no right to make interfaces (CAP_NET_ADMIN)".into(),
            Some("`pxvm boot --net tap` prints the commands that grant it".to_owned()),
        ),
        (Err(e), _) => {
            let advice = match Errno::from_io_error(&e).and_then(TapError::of_driver) {
                Some(error) => error.to_string(),
                None => format!("a container needs --device {TUN}"),
            };
            (false, format!("{TUN} cannot be opened: {e}"), Some(advice))
        }
    };
    Check { name, ok, found, advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_tap_device_from_being_made_is_told_with_what_helps() {
        for (error, word) in [
            (Errno::NOENT, "modprobe tun"),
            (Errno::NODEV, "modprobe tun"),
            (Errno::ACCESS, "chmod 0666 /dev/net/tun"),
            (Errno::PERM, "--device /dev/net/tun"),
        ] {
            for admin in [false, true] {
                let check = tap_check(Err(error.into()), admin);
                assert!(!check.ok && check.advice.is_some_and(|it| it.contains(word)), "{error}");
            }
        }
        assert!(tap_check(Ok(()), true).ok);
        let advice = tap_check(Ok(()), false).advice;
        assert!(advice.is_some_and(|advice| advice.contains("--net tap")));
    }

    #[test]
    fn it_is_told_where_the_gpus_program_is_kept_and_what_to_do_where_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let check = |location| program("a card", Ok(Duration::from_millis(7210)), location);
        let here = || CacheLocation::Folder(folder.path().into());
        for (location, word) in [
            (here(), "PXVM_CACHE"),
            (CacheLocation::Usual, "PXVM_CACHE"),
            (CacheLocation::Nowhere, "CUDA_CACHE_DISABLE"),
        ] {
            let found = check(location);
            assert!(!found.ok && found.found.contains("a card in 7.2 s"), "{found:?}");
            assert!(found.advice.is_some_and(|advice| advice.contains(word)), "{word}");
        }
        std::fs::write(folder.path().join("program"), [0; 8192]).unwrap();
        let kept = check(here());
        assert!(kept.ok && kept.advice.is_none(), "{kept:?}");
        let full = program("a card", Err(CudaError::Full { name: "a card".into() }), here());
        assert!(!full.ok && full.advice.is_some_and(|advice| advice.contains("nvidia-smi")));
    }
}

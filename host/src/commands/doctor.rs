//! `pxvm doctor`: checks the host.

use std::fs::OpenOptions;
use std::io;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;

use super::calibrate::{self, Calibrated};
use super::{printing, say};
use crate::backend::cuda::compiled::{self, CacheLocation};
use crate::backend::cuda::driver::Info;
use crate::backend::cuda::{self, CudaError};
use crate::calibration::hardware::Hardware;
use crate::calibration::{Calibration, CpuSpeed, Runs, store};
use crate::cli::PLAIN_CODES;
use crate::error::Error;
use crate::exit::{self, Code, sentence};
use crate::host;
use crate::image::cache;
use crate::net::tap::TapError;
use crate::report::print_json;
use crate::stdio::print;

/// `pxvm doctor`.
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(PLAIN_CODES))]
pub struct Doctor {
    /// Measure this host and its GPU again, for `--backend auto`
    #[arg(long)]
    pub calibrate: bool,
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
    /// The calibration of this host, if there is one.
    calibration: Option<CalibrationReport>,
}

#[derive(Debug, Serialize)]
struct CalibrationReport {
    age_seconds: u64,
    /// The file that it is kept in, if it is.
    file: Option<String>,
    /// Numbers of VMs from which on the GPU is faster than all cores.
    gpu_wins_from: WinsFrom,
    #[serde(flatten)]
    calibration: Calibration,
}

#[derive(Debug, Serialize)]
struct WinsFrom {
    alike: Option<u32>,
    apart: Option<u32>,
}

/// Prints what this host has and what is missing.
pub fn doctor(args: Doctor) -> Result<Code, Error> {
    let card = cuda::available(0);
    let mut checks = vec![cores(), memory(), guest_image(), cuda(&card)];
    checks.extend(programs());
    let state = calibration(card.as_ref().ok(), args.calibrate);
    let failed = matches!(state, CalibrationState::Failed(_));
    checks.push(state.check(card.is_ok()));
    checks.push(tap());
    // That of the rest always is.
    let code = if failed { Code::Failure } else { Code::Success };
    if args.json {
        let version = env!("CARGO_PKG_VERSION");
        let report = Report { version, checks, calibration: state.report() };
        print_json(&report).map_err(printing)?;
        return Ok(code);
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
    Ok(code)
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

fn cuda(card: &Result<Info, CudaError>) -> Check {
    let name = "CUDA";
    match card {
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

/// The calibration of this host.
#[derive(Debug)]
enum CalibrationState {
    /// Measured, now or before, and not kept if there is a reason.
    Measured(Box<Calibration>, Option<String>),
    /// Not measured.
    Missing,
    /// It was to be measured, which failed.
    Failed(String),
}

fn calibration(card: Option<&Info>, anew: bool) -> CalibrationState {
    let hardware = Hardware::of_host(card);
    if !anew {
        return match calibrate::kept(&hardware) {
            Some(kept) => CalibrationState::Measured(Box::new(kept), None),
            None => CalibrationState::Missing,
        };
    }
    match calibrate::calibrate(hardware, card.map(|info| (0, info)), true) {
        Ok(Calibrated { calibration, not_kept, .. }) => {
            CalibrationState::Measured(Box::new(calibration), not_kept)
        }
        Err(error) => CalibrationState::Failed(sentence(&error)),
    }
}

impl CalibrationState {
    fn check(&self, has_gpu: bool) -> Check {
        let name = "calibration";
        match self {
            Self::Measured(calibration, not_kept) => {
                let found = match not_kept {
                    None => described(calibration, calibrate::age(calibration)),
                    Some(why) => format!("{}; not kept: {why}", described(calibration, 0)),
                };
                Check { name, ok: not_kept.is_none(), found, advice: None }
            }
            Self::Missing if has_gpu => {
                let found = "none yet of this host and version".to_owned();
                let advice =
                    "`pxvm doctor --calibrate` makes it; so does the first fleet that needs it";
                Check { name, ok: false, found, advice: Some(advice.to_owned()) }
            }
            Self::Missing => {
                let found = "none, and none needed without a GPU".to_owned();
                Check { name, ok: true, found, advice: None }
            }
            Self::Failed(why) => {
                let found = format!("failed: {why}");
                let advice = "fleets are told what is taken instead; --backend overrides it";
                Check { name, ok: false, found, advice: Some(advice.to_owned()) }
            }
        }
    }

    fn report(self) -> Option<CalibrationReport> {
        let Self::Measured(calibration, not_kept) = self else { return None };
        let file = store::path(&cache::calibrations(), &calibration.hardware);
        Some(CalibrationReport {
            age_seconds: calibrate::age(&calibration),
            file: not_kept.is_none().then(|| file.display().to_string()),
            gpu_wins_from: WinsFrom {
                alike: calibration.gpu_wins_from(Runs::Alike),
                apart: calibration.gpu_wins_from(Runs::Apart),
            },
            calibration: *calibration,
        })
    }
}

/// Describes a calibration that is `age` seconds old.
fn described(calibration: &Calibration, age: u64) -> String {
    let age = match age {
        ..60 => "new".to_owned(),
        60..7200 => format!("{} minutes old", age / 60),
        7200..172_800 => format!("{} hours old", age / 3600),
        _ => format!("{} days old", age / 86_400),
    };
    let CpuSpeed { threads, alone, .. } = calibration.cpu;
    let all = calibration.cpu.estimate(threads, threads) / 1e9;
    let mut text =
        format!("{age}: {} MIPS on one core, {all:.2} GIPS on {threads}", alone / 1_000_000);
    if calibration.gpu.is_some() {
        let from = |runs| match calibration.gpu_wins_from(runs) {
            Some(count) => format!("from {count} VMs on"),
            None => "never".to_owned(),
        };
        let (alike, apart) = (from(Runs::Alike), from(Runs::Apart));
        text += &format!("; the GPU is faster {alike} that run alike, {apart} that run apart");
    }
    text
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
    use crate::calibration::tests::large;

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
    fn a_calibration_is_told_with_its_age_or_what_to_do_about_it() {
        let line = |age| described(&large(), age);
        assert!(
            line(59).starts_with("new: 200 MIPS on one core, 4.16 GIPS on 32; "),
            "{}",
            line(59)
        );
        for (age, words) in [(119, "1 minutes"), (7200, "2 hours"), (172_800, "2 days")] {
            assert!(line(age).starts_with(words), "{}", line(age));
        }
        assert!(line(0).contains("; the GPU is faster from ") && line(0).contains("run apart"));
        let kept = CalibrationState::Measured(Box::new(large()), None);
        assert!(kept.check(true).ok && kept.report().is_some_and(|it| it.file.is_some()));
        let why = Some("others use the card".to_owned());
        let busy = CalibrationState::Measured(Box::new(large()), why);
        assert!(busy.check(true).found.ends_with("; not kept: others use the card"));
        assert!(busy.report().is_some_and(|it| it.file.is_none()));
        assert!(CalibrationState::Missing.check(false).ok);
        for bad in [CalibrationState::Missing, CalibrationState::Failed("a reason".to_owned())] {
            let check = bad.check(true);
            assert!(!check.ok && check.advice.is_some(), "{check:?}");
            assert!(bad.report().is_none());
        }
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

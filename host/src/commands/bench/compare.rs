//! `pxvm bench --compare`: the same fleets on the CPU and on the GPU in turn, and busy guests under QEMU
//! beside them; and from how many VMs on the GPU is the faster one.

use std::sync::Arc;

use serde::Serialize;

use super::args::{Bench, Busy, Packing, Task, Workload};
use super::qemu::{self, QemuError};
use super::report::{HEAD, Row};
use super::watch::Watch;
use super::{Bencher, print, worst};
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda;
use crate::backend::{ClockSource, Settings};
use crate::cli::GuestArgs;
use crate::console::ready::ReadyPattern;
use crate::error::Error;
use crate::exit::{Code, sentence};
use crate::host;
use crate::machine::assemble;
use crate::report::print_json;

/// Numbers of VMs, unless the user names some.
const COUNTS: [u32; 6] = [1, 16, 64, 256, 1024, 8448];
const CPU: &str = "cpu";
const CUDA: &str = "cuda";
const QEMU: &str = "qemu";

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    cpu: &'a str,
    /// Name of the GPU.
    cuda: Option<&'a str>,
    /// Version of QEMU.
    qemu: Option<&'a str>,
    /// What is not compared, and why.
    missing: &'a [String],
    rows: &'a [Row],
    crossings: &'a [Crossing],
}

/// From how many VMs on the GPU is faster.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct Crossing {
    #[serde(flatten)]
    task: Task,
    /// The number of VMs; none if the GPU was not faster with the most VMs.
    from: Option<u32>,
    /// The measured number below it, if there is one, from which `from` is interpolated.
    above: Option<u32>,
    /// The most VMs that were measured on the GPU.
    most: u32,
}

/// Measures and compares.
pub fn compare(args: &Bench, ready: ReadyPattern) -> Result<Code, Error> {
    let number = args.device.unwrap_or_default();
    let cpu = format!("{} threads", host::cores());
    let gpu = cuda::available(number).map(|info| info.to_string()).map_err(|e| sentence(&e));
    let emulator = qemu::version()
        .and_then(|version| Ok((version, qemu::Images::of(&args.guest)?)))
        .map_err(|e| sentence(&e));
    let backends: &[bool] = if gpu.is_ok() { &[false, true] } else { &[false] };
    let counts = if args.count.is_empty() { &COUNTS[..] } else { &args.count };
    let tasks = args.tasks();
    let bencher = |cuda| Bencher { cuda, ready: ready.clone(), args };
    // Images are checked before anything runs.
    for &task in &tasks {
        bencher(false).fleet(task, 1)?;
    }

    let table = !args.json;
    let version = emulator.as_ref().map(|(version, _)| version);
    let names = [(CPU, Ok(&cpu)), (CUDA, gpu.as_ref()), (QEMU, version)];
    let mut missing = Vec::new();
    for (name, found) in names {
        let line = match found {
            Ok(what) => format!("{name}: {what}"),
            Err(why) => {
                missing.push(format!("{name}: {why}"));
                format!("{name}: not compared: {why}")
            }
        };
        if table {
            print(&(line + "\n"))?;
        }
    }
    if table {
        print(&format!("{:<6}{HEAD}\n", ""))?;
    }
    let mut rows = Vec::new();
    let mut add = |backend, mut row: Row| -> Result<bool, Error> {
        row.backend = Some(backend);
        let line = format!("{backend:<6}{}", row.line());
        rows.push(row);
        Ok(!table || print(&line)?)
    };
    'all: for &task in &tasks {
        // More VMs than were too many before are too many as well.
        let mut done = false;
        for &count in counts {
            for &cuda in backends {
                if !cuda && done {
                    continue;
                }
                let row = bencher(cuda).row(task, count, Packing(None))?;
                done |= !cuda && row.code == Code::Timeout;
                if !add(if cuda { CUDA } else { CPU }, row)? {
                    break 'all;
                }
            }
        }
        if let (Some(busy), Ok((_, images))) = (task.busy, &emulator)
            && !add(QEMU, under_qemu(args, &ready, task, busy, images)?)?
        {
            break 'all;
        }
    }

    let crossings: Vec<Crossing> =
        tasks.iter().filter_map(|&task| Crossing::of(task, &rows)).collect();
    if table {
        for crossing in &crossings {
            print(&format!("{}\n", crossing.line()))?;
        }
    } else {
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            cpu: &cpu,
            cuda: gpu.as_deref().ok(),
            qemu: version.ok().map(String::as_str),
            missing: &missing,
            rows: &rows,
            crossings: &crossings,
        };
        print_json(&report).map_err(super::printing)?;
    }
    Ok(worst(rows.iter().map(|row| row.code)))
}

/// Measures busy guests under QEMU, one for each core.
fn under_qemu(
    args: &Bench,
    ready: &ReadyPattern,
    task: Task,
    busy: Busy,
    images: &qemu::Images,
) -> Result<Row, Error> {
    let count = host::cores() as u32;
    let row = |measured, note, code| Row {
        task,
        count,
        packing: Packing(None),
        backend: None,
        measured,
        note,
        code,
    };
    let costs = match costs(args, ready, count, busy, images)? {
        Ok(costs) => costs,
        Err(error) => {
            let what = format!("rounds on the CPU, for QEMU: {}", error.note(args.timeout));
            return Ok(row(None, Some(what), error.code()));
        }
    };
    let times = (args.busy_seconds, args.timeout);
    Ok(match qemu::busy(images, busy, &costs, ready, times) {
        Ok(measured) => row(Some(measured), None, Code::Success),
        Err(error) => {
            let code = match error {
                QemuError::Time(_) => Code::Timeout,
                QemuError::Guest(_) => Code::Guest,
                _ => Code::Failure,
            };
            row(None, Some(sentence(&error)), code)
        }
    })
}

/// Returns the instructions that a round takes in each of these VMs, on the CPU, with the images that
/// QEMU boots.
fn costs(
    args: &Bench,
    ready: &ReadyPattern,
    count: u32,
    busy: Busy,
    images: &qemu::Images,
) -> Result<Result<Vec<f64>, super::BenchError>, Error> {
    let guest = GuestArgs {
        kernel: Some(images.kernel.clone()),
        initrd: Some(images.initrd.clone()),
        rom: None,
        ..args.guest.clone()
    };
    let fleet = assemble(&guest.options(count, ClockSource::Instret)?)?;
    let settings = Settings {
        started: count,
        threads: host::cores(),
        clock: ClockSource::Instret,
        ready: ready.clone(),
        until_ready: false,
        link: Arc::default(),
    };
    let mut watch = Watch::start(args.timeout, || {
        Ok::<_, Error>(Arc::new(CpuBackend::start(fleet, settings)?) as _)
    })?;
    Ok(watch.costs(count, busy))
}

impl Crossing {
    /// Returns it for a workload that was measured on both; none where speed is not the question.
    fn of(task: Task, rows: &[Row]) -> Option<Self> {
        if task.workload == Workload::Idle {
            return None;
        }
        let speeds = |backend: &'static str| {
            let rows = rows.iter().filter(move |r| r.task == task && r.backend == Some(backend));
            let mut speeds: Vec<(u32, f64)> = rows
                .filter_map(|row| Some((row.count, row.measured.as_ref()?.speed())))
                .filter(|(_, speed)| *speed > 0.0)
                .collect();
            speeds.sort_by_key(|(count, _)| *count);
            speeds
        };
        let (cpu, cuda) = (speeds(CPU), speeds(CUDA));
        // A CPU is no faster with more VMs than it can be measured with.
        let slower = |count| cpu.iter().rfind(|(n, _)| *n <= count).map(|(_, speed)| *speed);
        let ratios: Vec<(u32, f64)> = cuda
            .iter()
            .filter_map(|&(count, speed)| Some((count, speed / slower(count)?)))
            .collect();
        let most = ratios.last()?.0;
        let wins = ratios.iter().rposition(|(_, ratio)| *ratio < 1.0).map_or(0, |i| i + 1);
        let crossing = Self { task, from: None, above: None, most };
        let Some(&(count, ratio)) = ratios.get(wins) else { return Some(crossing) };
        let below = wins.checked_sub(1).and_then(|i| ratios.get(i));
        Some(match below {
            None => Self { from: Some(count), ..crossing },
            Some(&(low, lost)) => {
                // Both speeds go with a power of the number of VMs, more or less.
                let part = lost.ln() / (lost.ln() - ratio.ln());
                let from = f64::from(low) * (f64::from(count) / f64::from(low)).powf(part);
                Self { from: Some(from.ceil() as u32), above: Some(low), ..crossing }
            }
        })
    }

    fn line(&self) -> String {
        let Self { task, from, above, most } = self;
        match (from, above) {
            (None, _) => format!("{task}: the CPU is faster, up to {most} VMs"),
            (Some(from), None) => format!("{task}: the GPU is faster, from {from} VMs on"),
            (Some(from), Some(above)) => format!(
                "{task}: the GPU is faster from about {from} VMs on (interpolated; measured with \
                 {above} and with the next more)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::args::CodeSize;
    use super::super::report::Measured;
    use super::*;

    fn crossing(cpu: &[(u32, u64)], cuda: &[(u32, u64)]) -> Option<(Option<u32>, Option<u32>)> {
        let task = Task { workload: Workload::Apart, busy: None, apart: Some(CodeSize::Large) };
        let row = |backend, &(count, gips): &(u32, u64)| Row {
            task,
            count,
            packing: Packing(None),
            backend: Some(backend),
            measured: (gips > 0)
                .then(|| Measured::new(Duration::from_secs(1), gips * 1_000_000_000, count)),
            note: None,
            code: Code::Success,
        };
        let rows: Vec<Row> =
            cpu.iter().map(|at| row(CPU, at)).chain(cuda.iter().map(|at| row(CUDA, at))).collect();
        Crossing::of(task, &rows).map(|found| (found.from, found.above))
    }

    #[test]
    fn the_crossing_is_between_the_numbers_that_were_measured() {
        let cpu = [(1, 2), (100, 4), (10_000, 4)];
        // The ratio goes from 1/4 to 4.
        assert_eq!(crossing(&cpu, &[(100, 1), (10_000, 16)]), Some((Some(1000), Some(100))));
        assert_eq!(crossing(&cpu, &[(1, 3), (100, 5)]), Some((Some(1), None)));
        assert_eq!(crossing(&cpu, &[(1, 1), (100, 3), (10_000, 3)]), Some((None, None)));
        // From where on it stays faster.
        assert_eq!(crossing(&cpu, &[(1, 3), (100, 2), (10_000, 8)]), Some((Some(1000), Some(100))));
    }

    #[test]
    fn a_fleet_that_was_too_much_for_one_of_them_does_not_count() {
        assert_eq!(crossing(&[(1, 2), (100, 0)], &[(1, 1), (100, 4)]), Some((Some(10), Some(1))));
        assert_eq!(crossing(&[(1, 2)], &[(1, 0)]), None);
        assert_eq!(crossing(&[(1, 0)], &[(1, 1)]), None);
    }
}

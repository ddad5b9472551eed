//! `pxvm bench`: measures the speed of fleets.

mod apart;
mod args;
mod asm;
mod busy;
mod compare;
mod program;
mod qemu;
mod report;
mod watch;

pub use self::args::{Bench, Busy, CodeSize, Packing, Task, Workload};

use std::sync::Arc;

use self::report::{HEAD, Report, Row};
use self::watch::{BenchError, Watch};
use super::boot::{self, PreparedBackend};
use super::choose::Found;
use super::{on_cpu, printing, say};
use crate::backend::cpu::check_count;
use crate::backend::cuda::bare_fleet::BareFleet;
use crate::backend::cuda::{self, CudaError, DeviceFleet};
use crate::backend::{BackendError, ClockSource, Settings};
use crate::cli::BackendChoice;
use crate::console::ready::ReadyPattern;
use crate::error::Error;
use crate::exit::{Code, sentence};
use crate::host;
use crate::image::cache;
use crate::machine::{Expected, Fleet, assemble};
use crate::report::print_json;
use crate::stdio;
use crate::usage::{self, UsageFile};

const COUNTS_CPU: [u32; 3] = [1, 16, 64];
const COUNTS_CUDA: [u32; 3] = [1, 256, 8448];
const LANES_MAX: u32 = 32;

/// Measures fleets.
pub fn bench(args: Bench) -> Result<Code, Error> {
    if args.backend == BackendChoice::Lockstep {
        return Err(Error::Usage("--backend lockstep compares, and is slow by design".into()));
    }
    let ready = boot::ready_pattern(&args.ready_pattern)?;
    if args.compare {
        let given = [
            ("--backend", args.backend != BackendChoice::Auto),
            ("--packing", args.packing.iter().any(|packing| packing.0.is_some())),
        ];
        if let Some((option, _)) = given.into_iter().find(|(_, given)| *given) {
            let why = format!("--compare runs all backends as each does best: no {option}");
            return Err(Error::Usage(why));
        }
        return compare::compare(&args, ready);
    }
    let number = args.device.unwrap_or_default();
    let cuda = Found::look(args.backend, number)?.is_card();
    if !cuda {
        on_cpu(args.device, None)?;
    }
    let (backend, device) = match cuda {
        true => ("cuda", cuda::available(number).map_err(BackendError::from)?.to_string()),
        false => ("cpu", format!("{} threads", host::cores())),
    };
    if let Some(n) = args.packing.iter().filter_map(|p| p.0).find(|&n| cuda && n > LANES_MAX) {
        return Err(Error::Usage(format!("--packing {n}: a warp has {LANES_MAX} lanes")));
    }
    let counts = match (args.count.as_slice(), cuda) {
        ([], true) => &COUNTS_CUDA[..],
        ([], false) => &COUNTS_CPU,
        (given, _) => given,
    };
    let bench = Bencher { cuda, ready, args: &args };
    let tasks = args.tasks();
    // Images are checked before anything runs.
    for &count in counts {
        for &task in &tasks {
            bench.fleet(task, count)?;
        }
    }

    let mut rows = Vec::new();
    let mut failure = None;
    let without: Vec<&str> = emu_device::ablation::left_out().collect();
    if !args.json {
        let left_out = if without.is_empty() { "" } else { ", built without " };
        print(&format!("{backend}: {device}{left_out}{}\n{HEAD}\n", without.join(", ")))?;
    }
    'all: for &task in &tasks {
        for &count in counts {
            for &packing in &args.packing {
                let row = match bench.row(task, count, packing) {
                    Ok(row) => row,
                    Err(error) => {
                        failure = Some(error);
                        break 'all;
                    }
                };
                let line = row.line();
                rows.push(row);
                // Printed at once, without waiting for the other lines.
                if !args.json && !print(&line)? {
                    break 'all;
                }
            }
        }
    }
    if args.json {
        let version = env!("CARGO_PKG_VERSION");
        let report = Report { version, backend, device: &device, without: &without, rows: &rows };
        print_json(&report).map_err(printing)?;
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(worst(rows.iter().map(|row| row.code))),
    }
}

/// Returns the worst exit code: a guest that failed outweighs one that was slow.
fn worst(codes: impl Iterator<Item = Code>) -> Code {
    codes.max_by_key(|&code| code.number()).unwrap_or(Code::Success)
}

/// Prints a text. Returns whether standard output is still read.
fn print(text: &str) -> Result<bool, Error> {
    stdio::print(text.as_bytes()).map_err(printing)
}

struct Bencher<'a> {
    cuda: bool,
    ready: ReadyPattern,
    args: &'a Bench,
}

impl Bencher<'_> {
    fn fleet(&self, task: Task, count: u32) -> Result<Fleet, Error> {
        let guest = |clock| self.args.guest.clone().options(count, clock);
        let linux = |clock| {
            let mut fleet = assemble(&guest(clock)?)?;
            let file = UsageFile::of(&cache::usage(), &fleet, &self.args.ready_pattern);
            usage::expect(&mut fleet, &file);
            Ok(fleet)
        };
        let fleet = match task.workload {
            Workload::Boot => linux(ClockSource::Instret),
            Workload::Busy | Workload::Idle => linux(ClockSource::Host),
            Workload::Apart => apart::fleet(task.apart.unwrap_or(CodeSize::Small), count),
            Workload::Compute => program::fleet(count),
        }?;
        let expected = self.args.guest.memory_per_vm.map_or(fleet.expected, Expected::given);
        Ok(Fleet { expected, ..fleet })
    }

    /// Measures one combination. An error of this one alone is part of the row.
    fn row(&self, task: Task, count: u32, packing: Packing) -> Result<Row, Error> {
        let row = |measured, note, code| Row {
            task,
            count,
            packing,
            backend: None,
            measured,
            note,
            code,
        };
        let fleet = self.fleet(task, count)?;
        let settings = Settings {
            started: count,
            threads: match packing.0 {
                Some(n) if !self.cuda => n as usize,
                _ => host::cores(),
            },
            clock: match task.workload {
                Workload::Busy | Workload::Idle => ClockSource::Host,
                Workload::Boot | Workload::Apart | Workload::Compute => ClockSource::Instret,
            },
            ready: self.ready.clone(),
            until_ready: task.workload == Workload::Boot,
            link: Arc::default(),
        };
        let prepared = match self.prepare(&fleet, packing) {
            Ok(prepared) => prepared,
            Err(error) if does_not_fit(&error) => {
                return Ok(row(None, Some(sentence(&error)), Code::Success));
            }
            Err(error) => return Err(error),
        };
        let mut watch = Watch::start(self.args.timeout, || boot::start(prepared, fleet, settings))?;
        let seen = match task.workload {
            Workload::Boot => watch.boot(count),
            Workload::Busy => {
                watch.busy(count, task.busy.unwrap_or(Busy::Mix), self.args.busy_seconds)
            }
            Workload::Apart => watch.compute(count, || {
                let results = apart::Results::new(task.apart.unwrap_or(CodeSize::Small));
                move |vm| results.of(vm)
            }),
            Workload::Compute => watch.compute(count, program::results),
            Workload::Idle => watch.idle(count, self.args.idle_seconds),
        };
        Ok(match seen {
            Ok(seen) => {
                let note = seen.work.and_then(|work| work.note());
                row(Some(watch.measured(&seen, count)), note, Code::Success)
            }
            Err(BenchError::Backend(error)) => return Err(error.into()),
            Err(error) => row(None, Some(error.note(self.args.timeout)), error.code()),
        })
    }

    /// Allocates a fleet, and runs something on a GPU, so that its driver has finished its set-up.
    fn prepare(&self, fleet: &Fleet, packing: Packing) -> Result<PreparedBackend, Error> {
        if !self.cuda {
            check_count(fleet)?;
            return Ok(PreparedBackend::Cpu);
        }
        let number = self.args.device.unwrap_or_default();
        let gpu = cuda::open(number, &say).map_err(BackendError::from)?;
        let mut first = BareFleet::start(gpu, &program::fleet(1)?, cuda::Choice::default())?;
        first.run_slice(&[0], 1024).map_err(BackendError::from)?;
        let gpu = first.into_gpu().map_err(BackendError::from)?;
        let device = DeviceFleet::new(gpu, fleet)?;
        let options = cuda::Options {
            device: number,
            packing: cuda::Choice { lanes: packing.0, insn_loop: self.args.insn_loop.get() },
        };
        Ok(PreparedBackend::Cuda(device, options))
    }
}

fn does_not_fit(error: &Error) -> bool {
    use BackendError::{Cuda, Reserve, TooMany};
    let Error::Backend(error) = error else { return false };
    matches!(error, TooMany { .. } | Reserve(..) | Cuda(CudaError::NoMemory { .. }))
}

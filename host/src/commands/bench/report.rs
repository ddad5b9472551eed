//! What `pxvm bench` prints: a table, or JSON.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::args::{Packing, Task, Workload};
use crate::exit::Code;

/// One line of the result.
#[derive(Debug, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub task: Task,
    pub count: u32,
    pub packing: Packing,
    /// What ran it, where several are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<&'static str>,
    #[serde(flatten)]
    pub measured: Option<Measured>,
    /// Why the line was not measured, or what went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    #[serde(skip)]
    pub code: Code,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    #[serde(rename = "wall_seconds", serialize_with = "seconds")]
    pub wall: Duration,
    pub instructions: u64,
    pub mips_per_vm: f64,
    pub total_gips: f64,
    /// Number of launches on a GPU.
    pub launches: Option<u64>,
    /// Device time of the launches.
    #[serde(rename = "device_seconds", serialize_with = "maybe_seconds")]
    pub device: Option<Duration>,
    /// Share of the time in which the GPU ran no launch. That is no loss when VMs are idle.
    pub launch_overhead: Option<f64>,
    /// Processor time on all the host's cores.
    #[serde(rename = "host_cpu_seconds", serialize_with = "maybe_seconds")]
    pub host: Option<Duration>,
    /// Memory per VM: the largest number of private frames in use, and what each VM needs besides.
    pub memory_per_vm: Option<u64>,
    pub shared_frames: Option<u32>,
    /// Of busy VMs.
    #[serde(flatten)]
    pub work: Option<Work>,
}

/// What busy VMs did.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Work {
    /// Rounds that ended while it was measured.
    pub rounds: u64,
    /// VMs of which no result came, and so none was checked.
    pub unchecked: u32,
    /// Instructions of the VM that got the fewest, as a share of the median.
    pub least_share: Option<f64>,
}

impl Measured {
    /// Returns the speed of `count` VMs, and nothing else.
    pub fn new(wall: Duration, instructions: u64, count: u32) -> Self {
        let speed = instructions as f64 / wall.as_secs_f64().max(1e-9);
        Self {
            wall,
            instructions,
            mips_per_vm: speed / f64::from(count) / 1e6,
            total_gips: speed / 1e9,
            launches: None,
            device: None,
            launch_overhead: None,
            host: None,
            memory_per_vm: None,
            shared_frames: None,
            work: None,
        }
    }

    /// Returns the speed of busy VMs elsewhere, of which rounds are known.
    pub fn of_rounds(wall: Duration, instructions: u64, rounds: u64, count: u32) -> Self {
        let work = Some(Work { rounds, unchecked: 0, least_share: None });
        Self { work, ..Self::new(wall, instructions, count) }
    }

    /// Returns the speed by which backends are compared: rounds a second where they are known, because
    /// busy guests have timer interrupts as well, else GIPS.
    pub fn speed(&self) -> f64 {
        let work = self.work.map(|work| work.rounds as f64 / self.wall.as_secs_f64().max(1e-9));
        work.unwrap_or(self.total_gips)
    }
}

impl Work {
    /// Returns what a reader of the numbers has to know.
    pub fn note(self) -> Option<String> {
        let count = self.unchecked;
        (count > 0).then(|| format!("{count} VMs were too slow to show a result"))
    }
}

fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

fn maybe_seconds<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    time.map(|t| t.as_secs_f64()).serialize(to)
}

#[derive(Debug, Serialize)]
pub struct Report<'a> {
    pub version: &'static str,
    pub backend: &'static str,
    /// Device that runs the fleets.
    pub device: &'a str,
    /// Accelerators that this build leaves out.
    pub without: &'a [&'static str],
    pub rows: &'a [Row],
}

/// Head of the table; [`Row::line`] has the same columns.
pub const HEAD: &str = "workload            VMs  packing  seconds  MIPS a VM      GIPS  launches  overhead  \
    GPU busy  host CPU  KiB a VM    rounds  least VM";

impl Row {
    /// Returns the line of the table.
    pub fn line(&self) -> String {
        let packing = self.packing.0.map_or_else(|| "auto".to_owned(), |n| n.to_string());
        let mut line = format!("{:<15} {:>7}  {packing:>7}", self.task.to_string(), self.count);
        if let Some(m) = &self.measured {
            let wall = m.wall.as_secs_f64().max(1e-9);
            let part = |part: Option<f64>| {
                part.map_or_else(|| "-".to_owned(), |part| format!("{:.1} %", 100.0 * part))
            };
            let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let busy = m.device.map(|device| device.as_secs_f64() / wall);
            // Time in which a GPU has nothing to do because VMs are idle is no overhead.
            let overhead = m.launch_overhead.filter(|_| self.task.workload != Workload::Idle);
            line += &format!(
                "  {wall:>7.2}  {:>9.2}  {:>8.3}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}",
                m.mips_per_vm,
                m.total_gips,
                number(m.launches),
                part(overhead),
                part(busy),
                part(m.host.map(|host| host.as_secs_f64() / wall)),
                number(m.memory_per_vm.map(|bytes| bytes >> 10)),
                number(m.work.map(|work| work.rounds)),
                part(m.work.and_then(|work| work.least_share)),
            );
        }
        if let Some(note) = &self.note {
            line += "  ";
            line += note;
        }
        line + "\n"
    }
}

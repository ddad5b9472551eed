//! What `pxvm bench` prints: a table, or JSON.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::args::{Packing, Workload};
use crate::exit::Code;

/// One line of the result.
#[derive(Debug, Serialize)]
pub struct Row {
    pub workload: Workload,
    pub count: u32,
    pub packing: Packing,
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
    #[serde(rename = "host_cpu_seconds", serialize_with = "seconds")]
    pub host: Duration,
    /// Memory per VM: the largest number of private frames in use, and what each VM needs besides.
    pub memory_per_vm: u64,
    pub shared_frames: u32,
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
pub const HEAD: &str = "workload     VMs  packing  seconds  MIPS a VM      GIPS  launches  overhead  \
    GPU busy  host CPU  KiB a VM";

impl Row {
    /// Returns the line of the table.
    pub fn line(&self) -> String {
        let workload = format!("{:?}", self.workload).to_lowercase();
        let packing = self.packing.0.map_or_else(|| "auto".to_owned(), |n| n.to_string());
        let mut line = format!("{workload:<8} {:>7}  {packing:>7}", self.count);
        if let Some(m) = &self.measured {
            let wall = m.wall.as_secs_f64().max(1e-9);
            let part = |part: Option<f64>| {
                part.map_or_else(|| "-".to_owned(), |part| format!("{:.1} %", 100.0 * part))
            };
            let busy = m.device.map(|device| device.as_secs_f64() / wall);
            // Time in which a GPU has nothing to do because VMs are idle is no overhead.
            let overhead = m.launch_overhead.filter(|_| self.workload != Workload::Idle);
            line += &format!(
                "  {wall:>7.2}  {:>9.2}  {:>8.3}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}",
                m.mips_per_vm,
                m.total_gips,
                m.launches.map_or_else(|| "-".to_owned(), |n| n.to_string()),
                part(overhead),
                part(busy),
                part(Some(m.host.as_secs_f64() / wall)),
                m.memory_per_vm >> 10,
            );
        }
        if let Some(note) = &self.note {
            line += "  ";
            line += note;
        }
        line + "\n"
    }
}

//! The result of a run as JSON, the stable interface for scripts.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::backend::Backend;
use crate::engine::{Outcome, State};
use crate::net::{Counts, Wire};
use crate::stdio::print;

/// What `pxvm boot --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct BootReport {
    /// `cpu`, `cuda` or `lockstep`.
    pub backend: &'static str,
    /// Number of VMs.
    pub count: u32,
    /// What `--seed` has to be for the same randomness. As text: it has more digits than numbers
    /// of many JSON readers.
    pub seed: String,
    /// VMs that are ready at the end.
    pub ready: u32,
    /// VMs that powered off.
    pub halted: u32,
    /// VMs that failed.
    pub faulted: u32,
    /// From the start of the fleet to its end.
    pub wall_seconds: f64,
    /// Retired by all VMs.
    pub instructions: u64,
    /// Millions of instructions a second and VM.
    pub mips_per_vm: f64,
    /// Billions of instructions a second, all VMs together.
    pub total_gips: f64,
    /// 4 KiB frames of the base image, one copy for the fleet.
    pub shared_frames: u32,
    /// 4 KiB frames that belong to single VMs.
    pub private_frames: u32,
    /// What the network did; none without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetReport>,
    /// Where the console logs are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_dir: Option<String>,
    /// The VMs.
    pub vms: Vec<VmReport>,
}

/// What the network did.
#[derive(Clone, Debug, Serialize)]
pub struct NetReport {
    /// All VMs together.
    #[serde(flatten)]
    pub counts: Counts,
    /// Processor time of the network thread.
    pub cpu_seconds: f64,
}

impl NetReport {
    /// Sums up what went over the wire, and tells the log.
    pub fn new(wire: &Wire, cpu: Duration) -> Self {
        let counts = wire.total();
        let frames = counts.tx_frames + counts.rx_frames;
        tracing::info!(
            tx = counts.tx_frames,
            rx = counts.rx_frames,
            dropped = counts.drops.total(),
            us_a_frame = cpu.as_secs_f64() * 1e6 / frames.max(1) as f64,
            "network"
        );
        Self { counts, cpu_seconds: cpu.as_secs_f64() }
    }
}

/// One VM in [`BootReport`].
#[derive(Clone, Debug, Serialize)]
pub struct VmReport {
    /// Its number.
    pub id: u32,
    /// What it was doing.
    pub state: State,
    /// Instructions it retired.
    pub instret: u64,
    /// Instructions it had retired when it was ready, rounded up to a slice (32,768).
    pub ready_instret: Option<u64>,
    /// How often it started again.
    pub resets: u32,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What its network card did, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Counts>,
}

impl BootReport {
    /// Sums up a run.
    pub fn new(
        backend: &dyn Backend,
        outcome: &Outcome,
        seed: u64,
        network: Option<NetReport>,
        wire: &Wire,
        console_dir: Option<&Path>,
    ) -> Self {
        let wall_seconds = outcome.wall.as_secs_f64();
        let instructions = outcome.totals.instructions;
        let count = outcome.vms.len() as u32;
        let per_second = instructions as f64 / wall_seconds.max(1e-9);
        let vms = (0..).zip(&outcome.vms).map(|(id, vm)| VmReport {
            id,
            state: vm.state,
            instret: backend.instret(id),
            ready_instret: vm.ready_instret,
            resets: vm.resets,
            reason: vm.reason.clone(),
            network: Some(wire.counts(id)).filter(|counts| *counts != Counts::default()),
        });
        Self {
            backend: backend.name(),
            count,
            seed: seed.to_string(),
            ready: outcome.counts.ready,
            halted: outcome.counts.halted,
            faulted: outcome.counts.faulted,
            wall_seconds,
            instructions,
            mips_per_vm: per_second / f64::from(count.max(1)) / 1e6,
            total_gips: per_second / 1e9,
            shared_frames: outcome.totals.shared_frames,
            private_frames: outcome.totals.private_frames,
            network,
            console_dir: console_dir.map(|d| d.display().to_string()),
            vms: vms.collect(),
        }
    }
}

/// Prints a value as one line of JSON on standard output.
pub fn print_json(value: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    print(&line).map(drop)
}

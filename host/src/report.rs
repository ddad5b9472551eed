//! The result of a run as JSON, the stable interface for scripts.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::backend::Backend;
use crate::choice::Choice;
use crate::control::VmState;
use crate::engine::RunSummary;
use crate::net::{Counts, VirtualLink};
use crate::stdio::print;

/// What `pxvm boot --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct BootReport {
    /// `cpu`, `cuda` or `lockstep`.
    pub backend: &'static str,
    /// Why `--backend auto` took that one; absent where the option names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// Number of VMs.
    pub count: u32,
    /// Value of `--seed` that gives the same randomness again. It is text, because it has more
    /// digits than the numbers of many JSON readers.
    pub seed: String,
    /// VMs that are ready at the end.
    pub ready: u32,
    /// VMs that powered off.
    pub halted: u32,
    /// VMs that failed.
    pub faulted: u32,
    /// Time from the start of the fleet to its end.
    pub wall_seconds: f64,
    /// Instructions retired by all VMs.
    pub instructions: u64,
    /// Millions of instructions a second, for each VM.
    pub mips_per_vm: f64,
    /// Billions of instructions a second, all VMs together.
    pub total_gips: f64,
    /// 4 KiB frames of the base image, one copy for the fleet.
    pub shared_frames: u32,
    /// 4 KiB frames that belong to single VMs.
    pub private_frames: u32,
    /// Network statistics; absent without a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetReport>,
    /// Folder of the console logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_dir: Option<String>,
    /// Reports of the VMs.
    pub vms: Vec<VmReport>,
}

/// Network statistics.
#[derive(Clone, Debug, Serialize)]
pub struct NetReport {
    /// Counters of all VMs together.
    #[serde(flatten)]
    pub counts: Counts,
    /// Processor time of the network thread, in seconds.
    pub cpu_seconds: f64,
}

impl NetReport {
    /// Sums up the network's counters, and writes the sums to the log.
    pub fn new(link: &VirtualLink, cpu: Duration) -> Self {
        let counts = link.total();
        let packets = counts.tx_packets + counts.rx_packets;
        tracing::info!(
            tx = counts.tx_packets,
            rx = counts.rx_packets,
            dropped = counts.drops.total(),
            us_a_packet = cpu.as_secs_f64() * 1e6 / packets.max(1) as f64,
            "network"
        );
        Self { counts, cpu_seconds: cpu.as_secs_f64() }
    }
}

/// Report of one VM in [`BootReport`].
#[derive(Clone, Debug, Serialize)]
pub struct VmReport {
    /// Number of the VM.
    pub id: u32,
    /// State of the VM at the end.
    pub state: VmState,
    /// Instructions that the VM retired.
    pub instret: u64,
    /// Instructions that the VM had retired when it was ready, rounded up to a slice (32,768).
    pub ready_instret: Option<u64>,
    /// Number of the VM's resets.
    pub resets: u32,
    /// Why the VM failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Counters of the VM's network card, if it did anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Counts>,
}

impl BootReport {
    /// Returns the report of a run.
    pub fn new(
        backend: &dyn Backend,
        run: &RunSummary,
        seed: u64,
        network: Option<NetReport>,
        link: &VirtualLink,
        console_dir: Option<&Path>,
    ) -> Self {
        let wall_seconds = run.wall.as_secs_f64();
        let instructions = run.totals.instructions;
        let count = run.vms.len() as u32;
        let per_second = instructions as f64 / wall_seconds.max(1e-9);
        let vms = (0..).zip(&run.vms).map(|(id, vm)| VmReport {
            id,
            state: vm.state,
            instret: backend.instret(id),
            ready_instret: vm.ready_instret,
            resets: vm.resets,
            reason: vm.reason.clone(),
            network: Some(link.counts(id)).filter(|counts| *counts != Counts::default()),
        });
        Self {
            backend: backend.name(),
            choice: None,
            count,
            seed: seed.to_string(),
            ready: run.counts[VmState::Ready],
            halted: run.counts[VmState::Halted],
            faulted: run.counts[VmState::Faulted],
            wall_seconds,
            instructions,
            mips_per_vm: per_second / f64::from(count.max(1)) / 1e6,
            total_gips: per_second / 1e9,
            shared_frames: run.totals.shared_frames,
            private_frames: run.totals.private_frames,
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

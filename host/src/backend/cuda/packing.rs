//! Packing: how many VMs share one warp of the GPU, and which instruction loop executes them.

use emu_core::abi::Hart;
use emu_device::protocol::launch::HotSizes;

use super::gpu::Kernel;

/// An instruction loop of the GPU's program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InsnLoop {
    /// Jumps to code of its own for each operation: fast while the VMs of a warp run alike
    Dispatch,
    /// Takes the same path for all operations: fast when they do different things
    Uniform,
}

/// What the uniform loop keeps at hand of a VM.
pub const HOT: HotSizes = HotSizes { translations: 32, pages: 16, wait_steps: 48, crowd: 12 };

impl InsnLoop {
    /// Whether this build has the uniform loop on a GPU.
    pub const HAS_UNIFORM: bool = cfg!(feature = "uniform-loop");
    /// The loops that a GPU has.
    pub const ON_GPU: &[Self] =
        if Self::HAS_UNIFORM { &[Self::Dispatch, Self::Uniform] } else { &[Self::Dispatch] };

    /// Returns the kernel that has the loop.
    pub const fn kernel(self) -> Kernel {
        match self {
            Self::Dispatch => Kernel::Step,
            Self::Uniform => Kernel::StepUniform,
        }
    }

    /// Returns the other loop.
    pub const fn other(self) -> Self {
        match self {
            Self::Dispatch => Self::Uniform,
            Self::Uniform => Self::Dispatch,
        }
    }

    /// Returns the bytes of shared memory that a VM takes.
    pub const fn shared(self) -> u32 {
        match self {
            Self::Dispatch => size_of::<Hart>() as u32,
            Self::Uniform => HOT.bytes(),
        }
    }
}

/// What the user has chosen of a packing; the rest is chosen for each launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    /// VMs per warp.
    pub lanes: Option<u32>,
    /// The instruction loop.
    pub insn_loop: Option<InsnLoop>,
}

impl Choice {
    /// Returns the packing of `runnable` VMs on a device with so many multiprocessors, by the loop
    /// `insn_loop` where none was chosen.
    pub fn packing(&self, runnable: u32, multiprocessors: u32, insn_loop: InsnLoop) -> Packing {
        let vms_per_warp = self.lanes.unwrap_or_else(|| vms_per_warp(runnable, multiprocessors));
        Packing { vms_per_warp, insn_loop: self.insn_loop.unwrap_or(insn_loop) }
    }
}

/// How a launch runs its VMs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packing {
    /// VMs per warp.
    pub vms_per_warp: u32,
    /// The instruction loop.
    pub insn_loop: InsnLoop,
}

/// Warps that a multiprocessor (SM) runs at full speed when each has one VM: two for each of its
/// four schedulers.
const FULL_SPEED: u32 = 8;

/// Returns the number of VMs per warp for `runnable` VMs on a device with so many
/// multiprocessors (SMs).
///
/// VMs of a warp run at full speed while they are converged, and one after the other while they
/// diverge. So few VMs get a warp each; they are packed once there are more VMs than warps that run
/// at full speed.
///
/// Measured on an H200 (132 multiprocessors), Linux guests that boot, each with its own name and
/// random numbers, seconds to the last READY: 8,448 VMs 5.4 with 4 a warp, 2.8 with 8, 3.1 with 16;
/// 32,768 VMs about the same with 16 and with 32.
fn vms_per_warp(runnable: u32, multiprocessors: u32) -> u32 {
    let warps = multiprocessors.saturating_mul(FULL_SPEED).max(1);
    runnable.div_ceil(warps).next_power_of_two().clamp(1, 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_vms_have_a_warp_each_and_many_share() {
        let table = [(0, 1), (1, 1), (256, 1), (1056, 1), (1057, 2), (8448, 8), (32_768, 32)];
        for (runnable, expected) in table {
            assert_eq!(vms_per_warp(runnable, 132), expected, "{runnable}");
        }
        assert_eq!(vms_per_warp(u32::MAX, 1), 32);
    }
}

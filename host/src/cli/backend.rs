//! Options that say what runs machines, and by which clock.

use clap::{Args, ValueEnum};

use crate::backend::ClockSource;
use crate::backend::cuda::{Choice, InsnLoop};

/// `--backend`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum BackendChoice {
    /// Whichever suits best
    Auto,
    /// The host's processors
    Cpu,
    /// An NVIDIA GPU
    Cuda,
    /// Both, compared after every slice (boot only)
    Lockstep,
}

/// Where a bare-metal program runs.
#[derive(Clone, Copy, Debug, Args)]
pub struct BackendArgs {
    /// What executes the programs; auto is the CPU
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,
    /// Number of the GPU, as in nvidia-smi [default: 0]
    #[arg(long, value_name = "N")]
    pub device: Option<u32>,
}

/// How machines are packed into the warps of a GPU.
#[derive(Clone, Copy, Debug, Args)]
pub struct PackingArgs {
    /// Machines that share a warp of the GPU, 1 to 32 [default: chosen for each launch]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub lanes: Option<u32>,
    /// What executes their instructions.
    #[command(flatten)]
    pub insn_loop: LoopArgs,
}

impl PackingArgs {
    /// Returns what the backend takes.
    pub const fn choice(&self) -> Choice {
        Choice { lanes: self.lanes, insn_loop: self.insn_loop.get() }
    }
}

/// `--loop`, in a build that has more than one.
#[derive(Clone, Copy, Debug, Args)]
pub struct LoopArgs {
    /// Instruction loop of the GPU [default: chosen for each launch]
    #[cfg(feature = "uniform-loop")]
    #[arg(long = "loop", value_enum, value_name = "LOOP")]
    chosen: Option<InsnLoop>,
}

impl LoopArgs {
    /// Returns the instruction loop that was asked for.
    pub const fn get(&self) -> Option<InsnLoop> {
        #[cfg(feature = "uniform-loop")]
        return self.chosen;
        #[cfg(not(feature = "uniform-loop"))]
        None
    }
}

/// `--clock`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Clock {
    /// The host's clock
    Host,
    /// Retired instructions
    Instret,
}

impl From<Clock> for ClockSource {
    fn from(clock: Clock) -> Self {
        match clock {
            Clock::Host => Self::Host,
            Clock::Instret => Self::Instret,
        }
    }
}

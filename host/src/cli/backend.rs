//! Options that say what runs machines, and by which clock.

use clap::{Args, ValueEnum};

use crate::backend::ClockSource;

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

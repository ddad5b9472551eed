//! Implementation of the subcommands, one file each.

pub mod bench;
pub mod boot;
pub mod client;
pub mod conform;
pub mod doctor;
pub mod dtb;
pub mod generate;
pub mod images;
mod network;
pub mod run;
mod server;

use crate::backend::BackendError;
use crate::backend::cuda::{self, gpu::Gpu};
use crate::cli::{BackendArgs, BackendChoice, Subcommand};
use crate::error::Error;
use crate::exit::Code;

/// Executes the subcommand of the command line.
pub fn run(subcommand: Subcommand) -> Result<Code, Error> {
    match subcommand {
        Subcommand::Boot(args) => boot::boot(*args),
        Subcommand::Ps(args) => client::ps(args),
        Subcommand::Console(args) => client::console(args),
        Subcommand::Exec(args) => client::exec(args),
        Subcommand::Logs(args) => client::logs(args),
        Subcommand::Pause(args) => client::command(args, "pause"),
        Subcommand::Resume(args) => client::command(args, "resume"),
        Subcommand::Reset(args) => client::command(args, "reset"),
        Subcommand::Stop(args) => client::command(args, "stop"),
        Subcommand::Add(args) => client::add(args),
        Subcommand::Bench(args) => bench::bench(args),
        Subcommand::Run(args) => run::run(args),
        Subcommand::Conform(args) => conform::conform(args),
        Subcommand::Dtb(args) => dtb::dtb(args),
        Subcommand::Images(args) => images::images(args),
        Subcommand::Doctor(args) => doctor::doctor(args),
        Subcommand::Completions(args) => generate::completions(args),
        Subcommand::Man(args) => generate::man(args),
    }
}

/// Turns an error of printing to standard output into ours.
fn printing(source: std::io::Error) -> Error {
    Error::io("write to standard output", source)
}

/// Prints what takes time, on standard error.
fn say(text: &str) {
    crate::stdio::say(&format!("pxvm: {text}"));
}

/// Refuses options of a GPU for VMs that run on the CPU.
fn on_cpu(device: Option<u32>, lanes: Option<u32>) -> Result<(), Error> {
    let given = [("--device", device.is_some()), ("--lanes", lanes.is_some())];
    match given.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => {
            let why = format!("{flag} is for a GPU, and this runs on the CPU: see --backend");
            Err(Error::Usage(why))
        }
        None => Ok(()),
    }
}

/// Returns the GPU that a bare-metal program is to run on, if any.
fn gpu_for(args: BackendArgs) -> Result<Option<Box<dyn Gpu>>, Error> {
    match args.backend {
        BackendChoice::Auto | BackendChoice::Cpu => on_cpu(args.device, None).map(|()| None),
        BackendChoice::Cuda => {
            let gpu = cuda::open(args.device.unwrap_or_default(), &say);
            Ok(Some(gpu.map_err(BackendError::from)?))
        }
        BackendChoice::Lockstep => {
            Err(Error::Usage("--backend lockstep compares fleets: see pxvm boot".into()))
        }
    }
}

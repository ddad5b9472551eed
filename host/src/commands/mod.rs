//! Implementation of the subcommands, one file each.

mod bench;
mod boot;
mod client;
mod conform;
mod doctor;
mod dtb;
mod generate;
mod images;
mod network;
mod run;
mod steering;

use crate::backend::BackendError;
use crate::backend::cuda::{self, gpu::Gpu};
use crate::cli::{BackendChoice, Command, Where};
use crate::exit::{Code, Error};

/// Executes the command of the command line.
pub fn run(command: Command) -> Result<Code, Error> {
    match command {
        Command::Boot(args) => boot::boot(*args),
        Command::Ps(args) => client::ps(args),
        Command::Console(args) => client::console(args),
        Command::Exec(args) => client::exec(args),
        Command::Logs(args) => client::logs(args),
        Command::Pause(args) => client::act(args, "pause"),
        Command::Resume(args) => client::act(args, "resume"),
        Command::Reset(args) => client::act(args, "reset"),
        Command::Stop(args) => client::act(args, "stop"),
        Command::Add(args) => client::add(args),
        Command::Bench(args) => bench::bench(args),
        Command::Run(args) => run::run(args),
        Command::Conform(args) => conform::conform(args),
        Command::Dtb(args) => dtb::dtb(args),
        Command::Images(args) => images::images(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Completions(args) => generate::completions(args),
        Command::Man(args) => generate::man(args),
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
fn gpu_for(place: Where) -> Result<Option<Box<dyn Gpu>>, Error> {
    match place.backend {
        BackendChoice::Auto | BackendChoice::Cpu => on_cpu(place.device, None).map(|()| None),
        BackendChoice::Cuda => {
            let gpu = cuda::open(place.device.unwrap_or_default(), &say);
            Ok(Some(gpu.map_err(BackendError::from)?))
        }
        BackendChoice::Lockstep => {
            Err(Error::Usage("--backend lockstep compares fleets: see pxvm boot".into()))
        }
    }
}

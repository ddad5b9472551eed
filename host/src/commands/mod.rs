//! What the commands do, one file each.

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

use std::io::Write;

use crate::backend::BackendError;
use crate::backend::cuda::{self, gpu::Gpu};
use crate::cli::{BackendChoice, Command, Where};
use crate::exit::{Code, Error};

/// Does what the command line says.
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

/// What printing to standard output failed with, as our error.
fn printing(source: std::io::Error) -> Error {
    Error::io("write to standard output", source)
}

/// Tells on standard error what takes time.
fn say(text: &str) {
    // Without standard error there is nobody to tell.
    let _ = writeln!(crate::progress::Stderr, "pxvm: {text}");
}

/// The GPU that a bare-metal program is to run on, if any.
fn gpu_for(place: Where) -> Result<Option<Box<dyn Gpu>>, Error> {
    match place.backend {
        BackendChoice::Auto | BackendChoice::Cpu => Ok(None),
        BackendChoice::Cuda => {
            Ok(Some(cuda::open(place.device, &say).map_err(BackendError::from)?))
        }
        BackendChoice::Lockstep => {
            Err(Error::Usage("--backend lockstep compares fleets: see pxvm boot".into()))
        }
    }
}

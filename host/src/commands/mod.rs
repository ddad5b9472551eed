//! What the commands do, one file each.

mod boot;
mod conform;
mod doctor;
mod dtb;
mod generate;
mod images;
mod run;

use crate::cli::Command;
use crate::exit::{Code, Error};

/// Does what the command line says.
pub fn run(command: Command) -> Result<Code, Error> {
    match command {
        Command::Boot(args) => boot::boot(args),
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

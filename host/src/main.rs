//! The program `pxvm`.

use std::process::ExitCode;

use clap::Parser;
use pxvm::backend::cuda::driver;
use pxvm::cli::Cli;
use pxvm::progress::Stderr;
use pxvm::{commands, exit};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = ["warn", "info", "debug"][usize::from(cli.verbose.min(2))];
    let filter = EnvFilter::try_from_env("PXVM_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Stderr).init();
    let code = match commands::run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pxvm: {}", exit::sentence(&error));
            error.code()
        }
    };
    driver::leave_if_hung(code.number());
    code.into()
}

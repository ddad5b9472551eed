//! The program `pxvm`.

use std::process::ExitCode;

use clap::Parser;
use pxvm::backend::cuda::driver;
use pxvm::commands::{self, Cli};
use pxvm::image::cache;
use pxvm::stdio::{self, Stderr};
use pxvm::{exit, signals};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // To be called before anything that could start a thread.
    driver::keep_compiled_in(&cache::gpu());
    let cli = Cli::parse();
    let level = ["warn", "info", "debug"][usize::from(cli.verbose.min(2))];
    let filter = EnvFilter::try_from_env("PXVM_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stdio::has_colours())
        .with_writer(|| Stderr)
        .log_internal_errors(false)
        .init();
    if let Err(error) = signals::listen() {
        tracing::warn!("signals end pxvm without a word: {error}");
    }
    let code = match commands::run(cli.subcommand) {
        Ok(code) => code,
        Err(error) => {
            stdio::say(&format!("pxvm: {}", exit::sentence(&error)));
            error.code()
        }
    };
    driver::leave_if_hung(code.number());
    code.into()
}

//! `pxvm run`.
use crate::cli::Run;
use crate::exit::{Code, Error};

/// Runs a bare-metal program.
pub fn run(_args: Run) -> Result<Code, Error> {
    Err(Error::Usage("not built yet".into()))
}

//! `pxvm conform`.
use crate::cli::Conform;
use crate::exit::{Code, Error};

/// Runs riscv-tests.
pub fn conform(_args: Conform) -> Result<Code, Error> {
    Err(Error::Usage("not built yet".into()))
}

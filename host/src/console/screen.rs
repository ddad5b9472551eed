//! The console of a single VM, on standard output.

use std::io::{self, Write};

use super::log::{Closed, Logs, Sink};
use crate::exit::sentence;
use crate::stdio::{Stdout, say};

/// Sink for standard output, and a log file if there is one.
#[derive(Debug, Default)]
pub struct Screen {
    log: Option<Logs>,
    /// Whether standard output is a file that could not be written; nothing more is.
    ended: bool,
}

impl Screen {
    /// Returns a sink for standard output and `log`.
    pub fn new(log: Option<Logs>) -> Self {
        Self { log, ended: false }
    }
}

impl Sink for Screen {
    fn write(&mut self, vm: u32, bytes: &[u8]) -> Result<(), Closed> {
        if let Some(log) = &mut self.log {
            log.write(vm, bytes)?;
        }
        if self.ended {
            return Ok(());
        }
        match Stdout.write_all(bytes) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed),
            Err(error) => {
                self.ended = true;
                let error = sentence(&error);
                say(&format!(
                    "pxvm: cannot write to standard output: {error}; the machine goes on without it"
                ));
                Ok(())
            }
        }
    }

    fn flush(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }
}

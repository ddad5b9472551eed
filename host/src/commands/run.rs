//! `pxvm run`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use emu_core::trace::NoTrace;

use super::gpu_for;
use crate::bare::{Bare, End, Output};
use crate::cli::Run;
use crate::exit::{Code, Error};
use crate::trace::CommitLog;

/// Prints at once, so that a program that hangs has said what it said.
struct Stdout;

impl Output for Stdout {
    fn print(&mut self, text: &[u8]) {
        let mut out = io::stdout().lock();
        // A reader that has gone misses nothing that it wants.
        let _ = out.write_all(text).and_then(|()| out.flush());
    }
}

/// Runs a bare-metal program.
pub fn run(args: Run) -> Result<Code, Error> {
    let (machine, memory) = (args.machine.into(), args.memory);
    let mut bare = match gpu_for(args.place)? {
        None => Bare::open(&args.program, machine, memory)?,
        Some(_) if args.trace.is_some() => {
            return Err(Error::Usage("--trace needs --backend cpu".into()));
        }
        Some(gpu) => Bare::open_on(gpu, &args.program, machine, memory)?,
    };
    let end = match &args.trace {
        None => bare.run(args.max_instructions, &mut NoTrace, &mut Stdout),
        Some(path) => {
            let mut log = CommitLog::new(BufWriter::new(create(path)?));
            let end = bare.run(args.max_instructions, &mut log, &mut Stdout);
            log.finish().map_err(|e| cannot_write(path, e))?;
            end
        }
    };
    if let Some(path) = &args.signature {
        let words = bare.signature().ok_or_else(|| {
            let program = args.program.display();
            Error::Usage(format!("program {program} has no begin_signature and end_signature"))
        })?;
        let mut out = BufWriter::new(create(path)?);
        let lines = words.iter().try_for_each(|word| writeln!(out, "{word:08x}"));
        lines.and_then(|()| out.flush()).map_err(|e| cannot_write(path, e))?;
    }
    let instret = bare.instret();
    let (code, what) = match end {
        End::Passed => return Ok(Code::Success),
        End::Failed(n) => (Code::Guest, format!("failed with {n}")),
        End::Limit => (Code::Timeout, "did not end".into()),
        End::Stuck => (Code::Guest, "waits for an interrupt that never comes".into()),
        End::Reset => (Code::Guest, "asked for a reset".into()),
        End::Faulted(reason) => (Code::Guest, format!("cannot go on: {reason}")),
    };
    eprintln!("pxvm: the program {what}, after {instret} instructions");
    Ok(code)
}

fn create(path: &Path) -> Result<File, Error> {
    File::create(path).map_err(|e| cannot_write(path, e))
}

fn cannot_write(path: &Path, source: io::Error) -> Error {
    Error::io(format!("write {}", path.display()), source)
}

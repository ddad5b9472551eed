//! Standard input as console input of a program.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crossbeam_channel::{Receiver, TryRecvError, bounded, select};

use crate::bare::Input;
use crate::console::escape::{self, Action};
use crate::console::keyboard::{self, Typed};
use crate::console::terminal::{self, OutputMode, RawMode};
use crate::error::Error;
use crate::stdio::say;

/// Standard input, for one program.
#[derive(Debug)]
pub struct ProgramInput {
    typed: Typed,
    /// Receives when the user leaves the program.
    left: Receiver<()>,
    /// Whether all of it is there already, so that waiting for it takes no time. Each run of the
    /// program is then the same.
    is_file: bool,
    /// Whether nothing more will be read.
    ended: bool,
    raw: Option<RawMode>,
}

impl ProgramInput {
    /// Starts to read standard input: keys, if it is a terminal and so is standard output, and else
    /// bytes.
    pub fn new(json: bool) -> Result<Self, Error> {
        let interactive = !json && terminal::is_interactive();
        let raw = match interactive {
            true => {
                say("pxvm: Ctrl-A x leaves, Ctrl-A h helps");
                let mode = RawMode::enter(OutputMode::Lines);
                Some(mode.map_err(|e| Error::io("set up the terminal", e))?)
            }
            false => None,
        };
        let (leaver, left) = bounded(1);
        let act = move |action| match action {
            Action::Leave => drop(leaver.try_send(())),
            Action::Help => say(escape::HELP.trim_end()),
        };
        // Somebody at the keyboard of a run with --json is not asked for input.
        let typed = if json && io::IsTerminal::is_terminal(&io::stdin()) {
            Typed::nothing()
        } else {
            keyboard::read(interactive, act).map_err(|e| Error::io("read standard input", e))?
        };
        Ok(Self { typed, left, is_file: is_file(), ended: false, raw })
    }

    /// Whether somebody types it.
    pub fn is_typed(&self) -> bool {
        self.raw.is_some()
    }

    /// Returns the next bytes, at most `max`; waits for some if the program does.
    pub fn read(&mut self, max: usize, waits: bool) -> Input {
        loop {
            if self.left.try_recv().is_ok() {
                return Input::Left;
            }
            let bytes = self.typed.take(max);
            match bytes.is_empty() {
                false => return Input::Bytes(bytes),
                // A program that waits has read nothing of so much.
                true if self.ended || (max == 0 && waits) => return Input::Ended,
                true if max == 0 => return Input::Nothing,
                true => {}
            }
            if waits || self.is_file {
                select! {
                    recv(self.typed.added) -> added => self.ended = added.is_err(),
                    recv(self.left) -> left => if left.is_ok() { return Input::Left },
                }
                continue;
            }
            match self.typed.added.try_recv() {
                Ok(()) => {}
                Err(TryRecvError::Empty) => return Input::Nothing,
                Err(TryRecvError::Disconnected) => self.ended = true,
            }
        }
    }
}

/// Whether standard input is a regular file.
fn is_file() -> bool {
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    stdin.and_then(|file| file.metadata()).is_ok_and(|metadata| metadata.is_file())
}

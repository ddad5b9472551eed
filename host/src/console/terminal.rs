//! Raw mode of the terminal that shows a console.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Mutex, Once};

use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcgetpgrp, tcsetattr};

use crate::sync::lock;

/// Settings of the terminal in raw mode, and those from before.
struct Modes {
    before: Termios,
    raw: Termios,
}

static MODES: Mutex<Option<Modes>> = Mutex::new(None);

/// Raw mode of the terminal: every key goes to the guest. Dropping this restores the terminal, and
/// so do a panic and signals ([`crate::signals`]).
#[derive(Debug)]
pub struct RawMode(());

/// What a terminal in raw mode does to output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutputMode {
    /// Nothing: the guest has a terminal driver.
    Raw,
    /// A line feed begins a line, as bare-metal programs expect of a terminal.
    Lines,
}

impl RawMode {
    /// Switches the terminal on standard input to raw mode.
    pub fn enter(output: OutputMode) -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes.set(OutputModes::OPOST, output == OutputMode::Lines);
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let next = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                next(info);
            }));
        });
        let mut modes = lock(&MODES);
        set(&raw)?;
        *modes = Some(Modes { before, raw });
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Ends raw mode, if it is on.
pub fn restore() {
    if let Some(modes) = lock(&MODES).take() {
        put(&modes.before);
    }
}

/// Restores the terminal while the program is stopped (job control).
pub fn suspend() {
    if let Some(modes) = &*lock(&MODES) {
        put(&modes.before);
    }
}

/// Enters raw mode again after the program was stopped.
pub fn resume() {
    if let Some(modes) = &*lock(&MODES) {
        put(&modes.raw);
    }
}

/// Sets the terminal's mode, if this program is in its foreground: the kernel stops a background
/// job that tries to.
fn put(termios: &Termios) {
    let stdin = io::stdin();
    // A terminal that does not control this program has no foreground, and changing it is allowed.
    if tcgetpgrp(stdin.as_fd()).is_ok_and(|foreground| foreground != getpgrp()) {
        return;
    }
    // If the terminal is gone, nothing can be restored.
    let _ = set(termios);
}

/// Sets the mode at once: keys that were typed already are for the guest, too, and waiting for
/// output could hang on a terminal that displays nothing more.
fn set(termios: &Termios) -> io::Result<()> {
    Ok(tcsetattr(io::stdin(), OptionalActions::Now, termios)?)
}

/// Whether standard input and output are a terminal.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

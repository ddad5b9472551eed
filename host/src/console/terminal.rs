//! The terminal that a console is shown at.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Mutex, Once};

use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

use crate::sync::lock;

/// The terminal's settings while it is in raw mode, and those from before.
struct Modes {
    before: Termios,
    raw: Termios,
}

static MODES: Mutex<Option<Modes>> = Mutex::new(None);

/// Raw mode: every key goes to the guest. Dropping it restores the terminal; a panic does, too, and
/// so do signals ([`crate::signals`]).
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Switches the terminal on standard input to raw mode.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
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

/// Ends raw mode, if there is one.
pub fn restore() {
    if let Some(modes) = lock(&MODES).take() {
        put(&modes.before);
    }
}

/// Gives the terminal back while the program stands still.
pub fn suspend() {
    if let Some(modes) = &*lock(&MODES) {
        put(&modes.before);
    }
}

/// Takes it again.
pub fn resume() {
    if let Some(modes) = &*lock(&MODES) {
        put(&modes.raw);
    }
}

/// Changes the terminal, if it is ours: a job in the background that tries to is stopped.
fn put(termios: &Termios) {
    let stdin = io::stdin();
    // It has no foreground when it does not control us; then nobody minds.
    if tcgetpgrp(stdin.as_fd()).is_ok_and(|foreground| foreground != getpgrp()) {
        return;
    }
    // There is nobody to tell if the terminal is gone.
    let _ = set(termios);
}

/// At once: what was typed already is for the guest, too, and a terminal that shows nothing more
/// keeps nobody from leaving.
fn set(termios: &Termios) -> io::Result<()> {
    Ok(tcsetattr(io::stdin(), OptionalActions::Now, termios)?)
}

/// Whether a person sits at standard input and output.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

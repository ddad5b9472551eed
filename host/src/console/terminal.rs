//! The console of a single VM on standard input and output.

use std::io::{self, IsTerminal, Read, Write};
use std::panic;
use std::sync::{Mutex, Once};
use std::thread;

use crossbeam_channel::Sender;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::escape::{Action, Escape};
use super::log::{Logs, Sink};
use crate::engine::Control;
use crate::sync::lock;

/// The terminal's settings from before raw mode.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode: every key goes to the guest. Dropping it restores the terminal; a panic does, too.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Switches the terminal on standard input to raw mode.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        *lock(&BEFORE) = Some(before);
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let next = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                next(info);
            }));
        });
        // What was typed already is for the guest, too.
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Ok(mut before) = BEFORE.lock()
        && let Some(termios) = before.take()
    {
        // There is nobody to tell if the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &termios);
    }
}

/// Whether a person sits at standard input and output.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Reads standard input on a thread of its own and passes it on, to its end.
pub fn read_input(controls: Sender<Control>, interactive: bool) -> io::Result<()> {
    let reader = move || {
        let mut escape = Escape::default();
        let mut buffer = [0; 4096];
        loop {
            let n = match io::stdin().lock().read(&mut buffer) {
                // The end of a pipe is not the end of the guest.
                Ok(0) => return,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let typed = buffer.get(..n).unwrap_or_default();
            let (guest, actions) = match interactive {
                true => escape.feed(typed),
                false => (typed.to_vec(), Vec::new()),
            };
            let actions = actions.into_iter().map(|a| match a {
                Action::Leave => Control::Leave,
                Action::Help => Control::Help,
            });
            for control in std::iter::once(Control::Input(guest)).chain(actions) {
                if controls.send(control).is_err() {
                    return;
                }
            }
        }
    };
    thread::Builder::new().name("stdin".into()).spawn(reader).map(drop)
}

/// Standard output, and a log file if one was asked for.
#[derive(Debug)]
pub struct Screen {
    /// Where output goes, too.
    pub log: Option<Logs>,
}

impl Sink for Screen {
    fn write(&mut self, vm: u32, bytes: &[u8]) -> io::Result<()> {
        if let Some(log) = &mut self.log {
            log.write(vm, bytes)?;
        }
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.as_mut().map_or(Ok(()), Logs::flush)
    }
}

//! Signals: what ends `pxvm` does so in order, and what stops it leaves a terminal that can be
//! used meanwhile.

use std::io;
use std::sync::Mutex;
use std::thread;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::console::terminal;
use crate::exit::Code;
use crate::sync::lock;

/// What the command does when it is to end; without one the program just ends.
type OnInterrupt = Box<dyn FnMut() + Send>;

static ON_INTERRUPT: Mutex<Option<OnInterrupt>> = Mutex::new(None);

/// Listens to signals from now on, on a thread of its own.
pub fn listen() -> io::Result<()> {
    // A file that may not grow further (RLIMIT_FSIZE) is an error of the write, not our end.
    let mut all = vec![SIGINT, SIGTERM, SIGQUIT, SIGTSTP, SIGCONT, SIGXFSZ];
    // `nohup` asks for that.
    if !is_ignored(SIGHUP) {
        all.push(SIGHUP);
    }
    let mut signals = Signals::new(all)?;
    let work = move || signals.forever().for_each(obey);
    thread::Builder::new().name("signals".into()).spawn(work).map(drop)
}

/// Has `action` done when a signal asks the program to end, in place of ending it.
pub fn on_interrupt(action: impl FnMut() + Send + 'static) {
    *lock(&ON_INTERRUPT) = Some(Box::new(action));
}

fn obey(signal: i32) {
    match signal {
        SIGXFSZ => {}
        SIGTSTP => {
            terminal::suspend();
            // It returns when the program goes on; should it fail, the program never stopped.
            let _ = low_level::emulate_default_handler(SIGTSTP);
            terminal::resume();
        }
        // Also after a stop that nobody is told of (SIGSTOP).
        SIGCONT => terminal::resume(),
        _ => match &mut *lock(&ON_INTERRUPT) {
            Some(action) => action(),
            None => end(),
        },
    }
}

/// Ends the program as interrupted, at once.
pub fn end() -> ! {
    terminal::restore();
    low_level::exit(Code::Interrupted.number().into())
}

/// Whether the program was started with a signal ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 != 0
}

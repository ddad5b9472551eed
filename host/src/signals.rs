//! Signal handling: termination signals end `pxvm` in order, and job control restores the terminal
//! while `pxvm` is stopped.

use std::io;
use std::sync::Mutex;
use std::thread;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::console::terminal;
use crate::exit::Code;
use crate::sync::lock;

/// Action on a termination signal; without one the program just ends.
type OnInterrupt = Box<dyn FnMut() + Send>;

static ON_INTERRUPT: Mutex<Option<OnInterrupt>> = Mutex::new(None);

/// Starts a thread that handles signals.
pub fn listen() -> io::Result<()> {
    // Exceeding the limit of file size (RLIMIT_FSIZE) is then an error of the write and does not
    // end the program.
    let mut all = vec![SIGINT, SIGTERM, SIGQUIT, SIGTSTP, SIGCONT, SIGXFSZ];
    // `nohup` ignores SIGHUP on purpose.
    if !is_ignored(SIGHUP) {
        all.push(SIGHUP);
    }
    let mut signals = Signals::new(all)?;
    let work = move || signals.forever().for_each(handle);
    thread::Builder::new().name("signals".into()).spawn(work).map(drop)
}

/// Sets what a termination signal does instead of ending the program.
pub fn on_interrupt(action: impl FnMut() + Send + 'static) {
    *lock(&ON_INTERRUPT) = Some(Box::new(action));
}

/// Lets a termination signal end the program, as before the first [`on_interrupt`].
pub fn end_on_interrupt() {
    *lock(&ON_INTERRUPT) = None;
}

fn handle(signal: i32) {
    match signal {
        SIGXFSZ => {}
        SIGTSTP => {
            terminal::suspend();
            // Returns when the program is continued; if it fails, the program never stopped.
            let _ = low_level::emulate_default_handler(SIGTSTP);
            terminal::resume();
        }
        // Continued, perhaps after a stop that cannot be caught (SIGSTOP).
        SIGCONT => terminal::resume(),
        _ => match &mut *lock(&ON_INTERRUPT) {
            Some(action) => action(),
            None => end(),
        },
    }
}

/// Ends the program at once, as interrupted.
pub fn end() -> ! {
    terminal::restore();
    low_level::exit(Code::Interrupted.number().into())
}

/// Whether a signal was ignored when the program was started.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 != 0
}

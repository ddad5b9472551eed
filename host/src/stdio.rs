//! Standard output and standard error, also where they are non-blocking.
//!
//! Both may be shared with programs that have made them non-blocking, and then a write can return
//! "would block". That is neither an end nor an error: the writers here wait and try again. They
//! have no buffer, so that nothing is lost or written twice when a write fails half way.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use indicatif::ProgressBar;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::sync::lock;

/// Standard output.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(io::stdout().as_fd(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The progress bar on the terminal, if there is one.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Sets the progress bar that other output must not overwrite.
pub fn set_bar(bar: Option<ProgressBar>) {
    *lock(&BAR) = bar;
}

/// Standard error, written without disturbing the progress bar.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bar = lock(&BAR).clone();
        match bar {
            Some(bar) => bar.suspend(|| write(io::stderr().as_fd(), bytes)),
            None => write(io::stderr().as_fd(), bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes some bytes, as soon as that is possible. Returns how many.
pub fn write(to: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    patiently(to, PollFlags::OUT, || rustix::io::write(to, bytes))
}

/// Reads some bytes, as soon as there are any. Returns 0 at the end.
pub fn read(from: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    patiently(from, PollFlags::IN, || rustix::io::read(from, &mut *buffer))
}

/// Repeats `work` while it returns "would block" or "interrupted".
fn patiently(
    file: BorrowedFd<'_>,
    ready: PollFlags,
    mut work: impl FnMut() -> Result<usize, Errno>,
) -> io::Result<usize> {
    loop {
        match work() {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::from_borrowed_fd(file, ready)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            result => return Ok(result?),
        }
    }
}

/// Prints to standard output. Returns whether the reader is still there: it is no error that in
/// `pxvm ps | head` it leaves early.
pub fn print(bytes: &[u8]) -> io::Result<bool> {
    match Stdout.write_all(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Prints a line to standard error, without disturbing the fleet's progress line.
pub fn say(text: &str) {
    // Without standard error nobody can read this.
    let _ = Stderr.write_all(format!("{text}\n").as_bytes());
}

/// Whether standard error may have colours: it is a terminal that has them, and `NO_COLOR` is not
/// set (<https://no-color.org>).
pub fn has_colours() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stderr().is_terminal() && !set("NO_COLOR") && !dumb
}

//! A program on a pseudo-terminal, and the person at it.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// Long enough for a busy host.
const TIMEOUT: Duration = Duration::from_secs(90);

/// A program on a pseudo-terminal.
pub struct Terminal {
    pub child: Child,
    keyboard: File,
    /// The program's end of the pseudo-terminal, which it shares with the test.
    shared: File,
    screen: Receiver<Vec<u8>>,
    /// While somebody holds this lock, the test reads nothing from the screen.
    pub eyes: Arc<Mutex<()>>,
    pub seen: String,
}

impl Terminal {
    /// Starts a program with a pseudo-terminal as standard input and output.
    pub fn start(mut command: Command) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let shared = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let end = || Stdio::from(OwnedFd::from(shared.try_clone().unwrap()));
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("pxvm starts");
        let keyboard = File::from(controller);
        let mut screen = keyboard.try_clone().unwrap();
        let (sender, receiver) = channel();
        let eyes = Arc::new(Mutex::new(()));
        let open = Arc::clone(&eyes);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                drop(open.lock());
                let Ok(n @ 1..) = screen.read(&mut buffer) else { return };
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keyboard, shared, screen: receiver, eyes, seen: String::new() }
    }

    pub fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    pub fn see(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let more = self.screen.recv_timeout(TIMEOUT);
            let more = more.unwrap_or_else(|_| panic!("no `{text}` in: {}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&more));
        }
    }

    /// Whether the terminal is in raw mode: every key goes to the program.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.shared).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits until the terminal is in raw mode, or is not.
    pub fn wait_raw(&self, raw: bool) {
        wait_for(|| self.is_raw() == raw);
    }

    /// Makes the terminal non-blocking, as any program that shares it may do to all of them.
    pub fn make_nonblocking(&self) {
        let flags = fcntl_getfl(&self.shared).unwrap();
        fcntl_setfl(&self.shared, flags | OFlags::NONBLOCK).unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether the program is stopped (job control).
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
    }

    pub fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Checks that signals end a program at its prompt in order, and that stopping it restores the
    /// terminal.
    pub fn check_signals(start: impl Fn() -> Self) {
        for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
            let mut terminal = start();
            terminal.wait_raw(true);
            terminal.signal(signal);
            assert_eq!((terminal.code(), terminal.is_raw()), (Some(130), false), "{signal:?}");
        }
        let mut terminal = start();
        terminal.wait_raw(true);
        for _ in 0..2 {
            terminal.signal(Signal::TSTP);
            wait_for(|| terminal.is_stopped());
            assert!(!terminal.is_raw());
            terminal.signal(Signal::CONT);
            terminal.wait_raw(true);
        }
        // The shell changes the terminal of a job that it finds stopped.
        terminal.signal(Signal::STOP);
        wait_for(|| terminal.is_stopped());
        let mut cooked = tcgetattr(&terminal.shared).unwrap();
        cooked.local_modes |= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        let now = rustix::termios::OptionalActions::Now;
        rustix::termios::tcsetattr(&terminal.shared, now, &cooked).unwrap();
        terminal.signal(Signal::CONT);
        terminal.wait_raw(true);
        terminal.type_keys("\x01x");
        assert_eq!((terminal.code(), terminal.is_raw()), (Some(0), false));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "waited for too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

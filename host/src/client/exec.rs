//! Runs a command in the shell of a VM, by way of its console.
//!
//! Everything that a console shows is one stream of bytes: echo, prompts, output, messages of the
//! kernel. The output is therefore enclosed by two lines that nothing else prints: they are typed
//! in parts, which only the shell joins. The command is typed in short lines of plain characters,
//! which no line editor completes, cuts or changes, each once the shell has taken the one before.
//!
//! Nothing is typed unless a shell waits for a command ([`prompt`]) and no other `pxvm exec` is at
//! work (`lock`).

mod lock;
pub mod prompt;

use std::fmt::Write;
use std::time::Duration;

use regex::bytes::Regex;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use lock::ConsoleLock;
use prompt::Line;

use super::{Client, ClientError, Follow};
use crate::control::VmState;
use crate::exit::Code;

/// Characters of the command per line. Busybox takes lines of 1024.
const PIECE: usize = 200;
/// Interval at which the state of a silent VM is checked.
const LOOK: Duration = Duration::from_secs(2);
/// Ctrl-U: discards a line that somebody has typed and not sent.
const KILL_LINE: &str = "\x15";
/// Ctrl-C, and Ctrl-\ for programs that ignore it.
const INTERRUPTS: [&str; 2] = ["\x03", "\x1c"];
/// Time limit for a command to end after each of these keys.
const INTERRUPT_TIME: Duration = Duration::from_secs(3);
/// Time limit for a shell to show its prompt once the VM is ready.
const PROMPT_TIME: Duration = Duration::from_secs(5);
/// Pause after which output counts as complete, so that what looks like a prompt is one.
const QUIET: Duration = Duration::from_millis(50);
/// Interval at which the end of another command is checked for.
const TURN_EVERY: Duration = Duration::from_millis(50);
/// Longest command, in bytes.
const COMMAND_MAX: usize = 64 << 10;

/// Why a command did not finish.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The shell does not respond.
    #[error("the shell of vm{0} does not answer; `pxvm console {0}` shows what it is at")]
    NoShell(u32),
    /// No shell waits for a command.
    #[error("{}", not_at_prompt(*.vm, .line))]
    NoPrompt {
        /// Number of the VM.
        vm: u32,
        /// Line that the console shows in place of a prompt.
        line: String,
    },
    /// Another `pxvm exec` is at work on the VM.
    #[error("another `pxvm exec` is at work on vm{0}")]
    Busy(u32),
    /// The command took too long.
    #[error("the command did not end in time{}", .0.told())]
    Timeout(Left),
    /// The user interrupted the command.
    #[error("interrupted{}", .0.told())]
    Interrupted(Left),
    /// The VM has ended or was reset.
    #[error("vm{vm} {what}, so that its shell does not answer")]
    Ended {
        /// Number of the VM.
        vm: u32,
        /// What happened to the VM.
        what: String,
    },
    /// The VM's state does not allow it to run a command.
    #[error("vm{vm} is {state}; {}", advice(.vm, .state))]
    WrongState {
        /// Number of the VM.
        vm: u32,
        /// State of the VM.
        state: String,
    },
    /// The VM writes faster than its output is read, or the fleet has ended.
    #[error("the fleet has gone, or the output came faster than it was read")]
    Lost,
    /// The command cannot be typed.
    #[error("{0}")]
    Command(&'static str),
}

impl ExecError {
    /// Returns the exit code for this error.
    pub fn code(&self) -> Code {
        match self {
            Self::NoShell(_) | Self::Timeout(_) | Self::Busy(_) => Code::Timeout,
            Self::Interrupted(_) => Code::Interrupted,
            Self::Ended { .. } => Code::Guest,
            Self::Lost | Self::NoPrompt { .. } | Self::WrongState { .. } => Code::Failure,
            Self::Command(_) => Code::Usage,
        }
    }
}

/// What a command that was given up has left in the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Nothing: the shell waits for the next command.
    Nothing,
    /// The command continues, although it was interrupted.
    Running(u32),
}

impl Left {
    fn told(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Running(vm) => {
                format!("; it goes on in vm{vm}, also after Ctrl-C: `pxvm console {vm}` goes there")
            }
        }
    }
}

fn not_at_prompt(vm: u32, line: &str) -> String {
    let shown = match line {
        "" => String::new(),
        line => format!(" but `{line}`"),
    };
    format!(
        "the console of vm{vm} shows no prompt of a shell{shown}; `pxvm console {vm}` goes there \
         (Enter brings a prompt back), --prompt tells what another one looks like"
    )
}

fn advice(vm: &u32, state: &str) -> String {
    match VmState::named(state) {
        Some(VmState::Paused) => format!("its shell answers after `pxvm resume {vm}`"),
        _ => format!("`pxvm reset {vm}` starts it again"),
    }
}

/// Options of a command.
pub struct Options<'a> {
    /// Time limit of the command, with all that precedes it.
    pub timeout: Duration,
    /// Pattern of a line with a prompt.
    pub prompt: Regex,
    /// Notified when the user interrupts the command.
    pub interrupt: &'a Notify,
}

/// Script that is typed to run a command, and the marks in its output.
#[derive(Debug)]
struct Script {
    /// Lines; each is typed when the mark of the one before was seen.
    lines: Vec<String>,
    /// Marks that show that each line but the last was taken.
    marks: Vec<String>,
    begin: String,
    end: String,
    /// Line to type, and mark to expect, to see that the shell waits again after a command was
    /// given up.
    back: (String, String),
}

impl Script {
    /// Returns the script for `command`. `nonce` is a word that cannot be guessed.
    fn new(command: &str, nonce: &str) -> Result<Self, ExecError> {
        if command.len() > COMMAND_MAX {
            return Err(ExecError::Command("the command is longer than 64 KiB"));
        }
        if command.contains('\0') {
            return Err(ExecError::Command("no shell takes a command with a zero byte"));
        }
        let say = |what: &str| format!("printf '\\n%s%s\\n' PXVM- {nonce}-{what}");
        let mark = |what: &str| format!("PXVM-{nonce}-{what}");
        let var = format!("x{nonce}");
        // An empty command is allowed, too.
        let mut lines = vec![format!("{KILL_LINE}{var}=; {}", say("0"))];
        for (i, piece) in pieces(command).into_iter().enumerate() {
            // A command substitution strips trailing line ends, so one more is added.
            lines.push(format!(
                "{var}=\"${var}$(printf '{piece}x')\"; {var}=\"${{{var}%x}}\"; {}",
                say(&(i + 1).to_string())
            ));
        }
        let marks = (0..lines.len()).map(|i| mark(&i.to_string())).collect();
        // The blank is needed because some shells have options of `eval`, too.
        lines.push(format!(
            "{}; (eval \" ${var}\") </dev/null 2>&1; \
             printf '%s%s %d\\n' PXVM- {nonce}-end $?; unset {var}",
            say("begin")
        ));
        let back = (format!("{KILL_LINE}unset {var}; {}", say("back")), mark("back"));
        Ok(Self { lines, marks, begin: mark("begin"), end: mark("end "), back })
    }
}

/// Returns a text as formats of printf, in pieces, of plain characters only.
fn pieces(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for byte in text.bytes() {
        if all.last().is_none_or(|piece| piece.len() >= PIECE) {
            all.push(String::new());
        }
        let Some(piece) = all.last_mut() else { continue };
        // Some shells take a format that begins with a dash for an option.
        let option = piece.is_empty() && byte == b'-';
        let plain =
            (byte.is_ascii_graphic() || byte == b' ') && !b"'\\%!\"`$".contains(&byte) && !option;
        // Writing to a string does not fail.
        let _ = if plain {
            write!(piece, "{}", char::from(byte))
        } else {
            write!(piece, "\\{byte:03o}")
        };
    }
    all
}

/// Parser that finds the output of a command in what a console shows.
#[derive(Debug)]
struct Reader {
    begin: Vec<u8>,
    end: Vec<u8>,
    begun: bool,
    rest: Vec<u8>,
}

/// What the parser found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Found {
    output: Vec<u8>,
    status: Option<u8>,
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Returns the number in a line, once the line is complete.
fn status(line: &[u8]) -> Option<u8> {
    let line = &line[..find(line, b"\r\n")?];
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

impl Reader {
    fn new(script: &Script) -> Self {
        // Terminals put a carriage return before each line feed. The end mark comes right behind
        // the output.
        let begin = format!("{}\r\n", script.begin).into_bytes();
        let end = script.end.clone().into_bytes();
        Self { begin, end, begun: false, rest: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8]) -> Found {
        self.rest.extend_from_slice(bytes);
        if !self.begun {
            match find(&self.rest, &self.begin) {
                Some(at) => {
                    self.rest.drain(..at + self.begin.len());
                    self.begun = true;
                }
                None => {
                    let old = self.rest.len().saturating_sub(self.begin.len());
                    self.rest.drain(..old);
                    return Found::default();
                }
            }
        }
        let rest = &self.rest;
        // Only bytes that could be the beginning of the end mark are held back.
        let begins = |&at: &usize| self.end.starts_with(&rest[at..]);
        let (until, status) = match find(rest, &self.end) {
            Some(at) => (at, status(&rest[at + self.end.len()..])),
            None => {
                let from = rest.len().saturating_sub(self.end.len());
                ((from..rest.len()).find(begins).unwrap_or(rest.len()), None)
            }
        };
        Found { output: self.rest.drain(..until).collect(), status }
    }
}

/// Filter that restores output as the command wrote it: without the carriage returns that the
/// terminal has added.
#[derive(Debug, Default)]
struct Plain {
    /// Whether a carriage return is held back until the next byte is known.
    held: bool,
}

impl Plain {
    fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 1);
        for &byte in bytes {
            if std::mem::take(&mut self.held) && byte != b'\n' {
                out.push(b'\r');
            }
            match byte {
                b'\r' => self.held = true,
                byte => out.push(byte),
            }
        }
        out
    }

    /// Returns what was held back when the output ended.
    fn finish(&mut self) -> &'static [u8] {
        if std::mem::take(&mut self.held) { b"\r" } else { b"" }
    }
}

/// Runs a command; `take` receives its output as it comes. Returns its exit status.
pub async fn run(
    client: &Client,
    vm: u32,
    command: &str,
    options: Options<'_>,
    take: impl FnMut(&[u8]) -> Result<(), ClientError>,
) -> Result<u8, ClientError> {
    let nonce = crate::api::access::new_token().map_err(super::gone)?;
    let script = Script::new(command, &nonce[..12])?;
    let Options { timeout, prompt, interrupt } = options;
    let limit = Instant::now().checked_add(timeout);
    let end = limit.unwrap_or_else(|| Instant::now() + Duration::from_secs(1 << 30));
    let about = client.get(&format!("/api/v1/vms/{vm}")).await?;
    let state = about["state"].as_str().unwrap_or("gone");
    if !VmState::named(state).is_some_and(VmState::is_running) {
        return Err(ExecError::WrongState { vm, state: state.to_owned() }.into());
    }
    let prepare = async {
        let lock = wait_for_lock(client, vm, end).await?;
        let follow = client.follow(vm).await?;
        let resets = about["resets"].clone();
        let mut session = ShellSession { client, vm, resets, follow, end, interrupt, _lock: lock };
        session.wait_for_prompt(Line::new(prompt)).await?;
        Ok::<_, ClientError>(session)
    };
    let mut session = tokio::select! {
        prepared = prepare => prepared?,
        // Nothing was typed yet.
        () = interrupt.notified() => return Err(ExecError::Interrupted(Left::Nothing).into()),
    };
    let ended = session.run(&script, take).await;
    let Err(ClientError::Exec(given_up)) = ended else { return ended };
    Err(match given_up {
        ExecError::Timeout(_) => ExecError::Timeout(session.give_up(&script).await),
        ExecError::Interrupted(_) => ExecError::Interrupted(session.give_up(&script).await),
        other => other,
    }
    .into())
}

/// Waits until no other command runs.
async fn wait_for_lock(client: &Client, vm: u32, end: Instant) -> Result<ConsoleLock, ClientError> {
    loop {
        if let Some(lock) = ConsoleLock::take(client.path(), vm).map_err(super::gone)? {
            return Ok(lock);
        }
        if Instant::now() >= end {
            return Err(ExecError::Busy(vm).into());
        }
        sleep(TURN_EVERY).await;
    }
}

/// A dialogue with a shell by its console.
struct ShellSession<'a> {
    client: &'a Client,
    vm: u32,
    resets: Value,
    follow: Follow,
    end: Instant,
    interrupt: &'a Notify,
    _lock: ConsoleLock,
}

impl ShellSession<'_> {
    /// Waits until the console shows a prompt.
    async fn wait_for_prompt(&mut self, mut line: Line) -> Result<(), ClientError> {
        let vm = self.vm;
        let about = self.look().await?;
        let written = about["console_bytes"].as_u64().unwrap_or(0);
        let mut seen = self.follow.offset();
        let forgotten = seen > 0 && seen == written;
        while seen < written {
            let bytes = self.receive(ExecError::NoShell(vm)).await?;
            seen += bytes.len() as u64;
            line.feed(&bytes);
        }
        if line.has_prompt() {
            return Ok(());
        }
        // A fleet keeps a limited history; if nothing is left of a VM's output, there may be a
        // shell, which a greeting makes print a prompt.
        if forgotten {
            self.type_line("").await?;
        }
        // A VM that boots needs time.
        let mut ready = about["state"] == "ready";
        let mut prompt_by = Instant::now() + PROMPT_TIME;
        loop {
            let until = if ready { prompt_by.min(self.end) } else { self.end };
            if Instant::now() >= until {
                return Err(ExecError::NoPrompt { vm, line: line.text() }.into());
            }
            let quiet = Instant::now() + if line.has_prompt() { QUIET } else { LOOK };
            match timeout_at(quiet.min(until), self.follow.next()).await {
                Ok(Some(bytes)) => line.feed(&bytes),
                Ok(None) => return Err(ExecError::Lost.into()),
                Err(_) if line.has_prompt() => return Ok(()),
                Err(_) => {
                    let now = self.look().await?["state"] == "ready";
                    if now && !ready {
                        prompt_by = Instant::now() + PROMPT_TIME;
                    }
                    ready = now;
                }
            }
        }
    }

    /// Types a script and reads its output.
    async fn run(
        &mut self,
        script: &Script,
        mut take: impl FnMut(&[u8]) -> Result<(), ClientError>,
    ) -> Result<u8, ClientError> {
        for (line, mark) in script.lines.iter().zip(&script.marks) {
            self.type_line(line).await?;
            self.read_to_mark(mark).await?;
        }
        if let Some(line) = script.lines.last() {
            self.type_line(line).await?;
        }
        let (mut reader, mut plain) = (Reader::new(script), Plain::default());
        loop {
            let bytes = self.receive(ExecError::Timeout(Left::Nothing)).await?;
            let found = reader.feed(&bytes);
            take(&plain.feed(&found.output))?;
            if let Some(status) = found.status {
                take(plain.finish())?;
                return Ok(status);
            }
        }
    }

    /// Ends the command as a person at the keyboard would. Returns what is left of it.
    async fn give_up(&mut self, script: &Script) -> Left {
        let (line, mark) = &script.back;
        for key in INTERRUPTS {
            self.end = Instant::now() + INTERRUPT_TIME;
            let ended = match self.type_line(&format!("{key}{line}")).await {
                Ok(()) => self.read_to_mark(mark).await,
                error => error,
            };
            match ended {
                Ok(()) | Err(ClientError::Exec(ExecError::Ended { .. })) => return Left::Nothing,
                Err(_) => {}
            }
        }
        Left::Running(self.vm)
    }

    async fn type_line(&self, line: &str) -> Result<(), ClientError> {
        let line = format!("{line}\n");
        let typing = self.client.type_at(self.vm, line.as_bytes());
        timeout_at(self.end, typing).await.map_err(|_| ExecError::NoShell(self.vm))?
    }

    /// Reads up to a line with a mark.
    async fn read_to_mark(&mut self, mark: &str) -> Result<(), ClientError> {
        let mark = format!("\n{mark}\r");
        let mut received = Vec::new();
        while find(&received, mark.as_bytes()).is_none() {
            // A mark may arrive in two pieces.
            let old = received.len().saturating_sub(mark.len());
            received.drain(..old);
            received.extend(self.receive(ExecError::NoShell(self.vm)).await?);
        }
        Ok(())
    }

    /// Returns the next output of the console, or `late` when none comes in time.
    async fn receive(&mut self, late: ExecError) -> Result<Vec<u8>, ClientError> {
        loop {
            let now = Instant::now();
            if now >= self.end {
                return Err(late.into());
            }
            let look = (now + LOOK).min(self.end);
            // Interrupted between lines only: half a line would be in the way of what comes next.
            let next = tokio::select! {
                next = timeout_at(look, self.follow.next()) => next,
                () = self.interrupt.notified() => {
                    return Err(ExecError::Interrupted(Left::Nothing).into());
                }
            };
            match next {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => return Err(ExecError::Lost.into()),
                Err(_) if look >= self.end => return Err(late.into()),
                Err(_) => drop(self.look().await?),
            }
        }
    }

    /// Returns the API's description of the VM, if it is still the same start of it and alive.
    async fn look(&self) -> Result<Value, ClientError> {
        let vm = self.vm;
        let about = self.client.get(&format!("/api/v1/vms/{vm}")).await?;
        let name = about["state"].as_str();
        let what = match name.and_then(VmState::named) {
            Some(VmState::Booting | VmState::Ready) if about["resets"] == self.resets => {
                return Ok(about);
            }
            Some(VmState::Booting | VmState::Ready) => "has started again".to_owned(),
            Some(state @ VmState::Paused) => {
                return Err(ExecError::WrongState { vm, state: state.name().to_owned() }.into());
            }
            Some(VmState::Halted | VmState::Faulted | VmState::Stopped) | None => {
                format!("is {}", name.unwrap_or("gone"))
            }
        };
        Err(ExecError::Ended { vm, what }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script() -> Script {
        Script::new("echo hi", "abc").unwrap()
    }

    /// Returns what a console shows of a script, with `output` from the command.
    fn shown(output: &str, status: u8) -> Vec<u8> {
        let script = script();
        let mut text = String::from("vm3:~# ");
        for line in &script.lines {
            text += line;
            text += "\r\n";
        }
        let output = output.replace('\n', "\r\n");
        text += &format!("\r\n{}\r\n{output}{}{status}\r\nvm3:~# ", script.begin, script.end);
        text.into_bytes()
    }

    #[test]
    fn output_is_found_however_it_is_cut() {
        for output in ["", "hi\n", "no end", "\n\n", "PXVM-abc-end", "a\r\nb\r", "\r", "x\n\n"] {
            let shown = shown(output, 7);
            for size in [1, 2, 3, 7, 64, 10_000] {
                let (mut reader, mut plain) = (Reader::new(&script()), Plain::default());
                let (mut all, mut status) = (Vec::new(), None);
                for piece in shown.chunks(size) {
                    if status.is_none() {
                        let found = reader.feed(piece);
                        all.extend(plain.feed(&found.output));
                        status = found.status;
                    }
                }
                all.extend(plain.finish());
                let all = String::from_utf8(all).unwrap();
                assert_eq!((all.as_str(), status), (output, Some(7)), "{size}");
            }
        }
    }

    #[test]
    fn output_does_not_wait_for_more() {
        let (script, mut plain) = (script(), Plain::default());
        let mut reader = Reader::new(&script);
        let mut shown = |text: &str| plain.feed(&reader.feed(text.as_bytes()).output);
        assert_eq!(shown(&format!("\r\n{}\r\nbegun\r\n", script.begin)), b"begun\n");
        assert_eq!(shown("PXVM"), b"");
        assert_eq!(shown(" is fine"), b"PXVM is fine");
    }

    #[test]
    fn the_echo_of_a_script_has_none_of_its_marks() {
        let script = Script::new(&"x'%\\\n\té".repeat(200), "abc").unwrap();
        let typed = script.lines.join("\r\n");
        assert!(script.marks.iter().all(|mark| !typed.contains(mark.as_str())));
        assert!(!typed.contains(&script.begin) && !typed.contains(&script.end));
        assert!(script.lines.iter().all(|line| line.len() < 400));
        let plain = |line: &String| line.trim_start_matches(KILL_LINE).bytes().all(|b| b >= b' ');
        assert!(script.lines.iter().all(|line| plain(line) && line.is_ascii()));
    }

    /// A shell on a pseudo-terminal.
    struct Shell {
        child: std::process::Child,
        terminal: std::fs::File,
        line: Line,
    }

    impl Shell {
        /// Starts a shell; `None` when it is not installed.
        fn start(program: &[&str]) -> Option<Self> {
            use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
            use std::process::Stdio;
            let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
            grantpt(&terminal).unwrap();
            unlockpt(&terminal).unwrap();
            let name = ptsname(&terminal, Vec::new()).unwrap();
            let file = std::fs::File::options().read(true).write(true).open(name.to_str().unwrap());
            let file = file.unwrap();
            let end = || Stdio::from(file.try_clone().unwrap());
            let mut command = std::process::Command::new(program[0]);
            command.args(&program[1..]).stdin(end()).stdout(end()).stderr(end());
            let child = command.env("PS1", "$ ").env_remove("ENV").spawn().ok()?;
            let line = Line::new(Regex::new(Line::DEFAULT).unwrap());
            Some(Self { child, terminal: terminal.into(), line })
        }

        /// Reads until `done` returns a value for the output so far.
        fn receive<T>(&mut self, mut done: impl FnMut(&[u8]) -> Option<T>) -> T {
            use std::io::Read;
            let mut buffer = [0; 4096];
            loop {
                let n = self.terminal.read(&mut buffer).unwrap();
                self.line.feed(&buffer[..n]);
                if let Some(found) = done(&buffer[..n]) {
                    return found;
                }
            }
        }

        fn exec(&mut self, command: &str) -> (String, u8) {
            use std::io::Write;
            while !self.line.has_prompt() {
                self.receive(|_| Some(()));
            }
            let script = Script::new(command, "abc").unwrap();
            for (line, mark) in script.lines.iter().zip(&script.marks) {
                writeln!(self.terminal, "{line}").unwrap();
                let (mark, mut received) = (format!("\n{mark}\r"), Vec::new());
                self.receive(|bytes| {
                    received.extend(bytes);
                    find(&received, mark.as_bytes())
                });
            }
            writeln!(self.terminal, "{}", script.lines.last().unwrap()).unwrap();
            let (mut reader, mut plain) = (Reader::new(&script), Plain::default());
            let mut output = Vec::new();
            let status = self.receive(|bytes| {
                let found = reader.feed(bytes);
                output.extend(plain.feed(&found.output));
                found.status
            });
            (String::from_utf8(output).unwrap(), status)
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn the_script_runs_in_every_shell_that_is_here() {
        let shells: [&[&str]; 4] = [
            &["dash", "-i"],
            &["bash", "--norc", "--noprofile", "-i"],
            &["busybox", "sh", "-i"],
            &["zsh", "-f", "-i"],
        ];
        // Dashes where a piece begins, at the first and at later ones.
        let dashes = format!("-x || echo {}", "-".repeat(3 * PIECE));
        let special = "printf '%s' \"it's 100% \\\\ \" '$HOME' '!'; exit 7";
        let mut tried = 0;
        for program in shells {
            let Some(mut shell) = Shell::start(program) else { continue };
            tried += 1;
            let (output, status) = shell.exec(&dashes);
            let tail = format!("{}\n", "-".repeat(3 * PIECE));
            assert!(output.ends_with(&tail) && status == 0, "{program:?}: {output}");
            assert_eq!(shell.exec(special), ("it's 100% \\ $HOME!".to_owned(), 7), "{program:?}");
        }
        assert!(tried > 0, "no shell is here");
    }

    #[test]
    fn what_cannot_be_typed_is_refused() {
        assert!(Script::new("a\0b", "n").is_err());
        assert!(Script::new(&"x".repeat(COMMAND_MAX + 1), "n").is_err());
    }
}

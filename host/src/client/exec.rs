//! Runs a command in the shell of a VM, by way of its console.
//!
//! All that a console shows is one stream of bytes: echo, prompts, output, whatever the kernel has
//! to say. So the output is put between two lines that nobody else prints: their words are typed
//! apart, and put together by the shell only. The command is typed in short lines of plain
//! characters, which no line editor completes, cuts or changes, each when the one before was
//! taken.

use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{Client, ClientError, Follow};
use crate::exit::Code;

/// Characters of the command in one line. Busybox takes lines of 1024.
const PIECE: usize = 200;
/// How often a VM that says nothing is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Ctrl-U: forgets what somebody has typed and not sent.
const KILL_LINE: &str = "\x15";
/// Ctrl-C.
const INTERRUPT: &[u8] = b"\x03";
/// Most bytes of a command.
const COMMAND_MAX: usize = 64 << 10;

/// A command did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The shell does not answer.
    #[error("the shell of vm{0} does not answer; `pxvm console {0}` shows what it is at")]
    NoShell(u32),
    /// It took too long.
    #[error("the command did not end in time")]
    Timeout,
    /// The VM ended, stands still, or started again.
    #[error("vm{vm} {what}, so that its shell does not answer")]
    Ended {
        /// Which VM.
        vm: u32,
        /// What happened.
        what: String,
    },
    /// The VM says more than is read.
    #[error("the fleet has gone, or the output came faster than it was read")]
    Lost,
    /// It cannot be typed.
    #[error("{0}")]
    Command(&'static str),
}

impl ExecError {
    /// The exit code for it.
    pub fn code(&self) -> Code {
        match self {
            Self::NoShell(_) | Self::Timeout => Code::Timeout,
            Self::Ended { .. } => Code::Guest,
            Self::Lost => Code::Failure,
            Self::Command(_) => Code::Usage,
        }
    }
}

/// What is typed to run a command, and what to look for.
#[derive(Debug)]
struct Script {
    /// Lines; each is typed when the mark of the one before was seen.
    lines: Vec<String>,
    /// What tells that each but the last was taken.
    marks: Vec<String>,
    begin: String,
    end: String,
}

impl Script {
    /// `nonce` is a word that nobody knows.
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
        // An empty one is taken, too.
        let mut lines = vec![format!("{KILL_LINE}{var}=; {}", say("0"))];
        for (i, piece) in pieces(command).into_iter().enumerate() {
            // A substitution loses line ends at its end, so it gets another one.
            lines.push(format!(
                "{var}=\"${var}$(printf '{piece}x')\"; {var}=\"${{{var}%x}}\"; {}",
                say(&(i + 1).to_string())
            ));
        }
        let marks = (0..lines.len()).map(|i| mark(&i.to_string())).collect();
        lines.push(format!(
            "{}; (eval \"${var}\") </dev/null 2>&1; \
             printf '\\n%s%s %d\\n' PXVM- {nonce}-end $?; unset {var}",
            say("begin")
        ));
        Ok(Self { lines, marks, begin: mark("begin"), end: mark("end ") })
    }
}

/// A text as a format of printf, in pieces, of plain characters only.
fn pieces(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for byte in text.bytes() {
        if all.last().is_none_or(|piece| piece.len() >= PIECE) {
            all.push(String::new());
        }
        let Some(piece) = all.last_mut() else { continue };
        let plain = (byte.is_ascii_graphic() || byte == b' ') && !b"'\\%!\"`$".contains(&byte);
        // Writing to a string does not fail.
        let _ = if plain {
            write!(piece, "{}", char::from(byte))
        } else {
            write!(piece, "\\{byte:03o}")
        };
    }
    all
}

/// Finds the output of a command in what a console shows.
#[derive(Debug)]
struct Reader {
    begin: Vec<u8>,
    end: Vec<u8>,
    begun: bool,
    rest: Vec<u8>,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Found {
    output: Vec<u8>,
    status: Option<u8>,
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

impl Reader {
    fn new(script: &Script) -> Self {
        // Terminals put a return before each line's end.
        let line = |text: &str| text.as_bytes().to_vec();
        let begin = [line(&script.begin), b"\r\n".to_vec()].concat();
        let end = [b"\r\n".to_vec(), line(&script.end)].concat();
        Self { begin, end, begun: false, rest: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8]) -> Found {
        self.rest.extend_from_slice(bytes);
        if !self.begun {
            match find(&self.rest, &self.begin) {
                Some(at) => {
                    // The line's end stays: an empty output ends right behind it.
                    self.rest.drain(..at + self.begin.len() - 2);
                    self.begun = true;
                }
                None => {
                    let old = self.rest.len().saturating_sub(self.begin.len());
                    self.rest.drain(..old);
                    return Found::default();
                }
            }
        }
        let ended = find(&self.rest, &self.end).and_then(|at| {
            let tail = &self.rest[at + self.end.len()..];
            let line = &tail[..find(tail, b"\r\n")?];
            let status = std::str::from_utf8(line).ok()?.trim().parse().ok()?;
            Some((at, status))
        });
        let (until, status) = match ended {
            Some((at, status)) => (at, Some(status)),
            // What could be the beginning of the end waits, with the return before it.
            None => (self.rest.len().saturating_sub(self.end.len() + 8), None),
        };
        Found { output: self.rest.drain(..until).collect(), status }
    }
}

/// Output as the command wrote it: without the returns that the terminal has added.
#[derive(Debug, Default)]
struct Plain {
    /// A return whose next byte is not known.
    held: bool,
    /// The end of the line with the mark was taken off.
    begun: bool,
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
                b'\n' if !self.begun => self.begun = true,
                byte => out.push(byte),
            }
        }
        out
    }
}

/// Runs a command; `take` gets its output as it comes. Answers its status.
pub async fn run(
    client: &Client,
    vm: u32,
    command: &str,
    timeout: Duration,
    mut take: impl FnMut(&[u8]) -> Result<(), ClientError>,
) -> Result<u8, ClientError> {
    let nonce = crate::api::access::new_token().map_err(super::gone)?;
    let script = Script::new(command, &nonce[..12])?;
    let limit = Instant::now().checked_add(timeout);
    let end = limit.unwrap_or_else(|| Instant::now() + Duration::from_secs(1 << 30));
    let resets = client.get(&format!("/api/v1/vms/{vm}")).await?["resets"].clone();
    let mut talk = Talk { client, vm, resets, follow: client.follow(vm).await?, end };
    talk.look().await?;
    let mut seen = Vec::new();
    for (line, mark) in script.lines.iter().zip(&script.marks) {
        talk.say(line).await?;
        let mark = format!("\n{mark}\r");
        while find(&seen, mark.as_bytes()).is_none() {
            // A mark may come in two pieces.
            let old = seen.len().saturating_sub(mark.len());
            seen.drain(..old);
            seen.extend(talk.hear(ExecError::NoShell(vm)).await?);
        }
    }
    if let Some(line) = script.lines.last() {
        talk.say(line).await?;
    }
    let (mut reader, mut plain) = (Reader::new(&script), Plain::default());
    loop {
        let bytes = match talk.hear(ExecError::Timeout).await {
            Err(error @ ClientError::Exec(ExecError::Timeout)) => {
                client.type_at(vm, INTERRUPT).await?;
                return Err(error);
            }
            heard => heard?,
        };
        let found = reader.feed(&bytes);
        take(&plain.feed(&found.output))?;
        if let Some(status) = found.status {
            return Ok(status);
        }
    }
}

/// A conversation with a shell.
struct Talk<'a> {
    client: &'a Client,
    vm: u32,
    resets: Value,
    follow: Follow,
    end: Instant,
}

impl Talk<'_> {
    async fn say(&self, line: &str) -> Result<(), ClientError> {
        let line = format!("{line}\n");
        let typing = self.client.type_at(self.vm, line.as_bytes());
        timeout_at(self.end, typing).await.map_err(|_| ExecError::NoShell(self.vm))?
    }

    /// What the console shows next. `late` is what is wrong when nothing comes in time.
    async fn hear(&mut self, late: ExecError) -> Result<Vec<u8>, ClientError> {
        loop {
            let look = (Instant::now() + LOOK).min(self.end);
            match timeout_at(look, self.follow.next()).await {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => return Err(ExecError::Lost.into()),
                Err(_) if look >= self.end => return Err(late.into()),
                Err(_) => self.look().await?,
            }
        }
    }

    /// Whether the VM is the same and alive.
    async fn look(&self) -> Result<(), ClientError> {
        let vm = self.vm;
        let about = self.client.get(&format!("/api/v1/vms/{vm}")).await?;
        let what = match about["state"].as_str() {
            Some("booting" | "ready") if about["resets"] == self.resets => return Ok(()),
            Some("booting" | "ready") => "has started again".to_owned(),
            other => format!("is {}", other.unwrap_or("gone")),
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

    /// What a console shows of a script, with `output` from the command.
    fn shown(output: &str, status: u8) -> Vec<u8> {
        let script = script();
        let mut text = String::from("vm3:~# ");
        for line in &script.lines {
            text += line;
            text += "\r\n";
        }
        let output = output.replace('\n', "\r\n");
        text += &format!("\r\n{}\r\n{output}\r\n{}{status}\r\nvm3:~# ", script.begin, script.end);
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
                // A return at the very end cannot be told from the terminal's.
                let expected = output.strip_suffix('\r').unwrap_or(output);
                let all = String::from_utf8(all).unwrap();
                assert_eq!((all.trim_end_matches('\r'), status), (expected, Some(7)), "{size}");
            }
        }
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

    #[test]
    fn what_cannot_be_typed_is_refused() {
        assert!(Script::new("a\0b", "n").is_err());
        assert!(Script::new(&"x".repeat(COMMAND_MAX + 1), "n").is_err());
    }
}

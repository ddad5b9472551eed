//! Prompt detection: finds out from a console's output whether a shell waits there for a command.
//!
//! Typing is no way to find out, because an editor takes every key for a command. So the line that
//! the cursor is in must look like a prompt.

use regex::bytes::Regex;

use crate::console::sequence::{Output, Reader};

/// Longest line that is matched.
const LINE_MAX: usize = 1024;

/// Line that the cursor of a console is in, as well as it can be known without emulating a
/// terminal.
#[derive(Debug)]
pub struct Line {
    text: Vec<u8>,
    /// Contents of the line before the cursor moved elsewhere.
    before: Vec<u8>,
    reader: Reader,
    /// Whether a carriage return came: the line either ends or is written again.
    returned: bool,
    prompt: Regex,
    kernel: Regex,
}

impl Line {
    /// Default pattern of a shell's prompt: up to three words, a sign, and a blank. Behind `#` and
    /// `$` somebody may have begun to type.
    pub const DEFAULT: &str = r"^\S*( \S+){0,2} ?([#$]( |$)|% ?$)";

    /// Returns an empty line. `prompt` matches a line with a prompt.
    pub fn new(prompt: Regex) -> Self {
        // The pattern is fixed and valid, so that the fallback is never used.
        let kernel = Regex::new(r"\[ *[0-9]+\.[0-9]{6}\]").unwrap_or_else(|_| prompt.clone());
        let (text, before) = (Vec::new(), Vec::new());
        Self { text, before, reader: Reader::default(), returned: false, prompt, kernel }
    }

    /// Whether the line has a prompt.
    pub fn has_prompt(&self) -> bool {
        self.prompt.is_match(&self.text)
    }

    /// Returns the line as people see it, or nearly so.
    pub fn text(&self) -> String {
        let text = if self.text.is_empty() { &self.before } else { &self.text };
        String::from_utf8_lossy(text).trim().chars().take(40).collect()
    }

    /// Handles more output of the console.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match self.reader.read(byte) {
                Output::Byte(byte) => self.show(byte),
                Output::Hidden => {}
                Output::Moved => self.clear(),
            }
        }
    }

    fn clear(&mut self) {
        if !self.text.is_empty() {
            self.before = std::mem::take(&mut self.text);
        }
    }

    fn show(&mut self, byte: u8) {
        if std::mem::take(&mut self.returned) && byte != b'\n' {
            self.clear();
        }
        match byte {
            b'\r' => self.returned = true,
            // A message of the kernel behind a prompt does not hide the prompt.
            b'\n' => match self.kernel.find(&self.text).map(|said| said.start()) {
                Some(at) => self.text.truncate(at),
                None => self.clear(),
            },
            0x08 => drop(self.text.pop()),
            b' '.. if self.text.len() < LINE_MAX => self.text.push(byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(shown: &str) -> Line {
        let mut line = Line::new(Regex::new(Line::DEFAULT).unwrap());
        line.feed(shown.as_bytes());
        line
    }

    #[test]
    fn prompts_of_shells_are_found() {
        for shown in [
            "vm0:~# ",
            "\r\n~ # ",
            "/ # \u{1b}[6n",
            "$ ",
            "bash-5.2# ",
            "[root@host ~]# ",
            "\u{1b}[?2004h\u{1b}]0;title\u{7}\u{1b}[01;32mme@host\u{1b}[00m:\u{1b}[01;34m~\u{1b}[00m$ ",
            "host% ",
            "output\r\n\r\nvm0:~# ",
            // Somebody has begun to type, or corrects what was typed.
            "vm0:~# half a li",
            "vm0:~# lx\u{8} \u{8}s",
            "old\rvm0:~# ",
            // An editor was closed, or the screen was cleared.
            "\u{1b}[24;1H\u{1b}[K\u{1b}[?1049lvm0:~# ",
            "\u{1b}[H\u{1b}[Jvm0:~# ",
            // The kernel prints a message.
            "vm0:~# [   12.345678] random: crng init done\r\n",
            "vm0:~# [    1.000000] one\r\n[    2.000000] two\r\n",
        ] {
            assert!(line(shown).has_prompt(), "{shown:?}");
        }
    }

    #[test]
    fn other_programs_are_no_shell() {
        for shown in [
            "",
            "vm0:~# cat\r\n",
            "vm0:~# sleep 60\r\n[    2.000000] two\r\n",
            "vm0:~# vi f\r\n\u{1b}[?1049h\u{1b}[1;1H# a comment\r\n~\r\n~\u{1b}[24;1H- f 1/1 100%\u{1b}[1;1H",
            "\u{1b}[3;1H# typed into an editor \u{1b}[3;24H",
            "Password: ",
            "login: ",
            ">>> ",
            "> ",
            "mysql> ",
            "(END)",
            "Overwrite it? [y/N] ",
            "foo.bin  50% |****    | 12k  0:00:01 ETA",
        ] {
            assert!(!line(shown).has_prompt(), "{shown:?}");
        }
        assert_eq!(line("vm0:~# cat\r\n\u{1b}[7mabc\u{1b}[0m").text(), "abc");
        assert_eq!(line("- f 1/1 100%\u{1b}[1;1H").text(), "- f 1/1 100%");
        assert_eq!(line("vm0:~# cat\r\n").text(), "vm0:~# cat");
    }

    #[test]
    fn nothing_makes_it_grow_without_bound() {
        let mut line = line("");
        for part in ["x", "\u{1b}[1", "\u{1b}]t"] {
            line.feed(part.repeat(10_000).as_bytes());
            assert!(line.text.len() <= LINE_MAX);
        }
    }
}

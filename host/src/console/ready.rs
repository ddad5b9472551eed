//! Ready detection: finds the line of a VM's console that matches a pattern, as soon as so much of
//! it is written that it does. Prompts (`login: `, `=> `) end in no newline.
//!
//! When a VM is ready depends on its output alone, not on the pieces in which that comes. So each
//! byte is a step of a deterministic automaton, which also makes the work linear in the output,
//! whatever a guest prints. A match counts that holds whatever follows: `$` is the end of a line,
//! not the end of what has been received so far.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::util::primitives::StateID;
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, nfa::thompson};

use super::sequence::{Output, Reader};

/// Largest automaton, in bytes, and largest memory while it is made.
const AUTOMATON_MAX: usize = 10 << 20;
/// Characters of a line that can be erased one by one.
const ERASABLE_MAX: usize = 512;

/// Pattern of a line that shows that a VM is ready. Cheap to copy.
#[derive(Clone, Debug)]
pub struct ReadyPattern(Arc<Pattern>);

#[derive(Debug)]
struct Pattern {
    automaton: dense::DFA<Vec<u32>>,
    /// State at the beginning of a line.
    start: StateID,
}

/// Why a text is no pattern.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PatternError(String);

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for PatternError {}

impl PatternError {
    /// Returns the error below all others that wrap it.
    fn root(error: &dyn Error) -> Self {
        match error.source() {
            Some(source) => Self::root(source),
            // The last line says what is wrong; the others show where.
            None => {
                let text = error.to_string();
                let what = text.lines().last().unwrap_or_default();
                Self(what.trim_start_matches("error: ").to_owned())
            }
        }
    }
}

impl ReadyPattern {
    /// Line that this project's guest image prints when its web server listens; all of it, so that
    /// it can be read on the console of a VM that then stands still.
    pub const DEFAULT: &str = "PXVM READY.*$";

    /// Compiles a regular expression into a pattern. It is one over bytes: a console may print
    /// anything.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        let config = dense::Config::new()
            .start_kind(StartKind::Unanchored)
            .dfa_size_limit(Some(AUTOMATON_MAX))
            .determinize_size_limit(Some(AUTOMATON_MAX));
        let automaton = dense::Builder::new()
            .configure(config)
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(thompson::Config::new().utf8(false).nfa_size_limit(Some(AUTOMATON_MAX)))
            .build(pattern)
            .map_err(|error| PatternError::root(&error))?;
        let start = automaton
            .start_state(&start::Config::new().anchored(Anchored::No))
            .map_err(|error| PatternError::root(&error))?;
        Ok(Self(Arc::new(Pattern { automaton, start })))
    }
}

impl Pattern {
    fn next(&self, state: StateID, byte: u8) -> StateID {
        self.automaton.next_state(state, byte)
    }

    /// Whether the text that led to `state` matches, whatever follows it. An automaton knows of a
    /// match one byte later, and what may depend on that byte is whether a word goes on there.
    fn matches(&self, state: StateID) -> bool {
        let matches = |next| self.automaton.is_match_state(self.next(state, next));
        self.automaton.is_match_state(state) || matches(b'a') && matches(b' ')
    }

    /// Whether the text that led to `state` matches if the line ends there.
    fn matches_at_end(&self, state: StateID) -> bool {
        self.automaton.is_match_state(self.automaton.next_eoi_state(state))
    }
}

/// Matches one VM's console output.
#[derive(Clone, Debug)]
pub struct ReadyMatcher {
    pattern: ReadyPattern,
    reader: Reader,
    /// States of the automaton after each character of the line, so that the last ones can be
    /// erased.
    line: Vec<StateID>,
    /// Whether a carriage return came last: it ended the line, and a line feed ends no other.
    returned: bool,
}

impl ReadyMatcher {
    /// Returns a matcher at the beginning of a line.
    pub fn new(pattern: ReadyPattern) -> Self {
        Self { pattern, reader: Reader::default(), line: Vec::new(), returned: false }
    }

    /// Handles more output. Returns `true` when it makes a line match; that is all there is to know.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|&byte| self.take(byte))
    }

    /// Handles one byte. Returns `true` when the line matches with it.
    fn take(&mut self, byte: u8) -> bool {
        let byte = match self.reader.read(byte) {
            Output::Byte(byte) => byte,
            Output::Hidden => return false,
            Output::Moved => {
                self.line.clear();
                return false;
            }
        };
        let pattern = &*self.pattern.0;
        let state = self.line.last().copied().unwrap_or(pattern.start);
        let returned = std::mem::replace(&mut self.returned, byte == b'\r');
        match byte {
            b'\n' if returned => false,
            b'\n' | b'\r' => {
                self.line.clear();
                pattern.matches_at_end(state)
            }
            0x08 => {
                self.line.pop();
                false
            }
            _ => {
                let state = pattern.next(state, byte);
                if self.line.len() >= ERASABLE_MAX {
                    self.line.drain(..ERASABLE_MAX / 2);
                }
                self.line.push(state);
                pattern.matches(state)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(pattern: &str) -> ReadyMatcher {
        ReadyMatcher::new(ReadyPattern::new(pattern).unwrap())
    }

    fn matches(pattern: &str, output: &str) -> bool {
        matcher(pattern).feed(output.as_bytes())
    }

    /// Returns how many bytes of output it takes until they match.
    fn until(pattern: &str, output: &str) -> Option<usize> {
        let mut matcher = matcher(pattern);
        output.bytes().position(|byte| matcher.feed(&[byte])).map(|at| at + 1)
    }

    #[test]
    fn a_prompt_is_matched_without_a_newline_and_with_its_last_byte() {
        for (pattern, output) in [
            ("login: ", "\r\nWelcome to Buildroot\r\nbuildroot login: "),
            ("^=> ", "Hit any key to stop autoboot:  1 \x08\x08\x08 0 \r\n=> "),
            ("# ", "Please press Enter to activate this console.\r\n/ # "),
            ("^~ # ", "\x1b[6n\r\x1b[J~ # "),
            ("root@vm0:~# ", "\x1b[?2004hroot@\x1b[1;32mvm0\x1b[0m:~# "),
        ] {
            assert_eq!(until(pattern, output), Some(output.len()), "{pattern}");
        }
    }

    #[test]
    fn when_it_matches_does_not_depend_on_how_output_is_cut() {
        let output = b"booting\r\nPXVM READY host=vm3\r\nvm3 login: ";
        for (pattern, end) in [(ReadyPattern::DEFAULT, 29), ("login: ", output.len())] {
            for cut in 0..=output.len() {
                let mut matcher = matcher(pattern);
                let (a, b) = output.split_at(cut);
                let found = [matcher.feed(a), matcher.feed(b)];
                assert_eq!(found, [cut >= end, cut < end], "{pattern} cut at {cut}");
            }
        }
    }

    #[test]
    fn anchors_mean_the_line_without_its_end() {
        assert_eq!(until("^done$", "x\r\ndone\r\n"), Some(8));
        assert_eq!(until("^done$", "done\n"), Some(5));
        assert!(!matches("^done$", "not done\r\ndone not\r\ndone"));
        assert!(!matches("^$", "text\r\nmore\n"));
        assert!(matches("^$", "text\r\n\r\n"));
        // A line that is written over and over ends each time.
        assert!(matches("^100%$", " 50%\r100%\r"));
    }

    #[test]
    fn what_may_depend_on_the_next_byte_waits_for_it() {
        assert_eq!(until(r"login\b", "logins login: "), Some(13));
        assert_eq!(until(r"login\b", "login\n"), Some(6));
        assert_eq!(until(r"READY\B", "READY. READYx"), Some(13));
        assert_eq!(until("up+", "up up"), Some(2));
        assert_eq!(until("", "x"), Some(1));
    }

    #[test]
    fn a_line_that_is_written_again_is_matched_as_it_is_seen() {
        assert!(matches("^ready$", "wait 3\rready\r\n"));
        assert!(matches("^ab$", "xx\x08\x08\x08abc\x08\n"));
        assert!(!matches("boot: 12", "boot: 1\x082"));
        assert!(matches("^login: ", "garbage\x1b[H\x1b[Jlogin: "));
        assert!(!matches("title", "\x1b]0;title\x07"));
    }

    #[test]
    fn bytes_that_are_no_text_can_be_matched_around() {
        assert!(matcher("a.b ").feed(b"\xffa\xfeb "));
        assert!(matches("Gerät: ", "Gerät: "));
    }

    #[test]
    fn a_line_without_end_takes_no_more_than_its_limit_and_can_still_match() {
        let mut matcher = matcher("=> ");
        assert!(!matcher.feed(&vec![b'x'; 100 * ERASABLE_MAX]));
        assert!(matcher.line.capacity() <= 2 * ERASABLE_MAX);
        assert!(!matcher.feed(&[0x08; 2 * ERASABLE_MAX]));
        assert!(matcher.feed(b"=> "));
    }

    #[test]
    fn what_is_no_pattern_or_too_large_a_one_is_refused() {
        let error = |pattern| ReadyPattern::new(pattern).unwrap_err().to_string();
        assert_eq!(error("("), "unclosed group");
        assert!(error("(a|b)*a(a|b){30}").contains("size limit"));
    }
}

//! Ready detection: matches lines of a VM's console against a pattern.

use std::sync::Arc;

use regex::bytes::Regex;

/// Longest line that is matched; the rest of a longer one is ignored.
const LINE_MAX: usize = 1024;

/// Pattern of a line that shows that a VM is ready. Cheap to copy.
#[derive(Clone, Debug)]
pub struct ReadyPattern(Arc<Regex>);

impl ReadyPattern {
    /// Line that this project's guest image prints when its web server listens.
    pub const DEFAULT: &str = "PXVM READY";

    /// Compiles a regular expression into a pattern.
    pub fn new(pattern: &str) -> Result<Self, regex::Error> {
        Ok(Self(Arc::new(Regex::new(pattern)?)))
    }
}

/// Splits one VM's console output into lines and matches each.
#[derive(Clone, Debug)]
pub struct ReadyMatcher {
    pattern: ReadyPattern,
    line: Vec<u8>,
}

impl ReadyMatcher {
    /// Returns a matcher at the beginning of a line.
    pub fn new(pattern: ReadyPattern) -> Self {
        Self { pattern, line: Vec::new() }
    }

    /// Handles more output. Returns `true` when it completed a line that matches.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        let mut found = false;
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            let room = LINE_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                found |= self.pattern.0.is_match(self.line.trim_ascii_end());
                self.line.clear();
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(pattern: &str) -> ReadyMatcher {
        ReadyMatcher::new(ReadyPattern::new(pattern).unwrap())
    }

    #[test]
    fn a_line_is_matched_when_it_is_complete_however_it_is_cut() {
        let output = b"booting\r\nPXVM READY host=vm3\r\n# ";
        for cut in 0..output.len() {
            let mut matcher = matcher(ReadyPattern::DEFAULT);
            let (a, b) = output.split_at(cut);
            let found = [matcher.feed(a), matcher.feed(b)];
            assert!(found[0] ^ found[1], "cut at {cut}");
        }
    }

    #[test]
    fn anchors_mean_the_line_without_its_end() {
        assert!(matcher("^done$").feed(b"x\r\ndone\r\n"));
        assert!(!matcher("^done$").feed(b"not done\r\n"));
    }

    #[test]
    fn a_line_without_end_takes_no_more_than_its_limit() {
        let mut matcher = matcher("end");
        assert!(!matcher.feed(&vec![b'x'; 10 * LINE_MAX]));
        assert!(!matcher.feed(b"end\n"));
        assert!(matcher.feed(b"end\n"));
    }
}

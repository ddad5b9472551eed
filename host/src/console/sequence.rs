//! Escape sequences of terminals (ECMA-48): tells text from them in a console's output.

/// Bytes of parameters that are kept; a sequence with more is none that matters.
const PARAMETERS_MAX: usize = 16;

/// Reader of a console's output, byte by byte.
#[derive(Clone, Default, Debug)]
pub struct Reader {
    state: State,
    /// Parameters of the control sequence that is being read.
    parameters: Vec<u8>,
}

/// What precedes the next byte.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum State {
    #[default]
    Text,
    Escape,
    /// Within a control sequence.
    ControlSequence,
    /// Within a title or the like, up to its end.
    ControlString,
    /// One more byte follows, which selects a character set.
    Charset,
}

/// What a byte of output means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// Text, or a control character such as a line feed.
    Byte(u8),
    /// A part of a sequence that changes how text looks, or nothing that is seen.
    Hidden,
    /// The end of a sequence that moves the cursor to another place, or clears the screen.
    Moved,
}

impl Reader {
    /// Handles the next byte.
    pub fn read(&mut self, byte: u8) -> Output {
        // A control character within a sequence ends it and counts.
        let aborts = matches!(byte, b'\n' | b'\r' | 0x08) && self.state != State::Text;
        let (next, output) = match self.state {
            _ if aborts => (State::Text, Output::Byte(byte)),
            State::Text if byte == 0x1b => (State::Escape, Output::Hidden),
            State::Text => (State::Text, Output::Byte(byte)),
            State::Charset => (State::Text, Output::Hidden),
            State::Escape => match byte {
                b'[' => {
                    self.parameters.clear();
                    (State::ControlSequence, Output::Hidden)
                }
                b']' | b'P' | b'_' | b'^' => (State::ControlString, Output::Hidden),
                b'(' | b')' => (State::Charset, Output::Hidden),
                b'c' => (State::Text, Output::Moved),
                _ => (State::Text, Output::Hidden),
            },
            State::ControlSequence => match byte {
                0x20..=0x3f => {
                    if self.parameters.len() < PARAMETERS_MAX {
                        self.parameters.push(byte);
                    }
                    (State::ControlSequence, Output::Hidden)
                }
                last if self.moves(last) => (State::Text, Output::Moved),
                _ => (State::Text, Output::Hidden),
            },
            State::ControlString => match byte {
                0x07 => (State::Text, Output::Hidden),
                0x1b => (State::Escape, Output::Hidden),
                _ => (State::ControlString, Output::Hidden),
            },
        };
        self.state = next;
        output
    }

    /// Whether the control sequence that ends with `last` moves the cursor out of the text that is
    /// being written, or to another screen.
    fn moves(&self, last: u8) -> bool {
        match last {
            // Colours, queries, and what line editing uses.
            b'm' | b'n' | b'K' | b'J' | b'C' | b'D' | b'P' | b'@' | b'X' => false,
            // Bracketed paste, and the shape of the cursor.
            b'h' | b'l' => ![&b"?2004"[..], b"?25", b"?12", b"?1"].contains(&&*self.parameters),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> Vec<Output> {
        let mut reader = Reader::default();
        let all = output.bytes().map(|byte| reader.read(byte));
        all.filter(|&output| output != Output::Hidden).collect()
    }

    #[test]
    fn text_is_told_from_sequences() {
        let text = |text: &str| -> Vec<Output> { text.bytes().map(Output::Byte).collect() };
        for sequence in ["\x1b[01;32m", "\x1b]0;title\x07", "\x1bP+q\x1b\\", "\x1b(B", "\x1b[?25l"]
        {
            assert_eq!(read(&format!("a{sequence}b")), text("ab"), "{sequence:?}");
        }
        for sequence in ["\x1b[H", "\x1b[?1049h", "\x1bc", "\x1b[3;24H"] {
            assert_eq!(read(sequence), [Output::Moved], "{sequence:?}");
        }
    }

    #[test]
    fn one_that_does_not_end_hides_no_line_and_takes_no_memory() {
        for begun in ["\x1b", "\x1b[1;", "\x1b]title", "\x1b("] {
            assert_eq!(read(&format!("{begun}\n=")), [Output::Byte(b'\n'), Output::Byte(b'=')]);
        }
        let mut reader = Reader::default();
        for byte in format!("\x1b[{}", "1".repeat(100_000)).bytes() {
            assert_eq!(reader.read(byte), Output::Hidden);
        }
        assert!(reader.parameters.len() <= PARAMETERS_MAX);
    }
}

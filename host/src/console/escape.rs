//! Escape key of an interactive console: Ctrl-A, as in QEMU.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// Help text of Ctrl-A h.
pub const HELP: &str = "\
Ctrl-A h       this help\r
Ctrl-A x       leave: the machine is switched off\r
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r
";

/// Help text of Ctrl-A h at the console of a fleet that runs in another process.
pub const HELP_ATTACHED: &str = "\
Ctrl-A h       this help\r
Ctrl-A x       leave: the machine goes on\r
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r
";

/// Action of an escape sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Leave the console.
    Leave,
    /// Show [`HELP`].
    Help,
}

/// Finds escape sequences in keyboard input.
#[derive(Debug, Default)]
pub struct Escape {
    pending: bool,
}

impl Escape {
    /// Splits input into bytes for the guest and actions, in order.
    pub fn feed(&mut self, typed: &[u8]) -> (Vec<u8>, Vec<Action>) {
        let (mut guest, mut actions) = (Vec::new(), Vec::new());
        for &byte in typed {
            match (std::mem::take(&mut self.pending), byte) {
                (false, ESCAPE) => self.pending = true,
                (false, _) => guest.push(byte),
                (true, ESCAPE) => guest.push(ESCAPE),
                (true, b'x' | b'X') => actions.push(Action::Leave),
                (true, b'h' | b'H' | b'?') => actions.push(Action::Help),
                (true, _) => {}
            }
        }
        (guest, actions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_to_the_guest_except_after_ctrl_a() {
        let mut escape = Escape::default();
        assert_eq!(escape.feed(b"ls\r"), (b"ls\r".to_vec(), vec![]));
        assert_eq!(escape.feed(b"\x01"), (vec![], vec![]));
        assert_eq!(escape.feed(b"xa"), (b"a".to_vec(), vec![Action::Leave]));
        assert_eq!(escape.feed(b"\x01h\x01\x01\x01z"), (vec![1], vec![Action::Help]));
    }
}

//! The escape key of an interactive console: Ctrl-A, as in QEMU.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What Ctrl-A h shows.
pub const HELP: &str = "\
Ctrl-A h       this help\r
Ctrl-A x       leave: the machine is switched off\r
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r
";

/// The same at the console of a machine of a fleet that runs by itself.
pub const HELP_ATTACHED: &str = "\
Ctrl-A h       this help\r
Ctrl-A x       leave: the machine goes on\r
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r
";

/// What the user asked pxvm for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Leave.
    Leave,
    /// Show [`HELP`].
    Help,
}

/// Finds the escape key in what is typed.
#[derive(Debug, Default)]
pub struct Escape {
    pending: bool,
}

impl Escape {
    /// Splits what was typed in bytes for the guest and actions, in order.
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

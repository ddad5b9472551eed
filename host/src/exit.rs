//! Exit codes of `pxvm`, and the sentence that the user sees for an error.

use std::error::Error as StdError;
use std::process::ExitCode;

/// Exit code of `pxvm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// All VMs met the condition; the tests passed; the command did its job.
    Success,
    /// A failure that no other code names.
    Failure,
    /// Wrong usage or bad input. Nothing was started.
    Usage,
    /// `--timeout` expired first.
    Timeout,
    /// A guest faulted or failed.
    Guest,
    /// Ctrl-C or SIGTERM ended `pxvm`.
    Interrupted,
    /// A command in a guest ended with this status.
    Status(u8),
}

impl Code {
    /// The process's exit status for this code.
    pub fn number(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Timeout => 3,
            Self::Guest => 4,
            Self::Interrupted => 130,
            Self::Status(status) => status,
        }
    }
}

/// Returns a command's help text on exit codes.
pub fn help(meanings: &[(Code, &str)]) -> String {
    let mut text = String::from("Exit codes:");
    for (code, meaning) in meanings {
        text += &format!("\n  {:<3}  {meaning}", code.number());
    }
    text
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.number())
    }
}

/// Returns an error and its causes as one sentence.
pub fn sentence(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write the log")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_sentence_names_every_cause_once() {
        let error = Outer(std::io::Error::other("disk full"));
        assert_eq!(sentence(&error), "cannot write the log: disk full");
    }
}

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

/// Any error of `pxvm`, by module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An input file is invalid.
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
    /// The images do not fit the VM.
    #[error(transparent)]
    Plan(#[from] crate::machine::PlanError),
    /// The device tree does not fit the VM.
    #[error(transparent)]
    Tree(#[from] crate::dtb::TreeError),
    /// The backend could not be made, or failed.
    #[error(transparent)]
    Backend(#[from] crate::backend::BackendError),
    /// The network cannot be set up.
    #[error(transparent)]
    Net(#[from] crate::net::NetError),
    /// The address of the API cannot be used.
    #[error(transparent)]
    Bind(#[from] crate::api::BindError),
    /// The fleet's socket cannot be used, or no fleet runs there.
    #[error(transparent)]
    Socket(#[from] crate::api::socket::SocketError),
    /// A running fleet refused a request, or has ended.
    #[error(transparent)]
    Client(#[from] crate::client::ClientError),
    /// Options contradict each other.
    #[error("{0}")]
    Usage(String),
    /// A file or terminal could not be used.
    #[error("cannot {action}")]
    Io {
        /// What was attempted.
        action: String,
        /// The host's error.
        source: std::io::Error,
    },
}

impl Error {
    /// Returns an error of input or output while doing `action`.
    pub fn io(action: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { action: action.into(), source }
    }

    /// Returns the exit code for this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Image(_) | Self::Plan(_) | Self::Tree(_) | Self::Usage(_) => Code::Usage,
            Self::Bind(crate::api::BindError::Io(..)) => Code::Failure,
            Self::Bind(_) => Code::Usage,
            Self::Socket(e) if e.is_usage() => Code::Usage,
            Self::Backend(e) if e.is_usage() => Code::Usage,
            Self::Net(e) if e.is_usage() => Code::Usage,
            Self::Client(e) => e.code(),
            Self::Backend(_) | Self::Net(_) | Self::Socket(_) | Self::Io { .. } => Code::Failure,
        }
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

    #[test]
    fn a_sentence_names_every_cause_once() {
        let error = Error::io("write the log", std::io::Error::other("disk full"));
        assert_eq!(sentence(&error), "cannot write the log: disk full");
        assert_eq!(error.code(), Code::Failure);
    }
}

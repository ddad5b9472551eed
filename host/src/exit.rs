//! Exit codes of `pxvm`, and what an error becomes when it reaches the user.

use std::error::Error as StdError;
use std::process::ExitCode;

/// How `pxvm` ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// The condition was met by all VMs; the tests passed; the command did its job.
    Success,
    /// Anything not named by another code.
    Failure,
    /// Wrong usage or bad input. Nothing was started.
    Usage,
    /// `--timeout` expired first.
    Timeout,
    /// A guest faulted or failed.
    Guest,
    /// Ended by Ctrl-C or SIGTERM.
    Interrupted,
    /// A command in a guest ended with this status.
    Status(u8),
}

impl Code {
    /// The number that the system is told.
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

/// What the exit codes of a command mean, as its help says.
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

/// Everything that can go wrong in `pxvm`, by module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An input file is not what it must be.
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
    /// The images do not fit the machine.
    #[error(transparent)]
    Plan(#[from] crate::machine::PlanError),
    /// The device tree does not fit the machine.
    #[error(transparent)]
    Tree(#[from] crate::dtb::TreeError),
    /// The backend could not be made or failed.
    #[error(transparent)]
    Backend(#[from] crate::backend::BackendError),
    /// The network cannot be made as it was asked for.
    #[error(transparent)]
    Net(#[from] crate::net::NetError),
    /// The address of the API cannot be had.
    #[error(transparent)]
    Bind(#[from] crate::api::BindError),
    /// The fleet's socket cannot be used, or no fleet is there.
    #[error(transparent)]
    Socket(#[from] crate::api::socket::SocketError),
    /// A running fleet refuses something, or is gone.
    #[error(transparent)]
    Client(#[from] crate::client::ClientError),
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// A file or terminal could not be used.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// An input or output error while doing `action`.
    pub fn io(action: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { action: action.into(), source }
    }

    /// The exit code for this error.
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

/// An error and its causes as one sentence.
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

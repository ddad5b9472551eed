//! Any error of `pxvm`, and its exit code. Modules below the subcommands have errors of their own.

use crate::api::BindError;
use crate::api::socket::SocketError;
use crate::backend::BackendError;
use crate::client::ClientError;
use crate::dtb::TreeError;
use crate::exit::Code;
use crate::image::ImageError;
use crate::machine::{AssembleError, PlanError};
use crate::net::NetError;

/// Any error of `pxvm`, by module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An input file is invalid.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The images do not fit the VM.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device tree does not fit the VM.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A fleet cannot be made of the images and options.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// The backend could not be made, or failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The network cannot be set up.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The address of the API cannot be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The fleet's socket cannot be used, or no fleet runs there.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A running fleet refused a request, or has ended.
    #[error(transparent)]
    Client(#[from] ClientError),
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
            Self::Image(_) | Self::Plan(_) | Self::Tree(_) | Self::Assemble(_) | Self::Usage(_) => {
                Code::Usage
            }
            Self::Bind(BindError::Io(..)) => Code::Failure,
            Self::Bind(_) => Code::Usage,
            Self::Socket(e) if e.is_usage() => Code::Usage,
            Self::Backend(e) if e.is_usage() => Code::Usage,
            Self::Net(e) if e.is_usage() => Code::Usage,
            Self::Client(e) => e.code(),
            Self::Backend(_) | Self::Net(_) | Self::Socket(_) | Self::Io { .. } => Code::Failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::sentence;

    #[test]
    fn an_error_of_the_host_is_a_failure_that_names_what_was_tried() {
        let error = Error::io("write the log", std::io::Error::other("disk full"));
        assert_eq!(sentence(&error), "cannot write the log: disk full");
        assert_eq!(error.code(), Code::Failure);
    }
}

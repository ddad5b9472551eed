//! Errors of the API: HTTP status, code for programs, sentence for people.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::serve::HEAD_MAX;
use crate::engine::ControlError;
use crate::net::connector::ConnectError;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// The fleet refuses the command.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The VM has no memory to inspect.
    #[error("vm{0} has no memory now")]
    NoMemory(u32),
    /// The body is too long.
    #[error("{0}")]
    TooLarge(String),
    /// The head is too long.
    #[error("the head of a request may have {HEAD_MAX} bytes")]
    LongHead,
    /// There are too many requests or connections.
    #[error("{0}")]
    TooMany(String),
    /// The request comes from elsewhere: another site, or a domain that is not this host.
    #[error("{0}")]
    Forbidden(String),
    /// The token is missing or wrong.
    #[error(
        "this address needs the fleet's token: `Authorization: Bearer TOKEN`, or in a browser the \
         address that pxvm printed"
    )]
    Unauthorized,
    /// The fleet does not support this, or not now.
    #[error("{0}")]
    Unavailable(String),
    /// A VM did not respond as a server does.
    #[error("{0}")]
    BadGateway(String),
    /// There was no response in time.
    #[error("there was no answer in time")]
    Timeout,
    /// Nothing is at this path.
    #[error("there is nothing here; /openapi.json lists what there is")]
    NotFound,
    /// The path does not take the method.
    #[error("this path does not take this method; /openapi.json lists which it does")]
    MethodNotAllowed,
}

#[derive(Serialize)]
struct Body {
    error: Detail,
}

#[derive(Serialize)]
struct Detail {
    code: &'static str,
    message: String,
}

impl ApiError {
    /// Returns the HTTP status, and the code for programs.
    pub fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::Control(error) => match error {
                ControlError::UnknownVm { .. } => (StatusCode::NOT_FOUND, "unknown_vm"),
                ControlError::WrongState { .. } | ControlError::NotListening { .. } => {
                    (StatusCode::CONFLICT, "wrong_state")
                }
                ControlError::Failed { .. } => (StatusCode::CONFLICT, "failed"),
                ControlError::NoRoom { .. } => (StatusCode::CONFLICT, "no_room"),
                ControlError::InputFull { .. }
                | ControlError::Busy(_)
                | ControlError::Overloaded => (StatusCode::TOO_MANY_REQUESTS, "too_many"),
                ControlError::Unsupported(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
                ControlError::Silent => (StatusCode::GATEWAY_TIMEOUT, "gateway_timeout"),
            },
            Self::NoMemory(_) => (StatusCode::CONFLICT, "wrong_state"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::LongHead => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large"),
            Self::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "too_many"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Self::BadGateway(_) => (StatusCode::BAD_GATEWAY, "bad_gateway"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "gateway_timeout"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        }
    }

    /// Returns the error for a JSON body that is malformed.
    #[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
    pub fn json(error: serde_json::Error) -> Self {
        Self::BadRequest(format!("the body is not right: {error}"))
    }

    /// Returns the error for a connection to a VM that was refused.
    pub fn connect(vm: u32, error: &ConnectError) -> Self {
        match error {
            ConnectError::Ended | ConnectError::Busy => {
                Self::Unavailable(format!("vm{vm} cannot be reached: {error}"))
            }
            ConnectError::Nowhere | ConnectError::Io(_) => {
                Self::BadGateway(format!("vm{vm}: {}", crate::exit::sentence(error)))
            }
        }
    }
}

/// Whether a text begins with the name of a VM.
fn is_name(text: &str) -> bool {
    text.strip_prefix("vm").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

impl ApiError {
    /// Returns the sentence for people.
    pub fn sentence(&self) -> String {
        let mut message = self.to_string();
        // Names of VMs are written in lower case.
        if !is_name(&message)
            && let Some(first) = message.get_mut(..1)
        {
            first.make_ascii_uppercase();
        }
        if !message.ends_with('.') {
            message.push('.');
        }
        message
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status();
        let body = Body { error: Detail { code, message: self.sentence() } };
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            const BEARER: HeaderValue = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, BEARER);
        }
        response
    }
}

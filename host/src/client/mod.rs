//! Client of a running fleet: HTTP over the fleet's Unix socket.

pub mod exec;

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::api::socket::{self, SocketError};
use crate::exit::Code;

/// Time limit for a response to begin; longer than the fleet's own.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(40);
/// Largest JSON response.
const ANSWER_MAX: usize = 16 << 20;

/// Why a request to a fleet failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The fleet cannot be found.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The fleet refuses the request.
    #[error("{message}")]
    Refused {
        /// HTTP status of the refusal.
        status: StatusCode,
        /// The API's code for the reason.
        code: String,
        /// Sentence that gives the reason.
        message: String,
    },
    /// The fleet has ended meanwhile.
    #[error("the fleet has gone")]
    Gone(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The response is not one of a fleet that this version knows.
    #[error("the fleet gives an answer that this version of pxvm does not know")]
    Strange,
    /// The fleet did not respond.
    #[error("the fleet did not answer")]
    Silent,
    /// A command in a guest did not finish.
    #[error(transparent)]
    Exec(#[from] exec::ExecError),
}

impl ClientError {
    /// Whether the VM's state does not allow the command.
    pub fn is_wrong_state(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "wrong_state")
    }

    /// Returns the exit code for this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Socket(e) if e.is_usage() => Code::Usage,
            Self::Refused { status, .. } => match *status {
                StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::PAYLOAD_TOO_LARGE => {
                    Code::Usage
                }
                StatusCode::GATEWAY_TIMEOUT => Code::Timeout,
                _ => Code::Failure,
            },
            Self::Exec(error) => error.code(),
            Self::Silent => Code::Timeout,
            Self::Socket(_) | Self::Gone(_) | Self::Strange => Code::Failure,
        }
    }
}

fn gone(error: impl std::error::Error + Send + Sync + 'static) -> ClientError {
    ClientError::Gone(Box::new(error))
}

/// A running fleet.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// Finds the fleet `name`, or the only one that runs.
    pub fn find(name: Option<&str>) -> Result<Self, ClientError> {
        Ok(Self { path: socket::find(&socket::folder(), name)? })
    }

    /// Returns the path of the fleet's socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a request. Returns the response once it has begun with success.
    async fn ask(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let answer = tokio::time::timeout(RESPONSE_TIMEOUT, self.send(request)).await;
        let response = answer.map_err(|_| ClientError::Silent)??;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body: Value = serde_json::from_slice(&whole(response).await?).unwrap_or_default();
        let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
        let message = body["error"]["message"].as_str().unwrap_or("the fleet refuses");
        // Sentences of the API stand alone; here they follow `pxvm: `.
        let message = message.trim_end_matches('.').to_owned();
        Err(ClientError::Refused { status, code, message })
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(gone)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(gone)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(gone)
    }

    fn request(method: Method, path: &str, body: Body) -> Result<Request<Body>, ClientError> {
        let request = Request::builder().method(method).uri(path).header("host", "pxvm");
        let request = request.header("content-type", "application/json").body(body);
        request.map_err(|_| ClientError::Strange)
    }

    /// Sends GET and returns the JSON of the response.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        let request = Self::request(Method::GET, path, Body::empty())?;
        parse(self.ask(request).await?).await
    }

    /// Sends POST with JSON or an empty body, and returns the JSON of the response.
    pub async fn post(&self, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let body = body.map_or_else(Body::empty, |body| body.to_string().into());
        let request = Self::request(Method::POST, path, body)?;
        parse(self.ask(request).await?).await
    }

    /// Returns the kept output of a VM, and how many bytes came before it.
    pub async fn console(&self, vm: u32) -> Result<(u64, Vec<u8>), ClientError> {
        let path = format!("/api/v1/vms/{vm}/console");
        let response = self.ask(Self::request(Method::GET, &path, Body::empty())?).await?;
        Ok((offset(&response)?, whole(response).await?))
    }

    /// Follows a VM's console.
    pub async fn follow(&self, vm: u32) -> Result<Follow, ClientError> {
        let path = format!("/api/v1/vms/{vm}/console/stream");
        let response = self.ask(Self::request(Method::GET, &path, Body::empty())?).await?;
        let offset = offset(&response)?;
        Ok(Follow { offset, body: response.into_body() })
    }

    /// Sends console input to a VM; waits while the VM does not read.
    pub async fn type_at(&self, vm: u32, bytes: &[u8]) -> Result<(), ClientError> {
        const PIECE: usize = 4096;
        const AGAIN: Duration = Duration::from_millis(50);
        let path = format!("/api/v1/vms/{vm}/console");
        for piece in bytes.chunks(PIECE) {
            loop {
                let request = Self::request(Method::POST, &path, Body::from(piece.to_vec()))?;
                match self.ask(request).await {
                    Ok(_) => break,
                    Err(ClientError::Refused { status: StatusCode::TOO_MANY_REQUESTS, .. }) => {
                        tokio::time::sleep(AGAIN).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

async fn whole(response: Response<Incoming>) -> Result<Vec<u8>, ClientError> {
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect();
    let body =
        tokio::time::timeout(RESPONSE_TIMEOUT, body).await.map_err(|_| ClientError::Silent)?;
    Ok(body.map_err(ClientError::Gone)?.to_bytes().to_vec())
}

async fn parse(response: Response<Incoming>) -> Result<Value, ClientError> {
    serde_json::from_slice(&whole(response).await?).map_err(|_| ClientError::Strange)
}

/// Returns how many bytes the VM had written before the body of a response.
fn offset(response: &Response<Incoming>) -> Result<u64, ClientError> {
    let offset = response.headers().get("x-pxvm-offset");
    offset.and_then(|v| v.to_str().ok()?.parse().ok()).ok_or(ClientError::Strange)
}

/// A followed console.
pub struct Follow {
    offset: u64,
    body: Incoming,
}

impl Follow {
    /// Returns how many bytes the VM had written before the first that follows.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the next output; `None` when the fleet has ended, or this client was cut off.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let frame = self.body.frame().await?.ok()?;
            if let Ok(bytes) = frame.into_data() {
                return Some(bytes.to_vec());
            }
        }
    }
}

/// Runs a future that waits for responses of a fleet.
pub fn block_on<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

//! Consoles in the API: past output, the stream of new output, and input; over HTTP and WebSocket.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::{SinkExt, StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tungstenite::Error as Mistake;
use tungstenite::error::ProtocolError;

use super::SharedApp;
use super::bodies::{Id, JsonBody, Limited};
use super::clients::Client;
use super::error::ApiError;
use super::fleet::state_of;
use crate::engine::ControlError;
use crate::engine::consoles::{Listener, Received, Tail};

/// Largest piece of console input, in bytes.
const INPUT_MAX: usize = 4 << 10;
/// Largest WebSocket message of a client.
const MESSAGE_MAX: usize = 64 << 10;
/// Interval of pings to a client that receives no output.
const PING: Duration = Duration::from_secs(30);
/// Time limit for a client to complete the closing handshake.
const FAREWELL: Duration = Duration::from_secs(2);

/// Name of the WebSocket subprotocol.
const PROTOCOL: &str = "pxvm";
const OFFSET: HeaderName = HeaderName::from_static("x-pxvm-offset");

fn listen(app: &SharedApp, id: u32) -> Result<(Tail, Listener), ApiError> {
    app.fleet.record(id)?;
    let full = || ApiError::TooMany(format!("too many clients follow the console of vm{id}"));
    app.fleet.consoles.listen(id).ok_or_else(full)
}

/// Returns the headers of output that begins at `offset`.
fn head(offset: u64) -> [(HeaderName, String); 3] {
    // Without a charset, some browsers guess one.
    let kind = (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned());
    [kind, (header::CACHE_CONTROL, "no-store".to_owned()), (OFFSET, offset.to_string())]
}

/// `GET /api/v1/vms/{id}/console`
pub async fn read(State(app): State<SharedApp>, Id(id): Id) -> Result<Response, ApiError> {
    app.fleet.record(id)?;
    let tail = app.fleet.consoles.tail(id);
    Ok((head(tail.offset), tail.bytes).into_response())
}

/// `GET /api/v1/vms/{id}/console/stream`
pub async fn follow(State(app): State<SharedApp>, Id(id): Id) -> Result<Response, ApiError> {
    let (tail, listener) = listen(&app, id)?;
    let live = stream::unfold(Some(listener), async |listener| {
        let listener = listener?;
        match listener.next().await {
            Received::Bytes(bytes) => Some((Ok(Bytes::from(bytes)), Some(listener))),
            Received::Cut => {
                let error = std::io::Error::other("the client does not keep up");
                Some((Err(error), None))
            }
        }
    });
    let first = stream::iter([Ok(Bytes::from(tail.bytes))]);
    Ok((head(tail.offset), Body::from_stream(first.chain(live))).into_response())
}

/// `POST /api/v1/vms/{id}/console`
pub async fn write(
    State(app): State<SharedApp>,
    Id(id): Id,
    Limited(bytes): Limited<INPUT_MAX>,
) -> Result<StatusCode, ApiError> {
    app.fleet.input(id, &bytes)?;
    Ok(StatusCode::ACCEPTED)
}

/// Request: a line of input for several VMs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    line: String,
    vms: Option<Vec<u32>>,
    state: Option<String>,
}

/// Response: how many VMs were sent the line.
#[derive(Serialize)]
pub struct Sent {
    sent: u32,
}

/// `POST /api/v1/input`
pub async fn broadcast(
    State(app): State<SharedApp>,
    JsonBody(Line { line, vms, state }): JsonBody<Line>,
) -> Result<Json<Sent>, ApiError> {
    if line.len() >= INPUT_MAX {
        return Err(ApiError::TooLarge(format!("a line may have {} bytes", INPUT_MAX - 1)));
    }
    if line.contains(['\n', '\r']) {
        return Err(ApiError::BadRequest("a line has no end in its middle".to_owned()));
    }
    let state = state.as_deref().map(state_of).transpose()?;
    let count = app.fleet.state().count();
    let mut vms = vms.unwrap_or_else(|| (0..count).collect());
    vms.sort_unstable();
    vms.dedup();
    if let Some(&vm) = vms.iter().find(|&&vm| vm >= count) {
        return Err(ControlError::UnknownVm { vm, count }.into());
    }
    let bytes = [line.as_bytes(), b"\n"].concat();
    let is_meant = |&vm: &u32| {
        state.is_none_or(|state| app.fleet.record(vm).is_ok_and(|record| record.state == state))
    };
    // VMs that have ended or do not read are not counted.
    let sent = vms.into_iter().filter(is_meant).filter(|&vm| app.fleet.input(vm, &bytes).is_ok());
    Ok(Json(Sent { sent: sent.count() as u32 }))
}

/// `GET /api/v1/vms/{id}/console/ws`
pub async fn socket(
    State(app): State<SharedApp>,
    Id(id): Id,
    client: Option<Extension<Arc<Client>>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|e| ApiError::BadRequest(e.body_text()))?;
    let (tail, listener) = listen(&app, id)?;
    let upgrade = upgrade.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX);
    // Browsers require that one of the protocols they offer is chosen; another one is the token.
    let upgrade = upgrade.protocols([PROTOCOL]);
    Ok(upgrade.on_upgrade(async move |socket| {
        talk(app, id, socket, tail, listener).await;
        // Until here the client has counted as a connection.
        drop(client);
    }))
}

/// Close code and reason of a WebSocket.
struct End(u16, &'static str);

const TOO_LONG: End = End(close_code::SIZE, "a message may have 4096 bytes");

/// Returns the close code for a client's protocol error; `None` when its connection is gone.
fn mistake(error: axum::Error) -> Option<End> {
    match error.into_inner().downcast_ref()? {
        Mistake::Utf8(_) => Some(End(close_code::INVALID, "text is UTF-8")),
        Mistake::Capacity(_) => Some(TOO_LONG),
        Mistake::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        Mistake::Protocol(_) => Some(End(close_code::PROTOCOL, "this is no WebSocket's frame")),
        _ => None,
    }
}

async fn talk(app: SharedApp, id: u32, socket: WebSocket, tail: Tail, listener: Listener) {
    let (mut to, mut from) = socket.split();
    let speak = async {
        let mut next = Received::Bytes(tail.bytes);
        loop {
            let message = match next {
                Received::Bytes(bytes) => Message::Binary(bytes.into()),
                Received::Cut => return Some(End(close_code::POLICY, "it does not keep up")),
            };
            tokio::select! {
                sent = to.send(message) => sent.ok()?,
                () = listener.cut() => return Some(End(close_code::POLICY, "it does not keep up")),
            }
            next = loop {
                tokio::select! {
                    received = listener.next() => break received,
                    () = tokio::time::sleep(PING) => {
                        tokio::time::timeout(PING, to.send(Message::Ping(Bytes::new())))
                            .await.ok()?.ok()?;
                    }
                }
            };
        }
    };
    let hear = async {
        loop {
            let message = match from.next().await? {
                Ok(message) => message,
                Err(error) => return mistake(error),
            };
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Close(_) => return None,
            };
            if bytes.len() > INPUT_MAX {
                return Some(TOO_LONG);
            }
            match app.fleet.input(id, &bytes) {
                // Input beyond the VM's buffer is lost, as on a line without flow control.
                Ok(()) | Err(ControlError::InputFull { .. }) => {}
                // The VM may be started again.
                Err(ControlError::NotListening { .. }) => {}
                Err(_) => return Some(End(close_code::POLICY, "there is no such VM")),
            }
        }
    };
    let end = tokio::select! {
        end = speak => end,
        end = hear => end,
    };
    let farewell = async {
        match end {
            Some(End(code, reason)) => {
                let close = CloseFrame { code, reason: reason.into() };
                to.send(Message::Close(Some(close))).await?;
            }
            // The reply to the client's Close frame is queued in the socket.
            None => to.close().await?,
        }
        // Closing with unread data would reset the connection, and the client would lose the last
        // output.
        while let Some(Ok(_)) = from.next().await {}
        Ok::<(), axum::Error>(())
    };
    // A client that does not read does not receive this either.
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}

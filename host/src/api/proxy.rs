//! Requests to VMs' ports. What guests answer is hostile: of its headers only harmless ones pass,
//! the policy that comes with it takes it out of our origin and forbids it scripts, and there is a
//! bound on its size and on its time.

use std::pin::pin;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::bodies::number;
use super::error::ApiError;
use super::{App, Reach, Shared};
use crate::machine::fleet::name;

/// Bytes of an answer.
const ANSWER_MAX: u64 = 16 << 20;
/// Bytes of a request's body.
const BODY_MAX: usize = 1 << 20;
/// Bytes of an answer's head.
const HEAD_MAX: usize = 64 << 10;
const CONNECT: Duration = Duration::from_secs(5);
/// Until the head of the answer is there; a busy guest is slow.
const HEAD: Duration = Duration::from_secs(20);
/// Between two pieces of the answer.
const PIECE: Duration = Duration::from_secs(20);
/// All in all.
const WHOLE: Duration = Duration::from_secs(120);

/// What a client may say to a guest. Nothing of ours is among it: no cookie, no token.
const TO_GUEST: [HeaderName; 15] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::PRAGMA,
    header::RANGE,
    header::USER_AGENT,
];

/// What a guest may say to a client.
const FROM_GUEST: [HeaderName; 14] = [
    header::ACCEPT_RANGES,
    header::AGE,
    header::ALLOW,
    header::CACHE_CONTROL,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::ETAG,
    header::EXPIRES,
    header::LAST_MODIFIED,
    header::RETRY_AFTER,
];

/// A guest's page is in an origin of its own, without scripts, forms and windows.
const POLICY: &str = include_str!("guest-policy.txt").trim_ascii_end();

/// The same for what we say in a guest's place, which the page shows in a frame, too.
const REFUSAL_POLICY: &str = include_str!("refusal-policy.txt").trim_ascii_end();

/// `/vms/{id}/http/{port}`: links of the guest's page are relative to its root.
pub async fn root(Path((id, port)): Path<(String, String)>) -> Result<Redirect, ApiError> {
    let (id, port) = (number(&id)?, port_of(&port)?);
    Ok(Redirect::permanent(&format!("/vms/{id}/http/{port}/")))
}

fn port_of(text: &str) -> Result<u16, ApiError> {
    let port = number(text).ok().and_then(|port| u16::try_from(port).ok()).filter(|&p| p > 0);
    port.ok_or_else(|| ApiError::BadRequest("a port is a number from 1 to 65535".to_owned()))
}

/// `/vms/{id}/http/{port}/{path}`
pub async fn proxy(State(app): State<Shared>, request: Request) -> Response {
    let accepts = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let browses = accepts.is_some_and(|accepts| accepts.contains("text/html"));
    forward(app, request).await.unwrap_or_else(|error| refuse(error, browses))
}

/// Tells a person, or a program, that there is no answer of a guest.
fn refuse(error: ApiError, browses: bool) -> Response {
    let mut response = if browses {
        let (status, _) = error.status();
        let text = error.sentence().replace('&', "&amp;").replace('<', "&lt;");
        let page = format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{}</title>\
             <p style=\"font:14px system-ui;color:#8b97a2;margin:2em\">{text}</p></html>",
            status.as_u16()
        );
        (status, Html(page)).into_response()
    } else {
        error.into_response()
    };
    const POLICY: HeaderValue = HeaderValue::from_static(REFUSAL_POLICY);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, POLICY);
    response
}

async fn forward(app: Shared, request: Request) -> Result<Response, ApiError> {
    // The path goes on as it came: only its beginning is ours.
    let mut words = request.uri().path().splitn(6, '/').skip(2);
    let id = number(words.next().unwrap_or_default())?;
    let port = port_of(words.nth(1).unwrap_or_default())?;
    let rest = words.next().unwrap_or_default();
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let uri = format!("/{rest}{query}");
    let uri: Uri = uri.parse().map_err(|_| ApiError::BadRequest("no such path".to_owned()))?;
    if request.body().size_hint().lower() > BODY_MAX as u64 {
        return Err(ApiError::TooLarge(format!("a guest is sent {BODY_MAX} bytes at most")));
    }
    let permit = app.clone().visits.clone().try_acquire_owned();
    let permit = permit
        .map_err(|_| ApiError::TooMany("too many requests to VMs are under way".to_owned()))?;
    let end = Instant::now() + WHOLE;
    let stream = timeout(CONNECT, app.visit(id, port)).await.map_err(|_| ApiError::Timeout)??;
    let request = translate(request, id, uri);
    let (answer, driver) = ask(id, stream, request).await?;
    let (ticket, done) = oneshot::channel();
    // A client that stops reading does not hold a guest's connection for ever.
    tokio::spawn(async move {
        let _ = timeout_at(end, done).await;
        driver.abort();
        drop(permit);
    });
    Ok(deliver(answer, id, port, ticket, end))
}

/// Held by an answer as long as it is under way.
type Ticket = oneshot::Sender<()>;

impl App {
    /// A connection to a port of a VM.
    async fn visit(&self, id: u32, port: u16) -> Result<TcpStream, ApiError> {
        let state = self.hub.record(id)?.state;
        if !state.is_alive() {
            let message = format!("vm{id} is {}: nothing answers", state.name());
            return Err(ApiError::Unavailable(message));
        }
        let failed = |e: std::io::Error| ApiError::BadGateway(format!("vm{id}: {e}"));
        match &self.about.reach {
            Reach::None => Err(ApiError::Unavailable(
                "this fleet has no network (--net none), so its VMs have no pages".to_owned(),
            )),
            Reach::Door(door) => {
                let stream = door.open(id, port).await.map_err(|e| ApiError::visit(id, &e))?;
                TcpStream::from_std(stream).map_err(failed)
            }
            Reach::Addresses => {
                let address = self.about.addresses.map(|addresses| addresses.ip(id));
                let address = address.ok_or(ApiError::NotFound)?;
                TcpStream::connect((address, port)).await.map_err(failed)
            }
        }
    }
}

type Outgoing = hyper::Request<Limited<Body>>;

/// The request as a guest sees it.
fn translate(request: Request, id: u32, uri: Uri) -> Outgoing {
    let (parts, body) = request.into_parts();
    let mut outgoing = hyper::Request::new(Limited::new(body, BODY_MAX));
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = uri;
    let headers = outgoing.headers_mut();
    for (name, value) in &parts.headers {
        if TO_GUEST.contains(name) {
            headers.append(name, value.clone());
        }
    }
    // A length that was told has to be told on, as the body has no other end then.
    if let Some(length) = parts.headers.get(header::CONTENT_LENGTH) {
        headers.insert(header::CONTENT_LENGTH, length.clone());
    }
    if let Ok(host) = HeaderValue::from_str(&name(id)) {
        headers.insert(header::HOST, host);
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    outgoing
}

async fn ask(
    id: u32,
    stream: TcpStream,
    request: Outgoing,
) -> Result<(hyper::Response<Incoming>, AbortHandle), ApiError> {
    let failed = |e: hyper::Error| {
        // What a caller can do something about is its cause.
        ApiError::BadGateway(format!("vm{id} does not answer as a web server does: {e}"))
    };
    let mut client = http1::Builder::new();
    client.max_buf_size(HEAD_MAX);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
    match timeout(HEAD, sender.send_request(request)).await {
        Ok(Ok(answer)) => Ok((answer, driver)),
        Ok(Err(error)) => {
            driver.abort();
            Err(failed(error))
        }
        Err(_) => {
            driver.abort();
            Err(ApiError::Timeout)
        }
    }
}

/// The answer as a client sees it.
fn deliver(
    answer: hyper::Response<Incoming>,
    id: u32,
    port: u16,
    ticket: Ticket,
    end: Instant,
) -> Response {
    let (parts, body) = answer.into_parts();
    let mut headers = HeaderMap::new();
    for (name, value) in &parts.headers {
        if FROM_GUEST.contains(name) {
            headers.append(name, value.clone());
        }
    }
    let place = parts.headers.get(header::LOCATION).and_then(|place| location(place, id, port));
    if let Some(place) = place {
        headers.insert(header::LOCATION, place);
    }
    // One that is too long is cut, so its length is not told.
    let length = headers.get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse().ok());
    if length.is_none_or(|n: u64| n > ANSWER_MAX) {
        headers.remove(header::CONTENT_LENGTH);
    }
    isolate(&mut headers);
    let pieces = stream::unfold((body, 0, ticket), move |(mut body, passed, ticket)| async move {
        loop {
            let late = (Instant::now() + PIECE).min(end);
            let frame = timeout_at(late, pin!(body.frame())).await.ok()??;
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(bytes)) => {
                    let room = ANSWER_MAX.saturating_sub(passed);
                    let passed = passed + bytes.len() as u64;
                    let over = bytes.len() as u64 > room;
                    let bytes = bytes.slice(..bytes.len().min(room as usize));
                    return match (over, bytes.is_empty()) {
                        (true, true) => None,
                        _ => Some((Ok::<Bytes, hyper::Error>(bytes), (body, passed, ticket))),
                    };
                }
                // Trailers.
                Ok(Err(_)) => {}
                Err(error) => return Some((Err(error), (body, u64::MAX, ticket))),
            }
        }
    });
    let mut response = Body::from_stream(pieces.boxed()).into_response();
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    response
}

/// Takes a guest's answer out of our origin.
fn isolate(headers: &mut HeaderMap) {
    const OWN: HeaderValue = HeaderValue::from_static(POLICY);
    headers.insert(header::CONTENT_SECURITY_POLICY, OWN);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let resource = HeaderName::from_static("cross-origin-resource-policy");
    // Its own page, which has no origin, loads its pictures and styles.
    headers.insert(resource, HeaderValue::from_static("cross-origin"));
}

/// Where a redirect of a guest leads: only to the guest itself.
fn location(place: &HeaderValue, id: u32, port: u16) -> Option<HeaderValue> {
    let place = place.to_str().ok()?;
    let own = [name(id), format!("{}:{port}", name(id))];
    let path = match place.split_once("://") {
        Some((_, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            own.iter().any(|own| own == host).then_some(if path.is_empty() { "/" } else { path })?
        }
        // Another host.
        None if place.starts_with("//") || place.contains('\\') => return None,
        None => place,
    };
    match path.starts_with('/') {
        true => HeaderValue::from_str(&format!("/vms/{id}/http/{port}{path}")).ok(),
        // Relative to where it came from. Words with a colon could be another scheme.
        false if path.contains(':') => None,
        false => HeaderValue::from_str(path).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_back_to_the_same_guest_or_nowhere() {
        let lead = |place: &str| {
            location(&HeaderValue::from_str(place).unwrap(), 3, 80)
                .map(|place| place.to_str().unwrap().to_owned())
        };
        assert_eq!(lead("/a?b").as_deref(), Some("/vms/3/http/80/a?b"));
        assert_eq!(lead("http://vm3/x/").as_deref(), Some("/vms/3/http/80/x/"));
        assert_eq!(lead("http://vm3:80").as_deref(), Some("/vms/3/http/80/"));
        assert_eq!(lead("up.html").as_deref(), Some("up.html"));
        for other in [
            "http://vm4/",
            "https://example.com/",
            "//example.com/",
            "javascript:alert(1)",
            "/\\example.com",
            "\\\\example.com",
        ] {
            assert_eq!(lead(other), None, "{other}");
        }
    }

    #[test]
    fn ports_are_ports() {
        assert_eq!(port_of("80").ok(), Some(80));
        for wrong in ["", "0", "65536", "-1", "http", "8 0"] {
            assert!(port_of(wrong).is_err(), "{wrong}");
        }
    }
}

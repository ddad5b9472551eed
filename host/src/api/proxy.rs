//! The HTTP proxy to VMs' ports. A guest's response is hostile: only harmless headers of it pass, a
//! Content-Security-Policy takes it out of the API's origin and forbids scripts, and its size and
//! time are limited.

use std::ops::RangeInclusive;
use std::pin::pin;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
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
use url::{Position, Url};

use super::bodies::number;
use super::error::ApiError;
use super::{App, Reach, SharedApp};
use crate::control::VmState;
use crate::machine::fleet::name;

/// Port of the page that shows what a VM does.
pub const HTTP: u16 = 80;
/// Largest body of a response, in bytes.
const ANSWER_MAX: u64 = 16 << 20;
/// Largest body of a request, in bytes.
const BODY_MAX: usize = 1 << 20;
/// Largest head of a response, in bytes.
const HEAD_MAX: usize = 64 << 10;
const CONNECT: Duration = Duration::from_secs(5);
/// Time limit for the head of a response; a busy guest is slow.
const HEAD: Duration = Duration::from_secs(20);
/// Time limit between two pieces of a response.
const PIECE: Duration = Duration::from_secs(20);
/// Status codes that a guest may respond with. Those below concern the connection, which the proxy
/// decides about; there are none above.
const STATUSES: RangeInclusive<u16> = 200..=599;
/// Time limit for a whole response.
const WHOLE: Duration = Duration::from_secs(120);

/// Headers of a client that are passed to a guest. No cookie and no token of the API is among them.
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

/// Headers of a guest that are passed to a client.
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

/// Content-Security-Policy of a guest's page: an opaque origin, without scripts, forms and windows.
const POLICY: &str = include_str!("guest-policy.txt").trim_ascii_end();

/// Content-Security-Policy of error pages in place of a guest's page, which the dashboard shows in
/// a frame, too.
const REFUSAL_POLICY: &str = include_str!("refusal-policy.txt").trim_ascii_end();

/// A page of a VM by its path: `/vms/ID/http/PORT/REST`, behind `/t/TICKET` where there is a
/// ticket.
pub struct PagePath<'a> {
    /// Ticket that gives a browser access.
    pub ticket: Option<&'a str>,
    /// Number of the VM.
    pub id: u32,
    /// Port of the VM.
    pub port: u16,
    /// Path on the guest's server, without its first `/`.
    pub rest: &'a str,
}

impl<'a> PagePath<'a> {
    /// Parses `path`. `rest` stays as it was sent: only what is before it belongs to the API.
    pub fn of(path: &'a str) -> Result<Self, ApiError> {
        let (ticket, path) = match path.strip_prefix("/t/").and_then(|rest| rest.split_once('/')) {
            Some((ticket, path)) => (Some(ticket), path),
            None => (None, path.strip_prefix('/').unwrap_or(path)),
        };
        let mut words = path.splitn(5, '/').skip(1);
        let id = number(words.next().unwrap_or_default())?;
        let port = port_of(words.nth(1).unwrap_or_default())?;
        Ok(Self { ticket, id, port, rest: words.next().unwrap_or_default() })
    }

    /// Returns the path of the page's root, without the last `/`.
    fn root(&self) -> String {
        let Self { ticket, id, port, .. } = self;
        let ticket = ticket.map(|ticket| format!("/t/{ticket}")).unwrap_or_default();
        format!("{ticket}/vms/{id}/http/{port}")
    }

    /// Returns the path of the page.
    pub fn path(&self) -> String {
        format!("{}/{}", self.root(), self.rest)
    }
}

fn port_of(text: &str) -> Result<u16, ApiError> {
    let port = number(text).ok().and_then(|port| u16::try_from(port).ok()).filter(|&p| p > 0);
    port.ok_or_else(|| ApiError::BadRequest("a port is a number from 1 to 65535".to_owned()))
}

/// `/vms/{id}/http/{port}`: redirects to the root, because links of the guest's page are relative
/// to that.
pub async fn root(uri: Uri) -> Result<Redirect, ApiError> {
    Ok(Redirect::permanent(&PagePath::of(uri.path())?.path()))
}

/// `/vms/{id}/http/{port}/{path}`
pub async fn proxy(State(app): State<SharedApp>, request: Request) -> Response {
    let browses = says(&request, "accept", "text/html");
    let navigates = request.method() == Method::GET && says(&request, "sec-fetch-mode", "navigate");
    let to_ticket = navigates.then(|| with_ticket(&app, request.uri())).flatten();
    let answer = match to_ticket {
        Some(place) => Ok(Redirect::temporary(&place).into_response()),
        None => forward(app, request).await,
    };
    answer.unwrap_or_else(|error| refuse(error, browses))
}

/// Whether a header of a request contains a word.
fn says(request: &Request, name: &str, word: &str) -> bool {
    let value = request.headers().get(name).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.contains(word))
}

/// Returns the path with a ticket to which a browser is redirected; without one it could not load
/// the parts of a page.
fn with_ticket(app: &App, uri: &Uri) -> Option<String> {
    let page = PagePath::of(uri.path()).ok().filter(|page| page.ticket.is_none())?;
    let ticket = app.tickets.issue(page.id, page.port);
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Some(PagePath { ticket: Some(&ticket), ..page }.path() + &query)
}

/// Returns an error response, as a page for a person or as JSON for a program.
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

async fn forward(app: SharedApp, request: Request) -> Result<Response, ApiError> {
    let page = PagePath::of(request.uri().path())?;
    let PagePath { id, port, rest, .. } = page;
    let root = page.root();
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let uri = format!("/{rest}{query}");
    let uri: Uri = uri.parse().map_err(|_| ApiError::BadRequest("no such path".to_owned()))?;
    if request.body().size_hint().lower() > BODY_MAX as u64 {
        return Err(ApiError::TooLarge(format!("a guest is sent {BODY_MAX} bytes at most")));
    }
    let permit = app.clone().connections.clone().try_acquire_owned();
    let permit = permit
        .map_err(|_| ApiError::TooMany("too many requests to VMs are under way".to_owned()))?;
    let end = Instant::now() + WHOLE;
    let stream = timeout(CONNECT, app.connect(id, port)).await.map_err(|_| ApiError::Timeout)??;
    let asked = url_of(id, port, &uri);
    let request = translate(request, id, uri);
    let (answer, driver) = ask(id, stream, request).await?;
    let (ticket, done) = oneshot::channel();
    // A client that stops reading does not hold a guest's connection for ever.
    tokio::spawn(async move {
        let _ = timeout_at(end, done).await;
        driver.abort();
        drop(permit);
    });
    let place = answer.headers().get(header::LOCATION);
    let place = place.and_then(|place| location(place, &asked?, &root));
    Ok(deliver(answer, place, ticket, end))
}

/// Held by a response while it is being sent.
type Ticket = oneshot::Sender<()>;

impl App {
    /// Connects to a port of a VM.
    async fn connect(&self, id: u32, port: u16) -> Result<TcpStream, ApiError> {
        let state = self.fleet.record(id)?.state;
        if !state.is_alive() {
            let message = format!("vm{id} is {}: nothing answers", state.name());
            return Err(ApiError::Unavailable(message));
        }
        if state == VmState::Paused {
            let message = format!("vm{id} is paused: it answers when it is resumed");
            return Err(ApiError::Unavailable(message));
        }
        let failed = |e: std::io::Error| ApiError::BadGateway(format!("vm{id}: {e}"));
        match &self.about.reach {
            Reach::None => Err(ApiError::Unavailable(
                "this fleet has no network (--net none), so its VMs have no pages".to_owned(),
            )),
            Reach::Connector(connector) => {
                let stream =
                    connector.connect(id, port).await.map_err(|e| ApiError::connect(id, &e))?;
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

/// Translates a client's request into the one for the guest.
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
    // A length must be passed on, because nothing else marks the end of the body.
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
        // The cause of the error is what a caller can act on.
        ApiError::BadGateway(format!("vm{id} does not answer as a web server does: {e}"))
    };
    let mut client = http1::Builder::new();
    client.max_buf_size(HEAD_MAX);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
    let error = match timeout(HEAD, sender.send_request(request)).await {
        Ok(Ok(answer)) if STATUSES.contains(&answer.status().as_u16()) => {
            return Ok((answer, driver));
        }
        Ok(Ok(answer)) => {
            // Status codes that were not requested are among the others, such as a switch of
            // protocols.
            let status = answer.status().as_u16();
            ApiError::BadGateway(format!(
                "vm{id} answered with status {status}, which nobody asked for"
            ))
        }
        Ok(Err(error)) => failed(error),
        Err(_) => ApiError::Timeout,
    };
    driver.abort();
    Err(error)
}

/// Translates a guest's response into the one for the client.
fn deliver(
    answer: hyper::Response<Incoming>,
    place: Option<HeaderValue>,
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
    if let Some(place) = place {
        headers.insert(header::LOCATION, place);
    }
    // A response that is too long is cut, so its length is not passed on.
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
                // Trailers are dropped.
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

/// Takes a guest's response out of the API's origin.
fn isolate(headers: &mut HeaderMap) {
    const OWN: HeaderValue = HeaderValue::from_static(POLICY);
    headers.insert(header::CONTENT_SECURITY_POLICY, OWN);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let resource = HeaderName::from_static("cross-origin-resource-policy");
    // The page itself, which has an opaque origin, loads its pictures and styles.
    headers.insert(resource, HeaderValue::from_static("cross-origin"));
}

/// Returns the URL of a request as the guest sees it.
fn url_of(id: u32, port: u16, uri: &Uri) -> Option<Url> {
    Url::parse(&format!("http://{}:{port}{uri}", name(id))).ok()
}

/// Returns the target of a guest's redirect: a path of the guest itself, behind `prefix`, or
/// `None`. `asked` is the URL that the guest was sent.
///
/// Clients resolve the target, so it is resolved here first, as they do it: dots, backslashes and
/// line ends that are left are part of a plain path.
fn location(place: &HeaderValue, asked: &Url, prefix: &str) -> Option<HeaderValue> {
    let to = asked.join(std::str::from_utf8(place.as_bytes()).ok()?).ok()?;
    // Guests see a host name without a port, so their redirects may leave it out.
    let is_own = to.scheme() == "http"
        && to.host() == asked.host()
        && (to.port().is_none() || to.port() == asked.port());
    let path = is_own.then(|| format!("{prefix}{}", &to[Position::BeforePath..]))?;
    let client = Url::parse("http://localhost/").ok()?.join(&path).ok()?;
    let stays = client.path().strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    stays.then(|| HeaderValue::from_str(&path).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns where a guest redirects a request for a path.
    fn lead(asked: &str, place: &[u8]) -> Option<String> {
        let asked = url_of(3, 80, &asked.parse().unwrap()).unwrap();
        let place = HeaderValue::from_bytes(place).unwrap();
        let led = location(&place, &asked, "/vms/3/http/80")?;
        Some(led.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_redirect_leads_back_to_the_same_guest_or_nowhere() {
        for (asked, place, led) in [
            ("/", "/a?b#c", "/a?b#c"),
            ("/", "http://vm3/x/", "/x/"),
            ("/", "http://vm3:80", "/"),
            ("/", "HTTP://VM3/", "/"),
            ("/", "//vm3/y", "/y"),
            ("/a/b?c", "up.html", "/a/up.html"),
            ("/a/b?c", "?d", "/a/b?d"),
            ("/a/b", "", "/a/b"),
            ("/a/b/c", "../d", "/a/d"),
            ("/", "/a:b", "/a:b"),
            ("/", "/a//b", "/a//b"),
            ("/", "//vm3//example.com/", "//example.com/"),
            ("/", "/%2f%2E.", "/%2f%2E."),
            ("/", "/a b\u{e9}", "/a%20b%C3%A9"),
        ] {
            let led = format!("/vms/3/http/80{led}");
            assert_eq!(lead(asked, place.as_bytes()), Some(led), "{asked} {place}");
        }
        for other in [
            "http://vm4/",
            "http://vm3:81/",
            "http://vm3.example.com/",
            "http://vm3@example.com/",
            "https://example.com/",
            "https://vm3/",
            "//example.com/",
            "javascript:alert(1)",
            "data:text/html,x",
            "/\\example.com",
            "\\\\example.com",
            "\\/example.com",
            "ht\ttp://example.com/",
            "\t//example.com/",
            "http:///example.com/",
            "http://[",
        ] {
            // Bytes that cannot be in a header at all lead nowhere, too.
            let Ok(place) = HeaderValue::from_bytes(other.as_bytes()) else { continue };
            assert_eq!(lead("/", place.as_bytes()), None, "{other}");
        }
        assert_eq!(lead("/", b"/\xff"), None);
    }

    #[test]
    fn no_redirect_climbs_out_of_its_guest() {
        let away = "api/v1/vms/0/stop";
        let ups = ["../", "%2e%2e/", ".%2E/", "..\\", "%2e.\\", "..\t/", ".\t./", "./../"];
        for up in ups {
            for asked in ["/", "/a", "/a/b/c?d"] {
                for start in ["", "/", "./", "/a/", "http://vm3/", "//vm3/", "http:/", "http:"] {
                    let place = format!("{start}{}{away}", up.repeat(9));
                    let place = HeaderValue::from_bytes(place.as_bytes()).unwrap();
                    let led = lead(asked, place.as_bytes());
                    let led = led.as_deref().unwrap_or("/vms/3/http/80/");
                    // The URL as a browser resolves it.
                    let url = Url::parse("http://h/vms/3/http/80/").unwrap().join(led).unwrap();
                    assert!(url.path().starts_with("/vms/3/http/80/"), "{place:?} {led}");
                    assert!(!led.contains(['\\', '\t']) && !led.contains("/../"), "{led}");
                }
            }
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

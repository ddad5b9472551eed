//! Access control of the API: tokens, hosts, origins, rate limits, and the headers that protect
//! browsers.
//!
//! On loopback every user of this host has access. Web pages of other sites have none, although the
//! user's browser runs on this host: a request must name this host, not a domain that resolves to
//! it (DNS rebinding), and must not come from another origin (CSRF). Other addresses need a token
//! as well.
//!
//! The token is never in a cookie: browsers send cookies to all ports of a host, and guests are
//! behind some of them. The dashboard itself is public. It keeps the token for its tab and sends it
//! in a header, or, where browsers let pages set none, as a WebSocket subprotocol or by a ticket.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};

use super::SharedApp;
use super::clients::Client;
use super::error::ApiError;
use super::proxy::PagePath;
use super::tickets::Tickets;
use crate::host;
use crate::sync::lock;
use crate::units::hex;

/// Shortest token that is accepted.
pub const TOKEN_MIN: usize = 16;
/// Prefix of the WebSocket subprotocol that carries the token.
const PROTOCOL: &str = "pxvm.token.";

/// Rate limit: requests a second, and in a burst after a pause; more than a dashboard with a
/// thousand tiles sends.
const RATE: f64 = 1000.0;
const BURST: f64 = 4000.0;

/// A token bucket of the rate limit.
#[derive(Debug)]
struct Allowance(Mutex<(f64, Instant)>);

impl Allowance {
    fn new(now: Instant) -> Self {
        Self(Mutex::new((BURST, now)))
    }

    /// Takes one request from the bucket, unless it is empty.
    fn take(&self, now: Instant) -> bool {
        let mut left = lock(&self.0);
        let (tokens, since) = *left;
        let more = now.saturating_duration_since(since).as_secs_f64() * RATE;
        let tokens = (tokens + more).min(BURST);
        let enough = tokens >= 1.0;
        *left = (if enough { tokens - 1.0 } else { tokens }, now.max(since));
        enough
    }
}

/// Who sends a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asker {
    /// A user with full access.
    Owner,
    /// A page of a guest, which may load more of itself.
    Page,
    /// Anybody else, who gets the dashboard's files only.
    Stranger,
}

/// Access rules of an address.
#[derive(Debug)]
pub struct Access {
    address: SocketAddr,
    token: Option<String>,
    /// Host name of this machine.
    host_name: String,
    /// Rate limits, one for each kind of requester, so that none of them uses up the others'.
    allowances: [Allowance; 3],
}

impl Access {
    /// Returns the rules of an address. One that other hosts can reach must have a token.
    pub fn new(address: SocketAddr, token: Option<String>) -> Self {
        let host_name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        let allowances = std::array::from_fn(|_| Allowance::new(Instant::now()));
        Self { address, token, host_name, allowances }
    }

    /// Returns the URL to open in a browser.
    pub fn url(&self) -> String {
        let ip = match self.address.ip() {
            ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        // The part behind the # stays in the browser: it is in no request and in no log.
        let token = self.token.as_ref().map(|token| format!("#token={token}")).unwrap_or_default();
        format!("http://{ip}:{}/{token}", self.address.port())
    }

    /// Whether the host that a request names is this one: an address, or a name of this machine.
    fn names_us(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let name = authority.host().to_ascii_lowercase();
        let name = name.trim_end_matches('.');
        let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match ip {
            // A request by address was not led here by a domain; on loopback only loopback
            // addresses lead here.
            Ok(ip) => ip.is_loopback() || ip == self.address.ip() || self.token.is_some(),
            Err(_) if name == "localhost" => true,
            Err(_) => self.token.is_some() && name == self.host_name,
        }
    }

    /// Whether the token of a request is right, if one is needed.
    fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let all = |name| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let bearer = all(header::AUTHORIZATION).filter_map(|value| {
            let (scheme, given) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("Bearer").then(|| given.trim())
        });
        let protocols = all(header::SEC_WEBSOCKET_PROTOCOL).flat_map(|value| value.split(','));
        let protocols = protocols.filter_map(|name| name.trim().strip_prefix(PROTOCOL));
        bearer.chain(protocols).any(|given| same(given, token))
    }
}

/// Compares two texts in constant time.
pub fn same(a: &str, b: &str) -> bool {
    let differ = a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && differ == 0
}

/// Returns a new random token.
pub fn new_token() -> std::io::Result<String> {
    host::random::<16>().map(|bytes| hex(&bytes))
}

/// Access rules and the fleet that they protect.
struct Guard {
    access: Access,
    app: SharedApp,
}

/// Puts the access rules in front of a router.
pub fn guard(router: Router, access: Access, app: SharedApp) -> Router {
    router.layer(middleware::from_fn_with_state(Arc::new(Guard { access, app }), watch))
}

async fn watch(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let answer = match admit(&guard, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    with_headers(answer)
}

fn admit(Guard { access, app }: &Guard, request: &Request) -> Result<(), ApiError> {
    let client = request.extensions().get::<Arc<Client>>();
    if let Some(client) = client {
        client.speaks(Instant::now());
    }
    let asker = look(access, &app.tickets, request)?;
    if !access.allowances[asker as usize].take(Instant::now()) {
        return Err(ApiError::TooMany(format!("more than {RATE} requests a second")));
    }
    if asker != Asker::Stranger && client.is_some_and(|client| !client.is_welcome()) {
        return Err(ApiError::TooMany("too many connections".to_owned()));
    }
    Ok(())
}

/// Returns who sends a request, or an error if it may not pass.
fn look(access: &Access, tickets: &Tickets, request: &Request) -> Result<Asker, ApiError> {
    let headers = request.headers();
    let text = |name: HeaderName| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    // An absolute URI in the request line takes precedence over the Host header.
    let authority = request.uri().authority().map(Authority::as_str);
    let host = authority.or(text(header::HOST)).unwrap_or_default();
    if headers.get_all(header::HOST).iter().count() != 1 || !access.names_us(host) {
        return Err(ApiError::Forbidden(
            "this request is for another host; use the address that pxvm printed".to_owned(),
        ));
    }
    let path = request.uri().path();
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    if path.starts_with("/t/") {
        // A guest's page has an opaque origin; its ticket shows whether the request is for itself.
        let page = PagePath::of(path)?;
        let admitted = page.ticket.is_some_and(|t| tickets.admits(t, page.id, page.port));
        return (admitted && reads).then_some(Asker::Page).ok_or_else(|| {
            let why = "this is no ticket of this fleet for this page; reload the dashboard";
            ApiError::Forbidden(why.to_owned())
        });
    }
    let foreign = ApiError::Forbidden("requests of other sites are refused".to_owned());
    match text(header::ORIGIN) {
        None => {}
        Some(origin) if origin.strip_prefix("http://") == Some(host) => {}
        Some(_) => return Err(foreign),
    }
    // Browsers send where a request comes from. Links of other sites to here may be followed; their
    // other requests are refused.
    let site = text(HeaderName::from_static("sec-fetch-site"));
    let follows = text(HeaderName::from_static("sec-fetch-mode")) == Some("navigate") && reads;
    match site {
        None | Some("same-origin" | "none") => {}
        Some(_) if path == "/" && follows => {}
        Some(_) => return Err(foreign),
    }
    if access.knows(headers) {
        return Ok(Asker::Owner);
    }
    let is_dashboard = path == "/" || path.starts_with("/assets/");
    (is_dashboard && reads).then_some(Asker::Stranger).ok_or(ApiError::Unauthorized)
}

/// Adds the protective headers to a response that does not set them itself.
fn with_headers(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    let mut add = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    add(header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    add(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    add(header::REFERRER_POLICY, "no-referrer");
    add(header::CACHE_CONTROL, "no-store");
    add(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    add(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    answer
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;

    use super::*;

    fn access(address: &str, token: Option<&str>) -> Access {
        Access::new(address.parse().unwrap(), token.map(str::to_owned))
    }

    fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn only_our_own_names_lead_here() {
        let local = access("127.0.0.1:8080", None);
        let ours = ["127.0.0.1:8080", "localhost:9", "LOCALHOST", "[::1]:8080", "127.0.0.9"];
        assert!(ours.iter().all(|host| local.names_us(host)));
        let evil = [
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "10.1.2.3",
            "",
            "a@localhost",
            "localhost.evil.example",
            "vm3.localhost",
            "169.254.169.254",
            "0.0.0.0",
        ];
        for host in evil {
            assert!(!local.names_us(host), "{host}");
        }
        let open = access("0.0.0.0:8080", Some(TOKEN));
        assert!(open.names_us("10.1.2.3:8080") && !open.names_us("evil.example"));
    }

    #[test]
    fn pages_from_elsewhere_do_nothing() {
        let local = access("127.0.0.1:8080", None);
        let tickets = Tickets::new().unwrap();
        let pass = |method: &str, path: &str, more: &[(&str, &str)]| {
            let headers = [&[("host", "127.0.0.1:8080")][..], more].concat();
            look(&local, &tickets, &request(method, path, &headers)).is_ok()
        };
        let api = "/api/v1/vms/0/stop";
        assert!(pass("POST", api, &[]));
        assert!(pass("POST", api, &[("origin", "http://127.0.0.1:8080")]));
        let foreign = [
            "http://evil.example",
            "null",
            "http://127.0.0.1:8081",
            "https://127.0.0.1:8080",
            "http://localhost:8080",
            "",
        ];
        for origin in foreign {
            assert!(!pass("POST", api, &[("origin", origin)]), "{origin}");
            assert!(!pass("GET", "/api/v1/fleet", &[("origin", origin)]), "{origin}");
        }
        assert!(!pass("GET", "/api/v1/fleet", &[("sec-fetch-site", "cross-site")]));
        assert!(!pass("GET", "/", &[("sec-fetch-site", "cross-site")]));
        assert!(pass("GET", "http://localhost/api/v1/fleet", &[]));
        assert!(!pass("GET", "http://evil.example/api/v1/fleet", &[]));
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert!(pass("GET", "/", &link) && !pass("POST", "/", &link));
        // A guest's page counts as another site, too.
        let own = "/vms/3/http/80/style.css";
        assert!(pass("GET", own, &[]) && pass("POST", own, &[]));
        let sandboxed = [("origin", "null"), ("sec-fetch-site", "cross-site")];
        assert!(!pass("GET", own, &sandboxed[..1]) && !pass("GET", own, &sandboxed[1..]));
        assert!(!pass("GET", own, &link));
        // Its ticket admits it to itself.
        let ticket = tickets.issue(3, 80);
        let at = |rest: &str| format!("/t/{ticket}/vms/{rest}");
        assert!(pass("GET", &at("3/http/80/a/b?c"), &sandboxed));
        assert!(pass("GET", &at("3/http/80/"), &link));
        assert!(!pass("POST", &at("3/http/80/"), &sandboxed));
        assert!(!pass("POST", &at("3/http/80/"), &[]));
        for rest in ["4/http/80/", "3/http/81/", "3/http/", "x/http/80/", "0/stop"] {
            assert!(!pass("GET", &at(rest), &sandboxed), "{rest}");
        }
        assert!(!pass("GET", "/t/0/vms/3/http/80/", &[]) && !pass("GET", "/t/", &[]));
    }

    #[test]
    fn other_addresses_need_the_token() {
        let open = access("192.0.2.1:8080", Some(TOKEN));
        let tickets = Tickets::new().unwrap();
        let asker = |path: &str, more: &[(&str, &str)]| {
            let headers = [&[("host", "192.0.2.1:8080")][..], more].concat();
            look(&open, &tickets, &request("GET", path, &headers))
                .map_err(|error| error.into_response().status().as_u16())
        };
        let api = "/api/v1/fleet";
        let bearer = |value: &str| asker(api, &[("authorization", value)]);
        for right in ["Bearer", "bearer", "BEARER", "Bearer "].map(|s| format!("{s} {TOKEN}")) {
            assert_eq!(bearer(&right), Ok(Asker::Owner), "{right}");
        }
        for wrong in ["Bearer 0123456789abcdeX", "Bearer ", "Bearer", "", TOKEN, "Basic x"] {
            assert_eq!(bearer(wrong), Err(401), "{wrong}");
        }
        let protocols = |value: &str| asker(api, &[("sec-websocket-protocol", value)]);
        assert_eq!(protocols(&format!("pxvm, pxvm.token.{TOKEN}")), Ok(Asker::Owner));
        assert_eq!(protocols("pxvm, pxvm.token."), Err(401));
        // Cookies are sent to guests and set by them.
        let cookie = format!("pxvm_token={TOKEN}; token={TOKEN}");
        assert_eq!(asker(api, &[("cookie", &cookie)]), Err(401));
        let query = format!("?token={TOKEN}");
        for path in [api, "/healthz", "/metrics", "/openapi.json", "/vms/3/http/80/", "/nothing"] {
            assert_eq!(asker(path, &[]), Err(401), "{path}");
            assert_eq!(asker(&format!("{path}{query}"), &[]), Err(401), "{path}");
        }
        for path in ["/", &format!("/{query}"), "/assets/js/main.js"] {
            assert_eq!(asker(path, &[]), Ok(Asker::Stranger));
        }
        let ticket = tickets.issue(3, 80);
        assert_eq!(asker(&format!("/t/{ticket}/vms/3/http/80/"), &[]), Ok(Asker::Page));
        assert_eq!(asker("/t/0/vms/3/http/80/", &[]), Err(403));
        assert!(open.url().ends_with(":8080/#token=0123456789abcdef"));
    }

    #[test]
    fn requests_have_a_rate() {
        let start = Instant::now();
        let allowance = Allowance::new(start);
        let taken = (0..10_000).filter(|_| allowance.take(start)).count();
        assert_eq!(taken, BURST as usize);
        let later = start + Duration::from_millis(100);
        assert_eq!((0..10_000).filter(|_| allowance.take(later)).count(), (RATE / 10.0) as usize);
        assert!(!allowance.take(start));
    }

    #[test]
    fn tokens_are_made_anew_each_time() {
        let (a, b) = (new_token().unwrap(), new_token().unwrap());
        assert!(a.len() == 32 && a != b);
    }
}

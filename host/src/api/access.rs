//! Who may talk to the API, and what browsers are told.
//!
//! On loopback everybody on this host may. Web pages from elsewhere may not, although the user's
//! browser is on this host: a request must name this host, not a domain that resolves to it, and
//! must not come from another origin. Other addresses need a token besides.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use crate::sync::lock;

/// Shortest token that is taken.
pub const TOKEN_MIN: usize = 16;
const COOKIE: &str = "pxvm_token";

/// Requests a second that are answered, and how many at once after a pause: more than a page with
/// a thousand tiles makes.
const RATE: f64 = 1000.0;
const BURST: f64 = 4000.0;

/// What is left of the rate.
#[derive(Debug)]
struct Allowance(Mutex<(f64, Instant)>);

impl Allowance {
    fn new(now: Instant) -> Self {
        Self(Mutex::new((BURST, now)))
    }

    /// Whether one more request is within the rate.
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

/// The rules of an address.
#[derive(Debug)]
pub struct Access {
    address: SocketAddr,
    token: Option<String>,
    /// What this machine calls itself.
    host_name: String,
    allowance: Allowance,
}

impl Access {
    /// Rules for an address. One that others can reach has to have a token.
    pub fn new(address: SocketAddr, token: Option<String>) -> Self {
        let host_name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        Self { address, token, host_name, allowance: Allowance::new(Instant::now()) }
    }

    /// Where to go with a browser.
    pub fn url(&self) -> String {
        let ip = match self.address.ip() {
            ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let token = self.token.as_ref().map(|token| format!("?token={token}")).unwrap_or_default();
        format!("http://{ip}:{}/{token}", self.address.port())
    }

    /// Whether a request names us: by an address, or by a name that is ours.
    fn names_us(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let name = authority.host().to_ascii_lowercase();
        let name = name.trim_end_matches('.');
        let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match ip {
            // Whoever has come by address was not led here by a domain; on loopback only loopback
            // addresses lead here.
            Ok(ip) => ip.is_loopback() || ip == self.address.ip() || self.token.is_some(),
            Err(_) if name == "localhost" => true,
            Err(_) => self.token.is_some() && name == self.host_name,
        }
    }

    /// Whether the token is right, if there is one.
    fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
        let bearer = headers.get(header::AUTHORIZATION).and_then(text);
        let bearer = bearer.as_deref().and_then(|value| value.strip_prefix("Bearer "));
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(text);
        let cookies: Vec<String> = cookies.collect();
        let cookies = cookies.iter().flat_map(|value| value.split(';'));
        let own = cookies.filter_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='));
        bearer.into_iter().chain(own).any(|given| same(given, token))
    }
}

/// Compares without telling by its time where they differ.
fn same(a: &str, b: &str) -> bool {
    let differ = a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && differ == 0
}

/// A token nobody guesses.
pub fn new_token() -> std::io::Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Puts the rules in front of a router.
pub fn guard(router: Router, access: Access) -> Router {
    router.layer(middleware::from_fn_with_state(Arc::new(access), watch))
}

async fn watch(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let answer = match look(&access, &request) {
        Ok(None) if !access.allowance.take(Instant::now()) => {
            let message = format!("more than {RATE} requests a second");
            ApiError::TooMany(message).into_response()
        }
        Ok(None) => next.run(request).await,
        Ok(Some(answer)) => answer,
        Err(error) => error.into_response(),
    };
    with_headers(answer)
}

/// Whether a request may pass; an answer where it is one of ours already.
fn look(access: &Access, request: &Request) -> Result<Option<Response>, ApiError> {
    let headers = request.headers();
    let text = |name: HeaderName| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or_default();
    if headers.get_all(header::HOST).iter().count() != 1 || !access.names_us(host) {
        return Err(ApiError::Forbidden(
            "this request is for another host; use the address that pxvm printed".to_owned(),
        ));
    }
    let guest = request.uri().path().starts_with("/vms/");
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let foreign = ApiError::Forbidden("requests of other sites are refused".to_owned());
    match text(header::ORIGIN) {
        None => {}
        Some(origin) if origin.strip_prefix("http://") == Some(host) => {}
        // A guest's own page, which has no origin, loads its parts.
        Some("null") if guest && reads => {}
        Some(_) => return Err(foreign),
    }
    // Browsers tell where a request comes from. Links that lead here are followed; nothing else of
    // other sites is.
    let site = text(HeaderName::from_static("sec-fetch-site"));
    let follows = text(HeaderName::from_static("sec-fetch-mode")) == Some("navigate") && reads;
    let page = request.uri().path() == "/";
    match site {
        None | Some("same-origin" | "none") => {}
        Some(_) if guest && reads => {}
        Some(_) if page && follows => {}
        Some(_) => return Err(foreign),
    }
    if page && let Some(answer) = sign_in(access, request) {
        return Ok(Some(answer));
    }
    if access.knows(headers) { Ok(None) } else { Err(ApiError::Unauthorized) }
}

/// `/?token=T`: remembers the token and takes it out of the address.
fn sign_in(access: &Access, request: &Request) -> Option<Response> {
    let token = access.token.as_ref()?;
    let pairs = request.uri().query()?.split('&');
    let given = pairs.filter_map(|pair| pair.strip_prefix("token=")).next()?;
    if !same(given, token) {
        return Some(ApiError::Unauthorized.into_response());
    }
    let cookie = format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/");
    let head = [(header::SET_COOKIE, cookie), (header::LOCATION, "/".to_owned())];
    Some((StatusCode::SEE_OTHER, head).into_response())
}

/// What every answer says to browsers, unless it says more itself.
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
        let pass = |method: &str, path: &str, more: &[(&str, &str)]| {
            let headers = [&[("host", "127.0.0.1:8080")][..], more].concat();
            look(&local, &request(method, path, &headers)).is_ok()
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
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert!(pass("GET", "/", &link) && !pass("POST", "/", &link));
        // A guest's page has no origin.
        let guest = "/vms/3/http/80/style.css";
        assert!(pass("GET", guest, &[("origin", "null"), ("sec-fetch-site", "cross-site")]));
        assert!(!pass("POST", guest, &[("origin", "null")]));
        assert!(!pass("GET", guest, &[("origin", "http://evil.example")]));
    }

    #[test]
    fn other_addresses_need_the_token() {
        let open = access("192.0.2.1:8080", Some(TOKEN));
        let status = |path: &str, more: &[(&str, &str)]| {
            let headers = [&[("host", "192.0.2.1:8080")][..], more].concat();
            match look(&open, &request("GET", path, &headers)) {
                Ok(None) => 200,
                Ok(Some(answer)) => answer.status().as_u16(),
                Err(error) => error.into_response().status().as_u16(),
            }
        };
        assert_eq!(status("/", &[]), 401);
        assert_eq!(status("/healthz", &[]), 401);
        assert_eq!(status("/", &[("authorization", "Bearer 0123456789abcdef")]), 200);
        assert_eq!(status("/", &[("authorization", "Bearer 0123456789abcdeX")]), 401);
        assert_eq!(status("/", &[("authorization", "Bearer ")]), 401);
        assert_eq!(status("/?token=0123456789abcdef", &[]), 303);
        assert_eq!(status("/?token=0123456789abcde", &[]), 401);
        assert_eq!(status("/api/v1/fleet?token=0123456789abcdef", &[]), 401);
        assert_eq!(status("/", &[("cookie", "a=b; pxvm_token=0123456789abcdef")]), 200);
        assert_eq!(status("/", &[("cookie", "pxvm_token=")]), 401);
        assert!(open.url().ends_with(":8080/?token=0123456789abcdef"));
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

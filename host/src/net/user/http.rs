//! The route by name: finds which VM an HTTP request is for, by its Host. Everything else in the
//! request is checked by the guest's server, which receives it unchanged.

use httparse::{EMPTY_HEADER, Error, Request, Status};

/// Longest head of a request.
pub const HEAD_MAX: usize = 8 << 10;
/// Largest number of header fields.
const FIELDS_MAX: usize = 256;
/// Value with which `httparse` represents HTTP/1.1.
const HTTP_1_1: u8 = 1;

/// Why a request is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The request is not HTTP/1 with exactly one host.
    BadRequest,
    /// No VM has this name.
    NotFound,
    /// The head is longer than [`HEAD_MAX`], or has more than [`FIELDS_MAX`] fields.
    TooLarge,
    /// The VM has as many connections as it may have.
    Busy,
    /// The VM has ended.
    Ended,
}

impl Refusal {
    /// Returns the whole HTTP response.
    pub fn response(self) -> Vec<u8> {
        let (status, text) = match self {
            Self::BadRequest => ("400 Bad Request", "This is no HTTP request for one host.\n"),
            Self::NotFound => {
                ("404 Not Found", "No machine has this name: ask for vm0.localhost and so on.\n")
            }
            Self::TooLarge => {
                ("431 Request Header Fields Too Large", "8 KiB and 256 fields at most.\n")
            }
            Self::Ended => ("503 Service Unavailable", "The machine has ended.\n"),
            Self::Busy => ("503 Service Unavailable", "The machine has too many connections.\n"),
        };
        let len = text.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len}\r\n\
             Connection: close\r\n\r\n{text}"
        )
        .into_bytes()
    }
}

/// Returns which of `count` VMs a request is for; `None` while the request's head is incomplete.
pub fn route(head: &[u8], count: u32) -> Result<Option<u32>, Refusal> {
    let mut fields = [EMPTY_HEADER; FIELDS_MAX];
    let mut request = Request::new(&mut fields);
    match request.parse(head) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) if head.len() < HEAD_MAX => return Ok(None),
        Ok(Status::Partial) | Err(Error::TooManyHeaders) => return Err(Refusal::TooLarge),
        Err(_) => return Err(Refusal::BadRequest),
    }
    let host = host(&request).ok_or(Refusal::BadRequest)?;
    match vm(&host).filter(|&vm| vm < count) {
        Some(vm) => Ok(Some(vm)),
        None => Err(Refusal::NotFound),
    }
}

/// Returns the host that a request names, perhaps with a port. A request with two hosts is refused,
/// even where one of them takes precedence: a guest could choose the other.
fn host(request: &Request<'_, '_>) -> Option<String> {
    let mut hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let (first, second) = (hosts.next(), hosts.next());
    let field = first.map(|field| str::from_utf8(field.value)).transpose().ok()?;
    if second.is_some() || (field.is_none() && request.version == Some(HTTP_1_1)) {
        return None;
    }
    // An absolute URI as the target takes precedence over the Host field (RFC 9112, 3.2.2).
    match request.path?.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            let authority = rest.split(['/', '?', '#']).next()?;
            // User information in front of the host is misleading (RFC 9110, 4.2.4).
            (!authority.contains('@')).then(|| authority.to_owned())
        }
        _ => field.map(str::to_owned),
    }
}

/// Returns the VM of `vm7`, `vm7.localhost` or `vm7.localhost:8080`. Other domains are refused: a
/// page from elsewhere must not get here by a domain of its own that resolves to this host (DNS
/// rebinding).
fn vm(host: &str) -> Option<u32> {
    let host = host.to_ascii_lowercase();
    let name = host.split_once(':').map_or(host.as_str(), |(name, _)| name);
    // A dot at the end marks a fully qualified name.
    let name = name.strip_suffix('.').unwrap_or(name);
    let name = name.strip_suffix(".localhost").unwrap_or(name);
    let digits = name.strip_prefix("vm")?;
    let plain = digits == "0" || !digits.starts_with('0');
    let number = plain && digits.bytes().all(|b| b.is_ascii_digit());
    number.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(host: &str) -> Result<Option<u32>, Refusal> {
        route(format!("GET / HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n\r\n").as_bytes(), 256)
    }

    #[test]
    fn a_vm_is_found_by_its_name() {
        let names = [
            "vm7.localhost:8080",
            "vm7.localhost",
            "vm7",
            "VM7.LocalHost",
            "vm7.localhost.",
            "vm7.:80",
        ];
        for host in names {
            assert_eq!(get(host), Ok(Some(7)), "{host}");
        }
        assert_eq!(get("vm255.localhost"), Ok(Some(255)));
        for host in [
            "vm256",
            "vm",
            "vm07",
            "vm+7",
            "vm7.example.com",
            "localhost",
            "127.0.0.1",
            "vm7.localhost..",
            ".",
            "",
        ] {
            assert_eq!(get(host), Err(Refusal::NotFound), "{host}");
        }
    }

    #[test]
    fn a_target_that_is_a_whole_uri_counts_more_than_the_host_field() {
        let ask = |request: &str| route(format!("{request}\r\n\r\n").as_bytes(), 256);
        let field = "Host: vm2.localhost:8080";
        for target in ["http://vm7.localhost:8080/", "HTTP://vm7/a?b", "http://vm7", "http://vm7?x"]
        {
            let asked = ask(&format!("GET {target} HTTP/1.1\r\n{field}"));
            assert_eq!(asked, Ok(Some(7)), "{target}");
        }
        assert_eq!(ask("GET http://vm7/ HTTP/1.0"), Ok(Some(7)));
        assert_eq!(ask(&format!("GET /http://vm7/ HTTP/1.1\r\n{field}")), Ok(Some(2)));
        assert_eq!(ask(&format!("OPTIONS * HTTP/1.1\r\n{field}")), Ok(Some(2)));
        let elsewhere = ask(&format!("GET http://example.com/ HTTP/1.1\r\n{field}"));
        assert_eq!(elsewhere, Err(Refusal::NotFound));
        for wrong in [
            "GET http://vm7/ HTTP/1.1".to_owned(),
            format!("GET http://vm7/ HTTP/1.1\r\n{field}\r\n{field}"),
            format!("GET http://vm7@vm8/ HTTP/1.1\r\n{field}"),
        ] {
            assert_eq!(ask(&wrong), Err(Refusal::BadRequest), "{wrong}");
        }
    }

    #[test]
    fn what_servers_take_is_taken() {
        // Field values may have any byte that is no control character (RFC 9110, 5.5), and empty
        // lines may come before the request (RFC 9112, 2.2).
        for request in [
            &b"GET / HTTP/1.1\r\nHost: vm3\r\nX-Name: caf\xe9 \xc3\xa9\xff\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nHost:vm3\t \r\nCookie: a=\x80\r\n\r\n",
            b"\r\n\r\nGET / HTTP/1.1\r\nHost: vm3\r\n\r\n",
            b"\nPOST / HTTP/1.0\nhOST: vm3\n\n",
        ] {
            let text = String::from_utf8_lossy(request).into_owned();
            assert_eq!(route(request, 4), Ok(Some(3)), "{text}");
            for len in 0..request.len() {
                assert_eq!(route(&request[..len], 4), Ok(None), "{len} of {text}");
            }
        }
    }

    #[test]
    fn a_request_that_is_not_whole_is_waited_for() {
        let request = b"POST /a HTTP/1.1\nhost: vm3\n\nbody";
        let head = request.len() - 4;
        for len in 0..head {
            assert_eq!(route(&request[..len], 4), Ok(None), "{len}");
        }
        assert_eq!(route(&request[..head], 4), Ok(Some(3)));
        assert_eq!(route(request, 4), Ok(Some(3)));
    }

    #[test]
    fn what_is_no_request_for_one_host_is_refused() {
        for text in [
            "SSH-2.0-OpenSSH\r\n",
            "GET /\r\n",
            "GET / HTTP/2\r\nHost: vm1\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: vm1\r\nHost: vm2\r\n\r\n",
            "GET / HTTP/1.1\r\nnonsense\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: vm1\r\n Host: vm2\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : vm1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: vm1\r\nX: a\0b\r\n\r\n",
        ] {
            assert_eq!(route(text.as_bytes(), 4), Err(Refusal::BadRequest), "{text}");
        }
        assert_eq!(route(b"\xff\xfe\r\n", 4), Err(Refusal::BadRequest));
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(HEAD_MAX));
        assert_eq!(route(long.as_bytes(), 4), Err(Refusal::TooLarge));
        let many = format!("GET / HTTP/1.1\r\nHost: vm1\r\n{}\r\n", "a:\r\n".repeat(FIELDS_MAX));
        assert_eq!(route(many.as_bytes(), 4), Err(Refusal::TooLarge));
        assert_eq!(route("\r\n".repeat(HEAD_MAX / 2).as_bytes(), 4), Err(Refusal::TooLarge));
    }

    #[test]
    fn answers_are_whole() {
        let text = String::from_utf8(Refusal::NotFound.response()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
    }
}

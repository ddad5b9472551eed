//! The route by name: which VM an HTTP request is for.

/// Longest head of a request.
pub const HEAD_MAX: usize = 8 << 10;

/// Why a request goes nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is no HTTP/1 request with one host.
    BadRequest,
    /// No VM has this name.
    NotFound,
    /// Its head is longer than [`HEAD_MAX`].
    TooLarge,
    /// The VM has as many connections as it may have.
    Busy,
    /// The VM has ended.
    Ended,
}

impl Refusal {
    /// The whole answer.
    pub fn response(self) -> Vec<u8> {
        let (status, text) = match self {
            Self::BadRequest => ("400 Bad Request", "This is no HTTP request for one host.\n"),
            Self::NotFound => {
                ("404 Not Found", "No machine has this name: ask for vm0.localhost and so on.\n")
            }
            Self::TooLarge => ("431 Request Header Fields Too Large", "8 KiB at most.\n"),
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

/// The VM that a request is for, of `count`; none as long as its head is not whole.
pub fn route(head: &[u8], count: u32) -> Result<Option<u32>, Refusal> {
    let mut hosts = Vec::new();
    let mut lines = head.split_inclusive(|&b| b == b'\n');
    // A line's end may be missing still.
    let line = |bytes: &[u8]| -> Option<Result<String, Refusal>> {
        let bytes = bytes.strip_suffix(b"\n")?;
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        Some(String::from_utf8(bytes.to_vec()).map_err(|_| Refusal::BadRequest))
    };
    let too_large = head.len() >= HEAD_MAX;
    let unfinished = if too_large { Err(Refusal::TooLarge) } else { Ok(None) };
    let Some(first) = lines.next().and_then(line).transpose()? else { return unfinished };
    let words: Vec<&str> = first.split(' ').collect();
    if words.len() != 3 || !words[2].starts_with("HTTP/1.") {
        return Err(Refusal::BadRequest);
    }
    loop {
        let Some(line) = lines.next().and_then(line).transpose()? else { return unfinished };
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or(Refusal::BadRequest)?;
        if name.eq_ignore_ascii_case("host") {
            hosts.push(value.trim().to_owned());
        }
    }
    match &hosts[..] {
        [host] => match vm(host).filter(|&vm| vm < count) {
            Some(vm) => Ok(Some(vm)),
            None => Err(Refusal::NotFound),
        },
        _ => Err(Refusal::BadRequest),
    }
}

/// The VM of `vm7`, `vm7.localhost` or `vm7.localhost:8080`. Other domains are refused: a page from
/// elsewhere must not get here by a name of its own that resolves to this host.
fn vm(host: &str) -> Option<u32> {
    let host = host.to_ascii_lowercase();
    let name = host.split_once(':').map_or(host.as_str(), |(name, _)| name);
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
        for host in ["vm7.localhost:8080", "vm7.localhost", "vm7", "VM7.LocalHost"] {
            assert_eq!(get(host), Ok(Some(7)), "{host}");
        }
        assert_eq!(get("vm255.localhost"), Ok(Some(255)));
        for host in ["vm256", "vm", "vm07", "vm+7", "vm7.example.com", "localhost", "127.0.0.1"] {
            assert_eq!(get(host), Err(Refusal::NotFound), "{host}");
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
        ] {
            assert_eq!(route(text.as_bytes(), 4), Err(Refusal::BadRequest), "{text}");
        }
        assert_eq!(route(b"\xff\xfe\r\n", 4), Err(Refusal::BadRequest));
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(HEAD_MAX));
        assert_eq!(route(long.as_bytes(), 4), Err(Refusal::TooLarge));
    }

    #[test]
    fn answers_are_whole() {
        let text = String::from_utf8(Refusal::NotFound.response()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
    }
}

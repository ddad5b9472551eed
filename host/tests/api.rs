//! Tests of the control API and the client commands, with the real guest.

mod common;

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::net::TcpStream;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use futures_util::{SinkExt, StreamExt};
    use rustix::process::{Pid, Signal, kill_process};
    use serde_json::{Value, json};
    use tempfile::TempDir;
    use tokio_tungstenite::tungstenite::protocol::CloseFrame;
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{
        CloseCode, Data as OpData, OpCode,
    };
    use tokio_tungstenite::tungstenite::{Error as WsError, Message};

    use super::common::terminal::Terminal;
    use super::common::{has_image, pxvm, run, unread};

    const TIMEOUT: Duration = Duration::from_secs(90);

    /// A fleet with its API at a free port. It ends with the test.
    struct Fleet {
        child: Child,
        runtime: TempDir,
        host: String,
    }

    /// An HTTP response.
    struct Answer {
        status: u16,
        head: String,
        body: Vec<u8>,
    }

    impl Answer {
        fn json(&self) -> Value {
            serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
        }

        fn text(&self) -> String {
            String::from_utf8_lossy(&self.body).into_owned()
        }

        fn code(&self) -> String {
            self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
        }

        fn header(&self, name: &str) -> Option<&str> {
            self.head.lines().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then_some(value)
            })
        }
    }

    impl Fleet {
        /// Boots `options`. Returns when the API responds.
        fn boot(options: &str) -> Self {
            let runtime = tempfile::tempdir().unwrap();
            let args = format!(
                "boot --backend cpu --timeout 300 --json --listen 127.0.0.1:0 --name lab {options}"
            );
            let mut command = pxvm(args.split_ascii_whitespace());
            command.env("XDG_RUNTIME_DIR", runtime.path());
            let mut child =
                command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("pxvm starts");
            let mut lines = io::BufRead::lines(io::BufReader::new(child.stderr.take().unwrap()));
            let host = loop {
                let line = lines.next().expect("a line with the URL").unwrap();
                if let Some((_, url)) = line.split_once("http://") {
                    break url.split('/').next().unwrap().to_owned();
                }
            };
            std::thread::spawn(move || lines.for_each(drop));
            Self { child, runtime, host }
        }

        /// Boots `options`. Returns when all VMs are ready.
        fn ready(options: &str, count: u64) -> Self {
            let fleet = Self::boot(options);
            fleet.wait(|| fleet.get("/api/v1/fleet").json()["states"]["ready"] == count);
            fleet
        }

        fn wait(&self, mut condition: impl FnMut() -> bool) {
            let limit = Instant::now() + TIMEOUT;
            while !condition() {
                assert!(Instant::now() < limit, "waited for too long");
                std::thread::sleep(Duration::from_millis(20));
            }
        }

        fn connect(&self) -> TcpStream {
            let stream = TcpStream::connect(&self.host).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            stream
        }

        /// Returns the response to a request with these headers besides `Host`.
        fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
            let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
            let own = [("Host", self.host.as_str())];
            let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
            for (name, value) in own.iter().filter(|(name, _)| !given(name)).chain(headers) {
                head += &format!("{name}: {value}\r\n");
            }
            if method == "POST" && !given("content-length") {
                head += &format!("Content-Length: {}\r\n", body.len());
            }
            let mut stream = self.connect();
            stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
            // A server that refuses the head may not read the body.
            let _ = stream.write_all(body);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let at = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
            let head = String::from_utf8(answer[..at].to_vec()).unwrap();
            let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
            Answer { status, head, body: answer[at + 4..].to_vec() }
        }

        fn get(&self, path: &str) -> Answer {
            self.ask("GET", path, &[], &[])
        }

        fn post(&self, path: &str, body: Option<Value>) -> Answer {
            let text = body.map(|body| body.to_string()).unwrap_or_default();
            self.ask("POST", path, &[("Content-Type", "application/json")], text.as_bytes())
        }

        fn vm(&self, id: u32) -> Value {
            self.get(&format!("/api/v1/vms/{id}")).json()
        }

        fn console(&self, id: u32) -> String {
            self.get(&format!("/api/v1/vms/{id}/console")).text()
        }

        /// Runs a client command on this fleet.
        fn client(&self, args: &[&str]) -> (i32, String, String) {
            let mut command: Command = pxvm(args);
            run(command.env("XDG_RUNTIME_DIR", self.runtime.path()))
        }
    }

    impl Drop for Fleet {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn machines_are_paused_resumed_stopped_reset_and_added() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 2 --capacity 3", 2);
        let act = |what: &str| fleet.post(&format!("/api/v1/vms/1/{what}"), None);
        let refused = |what: &str, state: &str| {
            let answer = act(what);
            assert_eq!((answer.status, answer.code().as_str()), (409, "wrong_state"), "{what}");
            assert!(answer.text().contains(&format!("vm1 is {state}")), "{}", answer.text());
        };
        refused("resume", "ready");
        let paused = act("pause");
        assert_eq!((paused.status, &paused.json()["state"]), (200, &json!("paused")));
        refused("pause", "paused");
        // A paused VM retires nothing while the other one works.
        let before = fleet.vm(1)["instret"].clone();
        let (code, out, err) = fleet.client(&["exec", "0", "--", "seq 1 5000 | tail -1"]);
        assert_eq!((code, out.as_str()), (0, "5000\n"), "{err}");
        assert_eq!(fleet.vm(1)["instret"], before);
        let (code, _, err) = fleet.client(&["exec", "1", "--", "true"]);
        assert!(code == 1 && err.contains("vm1 is paused") && err.contains("resume 1"), "{err}");
        assert_eq!(act("resume").json()["state"], "ready");
        assert_eq!(fleet.client(&["exec", "1", "--", "exit 7"]).0, 7);

        let frames = || fleet.get("/api/v1/fleet").json()["private_frames"].as_u64().unwrap();
        let both = frames();
        assert_eq!(act("stop").json()["state"], "stopped");
        assert!(frames() * 3 < both * 2, "{both} frames, then {}", frames());
        refused("stop", "stopped");
        refused("pause", "stopped");
        let typed = fleet.ask("POST", "/api/v1/vms/1/console", &[], b"x");
        assert_eq!((typed.status, typed.code().as_str()), (409, "wrong_state"));
        assert_eq!(fleet.get("/api/v1/vms/1/snapshot").status, 409);
        assert_eq!(fleet.get("/vms/1/http/80/").status, 503);
        // In a frame of the dashboard, the error is a page.
        let html = fleet.ask("GET", "/vms/1/http/80/", &[("Accept", "text/html,*/*")], b"");
        assert_eq!(html.header("Content-Type"), Some("text/html; charset=utf-8"));
        assert!(html.text().contains("vm1 is stopped") && html.status == 503, "{}", html.text());
        let policy = html.header("Content-Security-Policy").unwrap();
        assert!(policy.contains("sandbox; frame-ancestors 'self'"), "{policy}");
        assert_eq!(act("reset").json()["state"], "booting");
        fleet.wait(|| fleet.vm(1)["state"] == "ready");
        assert_eq!(fleet.vm(1)["resets"], 1);
        assert!(fleet.get("/vms/1/http/80/").text().contains("<title>vm1</title>"));
        assert_eq!(act("reset").status, 200);

        let added = fleet.post("/api/v1/vms", Some(json!({ "count": 1 })));
        assert_eq!((added.status, &added.json()["ids"]), (201, &json!([2])));
        fleet.wait(|| fleet.vm(2)["state"] == "ready");
        assert!(fleet.get("/vms/2/http/80/").text().contains("<title>vm2</title>"));
        let full = fleet.post("/api/v1/vms", Some(json!({ "count": 2 })));
        assert_eq!((full.status, full.code().as_str()), (409, "no_room"));
        assert!(full.text().contains("--capacity 5"), "{}", full.text());
        assert_eq!(fleet.get("/api/v1/fleet").json()["count"], 3);
        let listed = fleet.get("/api/v1/vms?state=ready&limit=1&offset=1").json();
        assert_eq!(listed["vms"].as_array().unwrap().len(), 1);
    }

    /// Method, path, headers and body of a request; status and code of the response.
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16, &'a str);

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 1", 1);
        let json_head: &[(&str, &str)] = &[("Content-Type", "application/json")];
        let endless: &[(&str, &str)] =
            &[("Content-Type", "application/json"), ("Content-Length", "99999999999")];
        let long = "x".repeat(5000);
        let long_line = json!({ "line": long }).to_string();
        let huge = "x".repeat(300 << 10);
        let cases: &[Case<'_>] = &[
            ("GET", "/api/v1/vms/7", &[], "", 404, "unknown_vm"),
            ("GET", "/api/v1/vms/99999999999", &[], "", 400, "bad_request"),
            ("GET", "/api/v1/vms/-1", &[], "", 400, "bad_request"),
            ("GET", "/api/v1/vms/x/snapshot", &[], "", 400, "bad_request"),
            ("GET", "/api/v1/vms?limit=0", &[], "", 400, "bad_request"),
            ("GET", "/api/v1/vms?limit=1001", &[], "", 400, "bad_request"),
            ("GET", "/api/v1/vms?offset=-1", &[], "", 400, "bad_request"),
            ("GET", "/api/v1/vms?state=happy", &[], "", 400, "bad_request"),
            ("GET", "/api/v2/fleet", &[], "", 404, "not_found"),
            ("GET", "/assets/../Cargo.toml", &[], "", 404, "not_found"),
            ("GET", "/assets/%2e%2e/mod.rs", &[], "", 404, "not_found"),
            ("GET", "/assets/%ff", &[], "", 404, "not_found"),
            ("GET", "/vms/%ff/http/80", &[], "", 400, "bad_request"),
            ("GET", "/vms/0/http/%ff/", &[], "", 400, "bad_request"),
            ("GET", "/api/v1/vms/%ff", &[], "", 400, "bad_request"),
            ("GET", "/api/v1/vms/0/ticket?port=0", &[], "", 400, "bad_request"),
            ("GET", "/api/v1/vms/7/ticket", &[], "", 404, "unknown_vm"),
            ("GET", "/t/0/vms/0/http/80/", &[], "", 403, "forbidden"),
            ("DELETE", "/api/v1/fleet", &[], "", 405, "method_not_allowed"),
            ("GET", "/api/v1/vms/0/pause", &[], "", 405, "method_not_allowed"),
            ("POST", "/api/v1/vms/7/pause", &[], "", 404, "unknown_vm"),
            ("POST", "/api/v1/vms", json_head, "", 400, "bad_request"),
            ("POST", "/api/v1/vms", json_head, "{\"count\":0}", 400, "bad_request"),
            ("POST", "/api/v1/vms", json_head, "{\"count\":-1}", 400, "bad_request"),
            ("POST", "/api/v1/vms", json_head, "{\"count\":1,\"x\":1}", 400, "bad_request"),
            ("POST", "/api/v1/vms", json_head, "[[[[", 400, "bad_request"),
            ("POST", "/api/v1/vms", &[], "{\"count\":1}", 400, "bad_request"),
            ("POST", "/api/v1/vms", json_head, "{\"count\":1}", 409, "no_room"),
            ("POST", "/api/v1/vms", json_head, &huge, 413, "too_large"),
            ("POST", "/api/v1/vms", endless, "", 413, "too_large"),
            ("POST", "/api/v1/input", json_head, &long_line, 413, "too_large"),
            ("POST", "/api/v1/input", json_head, "{\"line\":\"a\\nb\"}", 400, "bad_request"),
            ("POST", "/api/v1/input", json_head, "{\"line\":\"\",\"vms\":[7]}", 404, "unknown_vm"),
            ("POST", "/api/v1/vms/0/console", &[], &long, 413, "too_large"),
            ("GET", "/api/v1/vms/0/console/ws", &[], "", 400, "bad_request"),
            ("GET", "/metrics?vms=0-9", &[], "", 404, "unknown_vm"),
            ("GET", "/metrics?vms=a", &[], "", 400, "bad_request"),
            ("GET", "/vms/0/http/0/", &[], "", 400, "bad_request"),
            ("GET", "/vms/0/http/70000/", &[], "", 400, "bad_request"),
            ("GET", "/vms/0/http/81/", &[], "", 502, "bad_gateway"),
            ("POST", "/vms/0/http/80/", endless, "", 413, "too_large"),
            ("PUT", "/vms/0/http/80/", &[], "", 405, "method_not_allowed"),
        ];
        // However the head arrives.
        for length in [1 << 10, 60 << 10, 65 << 10, 70 << 10, 100 << 10, 150 << 10, 250 << 10] {
            let head = [("X-Long", &huge[..length])];
            let answer = fleet.ask("GET", "/api/v1/fleet", &head, b"");
            assert_eq!(answer.status, if length < 64 << 10 { 200 } else { 431 }, "{length}");
            assert!(length > 100 << 10 || answer.status == 200 || answer.code() == "too_large");
        }
        for (method, path, headers, body, status, code) in cases {
            let answer = fleet.ask(method, path, headers, body.as_bytes());
            let found = (answer.status, answer.code());
            assert_eq!(found, (*status, (*code).to_owned()), "{method} {path}: {}", answer.text());
        }
        // None of that has damaged the VM.
        assert_eq!(fleet.client(&["exec", "0", "--", "echo fine"]).1, "fine\n");
    }

    #[test]
    fn pages_of_other_sites_and_other_names_get_nothing() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 1", 1);
        let status = |method: &str, path: &str, headers: &[(&str, &str)]| {
            fleet.ask(method, path, headers, b"")
        };
        let stop = "/api/v1/vms/0/stop";
        for headers in [
            &[("Host", "evil.example")][..],
            &[("Host", "127.0.0.1.evil.example:80")],
            &[("Origin", "http://evil.example")],
            &[("Origin", "null")],
            &[("Sec-Fetch-Site", "cross-site")],
        ] {
            for (method, path) in [("POST", stop), ("GET", "/api/v1/fleet"), ("GET", "/metrics")] {
                let answer = status(method, path, headers);
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (403, "forbidden"),
                    "{headers:?}"
                );
            }
        }
        let own = format!("http://{}", fleet.host);
        assert_eq!(status("GET", "/api/v1/fleet", &[("Origin", &own)]).status, 200);
        let page = fleet.get("/");
        let policy = page.header("Content-Security-Policy").unwrap();
        assert!(policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"));
        assert_eq!(page.header("X-Content-Type-Options"), Some("nosniff"));
        let guest = fleet.get("/vms/0/http/80/");
        let policy = guest.header("Content-Security-Policy").unwrap();
        assert!(policy.starts_with("sandbox;") && !policy.contains("allow-"), "{policy}");
        assert!(guest.header("Set-Cookie").is_none() && guest.header("Server").is_none());
        assert_eq!(fleet.vm(0)["state"], "ready");
    }

    #[test]
    fn an_address_of_others_needs_the_token() {
        if !has_image() {
            return;
        }
        let token = "an-example-of-a-token";
        let fleet = Fleet::boot(&format!("--count 1 --token {token}"));
        assert_eq!(fleet.get("/api/v1/fleet").status, 401);
        let bearer = format!("Bearer {token}");
        for bearer in [&bearer, &bearer.to_ascii_lowercase()] {
            let allowed = fleet.ask("GET", "/api/v1/fleet", &[("Authorization", bearer)], b"");
            assert_eq!(allowed.status, 200, "{bearer}");
        }
        let refused = fleet.get("/api/v1/vms/0/ticket");
        assert_eq!((refused.status, refused.header("WWW-Authenticate")), (401, Some("Bearer")));
        // The dashboard is public, and does not put the token into a cookie.
        for path in ["/".to_owned(), format!("/?token={token}"), "/assets/js/main.js".to_owned()] {
            let page = fleet.get(&path);
            assert_eq!((page.status, page.header("Set-Cookie")), (200, None), "{path}");
        }
        let cookie = format!("pxvm_token={token}");
        assert_eq!(fleet.ask("GET", "/api/v1/fleet", &[("Cookie", &cookie)], b"").status, 401);
        // Browsers load parts of a page without our headers, but with a ticket for that page only.
        let with = |path: &str| fleet.ask("GET", path, &[("Authorization", &bearer)], b"");
        fleet.wait(|| with("/api/v1/vms/0").json()["state"] == "ready");
        let ticket = with("/api/v1/vms/0/ticket").json()["path"].as_str().unwrap().to_owned();
        let sandboxed = [("Origin", "null"), ("Sec-Fetch-Site", "cross-site")];
        let page = fleet.ask("GET", &ticket, &sandboxed, b"");
        assert!(page.status == 200 && page.text().contains("<title>vm0</title>"), "{}", page.head);
        let other = ticket.replace("/http/80/", "/http/81/");
        for path in [&other, "/vms/0/http/80/", "/t/0/vms/0/http/80/"] {
            let status = fleet.ask("GET", path, &sandboxed, b"").status;
            assert!([401, 403].contains(&status), "{path}: {status}");
        }
        assert_eq!(fleet.ask("POST", &ticket, &[], b"").status, 403);
        // A browser that navigates to a page itself is redirected to it.
        let navigates = [("Authorization", bearer.as_str()), ("Sec-Fetch-Mode", "navigate")];
        let led = fleet.ask("GET", "/vms/0/http/80/?a", &navigates, b"");
        assert_eq!((led.status, led.header("Location")), (307, Some(&*format!("{ticket}?a"))));
        // A WebSocket in a browser has no headers, but subprotocols.
        block_on(async {
            use tokio_tungstenite::tungstenite::client::IntoClientRequest;
            let url = format!("ws://{}/api/v1/vms/0/console/ws", fleet.host);
            for (protocols, good) in
                [(format!("pxvm, pxvm.token.{token}"), true), ("pxvm".into(), false)]
            {
                let mut request = url.as_str().into_client_request().unwrap();
                let protocols = protocols.parse().unwrap();
                request.headers_mut().insert("Sec-WebSocket-Protocol", protocols);
                let answer = tokio_tungstenite::connect_async(request).await;
                let chosen = answer
                    .ok()
                    .map(|(_, answer)| answer.headers()["sec-websocket-protocol"].clone());
                assert_eq!(chosen, good.then(|| "pxvm".parse().unwrap()));
            }
        });
        // On the socket the owner needs no token.
        assert_eq!(fleet.client(&["ps"]).0, 0);
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(TIMEOUT, work).await.expect("in time") })
    }

    type Socket = tokio_tungstenite::WebSocketStream<
        tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>,
    >;

    async fn attach(host: &str, vm: u32) -> Socket {
        let url = format!("ws://{host}/api/v1/vms/{vm}/console/ws");
        tokio_tungstenite::connect_async(url).await.expect("a WebSocket").0
    }

    async fn hear(socket: &mut Socket, text: &str) -> String {
        let mut all = String::new();
        while !all.contains(text) {
            match socket.next().await.expect("the socket is open").unwrap() {
                Message::Binary(bytes) => all += &String::from_utf8_lossy(&bytes),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?} after {all}"),
            }
        }
        all
    }

    #[test]
    fn a_console_has_history_echo_and_as_many_clients_as_come() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 2", 2);
        block_on(async {
            let mut first = attach(&fleet.host, 1).await;
            hear(&mut first, "PXVM READY host=vm1").await;
            let mut others = Vec::new();
            for _ in 0..100 {
                others.push(attach(&fleet.host, 1).await);
            }
            first.send(Message::Binary(b"echo $((6*7))of".as_ref().into())).await.unwrap();
            first.send(Message::Text("$((40+2))\n".into())).await.unwrap();
            for socket in others.iter_mut().chain([&mut first]) {
                hear(socket, "42of42").await;
            }
            // Too long for one message.
            others[0].send(Message::Binary(vec![b'x'; 5000].into())).await.unwrap();
            loop {
                match others[0].next().await {
                    Some(Ok(Message::Close(Some(frame)))) => {
                        assert_eq!(u16::from(frame.code), 1009);
                        break;
                    }
                    Some(Ok(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        assert!(fleet.console(1).contains("42of42") && !fleet.console(0).contains("42of42"));
        let offset = fleet.get("/api/v1/vms/1/console");
        assert_eq!(offset.header("X-Pxvm-Offset"), Some("0"));
    }

    #[test]
    fn a_websockets_close_is_answered_and_what_it_must_not_say_is_told() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 1", 1);
        block_on(async {
            let text =
                |bytes: &'static [u8]| Frame::message(bytes, OpCode::Data(OpData::Text), true);
            let mut reserved = text(b"x");
            reserved.header_mut().rsv1 = true;
            let close = CloseFrame { code: CloseCode::Normal, reason: "enough".into() };
            for (said, code) in [
                (Message::Close(Some(close)), 1000),
                (Message::Frame(text(b"a\xffb")), 1007),
                (Message::Frame(reserved), 1002),
                (Message::Binary(vec![0; 70_000].into()), 1009),
            ] {
                let mut socket = attach(&fleet.host, 0).await;
                socket.send(said).await.unwrap();
                let heard = loop {
                    match socket.next().await {
                        Some(Ok(Message::Close(frame))) => break frame.map(|f| u16::from(f.code)),
                        Some(Ok(_)) => {}
                        other => panic!("{other:?} instead of {code}"),
                    }
                };
                assert_eq!(heard, Some(code));
                // A message that is too long is not read to its end, which resets the connection.
                let end = socket.next().await;
                assert!(end.is_none() || code == 1009, "{code}: {end:?}");
            }
        });
        assert!(!fleet.console(0).contains('\u{fffd}'));
    }

    /// Server in VM 0, at port 81: it switches protocols at `/101`, and redirects elsewhere.
    const LEADS_AWAY: &str = r#"printf '%s\n' '#!/bin/sh' 'read -r method path rest' \
        'while read -r line; do [ ${#line} -gt 1 ] || break; done' \
        'to=../../../../../../api/v1/vms/0/stop' \
        'more="Refresh: 0;url=$to\r\nLink: <$to>; rel=preload\r\nContent-Location: $to\r\n"' \
        'case $path in' \
        '/101) printf "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";;' \
        '/700) printf "HTTP/1.1 700 x\r\nContent-Length: 0\r\n\r\n";;' \
        '*) printf "HTTP/1.1 307 x\r\nLocation: $to\r\n${more}Content-Length: 0\r\n\r\n";;' \
        'esac' > /run/away; chmod +x /run/away; nc -ll -p 81 -e /run/away < /dev/null > /dev/null 2>&1 &"#;

    #[test]
    fn a_guest_switches_no_protocols_and_leads_nobody_away() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 1", 1);
        let (code, out, err) = fleet.client(&["exec", "0", "--", LEADS_AWAY]);
        assert_eq!(code, 0, "{out}{err}");
        fleet.wait(|| fleet.get("/vms/0/http/81/").status == 307);
        for method in ["GET", "POST"] {
            let led = fleet.ask(method, "/vms/0/http/81/a/b", &[], b"");
            let place = "/vms/0/http/81/api/v1/vms/0/stop";
            assert_eq!((led.status, led.header("Location")), (307, Some(place)), "{method}");
            for name in ["Refresh", "Link", "Content-Location", "Upgrade"] {
                assert_eq!(led.header(name), None);
            }
        }
        for status in ["101", "700"] {
            let refused = fleet.get(&format!("/vms/0/http/81/{status}"));
            assert_eq!((refused.status, refused.code().as_str()), (502, "bad_gateway"));
            assert!(refused.text().contains(status), "{}", refused.text());
        }
        // A paused VM does not respond, and no client waits for it for long.
        fleet.post("/api/v1/vms/0/pause", None);
        let paused = fleet.get("/vms/0/http/80/");
        assert_eq!((paused.status, paused.code().as_str()), (503, "unavailable"));
        assert!(paused.text().contains("vm0 is paused"), "{}", paused.text());
    }

    #[test]
    fn silent_strangers_keep_nobody_out() {
        if !has_image() {
            return;
        }
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
        let fleet = Fleet::boot("--count 1 --token an-example-of-a-token");
        // More connections than there is room for.
        let strangers: Vec<_> = (0..1100).map(|_| fleet.connect()).collect();
        let mut owner = fleet.connect();
        // They are closed after 30 s of silence, which this test does not wait for.
        owner.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let request = format!(
            "HEAD /api/v1/fleet HTTP/1.1\r\nHost: {}\r\n\
             Authorization: Bearer an-example-of-a-token\r\n\r\n",
            fleet.host
        );
        let mut ask = || {
            owner.write_all(request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                owner.read_exact(&mut byte).expect("an answer");
                answer.extend(byte);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        };
        ask();
        // The connection that was silent longest was closed; the last ones were not.
        let is_open = |mut stream: &TcpStream| {
            stream.set_nonblocking(true).unwrap();
            stream.read(&mut [0]).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
        };
        fleet.wait(|| !is_open(&strangers[0]));
        assert!(is_open(strangers.last().unwrap()));
        // Connections of authenticated clients are not closed for more strangers.
        let mut more = Vec::new();
        fleet.wait(|| {
            more.push(fleet.connect());
            !is_open(strangers.last().unwrap())
        });
        ask();
    }

    #[test]
    fn a_client_that_stops_reading_is_closed_and_nobody_else_notices() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 2", 2);
        const FLOOD: usize = 6 << 20;
        // Two clients that read nothing, and have small receive buffers.
        let lazy = || {
            let stream = fleet.connect();
            rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 64 << 10).unwrap();
            stream
        };
        let mut follower = lazy();
        let request =
            format!("GET /api/v1/vms/0/console/stream HTTP/1.1\r\nHost: {}\r\n\r\n", fleet.host);
        follower.write_all(request.as_bytes()).unwrap();
        block_on(async {
            let stream = lazy();
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            let url = format!("ws://{}/api/v1/vms/0/console/ws", fleet.host);
            let (mut slow, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
            let mut quick = attach(&fleet.host, 0).await;
            let typed = "yes 0123456789012345678901234567890123456789012345678901234567890123\n";
            quick.send(Message::Text(typed.into())).await.unwrap();
            // More than all buffers on the way can hold.
            let mut heard = 0;
            while heard < FLOOD {
                match quick.next().await.expect("the quick one is served").unwrap() {
                    Message::Binary(bytes) => heard += bytes.len(),
                    Message::Ping(_) => {}
                    other => panic!("{other:?} after {heard} bytes"),
                }
            }
            quick.send(Message::Binary(b"\x03".as_ref().into())).await.unwrap();
            // What the client can still read, then the end.
            let mut all = 0;
            let end = loop {
                match slow.next().await {
                    Some(Ok(Message::Binary(bytes))) => all += bytes.len(),
                    Some(Ok(Message::Close(frame))) => break frame.map(|f| u16::from(f.code)),
                    Some(Err(WsError::Protocol(_) | WsError::Io(_))) | None => break None,
                    Some(other) => drop(other),
                }
            };
            assert!(end.is_none_or(|code| code == 1008), "{end:?}");
            assert!(all < heard, "{all} of {heard} bytes");
        });
        let mut rest = Vec::new();
        let _ = follower.read_to_end(&mut rest);
        assert!(!rest.ends_with(b"0\r\n\r\n") && rest.len() < FLOOD, "{} bytes", rest.len());
        let history = fleet.get("/api/v1/vms/0/console").body.len();
        assert!(history <= 64 << 10, "{history}");
        assert_eq!(fleet.client(&["exec", "1", "--", "echo fine"]).1, "fine\n");
        assert_eq!(fleet.client(&["exec", "0", "--", "echo fine"]).1, "fine\n");
    }

    #[test]
    fn a_guests_page_comes_through_and_a_huge_one_is_cut() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 1", 1);
        let page = fleet.get("/vms/0/http/80/");
        assert!(page.text().contains("<title>vm0</title>"), "{}", page.text());
        assert_eq!(fleet.ask("HEAD", "/vms/0/http/80/", &[], b"").status, 200);
        assert_eq!(fleet.get("/vms/0/http/80/nothing").status, 404);
        let redirect = fleet.get("/vms/0/http/80");
        assert_eq!((redirect.status, redirect.header("Location")), (308, Some("/vms/0/http/80/")));
        // A file of a hundred megabytes that takes no memory.
        let script = "cd /run/www && dd if=/dev/zero of=big bs=1 count=0 seek=104857600 2>&1";
        let (code, out, err) = fleet.client(&["exec", "0", "--", script]);
        assert_eq!(code, 0, "{out}{err}");
        let big = fleet.get("/vms/0/http/80/big");
        assert_eq!((big.status, big.header("Content-Length")), (200, None));
        // The body comes in chunks, whose heads are not counted.
        let length = big.body.len();
        assert!((16 << 20..17 << 20).contains(&length), "{length}");
        // Clients that disconnect leave nothing behind.
        for _ in 0..60 {
            let mut stream = fleet.connect();
            let request =
                format!("GET /vms/0/http/80/big HTTP/1.1\r\nHost: {}\r\n\r\n", fleet.host);
            stream.write_all(request.as_bytes()).unwrap();
            let _ = stream.read(&mut [0; 100]).unwrap();
        }
        fleet.wait(|| fleet.get("/vms/0/http/80/").text().contains("<title>vm0</title>"));
    }

    #[test]
    fn without_a_network_there_are_no_pages_and_the_reason_is_told() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 1 --net none", 1);
        let answer = fleet.get("/vms/0/http/80/");
        assert_eq!((answer.status, answer.code().as_str()), (503, "unavailable"));
        assert!(answer.text().contains("--net none"), "{}", answer.text());
        assert_eq!(fleet.get("/api/v1/fleet").json()["network"]["http_port"], Value::Null);
    }

    #[test]
    fn the_event_stream_tells_everything_and_then_what_changes() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 3", 3);
        let mut stream = fleet.connect();
        let request = format!("GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", fleet.host);
        stream.write_all(request.as_bytes()).unwrap();
        let mut seen = String::new();
        let mut until = |text: &str| {
            let mut buffer = [0; 4096];
            while !seen.contains(text) {
                let n = stream.read(&mut buffer).unwrap();
                assert!(n > 0, "it ends: {seen}");
                seen += &String::from_utf8_lossy(&buffer[..n]);
            }
        };
        until("event: fleet");
        until("{\"vms\":[[0,1,");
        fleet.post("/api/v1/vms/2/pause", None);
        until("[2,2,");
        fleet.post("/api/v1/vms/2/stop", None);
        until("[2,5,");
        let (code, _, err) = fleet.client(&["exec", "0", "--", "poweroff -f"]);
        assert!(code == 4 && err.contains("vm0 is halted"), "{code} {err}");
        until("[0,3,");
        // The number of event streams is limited; one whose client reads nothing costs nothing.
        let watch = || {
            let mut stream = fleet.connect();
            stream.write_all(request.as_bytes()).unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).unwrap();
            (stream, String::from_utf8_lossy(&status).into_owned())
        };
        let all: Vec<_> = (0..64).map(|_| watch()).collect();
        assert_eq!((all[0].1.as_str(), all[63].1.as_str()), ("HTTP/1.1 200", "HTTP/1.1 429"));
        drop(all);
        fleet.wait(|| watch().1 == "HTTP/1.1 200");
    }

    #[test]
    fn a_line_reaches_all_machines_or_those_in_a_state() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 3", 3);
        fleet.post("/api/v1/vms/2/pause", None);
        let send = |body: Value| fleet.post("/api/v1/input", Some(body)).json()["sent"].clone();
        assert_eq!(send(json!({ "line": "echo a$((1+1))b" })), 3);
        assert_eq!(send(json!({ "line": "echo c$((1+1))d", "state": "ready" })), 2);
        assert_eq!(send(json!({ "line": "echo e$((1+1))f", "vms": [1, 1] })), 1);
        fleet.wait(|| fleet.console(0).contains("c2d") && fleet.console(1).contains("e2f"));
        assert!(!fleet.console(2).contains("a2b"));
        fleet.post("/api/v1/vms/2/resume", None);
        fleet.wait(|| fleet.console(2).contains("a2b"));
        assert!(!fleet.console(2).contains("c2d"));
        // The input of a VM that reads nothing is limited.
        fleet.post("/api/v1/vms/2/pause", None);
        let bytes = [b'x'; 4096];
        let statuses =
            (0..20).map(|_| fleet.ask("POST", "/api/v1/vms/2/console", &[], &bytes).status);
        assert!(statuses.collect::<Vec<_>>().ends_with(&[429]));
    }

    #[test]
    fn registers_metrics_and_the_description_can_be_read() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 2", 2);
        let snapshot = fleet.get("/api/v1/vms/1/snapshot").json();
        assert_eq!(snapshot["registers"].as_object().unwrap().len(), 32);
        assert_eq!(snapshot["devices"]["virtio_net"]["status"], 15);
        // An idle Linux waits in its kernel.
        assert!(snapshot["pc"].as_u64().unwrap() >= 0xc000_0000 || snapshot["privilege"] != "S");
        assert!(snapshot["private_frames"].as_u64().unwrap() > 100);
        let metrics = fleet.get("/metrics?vms=0-1").text();
        assert!(metrics.contains("pxvm_vms{state=\"ready\"} 2"), "{metrics}");
        assert!(metrics.contains("pxvm_vm_instructions_total{vm=\"1\"}"), "{metrics}");
        assert!(!fleet.get("/metrics").text().contains("vm=\"1\""));
        assert_eq!(fleet.get("/openapi.json").json()["openapi"], "3.1.0");
        assert_eq!(fleet.get("/healthz").text(), "ok");
    }

    #[test]
    fn exec_runs_commands_in_the_guests_shell() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 1", 1);
        let exec = |command: &str| fleet.client(&["exec", "0", "--", command]);
        let (code, out, _) = exec("uname -a");
        assert!(code == 0 && out.contains("vm0") && out.contains("riscv32"), "{out}");
        assert_eq!(exec("echo \"it's 100%\\\\\" '$HOME' \u{e9}").1, "it's 100%\\ $HOME \u{e9}\n");
        assert_eq!(exec("false").0, 1);
        assert_eq!(exec("printf 'no end'").1, "no end");
        assert_eq!(exec("cat").1, "");
        let long = format!("echo {} | wc -c", "q".repeat(6000));
        assert_eq!(exec(&long).1.trim(), "6001");
        let lines: String = (1..=2000).map(|i| format!("{i}\n")).collect();
        assert_eq!(exec("seq 1 2000").1, lines);
        assert_eq!(exec("for i in 1 2; do\n\techo $i\ndone").1, "1\n2\n");
        let (code, _, err) = fleet.client(&["exec", "0", "--timeout", "1", "--", "sleep 60"]);
        assert!(code == 3 && err.contains("did not end in time"), "{err}");
        // The shell is free again, whatever was typed at it.
        fleet.ask("POST", "/api/v1/vms/0/console", &[], b"half a li");
        let (code, out, _) = fleet.client(&["exec", "0", "--json", "--", "echo $((6*7)); exit 9"]);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, report), (9, json!({ "id": 0, "status": 9, "output": "42\n" })));
        // Several commands at a time share the console.
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4)
                .map(|i| scope.spawn(move || (i, exec(&format!("echo $(({i} * 10))")))))
                .collect();
            for one in all {
                let (i, (code, out, err)) = one.join().unwrap();
                assert_eq!((code, out), (0, format!("{}\n", i * 10)), "{err}");
            }
        });
        let (code, _, err) = exec("reboot -f");
        assert!(code == 4 && err.contains("vm0 has started again"), "{code} {err}");
    }

    #[test]
    fn client_commands_speak_of_the_fleet_and_its_machines() {
        if !has_image() {
            return;
        }
        let mut fleet = Fleet::ready("--count 3 --capacity 4", 3);
        let (code, out, _) = fleet.client(&["ps"]);
        assert!(code == 0 && out.starts_with("lab: 3 of 4 machines on cpu"), "{out}");
        assert!(out.contains("vm2      ready"), "{out}");
        assert_eq!(fleet.client(&["pause", "0-1"]).1, "vm0 is paused\nvm1 is paused\n");
        let (code, out, err) = fleet.client(&["resume", "all"]);
        assert_eq!((code, out.as_str()), (0, "vm0 is ready\nvm1 is ready\n"));
        assert_eq!(err, "pxvm: skipped 1 machine that cannot resume now\n");
        let (code, out, _) = fleet.client(&["resume", "all", "--json"]);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &report["skipped"]), (0, &json!([0, 1, 2])));
        // VMs that are named must be able to execute the command.
        let (code, _, err) = fleet.client(&["resume", "all", "2"]);
        assert!(code == 1 && err.contains("vm2 is ready; it cannot resume"), "{err}");
        let (code, _, err) = fleet.client(&["stop", "2-9"]);
        assert!(code == 2 && err.contains("no VM 3"), "{code} {err}");
        let (_, out, _) = fleet.client(&["ps", "--state", "stopped", "--json"]);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (&report["vms"][0]["id"], report["vms"].as_array().unwrap().len()),
            (&json!(2), 1)
        );
        assert_eq!(fleet.client(&["add"]).1, "vm3 starts\n");
        let (code, _, err) = fleet.client(&["add", "5"]);
        assert!(code == 1 && err.contains("--capacity 9"), "{err}");
        assert!(fleet.client(&["logs", "vm1"]).1.contains("PXVM READY host=vm1"));
        let (_, out, _) = fleet.client(&["logs", "1", "--json"]);
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["offset"], 0);
        let (code, _, err) = fleet.client(&["ps", "--fleet", "other"]);
        assert!(code == 2 && err.contains("these do: lab"), "{err}");

        // Standard input goes to the console, and its output comes back.
        let mut console = pxvm(["console", "1"])
            .env("XDG_RUNTIME_DIR", fleet.runtime.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        console.stdin.take().unwrap().write_all(b"echo $((6*7))of$((40+2))\n").unwrap();
        let mut out = console.stdout.take().unwrap();
        let mut seen = String::new();
        while !seen.contains("42of42") {
            let mut buffer = [0; 1000];
            let n = out.read(&mut buffer).unwrap();
            assert!(n > 0, "{seen}");
            seen += &String::from_utf8_lossy(&buffer[..n]);
        }

        // A fleet that ends removes its socket; clients notice.
        kill_process(Pid::from_child(&fleet.child), Signal::TERM).unwrap();
        assert_eq!(fleet.child.wait().unwrap().code(), Some(130));
        assert_eq!(console.wait().unwrap().code(), Some(0));
        assert_eq!(std::fs::read_dir(fleet.runtime.path().join("pxvm")).unwrap().count(), 0);
        let (code, _, err) = fleet.client(&["ps"]);
        assert!(code == 2 && err.contains("no fleet runs here"), "{err}");
    }

    #[test]
    fn a_person_comes_to_a_console_and_leaves_it() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 2", 2);
        let console = || {
            let mut command = pxvm(["console", "vm1"]);
            command.env("XDG_RUNTIME_DIR", fleet.runtime.path());
            Terminal::start(command)
        };
        let mut person = console();
        person.see("Ctrl-A x leaves");
        person.see("PXVM READY host=vm1");
        person.type_keys("echo $((6*7))of$((40+2))\r");
        person.see("42of42");
        person.make_nonblocking();
        person.type_keys("echo $((7*7))of$((40+2))\r");
        person.see("49of42");
        person.type_keys("\x01h");
        person.see("Ctrl-A Ctrl-A");
        person.type_keys("\x01x");
        person.see("left the console");
        assert_eq!(person.code(), Some(0));
        assert_eq!(fleet.vm(1)["state"], "ready");

        Terminal::check_signals(|| {
            let mut person = console();
            person.see("PXVM READY host=vm1");
            person
        });

        // A VM that does not read blocks no client.
        fleet.post("/api/v1/vms/1/pause", None);
        let mut person = console();
        person.see("PXVM READY host=vm1");
        for _ in 0..40 {
            person.type_keys(&"x".repeat(2000));
        }
        person.type_keys("\x01x");
        person.see("left the console");
        assert_eq!(person.code(), Some(0));
    }

    #[test]
    fn a_command_ends_with_the_signal_that_ends_exec() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 1", 1);
        let sleepers = || fleet.client(&["exec", "0", "--", "ps | grep -c '[s]leep 10'"]).1;
        // Also a command that ignores Ctrl-C, and in a loop.
        for (signal, command) in [
            (Signal::INT, "echo begun; sleep 1000"),
            (Signal::TERM, "echo begun; while true; do sleep 1000; done"),
            (Signal::HUP, "trap '' INT; echo begun; sleep 1000"),
        ] {
            let mut child = pxvm(["exec", "0", "--", command])
                .env("XDG_RUNTIME_DIR", fleet.runtime.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut out = child.stdout.take().unwrap();
            let mut begun = [0; 6];
            out.read_exact(&mut begun).unwrap();
            kill_process(Pid::from_child(&child), signal).unwrap();
            let output = child.wait_with_output().unwrap();
            let err = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), err.as_ref()), (Some(130), "pxvm: interrupted\n"));
            assert_eq!(sleepers(), "0\n", "{command}");
        }
    }

    #[test]
    fn exec_types_at_a_shells_prompt_only() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 1", 1);
        let exec = |command: &str| fleet.client(&["exec", "0", "--", command]);
        let types = |keys: &str| {
            fleet.ask("POST", "/api/v1/vms/0/console", &[], keys.as_bytes());
        };
        assert_eq!(exec("echo one > /tmp/f; cat /tmp/f").1, "one\n");
        let unheard = |what: &str| {
            let written = fleet.vm(0)["console_bytes"].clone();
            let (code, out, err) = exec("echo typed");
            assert!(
                code == 1 && out.is_empty() && err.contains("no prompt"),
                "{what}: {code} {err}"
            );
            assert_eq!(fleet.vm(0)["console_bytes"], written, "{what} was typed at");
        };
        types("vi /tmp/f\n");
        fleet.wait(|| fleet.console(0).contains("/tmp/f 1/1"));
        unheard("vi");
        types(":q\n");
        assert_eq!(exec("cat /tmp/f").1, "one\n");
        types("cat\n");
        fleet.wait(|| fleet.console(0).ends_with("cat\r\n"));
        unheard("cat");
        // The user may override the detection of a prompt.
        let (code, ..) = fleet.client(&["exec", "0", "--prompt", "", "--timeout", "1", "--", "x"]);
        assert_eq!(code, 3);
        types("\x03");
        assert_eq!(exec("echo fine").1, "fine\n");
        // A message of the kernel does not hide the prompt.
        let line = "[   12.345678] kernel speaks";
        assert_eq!(exec(&format!("(sleep 1; echo '{line}' > /dev/console) &")).0, 0);
        fleet.wait(|| fleet.console(0).contains("] kernel speaks"));
        assert_eq!(exec("echo fine").1, "fine\n");
    }

    #[test]
    fn a_reader_that_has_enough_is_no_error() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::ready("--count 2", 2);
        for args in [
            &["ps"][..],
            &["ps", "--json"],
            &["logs", "0"],
            &["logs", "0", "--follow"],
            &["exec", "0", "--", "seq 1 10"],
            &["pause", "all"],
            &["resume", "all"],
            &["console", "0"],
        ] {
            let mut command = pxvm(args);
            command.env("XDG_RUNTIME_DIR", fleet.runtime.path());
            unread(&mut command);
        }
    }

    #[test]
    fn addresses_and_names_that_are_taken_are_told_before_anything_boots() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::boot("--count 1");
        let refused = |args: &str| {
            let (code, _, err) = fleet.client(&args.split(' ').collect::<Vec<_>>());
            assert_eq!(code, 2, "{err}");
            err
        };
        let text = refused(&format!("boot --timeout 5 --listen {}", fleet.host));
        assert!(text.contains("is taken by another program"), "{text}");
        let text = refused("boot --timeout 5 --name lab");
        assert!(text.contains("a fleet named `lab` runs already"), "{text}");
        let text = refused("boot --timeout 5 --name ../x");
        assert!(text.contains("no name of a fleet"), "{text}");
        let text = refused("boot --timeout 5 --count 3 --capacity 2");
        assert!(text.contains("--capacity 2 is less than --count 3"), "{text}");
    }
}

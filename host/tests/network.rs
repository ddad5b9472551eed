//! Tests of the network with the real guest and real clients, on loopback.

mod common;

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
    use std::process::{Child, ChildStdin, Output, Stdio};
    use std::sync::atomic::{AtomicU16, Ordering};
    use std::time::{Duration, Instant};

    use rustix::process::{Pid, Signal, kill_process};
    use serde_json::Value;

    use super::common::{has_image, pxvm, run};

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// Returns the first of `len` ports that are free, as well as one can know; no other test gets
    /// them.
    fn free_ports(len: u16) -> u16 {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        const STEP: u16 = 16;
        assert!(len <= STEP);
        let start = 20_000 + (std::process::id() % 200) as u16 * 100;
        loop {
            let base = start + NEXT.fetch_add(STEP, Ordering::Relaxed) % 20_000;
            let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
            let all: io::Result<Vec<_>> = (base..base + len).map(bind).collect();
            if all.is_ok() {
                return base;
            }
        }
    }

    /// A running fleet. It ends with the test.
    struct Fleet {
        child: Child,
        port: u16,
    }

    impl Fleet {
        /// Boots VMs with their web servers published from `port` on, and with `more` options.
        /// Returns when all of them serve.
        fn boot(count: u16, port: u16, more: &str) -> Self {
            let args = format!(
                "boot --backend cpu --until never --timeout 200 --json --count {count} \
                 --publish {port}:80 {more}"
            );
            let mut command = pxvm(args.split_ascii_whitespace());
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let fleet = Self { child: command.spawn().expect("pxvm starts"), port };
            (0..count).for_each(|vm| fleet.wait(vm));
            fleet
        }

        /// Waits until a VM serves.
        fn wait(&self, vm: u16) {
            let limit = Instant::now() + TIMEOUT;
            while let Err(e) = self.page(vm) {
                assert!(Instant::now() < limit, "vm{vm} does not serve: {e}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }

        fn connect(&self, vm: u16) -> io::Result<TcpStream> {
            connect(self.port + vm)
        }

        fn page(&self, vm: u16) -> io::Result<String> {
            get(self.port + vm, "localhost")
        }

        /// Checks that a VM serves its own page.
        fn check(&self, vm: u16) {
            let page = self.page(vm).unwrap_or_else(|e| panic!("vm{vm}: {e}"));
            assert!(page.contains(&format!("<title>vm{vm}</title>")), "{page}");
        }

        /// Returns the number of open files of the process.
        fn files(&self) -> usize {
            std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
        }

        /// Ends the fleet as Ctrl-C does. Returns its report.
        fn end(mut self) -> Value {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, Signal::INT).unwrap();
            let mut report = String::new();
            self.child.stdout.take().unwrap().read_to_string(&mut report).unwrap();
            self.child.wait().unwrap();
            serde_json::from_str(&report).expect("a report")
        }
    }

    impl Drop for Fleet {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn connect(port: u16) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(stream)
    }

    /// Sends a GET and returns the whole response.
    fn get(port: u16, host: &str) -> io::Result<String> {
        ask(port, format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())
    }

    /// Sends this request and returns the whole response.
    fn ask(port: u16, request: &[u8]) -> io::Result<String> {
        let mut stream = connect(port)?;
        stream.write_all(request)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 200") {
            Ok(answer)
        } else {
            Err(io::Error::other(format!("no page: {answer}")))
        }
    }

    #[test]
    fn every_machine_serves_its_own_page_by_port_and_by_name() {
        if !has_image() {
            return;
        }
        let port = free_ports(9);
        let fleet = Fleet::boot(8, port, &format!("--publish-http {}", port + 8));
        for vm in 0..8 {
            fleet.check(vm);
            let page = get(port + 8, &format!("vm{vm}.localhost:{}", port + 8)).unwrap();
            assert!(page.contains(&format!("<title>vm{vm}</title>")), "{page}");
        }
        for request in [
            &b"GET / HTTP/1.0\r\nHost: vm5.localhost.\r\nX-Name: caf\xe9\r\n\r\n"[..],
            b"\r\nGET / HTTP/1.0\r\nHost: vm5\r\n\r\n",
            b"GET http://vm5.localhost/ HTTP/1.0\r\nHost: vm2.localhost\r\n\r\n",
        ] {
            let page = ask(port + 8, request).unwrap();
            assert!(page.contains("<title>vm5</title>"), "{page}");
        }
        let refused = get(port + 8, "vm8.localhost").unwrap_err().to_string();
        assert!(refused.contains("404"), "{refused}");
        let report = fleet.end();
        let network = &report["network"];
        assert!(network["tx_frames"].as_u64().unwrap() >= 8 * 2 * 4, "{network}");
        let one = &report["vms"][7]["network"];
        assert!(one["rx_bytes"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(network["drops"].get("spoofed"), None, "{network}");
    }

    #[test]
    fn identical_guests_and_guests_with_addresses_of_their_own_both_serve() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::boot(2, free_ports(2), "--net-mac each");
        fleet.check(0);
        fleet.check(1);
    }

    #[test]
    fn guests_that_are_told_to_ask_by_dhcp_ask() {
        if !has_image() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let capture = dir.path().join("run.pcapng");
        let more = format!("--append ip=dhcp --pcap {}", capture.display());
        let fleet = Fleet::boot(2, free_ports(2), &more);
        fleet.check(0);
        fleet.check(1);
        fleet.end();
        // The magic cookie of DHCP, and the option with the message type.
        let bytes = std::fs::read(capture).unwrap();
        let messages = |kind: u8| {
            let message = [0x63, 0x82, 0x53, 0x63, 53, 1, kind];
            bytes.windows(message.len()).filter(|window| *window == message).count()
        };
        let [discover, offer, request, ack] = [1, 2, 3, 5].map(messages);
        assert!(discover >= 2 && offer >= 2 && request >= 2 && ack >= 2, "{discover} {ack}");
    }

    #[test]
    fn rude_clients_harm_nobody_and_leave_nothing_behind() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::boot(4, free_ports(4), "");
        let before = fleet.files();
        // Clients that connect and send nothing.
        let silent: Vec<TcpStream> = (0..40).map(|_| fleet.connect(0).unwrap()).collect();
        for round in 0..25u16 {
            for vm in 1..4 {
                // Clients that disconnect before the response, in order and by a reset.
                drop(fleet.connect(vm).unwrap());
                let mut gone = fleet.connect(vm).unwrap();
                gone.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                if round % 2 == 0 {
                    reset(gone);
                } else {
                    drop(gone);
                }
                // A client that closes its side before the response comes.
                let mut half = fleet.connect(vm).unwrap();
                half.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                half.shutdown(Shutdown::Write).unwrap();
                let mut answer = String::new();
                half.read_to_string(&mut answer).unwrap();
                assert!(answer.contains(&format!("<title>vm{vm}</title>")), "{answer}");
                // Bytes that no server understands.
                let mut noise = fleet.connect(vm).unwrap();
                noise.write_all(&[0xff; 300]).unwrap();
                let mut answer = Vec::new();
                // nginx sends an error or resets the connection.
                let _ = noise.read_to_end(&mut answer);
                fleet.check(vm);
            }
        }
        fleet.check(0);
        drop(silent);
        let limit = Instant::now() + TIMEOUT;
        while fleet.files() > before {
            assert!(Instant::now() < limit, "{} files, {before} before", fleet.files());
            std::thread::sleep(Duration::from_millis(100));
        }
        for vm in 0..4 {
            fleet.check(vm);
        }
        fleet.end();
    }

    fn reset(stream: TcpStream) {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    }

    #[test]
    fn more_clients_than_a_machine_takes_wait_for_their_turn() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::boot(1, free_ports(1), "");
        let mut clients: Vec<TcpStream> = (0..150).map(|_| fleet.connect(0).unwrap()).collect();
        for client in &mut clients {
            client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        }
        for (i, mut client) in clients.into_iter().enumerate() {
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.contains("<title>vm0</title>"), "client {i}: {answer}");
        }
    }

    /// Returns the output of a VM when `script` is typed at its shell.
    fn session(options: &str, script: &str) -> String {
        let args = format!("boot --backend cpu --timeout 100 {options}");
        let mut command = pxvm(args.split_ascii_whitespace());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("pxvm starts");
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let Output { stdout, stderr, .. } = child.wait_with_output().unwrap();
        String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr)
    }

    /// Starts a web server with a single response; it ends with the test.
    fn serve_one() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut request = [0; 512];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom-the-host\n");
            }
        });
        port
    }

    #[test]
    fn a_guest_reaches_the_ports_of_the_host_that_it_may_and_no_others() {
        if !has_image() {
            return;
        }
        let (open, shut) = (serve_one(), serve_one());
        let get = |port| format!("wget -T 20 -qO- http://10.0.2.2:{port}/; echo rc=$?; ");
        let script = format!("{}{}poweroff\n", get(open), get(shut));
        let text = session(&format!("--net-host-ports {open}"), &script);
        assert!(text.contains("from-the-host\r\nrc=0"), "{text}");
        assert!(text.contains("refused") && text.contains("rc=1"), "{text}");
        assert_eq!(text.matches("from-the-host\r\n").count(), 1, "{text}");
        // Nothing is reachable unless the user allows it.
        let text = session("", &format!("{}poweroff\n", get(open)));
        assert!(text.contains("refused") && !text.contains("from-the-host\r\n"), "{text}");
    }

    #[test]
    fn a_guest_pings_its_gateway_and_learns_at_once_what_it_cannot_reach() {
        if !has_image() {
            return;
        }
        let script = "ping -c 2 10.0.2.2; wget -T 20 -O- http://192.0.2.1/; \
                      wget -T 20 -O- http://10.0.2.99/; poweroff\n";
        let text = session("", script);
        assert!(text.contains("2 packets transmitted, 2 packets received"), "{text}");
        assert!(text.contains("can't connect to remote host (192.0.2.1)"), "{text}");
    }

    /// Boots one VM that serves at `port`, and by name at the next. Returns it and its keyboard.
    fn with_keyboard(port: u16, more: &str) -> (Fleet, ChildStdin) {
        let args = format!(
            "boot --backend cpu --until never --timeout 100 --publish {port}:80 \
             --publish-http {} {more}",
            port + 1
        );
        let mut command = pxvm(args.split_ascii_whitespace());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("pxvm starts");
        let stdin = child.stdin.take().unwrap();
        let fleet = Fleet { child, port };
        fleet.wait(0);
        (fleet, stdin)
    }

    #[test]
    fn a_megabyte_goes_in_and_out_unchanged() {
        if !has_image() {
            return;
        }
        let bytes: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (fleet, mut stdin) = with_keyboard(free_ports(2), &format!("--net-host-ports {port}"));
        let script = format!("cd /run/www; wget -qO x http://10.0.2.2:{port}/ && mv x copy\n");
        stdin.write_all(script.as_bytes()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 512]).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
        stream.write_all(&bytes).unwrap();
        drop(stream);
        let limit = Instant::now() + TIMEOUT;
        loop {
            let mut stream = fleet.connect(0).unwrap();
            stream.write_all(b"GET /copy HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            if answer.starts_with(b"HTTP/1.1 200") {
                assert!(answer.ends_with(&bytes), "{} bytes", answer.len());
                return;
            }
            assert!(Instant::now() < limit, "it has no copy");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The only test of this that needs real time; the others test the stack with a clock of their
    /// own.
    #[test]
    fn idle_connections_and_clients_that_pause_are_not_cut() {
        const PAUSE: Duration = Duration::from_secs(35);
        const BIG: usize = 8 << 20;
        if !has_image() {
            return;
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let options = format!("--memory 64M --net-host-ports {port}");
        let (fleet, mut stdin) = with_keyboard(free_ports(2), &options);
        let script = format!(
            "cd /run/www; head -c {BIG} /dev/zero > y; mv y big; \
             wget -T 90 -qO x http://10.0.2.2:{port}/ && mv x copy\n"
        );
        stdin.write_all(script.as_bytes()).unwrap();
        // The guest's client waits for its response.
        let (mut server, _) = listener.accept().unwrap();
        let _ = server.read(&mut [0; 512]).unwrap();
        // A client of the guest requests more than it reads.
        let mut reader = fleet.connect(0).unwrap();
        reader.write_all(b"GET /big HTTP/1.0\r\n\r\n").unwrap();
        // Another client has sent nothing.
        let mut silent = fleet.connect(0).unwrap();
        std::thread::sleep(PAUSE);

        server.write_all(b"HTTP/1.0 200 OK\r\n\r\nlate\n").unwrap();
        drop(server);
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).unwrap();
        let (head, body) = answer.split_at(answer.len().saturating_sub(BIG));
        assert!(head.ends_with(b"\r\n\r\n") && body.iter().all(|&b| b == 0), "{}", answer.len());
        silent.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        silent.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("<title>vm0</title>"), "{answer}");
        let limit = Instant::now() + TIMEOUT;
        while ask(fleet.port, b"GET /copy HTTP/1.0\r\n\r\n").is_err() {
            assert!(Instant::now() < limit, "the guest has no answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_machine_serves_again_after_it_has_started_again() {
        if !has_image() {
            return;
        }
        let (fleet, mut stdin) = with_keyboard(free_ports(2), "");
        // A connection that is open when the VM ends breaks; it does not hang.
        let mut open = fleet.connect(0).unwrap();
        stdin.write_all(b"reboot -f\n").unwrap();
        let mut rest = Vec::new();
        assert!(open.read_to_end(&mut rest).is_err() || rest.is_empty());
        fleet.wait(0);
        fleet.check(0);
    }

    #[test]
    fn a_machine_that_has_ended_refuses_its_clients() {
        if !has_image() {
            return;
        }
        let (fleet, mut stdin) = with_keyboard(free_ports(2), "");
        let mut open = fleet.connect(0).unwrap();
        stdin.write_all(b"poweroff -f\n").unwrap();
        let mut rest = Vec::new();
        assert!(open.read_to_end(&mut rest).is_err() || rest.is_empty());
        assert!(fleet.page(0).is_err());
        let refused = get(fleet.port + 1, "vm0").unwrap_err().to_string();
        assert!(refused.contains("503") && refused.contains("has ended"), "{refused}");
    }

    #[test]
    fn a_machine_without_network_has_no_link_and_serves_itself() {
        if !has_image() {
            return;
        }
        let script = "ifconfig eth0 up; echo link=$(cat /sys/class/net/eth0/carrier); \
                      wget -qO- http://127.0.0.1/; poweroff\n";
        let text = session("--net none", script);
        assert!(text.contains("link=0\r\n"), "{text}");
        assert!(text.contains("<title>vm0</title>"), "{text}");
        let text = session("", script);
        assert!(text.contains("link=1\r\n"), "{text}");
    }

    #[test]
    fn clients_that_say_nothing_give_way_to_one_that_speaks() {
        if !has_image() {
            return;
        }
        let fleet = Fleet::boot(1, free_ports(1), "");
        let silent: Vec<TcpStream> = (0..48).map(|_| fleet.connect(0).unwrap()).collect();
        fleet.check(0);
        // None of the other connections was closed, so it was not a timeout of all.
        let gone = |mut client: &TcpStream| {
            client.set_nonblocking(true).unwrap();
            !matches!(client.read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
        };
        let gone: Vec<usize> = (0..48).filter(|&i| gone(&silent[i])).collect();
        assert_eq!(gone, [0]);
    }

    #[test]
    fn ports_that_cannot_be_had_are_told_before_anything_boots() {
        let refused = |args: &str| {
            let args = format!("boot --timeout 5 {args}");
            let (code, stdout, stderr) = run(&mut pxvm(args.split_ascii_whitespace()));
            assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
            stderr
        };
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let text = refused(&format!("--publish {port}:80"));
        assert!(text.contains(&format!("127.0.0.1:{port} is taken")), "{text}");
        let text = refused("--count 1000 --publish 65000:80");
        assert!(text.contains("there is room for 536 machines"), "{text}");
        let text = refused("--count 8 --publish 24000:80 --publish 24007:22");
        assert!(text.contains("both want port 24007"), "{text}");
        let text = refused("--net none --publish 24000:80");
        assert!(text.contains("--publish needs --net user"), "{text}");
        let text = refused("--net none --net-mesh");
        assert!(text.contains("--net-mesh needs --net user or tap"), "{text}");
        let text = refused("--net-mesh --count 9 --net-subnet 10.77.0.0/29");
        assert!(text.contains("room for 5 machines"), "{text}");
        let text = refused("--count 3 --pcap x --pcap-vm 3");
        assert!(text.contains("the last of 3 machines is 2"), "{text}");
        let text = refused("--publish 24000");
        assert!(text.contains("HOSTPORT:GUESTPORT"), "{text}");
        let text = refused("--net-rate 10");
        assert!(text.contains("10 bits a second is less than one packet"), "{text}");
    }

    #[test]
    fn guests_do_not_get_to_ports_at_which_the_program_itself_listens() {
        let refused = |args: &str| {
            let args = format!("boot --timeout 5 {args}");
            let (code, stdout, stderr) = run(&mut pxvm(args.split_ascii_whitespace()));
            assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
            stderr
        };
        let port = free_ports(2);
        let addresses = ["127.0.0.1", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]"];
        // Some hosts have no IPv6.
        for address in addresses.iter().filter(|a| TcpListener::bind(format!("{a}:0")).is_ok()) {
            let text = refused(&format!("--listen {address}:{port} --net-host-ports 1-65535"));
            assert!(text.contains("the dashboard and control API of this fleet"), "{text}");
            assert!(text.contains(&format!("leave {port} out")), "{text}");
        }
        // The dashboard's port may be any free one.
        let text = refused("--dashboard --net-host-ports 8080-8200");
        assert!(text.contains("the dashboard and control API of this fleet"), "{text}");
        let text = refused(&format!("--count 2 --publish {port}:80 --net-host-ports {}", port + 1));
        assert!(text.contains(&format!("is --publish {port}:80 of this fleet")), "{text}");
        let text = refused(&format!("--publish-http {port} --net-host-ports {port}"));
        assert!(text.contains(&format!("is --publish-http {port} of this fleet")), "{text}");
    }

    #[test]
    fn a_capture_does_not_wait_for_the_reader_of_a_pipe() {
        if !has_image() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
        let (code, _, stderr) = run(pxvm(["boot", "--timeout", "5", "--pcap"]).arg(&pipe));
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("nobody reads this pipe"), "{stderr}");
    }
}

//! Tests of `--net tap` with real guests, in a network namespace that each test makes for itself.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use pxvm_tests::needs;

    use super::common::{Fleet, has_image, initrd_with, pxvm, run, tshark};

    /// A network namespace with a root user of its own. Dropping this ends it.
    struct Namespace(Child);

    impl Namespace {
        /// Makes a namespace; prints that the test is skipped when the host allows none.
        fn new() -> Option<Self> {
            if !["unshare", "nsenter", "ip"].iter().all(|name| needs::program(name)) {
                return None;
            }
            let mut command = Command::new("unshare");
            // The process lives as long as its input is open.
            command.args(["--user", "--map-root-user", "--net", "cat"]).stdin(Stdio::piped());
            let child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn();
            let mut namespace = Self(child.expect("unshare starts"));
            let net = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
            let pid = namespace.0.id().to_string();
            let start = Instant::now();
            while net(&pid).is_none_or(|other| Some(other) == net("self")) {
                let refused = !matches!(namespace.0.try_wait(), Ok(None));
                if refused || start.elapsed() > Duration::from_secs(20) {
                    needs::skip("namespaces", "they are not allowed here");
                    return None;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            if !namespace.does("ip tuntap add dev probe mode tap")
                || !namespace.does("ip tuntap del dev probe mode tap")
            {
                needs::skip("tap", "no TAP devices in a namespace here");
                return None;
            }
            Some(namespace)
        }

        /// Returns a command to run inside the namespace.
        fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
            let mut command = Command::new("nsenter");
            let pid = self.0.id().to_string();
            command.args(["--target", &pid, "--user", "--preserve-credentials", "--net", "--"]);
            command.arg(program).stdin(Stdio::null());
            command
        }

        fn run(&self, line: &str) -> (i32, String, String) {
            let mut words = line.split_ascii_whitespace();
            run(self.command(words.next().unwrap()).args(words))
        }

        fn does(&self, line: &str) -> bool {
            self.run(line).0 == 0
        }

        /// Returns `pxvm` to run inside the namespace.
        fn pxvm(&self, line: &str) -> Command {
            let outside = pxvm([""]);
            let mut command = self.command(outside.get_program());
            command.args(line.split_ascii_whitespace());
            for (name, value) in outside.get_envs() {
                command.env(name, value.unwrap_or_default());
            }
            command
        }
    }

    impl Drop for Namespace {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    #[test]
    fn three_vms_answer_ping_and_curl_at_their_own_addresses() {
        if !has_image() || !needs::program("ping") || !needs::program("curl") {
            return;
        }
        let Some(host) = Namespace::new() else { return };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.pcapng");
        let mut command = host.pxvm("boot --backend cpu --count 3 --net tap --pcap");
        command.arg(&file);
        let mut fleet = Fleet::start(command);
        for vm in 0..3 {
            fleet.hear(vm, "PXVM READY");
        }
        for vm in 0..3 {
            let address = format!("10.77.0.{}", vm + 2);
            let (code, said, _) = host.run(&format!("ping -c 3 -i 0.2 -W 20 {address}"));
            assert!(code == 0 && said.contains(" 3 received"), "{said}");
            let (code, page, why) = host.run(&format!("curl -sS -m 30 http://{address}/"));
            assert!(code == 0 && page.contains(&format!("<title>vm{vm}</title>")), "{page}{why}");
        }
        // No VM has that address; messages of the kernel about it do not concern the VMs.
        assert!(!host.does("ping -c 1 -W 1 10.77.0.99"));
        let report = fleet.stop();
        for vm in 0..3 {
            let network = &report["vms"][vm]["network"];
            assert_eq!(network["drops"], serde_json::json!({}), "{report}");
        }

        let Some(shakes) = tshark(
            &file,
            "tcp.flags.syn == 1",
            &[
                "frame.interface_name",
                "ip.src",
                "tcp.flags.ack",
                "ip.checksum.status",
                "tcp.checksum.status",
            ],
        ) else {
            return;
        };
        for vm in 0..3 {
            let syn = format!("vm{vm}\t10.0.2.2\t0\t1\t1");
            let answer = format!("vm{vm}\t10.0.2.15\t1\t1\t1");
            assert!(shakes.contains(&syn) && shakes.contains(&answer), "{shakes:?}");
        }
        // Linux writes some zeros as 0xffff, which is equivalent, but tshark reports it.
        let bad = "ip.checksum.status == 0 || icmp.checksum.status == 0 \
            || tcp.checksum.status == 0 && tcp.checksum != 0xffff";
        assert_eq!(tshark(&file, bad, &["frame.number"]).unwrap(), [""; 0]);
    }

    #[test]
    fn vms_reach_the_host_and_each_other_only_when_meshed() {
        if !has_image() {
            return;
        }
        let script = "case $(uname -n) in vm0) peer=10.9.0.3 ;; *) peer=10.9.0.2 ;; esac
            ping -c 1 -W 20 10.0.2.2
            echo host=$?
            for i in 1 2 3; do ping -c 1 -W 3 $peer && break; done
            echo peer=$?
            sleep 9999";
        for (flag, peer, isolated) in [("--net-mesh", "peer=0", false), ("", "peer=1", true)] {
            let Some(host) = Namespace::new() else { return };
            // A host that forwards does not connect the VMs either.
            let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
            assert_eq!(run(host.command("sh").args(["-c", forward])).0, 0);
            let initrd = initrd_with(script);
            let line = "boot --backend cpu --count 2 --append rdinit=/script --initrd";
            let mut command = host.pxvm(line);
            command.arg(initrd.path()).args("--net tap=t0 --net-subnet 10.9.0.0/24".split(' '));
            command.args((!flag.is_empty()).then_some(flag));
            let mut fleet = Fleet::start(command);
            for vm in [0, 1] {
                fleet.hear(vm, "peer=");
                let console = fleet.console(vm);
                assert!(console.contains("host=0") && console.contains(peer), "{console}");
            }
            let report = fleet.stop();
            let drops = &report["vms"][0]["network"]["drops"]["isolated"];
            assert_eq!(drops.as_u64().unwrap_or(0) > 0, isolated, "{report}");
        }
    }

    #[test]
    fn what_a_guest_sends_under_other_addresses_never_leaves() {
        if !has_image() {
            return;
        }
        let Some(host) = Namespace::new() else { return };
        let initrd = initrd_with(
            "ping -c 1 -W 20 10.0.2.2
            echo own=$?
            ip addr add 10.0.2.77/24 dev eth0
            ping -c 3 -W 1 -I 10.0.2.77 10.0.2.2
            echo other=$?
            ip addr add 10.77.0.3/32 dev eth0
            ping -c 3 -W 1 -I 10.77.0.3 10.0.2.2
            echo neighbour=$?
            ping -c 1 -W 20 10.0.2.2
            echo again=$?
            sleep 9999",
        );
        let mut command = host.pxvm("boot --backend cpu --count 1 --append rdinit=/script --net");
        command.args(["tap", "--initrd"]).arg(initrd.path());
        let mut fleet = Fleet::start(command);
        // The kernel counts the packets that come out of the interface.
        let arrived = || {
            let (_, counted, _) = host.run("cat /proc/net/dev");
            let line = counted.lines().find(|line| line.contains("pxvm0:")).unwrap_or_default();
            line.split_ascii_whitespace().nth(2).and_then(|n| n.parse().ok()).unwrap_or(0u64)
        };
        fleet.hear(0, "again=");
        let console = fleet.console(0);
        for said in ["own=0", "other=1", "neighbour=1", "again=0"] {
            assert!(console.contains(said), "{console}");
        }
        let packets = arrived();
        let report = fleet.stop();
        let network = &report["vms"][0]["network"];
        let spoofed = network["drops"]["spoofed"].as_u64().unwrap_or(0);
        assert!(spoofed >= 6, "{report}");
        // A reply to the kernel's ARP may have been sent since the count was read.
        let sent = network["tx_frames"].as_u64().unwrap();
        assert!(packets > 0 && packets <= sent - spoofed, "{packets} of {report}");
    }

    #[test]
    fn a_prepared_interface_needs_no_rights() {
        if !has_image() || !needs::program("setpriv") {
            return;
        }
        let Some(host) = Namespace::new() else { return };
        for line in [
            "ip tuntap add dev mine mode tap user 0",
            "ip addr add 10.77.0.1/16 broadcast + dev mine",
            "ip link set mine up",
        ] {
            assert!(host.does(line), "{line}");
        }
        let weak = |command: Command| {
            let mut weak = host.command("setpriv");
            weak.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]);
            // Without `nsenter ... --`, because the command has its own.
            weak.args(command.get_args().skip_while(|a| *a != "--").skip(1));
            weak
        };
        let mut fleet = Fleet::start(weak(host.pxvm("boot --backend cpu --net tap=mine")));
        fleet.hear(0, "PXVM READY");
        let connect = "exec 3<> /dev/tcp/10.77.0.2/80";
        assert_eq!(run(host.command("timeout").args(["20", "bash", "-c", connect])).0, 0);
        fleet.stop();
        // Another interface would have to be made.
        let other = "boot --net tap=other --net-subnet 10.9.0.0/24";
        let (code, _, why) = run(&mut weak(host.pxvm(other)));
        assert!(code == 2 && why.contains("sudo ip tuntap add dev other mode tap"), "{why}");
    }

    #[test]
    fn interfaces_that_cannot_be_used_say_why() {
        if !has_image() {
            return;
        }
        let Some(host) = Namespace::new() else { return };
        let refused = |line: &str| {
            let (code, _, why) = run(&mut host.pxvm(line));
            assert_eq!(code, 2, "{why}");
            why
        };
        assert!(refused("boot --net tap=lo").contains("lo is no TAP device"));
        assert!(refused("boot --net tap=a/b").contains("no name of an interface"));
        assert!(refused("boot --net tap --publish 4000:80").contains("--net user"));
        let small = refused("boot --net tap --count 9 --net-subnet 10.77.0.0/29");
        assert!(small.contains("room for 5"), "{small}");

        let mut fleet = Fleet::start(host.pxvm("boot --backend cpu --net tap"));
        fleet.hear(0, "PXVM READY");
        let taken = refused("boot --net tap=other");
        assert!(taken.contains("the network of pxvm0 already"), "{taken}");
        let busy = refused("boot --net tap --net-subnet 10.78.0.0/16");
        assert!(busy.contains("in use by another program"), "{busy}");
        fleet.stop();
    }

    #[test]
    fn an_interface_that_goes_away_harms_no_guest() {
        if !has_image() {
            return;
        }
        let Some(host) = Namespace::new() else { return };
        let initrd = initrd_with(
            "until ping -c 1 -W 9 10.0.2.2; do :; done
            echo up
            while ping -c 1 -W 4 10.0.2.2; do :; done
            ping -c 2 -W 1 10.0.2.2
            echo on
            sleep 9999",
        );
        let mut command =
            host.pxvm("boot --backend cpu --append rdinit=/script --net tap --initrd");
        command.arg(initrd.path());
        let mut fleet = Fleet::start(command);
        fleet.hear(0, "up");
        assert!(host.does("ip link del pxvm0"));
        fleet.hear(0, "on");
        let report = fleet.stop();
        let drops = &report["vms"][0]["network"]["drops"];
        assert!(drops["uplink_full"].as_u64() > Some(0), "{report}");
    }
}

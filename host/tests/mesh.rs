//! Tests of VMs that talk to each other: real guests that ping, and that flood.

mod common;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::common::{Fleet, has_image, initrd_with, pxvm, tshark};

    /// Boots two VMs, each of which pings its gateway and the other and prints whether there was a
    /// reply.
    fn ping_each_other(flags: &str, tries: u32) -> (Fleet, String, String) {
        let initrd = initrd_with(&format!(
            "case $(uname -n) in vm0) peer=10.77.0.3 ;; *) peer=10.77.0.2 ;; esac
            ping -c 1 -W 9 10.0.2.2
            echo gateway=$?
            for i in $(seq {tries}); do ping -c 1 -W 1 $peer && break; done
            echo peer=$?
            sleep 9999"
        ));
        let mut command = pxvm("boot --count 2 --append rdinit=/script --initrd".split(' '));
        command.arg(initrd.path()).args(flags.split_ascii_whitespace());
        let mut fleet = Fleet::start(command);
        fleet.hear(0, "peer=");
        fleet.hear(1, "peer=");
        let (a, b) = (fleet.console(0), fleet.console(1));
        (fleet, a, b)
    }

    fn drops(report: &Value, vm: usize, reason: &str) -> u64 {
        report["vms"][vm]["network"]["drops"][reason].as_u64().unwrap_or(0)
    }

    #[test]
    fn meshed_vms_answer_each_other() {
        if !has_image() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mesh.pcapng");
        let flags = format!("--net-mesh --pcap-vm 1 --pcap {}", file.display());
        let (fleet, a, b) = ping_each_other(&flags, 60);
        assert!(a.contains("gateway=0") && a.contains("peer=0"), "{a}");
        assert!(b.contains("gateway=0") && b.contains("peer=0"), "{b}");
        assert!(a.contains("from 10.77.0.3"), "{a}");
        let report = fleet.stop();
        assert_eq!((drops(&report, 0, "isolated"), drops(&report, 1, "spoofed")), (0, 0));
        // VM 1's replies and its own requests to VM 0; nothing of VM 0's card.
        let fields = ["frame.interface_name", "ip.src", "ip.dst", "icmp.checksum.status"];
        let Some(pings) = tshark(&file, "icmp.type == 0 && ip.addr == 10.77.0.2", &fields) else {
            return;
        };
        assert!(pings.contains(&"vm1\t10.0.2.15\t10.77.0.2\t1".to_owned()), "{pings:?}");
        assert!(pings.contains(&"vm1\t10.77.0.2\t10.0.2.15\t1".to_owned()), "{pings:?}");
        assert!(pings.iter().all(|line| line.starts_with("vm1")), "{pings:?}");
    }

    #[test]
    fn vms_that_are_not_meshed_do_not_reach_each_other() {
        if !has_image() {
            return;
        }
        let (fleet, a, b) = ping_each_other("", 3);
        assert!(a.contains("gateway=0") && a.contains("peer=1"), "{a}");
        assert!(b.contains("gateway=0") && b.contains("peer=1"), "{b}");
        let report = fleet.stop();
        assert!(drops(&report, 0, "isolated") >= 3, "{report}");
    }

    #[test]
    fn a_vm_that_floods_is_held_to_its_rate_and_another_is_served() {
        if !has_image() {
            return;
        }
        let initrd = initrd_with(
            "if [ $(uname -n) = vm0 ]; then
                for i in $(seq 60); do
                    nc 10.77.0.3 9 < /dev/zero && break
                    ping -c 1 -W 1 10.77.0.3
                done
            else
                sleep 9999 | nc -l -p 9 | { dd bs=1000 count=100 of=/dev/null; echo took; } &
                for i in $(seq 20); do ping -c 1 -W 9 10.0.2.2 || break; done
                echo answered=$i
            fi
            sleep 9999",
        );
        let flags = "boot --count 2 --net-mesh --net-rate 1M --append rdinit=/script --initrd";
        let mut command = pxvm(flags.split(' '));
        command.arg(initrd.path());
        let mut fleet = Fleet::start(command);
        fleet.hear(1, "answered=");
        // Much more than a burst.
        fleet.hear(1, "took");
        let console = fleet.console(1);
        assert!(console.contains("answered=20"), "{console}");
        let report = fleet.stop();
        assert!(drops(&report, 0, "rate") > 0, "{report}");
        assert_eq!(drops(&report, 1, "rate"), 0, "{report}");
    }
}

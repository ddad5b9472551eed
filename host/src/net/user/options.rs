//! What the user asks of the uplink.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::machine::Macs;
use crate::net::NetError;
use crate::net::addresses::Addresses;
use crate::net::publish::Bound;

/// Ports of this host that guests may reach.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostPorts(Vec<RangeInclusive<u16>>);

impl HostPorts {
    /// Whether they may reach this one.
    pub(super) fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Refuses them if guests get by them to `address`, at which this program listens `by` some
    /// option. What it gives to users of this host, such as orders for all VMs, is not for guests.
    pub fn refuse(&self, address: SocketAddr, by: &str) -> Result<(), NetError> {
        // Guests are connected to 127.0.0.1. Whoever listens at all addresses of IPv6 listens at
        // those of IPv4, too.
        let reached = match address.ip().to_canonical() {
            IpAddr::V4(ip) => ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST,
            IpAddr::V6(ip) => ip.is_unspecified(),
        };
        match reached && self.contains(address.port()) {
            true => Err(NetError::OwnPort { address, by: by.to_owned() }),
            false => Ok(()),
        }
    }
}

impl FromStr for HostPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port @ 1..) => Ok(port),
            _ => Err(format!("'{text}' is no port; write ports and ranges, as in 8000,9000-9010")),
        };
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (port(first)?, port(last)?);
            if first > last {
                return Err(format!("'{text}' is no range: {first} is more than {last}"));
            }
            Ok(first..=last)
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Self)
    }
}

/// What the uplink is to do.
#[derive(Debug, Default)]
pub struct Options {
    /// VMs.
    pub count: u32,
    /// Ports that lead to them.
    pub bound: Vec<Bound>,
    /// What they may reach of the host.
    pub host_ports: HostPorts,
    /// The guests' hardware addresses.
    pub macs: Macs,
    /// What the VMs are called outside: they may not reach each other by it.
    pub peers: Option<Addresses>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_are_ports_and_ranges() {
        let ports: HostPorts = "80,8000-8002".parse().unwrap();
        let allowed = [80, 8000, 8002, 81, 7999, 8003].map(|port| ports.contains(port));
        assert_eq!(allowed, [true, true, true, false, false, false]);
        for text in ["", "0", "x", "5-4", "1-", "70000", "1,,2"] {
            assert!(text.parse::<HostPorts>().is_err(), "{text}");
        }
    }

    #[test]
    fn ports_at_which_this_program_listens_are_refused_wherever_loopback_leads_there() {
        let ports: HostPorts = "8000-8090".parse().unwrap();
        let refused = |address: &str| ports.refuse(address.parse().unwrap(), "it").is_err();
        let reached = [
            "127.0.0.1:8080",
            "0.0.0.0:8000",
            "[::]:8090",
            "[::ffff:127.0.0.1]:8080",
            "[::ffff:0.0.0.0]:8080",
        ];
        for address in reached {
            assert!(refused(address), "{address}");
        }
        // Guests do not get to these.
        for address in
            ["127.0.0.1:7999", "0.0.0.0:8091", "127.0.0.2:8080", "[::1]:8080", "192.0.2.1:8080"]
        {
            assert!(!refused(address), "{address}");
        }
    }
}

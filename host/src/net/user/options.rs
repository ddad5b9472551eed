//! Options of the `user` uplink.

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
    /// Whether guests may reach this port.
    pub(super) fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Returns an error if guests could reach `address`, at which this program listens because of
    /// the option `by`. What it offers there to users of this host, such as commands on all VMs, is
    /// not for guests.
    pub fn refuse(&self, address: SocketAddr, by: &str) -> Result<(), NetError> {
        // Guests connect to 127.0.0.1. A socket at all addresses of IPv6 also listens at those of
        // IPv4.
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

/// Options of the uplink.
#[derive(Debug, Default)]
pub struct Options {
    /// Number of VMs.
    pub count: u32,
    /// Published ports.
    pub bound: Vec<Bound>,
    /// Ports of the host that the guests may reach.
    pub host_ports: HostPorts,
    /// MAC addresses of the guests.
    pub macs: Macs,
    /// Outside addresses of the VMs, by which they may not reach each other.
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
        // Addresses that guests cannot reach.
        for address in
            ["127.0.0.1:7999", "0.0.0.0:8091", "127.0.0.2:8080", "[::1]:8080", "192.0.2.1:8080"]
        {
            assert!(!refused(address), "{address}");
        }
    }
}

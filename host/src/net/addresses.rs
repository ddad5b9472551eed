//! Addresses of the VMs outside (`--net tap`, `--net-mesh`): one IPv4 address per VM, in a network
//! of their own.
//!
//! ```text
//! .0 the network   .1 the host   .2 VM 0   .3 VM 1   ...   the last: broadcast
//! ```

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use smoltcp::wire::Ipv4Cidr;

use super::rewrite::{Edge, Mac, View};
use super::{GATEWAY_IP, GUEST_IP, GUEST_NETWORK};
use crate::machine::Macs;

/// An IPv4 network, such as 10.77.0.0/16.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subnet(Ipv4Cidr);

/// Number of addresses that no VM gets: those of the network, the host and broadcast.
const RESERVED: u64 = 3;
const FIRST_VM: u32 = 2;

/// Why a network cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    /// The text is not in the notation of networks.
    #[error("not a network; write it like 10.77.0.0/16")]
    Syntax,
    /// Bits behind the prefix are set.
    #[error("{0} is an address in {1}; write that")]
    HostBits(Ipv4Addr, Subnet),
    /// The network is loopback, multicast or reserved.
    #[error("{0} is not for machines; a private one is, such as 10.77.0.0/16")]
    Special(Subnet),
    /// The network overlaps the one that guests have inside.
    #[error("--net-subnet {0} overlaps 10.0.2.0/24, which guests have inside; choose another")]
    Overlap(Subnet),
    /// The network has too few addresses.
    #[error(
        "--net-subnet {subnet} has room for {room} machines, and --count is {count}; \
             a prefix of {enough} bits has room"
    )]
    TooSmall {
        /// The network.
        subnet: Subnet,
        /// Number of VMs that it has addresses for.
        room: u64,
        /// Number of VMs.
        count: u32,
        /// Longest prefix that is enough.
        enough: u8,
    },
}

impl Subnet {
    /// Network that is used unless another is chosen.
    pub const DEFAULT: &str = "10.77.0.0/16";

    /// Returns the network of an address and a mask; `None` if they are not one.
    pub fn from_mask(network: u32, mask: u32) -> Option<Self> {
        let cidr = Ipv4Cidr::from_netmask(network.into(), mask.into()).ok()?;
        (cidr == cidr.network()).then_some(Self(cidr))
    }

    /// Returns the `n`th address of the network.
    fn address(&self, n: u32) -> Ipv4Addr {
        self.0.address().to_bits().wrapping_add(n).into()
    }

    fn broadcast(&self) -> Ipv4Addr {
        self.address(!self.0.netmask().to_bits())
    }

    /// Returns the host's address in the network.
    pub fn host(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// Returns the prefix length of the network.
    pub fn prefix(&self) -> u8 {
        self.0.prefix_len()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Subnet {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (address, prefix) = text.split_once('/').ok_or(AddressError::Syntax)?;
        let address: Ipv4Addr = address.parse().map_err(|_| AddressError::Syntax)?;
        let prefix: u8 = prefix.parse().map_err(|_| AddressError::Syntax)?;
        if !(8..=30).contains(&prefix) {
            return Err(AddressError::Syntax);
        }
        let cidr = Ipv4Cidr::new(address, prefix);
        let subnet = Self(cidr.network());
        if subnet.0 != cidr {
            return Err(AddressError::HostBits(address, subnet));
        }
        match address.octets()[0] {
            0 | 127 | 224.. => Err(AddressError::Special(subnet)),
            _ => Ok(subnet),
        }
    }
}

/// Returns the hardware (MAC) address of a VM outside: locally administered, "po", its number.
/// Guests never have such an address inside, so the two cannot collide.
fn outside_mac(vm: u32) -> Mac {
    let [_, b2, b1, b0] = vm.to_be_bytes();
    [0x02, b'p', b'o', b2, b1, b0]
}

/// Addresses of a fleet's VMs.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    subnet: Subnet,
    count: u32,
    /// MAC addresses as guests see them.
    macs: Macs,
}

impl Addresses {
    /// Assigns addresses of `subnet` to `count` VMs.
    pub fn new(subnet: Subnet, count: u32, macs: Macs) -> Result<Self, AddressError> {
        let overlaps =
            subnet.0.contains_subnet(&GUEST_NETWORK) || GUEST_NETWORK.contains_subnet(&subnet.0);
        if overlaps {
            return Err(AddressError::Overlap(subnet));
        }
        let room = |prefix: u8| (1 << (32 - prefix)) - RESERVED;
        if u64::from(count) > room(subnet.prefix()) {
            let enough = (0..subnet.prefix()).rev().find(|&p| room(p) >= count.into());
            let (room, enough) = (room(subnet.prefix()), enough.unwrap_or(0));
            return Err(AddressError::TooSmall { subnet, room, count, enough });
        }
        Ok(Self { subnet, count, macs })
    }

    /// Returns the network.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Returns the number of VMs.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Returns the address of a VM.
    pub fn ip(&self, vm: u32) -> Ipv4Addr {
        self.subnet.address(FIRST_VM.wrapping_add(vm))
    }

    /// Returns the VM with an address.
    pub fn vm(&self, ip: Ipv4Addr) -> Option<u32> {
        let vm = ip.to_bits().checked_sub(self.ip(0).to_bits())?;
        (vm < self.count).then_some(vm)
    }

    /// Returns the address translation ("edge") between a VM and the outside.
    pub fn edge(&self, vm: u32) -> Edge {
        let inside = View {
            mac: self.macs.of(vm),
            ip: GUEST_IP,
            gateway: GATEWAY_IP,
            broadcast: Subnet(GUEST_NETWORK).broadcast(),
        };
        let outside = View {
            mac: outside_mac(vm),
            ip: self.ip(vm),
            gateway: self.subnet.host(),
            broadcast: self.subnet.broadcast(),
        };
        Edge { inside, outside }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Result<Subnet, String> {
        text.parse().map_err(|e: AddressError| e.to_string())
    }

    fn addresses(text: &str, count: u32) -> Result<Addresses, String> {
        Addresses::new(subnet(text).unwrap(), count, Macs::Same).map_err(|e| e.to_string())
    }

    #[test]
    fn vms_have_the_addresses_after_the_hosts() {
        let addresses = addresses("192.168.6.0/23", 509).unwrap();
        assert_eq!(addresses.subnet().host().to_string(), "192.168.6.1");
        assert_eq!(addresses.ip(0).to_string(), "192.168.6.2");
        assert_eq!(addresses.ip(508).to_string(), "192.168.7.254");
        for vm in 0..509 {
            assert_eq!(addresses.vm(addresses.ip(vm)), Some(vm));
        }
        for other in ["192.168.6.0", "192.168.6.1", "192.168.7.255", "192.168.5.255", "0.0.0.0"] {
            assert_eq!(addresses.vm(other.parse().unwrap()), None, "{other}");
        }
        let edge = addresses.edge(3);
        assert_eq!(edge.outside.broadcast.to_string(), "192.168.7.255");
        assert_eq!(edge.inside.broadcast.to_string(), "10.0.2.255");
    }

    #[test]
    fn networks_that_cannot_be_used_say_why() {
        for wrong in ["", "10.77.0.0", "10.77.0.0/7", "10.77.0.0/31", "10.77.0/16", "x/16"] {
            assert!(subnet(wrong).unwrap_err().contains("10.77.0.0/16"), "{wrong}");
        }
        assert!(subnet("10.77.0.1/16").unwrap_err().ends_with("in 10.77.0.0/16; write that"));
        assert!(subnet("224.0.0.0/8").unwrap_err().contains("private"));
        for overlap in ["10.0.2.0/24", "10.0.2.128/25", "10.0.0.0/8"] {
            assert!(addresses(overlap, 1).unwrap_err().contains("overlaps"), "{overlap}");
        }
        let small = addresses("10.77.0.0/24", 254).unwrap_err();
        assert!(small.contains("room for 253") && small.contains("of 23 bits"), "{small}");
    }
}

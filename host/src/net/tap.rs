//! The `tap` uplink: a TAP interface of the host, behind which each VM has its own address.
//!
//! The host has the first address of the network and routes to the others through the interface. It
//! asks for their MAC addresses by ARP; the edge ([`super::rewrite`]) passes the request to the one
//! VM that it is about, and the reply back. So this uplink has no connections and no state for a
//! VM.

use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::time::Instant;
use std::{fmt, fs};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::fd::AsRawFd;
use rustix::io::Errno;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::addresses::{Addresses, Subnet};
use super::rewrite::{self, Destination, PACKET_MAX};
use super::switch::Flood;
use super::user::dhcp_answer;
use super::{DropReason, Packet, PacketSender, Uplink};

/// Name of the interface unless another is chosen.
pub const DEFAULT_NAME: &str = "pxvm0";
const TOKEN: Token = Token(1);
/// Packets from the host that are passed on before packets from VMs are handled again.
const PACKETS: usize = 512;

/// Why the interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The user has no right to make the interface, and none was prepared.
    #[error("there is no right to make or set up {0}; these commands grant it:\n{1}")]
    Rights(String, Commands),
    /// Another program uses the interface.
    #[error("the interface {0} is in use by another program; choose another name: --net tap=NAME")]
    Busy(String),
    /// There is an interface of this name that is not a TAP device.
    #[error("the interface {0} is no TAP device; choose another name: --net tap=NAME")]
    Other(String),
    /// The text cannot be the name of an interface.
    #[error("`{0}` is no name of an interface: 1 to 15 characters, no / and no space")]
    Name(String),
    /// The host's kernel has no TAP driver.
    #[error("there is no /dev/net/tun; `sudo modprobe tun` loads the driver")]
    Driver,
    /// The user may not open the TAP driver's device.
    #[error("/dev/net/tun may not be opened; `sudo chmod 0666 /dev/net/tun` allows it")]
    Access,
    /// Another interface has the network.
    #[error("{subnet} is the network of {other} already; choose another: --net-subnet")]
    Taken {
        /// The network.
        subnet: Subnet,
        /// Name of the other interface.
        other: String,
    },
    /// Any other reason.
    #[error("cannot use the interface {0}")]
    Io(String, #[source] io::Error),
}

impl TapError {
    /// Returns the error for a failure to open the driver's device, where the user can do something
    /// about it.
    pub fn of_driver(error: Errno) -> Option<Self> {
        match error {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => Some(Self::Driver),
            Errno::ACCESS => Some(Self::Access),
            _ => None,
        }
    }

    /// Whether the user requested something impossible.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Io(..))
    }
}

/// Shell commands that make the interface for a user without privileges.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commands {
    name: String,
    subnet: Subnet,
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, subnet } = self;
        let (host, prefix) = (subnet.host(), subnet.prefix());
        writeln!(f, "    sudo ip tuntap add dev {name} mode tap user $USER")?;
        writeln!(f, "    sudo ip addr add {host}/{prefix} broadcast + dev {name}")?;
        write!(f, "    sudo ip link set {name} up")
    }
}

/// A TAP interface.
pub struct TapUplink {
    name: String,
    device: SyncDevice,
    addresses: Addresses,
    flood: Flood,
    /// Whether there may be packets to read: readiness is edge-triggered.
    readable: bool,
    /// Whether an error was printed.
    told: bool,
}

impl TapUplink {
    /// Makes the interface, or opens the one that was prepared.
    pub fn open(name: &str, addresses: Addresses) -> Result<Self, TapError> {
        let subnet = addresses.subnet();
        let valid = |c: char| !c.is_whitespace() && !c.is_control() && c != '/';
        if !(1..16).contains(&name.len()) || !name.chars().all(valid) || [".", ".."].contains(&name)
        {
            return Err(TapError::Name(name.to_owned()));
        }
        let failed = |e| TapError::Io(name.to_owned(), e);
        let routes = || fs::read_to_string("/proc/net/route").map_err(failed);
        if let Some(other) = devices(&routes()?, subnet).into_iter().find(|d| d != name) {
            return Err(TapError::Taken { subnet, other });
        }
        let device = match make(name, Some(subnet)) {
            // A prepared interface has been set up as well.
            Err(Errno::PERM) => make(name, None),
            result => result,
        };
        let rights =
            || TapError::Rights(name.to_owned(), Commands { name: name.to_owned(), subnet });
        let device = device.map_err(|error| match error {
            Errno::PERM => rights(),
            Errno::BUSY => TapError::Busy(name.to_owned()),
            Errno::INVAL => TapError::Other(name.to_owned()),
            other => TapError::of_driver(other).unwrap_or_else(|| failed(other.into())),
        })?;
        device.set_nonblocking(true).map_err(failed)?;
        if devices(&routes()?, subnet).is_empty() {
            return Err(rights());
        }
        let flood = Flood::new(addresses.count().into(), Instant::now());
        Ok(Self { name: name.to_owned(), device, addresses, flood, readable: false, told: false })
    }

    /// Handles a packet from the host.
    fn inbound(&mut self, packet: &[u8], out: &mut PacketSender<'_>) {
        let destination = match rewrite::destination(packet) {
            Ok(Destination::One(ip)) if ip == broadcast(&self.addresses) => Destination::Everyone,
            Ok(destination) => destination,
            Err(reason) => return out.lost(reason),
        };
        let mut send = |vm| {
            let mut packet = Packet::from(packet);
            match self.addresses.edge(vm).inward(&mut packet) {
                Ok(()) => out.send(vm, packet),
                Err(reason) => out.dropped(vm, reason),
            }
        };
        match destination {
            Destination::One(ip) => match self.addresses.vm(ip) {
                Some(vm) => send(vm),
                None => out.lost(DropReason::Unreachable),
            },
            Destination::Everyone => {
                if self.flood.passes(self.addresses.count().into(), Instant::now()) {
                    (0..self.addresses.count()).for_each(send);
                } else {
                    out.lost(DropReason::Broadcast);
                }
            }
        }
    }

    /// Reads packets from the host, a limited number.
    fn read(&mut self, out: &mut PacketSender<'_>) {
        // One byte more shows that a packet is too long.
        let mut buffer = [0; PACKET_MAX + 1];
        for _ in 0..PACKETS {
            match self.device.recv(&mut buffer) {
                Ok(len) => self.inbound(&buffer[..len], out),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    self.readable = false;
                    if e.kind() != ErrorKind::WouldBlock {
                        self.tell(&e);
                    }
                    return;
                }
            }
        }
    }

    /// Prints the first error; further ones are only counted.
    fn tell(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!("the interface {} fails: {error}", self.name);
        }
    }
}

fn broadcast(addresses: &Addresses) -> Ipv4Addr {
    addresses.edge(0).outside.broadcast
}

/// Opens the interface, and sets it up unless it was prepared.
fn make(name: &str, set_up: Option<Subnet>) -> Result<SyncDevice, Errno> {
    let builder = DeviceBuilder::new().name(name).layer(Layer::L2);
    let builder = match set_up {
        Some(subnet) => builder.ipv4(subnet.host(), subnet.prefix(), None).enable(true),
        None => builder.inherit_enable_state(),
    };
    builder.build_sync().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// Returns the interfaces that have this network, by the kernel's routing table.
fn devices(routes: &str, subnet: Subnet) -> Vec<String> {
    let route = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // The table has host byte order, the reverse of that of addresses here.
        let address = |i: usize| u32::from_str_radix(words.get(i)?, 16).ok().map(u32::swap_bytes);
        let found = Subnet::from_mask(address(1)?, address(7)?)?;
        (found == subnet).then(|| words[0].to_owned())
    };
    routes.lines().filter_map(route).collect()
}

impl Uplink for TapUplink {
    fn register(&mut self, registry: &Registry) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.device.as_raw_fd()), TOKEN, Interest::READABLE)
    }

    fn transmit(&mut self, vm: u32, mut packet: Packet, out: &mut PacketSender<'_>) {
        let edge = self.addresses.edge(vm);
        if let Some(answer) = dhcp_answer(&packet, edge.inside.mac) {
            return out.send(vm, answer);
        }
        if let Err(reason) = edge.outward(&mut packet) {
            return out.dropped(vm, reason);
        }
        if let Err(error) = self.device.send(&packet) {
            out.dropped(vm, DropReason::UplinkFull);
            if error.kind() != ErrorKind::WouldBlock {
                self.tell(&error);
            }
        }
    }

    fn ready(&mut self, _: &Event, _: &mut PacketSender<'_>) {
        self.readable = true;
    }

    fn poll(&mut self, now: Instant, out: &mut PacketSender<'_>) -> Option<Instant> {
        if self.readable {
            self.read(out);
        }
        self.readable.then_some(now)
    }

    // A VM that starts again keeps its addresses.
    fn reset(&mut self, _: u32, _: &mut PacketSender<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Macs;

    fn addresses() -> Addresses {
        Addresses::new("10.78.0.0/16".parse().unwrap(), 3, Macs::Same).unwrap()
    }

    #[test]
    fn the_table_of_routes_says_whose_a_network_is() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            pxvm0\t00004E0A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            vpn\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n\
            broken\n";
        let of = |text: &str| devices(table, text.parse().unwrap());
        assert_eq!(of("10.78.0.0/16"), ["pxvm0"]);
        assert_eq!(of("10.0.0.0/8"), ["vpn"]);
        assert!(of("10.78.0.0/17").is_empty());
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "a name", "a/b", "..", "0123456789abcdef"] {
            let error = TapUplink::open(name, addresses()).err().unwrap();
            assert!(matches!(error, TapError::Name(_)), "{error}");
        }
    }

    #[test]
    fn the_commands_are_complete() {
        let subnet = addresses().subnet();
        let commands = Commands { name: "tap7".into(), subnet }.to_string();
        for part in ["add dev tap7 mode tap user $USER", "10.78.0.1/16", "link set tap7 up"] {
            assert!(commands.contains(part), "{commands}");
        }
    }
}

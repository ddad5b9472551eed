//! The network: from the guests' virtio network cards to the outside.
//!
//! ```text
//! guest, virtio-net, port | backend | VirtualLink | network thread: Switch, Uplink | outside
//! ```
//!
//! Backends put the packets that guests send on the [`VirtualLink`] and take packets for guests
//! from it; they never wait. The network thread does everything else, waiting for the link, for
//! sockets and for timers at once. Its work is proportional to packets and bytes, not to VMs.
//!
//! All guests may be identical, addresses included. A VM is therefore identified by its number from
//! end to end; which address the outside sees instead of [`GUEST_IP`] is up to the uplink.

pub mod addresses;
pub mod connector;
pub mod counters;
pub mod link;
mod listen;
pub mod pcap;
pub mod publish;
pub mod rewrite;
pub mod service;
pub mod switch;
pub mod tap;
pub mod user;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use mio::event::Event;
use mio::{Registry, Token};
use smoltcp::wire::Ipv4Cidr;

pub use self::connector::{Connector, InboundConnection};
pub use self::counters::{Counts, DropReason};
pub use self::link::VirtualLink;
pub use self::listen::listen;
pub use self::publish::Publish;
pub use self::service::Network;

/// A packet of the virtual network: an Ethernet frame without its check sequence, 14 to
/// [`emu_core::port::PACKET_MAX`] bytes. A frame is 4 KiB of guest memory.
pub type Packet = Box<[u8]>;

/// IPv4 address that every guest has on its own side.
pub const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// IPv4 address of a guest's gateway, which is the host's end of the virtual link.
pub const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Prefix length of the guest's network.
pub const PREFIX_LEN: u8 = 24;
/// Network of the guest and its gateway.
pub const GUEST_NETWORK: Ipv4Cidr = Ipv4Cidr::new(GATEWAY_IP, PREFIX_LEN).network();
/// MAC address of the gateway, the same for all guests. No VM has it.
pub const GATEWAY_MAC: [u8; 6] = [0x02, b'p', b'x', 0xff, 0xff, 0xfe];

/// Token of the network thread's own waker. Uplinks use any other.
pub const WAKER: Token = Token(0);

/// An uplink: connects guests to the outside. The network thread makes all calls.
pub trait Uplink: Send {
    /// Registers the uplink's event sources, before the first guest starts.
    fn register(&mut self, registry: &Registry) -> io::Result<()>;

    /// Handles a packet from VM `vm`. It has at least an Ethernet header; nothing else was checked.
    fn transmit(&mut self, vm: u32, packet: Packet, out: &mut PacketSender<'_>);

    /// Handles an event of a registered source.
    fn ready(&mut self, event: &Event, out: &mut PacketSender<'_>);

    /// Handles timers, after the packets and events of one round. Returns the latest time for the
    /// next call.
    fn poll(&mut self, now: Instant, out: &mut PacketSender<'_>) -> Option<Instant>;

    /// Drops the state of VM `vm`, such as its connections, because it has started again or ended.
    fn reset(&mut self, vm: u32, out: &mut PacketSender<'_>);

    /// Takes an inbound connection from this program to a VM. Dropping it refuses it.
    fn connect(&mut self, _inbound: InboundConnection, _now: Instant, _out: &mut PacketSender<'_>) {
    }
}

/// Sends packets to guests and counts dropped ones.
pub struct PacketSender<'a> {
    link: &'a VirtualLink,
}

impl<'a> PacketSender<'a> {
    /// Returns a packet sender for `link`.
    pub fn new(link: &'a VirtualLink) -> Self {
        Self { link }
    }

    /// Sends a packet to a VM. It is dropped and counted when the VM's queue is full.
    pub fn send(&mut self, vm: u32, packet: Packet) {
        self.link.deliver(vm, packet);
    }

    /// Returns how many more packets can be queued for VM `vm`.
    pub fn room(&self, vm: u32) -> usize {
        self.link.room(vm)
    }

    /// Whether VM `vm` has ended and takes no more packets.
    pub fn has_ended(&self, vm: u32) -> bool {
        self.link.has_ended(vm)
    }

    /// Counts a dropped packet from or to VM `vm`.
    pub fn dropped(&self, vm: u32, reason: DropReason) {
        self.link.dropped(vm, reason);
    }

    /// Counts a dropped packet from the outside that is for no VM.
    pub fn lost(&self, reason: DropReason) {
        self.link.lost(reason);
    }
}

/// Why a network cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Another program uses the port.
    #[error("{address} is taken by another program; choose another port than {by}")]
    PortTaken {
        /// Option that names the port.
        by: String,
        /// Address of the port.
        address: SocketAddr,
    },
    /// The port needs privileges: it is below 1024, mostly.
    #[error("{by}: {address} needs privileges; choose ports from 1024 on")]
    Privileged {
        /// Option that names the port.
        by: String,
        /// Address of the port.
        address: SocketAddr,
    },
    /// Any other reason.
    #[error("{by}: cannot listen on {address}")]
    Bind {
        /// Option that names the port.
        by: String,
        /// Address of the port.
        address: SocketAddr,
        /// The host's error.
        source: io::Error,
    },
    /// Two options name the same port.
    #[error("{a} and {b} both want port {port}")]
    Overlap {
        /// The port.
        port: u16,
        /// First of the two options.
        a: String,
        /// Second of the two options.
        b: String,
    },
    /// Guests could reach a port at which this program itself listens.
    #[error(
        "--net-host-ports would lead the machines to {address}, which is {by} of this fleet; \
         leave {} out there, or choose another port here", address.port()
    )]
    OwnPort {
        /// Address at which this program listens.
        address: SocketAddr,
        /// Option that names the address.
        by: String,
    },
    /// The range of ports ends past the last port.
    #[error(
        "{by} for {count} machines ends at port {last}, past 65535; \
         there is room for {fits} machines"
    )]
    TooManyPorts {
        /// Option that names the range.
        by: String,
        /// Number of VMs.
        count: u32,
        /// The last port of the range.
        last: u64,
        /// Number of VMs whose ports fit.
        fits: u32,
    },
    /// The limit of open files is too low.
    #[error("{needed} open files are needed and {limit} allowed; raise the limit (ulimit -n)")]
    Files {
        /// The limit.
        limit: u64,
        /// The limit that is needed.
        needed: u64,
    },
    /// The network's addresses cannot be used.
    #[error(transparent)]
    Addresses(#[from] addresses::AddressError),
    /// The host's TAP interface cannot be used.
    #[error(transparent)]
    Tap(#[from] tap::TapError),
    /// The capture file (pcap) cannot be written.
    #[error(transparent)]
    Capture(#[from] pcap::CaptureError),
    /// The network thread, or what it polls with, could not be made.
    #[error("cannot start the network")]
    Start(#[source] io::Error),
}

impl NetError {
    /// Whether the user requested something impossible.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Bind { .. } | Self::Start(_) => false,
            Self::Tap(error) => error.is_usage(),
            Self::Capture(error) => error.is_usage(),
            _ => true,
        }
    }
}

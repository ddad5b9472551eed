//! The network: between the guests' network cards and the outside.
//!
//! ```text
//! guest, virtio-net, port | backend | Wire | network thread: Switch, Uplink | outside
//! ```
//!
//! Backends put what guests send on the [`Wire`] and take from it what is for them; they never
//! wait. One thread does everything else, when there is something to do: it waits for the wire, for
//! sockets and for timers at once. Its work is proportional to frames and bytes, not to VMs.
//!
//! All guests may be identical, addresses included. So a VM is told from others by its number, from
//! the first to the last step; what the outside sees instead of [`GUEST_IP`] is the uplink's part.

pub mod addresses;
pub mod counters;
pub mod door;
mod listen;
pub mod pcap;
pub mod publish;
pub mod rewrite;
pub mod service;
pub mod switch;
pub mod tap;
pub mod user;
pub mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use mio::event::Event;
use mio::{Registry, Token};
use smoltcp::wire::Ipv4Cidr;

pub use self::counters::{Counts, DropReason};
pub use self::door::{Door, Visit};
pub use self::listen::listen;
pub use self::publish::Publish;
pub use self::service::Network;
pub use self::wire::Wire;

/// An Ethernet frame without its check sequence, 14 to [`emu_core::port::FRAME_MAX`] bytes.
pub type Frame = Box<[u8]>;

/// The address that every guest has, as far as it knows.
pub const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Its gateway: the host's end of the wire.
pub const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Bits of the network's part of the two.
pub const PREFIX_LEN: u8 = 24;
/// The network that the two are in.
pub const GUEST_NETWORK: Ipv4Cidr = Ipv4Cidr::new(GATEWAY_IP, PREFIX_LEN).network();
/// The gateway's hardware address, the same for all guests. No VM has it.
pub const GATEWAY_MAC: [u8; 6] = [0x02, b'p', b'x', 0xff, 0xff, 0xfe];

/// The loop's own token. Uplinks take any other.
pub const WAKER: Token = Token(0);

/// What guests reach, and what reaches guests. All calls come from the network thread.
pub trait Uplink: Send {
    /// Registers what it listens to, before the first guest starts.
    fn register(&mut self, registry: &Registry) -> io::Result<()>;

    /// A frame from VM `vm`. It has at least an Ethernet header and nothing else was checked.
    fn transmit(&mut self, vm: u32, frame: Frame, out: &mut Outlet<'_>);

    /// Something that it has registered is ready.
    fn ready(&mut self, event: &Event, out: &mut Outlet<'_>);

    /// Does what is due, after frames and events of one round were passed on. Answers when it
    /// wants to be called again at the latest.
    fn poll(&mut self, now: Instant, out: &mut Outlet<'_>) -> Option<Instant>;

    /// VM `vm` has started again or ended: whatever it had open is gone.
    fn reset(&mut self, vm: u32, out: &mut Outlet<'_>);

    /// A connection from this program to a VM. It is refused by dropping it.
    fn visit(&mut self, _visit: Visit, _now: Instant, _out: &mut Outlet<'_>) {}
}

/// The way to the guests.
pub struct Outlet<'a> {
    wire: &'a Wire,
}

impl<'a> Outlet<'a> {
    /// A way that ends at `wire`.
    pub fn new(wire: &'a Wire) -> Self {
        Self { wire }
    }

    /// Sends a frame to a VM. It is dropped, and counted, when the VM does not take what it has.
    pub fn send(&mut self, vm: u32, frame: Frame) {
        self.wire.deliver(vm, frame);
    }

    /// How many more frames VM `vm` may be sent before it must take some.
    pub fn room(&self, vm: u32) -> usize {
        self.wire.room(vm)
    }

    /// Whether VM `vm` takes no frame any more, for ever.
    pub fn has_ended(&self, vm: u32) -> bool {
        self.wire.has_ended(vm)
    }

    /// Counts a frame from or to VM `vm` that goes nowhere.
    pub fn dropped(&self, vm: u32, reason: DropReason) {
        self.wire.dropped(vm, reason);
    }

    /// Counts a frame from the outside that is for no VM.
    pub fn lost(&self, reason: DropReason) {
        self.wire.lost(reason);
    }
}

/// A network that cannot be made as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Another program has the port.
    #[error("{address} is taken by another program; choose another port than {by}")]
    PortTaken {
        /// The option that asks for it.
        by: String,
        /// The address.
        address: SocketAddr,
    },
    /// A port below 1024, mostly.
    #[error("{by}: {address} needs privileges; choose ports from 1024 on")]
    Privileged {
        /// The option that asks for it.
        by: String,
        /// The address.
        address: SocketAddr,
    },
    /// Any other reason.
    #[error("{by}: cannot listen on {address}")]
    Bind {
        /// The option that asks for it.
        by: String,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Two options want the same port.
    #[error("{a} and {b} both want port {port}")]
    Overlap {
        /// The port.
        port: u16,
        /// One of them.
        a: String,
        /// The other.
        b: String,
    },
    /// Guests may reach a port at which this program listens itself.
    #[error(
        "--net-host-ports would lead the machines to {address}, which is {by} of this fleet; \
         leave {} out there, or choose another port here", address.port()
    )]
    OwnPort {
        /// Where it listens.
        address: SocketAddr,
        /// What for.
        by: String,
    },
    /// The range ends past the last port.
    #[error(
        "{by} for {count} machines ends at port {last}, past 65535; \
         there is room for {fits} machines"
    )]
    TooManyPorts {
        /// The option.
        by: String,
        /// Machines.
        count: u32,
        /// The last port.
        last: u64,
        /// Machines that fit.
        fits: u32,
    },
    /// Too few open files are allowed.
    #[error("{needed} open files are needed and {limit} allowed; raise the limit (ulimit -n)")]
    Files {
        /// What is allowed.
        limit: u64,
        /// What is needed.
        needed: u64,
    },
    /// Addresses that VMs cannot have.
    #[error(transparent)]
    Addresses(#[from] addresses::AddressError),
    /// The host's interface.
    #[error(transparent)]
    Tap(#[from] tap::TapError),
    /// The file of what VMs send and receive.
    #[error(transparent)]
    Capture(#[from] pcap::CaptureError),
    /// The thread or what it waits with.
    #[error("cannot start the network")]
    Start(#[source] io::Error),
}

impl NetError {
    /// Whether the user asked for something impossible.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Bind { .. } | Self::Start(_) => false,
            Self::Tap(error) => error.is_usage(),
            Self::Capture(error) => error.is_usage(),
            _ => true,
        }
    }
}

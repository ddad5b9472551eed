//! The gateway as one guest sees it: a user-mode TCP/IP stack (smoltcp) with only that guest on its
//! network.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Instant;

use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet,
};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant as Time};
use smoltcp::wire::{HardwareAddress, IpCidr, IpProtocol, Ipv4Cidr, Ipv4Packet, TcpPacket};

use super::packets::{self, Opening};
use crate::net::{GATEWAY_IP, GUEST_IP, PREFIX_LEN, Packet, PacketSender};

/// Largest IP packet on the virtual link.
const MTU: usize = 1500;
/// Receive buffer: bytes from a guest that wait for the host's end of a connection.
const FROM_GUEST: usize = 32 << 10;
/// Send buffer: bytes for a guest that it has not acknowledged.
const TO_GUEST: usize = 16 << 10;
/// Time after which a guest is considered gone that has something to acknowledge on a connection
/// and sends nothing there. smoltcp's own timeout does not fit, because it also ends idle
/// connections, and those whose guest acknowledges that its window is closed: RFC 9293, 3.8.6.1,
/// keeps them for as long as it does.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// First port for the gateway's end of connections.
const EPHEMERAL: u16 = 49_152;
/// Time between attempts to send when the guest's queue is full.
const RETRY: std::time::Duration = std::time::Duration::from_millis(1);

/// Delay of acknowledgements, so that they can be sent along with data.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// Number of sockets that are kept for later connections.
const SPARE_MAX: usize = 256;

/// Pool of sockets of finished connections, for all guests: their buffers need not be allocated and
/// zeroed again.
#[derive(Default)]
pub struct Spare(Vec<Socket<'static>>);

impl Spare {
    /// Returns a socket in the state of a new one.
    fn take(&mut self) -> Socket<'static> {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let new = || Socket::new(buffer(FROM_GUEST), buffer(TO_GUEST));
        // Connecting or listening resets the rest of the socket's state.
        let mut socket = self.0.pop().unwrap_or_else(new);
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.pause_synack(false);
        socket
    }

    fn put(&mut self, mut socket: Socket<'static>) {
        if self.0.len() < SPARE_MAX {
            socket.abort();
            self.0.push(socket);
        }
    }
}

/// Ports of a connection: the gateway's, then the guest's.
type Ports = (u16, u16);

/// Handle of a connection in a stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handle {
    socket: SocketHandle,
    ports: Ports,
}

/// The TCP/IP stack of one guest.
pub struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    pipe: Pipe,
    epoch: Instant,
    next_port: u16,
    greeted: bool,
}

/// Network device of the stack: passes packets, and strips and adds the Ethernet header.
struct Pipe {
    mac: [u8; 6],
    inward: VecDeque<Packet>,
    outward: Vec<Packet>,
    /// Number of packets that `outward` has room for.
    room: usize,
    /// Connections on which the guest has something to acknowledge and has sent nothing since, with
    /// the time at which it was first sent that.
    asked: BTreeMap<Ports, Time>,
    /// Since when packets for the guest have found no room.
    blocked: Option<Time>,
}

/// Returns the ports of a TCP segment, the sender's first, and whether the other end has to
/// acknowledge it.
fn segment(ip: &[u8]) -> Option<(Ports, bool)> {
    let ip = Ipv4Packet::new_checked(ip).ok()?;
    let tcp = (ip.next_header() == IpProtocol::Tcp).then(|| ip.payload())?;
    let tcp = TcpPacket::new_checked(tcp).ok()?;
    Some(((tcp.src_port(), tcp.dst_port()), tcp.segment_len() > 0))
}

impl Stack {
    /// Returns the stack for a guest with MAC address `mac`.
    pub fn new(mac: [u8; 6]) -> Self {
        let mut pipe = Pipe {
            mac,
            inward: VecDeque::new(),
            outward: Vec::new(),
            room: 0,
            asked: BTreeMap::new(),
            blocked: None,
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = RandomState::new().build_hasher().finish();
        let mut interface = Interface::new(config, &mut pipe, Time::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The list is empty and has room for one address.
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(GATEWAY_IP, PREFIX_LEN)));
        });
        let sockets = SocketSet::new(Vec::new());
        let epoch = Instant::now();
        Self { interface, sockets, pipe, epoch, next_port: EPHEMERAL, greeted: false }
    }

    fn time(&self, now: Instant) -> Time {
        let micros = now.saturating_duration_since(self.epoch).as_micros();
        Time::from_micros(micros as i64)
    }

    /// Opens a connection to a port of the guest.
    pub fn connect(&mut self, port: u16, spare: &mut Spare) -> Option<Handle> {
        let local = self.free_port()?;
        let mut socket = spare.take();
        let (to, from) = ((GUEST_IP, port), (GATEWAY_IP, local));
        socket.connect(self.interface.context(), to, from).ok()?;
        if !self.greeted {
            self.greeted = true;
            self.pipe.outward.push(packets::greeting(self.pipe.mac));
        }
        Some(Handle { socket: self.sockets.add(socket), ports: (local, port) })
    }

    /// Accepts a connection from the guest, once [`Socket::pause_synack`] allows it. `None` when it
    /// is being established already.
    pub fn accept(&mut self, opening: Opening, spare: &mut Spare) -> Option<Handle> {
        let known = self.tcp().any(|socket| {
            socket.local_endpoint().is_some_and(|local| local.port == opening.to)
                && socket.remote_endpoint().is_some_and(|remote| remote.port == opening.from)
        });
        if known {
            return None;
        }
        let mut socket = spare.take();
        socket.pause_synack(true);
        socket.listen((GATEWAY_IP, opening.to)).ok()?;
        Some(Handle { socket: self.sockets.add(socket), ports: (opening.to, opening.from) })
    }

    fn tcp(&self) -> impl Iterator<Item = &Socket<'static>> {
        self.sockets.iter().map(|(_, smoltcp::socket::Socket::Tcp(socket))| socket)
    }

    /// Returns a port of the gateway that no connection uses.
    fn free_port(&mut self) -> Option<u16> {
        for _ in EPHEMERAL..=u16::MAX {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(EPHEMERAL);
            let used =
                |socket: &Socket<'_>| socket.local_endpoint().is_some_and(|e| e.port == port);
            if !self.tcp().any(used) {
                return Some(port);
            }
        }
        None
    }

    /// Returns the socket of a connection.
    pub fn get(&mut self, handle: Handle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle.socket)
    }

    /// Whether the guest has left data on a connection unacknowledged for too long.
    pub fn is_unanswered(&self, handle: Handle, now: Instant) -> bool {
        let socket = self.sockets.get::<Socket<'_>>(handle.socket);
        let has_more = socket.send_queue() > 0
            || matches!(
                socket.state(),
                State::SynSent | State::FinWait1 | State::Closing | State::LastAck
            );
        let blocked = self.pipe.blocked.filter(|_| has_more);
        let since = self.pipe.asked.get(&handle.ports).copied().or(blocked);
        since.is_some_and(|since| self.time(now) >= since + ACK_TIMEOUT)
    }

    /// Whether a connection is over in both directions.
    pub fn is_over(&self, handle: Handle) -> bool {
        let socket = self.sockets.get::<Socket<'_>>(handle.socket);
        match socket.state() {
            State::Closed => socket.remote_endpoint().is_none(),
            // Ports are reused so late that nothing has to wait in this state.
            State::TimeWait => true,
            _ => false,
        }
    }

    /// Removes a connection.
    pub fn remove(&mut self, handle: Handle, spare: &mut Spare) {
        let smoltcp::socket::Socket::Tcp(socket) = self.sockets.remove(handle.socket);
        self.pipe.asked.remove(&handle.ports);
        spare.put(socket);
    }

    /// Queues a packet from the guest that was inspected.
    pub fn push(&mut self, packet: Packet) {
        if let Some(((guest, gateway), _)) = segment(packets::payload(&packet)) {
            self.pipe.asked.remove(&(gateway, guest));
        }
        self.pipe.inward.push_back(packet);
    }

    /// Handles the queued packets from the guest.
    pub fn receive(&mut self, now: Instant) {
        let time = self.time(now);
        let Self { interface, sockets, pipe, .. } = self;
        while interface.poll_ingress_single(time, pipe, sockets) != PollIngressSingleResult::None {}
    }

    /// Sends the stack's packets to VM `vm`. Returns when the next ones may be due.
    pub fn send(&mut self, vm: u32, now: Instant, out: &mut PacketSender<'_>) -> Option<Instant> {
        let time = self.time(now);
        let Self { interface, sockets, pipe, epoch, .. } = self;
        pipe.room = out.room(vm);
        if pipe.room > 0 {
            pipe.blocked = None;
        }
        while interface.poll_egress(time, pipe, sockets) != PollResult::None {}
        pipe.outward.drain(..).for_each(|packet| out.send(vm, packet));
        let at = interface.poll_at(time, sockets)?;
        let at = *epoch + std::time::Duration::from_micros(at.total_micros().max(0) as u64);
        // Packets that are due and were not sent have found no room.
        Some(at.max(now + RETRY))
    }
}

impl Device for Pipe {
    type RxToken<'a> = Inward;
    type TxToken<'a> = Outward<'a>;

    fn receive(&mut self, now: Time) -> Option<(Inward, Outward<'_>)> {
        let packet = self.inward.pop_front()?;
        Some((Inward(packet), Outward { pipe: self, now }))
    }

    fn transmit(&mut self, now: Time) -> Option<Outward<'_>> {
        if self.room == 0 {
            self.blocked.get_or_insert(now);
        }
        (self.outward.len() < self.room).then_some(Outward { pipe: self, now })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // Checksums of packets from the guest were verified when they were inspected.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Inward(Packet);

impl RxToken for Inward {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(packets::payload(&self.0))
    }
}

struct Outward<'a> {
    pipe: &'a mut Pipe,
    now: Time,
}

impl TxToken for Outward<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let (packet, result) = packets::ip_packet(self.pipe.mac, len, f);
        if let Some((ports, true)) = segment(packets::payload(&packet)) {
            self.pipe.asked.entry(ports).or_insert(self.now);
        }
        self.pipe.outward.push(packet);
        result
    }
}

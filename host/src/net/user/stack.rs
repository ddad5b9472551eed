//! The gateway as one guest sees it: a TCP/IP stack with that guest alone on its network.

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

use super::frames::{self, Opening};
use crate::net::{Frame, GATEWAY_IP, GUEST_IP, Outlet, PREFIX_LEN};

/// The largest IP packet on the wire.
const MTU: usize = 1500;
/// Bytes from a guest that wait for the host's end of a connection.
const FROM_GUEST: usize = 32 << 10;
/// Bytes for a guest that it has not acknowledged.
const TO_GUEST: usize = 16 << 10;
/// A guest that says nothing on a connection for so long after it was sent something there that it
/// has to acknowledge is gone. This is not smoltcp's own timeout, which also ends connections on
/// which nobody has anything to say, and those of a guest that acknowledges that its window is
/// closed: RFC 9293, 3.8.6.1, keeps them for as long as it does.
const PATIENCE: Duration = Duration::from_secs(30);
/// First port of the gateway's ends of connections.
const EPHEMERAL: u16 = 49_152;
/// When frames for the guest found no room.
const RETRY: std::time::Duration = std::time::Duration::from_millis(1);

/// A socket waits so long for data that its acknowledgement can go along with.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// Sockets that are kept for the next connections.
const SPARE_MAX: usize = 256;

/// Sockets whose connections are over, for all guests: their buffers need not be made and zeroed
/// again.
#[derive(Default)]
pub struct Spare(Vec<Socket<'static>>);

impl Spare {
    /// A socket as if it were new.
    fn take(&mut self) -> Socket<'static> {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let new = || Socket::new(buffer(FROM_GUEST), buffer(TO_GUEST));
        // What it was asked to do before is forgotten when it connects or listens.
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

/// The gateway's port of a connection and the guest's.
type Ports = (u16, u16);

/// A connection of a stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handle {
    socket: SocketHandle,
    ports: Ports,
}

/// One guest's stack.
pub struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    pipe: Pipe,
    epoch: Instant,
    next_port: u16,
    greeted: bool,
}

/// The stack's network card: frames in and out, with the Ethernet header taken off and put on.
struct Pipe {
    mac: [u8; 6],
    inward: VecDeque<Frame>,
    outward: Vec<Frame>,
    /// Frames that there is room for in `outward`.
    room: usize,
    /// Connections on which the guest has something to acknowledge and has said nothing since it
    /// was first sent that.
    asked: BTreeMap<Ports, Time>,
    /// Since when there is something for the guest and no room for it.
    blocked: Option<Time>,
}

/// Returns the ports of a TCP segment, the sender's first, and whether the other end has to
/// acknowledge it.
fn segment(packet: &[u8]) -> Option<(Ports, bool)> {
    let packet = Ipv4Packet::new_checked(packet).ok()?;
    let tcp = (packet.next_header() == IpProtocol::Tcp).then(|| packet.payload())?;
    let tcp = TcpPacket::new_checked(tcp).ok()?;
    Some(((tcp.src_port(), tcp.dst_port()), tcp.segment_len() > 0))
}

impl Stack {
    /// The stack for a guest with hardware address `mac`.
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
            // The list is empty and has room for one.
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

    /// Begins a connection to a port of the guest.
    pub fn connect(&mut self, port: u16, spare: &mut Spare) -> Option<Handle> {
        let local = self.free_port()?;
        let mut socket = spare.take();
        let (to, from) = ((GUEST_IP, port), (GATEWAY_IP, local));
        socket.connect(self.interface.context(), to, from).ok()?;
        if !self.greeted {
            self.greeted = true;
            self.pipe.outward.push(frames::greeting(self.pipe.mac));
        }
        Some(Handle { socket: self.sockets.add(socket), ports: (local, port) })
    }

    /// Lets the guest's connection come about, once [`Socket::pause_synack`] allows it. None when
    /// it is on its way already.
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

    /// A port of the gateway that no connection uses.
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

    /// A connection.
    pub fn get(&mut self, handle: Handle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle.socket)
    }

    /// Whether the guest leaves what it was sent on a connection unanswered, and has for too long.
    pub fn is_unanswered(&self, handle: Handle, now: Instant) -> bool {
        let socket = self.sockets.get::<Socket<'_>>(handle.socket);
        let has_more = socket.send_queue() > 0
            || matches!(
                socket.state(),
                State::SynSent | State::FinWait1 | State::Closing | State::LastAck
            );
        let blocked = self.pipe.blocked.filter(|_| has_more);
        let since = self.pipe.asked.get(&handle.ports).copied().or(blocked);
        since.is_some_and(|since| self.time(now) >= since + PATIENCE)
    }

    /// Whether nothing more is to be said on a connection.
    pub fn is_over(&self, handle: Handle) -> bool {
        let socket = self.sockets.get::<Socket<'_>>(handle.socket);
        match socket.state() {
            State::Closed => socket.remote_endpoint().is_none(),
            // Its port is not used again for so long that nothing has to wait here.
            State::TimeWait => true,
            _ => false,
        }
    }

    /// Forgets a connection.
    pub fn remove(&mut self, handle: Handle, spare: &mut Spare) {
        let smoltcp::socket::Socket::Tcp(socket) = self.sockets.remove(handle.socket);
        self.pipe.asked.remove(&handle.ports);
        spare.put(socket);
    }

    /// A frame from the guest that was looked at.
    pub fn push(&mut self, frame: Frame) {
        if let Some(((guest, gateway), _)) = segment(frames::payload(&frame)) {
            self.pipe.asked.remove(&(gateway, guest));
        }
        self.pipe.inward.push_back(frame);
    }

    /// Takes in what the guest has sent.
    pub fn receive(&mut self, now: Instant) {
        let time = self.time(now);
        let Self { interface, sockets, pipe, .. } = self;
        while interface.poll_ingress_single(time, pipe, sockets) != PollIngressSingleResult::None {}
    }

    /// Sends what there is to send to VM `vm`; answers when there may be more.
    pub fn send(&mut self, vm: u32, now: Instant, out: &mut Outlet<'_>) -> Option<Instant> {
        let time = self.time(now);
        let Self { interface, sockets, pipe, epoch, .. } = self;
        pipe.room = out.room(vm);
        if pipe.room > 0 {
            pipe.blocked = None;
        }
        while interface.poll_egress(time, pipe, sockets) != PollResult::None {}
        pipe.outward.drain(..).for_each(|frame| out.send(vm, frame));
        let at = interface.poll_at(time, sockets)?;
        let at = *epoch + std::time::Duration::from_micros(at.total_micros().max(0) as u64);
        // What is due and was not sent has found no room.
        Some(at.max(now + RETRY))
    }
}

impl Device for Pipe {
    type RxToken<'a> = Inward;
    type TxToken<'a> = Outward<'a>;

    fn receive(&mut self, now: Time) -> Option<(Inward, Outward<'_>)> {
        let frame = self.inward.pop_front()?;
        Some((Inward(frame), Outward { pipe: self, now }))
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
        // Those of frames from the guest were checked and counted.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Inward(Frame);

impl RxToken for Inward {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(frames::payload(&self.0))
    }
}

struct Outward<'a> {
    pipe: &'a mut Pipe,
    now: Time,
}

impl TxToken for Outward<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let (frame, result) = frames::packet(self.pipe.mac, len, f);
        if let Some((ports, true)) = segment(frames::payload(&frame)) {
            self.pipe.asked.entry(ports).or_insert(self.now);
        }
        self.pipe.outward.push(frame);
        result
    }
}

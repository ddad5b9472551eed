//! Test bench of the `user` uplink: a guest with a TCP/IP stack of its own, and a clock that the
//! test sets. Clients and servers on the host are real.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as Time;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr};

use super::{Bench, MAC};
use crate::net::publish::bind_any;
use crate::net::{GATEWAY_IP, GUEST_IP, PREFIX_LEN, Packet};

/// Longest step of the clock.
const STEP: Duration = Duration::from_secs(1);
/// Largest number of rounds at one time: more would be a packet storm.
const LOOKS: usize = 10_000;

/// The two ends of a connection.
pub struct Pair {
    pub host: TcpStream,
    guest: SocketHandle,
}

/// Returns a non-blocking stream without Nagle's delay, which would take real time.
fn plain(host: TcpStream) -> TcpStream {
    host.set_nonblocking(true).unwrap();
    host.set_nodelay(true).unwrap();
    host
}

pub struct World {
    pub bench: Bench,
    pub guest: Guest,
    /// Whether the guest does nothing.
    pub paused: bool,
    published: SocketAddr,
    now: Instant,
}

impl World {
    pub fn new() -> Self {
        let bound = bind_any(1, 80);
        let published = bound[0].listener.local_addr().unwrap();
        let bench = Bench::with(bound);
        Self { bench, guest: Guest::new(), paused: false, published, now: Instant::now() }
    }

    /// Exchanges packets until nothing more happens at this time. Returns when something is due
    /// next.
    pub fn exchange(&mut self) -> Instant {
        for _ in 0..LOOKS {
            let waits = self.bench.link.has_inbound(0);
            let (packets, due) = if self.paused {
                // Packets for the paused guest stay queued.
                (Vec::new(), self.bench.pass(self.now))
            } else {
                self.bench.turn_until(0, self.now)
            };
            let taken = waits || !packets.is_empty();
            self.guest.card.inward.extend(packets);
            let (sent, guest_due) = match self.paused {
                true => (Vec::new(), None),
                false => self.guest.turn(self.now),
            };
            let quiet = sent.is_empty() && (self.paused || !taken);
            sent.into_iter().for_each(|packet| self.bench.send(0, packet));
            if quiet {
                return due.into_iter().chain(guest_due).min().unwrap_or(self.now + STEP);
            }
        }
        panic!("packets go to and fro");
    }

    /// Advances the clock by `time`.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let due = self.exchange();
            let next = self.now + Duration::from_millis(1);
            self.now = due.clamp(next, self.now + STEP).min(end.max(next));
        }
        self.exchange();
    }

    fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + 10 * STEP;
        while !done(self) {
            assert!(self.now < end, "{what}");
            self.run(Duration::from_millis(2));
        }
    }

    /// Opens a connection from a client, not yet accepted.
    pub fn begin(&mut self) -> Pair {
        let guest = self.guest.listen();
        let host = plain(TcpStream::connect(self.published).unwrap());
        Pair { host, guest }
    }

    /// Returns an established connection from a client.
    pub fn by_client(&mut self) -> Pair {
        let pair = self.begin();
        self.established(&pair);
        pair
    }

    /// Returns an established connection from the guest.
    pub fn by_guest(&mut self) -> Pair {
        let guest = self.guest.connect(self.bench.port());
        self.run(Duration::from_millis(10));
        self.bench.server.set_nonblocking(true).unwrap();
        let mut host = None;
        self.run_until("the host accepts", |world| {
            host = world.bench.server.accept().ok();
            host.is_some()
        });
        let (host, _) = host.unwrap();
        let pair = Pair { host: plain(host), guest };
        self.established(&pair);
        pair
    }

    fn established(&mut self, pair: &Pair) {
        let state = |world: &mut Self| world.guest.socket(pair).state();
        self.run_until("it is established", |world| state(world) == State::Established);
    }

    /// Checks that each end receives what the other sends.
    pub fn speak(&mut self, pair: &mut Pair) {
        pair.host.write_all(b"ping").unwrap();
        self.run_until("the guest hears", |world| {
            let heard = world.guest.take(pair);
            assert!(heard.is_empty() || heard == b"ping", "{heard:?}");
            !heard.is_empty()
        });
        self.guest.socket(pair).send_slice(b"pong").unwrap();
        let mut heard = Vec::new();
        self.run_until("the host hears", |world| {
            world.read(&mut pair.host, &mut heard).unwrap();
            heard == b"pong"
        });
    }

    /// Whether neither end of a silent connection has seen its end.
    pub fn is_whole(&mut self, pair: &mut Pair) -> bool {
        let open = matches!(pair.host.peek(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock)
            || matches!(pair.host.peek(&mut [0]), Ok(1..));
        open && (self.paused || self.guest.socket(pair).state() == State::Established)
    }

    /// Reads the bytes that are there.
    pub fn read(&mut self, host: &mut TcpStream, to: &mut Vec<u8>) -> std::io::Result<()> {
        match host.read_to_end(to) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
            Ok(_) => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    pub fn read_to_end(&mut self, host: &mut TcpStream) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut result = Ok(());
        self.run_until("the end comes", |world| {
            result = world.read(host, &mut bytes);
            result.is_err()
        });
        match result {
            Err(e) if e.kind() != ErrorKind::UnexpectedEof => Err(e),
            _ => Ok(bytes),
        }
    }
}

pub struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    card: Card,
    epoch: Instant,
    next_port: u16,
}

impl Guest {
    fn new() -> Self {
        let mut card = Card::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let mut interface = Interface::new(config, &mut card, Time::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(GUEST_IP, PREFIX_LEN))).unwrap();
        });
        let sockets = SocketSet::new(Vec::new());
        Self { interface, sockets, card, epoch: Instant::now(), next_port: 40_000 }
    }

    fn add(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 16 << 10]);
        self.sockets.add(Socket::new(buffer(), buffer()))
    }

    fn listen(&mut self) -> SocketHandle {
        let handle = self.add();
        self.sockets.get_mut::<Socket<'_>>(handle).listen(80).unwrap();
        handle
    }

    fn connect(&mut self, port: u16) -> SocketHandle {
        let handle = self.add();
        self.next_port += 1;
        let (context, local) = (self.interface.context(), self.next_port);
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        socket.connect(context, (GATEWAY_IP, port), local).unwrap();
        handle
    }

    pub fn socket(&mut self, pair: &Pair) -> &mut Socket<'static> {
        self.sockets.get_mut(pair.guest)
    }

    /// Returns the bytes that the guest's end of the pair has received.
    pub fn take(&mut self, pair: &Pair) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.socket(pair).can_recv() {
            let more = self.socket(pair).recv(|some| (some.len(), some.to_vec()));
            bytes.extend(more.unwrap());
        }
        bytes
    }

    /// Returns the packets that the guest sends now, and when it has something to do next.
    fn turn(&mut self, now: Instant) -> (Vec<Vec<u8>>, Option<Instant>) {
        let micros = |time: Duration| time.as_micros() as i64;
        let time = Time::from_micros(micros(now.saturating_duration_since(self.epoch)));
        while self.interface.poll(time, &mut self.card, &mut self.sockets) != PollResult::None {}
        let due = self.interface.poll_at(time, &self.sockets);
        let due = due.map(|at| self.epoch + Duration::from_micros(at.total_micros() as u64));
        (std::mem::take(&mut self.card.outward), due)
    }
}

/// Network device of the guest.
#[derive(Default)]
struct Card {
    inward: VecDeque<Packet>,
    outward: Vec<Vec<u8>>,
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Time) -> Option<(Received, Sent<'_>)> {
        let packet = self.inward.pop_front()?;
        Some((Received(packet), Sent(&mut self.outward)))
    }

    fn transmit(&mut self, _: Time) -> Option<Sent<'_>> {
        Some(Sent(&mut self.outward))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Received(Packet);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

//! Guests that send anything at all.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use mio::{Events, Poll};
use smoltcp::wire::{EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket};

use super::frames::tests::{MAC, from_guest, ip};
use super::*;
use crate::net::publish::{Bound, Target, bind_any};
use crate::net::{GATEWAY_IP, GUEST_IP, Wire};

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// An uplink for two VMs, which may reach one port of the host.
struct Bench {
    uplink: UserUplink,
    wire: Wire,
    poll: Poll,
    /// Accepts nothing: its connections wait.
    server: TcpListener,
}

impl Bench {
    fn new() -> Self {
        Self::with(Vec::new())
    }

    fn with(bound: Vec<Bound>) -> Self {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let host_ports = port.to_string().parse().unwrap();
        let mut uplink =
            UserUplink::new(Options { count: 2, bound, host_ports, ..Options::default() });
        let poll = Poll::new().unwrap();
        uplink.register(poll.registry()).unwrap();
        Self { uplink, wire: Wire::new(2), poll, server }
    }

    fn port(&self) -> u16 {
        self.server.local_addr().unwrap().port()
    }

    fn send(&mut self, vm: u32, frame: Vec<u8>) {
        self.uplink.transmit(vm, frame.into(), &mut self.wire.outlet());
    }

    /// Lets the uplink do what there is to do; answers what VM `vm` was sent.
    fn turn(&mut self, vm: u32) -> Vec<Frame> {
        self.turn_at(vm, Instant::now())
    }

    fn turn_at(&mut self, vm: u32, now: Instant) -> Vec<Frame> {
        let mut events = Events::with_capacity(64);
        self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        for event in &events {
            self.uplink.ready(event, &mut self.wire.outlet());
        }
        self.uplink.poll(now, &mut self.wire.outlet());
        let mut frames = VecDeque::new();
        self.wire.take(vm, usize::MAX, &mut frames);
        frames.into()
    }
}

fn segment(from: u16, to: u16, seq: u32, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 20 + body.len()];
    bytes[20..].copy_from_slice(body);
    bytes[13] = flags;
    let mut tcp = TcpPacket::new_unchecked(&mut bytes[..]);
    tcp.set_src_port(from);
    tcp.set_dst_port(to);
    tcp.set_seq_number(smoltcp::wire::TcpSeqNumber(seq as i32));
    tcp.set_header_len(20);
    tcp.set_window_len(4096);
    tcp.fill_checksum(&IpAddress::Ipv4(GUEST_IP), &IpAddress::Ipv4(GATEWAY_IP));
    ip(IpProtocol::Tcp, GUEST_IP, GATEWAY_IP, &bytes)
}

const SYN: u8 = 2;

/// A frame that some guest might send: mostly well-formed, often damaged, with checksums that are
/// right all the same.
fn frame(dice: &mut Dice, open: u16) -> Vec<u8> {
    let port = if dice.below(2) == 0 { open } else { dice.below(65_536) as u16 };
    let len = dice.below(80);
    let body = dice.bytes(len);
    let mut frame = match dice.below(6) {
        0 => from_guest(EthernetProtocol::Arp, &body),
        1 => ip(IpProtocol::Udp, GUEST_IP, GATEWAY_IP, &body),
        2 => ip(IpProtocol::Icmp, GUEST_IP, GATEWAY_IP, &body),
        3 => segment(dice.below(50) as u16 + 1, port, 0, SYN, &[]),
        _ => {
            let (from, seq) = (dice.below(50) as u16 + 1, dice.below(5) as u32);
            segment(from, port, seq, dice.below(64) as u8, &body)
        }
    };
    for _ in 0..dice.below(4) {
        let at = dice.below(frame.len());
        frame[at] = dice.below(256) as u8;
    }
    if dice.below(4) == 0 {
        frame.truncate(dice.below(frame.len() + 1));
    }
    // So that damage gets as far as it can.
    frame.resize(frame.len().max(14), 0);
    frame[6..12].copy_from_slice(&MAC);
    if let Ok(mut packet) = Ipv4Packet::new_checked(&mut frame[14..]) {
        packet.fill_checksum();
        if packet.next_header() == IpProtocol::Tcp
            && let Ok(mut tcp) = TcpPacket::new_checked(packet.payload_mut())
        {
            tcp.fill_checksum(&IpAddress::Ipv4(GUEST_IP), &IpAddress::Ipv4(GATEWAY_IP));
        }
    }
    frame
}

#[test]
fn no_frame_breaks_the_stack_or_opens_more_than_it_may() {
    let mut bench = Bench::new();
    let open = bench.port();
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let mut answered = 0;
    for i in 0..40_000 {
        bench.send(0, frame(&mut dice, open));
        if i % 8 == 0 {
            answered += bench.turn(0).len();
        }
    }
    assert_eq!(bench.uplink.failures, 0);
    assert!(answered > 1000, "{answered}");
    let seat = bench.uplink.seats[0].as_ref().unwrap();
    assert!(seat.opened > 0 && seat.opened <= FROM_GUEST_MAX, "{}", seat.opened);
    let drops = bench.wire.counts(0).drops;
    for reason in [DropReason::Malformed, DropReason::Unreachable, DropReason::Connections] {
        assert!(drops.get(reason) > 0, "{reason:?}");
    }
    // None of that was about the neighbour.
    assert!(bench.uplink.seats[1].is_none());
    assert_eq!(bench.wire.counts(1), crate::net::Counts::default());
}

#[test]
fn random_bytes_are_no_danger() {
    let mut bench = Bench::new();
    let mut dice = Dice(99);
    for _ in 0..20_000 {
        let len = 14 + dice.below(120);
        let mut bytes = dice.bytes(len);
        bytes[6..12].copy_from_slice(&MAC);
        let kind = [0x0800u16, 0x0806, 0x86dd, 0x8100][dice.below(4)];
        bytes[12..14].copy_from_slice(&kind.to_be_bytes());
        bench.send(0, bytes);
    }
    bench.turn(0);
    assert_eq!(bench.uplink.failures, 0);
    assert_eq!(bench.uplink.conns.iter().flatten().count(), 0);
}

#[test]
fn a_connection_to_a_port_that_is_not_allowed_is_refused() {
    let mut bench = Bench::new();
    let other = bench.port() ^ 1;
    bench.send(1, segment(5, other, 7, SYN, &[]));
    let Some(answer) = bench.turn(1).pop() else { panic!("no answer") };
    let packet = Ipv4Packet::new_checked(frames::payload(&answer)).unwrap();
    assert!(TcpPacket::new_checked(packet.payload()).unwrap().rst());
    assert_eq!(bench.wire.counts(1).drops.get(DropReason::Unreachable), 1);
}

#[test]
fn a_guest_that_starts_again_leaves_no_connection_behind() {
    let mut bench = Bench::new();
    let open = bench.port();
    for from in 1..=10 {
        bench.send(0, segment(from, open, 7, SYN, &[]));
        bench.turn(0);
    }
    assert_eq!(bench.uplink.conns.iter().flatten().count(), 10);
    let wire = &bench.wire;
    bench.uplink.reset(0, &mut wire.outlet());
    assert_eq!(bench.uplink.conns.iter().flatten().count(), 0);
    assert_eq!(bench.uplink.free.len(), 10);
    // What waits in the list of those to be served is nobody any more.
    assert!(bench.turn(0).is_empty());
}

/// Whether the other end has closed a connection.
fn is_closed(mut client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    match client.read(&mut [0]) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => false,
        Ok(0) | Err(_) => true,
        Ok(_) => panic!("nobody speaks"),
    }
}

/// `room` clients for `target`, of whom the third has said something, and more who want their place:
/// `gone` have to go.
fn silent_clients_give_way(target: Target, room: usize, gone: &[usize]) {
    let mut bound = bind_any(1, 80).pop().unwrap();
    bound.target = target;
    let at = bound.listener.local_addr().unwrap();
    let mut bench = Bench::with(vec![bound]);
    let begun = Instant::now();
    let later = |seconds| begun + Duration::from_secs(seconds);
    let mut clients = Vec::new();
    for i in 0..room {
        clients.push(TcpStream::connect(at).unwrap());
        if i == 2 {
            clients[2].write_all(b"GET /").unwrap();
        }
        bench.turn(0);
    }
    let connections = |bench: &Bench| bench.uplink.conns.iter().flatten().count();
    // A turn of the loop takes some connections only.
    (0..room).for_each(|_| _ = bench.turn(0));
    assert_eq!(connections(&bench), room);
    // Nobody wants their place.
    (0..5).for_each(|_| _ = bench.turn_at(0, later(5)));
    assert!(clients.iter().all(|client| !is_closed(client)));

    let newcomers: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(at).unwrap()).collect();
    (0..9).for_each(|_| _ = bench.turn_at(0, later(6)));
    let closed: Vec<usize> = (0..room).filter(|&i| is_closed(&clients[i])).collect();
    assert_eq!(closed, gone);
    assert_eq!(connections(&bench), room);
    assert!(newcomers.iter().all(|client| !is_closed(client)));
}

#[test]
fn silent_clients_of_a_vm_give_way_to_others() {
    silent_clients_give_way(Target::Port { vm: 0, port: 80 }, 48, &[0, 1, 3]);
}

#[test]
fn clients_that_name_no_vm_give_way_to_others() {
    // Half a request names none either.
    silent_clients_give_way(Target::ByName, 256, &[0, 1, 2]);
}

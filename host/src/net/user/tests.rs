//! Tests of the `user` uplink with guests that send anything at all, and of how long connections
//! live.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use mio::{Events, Poll};
use smoltcp::wire::{EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket};

mod world;

use self::world::{Pair, World};
use super::packets::tests::{MAC, from_guest, ip};
use super::*;
use crate::net::publish::{Bound, Target, bind_any};
use crate::net::{GATEWAY_IP, GUEST_IP, VirtualLink};

/// Pseudo-random numbers that are the same in every run.
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
    link: VirtualLink,
    poll: Poll,
    /// A listener that never accepts: its connections wait.
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
        Self { uplink, link: VirtualLink::new(2), poll, server }
    }

    fn port(&self) -> u16 {
        self.server.local_addr().unwrap().port()
    }

    fn send(&mut self, vm: u32, packet: Vec<u8>) {
        self.uplink.transmit(vm, packet.into(), &mut self.link.packet_sender());
    }

    /// Runs one turn of the uplink. Returns the packets sent to VM `vm`.
    fn turn(&mut self, vm: u32) -> Vec<Packet> {
        self.turn_at(vm, Instant::now())
    }

    fn turn_at(&mut self, vm: u32, now: Instant) -> Vec<Packet> {
        self.turn_until(vm, now).0
    }

    /// Runs one turn at time `now`. Returns the packets sent to VM `vm`, and when the uplink is
    /// due next.
    fn turn_until(&mut self, vm: u32, now: Instant) -> (Vec<Packet>, Option<Instant>) {
        let next = self.pass(now);
        let mut packets = VecDeque::new();
        self.link.take(vm, usize::MAX, &mut packets);
        (packets.into(), next)
    }

    /// Runs one turn at time `now`, leaving packets for VMs in their queues. Returns when the
    /// uplink is due next.
    fn pass(&mut self, now: Instant) -> Option<Instant> {
        let mut events = Events::with_capacity(64);
        self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        for event in &events {
            self.uplink.ready(event, &mut self.link.packet_sender());
        }
        self.uplink.poll(now, &mut self.link.packet_sender())
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

/// Returns a packet that some guest might send: mostly well-formed, often damaged, with checksums
/// that are right all the same.
fn packet(dice: &mut Dice, open: u16) -> Vec<u8> {
    let port = if dice.below(2) == 0 { open } else { dice.below(65_536) as u16 };
    let len = dice.below(80);
    let body = dice.bytes(len);
    let mut packet = match dice.below(6) {
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
        let at = dice.below(packet.len());
        packet[at] = dice.below(256) as u8;
    }
    if dice.below(4) == 0 {
        packet.truncate(dice.below(packet.len() + 1));
    }
    // Long enough for the damage to be inspected.
    packet.resize(packet.len().max(14), 0);
    packet[6..12].copy_from_slice(&MAC);
    if let Ok(mut ip) = Ipv4Packet::new_checked(&mut packet[14..]) {
        ip.fill_checksum();
        if ip.next_header() == IpProtocol::Tcp
            && let Ok(mut tcp) = TcpPacket::new_checked(ip.payload_mut())
        {
            tcp.fill_checksum(&IpAddress::Ipv4(GUEST_IP), &IpAddress::Ipv4(GATEWAY_IP));
        }
    }
    packet
}

#[test]
fn no_packet_breaks_the_stack_or_opens_more_than_it_may() {
    let mut bench = Bench::new();
    let open = bench.port();
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let mut answered = 0;
    for i in 0..40_000 {
        bench.send(0, packet(&mut dice, open));
        if i % 8 == 0 {
            answered += bench.turn(0).len();
        }
    }
    assert_eq!(bench.uplink.failures, 0);
    assert!(answered > 1000, "{answered}");
    let gateway = bench.uplink.gateways[0].as_ref().unwrap();
    assert!(gateway.opened > 0 && gateway.opened <= FROM_GUEST_MAX, "{}", gateway.opened);
    let drops = bench.link.counts(0).drops;
    for reason in [DropReason::Malformed, DropReason::Unreachable, DropReason::Connections] {
        assert!(drops.get(reason) > 0, "{reason:?}");
    }
    // Nothing of that concerned the neighbour.
    assert!(bench.uplink.gateways[1].is_none());
    assert_eq!(bench.link.counts(1), crate::net::Counts::default());
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
    let packet = Ipv4Packet::new_checked(packets::payload(&answer)).unwrap();
    assert!(TcpPacket::new_checked(packet.payload()).unwrap().rst());
    assert_eq!(bench.link.counts(1).drops.get(DropReason::Unreachable), 1);
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
    let link = &bench.link;
    bench.uplink.reset(0, &mut link.packet_sender());
    assert_eq!(bench.uplink.conns.iter().flatten().count(), 0);
    assert_eq!(bench.uplink.free.len(), 10);
    // The queue of VMs to be served may still name this one.
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

/// Connects `room` clients to `target`, the third of which sends something, and then more clients
/// that want their places: the connections in `gone` have to end.
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
    // One turn accepts a limited number of connections.
    (0..room).for_each(|_| _ = bench.turn(0));
    assert_eq!(connections(&bench), room);
    // No other client waits for their places.
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
    // Half a request names no VM either.
    silent_clients_give_way(Target::ByName, 256, &[0, 1, 2]);
}

const MINUTES: Duration = Duration::from_secs(60);

/// Returns connections of all kinds, each with its name.
fn pairs(world: &mut World) -> Vec<(&'static str, Pair)> {
    let mut pairs = vec![
        ("a client's", world.by_client()),
        ("a guest's", world.by_guest()),
        ("a client's on which nobody has spoken", world.by_client()),
        ("a guest's on which nobody has spoken", world.by_guest()),
    ];
    for (_, pair) in &mut pairs[..2] {
        world.speak(pair);
    }
    pairs
}

#[test]
fn idle_connections_stay() {
    let mut world = World::new();
    let mut pairs = pairs(&mut world);
    // Pauses as long as those of a client that keeps its connection alive, and very long ones.
    for minutes in [1, 5, 60] {
        world.run(minutes * MINUTES);
        for (name, pair) in &mut pairs[..2] {
            assert!(world.is_whole(pair), "{name} after {minutes} minutes");
            world.speak(pair);
        }
    }
    for (name, pair) in &mut pairs {
        assert!(world.is_whole(pair), "{name} after all that time");
        world.speak(pair);
    }
    assert_eq!(world.bench.link.counts(0).drops.total(), 0);
}

#[test]
fn idle_connections_that_one_side_has_closed_stay_open_for_the_other() {
    let mut world = World::new();
    for by_guest in [false, true] {
        let mut pair = if by_guest { world.by_guest() } else { world.by_client() };
        world.speak(&mut pair);
        pair.host.shutdown(std::net::Shutdown::Write).unwrap();
        world.run(5 * MINUTES);
        assert!(!world.guest.socket(&pair).may_recv());
        world.guest.socket(&pair).send_slice(b"late").unwrap();
        world.guest.socket(&pair).close();
        assert_eq!(world.read_to_end(&mut pair.host).unwrap(), b"late");

        let mut pair = if by_guest { world.by_guest() } else { world.by_client() };
        world.speak(&mut pair);
        world.guest.socket(&pair).close();
        world.run(5 * MINUTES);
        assert_eq!(pair.host.read(&mut [0; 8]).unwrap(), 0);
        pair.host.write_all(b"late").unwrap();
        world.run(MINUTES);
        assert_eq!(world.guest.take(&pair), b"late");
    }
}

/// More bytes than host, gateway and guest together can buffer.
fn much(dice: &mut Dice) -> Vec<u8> {
    dice.bytes(12 << 20)
}

#[test]
fn a_client_that_reads_nothing_for_minutes_loses_nothing() {
    let mut world = World::new();
    let mut pair = world.by_client();
    let bytes = much(&mut Dice(5));
    let mut sent = 0;
    // Until no more is sent, and for minutes after that.
    for _ in 0..10 * 60 {
        while let n @ 1.. = world.guest.socket(&pair).send_slice(&bytes[sent..]).unwrap() {
            sent += n;
            world.exchange();
        }
        world.run(Duration::from_secs(1));
    }
    assert!(sent < bytes.len(), "somebody holds all of it");
    assert!(world.is_whole(&mut pair));
    let mut received = Vec::new();
    while received.len() < bytes.len() {
        sent += world.guest.socket(&pair).send_slice(&bytes[sent..]).unwrap();
        let before = received.len();
        world.read(&mut pair.host, &mut received).unwrap();
        if received.len() == before {
            world.run(Duration::from_millis(5));
        }
    }
    assert!(received == bytes);
}

#[test]
fn a_guest_that_reads_nothing_for_minutes_loses_nothing() {
    let mut world = World::new();
    let mut pair = world.by_client();
    let bytes = much(&mut Dice(6));
    let mut sent = 0;
    let push = |pair: &mut Pair, sent: &mut usize| match pair.host.write(&bytes[*sent..]) {
        Ok(n) => *sent += n,
        Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
    };
    for _ in 0..10 * 60 {
        push(&mut pair, &mut sent);
        world.run(Duration::from_secs(1));
    }
    assert!(sent < bytes.len(), "somebody holds all of it");
    assert!(world.is_whole(&mut pair));
    let mut received = Vec::new();
    while received.len() < bytes.len() {
        if sent < bytes.len() {
            push(&mut pair, &mut sent);
        }
        let some = world.guest.take(&pair);
        if some.is_empty() {
            world.run(Duration::from_millis(5));
        } else {
            world.exchange();
        }
        received.extend(some);
    }
    assert!(received == bytes);
}

#[test]
fn a_guest_that_stands_still_for_a_moment_goes_on_where_it_was() {
    let mut world = World::new();
    let mut pairs = pairs(&mut world);
    world.paused = true;
    for (_, pair) in &mut pairs {
        pair.host.write_all(b"hello").unwrap();
    }
    world.run(Duration::from_secs(20));
    world.paused = false;
    world.run(MINUTES);
    for (name, pair) in &mut pairs {
        assert_eq!(world.guest.take(pair), b"hello", "{name}");
        world.speak(pair);
    }
    // Idle connections do not need the guest to respond.
    world.paused = true;
    world.run(60 * MINUTES);
    world.paused = false;
    for (name, pair) in &mut pairs {
        assert!(world.is_whole(pair), "{name}");
        world.speak(pair);
    }
}

#[test]
fn a_guest_that_acknowledges_nothing_is_given_up_and_its_clients_are_told() {
    let mut world = World::new();
    let mut pairs = pairs(&mut world);
    let mut idle = world.by_client();
    world.speak(&mut idle);
    // The end of a client's data has to be acknowledged as well.
    let ended = world.by_client();
    world.paused = true;
    for (_, pair) in &mut pairs {
        pair.host.write_all(b"hello").unwrap();
    }
    ended.host.shutdown(std::net::Shutdown::Write).unwrap();
    pairs.push(("one that ends", ended));
    // A client that connects now.
    pairs.push(("a new one", world.begin()));
    world.run(Duration::from_secs(29));
    for (name, pair) in &mut pairs {
        assert!(world.is_whole(pair), "{name}");
    }
    world.run(Duration::from_secs(5));
    for (name, pair) in &mut pairs {
        let told = pair.host.read(&mut [0; 8]).expect_err("an end that looks clean");
        assert_eq!(told.kind(), ErrorKind::ConnectionReset, "{name}");
    }
    assert_eq!(world.bench.link.counts(0).drops.get(DropReason::Unanswered), pairs.len() as u64);
    assert!(world.is_whole(&mut idle));
    world.paused = false;
    world.run(MINUTES);
    world.speak(&mut idle);
    // Nothing is left of the others.
    assert_eq!(world.bench.uplink.conns.iter().flatten().count(), 1);
}

#[test]
fn a_guest_for_which_there_is_no_room_is_given_up_as_well() {
    let mut world = World::new();
    let mut pair = world.by_client();
    world.paused = true;
    // The VM's queue is full, so that nothing can be sent and nothing is to be acknowledged.
    while world.bench.link.packet_sender().room(0) > 0 {
        world.bench.link.packet_sender().send(0, vec![0; 60].into());
    }
    pair.host.write_all(b"hello").unwrap();
    world.run(Duration::from_secs(29));
    assert!(world.is_whole(&mut pair));
    world.run(Duration::from_secs(5));
    let told = pair.host.read(&mut [0; 8]).unwrap_err();
    assert_eq!(told.kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.bench.link.counts(0).drops.get(DropReason::Unanswered), 1);
}

#[test]
fn connections_that_nobody_uses_give_way_to_others() {
    for by_guest in [false, true] {
        let mut world = World::new();
        let open = |world: &mut World| match by_guest {
            true => world.by_guest(),
            false => world.by_client(),
        };
        let room = if by_guest { FROM_GUEST_MAX } else { 48 };
        let mut pairs: Vec<Pair> = (0..room).map(|_| open(&mut world)).collect();
        pairs.iter_mut().for_each(|pair| world.speak(pair));
        world.run(9 * MINUTES);
        world.speak(&mut pairs[0]);
        world.run(2 * MINUTES);
        assert!(pairs.iter_mut().all(|pair| world.is_whole(pair)), "by guest: {by_guest}");
        let mut another = open(&mut world);
        world.speak(&mut another);
        let whole: Vec<bool> = pairs.iter_mut().map(|pair| world.is_whole(pair)).collect();
        let gone = whole.iter().filter(|&&whole| !whole).count();
        assert!(whole[0] && gone == 1, "by guest: {by_guest}, {gone} gone");
    }
}

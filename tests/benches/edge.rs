//! What the edge takes for a packet: `cargo bench -p pxvm-tests --bench edge`.

use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{Criterion, criterion_group, criterion_main};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use pxvm::machine::Macs;
use pxvm::net::addresses::{Addresses, Subnet};
use pxvm::net::{GATEWAY_IP, GATEWAY_MAC, GUEST_IP};

/// Bytes of UDP in the smallest packet, and in the largest.
const PAYLOADS: [usize; 2] = [18, 1472];

fn udp(payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let peer = Ipv4Addr::new(192, 0, 2, 1);
    let builder = PacketBuilder::ethernet2(Macs::Same.of(0), GATEWAY_MAC);
    let builder = builder.ipv4(GUEST_IP.octets(), peer.octets(), 64).udp(1000, 7);
    builder.write(&mut packet, &vec![7; payload]).unwrap();
    packet
}

fn arp() -> Vec<u8> {
    let mac = Macs::Same.of(0);
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &mac,
        &GUEST_IP.octets(),
        &[0; 6],
        &GATEWAY_IP.octets(),
    );
    let mut packet = Vec::new();
    let builder = PacketBuilder::ethernet2(mac, [0xff; 6]).arp(arp.unwrap());
    builder.write(&mut packet).unwrap();
    packet
}

fn edge(c: &mut Criterion) {
    let subnet = Subnet::DEFAULT.parse().unwrap();
    let edge = Addresses::new(subnet, 1, Macs::Same).unwrap().edge(0);
    let mut group = c.benchmark_group("edge");
    let packets = PAYLOADS.map(|payload| ("udp", udp(payload))).into_iter().chain([("arp", arp())]);
    for (name, packet) in packets {
        let mut buffer = packet.clone();
        group.bench_function(format!("{name}, {} bytes", packet.len()), |b| {
            b.iter(|| {
                // A packet passes once: its addresses are others then.
                buffer.copy_from_slice(&packet);
                black_box(edge.outward(black_box(&mut buffer))).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, edge);
criterion_main!(benches);

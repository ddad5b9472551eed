//! What the edge takes for a frame: `cargo bench -p pxvm-tests --bench edge`.

use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{Criterion, criterion_group, criterion_main};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use pxvm::machine::Macs;
use pxvm::net::addresses::{Addresses, Subnet};
use pxvm::net::{GATEWAY_IP, GATEWAY_MAC, GUEST_IP};

/// Bytes of UDP in the smallest frame, and in the largest.
const PAYLOADS: [usize; 2] = [18, 1472];

fn udp(payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let peer = Ipv4Addr::new(192, 0, 2, 1);
    let builder = PacketBuilder::ethernet2(Macs::Same.of(0), GATEWAY_MAC);
    let builder = builder.ipv4(GUEST_IP.octets(), peer.octets(), 64).udp(1000, 7);
    builder.write(&mut frame, &vec![7; payload]).unwrap();
    frame
}

fn arp() -> Vec<u8> {
    let mac = Macs::Same.of(0);
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &mac,
        &GUEST_IP.octets(),
        &[0; 6],
        &GATEWAY_IP.octets(),
    );
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac, [0xff; 6]).arp(packet.unwrap());
    builder.write(&mut frame).unwrap();
    frame
}

fn edge(c: &mut Criterion) {
    let subnet = Subnet::DEFAULT.parse().unwrap();
    let edge = Addresses::new(subnet, 1, Macs::Same).unwrap().edge(0);
    let mut group = c.benchmark_group("edge");
    let frames = PAYLOADS.map(|payload| ("udp", udp(payload))).into_iter().chain([("arp", arp())]);
    for (name, frame) in frames {
        let mut buffer = frame.clone();
        group.bench_function(format!("{name}, {} bytes", frame.len()), |b| {
            b.iter(|| {
                // A frame passes once: its addresses are others then.
                buffer.copy_from_slice(&frame);
                black_box(edge.outward(black_box(&mut buffer))).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, edge);
criterion_main!(benches);

//! Isolation of VMs: good guests that run beside hostile ones end in the same state, bit for bit,
//! as beside quiet ones. The tests run on the CPU, on an emulated GPU, and under the schedulers of
//! both backends. What the lanes of a warp do to each other is in `warps.rs`.
#![expect(clippy::tests_outside_test_module, reason = "the whole crate is a test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use emu_core::layout::MachineKind;
use emu_core::trace::NoTrace;
use pxvm::backend::cpu::CpuBackend;
use pxvm::backend::cuda::emulated::Emulated;
use pxvm::backend::cuda::{Choice, CudaBackend, DeviceFleet, InsnLoop, Options};
use pxvm::backend::{Backend, ClockSource, Event, EventKind, Settings};
use pxvm::bare::{Bare, End, Hardware};
use pxvm::console::ready::ReadyPattern;
use pxvm::image::elf::{Program, parse};
use pxvm::machine::Fleet;
use pxvm::units::Size;
use pxvm::virtio::Virtio;
use pxvm_tests::guests::{self, Guest, good, hostile, quiet};

const MEMORY: Size = Size(guests::MEMORY as u64);
/// More than any good guest needs.
const INSTRUCTIONS: u64 = 1 << 22;
const GPU_MEMORY: Size = Size::mib(512);

/// Returns the other guests with a good one after each, so that good and other guests share warps.
fn mixed(others: &[Guest]) -> Vec<Guest> {
    let good = good(6);
    let pairs = others.iter().zip(good.iter().cycle());
    pairs.flat_map(|(other, good)| [other.clone(), good.clone()]).collect()
}

fn beside_hostile() -> Vec<Guest> {
    mixed(&hostile())
}

fn beside_quiet() -> Vec<Guest> {
    mixed(&vec![quiet(); hostile().len()])
}

fn programs(guests: &[Guest]) -> Vec<Program> {
    guests.iter().map(|guest| parse(&guest.elf).expect("a program")).collect()
}

fn on_cpu(guests: &[Guest]) -> Bare {
    on_cpu_with(guests, Hardware::virt(MEMORY))
}

fn on_cpu_with(guests: &[Guest], hardware: Hardware) -> Bare {
    Bare::new(programs(guests), hardware).expect("room for all")
}

fn on_gpu(guests: &[Guest], insn_loop: InsnLoop) -> Bare {
    let gpu = Box::new(Emulated::new(GPU_MEMORY));
    let packing = Choice { lanes: Some(32), insn_loop: Some(insn_loop) };
    Bare::new_on(gpu, packing, programs(guests), Hardware::virt(MEMORY)).expect("room for all")
}

/// How a guest ended, after how many instructions, with which state, and what it printed.
type Fate = (End, u64, u64, Vec<u8>);

fn run(mut bare: Bare, count: usize) -> Vec<Fate> {
    struct Consoles(Vec<Vec<u8>>);
    impl pxvm::bare::Console for Consoles {
        fn print(&mut self, vm: u32, text: &[u8]) {
            self.0[vm as usize].extend_from_slice(text);
        }
    }
    let mut consoles = Consoles(vec![Vec::new(); count]);
    let ends = bare.run(INSTRUCTIONS, &mut NoTrace, &mut consoles).expect("the backend works");
    let instrets = bare.instrets().expect("the backend works");
    let digests = (0..count as u32).map(|vm| bare.digest(vm).expect("the backend works"));
    let digests: Vec<u64> = digests.collect();
    let rest = instrets.into_iter().zip(digests).zip(consoles.0);
    ends.into_iter().zip(rest).map(|(end, ((n, digest), text))| (end, n, digest, text)).collect()
}

fn same_for_the_good(guests: &[Guest], expected: &[Fate], found: &[Fate]) {
    for (vm, guest) in guests.iter().enumerate().skip(1).step_by(2) {
        assert_eq!(expected[vm].0, End::Passed, "vm{vm}, {}", guest.name);
        assert!(expected[vm] == found[vm], "vm{vm}, {}: {:?}", guest.name, found[vm].0);
    }
}

#[test]
fn good_guests_end_the_same_beside_hostile_ones_on_cpu_and_gpu() {
    let (hostile, quiet) = (beside_hostile(), beside_quiet());
    let count = hostile.len();
    let expected = run(on_cpu(&quiet), count);
    let on_cpu = run(on_cpu(&hostile), count);
    same_for_the_good(&hostile, &expected, &on_cpu);
    for insn_loop in [InsnLoop::Dispatch, InsnLoop::Uniform] {
        let on_gpu = run(on_gpu(&hostile, insn_loop), count);
        same_for_the_good(&hostile, &expected, &on_gpu);
        // The hostile ones, too, are the same machines on both.
        for (vm, guest) in hostile.iter().enumerate() {
            let (cpu, gpu) = (&on_cpu[vm], &on_gpu[vm]);
            assert_eq!((&cpu.0, cpu.1, cpu.2), (&gpu.0, gpu.1, gpu.2), "vm{vm}, {}", guest.name);
        }
    }
}

#[test]
fn hostile_guests_do_what_they_are_for() {
    let guests = hostile();
    // Behind both versions of virtio.
    for virtio in [Virtio::OTHER, Virtio::LINUX] {
        let hardware = Hardware { virtio, ..Hardware::virt(MEMORY) };
        do_what_they_are_for(&guests, run(on_cpu_with(&guests, hardware), guests.len()));
    }
}

fn do_what_they_are_for(guests: &[Guest], fates: Vec<Fate>) {
    for (guest, (end, instructions, _, text)) in guests.iter().zip(fates) {
        let name = guest.name.as_str();
        match name {
            "trap-loop" => assert!(matches!(end, End::Faulted(_)), "{name}: {end}"),
            "resets" => assert_eq!(end, End::Reset),
            _ => assert_eq!((end, instructions > INSTRUCTIONS / 8), (End::Limit, true), "{name}"),
        }
        assert_eq!(name == "console-flood", text.len() > 1 << 16, "{name}: {} bytes", text.len());
        if name == "bad-descriptors" {
            let count = |letter| text.iter().filter(|&&byte| byte == letter).count();
            assert!(count(b'r') > 50 && count(b'u') > 5, "{}", String::from_utf8_lossy(&text));
        }
    }
}

/// What is heard of one guest: its console, and everything else in order.
type Heard = (Vec<u8>, Vec<(u64, EventKind)>);

/// What listeners hear of the good guests of a fleet, until all of these have ended.
fn heard(backend: &dyn Backend, count: u32) -> BTreeMap<u32, Heard> {
    let mut all: BTreeMap<u32, Heard> = BTreeMap::new();
    let mut left = count / 2;
    while left > 0 {
        let event = backend.events().recv_timeout(Duration::from_secs(300));
        let Event { vm, instret, kind } = event.unwrap_or_else(|_| panic!("{}", backend.failure()));
        if vm % 2 == 0 {
            continue;
        }
        let (console, events) = all.entry(vm).or_default();
        match kind {
            EventKind::Console(bytes) => console.extend(bytes),
            kind => {
                left -= u32::from(matches!(kind, EventKind::Halted(_) | EventKind::Faulted(_)));
                events.push((instret, kind));
            }
        }
    }
    backend.stop();
    backend.events().iter().for_each(drop);
    all
}

#[test]
fn good_guests_are_served_the_same_beside_hostile_ones_by_both_backends() {
    let fleet = |guests: &[Guest]| {
        let payloads = programs(guests).into_iter().map(|program| program.payload).collect();
        Fleet::several(MachineKind::Virt, MEMORY, payloads).expect("they fit")
    };
    let ready = ReadyPattern::new(ReadyPattern::DEFAULT).expect("a pattern");
    let settings = Settings {
        started: u32::MAX,
        threads: 2,
        clock: ClockSource::Instret,
        ready,
        until_ready: false,
        link: Arc::default(),
    };
    let cpu = |guests: &[Guest]| {
        let fleet = fleet(guests);
        let count = fleet.count;
        heard(&CpuBackend::start(fleet, settings.clone()).expect("it starts"), count)
    };
    let expected = cpu(&beside_quiet());
    assert!(expected.values().all(|(_, events)| matches!(events[..], [(_, EventKind::Halted(0))])));
    assert_eq!(expected, cpu(&beside_hostile()));

    for insn_loop in [InsnLoop::Dispatch, InsnLoop::Uniform] {
        let fleet = fleet(&beside_hostile());
        let count = fleet.count;
        let gpu = Box::new(Emulated::new(GPU_MEMORY));
        let device = DeviceFleet::new(gpu, &fleet).expect("room for all");
        let packing = Choice { lanes: Some(32), insn_loop: Some(insn_loop) };
        let options = Options { device: 0, packing };
        let backend =
            CudaBackend::start(device, fleet, settings.clone(), options).expect("it starts");
        assert_eq!(expected, heard(&backend, count), "{insn_loop:?}");
    }
}

//! VMs that share a warp, with a simulator of the warp's lanes: each VM ends in the same state, bit
//! for bit, as on a CPU, whatever the lanes do to each other, and lanes that have diverged converge
//! again.
#![expect(clippy::tests_outside_test_module, reason = "the whole crate is a test")]

use std::time::Duration;

use emu_core::abi::{Exit, ExitCode};
use emu_core::clock::Now;
use emu_core::layout::MachineKind;
use emu_core::trace::NoTrace;
use emu_device::protocol::launch::{Entry, SLICE};
use emu_device::protocol::outbox::{Body, messages};
use pxvm::backend::cuda::emulated::Emulated;
use pxvm::backend::cuda::fleet::{LaunchArgs, Start};
use pxvm::backend::cuda::packing::Packing;
use pxvm::backend::cuda::{DeviceFleet, InsnLoop};
use pxvm::backend::fingerprint::fingerprint;
use pxvm::bare::{Bare, Hardware};
use pxvm::image::elf::{Program, parse};
use pxvm::machine::Fleet;
use pxvm::units::Size;
use pxvm_tests::guests::{self, Guest, good, hostile, similar};
use pxvm_tests::simt::Simulator;

const MEMORY: Size = Size(guests::MEMORY as u64);
const GPU_MEMORY: Size = Size::mib(512);
/// More than any good guest needs.
const INSTRUCTIONS: u64 = 1 << 22;
/// How long a launch takes, by the clock of the simulated warps.
const LAUNCH: Duration = Duration::from_micros(500);
/// In so many launches all guests that end have ended.
const LAUNCHES: u32 = 2000;

/// After how many instructions a guest ended, with which state, and what it printed.
type Fate = (u64, u64, Vec<u8>);

fn programs(guests: &[Guest]) -> Vec<Program> {
    guests.iter().map(|guest| parse(&guest.elf).expect("a program")).collect()
}

/// Runs guests on the CPU, one after the other.
fn alone(guests: &[Guest]) -> Vec<Fate> {
    struct Consoles(Vec<Vec<u8>>);
    impl pxvm::bare::Console for Consoles {
        fn print(&mut self, vm: u32, text: &[u8]) {
            self.0[vm as usize].extend_from_slice(text);
        }
    }
    let mut consoles = Consoles(vec![Vec::new(); guests.len()]);
    let mut bare = Bare::new(programs(guests), Hardware::virt(MEMORY)).expect("room for all");
    bare.run(INSTRUCTIONS, &mut NoTrace, &mut consoles).expect("the backend works");
    let instrets = bare.instrets().expect("the backend works");
    let ends = instrets.into_iter().zip(consoles.0).zip(0..);
    ends.map(|((n, text), vm)| (n, bare.digest(vm).expect("it exists"), text)).collect()
}

/// Runs guests 32 to a warp, in launches that end by the clock, until those have ended that `ends`
/// names. Returns what became of all.
fn in_warps(
    guests: &[Guest],
    insn_loop: InsnLoop,
    simulator: &Simulator,
    ends: impl Fn(usize) -> bool,
) -> Vec<Fate> {
    let payloads = programs(guests).into_iter().map(|program| program.payload).collect();
    let fleet = Fleet::several(MachineKind::Virt, MEMORY, payloads).expect("they fit");
    let gpu = Box::new(Emulated::with_warps(GPU_MEMORY, simulator.clone()));
    let mut device = DeviceFleet::new(gpu, &fleet).expect("room for all");
    let starts: Vec<Start> =
        (0..fleet.count).map(|vm| Start { vm, origin: 0, staged: fleet.stage(vm, 0) }).collect();
    device.start(&starts).expect("the device works");
    let mut consoles = vec![Vec::new(); guests.len()];
    let mut exits: Vec<Option<Exit>> = vec![None; guests.len()];
    for _ in 0..LAUNCHES {
        let active: Vec<Entry> = (0..fleet.count)
            .filter(|&vm| exits[vm as usize].is_none())
            .map(|vm| Entry { vm, inbox: 0 })
            .collect();
        if (0..guests.len()).all(|vm| exits[vm].is_some() || !ends(vm)) {
            break;
        }
        let args = LaunchArgs {
            active: &active,
            inbox: &[],
            slices: 4,
            slice: SLICE,
            now: Now::Instret,
            packing: Packing { vms_per_warp: 32, insn_loop },
            time: Some(LAUNCH),
        };
        device.submit(&args).expect("the device works");
        let completed = device.wait().expect("the device works");
        let result = device.result(completed).expect("the device works");
        for message in messages(&result.log) {
            match message.body {
                Body::Console(bytes) => consoles[message.vm as usize].extend_from_slice(bytes),
                Body::Exit(exit, _) => exits[message.vm as usize] = Some(exit),
                Body::Packet(_) | Body::Taken(_) | Body::TrapLoop(_) => {}
            }
        }
    }
    for vm in (0..guests.len()).filter(|&vm| ends(vm)) {
        let code = exits[vm].map(|exit| exit.code);
        assert_eq!(code, Some(ExitCode::PowerOff), "vm{vm}, {}", guests[vm].name);
    }
    let vms: Vec<u32> = (0..fleet.count).collect();
    let digests = device.digests(&vms).expect("the device works");
    let ends = consoles.into_iter().zip(digests).zip(vms);
    ends.map(|((text, pages), vm)| {
        let state = device.vm(vm).expect("it was started");
        (state.platform.clock.retired, fingerprint(&state, pages), text)
    })
    .collect()
}

fn assert_same(guests: &[Guest], expected: &[Fate], found: &[Fate], ends: impl Fn(usize) -> bool) {
    for vm in (0..guests.len()).filter(|&vm| ends(vm)) {
        assert!(expected[vm] == found[vm], "vm{vm}, {}: {:?}", guests[vm].name, found[vm]);
    }
}

/// How many rounds the similar guests have.
const ROUNDS: u32 = 24;

#[test]
fn similar_guests_end_as_alone_and_their_lanes_converge_again_in_nearly_each_round() {
    let guests: Vec<Guest> = (0..32).map(|seed| similar(seed, ROUNDS)).collect();
    let simulator = Simulator::new(1);
    let found = in_warps(&guests, InsnLoop::Dispatch, &simulator, |_| true);
    assert_same(&guests, &alone(&guests), &found, |_| true);
    let report = simulator.report();
    assert!(report.reconverged >= u64::from(ROUNDS * 3 / 4), "{report:?}");
}

#[test]
fn lanes_that_are_split_up_anywhere_converge_again_and_no_guest_sees_it() {
    let guests: Vec<Guest> = (0..32).map(|seed| similar(seed, ROUNDS)).collect();
    let expected = alone(&guests);
    for seed in 1..=2 {
        let simulator = Simulator::new(seed).splitting();
        let found = in_warps(&guests, InsnLoop::Dispatch, &simulator, |_| true);
        assert_same(&guests, &expected, &found, |_| true);
        let report = simulator.report();
        assert!(report.reconverged >= u64::from(ROUNDS), "seed {seed}: {report:?}");
    }
}

#[test]
fn lanes_whose_guests_have_ended_are_not_waited_for() {
    // Eight of them end after each quarter of the rounds.
    let quarters = (0..32).map(|seed| (seed, (1 + seed % 4) * ROUNDS / 4));
    let guests: Vec<Guest> = quarters.map(|(seed, rounds)| similar(seed, rounds)).collect();
    let simulator = Simulator::new(1);
    let found = in_warps(&guests, InsnLoop::Dispatch, &simulator, |_| true);
    assert_same(&guests, &alone(&guests), &found, |_| true);
    let report = simulator.report();
    assert!(report.reconverged >= u64::from(ROUNDS * 3 / 4), "{report:?}");
}

#[test]
fn good_guests_end_as_alone_beside_hostile_ones_in_their_warp() {
    let good = good(6);
    let pairs = hostile().into_iter().zip(good.iter().cycle().cloned());
    let guests: Vec<Guest> = pairs.flat_map(|(hostile, good)| [hostile, good]).collect();
    let is_good = |vm: usize| vm % 2 == 1;
    let simulator = Simulator::new(1).splitting();
    let found = in_warps(&guests, InsnLoop::Dispatch, &simulator, is_good);
    assert_same(&guests, &alone(&guests), &found, is_good);
}

#[test]
fn lanes_that_take_each_step_together_end_as_alone() {
    // Eight of them end after each quarter of the rounds.
    let quarters = (0..32).map(|seed| (seed, (1 + seed % 4) * ROUNDS / 8));
    let guests: Vec<Guest> = quarters.map(|(seed, rounds)| similar(seed, rounds)).collect();
    let simulator = Simulator::new(1);
    let found = in_warps(&guests, InsnLoop::Uniform, &simulator, |_| true);
    assert_same(&guests, &alone(&guests), &found, |_| true);
    assert!(simulator.report().synced > 1000, "{:?}", simulator.report());
}

//! Tests of a fleet that is divided among two backends: each knows its VMs by the fleet's numbers,
//! and executes, wakes and reports those alone.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use emu_core::layout::MachineKind;

use super::control_tests::call;
use super::tests::{cuda, payload, print, settings};
use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, ClockSource, EventKind, Settings};
use crate::control::Command;
use crate::machine::Fleet;
use crate::net::VirtualLink;
use crate::units::Size;

const LONG: Duration = Duration::from_secs(120);
const COUNT: u32 = 4;
/// VMs of the two backends, the first one's first.
const PARTS: [std::ops::Range<u32>; 2] = [0..1, 1..COUNT];

/// Returns a fleet of which each VM prints its number and then waits for ever.
fn numbered() -> Fleet {
    // wfi; j .-4
    const WAIT: [u32; 2] = [0x1050_0073, 0xffdf_f06f];
    let program = |vm: u32| payload(&[&print(&vm.to_string())[..], &WAIT].concat());
    Fleet::several(MachineKind::Virt, Size::mib(1), (0..COUNT).map(program).collect()).unwrap()
}

/// Runs `check` for each kind of backend, with two of them on one link. The last VM is not started.
fn divided(check: impl Fn([&dyn Backend; 2], &VirtualLink)) {
    type Make = fn(Fleet, Settings) -> Box<dyn Backend>;
    let makes: [Make; 2] = [
        |fleet, settings| Box::new(CpuBackend::start(fleet, settings).unwrap()),
        |fleet, settings| Box::new(cuda(Size::mib(64), fleet, settings)),
    ];
    for make in makes {
        let link = Arc::new(VirtualLink::new(COUNT));
        let settings = Settings {
            started: COUNT - 1,
            link: Arc::clone(&link),
            ..settings(false, ClockSource::Instret)
        };
        let [a, b] = PARTS.map(|vms| make(numbered().part(vms), settings.clone()));
        check([a.as_ref(), b.as_ref()], &link);
    }
}

/// Waits for events of `n` VMs that pass `wanted`, and returns the VMs in order.
fn vms(backend: &dyn Backend, n: usize, wanted: impl Fn(u32, &EventKind) -> bool) -> Vec<u32> {
    let mut vms = Vec::new();
    while vms.len() < n {
        let event = backend.events().recv_timeout(LONG).expect("something happens");
        if wanted(event.vm, &event.kind) {
            vms.push(event.vm);
        }
    }
    vms.sort_unstable();
    vms
}

fn says_its_number(vm: u32, kind: &EventKind) -> bool {
    *kind == EventKind::Console(vm.to_string().into_bytes())
}

#[test]
fn each_executes_its_vms_under_the_fleets_numbers() {
    divided(|[a, b], link| {
        assert_eq!(vms(a, 1, says_its_number), [0]);
        assert_eq!(vms(b, 2, says_its_number), [1, 2]);
        let ended = || [0, 1, 2, 3].map(|vm| link.packet_sender().has_ended(vm));
        assert_eq!(ended(), [false, false, false, true]);
        // A command on a VM of the other one does nothing.
        for (backend, vm) in [(b, 0), (a, 2), (b, COUNT)] {
            backend.submit(vm, call(Command::Stop)).unwrap();
            backend.input(vm, b"x");
            assert_eq!((backend.waiting(vm), backend.instret(vm)), (0, 0));
        }
        b.submit(3, call(Command::Reset)).unwrap();
        assert_eq!(vms(b, 1, says_its_number), [3]);
        b.submit(2, call(Command::Stop)).unwrap();
        let completed =
            |_, kind: &EventKind| matches!(kind, EventKind::Completed(Command::Stop, Ok(_)));
        assert_eq!(vms(b, 1, completed), [2]);
        assert_eq!(ended(), [false, false, true, false]);
        let has_memory = |vm| {
            let (sender, receiver) = mpsc::channel();
            b.inspect(vm, Box::new(move |seen| _ = sender.send(seen.is_some()))).unwrap();
            receiver.recv_timeout(LONG).expect("an inspection")
        };
        assert_eq!([has_memory(1), has_memory(2), has_memory(3)], [true, false, true]);
        assert!(a.instret(0) > 0 && b.instret(1) > 0 && b.instret(3) > 0);
        b.input(3, b"hello");
        assert!(b.waiting(3) > 0 && b.waiting(1) == 0);
    });
}

#[test]
fn a_packet_wakes_the_vm_that_it_is_for() {
    divided(|[a, b], link| {
        vms(a, 1, says_its_number);
        vms(b, 2, says_its_number);
        let start = Instant::now();
        for vm in [2, 0, 1] {
            link.packet_sender().send(vm, vec![0; 60].into());
            // VMs that nobody wakes do not take packets.
            while link.has_inbound(vm) {
                assert!(start.elapsed() < LONG, "{}: nobody woke vm{vm}", a.name());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

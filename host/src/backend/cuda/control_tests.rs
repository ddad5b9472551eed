//! Tests of commands on single VMs, on the emulated device and on the CPU: both backends behave
//! alike.

use std::sync::mpsc;
use std::time::Duration;

use emu_core::layout::VIRT;

use super::tests::{POWER_OFF, cuda, fleet, print, settings, work};
use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, ClockSource, Event, EventKind, Inspection, Reason, Settings};
use crate::control::{Call, Command, Reply};
use crate::units::Size;

const LONG: Duration = Duration::from_secs(120);

/// Returns `jal x0, offset`.
fn jump(offset: i32) -> u32 {
    let bits = offset as u32;
    (bits >> 20 & 1) << 31
        | (bits >> 1 & 0x3ff) << 21
        | (bits >> 11 & 1) << 20
        | (bits >> 12 & 0xff) << 12
        | 0x6f
}

/// Returns a program that writes to a page, prints that it is ready, and then prints an x at
/// intervals for ever.
fn busy() -> Vec<u32> {
    const STORE: [u32; 2] = [0x8000_1e37, 0x01ce_2023];
    let turn = [&print("x")[..], &work(1 << 16)].concat();
    let back = jump(-4 * turn.len() as i32);
    [&STORE[..], &print("PXVM READY\n"), &turn, &[back]].concat()
}

/// Runs `check` for each kind of backend, with `started` of two VMs.
fn both(code: &[u32], started: u32, check: impl Fn(&dyn Backend)) {
    let settings = || Settings { started, ..settings(false, ClockSource::Instret) };
    check(&CpuBackend::start(fleet(2, code), settings()).unwrap());
    check(&cuda(Size::mib(64), fleet(2, code), settings()));
}

fn next(backend: &dyn Backend) -> Event {
    backend.events().recv_timeout(LONG).expect("something happens")
}

/// Waits for an event of a VM, and checks that VM `still` has no events meanwhile.
fn until(backend: &dyn Backend, vm: u32, still: Option<u32>, wanted: impl Fn(&EventKind) -> bool) {
    loop {
        let event = next(backend);
        assert!(still != Some(event.vm), "{event:?}");
        if event.vm == vm && wanted(&event.kind) {
            return;
        }
    }
}

fn says_x(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Console(bytes) if bytes.contains(&b'x'))
}

/// Returns a command that has no arguments.
pub(super) fn call(command: Command) -> Call {
    command.parse(b"").unwrap()
}

fn execute(backend: &dyn Backend, vm: u32, command: Command) {
    backend.submit(vm, call(command)).unwrap();
    until(backend, vm, None, |kind| *kind == EventKind::Completed(command, Ok(Reply::None)));
}

fn inspect(backend: &dyn Backend, vm: u32) -> Option<Inspection> {
    let (sender, receiver) = mpsc::channel();
    backend.inspect(vm, Box::new(move |inspection| drop(sender.send(inspection)))).unwrap();
    // A listener that waits for something else must not block the backend.
    loop {
        match receiver.recv_timeout(Duration::from_millis(1)) {
            Ok(inspection) => return inspection,
            Err(mpsc::RecvTimeoutError::Timeout) => drop(backend.events().try_recv()),
            Err(e) => panic!("no answer: {e}"),
        }
    }
}

#[test]
fn a_paused_vm_stands_still_and_goes_on_where_it_was() {
    both(&busy(), 2, |backend| {
        until(backend, 0, None, says_x);
        execute(backend, 0, Command::Pause);
        let before = backend.instret(0);
        let seen = inspect(backend, 0).expect("it has memory");
        assert_eq!((seen.instret, seen.private_frames), (before, 1), "{}", backend.name());
        assert!(before > 0 && seen.vm.hart.pc.wrapping_sub(VIRT.ram_base) < 4096);
        for _ in 0..20 {
            until(backend, 1, Some(0), says_x);
        }
        // Neither the same command again nor input changes that.
        execute(backend, 0, Command::Pause);
        backend.input(0, b"hello");
        assert_eq!(backend.waiting(0), 5);
        until(backend, 1, Some(0), says_x);
        assert_eq!(backend.instret(0), before);
        execute(backend, 0, Command::Resume);
        until(backend, 0, None, says_x);
        execute(backend, 0, Command::Pause);
        assert!(backend.instret(0) > before);
        // The UART's receiver has room for one byte, and no guest reads it.
        assert_eq!(backend.waiting(0), 4, "{}", backend.name());
    });
}

#[test]
fn a_stopped_vm_gives_its_memory_back_and_can_be_started_again() {
    both(&busy(), 1, |backend| {
        until(backend, 0, None, |kind| *kind == EventKind::Ready);
        assert!(inspect(backend, 1).is_none(), "it was not started");
        backend.input(0, &[b'y'; 100]);
        execute(backend, 0, Command::Stop);
        let before = backend.instret(0);
        assert!(before > 0);
        assert!(inspect(backend, 0).is_none());
        assert_eq!((backend.totals().private_frames, backend.waiting(0)), (0, 0));
        execute(backend, 0, Command::Resume);
        execute(backend, 0, Command::Reset);
        until(backend, 0, None, |kind| *kind == EventKind::Ready);
        assert!(backend.instret(0) >= before);
        // A reset works in the middle of a VM's work, and starts its neighbour for the first time.
        execute(backend, 0, Command::Reset);
        backend.submit(1, call(Command::Reset)).unwrap();
        until(backend, 0, None, |kind| *kind == EventKind::Ready);
        until(backend, 1, None, says_x);
        execute(backend, 0, Command::Pause);
        execute(backend, 1, Command::Pause);
        assert_eq!(backend.totals().private_frames, 2);
        // A paused VM can be reset and stopped.
        execute(backend, 1, Command::Stop);
        execute(backend, 0, Command::Reset);
        until(backend, 0, Some(1), says_x);
    });
}

#[test]
fn a_timer_wakes_a_parked_vm() {
    // mtimecmp = 0x7a000 (50 ms), mie.MTIE = 1, wfi
    const WAIT: [u32; 7] =
        [0x0200_42b7, 0x0007_a337, 0x0062_a023, 0x0002_a223, 0x0800_0393, 0x3043_9073, 0x1050_0073];
    let code = [&WAIT[..], &POWER_OFF].concat();
    let settings = || settings(false, ClockSource::Host);
    let check = |backend: &dyn Backend| {
        until(backend, 0, None, |kind| *kind == EventKind::Halted(0));
    };
    check(&CpuBackend::start(fleet(1, &code), settings()).unwrap());
    check(&cuda(Size::mib(64), fleet(1, &code), settings()));
}

#[test]
fn a_vm_that_has_ended_executes_only_reset() {
    let code = [&print("hi\n")[..], &POWER_OFF].concat();
    both(&code, 1, |backend| {
        let halted = |kind: &EventKind| *kind == EventKind::Halted(0);
        until(backend, 0, None, halted);
        execute(backend, 0, Command::Pause);
        execute(backend, 0, Command::Resume);
        execute(backend, 0, Command::Stop);
        backend.submit(0, call(Command::Reset)).unwrap();
        until(backend, 0, None, |kind| {
            *kind == EventKind::Completed(Command::Reset, Ok(Reply::None))
        });
        until(backend, 0, None, halted);
        // A command on a VM that does not exist does nothing.
        backend.submit(7, call(Command::Reset)).unwrap();
        backend.input(7, b"x");
        backend.submit(0, call(Command::Reset)).unwrap();
        until(backend, 0, None, halted);
    });
}

#[test]
fn whoever_watches_sees_busy_vms_advance() {
    both(&busy(), 2, |backend| {
        let mut last = [0, 0];
        let mut rises = 0;
        for _ in 0..1_000_000 {
            backend.watched();
            let now = [backend.instret(0), backend.instret(1)];
            rises += u32::from(now[0] > last[0] && now[1] > last[1]);
            last = now;
            if rises >= 3 {
                return;
            }
            next(backend);
        }
        panic!("{}: they do not advance: {last:?}", backend.name());
    });
}

#[test]
fn a_vm_for_which_no_memory_is_left_is_told_as_that() {
    let code = busy();
    let settings = Settings { started: 0, ..settings(false, ClockSource::Instret) };
    let fleet = fleet(2, &code);
    let gpu = Box::new(super::emulated::Emulated::new(Size::mib(64)));
    let mut device = super::DeviceFleet::new(gpu, &fleet).unwrap();
    device.limit_frames(fleet.base.shared() + 1);
    let backend =
        super::CudaBackend::start(device, fleet, settings, super::Options::default()).unwrap();
    execute(&backend, 0, Command::Reset);
    until(&backend, 0, None, says_x);
    // There is one frame, and it is in use.
    execute(&backend, 1, Command::Reset);
    until(&backend, 1, None, |kind| *kind == EventKind::Faulted(Reason::NoMemory));
    execute(&backend, 0, Command::Stop);
    execute(&backend, 1, Command::Reset);
    until(&backend, 1, Some(0), says_x);
}

//! Tests of a running fleet through its handle, over the CPU backend.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use emu_core::layout::MachineKind;

use super::*;
use crate::backend::cpu::CpuBackend;
use crate::backend::{ClockSource, Settings};
use crate::console::ready::ReadyPattern;
use crate::control::{Command, VmState};
use crate::image::{Payload, Segment};
use crate::machine::Fleet;
use crate::units::Size;

/// A writer that discards everything.
struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _: u32, _: &[u8]) -> Result<(), Closed> {
        Ok(())
    }

    fn flush(&mut self) {}
}

/// Program that loops for ever: `j .`
const LOOP: &[u32] = &[0x0000_006f];
/// Program that powers off with success, by the test finisher.
const POWER_OFF: &[u32] = &[0x0010_03b7, 0x0000_5337, 0x5553_0313, 0x0063_a023];

/// Returns a backend with `count` VMs of this program, `started` of them running.
fn backend(code: &[u32], count: u32, started: u32) -> Arc<CpuBackend> {
    let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    let size = bytes.len() as u32;
    let segments = vec![Segment { addr: 0x8000_0000, bytes, size }];
    let payload = Payload::linked(segments, 0x8000_0000);
    let fleet = Fleet::bare(count, MachineKind::Virt, Size::mib(1), payload).unwrap();
    let settings = Settings {
        started,
        threads: 2,
        clock: ClockSource::Instret,
        ready: ReadyPattern::new(ReadyPattern::DEFAULT).unwrap(),
        until_ready: false,
        link: Arc::default(),
    };
    Arc::new(CpuBackend::start(fleet, settings).unwrap())
}

/// Runs two of three VMs with this program while `check` inspects them.
fn with_fleet(code: &[u32], check: impl AsyncFnOnce(&FleetHandle)) -> RunSummary {
    let (sender, requests) = bounded(REQUESTS_MAX);
    let (ender, end) = bounded(1);
    let inputs = Inputs { requests, end, typed: Typed::nothing() };
    let fleet = FleetHandle::new(backend(code, 3, 2), 2, 3, Until::Never, sender);
    let options = Options { timeout: None, hold_input: false };
    thread::scope(|scope| {
        let run = || run(&fleet, &options, &inputs, &mut Nowhere, &mut Progress::hidden()).unwrap();
        let running = scope.spawn(run);
        crate::client::block_on(check(&fleet)).unwrap();
        ender.send(RunOutcome::Interrupted).unwrap();
        running.join().unwrap()
    })
}

/// Returns a command that has no arguments.
fn call(command: Command) -> Call {
    command.parse(b"").unwrap()
}

async fn until(fleet: &FleetHandle, vm: u32, state: VmState) {
    let limit = Instant::now() + Duration::from_secs(60);
    while fleet.record(vm).unwrap().state != state {
        assert!(Instant::now() < limit, "it is {:?}", fleet.record(vm));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn commands_return_when_they_were_completed_or_make_no_sense() {
    let run = with_fleet(LOOP, async |fleet| {
        fleet.execute(0, call(Command::Pause)).await.unwrap();
        assert_eq!(fleet.record(0).unwrap().state, VmState::Paused);
        let again = fleet.execute(0, call(Command::Pause)).await;
        let (vm, state, command) = (0, VmState::Paused, Command::Pause);
        assert_eq!(again, Err(ControlError::WrongState { vm, state, command }));
        let unknown = ControlError::UnknownVm { vm: 2, count: 2 };
        assert_eq!(fleet.execute(2, call(Command::Stop)).await, Err(unknown));
        assert!(fleet.add(2).await.unwrap_err().to_string().contains("1 more fit"));
        assert_eq!(fleet.add(1).await, Ok(vec![2]));
        assert!(fleet.inspect(1).await.unwrap().is_some());
        // Concurrent commands are executed one after the other.
        let commands = (0..40).map(|i| {
            fleet.execute(1, call(if i % 2 == 0 { Command::Pause } else { Command::Resume }))
        });
        let answers = futures_util::future::join_all(commands).await;
        assert!(answers.contains(&Err(ControlError::Busy(1))), "{answers:?}");
        assert!(answers.iter().filter(|answer| answer.is_ok()).count() >= 2, "{answers:?}");
        // Input that no guest reads is bounded.
        let mut taken = 0;
        let full = loop {
            match fleet.input(0, &[b'x'; 4096]) {
                Ok(()) => taken += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((taken, full), (16, ControlError::InputFull { vm: 0, waiting: 64 << 10 }));
    });
    assert_eq!((run.outcome, run.vms.len()), (RunOutcome::Interrupted, 3));
}

#[test]
fn a_vm_that_has_ended_is_told_as_that_and_can_be_started_again() {
    with_fleet(POWER_OFF, async |fleet| {
        until(fleet, 0, VmState::Halted).await;
        let (vm, state) = (0, VmState::Halted);
        let command = Command::Pause;
        let wrong = Err(ControlError::WrongState { vm, state, command });
        assert_eq!(fleet.execute(0, call(command)).await, wrong);
        assert_eq!(fleet.input(0, b"x"), Err(ControlError::NotListening { vm, state }));
        assert!(fleet.inspect(0).await.unwrap().is_none());
        fleet.execute(0, call(Command::Reset)).await.unwrap();
        until(fleet, 0, VmState::Halted).await;
        assert_eq!(fleet.record(0).unwrap().resets, 1);
    });
}

#[test]
fn a_fleet_that_has_ended_answers_no_more() {
    let (sender, requests) = bounded(1);
    drop(requests);
    let fleet = FleetHandle::new(backend(LOOP, 1, 0), 1, 1, Until::Never, sender);
    let answer = crate::client::block_on(fleet.execute(0, call(Command::Pause))).unwrap();
    assert_eq!(answer, Err(ControlError::Silent));
}

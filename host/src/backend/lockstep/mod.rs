//! The lockstep backend, for differential testing: every VM runs on the CPU and on the GPU, and
//! after every slice both must be in the same state. At the first difference it searches for the
//! instruction.
//!
//! Console output and events come from the CPU's side. Time is the `instret` clock, and there is no
//! input, because it would arrive at different moments on the two sides.

mod compare;
mod search;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use emu_core::abi::{Exit, ExitCode, Vm};
use emu_core::clock::Now;
use emu_core::trace::{NoTrace, Trace};
use emu_device::protocol::launch::{Entry, SLICE, WAKE};
use emu_device::protocol::outbox::{Body, messages};

use self::compare::difference;
use super::cpu::{CpuPort, Guest, HostArena, WorkerContext, private_frames};
use super::cuda::fleet::{LaunchArgs, Start};
use super::cuda::{Choice, CudaError, DeviceFleet, InsnLoop, sizing};
use super::images::Images;
use super::life::{Action, Life, State, Trigger};
use super::part::Part;
use super::trap_loop::TrapLoop;
use super::{Backend, BackendError, Event, EventKind, Inspector, Settings, Totals, Unsupported};
use crate::control::Call;
use crate::machine::Fleet;
use crate::sync::lock;

/// Events that may wait for the listener before the backend blocks.
const EVENTS_MAX: usize = 1024;
/// Reason that its VMs take neither commands nor input.
const ALONE: Unsupported =
    Unsupported("--backend lockstep compares undisturbed runs: nothing acts on its VMs");

struct Shared {
    part: Part,
    stopped: AtomicBool,
    instructions: AtomicU64,
    instret: Vec<AtomicU64>,
    failure: Mutex<Option<BackendError>>,
}

/// A fleet that runs on both.
pub struct LockstepBackend {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    thread: Option<JoinHandle<()>>,
}

impl LockstepBackend {
    /// Starts a fleet that was laid out on a device.
    pub fn start(
        device: DeviceFleet,
        packing: Choice,
        fleet: Fleet,
        settings: Settings,
    ) -> Result<Self, BackendError> {
        super::cpu::check_count(&fleet)?;
        let images = Images::new(fleet.disks.as_ref());
        let arena = HostArena::new(&fleet.base, images, private_frames(&fleet))?;
        let (sender, events) = bounded(EVENTS_MAX);
        let shared = Arc::new(Shared {
            instret: (0..fleet.count).map(|_| AtomicU64::new(0)).collect(),
            part: Part { fleet, settings },
            stopped: AtomicBool::new(false),
            instructions: AtomicU64::new(0),
            failure: Mutex::new(None),
        });
        let mut pair = Pair {
            shared: Arc::clone(&shared),
            device,
            packing,
            arena: Arc::new(arena),
            context: WorkerContext::new()?,
            events: sender,
        };
        let thread = thread::Builder::new()
            .name("lockstep".to_owned())
            .spawn(move || {
                if let Err(error) = pair.work() {
                    let mut failure = lock(&pair.shared.failure);
                    *failure = Some(error);
                }
            })
            .map_err(BackendError::Thread)?;
        Ok(Self { shared, events, thread: Some(thread) })
    }
}

impl Backend for LockstepBackend {
    fn name(&self) -> &'static str {
        "lockstep"
    }

    fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    fn input(&self, _: u32, _: &[u8]) {
        tracing::warn!("there is no console input in lockstep");
    }

    fn takes_input(&self) -> Result<(), Unsupported> {
        Err(ALONE)
    }

    fn waiting(&self, _: u32) -> usize {
        0
    }

    fn submit(&self, _: u32, _: Call) -> Result<(), Unsupported> {
        Err(ALONE)
    }

    fn inspect(&self, _: u32, _: Inspector) -> Result<(), Unsupported> {
        Err(ALONE)
    }

    fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }

    fn totals(&self) -> Totals {
        Totals {
            instructions: self.shared.instructions.load(Ordering::Relaxed),
            shared_frames: self.shared.part.fleet.base.shared(),
            private_frames: 0,
        }
    }

    fn fixed(&self) -> u64 {
        sizing::fixed(self.shared.part.fleet.base.pages())
    }

    fn instret(&self, vm: u32) -> u64 {
        let index = self.shared.part.slot(vm);
        index.map_or(0, |i| self.shared.instret[i as usize].load(Ordering::Relaxed))
    }

    fn failure(&self) -> BackendError {
        let mut failure = lock(&self.shared.failure);
        failure.take().unwrap_or(BackendError::Ended)
    }
}

impl Drop for LockstepBackend {
    fn drop(&mut self) {
        self.stop();
        while self.events.recv().is_ok() {}
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the lockstep thread ended in a panic");
        }
    }
}

/// A VM's slot: its life, and the CPU's side of it.
struct VmSlot {
    life: Life,
    side: CpuSide,
}

/// The CPU's side of a VM.
struct CpuSide {
    guest: Guest,
    port: CpuPort,
}

impl CpuSide {
    /// Returns the instructions that the VM has retired since its last start.
    fn retired(&self) -> u64 {
        self.guest.vm().platform.clock.retired
    }

    /// Runs a slice.
    fn slice<T: Trace>(&mut self, context: &mut WorkerContext, slice: u32, trace: &mut T) -> Exit {
        self.guest.session(context).slice(&mut self.port, slice, trace)
    }

    /// Runs a slice, and more of them where the GPU's side has: see [`Pair::gpu_slice`].
    fn follow<T: Trace>(
        &mut self,
        context: &mut WorkerContext,
        slice: u32,
        gpu: &Vm,
        trace: &mut T,
    ) -> Exit {
        loop {
            let before = self.retired();
            let exit = self.slice(context, slice, trace);
            let behind = before < self.retired() && self.retired() < gpu.platform.clock.retired;
            if !behind || exit.code != ExitCode::Budget {
                return exit;
            }
        }
    }
}

/// How a VM ended a slice on the GPU's side.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    exit: Exit,
    console: Vec<u8>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { exit: GOES_ON, console: Vec::new() }
    }
}

const GOES_ON: Exit = Exit { code: ExitCode::Budget, arg: 0 };

struct Pair {
    shared: Arc<Shared>,
    device: DeviceFleet,
    packing: Choice,
    arena: Arc<HostArena>,
    context: WorkerContext,
    events: Sender<Event>,
}

impl Pair {
    fn work(&mut self) -> Result<(), BackendError> {
        let count = self.shared.part.count();
        let mut slots = Vec::new();
        for index in 0..count {
            let mut life = Life::new(true, &self.shared.part.settings);
            let side = self.start(index, &mut life)?;
            slots.push(VmSlot { life, side });
        }
        loop {
            let runnable = |&index: &u32| slots[index as usize].life.is_runnable();
            let active: Vec<u32> = (0..count).filter(runnable).collect();
            if active.is_empty() || self.stopped() {
                break;
            }
            let mut seen = self.gpu_slice(&active, SLICE)?;
            for &index in &active {
                let seen = seen.remove(&index).unwrap_or_default();
                self.step(index, &mut slots[index as usize], &seen)?;
            }
            self.compare_ram(&active, &mut slots)?;
            for &index in &active {
                let VmSlot { life, side } = &mut slots[index as usize];
                if life.state() == State::Starting {
                    self.device.release(&[index])?;
                    *side = self.start(index, life)?;
                }
            }
        }
        while !self.stopped() {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(())
    }

    fn stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Relaxed)
    }

    fn report(&self, index: u32, instret: u64, kind: EventKind) {
        let _ = self.events.send(self.shared.part.event(index, instret, kind));
    }

    /// Starts a VM on both sides. It must not have memory on the device.
    fn start(&mut self, index: u32, life: &mut Life) -> Result<CpuSide, BackendError> {
        let side = self.make(index, life.earlier())?;
        let action = life.on(Trigger::Started);
        debug_assert_eq!(action, Action::Run);
        Ok(side)
    }

    /// Makes a VM on both sides.
    fn make(&mut self, index: u32, earlier: u64) -> Result<CpuSide, BackendError> {
        let staged = self.shared.part.stage(index, earlier);
        self.device.start(&[Start { vm: index, origin: 0, staged: staged.clone() }])?;
        let guest = Guest::new(&self.arena, &self.shared.part.fleet.base, staged, &self.context)
            .map_err(|_| CudaError::Contract("no frame for a VM's own pages"))?;
        Ok(CpuSide { guest, port: CpuPort::default() })
    }

    /// Compares the private pages of VMs on both sides.
    fn compare_ram(&mut self, vms: &[u32], slots: &mut [VmSlot]) -> Result<(), BackendError> {
        let digests = self.device.digests(vms)?;
        for (&index, digest) in vms.iter().zip(digests) {
            let side = &mut slots[index as usize].side;
            if side.guest.session(&mut self.context).private_pages() != digest {
                return Err(self.search(index, side.retired(), "RAM"));
            }
        }
        Ok(())
    }

    /// Runs VMs for one slice on the GPU. One that has waited for its disk at the end of the slice
    /// may have gone on for another.
    fn gpu_slice(&mut self, vms: &[u32], slice: u32) -> Result<HashMap<u32, Seen>, CudaError> {
        let mut seen = HashMap::new();
        self.gpu_launch(vms, slice, &mut seen)?;
        loop {
            let waits = |(&vm, seen): (&u32, &Seen)| {
                (seen.exit.code == ExitCode::Disk).then_some((vm, seen.exit.arg))
            };
            let mut waiting: Vec<(u32, u32)> = seen.iter().filter_map(waits).collect();
            if waiting.is_empty() {
                return Ok(seen);
            }
            // So that runs are repeatable.
            waiting.sort_unstable();
            let mut loaded = self.device.load_disk(&mut waiting)?;
            loaded.sort_unstable();
            for index in &loaded {
                seen.entry(*index).or_default().exit = GOES_ON;
            }
            self.gpu_launch(&loaded, slice, &mut seen)?;
        }
    }

    /// Launches VMs for one slice on the GPU, and adds what is seen of them.
    fn gpu_launch(
        &mut self,
        vms: &[u32],
        slice: u32,
        seen: &mut HashMap<u32, Seen>,
    ) -> Result<(), CudaError> {
        let entries: Vec<Entry> =
            vms.iter().map(|&index| Entry { vm: index | WAKE, inbox: 0 }).collect();
        let (runnable, multiprocessors) = (vms.len() as u32, self.device.multiprocessors());
        let packing = self.packing.packing(runnable, multiprocessors, InsnLoop::Dispatch);
        self.device.submit(&LaunchArgs {
            active: &entries,
            inbox: &[],
            slices: 1,
            time: None,
            slice,
            now: Now::Instret,
            packing,
        })?;
        let completed = self.device.wait()?;
        let result = self.device.result(completed)?;
        for message in messages(&result.log) {
            let seen = seen.entry(message.vm).or_default();
            match message.body {
                Body::Console(bytes) => seen.console.extend_from_slice(bytes),
                Body::Exit(exit, _) => seen.exit = exit,
                Body::Packet(_) | Body::Taken(_) | Body::TrapLoop(_) => {}
            }
        }
        Ok(())
    }

    /// Runs a VM for one slice on the CPU, as the GPU's entry point does, and compares all but
    /// RAM.
    fn step(&mut self, index: u32, slot: &mut VmSlot, seen: &Seen) -> Result<(), BackendError> {
        let VmSlot { life, side } = slot;
        let before = side.retired();
        let gpu = self.device.vm(index)?;
        let exit = side.follow(&mut self.context, SLICE, &gpu, &mut NoTrace);
        let retired = side.retired();
        let output = std::mem::take(&mut side.port.output);
        // There is no network: input would arrive at different moments on the two sides.
        let ours = if exit.code == ExitCode::Stalled { GOES_ON } else { exit };
        if let Some(what) = difference(side.guest.vm(), &gpu) {
            return Err(self.search(index, retired, &what));
        }
        if ours != seen.exit || output != seen.console {
            let what = format!(
                "it ends the slice with {ours:?} on the CPU and {:?} on the GPU, its console \
                 with {:?} and {:?}",
                seen.exit,
                String::from_utf8_lossy(&output),
                String::from_utf8_lossy(&seen.console)
            );
            return Err(self.search(index, retired, &what));
        }
        self.shared.instructions.fetch_add(retired - before, Ordering::Relaxed);
        let traps = TrapLoop::of(side.guest.vm());
        self.advance(index, life, (exit, traps), output, retired);
        Ok(())
    }

    /// Reports what a VM did in a slice, and lets its life continue.
    fn advance(
        &self,
        index: u32,
        life: &mut Life,
        (exit, traps): (Exit, TrapLoop),
        output: Vec<u8>,
        retired: u64,
    ) {
        let settings = &self.shared.part.settings;
        let instret = life.earlier() + retired;
        self.shared.instret[index as usize].store(instret, Ordering::Relaxed);
        if !output.is_empty() {
            let label = match exit.code {
                ExitCode::Budget => instret.next_multiple_of(SLICE.into()),
                _ => instret,
            };
            let ready = life.output(&output, label, settings);
            self.report(index, label, EventKind::Console(output));
            if ready {
                self.report(index, label, EventKind::Ready);
            }
        }
        // No input ever comes, and time is instructions: an idle VM stays parked.
        let (_, events) = life.exit(exit, traps, false, instret, settings);
        for kind in events {
            self.report(index, instret, kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backend::ClockSource;
    use crate::backend::cuda::emulated::Emulated;
    use crate::console::ready::ReadyPattern;
    use crate::image::cache;
    use crate::machine::{GuestOptions, assemble};
    use crate::units::Size;

    fn start(gpu: Emulated) -> Option<LockstepBackend> {
        pxvm_tests::needs::found("image", cache::default_image())?;
        Some(lockstep(gpu, Choice::default(), GuestOptions::default(), u32::MAX))
    }

    /// Starts a fleet that has so many pages of decoded instructions in its pool, at most.
    fn lockstep(gpu: Emulated, packing: Choice, guest: GuestOptions, code: u32) -> LockstepBackend {
        let (count, fleet) = (guest.count, assemble(&guest).unwrap());
        let ready = ReadyPattern::new(ReadyPattern::DEFAULT).unwrap();
        let link = Arc::default();
        let clock = ClockSource::Instret;
        let settings =
            Settings { started: count, threads: 1, clock, ready, until_ready: true, link };
        let mut device = DeviceFleet::new(Box::new(gpu), &fleet).unwrap();
        device.limit_code(code);
        LockstepBackend::start(device, packing, fleet, settings).unwrap()
    }

    /// Waits until all of a number of VMs were ready.
    fn wait_for(backend: &LockstepBackend, mut count: u32) {
        while count > 0 {
            match backend.events().recv_timeout(Duration::from_secs(300)) {
                Ok(Event { kind: EventKind::Ready, .. }) => count -= 1,
                Ok(_) => {}
                Err(_) => panic!("{}", backend.failure()),
            }
        }
    }

    #[test]
    fn linux_is_the_same_on_both_until_it_is_ready() {
        let Some(backend) = start(Emulated::new(Size::mib(256))) else { return };
        wait_for(&backend, 1);
    }

    #[test]
    fn linux_is_the_same_however_few_pages_of_decoded_instructions_there_are() {
        let Some(image) = pxvm_tests::needs::found("image", cache::default_image()) else { return };
        // Programs that are not executed in place, but in private frames. The first VM uses its own
        // page and the only one of the pool, the other its own.
        let initrd = Some(image.initrd);
        let guest = GuestOptions { count: 2, initrd, ..GuestOptions::default() };
        for insn_loop in [InsnLoop::Dispatch, InsnLoop::Uniform] {
            let packing = Choice { insn_loop: Some(insn_loop), ..Choice::default() };
            let gpu = Emulated::new(Size::mib(256));
            wait_for(&lockstep(gpu, packing, guest.clone(), 1), 2);
        }
    }

    #[test]
    fn nothing_acts_on_its_vms() {
        let Some(backend) = start(Emulated::new(Size::mib(256))) else { return };
        for command in crate::control::Command::ALL {
            let Ok(call) = command.parse(b"") else { continue };
            assert_eq!(backend.submit(0, call), Err(ALONE));
        }
        assert_eq!(backend.inspect(0, Box::new(|_| panic!("there is none"))), Err(ALONE));
        assert_eq!((backend.takes_input(), backend.waiting(0)), (Err(ALONE), 0));
    }

    #[test]
    fn the_first_wrong_register_is_named_with_its_instruction() {
        let gpu = Emulated::new(Size::mib(256)).wrong_from(100_000);
        let Some(backend) = start(gpu) else { return };
        let event = backend.events().recv_timeout(Duration::from_secs(300));
        assert!(event.is_err(), "{event:?}");
        let failure = backend.failure().to_string();
        assert!(failure.contains("vm0 differs after instruction 99999, at pc 0x"), "{failure}");
        assert!(failure.contains("hart.x.a0 is 0x"), "{failure}");
        assert!(failure.contains("0xdeadbeef on the GPU"), "{failure}");
    }
}

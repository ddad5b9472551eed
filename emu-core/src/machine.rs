//! The execution of a VM: [`Machine::run`] takes an instruction budget and the current time, and
//! returns an [`Exit`].

use crate::abi::{Exit, ExitCode, FaultCode, Hart, NO_RESERVATION, Platform, Vm};
use crate::clock::Now;
use crate::csr::{MEDELEG_WRITABLE, StoredCsr, irq};
use crate::dev::virtio::{self, Deferred};
use crate::disk::Disk;
use crate::lane::{Lane, Scalar, SyncPoint};
use crate::mem::{Dma, Ram};
use crate::mmu::Privilege;
use crate::pmp::Pmp;
use crate::port::Port;
use crate::semihosting::WAITS_FOR_INPUT;
use crate::trace::{NoTrace, Trace};
use crate::trap::{Trap, cause};
use crate::uniform::HotState;

/// A VM together with everything that its instructions can access, RAM, disk and port, and with
/// what its hart executes on.
pub struct Machine<'a, M, D, P, L = Scalar> {
    hart: &'a mut Hart,
    core: Core<'a, M, D, P, L>,
}

/// Everything that instructions access besides [`Hart`]. The two are separate so that the
/// instruction loop can keep a pointer to each in a register.
pub(crate) struct Core<'a, M, D, P, L> {
    pub(crate) platform: &'a mut Platform,
    pub(crate) ram: &'a mut M,
    pub(crate) disk: &'a mut D,
    pub(crate) port: &'a mut P,
    pub(crate) lane: L,
    /// The instruction loop must end after this instruction, because something that it holds in
    /// registers or assumes (translations, interrupts, the frame of the current page) may have
    /// changed.
    pub(crate) exit_loop: bool,
    /// A device or firmware call ended the run.
    pub(crate) exit: Option<Exit>,
}

impl<'a, M: Ram, D: Disk, P: Port> Machine<'a, M, D, P> {
    /// Makes a machine of a VM's state, its RAM, the disk behind virtio-blk, and its connection to
    /// the host. Its hart executes on a CPU.
    pub fn new(vm: &'a mut Vm, ram: &'a mut M, disk: &'a mut D, port: &'a mut P) -> Self {
        Self::on(Scalar, &mut vm.hart, &mut vm.platform, ram, disk, port)
    }
}

impl<'a, M: Ram, D: Disk, P: Port, L: Lane> Machine<'a, M, D, P, L> {
    /// Makes a machine as [`Machine::new`] does, whose hart executes on `lane`. The hart's state may
    /// lie apart from the rest, such as in a GPU's shared memory.
    pub fn on(
        lane: L,
        hart: &'a mut Hart,
        platform: &'a mut Platform,
        ram: &'a mut M,
        disk: &'a mut D,
        port: &'a mut P,
    ) -> Self {
        Self { hart, core: Core { platform, ram, disk, port, lane, exit_loop: false, exit: None } }
    }

    /// Executes at most `budget` instructions and returns why it stopped. It polls the port for input
    /// at the start only. Everything else depends on the VM's state alone, not on how its
    /// instructions are divided into runs.
    // Inlined, so that a GPU's compiler sees that `hart` is in shared memory.
    #[inline(always)]
    pub fn run(&mut self, budget: u32, now: Now) -> Exit {
        self.core.run(self.hart, budget, now, &mut NoTrace)
    }

    /// Executes runs as [`Machine::run`] does, by the uniform loop ([`crate::uniform`]) on a hart whose
    /// hot state is in `hot` meanwhile. When a run has ended, `next` is told how many instructions the
    /// hart has retired, and the exit, and returns the budget of another run.
    #[inline(always)]
    pub fn run_uniform<H: HotState<M::Code>>(
        &mut self,
        hot: H,
        budget: u32,
        now: Now,
        next: impl FnMut(&mut P, &mut L, u64, Exit) -> Option<u32>,
    ) -> Exit {
        self.core.uniform(self.hart, hot, budget, now, next)
    }

    /// Executes as [`Machine::run`] does, and reports every instruction to `trace`.
    pub fn run_traced<T: Trace>(&mut self, budget: u32, now: Now, trace: &mut T) -> Exit {
        self.core.run(self.hart, budget, now, trace)
    }
}

impl<M: Ram, D: Disk, P: Port, L: Lane> Core<'_, M, D, P, L> {
    #[inline]
    fn run<T: Trace>(&mut self, hart: &mut Hart, budget: u32, now: Now, trace: &mut T) -> Exit {
        if let Some(exit) = self.begin(hart, now) {
            return exit;
        }
        let mut left = budget;
        loop {
            let n = match self.handle_due(hart, left, now, trace) {
                Ok(n) => n,
                Err(exit) => return exit,
            };
            let (spent, result) = if self.lane.is_alone() {
                self.execute::<T, true>(hart, n, trace)
            } else {
                self.execute::<T, false>(hart, n, trace)
            };
            if let Some(exit) = self.account(hart, &mut left, spent, result, trace) {
                return exit;
            }
        }
    }

    /// Begins a run: polls input and time, if it is to. Returns the exit if that ends it.
    #[inline(always)]
    pub(crate) fn begin(&mut self, hart: &mut Hart, now: Now) -> Option<Exit> {
        if self.lane.polls() {
            self.platform.next_event_at = 0;
            self.platform.clock.begin(now);
            if let Err(trap) = self.poll_devices(hart) {
                return Some(self.stopped(trap));
            }
        }
        None
    }

    /// Does what is due between two runs of the instruction loop: events, interrupts, waiting.
    /// Returns how many instructions the loop may execute, `left` at most, or the exit that ends the
    /// run.
    #[inline(always)]
    pub(crate) fn handle_due<T: Trace>(
        &mut self,
        hart: &mut Hart,
        left: u32,
        now: Now,
        trace: &mut T,
    ) -> Result<u32, Exit> {
        loop {
            // Before `next_event_at` no device and no timer needs attention. Most runs of the
            // instruction loop end before it, so skipping the checks pays.
            let uneventful = self.platform.clock.steps() < self.platform.next_event_at;
            if !uneventful && let Some(exit) = self.handle_event() {
                return Err(exit);
            }
            if let Some(number) = self.platform.pending_interrupt(hart) {
                self.platform.waiting = 0;
                trace.trap(hart.pc, cause::INTERRUPT | number, 0);
                self.platform.take_trap(hart, cause::INTERRUPT | number, 0);
                continue;
            }
            if left == 0 {
                return Err(Exit::new(ExitCode::Budget));
            }
            if !uneventful {
                if self.platform.waiting != 0 {
                    if !self.end_wait(now) {
                        return Err(Exit::new(ExitCode::Idle));
                    }
                    continue;
                }
                self.platform.next_event_at =
                    self.platform.clock.steps().saturating_add(self.until_event());
            }
            let until = self.platform.next_event_at - self.platform.clock.steps();
            return Ok(until.min(u64::from(left)) as u32);
        }
    }

    /// Accounts for a run of the instruction loop: it has executed `spent` of the `left`
    /// instructions, and the next one raised a trap if `result` has one. Returns the exit that ends
    /// the run, if it must end.
    #[inline(always)]
    pub(crate) fn account<T: Trace>(
        &mut self,
        hart: &mut Hart,
        left: &mut u32,
        spent: u32,
        result: Result<(), Trap>,
        trace: &mut T,
    ) -> Option<Exit> {
        *left -= spent;
        // Lanes reconverge only where an instruction ended the loop. Where `n` was used up will
        // not do: each VM is at a different place then.
        let ended = self.exit_loop || result.is_err();
        let point = SyncPoint {
            retired: self.platform.clock.retired,
            syscall: matches!(result, Err(Trap::Exception { cause: cause::ECALL_U, .. })),
            waiting: self.platform.waiting != 0,
            user: hart.ctx.privilege == Privilege::User && result.is_ok(),
            sp: hart.x[2],
            pc: hart.pc,
        };
        let stop = ended && self.lane.sync_point(point);
        match result {
            Ok(()) => {}
            Err(Trap::Exception { cause, tval }) => {
                *left -= 1;
                if !self.exception(hart, cause, tval, trace) {
                    return Some(fault(FaultCode::TrapLoop));
                }
            }
            Err(trap) => return Some(self.stopped(trap)),
        }
        if stop {
            *left = 0;
        }
        None
    }

    /// Brings the interrupt lines up to date with devices and time. Returns the exit that a device
    /// or firmware call asked for, if any.
    #[inline(always)]
    fn handle_event(&mut self) -> Option<Exit> {
        if let Some(exit) = self.exit.take() {
            return Some(exit);
        }
        if let Some(exit) = self.unfinished() {
            return Some(exit);
        }
        self.platform.clock.catch_up();
        self.update_lines();
        None
    }

    /// Takes an exception. Returns `false` if the hart is caught in an endless loop of traps.
    fn exception<T: Trace>(
        &mut self,
        hart: &mut Hart,
        cause: u32,
        tval: u32,
        trace: &mut T,
    ) -> bool {
        trace.trap(hart.pc, cause, tval);
        self.platform.take_trap(hart, cause, tval);
        self.platform.clock.count_exception();
        !self.platform.trap_chain.is_loop() || self.outlasts_traps(hart)
    }

    /// Handles that the hart traps to itself. If an interrupt may save it, the hart waits for that as
    /// in WFI, since it does nothing else. Returns `false` if none may.
    #[cold]
    #[inline(never)]
    fn outlasts_traps(&mut self, hart: &mut Hart) -> bool {
        if !self.platform.trap_chain.is_futile() && self.platform.may_be_interrupted(hart) {
            self.platform.waiting = 1;
            self.request_poll();
            return true;
        }
        let first = self.platform.trap_chain.first;
        let insn = self.platform.insn_that_trapped(hart, self.ram, &first);
        if let Some(insn) = insn {
            self.platform.trap_chain.set_insn(insn);
        }
        false
    }

    fn stopped(&self, trap: Trap) -> Exit {
        match trap {
            Trap::Stall => Exit::new(ExitCode::Stalled),
            Trap::NoFrame => Exit::new(ExitCode::NoFrame),
            Trap::Fault(code) => fault(code),
            Trap::Exception { .. } => fault(FaultCode::BadState),
        }
    }

    /// Wakes a hart that waits for an interrupt, if one is pending, or for input, if there is some.
    /// Under the `instret` clock it otherwise advances time to the next timer. Returns `false` if
    /// the hart must keep waiting.
    fn end_wait(&mut self, now: Now) -> bool {
        let enabled = self.platform.csr.get(StoredCsr::Mie);
        let input = self.platform.waiting == WAITS_FOR_INPUT && self.platform.dev.uart.has_input();
        if input || self.platform.csr.mip() & enabled != 0 {
            self.platform.waiting = 0;
            return true;
        }
        let due = self.platform.wake_at();
        if now == Now::Instret && due != u64::MAX {
            self.platform.clock.skip_to(due);
            return true;
        }
        false
    }

    /// Returns the exit that a device with unfinished work causes, if there is one. The guest must
    /// not run on before that work is done, or it could observe how fast the host drains output and
    /// where slices end.
    fn unfinished(&self) -> Option<Exit> {
        let deferred = self.platform.dev.virtio.deferred()?;
        Some(match deferred {
            Deferred::Port => Exit::new(ExitCode::Stalled),
            Deferred::Budget => Exit::new(ExitCode::Budget),
            Deferred::Disk(page) => Exit { code: ExitCode::Disk, arg: page },
        })
    }

    /// Returns the number of steps, at least one, until the timer's interrupt line changes or the
    /// RTC's alarm is due.
    fn until_event(&self) -> u64 {
        let clock = &self.platform.clock;
        let timer = clock.until_deadline().max(1);
        let alarm =
            self.platform.dev.rtc.next_alarm().map(|ns| {
                clock.step_at(clock.ticks_at_ns(ns)).saturating_sub(clock.steps()).max(1)
            });
        alarm.map_or(timer, |alarm| alarm.min(timer))
    }

    /// Makes the instruction loop end after this instruction, and devices and time be polled then.
    pub(crate) fn request_poll(&mut self) {
        self.exit_loop = true;
        self.platform.next_event_at = 0;
    }

    /// Sets the hart's interrupt lines to the levels of the devices and the timer.
    fn update_lines(&mut self) {
        let platform = &mut *self.platform;
        let map = platform.kind.map();
        platform.dev.plic.set_level(map.uart_irq, platform.dev.uart.irq());
        for device in virtio::DeviceKind::ALL {
            let slot = platform.dev.virtio.slot(device);
            if let Some(transport) = map.virtio.get(slot as usize) {
                platform.dev.plic.set_level(transport.irq, platform.dev.virtio.irq(device));
            }
        }
        if map.rtc.size != 0 {
            if platform.dev.rtc.next_alarm().is_some() {
                platform.dev.rtc.poll(platform.clock.now_ns());
            }
            platform.dev.plic.set_level(map.rtc_irq, platform.dev.rtc.irq());
        }
        let mut lines = 0;
        if platform.dev.plic.pending(map.plic_context_s) {
            lines |= irq::SEI;
        }
        if map.plic_context_m.is_some_and(|context| platform.dev.plic.pending(context)) {
            lines |= irq::MEI;
        }
        if platform.clock.due() {
            lines |= if platform.sbi != 0 { irq::STI } else { irq::MTI };
        }
        if platform.dev.clint.msip != 0 {
            lines |= if platform.sbi != 0 { irq::SSI } else { irq::MSI };
        }
        platform.csr.mip_hardware = lines;
    }

    /// Lets every device take the input that arrived on the port since the last poll.
    fn poll_devices(&mut self, hart: &mut Hart) -> Result<(), Trap> {
        self.platform.dev.uart.poll(self.port);
        self.with_virtio(hart, |devices, io| devices.poll(io))
    }

    /// Calls `f` with the virtio devices and what they may access. Afterwards, drops the LR
    /// reservation if a device wrote to RAM, and cached translations if it replaced frames.
    pub(crate) fn with_virtio<R>(
        &mut self,
        hart: &mut Hart,
        f: impl FnOnce(&mut virtio::VirtioDevices, &mut virtio::Io<'_, M, D, P>) -> R,
    ) -> R {
        let platform = &mut *self.platform;
        let mut io = virtio::Io {
            ram: Dma::new(self.ram, platform.kind.map().ram_base),
            disk: self.disk,
            port: self.port,
        };
        let result = f(&mut platform.dev.virtio, &mut io);
        if io.ram.wrote() {
            hart.reservation = NO_RESERVATION;
        }
        if io.ram.replaced() {
            platform.flush_tlbs(hart);
        }
        result
    }
}

fn fault(code: FaultCode) -> Exit {
    Exit { code: ExitCode::Fault, arg: code as u32 }
}

impl Platform {
    /// Returns the machine's time at which a waiting hart must run again if no input comes before,
    /// or `u64::MAX` if only input can wake it.
    fn wake_at(&self) -> u64 {
        let enabled = self.csr.get(StoredCsr::Mie);
        let timer = if self.sbi != 0 { irq::STI } else { irq::MTI };
        let timer = if enabled & timer != 0 { self.clock.due_at() } else { u64::MAX };
        match self.dev.rtc.next_alarm() {
            Some(ns) if enabled & (irq::SEI | irq::MEI) != 0 => {
                timer.min(self.clock.ticks_at_ns(ns))
            }
            _ => timer,
        }
    }
}

impl Vm {
    /// Returns the machine's time ([`Now::Host`]) at which a VM that is [`ExitCode::Idle`] must run
    /// again if no input comes before, or `u64::MAX` if only input can wake it.
    pub fn wake_at(&self) -> u64 {
        self.platform.wake_at()
    }

    /// Whether console input may wake a VM that is [`ExitCode::Idle`].
    pub fn wants_input(&self) -> bool {
        self.platform.waiting == WAITS_FOR_INPUT || self.platform.dev.uart.input_interrupts()
    }

    /// Sets the VM to start at `entry` in S-mode, under the built-in SBI. A Linux kernel expects
    /// the hart id in `a0` and the address of the device tree in `a1`.
    pub fn boot_supervisor(&mut self, entry: u32, a0: u32, a1: u32) {
        self.boot(entry, a0, a1, Privilege::Supervisor);
        self.platform.sbi = 1;
        self.platform.csr.set(StoredCsr::Medeleg, MEDELEG_WRITABLE & !(1 << cause::ECALL_S));
        self.platform.csr.set(StoredCsr::Mideleg, irq::S_ALL);
        self.platform.csr.set(StoredCsr::Mcounteren, 0b111);
        self.platform.csr.pmp = Pmp::OPEN;
    }

    /// Sets the VM to start at `entry` in M-mode, as firmware and bare-metal programs expect.
    pub fn boot_machine(&mut self, entry: u32, a0: u32, a1: u32) {
        self.boot(entry, a0, a1, Privilege::Machine);
        self.platform.sbi = 0;
    }

    fn boot(&mut self, entry: u32, a0: u32, a1: u32, privilege: Privilege) {
        self.hart.pc = entry & !3;
        self.hart.x[10] = a0;
        self.hart.x[11] = a1;
        self.platform.set_privilege(&mut self.hart, privilege);
    }
}

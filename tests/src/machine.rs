//! A machine for tests: a VM with RAM, a console, trap handlers that loop for ever, and helpers.

use std::marker::PhantomData;
use std::rc::Rc;

use emu_core::abi::{Exit, Vm};
use emu_core::clock::Now;
use emu_core::csr::CsrOp;
use emu_core::dev::virtio::driver::MockPort;
use emu_core::lane::{Lane, SyncPoint};
use emu_core::layout::MachineKind;
use emu_core::machine::Machine;
use emu_core::mem::{Dma, FRAME_SIZE, Memory};
use emu_core::mmu::Privilege;
use emu_core::pmp::Pmp;
use emu_core::trace::Trace;

use crate::asm::{Asm, Reg, csr};
use crate::hash::{StateHash, state_hash};
use crate::loops::{Dispatch, InsnLoop, Uniform};
use crate::memory::{Frames, Space};

/// First address of RAM, and of the program under test.
pub const RAM: u32 = 0x8000_0000;
/// First address of the ROM.
pub const ROM: u32 = 0x2000_0000;
/// Bytes of RAM: two Sv32 superpages.
pub const RAM_SIZE: u32 = 8 << 20;
/// The M-mode trap handler: a jump to itself.
pub const M_HANDLER: u32 = RAM + 0xe000;
/// The S-mode trap handler: a jump to itself.
pub const S_HANDLER: u32 = RAM + 0xf000;
/// A page for data, with more behind it.
pub const DATA: u32 = RAM + 0x10_0000;
/// The root page table of [`Sv32`], with other tables behind it.
pub const TABLES: u32 = RAM + 0x20_0000;

const PAGES: u32 = RAM_SIZE / FRAME_SIZE;
const PRIVATE: u32 = 256;

/// A trap that one of the two handlers has caught.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// The mode that handles it.
    pub to: Privilege,
    /// `mcause` or `scause`.
    pub cause: u32,
    /// `mepc` or `sepc`.
    pub epc: u32,
    /// `mtval` or `stval`.
    pub tval: u32,
}

/// Taken to M-mode.
pub const fn to_m(cause: u32, epc: u32, tval: u32) -> Option<Taken> {
    Some(Taken { to: Privilege::Machine, cause, epc, tval })
}

/// Taken to S-mode.
pub const fn to_s(cause: u32, epc: u32, tval: u32) -> Option<Taken> {
    Some(Taken { to: Privilege::Supervisor, cause, epc, tval })
}

/// What the machine's hart executes on: a CPU, which can do what a lane of a warp does.
#[derive(Clone, Copy, Debug, Default)]
pub struct TestLane {
    /// Whether the VM is not [`Lane::is_alone`], which selects the other form of the instruction
    /// loop.
    pub shares_warp: bool,
    /// Whether runs end at each [`Lane::sync_point`].
    pub ends_runs: bool,
    /// Whether runs continue others, so that they do not [`Lane::polls`].
    pub continues: bool,
}

impl Lane for TestLane {
    fn is_alone(&self) -> bool {
        !self.shares_warp
    }

    fn sync_point(&mut self, _: SyncPoint) -> bool {
        self.ends_runs
    }

    fn polls(&self) -> bool {
        !self.continues
    }
}

/// A machine with the dispatching loop.
pub type TestMachine = MachineBy<Dispatch>;
/// A machine with the uniform loop.
pub type UniformMachine = MachineBy<Uniform>;

/// A VM with its memory, port and clock, executed by the loop `I`.
pub struct MachineBy<I> {
    /// The VM's state. It caches frames of this machine's memory, so it must not be moved to
    /// another machine.
    pub vm: Vm,
    /// Console and network.
    pub port: MockPort,
    /// What the hart executes on.
    pub lane: TestLane,
    /// The clock.
    pub now: Now,
    space: Space,
    insn_loop: PhantomData<I>,
}

impl<I: InsnLoop> Default for MachineBy<I> {
    fn default() -> Self {
        Self::new()
    }
}

impl<I: InsnLoop> MachineBy<I> {
    /// Makes a `virt` machine in M-mode at [`RAM`], with both trap vectors set, memory zero and PMP
    /// open.
    pub fn new() -> Self {
        let frames = Frames::new(&[], PRIVATE);
        Self::on(&frames, Vec::new())
    }

    /// A machine of a fleet: the arena's shared frames from 1 on are its first pages, or those
    /// that `pages` names.
    pub fn on(frames: &Rc<Frames>, pages: Vec<u32>) -> Self {
        Self::with_rom(frames, pages, Vec::new())
    }

    /// The same with the arena's shared frames that `rom` names as a ROM.
    pub fn with_rom(frames: &Rc<Frames>, mut pages: Vec<u32>, rom: Vec<u32>) -> Self {
        pages.resize(PAGES as usize, 0);
        Self::with_space(Space::with_rom(frames, pages, rom))
    }

    /// Makes a machine as [`MachineBy::new`] does, with the given memory.
    pub fn with_space(space: Space) -> Self {
        let mut vm = Vm::new(MachineKind::Virt);
        vm.boot_machine(RAM, 0, 0);
        // PMP is as firmware leaves it. Without an entry, S and U mode could not access anything.
        vm.platform.csr.pmp = Pmp::OPEN;
        let mut m = Self {
            vm,
            port: MockPort::default(),
            lane: TestLane::default(),
            now: Now::Instret,
            space,
            insn_loop: PhantomData,
        };
        m.set_csr(csr::MTVEC, M_HANDLER);
        m.set_csr(csr::STVEC, S_HANDLER);
        m
    }

    /// Makes a machine with `f`'s program at [`RAM`], followed by a jump to itself.
    pub fn program(f: impl FnOnce(&mut Asm)) -> Self {
        let mut m = Self::new();
        m.load(f);
        m
    }

    /// Makes a machine in S-mode under the built-in SBI, with `f`'s program.
    pub fn supervisor(f: impl FnOnce(&mut Asm)) -> Self {
        let mut m = Self::new();
        m.vm.boot_supervisor(RAM, 0, 0);
        m.load(f);
        m
    }

    /// Runs `f`'s program, followed by a jump to itself, to its end or to a trap.
    pub fn ran(f: impl FnOnce(&mut Asm)) -> Self {
        let mut m = Self::program(f);
        m.run(RUN);
        m
    }

    /// Puts `f`'s program, followed by a jump to itself, at [`RAM`], and `pc` there.
    pub fn load(&mut self, f: impl FnOnce(&mut Asm)) -> &mut Self {
        self.load_at(RAM, |a| {
            f(a);
            a.stop();
        });
        self.vm.hart.pc = RAM;
        let stop = Asm::build(0, |a| {
            a.stop();
        });
        self.write_words(M_HANDLER, &stop);
        self.write_words(S_HANDLER, &stop);
        self
    }

    /// Puts code at an address.
    pub fn load_at(&mut self, at: u32, f: impl FnOnce(&mut Asm)) -> &mut Self {
        let words = Asm::build(at, f);
        self.write_words(at, &words)
    }

    /// Executes at most `budget` instructions.
    pub fn run(&mut self, budget: u32) -> Exit {
        let Self { vm, port, lane, now, space, .. } = self;
        space.with(|ram, disk| {
            let (hart, platform) = (&mut vm.hart, &mut vm.platform);
            I::run(&mut Machine::on(*lane, hart, platform, ram, disk, port), budget, *now)
        })
    }

    /// Executes enough instructions for any test's program to reach the loop at its end.
    pub fn run_out(&mut self) -> Exit {
        self.run(RUN)
    }

    /// Executes as [`MachineBy::run`] does, and reports every instruction to a trace. Only the
    /// dispatching loop can.
    pub fn run_traced(&mut self, budget: u32, trace: &mut impl Trace) -> Exit {
        let Self { vm, port, lane, now, space, .. } = self;
        space.with(|ram, disk| {
            Machine::on(*lane, &mut vm.hart, &mut vm.platform, ram, disk, port)
                .run_traced(budget, *now, trace)
        })
    }

    /// Returns the trap that was caught, if a handler has been reached.
    pub fn taken(&self) -> Option<Taken> {
        let (to, [cause, epc, tval]) = match self.vm.hart.pc {
            M_HANDLER => (Privilege::Machine, [csr::MCAUSE, csr::MEPC, csr::MTVAL]),
            S_HANDLER => (Privilege::Supervisor, [csr::SCAUSE, csr::SEPC, csr::STVAL]),
            _ => return None,
        };
        Some(Taken { to, cause: self.csr(cause), epc: self.csr(epc), tval: self.csr(tval) })
    }

    /// Returns a register.
    pub fn x(&self, r: Reg) -> u32 {
        self.vm.hart.x[r as usize]
    }

    /// Sets a register.
    pub fn set_x(&mut self, r: Reg, value: u32) -> &mut Self {
        self.vm.hart.x[r as usize] = value;
        self
    }

    /// Reads a CSR as M-mode does.
    pub fn csr(&self, number: u32) -> u32 {
        let mut vm = self.vm.clone();
        vm.platform.set_privilege(&mut vm.hart, Privilege::Machine);
        vm.platform.csr_access(&mut vm.hart, number, CsrOp::Set, None).expect("a readable CSR").0
    }

    /// Writes a CSR as M-mode does.
    pub fn set_csr(&mut self, number: u32, value: u32) -> &mut Self {
        let privilege = self.vm.hart.ctx.privilege;
        self.vm.platform.set_privilege(&mut self.vm.hart, Privilege::Machine);
        self.vm
            .platform
            .csr_access(&mut self.vm.hart, number, CsrOp::Write, Some(value))
            .expect("a writable CSR");
        self.vm.platform.set_privilege(&mut self.vm.hart, privilege);
        self
    }

    /// Changes the privilege mode, nothing else.
    pub fn enter(&mut self, privilege: Privilege) -> &mut Self {
        self.vm.platform.set_privilege(&mut self.vm.hart, privilege);
        self
    }

    /// Reads memory by physical address.
    pub fn read(&mut self, at: u32, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.space
            .with(|ram, _| Dma::new(ram, RAM).read(u64::from(at), &mut bytes))
            .expect("an address in RAM");
        bytes
    }

    /// Writes memory by physical address, as a device does.
    pub fn write(&mut self, at: u32, bytes: &[u8]) -> &mut Self {
        let replaced = self.space.with(|ram, _| {
            let mut dma = Dma::new(ram, RAM);
            dma.write(u64::from(at), bytes).expect("an address in RAM");
            dma.replaced()
        });
        if replaced {
            self.vm.platform.flush_tlbs(&mut self.vm.hart);
        }
        self
    }

    /// Reads a word.
    pub fn word(&mut self, at: u32) -> u32 {
        u32::from_le_bytes(self.read(at, 4).try_into().expect("four bytes"))
    }

    /// Writes words.
    pub fn write_words(&mut self, at: u32, words: &[u32]) -> &mut Self {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.write(at, &bytes)
    }

    /// Returns the fingerprint of the machine's state.
    pub fn hash(&mut self) -> StateHash {
        let vm = &self.vm;
        self.space.with(|ram, _| state_hash(vm, ram))
    }

    /// Returns whether the page at `at` has a private frame.
    pub fn is_private(&mut self, at: u32) -> bool {
        self.space.with(|ram, _| {
            ram.frame((at - RAM) / FRAME_SIZE).is_some_and(|frame| ram.is_private(frame))
        })
    }

    /// The fleet's frames.
    pub fn frames(&self) -> &Rc<Frames> {
        self.space.frames()
    }
}

/// More than any directed test needs.
const RUN: u32 = 20_000;

/// Page table entry bits.
#[allow(missing_docs)]
pub mod pte {
    pub const V: u32 = 1 << 0;
    pub const R: u32 = 1 << 1;
    pub const W: u32 = 1 << 2;
    pub const X: u32 = 1 << 3;
    pub const U: u32 = 1 << 4;
    pub const G: u32 = 1 << 5;
    pub const A: u32 = 1 << 6;
    pub const D: u32 = 1 << 7;
    /// A page that S-mode may use for everything.
    pub const S_ALL: u32 = V | R | W | X | A | D;
    /// A page that U-mode may use for everything.
    pub const U_ALL: u32 = S_ALL | U;

    /// The entry of the page at `pa` with permission `bits`.
    pub const fn leaf(pa: u64, bits: u32) -> u32 {
        ((pa >> 12) as u32) << 10 | bits
    }
}

/// Builds Sv32 page tables in a machine's memory.
#[derive(Clone, Copy, Debug)]
pub struct Sv32 {
    next: u32,
}

impl Sv32 {
    /// An empty root table at [`TABLES`].
    pub const fn new() -> Self {
        Self { next: TABLES + FRAME_SIZE }
    }

    /// Address of the root entry for `va`.
    pub const fn root_entry(va: u32) -> u32 {
        TABLES + (va >> 22) * 4
    }

    /// Address of the leaf entry for `va`. Makes its table if there is none.
    pub fn entry<I: InsnLoop>(&mut self, m: &mut MachineBy<I>, va: u32) -> u32 {
        let root = Self::root_entry(va);
        if m.word(root) == 0 {
            m.write_words(root, &[pte::leaf(u64::from(self.next), pte::V)]);
            self.next += FRAME_SIZE;
        }
        (m.word(root) >> 10 << 12) + (va >> 12 & 0x3ff) * 4
    }

    /// Maps a page.
    pub fn map<I: InsnLoop>(
        &mut self,
        m: &mut MachineBy<I>,
        va: u32,
        pa: u32,
        bits: u32,
    ) -> &mut Self {
        let entry = self.entry(m, va);
        m.write_words(entry, &[pte::leaf(u64::from(pa), bits)]);
        self
    }

    /// Maps a superpage of 4 MiB.
    pub fn map_super<I: InsnLoop>(
        &mut self,
        m: &mut MachineBy<I>,
        va: u32,
        pa: u32,
        bits: u32,
    ) -> &mut Self {
        m.write_words(Self::root_entry(va), &[pte::leaf(u64::from(pa), bits)]);
        self
    }

    /// Value for `satp`.
    pub const fn satp() -> u32 {
        1 << 31 | TABLES >> 12
    }

    /// Turns translation on, in `privilege`.
    pub fn enable<I: InsnLoop>(&mut self, m: &mut MachineBy<I>, privilege: Privilege) {
        m.set_csr(csr::SATP, Self::satp()).enter(privilege);
    }
}

impl Default for Sv32 {
    fn default() -> Self {
        Self::new()
    }
}

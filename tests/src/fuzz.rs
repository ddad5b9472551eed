//! Fuzz targets: each turns bytes into a list of operations on the core and compares it with an
//! oracle that is written from the specification, slowly.
//!
//! The smoke tests feed them random bytes from fixed seeds; a coverage-guided fuzzer calls the same
//! functions with its own.

use emu_core::abi::{ExitCode, Vm};
use emu_core::chacha::ChaCha;
use emu_core::csr::mstatus;
use emu_core::dev::virtio::driver::{self, Guest, QUEUE_SIZE, legacy_queue_addresses, reg};
use emu_core::dev::virtio::{feature, mmio::Version, rng::Rng};
use emu_core::mem::FRAME_SIZE;
use emu_core::mmu::Privilege::{self, Machine, Supervisor, User};
use emu_core::trace::Trace;

use crate::asm::{Asm, csr::*, reg::*};
use crate::careless;
use crate::loops::{InsnLoop, Uniform};
use crate::machine::{
    DATA, M_HANDLER, MachineBy, RAM, RAM_SIZE, Sv32, TABLES, TestMachine, UniformMachine, pte,
};

/// Bytes as a source of decisions. It has no end that a target must care for: zeros follow.
#[derive(Clone, Debug)]
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// Reads `data`.
    pub const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// The next word.
    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.byte()))
    }

    /// A number below `end`, at most 256.
    pub fn below(&mut self, end: u32) -> u32 {
        u32::from(self.byte()) % end
    }
}

/// What an access is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Load,
    Store,
    Fetch,
}

/// The state that translation depends on.
#[derive(Clone, Copy, Debug)]
struct Mode {
    privilege: Privilege,
    sum: bool,
    mxr: bool,
    translated: bool,
}

/// What the specification says about an access: the physical address, or the cause of the trap;
/// and the page table entry that changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Walk {
    outcome: Result<u32, u32>,
    update: Option<(u32, u32)>,
}

/// Sv32 translation, step by step as in section 10.3.2 of the privileged specification, with A
/// and D set by hardware.
fn translate(m: &mut TestMachine, mode: Mode, access: Access, va: u32) -> Walk {
    let (page_fault, access_fault) = match access {
        Access::Load => (13, 5),
        Access::Store => (15, 7),
        Access::Fetch => (12, 1),
    };
    let in_ram = |pa: u64| (u64::from(RAM)..u64::from(RAM) + u64::from(RAM_SIZE)).contains(&pa);
    let end = |pa: u64, update| Walk {
        outcome: if in_ram(pa) { Ok(pa as u32) } else { Err(access_fault) },
        update,
    };
    let fault = |cause| Walk { outcome: Err(cause), update: None };
    if !mode.translated || mode.privilege == Machine {
        return end(u64::from(va), None);
    }
    // Steps 1 and 2.
    let vpn = [va >> 12 & 0x3ff, va >> 22];
    let mut a = u64::from(TABLES);
    for i in [1, 0] {
        let at = a + u64::from(vpn[i]) * 4;
        if !in_ram(at) {
            return fault(access_fault);
        }
        let entry = m.word(at as u32);
        let bit = |b: u32| entry & b != 0;
        // Step 3.
        if !bit(pte::V) || !bit(pte::R) && bit(pte::W) {
            return fault(page_fault);
        }
        let ppn = u64::from(entry >> 10);
        // Step 4. "For non-leaf PTEs, the D, A, and U bits are reserved".
        if !bit(pte::R) && !bit(pte::X) {
            if bit(pte::D) || bit(pte::A) || bit(pte::U) {
                return fault(page_fault);
            }
            a = ppn << 12;
            continue;
        }
        // Step 5.
        let permitted = match access {
            Access::Load => bit(pte::R) || mode.mxr && bit(pte::X),
            Access::Store => bit(pte::W),
            Access::Fetch => bit(pte::X),
        };
        let reachable = match mode.privilege {
            User => bit(pte::U),
            _ => !bit(pte::U) || mode.sum && access != Access::Fetch,
        };
        // Step 6.
        if !permitted || !reachable || i == 1 && ppn & 0x3ff != 0 {
            return fault(page_fault);
        }
        // Step 7.
        let new = entry | pte::A | if access == Access::Store { pte::D } else { 0 };
        let update = (new != entry).then_some((at as u32, new));
        // Step 8.
        let offset = if i == 1 { va & 0x3f_ffff } else { va & 0xfff };
        return end((ppn << 12) + u64::from(offset), update);
    }
    fault(page_fault)
}

const WINDOW: u32 = 0x4000_0000;
const LEAVES: u32 = 6;
/// Loads and stores of the three sizes, in pairs.
const SIZES: [u32; 3] = [1, 2, 4];

/// Random page tables, changes of mode, and accesses, against `translate`.
pub fn mmu(data: &[u8]) {
    mmu_with(data, 0);
}

/// [`mmu`] with SUM set that the oracle does not know of: it must notice.
pub fn mmu_canary(data: &[u8]) {
    mmu_with(data, mstatus::SUM);
}

fn mmu_with(data: &[u8], hidden: u32) {
    let mut bytes = Bytes::new(data);
    let mut m = TestMachine::program(|a| {
        a.lbu(A0, 0, S0).sb(A1, 0, S0).lhu(A0, 0, S0).sh(A1, 0, S0).lw(A0, 0, S0).sw(A1, 0, S0);
    });
    // What is fetched does nothing.
    let nop = Asm::build(0, |a| {
        a.nop();
    })[0];
    for page in 0..4 {
        m.write_words(DATA + 0x1000 * page, &[nop; 1024]);
    }
    // The window's first superpage has a table of pages.
    m.write_words(Sv32::root_entry(WINDOW), &[pte::leaf(u64::from(TABLES) + 0x1000, pte::V)]);
    m.set_csr(SATP, Sv32::satp());
    let mut mode = Mode { privilege: Supervisor, sum: false, mxr: false, translated: true };
    while !bytes.is_empty() {
        match bytes.below(8) {
            0..2 => change_entry(&mut m, &mut bytes),
            2 => {
                let bits = bytes.byte();
                let privilege = [User, Supervisor, Machine][bytes.below(3) as usize];
                mode = Mode { privilege, sum: bits & 1 != 0, mxr: bits & 2 != 0, ..mode };
                // Bare now and then. SATP is flushed when it is written.
                if bits & 0xf0 == 0 || !mode.translated {
                    mode.translated = !mode.translated;
                    m.set_csr(SATP, if mode.translated { Sv32::satp() } else { 0 });
                }
            }
            _ => access(&mut m, &mut bytes, mode, hidden),
        }
    }
}

/// Writes a page table entry, and orders it.
fn change_entry(m: &mut TestMachine, bytes: &mut Bytes<'_>) {
    let flags = bytes.word();
    let page = flags >> 16 & 3;
    let bits = if flags & 0x100 == 0 { flags & 0xff } else { flags & 0xff | pte::V | pte::R };
    let pa = match flags >> 24 {
        0..16 => 0x1_8000_0000 | u64::from(DATA),
        16..32 => 0x1800_0000,
        _ => u64::from(DATA + 0x1000 * page),
    };
    let which = bytes.below(LEAVES + 3);
    if which < LEAVES {
        m.write_words(TABLES + 0x1000 + 4 * which, &[pte::leaf(pa, bits)]);
    } else {
        // Superpages; a leaf, so that no table is where data is.
        let pa = if page == 0 { pa } else { u64::from(RAM) };
        let at = Sv32::root_entry(WINDOW) + 4 * (1 + which - LEAVES);
        m.write_words(at, &[pte::leaf(pa, bits | pte::R)]);
    }
    // By address or whole, as the guest would.
    let whole = bytes.below(2) == 0;
    m.load_at(RAM + 0x800, |a| {
        if whole {
            a.sfence_vma(ZERO, ZERO)
        } else {
            a.sfence_vma(S0, ZERO)
        };
    });
    let va = if which < LEAVES {
        WINDOW + 0x1000 * which
    } else {
        WINDOW + 0x40_0000 * (1 + which - LEAVES) + (DATA - RAM)
    };
    m.enter(Machine).set_x(S0, va).vm.hart.pc = RAM + 0x800;
    m.run(1);
}

/// One load, store or fetch, in the window or where RAM is.
fn access(m: &mut TestMachine, bytes: &mut Bytes<'_>, mode: Mode, hidden: u32) {
    let size = SIZES[bytes.below(3) as usize];
    let offset = (u32::from(bytes.byte()) << 4) & 0xfff & !(size - 1);
    let va = match bytes.below(LEAVES + 4) {
        page if page < LEAVES => WINDOW + 0x1000 * page + offset,
        n if n < LEAVES + 3 => WINDOW + 0x40_0000 * (1 + n - LEAVES) + (DATA - RAM) + offset,
        _ => DATA + offset,
    };
    let kind = [Access::Load, Access::Store, Access::Fetch][bytes.below(3) as usize];
    let va = if kind == Access::Fetch { va & !3 } else { va };
    let walk = translate(m, mode, kind, va);
    // Loads and stores through MPRV, so that the code itself is not translated.
    let mpp = (mode.privilege as u32) << mstatus::MPP_SHIFT;
    let status = mpp
        | hidden
        | mstatus::MPRV
        | if mode.sum { mstatus::SUM } else { 0 }
        | if mode.mxr { mstatus::MXR } else { 0 };
    let value = bytes.word();
    let index = SIZES.iter().position(|&s| s == size).unwrap_or(0) as u32;
    let pc = match kind {
        Access::Load => RAM + 8 * index,
        Access::Store => RAM + 8 * index + 4,
        Access::Fetch => va,
    };
    if kind == Access::Fetch {
        m.set_csr(MSTATUS, status & !mstatus::MPRV).enter(mode.privilege);
    } else {
        m.enter(Machine).set_csr(MSTATUS, status);
    }
    m.set_x(S0, va).set_x(A0, 0).set_x(A1, value).vm.hart.pc = pc;
    let before = walk.outcome.ok().map(|pa| m.word(pa & !3));
    let exit = m.run(1);
    assert_eq!(exit.code, ExitCode::Budget);
    let text = format!("{mode:?} {kind:?} of {size} at {va:#x}: {walk:?}");
    match walk.outcome {
        Err(cause) => {
            assert_eq!(m.vm.hart.pc, M_HANDLER, "{text}");
            assert_eq!((m.csr(MCAUSE), m.csr(MTVAL), m.csr(MEPC)), (cause, va, pc), "{text}");
        }
        Ok(pa) => {
            assert_eq!(m.vm.hart.pc, pc.wrapping_add(4), "{text} {:?}", m.taken());
            let mask = if size == 4 { u32::MAX } else { (1 << (8 * size)) - 1 };
            let shift = 8 * (pa & 3);
            let old = before.unwrap_or(0);
            match kind {
                Access::Load => assert_eq!(m.x(A0), old >> shift & mask, "{text}"),
                // What is fetched later shall do nothing, so the bytes are put back.
                Access::Store => {
                    let new = old & !(mask << shift) | (value & mask) << shift;
                    assert_eq!(m.word(pa & !3), new, "{text}");
                    m.write_words(pa & !3, &[old]);
                }
                Access::Fetch => {}
            }
        }
    }
    if let Some((at, entry)) = walk.update {
        assert_eq!(m.word(at), entry, "{text}");
    }
    m.enter(Machine);
}

/// Arbitrary code in an arbitrary state: the core does not panic, and keeps its invariants. Both
/// instruction loops come to the same, the dispatching one in both of its forms and watched or not,
/// which go the same way.
pub fn machine(data: &[u8]) {
    let [mut m, mut watched, mut sharing] = [false, false, true].map(|shares| {
        let mut m: TestMachine = arbitrary(data);
        m.lane.shares_warp = shares;
        m
    });
    let mut uniform: UniformMachine = arbitrary(data);
    let (mut one, mut other) = (Retired::default(), Retired::default());
    for _ in 0..8 {
        let exit = m.run(997);
        assert_eq!((m.x(ZERO), m.vm.hart.pc & 3), (0, 0));
        assert_eq!((watched.run_traced(997, &mut one), watched.hash()), (exit, m.hash()));
        assert_eq!((sharing.run_traced(997, &mut other), sharing.hash()), (exit, m.hash()));
        assert_eq!((uniform.run(997), uniform.hash()), (exit, m.hash()));
        assert_eq!(one, other);
        if !matches!(exit.code, ExitCode::Budget | ExitCode::Idle) {
            break;
        }
    }
}

/// A careless program by the instruction loops: all of them come to the same, however it is divided into
/// runs.
pub fn loops(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let program = careless::program(bytes.word().into(), bytes.word().into(), 6);
    let mut m: TestMachine = loaded(&program);
    let mut sharing: TestMachine = loaded(&program);
    sharing.lane.shares_warp = true;
    // With little at hand, and with much.
    let mut little: MachineBy<Uniform<2, 1>> = loaded(&program);
    let mut much: MachineBy<Uniform<64, 8>> = loaded(&program);
    // What a loop has at hand it drops between runs, so some programs have few of them.
    let few = bytes.below(2) == 0;
    for run in 0.. {
        let budget = match bytes.below(4) {
            _ if few || bytes.is_empty() => 10_000,
            0 => 1,
            1 => 1 + bytes.below(8),
            2 => 1 + bytes.below(100),
            _ => 500,
        };
        let exit = m.run(budget);
        let ended = exit.code != ExitCode::Budget;
        let exits = [sharing.run(budget), little.run(budget), much.run(budget)];
        assert_eq!(exits, [exit; 3], "run {run}");
        let state = |vm: &Vm| (vm.hart.x, vm.hart.pc, vm.platform.clock.retired);
        for other in [&sharing.vm, &little.vm, &much.vm] {
            assert_eq!(state(other), state(&m.vm), "run {run}");
        }
        if ended || run % 16 == 0 {
            let hashes = [sharing.hash(), little.hash(), much.hash()];
            assert_eq!(hashes, [m.hash(); 3], "run {run}");
        }
        if ended {
            assert_eq!(exit.code, ExitCode::PowerOff);
            break;
        }
    }
}

fn loaded<I: InsnLoop>(program: &[u8]) -> MachineBy<I> {
    let mut m = MachineBy::new();
    for (at, page) in (RAM..).step_by(FRAME_SIZE as usize).zip(program.chunks(FRAME_SIZE as usize))
    {
        if page.iter().any(|&byte| byte != 0) {
            m.write(at, page);
        }
    }
    m
}

/// The instructions that retired.
#[derive(Default, PartialEq, Debug)]
struct Retired(Vec<(u32, u32)>);

impl Trace for Retired {
    fn retire(&mut self, pc: u32, insn: u32, _: u32) {
        self.0.push((pc, insn));
    }
}

/// The same rings, descriptors and notifications through the legacy and the modern interface: the
/// device does the same, whatever it is told. After that, whatever the legacy registers are told
/// hurts nobody.
pub fn virtio(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let features = if bytes.below(2) == 0 { feature::EVENT_IDX } else { 0 };
    let [mut legacy, mut modern] = [Version::Legacy, Version::Modern].map(|version| {
        let device = Rng::new(ChaCha::new([0; 8]));
        Guest::started_with_version(version, device, features)
    });
    let rings = legacy_queue_addresses(0);
    modern.start(features);
    modern.write(reg::QUEUE_READY, 0);
    modern.place_queue(0, rings, QUEUE_SIZE.into());
    modern.write(reg::QUEUE_READY, 1);
    modern.ram = legacy.ram.clone();
    let mut used = 0;
    for _ in 0..100 {
        let (at, bytes) = arbitrary_ring_store(&mut bytes, rings);
        for guest in [&mut legacy, &mut modern] {
            guest.store(at, &bytes);
            guest.kick(0);
            guest.poll();
        }
        assert_eq!(legacy.needs_reset(), modern.needs_reset());
        used += u32::from(legacy.load_u16(rings[2] + 2) != 0);
    }
    let ram =
        |guest: &mut Guest<Rng>| guest.load(driver::RAM_BASE.into(), driver::RAM_PAGES * 4096);
    assert!(ram(&mut legacy) == ram(&mut modern), "{used} times there was something used");
    while !bytes.is_empty() {
        let register = [
            reg::STATUS,
            reg::GUEST_PAGE_SIZE,
            reg::QUEUE_SEL,
            reg::QUEUE_NUM,
            reg::QUEUE_ALIGN,
            reg::QUEUE_PFN,
            reg::QUEUE_PFN,
            reg::QUEUE_NOTIFY,
        ][bytes.below(8) as usize];
        let value = match bytes.below(5) {
            0 => bytes.word(),
            1 => 1 << bytes.below(32),
            2 => driver::RAM_BASE / driver::LEGACY_PAGE + bytes.below(2 * driver::RAM_PAGES),
            3 => driver::RAM_BASE + bytes.word() % (2 * driver::RAM_PAGES * 4096),
            _ => bytes.below(70),
        };
        legacy.write(register, value);
        legacy.poll();
    }
}

/// A place in a queue's areas and what a driver might write there, or not.
fn arbitrary_ring_store(bytes: &mut Bytes<'_>, [desc, avail, _]: [u64; 3]) -> (u64, Vec<u8>) {
    let entry = u64::from(bytes.below(QUEUE_SIZE.into()));
    match bytes.below(4) {
        0 | 1 => {
            let addr = match bytes.below(8) {
                0 => u64::from(bytes.word()),
                _ => driver::BUFFERS + u64::from(bytes.word() % 0x8000),
            };
            let len = bytes.below(100) | if bytes.below(16) == 0 { bytes.word() } else { 0 };
            let flags = u16::from(if bytes.below(8) == 0 { bytes.byte() } else { 2 });
            let next = bytes.below(17) as u16;
            let rest = [flags.to_le_bytes(), next.to_le_bytes()].concat();
            (desc + 16 * entry, [&addr.to_le_bytes()[..], &len.to_le_bytes(), &rest].concat())
        }
        2 => (avail + 4 + 2 * entry, vec![bytes.below(17) as u8, 0]),
        _ => (avail + 2, vec![bytes.below(16) as u8, 0]),
    }
}

fn arbitrary<I: InsnLoop>(data: &[u8]) -> MachineBy<I> {
    let mut bytes = Bytes::new(data);
    let mut m = MachineBy::new();
    let privilege = [User, Supervisor, Machine][bytes.below(3) as usize];
    if bytes.below(2) == 0 {
        m.vm.boot_supervisor(RAM, 0, 0);
    }
    if bytes.below(2) == 0 {
        m.vm.platform.dev.virtio.version = Version::Legacy;
    }
    m.vm.platform.dev.virtio.rng = Rng::new(ChaCha::new([0; 8]));
    m.set_csr(MTVEC, RAM + 0x1000 + u32::from(bytes.byte()));
    m.set_csr(STVEC, RAM + 0x1000 + u32::from(bytes.byte()));
    for r in 1..32 {
        let value = bytes.word();
        m.set_x(r, if value & 1 == 0 { RAM + value % RAM_SIZE } else { value });
    }
    let rest: Vec<u8> = std::iter::from_fn(|| (!bytes.is_empty()).then(|| bytes.byte())).collect();
    m.write(RAM, &rest[..rest.len().min(0x8000)]);
    m.port.output_room = 100;
    m.enter(privilege).vm.hart.pc = RAM;
    m
}

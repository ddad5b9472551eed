//! A hash of a machine's state (`emu_core::state`) and memory, to compare runs by.
//!
//! Two runs that agree here are the same machine, however they were cut into slices, whatever was
//! decoded and whichever frames are shared. Caches are left out; those that a guest can observe,
//! the TLBs, are tested by what it observes. It works on a VM and its memory alone, so a state that
//! comes back from a GPU is hashed by the same code.

use std::hash::{DefaultHasher, Hash, Hasher};

use emu_core::abi::Vm;
use emu_core::mem::{FRAME_SIZE, Frame, Memory};
use emu_core::state::{Name, State, Visitor};

/// Hashes of the parts of a machine's state, so that a difference says where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateHash {
    /// Registers, `pc`, privilege, reservation, WFI, and all that is in no other part.
    pub hart: u64,
    /// Control and status registers with PMP.
    pub csr: u64,
    /// Retired instructions and time.
    pub clock: u64,
    /// Every device.
    pub devices: u64,
    /// Content of RAM.
    pub ram: u64,
}

fn of(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Hashes the parts of a state, each by itself.
#[derive(Default)]
struct Parts {
    hart: DefaultHasher,
    csr: DefaultHasher,
    clock: DefaultHasher,
    devices: DefaultHasher,
    path: Vec<Name>,
}

impl Visitor for Parts {
    fn enter(&mut self, name: Name) {
        self.path.push(name);
    }

    fn leave(&mut self) {
        self.path.pop();
    }

    fn value(&mut self, value: u64, _: usize) {
        let part = match self.path.get(1) {
            Some(Name::Field("csr")) => &mut self.csr,
            Some(Name::Field("clock")) => &mut self.clock,
            Some(Name::Field("dev")) => &mut self.devices,
            Some(Name::Field(_) | Name::Index(_)) | None => &mut self.hart,
        };
        part.write_u64(value);
    }
}

/// Hashes a VM and its memory.
pub fn state_hash(vm: &Vm, memory: &impl Memory) -> StateHash {
    let mut parts = Parts::default();
    vm.visit(&mut parts);
    StateHash {
        hart: parts.hart.finish(),
        csr: parts.csr.finish(),
        clock: parts.clock.finish(),
        devices: parts.devices.finish(),
        ram: ram_hash(memory),
    }
}

/// Hashes the content of a memory, page by page.
pub fn ram_hash(memory: &impl Memory) -> u64 {
    let content = |frame| {
        let mut hasher = DefaultHasher::new();
        memory.read_chunks(frame, 0, FRAME_SIZE, |_, chunk| hasher.write(chunk));
        hasher.finish()
    };
    let zero = content(Frame::ZERO);
    let page = |page| match memory.frame(page) {
        Some(Frame::ZERO) | None => zero,
        Some(frame) => content(frame),
    };
    of((0..memory.pages()).map(page).collect::<Vec<u64>>())
}

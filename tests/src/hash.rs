//! A fingerprint of everything a guest can observe, to compare runs by.
//!
//! Two runs that agree here are the same machine: whatever differs between them (slices, the
//! decoded pages, which frames are shared, the TLB) is not the guest's to see. It works on a VM
//! and its memory alone, so a state that comes back from a GPU is hashed by the same code.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

use emu_core::abi::Vm;
use emu_core::mem::{FRAME_SIZE, Frame, Memory};

/// Hashes of the parts of a machine's state, so that a difference says where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateHash {
    /// `x1` to `x31`, `pc`, privilege, reservation, WFI.
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

// The core's types have private fields and derive Debug rather than Hash, which would do the same
// at less cost.
fn of_debug(value: &dyn Debug) -> u64 {
    of(format!("{value:?}"))
}

/// Hashes a VM and its memory.
pub fn state_hash(vm: &Vm, memory: &impl Memory) -> StateHash {
    let hart = &vm.hart;
    let dev = &vm.platform.dev;
    let plic = of_debug(&dev.plic);
    let virtio = of_debug(&dev.virtio);
    let rest = of_debug(&(&dev.clint, &dev.uart, &dev.rtc));
    StateHash {
        hart: of((
            hart.x,
            hart.pc,
            hart.reservation,
            hart.ctx.privilege as u32,
            vm.platform.waiting,
        )),
        csr: of_debug(&vm.platform.csr),
        clock: of_debug(&vm.platform.clock),
        devices: of((plic, virtio, rest)),
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

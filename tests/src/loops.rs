//! The instruction loops, as tests choose between them.

use std::cell::Cell;

use emu_core::abi::Exit;
use emu_core::clock::Now;
use emu_core::dev::virtio::driver::{MockDisk, MockPort};
use emu_core::machine::Machine;
use emu_core::uniform::HotState;
use emu_device::memory::{CodeRef, FrameRam};

use crate::machine::TestLane;
use crate::memory::Pool;

/// What the instruction loops run.
pub type Running<'a, 'm, 'p> = Machine<'a, FrameRam<'m, Pool<'p>>, MockDisk, MockPort, TestLane>;

/// The instruction loop of a machine.
pub trait InsnLoop {
    /// Executes at most `budget` instructions.
    fn run(machine: &mut Running<'_, '_, '_>, budget: u32, now: Now) -> Exit;
}

/// The dispatching loop.
#[derive(Debug)]
pub struct Dispatch;

impl InsnLoop for Dispatch {
    fn run(machine: &mut Running<'_, '_, '_>, budget: u32, now: Now) -> Exit {
        machine.run(budget, now)
    }
}

/// The uniform loop, with so many translations and pages at hand.
#[derive(Debug)]
pub struct Uniform<const TRANSLATIONS: usize = 32, const PAGES: usize = 4>;

impl<const TRANSLATIONS: usize, const PAGES: usize> InsnLoop for Uniform<TRANSLATIONS, PAGES> {
    fn run(machine: &mut Running<'_, '_, '_>, budget: u32, now: Now) -> Exit {
        let hot = HotCells::<TRANSLATIONS, PAGES>::new();
        machine.run_uniform(&hot, budget, now, |_, _, _, _| None)
    }
}

/// A hart's hot state. As on a GPU, it begins with what others have left there.
struct HotCells<const TRANSLATIONS: usize, const PAGES: usize> {
    registers: [Cell<u32>; 32],
    translations: [Cell<u64>; TRANSLATIONS],
    pages: [Cell<Option<(u32, CodeRef)>>; PAGES],
}

impl<const TRANSLATIONS: usize, const PAGES: usize> HotCells<TRANSLATIONS, PAGES> {
    /// A state in which registers are odd, and all accesses to the first page are allowed.
    const fn new() -> Self {
        Self {
            registers: [const { Cell::new(0xdead_beef) }; 32],
            translations: [const { Cell::new(0) }; TRANSLATIONS],
            pages: [const { Cell::new(None) }; PAGES],
        }
    }
}

impl<const TRANSLATIONS: usize, const PAGES: usize> HotState<CodeRef>
    for &HotCells<TRANSLATIONS, PAGES>
{
    // There is nobody to wait for.
    fn wait_steps(self) -> u32 {
        0
    }

    fn crowd(self) -> u32 {
        0
    }

    fn register(self, n: usize) -> u32 {
        self.registers[n].get()
    }

    fn set_register(self, n: usize, value: u32) {
        self.registers[n].set(value);
    }

    fn translations(self) -> u32 {
        TRANSLATIONS as u32
    }

    fn translation(self, n: u32) -> u64 {
        self.translations[n as usize % TRANSLATIONS].get()
    }

    fn set_translation(self, n: u32, entry: u64) {
        self.translations[n as usize % TRANSLATIONS].set(entry);
    }

    fn pages(self) -> u32 {
        PAGES as u32
    }

    fn page(self, n: u32) -> (u32, CodeRef) {
        self.pages[n as usize % PAGES].get().expect("a page that was written")
    }

    fn set_page(self, n: u32, page: u32, code: CodeRef) {
        self.pages[n as usize % PAGES].set(Some((page, code)));
    }
}

//! A fleet: one base image, and what is each VM's own: its device tree, addresses and seeds.

use std::time::{SystemTime, UNIX_EPOCH};

use emu_core::abi::Vm;
use emu_core::chacha::ChaCha;
use emu_core::dev::virtio::Virtio;
use emu_core::layout::{MachineKind, virtio_slot};
use emu_core::mem::{FRAME_SHIFT, FRAME_SIZE};

use super::cmdline::bootargs;
use super::plan::{self, Mode};
use super::{BaseImage, Plan, PlanError};
use crate::dtb::{Chosen, SEED_WORDS, Template};
use crate::image::Payload;
use crate::units::Size;

const SECTOR: u64 = 512;
/// Unix time at guest time zero when time is not the host's: the start of 2026.
const FIXED_EPOCH_NS: u64 = 1_767_225_600 * 1_000_000_000;

/// Everything that is known about a fleet before it starts.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Number of VMs.
    pub count: u32,
    /// Where things lie in each VM.
    pub plan: Plan,
    /// What the VMs have in common.
    pub base: BaseImage,
    /// The device tree; none for bare-metal programs.
    pub tree: Option<Template>,
    /// Where the root file system is.
    pub root: Root,
    /// What [`bootargs`] adds to each kernel's command line.
    pub append: String,
    /// All randomness of the fleet comes from this number.
    pub seed: u64,
    /// Whether guests' clocks show the host's time; otherwise the same time in every run.
    pub host_time: bool,
    /// Hardware addresses.
    pub macs: Macs,
    /// Whether network cards are connected to anything.
    pub link: Link,
    /// Where VM `i` begins, in row `i` of the base image. Empty when all run the same: then they
    /// have row 0 and the plan's entry.
    pub entries: Vec<u32>,
}

/// One VM before its first instruction.
#[derive(Clone)]
pub struct Staged {
    /// Its row of the base image.
    pub row: u32,
    /// Its state.
    pub vm: Vm,
    /// Pages of RAM that are its own from the start, with their contents.
    pub pages: Vec<(u32, Box<[u8; FRAME_SIZE as usize]>)>,
}

/// Where the kernel is told to find its root file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Root {
    /// In the initrd, if anywhere.
    Initrd,
    /// In the ROM.
    Rom,
}

/// The link of all network cards. It is the same as long as a fleet runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Link {
    /// There is a network.
    #[default]
    Up,
    /// There is none.
    Down,
}

/// The name of a VM, also its host name: `vm3`.
pub fn name(vm: u32) -> String {
    format!("vm{vm}")
}

/// Whose a hardware address is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Macs {
    /// All VMs have VM 0's, so that guests are identical.
    #[default]
    Same,
    /// Each VM has its own.
    Each,
}

impl Macs {
    /// The hardware address of a VM's network card: locally administered, "px", then a number.
    pub fn of(self, vm: u32) -> [u8; 6] {
        let number = if self == Self::Each { vm } else { 0 };
        let [_, b2, b1, b0] = number.to_be_bytes();
        [0x02, b'p', b'x', b2, b1, b0]
    }
}

impl Fleet {
    /// Bare-metal machines that all run one program.
    pub fn bare(
        count: u32,
        kind: MachineKind,
        memory: Size,
        program: Payload,
    ) -> Result<Self, PlanError> {
        let plan = plan::bare(kind, memory, program)?;
        let base = BaseImage::new(kind.map().ram_base, plan.memory, &plan.contents, None, None);
        Ok(Self::made_of(count, plan, base, Vec::new()))
    }

    /// Bare-metal machines, one for each program.
    pub fn several(
        kind: MachineKind,
        memory: Size,
        programs: Vec<Payload>,
    ) -> Result<Self, PlanError> {
        let count = programs.len() as u32;
        let entries = programs.iter().map(|program| program.entry).collect();
        let plans = programs.into_iter().map(|program| plan::bare(kind, memory, program));
        let plans = plans.collect::<Result<Vec<Plan>, PlanError>>()?;
        let contents = plans.iter().map(|plan| &plan.contents[..]);
        let base = BaseImage::several(kind.map().ram_base, memory.0 as u32, contents);
        // What the others have in common with it: all but contents and entry.
        match plans.into_iter().next() {
            Some(plan) => Ok(Self::made_of(count, plan, base, entries)),
            None => Self::bare(0, kind, memory, Payload::flat(Vec::new(), 0)),
        }
    }

    fn made_of(count: u32, plan: Plan, base: BaseImage, entries: Vec<u32>) -> Self {
        Self {
            count,
            plan,
            base,
            tree: None,
            root: Root::Initrd,
            append: String::new(),
            seed: 0,
            host_time: false,
            macs: Macs::Each,
            link: Link::Up,
            entries,
        }
    }

    /// Most bytes that a VM's device tree takes, for [`super::plan::Inputs::tree_len`], when no
    /// command line is longer than `bootargs`.
    pub fn tree_len(tree: &Template, bootargs: String) -> usize {
        tree.blob(&Chosen { bootargs, initrd: Some(0..0), rng_seed: [0; SEED_WORDS] }).len()
    }

    /// The device tree of a VM that is started, or started again after `earlier` instructions.
    pub fn blob(&self, vm: u32, earlier: u64) -> Option<Vec<u8>> {
        let tree = self.tree.as_ref()?;
        let given = tree.bootargs();
        let bootargs = bootargs(vm, given.as_deref(), self.root, self.link, &self.append);
        let rng_seed = self.randomness(vm, earlier, Purpose::Kernel);
        Some(tree.blob(&Chosen { bootargs, initrd: self.plan.initrd.clone(), rng_seed }))
    }

    /// VM `vm` before its first instruction, which should follow soon. It has retired `earlier`
    /// instructions before it was started again.
    pub fn stage(&self, vm: u32, earlier: u64) -> Staged {
        let plan = &self.plan;
        let (row, entry) = match self.entries.get(vm as usize) {
            Some(&entry) => (vm, entry),
            None => (0, plan.entry),
        };
        let mut state = Vm::new(plan.kind);
        let (hart, tree) = (0, plan.tree);
        match plan.mode {
            Mode::Supervisor => state.boot_supervisor(entry, hart, tree),
            Mode::Machine => state.boot_machine(entry, hart, tree),
        }
        if let Some(info) = plan.next_stage {
            const A2: usize = 12;
            state.hot.x[A2] = info;
        }
        state.sys.dev.rtc.epoch_ns = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(now) if self.host_time => now.as_nanos() as u64,
            _ => FIXED_EPOCH_NS,
        };
        state.sys.dev.rng = ChaCha::new(self.randomness(vm, earlier, Purpose::Device));
        let mut card = Virtio::net(self.macs.of(vm));
        card.set_link(self.link == Link::Up);
        state.sys.dev.virtio[virtio_slot::NET] = card;
        state.sys.dev.virtio[virtio_slot::RNG] = Virtio::RNG;
        if self.base.disk_len != 0 {
            state.sys.dev.virtio[virtio_slot::BLK] = Virtio::blk(self.base.disk_len / SECTOR);
        }
        Staged { row, vm: state, pages: self.own_pages(vm, earlier) }
    }

    /// The pages with the device tree. They hold nothing else: `plan` gives it whole pages.
    fn own_pages(&self, vm: u32, earlier: u64) -> Vec<(u32, Box<[u8; FRAME_SIZE as usize]>)> {
        let Some(blob) = self.blob(vm, earlier) else { return Vec::new() };
        let first = (self.plan.tree - self.plan.kind.map().ram_base) >> FRAME_SHIFT;
        let pages = blob.chunks(FRAME_SIZE as usize).map(|chunk| {
            let mut page = Box::new([0; FRAME_SIZE as usize]);
            page[..chunk.len()].copy_from_slice(chunk);
            page
        });
        (first..).zip(pages).collect()
    }

    /// Random words for one purpose of one VM, a function of the fleet's seed. They differ from
    /// start to start, as a reset must not bring old keys back: `earlier` tells starts apart.
    fn randomness(&self, vm: u32, earlier: u64, purpose: Purpose) -> [u32; SEED_WORDS] {
        let halves = |n: u64| (n as u32, (n >> 32) as u32);
        let ((low, high), (start, start_high)) = (halves(self.seed), halves(earlier));
        let key = [low, high, vm, purpose as u32, 0x7078_766d, start, start_high, 0];
        let mut bytes = [0; 4 * SEED_WORDS];
        ChaCha::new(key).fill(&mut bytes);
        let mut words = [0; SEED_WORDS];
        for (word, piece) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = piece.iter().fold(0, |w, &b| w << 8 | u32::from(b));
        }
        words
    }
}

/// What randomness is for.
#[derive(Clone, Copy)]
enum Purpose {
    /// `rng-seed` in the device tree.
    Kernel = 1,
    /// virtio-rng.
    Device = 2,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtb::{Shape, emit};
    use crate::machine::plan::{Inputs, plan};

    fn fleet(seed: u64) -> Fleet {
        let shape = Shape { kind: MachineKind::Virt, memory: 24 << 20, rom: 0, disk: false };
        let tree = emit(&shape);
        let plan = plan(Inputs {
            kind: shape.kind,
            memory: Size::mib(24),
            kernel: Payload::flat(vec![0x13; 64], 64),
            initrd: Some(vec![5; 100]),
            firmware: None,
            reserved: Vec::new(),
            tree_len: Fleet::tree_len(&tree, bootargs(999, None, Root::Initrd, Link::Up, "debug")),
        })
        .unwrap();
        let base = BaseImage::new(0x8000_0000, 24 << 20, &plan.contents, None, None);
        let (root, append) = (Root::Initrd, "debug".into());
        Fleet {
            count: 1000,
            plan,
            base,
            tree: Some(tree),
            root,
            append,
            seed,
            host_time: false,
            macs: Macs::Same,
            link: Link::Up,
            entries: Vec::new(),
        }
    }

    #[test]
    fn vms_differ_in_their_device_tree_pages_only() {
        let fleet = fleet(1);
        let (a, b) = (fleet.stage(0, 0), fleet.stage(999, 0));
        assert_eq!(a.pages.len(), 1);
        assert_ne!(a.pages[0].1, b.pages[0].1);
        assert_eq!(a.vm.hot.pc, 0x8000_0000);
        assert_eq!(a.vm.hot.x[11], fleet.plan.tree);
    }

    #[test]
    fn the_seed_decides_all_randomness() {
        let words = |seed, vm, earlier| fleet(seed).randomness(vm, earlier, Purpose::Kernel);
        assert_eq!(words(1, 7, 0), words(1, 7, 0));
        for other in [words(2, 7, 0), words(1 << 32 | 1, 7, 0), words(1, 8, 0), words(1, 7, 1)] {
            assert_ne!(words(1, 7, 0), other);
        }
        assert_ne!(fleet(1).blob(7, 0), fleet(2).blob(7, 0));
        assert_ne!(fleet(1).blob(7, 0), fleet(1).blob(7, 99));
        let device = |earlier| fleet(1).stage(7, earlier).vm.sys.dev.rng;
        assert!(device(0) == device(0) && device(0) != device(99));
    }

    #[test]
    fn without_a_network_the_link_is_down() {
        let alone = Fleet { link: Link::Down, ..fleet(1) };
        let link =
            |fleet: &Fleet| fleet.stage(0, 0).vm.sys.dev.virtio[virtio_slot::NET].config.link;
        assert_eq!((link(&alone), link(&fleet(1))), (0, 1));
    }
}

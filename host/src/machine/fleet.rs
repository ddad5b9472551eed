//! A fleet before it starts: the base image, and each VM's own device tree, addresses and seeds.

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use emu_core::abi::Vm;
use emu_core::chacha::ChaCha;
use emu_core::dev::virtio::{blk::Blk, net::Net, rng::Rng};
use emu_core::disk::PAGE_SIZE;
use emu_core::layout::MachineKind;
use emu_core::mem::{FRAME_SHIFT, FRAME_SIZE};
use emu_core::semihosting::Semihosting;
use emu_device::memory::OwnPages;

use super::cmdline::bootargs;
use super::plan::{self, Mode};
use super::{BaseImage, Expected, Plan, PlanError};
use crate::dtb::{Chosen, SEED_WORDS, Template};
use crate::image::Payload;
use crate::image::disk::{Access, Disks, SECTOR};
use crate::units::Size;
use crate::virtio::{Guest, Virtio};

/// Unix time at guest time zero when guests do not see the host's time: the start of 2026.
const FIXED_EPOCH_NS: u64 = 1_767_225_600 * 1_000_000_000;

/// Description of a fleet before it starts.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Number of the first VM: 0, but for a part of a fleet.
    pub first: u32,
    /// Number of VMs.
    pub count: u32,
    /// Memory layout of each VM.
    pub plan: Plan,
    /// Frames that the VMs share.
    pub base: BaseImage,
    /// Memory of its own that each VM is expected to use.
    pub expected: Expected,
    /// Disks of the VMs, if they have any.
    pub disks: Option<Disks>,
    /// The device tree; `None` for bare-metal programs.
    pub tree: Option<Template>,
    /// Location of the root file system.
    pub root: Root,
    /// Parameters that [`bootargs`] adds to each kernel's command line.
    pub append: String,
    /// Seed of all randomness of the fleet.
    pub seed: u64,
    /// Whether guests' clocks show the host's time; otherwise the same time in every run.
    pub host_time: bool,
    /// MAC addresses of the network cards.
    pub macs: Macs,
    /// Whether network cards are connected to anything.
    pub link: Link,
    /// What reads the VMs' consoles.
    pub guest: Guest,
    /// How guests find their virtio devices.
    pub virtio: Virtio,
    /// Whether guests' semihosting requests are served.
    pub semihosting: bool,
    /// Entry point of each VM, with the row of the same index in the base image. Empty when all VMs
    /// run the same program: they then have row 0 and the plan's entry.
    pub entries: Vec<u32>,
}

/// Initial state of a VM, before its first instruction.
#[derive(Clone)]
pub struct Staged {
    /// Index of the VM's row in the base image.
    pub row: u32,
    /// State of hart and devices.
    pub vm: Vm,
    /// What the VM has of its disk.
    pub disk: OwnPages,
    /// Pages of RAM that are private from the start, with their contents.
    pub pages: Vec<(u32, Box<[u8; FRAME_SIZE as usize]>)>,
}

/// Location of the root file system, for the kernel's command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Root {
    /// The root file system is in the initrd, if anywhere.
    Initrd,
    /// The root file system is in the ROM.
    Rom,
    /// Firmware starts alone, and what it is or has is not known.
    Unknown,
}

/// Link state of all network cards. It does not change while a fleet runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Link {
    /// The cards are connected to a network.
    #[default]
    Up,
    /// The cards are not connected.
    Down,
}

/// Returns the name of a VM, which is also its host name: `vm3`.
pub fn name(vm: u32) -> String {
    format!("vm{vm}")
}

/// Whether VMs share a MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Macs {
    /// All VMs have the MAC address of VM 0, so that guests are identical.
    #[default]
    Same,
    /// Each VM has its own MAC address.
    Each,
}

impl Macs {
    /// Returns the MAC address of a VM's network card: locally administered, "px", then a number.
    pub fn of(self, vm: u32) -> [u8; 6] {
        let number = if self == Self::Each { vm } else { 0 };
        let [_, b2, b1, b0] = number.to_be_bytes();
        [0x02, b'p', b'x', b2, b1, b0]
    }
}

impl Fleet {
    /// Returns a fleet of bare-metal VMs that all run one program.
    pub fn bare(
        count: u32,
        kind: MachineKind,
        memory: Size,
        program: Payload,
    ) -> Result<Self, PlanError> {
        let plan = plan::bare(kind, memory, program)?;
        let base = BaseImage::new(kind.map().ram_base, plan.memory, &plan.contents, None);
        Ok(Self::made_of(count, plan, base, Vec::new()))
    }

    /// Returns a fleet of bare-metal VMs, one for each program.
    pub fn several(
        kind: MachineKind,
        memory: Size,
        programs: Vec<Payload>,
    ) -> Result<Self, PlanError> {
        let count = programs.len() as u32;
        let plans = programs.into_iter().map(|program| plan::bare(kind, memory, program));
        let plans = plans.collect::<Result<Vec<Plan>, PlanError>>()?;
        let entries = plans.iter().map(|plan| plan.entry).collect();
        let contents = plans.iter().map(|plan| &plan.contents[..]);
        let base = BaseImage::several(kind.map().ram_base, memory.0 as u32, contents);
        // The plans differ only in contents and entry.
        match plans.into_iter().next() {
            Some(plan) => Ok(Self::made_of(count, plan, base, entries)),
            None => Self::bare(0, kind, memory, Payload::flat(Vec::new(), 0)),
        }
    }

    /// Returns a part of the fleet: these VMs, with the numbers that they have in the whole.
    pub fn part(&self, vms: Range<u32>) -> Self {
        Self { first: vms.start, count: vms.len() as u32, ..self.clone() }
    }

    /// Returns the number of pages of a VM's disk, the last of which may not be whole.
    fn disk_pages(&self, vm: u32) -> u64 {
        self.disks.as_ref().map_or(0, |disks| disks.size(vm).div_ceil(PAGE_SIZE.into()))
    }

    /// Returns the most private frames that all VMs together can have.
    pub fn private_frames(&self) -> u64 {
        let ram = u64::from(self.base.pages()) * u64::from(self.count);
        let disk = |vm| match self.disk_pages(vm) {
            0 => 0,
            pages => OwnPages::most(pages),
        };
        ram.saturating_add((self.first..self.first + self.count).map(disk).sum())
    }

    fn made_of(count: u32, plan: Plan, base: BaseImage, entries: Vec<u32>) -> Self {
        let virtio = Virtio::default_for(plan.kind, Guest::Other);
        Self {
            first: 0,
            count,
            plan,
            base,
            expected: Expected::default(),
            disks: None,
            tree: None,
            root: Root::Initrd,
            append: String::new(),
            seed: 0,
            host_time: false,
            macs: Macs::Each,
            link: Link::Up,
            guest: Guest::Other,
            virtio,
            semihosting: false,
            entries,
        }
    }

    /// Returns the size of a VM's largest device tree, for [`super::plan::Inputs::tree_len`], if no
    /// command line is longer than `bootargs`.
    pub fn tree_len(tree: &Template, bootargs: String) -> usize {
        tree.blob(&Chosen { bootargs, initrd: Some(0..0), rng_seed: [0; SEED_WORDS] }).len()
    }

    /// Returns the device tree of a VM that starts after `earlier` instructions, which are those
    /// before its last reset.
    pub fn blob(&self, vm: u32, earlier: u64) -> Option<Vec<u8>> {
        let tree = self.tree.as_ref()?;
        let given = tree.bootargs();
        let bootargs = bootargs(vm, given.as_deref(), self.root, self.link, &self.append);
        let rng_seed = self.randomness(vm, earlier, Purpose::Kernel);
        Some(tree.blob(&Chosen { bootargs, initrd: self.plan.initrd.clone(), rng_seed }))
    }

    /// Returns VM `vm` before its first instruction, which should follow soon. `earlier` is the
    /// number of instructions that it retired before its last reset.
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
            state.hart.x[A2] = info;
        }
        state.platform.dev.rtc.epoch_ns = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(now) if self.host_time => now.as_nanos() as u64,
            _ => FIXED_EPOCH_NS,
        };
        state.platform.semihosting = Semihosting::new(self.semihosting);
        let virtio = &mut state.platform.dev.virtio;
        virtio.net = Net::new(self.macs.of(vm));
        virtio.net.set_link(self.link == Link::Up);
        virtio.rng = Rng::new(ChaCha::new(self.randomness(vm, earlier, Purpose::Device)));
        let mut disk = OwnPages::default();
        if let Some(disks) = &self.disks {
            virtio.blk = Blk::new(disks.size(vm) / SECTOR);
            if disks.access() == Access::ReadOnly {
                virtio.blk = virtio.blk.clone().read_only();
            }
            disk = OwnPages::new(disks.of(vm) as u32, self.disk_pages(vm));
        }
        self.virtio.place(virtio);
        Staged { row, vm: state, disk, pages: self.own_pages(vm, earlier) }
    }

    /// Returns the pages with the device tree. They hold nothing else, because `plan` gives it
    /// whole pages.
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

    /// Returns random words for one purpose of one VM, derived from the fleet's seed. `earlier`
    /// makes them differ from start to start, because a reset must not bring old keys back.
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

/// Purpose of random words.
#[derive(Clone, Copy)]
enum Purpose {
    /// The property `rng-seed` in the device tree.
    Kernel = 1,
    /// The device virtio-rng.
    Device = 2,
}

#[cfg(test)]
mod tests {
    use emu_core::dev::virtio::DeviceKind;
    use emu_core::dev::virtio::mmio::Version;

    use super::*;
    use crate::dtb::{Shape, emit};
    use crate::machine::plan::{Inputs, plan};
    use crate::virtio::{Choice, Slots};

    fn fleet(seed: u64) -> Fleet {
        let shape = Shape {
            kind: MachineKind::Virt,
            memory: 24 << 20,
            rom: 0,
            disk: false,
            slots: Slots::default(),
        };
        let tree = emit(&shape);
        let plan = plan(Inputs {
            kind: shape.kind,
            memory: Size::mib(24),
            kernel: Some(Payload::flat(vec![0x13; 64], 64)),
            initrd: Some(vec![5; 100]),
            firmware: None,
            reserved: Vec::new(),
            tree_len: Fleet::tree_len(&tree, bootargs(999, None, Root::Initrd, Link::Up, "debug")),
        })
        .unwrap();
        let base = BaseImage::new(0x8000_0000, 24 << 20, &plan.contents, None);
        let (root, append) = (Root::Initrd, "debug".into());
        Fleet {
            first: 0,
            count: 1000,
            plan,
            base,
            expected: Expected::default(),
            disks: None,
            tree: Some(tree),
            root,
            append,
            seed,
            host_time: false,
            macs: Macs::Same,
            link: Link::Up,
            guest: Guest::Linux,
            virtio: Virtio::LINUX,
            semihosting: false,
            entries: Vec::new(),
        }
    }

    #[test]
    fn vms_differ_in_their_device_tree_pages_only() {
        let fleet = fleet(1);
        let (a, b) = (fleet.stage(0, 0), fleet.stage(999, 0));
        assert_eq!(a.pages.len(), 1);
        assert_ne!(a.pages[0].1, b.pages[0].1);
        assert_eq!(a.vm.hart.pc, 0x8000_0000);
        assert_eq!(a.vm.hart.x[11], fleet.plan.tree);
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
        let device = |earlier| fleet(1).stage(7, earlier).vm.platform.dev.virtio.rng;
        assert!(device(0) == device(0) && device(0) != device(99));
    }

    #[test]
    fn devices_are_in_the_slots_that_the_fleet_says() {
        let choice =
            Choice { slots: "net=5,blk=0".parse().unwrap(), version: Some(Version::Legacy) };
        let virtio = Virtio::new(MachineKind::Virt, Guest::Linux, &choice).unwrap();
        let virtio = Fleet { virtio, ..fleet(1) }.stage(0, 0).vm.platform.dev.virtio;
        assert_eq!(virtio.version, Version::Legacy);
        assert_eq!(virtio.device(5), Some(DeviceKind::Net));
        assert_eq!(virtio.device(1), Some(DeviceKind::Rng));
        assert_eq!(virtio.device(0), None, "a disk that is not there");
    }

    #[test]
    fn without_a_network_the_link_is_down() {
        let alone = Fleet { link: Link::Down, ..fleet(1) };
        let link = |fleet: &Fleet| fleet.stage(0, 0).vm.platform.dev.virtio.net.link_is_up();
        assert_eq!((link(&alone), link(&fleet(1))), (false, true));
    }
}

//! How guests find their virtio devices: behind which transports, and of which version.

use std::fmt;
use std::str::FromStr;

use emu_core::dev::virtio::mmio::Version;
use emu_core::dev::virtio::{DeviceKind, VirtioDevices};
use emu_core::layout::{MachineKind, TRANSPORTS};

/// Number of virtio devices.
const DEVICES: usize = DeviceKind::ALL.len();

/// How the guests of a fleet find their virtio devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Virtio {
    /// The version of all transports.
    pub version: Version,
    /// Where the devices are.
    pub slots: Slots,
}

/// What of [`Virtio`] the user chooses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    /// The version of all transports.
    pub version: Option<Version>,
    /// Where devices are.
    pub slots: NamedSlots,
}

/// What guests are, as far as it decides what they expect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guest {
    /// A Linux kernel, which drives both versions, and finds devices by the device tree.
    Linux,
    /// Something else: firmware alone, a kernel that is no Linux `Image`, a bare-metal program.
    Other,
}

impl Virtio {
    /// What a Linux kernel finds.
    pub const LINUX: Self = Self { version: Version::Modern, slots: Slots::DEFAULT };
    /// What all others find: QEMU's own default version, and the disk in the first slot. Programs
    /// that know no device tree are written for these two.
    pub const OTHER: Self = Self { version: Version::Legacy, slots: Slots([1, 2, 0]) };

    /// Returns what a guest finds where the user does not choose.
    pub const fn default_for(kind: MachineKind, guest: Guest) -> Self {
        match (kind, guest) {
            (MachineKind::Virt, Guest::Other) => Self::OTHER,
            // Semu has the modern version only, and a place for each device.
            (MachineKind::Virt, Guest::Linux) | (MachineKind::Semu, _) => Self::LINUX,
        }
    }

    /// Returns what a guest finds.
    pub fn new(kind: MachineKind, guest: Guest, choice: &Choice) -> Result<Self, SlotError> {
        let default = Self::default_for(kind, guest);
        if kind == MachineKind::Semu && choice.slots != NamedSlots::default() {
            return Err(SlotError::Fixed);
        }
        Ok(Self {
            version: choice.version.unwrap_or(default.version),
            slots: choice.slots.complete(default.slots),
        })
    }

    /// Puts the devices that a VM has where they are, before it starts.
    pub fn place(self, devices: &mut VirtioDevices) {
        devices.version = self.version;
        for device in DeviceKind::ALL {
            if devices.has(device) {
                devices.place(device, self.slots.of(device));
            }
        }
    }
}

/// Returns what is wrong and what helps where a guest's driver took the transports for those of the
/// other version, and so waits for an answer that never comes.
pub fn wrong_version(devices: &VirtioDevices) -> Option<&'static str> {
    match (devices.wrong_version(), devices.version) {
        (false, _) => None,
        (true, Version::Legacy) => {
            Some("takes its legacy virtio transports for modern ones; give --virtio modern")
        }
        (true, Version::Modern) => {
            Some("takes its modern virtio transports for legacy ones; give --virtio legacy")
        }
    }
}

/// The slot of each virtio device of a VM: the number of its transport, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slots([u32; DEVICES]);

impl Slots {
    /// Where devices are unless somebody places them.
    pub const DEFAULT: Self = Self([0, 1, 2]);

    /// Returns the slot of a device.
    pub const fn of(self, device: DeviceKind) -> u32 {
        self.0[device as usize]
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The slots of the devices that the user names: `blk=0,net=1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NamedSlots([Option<u32>; DEVICES]);

impl NamedSlots {
    /// Places the other devices, too: where they are by default if that is free, else in the first
    /// slot that is.
    fn complete(self, default: Slots) -> Slots {
        let mut slots = self.0;
        for device in DeviceKind::ALL {
            let wanted = Some(default.of(device));
            if slots[device as usize].is_none() && !self.0.contains(&wanted) {
                slots[device as usize] = wanted;
            }
        }
        for index in 0..DEVICES {
            if slots[index].is_none() {
                slots[index] = (0..).map(Some).find(|free| !slots.contains(free)).flatten();
            }
        }
        // All have one by now.
        Slots(slots.map(Option::unwrap_or_default))
    }
}

/// Why devices cannot be placed so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SlotError {
    /// The text is not a list of devices and numbers.
    #[error("`{0}` is no device and its slot; write it like blk=0,net=1")]
    Syntax(String),
    /// There is no such device.
    #[error("there is no virtio device `{0}`; those of a machine are {names}", names = Names)]
    Unknown(String),
    /// There is no such slot.
    #[error("{0}={1}: the slots are 0 to {last}", last = TRANSPORTS - 1)]
    Range(&'static str, u32),
    /// A device has two slots.
    #[error("{0} is placed twice; give it one slot")]
    Twice(&'static str),
    /// Two devices have the same slot.
    #[error("{0} and {1} are both in slot {2}; give each a slot of its own")]
    Taken(&'static str, &'static str, u32),
    /// The machine's devices cannot be placed.
    #[error(
        "each device of semu has a place of its own; leave --virtio-slot out, or give \
         --machine virt"
    )]
    Fixed,
}

/// The names of all devices.
struct Names;

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&DeviceKind::ALL.map(DeviceKind::name).join(", "))
    }
}

impl FromStr for NamedSlots {
    type Err = SlotError;

    fn from_str(text: &str) -> Result<Self, SlotError> {
        let mut named = [None; DEVICES];
        for word in text.split(',') {
            let syntax = || SlotError::Syntax(word.into());
            let (name, slot) = word.split_once('=').ok_or_else(syntax)?;
            let slot: u32 = slot.trim().parse().map_err(|_| syntax())?;
            let device = DeviceKind::ALL.into_iter().find(|device| device.name() == name.trim());
            let device = device.ok_or_else(|| SlotError::Unknown(name.trim().into()))?;
            if slot as usize >= TRANSPORTS {
                return Err(SlotError::Range(device.name(), slot));
            }
            if named[device as usize].is_some() {
                return Err(SlotError::Twice(device.name()));
            }
            let mut others = DeviceKind::ALL.into_iter();
            if let Some(other) = others.find(|&other| named[other as usize] == Some(slot)) {
                return Err(SlotError::Taken(other.name(), device.name(), slot));
            }
            named[device as usize] = Some(slot);
        }
        Ok(Self(named))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(text: &str) -> [u32; DEVICES] {
        let choice = Choice { slots: text.parse().unwrap(), ..Choice::default() };
        let slots = Virtio::new(MachineKind::Virt, Guest::Linux, &choice).unwrap().slots;
        [DeviceKind::Net, DeviceKind::Rng, DeviceKind::Blk].map(|device| slots.of(device))
    }

    #[test]
    fn devices_that_are_not_named_stay_or_make_room() {
        assert_eq!(slots("blk=0"), [2, 1, 0]);
        assert_eq!(slots("blk=0,net=1"), [1, 2, 0]);
        assert_eq!(slots("rng=7"), [0, 7, 2]);
        assert_eq!(slots("net=2, rng=0"), [2, 0, 1]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let refused = |text: &str| text.parse::<NamedSlots>().unwrap_err().to_string();
        assert!(refused("").contains("write it like blk=0,net=1"));
        assert!(refused("blk").contains("`blk`"));
        assert!(refused("blk=-1").contains("`blk=-1`"));
        assert!(refused("gpu=0").contains("`gpu`; those of a machine are net, rng, blk"));
        assert!(refused("blk=8").contains("blk=8: the slots are 0 to 7"));
        assert!(refused("blk=0,blk=1").contains("blk is placed twice"));
        assert!(refused("blk=0,net=0").contains("blk and net are both in slot 0"));
    }

    #[test]
    fn what_is_no_linux_finds_what_qemu_gives_it() {
        let found = |kind, guest| Virtio::new(kind, guest, &Choice::default()).unwrap();
        let other = found(MachineKind::Virt, Guest::Other);
        assert_eq!((other.version, other.slots.of(DeviceKind::Blk)), (Version::Legacy, 0));
        assert_eq!(found(MachineKind::Virt, Guest::Linux).version, Version::Modern);
        assert_eq!(found(MachineKind::Semu, Guest::Other), Virtio::LINUX);
    }

    #[test]
    fn what_the_user_chooses_counts() {
        let choice = Choice { version: Some(Version::Modern), slots: "net=5".parse().unwrap() };
        let found = Virtio::new(MachineKind::Virt, Guest::Other, &choice).unwrap();
        assert_eq!(found, Virtio { version: Version::Modern, slots: Slots([5, 2, 0]) });
    }

    #[test]
    fn linux_finds_devices_where_they_are_unless_placed() {
        for device in DeviceKind::ALL {
            assert_eq!(Virtio::LINUX.slots.of(device), device.default_slot());
        }
    }

    #[test]
    fn the_devices_of_semu_stay_where_they_are() {
        let choice = Choice { slots: "blk=2".parse().unwrap(), ..Choice::default() };
        let refused = Virtio::new(MachineKind::Semu, Guest::Linux, &choice);
        assert_eq!(refused, Err(SlotError::Fixed));
    }
}

//! Which transport each virtio device is behind: `--virtio-slot blk=0,net=1`.

use std::fmt;
use std::str::FromStr;

use emu_core::dev::virtio::DeviceKind;
use emu_core::layout::{MachineKind, TRANSPORTS};

/// Number of virtio devices.
const DEVICES: usize = DeviceKind::ALL.len();

/// The slot of each virtio device of a VM: the number of its transport, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slots([u32; DEVICES]);

impl Slots {
    /// Where devices are unless the user places them.
    pub const DEFAULT: Self = {
        let mut slots = [0; DEVICES];
        let mut index = 0;
        while index < DEVICES {
            slots[index] = DeviceKind::ALL[index].default_slot();
            index += 1;
        }
        Self(slots)
    };

    /// Returns the slot of a device.
    pub const fn of(self, device: DeviceKind) -> u32 {
        self.0[device as usize]
    }

    /// Refuses what the machine cannot do: of semu's transports each is one device's.
    pub fn check(self, kind: MachineKind) -> Result<(), SlotError> {
        match kind {
            MachineKind::Virt => Ok(()),
            MachineKind::Semu if self == Self::default() => Ok(()),
            MachineKind::Semu => Err(SlotError::Fixed),
        }
    }

    /// Places the devices that `named` does not have: where they are by default if that is free,
    /// else in the first slot that is.
    fn complete(named: [Option<u32>; DEVICES]) -> Self {
        let mut slots = named;
        for device in DeviceKind::ALL {
            let default = Some(device.default_slot());
            if slots[device as usize].is_none() && !named.contains(&default) {
                slots[device as usize] = default;
            }
        }
        for index in 0..DEVICES {
            if slots[index].is_none() {
                slots[index] = (0..).map(Some).find(|free| !slots.contains(free)).flatten();
            }
        }
        // All have one by now.
        Self(slots.map(Option::unwrap_or_default))
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::DEFAULT
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

impl FromStr for Slots {
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
            if let Some(other) =
                DeviceKind::ALL.into_iter().find(|&d| named[d as usize] == Some(slot))
            {
                return Err(SlotError::Taken(other.name(), device.name(), slot));
            }
            named[device as usize] = Some(slot);
        }
        Ok(Self::complete(named))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(text: &str) -> [u32; DEVICES] {
        let slots: Slots = text.parse().unwrap();
        [DeviceKind::Net, DeviceKind::Rng, DeviceKind::Blk].map(|device| slots.of(device))
    }

    #[test]
    fn devices_that_are_not_named_stay_or_make_room() {
        assert_eq!(Slots::default(), Slots([0, 1, 2]));
        assert_eq!(slots("blk=0"), [2, 1, 0]);
        assert_eq!(slots("blk=0,net=1"), [1, 2, 0]);
        assert_eq!(slots("rng=7"), [0, 7, 2]);
        assert_eq!(slots("net=2, rng=0"), [2, 0, 1]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let refused = |text: &str| text.parse::<Slots>().unwrap_err().to_string();
        assert!(refused("").contains("write it like blk=0,net=1"));
        assert!(refused("blk").contains("`blk`"));
        assert!(refused("blk=-1").contains("`blk=-1`"));
        assert!(refused("gpu=0").contains("`gpu`; those of a machine are net, rng, blk"));
        assert!(refused("blk=8").contains("blk=8: the slots are 0 to 7"));
        assert!(refused("blk=0,blk=1").contains("blk is placed twice"));
        assert!(refused("blk=0,net=0").contains("blk and net are both in slot 0"));
    }

    #[test]
    fn the_devices_of_semu_stay_where_they_are() {
        let moved: Slots = "blk=0".parse().unwrap();
        assert_eq!(moved.check(MachineKind::Virt), Ok(()));
        assert_eq!(moved.check(MachineKind::Semu), Err(SlotError::Fixed));
        assert_eq!(Slots::default().check(MachineKind::Semu), Ok(()));
    }
}

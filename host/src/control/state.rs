//! The states of a VM, as users see them: the only place that names them.

use std::fmt;
use std::ops::{Index, IndexMut};

use serde::{Serialize, Serializer};

macro_rules! states {
    ($($(#[doc = $doc:literal])+ $Name:ident = $name:literal,)*) => {
        /// State of a VM.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum VmState {
            $($(#[doc = $doc])+ $Name,)*
        }

        impl VmState {
            /// All states. Their positions are the numbers in the API's event stream.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$Name),*];

            /// Name of the state: in the API, on the command line and on the dashboard.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Name => $name,)*
                }
            }
        }
    };
}

states! {
    /// The VM was started and is not ready yet.
    Booting = "booting",
    /// The VM's console showed the ready pattern.
    Ready = "ready",
    /// The VM is paused until the user resumes it.
    Paused = "paused",
    /// The VM powered off.
    Halted = "halted",
    /// The VM cannot continue, or powered off with a failure.
    Faulted = "faulted",
    /// The VM was stopped by the user; its memory is free.
    Stopped = "stopped",
}

impl VmState {
    /// Returns the state of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether a VM in this state executes.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Booting | Self::Ready)
    }

    /// Whether a VM in this state has memory.
    pub fn is_alive(self) -> bool {
        self.is_running() || self == Self::Paused
    }
}

impl Serialize for VmState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Number of VMs in each state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StateCounts([u32; VmState::ALL.len()]);

impl Index<VmState> for StateCounts {
    type Output = u32;

    fn index(&self, state: VmState) -> &u32 {
        &self.0[state as usize]
    }
}

impl IndexMut<VmState> for StateCounts {
    fn index_mut(&mut self, state: VmState) -> &mut u32 {
        &mut self.0[state as usize]
    }
}

impl StateCounts {
    /// Returns each state with its number of VMs.
    pub fn iter(&self) -> impl Iterator<Item = (VmState, u32)> {
        VmState::ALL.into_iter().zip(self.0)
    }
}

/// The states as the user sees them. Those that only a command leads to come last, and only where a
/// VM is in them.
impl fmt::Display for StateCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (by_command, others): (Vec<_>, Vec<_>) =
            self.iter().partition(|(state, _)| matches!(state, VmState::Paused | VmState::Stopped));
        let shown = others.into_iter().chain(by_command.into_iter().filter(|&(_, n)| n > 0));
        let texts: Vec<String> = shown.map(|(state, n)| format!("{n} {}", state.name())).collect();
        f.write_str(&texts.join(", "))
    }
}

impl Serialize for StateCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(state, n)| (state.name(), n)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_numbers_are_in_the_same_order() {
        for (i, state) in VmState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, i);
            assert_eq!(VmState::named(state.name()), Some(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
        assert_eq!(VmState::named("asleep"), None);
    }

    #[test]
    fn counts_name_every_state_and_those_that_users_cause_only_if_there_are_any() {
        let mut counts = StateCounts([1, 2, 0, 3, 4, 0]);
        assert_eq!(counts.to_string(), "1 booting, 2 ready, 3 halted, 4 faulted");
        counts[VmState::Paused] = 5;
        counts[VmState::Stopped] = 6;
        let text = "1 booting, 2 ready, 3 halted, 4 faulted, 5 paused, 6 stopped";
        assert_eq!(counts.to_string(), text);
    }

    #[test]
    fn counts_are_by_state() {
        let mut counts = StateCounts::default();
        counts[VmState::Paused] += 3;
        assert_eq!((counts[VmState::Paused], counts[VmState::Ready]), (3, 0));
        let all = json!({
            "booting": 0, "ready": 0, "paused": 3, "halted": 0, "faulted": 0, "stopped": 0
        });
        assert_eq!(serde_json::to_value(counts).unwrap(), all);
    }
}

//! Fleet state: the state of each VM, and whether the run is over. Bookkeeping only: nothing here
//! waits.

use super::{RunOutcome, Until};
use crate::backend::{Event, EventKind, Unsupported};
use crate::control::{Command, CommandError, Effect, Reply, StateCounts, VmState};

/// Why a command on a fleet was not executed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no VM of this number.
    #[error("there is no VM {vm}; this fleet has {count} (0 to {})", count.saturating_sub(1))]
    UnknownVm {
        /// Number that was given.
        vm: u32,
        /// Number of VMs.
        count: u32,
    },
    /// The VM's state does not allow the command.
    #[error("vm{vm} is {}; it cannot {command}", state.name())]
    WrongState {
        /// Number of the VM.
        vm: u32,
        /// State of the VM.
        state: VmState,
        /// The command.
        command: Command,
    },
    /// The VM did not execute the command.
    #[error("vm{vm} cannot {command}: {error}")]
    Failed {
        /// Number of the VM.
        vm: u32,
        /// The command.
        command: Command,
        /// The reason.
        error: CommandError,
    },
    /// The VM takes no input, because it has ended.
    #[error("vm{vm} is {} and reads nothing", state.name())]
    NotListening {
        /// Number of the VM.
        vm: u32,
        /// State of the VM.
        state: VmState,
    },
    /// The VM has not read earlier input yet.
    #[error("vm{vm} has {waiting} bytes to read still; send more when it has")]
    InputFull {
        /// Number of the VM.
        vm: u32,
        /// Bytes of input that wait.
        waiting: usize,
    },
    /// The fleet has no room for that many more VMs.
    #[error(
        "{asked} more machines do not fit: {count} of {capacity} are in use, so {} more fit; start \
         the fleet with --capacity {needed}", capacity - count
    )]
    NoRoom {
        /// Number of VMs that were requested.
        asked: u32,
        /// Number of VMs that there are.
        count: u32,
        /// Largest number of VMs that the fleet was started for.
        capacity: u32,
        /// Capacity that would be enough.
        needed: u64,
    },
    /// Too many commands of one VM are pending.
    #[error("vm{0} has enough to do; ask again when it is done")]
    Busy(u32),
    /// Too many commands are pending.
    #[error("the fleet has enough to do; ask again later")]
    Overloaded,
    /// The backend does not support the command.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The fleet is ending, or did not reply in time.
    #[error("the fleet did not answer")]
    Silent,
}

/// State of one VM as the engine knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmRecord {
    /// State of the VM.
    pub state: VmState,
    /// Instructions that the VM had retired when it was ready.
    pub ready_instret: Option<u64>,
    /// Number of the VM's resets.
    pub resets: u32,
    /// Why the VM failed.
    pub reason: Option<String>,
    /// Whether the VM was started once.
    started: bool,
    /// Whether the VM met or missed the condition of the run; `None` while that is open
    /// (unresolved).
    resolved: Option<bool>,
}

impl VmRecord {
    /// Whether the VM met the condition of the run; `None` while that is open (unresolved).
    pub fn resolved(&self) -> Option<bool> {
        self.resolved
    }
}

/// Fleet state.
#[derive(Debug)]
pub struct FleetState {
    until: Until,
    vms: Vec<VmRecord>,
    counts: StateCounts,
    /// Largest number of VMs.
    capacity: u32,
    /// VMs whose part in the condition is open.
    open: u32,
    failed: u32,
}

impl FleetState {
    /// Returns the state of `count` VMs that boot, with room for more up to `capacity`.
    pub fn new(count: u32, capacity: u32, until: Until) -> Self {
        let mut fleet = Self {
            until,
            vms: Vec::new(),
            counts: StateCounts::default(),
            capacity,
            open: 0,
            failed: 0,
        };
        fleet.push(count, true);
        fleet
    }

    fn push(&mut self, count: u32, started: bool) {
        let record = VmRecord {
            state: VmState::Booting,
            ready_instret: None,
            resets: 0,
            reason: None,
            started,
            resolved: None,
        };
        self.vms.resize(self.vms.len() + count as usize, record);
        self.counts[VmState::Booting] += count;
        self.open += count;
    }

    /// Adds VMs, which are then to be started. Returns the number of the first.
    pub fn add(&mut self, count: u32) -> Result<u32, ControlError> {
        let (asked, first, capacity) = (count, self.count(), self.capacity);
        let needed = u64::from(first) + u64::from(asked);
        if needed > u64::from(capacity) {
            return Err(ControlError::NoRoom { asked, count: first, capacity, needed });
        }
        self.push(count, false);
        Ok(first)
    }

    /// Returns the number of VMs.
    pub fn count(&self) -> u32 {
        self.vms.len() as u32
    }

    /// Returns the largest number of VMs.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Returns the number of VMs in each state.
    pub fn counts(&self) -> StateCounts {
        self.counts
    }

    /// Returns the records of all VMs.
    pub fn records(&self) -> &[VmRecord] {
        &self.vms
    }

    /// Returns the record of a VM.
    pub fn record(&self, vm: u32) -> Result<&VmRecord, ControlError> {
        let unknown = ControlError::UnknownVm { vm, count: self.count() };
        self.vms.get(vm as usize).ok_or(unknown)
    }

    /// Returns an error unless the VM takes the command now.
    pub fn allows(&self, vm: u32, command: Command) -> Result<(), ControlError> {
        let state = self.record(vm)?.state;
        state.takes(command).then_some(()).ok_or(ControlError::WrongState { vm, state, command })
    }

    /// Returns the result of a command for who gave it: the VM may have ended before it.
    pub fn completion(
        &self,
        vm: u32,
        command: Command,
        result: Result<Reply, CommandError>,
    ) -> Result<Reply, ControlError> {
        let state = self.record(vm)?.state;
        let reply = result.map_err(|error| ControlError::Failed { vm, command, error })?;
        state.follows(command).then_some(reply).ok_or(ControlError::WrongState {
            vm,
            state,
            command,
        })
    }

    /// Updates the state by an event.
    pub fn note(&mut self, event: &Event) {
        let Some(vm) = self.vms.get_mut(event.vm as usize) else { return };
        let until = self.until;
        let (state, resolved) = match &event.kind {
            EventKind::Console(_) => return,
            EventKind::Ready => {
                vm.ready_instret = Some(event.instret);
                (VmState::Ready, (until == Until::Ready).then_some(true))
            }
            EventKind::Reset => {
                vm.ready_instret = None;
                vm.resets += 1;
                (VmState::Booting, None)
            }
            EventKind::Halted(0) => (VmState::Halted, Some(until == Until::Halt)),
            EventKind::Halted(status) => {
                vm.reason = Some(format!("it powered off with status {status}"));
                (VmState::Faulted, Some(false))
            }
            EventKind::Faulted(reason) => {
                vm.reason = Some(reason.to_string());
                (VmState::Faulted, Some(false))
            }
            // The VM had ended before the command reached it, or did not execute it.
            EventKind::Completed(command, result)
                if result.is_err() || !vm.state.takes(*command) =>
            {
                return;
            }
            EventKind::Completed(command, _) => match command.row().effect {
                Effect::None => return,
                Effect::Boots => {
                    (vm.ready_instret, vm.reason) = (None, None);
                    vm.resets += u32::from(std::mem::replace(&mut vm.started, true));
                    (VmState::Booting, None)
                }
                Effect::Pauses => (VmState::Paused, None),
                Effect::Resumes if vm.ready_instret.is_some() => (VmState::Ready, None),
                Effect::Resumes => (VmState::Booting, None),
                Effect::Stops => (VmState::Stopped, Some(until == Until::Halt)),
            },
        };
        self.counts[vm.state] -= 1;
        self.counts[state] += 1;
        vm.state = state;
        if vm.resolved.is_none() && resolved.is_some() {
            vm.resolved = resolved;
            self.open -= 1;
            self.failed += u32::from(resolved == Some(false));
        }
    }

    /// Returns the outcome of the run once the VMs have decided it; `None` until then.
    pub fn outcome(&self) -> Option<RunOutcome> {
        match (self.until, self.open, self.failed) {
            (Until::Never, ..) => None,
            (_, 0, 0) => Some(RunOutcome::Met),
            (_, 0, _) => Some(RunOutcome::Failed),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Reason;

    fn completed(command: Command) -> EventKind {
        EventKind::Completed(command, Ok(Reply::None))
    }

    fn fleet(count: u32, until: Until, events: &[(u32, EventKind)]) -> FleetState {
        let mut fleet = FleetState::new(count, count, until);
        for (vm, kind) in events {
            fleet.note(&Event { vm: *vm, instret: 10, kind: kind.clone() });
        }
        fleet
    }

    #[test]
    fn a_fleet_is_ready_when_all_its_vms_were() {
        let open = fleet(2, Until::Ready, &[(0, EventKind::Ready), (0, EventKind::Ready)]);
        assert_eq!(open.outcome(), None);
        let met = fleet(2, Until::Ready, &[(0, EventKind::Ready), (1, EventKind::Ready)]);
        assert_eq!(met.outcome(), Some(RunOutcome::Met));
        assert_eq!((met.counts[VmState::Ready], met.vms[1].ready_instret), (2, Some(10)));
    }

    #[test]
    fn a_vm_that_ends_too_early_fails_the_fleet_but_not_its_neighbours() {
        let events = [(0, EventKind::Halted(0)), (1, EventKind::Ready)];
        let fleet = fleet(2, Until::Ready, &events);
        assert_eq!(fleet.outcome(), Some(RunOutcome::Failed));
        assert_eq!((fleet.counts[VmState::Halted], fleet.counts[VmState::Ready]), (1, 1));
    }

    #[test]
    fn halting_with_a_failure_is_a_fault() {
        let events = [(0, EventKind::Halted(0)), (1, EventKind::Halted(3))];
        let fleet = fleet(2, Until::Halt, &events);
        assert_eq!(fleet.outcome(), Some(RunOutcome::Failed));
        assert_eq!((fleet.counts[VmState::Halted], fleet.counts[VmState::Faulted]), (1, 1));
    }

    #[test]
    fn never_means_that_no_guest_ends_the_run() {
        let events = [(0, EventKind::Faulted(Reason::NoMemory))];
        assert_eq!(fleet(1, Until::Never, &events).outcome(), None);
    }

    #[test]
    fn a_reset_vm_boots_again() {
        let events = [(0, EventKind::Ready), (0, EventKind::Reset)];
        let fleet = fleet(1, Until::Halt, &events);
        assert_eq!((fleet.counts[VmState::Booting], fleet.vms[0].ready_instret), (1, None));
        assert_eq!(fleet.vms[0].resets, 1);
    }

    #[test]
    fn what_a_vm_takes_depends_on_its_state() {
        let events = [(0, EventKind::Ready), (0, completed(Command::Pause))];
        let fleet = fleet(1, Until::Never, &events);
        let error = fleet.allows(0, Command::Pause).unwrap_err();
        assert_eq!(error.to_string(), "vm0 is paused; it cannot pause");
        assert!(fleet.allows(1, Command::Pause).unwrap_err().to_string().contains("(0 to 0)"));
    }

    #[test]
    fn what_is_completed_changes_the_state_unless_the_vm_had_ended() {
        use EventKind::{Halted, Ready};
        let state = |events: &[EventKind]| {
            let events: Vec<_> = events.iter().map(|kind| (0, kind.clone())).collect();
            fleet(1, Until::Never, &events).vms[0].state
        };
        let (pause, resume) = (completed(Command::Pause), completed(Command::Resume));
        assert_eq!(state(std::slice::from_ref(&pause)), VmState::Paused);
        assert_eq!(state(&[pause.clone(), resume.clone()]), VmState::Booting);
        assert_eq!(state(&[Ready, pause.clone(), resume.clone()]), VmState::Ready);
        assert_eq!(state(&[Halted(0), pause.clone()]), VmState::Halted);
        assert_eq!(state(&[Halted(0), completed(Command::Stop)]), VmState::Halted);
        assert_eq!(state(&[pause, completed(Command::Stop), resume]), VmState::Stopped);
        assert_eq!(state(&[completed(Command::Stop), completed(Command::Reset)]), VmState::Booting);
    }

    #[test]
    fn a_command_that_failed_changes_nothing_and_says_why() {
        let error = CommandError::Failed("its disk is full".to_owned());
        let failed = EventKind::Completed(Command::Pause, Err(error.clone()));
        let mut fleet = fleet(1, Until::Never, &[(0, failed)]);
        assert_eq!(fleet.vms[0].state, VmState::Booting);
        let result = fleet.completion(0, Command::Pause, Err(error));
        assert_eq!(result.unwrap_err().to_string(), "vm0 cannot pause: its disk is full");
        fleet.note(&Event { vm: 0, instret: 0, kind: completed(Command::Pause) });
        assert_eq!(fleet.completion(0, Command::Pause, Ok(Reply::None)), Ok(Reply::None));
        let resumed = fleet.completion(0, Command::Resume, Ok(Reply::None)).unwrap_err();
        assert_eq!(resumed.to_string(), "vm0 is paused; it cannot resume");
    }

    #[test]
    fn vms_are_added_up_to_the_capacity() {
        let mut fleet = FleetState::new(2, 5, Until::Ready);
        assert_eq!(fleet.add(2), Ok(2));
        let error = fleet.add(2).unwrap_err().to_string();
        assert!(error.contains("4 of 5 are in use, so 1 more fit"), "{error}");
        assert!(error.contains("--capacity 6"), "{error}");
        assert!(fleet.add(u32::MAX).is_err());
        fleet.note(&Event { vm: 3, instret: 0, kind: completed(Command::Reset) });
        assert_eq!((fleet.vms[3].resets, fleet.counts[VmState::Booting], fleet.open), (0, 4, 4));
    }
}

//! Fleet state (`Ledger`): the state of each VM, which commands it takes in which state, and
//! whether the run is over. Bookkeeping only: nothing here waits.

use super::{Until, Verdict};
use crate::backend::{Command, Event, EventKind, Unsupported};

/// State of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The VM was started and is not ready yet.
    Booting,
    /// The VM's console showed the ready pattern.
    Ready,
    /// The VM is paused until the user resumes it.
    Paused,
    /// The VM powered off.
    Halted,
    /// The VM cannot go on, or powered off with a failure.
    Faulted,
    /// The VM was stopped by the user; its memory is free.
    Stopped,
}

impl State {
    /// All states. Their positions are the numbers in the event stream.
    pub const ALL: [Self; 6] =
        [Self::Booting, Self::Ready, Self::Paused, Self::Halted, Self::Faulted, Self::Stopped];

    /// Name of the state.
    pub fn name(self) -> &'static str {
        ["booting", "ready", "paused", "halted", "faulted", "stopped"][self as usize]
    }

    /// Whether a VM in this state takes a command.
    pub fn takes(self, command: Command) -> bool {
        match command {
            Command::Reset => true,
            Command::Pause => matches!(self, Self::Booting | Self::Ready),
            Command::Resume => self == Self::Paused,
            Command::Stop => self.is_alive(),
        }
    }

    /// Whether a VM in this state has memory.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Booting | Self::Ready | Self::Paused)
    }

    /// Whether this is the state after a command was completed.
    fn follows(self, command: Command) -> bool {
        match command {
            Command::Reset => true,
            Command::Pause => self == Self::Paused,
            Command::Resume => matches!(self, Self::Booting | Self::Ready),
            Command::Stop => self == Self::Stopped,
        }
    }
}

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
        state: State,
        /// The command.
        command: Command,
    },
    /// The VM takes no input, because it has ended.
    #[error("vm{vm} is {} and reads nothing", state.name())]
    NotListening {
        /// Number of the VM.
        vm: u32,
        /// State of the VM.
        state: State,
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
pub struct Record {
    /// State of the VM.
    pub state: State,
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
    settled: Option<bool>,
}

impl Record {
    /// Whether the VM met the condition of the run; `None` while that is open (unresolved).
    pub fn settled(&self) -> Option<bool> {
        self.settled
    }
}

/// Number of VMs in each state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Counts {
    /// [`State::Booting`].
    pub booting: u32,
    /// [`State::Ready`].
    pub ready: u32,
    /// [`State::Paused`].
    pub paused: u32,
    /// [`State::Halted`].
    pub halted: u32,
    /// [`State::Faulted`].
    pub faulted: u32,
    /// [`State::Stopped`].
    pub stopped: u32,
}

impl Counts {
    fn of(&mut self, state: State) -> &mut u32 {
        match state {
            State::Booting => &mut self.booting,
            State::Ready => &mut self.ready,
            State::Paused => &mut self.paused,
            State::Halted => &mut self.halted,
            State::Faulted => &mut self.faulted,
            State::Stopped => &mut self.stopped,
        }
    }
}

/// Fleet state.
#[derive(Debug)]
pub struct Ledger {
    until: Until,
    vms: Vec<Record>,
    counts: Counts,
    /// Largest number of VMs.
    capacity: u32,
    /// VMs whose part in the condition is open.
    open: u32,
    failed: u32,
}

impl Ledger {
    /// Returns the state of `count` VMs that boot, with room for more up to `capacity`.
    pub fn new(count: u32, capacity: u32, until: Until) -> Self {
        let mut ledger = Self {
            until,
            vms: Vec::new(),
            counts: Counts::default(),
            capacity,
            open: 0,
            failed: 0,
        };
        ledger.push(count, true);
        ledger
    }

    fn push(&mut self, count: u32, started: bool) {
        let record = Record {
            state: State::Booting,
            ready_instret: None,
            resets: 0,
            reason: None,
            started,
            settled: None,
        };
        self.vms.resize(self.vms.len() + count as usize, record);
        self.counts.booting += count;
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
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns the records of all VMs.
    pub fn records(&self) -> &[Record] {
        &self.vms
    }

    /// Returns the record of a VM.
    pub fn record(&self, vm: u32) -> Result<&Record, ControlError> {
        let unknown = ControlError::UnknownVm { vm, count: self.count() };
        self.vms.get(vm as usize).ok_or(unknown)
    }

    /// Returns an error unless the VM takes the command now.
    pub fn allows(&self, vm: u32, command: Command) -> Result<(), ControlError> {
        let state = self.record(vm)?.state;
        state.takes(command).then_some(()).ok_or(ControlError::WrongState { vm, state, command })
    }

    /// Returns the result of a command that was executed: the VM may have ended before.
    pub fn outcome(&self, vm: u32, command: Command) -> Result<(), ControlError> {
        let state = self.record(vm)?.state;
        state.follows(command).then_some(()).ok_or(ControlError::WrongState { vm, state, command })
    }

    /// Updates the state by an event.
    pub fn note(&mut self, event: &Event) {
        let Some(vm) = self.vms.get_mut(event.vm as usize) else { return };
        let until = self.until;
        let (state, settled) = match &event.kind {
            EventKind::Console(_) => return,
            EventKind::Ready => {
                vm.ready_instret = Some(event.instret);
                (State::Ready, (until == Until::Ready).then_some(true))
            }
            EventKind::Reset => {
                vm.ready_instret = None;
                vm.resets += 1;
                (State::Booting, None)
            }
            EventKind::Halted(0) => (State::Halted, Some(until == Until::Halt)),
            EventKind::Halted(status) => {
                vm.reason = Some(format!("it powered off with status {status}"));
                (State::Faulted, Some(false))
            }
            EventKind::Faulted(reason) => {
                vm.reason = Some(reason.to_string());
                (State::Faulted, Some(false))
            }
            EventKind::Completed(Command::Reset) => {
                (vm.ready_instret, vm.reason) = (None, None);
                vm.resets += u32::from(std::mem::replace(&mut vm.started, true));
                (State::Booting, None)
            }
            // The VM had ended before the command reached it.
            EventKind::Completed(command) if !vm.state.takes(*command) => return,
            EventKind::Completed(Command::Pause) => (State::Paused, None),
            EventKind::Completed(Command::Resume) if vm.ready_instret.is_some() => {
                (State::Ready, None)
            }
            EventKind::Completed(Command::Resume) => (State::Booting, None),
            EventKind::Completed(Command::Stop) => (State::Stopped, Some(until == Until::Halt)),
        };
        *self.counts.of(vm.state) -= 1;
        *self.counts.of(state) += 1;
        vm.state = state;
        if vm.settled.is_none() && settled.is_some() {
            vm.settled = settled;
            self.open -= 1;
            self.failed += u32::from(settled == Some(false));
        }
    }

    /// Returns the outcome of the run once the VMs have decided it; `None` until then.
    pub fn verdict(&self) -> Option<Verdict> {
        match (self.until, self.open, self.failed) {
            (Until::Never, ..) => None,
            (_, 0, 0) => Some(Verdict::Met),
            (_, 0, _) => Some(Verdict::Failed),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Reason;

    fn ledger(count: u32, until: Until, events: &[(u32, EventKind)]) -> Ledger {
        let mut ledger = Ledger::new(count, count, until);
        for (vm, kind) in events {
            ledger.note(&Event { vm: *vm, instret: 10, kind: kind.clone() });
        }
        ledger
    }

    #[test]
    fn a_fleet_is_ready_when_all_its_vms_were() {
        let open = ledger(2, Until::Ready, &[(0, EventKind::Ready), (0, EventKind::Ready)]);
        assert_eq!(open.verdict(), None);
        let met = ledger(2, Until::Ready, &[(0, EventKind::Ready), (1, EventKind::Ready)]);
        assert_eq!(met.verdict(), Some(Verdict::Met));
        assert_eq!((met.counts.ready, met.vms[1].ready_instret), (2, Some(10)));
    }

    #[test]
    fn a_vm_that_ends_too_early_fails_the_fleet_but_not_its_neighbours() {
        let events = [(0, EventKind::Halted(0)), (1, EventKind::Ready)];
        let ledger = ledger(2, Until::Ready, &events);
        assert_eq!(ledger.verdict(), Some(Verdict::Failed));
        assert_eq!((ledger.counts.halted, ledger.counts.ready), (1, 1));
    }

    #[test]
    fn halting_with_a_failure_is_a_fault() {
        let events = [(0, EventKind::Halted(0)), (1, EventKind::Halted(3))];
        let ledger = ledger(2, Until::Halt, &events);
        assert_eq!(ledger.verdict(), Some(Verdict::Failed));
        assert_eq!((ledger.counts.halted, ledger.counts.faulted), (1, 1));
    }

    #[test]
    fn never_means_that_no_guest_ends_the_run() {
        let events = [(0, EventKind::Faulted(Reason::NoMemory))];
        assert_eq!(ledger(1, Until::Never, &events).verdict(), None);
    }

    #[test]
    fn a_reset_vm_boots_again() {
        let events = [(0, EventKind::Ready), (0, EventKind::Reset)];
        let ledger = ledger(1, Until::Halt, &events);
        assert_eq!((ledger.counts.booting, ledger.vms[0].ready_instret), (1, None));
        assert_eq!(ledger.vms[0].resets, 1);
    }

    #[test]
    fn names_and_numbers_are_in_the_same_order() {
        for (i, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, i);
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }

    #[test]
    fn each_state_takes_the_commands_that_make_sense_in_it() {
        let commands = [Command::Reset, Command::Pause, Command::Resume, Command::Stop];
        let taken = |state: State| commands.map(|command| state.takes(command));
        assert_eq!(taken(State::Booting), [true, true, false, true]);
        assert_eq!(taken(State::Ready), [true, true, false, true]);
        assert_eq!(taken(State::Paused), [true, false, true, true]);
        for ended in [State::Halted, State::Faulted, State::Stopped] {
            assert_eq!(taken(ended), [true, false, false, false]);
        }
        let events = [(0, EventKind::Ready), (0, EventKind::Completed(Command::Pause))];
        let ledger = ledger(1, Until::Never, &events);
        let error = ledger.allows(0, Command::Pause).unwrap_err();
        assert_eq!(error.to_string(), "vm0 is paused; it cannot pause");
        assert!(ledger.allows(1, Command::Pause).unwrap_err().to_string().contains("(0 to 0)"));
    }

    #[test]
    fn what_is_completed_changes_the_state_unless_the_vm_had_ended() {
        use EventKind::{Completed, Halted, Ready};
        let state = |events: &[EventKind]| {
            let events: Vec<_> = events.iter().map(|kind| (0, kind.clone())).collect();
            ledger(1, Until::Never, &events).vms[0].state
        };
        let (pause, resume) = (Completed(Command::Pause), Completed(Command::Resume));
        assert_eq!(state(std::slice::from_ref(&pause)), State::Paused);
        assert_eq!(state(&[pause.clone(), resume.clone()]), State::Booting);
        assert_eq!(state(&[Ready, pause.clone(), resume.clone()]), State::Ready);
        assert_eq!(state(&[Halted(0), pause.clone()]), State::Halted);
        assert_eq!(state(&[Halted(0), Completed(Command::Stop)]), State::Halted);
        assert_eq!(state(&[pause, Completed(Command::Stop), resume]), State::Stopped);
        assert_eq!(state(&[Completed(Command::Stop), Completed(Command::Reset)]), State::Booting);
    }

    #[test]
    fn vms_are_added_up_to_the_capacity() {
        let mut ledger = Ledger::new(2, 5, Until::Ready);
        assert_eq!(ledger.add(2), Ok(2));
        let error = ledger.add(2).unwrap_err().to_string();
        assert!(error.contains("4 of 5 are in use, so 1 more fit"), "{error}");
        assert!(error.contains("--capacity 6"), "{error}");
        assert!(ledger.add(u32::MAX).is_err());
        ledger.note(&Event { vm: 3, instret: 0, kind: EventKind::Completed(Command::Reset) });
        assert_eq!((ledger.vms[3].resets, ledger.counts.booting, ledger.open), (0, 4, 4));
    }
}

//! A VM's life: the one state machine that all backends drive. A backend knows how VMs execute;
//! what becomes of a VM when it stops executing, gets input or a command is decided here.
//!
//! ```text
//!                       reset: by the guest, or by the user from every state
//!                                       |
//!                                       v
//!            no memory left       .------------.
//!         .---------------------- |  Starting  |
//!         |                       '------------'
//!         |                             | started
//!         v                             v
//!   .-----------.  power-off,     .------------.  no free frame   .-------------.
//!   |  Stopped  | <-------------- |  Runnable  | ---------------> | OutOfMemory |
//!   '-----------'  fault,         '------------' <--------------- '-------------'
//!         ^        boot loop        |   ^    |     frames freed          |
//!         |                    idle |   |    | ready (and the run        |
//!         |                         v   |    v needs no more)            |
//!         |                .----------. |  .---------.                   |
//!         |                |  Parked  |-'  |  Ready  |                   |
//!         |                '----------'    '---------'                   |
//!         |                input, timer                                  |
//!         '------------------ no memory left ----------------------------'
//! ```
//!
//! Not shown: the user pauses a VM that is runnable, parked, ready or out of memory (`Paused`), and
//! resumes it: to `Ready` if it was ready and the run needs no more of it, else to `Runnable`. The
//! user stops a VM, and a failure of the emulator ends it, in every state. A VM that is starting is
//! started before the user's next command is handled.

use emu_core::abi::{Exit, ExitCode};

use super::trap_loop::TrapLoop;
use super::{EventKind, Reason, Settings};
use crate::console::ready::ReadyMatcher;
use crate::control::Command;

/// Starts that a VM may take to become ready, under [`Settings::until_ready`].
pub const BOOTS_MAX: u32 = 5;

/// State of a VM in its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The VM was not started, has ended, or was stopped by the user. It has no memory.
    Stopped,
    /// The VM is about to be made at its first instruction. Memory of an earlier start is freed
    /// before that.
    Starting,
    /// The VM executes whenever the backend gets to it.
    Runnable,
    /// The VM is idle: it does nothing until input arrives or its timer expires.
    Parked,
    /// The VM was ready, and the run needs no more of it ([`Settings::until_ready`]).
    Ready,
    /// The VM is paused by the user.
    Paused,
    /// The VM waits for a free frame of memory.
    OutOfMemory,
}

/// What changes the state of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// The backend has made the VM at its first instruction.
    Started,
    /// There is no memory to start the VM, or to let it continue.
    NoMemory,
    /// The VM executed WFI and waits for an interrupt.
    Idle {
        /// Whether there is input for the VM already, or an expired timer.
        due: bool,
    },
    /// The VM needs a frame, and none is free. Only where a backend lets VMs wait for frames.
    NoFrame,
    /// The VM's console showed the ready pattern, and the run needs no more of the VM.
    Ready,
    /// The guest requested a reset.
    Reset,
    /// The VM powered off, cannot continue, or resets for ever.
    End,
    /// The emulator failed: a bug of pxvm, not of the guest.
    Failure,
    /// Input arrived, or a timer expired.
    Wake,
    /// Frames of other VMs were freed.
    FramesFreed,
    /// A command of the user.
    Command(Command),
}

/// What the backend has to do after a transition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Action {
    /// Nothing changes in how the VM executes.
    Nothing,
    /// Execute the VM from now on.
    Run,
    /// Go on executing the VM, although it has stopped to wait.
    RunOn,
    /// Execute the VM no more. It keeps its memory.
    Park,
    /// Make the VM, which has no memory, at its first instruction.
    Start,
    /// Free the VM's memory, and make it at its first instruction again.
    Restart,
    /// Free the VM's memory, and drop input that waits for it.
    Free,
}

/// Returns the state after `trigger`, and what it asks of the backend; `None` for what cannot
/// happen. `ready` says whether the VM was ready and the run needs no more of it.
fn step(state: State, trigger: Trigger, ready: bool) -> Option<(State, Action)> {
    use Action::{Free, Nothing, Park, Restart, Run, RunOn, Start};
    use State::{OutOfMemory, Parked, Paused, Ready, Runnable, Starting, Stopped};
    Some(match (trigger, state) {
        (Trigger::Started, Starting) => (Runnable, Run),
        (Trigger::NoMemory, Starting | OutOfMemory) => (Stopped, Free),

        (Trigger::Idle { due: true }, Runnable) => (Runnable, RunOn),
        (Trigger::Idle { due: false }, Runnable) => (Parked, Park),
        (Trigger::NoFrame, Runnable) => (OutOfMemory, Park),
        (Trigger::Ready, Runnable) => (Ready, Park),
        // It became ready with the last that it did.
        (Trigger::Idle { .. } | Trigger::NoFrame, Ready) => (Ready, Nothing),
        (Trigger::Reset, Runnable | Ready) => (Starting, Restart),
        (Trigger::End, Runnable | Ready) => (Stopped, Free),

        // These come when they come.
        (Trigger::Wake, Parked) => (Runnable, Run),
        (Trigger::FramesFreed, OutOfMemory) => (Runnable, Run),
        (Trigger::Wake | Trigger::FramesFreed, _) => (state, Nothing),
        (Trigger::Failure, _) => (Stopped, Free),

        // A backend starts a VM before it handles the VM's next command.
        (Trigger::Command(_), Starting) => return None,
        (Trigger::Command(Command::Reset), Stopped) => (Starting, Start),
        (Trigger::Command(Command::Reset), _) => (Starting, Restart),
        (Trigger::Command(Command::Stop), Stopped) => (Stopped, Nothing),
        (Trigger::Command(Command::Stop), _) => (Stopped, Free),
        (Trigger::Command(Command::Pause), Runnable | Parked | Ready | OutOfMemory) => {
            (Paused, Park)
        }
        (Trigger::Command(Command::Resume), Paused) if ready => (Ready, Park),
        (Trigger::Command(Command::Resume), Paused) => (Runnable, Run),
        (Trigger::Command(Command::Pause), Paused | Stopped)
        | (Trigger::Command(Command::Resume), Stopped | Runnable | Parked | Ready | OutOfMemory) => {
            (state, Nothing)
        }

        (Trigger::Started, Stopped | Runnable | Parked | Ready | Paused | OutOfMemory)
        | (Trigger::NoMemory, Stopped | Runnable | Parked | Ready | Paused)
        | (
            Trigger::Idle { .. } | Trigger::NoFrame,
            Stopped | Starting | Parked | Paused | OutOfMemory,
        )
        | (Trigger::Ready, Stopped | Starting | Parked | Ready | Paused | OutOfMemory)
        | (Trigger::Reset | Trigger::End, Stopped | Starting | Parked | Paused | OutOfMemory) => {
            return None;
        }
    })
}

/// The life of one VM: its state, and what is counted from one start to the next.
#[derive(Debug)]
pub struct Life {
    state: State,
    /// Starts since the VM was last ready, the current one included.
    boots: u32,
    /// Instructions retired before the VM's last start.
    earlier: u64,
    /// Instruction count at which the VM became ready and the run needed no more of it.
    ready_at: Option<u64>,
    /// Matcher of the ready pattern; `None` once the VM was ready.
    matcher: Option<ReadyMatcher>,
}

impl Life {
    /// Returns the life of a VM that is started at once, or waits for [`Command::Reset`].
    pub fn new(starts: bool, settings: &Settings) -> Self {
        Self {
            state: if starts { State::Starting } else { State::Stopped },
            boots: 1,
            earlier: 0,
            ready_at: None,
            matcher: Some(ReadyMatcher::new(settings.ready.clone())),
        }
    }

    /// Returns the VM's state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the VM executes whenever the backend gets to it.
    pub fn is_runnable(&self) -> bool {
        self.state == State::Runnable
    }

    /// Returns the instructions that the VM had retired before its last start.
    pub fn earlier(&self) -> u64 {
        self.earlier
    }

    /// Returns the instructions that the VM has retired since its first start, of which
    /// `since_start` since its last one. What a backend executed after the VM was ready and
    /// the run needed no more of it does not count.
    pub fn retired(&self, since_start: u64) -> u64 {
        self.ready_at.unwrap_or(self.earlier + since_start)
    }

    /// Whether what a VM did at instruction count `instret` counts: it had memory then, and the run
    /// was not over for it.
    pub fn counts(&self, instret: u64) -> bool {
        self.state != State::Stopped && self.ready_at.is_none_or(|at| instret <= at)
    }

    /// Changes the state, and returns what the backend has to do.
    pub fn on(&mut self, trigger: Trigger) -> Action {
        let ready = self.ready_at.is_some();
        let Some((state, action)) = step(self.state, trigger, ready) else {
            debug_assert!(false, "{trigger:?} of a VM that is {:?}", self.state);
            tracing::error!(?trigger, state = ?self.state, "a VM's state does not allow this");
            return Action::Nothing;
        };
        self.state = state;
        action
    }

    /// Handles console output, up to instruction count `instret`. Returns whether the VM is ready
    /// now.
    pub fn output(&mut self, bytes: &[u8], instret: u64, settings: &Settings) -> bool {
        let ready = self.matcher.as_mut().is_some_and(|matcher| matcher.feed(bytes));
        if ready {
            (self.matcher, self.boots) = (None, 0);
            if settings.until_ready {
                self.ready_at = Some(instret);
                let action = self.on(Trigger::Ready);
                debug_assert_eq!(action, Action::Park);
            }
        }
        ready
    }

    /// Handles that the VM has stopped executing, at instruction count `instret`. `traps` are those
    /// that it is caught in, if that is why. `due` says whether input or an expired timer is there.
    /// Returns what the backend has to do, and the events to report.
    pub fn exit(
        &mut self,
        exit: Exit,
        traps: TrapLoop,
        due: bool,
        instret: u64,
        settings: &Settings,
    ) -> (Action, Vec<EventKind>) {
        match exit.code {
            // Where a VM waits for its disk, its backend makes it go on.
            ExitCode::Budget | ExitCode::Stalled | ExitCode::Disk => (Action::Nothing, Vec::new()),
            ExitCode::Idle => (self.on(Trigger::Idle { due }), Vec::new()),
            ExitCode::Reset if settings.until_ready && self.boots >= BOOTS_MAX => {
                let events = vec![EventKind::Reset, EventKind::Faulted(Reason::BootLoop)];
                (self.on(Trigger::End), events)
            }
            ExitCode::Reset => {
                let action = self.on(Trigger::Reset);
                self.begin(self.boots + 1, instret, settings);
                (action, vec![EventKind::Reset])
            }
            ExitCode::PowerOff | ExitCode::Fault | ExitCode::NoFrame => {
                (self.on(Trigger::End), vec![EventKind::of_end(exit, traps)])
            }
        }
    }

    /// Handles a command of the user, which finds the VM at instruction count `instret`.
    pub fn command(&mut self, command: Command, instret: u64, settings: &Settings) -> Action {
        let action = self.on(Trigger::Command(command));
        if command == Command::Reset {
            self.begin(1, instret, settings);
        }
        action
    }

    /// Begins to count for another start.
    fn begin(&mut self, boots: u32, instret: u64, settings: &Settings) {
        self.boots = boots;
        self.earlier = instret;
        self.ready_at = None;
        self.matcher = Some(ReadyMatcher::new(settings.ready.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use emu_core::abi::FaultCode;
    use emu_core::layout::MachineKind;
    use emu_core::trap::TrapChain;

    use super::*;
    use crate::backend::ClockSource;
    use crate::console::ready::ReadyPattern;

    const STATES: [State; 7] = [
        State::Stopped,
        State::Starting,
        State::Runnable,
        State::Parked,
        State::Ready,
        State::Paused,
        State::OutOfMemory,
    ];

    /// What follows in each of [`STATES`]: the first letter of the next state and the action's;
    /// `--` for what cannot happen. The states are (S)topped, s(T)arting, (R)unnable, (P)arked,
    /// rea(D)y, pa(U)sed and (O)ut of memory; the actions (n)othing, (r)un, run (o)n, (p)ark,
    /// (s)tart, res(t)art and (f)ree.
    const TABLE: [(Trigger, &str); 15] = [
        //                                       S  T  R  P  D  U  O
        (Trigger::Started, /*               */ "-- Rr -- -- -- -- --"),
        (Trigger::NoMemory, /*              */ "-- Sf -- -- -- -- Sf"),
        (Trigger::Idle { due: false }, /*   */ "-- -- Pp -- Dn -- --"),
        (Trigger::Idle { due: true }, /*    */ "-- -- Ro -- Dn -- --"),
        (Trigger::NoFrame, /*               */ "-- -- Op -- Dn -- --"),
        (Trigger::Ready, /*                 */ "-- -- Dp -- -- -- --"),
        (Trigger::Reset, /*                 */ "-- -- Tt -- Tt -- --"),
        (Trigger::End, /*                   */ "-- -- Sf -- Sf -- --"),
        (Trigger::Failure, /*               */ "Sf Sf Sf Sf Sf Sf Sf"),
        (Trigger::Wake, /*                  */ "Sn Tn Rn Rr Dn Un On"),
        (Trigger::FramesFreed, /*           */ "Sn Tn Rn Pn Dn Un Rr"),
        (Trigger::Command(Command::Reset), /**/ "Ts -- Tt Tt Tt Tt Tt"),
        (Trigger::Command(Command::Pause), /**/ "Sn -- Up Up Up Un Up"),
        (Trigger::Command(Command::Resume), /**/ "Sn -- Rn Pn Dn Rr On"),
        (Trigger::Command(Command::Stop), /**/ "Sn -- Sf Sf Sf Sf Sf"),
    ];

    fn letters(next: Option<(State, Action)>) -> String {
        let Some((state, action)) = next else { return "--".to_owned() };
        let state = match state {
            State::Stopped => 'S',
            State::Starting => 'T',
            State::Runnable => 'R',
            State::Parked => 'P',
            State::Ready => 'D',
            State::Paused => 'U',
            State::OutOfMemory => 'O',
        };
        let action = match action {
            Action::Nothing => 'n',
            Action::Run => 'r',
            Action::RunOn => 'o',
            Action::Park => 'p',
            Action::Start => 's',
            Action::Restart => 't',
            Action::Free => 'f',
        };
        format!("{state}{action}")
    }

    #[test]
    fn every_trigger_leads_from_every_state_to_the_one_that_the_table_says() {
        for command in Command::ALL {
            let has_row = TABLE.iter().any(|&(trigger, _)| trigger == Trigger::Command(command));
            assert!(has_row, "{command}");
        }
        for (trigger, row) in TABLE {
            let found: Vec<String> =
                STATES.iter().map(|&state| letters(step(state, trigger, false))).collect();
            assert_eq!(found.join(" "), row, "{trigger:?}");
            // Having been ready matters to a resumed VM only.
            for state in STATES {
                let was_ready = step(state, trigger, true);
                let resumed = trigger == Trigger::Command(Command::Resume);
                match (resumed, state) {
                    (true, State::Paused) => {
                        assert_eq!(was_ready, Some((State::Ready, Action::Park)));
                    }
                    _ => assert_eq!(was_ready, step(state, trigger, false), "{trigger:?}"),
                }
            }
        }
    }

    #[test]
    fn memory_is_freed_by_who_has_it_and_taken_by_who_has_none() {
        for (trigger, _) in TABLE {
            for state in STATES {
                let Some((next, action)) = step(state, trigger, false) else { continue };
                let expected = match (state, next) {
                    (State::Stopped, State::Starting) => action == Action::Start,
                    (_, State::Starting) if state != next => action == Action::Restart,
                    (_, State::Stopped) if state != next => action == Action::Free,
                    _ => !matches!(action, Action::Start | Action::Restart),
                };
                assert!(expected, "{trigger:?} of a VM that is {state:?}: {action:?}");
            }
        }
    }

    fn settings(until_ready: bool) -> Settings {
        Settings {
            started: 1,
            threads: 1,
            clock: ClockSource::Instret,
            ready: ReadyPattern::new("up").unwrap(),
            until_ready,
            link: Arc::default(),
        }
    }

    fn running(settings: &Settings) -> Life {
        let mut life = Life::new(true, settings);
        assert_eq!(life.on(Trigger::Started), Action::Run);
        life
    }

    fn no_traps() -> TrapLoop {
        TrapLoop::new(MachineKind::Virt, &TrapChain::EMPTY)
    }

    const RESET: Exit = Exit { code: ExitCode::Reset, arg: 0 };

    #[test]
    fn instructions_are_counted_across_resets() {
        let settings = settings(false);
        let mut life = running(&settings);
        assert_eq!(life.exit(RESET, no_traps(), false, 70, &settings).1, [EventKind::Reset]);
        assert_eq!((life.state(), life.earlier(), life.retired(5)), (State::Starting, 70, 75));
        assert_eq!(life.on(Trigger::Started), Action::Run);
        assert_eq!(life.command(Command::Reset, 90, &settings), Action::Restart);
        assert_eq!(life.retired(1), 91);
    }

    #[test]
    fn a_vm_may_reset_as_often_as_it_likes_but_for_a_run_until_it_is_ready() {
        let ends = |until_ready: bool, resets: u32, ready_after: u32| {
            let settings = settings(until_ready);
            let mut life = running(&settings);
            for n in 1..=resets {
                if n > ready_after && life.output(b"up\n", 1, &settings) {
                    assert_eq!(life.state() == State::Ready, until_ready);
                }
                let (_, events) = life.exit(RESET, no_traps(), false, 1, &settings);
                if life.state() == State::Stopped {
                    let last = EventKind::Faulted(Reason::BootLoop);
                    assert_eq!(events, [EventKind::Reset, last]);
                    return Some(n);
                }
                assert_eq!(life.on(Trigger::Started), Action::Run);
            }
            None
        };
        assert_eq!(ends(true, 100, 100), Some(BOOTS_MAX));
        assert_eq!(ends(false, 100, 100), None);
        // Each start in which it becomes ready is the first one again.
        assert_eq!(ends(true, 100, BOOTS_MAX - 1), None);
    }

    #[test]
    fn the_run_is_over_for_a_ready_vm_until_it_is_reset() {
        let settings = settings(true);
        let mut life = running(&settings);
        assert!(!life.output(b"u", 10, &settings) && life.output(b"p\n", 20, &settings));
        assert_eq!((life.state(), life.retired(500)), (State::Ready, 20));
        assert!(life.counts(20) && !life.counts(21));
        // It showed the pattern once, and shows it again.
        assert!(!life.output(b"up\n", 20, &settings));
        assert_eq!(life.command(Command::Pause, 20, &settings), Action::Park);
        assert_eq!(life.command(Command::Resume, 20, &settings), Action::Park);
        assert_eq!(life.state(), State::Ready);
        assert_eq!(life.command(Command::Reset, 20, &settings), Action::Restart);
        assert_eq!(life.on(Trigger::Started), Action::Run);
        assert!(life.counts(21) && life.retired(1) == 21);
        assert!(life.output(b"up\n", 30, &settings));
    }

    #[test]
    fn what_ended_a_vm_is_reported() {
        let settings = settings(false);
        let ended = |code, arg| {
            let (action, events) =
                running(&settings).exit(Exit { code, arg }, no_traps(), false, 1, &settings);
            assert_eq!(action, Action::Free);
            events
        };
        assert_eq!(ended(ExitCode::PowerOff, 3), [EventKind::Halted(3)]);
        let fault = EventKind::Faulted(Reason::Fault(FaultCode::SystemFailure));
        assert_eq!(ended(ExitCode::Fault, FaultCode::SystemFailure as u32), [fault]);
        let fault = EventKind::Faulted(Reason::TrapLoop(no_traps()));
        assert_eq!(ended(ExitCode::Fault, FaultCode::TrapLoop as u32), [fault]);
        assert_eq!(ended(ExitCode::NoFrame, 0), [EventKind::Faulted(Reason::NoMemory)]);
    }

    #[test]
    fn a_stopped_vm_does_nothing_that_counts() {
        let settings = settings(false);
        let life = Life::new(false, &settings);
        assert_eq!(life.state(), State::Stopped);
        assert!(!life.counts(0) && running(&settings).counts(0));
    }
}

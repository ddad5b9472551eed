//! Pending commands: they are executed one after the other on each VM.

use std::collections::{HashMap, VecDeque};

use super::{ControlError, FleetHandle, Responder};
use crate::control::arguments::NoArguments;
use crate::control::{Call, Command, CommandError, Reply};

/// Number of commands of one VM that may be pending.
const COMMANDS_MAX: usize = 16;

/// A command, and the channel for its result.
type Pending = (Call, Option<Responder<Reply>>);

/// Pending commands of each VM. The first of each VM was sent to the backend.
#[derive(Default)]
pub struct CommandQueues(HashMap<u32, VecDeque<Pending>>);

impl CommandQueues {
    /// Queues a command, and sends it to the backend unless an earlier one is pending.
    pub fn push(
        &mut self,
        fleet: &FleetHandle,
        vm: u32,
        call: Call,
        responder: Option<Responder<Reply>>,
    ) {
        let queue = self.0.entry(vm).or_default();
        if queue.len() >= COMMANDS_MAX {
            return respond(responder, Err(ControlError::Busy(vm)));
        }
        queue.push_back((call, responder));
        if queue.len() == 1 {
            self.submit_next(fleet, vm);
        }
    }

    /// Sends a VM's first command that its state allows to the backend.
    fn submit_next(&mut self, fleet: &FleetHandle, vm: u32) {
        let Some(queue) = self.0.get_mut(&vm) else { return };
        while let Some((call, _)) = queue.front() {
            let allowed = fleet.state().allows(vm, call.command());
            match allowed.and_then(|()| Ok(fleet.backend().submit(vm, call.clone())?)) {
                Ok(()) => return,
                Err(error) => {
                    respond(queue.pop_front().and_then(|(_, responder)| responder), Err(error));
                }
            }
        }
        self.0.remove(&vm);
    }

    /// Handles the completion of a command.
    pub fn complete(
        &mut self,
        fleet: &FleetHandle,
        vm: u32,
        command: Command,
        result: Result<Reply, CommandError>,
    ) {
        let first = self.0.get_mut(&vm).and_then(VecDeque::pop_front);
        let result = fleet.state().completion(vm, command, result);
        respond(first.and_then(|(_, responder)| responder), result);
        self.submit_next(fleet, vm);
    }

    /// Adds VMs and starts them.
    pub fn add(&mut self, fleet: &FleetHandle, count: u32) -> Result<Vec<u32>, ControlError> {
        let first = fleet.state().add(count)?;
        let added: Vec<u32> = (first..first + count).collect();
        for &vm in &added {
            self.push(fleet, vm, Call::Reset(NoArguments {}), None);
        }
        Ok(added)
    }
}

/// Sends the result of a request to the requester.
pub fn respond<T>(responder: Option<Responder<T>>, result: Result<T, ControlError>) {
    // The requester may have stopped waiting.
    drop(responder.map(|responder| responder.send(result)));
}

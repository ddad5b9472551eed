//! A backend's part of a fleet, and the two ways to number its VMs.
//!
//! Everything outside of a backend numbers the VMs of the whole fleet: events, commands, the virtual
//! link, names, addresses and seeds. A backend numbers its own VMs from 0 on: a VM's number there is
//! the index of its slot, in the host's lists and in a device's memory. One is translated into
//! the other here and nowhere else, so that a fleet can be divided among backends.

use std::collections::VecDeque;
use std::ops::Range;

use super::{Event, EventKind, Settings};
use crate::machine::{Fleet, Staged, fleet};
use crate::net::{DropReason, Packet, VirtualLink};

/// The part of a fleet that a backend executes.
#[derive(Debug)]
pub struct Part {
    /// The fleet's description, with the VMs of this part.
    pub fleet: Fleet,
    /// Settings of the backend.
    pub settings: Settings,
}

impl Part {
    /// Returns the number of VMs in this part.
    pub fn count(&self) -> u32 {
        self.fleet.count
    }

    /// Returns the number of VMs in this part that start at once, which are the first.
    pub fn started(&self) -> u32 {
        self.settings.started.saturating_sub(self.fleet.first).min(self.fleet.count)
    }

    /// Returns the fleet's numbers of the VMs in this part.
    pub fn vms(&self) -> Range<u32> {
        self.fleet.first..self.fleet.first + self.fleet.count
    }

    /// Returns the fleet's number of the VM in a slot.
    pub fn vm(&self, slot: u32) -> u32 {
        debug_assert!(slot < self.fleet.count);
        self.fleet.first + slot
    }

    /// Returns the name of the VM in a slot.
    pub fn name(&self, slot: u32) -> String {
        fleet::name(self.vm(slot))
    }

    /// Returns the slot of one of the fleet's VMs; `None` for one that is not in this part.
    pub fn slot(&self, vm: u32) -> Option<u32> {
        self.vms().contains(&vm).then(|| vm - self.fleet.first)
    }

    /// Returns an event of the VM in a slot.
    pub fn event(&self, slot: u32, instret: u64, kind: EventKind) -> Event {
        Event { vm: self.vm(slot), instret, kind }
    }

    /// Returns the initial state of the VM in a slot: see [`Fleet::stage`].
    pub fn stage(&self, slot: u32, earlier: u64) -> Staged {
        self.fleet.stage(self.vm(slot), earlier)
    }

    /// Returns the virtual link of the VM in a slot.
    pub fn link(&self, slot: u32) -> VmLink<'_> {
        VmLink::new(&self.settings.link, self.vm(slot))
    }

    /// Notes on the virtual link that VMs which do not start at once have ended.
    pub fn end_unstarted(&self) {
        (self.started()..self.count()).for_each(|slot| self.link(slot).end());
    }

    /// Has `wake` called with the slot of a VM for which packets arrive.
    pub fn on_inbound(&self, wake: impl Fn(u32) + Send + Sync + 'static) {
        let first = self.fleet.first;
        self.settings.link.on_inbound(self.vms(), move |vm| wake(vm - first));
    }
}

/// The virtual link of one VM: see the methods of [`VirtualLink`].
#[derive(Clone, Copy, Debug)]
pub struct VmLink<'a> {
    link: &'a VirtualLink,
    vm: u32,
}

impl<'a> VmLink<'a> {
    /// Returns the link of VM `vm` of the fleet.
    pub fn new(link: &'a VirtualLink, vm: u32) -> Self {
        Self { link, vm }
    }

    /// Queues a packet from the VM.
    pub fn send(&self, packet: Packet) {
        self.link.send(self.vm, packet);
    }

    /// Whether packets wait for the VM.
    pub fn has_inbound(&self) -> bool {
        self.link.has_inbound(self.vm)
    }

    /// Moves at most `max` packets for the VM to the end of `to`.
    pub fn take(&self, max: usize, to: &mut VecDeque<Packet>) {
        self.link.take(self.vm, max, to);
    }

    /// Counts packets that the VM's network card has dropped.
    pub fn dropped_by_card(&self, reason: DropReason, n: u64) {
        self.link.dropped_by_card(self.vm, reason, n);
    }

    /// Notes that the VM has ended.
    pub fn end(&self) {
        self.link.end(self.vm);
    }

    /// Notes that the VM starts, even if it had ended.
    pub fn start(&self) {
        self.link.start(self.vm);
    }

    /// Notes that the VM has started again.
    pub fn reset(&self) {
        self.link.reset(self.vm);
    }
}

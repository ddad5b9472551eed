//! Admission of inbound connections: which clients are accepted, which wait, and which connections
//! end to make room.

use std::io::{self, Write};
use std::net::Shutdown;
use std::time::Instant;

use mio::net::TcpStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::conn::{self, Conn, End};
use super::http::{self, Refusal};
use super::stack::Handle;
use super::{SWEEP, UserUplink};
use crate::net::publish::{Bound, Target};
use crate::net::{Packet, PacketSender};

/// Connections to one VM; further clients wait to be accepted. The guest's server has room for 64,
/// and closes those that wait for a request when fewer than four are left.
const TO_GUEST_MAX: usize = 48;
/// HTTP connections that have not named a VM yet.
const UNKNOWN_MAX: usize = 256;
/// Connections accepted from one port before other ports are served.
const ACCEPTS: usize = 16;
/// Guest port that the route by name leads to.
const HTTP: u16 = 80;

/// A listening socket of the host.
pub struct Listener {
    pub bound: Bound,
    /// Whether the listener is in the queue of those to accept from.
    queued: bool,
}

impl Listener {
    pub fn new(bound: Bound) -> Self {
        Self { bound, queued: false }
    }

    /// Whether a client waits to be accepted.
    fn has_client(&self) -> bool {
        let mut fds = [PollFd::new(&self.bound.listener, PollFlags::IN)];
        // If polling fails, an attempt to accept does no harm.
        !matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
    }
}

impl UserUplink {
    /// Queues a listener, to accept from it in this round.
    pub(super) fn ask(&mut self, listener: usize) {
        if let Some(entry) = self.listeners.get_mut(listener)
            && !entry.queued
        {
            entry.queued = true;
            self.accepting.push_back(listener);
        }
    }

    /// Queues the listeners that waited for the end of any connection.
    pub(super) fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        held.into_iter().for_each(|listener| self.ask(listener));
    }

    /// Queues the listeners that waited for the end of a connection of VM `vm`.
    pub(super) fn release_at(&mut self, vm: u32) {
        if let Some(Some(gateway)) = self.gateways.get_mut(vm as usize) {
            let held = std::mem::take(&mut gateway.held);
            held.into_iter().for_each(|listener| self.ask(listener));
        }
    }

    /// Makes a listener's clients wait until a connection ends that is in their way.
    fn hold(&mut self, listener: usize, target: Target) {
        match target {
            Target::Port { vm, .. } if !self.is_full() => match self.gateway(vm) {
                Some(gateway) => gateway.held.push(listener),
                None => self.held.push(listener),
            },
            _ => self.held.push(listener),
        }
    }

    /// Whether the number of connections is at its limit.
    fn is_full(&self) -> bool {
        self.free.is_empty() && self.conns.len() >= self.conns_max
    }

    /// Whether one more connection may be accepted.
    pub(super) fn has_room(&self, target: Target) -> bool {
        let has_room = match target {
            Target::ByName => self.unknown < UNKNOWN_MAX,
            Target::Port { vm, .. } => self.has_room_at(vm),
        };
        has_room && !self.is_full()
    }

    fn has_room_at(&self, vm: u32) -> bool {
        let gateway = self.gateways.get(vm as usize).and_then(Option::as_ref);
        gateway.is_none_or(|gateway| gateway.conns.len() - gateway.opened < TO_GUEST_MAX)
    }

    /// Returns the connection among `slots` that was idle longest, if that was long enough to make
    /// room.
    fn most_idle(&self, slots: impl Iterator<Item = usize>, now: Instant) -> Option<usize> {
        let since = |slot: usize| Some((self.conns[slot].as_ref()?.idle_since(now)?, slot));
        slots.filter_map(since).min().map(|(_, slot)| slot)
    }

    /// Returns the connection in the way of a client for `target` that was idle longest, if that
    /// was long enough to make room.
    fn in_the_way(&self, target: Target, now: Instant) -> Option<usize> {
        let unknown =
            |&slot: &usize| matches!(&self.conns[slot], Some(Conn { end: End::Unknown(_), .. }));
        match target {
            _ if self.is_full() => self.most_idle(0..self.conns.len(), now),
            Target::ByName => self.most_idle((0..self.conns.len()).filter(unknown), now),
            Target::Port { vm, .. } => self.most_idle(self.conns_at(vm, false), now),
        }
    }

    /// Returns the connections of VM `vm` that the guest has opened, or those that clients have.
    fn conns_at(&self, vm: u32, by_guest: bool) -> impl Iterator<Item = usize> {
        let gateway = self.gateways.get(vm as usize).and_then(Option::as_ref);
        let slots = gateway.map(|gateway| &gateway.conns[..]).unwrap_or_default();
        slots.iter().copied().filter(move |&slot| {
            let opened = |conn: &Conn| matches!(conn.end, End::Guest { opened: true, .. });
            self.conns[slot].as_ref().is_some_and(|conn| opened(conn) == by_guest)
        })
    }

    /// Makes room for a guest that wants one more connection than it may open. An idle connection
    /// is ended, and the guest's next attempt succeeds; without one, the connection is refused.
    pub(super) fn make_room_from(&mut self, vm: u32, packet: Packet, now: Instant) {
        if let Some(slot) = self.most_idle(self.conns_at(vm, true), now) {
            self.oust(slot);
        } else if let Some(gateway) = self.gateway(vm) {
            gateway.stack.push(packet);
        }
    }

    /// Ends a connection in favour of others. Its slot is free once the guest has been notified.
    fn oust(&mut self, slot: usize) {
        let Some(conn) = &mut self.conns[slot] else { return };
        conn.oust();
        match conn.end {
            End::Unknown(_) => {
                self.unknown -= 1;
                self.forget(slot);
            }
            End::Guest { vm, handle, .. } => {
                if let Some(gateway) = self.gateway(vm) {
                    gateway.stack.get(handle).abort();
                }
                self.touch(vm);
            }
        }
    }

    /// Accepts from a listener, a limited number; clients wait where there is no room for them.
    pub(super) fn accept(&mut self, listener: usize, now: Instant, out: &PacketSender<'_>) {
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        entry.queued = false;
        let target = entry.bound.target;
        for _ in 0..ACCEPTS {
            if !self.has_room(target) {
                match self.in_the_way(target, now) {
                    // The next client causes an event.
                    Some(_) if !self.listeners[listener].has_client() => return,
                    Some(slot) => self.oust(slot),
                    None => {}
                }
            }
            if !self.has_room(target) {
                return self.hold(listener, target);
            }
            match self.listeners[listener].bound.listener.accept() {
                Ok((stream, _)) => match target {
                    Target::Port { vm, .. } if out.has_ended(vm) => conn::reset(stream),
                    _ => self.welcome(stream, target, now),
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The client has disconnected already.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    tracing::warn!("cannot accept connections: {e}");
                    self.sweep_at.get_or_insert(now + SWEEP);
                    return self.held.push(listener);
                }
            }
        }
        self.ask(listener);
    }

    pub(super) fn welcome(&mut self, stream: TcpStream, target: Target, now: Instant) {
        match target {
            Target::ByName => {
                let conn = Conn::new(stream, End::Unknown(Vec::new()), now);
                if self.keep(conn, now).is_some() {
                    self.unknown += 1;
                }
            }
            Target::Port { vm, port } => {
                let Some(handle) = self.connect(vm, port) else { return };
                let end =
                    End::Guest { vm, handle, first: Vec::new(), opened: false, connecting: false };
                match self.keep(Conn::new(stream, end, now), now) {
                    Some(slot) => self.attach(vm, slot),
                    None => self.discard(vm, handle),
                }
            }
        }
    }

    /// Opens a connection to a port of a VM.
    fn connect(&mut self, vm: u32, port: u16) -> Option<Handle> {
        self.gateway(vm)?;
        let gateway = self.gateways.get_mut(vm as usize)?.as_mut()?;
        gateway.stack.connect(port, &mut self.spare)
    }

    /// Reads more of a request that has not named a VM.
    pub(super) fn read_head(&mut self, slot: usize, now: Instant, out: &PacketSender<'_>) {
        let count = self.options.count;
        let Some(conn) = &mut self.conns[slot] else { return };
        let read = conn.read_head(http::HEAD_MAX);
        let End::Unknown(head) = &mut conn.end else { return };
        let routed = match (read, http::route(head, count)) {
            (Ok(()), Ok(None)) => return,
            (Err(_), Ok(None)) => None,
            (_, Ok(Some(vm))) => Some(Ok((vm, std::mem::take(head)))),
            (_, Err(refusal)) => Some(Err(refusal)),
        };
        self.unknown -= 1;
        let attached = match routed {
            Some(Ok((vm, _))) if out.has_ended(vm) => Err(Some(Refusal::Ended)),
            Some(Ok((vm, head))) => self.attach_by_name(slot, vm, head, now),
            Some(Err(refusal)) => Err(Some(refusal)),
            None => Err(None),
        };
        if let Err(refusal) = attached {
            let stream = self.conns[slot].as_mut().and_then(|conn| conn.stream.as_mut());
            if let (Some(refusal), Some(stream)) = (refusal, stream) {
                // The client may have disconnected already.
                let _ = stream.write_all(&refusal.response());
                let _ = stream.shutdown(Shutdown::Write);
            }
            self.forget(slot);
        }
    }

    fn attach_by_name(
        &mut self,
        slot: usize,
        vm: u32,
        first: Vec<u8>,
        now: Instant,
    ) -> Result<(), Option<Refusal>> {
        if !self.has_room_at(vm) {
            // The guest can take one connection more until the old one's end reaches it.
            match self.in_the_way(Target::Port { vm, port: HTTP }, now) {
                Some(silent) if silent != slot => self.oust(silent),
                _ => return Err(Some(Refusal::Busy)),
            }
        }
        let handle = self.connect(vm, HTTP).ok_or(None)?;
        if let Some(conn) = &mut self.conns[slot] {
            conn.end = End::Guest { vm, handle, first, opened: false, connecting: false };
        }
        self.attach(vm, slot);
        Ok(())
    }
}

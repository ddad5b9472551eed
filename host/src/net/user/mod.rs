//! The `user` uplink: user-mode networking (NAT), without privileges and without an interface of
//! the host. Each guest is alone on a network with its gateway, a TCP/IP stack in this program that
//! is made when it is first needed. Connections to published ports of the host continue as
//! connections of the gateway to the guest; a guest may open connections to the ports of the host
//! that the user allows.

mod accept;
mod conn;
mod http;
mod options;
mod packets;
mod stack;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use mio::event::{Event, Source};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use self::accept::Listener;
use self::conn::{Conn, End};
pub use self::options::{HostPorts, Options};
use self::packets::{Fate, Opening};
pub use self::packets::{dhcp_answer, greeting};
use self::stack::{Handle, Spare, Stack};
use super::connector::ConnectError;
use super::publish::{Target, connections_max};
use super::{DropReason, InboundConnection, Packet, PacketSender, Uplink, WAKER};

/// Connections to the host that one VM may have open.
const FROM_GUEST_MAX: usize = 32;
/// Interval at which connections are checked for time-outs.
const SWEEP: Duration = Duration::from_secs(1);

/// The host's end of a VM's link: a TCP/IP stack, and the connections of that VM.
struct Gateway {
    stack: Stack,
    /// The VM's connections, by slot.
    conns: Vec<usize>,
    /// Number of those connections that the guest opened.
    opened: usize,
    /// Packet with which the guest asks for one connection more than it may open.
    excess: Option<Packet>,
    /// Listeners that wait until one of the VM's connections ends.
    held: Vec<usize>,
    /// Whether the VM is in the list of those to be served.
    dirty: bool,
    /// When the VM is to be served next.
    wake_at: Option<Instant>,
    /// Timer of the VM, which is not later than `wake_at`.
    alarm: Option<Instant>,
}

/// The `user` uplink.
pub struct UserUplink {
    options: Options,
    listeners: Vec<Listener>,
    /// Listeners with connections to accept.
    accepting: VecDeque<usize>,
    /// Listeners that wait until any connection ends.
    held: Vec<usize>,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    conns_max: usize,
    unknown: usize,
    gateways: Vec<Option<Box<Gateway>>>,
    spare: Spare,
    dirty: Vec<u32>,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    sweep_at: Option<Instant>,
    registry: Option<Registry>,
    /// Number of VMs whose stack failed.
    failures: u32,
}

impl UserUplink {
    /// Returns an uplink over ports that are already bound.
    pub fn new(mut options: Options) -> Self {
        let bound = std::mem::take(&mut options.bound);
        Self {
            conns_max: connections_max(bound.len()),
            gateways: (0..options.count).map(|_| None).collect(),
            listeners: bound.into_iter().map(Listener::new).collect(),
            options,
            accepting: VecDeque::new(),
            held: Vec::new(),
            conns: Vec::new(),
            free: Vec::new(),
            unknown: 0,
            spare: Spare::default(),
            dirty: Vec::new(),
            timers: BinaryHeap::new(),
            sweep_at: None,
            registry: None,
            failures: 0,
        }
    }

    fn token(&self, slot: usize) -> Token {
        Token(WAKER.0 + 1 + self.listeners.len() + slot)
    }

    fn gateway(&mut self, vm: u32) -> Option<&mut Gateway> {
        let mac = self.options.macs.of(vm);
        let gateway = self.gateways.get_mut(vm as usize)?;
        let new = || {
            let stack = Stack::new(mac);
            Box::new(Gateway {
                stack,
                conns: Vec::new(),
                opened: 0,
                excess: None,
                held: Vec::new(),
                dirty: false,
                wake_at: None,
                alarm: None,
            })
        };
        Some(gateway.get_or_insert_with(new))
    }

    /// Adds a VM to those served in this round.
    fn touch(&mut self, vm: u32) {
        if let Some(Some(gateway)) = self.gateways.get_mut(vm as usize)
            && !gateway.dirty
        {
            gateway.dirty = true;
            self.dirty.push(vm);
        }
    }

    /// Registers a connection and its stream; `None` when there are too many.
    fn keep(&mut self, conn: Conn, now: Instant) -> Option<usize> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.conns.len() < self.conns_max => {
                self.conns.push(None);
                self.conns.len() - 1
            }
            None => return None,
        };
        let token = self.token(slot);
        self.conns[slot] = Some(conn);
        let conn = self.conns[slot].as_mut();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = match (&self.registry, conn.and_then(|c| c.stream.as_mut())) {
            (Some(registry), Some(stream)) => stream.register(registry, token, interest),
            _ => Err(io::ErrorKind::NotConnected.into()),
        };
        if registered.is_err() {
            self.conns[slot] = None;
            self.free.push(slot);
            return None;
        }
        self.sweep_at.get_or_insert(now + SWEEP);
        Some(slot)
    }

    /// Removes a connection, and lets listeners that waited for that accept again.
    fn forget(&mut self, slot: usize) {
        self.conns[slot] = None;
        self.free.push(slot);
        self.release();
    }

    fn attach(&mut self, vm: u32, slot: usize) {
        if let Some(gateway) = self.gateway(vm) {
            gateway.conns.push(slot);
        }
        self.touch(vm);
    }

    fn discard(&mut self, vm: u32, handle: Handle) {
        if let Some(Some(gateway)) = self.gateways.get_mut(vm as usize) {
            gateway.stack.remove(handle, &mut self.spare);
        }
    }

    /// Opens a connection from a guest to a port of the host. Its stack handles the guest's packet
    /// afterwards, and refuses the connection if no socket was made for it here.
    fn open(&mut self, vm: u32, opening: Opening, out: &PacketSender<'_>) {
        if !self.options.host_ports.contains(opening.to) {
            return out.dropped(vm, DropReason::Unreachable);
        }
        if self.gateway(vm).is_none() {
            return;
        }
        let Some(Some(gateway)) = self.gateways.get_mut(vm as usize) else { return };
        let Some(handle) = gateway.stack.accept(opening, &mut self.spare) else { return };
        let now = Instant::now();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, opening.to));
        let end = End::Guest { vm, handle, first: Vec::new(), opened: true, connecting: true };
        let slot = match TcpStream::connect(address) {
            Ok(stream) => {
                // If this fails, bytes are only a little late.
                let _ = stream.set_nodelay(true);
                self.keep(Conn::new(stream, end, now), now)
            }
            Err(_) => None,
        };
        match slot {
            Some(slot) => {
                if let Some(gateway) = self.gateway(vm) {
                    gateway.opened += 1;
                }
                self.attach(vm, slot);
            }
            None => {
                self.discard(vm, handle);
                out.dropped(vm, DropReason::Connections);
            }
        }
    }

    /// Serves a VM: relays its connections, runs its stack, and sends it packets.
    fn serve(&mut self, vm: u32, now: Instant, out: &mut PacketSender<'_>) {
        let Some(Some(gateway)) = self.gateways.get_mut(vm as usize) else { return };
        gateway.dirty = false;
        if let Some(packet) = gateway.excess.take() {
            self.make_room_from(vm, packet, now);
        }
        let Some(Some(gateway)) = self.gateways.get_mut(vm as usize) else { return };
        let (stack, conns, spare) = (&mut gateway.stack, &mut self.conns, &mut self.spare);
        stack.receive(now);
        for &slot in &gateway.conns {
            if let Some(conn) = &mut conns[slot]
                && let End::Guest { handle, .. } = conn.end
            {
                conn.pump(stack.get(handle), now);
            }
        }
        let wake_at = stack.send(vm, now, out);
        let mut over = Vec::new();
        gateway.conns.retain(|&slot| {
            let Some(Conn { stream: None, end: End::Guest { handle, .. }, .. }) = &conns[slot]
            else {
                return true;
            };
            let done = stack.is_over(*handle);
            if done {
                stack.remove(*handle, spare);
                over.push(slot);
            }
            !done
        });
        gateway.wake_at = wake_at;
        self.set_alarm(vm);
        for slot in over {
            self.close(vm, slot);
        }
    }

    /// Sets a VM's timer, unless one is set that expires early enough.
    fn set_alarm(&mut self, vm: u32) {
        if let Some(Some(gateway)) = self.gateways.get_mut(vm as usize)
            && let Some(at) = gateway.wake_at
            && gateway.alarm.is_none_or(|alarm| at < alarm)
        {
            gateway.alarm = Some(at);
            self.timers.push(Reverse((at, vm)));
        }
    }

    /// Adds the VMs whose timers have expired to those to be served.
    fn ring(&mut self, now: Instant) {
        while let Some(&Reverse((at, vm))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            let Some(Some(gateway)) = self.gateways.get_mut(vm as usize) else { continue };
            if gateway.alarm != Some(at) {
                continue;
            }
            gateway.alarm = None;
            if gateway.wake_at.is_some_and(|at| at <= now) {
                self.touch(vm);
            } else {
                self.set_alarm(vm);
            }
        }
    }

    /// Removes a connection of a VM whose socket is gone.
    fn close(&mut self, vm: u32, slot: usize) {
        let opened =
            matches!(&self.conns[slot], Some(Conn { end: End::Guest { opened: true, .. }, .. }));
        if let Some(Some(gateway)) = self.gateways.get_mut(vm as usize) {
            gateway.opened -= usize::from(opened);
        }
        self.release_at(vm);
        self.forget(slot);
    }

    /// Ends connections that have timed out.
    fn sweep(&mut self, now: Instant, out: &PacketSender<'_>) {
        for slot in 0..self.conns.len() {
            let Some(conn) = &mut self.conns[slot] else { continue };
            let End::Guest { vm, handle, .. } = conn.end else {
                if conn.is_stale(now) {
                    conn.reset();
                    self.unknown -= 1;
                    self.forget(slot);
                }
                continue;
            };
            let Some(Some(gateway)) = self.gateways.get_mut(vm as usize) else { continue };
            let unanswered = gateway.stack.is_unanswered(handle, now);
            if !unanswered && !conn.is_stale(now) {
                // The VM may have a connection that is idle for long enough to make room.
                self.release_at(vm);
                continue;
            }
            conn.reset();
            // A guest that does not acknowledge the end either is not waited for.
            if gateway.stack.get(handle).is_open() {
                if unanswered {
                    out.dropped(vm, DropReason::Unanswered);
                }
                gateway.stack.get(handle).abort();
                self.touch(vm);
            } else {
                gateway.stack.remove(handle, &mut self.spare);
                gateway.conns.retain(|&other| other != slot);
                self.close(vm, slot);
            }
        }
        self.release();
        let busy = self.conns.len() > self.free.len() || !self.accepting.is_empty();
        self.sweep_at = busy.then(|| now + SWEEP);
    }

    /// Breaks a VM's connections and gives it a new gateway.
    fn clear(&mut self, vm: u32) {
        let Some(gateway) = self.gateways.get_mut(vm as usize).and_then(Option::take) else {
            return;
        };
        for slot in gateway.conns {
            if let Some(conn) = &mut self.conns[slot] {
                conn.reset();
            }
            self.forget(slot);
        }
        gateway.held.into_iter().for_each(|listener| self.ask(listener));
    }

    /// Runs `f` so that a panic in the stack, which would be a bug, ends only the connections of
    /// the guest that caused it.
    fn guarded(
        &mut self,
        vm: u32,
        out: &mut PacketSender<'_>,
        f: impl FnOnce(&mut Self, &mut PacketSender<'_>),
    ) {
        if catch_unwind(AssertUnwindSafe(|| f(self, out))).is_err() {
            tracing::error!("vm{vm}: its network stack failed; its connections are closed");
            self.failures += 1;
            self.clear(vm);
        }
    }
}

impl Uplink for UserUplink {
    fn register(&mut self, registry: &Registry) -> io::Result<()> {
        for (i, entry) in self.listeners.iter_mut().enumerate() {
            let token = Token(WAKER.0 + 1 + i);
            let listener = &mut entry.bound.listener;
            // Accepted connections inherit the option.
            rustix::net::sockopt::set_tcp_nodelay(&*listener, true)?;
            listener.register(registry, token, Interest::READABLE)?;
        }
        self.registry = Some(registry.try_clone()?);
        Ok(())
    }

    fn transmit(&mut self, vm: u32, packet: Packet, out: &mut PacketSender<'_>) {
        match packets::inspect(&packet, self.options.macs.of(vm), self.options.peers.as_ref()) {
            Fate::Stack(opening) => self.guarded(vm, out, |this, out| {
                let Some(gateway) = this.gateway(vm) else { return };
                if opening.is_some() && gateway.opened >= FROM_GUEST_MAX {
                    gateway.excess = Some(packet);
                    out.dropped(vm, DropReason::Connections);
                    return this.touch(vm);
                }
                if let Some(opening) = opening {
                    this.open(vm, opening, out);
                }
                if let Some(gateway) = this.gateway(vm) {
                    gateway.stack.push(packet);
                    this.touch(vm);
                }
            }),
            Fate::Answer(answer) => out.send(vm, answer),
            Fate::Drop(reason, answer) => {
                out.dropped(vm, reason);
                if let Some(answer) = answer {
                    out.send(vm, answer);
                }
            }
            Fate::Ignore => {}
        }
    }

    fn ready(&mut self, event: &Event, out: &mut PacketSender<'_>) {
        let Some(at) = event.token().0.checked_sub(WAKER.0 + 1) else { return };
        let Some(slot) = at.checked_sub(self.listeners.len()) else { return self.ask(at) };
        let Some(Some(conn)) = self.conns.get_mut(slot) else { return };
        conn.ending |= event.is_read_closed() || event.is_error();
        conn.readable |= event.is_readable() || conn.ending;
        conn.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        match conn.end {
            End::Guest { vm, .. } => self.touch(vm),
            End::Unknown(_) => self.read_head(slot, Instant::now(), out),
        }
    }

    fn poll(&mut self, now: Instant, out: &mut PacketSender<'_>) -> Option<Instant> {
        for _ in 0..self.accepting.len() {
            if let Some(listener) = self.accepting.pop_front() {
                self.accept(listener, now, out);
            }
        }
        self.ring(now);
        let mut dirty = std::mem::take(&mut self.dirty);
        for vm in dirty.drain(..) {
            self.guarded(vm, out, |this, out| this.serve(vm, now, out));
        }
        if self.dirty.is_empty() {
            self.dirty = dirty;
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now, out);
        }
        if !self.accepting.is_empty() || !self.dirty.is_empty() {
            return Some(now);
        }
        let alarm = self.timers.peek().map(|&Reverse((at, _))| at);
        alarm.into_iter().chain(self.sweep_at).min()
    }

    fn reset(&mut self, vm: u32, _: &mut PacketSender<'_>) {
        self.clear(vm);
    }

    fn connect(&mut self, inbound: InboundConnection, now: Instant, out: &mut PacketSender<'_>) {
        let InboundConnection { vm, port, stream, answer } = inbound;
        let target = Target::Port { vm, port };
        let refused = match target {
            _ if out.has_ended(vm) => Some(ConnectError::Ended),
            _ if !self.has_room(target) => Some(ConnectError::Busy),
            _ => None,
        };
        if refused.is_none() {
            self.welcome(stream, target, now);
        }
        // If the requester is gone, the next read finds out.
        let _ = answer.send(refused.map_or(Ok(()), Err));
    }
}

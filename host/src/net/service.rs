//! The network thread: waits for events, and passes messages of the link and readiness of sockets
//! to the uplink.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use mio::{Events, Poll, Waker};
use rustix::time::{ClockId, clock_gettime};

use super::link::Message;
use super::{Connector, InboundConnection, NetError, Uplink, VirtualLink, WAKER};

/// Messages that are handled before sockets are polled again.
const MESSAGES: usize = 1024;
/// Socket events that are handled before messages are fetched again.
const EVENTS: usize = 1024;
/// Shortest time to sleep: a timer that expires sooner is polled for.
const NAP_MIN: Duration = Duration::from_micros(20);

/// The running network. Dropping it ends the thread and closes its sockets.
#[derive(Debug)]
pub struct Network {
    link: Arc<VirtualLink>,
    thread: Option<JoinHandle<Duration>>,
    connector: Connector,
}

impl Network {
    /// Starts the network thread.
    pub fn start(link: Arc<VirtualLink>, mut uplink: Box<dyn Uplink>) -> Result<Self, NetError> {
        let poll = Poll::new().map_err(NetError::Start)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(NetError::Start)?);
        uplink.register(poll.registry()).map_err(NetError::Start)?;
        let (sender, inbound) = unbounded();
        let connector = Connector::new(sender, Arc::clone(&waker));
        link.on_outbound(move || {
            // Waking fails only when the thread has ended.
            let _ = waker.wake();
        });
        let mut service = Service { link: Arc::clone(&link), uplink, poll, inbound };
        let work = move || {
            if let Err(error) = service.run() {
                tracing::error!("the network has stopped: {error}");
            }
            let used = clock_gettime(ClockId::ThreadCPUTime);
            Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
        };
        let builder = thread::Builder::new().name("network".to_owned());
        let thread = builder.spawn(work).map_err(NetError::Start)?;
        Ok(Self { link, thread: Some(thread), connector })
    }

    /// Returns the connector for this program's own connections to VMs.
    pub fn connector(&self) -> Connector {
        self.connector.clone()
    }

    /// Stops the thread. Returns the processor time that it used.
    pub fn stop(mut self) -> Duration {
        self.end()
    }

    fn end(&mut self) -> Duration {
        self.link.stop();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(used)) => used,
            Some(Err(_)) => {
                tracing::error!("the network thread ended in a panic");
                Duration::ZERO
            }
            None => Duration::ZERO,
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.end();
    }
}

struct Service {
    link: Arc<VirtualLink>,
    uplink: Box<dyn Uplink>,
    poll: Poll,
    inbound: Receiver<InboundConnection>,
}

impl Service {
    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut messages = VecDeque::with_capacity(MESSAGES);
        let mut wake_at = None;
        loop {
            match self.poll.poll(&mut events, self.timeout(wake_at)) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            let mut out = self.link.packet_sender();
            for event in events.iter().filter(|event| event.token() != WAKER) {
                self.uplink.ready(event, &mut out);
            }
            self.link.messages(MESSAGES, &mut messages);
            let more = messages.len() == MESSAGES;
            for message in messages.drain(..) {
                match message {
                    Message::Packet(vm, packet) => self.uplink.transmit(vm, packet, &mut out),
                    Message::Reset(vm) => self.uplink.reset(vm, &mut out),
                    Message::Stop => return Ok(()),
                }
            }
            let now = Instant::now();
            for inbound in self.inbound.try_iter() {
                self.uplink.connect(inbound, now, &mut out);
            }
            wake_at = self.uplink.poll(now, &mut out);
            if more {
                wake_at = Some(now);
            }
        }
    }

    fn timeout(&self, wake_at: Option<Instant>) -> Option<Duration> {
        let left = wake_at?.saturating_duration_since(Instant::now());
        Some(if left < NAP_MIN { Duration::ZERO } else { left })
    }
}

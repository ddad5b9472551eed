//! A connection of the `user` uplink: relays bytes between a socket of the host and one of the
//! guest's TCP/IP stack.

use std::io::{self, Read};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use rustix::net::SendFlags;
use smoltcp::socket::tcp::{Socket, State};

use super::stack::Handle;

/// Time limit for a client to name the VM that it wants, and for the host's end of a guest's
/// connection to be established.
const PENDING_MAX: Duration = Duration::from_secs(30);
/// Time limit for a client's first byte when other clients wait for its place.
const GRACE: Duration = Duration::from_secs(2);
/// Idle time after which a connection gives way to others that wait.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// A connection.
pub struct Conn {
    /// Socket of the host. `None` when it is closed and the guest's end is not yet.
    pub stream: Option<TcpStream>,
    /// The guest's end.
    pub end: End,
    /// Whether the stream may have bytes to read.
    pub readable: bool,
    /// Whether the stream's readable bytes end with the end of the stream.
    pub ending: bool,
    /// Whether the stream may take bytes.
    pub writable: bool,
    /// Whether the host's end has sent everything.
    eof: bool,
    /// Whether the host's end knows that the guest has sent everything.
    shut: bool,
    /// Whether the connection was closed in favour of others.
    ousted: bool,
    /// Whether any byte was relayed.
    spoken: bool,
    /// When the last byte was relayed.
    touched: Instant,
}

/// The guest's end of a connection.
pub enum End {
    /// Not known yet: the host's end sends an HTTP request that names the VM.
    Unknown(Vec<u8>),
    /// A socket of VM `vm`'s TCP/IP stack.
    Guest {
        /// Number of the VM.
        vm: u32,
        /// Handle of the socket.
        handle: Handle,
        /// Bytes to send to the guest first.
        first: Vec<u8>,
        /// Whether the guest opened the connection.
        opened: bool,
        /// Whether the host's end is still connecting.
        connecting: bool,
    },
}

fn again(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Whether the guest has sent everything on its side of the connection.
fn said_all(state: State) -> bool {
    matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait)
}

/// Closes a stream with a TCP reset.
pub fn reset(stream: TcpStream) {
    // Without this option the other end would see an orderly close.
    let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
}

impl Conn {
    /// Returns a new connection.
    pub fn new(stream: TcpStream, end: End, now: Instant) -> Self {
        Self {
            stream: Some(stream),
            end,
            readable: false,
            ending: false,
            writable: true,
            eof: false,
            shut: false,
            ousted: false,
            spoken: false,
            touched: now,
        }
    }

    /// Whether the connection was ousted, or has timed out before it was established. An
    /// established one lasts for as long as both ends want, whether or not they send anything.
    pub fn is_stale(&self, now: Instant) -> bool {
        let pending = matches!(self.end, End::Unknown(_) | End::Guest { connecting: true, .. });
        let late = now.saturating_duration_since(self.touched) > PENDING_MAX;
        self.ousted || (pending && late)
    }

    /// Returns since when the connection is idle, if that is long enough for others to get its
    /// place. It is so soon if a client opened it and has sent nothing. Bytes of a client count
    /// even if the guest has not received them; a request that names no VM yet does not.
    pub fn idle_since(&self, now: Instant) -> Option<Instant> {
        let by_client = !matches!(self.end, End::Guest { opened: true, .. });
        let silent = by_client && !self.spoken && !self.readable && self.stream.is_some();
        let limit = if silent { GRACE } else { IDLE_MAX };
        let late = now.saturating_duration_since(self.touched) > limit;
        (late && !self.ousted).then_some(self.touched)
    }

    /// Closes the host's end in favour of other clients; the guest's end follows.
    pub fn oust(&mut self) {
        self.ousted = true;
        self.reset();
    }

    /// Closes the host's end with a TCP reset.
    pub fn reset(&mut self) {
        if let Some(stream) = self.stream.take() {
            reset(stream);
        }
    }

    /// Reads more of an HTTP request's head, at most until `max` bytes are there. An error, or the
    /// end of the stream, before it is complete ends the connection.
    pub fn read_head(&mut self, max: usize) -> io::Result<()> {
        let (Some(stream), End::Unknown(head)) = (&mut self.stream, &mut self.end) else {
            return Ok(());
        };
        let mut buffer = [0; 2048];
        while self.readable && head.len() < max {
            let room = buffer.len().min(max - head.len());
            match stream.read(&mut buffer[..room]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // Progress does not extend the time limit: the head has to be complete in time.
                Ok(n) => head.extend_from_slice(&buffer[..n]),
                Err(e) if again(&e) => self.readable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Relays as many bytes as possible both ways.
    pub fn pump(&mut self, socket: &mut Socket<'_>, now: Instant) {
        if self.stream.is_none() {
            return;
        }
        if let End::Guest { connecting: true, .. } = self.end {
            return self.connect(socket);
        }
        let moved = self.carry_out(socket).and_then(|a| Ok(a | self.carry_in(socket)?));
        match moved {
            Ok(true) => (self.spoken, self.touched) = (true, now),
            Ok(false) => {}
            Err(_) => {
                socket.abort();
                self.reset();
            }
        }
        if self.eof && self.shut {
            self.stream = None;
        }
    }

    /// Checks whether the host's end, which a guest opened, is connected.
    fn connect(&mut self, socket: &mut Socket<'_>) {
        let (Some(stream), End::Guest { connecting, .. }) = (&self.stream, &mut self.end) else {
            return;
        };
        let failed = matches!(stream.take_error(), Ok(Some(_)) | Err(_));
        if failed || socket.state() == State::Closed {
            socket.abort();
            self.stream = None;
        } else if stream.peer_addr().is_ok() {
            *connecting = false;
            socket.pause_synack(false);
        }
    }

    fn carry_out(&mut self, socket: &mut Socket<'_>) -> io::Result<bool> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        let mut moved = false;
        while self.writable && socket.can_recv() {
            // The end is sent with the last bytes, in one segment, so that the reader learns of it
            // at once.
            let last = (said_all(socket.state()) && !self.shut).then(|| socket.recv_queue());
            let written = socket.recv(|bytes| {
                let more = last == Some(bytes.len());
                let flags = if more { SendFlags::MORE } else { SendFlags::empty() };
                match rustix::net::send(&*stream, bytes, flags | SendFlags::NOSIGNAL) {
                    Ok(n) => (n, Ok(n)),
                    Err(e) => (0, Err(e.into())),
                }
            });
            match written.map_err(io::Error::other)? {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => moved = true,
                Err(e) if again(&e) => self.writable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if !socket.can_recv() {
            match socket.state() {
                state if said_all(state) && !self.shut => {
                    // The host's end may be gone already, which the next read finds out.
                    let _ = stream.shutdown(Shutdown::Write);
                    self.shut = true;
                }
                // The socket closed while one of the ends was still open.
                State::Closed => return Err(io::ErrorKind::ConnectionReset.into()),
                _ => {}
            }
        }
        Ok(moved)
    }

    fn carry_in(&mut self, socket: &mut Socket<'_>) -> io::Result<bool> {
        let (Some(stream), End::Guest { first, .. }) = (&mut self.stream, &mut self.end) else {
            return Ok(false);
        };
        let mut moved = false;
        if !first.is_empty() && socket.can_send() {
            let n = socket.send_slice(first).map_err(io::Error::other)?;
            first.drain(..n);
            moved = true;
        }
        while self.readable && !self.eof && first.is_empty() && socket.can_send() {
            let read = socket.send(|room| match stream.read(room) {
                Ok(n) => (n, Ok((n, n < room.len()))),
                Err(e) => (0, Err(e)),
            });
            match read.map_err(io::Error::other)? {
                Ok((0, _)) => self.eof = true,
                Ok((_, short)) => {
                    moved = true;
                    // A short read ends with an event for the next bytes, unless the stream is
                    // ending.
                    self.readable = !short || self.ending;
                }
                Err(e) if again(&e) => self.readable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.eof && first.is_empty() && socket.may_send() {
            // The host's end has finished, so delaying acknowledgements would only delay the
            // guest's end.
            socket.set_ack_delay(None);
            socket.close();
        }
        Ok(moved)
    }
}

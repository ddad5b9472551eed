//! One connection: a socket of the host on one side, one of a guest's stack on the other, and the
//! bytes between them.

use std::io::{self, Read};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use rustix::net::SendFlags;
use smoltcp::socket::tcp::{Socket, State};

use super::stack::Handle;

/// Time for a client to say which VM it wants, and for the host's end of a guest's connection to
/// come about.
const PENDING_MAX: Duration = Duration::from_secs(30);
/// Time for a client's first word when others wait for its place.
const GRACE: Duration = Duration::from_secs(2);
/// Time between two words when others wait.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// A connection.
pub struct Conn {
    /// The host's end. None when it is closed and the guest's is not yet.
    pub stream: Option<TcpStream>,
    /// The guest's end.
    pub end: End,
    /// The stream may have something to read.
    pub readable: bool,
    /// The last that can be read is its end.
    pub ending: bool,
    /// It may take something.
    pub writable: bool,
    /// It has said all it has to say.
    eof: bool,
    /// It was told that the guest has.
    shut: bool,
    /// It has to go.
    ousted: bool,
    /// Some byte was moved.
    spoken: bool,
    /// When the last one was.
    touched: Instant,
}

/// The guest's end.
pub enum End {
    /// Not known yet: the host's end sends an HTTP request that names it.
    Unknown(Vec<u8>),
    /// A socket of VM `vm`'s stack.
    Guest {
        /// Which VM.
        vm: u32,
        /// Its socket.
        handle: Handle,
        /// What the guest is sent first.
        first: Vec<u8>,
        /// The guest asked for the connection.
        opened: bool,
        /// The host's end is not connected yet.
        connecting: bool,
    },
}

fn again(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Whether the guest has ended its side of the connection.
fn said_all(state: State) -> bool {
    matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait)
}

/// Closes a stream as one that broke.
pub fn reset(stream: TcpStream) {
    // Without it the other end is told that all is well.
    let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
}

impl Conn {
    /// A new connection.
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

    /// Whether it has had its time. A connection between two ends that are there lasts for as long
    /// as they want it to, whether or not they say anything.
    pub fn is_stale(&self, now: Instant) -> bool {
        let pending = matches!(self.end, End::Unknown(_) | End::Guest { connecting: true, .. });
        let late = now.saturating_duration_since(self.touched) > PENDING_MAX;
        self.ousted || (pending && late)
    }

    /// Returns since when nobody says anything, if that is long enough for others to get its place.
    /// That is soon if a client began it and nobody has said a word: what a client has said counts
    /// also when the guest has not heard it; a request that names no VM yet does not.
    pub fn idle_since(&self, now: Instant) -> Option<Instant> {
        let by_client = !matches!(self.end, End::Guest { opened: true, .. });
        let silent = by_client && !self.spoken && !self.readable && self.stream.is_some();
        let patience = if silent { GRACE } else { IDLE_MAX };
        let late = now.saturating_duration_since(self.touched) > patience;
        (late && !self.ousted).then_some(self.touched)
    }

    /// Closes the host's end, for the sake of other clients; the rest follows.
    pub fn oust(&mut self) {
        self.ousted = true;
        self.reset();
    }

    /// Closes the host's end as a connection that broke.
    pub fn reset(&mut self) {
        if let Some(stream) = self.stream.take() {
            reset(stream);
        }
    }

    /// Reads more of an HTTP request: at most until `max` bytes are there. An error, or the end,
    /// before it is whole ends the connection.
    pub fn read_head(&mut self, max: usize) -> io::Result<()> {
        let (Some(stream), End::Unknown(head)) = (&mut self.stream, &mut self.end) else {
            return Ok(());
        };
        let mut buffer = [0; 2048];
        while self.readable && head.len() < max {
            let room = buffer.len().min(max - head.len());
            match stream.read(&mut buffer[..room]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // Not that it goes on and on counts, but that it is whole in time.
                Ok(n) => head.extend_from_slice(&buffer[..n]),
                Err(e) if again(&e) => self.readable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Moves bytes both ways as far as they go.
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

    /// Looks whether the host's end, which a guest asked for, is there.
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
            // Whoever reads the last bytes learns at once, from the same segment, that they are.
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
                    // The host's end may have gone, which is found out by reading.
                    let _ = stream.shutdown(Shutdown::Write);
                    self.shut = true;
                }
                // Not as it should: one of the ends is open still.
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
                    // What comes next is told by another event, unless it has been already.
                    self.readable = !short || self.ending;
                }
                Err(e) if again(&e) => self.readable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.eof && first.is_empty() && socket.may_send() {
            // Nobody waits for more from this end, so the guest's last word need not either.
            socket.set_ack_delay(None);
            socket.close();
        }
        Ok(moved)
    }
}

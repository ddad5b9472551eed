//! Connections from this program itself to ports of VMs, by way of the uplink.
//!
//! A visitor's stream is one end of a connection of this process with itself, over loopback, so
//! that the uplink has to do with sockets only, and no port is open for others meanwhile.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use mio::Waker;
use tokio::sync::oneshot;

/// The network thread answers within some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where the two ends of a visitor's connection meet: at an address of loopback that guests, which
/// may be allowed any port of 127.0.0.1, are never connected to.
const MEETING: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Others may try to be first at the port that the two ends meet at.
const TRIES: u32 = 16;

/// Somebody at the door.
#[derive(Debug)]
pub struct Visit {
    /// The VM that the visitor wants to see.
    pub vm: u32,
    /// The port.
    pub port: u16,
    /// The visitor's stream.
    pub stream: mio::net::TcpStream,
    /// Told whether the visitor is let in.
    pub answer: oneshot::Sender<Result<(), VisitError>>,
}

/// Why a visitor is not let in.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// The VM has ended, or was never started.
    #[error("it does not run")]
    Ended,
    /// It has as many connections as it may have.
    #[error("it has too many connections")]
    Busy,
    /// Nothing here leads to VMs.
    #[error("the network does not answer")]
    Nowhere,
    /// The system refuses a connection.
    #[error("no connection can be made")]
    Io(#[from] io::Error),
}

/// The door to the VMs of a network.
#[derive(Clone, Debug)]
pub struct Door {
    visits: Sender<Visit>,
    waker: Arc<Waker>,
}

impl Door {
    pub(super) fn new(visits: Sender<Visit>, waker: Arc<Waker>) -> Self {
        Self { visits, waker }
    }

    /// Opens a connection to a port of a VM. That the uplink takes it does not mean that the VM
    /// does: a VM that refuses it closes it.
    pub async fn open(&self, vm: u32, port: u16) -> Result<TcpStream, VisitError> {
        let (ours, theirs) = pair()?;
        let (answer, answered) = oneshot::channel();
        let stream = mio::net::TcpStream::from_std(theirs);
        // A network that has gone drops the question.
        let _ = self.visits.send(Visit { vm, port, stream, answer });
        self.waker.wake()?;
        let answered = tokio::time::timeout(PATIENCE, answered).await;
        answered.ok().and_then(Result::ok).ok_or(VisitError::Nowhere)??;
        Ok(ours)
    }
}

/// The two ends of a connection of this process with itself.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((MEETING, 0))?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let name = ours.local_addr()?;
    for _ in 0..TRIES {
        let (theirs, peer) = listener.accept()?;
        if peer == name {
            for end in [&ours, &theirs] {
                end.set_nodelay(true)?;
                end.set_nonblocking(true)?;
            }
            return Ok((ours, theirs));
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn two_ends_are_of_one_connection() {
        let (mut ours, mut theirs) = pair().unwrap();
        ours.set_nonblocking(false).unwrap();
        theirs.set_nonblocking(false).unwrap();
        ours.write_all(b"hi").unwrap();
        let mut bytes = [0; 2];
        theirs.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hi");
        assert_ne!(theirs.local_addr().unwrap().ip(), Ipv4Addr::LOCALHOST);
    }
}

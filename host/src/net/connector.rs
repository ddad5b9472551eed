//! Inbound connections from this program to ports of VMs, by way of the uplink, for the API's proxy.
//!
//! The stream of an inbound connection is one end of a loopback connection of this process with
//! itself, so that the uplink handles nothing but sockets, and no port is open for other programs
//! meanwhile.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use mio::Waker;
use tokio::sync::oneshot;

/// Time limit for the network thread, which replies within some milliseconds.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Address at which the two ends of a connection meet: a loopback address that guests are never
/// connected to, because they may be allowed any port of 127.0.0.1.
const PAIR_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Number of attempts: other programs may try to be first at the port where the two ends meet.
const TRIES: u32 = 16;

/// An inbound connection to a port of a VM.
#[derive(Debug)]
pub struct InboundConnection {
    /// Number of the VM.
    pub vm: u32,
    /// Port of the VM.
    pub port: u16,
    /// The uplink's end of the connection.
    pub stream: mio::net::TcpStream,
    /// Receives whether the connection was accepted.
    pub answer: oneshot::Sender<Result<(), ConnectError>>,
}

/// Why an inbound connection is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The VM has ended, or was never started.
    #[error("it does not run")]
    Ended,
    /// The VM has as many connections as it may have.
    #[error("it has too many connections")]
    Busy,
    /// The network has no way to VMs' ports, or has ended.
    #[error("the network does not answer")]
    Nowhere,
    /// The host refuses the loopback connection.
    #[error("no connection can be made")]
    Io(#[from] io::Error),
}

/// Connector to the VMs' ports: opens inbound connections.
#[derive(Clone, Debug)]
pub struct Connector {
    inbound: Sender<InboundConnection>,
    waker: Arc<Waker>,
}

impl Connector {
    pub(super) fn new(inbound: Sender<InboundConnection>, waker: Arc<Waker>) -> Self {
        Self { inbound, waker }
    }

    /// Opens a connection to a port of a VM. It succeeds when the uplink takes the connection,
    /// which does not mean that the VM does: a VM that refuses it closes it.
    pub async fn connect(&self, vm: u32, port: u16) -> Result<TcpStream, ConnectError> {
        let (ours, theirs) = pair()?;
        let (answer, answered) = oneshot::channel();
        let stream = mio::net::TcpStream::from_std(theirs);
        // A network thread that has ended drops the request.
        let _ = self.inbound.send(InboundConnection { vm, port, stream, answer });
        self.waker.wake()?;
        let answered = tokio::time::timeout(REPLY_TIMEOUT, answered).await;
        answered.ok().and_then(Result::ok).ok_or(ConnectError::Nowhere)??;
        Ok(ours)
    }
}

/// Returns the two ends of a connection of this process with itself.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((PAIR_IP, 0))?;
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

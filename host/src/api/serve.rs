//! Connections of clients: a bound on how many there are, and on the time for a request's head.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::socket::Keep;

/// Connections at a time, of each kind of client.
const CONNECTIONS_MAX: usize = 1024;
/// A request's head must be there after so long; connections rest no longer than that.
const HEAD_TIME: Duration = Duration::from_secs(30);
const HEAD_MAX: usize = 64 << 10;
/// A client that takes nothing for so long, though there is something for it, is gone.
const STALL_MAX: Duration = Duration::from_secs(60);
/// When the system has no file left for a connection.
const AGAIN: Duration = Duration::from_millis(100);

/// The address of the API cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has it.
    #[error("{0} is taken by another program; choose another address: --listen {ip}:PORT", ip = .0.ip())]
    Taken(SocketAddr),
    /// A port below 1024, mostly.
    #[error("{0} needs privileges; choose a port from 1024 on: --listen")]
    Privileged(SocketAddr),
    /// Any other reason.
    #[error("cannot listen on {0}")]
    Io(SocketAddr, #[source] io::Error),
}

/// A bound address.
#[derive(Debug)]
pub struct Listener {
    socket: std::net::TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds an address; with `or_next`, the next ports when it is taken.
    pub fn bind(address: SocketAddr, or_next: bool) -> Result<Self, BindError> {
        const TRIES: u16 = 64;
        let tries = if or_next { TRIES } else { 1 };
        let ports = (0..tries).filter_map(|i| address.port().checked_add(i));
        for port in ports {
            let address = SocketAddr::new(address.ip(), port);
            match std::net::TcpListener::bind(address) {
                Ok(socket) => {
                    let address = socket.local_addr().unwrap_or(address);
                    return Ok(Self { socket, address });
                }
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(BindError::Privileged(address));
                }
                Err(e) => return Err(BindError::Io(address, e)),
            }
        }
        Err(BindError::Taken(address))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn into_tokio(self) -> io::Result<TcpListener> {
        self.socket.set_nonblocking(true)?;
        TcpListener::from_std(self.socket)
    }
}

/// Serves clients at an address, for ever.
pub async fn tcp(listener: TcpListener, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                // Should these fail, bytes are a little late, and clients that stop reading stay.
                let _ = stream.set_nodelay(true);
                let _ = set_tcp_user_timeout(&stream, STALL_MAX.as_millis() as u32);
                tokio::spawn(connection(stream, router.clone(), permit));
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// The same on the socket, which goes with it.
pub async fn unix(listener: UnixListener, _keep: Keep, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, router.clone(), permit))),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

async fn connection<S, P>(stream: S, router: Router, permit: P)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_MAX);
    let service = TowerToHyperService::new(router);
    // A client that goes away, or says nonsense, is no news.
    let _ = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    drop(permit);
}

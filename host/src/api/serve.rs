//! Serves HTTP connections, with limits on their number, and on the size and time of a request's
//! head.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::clients::Clients;
use super::error::ApiError;
use super::socket::Keep;
use crate::net::listen;

/// Number of connections of authenticated clients, at the address and on the socket.
pub const CONNECTIONS_MAX: usize = 1024;
/// Time limit for a request's head, and for an idle connection.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Largest head of a request, in bytes.
pub const HEAD_MAX: usize = 64 << 10;
/// Time after which a client that takes no data is disconnected.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Delay after an accept failed for lack of file descriptors.
const AGAIN: Duration = Duration::from_millis(100);

/// Why the address of the API cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program uses the address.
    #[error("{0} is taken by another program; choose another address: --listen {ip}:PORT", ip = .0.ip())]
    Taken(SocketAddr),
    /// The port needs privileges: it is below 1024, mostly.
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
    /// Binds an address. With `or_next`, tries the next ports when the port is in use.
    pub fn bind(address: SocketAddr, or_next: bool) -> Result<Self, BindError> {
        const TRIES: u16 = 64;
        let tries = if or_next { TRIES } else { 1 };
        let ports = (0..tries).filter_map(|i| address.port().checked_add(i));
        for port in ports {
            let address = SocketAddr::new(address.ip(), port);
            match listen(address) {
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

    /// Returns the address that is listened at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn into_tokio(self) -> io::Result<TcpListener> {
        self.socket.set_nonblocking(true)?;
        TcpListener::from_std(self.socket)
    }
}

/// Serves clients at a TCP address, for ever.
pub async fn tcp(listener: TcpListener, router: Router) {
    let clients = Clients::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // If these fail, bytes are a little late, and clients that stop reading are not
                // disconnected.
                let _ = stream.set_nodelay(true);
                let _ = set_tcp_user_timeout(&stream, STALL_MAX.as_millis() as u32);
                let client = clients.admit(Instant::now());
                let gone = Arc::clone(&client.gone);
                let served = connection(stream, router.clone(), client);
                tokio::spawn(async move {
                    tokio::select! {
                        () = served => {}
                        () = gone.notified() => {}
                    }
                });
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Serves clients on a Unix socket, for ever. The socket's file is removed at the end.
pub async fn unix(listener: UnixListener, _keep: Keep, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                drop(tokio::spawn(connection(stream, router.clone(), Arc::new(permit))));
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Serves one connection. Its requests have `client` among their extensions.
async fn connection<S, C>(stream: S, router: Router, client: C)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    C: Clone + Send + Sync + 'static,
{
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(2 * HEAD_MAX);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(client.clone());
        router.call(request)
    });
    // A client that disconnects or violates the protocol is not worth a message.
    let _ = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

/// Refuses requests with a long head, with a response that says so. hyper refuses them without one,
/// and beyond its buffer at a size that depends on how they arrive.
pub async fn short_head(request: Request, next: Next) -> Result<Response, ApiError> {
    const AROUND_LINE: usize = "  HTTP/1.1\r\n\r\n".len();
    const AROUND_FIELD: usize = ": \r\n".len();
    let line = request.method().as_str().len() + request.uri().to_string().len() + AROUND_LINE;
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + AROUND_FIELD);
    if line + fields.sum::<usize>() > HEAD_MAX {
        return Err(ApiError::LongHead);
    }
    Ok(next.run(request).await)
}

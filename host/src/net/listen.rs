//! Listening sockets of the host, with a long backlog.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// Backlog: clients that may wait to be accepted; the host may allow fewer (`net.core.somaxconn`).
/// The standard library and mio use 128. When more clients come at once, the kernel drops the SYNs
/// of the rest, which are then sent again a second later.
const BACKLOG: i32 = 4096;

/// Returns a socket that listens at an address.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // The socket listens already; the call only raises the backlog.
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};
    use std::time::Duration;

    use super::*;

    /// More clients than the usual backlog of 128, such as those of 256 browser tabs.
    const CLIENTS: usize = 300;
    /// A client whose SYN was dropped connects a second later, unless it is dropped again, which
    /// it is here: nobody accepts.
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn clients_are_connected_before_anybody_accepts_them() {
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
        let clients = most.trim().parse().unwrap_or(CLIENTS).min(CLIENTS);
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let connected: Vec<TcpStream> = (0..clients)
            .map_while(|_| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).ok())
            .collect();
        assert_eq!(connected.len(), clients);
    }
}

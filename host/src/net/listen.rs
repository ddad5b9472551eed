//! Sockets of this host that clients connect to.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// Clients that may wait to be accepted; the system may allow fewer (`net.core.somaxconn`). The
/// standard library and mio ask for 128. When more clients than that come at once, the system drops
/// the SYNs of those beyond, and they are sent again a second later.
const BACKLOG: i32 = 4096;

/// Listens at an address.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // It listens already; this only lets more clients wait.
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};
    use std::time::Duration;

    use super::*;

    /// More clients than 128 that come at once, in 256 pages for example.
    const CLIENTS: usize = 300;
    /// A client whose SYN was dropped connects a second later, unless it is dropped again, which
    /// it is here: nobody accepts.
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn clients_are_connected_before_anybody_accepts_them() {
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
        let clients = most.trim().parse().unwrap_or(CLIENTS).min(CLIENTS);
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let connected: Vec<TcpStream> = (0..clients)
            .map_while(|_| TcpStream::connect_timeout(&address, PATIENCE).ok())
            .collect();
        assert_eq!(connected.len(), clients);
    }
}

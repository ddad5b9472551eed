//! Published ports: ports of this host that lead to VMs. All are bound before anything boots, so
//! that a port in use is reported at once.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use mio::net::TcpListener;
use rustix::process::{Resource, getrlimit};

use super::user::HostPorts;
use super::{NetError, listen};
use crate::host;

/// `--publish BASE:PORT`: port BASE + i of the host's loopback address leads to port PORT of VM i.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Publish {
    /// Host port of VM 0.
    pub base: u16,
    /// Port in each VM.
    pub port: u16,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<u16>() {
            Ok(port @ 1..) => Ok(port),
            _ => Err(format!("'{text}' is no port: a number from 1 to 65535")),
        };
        let (base, port) =
            text.split_once(':').ok_or("write HOSTPORT:GUESTPORT, such as 4000:80")?;
        Ok(Self { base: number(base)?, port: number(port)? })
    }
}

/// Target of a listening socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// A port of a VM.
    Port {
        /// Number of the VM.
        vm: u32,
        /// Port of the VM.
        port: u16,
    },
    /// Port 80 of the VM that an HTTP request names.
    ByName,
}

/// A published port, bound.
#[derive(Debug)]
pub struct Bound {
    /// The listening socket.
    pub listener: TcpListener,
    /// Target of its connections.
    pub target: Target,
}

/// Files and sockets that the program needs besides connections.
const RESERVED: u64 = 128;
/// Smallest number of connections to leave room for.
const CONNECTIONS_MIN: u64 = 256;

/// Binds all ports for `count` VMs. `http` is the port of the route by name. The ports in `open`,
/// which guests may reach, must not lead to other guests.
pub fn bind(
    count: u32,
    publish: &[Publish],
    http: Option<u16>,
    open: &HostPorts,
) -> Result<Vec<Bound>, NetError> {
    let mut wanted: BTreeMap<u16, (Target, String)> = BTreeMap::new();
    let mut add = |port: u16, target: Target, by: String| match wanted.get(&port) {
        Some((_, other)) => Err(NetError::Overlap { port, a: other.clone(), b: by }),
        None => {
            wanted.insert(port, (target, by));
            Ok(())
        }
    };
    for &Publish { base, port } in publish {
        let by = format!("--publish {base}:{port}");
        let last = u64::from(base) + u64::from(count) - 1;
        if last > u16::MAX.into() {
            let fits = u32::from(u16::MAX - base) + 1;
            return Err(NetError::TooManyPorts { by, count, last, fits });
        }
        for (vm, at) in (0..count).zip(base..=u16::MAX) {
            add(at, Target::Port { vm, port }, by.clone())?;
        }
    }
    if let Some(http) = http {
        add(http, Target::ByName, format!("--publish-http {http}"))?;
    }
    for (&port, (_, by)) in &wanted {
        open.refuse((Ipv4Addr::LOCALHOST, port).into(), by)?;
    }
    allow_files(wanted.len() as u64)?;
    let bind = |(port, (target, by))| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = listen(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(TcpListener::from_std(listener))
        });
        match listener {
            Ok(listener) => Ok(Bound { listener, target }),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                Err(NetError::PortTaken { by, address })
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Err(NetError::Privileged { by, address })
            }
            Err(source) => Err(NetError::Bind { by, address, source }),
        }
    };
    wanted.into_iter().map(bind).collect()
}

/// Raises the limit of open files. Returns an error if that is not enough for `ports` and some
/// connections.
fn allow_files(ports: u64) -> Result<(), NetError> {
    let needed = ports + RESERVED + CONNECTIONS_MIN;
    match host::raise_open_files() {
        Some(limit) if limit < needed => Err(NetError::Files { limit, needed }),
        _ => Ok(()),
    }
}

/// Returns how many connections the limit of open files leaves room for, besides `ports` ports.
pub fn connections_max(ports: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let left = limit.saturating_sub(ports as u64 + RESERVED);
    // A connection needs one socket of the host: its other end is in user space.
    left.clamp(CONNECTIONS_MIN, 16_384) as usize
}

/// Binds a free host port for port `port` of each of `count` VMs.
#[cfg(test)]
pub fn bind_any(count: u32, port: u16) -> Vec<Bound> {
    let bind = |vm| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        Bound { listener, target: Target::Port { vm, port } }
    };
    (0..count).map(bind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the first of `len` ports that were free a moment ago.
    fn free_range(len: u16) -> u16 {
        (20_000..60_000u16)
            .step_by(97)
            .find(|&base| {
                let all: Result<Vec<_>, _> = (base..base + len)
                    .map(|p| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, p)))
                    .collect();
                all.is_ok()
            })
            .expect("free ports")
    }

    #[test]
    fn a_publish_is_two_ports() {
        assert_eq!("4000:80".parse(), Ok(Publish { base: 4000, port: 80 }));
        for text in ["4000", "0:80", "80:0", "x:80", "4000:65536", "1:2:3", ":", "-1:80", "4000:"] {
            assert!(text.parse::<Publish>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_vm_has_its_port_and_the_route_by_name_one_for_all() {
        let base = free_range(4);
        let publish = Publish { base, port: 80 };
        let bound = bind(3, &[publish], Some(base + 3), &HostPorts::default()).unwrap();
        let targets: Vec<Target> = bound.iter().map(|b| b.target).collect();
        let port = |vm| Target::Port { vm, port: 80 };
        assert_eq!(targets, [port(0), port(1), port(2), Target::ByName]);
        assert_eq!(bound[2].listener.local_addr().unwrap().port(), base + 2);
    }

    #[test]
    fn what_cannot_be_bound_is_refused_with_the_reason() {
        let refused = |count, publish: &[Publish], http| {
            let open = "7000-7010".parse().unwrap();
            bind(count, publish, http, &open).expect_err("refused").to_string()
        };
        let at = |base| Publish { base, port: 80 };
        let many = refused(1000, &[at(65_000)], None);
        assert!(many.contains("65999") && many.contains("536 machines"), "{many}");
        let overlap = refused(8, &[at(4000), at(4004)], None);
        assert!(overlap.contains("4004") && overlap.contains("--publish 4000:80"), "{overlap}");
        let same = refused(8, &[at(4000)], Some(4007));
        assert!(same.contains("--publish-http 4007"), "{same}");
        let within = refused(8, &[at(6998)], None);
        assert!(within.contains("127.0.0.1:7000, which is --publish 6998:80 of"), "{within}");
        let by_name = refused(1, &[], Some(7010));
        assert!(by_name.contains("127.0.0.1:7010, which is --publish-http 7010"), "{by_name}");
        let base = free_range(2);
        let _taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, base + 1)).unwrap();
        let taken = refused(2, &[at(base)], None);
        assert!(taken.contains(&format!("127.0.0.1:{}", base + 1)), "{taken}");
    }
}

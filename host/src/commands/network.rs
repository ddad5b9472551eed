//! From options to an uplink.

use crate::cli::{BackendChoice, NetChoice, Networking};
use crate::exit::Error;
use crate::net::user::{self, HostPorts, UserUplink};
use crate::net::{Uplink, publish};

/// What the network cards are connected to; ports are bound here, before anything else is done.
pub fn uplink(
    options: &Networking,
    count: u32,
    backend: BackendChoice,
) -> Result<Option<Box<dyn Uplink>>, Error> {
    let lockstep = backend == BackendChoice::Lockstep;
    let choice = options.net.unwrap_or(if lockstep { NetChoice::None } else { NetChoice::User });
    let wanted = [
        ("--publish", !options.publish.is_empty()),
        ("--publish-http", options.publish_http.is_some()),
        ("--net-host-ports", options.net_host_ports != HostPorts::default()),
    ];
    match choice {
        NetChoice::User if lockstep => {
            Err(Error::Usage("--backend lockstep has no network: frames come at any time".into()))
        }
        NetChoice::User => {
            let bound = publish::bind(count, &options.publish, options.publish_http)?;
            let host_ports = options.net_host_ports.clone();
            let macs = options.net_mac.into();
            Ok(Some(Box::new(UserUplink::new(user::Options { count, bound, host_ports, macs }))))
        }
        NetChoice::None => match wanted.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Error::Usage(format!("{flag} needs --net user"))),
            None => Ok(None),
        },
    }
}

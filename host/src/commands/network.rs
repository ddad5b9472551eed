//! Network set-up: makes a fleet's network from the options.

use std::net::SocketAddr;

use crate::api::Reach;
use crate::cli::{BackendChoice, NetChoice, Networking};
use crate::exit::Error;
use crate::net::addresses::Addresses;
use crate::net::pcap::{Capture, Summary};
use crate::net::switch::{Rules, Switch};
use crate::net::tap::TapUplink;
use crate::net::user::{self, HostPorts, UserUplink};
use crate::net::{NetError, Network, Uplink, VirtualLink, publish};

/// Returns the uplink of the network cards. This binds ports and makes interfaces, before anything
/// else happens except that the control API was bound to `api`.
pub fn uplink(
    options: &Networking,
    count: u32,
    backend: BackendChoice,
    api: Option<SocketAddr>,
) -> Result<Option<Box<dyn Uplink>>, Error> {
    let lockstep = backend == BackendChoice::Lockstep;
    let choice = match options.net.clone() {
        Some(choice) => choice,
        None if lockstep => NetChoice::None,
        None => NetChoice::User,
    };
    if choice != NetChoice::None && lockstep {
        let why = "--backend lockstep has no network: packets come at any time";
        return Err(Error::Usage(why.into()));
    }
    check(options, &choice)?;
    if let Some(vm) = options.pcap_vm.iter().find(|&&vm| vm >= count) {
        let why = format!("--pcap-vm {vm}: the last of {count} machines is {}", count - 1);
        return Err(Error::Usage(why));
    }
    let macs = options.net_mac.into();
    let addresses = || Addresses::new(options.net_subnet, count, macs).map_err(NetError::from);
    let mesh = options.net_mesh.then(addresses).transpose()?;
    let (uplink, addresses): (Box<dyn Uplink>, _) = match choice {
        NetChoice::None => return Ok(None),
        NetChoice::User => {
            let host_ports = options.net_host_ports.clone();
            if let Some(api) = api {
                host_ports.refuse(api, "the dashboard and control API")?;
            }
            let (publish, http) = (&options.publish, options.publish_http);
            let bound = publish::bind(count, publish, http, &host_ports)?;
            // Where the VMs have no room in the network, they have no names for each other.
            let peers = addresses().ok();
            let options = user::Options { count, bound, host_ports, macs, peers };
            (Box::new(UserUplink::new(options)), mesh)
        }
        NetChoice::Tap(name) => {
            let addresses = addresses()?;
            let tap = TapUplink::open(&name, addresses).map_err(NetError::from)?;
            (Box::new(tap), Some(addresses))
        }
    };
    let rules = Rules { mesh: options.net_mesh, rate: options.net_rate };
    Ok(Some(Box::new(Switch::new(uplink, addresses, count, rules))))
}

/// Refuses options that belong to another choice of `--net`.
fn check(options: &Networking, choice: &NetChoice) -> Result<(), Error> {
    let user = ("--net user", *choice == NetChoice::User);
    let any = ("--net user or tap", *choice != NetChoice::None);
    let given = [
        ("--publish", !options.publish.is_empty(), user),
        ("--publish-http", options.publish_http.is_some(), user),
        ("--net-host-ports", options.net_host_ports != HostPorts::default(), user),
        ("--net-mesh", options.net_mesh, any),
        ("--net-rate", options.net_rate.is_some(), any),
        ("--pcap", options.pcap.is_some(), any),
    ];
    match given.into_iter().find(|(_, given, (_, fits))| *given && !fits) {
        Some((flag, _, (need, _))) => Err(Error::Usage(format!("{flag} needs {need}"))),
        None => Ok(()),
    }
}

/// Starts the capture file of `--pcap`. This truncates the file, so it comes after everything else
/// that may refuse to start.
pub fn capture(
    options: &Networking,
    count: u32,
    link: &VirtualLink,
) -> Result<Option<Capture>, Error> {
    let Some(path) = &options.pcap else { return Ok(None) };
    let all: Vec<u32> = (0..count).collect();
    let chosen = if options.pcap_vm.is_empty() { &all } else { &options.pcap_vm };
    let capture = Capture::create(path, chosen, count).map_err(NetError::from)?;
    link.record_to(capture.recorder());
    Ok(Some(capture))
}

/// Ends the capture file. Returns what is to be printed about it.
pub fn finish(capture: Capture) -> Option<String> {
    // An error was printed when it happened.
    let Summary { written, missed } = capture.finish().ok()?;
    (missed > 0).then(|| {
        format!("the capture has {written} packets; for {missed} others writing was too slow")
    })
}

/// Returns how this program connects to the VMs' ports.
pub fn reach(options: &Networking, network: Option<&Network>) -> Reach {
    match (network, &options.net) {
        (None, _) => Reach::None,
        (Some(_), Some(NetChoice::Tap(_))) => Reach::Addresses,
        (Some(network), _) => Reach::Connector(network.connector()),
    }
}

/// Returns the VMs' outside addresses, if they have any.
pub fn addresses(options: &Networking, count: u32) -> Option<Addresses> {
    let tap = matches!(options.net, Some(NetChoice::Tap(_)));
    let addresses = Addresses::new(options.net_subnet, count, options.net_mac.into());
    addresses.ok().filter(|_| tap || options.net_mesh)
}

/// Returns a text that says which outside addresses the VMs have, if any.
pub fn places(options: &Networking, count: u32) -> Option<String> {
    let addresses = addresses(options, count)?;
    let (first, last) = (addresses.ip(0), count - 1);
    Some(match last {
        0 => format!("vm0 is {first}"),
        _ => format!("vm0 to vm{last} are {first} to {}", addresses.ip(last)),
    })
}

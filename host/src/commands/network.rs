//! Network set-up: makes a fleet's network from the options.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::api::Reach;
use crate::cli::BackendChoice;
use crate::error::Error;
use crate::machine::Macs;
use crate::net::addresses::{Addresses, Subnet};
use crate::net::pcap::{Capture, Summary};
use crate::net::switch::{Rate, Rules, Switch};
use crate::net::tap::{self, TapUplink};
use crate::net::user::{self, HostPorts, UserUplink};
use crate::net::{NetError, Network, Publish, Uplink, VirtualLink, publish};

/// How machines are connected to the outside.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct NetArgs {
    /// What the machines' network cards are connected to: nothing; published ports of this host
    /// (needs no privileges); or an interface of this host, with an address for each machine
    /// [default: user; none with --backend lockstep]
    #[arg(long, value_name = "none|user|tap[=NAME]")]
    pub net: Option<NetChoice>,
    /// Port HOST + I of 127.0.0.1 leads to port GUEST of machine I (may be given several times)
    #[arg(long, value_name = "HOST:GUEST")]
    pub publish: Vec<Publish>,
    /// Requests to this port of 127.0.0.1 go to port 80 of the machine they name:
    /// `http://vm7.localhost:PORT/`
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub publish_http: Option<u16>,
    /// Ports of 127.0.0.1 that machines reach at their gateway, 10.0.2.2; not those of this fleet
    /// itself [default: none]
    #[arg(long, value_name = "PORTS", default_value = "", hide_default_value = true)]
    #[arg(value_parser = host_ports)]
    pub net_host_ports: HostPorts,
    /// MAC addresses: the same in all machines, so that they are identical, or one for each
    #[arg(long, value_enum, default_value_t = NetMac::Same)]
    pub net_mac: NetMac,
    /// Let machines reach each other at their addresses of --net-subnet
    #[arg(long)]
    pub net_mesh: bool,
    /// Addresses of the machines as others see them: the host has the first, machine I that plus
    /// 1 + I
    #[arg(long, value_name = "NETWORK", default_value = Subnet::DEFAULT)]
    pub net_subnet: Subnet,
    /// Bits that each machine may send in a second, like 10M for 10 million [default: no limit]
    #[arg(long, value_name = "RATE")]
    pub net_rate: Option<Rate>,
    /// Record what machines send and receive, as pcapng; a named pipe needs a reader first
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// Record these machines only
    #[arg(long, value_name = "I,...", value_delimiter = ',', requires = "pcap")]
    pub pcap_vm: Vec<u32>,
}

fn host_ports(text: &str) -> Result<HostPorts, String> {
    if text.is_empty() { Ok(HostPorts::default()) } else { text.parse() }
}

/// `--net`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NetChoice {
    /// Nothing.
    None,
    /// Published ports of this host; needs no privileges.
    User,
    /// An interface of this host, of this name, with an address for each machine.
    Tap(String),
}

impl FromStr for NetChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "none" => Ok(Self::None),
            None if text == "user" => Ok(Self::User),
            None if text == "tap" => Ok(Self::Tap(tap::DEFAULT_NAME.into())),
            Some(("tap", name)) => Ok(Self::Tap(name.into())),
            _ => Err("it is none, user, tap or tap=NAME".into()),
        }
    }
}

/// `--net-mac`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum NetMac {
    /// All machines have the same
    Same,
    /// Each machine has its own
    Each,
}

impl From<NetMac> for Macs {
    fn from(mac: NetMac) -> Self {
        match mac {
            NetMac::Same => Self::Same,
            NetMac::Each => Self::Each,
        }
    }
}

/// Returns the uplink of the network cards. This binds ports and makes interfaces, before anything
/// else happens except that the control API was bound to `api`.
pub fn uplink(
    options: &NetArgs,
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
fn check(options: &NetArgs, choice: &NetChoice) -> Result<(), Error> {
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
    options: &NetArgs,
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
pub fn reach(options: &NetArgs, network: Option<&Network>) -> Reach {
    match (network, &options.net) {
        (None, _) => Reach::None,
        (Some(_), Some(NetChoice::Tap(_))) => Reach::Addresses,
        (Some(network), _) => Reach::Connector(network.connector()),
    }
}

/// Returns the VMs' outside addresses, if they have any.
pub fn addresses(options: &NetArgs, count: u32) -> Option<Addresses> {
    let tap = matches!(options.net, Some(NetChoice::Tap(_)));
    let addresses = Addresses::new(options.net_subnet, count, options.net_mac.into());
    addresses.ok().filter(|_| tap || options.net_mesh)
}

/// Returns a text that says which outside addresses the VMs have, if any.
pub fn places(options: &NetArgs, count: u32) -> Option<String> {
    let addresses = addresses(options, count)?;
    let (first, last) = (addresses.ip(0), count - 1);
    Some(match last {
        0 => format!("vm0 is {first}"),
        _ => format!("vm0 to vm{last} are {first} to {}", addresses.ip(last)),
    })
}

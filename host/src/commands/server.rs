//! API server of a fleet: binds the address for browsers and programs, and the Unix socket for
//! `pxvm`'s subcommands. Both are bound before anything boots.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;

use crate::api::access::{Access, TOKEN_MIN, new_token};
use crate::api::socket::{self, Socket};
use crate::api::{self, About, Listener, Server};
use crate::engine::FleetHandle;
use crate::error::Error;
use crate::exit::sentence;
use crate::net::VirtualLink;

/// How a fleet is observed and controlled while it runs: options of the API server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Control")]
pub struct ApiArgs {
    /// Serve the dashboard and the control API at 127.0.0.1:8080, or the next free port; without
    /// --until the fleet runs until Ctrl-C
    #[arg(long)]
    pub dashboard: bool,
    /// The same at this address; clients need a token unless it is a loopback address
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// The token, at least 16 characters [default: random and printed, where one is needed]
    #[arg(long, value_name = "TOKEN", env = "PXVM_TOKEN", hide_env_values = true)]
    #[arg(value_parser = token)]
    pub token: Option<String>,
    /// Name of the fleet, for --fleet of other commands [default: fleet-PID]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

fn token(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.len() >= TOKEN_MIN && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Err(format!("a token has {TOKEN_MIN} or more letters, digits, - and _"))
}

/// The bound address and socket of a fleet's API.
pub struct ApiServer {
    /// Name of the fleet.
    pub name: String,
    public: Option<(Listener, Access)>,
    socket: Option<Socket>,
}

impl ApiServer {
    /// Binds the address and the socket that the options name.
    pub fn bind(options: &ApiArgs) -> Result<Self, Error> {
        let name = options.name.clone();
        let name = name.unwrap_or_else(|| format!("fleet-{}", std::process::id()));
        let socket = match Socket::bind(&socket::folder(), &name) {
            Ok(socket) => Some(socket),
            // A fleet without a name of its own may run without a socket.
            Err(error) if options.name.is_none() => {
                tracing::warn!("`pxvm ps` and such will not find this fleet: {}", sentence(&error));
                None
            }
            Err(error) => return Err(error.into()),
        };
        let address = match (options.listen, options.dashboard) {
            (None, false) => return Ok(Self { name, public: None, socket }),
            (Some(address), _) => (address, false),
            (None, true) => (api::DEFAULT_ADDRESS, true),
        };
        let listener = Listener::bind(address.0, address.1)?;
        let token = match &options.token {
            None if !address.0.ip().is_loopback() => {
                Some(new_token().map_err(|e| Error::io("make up a token", e))?)
            }
            given => given.clone(),
        };
        let access = Access::new(listener.address(), token);
        Ok(Self { name, public: Some((listener, access)), socket })
    }

    /// Returns the address of the dashboard and the API.
    pub fn address(&self) -> Option<SocketAddr> {
        self.public.as_ref().map(|(listener, _)| listener.address())
    }

    /// Returns the URL of the dashboard for a browser.
    pub fn url(&self) -> Option<String> {
        self.public.as_ref().map(|(_, access)| access.url())
    }

    /// Starts to serve the fleet.
    pub fn serve(
        self,
        fleet: &Arc<FleetHandle>,
        link: &Arc<VirtualLink>,
        about: About,
    ) -> Result<Server, Error> {
        let (fleet, link) = (Arc::clone(fleet), Arc::clone(link));
        Server::start(fleet, link, about, self.public, self.socket)
            .map_err(|e| Error::io("serve the control API", e))
    }
}

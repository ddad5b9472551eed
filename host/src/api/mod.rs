//! The control API: HTTP for programs, the web dashboard for people, and a Unix socket for `pxvm`
//! itself.
//!
//! [`App`] is the state that requests work on: the fleet's [`FleetHandle`], its network, and
//! measurements. The router over it is served at the TCP address that the user chose, behind [`access`] control,
//! and on the Unix socket, which file permissions protect.

pub mod access;
mod bodies;
mod clients;
mod console;
mod error;
mod events;
mod fleet;
mod gauges;
mod metrics;
mod openapi;
mod page;
mod proxy;
mod serve;
mod snapshot;
pub mod socket;
mod tickets;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use self::access::Access;
use self::bodies::Id;
use self::error::ApiError;
use self::events::Feed;
use self::gauges::Gauges;
pub use self::serve::{BindError, Listener};
use self::tickets::Tickets;
use crate::backend::ClockSource;
use crate::control::Command;
use crate::engine::FleetHandle;
use crate::net::addresses::Addresses;
use crate::net::{Connector, Publish, VirtualLink};

/// Address of the API unless another is chosen.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Largest JSON body of a request.
const JSON_MAX: usize = 256 << 10;
/// Time limit for a response to begin.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of requests to VMs' ports that may be pending.
const CONNECTIONS_MAX: usize = 256;
/// Number of event streams.
const WATCHERS_MAX: usize = 64;

/// Facts about a fleet that do not change.
#[derive(Clone, Debug)]
pub struct About {
    /// Name of the fleet.
    pub name: String,
    /// Name of the device that runs the fleet, if it has one.
    pub device: Option<String>,
    /// Source of guest time.
    pub clock: ClockSource,
    /// How this program connects to VMs' ports.
    pub reach: Reach,
    /// Outside addresses of the VMs.
    pub addresses: Option<Addresses>,
    /// Published ports of this host.
    pub publish: Vec<Publish>,
}

/// How this program connects to VMs' ports.
#[derive(Clone, Debug)]
pub enum Reach {
    /// There is no way.
    None,
    /// By the connector of the `user` network.
    Connector(Connector),
    /// At the VMs' own addresses.
    Addresses,
}

/// State that requests work on.
pub struct App {
    fleet: Arc<FleetHandle>,
    link: Arc<VirtualLink>,
    about: About,
    gauges: Gauges,
    feed: Feed,
    connections: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
    tickets: Tickets,
}

type SharedApp = Arc<App>;

/// The running API. Dropping it ends the API.
pub struct Server {
    runtime: Option<Runtime>,
}

impl Server {
    /// Serves a fleet at an address with its access rules, and on a Unix socket, both bound
    /// already.
    pub fn start(
        fleet: Arc<FleetHandle>,
        link: Arc<VirtualLink>,
        about: About,
        public: Option<(Listener, Access)>,
        socket: Option<socket::Socket>,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("api")
            .enable_all()
            .build()?;
        let app = Arc::new(App {
            gauges: Gauges::new(Arc::clone(&fleet), Arc::clone(&link)),
            feed: Feed::default(),
            fleet,
            link,
            about,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
            tickets: Tickets::new()?,
        });
        {
            let _inside = runtime.enter();
            runtime.spawn(gauges::keep_history(Arc::clone(&app)));
            runtime.spawn(events::feed(Arc::clone(&app)));
            if let Some((listener, access)) = public {
                let guarded = access::guard(router(Arc::clone(&app)), access, Arc::clone(&app));
                runtime.spawn(serve::tcp(listener.into_tokio()?, guarded));
            }
            if let Some(socket) = socket {
                let (listener, keep) = socket.into_tokio()?;
                runtime.spawn(serve::unix(listener, keep, router(app)));
            }
        }
        Ok(Self { runtime: Some(runtime) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Response streams do not end by themselves.
            runtime.shutdown_timeout(Duration::from_millis(200));
        }
    }
}

/// Returns the routes of the commands on VMs.
fn commands() -> Router<SharedApp> {
    Command::ALL.into_iter().fold(Router::new(), |router, command| {
        let handler = move |app: State<SharedApp>, id: Id, request: Request| {
            fleet::execute(command, app, id, request)
        };
        router.route(&openapi::path_of(command), post(handler))
    })
}

/// Returns the routes; [`openapi`] describes the same.
fn router(app: SharedApp) -> Router {
    let bounded = Router::new()
        .route("/api/v1/fleet", get(fleet::fleet))
        .route("/api/v1/vms", get(fleet::vms).post(fleet::add))
        .route("/api/v1/vms/{id}", get(fleet::vm))
        .route("/api/v1/vms/{id}/ticket", get(tickets::ticket))
        .route("/api/v1/vms/{id}/snapshot", get(snapshot::snapshot))
        .route("/api/v1/vms/{id}/console", get(console::read).post(console::write))
        .route("/api/v1/vms/{id}/console/stream", get(console::follow))
        .route("/api/v1/vms/{id}/console/ws", get(console::socket))
        .route("/api/v1/input", post(console::broadcast))
        .route("/api/v1/events", get(events::events))
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(fleet::health))
        .route("/openapi.json", get(openapi::openapi))
        .route("/", get(page::index))
        .merge(commands())
        .route("/assets/{*path}", get(page::asset))
        .layer(middleware::from_fn(in_time))
        .layer(DefaultBodyLimit::max(JSON_MAX));
    Router::new()
        .route("/vms/{id}/http/{port}", get(proxy::root))
        .route("/vms/{id}/http/{port}/", get(proxy::proxy).post(proxy::proxy))
        .route("/vms/{id}/http/{port}/{*path}", get(proxy::proxy).post(proxy::proxy))
        .route("/t/{ticket}/vms/{id}/http/{port}/", get(proxy::proxy))
        .route("/t/{ticket}/vms/{id}/http/{port}/{*path}", get(proxy::proxy))
        .merge(bounded)
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(middleware::from_fn(serve::short_head))
        .with_state(app)
}

/// Limits the time until a response begins. A stream has begun, however long it is.
async fn in_time(request: Request, next: Next) -> Result<Response, ApiError> {
    tokio::time::timeout(RESPONSE_TIMEOUT, next.run(request)).await.map_err(|_| ApiError::Timeout)
}

#[cfg(test)]
mod tests;

//! The fleet and its VMs in the API: their states, and commands on them.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::bodies::{Id, JsonBody, JsonBytes, Params};
use super::error::ApiError;
use super::gauges::{Point, Row};
use super::proxy::HTTP;
use super::{App, Reach, SharedApp};
use crate::backend::ClockSource;
use crate::control::{Command, Reply, StateCounts, VmState};
use crate::engine::VmRecord;
use crate::machine::fleet::name;
use crate::net::{Counts as NetCounts, DropReason};

/// VMs in one response, at most and by default.
const LIMIT_MAX: u32 = 1000;
const LIMIT: u32 = 100;

/// Body of a response: a fleet.
#[derive(Serialize)]
pub struct FleetBody {
    name: String,
    version: &'static str,
    backend: &'static str,
    device: Option<String>,
    clock: &'static str,
    count: u32,
    capacity: u32,
    uptime_seconds: f64,
    states: StateCounts,
    instructions: u64,
    mips: f64,
    shared_frames: u32,
    private_frames: u32,
    frame_size: u32,
    network: FleetNetwork,
    history: Vec<Point>,
}

#[derive(Serialize)]
struct FleetNetwork {
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
    drops: u64,
    published: bool,
    http_port: Option<u16>,
}

/// Body of a response: a VM.
#[derive(Serialize)]
pub struct VmBody {
    id: u32,
    name: String,
    state: VmState,
    reason: Option<String>,
    instret: u64,
    mips: f64,
    resets: u32,
    ready_instret: Option<u64>,
    address: Option<String>,
    published: Vec<String>,
    network: VmNetwork,
    console_bytes: u64,
    private_frames: Option<u32>,
}

#[derive(Serialize)]
struct VmNetwork {
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
    drops: BTreeMap<&'static str, u64>,
}

impl From<NetCounts> for VmNetwork {
    fn from(counts: NetCounts) -> Self {
        let NetCounts { tx_packets, tx_bytes, rx_packets, rx_bytes, drops } = counts;
        let drops = DropReason::ALL.map(|reason| (reason.name(), drops.get(reason)));
        let drops = drops.into_iter().filter(|&(_, n)| n > 0).collect();
        Self { rx_packets, rx_bytes, tx_packets, tx_bytes, drops }
    }
}

impl App {
    /// Returns the fleet as it is now.
    pub(super) fn body(&self) -> FleetBody {
        let (count, capacity, states) = {
            let state = self.fleet.state();
            (state.count(), state.capacity(), state.counts())
        };
        let totals = self.fleet.backend().totals();
        let (history, pulse) = self.gauges.history();
        let reached = !matches!(self.about.reach, Reach::None);
        FleetBody {
            name: self.about.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            backend: self.fleet.backend().name(),
            device: self.about.device.clone(),
            clock: match self.about.clock {
                ClockSource::Instret => "instret",
                ClockSource::Host => "host",
            },
            count,
            capacity,
            uptime_seconds: super::gauges::rounded(self.fleet.started().elapsed().as_secs_f64()),
            states,
            instructions: totals.instructions,
            mips: pulse.mips,
            shared_frames: totals.shared_frames,
            private_frames: totals.private_frames,
            frame_size: emu_core::mem::FRAME_SIZE,
            network: FleetNetwork {
                rx_packets: pulse.network.rx_packets,
                rx_bytes: pulse.network.rx_bytes,
                tx_packets: pulse.network.tx_packets,
                tx_bytes: pulse.network.tx_bytes,
                drops: pulse.network.drops.total(),
                published: !self.about.publish.is_empty(),
                http_port: reached.then_some(HTTP),
            },
            history,
        }
    }

    fn describe(&self, id: u32, record: &VmRecord, row: Option<&Row>) -> VmBody {
        let published =
            self.about.publish.iter().map(|publish| {
                format!("127.0.0.1:{}->{}", u32::from(publish.base) + id, publish.port)
            });
        VmBody {
            id,
            name: name(id),
            state: record.state,
            reason: record.reason.clone(),
            instret: self.fleet.backend().instret(id),
            mips: row.map_or(0.0, |row| row.mips as f64 / 10.0),
            resets: record.resets,
            ready_instret: record.ready_instret,
            address: self.about.addresses.map(|addresses| addresses.ip(id).to_string()),
            published: published.collect(),
            network: self.link.counts(id).into(),
            console_bytes: self.fleet.consoles.written(id),
            private_frames: None,
        }
    }

    fn vm(&self, id: u32) -> Result<VmBody, ApiError> {
        let record = self.fleet.record(id)?;
        Ok(self.describe(id, &record, self.gauges.look().get(id as usize)))
    }
}

/// `GET /api/v1/fleet`
pub async fn fleet(State(app): State<SharedApp>) -> Json<FleetBody> {
    Json(app.body())
}

/// `GET /healthz`
pub async fn health(State(app): State<SharedApp>) -> Result<&'static str, ApiError> {
    let ended = || ApiError::Unavailable("the fleet has ended".to_owned());
    app.fleet.is_alive().then_some("ok").ok_or_else(ended)
}

/// Query: which VMs to list.
#[derive(Deserialize)]
pub struct VmsQuery {
    state: Option<String>,
    offset: Option<u32>,
    limit: Option<u32>,
}

/// Returns the state of a name.
pub fn state_of(name: &str) -> Result<VmState, ApiError> {
    VmState::named(name).ok_or_else(|| {
        let all = VmState::ALL.map(VmState::name).join(", ");
        ApiError::BadRequest(format!("there is no such state; these are: {all}"))
    })
}

/// Body of a response: some VMs.
#[derive(Serialize)]
pub struct VmsBody {
    total: u32,
    vms: Vec<VmBody>,
}

/// `GET /api/v1/vms`
pub async fn vms(
    State(app): State<SharedApp>,
    Params(query): Params<VmsQuery>,
) -> Result<Json<VmsBody>, ApiError> {
    let state = query.state.as_deref().map(state_of).transpose()?;
    let limit = query.limit.unwrap_or(LIMIT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::BadRequest(format!("the limit is 1 to {LIMIT_MAX}")));
    }
    let rows = app.gauges.look();
    let offset = query.offset.unwrap_or(0) as usize;
    let (total, chosen) = {
        let fleet = app.fleet.state();
        let all = || {
            let records = (0u32..).zip(fleet.records());
            records.filter(|(_, record)| state.is_none_or(|state| state == record.state))
        };
        let some = all().skip(offset).take(limit as usize);
        (all().count() as u32, some.map(|(id, record)| (id, record.clone())).collect::<Vec<_>>())
    };
    let vms = chosen.iter().map(|(id, record)| app.describe(*id, record, rows.get(*id as usize)));
    Ok(Json(VmsBody { total, vms: vms.collect() }))
}

/// `GET /api/v1/vms/{id}`
pub async fn vm(State(app): State<SharedApp>, Id(id): Id) -> Result<Json<VmBody>, ApiError> {
    app.vm(id).map(Json)
}

/// Body of a request: how many VMs to add.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    count: u32,
}

/// Body of a response: the VMs that were added.
#[derive(Serialize)]
pub struct Added {
    ids: Vec<u32>,
}

/// `POST /api/v1/vms`
pub async fn add(
    State(app): State<SharedApp>,
    JsonBody(Add { count }): JsonBody<Add>,
) -> Result<(StatusCode, Json<Added>), ApiError> {
    if count == 0 {
        return Err(ApiError::BadRequest("the count is 1 or more".to_owned()));
    }
    Ok((StatusCode::CREATED, Json(Added { ids: app.fleet.add(count).await? })))
}

/// Body of a response: a VM after a command, and what the command returned.
#[derive(Serialize)]
pub struct Executed {
    #[serde(flatten)]
    vm: VmBody,
    #[serde(skip_serializing_if = "is_none")]
    reply: Reply,
}

fn is_none(reply: &Reply) -> bool {
    *reply == Reply::None
}

/// `POST /api/v1/vms/{id}/COMMAND`
pub async fn execute(
    command: Command,
    State(app): State<SharedApp>,
    Id(id): Id,
    request: Request,
) -> Result<Json<Executed>, ApiError> {
    let arguments = match command.schema() {
        // The body of a command without arguments is ignored.
        None => Bytes::new(),
        Some(_) => JsonBytes::from_request(request, &app).await?.0,
    };
    let call = command.parse(&arguments).map_err(ApiError::json)?;
    let reply = app.fleet.execute(id, call).await?;
    Ok(Json(Executed { vm: app.vm(id)?, reply }))
}

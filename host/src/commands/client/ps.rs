//! `pxvm ps`: lists the machines of a running fleet.

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

use super::run;
use crate::cli::{FLEET_CODES, FleetArgs};
use crate::client::{Client, ClientError};
use crate::commands::printing;
use crate::control::VmState;
use crate::error::Error;
use crate::exit::{self, Code};
use crate::report::print_json;
use crate::stdio::print;

/// VMs in one response.
const PAGE: u64 = 1000;

/// `pxvm ps`.
#[derive(Debug, Args)]
#[command(
    long_about = "List the machines of a running fleet, and what each is doing.",
    after_long_help = exit::help(FLEET_CODES)
)]
pub struct Ps {
    /// Only machines in this state
    #[arg(long, value_name = "STATE")]
    #[arg(value_parser = PossibleValuesParser::new(VmState::ALL.map(VmState::name)))]
    pub state: Option<String>,
    /// Which fleet.
    #[command(flatten)]
    pub fleet: FleetArgs,
}

/// `pxvm ps`
pub fn ps(args: Ps) -> Result<Code, Error> {
    let Ps { state, fleet: FleetArgs { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    let (fleet, vms) = run(async {
        let mut fleet = client.get("/api/v1/fleet").await?;
        // The history is needed only where it is drawn.
        fleet.as_object_mut().and_then(|fleet| fleet.remove("history"));
        let state = state.map(|state| format!("&state={state}")).unwrap_or_default();
        let mut vms = Vec::new();
        loop {
            let offset = vms.len();
            let path = format!("/api/v1/vms?limit={PAGE}&offset={offset}{state}");
            let mut page = client.get(&path).await?;
            let Value::Array(some) = page["vms"].take() else {
                return Err(ClientError::Strange.into());
            };
            let last = some.is_empty();
            vms.extend(some);
            if last || vms.len() as u64 >= page["total"].as_u64().unwrap_or(0) {
                return Ok((fleet, vms));
            }
        }
    })?;
    if json {
        print_json(&json!({ "fleet": fleet, "vms": vms })).map_err(printing)?;
    } else {
        print(table(&fleet, &vms).as_bytes()).map_err(printing)?;
    }
    Ok(Code::Success)
}

fn table(fleet: &Value, vms: &[Value]) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut out = format!(
        "{}: {} of {} machines on {}, {} MIPS, up {:.0} s\n",
        text(&fleet["name"]),
        text(&fleet["count"]),
        text(&fleet["capacity"]),
        text(if fleet["device"].is_null() { &fleet["backend"] } else { &fleet["device"] }),
        text(&fleet["mips"]),
        fleet["uptime_seconds"].as_f64().unwrap_or_default(),
    );
    out += &format!(
        "{:<8} {:<8} {:>8} {:>14} {:>6} {:>8} {:>8}  {}\n",
        "NAME", "STATE", "MIPS", "INSTRUCTIONS", "RESETS", "RX", "TX", "ADDRESS"
    );
    for vm in vms {
        let published: Vec<String> =
            vm["published"].as_array().into_iter().flatten().map(text).collect();
        let mut place = published.join(" ");
        if !vm["address"].is_null() {
            place = format!("{} {place}", text(&vm["address"]));
        }
        let reason = vm["reason"].as_str().map(|reason| format!("({reason})")).unwrap_or_default();
        let line = format!(
            "{:<8} {:<8} {:>8} {:>14} {:>6} {:>8} {:>8}  {place} {reason}",
            text(&vm["name"]),
            text(&vm["state"]),
            text(&vm["mips"]),
            text(&vm["instret"]),
            text(&vm["resets"]),
            text(&vm["network"]["rx_packets"]),
            text(&vm["network"]["tx_packets"]),
        );
        out += line.trim_end();
        out.push('\n');
    }
    out
}

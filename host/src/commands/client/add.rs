//! `pxvm add`: starts more machines in a running fleet.

use clap::Args;
use serde_json::json;

use super::run;
use crate::cli::{FLEET_CODES, FleetArgs};
use crate::client::{Client, ClientError};
use crate::commands::printing;
use crate::error::Error;
use crate::exit::{self, Code};
use crate::report::print_json;
use crate::stdio::print;

/// `pxvm add`.
#[derive(Debug, Args)]
#[command(
    long_about = "Start more machines, as far as the fleet's --capacity goes.",
    after_long_help = exit::help(FLEET_CODES)
)]
pub struct Add {
    /// How many
    #[arg(value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// Which fleet.
    #[command(flatten)]
    pub fleet: FleetArgs,
}

/// `pxvm add`
pub fn add(args: Add) -> Result<Code, Error> {
    let Add { count, fleet: FleetArgs { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    let body = json!({ "count": count });
    let added = run(async { Ok(client.post("/api/v1/vms", Some(&body)).await?) })?;
    if json {
        print_json(&added).map_err(printing)?;
        return Ok(Code::Success);
    }
    let ids = added["ids"].as_array().ok_or(ClientError::Strange)?;
    let text = match &ids[..] {
        [one] => format!("vm{one} starts\n"),
        [first, .., last] => format!("vm{first} to vm{last} start\n"),
        [] => String::new(),
    };
    print(text.as_bytes()).map_err(printing)?;
    Ok(Code::Success)
}

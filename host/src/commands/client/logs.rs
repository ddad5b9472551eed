//! `pxvm logs`: prints what a machine has written to its console.

use clap::Args;
use serde_json::json;

use super::run;
use crate::cli::fleet::one;
use crate::cli::{FLEET_CODES, FleetArgs};
use crate::client::Client;
use crate::commands::printing;
use crate::error::Error;
use crate::exit::{self, Code};
use crate::report::print_json;
use crate::stdio::print;

/// `pxvm logs`.
#[derive(Debug, Args)]
#[command(
    long_about = "Print the console output of a machine: the newest 64 KiB.",
    after_long_help = exit::help(FLEET_CODES)
)]
pub struct Logs {
    /// The machine
    #[arg(value_name = "ID", value_parser = one)]
    pub id: u32,
    /// Print new output as it comes, until Ctrl-C
    #[arg(short, long, conflicts_with = "json")]
    pub follow: bool,
    /// Which fleet.
    #[command(flatten)]
    pub fleet: FleetArgs,
}

/// `pxvm logs`
pub fn logs(args: Logs) -> Result<Code, Error> {
    let Logs { id, follow, fleet: FleetArgs { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    run(async {
        if follow {
            let mut follow = client.follow(id).await?;
            while let Some(bytes) = follow.next().await {
                if !print(&bytes).map_err(printing)? {
                    break;
                }
            }
            return Ok(());
        }
        let (offset, bytes) = client.console(id).await?;
        if json {
            let text = String::from_utf8_lossy(&bytes);
            return print_json(&json!({ "id": id, "offset": offset, "text": text }))
                .map_err(printing);
        }
        print(&bytes).map(drop).map_err(printing)
    })?;
    Ok(Code::Success)
}

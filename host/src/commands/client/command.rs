//! `pxvm pause`, `resume`, `reset`, `stop`: commands on machines of a running fleet.

use axum::http::StatusCode;
use clap::Args;
use futures_util::{StreamExt, stream};
use serde_json::json;

use super::run;
use crate::cli::{FLEET_CODES, FleetArgs, VmRange, long_help};
use crate::client::{Client, ClientError};
use crate::commands::printing;
use crate::error::Error;
use crate::exit::{Code, sentence};
use crate::report::print_json;
use crate::stdio::{print, say};

const EXAMPLES: &str = "Examples:\n  \
        pxvm pause 3\n  \
        pxvm resume vm3 8-15\n  \
        pxvm reset all";

/// VMs on which commands are executed at a time.
const SIDE_BY_SIDE: usize = 32;

/// `pxvm pause` and such.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help(EXAMPLES, FLEET_CODES))]
pub struct CommandArgs {
    /// Machines: numbers, names, ranges, or all, which leaves out those that cannot
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<VmRange>,
    /// Which fleet.
    #[command(flatten)]
    pub fleet: FleetArgs,
}

/// `pxvm pause`, `resume`, `reset` and `stop`: `what` is one of these.
pub fn command(args: CommandArgs, what: &str) -> Result<Code, Error> {
    let CommandArgs { ids, fleet: FleetArgs { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    let done = run(async {
        let count = client.get("/api/v1/fleet").await?["count"].as_u64().unwrap_or(0) as u32;
        // VMs that were named must be able to execute the command; `all` means those that are.
        let mut vms = Vec::new();
        for ids in ids {
            let (range, named) = match ids {
                VmRange::All => (0..count, false),
                // A missing VM is reported once, however long the range.
                VmRange::Range(first, last) => {
                    (first..last.min(count.max(first)).saturating_add(1), true)
                }
            };
            vms.extend(range.map(|vm| (vm, named)));
        }
        vms.sort_unstable_by_key(|&(vm, named)| (vm, !named));
        vms.dedup_by_key(|&mut (vm, _)| vm);
        let act = |(vm, named): (u32, bool)| {
            let (client, path) = (&client, format!("/api/v1/vms/{vm}/{what}"));
            async move { (vm, named, client.post(&path, None).await) }
        };
        let done: Vec<_> = stream::iter(vms).map(act).buffered(SIDE_BY_SIDE).collect().await;
        Ok(done)
    })?;
    let mut code = Code::Success;
    let (mut vms, mut errors, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for (vm, named, result) in done {
        match result {
            Ok(about) => {
                if !json {
                    let state = about["state"].as_str().unwrap_or("?");
                    print(format!("vm{vm} is {state}\n").as_bytes()).map_err(printing)?;
                }
                vms.push(about);
            }
            Err(ClientError::Refused { status: StatusCode::CONFLICT, .. }) if !named => {
                skipped.push(vm);
            }
            Err(error) => {
                code = if code == Code::Success { error.code() } else { code };
                if !json {
                    say(&format!("pxvm: {}", sentence(&error)));
                }
                errors.push(json!({ "id": vm, "message": sentence(&error) }));
            }
        }
    }
    if json {
        let report = json!({ "vms": vms, "errors": errors, "skipped": skipped });
        print_json(&report).map_err(printing)?;
    } else if !skipped.is_empty() {
        let machines = if skipped.len() == 1 { "machine" } else { "machines" };
        say(&format!("pxvm: skipped {} {machines} that cannot {what} now", skipped.len()));
    }
    Ok(code)
}

//! `pxvm pause`, `resume`, `reset`, `stop`: the commands of the table ([`crate::control`]) on
//! machines of a running fleet.

use clap::{ArgMatches, Args, FromArgMatches, Subcommand};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::run;
use crate::cli::{FLEET_CODES, FleetArgs, VmRange, long_help};
use crate::client::Client;
use crate::commands::printing;
use crate::control::{Call, Command};
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

/// Which machines a command is for.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help(EXAMPLES, FLEET_CODES))]
pub struct CommandArgs {
    /// Machines: numbers, names, ranges, or all, which skips those in other states
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<VmRange>,
    /// Which fleet.
    #[command(flatten)]
    pub fleet: FleetArgs,
}

/// The subcommands of the table: `pxvm pause` and such.
#[derive(Debug)]
pub struct FleetCommand {
    args: CommandArgs,
    call: Call,
}

impl Subcommand for FleetCommand {
    fn augment_subcommands(parent: clap::Command) -> clap::Command {
        Command::ALL.into_iter().fold(parent, |parent, command| {
            let subcommand = command.augment(clap::Command::new(command.name()));
            let subcommand = CommandArgs::augment_args(subcommand);
            parent.subcommand(subcommand.about(command.row().about).long_about(None))
        })
    }

    fn augment_subcommands_for_update(parent: clap::Command) -> clap::Command {
        Self::augment_subcommands(parent)
    }

    fn has_subcommand(name: &str) -> bool {
        Command::named(name).is_some()
    }
}

impl FromArgMatches for FleetCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let found = matches.subcommand();
        let found = found.and_then(|(name, matches)| Some((Command::named(name)?, matches)));
        let (command, matches) =
            found.ok_or_else(|| clap::Error::new(clap::error::ErrorKind::InvalidSubcommand))?;
        let args = CommandArgs::from_arg_matches(matches)?;
        Ok(Self { args, call: command.from_matches(matches)? })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Executes a command on machines of a running fleet.
pub fn command(FleetCommand { args, call }: FleetCommand) -> Result<Code, Error> {
    let CommandArgs { ids, fleet: FleetArgs { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    let name = call.command().name();
    let arguments = call.command().schema().map(|_| call.arguments());
    let done = run(async {
        let count = client.get("/api/v1/fleet").await?["count"].as_u64().unwrap_or(0) as u32;
        let execute = |(vm, named): (u32, bool)| {
            let (client, arguments) = (&client, &arguments);
            let path = format!("/api/v1/vms/{vm}/{name}");
            async move { (vm, named, client.post(&path, arguments.as_ref()).await) }
        };
        let vms = stream::iter(targets(&ids, count));
        Ok(vms.map(execute).buffered(SIDE_BY_SIDE).collect::<Vec<_>>().await)
    })?;
    let mut code = Code::Success;
    let (mut vms, mut errors, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for (vm, named, result) in done {
        match result {
            Ok(about) => {
                if !json {
                    print(line(vm, &about).as_bytes()).map_err(printing)?;
                }
                vms.push(about);
            }
            Err(error) if !named && error.is_wrong_state() => skipped.push(vm),
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
        say(&format!("pxvm: skipped {} {machines} that cannot {name} now", skipped.len()));
    }
    Ok(code)
}

/// Returns the VMs that `ids` mean in a fleet of `count`, each once, and whether it was named: VMs
/// that were named must be able to execute the command, and `all` means those that are.
fn targets(ids: &[VmRange], count: u32) -> Vec<(u32, bool)> {
    let mut vms = Vec::new();
    for ids in ids {
        let (range, named) = match *ids {
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
    vms
}

/// Returns the line on a VM that has executed the command.
fn line(vm: u32, about: &Value) -> String {
    let state = about["state"].as_str().unwrap_or("?");
    let reply = match &about["reply"] {
        Value::Null => String::new(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("; {name}: {}", text(value))).collect()
        }
        other => format!("; {}", text(other)),
    };
    format!("vm{vm} is {state}{reply}\n")
}

/// Returns a value as people read it.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_is_meant_once_and_named_ones_come_before_all() {
        let targets = targets(&[VmRange::All, VmRange::Range(1, 1), VmRange::Range(1, 9)], 3);
        assert_eq!(targets, [(0, false), (1, true), (2, true), (3, true)]);
    }

    #[test]
    fn a_reply_is_told_behind_the_state() {
        let about = json!({ "state": "ready" });
        assert_eq!(line(3, &about), "vm3 is ready\n");
        let about = json!({ "state": "ready", "reply": { "path": "/a b", "size": 3 } });
        assert_eq!(line(3, &about), "vm3 is ready; path: /a b; size: 3\n");
    }

    #[test]
    fn every_command_of_the_table_is_a_subcommand() {
        let cli = FleetCommand::augment_subcommands(clap::Command::new("pxvm"));
        for command in Command::ALL {
            let subcommand = cli.find_subcommand(command.name()).unwrap();
            assert_eq!(subcommand.get_about().unwrap().to_string(), command.row().about);
            let line = ["pxvm", command.name(), "3"];
            let Ok(matches) = cli.clone().try_get_matches_from(line) else { continue };
            let parsed = FleetCommand::from_arg_matches(&matches).unwrap();
            assert_eq!(parsed.call.command(), command);
        }
        assert!(!FleetCommand::has_subcommand("boot"));
    }
}

//! Arguments of commands: one type for the command line and for JSON.
//!
//! Such a type derives `clap::Args`, `Serialize` and `Deserialize`. Its fields are named options on the
//! command line (`#[arg(long)]`), because the numbers of the VMs are the positional arguments. A field
//! that may be left out is an `Option`. `type_of` lists the types that are numbers in JSON; a field of
//! any other type is text there. Ranges that clap checks hold for the command line alone, so what
//! executes the command checks them, too.

use std::any::TypeId;

use clap::ArgAction;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The arguments of a command that has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::Args, Serialize, Deserialize)]
pub struct NoArguments {}

/// Parses arguments in JSON. Nothing stands for no arguments.
pub fn parse<A: DeserializeOwned>(json: &[u8]) -> Result<A, serde_json::Error> {
    serde_json::from_slice(if json.is_empty() { b"{}" } else { json })
}

/// Returns arguments in JSON.
pub fn to_json(arguments: &impl Serialize) -> Value {
    // Only maps with keys that are no strings cannot be written as JSON.
    serde_json::to_value(arguments).unwrap_or_default()
}

/// Returns the JSON schema of a subcommand's arguments, from what clap knows of them; `None` when
/// there are none.
pub fn schema(subcommand: &clap::Command) -> Option<Value> {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for arg in subcommand.get_arguments() {
        let mut schema = type_of(arg);
        if let Some(help) = arg.get_help() {
            schema["description"] = help.to_string().into();
        }
        properties.insert(arg.get_id().to_string(), schema);
        if arg.is_required_set() {
            required.push(arg.get_id().to_string());
        }
    }
    (!properties.is_empty()).then(|| {
        json!({
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false
        })
    })
}

fn type_of(arg: &clap::Arg) -> Value {
    let kind = arg.get_value_parser().type_id();
    let integer = |min: i64, max: u64| json!({ "type": "integer", "minimum": min, "maximum": max });
    let one = match () {
        () if matches!(arg.get_action(), ArgAction::SetTrue) => json!({ "type": "boolean" }),
        () if kind == TypeId::of::<u16>() => integer(0, u16::MAX.into()),
        () if kind == TypeId::of::<u32>() => integer(0, u32::MAX.into()),
        () if kind == TypeId::of::<u64>() => integer(0, u64::MAX),
        () if kind == TypeId::of::<i64>() => integer(i64::MIN, i64::MAX as u64),
        () if kind == TypeId::of::<f64>() => json!({ "type": "number" }),
        () => json!({ "type": "string" }),
    };
    match arg.get_action() {
        ArgAction::Append => json!({ "type": "array", "items": one }),
        _ => one,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::{Args, FromArgMatches};

    use super::*;

    #[derive(Clone, PartialEq, Debug, Args, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        /// How many
        #[arg(long, value_name = "N")]
        count: u32,
        /// Where to
        #[arg(long, value_name = "FILE")]
        to_file: Option<PathBuf>,
        /// Really
        #[arg(long)]
        #[serde(default)]
        force: bool,
    }

    fn subcommand() -> clap::Command {
        Example::augment_args(clap::Command::new("example"))
    }

    #[test]
    fn the_schema_of_arguments_is_what_clap_knows_of_them() {
        let expected = json!({
            "type": "object",
            "properties": {
                "count": {
                    "type": "integer", "minimum": 0, "maximum": u32::MAX,
                    "description": "How many"
                },
                "to_file": { "type": "string", "description": "Where to" },
                "force": { "type": "boolean", "description": "Really" },
            },
            "required": ["count"],
            "additionalProperties": false
        });
        assert_eq!(schema(&subcommand()), Some(expected));
        assert_eq!(schema(&NoArguments::augment_args(clap::Command::new("none"))), None);
    }

    #[test]
    fn arguments_are_the_same_on_the_command_line_and_in_json() {
        let line = ["example", "--count", "3", "--to-file", "x", "--force"];
        let matches = subcommand().try_get_matches_from(line).unwrap();
        let example = Example::from_arg_matches(&matches).unwrap();
        let text = to_json(&example).to_string();
        assert_eq!(parse::<Example>(text.as_bytes()).unwrap(), example);
        let least = parse::<Example>(br#"{"count": 1}"#).unwrap();
        assert_eq!(least, Example { count: 1, to_file: None, force: false });
        for wrong in ["", "{", "{}", r#"{"count": -1}"#, r#"{"count": 1, "more": 2}"#] {
            assert!(parse::<Example>(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(parse::<NoArguments>(b"").is_ok());
    }
}

//! Tests that the OpenAPI description and the guide match the router and the tables of states and
//! commands.

use std::collections::BTreeSet;

use super::openapi::{document, path_of};
use crate::control::{Command, VmState};

#[test]
fn the_description_has_the_routers_paths_and_no_others() {
    let document = document();
    let paths = document["paths"].as_object().unwrap().keys();
    let described: BTreeSet<String> = paths.cloned().collect();
    let source = include_str!("mod.rs");
    let routes = source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let routes = routes.map(|path| path.replace("{*", "{"));
    let routed: BTreeSet<String> = routes.chain(Command::ALL.map(path_of)).collect();
    assert_eq!(described, routed);
}

#[test]
fn all_references_of_the_description_lead_somewhere() {
    let document = document();
    let text = document.to_string();
    let references = text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next());
    let mut n = 0;
    for reference in references {
        assert!(document.pointer(reference).is_some(), "{reference}");
        n += 1;
    }
    assert!(n > 50);
}

#[test]
fn commands_and_states_are_described_by_their_tables() {
    let document = document();
    for command in Command::ALL {
        let post = &document["paths"][path_of(command)]["post"];
        assert_eq!(post["operationId"], command.name());
        assert_eq!(post["summary"], command.row().summary);
        let body = &post["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(body.clone(), command.schema().unwrap_or_default());
        let reply = &post["responses"]["200"]["content"]["application/json"]["schema"];
        let replied = reply["properties"]["reply"].clone();
        assert_eq!(replied, command.reply_schema().unwrap_or_default());
    }
    let states = &document["components"]["schemas"]["State"]["enum"];
    assert_eq!(*states, serde_json::json!(VmState::ALL));
}

#[test]
fn the_guide_has_all_commands_and_states() {
    let guide = include_str!("../../../docs/api.md");
    let (_, table) = guide.split_once("## States").unwrap();
    let mut lines = table.lines().filter(|line| line.starts_with('|'));
    let cells = |line: &str| -> Vec<String> {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let head = cells(lines.next().unwrap());
    assert_eq!(head[2..], Command::ALL.map(|command| command.name().to_owned()));
    let rows: Vec<_> = lines.skip(1).take(VmState::ALL.len()).map(cells).collect();
    for (row, state) in rows.iter().zip(VmState::ALL) {
        assert_eq!(row[0], state.name());
        let takes = Command::ALL.map(|command| if state.takes(command) { "yes" } else { "" });
        assert_eq!(row[2..], takes, "{}", state.name());
    }
    assert_eq!(rows.len(), VmState::ALL.len());
}

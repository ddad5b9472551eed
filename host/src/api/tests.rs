//! Tests that the OpenAPI description, the dashboard and the guide match the router and the tables of states and
//! commands.

use std::collections::BTreeSet;

use super::openapi::{document, path_of};
use super::page;
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

#[test]
fn the_dashboard_has_the_tables_and_a_look_for_each_state() {
    let module = page::tables();
    let constant = |name: &str| -> serde_json::Value {
        let (_, rest) = module.split_once(&format!("export const {name} = ")).unwrap();
        serde_json::from_str(rest.split_once(";\n").unwrap().0).unwrap()
    };
    assert_eq!(constant("STATES"), serde_json::json!(VmState::ALL));
    let names: Vec<String> = constant("COMMANDS")
        .as_array()
        .unwrap()
        .iter()
        .map(|command| command["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, Command::ALL.map(Command::name));
    let style = include_str!("page/style/base.css");
    for state in VmState::ALL {
        assert_eq!(constant(&state.name().to_ascii_uppercase()), state as u8);
        let (colour, look) = (state.name(), format!("[data-state=\"{}\"]", state.name()));
        assert!(style.matches(&format!("--{colour}: ")).count() >= 2, "{colour} in both themes");
        assert!(style.contains(&look), "{look}");
    }
}

#[test]
fn the_dashboards_modules_have_no_names_of_commands() {
    for file in ["detail.js", "api.js", "main.js", "tile.js", "grid.js", "map.js"] {
        let path = format!("{}/src/api/page/js/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        for command in Command::ALL {
            let literal = format!("\"{}\"", command.name());
            assert!(!text.contains(&literal), "{file} has {literal}");
        }
    }
}

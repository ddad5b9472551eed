//! The OpenAPI description of the API: `openapi.json`, and what the tables of states and commands
//! add to it.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

use crate::control::{Command, Row, VmState};

/// All of the description but the states and the commands.
const REST: &str = include_str!("openapi.json");

static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());

/// `GET /openapi.json`
pub async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str())
}

/// Returns the path of a command in the API.
pub fn path_of(command: Command) -> String {
    format!("/api/v1/vms/{{id}}/{}", command.name())
}

/// Returns the description.
pub fn document() -> Value {
    // A test parses the file: this cannot fail.
    let mut document: Value = serde_json::from_str(REST).unwrap_or_default();
    let vm = document["components"]["schemas"]["Vm"].clone();
    for command in Command::ALL {
        document["paths"][path_of(command)] = json!({ "post": operation(command, &vm) });
    }
    let names = VmState::ALL.map(VmState::name);
    let number = json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX });
    let counts: Map<String, Value> =
        names.into_iter().map(|name| (name.to_owned(), number.clone())).collect();
    let schemas = &mut document["components"]["schemas"];
    schemas["State"]["enum"] = json!(names);
    schemas["States"] = json!({
        "type": "object",
        "properties": counts,
        "required": names,
        "additionalProperties": false
    });
    document
}

/// Returns the description of a command. `vm` is the schema of a VM.
fn operation(command: Command, vm: &Value) -> Value {
    let Row { name, summary, takes, .. } = command.row();
    let states: Vec<&str> = takes.iter().map(|state| state.name()).collect();
    let reply = match command.reply_schema() {
        None => json!({ "$ref": "#/components/schemas/Vm" }),
        Some(schema) => with_reply(vm, schema),
    };
    let mut responses = json!({
        "200": {
            "description": "The VM now.",
            "content": { "application/json": { "schema": reply } }
        }
    });
    let mut refusals = vec!["400", "401", "403", "404", "409", "429", "503", "504"];
    let mut operation = json!({
        "operationId": name,
        "summary": summary,
        "description": format!("For VMs that are {}.", states.join(", ")),
        "parameters": [{ "$ref": "#/components/parameters/id" }],
    });
    if let Some(schema) = command.schema() {
        refusals.push("413");
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": schema } }
        });
    }
    for status in refusals {
        let reference = format!("#/components/responses/{status}");
        responses[status] = json!({ "$ref": reference });
    }
    operation["responses"] = responses;
    operation
}

/// Returns the schema of a VM with the reply of a command.
fn with_reply(vm: &Value, reply: Value) -> Value {
    let mut schema = vm.clone();
    schema["properties"]["reply"] = reply;
    if let Some(required) = schema["required"].as_array_mut() {
        required.push("reply".into());
    }
    schema
}

//! Tests that the OpenAPI description matches the router.

use std::collections::BTreeSet;

use serde_json::Value;

fn document() -> Value {
    serde_json::from_str(include_str!("openapi.json")).expect("JSON")
}

#[test]
fn the_description_has_the_routers_paths_and_no_others() {
    let document = document();
    let paths = document["paths"].as_object().unwrap().keys();
    let described: BTreeSet<String> = paths.cloned().collect();
    let source = include_str!("mod.rs");
    let routes = source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let routed: BTreeSet<String> = routes.map(|path| path.replace("{*", "{")).collect();
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

//! The web dashboard: files that are part of the program, and one that tables make.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rust_embed::{EmbeddedFile, RustEmbed};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use crate::control::{Command, Effect, VmState};
use crate::units::hex;

/// Content-Security-Policy of the dashboard: only its own origin, and no inline scripts.
const POLICY: &str = "default-src 'self'; frame-src 'self'; connect-src 'self'; \
    style-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// Files of the dashboard. A debug build reads them at each request.
#[derive(RustEmbed)]
#[folder = "src/api/page"]
struct Files;

/// Path of the module that the tables of states and commands make.
pub const TABLES: &str = "js/tables.js";

/// Returns the dashboard's module with the states and the commands.
pub fn tables() -> String {
    let states = VmState::ALL.map(VmState::name);
    let commands = Command::ALL.map(|command| {
        let row = command.row();
        json!({
            "name": row.name,
            "summary": row.summary,
            "takes": row.takes.iter().map(|&state| state as u8).collect::<Vec<_>>(),
            "stops": row.effect == Effect::Stops,
            "loses": row.loses,
            "undoes": row.undoes.map(Command::name),
            "arguments": command.schema(),
        })
    });
    let mut module = "// Made by pxvm of its tables in host/src/control/.\n".to_owned();
    module += &format!("export const STATES = {};\n", json!(states));
    for (number, name) in states.into_iter().enumerate() {
        module += &format!("export const {} = {number};\n", name.to_ascii_uppercase());
    }
    module += &format!("export const COMMANDS = {};\n", json!(commands));
    module
}

/// `GET /`
pub async fn index(headers: HeaderMap) -> Result<Response, ApiError> {
    file("index.html", &headers)
}

/// `GET /assets/...`
pub async fn asset(
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Path(path) = path.map_err(|_| ApiError::NotFound)?;
    file(&path, &headers)
}

fn file(path: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let (data, hash) = match Files::get(path) {
        Some(EmbeddedFile { data, metadata }) => (data, metadata.sha256_hash()),
        None if path == TABLES => {
            let module = tables().into_bytes();
            let hash = Sha256::digest(&module).into();
            (module.into(), hash)
        }
        None => return Err(ApiError::NotFound),
    };
    let tag = format!("\"{}\"", hex(&hash[..8]));
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let mut response = match known == Some(&*tag) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, kind(path))], data.into_owned()).into_response(),
    };
    let head = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        head.insert(header::ETAG, tag);
    }
    head.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    head.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    Ok(response)
}

/// Returns the media type of a file, by its name's extension.
fn kind(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, end)| end) {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "txt" | "md" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

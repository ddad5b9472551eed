//! Parameters of requests: numbers of VMs, queries, JSON and bytes, each with an error that says
//! what is wrong.

use axum::body::{Bytes, HttpBody};
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::{JSON_MAX, SharedApp};

/// Number of a VM in the path. The VM need not exist.
pub struct Id(pub u32);

impl FromRequestParts<SharedApp> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &SharedApp) -> Result<Self, ApiError> {
        let path =
            Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, app);
        let id = path.await.ok().and_then(|Path(mut words)| words.remove("id"));
        number(&id.unwrap_or_default()).map(Self)
    }
}

/// Parses the number of a VM.
pub fn number(text: &str) -> Result<u32, ApiError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| ApiError::BadRequest("a VM is named by its number, 0 and up".to_owned()))
}

/// Query of a request.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<SharedApp> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &SharedApp) -> Result<Self, ApiError> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, app).await;
        query.map(|Query(value)| Self(value)).map_err(|e| ApiError::BadRequest(e.body_text()))
    }
}

/// Body of at most `MAX` bytes.
pub struct Limited<const MAX: usize>(pub Bytes);

impl<const MAX: usize> FromRequest<SharedApp> for Limited<MAX> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &SharedApp) -> Result<Self, ApiError> {
        let too_large = || ApiError::TooLarge(format!("the body may have {MAX} bytes"));
        // A body that is too long by its Content-Length is refused at once.
        if request.body().size_hint().lower() > MAX as u64 {
            return Err(too_large());
        }
        let bytes: Result<Bytes, BytesRejection> = Bytes::from_request(request, app).await;
        match bytes {
            Ok(bytes) if bytes.len() > MAX => Err(too_large()),
            Ok(bytes) => Ok(Self(bytes)),
            Err(e) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large()),
            Err(e) => Err(ApiError::BadRequest(e.body_text())),
        }
    }
}

/// Bytes that are said to be JSON. Their content type is required, because browsers send it to other
/// sites only after a CORS preflight.
pub struct JsonBytes(pub Bytes);

impl FromRequest<SharedApp> for JsonBytes {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &SharedApp) -> Result<Self, ApiError> {
        let kind = request.headers().get("content-type").and_then(|v| v.to_str().ok());
        let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::BadRequest("send application/json".to_owned()));
        }
        let Limited(bytes) = Limited::<JSON_MAX>::from_request(request, app).await?;
        Ok(Self(bytes))
    }
}

/// JSON body.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<SharedApp> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &SharedApp) -> Result<Self, ApiError> {
        let JsonBytes(bytes) = JsonBytes::from_request(request, app).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(ApiError::json)
    }
}

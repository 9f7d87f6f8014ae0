//! JSON answers, and the body that every error has: `{"detail": "…"}`.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

/// Returns `body` as JSON.
///
/// # Panics
/// Panics if `body` cannot be written as JSON, such as a map whose keys are not strings.
pub fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_string(body).expect("answers are structs and maps with string keys");
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Returns `{"detail": "…"}`.
pub fn error(status: StatusCode, detail: &str) -> Response {
    json(status, &json!({ "detail": detail }))
}

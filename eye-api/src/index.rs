//! `GET /`: the names of the endpoints.

use axum::http::{Method, StatusCode};
use axum::response::Response;
use axum::routing::get;
use eye_http::mount::{Mount, Scope};
use eye_http::response;
use serde_json::json;

/// Returns the mount of `/`.
pub fn mount() -> Mount {
    Mount::new("index", "/", Method::GET, Scope::Public, get(index))
}

async fn index() -> Response {
    let names = json!({
        "name": "The Eye",
        "version": env!("CARGO_PKG_VERSION"),
        "send": "POST /api/event/",
        "query": "GET /api/event/",
        "health": ["GET /livez", "GET /readyz"],
        "accounting": ["GET /audit", "GET /metrics"],
    });
    response::json(StatusCode::OK, &names)
}

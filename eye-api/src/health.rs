//! `GET /livez` and `GET /readyz`: the health of the process and of its components.

use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use axum::routing::get;
use eye_core::health::{Component, ComponentState, HealthBoard};
use eye_http::mount::{Mount, Scope};
use eye_http::response;
use serde::Serialize;
use serde_json::json;

/// Returns the mounts of `/livez`, which is 200 while the process runs, and `/readyz`, which shows the components on
/// `board`.
pub fn mounts(board: HealthBoard) -> [Mount; 2] {
    let livez = get(async || response::json(StatusCode::OK, &json!({"status": "ok"})));
    let readyz = get(readyz).with_state(board);
    [("/livez", livez), ("/readyz", readyz)]
        .map(|(path, router)| Mount::new("health", path, Method::GET, Scope::Public, router))
}

#[derive(Serialize)]
struct Readiness<'a> {
    status: &'static str,
    components: Vec<ComponentReadiness<'a>>,
}

#[derive(Serialize)]
struct ComponentReadiness<'a> {
    name: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl<'a> ComponentReadiness<'a> {
    fn of(component: &'a Component) -> Self {
        let (state, reason) = match &component.state {
            ComponentState::Starting => ("starting", None),
            ComponentState::Ready => ("ready", None),
            ComponentState::Unavailable { reason } => ("unavailable", Some(reason.as_str())),
        };
        Self { name: &component.name, state, reason }
    }
}

/// Answers 503 while a component that is not optional is not ready.
async fn readyz(State(board): State<HealthBoard>) -> Response {
    let components = board.components();
    let ready = components.iter().all(|component| component.optional || component.state == ComponentState::Ready);
    let components = components.iter().map(ComponentReadiness::of).collect();
    let (code, status) = match ready {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    response::json(code, &Readiness { status, components })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::extract::Request;
    use eye_http::mount::Mounts;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    fn app(board: &HealthBoard) -> Router {
        let all = Mounts::default();
        mounts(board.clone()).into_iter().for_each(|mount| all.add(mount).unwrap());
        all.router("")
    }

    async fn get(app: &Router, path: &str) -> (u16, Value) {
        let response = app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn readyz_shows_each_component() {
        let board = HealthBoard::default();
        let app = app(&board);
        let (sink, source) = (board.component("sinks.store"), board.component("sources.web"));
        source.ready();
        let starting = json!({"status": "unavailable", "components": [
            {"name": "sinks.store", "state": "starting"}, {"name": "sources.web", "state": "ready"}]});
        assert_eq!(get(&app, "/readyz").await, (503, starting));
        sink.unavailable("no route");
        let (status, body) = get(&app, "/readyz").await;
        let unavailable = json!({"name": "sinks.store", "state": "unavailable", "reason": "no route"});
        assert_eq!((status, &body["components"][0]), (503, &unavailable));
        sink.ready();
        let (status, body) = get(&app, "/readyz").await;
        assert_eq!((status, &body["status"]), (200, &json!("ok")));
    }

    #[tokio::test]
    async fn unavailable_optional_component_leaves_200() {
        let board = HealthBoard::default();
        let app = app(&board);
        let (sink, transport) = (board.optional_component("sinks.store"), board.component("transport"));
        transport.ready();
        sink.unavailable("no route");
        let (status, body) = get(&app, "/readyz").await;
        let unavailable = json!({"name": "sinks.store", "state": "unavailable", "reason": "no route"});
        assert_eq!((status, &body["status"], &body["components"][0]), (200, &json!("ok"), &unavailable));
        transport.unavailable("full");
        assert_eq!(get(&app, "/readyz").await.0, 503);
    }

    #[tokio::test]
    async fn livez_is_200_whatever_the_components() {
        let board = HealthBoard::default();
        board.component("sinks.store").unavailable("no route");
        assert_eq!(get(&app(&board), "/livez").await, (200, json!({"status": "ok"})));
    }
}

//! The query API: `GET /api/event/`.
//!
//! A request is read strictly into an [`EventQuery`](eye_core::store::EventQuery) (`params`), the store answers it, and
//! the page is written as JSON (`body`) with the links to its neighbours (`links`, `cursor`).

mod body;
mod cursor;
mod links;
mod params;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use eye_core::config::at_least_one;
use eye_core::event::Event;
use eye_core::sink::Sink;
use eye_core::store::{EventPage, EventQuery, MAX_PAGE_BYTES, StoreError};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use self::body::{PIECE_BYTES, page_body};
use self::links::{Links, base_url};
use self::params::{ParamErrors, Params};

/// What operators write below `[query]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct QueryConfig {
    /// The sink that answers queries. Default: the only one that can.
    pub sink: Option<String>,
    /// Queries that run at once; one more waits half a second at most and is then answered 503. Default: 16.
    #[serde(deserialize_with = "at_least_one")]
    pub max_concurrent: u16,
    /// How long one query may take before it is answered 503. Default: 30,000.
    #[serde(deserialize_with = "at_least_one")]
    pub timeout_ms: u64,
}

impl Default for QueryConfig {
    fn default() -> Self {
        Self { sink: None, max_concurrent: 16, timeout_ms: 30_000 }
    }
}

/// How long a query waits for one of [`QueryConfig::max_concurrent`] places.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// Bytes of pages that clients have not taken yet, at most: a client that reads slowly or not at all holds its page for as
/// long as its connection.
const MAX_UNSENT_BYTES: usize = 8 * MAX_PAGE_BYTES;

/// When to come back after a 503.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("2");

/// The routes that answer `GET` and `HEAD` on `/api/event` and `/api/event/` from the store of `sink`.
///
/// `trust_proxy` says whether `X-Forwarded-Proto` and `X-Forwarded-Host` decide what the links start with. `allow` is
/// the value of `Allow`: all methods that the listener answers on these paths.
pub fn router(sink: Arc<dyn Sink>, config: &QueryConfig, trust_proxy: bool, allow: &'static str) -> Router {
    let api = Api {
        sink,
        places: Semaphore::new(config.max_concurrent.into()),
        unsent: Arc::new(Semaphore::new(MAX_UNSENT_BYTES)),
        timeout: Duration::from_millis(config.timeout_ms),
        trust_proxy,
        allow: HeaderValue::from_static(allow),
    };
    let answer = get(answer);
    Router::new().route("/api/event", answer.clone()).route("/api/event/", answer).with_state(Arc::new(api))
}

struct Api {
    sink: Arc<dyn Sink>,
    places: Semaphore,
    /// One permit for each byte of [`MAX_UNSENT_BYTES`].
    unsent: Arc<Semaphore>,
    timeout: Duration,
    trust_proxy: bool,
    allow: HeaderValue,
}

async fn answer(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Response {
    let mut response = api.page(&uri, &headers).await.unwrap_or_else(IntoResponse::into_response);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ALLOW, api.allow.clone());
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    response
}

impl Api {
    async fn page(&self, uri: &Uri, headers: &HeaderMap) -> Result<Response, QueryError> {
        let params = Params::parse(uri.query().unwrap_or_default())?;
        let (page, room) = self.ask_store(params.query.clone()).await?;
        let links = Links::new(&base_url(uri, headers, self.trust_proxy), &params, &page);
        Ok(page_body(page, &links, params.include, room).into_response())
    }

    /// Asks within the bounds; the page comes with the room that it takes until it is sent. A query that took too long
    /// is dropped, which a store allows.
    async fn ask_store(&self, query: EventQuery) -> Result<(EventPage, OwnedSemaphorePermit), QueryError> {
        let Some(store) = self.sink.store() else {
            return Err(StoreError::Failed { reason: "the sink has no store".into() }.into());
        };
        let Ok(Ok(_place)) = timeout(MAX_WAIT, self.places.acquire()).await else {
            return Err(QueryError::Busy);
        };
        let page = match timeout(self.timeout, store.query(query)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(QueryError::TooSlow),
        };
        match timeout(MAX_WAIT, self.unsent.clone().acquire_many_owned(unsent_bytes(&page))).await {
            Ok(room) => Ok((page, room.expect("the semaphore is never closed"))),
            Err(_) => Err(QueryError::Busy),
        }
    }
}

/// A page of one piece counts for nothing: it takes no more than the buffers of its connection, and large pages that
/// nobody takes must not hold it up.
fn unsent_bytes(page: &EventPage) -> u32 {
    let bytes: usize = page.events.iter().map(Event::size_bytes).sum();
    if bytes <= PIECE_BYTES { 0 } else { bytes.min(MAX_UNSENT_BYTES) as u32 }
}

/// Why a query has no page.
#[derive(Debug, thiserror::Error)]
enum QueryError {
    #[error("The query has wrong parameters.")]
    Params(ParamErrors),
    #[error("Too many queries run at once. Try again.")]
    Busy,
    #[error("The query took too long. Try again, or ask for less with a filter or a smaller `limit`.")]
    TooSlow,
    #[error("The store is away or too busy. Try again.")]
    Away,
    #[error("The store could not answer the query. The server's log says why.")]
    Failed,
}

impl From<ParamErrors> for QueryError {
    fn from(errors: ParamErrors) -> Self {
        Self::Params(errors)
    }
}

/// What the store said is for the operator's log, not for the caller.
impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { reason } => {
                tracing::debug!(reason, "the store is away, a query was answered 503");
                Self::Away
            }
            StoreError::Failed { reason } => {
                tracing::error!(reason, "the store could not answer a query");
                Self::Failed
            }
        }
    }
}

impl IntoResponse for QueryError {
    fn into_response(self) -> Response {
        let detail = || json!({ "detail": self.to_string() }).to_string();
        match &self {
            Self::Params(errors) => (StatusCode::BAD_REQUEST, json!(errors).to_string()).into_response(),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, detail()).into_response(),
            Self::Busy | Self::TooSlow | Self::Away => {
                (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, RETRY_AFTER_S)], detail()).into_response()
            }
        }
    }
}

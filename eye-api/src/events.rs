//! `GET /api/event/`: pages of stored events, newest first.
//!
//! `Params` reads the query string strictly into an [`EventQuery`]. The store answers it with a page and the exact count.
//! `page_body` writes the page as JSON, with `PageLinks` to its neighbours. The number of queries at once, their time and
//! the bytes of unsent pages are bounded. Read [`mount`] first.

mod body;
mod cursor;
mod include;
mod links;
mod params;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, VARY};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use eye_config::at_least_one;
use eye_core::budget::{ByteBudget, Reservation};
use eye_core::event::Event;
use eye_core::store::{EventPage, EventQuery, EventStore, MAX_PAGE_BYTES, StoreError};
use eye_http::mount::{Mount, Scope};
use eye_http::response;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::body::{CHUNK_BYTES, page_body};
use self::links::{PageLinks, base_url};
use self::params::{ParamErrors, Params};

/// Settings below `[query]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct QueryConfig {
    /// The sink that answers queries. Default: the only one that can.
    pub sink: Option<String>,
    /// Queries at once. Further ones wait half a second at most and are then answered 503. Default: 16.
    #[serde(deserialize_with = "at_least_one")]
    pub max_concurrent: u16,
    /// Milliseconds after which a query is answered 503. Default: 30,000.
    #[serde(deserialize_with = "at_least_one")]
    pub timeout_ms: u64,
}

impl Default for QueryConfig {
    fn default() -> Self {
        Self { sink: None, max_concurrent: 16, timeout_ms: 30_000 }
    }
}

/// The longest wait for one of [`QueryConfig::max_concurrent`] permits, or for capacity for a page.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// Bytes of pages that clients have not read yet. A slow client holds its page for as long as its connection.
const MAX_UNSENT_BYTES: u32 = 8 * MAX_PAGE_BYTES as u32;

/// Seconds after which a client should try again after a 503.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("2");

/// Returns the mount of `GET /api/event/`, answered by `store`.
///
/// With `trust_proxy`, links begin as `X-Forwarded-Proto` and `X-Forwarded-Host` say.
pub fn mount(store: Arc<dyn EventStore>, config: &QueryConfig, trust_proxy: bool) -> Mount {
    let queries = EventQueries {
        store,
        permits: Semaphore::new(config.max_concurrent.into()),
        unsent: ByteBudget::new(MAX_UNSENT_BYTES),
        timeout: Duration::from_millis(config.timeout_ms),
        trust_proxy,
    };
    Mount::new("query", "/api/event/", Method::GET, Scope::Read, get(answer).with_state(Arc::new(queries)))
}

/// State that all queries share.
struct EventQueries {
    store: Arc<dyn EventStore>,
    permits: Semaphore,
    unsent: ByteBudget,
    timeout: Duration,
    trust_proxy: bool,
}

async fn answer(State(queries): State<Arc<EventQueries>>, uri: Uri, headers: HeaderMap) -> Response {
    let mut response = queries.page(&uri, &headers).await.unwrap_or_else(IntoResponse::into_response);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    response
}

impl EventQueries {
    async fn page(&self, uri: &Uri, headers: &HeaderMap) -> Result<Response, QueryError> {
        let params = Params::parse(uri.query().unwrap_or_default())?;
        let (page, unsent) = self.ask_store(params.query.clone()).await?;
        let links = PageLinks::new(&base_url(uri, headers, self.trust_proxy), &params, &page);
        Ok(page_body(page, &links, params.include, unsent).into_response())
    }

    /// Asks within the bounds, and returns the page with a reservation of its bytes. A query that takes too long is dropped,
    /// which stores allow.
    async fn ask_store(&self, query: EventQuery) -> Result<(EventPage, Reservation), QueryError> {
        let Ok(Ok(_permit)) = timeout(MAX_WAIT, self.permits.acquire()).await else {
            return Err(QueryError::Busy);
        };
        let page = match timeout(self.timeout, self.store.page(query)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(QueryError::TooSlow),
        };
        let unsent = self.unsent.reserve_within(unsent_bytes(&page), MAX_WAIT).await.ok_or(QueryError::Busy)?;
        Ok((page, unsent))
    }
}

/// Returns the bytes that a page reserves. A page of one chunk reserves none: it fits the buffers of its connection, and
/// must not wait for large pages that nobody reads.
fn unsent_bytes(page: &EventPage) -> usize {
    let bytes: usize = page.events.iter().map(Event::size_bytes).sum();
    if bytes <= CHUNK_BYTES { 0 } else { bytes }
}

/// A query without a page.
#[derive(Debug, thiserror::Error)]
enum QueryError {
    #[error("The query has wrong parameters.")]
    Params(ParamErrors),
    #[error("Too many queries run at once. Try again.")]
    Busy,
    #[error("The query took too long. Try again, or ask for less with a filter or a smaller `limit`.")]
    TooSlow,
    #[error("The store is unavailable or too busy. Try again.")]
    Unavailable,
    #[error("The store could not answer the query. The server's log says why.")]
    Failed,
}

impl From<ParamErrors> for QueryError {
    fn from(errors: ParamErrors) -> Self {
        Self::Params(errors)
    }
}

/// Logs the store's reason for the operator. The caller does not get it.
impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { reason } => {
                tracing::debug!(reason, "the store is unavailable, a query was answered 503");
                Self::Unavailable
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
        let detail = self.to_string();
        match self {
            Self::Params(errors) => response::json(StatusCode::BAD_REQUEST, &errors),
            Self::Failed => response::error(StatusCode::INTERNAL_SERVER_ERROR, &detail),
            Self::Busy | Self::TooSlow | Self::Unavailable => {
                ([(RETRY_AFTER, RETRY_AFTER_S)], response::error(StatusCode::SERVICE_UNAVAILABLE, &detail))
                    .into_response()
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

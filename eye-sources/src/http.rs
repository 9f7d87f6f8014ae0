//! `type = "http"`: events by `POST /api/event/`, on the program's listener.
//!
//! A request reserves memory for its body before it is read, so the bodies of all requests together are bounded. The
//! answer follows from the receipt of the events; see [`crate::decode`] for the formats.

mod response;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use eye_core::budget::{ByteBudget, Reservation};
use eye_core::error::BuildError;
use eye_core::refusals::Refusal;
use eye_core::source::{Source, SourceConfig, SourceContext};
use eye_http::mount::{Mount, Mounts, Scope};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::timeout;

use crate::decode::{Decoded, Framing, INLINE_MAX_BYTES, NewIds, decode};
use crate::encoding::{self, DecodeError, Encoding};
use crate::ingestor::{Ingestor, check_pending};
use crate::verdict::{Answer, Verdict};

/// The endpoint for events.
const PATH: &str = "/api/event/";

/// The longest wait of a request for its share of `max_pending_bytes`.
const CAPACITY_WAIT: Duration = Duration::from_secs(1);

/// The refusal of a body for want of capacity: otherwise the operator would not hear of it.
const NO_CAPACITY: Refusal = Refusal { part: "body", problem: "no capacity (max_pending_bytes)" };

/// The settings that operators write below `[sources.NAME]` with `type = "http"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct HttpConfig {
    /// Bytes of one body at most, decoded; a larger one is answered 413. Default 5 MiB.
    #[serde(deserialize_with = "eye_core::config::at_least_one")]
    pub max_body_bytes: u32,
    /// Bytes of one event at most; a larger one is refused. Default 1 MiB.
    #[serde(deserialize_with = "eye_core::config::at_least_one")]
    pub max_event_bytes: u32,
    /// Bytes of all bodies that are read, decoded or published at once. Further requests wait up to a second and are then
    /// answered 503. At least twice `max_body_bytes`. Default 32 MiB.
    #[serde(deserialize_with = "eye_core::config::at_least_one")]
    pub max_pending_bytes: u32,
    /// Milliseconds within which a whole body must arrive; a slower one is answered 408. Default 30 s.
    #[serde(deserialize_with = "eye_core::config::at_least_one")]
    pub body_timeout_ms: u64,
    /// Milliseconds that a request waits until its events are stored; then it is answered 503, although they may still
    /// be. Default 10 s.
    #[serde(deserialize_with = "eye_core::config::at_least_one")]
    pub receipt_timeout_ms: u64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            max_body_bytes: 5 << 20,
            max_event_bytes: 1 << 20,
            max_pending_bytes: 32 << 20,
            body_timeout_ms: 30_000,
            receipt_timeout_ms: 10_000,
        }
    }
}

impl SourceConfig for HttpConfig {
    const TYPE: &'static str = "http";

    fn check(&self) -> Vec<BuildError> {
        // A compressed body and its decompressed form are in memory at once.
        check_pending(self.max_pending_bytes, self.max_body_bytes).into_iter().collect()
    }

    fn claims(&self) -> Vec<String> {
        vec![format!("POST {PATH}")]
    }

    async fn build(self, context: &SourceContext) -> Result<Box<dyn Source>, BuildError> {
        let mounts = context.component.extensions().get::<Mounts>();
        let mounts = mounts.ok_or_else(|| BuildError::new("this program has no HTTP listener; remove the source"))?;
        let outlet = context.outlet.clone();
        let endpoint = Endpoint {
            ingestor: Ingestor {
                outlet: outlet.clone(),
                max_event_bytes: self.max_event_bytes,
                receipt_timeout: Duration::from_millis(self.receipt_timeout_ms),
            },
            budget: ByteBudget::new(self.max_pending_bytes),
            config: self,
        };
        let router = post(take).with_state(Arc::new(endpoint));
        let mount = Mount::new(context.component.key(), PATH, Method::POST, Scope::Write, router);
        mounts.add(mount).map_err(|error| BuildError::new(error.to_string()))?;
        outlet.health().ready();
        Ok(Box::new(HttpSource))
    }
}

/// The source has nothing to run: the listener serves its endpoint.
struct HttpSource;

impl Source for HttpSource {}

/// The endpoint's state, shared by all requests.
struct Endpoint {
    ingestor: Ingestor,
    config: HttpConfig,
    /// For the bodies that are read, decoded or published.
    budget: ByteBudget,
}

async fn take(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    match (framing(&head.headers), Encoding::of(&head.headers)) {
        (Some(framing), Ok(encoding)) => match endpoint.take(framing, encoding, body).await {
            Ok(answer) => answer.into_response(),
            Err(answer) => endpoint.refuse(answer),
        },
        (None, _) => endpoint.refuse(Answer::failure(Verdict::Unsupported, CONTENT_TYPES)),
        (_, Err(named)) => endpoint.refuse_encoding(&named),
    }
}

fn framing(headers: &HeaderMap) -> Option<Framing> {
    // Parameters, which are ignored, may have any bytes.
    let media_type = headers.get(header::CONTENT_TYPE)?.as_bytes().split(|&byte| byte == b';').next()?;
    Framing::of_content_type(str::from_utf8(media_type).ok()?)
}

const CONTENT_TYPES: &str =
    "Send events with Content-Type `application/json`, `application/x-ndjson`, or `text/plain` with JSON in it.";

impl Endpoint {
    /// Reports a body of which nothing was taken, and answers its producer.
    fn refuse(&self, answer: Answer) -> Response {
        if let Some(problem) = answer.verdict().problem() {
            self.ingestor.outlet.refusals().note([Refusal { part: "body", problem }]);
        }
        answer.into_response()
    }

    fn refuse_encoding(&self, named: &str) -> Response {
        let detail =
            format!("Content-Encoding `{named}` is not supported. Use one of {}, or none.", encoding::ACCEPTED);
        let mut response = self.refuse(Answer::failure(Verdict::Unsupported, &detail));
        response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(encoding::ACCEPTED));
        response
    }

    /// Takes a body. `Err` is the answer to a body of which nothing was taken.
    async fn take(&self, framing: Framing, encoding: Encoding, body: Body) -> Result<Answer, Answer> {
        let body_timeout = Duration::from_millis(self.config.body_timeout_ms);
        let (body, mut reservation) = timeout(body_timeout, self.read(body)).await.unwrap_or_else(|_| {
            let detail = format!("The body did not arrive within {} ms.", self.config.body_timeout_ms);
            Err(Answer::failure(Verdict::TooSlow, &detail))
        })?;
        if encoding != Encoding::Identity {
            reservation.merge(self.reserve(self.config.max_body_bytes as usize).await?);
        }
        let decoded = self.decode(framing, encoding, body).await?;
        Ok(self.ingestor.ingest(decoded, reservation).await.answer)
    }

    /// Reads the whole body as it was sent, and reserves the memory for it.
    async fn read(&self, mut body: Body) -> Result<(Bytes, Reservation), Answer> {
        let max_bytes = self.config.max_body_bytes as usize;
        let announced = body.size_hint().lower();
        if announced > max_bytes as u64 {
            return Err(self.too_large());
        }
        let mut reservation = self.reserve(0).await?;
        // The usual body comes in one chunk, which is not copied.
        let mut first = Bytes::new();
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                tracing::debug!(%error, "a body did not arrive whole");
                Answer::failure(Verdict::Invalid, "The body did not arrive whole.")
            })?;
            let Ok(chunk) = frame.into_data() else { continue };
            if chunk.len() > max_bytes - first.len().max(all.len()) {
                return Err(self.too_large());
            }
            reservation.merge(self.reserve(chunk.len()).await?);
            if first.is_empty() {
                first = chunk;
                continue;
            }
            if all.is_empty() {
                all.reserve_exact(announced as usize);
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&chunk);
        }
        Ok((if all.is_empty() { first } else { all.into() }, reservation))
    }

    /// Decompresses and parses a body, on a thread of its own if it takes long.
    async fn decode(&self, framing: Framing, encoding: Encoding, body: Bytes) -> Result<Decoded, Answer> {
        let max_bytes = self.config.max_body_bytes as usize;
        let context = self.ingestor.parse_context(self.ingestor.outlet.origin().clone());
        let parse = move |body: &[u8]| {
            decode(body, framing, &context, NewIds::Random)
                .map_err(|error| Answer::failure(Verdict::Invalid, &error.to_string()))
        };
        if encoding == Encoding::Identity && body.len() <= INLINE_MAX_BYTES {
            return parse(&body);
        }
        let work = move || match encoding {
            Encoding::Identity => Ok(parse(&body)),
            _ => encoding.decode(&body, max_bytes).map(|decoded| parse(&decoded)),
        };
        match tokio::task::spawn_blocking(work).await.expect("parsing does not panic, and is not cancelled") {
            Ok(parsed) => parsed,
            Err(DecodeError::TooLarge) => Err(self.too_large()),
            Err(DecodeError::Corrupt(error)) => {
                let detail = format!("The body is not what its Content-Encoding says: {error}.");
                Err(Answer::failure(Verdict::Invalid, &detail))
            }
        }
    }

    /// Reserves a share of `max_pending_bytes`.
    async fn reserve(&self, bytes: usize) -> Result<Reservation, Answer> {
        self.budget.reserve_within(bytes, CAPACITY_WAIT).await.ok_or_else(|| {
            self.ingestor.outlet.refusals().note([NO_CAPACITY]);
            Answer::retry(CAPACITY_WAIT, "No capacity: other requests fill `max_pending_bytes`. Try again.")
        })
    }

    fn too_large(&self) -> Answer {
        let detail =
            format!("A body may have at most {} bytes, decoded (`max_body_bytes`).", self.config.max_body_bytes);
        Answer::failure(Verdict::TooLarge, &detail)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

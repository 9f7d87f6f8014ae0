//! `type = "http"`: events by `POST /api/event/`, on the one listener.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use eye_core::error::BuildError;
use eye_core::refusals::Refusal;
use eye_core::source::{Outlet, Source, SourceConfig};
use eye_core::timestamp::Timestamp;
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::answer::Answer;
use crate::decode::{Decoded, Framing, INLINE_MAX_BYTES, NewIds, decode};
use crate::encoding::{self, DecodeError, Encoding};
use crate::handover::{Handover, check_pending};

/// How long a request waits for its share of `max_pending_bytes`.
const ROOM_WAIT: Duration = Duration::from_secs(1);

/// Nobody else would tell the operator that producers are turned away.
const NO_ROOM: Refusal = Refusal { part: "body", problem: "no room (max_pending_bytes)" };

/// What operators write below `[sources.NAME]` with `type = "http"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct HttpConfig {
    /// Bytes of one body at most, decoded; a larger one is answered 413. Default 5 MiB.
    #[serde(deserialize_with = "eye_core::config::at_least_one")]
    pub max_body_bytes: u32,
    /// Bytes of one event at most; a larger one is refused. Default 1 MiB.
    #[serde(deserialize_with = "eye_core::config::at_least_one")]
    pub max_event_bytes: u32,
    /// Bytes of all bodies that are being read, decoded or handed on at once; beyond, requests wait a second, then are
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
    const HAS_ROUTES: bool = true;

    fn check(&self) -> Vec<BuildError> {
        // A compressed body and what it decodes to are there at once.
        check_pending(self.max_pending_bytes, self.max_body_bytes).into_iter().collect()
    }

    async fn build(self) -> Result<Box<dyn Source>, BuildError> {
        Ok(Box::new(HttpSource { config: self }))
    }
}

struct HttpSource {
    config: HttpConfig,
}

#[async_trait]
impl Source for HttpSource {
    fn routes(&self, outlet: &Outlet) -> Option<Router> {
        outlet.health().ready();
        let intake = Intake {
            handover: Handover {
                outlet: outlet.clone(),
                max_event_bytes: self.config.max_event_bytes,
                receipt_timeout: Duration::from_millis(self.config.receipt_timeout_ms),
            },
            room: Semaphore::new(self.config.max_pending_bytes as usize),
            config: self.config.clone(),
        };
        let routes = Router::new().route("/api/event", post(take)).route("/api/event/", post(take));
        Some(routes.with_state(Arc::new(intake)))
    }
}

/// What all requests share.
struct Intake {
    handover: Handover,
    config: HttpConfig,
    /// One permit for each byte of `max_pending_bytes`.
    room: Semaphore,
}

async fn take(State(intake): State<Arc<Intake>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let refusal = match (framing(&head.headers), Encoding::of(&head.headers)) {
        (Some(framing), Ok(encoding)) => match intake.take(framing, encoding, body).await {
            Ok(answer) => return answer.into_response(),
            Err(answer) => answer.into_response(),
        },
        (None, _) => unsupported_media_type(),
        (_, Err(named)) => unsupported_encoding(&named),
    };
    intake.note_refused_body(refusal.status());
    refusal
}

fn framing(headers: &HeaderMap) -> Option<Framing> {
    // Parameters, which are ignored, may have any bytes.
    let media_type = headers.get(header::CONTENT_TYPE)?.as_bytes().split(|&byte| byte == b';').next()?;
    Framing::of_content_type(str::from_utf8(media_type).ok()?)
}

fn unsupported_media_type() -> Response {
    let detail =
        "Send events with Content-Type `application/json`, `application/x-ndjson`, or `text/plain` with JSON in it.";
    Answer::failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).into_response()
}

fn unsupported_encoding(named: &str) -> Response {
    let detail = format!("Content-Encoding `{named}` is not supported. Use one of {}, or none.", encoding::ACCEPTED);
    let mut response = Answer::failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, &detail).into_response();
    response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(encoding::ACCEPTED));
    response
}

impl Intake {
    /// From body to answer. `Err` is an answer, too: the one that ended the way early.
    async fn take(&self, framing: Framing, encoding: Encoding, body: Body) -> Result<Answer, Answer> {
        let body_timeout = Duration::from_millis(self.config.body_timeout_ms);
        let (body, mut room) = timeout(body_timeout, self.read(body)).await.unwrap_or_else(|_| {
            let detail = format!("The body did not arrive within {} ms.", self.config.body_timeout_ms);
            Err(Answer::failure(StatusCode::REQUEST_TIMEOUT, &detail))
        })?;
        if encoding != Encoding::Identity {
            room.merge(self.reserve(self.config.max_body_bytes).await?);
        }
        let decoded = self.decode(framing, encoding, body).await?;
        Ok(self.handover.publish(decoded, room).await.answer)
    }

    /// A body of which nothing was taken, by the producer's fault.
    fn note_refused_body(&self, status: StatusCode) {
        if let (true, Some(problem)) = (status.is_client_error(), status.canonical_reason()) {
            self.handover.outlet.refusals().note([Refusal { part: "body", problem }]);
        }
    }

    /// The whole body as it came, and the room it takes.
    async fn read(&self, mut body: Body) -> Result<(Bytes, SemaphorePermit<'_>), Answer> {
        let max_bytes = self.config.max_body_bytes as usize;
        let announced = body.size_hint().lower();
        if announced > max_bytes as u64 {
            return Err(self.too_large());
        }
        let mut room = self.reserve(0).await?;
        // The usual body comes in one chunk, which is not copied.
        let mut first = Bytes::new();
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                tracing::debug!(%error, "a body did not arrive whole");
                Answer::failure(StatusCode::BAD_REQUEST, "The body did not arrive whole.")
            })?;
            let Ok(chunk) = frame.into_data() else { continue };
            if chunk.len() > max_bytes - first.len().max(all.len()) {
                return Err(self.too_large());
            }
            room.merge(self.reserve(chunk.len() as u32).await?);
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
        Ok((if all.is_empty() { first } else { all.into() }, room))
    }

    /// Decodes and parses; a body that takes long is not worked on where other requests wait.
    async fn decode(&self, framing: Framing, encoding: Encoding, body: Bytes) -> Result<Decoded, Answer> {
        let max_bytes = self.config.max_body_bytes as usize;
        let limits = self.handover.limits();
        let parse = move |body: &[u8]| {
            decode(body, framing, Timestamp::now(), &limits, NewIds::Minted)
                .map_err(|error| Answer::failure(StatusCode::BAD_REQUEST, &error.to_string()))
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
                Err(Answer::failure(StatusCode::BAD_REQUEST, &detail))
            }
        }
    }

    /// A share of `max_pending_bytes`.
    async fn reserve(&self, bytes: u32) -> Result<SemaphorePermit<'_>, Answer> {
        match timeout(ROOM_WAIT, self.room.acquire_many(bytes)).await {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(_) => {
                self.handover.outlet.refusals().note([NO_ROOM]);
                let detail = "No room: other requests fill `max_pending_bytes`. Try again.";
                Err(Answer::retry(ROOM_WAIT, detail))
            }
        }
    }

    fn too_large(&self) -> Answer {
        let detail =
            format!("A body may have at most {} bytes, decoded (`max_body_bytes`).", self.config.max_body_bytes);
        Answer::failure(StatusCode::PAYLOAD_TOO_LARGE, &detail)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

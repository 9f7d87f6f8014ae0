//! From messages to answers: parsing and publishing of the messages that arrive together.
//!
//! They share one publish, one receipt and one task: one of each for every message would cost more than parsing it. Each message
//! still has its own answer.

use async_nats::HeaderMap;
use axum::http::StatusCode;
use bytes::Bytes;
use eye_core::event::{EventId, EventLimits};
use eye_core::refusals::Refusal;
use eye_core::timestamp::Timestamp;
use uuid::Uuid;

use crate::answer::Answer;
use crate::decode::{Decoded, Framing, INLINE_MAX_BYTES, NewIds, decode};
use crate::handover::{Handled, Handover};

/// Limits of a group of messages; a single message may be larger. Below half a batch of a sink, so that one group is parsed while
/// another is written.
pub(super) const MAX_GROUP_MESSAGES: usize = 512;
pub(super) const MAX_GROUP_BYTES: usize = INLINE_MAX_BYTES;

/// The content of a message, and how to parse it.
#[derive(Debug)]
pub(super) struct MessageBody {
    pub(super) payload: Bytes,
    /// `None` when its content type is not one of events.
    pub(super) framing: Option<Framing>,
    pub(super) new_ids: NewIds,
}

/// Parses and publishes messages.
pub(super) struct MessageIngestor {
    pub(super) handover: Handover,
    pub(super) max_body_bytes: u32,
}

impl MessageIngestor {
    /// Returns for each message the answer that a POST of its payload would get. Drops `permit` once the transport has taken the
    /// events.
    pub(super) async fn ingest(&self, bodies: Vec<MessageBody>, permit: impl Send) -> Vec<Handled> {
        let (mut decoded, mut refused) = (Vec::with_capacity(bodies.len()), Vec::new());
        for (index, body) in self.parse(bodies).await.into_iter().enumerate() {
            match body {
                Ok(body) => decoded.push(body),
                Err(answer) => {
                    self.note_refused(&answer);
                    refused.push((index, answer));
                }
            }
        }
        let mut handled = self.handover.publish_together(decoded, permit).await;
        for (index, answer) in refused {
            handled.insert(index, answer.into());
        }
        handled
    }

    /// Counts a message of which nothing was taken.
    pub(super) fn note_refused(&self, answer: &Answer) {
        let problem = answer.status().canonical_reason().unwrap_or("refused");
        self.handover.outlet.refusals().note([Refusal { part: "message", problem }]);
    }

    /// Parses large groups on a blocking thread. `Err` holds the answer to a message of which nothing can be taken.
    async fn parse(&self, bodies: Vec<MessageBody>) -> Vec<Result<Decoded, Answer>> {
        let (max_body_bytes, limits) = (self.max_body_bytes, self.handover.limits());
        let bytes: usize = bodies.iter().map(|body| body.payload.len()).sum();
        let parse_all = move || {
            let received_at = Timestamp::now();
            bodies.into_iter().map(|body| parse(&body, max_body_bytes, &limits, received_at)).collect()
        };
        match bytes {
            ..=MAX_GROUP_BYTES => parse_all(),
            _ => {
                let parsing = tokio::task::spawn_blocking(parse_all);
                parsing.await.expect("parsing does not panic, and is not cancelled")
            }
        }
    }
}

fn parse(
    body: &MessageBody,
    max_body_bytes: u32,
    limits: &EventLimits,
    received_at: Timestamp,
) -> Result<Decoded, Answer> {
    let framing = check_readable(body.framing, body.payload.len(), max_body_bytes)?;
    let decoded = decode(&body.payload, framing, received_at, limits, body.new_ids);
    decoded.map_err(|error| Answer::failure(StatusCode::BAD_REQUEST, &error.to_string()))
}

/// Checks content type and size of a message before it is parsed.
///
/// # Errors
/// The answer to a message that is refused unread.
pub(super) fn check_readable(framing: Option<Framing>, bytes: usize, max_body_bytes: u32) -> Result<Framing, Answer> {
    let framing = framing.ok_or_else(unsupported_content_type)?;
    if bytes > max_body_bytes as usize {
        let detail = format!("A message may have at most {max_body_bytes} bytes (`max_body_bytes`).");
        return Err(Answer::failure(StatusCode::PAYLOAD_TOO_LARGE, &detail));
    }
    Ok(framing)
}

/// Reads the media type of the header `Content-Type`; a message without one is JSON.
pub(super) fn framing(headers: Option<&HeaderMap>) -> Option<Framing> {
    match headers.and_then(|headers| headers.get("Content-Type")) {
        Some(content_type) => Framing::of_content_type(content_type.as_str()),
        None => Some(Framing::Json),
    }
}

fn unsupported_content_type() -> Answer {
    let detail = "Send events as JSON or, with the header `Content-Type: application/x-ndjson`, one object a line.";
    Answer::failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
}

/// Returns the UUID in the header `Nats-Msg-Id`, if it is one.
pub(super) fn message_id(headers: Option<&HeaderMap>) -> Option<EventId> {
    let id = headers?.get(async_nats::header::NATS_MESSAGE_ID)?;
    Uuid::try_parse(id.as_str()).ok()
}

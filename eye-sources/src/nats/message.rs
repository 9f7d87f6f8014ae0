//! From messages to answers: parsing and publishing of the messages that arrive together.
//!
//! They share one publish, one receipt and one task: one of each for every message would cost more than parsing it. Each message
//! still has its own answer.

use async_nats::HeaderMap;
use bytes::Bytes;
use eye_core::event::{EventId, ParseContext};
use eye_core::refusals::Refusal;
use eye_core::source::Outlet;
use uuid::Uuid;

use crate::decode::{Decoded, Framing, INLINE_MAX_BYTES, NewIds, decode};
use crate::ingestor::{Ingested, Ingestor};
use crate::verdict::{Answer, Verdict};

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
    pub(super) ingestor: Ingestor,
    pub(super) max_body_bytes: u32,
}

impl MessageIngestor {
    /// Returns for each message the answer that a POST of its payload would get. Drops `reservation` once the transport has taken the
    /// events.
    pub(super) async fn ingest(&self, bodies: Vec<MessageBody>, reservation: impl Send) -> Vec<Ingested> {
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
        let mut ingested = self.ingestor.ingest_all(decoded, reservation).await;
        for (index, answer) in refused {
            ingested.insert(index, answer.into());
        }
        ingested
    }

    pub(super) fn outlet(&self) -> &Outlet {
        &self.ingestor.outlet
    }

    /// Counts a message of which nothing was taken.
    pub(super) fn note_refused(&self, answer: &Answer) {
        let problem = answer.verdict().problem().unwrap_or("refused");
        self.outlet().refusals().note([Refusal { part: "message", problem }]);
    }

    /// Returns the context of events that are received now. Their origin is the source.
    pub(super) fn parse_context(&self) -> ParseContext {
        self.ingestor.parse_context(self.outlet().origin().clone())
    }

    /// Parses large groups on a blocking thread. `Err` holds the answer to a message of which nothing can be taken.
    async fn parse(&self, bodies: Vec<MessageBody>) -> Vec<Result<Decoded, Answer>> {
        let max_body_bytes = self.max_body_bytes;
        let context = self.parse_context();
        let bytes: usize = bodies.iter().map(|body| body.payload.len()).sum();
        let parse_all = move || bodies.into_iter().map(|body| parse(&body, max_body_bytes, &context)).collect();
        match bytes {
            ..=MAX_GROUP_BYTES => parse_all(),
            _ => {
                let parsing = tokio::task::spawn_blocking(parse_all);
                parsing.await.expect("parsing does not panic, and is not cancelled")
            }
        }
    }
}

fn parse(body: &MessageBody, max_body_bytes: u32, context: &ParseContext) -> Result<Decoded, Answer> {
    let framing = check_readable(body.framing, body.payload.len(), max_body_bytes)?;
    let decoded = decode(&body.payload, framing, context, body.new_ids);
    decoded.map_err(|error| Answer::failure(Verdict::Invalid, &error.to_string()))
}

/// Checks content type and size of a message before it is parsed.
///
/// # Errors
/// The answer to a message that is refused unread.
pub(super) fn check_readable(framing: Option<Framing>, bytes: usize, max_body_bytes: u32) -> Result<Framing, Answer> {
    let framing = framing.ok_or_else(unsupported_content_type)?;
    if bytes > max_body_bytes as usize {
        let detail = format!("A message may have at most {max_body_bytes} bytes (`max_body_bytes`).");
        return Err(Answer::failure(Verdict::TooLarge, &detail));
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
    Answer::failure(Verdict::Unsupported, detail)
}

/// Returns the UUID in the header `Nats-Msg-Id`, if it is one.
pub(super) fn message_id(headers: Option<&HeaderMap>) -> Option<EventId> {
    let id = headers?.get(async_nats::header::NATS_MESSAGE_ID)?;
    Uuid::try_parse(id.as_str()).ok()
}

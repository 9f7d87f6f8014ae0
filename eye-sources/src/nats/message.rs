//! From messages to their answers. Those that are there at once go on together: a publish, a receipt and a task for each
//! would cost more than reading them.

use async_nats::HeaderMap;
use bytes::Bytes;
use eye_core::event::{EventId, ParseContext};
use eye_core::refusals::Refusal;
use uuid::Uuid;

use crate::decode::{Decoded, Framing, INLINE_MAX_BYTES, NewIds, decode};
use crate::ingestor::{Ingested, Ingestor};
use crate::verdict::{Answer, Verdict};

/// Messages that go on together: at most so many, and bytes of them, unless it is one. Fewer than half a batch of a sink,
/// so that one is written while the next is read.
pub(super) const MAX_GROUP_MESSAGES: usize = 512;
pub(super) const MAX_GROUP_BYTES: usize = INLINE_MAX_BYTES;

/// What a message holds.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) payload: Bytes,
    /// `None` where its content type is not one of events.
    pub(super) framing: Option<Framing>,
    pub(super) new_ids: NewIds,
}

/// What all messages share.
pub(super) struct Intake {
    pub(super) ingestor: Ingestor,
    pub(super) max_body_bytes: u32,
}

impl Intake {
    /// For each message the same answer as that to a POST of its payload. `room` is given back once the transport has
    /// the events.
    pub(super) async fn take(&self, bodies: Vec<Body>, room: impl Send) -> Vec<Ingested> {
        let (mut decoded, mut refused) = (Vec::with_capacity(bodies.len()), Vec::new());
        for (index, body) in self.read(bodies).await.into_iter().enumerate() {
            match body {
                Ok(body) => decoded.push(body),
                Err(answer) => {
                    self.note_refused(&answer);
                    refused.push((index, answer));
                }
            }
        }
        let mut handled = self.ingestor.ingest_all(decoded, room).await;
        for (index, answer) in refused {
            handled.insert(index, answer.into());
        }
        handled
    }

    /// Notes a message of which nothing was taken.
    pub(super) fn note_refused(&self, answer: &Answer) {
        let problem = answer.verdict().problem().unwrap_or("refused");
        self.ingestor.outlet.refusals().note([Refusal { part: "message", problem }]);
    }

    /// `Err` where nothing can be taken of the whole message.
    async fn read(&self, bodies: Vec<Body>) -> Vec<Result<Decoded, Answer>> {
        let max_body_bytes = self.max_body_bytes;
        let context = self.ingestor.parse_context(self.ingestor.outlet.origin().clone());
        let bytes: usize = bodies.iter().map(|body| body.payload.len()).sum();
        let read_all = move || bodies.into_iter().map(|body| read(&body, max_body_bytes, &context)).collect::<Vec<_>>();
        match bytes {
            ..=MAX_GROUP_BYTES => read_all(),
            _ => {
                let reading = tokio::task::spawn_blocking(read_all);
                reading.await.expect("parsing does not panic, and is not cancelled")
            }
        }
    }
}

fn read(body: &Body, max_body_bytes: u32, context: &ParseContext) -> Result<Decoded, Answer> {
    let framing = readable(body.framing, body.payload.len(), max_body_bytes)?;
    let decoded = decode(&body.payload, framing, context, body.new_ids);
    decoded.map_err(|error| Answer::failure(Verdict::Invalid, &error.to_string()))
}

/// How to read so many bytes.
///
/// # Errors
/// The answer to a message that need not be read to be refused.
pub(super) fn readable(framing: Option<Framing>, bytes: usize, max_body_bytes: u32) -> Result<Framing, Answer> {
    let framing = framing.ok_or_else(unsupported_content_type)?;
    if bytes > max_body_bytes as usize {
        let detail = format!("A message may have at most {max_body_bytes} bytes (`max_body_bytes`).");
        return Err(Answer::failure(Verdict::TooLarge, &detail));
    }
    Ok(framing)
}

/// By the media type of the header `Content-Type`; without one, it is JSON.
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

/// The UUID in the header `Nats-Msg-Id`, where it is one.
pub(super) fn message_id(headers: Option<&HeaderMap>) -> Option<EventId> {
    let id = headers?.get(async_nats::header::NATS_MESSAGE_ID)?;
    Uuid::try_parse(id.as_str()).ok()
}

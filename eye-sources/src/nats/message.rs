//! From a message to its answer.

use async_nats::{HeaderMap, Message};
use axum::http::StatusCode;
use bytes::Bytes;
use eye_core::event::EventId;
use eye_core::refusals::Refusal;
use eye_core::timestamp::Timestamp;
use uuid::Uuid;

use crate::answer::Answer;
use crate::decode::{Framing, INLINE_MAX_BYTES, NewIds, decode};
use crate::handover::{Handled, Handover};

/// What all messages share.
pub(super) struct Intake {
    pub(super) handover: Handover,
    pub(super) max_body_bytes: u32,
}

impl Intake {
    /// The same answer as that to a POST of the message's payload. `room` is given back once the transport has the
    /// events.
    pub(super) async fn take(&self, message: &Message, new_ids: NewIds, room: impl Send) -> Handled {
        match self.decode_and_publish(message, new_ids, room).await {
            Ok(handled) => handled,
            Err(refusal) => {
                let problem = refusal.status().canonical_reason().unwrap_or("refused");
                self.handover.outlet.refusals().note([Refusal { part: "message", problem }]);
                refusal.into()
            }
        }
    }

    /// `Err` where nothing was taken of the whole message.
    async fn decode_and_publish(&self, message: &Message, new_ids: NewIds, room: impl Send) -> Result<Handled, Answer> {
        let framing = framing(message.headers.as_ref()).ok_or_else(unsupported_content_type)?;
        if message.payload.len() > self.max_body_bytes as usize {
            let detail = format!("A message may have at most {} bytes (`max_body_bytes`).", self.max_body_bytes);
            return Err(Answer::failure(StatusCode::PAYLOAD_TOO_LARGE, &detail));
        }
        let limits = self.handover.limits();
        let parse = move |payload: Bytes| decode(&payload, framing, Timestamp::now(), &limits, new_ids);
        let payload = message.payload.clone();
        let decoded = match payload.len() {
            ..=INLINE_MAX_BYTES => parse(payload),
            _ => {
                let parsing = tokio::task::spawn_blocking(move || parse(payload));
                parsing.await.expect("parsing does not panic, and is not cancelled")
            }
        };
        let decoded = decoded.map_err(|error| Answer::failure(StatusCode::BAD_REQUEST, &error.to_string()))?;
        Ok(self.handover.publish(decoded, room).await)
    }
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
    Answer::failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
}

/// The UUID in the header `Nats-Msg-Id`, where it is one.
pub(super) fn message_id(message: &Message) -> Option<EventId> {
    let id = message.headers.as_ref()?.get(async_nats::header::NATS_MESSAGE_ID)?;
    Uuid::try_parse(id.as_str()).ok()
}

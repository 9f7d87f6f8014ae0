//! What a producer is told: from what the gate refused, and what became of the rest, to a status and a JSON body.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use eye_core::ack::{Outcome, Rejection};
use eye_core::event::EventErrors;
use eye_core::transport::PublishError;
use serde::Serialize;

use crate::decode::RejectedEvent;

/// When a producer may try again, where nobody knows better.
const RETRY_AFTER: Duration = Duration::from_secs(5);

const NOT_STORED: &str = "The store is away or stopping. Send the events again, with an `id` each: those that are \
                          stored all the same are then stored once.";

/// An answer to one request.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    body: Cow<'static, str>,
    retry_after: Option<Duration>,
    close: bool,
}

/// What an answer needs to know of a request whose events went on.
#[derive(Debug)]
pub(crate) struct Sent {
    /// The place in the body of each event that went on.
    pub indices: Vec<usize>,
    /// Those that did not pass the gate.
    pub invalid: Vec<RejectedEvent>,
    /// How many more did not, beyond those that are listed.
    pub unlisted: usize,
    /// False only for a body that is one single value and no array.
    pub many: bool,
    /// The bound that was set for one event.
    pub max_event_bytes: u32,
}

#[derive(Default, Serialize)]
struct Failure<'a> {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<&'a EventErrors>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rejected: Vec<Rejected<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    unlisted: usize,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[derive(Serialize)]
#[serde(untagged)]
enum Rejected<'a> {
    ByGate(&'a RejectedEvent),
    ByStore { index: usize, errors: StoreErrors },
}

#[derive(Serialize)]
struct StoreErrors {
    non_field_errors: [String; 1],
}

impl Answer {
    /// A failure that one sentence explains.
    pub(crate) fn failure(status: StatusCode, detail: &str) -> Self {
        Self::of(status, &Failure { detail: Some(detail), ..Failure::default() })
    }

    /// Nothing was taken, or nobody knows; the producer may try again.
    pub(crate) fn retry(retry_after: Duration, detail: &str) -> Self {
        Self { retry_after: Some(retry_after), ..Self::failure(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// The transport did not take the events.
    pub(crate) fn not_published(error: &PublishError) -> Self {
        match error {
            PublishError::Full { retry_after, .. } => Self::retry(*retry_after, &error.to_string()),
            PublishError::Closed => Self { close: true, ..Self::retry(RETRY_AFTER, &error.to_string()) },
        }
    }

    /// The outcome did not come in time.
    pub(crate) fn no_receipt(waited: Duration) -> Self {
        let detail = format!(
            "No answer from the store within {} ms. The events may still be stored: send them again with an `id` each, \
             so that they are stored once.",
            waited.as_millis()
        );
        Self::retry(RETRY_AFTER, &detail)
    }

    /// What became of the events that went on, and of those that did not pass the gate.
    pub(crate) fn of_outcome(sent: &Sent, outcome: &Outcome) -> Self {
        match outcome {
            // Why is for the operator, in the log and `/readyz`: it may name hosts that are not the producer's concern.
            Outcome::Failed { .. } => Self::retry(RETRY_AFTER, NOT_STORED),
            Outcome::Rejected(refused) => Self::of_refusals(sent, refused),
            Outcome::Delivered if sent.invalid.is_empty() => Self::success(sent),
            Outcome::Delivered => Self::of_refusals(sent, &[]),
        }
    }

    /// Every event was taken. The usual answer, so it costs nothing to make.
    fn success(sent: &Sent) -> Self {
        let body = match sent.many {
            false => Cow::Borrowed(r#"{"success": true}"#),
            true => Cow::Owned(format!(r#"{{"success": true, "accepted": {}}}"#, sent.indices.len())),
        };
        Self { status: StatusCode::CREATED, body, retry_after: None, close: false }
    }

    fn of_refusals(sent: &Sent, refused: &[Rejection]) -> Self {
        let accepted = sent.indices.len() - refused.len();
        if accepted == 0 && refused.is_empty() {
            return Self::nothing_valid(sent);
        }
        let reason = |rejection: &Rejection| format!("Refused by the store: {}", rejection.reason);
        if accepted == 0 && !sent.many {
            return Self::failure(StatusCode::UNPROCESSABLE_ENTITY, &reason(&refused[0]));
        }
        let mut rejected: Vec<(usize, Rejected)> =
            sent.invalid.iter().map(|event| (event.index, Rejected::ByGate(event))).collect();
        rejected.extend(refused.iter().map(|rejection| {
            let index = sent.indices[rejection.index];
            (index, Rejected::ByStore { index, errors: StoreErrors { non_field_errors: [reason(rejection)] } })
        }));
        rejected.sort_by_key(|(index, _)| *index);
        let (status, detail) = match accepted {
            0 => (StatusCode::UNPROCESSABLE_ENTITY, Some("No event was taken; see `rejected`.")),
            _ => (StatusCode::OK, None),
        };
        let rejected = rejected.into_iter().map(|(_, rejected)| rejected).collect();
        Self::of(
            status,
            &Failure { detail, accepted: Some(accepted), rejected, unlisted: sent.unlisted, ..Failure::default() },
        )
    }

    /// No event passed the gate, and there was at least one.
    fn nothing_valid(sent: &Sent) -> Self {
        let failure = match &sent.invalid[..] {
            invalid if invalid.iter().all(|event| event.errors.is_too_large()) => {
                let detail = format!("An event may have at most {} bytes (`max_event_bytes`).", sent.max_event_bytes);
                return Self::failure(StatusCode::PAYLOAD_TOO_LARGE, &detail);
            }
            [event] if !sent.many => Failure { errors: Some(&event.errors), ..Failure::default() },
            invalid => {
                let rejected = invalid.iter().map(Rejected::ByGate).collect();
                Failure { accepted: Some(0), rejected, unlisted: sent.unlisted, ..Failure::default() }
            }
        };
        Self::of(StatusCode::BAD_REQUEST, &failure)
    }

    /// What an answer over HTTP has as its status.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The JSON, for where there is nothing else.
    pub(crate) fn into_body(self) -> Bytes {
        match self.body {
            Cow::Borrowed(body) => Bytes::from_static(body.as_bytes()),
            Cow::Owned(body) => body.into(),
        }
    }

    fn of(status: StatusCode, failure: &Failure) -> Self {
        let body = serde_json::to_string(failure).expect("texts and numbers can be written as JSON");
        Self { status, body: body.into(), retry_after: None, close: false }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry_after) = self.retry_after {
            headers
                .insert(header::RETRY_AFTER, HeaderValue::from(retry_after.as_millis().div_ceil(1000).max(1) as u64));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

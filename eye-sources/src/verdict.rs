//! Verdicts: what a producer is told about one request or message, independent of the protocol.
//!
//! [`Answer`] has the [`Verdict`] and the JSON body, which is the same for every protocol. HTTP and NATS each encode the
//! verdict in one file of their own.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use eye_core::ack::{Outcome, Rejection};
use eye_core::event::{EVENT_FIELD, EventErrors};
use eye_core::transport::PublishError;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::decode::InvalidEvent;

/// The time after which a producer may try again, where nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(5);

const NOT_STORED: &str = "The store is unavailable or stopping. Send the events again, with an `id` each: events that \
                          were stored all the same are then stored once.";

/// The kind of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Every event was taken.
    Accepted,
    /// Some events were taken, others are invalid or were refused by the store.
    Partial,
    /// No event was taken: all are invalid, or the body is not JSON.
    Invalid,
    /// The body or the event is too large.
    TooLarge,
    /// The content type or encoding is unknown.
    Unsupported,
    /// The body did not arrive in time.
    TooSlow,
    /// The store refused every event for good.
    Refused,
    /// No event was taken, or the outcome is unknown; the producer may try again.
    RetryLater,
}

impl Verdict {
    /// Returns the reason for which nothing of a body or message was taken, for the operator's reports. `None` where
    /// its events are counted one by one.
    pub(crate) fn problem(self) -> Option<&'static str> {
        match self {
            Self::Invalid => Some("invalid"),
            Self::TooLarge => Some("too large"),
            Self::Unsupported => Some("unsupported type or encoding"),
            Self::TooSlow => Some("did not arrive in time"),
            Self::Refused => Some("refused by the store"),
            Self::Accepted | Self::Partial | Self::RetryLater => None,
        }
    }
}

/// The answer to one request or message.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    verdict: Verdict,
    body: Cow<'static, str>,
    retry_after: Option<Duration>,
    close: bool,
}

/// The facts about a published request that its answer needs.
#[derive(Debug)]
pub(crate) struct Published {
    /// The index in the body of each published event.
    pub(crate) indices: Vec<usize>,
    /// The invalid events.
    pub(crate) invalid: Vec<InvalidEvent>,
    /// The number of further invalid events.
    pub(crate) unlisted: usize,
    /// False only for a body that is one single value and no array.
    pub(crate) many: bool,
    /// The operator's limit for one event.
    pub(crate) max_event_bytes: u32,
}

#[derive(Default, Serialize)]
struct Failure<'a> {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<FieldErrors<'a>>,
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

/// One entry of `rejected`.
#[derive(Serialize)]
struct Rejected<'a> {
    index: usize,
    errors: FieldErrors<'a>,
}

impl<'a> Rejected<'a> {
    fn invalid(event: &'a InvalidEvent) -> Self {
        Self { index: event.index, errors: FieldErrors::Invalid(&event.errors) }
    }
}

/// The errors of one event, by field: those of the parser, or the store's reason.
enum FieldErrors<'a> {
    Invalid(&'a EventErrors),
    RefusedByStore(String),
}

/// The key of errors that belong to no single field, as in Django REST framework.
const NON_FIELD_ERRORS: &str = "non_field_errors";

/// Serialises as `{"session_id": ["This field is required."]}`.
impl Serialize for FieldErrors<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Invalid(errors) => {
                for (field, error) in errors.fields() {
                    let key = if field == EVENT_FIELD { NON_FIELD_ERRORS } else { field };
                    map.serialize_entry(key, &[error.to_string()])?;
                }
            }
            Self::RefusedByStore(reason) => map.serialize_entry(NON_FIELD_ERRORS, &[reason])?,
        }
        map.end()
    }
}

impl Answer {
    /// Creates a failure that one sentence explains.
    pub(crate) fn failure(verdict: Verdict, detail: &str) -> Self {
        Self::new(verdict, &Failure { detail: Some(detail), ..Failure::default() })
    }

    /// Creates the answer to try again later.
    pub(crate) fn retry(retry_after: Duration, detail: &str) -> Self {
        Self { retry_after: Some(retry_after), ..Self::failure(Verdict::RetryLater, detail) }
    }

    /// Creates the answer for events that the transport did not take.
    pub(crate) fn not_published(error: &PublishError) -> Self {
        match error {
            PublishError::Full { retry_after, .. } | PublishError::Unavailable { retry_after, .. } => {
                Self::retry(*retry_after, &error.to_string())
            }
            PublishError::Closed => Self { close: true, ..Self::retry(RETRY_AFTER, &error.to_string()) },
        }
    }

    /// Creates the answer for an outcome that did not come in time.
    pub(crate) fn no_receipt(waited: Duration) -> Self {
        let detail = format!(
            "No answer from the store within {} ms. The events may still be stored: send them again with an `id` each, \
             so that they are stored once.",
            waited.as_millis()
        );
        Self::retry(RETRY_AFTER, &detail)
    }

    /// Creates the answer for published events with their outcome, and for invalid ones.
    pub(crate) fn of_outcome(sent: &Published, outcome: &Outcome) -> Self {
        match outcome {
            // The reason is for the operator, in the log and the health report: it may name hosts.
            Outcome::Failed { .. } => Self::retry(RETRY_AFTER, NOT_STORED),
            Outcome::Rejected(refused) => Self::of_refusals(sent, refused),
            Outcome::Delivered if sent.invalid.is_empty() => Self::success(sent),
            Outcome::Delivered => Self::of_refusals(sent, &[]),
        }
    }

    /// Creates the answer when every event was taken. The usual one, so it allocates nothing for a single event.
    fn success(sent: &Published) -> Self {
        let body = match sent.many {
            false => Cow::Borrowed(r#"{"success": true}"#),
            true => Cow::Owned(format!(r#"{{"success": true, "accepted": {}}}"#, sent.indices.len())),
        };
        Self { verdict: Verdict::Accepted, body, retry_after: None, close: false }
    }

    fn of_refusals(sent: &Published, refused: &[Rejection]) -> Self {
        let accepted = sent.indices.len() - refused.len();
        if accepted == 0 && refused.is_empty() {
            return Self::nothing_valid(sent);
        }
        let reason = |rejection: &Rejection| format!("Refused by the store: {}", rejection.reason);
        if accepted == 0 && !sent.many {
            return Self::failure(Verdict::Refused, &reason(&refused[0]));
        }
        let mut rejected: Vec<Rejected> = sent.invalid.iter().map(Rejected::invalid).collect();
        rejected.extend(refused.iter().map(|rejection| Rejected {
            index: sent.indices[rejection.index],
            errors: FieldErrors::RefusedByStore(reason(rejection)),
        }));
        rejected.sort_by_key(|rejected| rejected.index);
        let (verdict, detail) = match accepted {
            0 => (Verdict::Refused, Some("No event was taken; see `rejected`.")),
            _ => (Verdict::Partial, None),
        };
        Self::new(
            verdict,
            &Failure { detail, accepted: Some(accepted), rejected, unlisted: sent.unlisted, ..Failure::default() },
        )
    }

    /// Creates the answer when every event is invalid, and there is at least one.
    fn nothing_valid(sent: &Published) -> Self {
        let failure = match &sent.invalid[..] {
            invalid if invalid.iter().all(|event| event.errors.is_too_large()) => {
                let detail = format!("An event may have at most {} bytes (`max_event_bytes`).", sent.max_event_bytes);
                return Self::failure(Verdict::TooLarge, &detail);
            }
            [event] if !sent.many => {
                Failure { errors: Some(FieldErrors::Invalid(&event.errors)), ..Failure::default() }
            }
            invalid => {
                let rejected = invalid.iter().map(Rejected::invalid).collect();
                Failure { accepted: Some(0), rejected, unlisted: sent.unlisted, ..Failure::default() }
            }
        };
        Self::new(Verdict::Invalid, &failure)
    }

    /// Returns the verdict.
    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Returns the time after which the producer may try again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Returns whether the program is stopping, so that the connection is of no further use.
    pub(crate) fn closes(&self) -> bool {
        self.close
    }

    /// Returns the JSON body.
    pub(crate) fn into_body(self) -> Bytes {
        match self.body {
            Cow::Borrowed(body) => Bytes::from_static(body.as_bytes()),
            Cow::Owned(body) => body.into(),
        }
    }

    fn new(verdict: Verdict, failure: &Failure) -> Self {
        let body = serde_json::to_string(failure).expect("texts and numbers can be written as JSON");
        Self { verdict, body: body.into(), retry_after: None, close: false }
    }
}

//! The way from a decoded body to its answer: publish, wait for the receipt, count. The same for every source.

use std::iter::repeat_n;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use eye_core::ack::{Outcome, Rejection};
use eye_core::error::BuildError;
use eye_core::event::{Event, EventLimits, Origin, ParseContext};
use eye_core::refusals::Refusal;
use eye_core::source::Outlet;
use tokio::time::timeout;

use crate::decode::Decoded;
use crate::verdict::{Answer, Published};

/// The refusal of invalid events beyond those whose errors are listed.
const UNLISTED: Refusal = Refusal { part: "event", problem: "refused beside more than a report lists" };

/// Checks that a source has capacity for two bodies, as one that is decompressed needs it.
pub(crate) fn check_pending(max_pending_bytes: u32, max_body_bytes: u32) -> Option<BuildError> {
    (max_pending_bytes / 2 < max_body_bytes).then(|| {
        let message = format!(
            "{max_pending_bytes} is too small: it must be at least twice max_body_bytes, which is {max_body_bytes}"
        );
        BuildError::at("max_pending_bytes", message)
    })
}

/// Publishes decoded bodies and turns their outcomes into answers.
pub(crate) struct Ingestor {
    pub(crate) outlet: Outlet,
    pub(crate) max_event_bytes: u32,
    pub(crate) receipt_timeout: Duration,
}

/// The result for one body.
pub(crate) struct Ingested {
    pub(crate) answer: Answer,
    /// The valid events that the store refused for good.
    pub(crate) refused: Vec<Rejection>,
}

impl From<Answer> for Ingested {
    /// The result for a body of which the store refused nothing.
    fn from(answer: Answer) -> Self {
        Self { answer, refused: Vec::new() }
    }
}

impl Ingested {
    fn new(published: &Published, outcome: Outcome) -> Self {
        let answer = Answer::of_outcome(published, &outcome);
        let refused = if let Outcome::Rejected(refused) = outcome { refused } else { Vec::new() };
        Self { answer, refused }
    }
}

impl Ingestor {
    /// Returns the context for events that are received now from `origin`.
    pub(crate) fn parse_context(&self, origin: Arc<Origin>) -> ParseContext {
        let limits = EventLimits { max_event_bytes: self.max_event_bytes as usize };
        ParseContext::now(origin, limits)
    }

    /// Publishes the events of a body and waits for their receipt. `reservation`, the capacity that the body took from
    /// the source, is dropped once the transport has the events: its own bounds count them from then on.
    pub(crate) async fn ingest(&self, decoded: Decoded, reservation: impl Send) -> Ingested {
        let (events, published) = self.count_invalid(decoded);
        if events.is_empty() {
            return Ingested::new(&published, Outcome::Delivered);
        }
        match self.publish(events, reservation).await {
            Ok(outcome) => Ingested::new(&published, outcome),
            Err(answer) => answer.into(),
        }
    }

    /// Ingests several bodies at once. Their events share one receipt, so a failure concerns all bodies; a refused event
    /// concerns its own body only.
    pub(crate) async fn ingest_all(&self, bodies: Vec<Decoded>, reservation: impl Send) -> Vec<Ingested> {
        let mut all = Vec::with_capacity(bodies.len());
        let mut published = Vec::with_capacity(bodies.len());
        for (events, one) in bodies.into_iter().map(|decoded| self.count_invalid(decoded)) {
            all.extend(events);
            published.push(one);
        }
        let outcome = if all.is_empty() { Ok(Outcome::Delivered) } else { self.publish(all, reservation).await };
        let mut start = 0;
        let one = |published: &Published| {
            let own = start..start + published.indices.len();
            start = own.end;
            match &outcome {
                Ok(outcome) if !own.is_empty() => Ingested::new(published, part(outcome, own)),
                Err(answer) if !own.is_empty() => answer.clone().into(),
                _ => Ingested::new(published, Outcome::Delivered),
            }
        };
        published.iter().map(one).collect()
    }

    /// Counts the invalid events. Returns the valid ones, and the facts that the answer needs.
    fn count_invalid(&self, decoded: Decoded) -> (Vec<Event>, Published) {
        if !decoded.invalid.is_empty() {
            let refusals = decoded.invalid.iter().flat_map(|event| event.errors.refusals());
            let refusals = refusals.chain(repeat_n(UNLISTED, decoded.unlisted));
            self.outlet.reject_invalid(decoded.invalid.len() + decoded.unlisted, refusals);
        }
        let published = Published {
            indices: decoded.indices,
            invalid: decoded.invalid,
            unlisted: decoded.unlisted,
            many: decoded.many,
            max_event_bytes: self.max_event_bytes,
        };
        (decoded.events, published)
    }

    /// Publishes events and waits for their outcome. `Err` where there is none.
    async fn publish(&self, events: Vec<Event>, reservation: impl Send) -> Result<Outcome, Answer> {
        let receipt = self.outlet.publish(events).await.map_err(|error| Answer::not_published(&error))?;
        drop(reservation);
        let outcome = timeout(self.receipt_timeout, receipt.outcome()).await;
        outcome.map_err(|_| Answer::no_receipt(self.receipt_timeout))
    }
}

/// Returns the outcome of some of the events.
fn part(outcome: &Outcome, own: Range<usize>) -> Outcome {
    let Outcome::Rejected(rejections) = outcome else { return outcome.clone() };
    let rejections = rejections.iter().filter(|rejection| own.contains(&rejection.index));
    let rejections = rejections.map(|Rejection { index, reason }| {
        let (index, reason) = (index - own.start, reason.clone());
        Rejection { index, reason }
    });
    let rejections: Vec<_> = rejections.collect();
    if rejections.is_empty() { Outcome::Delivered } else { Outcome::Rejected(rejections) }
}

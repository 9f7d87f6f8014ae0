//! From what a body holds to its answer: the same for every source.

use std::iter::repeat_n;
use std::ops::Range;
use std::time::Duration;

use eye_core::ack::{Outcome, Rejection};
use eye_core::error::BuildError;
use eye_core::event::{Event, EventLimits};
use eye_core::refusals::Refusal;
use eye_core::source::Outlet;
use tokio::time::timeout;

use crate::answer::{Answer, Sent};
use crate::decode::Decoded;

/// What is known of an event beyond those whose errors are listed.
const UNLISTED: Refusal = Refusal { part: "event", problem: "refused beside more than a report lists" };

/// Whether a source has room for two bodies, as one that is decoded needs it.
pub(crate) fn check_pending(max_pending_bytes: u32, max_body_bytes: u32) -> Option<BuildError> {
    (max_pending_bytes / 2 < max_body_bytes).then(|| {
        BuildError::at(
            "max_pending_bytes",
            format!(
                "{max_pending_bytes} is too small: it must be at least twice max_body_bytes, which is {max_body_bytes}"
            ),
        )
    })
}

/// A source's way into the pipeline and back.
pub(crate) struct Handover {
    pub(crate) outlet: Outlet,
    pub(crate) max_event_bytes: u32,
    pub(crate) receipt_timeout: Duration,
}

/// What became of a body.
pub(crate) struct Handled {
    pub(crate) answer: Answer,
    /// Of the events that passed the gate, those that the store refused for good.
    pub(crate) refused: Vec<Rejection>,
}

impl From<Answer> for Handled {
    /// The store refused nothing.
    fn from(answer: Answer) -> Self {
        Self { answer, refused: Vec::new() }
    }
}

impl Handled {
    fn of(sent: &Sent, outcome: Outcome) -> Self {
        let answer = Answer::of_outcome(sent, &outcome);
        let refused = if let Outcome::Rejected(refused) = outcome { refused } else { Vec::new() };
        Self { answer, refused }
    }
}

impl Handover {
    pub(crate) fn limits(&self) -> EventLimits {
        EventLimits { max_event_bytes: self.max_event_bytes as usize }
    }

    /// Publishes the events of a body and waits for their receipt. `room`, what the body took of the source's own
    /// bounds, is given back once the transport has the events: from then on its bounds count them.
    pub(crate) async fn publish(&self, decoded: Decoded, room: impl Send) -> Handled {
        let (events, sent) = self.note(decoded);
        if events.is_empty() {
            return Handled::of(&sent, Outcome::Delivered);
        }
        match self.hand_on(events, room).await {
            Ok(outcome) => Handled::of(&sent, outcome),
            Err(answer) => answer.into(),
        }
    }

    /// As [`publish`](Self::publish), for several bodies at once: their events have one receipt, so what fails of one
    /// fails of all; what is refused takes no other along.
    pub(crate) async fn publish_together(&self, bodies: Vec<Decoded>, room: impl Send) -> Vec<Handled> {
        let mut all = Vec::with_capacity(bodies.len());
        let mut sent = Vec::with_capacity(bodies.len());
        for (events, one) in bodies.into_iter().map(|decoded| self.note(decoded)) {
            all.extend(events);
            sent.push(one);
        }
        let outcome = if all.is_empty() { Ok(Outcome::Delivered) } else { self.hand_on(all, room).await };
        let mut start = 0;
        let one = |sent: &Sent| {
            let own = start..start + sent.indices.len();
            start = own.end;
            match &outcome {
                Ok(outcome) if !own.is_empty() => Handled::of(sent, part(outcome, own)),
                Err(answer) if !own.is_empty() => answer.clone().into(),
                _ => Handled::of(sent, Outcome::Delivered),
            }
        };
        sent.iter().map(one).collect()
    }

    /// Notes what did not pass the gate. Gives what did, and what its answer needs to know.
    fn note(&self, decoded: Decoded) -> (Vec<Event>, Sent) {
        if !decoded.rejected.is_empty() {
            let refusals = decoded.rejected.iter().flat_map(|event| event.errors.refusals());
            let refusals = refusals.chain(repeat_n(UNLISTED, decoded.unlisted));
            self.outlet.reject(decoded.rejected.len() + decoded.unlisted, refusals);
        }
        let sent = Sent {
            indices: decoded.indices,
            invalid: decoded.rejected,
            unlisted: decoded.unlisted,
            many: decoded.many,
            max_event_bytes: self.max_event_bytes,
        };
        (decoded.events, sent)
    }

    /// `Err` where there is no outcome.
    async fn hand_on(&self, events: Vec<Event>, room: impl Send) -> Result<Outcome, Answer> {
        let receipt = self.outlet.publish(events).await.map_err(|error| Answer::not_published(&error))?;
        drop(room);
        let outcome = timeout(self.receipt_timeout, receipt.outcome()).await;
        outcome.map_err(|_| Answer::no_receipt(self.receipt_timeout))
    }
}

/// What an outcome says of these of the events.
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

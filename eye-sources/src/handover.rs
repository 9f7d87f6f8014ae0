//! From what a body holds to its answer: the same for every source.

use std::time::Duration;

use eye_core::ack::{Outcome, Rejection};
use eye_core::event::EventLimits;
use eye_core::source::Outlet;
use tokio::time::timeout;

use crate::answer::{Answer, Sent};
use crate::decode::Decoded;

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

impl Handover {
    pub(crate) fn limits(&self) -> EventLimits {
        EventLimits { max_event_bytes: self.max_event_bytes as usize }
    }

    /// Publishes the events of a body and waits for their receipt. `room`, what the body took of the source's own
    /// bounds, is given back once the transport has the events: from then on its bounds count them.
    pub(crate) async fn publish(&self, decoded: Decoded, room: impl Send) -> Handled {
        if !decoded.rejected.is_empty() {
            let refusals = decoded.rejected.iter().flat_map(|event| event.errors.refusals());
            self.outlet.reject(decoded.rejected.len() + decoded.unlisted, refusals);
        }
        let sent = Sent {
            indices: decoded.indices,
            invalid: decoded.rejected,
            unlisted: decoded.unlisted,
            many: decoded.many,
            max_event_bytes: self.max_event_bytes,
        };
        if decoded.events.is_empty() {
            return Answer::of_outcome(&sent, &Outcome::Delivered).into();
        }
        let receipt = match self.outlet.publish(decoded.events).await {
            Ok(receipt) => receipt,
            Err(error) => return Answer::not_published(&error).into(),
        };
        drop(room);
        match timeout(self.receipt_timeout, receipt.outcome()).await {
            Ok(outcome) => {
                let answer = Answer::of_outcome(&sent, &outcome);
                let refused = if let Outcome::Rejected(refused) = outcome { refused } else { Vec::new() };
                Handled { answer, refused }
            }
            Err(_) => Answer::no_receipt(self.receipt_timeout).into(),
        }
    }
}

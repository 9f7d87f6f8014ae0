//! From what a body holds to its answer: the same for every source.

use std::time::Duration;

use eye_core::ack::Outcome;
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

impl Handover {
    pub(crate) fn limits(&self) -> EventLimits {
        EventLimits { max_event_bytes: self.max_event_bytes as usize }
    }

    /// Publishes the events of a body and waits for their receipt. `room`, what the body took of the source's own
    /// bounds, is given back once the transport has the events: from then on its bounds count them.
    pub(crate) async fn publish(&self, decoded: Decoded, room: impl Send) -> Answer {
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
            return Answer::of_outcome(&sent, &Outcome::Delivered);
        }
        let receipt = match self.outlet.publish(decoded.events).await {
            Ok(receipt) => receipt,
            Err(error) => return Answer::not_published(&error),
        };
        drop(room);
        match timeout(self.receipt_timeout, receipt.outcome()).await {
            Ok(outcome) => Answer::of_outcome(&sent, &outcome),
            Err(_) => Answer::no_receipt(self.receipt_timeout),
        }
    }
}

//! Collecting deliveries into a batch, and mapping what became of its events back to their acks. Pure: nothing waits.

use std::ops::Range;
use std::sync::Arc;

use crate::accounts::SinkAccount;
use crate::ack::{Ack, Outcome, Rejection};
use crate::event::Event;
use crate::mutant;
use crate::transport::Delivery;

/// How much one batch may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Events at most.
    pub max_events: usize,
    /// Bytes of events at most.
    pub max_bytes: usize,
}

/// The events of several deliveries in one row, with the acks that are owed for them.
#[derive(Debug)]
pub(crate) struct Batch {
    events: Vec<Event>,
    // Each ack with the end of its events; they start where the one before ends.
    acks: Vec<(Ack, usize)>,
    rejections: Vec<Rejection>,
    failures: Vec<(Range<usize>, Arc<str>)>,
}

impl Batch {
    pub(crate) fn collect(deliveries: Vec<Delivery>) -> Self {
        let mut events = Vec::with_capacity(deliveries.iter().map(|delivery| delivery.events.len()).sum());
        let mut acks = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            events.extend(delivery.events);
            if mutant::is("ack-before-write") {
                delivery.ack.settle(Outcome::Delivered);
                continue;
            }
            acks.push((delivery.ack, events.len()));
        }
        Self { events, acks, rejections: Vec::new(), failures: Vec::new() }
    }

    pub(crate) fn events(&self) -> &[Event] {
        &self.events
    }

    /// Notes that one event was refused for good.
    pub(crate) fn reject(&mut self, index: usize, reason: impl Into<Arc<str>>) {
        self.rejections.push(Rejection { index, reason: reason.into() });
    }

    /// Notes that nobody answers for some events.
    pub(crate) fn fail(&mut self, range: Range<usize>, reason: impl Into<Arc<str>>) {
        self.failures.push((range, reason.into()));
    }

    /// How many events were refused so far.
    pub(crate) fn rejected(&self) -> usize {
        self.rejections.len()
    }

    /// Tells every delivery what became of its events, and the sink's account before it; what was noted neither way is
    /// delivered. A delivery of which a part failed has failed as a whole.
    pub(crate) fn settle(mut self, account: &SinkAccount) {
        self.rejections.sort_by_key(|rejection| rejection.index);
        let mut rejections = self.rejections.into_iter().peekable();
        let mut start = 0;
        for (ack, end) in self.acks {
            let rejected: Vec<Rejection> = std::iter::from_fn(|| rejections.next_if(|rejection| rejection.index < end))
                .map(|rejection| Rejection { index: rejection.index - start, ..rejection })
                .collect();
            let failure = self.failures.iter().find(|(range, _)| range.start < end && start < range.end);
            let outcome = match failure {
                Some((_, reason)) => Outcome::failed(reason.clone()),
                None if rejected.is_empty() => Outcome::Delivered,
                None => Outcome::Rejected(rejected),
            };
            account.settle(end - start, &outcome);
            ack.settle(outcome);
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ack::Receipt;
    use crate::testkit::event;

    fn deliveries(sizes: &[usize]) -> (Batch, Vec<Receipt>) {
        let (deliveries, receipts) = sizes
            .iter()
            .map(|&size| {
                let (settle, receipt) = Receipt::pair();
                (Delivery { events: vec![event(0); size], ack: Ack::new(settle) }, receipt)
            })
            .unzip();
        (Batch::collect(deliveries), receipts)
    }

    async fn outcomes(receipts: Vec<Receipt>) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for receipt in receipts {
            outcomes.push(receipt.outcome().await);
        }
        outcomes
    }

    fn rejected(indices: &[usize]) -> Outcome {
        Outcome::Rejected(indices.iter().map(|&index| Rejection { index, reason: "bad".into() }).collect())
    }

    #[tokio::test]
    async fn refusals_find_their_delivery_with_the_place_within_it() {
        let (mut batch, receipts) = deliveries(&[2, 1, 3]);
        for index in [5, 1, 3] {
            batch.reject(index, "bad");
        }
        batch.settle(&SinkAccount::default());
        assert_eq!(outcomes(receipts).await, [rejected(&[1]), Outcome::Delivered, rejected(&[0, 2])]);
    }

    #[tokio::test]
    async fn a_failed_range_fails_every_delivery_it_touches_and_no_other() {
        let (mut batch, receipts) = deliveries(&[2, 2, 2, 2]);
        batch.reject(2, "bad");
        batch.fail(3..5, "away");
        batch.settle(&SinkAccount::default());
        let failed = Outcome::failed("away");
        assert_eq!(outcomes(receipts).await, [Outcome::Delivered, failed.clone(), failed, Outcome::Delivered]);
    }
}

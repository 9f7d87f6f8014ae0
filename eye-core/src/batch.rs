//! Batches: collecting deliveries, and mapping the outcome of each event back to its ack. Pure: nothing waits.

use std::ops::Range;
use std::sync::Arc;

use crate::ack::{Ack, Outcome, Rejection};
use crate::counters::SinkCounters;
use crate::dead_letter::NewDeadLetter;
use crate::event::Event;
use crate::filter::SinkFilter;
use crate::mutant;
use crate::transport::{Delivery, Position};

/// The events of several deliveries that pass a sink's filter, with the acks that are owed for them.
#[derive(Debug)]
pub(crate) struct Batch {
    events: Vec<Event>,
    deliveries: Vec<PendingDelivery>,
    /// Indices are those of `events`.
    rejections: Vec<Rejection>,
    failures: Vec<(Range<usize>, Arc<str>)>,
}

/// A delivery without its events.
#[derive(Debug)]
struct PendingDelivery {
    ack: Ack,
    position: Option<Position>,
    /// The delivery's events within the batch.
    range: Range<usize>,
    /// The indices, within the delivery, of the events that passed the filter; `None` if all did.
    passed: Option<Vec<usize>>,
    /// The events of the delivery, with those that did not pass.
    count: usize,
}

impl PendingDelivery {
    /// Returns the index within the delivery of an event of the batch.
    fn index(&self, in_batch: usize) -> usize {
        let index = in_batch - self.range.start;
        self.passed.as_ref().map_or(index, |passed| passed[index])
    }
}

impl Batch {
    pub(crate) fn collect(deliveries: Vec<Delivery>, filter: &SinkFilter) -> Self {
        let mut events = Vec::with_capacity(deliveries.iter().map(|delivery| delivery.events.len()).sum());
        let mut pending = Vec::with_capacity(deliveries.len());
        for Delivery { events: delivered, ack, position } in deliveries {
            let (start, count) = (events.len(), delivered.len());
            let passed = if filter.is_empty() || delivered.iter().all(|event| filter.passes(event)) {
                events.extend(delivered);
                None
            } else {
                let passing = delivered.into_iter().enumerate().filter(|(_, event)| filter.passes(event));
                let (indices, passing): (Vec<_>, Vec<_>) = passing.unzip();
                events.extend(passing);
                Some(indices)
            };
            if mutant::is("ack-before-write") {
                ack.settle(Outcome::Delivered);
                continue;
            }
            pending.push(PendingDelivery { ack, position, range: start..events.len(), passed, count });
        }
        Self { events, deliveries: pending, rejections: Vec::new(), failures: Vec::new() }
    }

    /// Returns the events to be written.
    pub(crate) fn events(&self) -> &[Event] {
        &self.events
    }

    /// Returns the number of events with those that the filter left out.
    pub(crate) fn delivered_events(&self) -> usize {
        self.deliveries.iter().map(|delivery| delivery.count).sum()
    }

    /// Records that one event was refused for good.
    pub(crate) fn reject(&mut self, index: usize, reason: impl Into<Arc<str>>) {
        self.rejections.push(Rejection { index, reason: reason.into() });
    }

    /// Records that some events may be stored or not.
    pub(crate) fn fail(&mut self, range: Range<usize>, reason: impl Into<Arc<str>>) {
        self.failures.push((range, reason.into()));
    }

    /// Returns the number of events that were refused so far.
    pub(crate) fn rejected(&self) -> usize {
        self.rejections.len()
    }

    /// Returns a dead letter for every refused event of the deliveries that did not fail. `component` is the sink's
    /// key, such as `sinks.store`.
    pub(crate) fn dead_letters(&self, component: &str) -> Vec<NewDeadLetter> {
        let sink = component.rsplit('.').next().unwrap_or_default();
        let letter = |Rejection { index, reason }: &Rejection| {
            let delivery = self.delivery_of(*index)?;
            let position = delivery.position.as_ref().filter(|_| self.failure(&delivery.range).is_none())?;
            Some(NewDeadLetter {
                key: format!("{}.{sink}", position.key(delivery.index(*index))),
                refused_by: component.to_owned(),
                reason: reason.to_string(),
                payload: serde_json::to_vec(&self.events[*index]).expect("an event can be written as JSON"),
            })
        };
        self.rejections.iter().filter_map(letter).collect()
    }

    /// Records that the deliveries with refused events failed, because their dead letters could not be stored.
    pub(crate) fn fail_rejected(&mut self, reason: &str) {
        let reason: Arc<str> = reason.into();
        for Rejection { index, .. } in std::mem::take(&mut self.rejections) {
            self.fail(index..index + 1, reason.clone());
        }
    }

    /// Settles every delivery, and counts it before: events without a record are delivered. A delivery of which a part
    /// failed has failed as a whole, since it is delivered again as a whole.
    pub(crate) fn settle(mut self, counters: &SinkCounters) {
        self.rejections.sort_by_key(|rejection| rejection.index);
        let rejections = std::mem::take(&mut self.rejections);
        let mut rejections = rejections.into_iter().peekable();
        for delivery in std::mem::take(&mut self.deliveries) {
            let of_delivery = std::iter::from_fn(|| rejections.next_if(|one| one.index < delivery.range.end));
            let rejected: Vec<Rejection> = of_delivery
                .map(|rejection| Rejection { index: delivery.index(rejection.index), ..rejection })
                .collect();
            let outcome = match self.failure(&delivery.range) {
                Some(reason) => Outcome::failed(reason.clone()),
                None if rejected.is_empty() => Outcome::Delivered,
                None => Outcome::Rejected(rejected),
            };
            counters.settle(delivery.count, delivery.count - delivery.range.len(), &outcome);
            delivery.ack.settle(outcome);
        }
    }

    fn delivery_of(&self, index: usize) -> Option<&PendingDelivery> {
        let after = self.deliveries.partition_point(|delivery| delivery.range.end <= index);
        self.deliveries.get(after).filter(|delivery| delivery.range.contains(&index))
    }

    fn failure(&self, events: &Range<usize>) -> Option<&Arc<str>> {
        let mut touching =
            self.failures.iter().filter(|(range, _)| range.start < events.end && events.start < range.end);
        touching.next().map(|(_, reason)| reason)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ack::Receipt;
    use crate::testkit::{event, events};

    fn deliveries(sizes: &[usize]) -> (Vec<Delivery>, Vec<Receipt>) {
        let mut next = 0;
        let one = |&size: &usize| {
            let (settle, receipt) = Receipt::pair();
            let (first, end) = (next, next + size as u32);
            next = end;
            let position = Some(Position { prefix: String::new(), number: first.into() });
            (Delivery { events: events(first, end), ack: Ack::new(settle), position }, receipt)
        };
        sizes.iter().map(one).unzip()
    }

    fn batch(sizes: &[usize]) -> (Batch, Vec<Receipt>) {
        let (deliveries, receipts) = deliveries(sizes);
        (Batch::collect(deliveries, &SinkFilter::default()), receipts)
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
    async fn rejections_reach_their_delivery_with_its_indices() {
        let (mut batch, receipts) = batch(&[2, 1, 3]);
        for index in [5, 1, 3] {
            batch.reject(index, "bad");
        }
        batch.settle(&SinkCounters::default());
        assert_eq!(outcomes(receipts).await, [rejected(&[1]), Outcome::Delivered, rejected(&[0, 2])]);
    }

    #[tokio::test]
    async fn failed_range_fails_every_delivery_it_touches() {
        let (mut batch, receipts) = batch(&[2, 2, 2, 2]);
        batch.reject(2, "bad");
        batch.fail(3..5, "unavailable");
        batch.settle(&SinkCounters::default());
        let failed = Outcome::failed("unavailable");
        assert_eq!(outcomes(receipts).await, [Outcome::Delivered, failed.clone(), failed, Outcome::Delivered]);
    }

    #[tokio::test]
    async fn filtered_events_are_counted_and_shift_no_index() {
        // Categories are 0, 1, 2, 0, 1, 2, …
        let filter = serde_json::from_value(json!({"except": {"category": ["category 1"]}})).unwrap();
        let (deliveries, receipts) = deliveries(&[3, 1, 2]);
        let mut batch = Batch::collect(deliveries, &filter);
        assert_eq!(batch.events(), [event(0), event(2), event(3), event(5)]);
        assert_eq!(batch.delivered_events(), 6);
        batch.reject(1, "bad");
        batch.reject(3, "bad");
        let keys: Vec<String> = batch.dead_letters("sinks.store").into_iter().map(|letter| letter.key).collect();
        assert_eq!(keys, ["2.store", "5.store"]);
        let counters = SinkCounters::default();
        counters.begin(6);
        batch.settle(&counters);
        assert_eq!(outcomes(receipts).await, [rejected(&[2]), Outcome::Delivered, rejected(&[1])]);
        let counts = counters.counts();
        assert_eq!([counts.delivered, counts.rejected, counts.filtered, counts.in_flight], [2, 2, 2, 0]);
    }

    #[tokio::test]
    async fn failed_delivery_has_no_dead_letters() {
        let (mut batch, receipts) = batch(&[2, 2]);
        batch.reject(0, "bad");
        batch.reject(2, "bad");
        batch.fail(1..2, "unavailable");
        let letters = batch.dead_letters("sinks.store");
        assert_eq!(letters.len(), 1);
        assert_eq!((letters[0].key.as_str(), letters[0].refused_by.as_str()), ("2.store", "sinks.store"));
        batch.fail_rejected("not kept");
        batch.settle(&SinkCounters::default());
        assert_eq!(outcomes(receipts).await, [Outcome::failed("unavailable"), Outcome::failed("not kept")]);
    }
}

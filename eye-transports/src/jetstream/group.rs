//! Grouping of publish requests into messages: all requests that wait together share messages up to the size limits.
//!
//! A large request may take several messages. Its ack has one clone for each of them, so that it is delivered when all are.

use std::collections::VecDeque;
use std::iter::{Enumerate, Peekable};
use std::vec;

use eye_core::ack::{Ack, Outcome, Rejection};
use eye_core::event::Event;
use tokio::time::Instant;

use crate::record::{self, HEADER_BYTES};

use super::publisher::PublishRequest;

/// Size at which a message takes no further event.
const MAX_GROUP_BYTES: usize = 1 << 20;

/// Bytes of `max_payload` that events may not use: the headers, and the additional size of an event as a dead letter, which is
/// JSON with a reason.
pub(super) const RESERVED_BYTES: usize = 8 << 10;

/// The content of one message, the same for every sink.
pub(super) struct EventGroup {
    /// The events as a record.
    pub(super) record: Vec<u8>,
    /// Time at which the first request was taken.
    pub(super) taken_at: Instant,
    /// One clone for each request that has events in the group.
    acks: Vec<Ack>,
}

impl EventGroup {
    pub(super) fn settle(self, outcome: &Outcome) {
        for ack in self.acks {
            ack.settle(outcome.clone());
        }
    }
}

/// A request with events that are not grouped yet.
pub(super) struct PartialRequest {
    events: Peekable<Enumerate<vec::IntoIter<Event>>>,
    rejections: Vec<Rejection>,
    ack: Ack,
    taken_at: Instant,
}

impl PartialRequest {
    pub(super) fn new(request: PublishRequest) -> Self {
        let PublishRequest { events, ack, taken_at } = request;
        Self { events: events.into_iter().enumerate().peekable(), rejections: Vec::new(), ack, taken_at }
    }

    /// Moves as many events into the record as fit; true when none is left. Refuses an event that fits into no message.
    fn fill(&mut self, record: &mut Vec<u8>, count: &mut u32, max_payload: usize) -> bool {
        let max_alone = max_payload.saturating_sub(RESERVED_BYTES);
        while let Some((index, event)) = self.events.peek() {
            let bytes = record::encoded_bytes(event);
            if HEADER_BYTES + bytes > max_alone {
                let reason = format!(
                    "The event takes {bytes} bytes, but the NATS server accepts messages of {max_payload} bytes \
                     (`max_payload`), of which {RESERVED_BYTES} are reserved."
                );
                self.rejections.push(Rejection { index: *index, reason: reason.into() });
            } else if *count > 0 && record.len() + bytes > max_alone.min(MAX_GROUP_BYTES) {
                return false;
            } else {
                record::encode_event(event, record);
                *count += 1;
            }
            self.events.next();
        }
        true
    }

    /// Settles the request's own clone of the ack. The clones in the groups settle the rest.
    fn finish(self) {
        self.ack.settle(match self.rejections.is_empty() {
            true => Outcome::Delivered,
            false => Outcome::Rejected(self.rejections),
        });
    }
}

/// Makes the next group of the waiting requests; `None` when there are none, or all of their events were refused.
pub(super) fn next(waiting: &mut VecDeque<PartialRequest>, max_payload: usize) -> Option<EventGroup> {
    let taken_at = waiting.front()?.taken_at;
    let (mut record, mut count, mut acks) = (vec![0; HEADER_BYTES], 0, Vec::new());
    while let Some(mut partial) = waiting.pop_front() {
        let before = count;
        let is_whole = partial.fill(&mut record, &mut count, max_payload);
        if count > before {
            acks.push(partial.ack.clone());
        }
        if !is_whole {
            waiting.push_front(partial);
            break;
        }
        partial.finish();
    }
    record::seal(&mut record, 0, count);
    (count > 0).then_some(EventGroup { record, taken_at, acks })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use eye_core::ack::Receipt;
    use eye_core::testkit::{event_with, events};

    use super::*;
    use crate::record::Parsed;

    fn request(events: Vec<Event>) -> (PartialRequest, Receipt) {
        let (settle, receipt) = Receipt::pair();
        (PartialRequest::new(PublishRequest { events, ack: Ack::new(settle), taken_at: Instant::now() }), receipt)
    }

    fn large(n: u32, bytes: usize) -> Event {
        event_with(n, "large", &format!("\"{}\"", "x".repeat(bytes)))
    }

    fn events_of(group: &EventGroup) -> Vec<Event> {
        let Parsed::Whole(record) = record::parse(&group.record) else { panic!("not a record") };
        assert_eq!(record.size_bytes(), group.record.len());
        record.events().unwrap()
    }

    #[tokio::test]
    async fn waiting_requests_share_a_message() {
        let (requests, receipts): (VecDeque<_>, Vec<_>) = (0..3).map(|n| request(events(n * 2, n * 2 + 2))).unzip();
        let mut waiting = requests;
        let group = next(&mut waiting, 1 << 20).unwrap();
        assert_eq!(events_of(&group), events(0, 6));
        assert!(next(&mut waiting, 1 << 20).is_none());
        group.settle(&Outcome::Delivered);
        for receipt in receipts {
            assert_eq!(receipt.outcome().await, Outcome::Delivered);
        }
    }

    #[tokio::test]
    async fn large_request_is_delivered_with_all_its_messages() {
        for failing in [None, Some(0), Some(2)] {
            let all: Vec<Event> = (0..10).map(|n| large(n, 20_000)).collect();
            let (large_request, receipt) = request(all.clone());
            let mut waiting = VecDeque::from([large_request]);
            let mut groups = Vec::new();
            while let Some(group) = next(&mut waiting, 100_000) {
                assert!(group.record.len() <= 100_000 - RESERVED_BYTES);
                groups.push(group);
            }
            assert_eq!(groups.len(), 3);
            assert_eq!(groups.iter().flat_map(events_of).collect::<Vec<_>>(), all);
            for (n, group) in groups.into_iter().enumerate() {
                group.settle(&if failing == Some(n) { Outcome::failed("unavailable") } else { Outcome::Delivered });
            }
            let expected = if failing.is_some() { Outcome::failed("unavailable") } else { Outcome::Delivered };
            assert_eq!(receipt.outcome().await, expected);
        }
    }

    #[tokio::test]
    async fn event_too_large_for_any_message_is_refused_alone() {
        let fits = 100_000 - RESERVED_BYTES - HEADER_BYTES - record::encoded_bytes(&large(0, 0));
        let (mixed, receipt) = request(vec![large(0, fits), large(1, fits + 1), large(2, 5)]);
        let mut waiting = VecDeque::from([mixed]);
        let groups: Vec<EventGroup> = std::iter::from_fn(|| next(&mut waiting, 100_000)).collect();
        assert_eq!(groups.iter().map(|group| events_of(group).len()).collect::<Vec<_>>(), [1, 1]);
        groups.into_iter().for_each(|group| group.settle(&Outcome::Delivered));
        let Outcome::Rejected(rejections) = receipt.outcome().await else { panic!("not refused") };
        assert_eq!((rejections.len(), rejections[0].index), (1, 1));
        assert!(rejections[0].reason.contains("of 100000 bytes (`max_payload`)"), "{rejections:?}");
    }
}

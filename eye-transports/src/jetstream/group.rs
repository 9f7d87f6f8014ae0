//! What is published as one message for each sink: the events of all requests that arrived while others were on their
//! way.

use std::collections::VecDeque;
use std::iter::{Enumerate, Peekable};
use std::vec;

use eye_core::ack::{Ack, Outcome, Rejection};
use eye_core::event::Event;
use tokio::time::Instant;

use crate::record::{self, HEADER_BYTES};

use super::publisher::Request;

/// Bytes after which a message takes no further event.
const MAX_GROUP_BYTES: usize = 1 << 20;

/// Bytes of a message that are not for events: the headers of NATS, and what an event needs more when it becomes a dead
/// letter, with a reason and as JSON.
pub(super) const RESERVED_BYTES: usize = 8 << 10;

/// One message.
pub(super) struct Group {
    /// The events, as a record.
    pub(super) record: Vec<u8>,
    /// When the first of the requests was taken.
    pub(super) taken_at: Instant,
    /// Of each request that has events in it, a clone.
    acks: Vec<Ack>,
}

impl Group {
    pub(super) fn settle(self, outcome: &Outcome) {
        for ack in self.acks {
            ack.settle(outcome.clone());
        }
    }
}

/// A request that is not grouped to its end.
pub(super) struct Rest {
    events: Peekable<Enumerate<vec::IntoIter<Event>>>,
    rejections: Vec<Rejection>,
    ack: Ack,
    taken_at: Instant,
}

impl Rest {
    pub(super) fn new(request: Request) -> Self {
        let Request { events, ack, taken_at } = request;
        Self { events: events.into_iter().enumerate().peekable(), rejections: Vec::new(), ack, taken_at }
    }

    /// Moves events into the record, as many as fit; whether all that is left did. An event that fits into no message is
    /// refused.
    fn fill(&mut self, record: &mut Vec<u8>, count: &mut u32, max_payload: usize) -> bool {
        let max_alone = max_payload.saturating_sub(RESERVED_BYTES);
        while let Some((index, event)) = self.events.peek() {
            let bytes = record::encoded_bytes(event);
            if HEADER_BYTES + bytes > max_alone {
                let reason = format!(
                    "The event takes {bytes} bytes on its way, but the NATS server lets through {max_payload} \
                     (`max_payload`) with {RESERVED_BYTES} for the rest of the message."
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

    /// What was refused is said now; the groups' clones of the ack say the rest.
    fn end(self) {
        self.ack.settle(match self.rejections.is_empty() {
            true => Outcome::Delivered,
            false => Outcome::Rejected(self.rejections),
        });
    }
}

/// The next message from what waits; `None` where that is nothing, or all of it was refused.
pub(super) fn next(waiting: &mut VecDeque<Rest>, max_payload: usize) -> Option<Group> {
    let taken_at = waiting.front()?.taken_at;
    let (mut record, mut count, mut acks) = (vec![0; HEADER_BYTES], 0, Vec::new());
    while let Some(mut rest) = waiting.pop_front() {
        let before = count;
        let is_whole = rest.fill(&mut record, &mut count, max_payload);
        if count > before {
            acks.push(rest.ack.clone());
        }
        if !is_whole {
            waiting.push_front(rest);
            break;
        }
        rest.end();
    }
    record::seal(&mut record, 0, count);
    (count > 0).then_some(Group { record, taken_at, acks })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use eye_core::ack::Receipt;
    use eye_core::testkit::{event_with, events};

    use super::*;
    use crate::record::Parsed;

    fn rest(events: Vec<Event>) -> (Rest, Receipt) {
        let (settle, receipt) = Receipt::pair();
        (Rest::new(Request { events, ack: Ack::new(settle), taken_at: Instant::now() }), receipt)
    }

    fn large(n: u32, bytes: usize) -> Event {
        event_with(n, "large", &format!("\"{}\"", "x".repeat(bytes)))
    }

    fn events_of(group: &Group) -> Vec<Event> {
        let Parsed::Whole(record) = record::parse(&group.record) else { panic!("it is no record") };
        assert_eq!(record.size_bytes(), group.record.len());
        record.events().unwrap()
    }

    #[tokio::test]
    async fn requests_that_wait_together_are_one_message() {
        let (requests, receipts): (VecDeque<_>, Vec<_>) = (0..3).map(|n| rest(events(n * 2, n * 2 + 2))).unzip();
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
    async fn a_large_request_is_delivered_when_all_its_messages_are() {
        for failing in [None, Some(0), Some(2)] {
            let all: Vec<Event> = (0..10).map(|n| large(n, 20_000)).collect();
            let (request, receipt) = rest(all.clone());
            let mut waiting = VecDeque::from([request]);
            let mut groups = Vec::new();
            while let Some(group) = next(&mut waiting, 100_000) {
                assert!(group.record.len() <= 100_000 - RESERVED_BYTES);
                groups.push(group);
            }
            assert_eq!(groups.len(), 3);
            assert_eq!(groups.iter().flat_map(events_of).collect::<Vec<_>>(), all);
            for (n, group) in groups.into_iter().enumerate() {
                group.settle(&if failing == Some(n) { Outcome::failed("away") } else { Outcome::Delivered });
            }
            let expected = if failing.is_some() { Outcome::failed("away") } else { Outcome::Delivered };
            assert_eq!(receipt.outcome().await, expected);
        }
    }

    #[tokio::test]
    async fn an_event_that_no_message_can_hold_is_refused_alone() {
        let fits = 100_000 - RESERVED_BYTES - HEADER_BYTES - record::encoded_bytes(&large(0, 0));
        let (request, receipt) = rest(vec![large(0, fits), large(1, fits + 1), large(2, 5)]);
        let mut waiting = VecDeque::from([request]);
        let groups: Vec<Group> = std::iter::from_fn(|| next(&mut waiting, 100_000)).collect();
        assert_eq!(groups.iter().map(|group| events_of(group).len()).collect::<Vec<_>>(), [1, 1]);
        groups.into_iter().for_each(|group| group.settle(&Outcome::Delivered));
        let Outcome::Rejected(rejections) = receipt.outcome().await else { panic!("it is not refused") };
        assert_eq!((rejections.len(), rejections[0].index), (1, 1));
        assert!(rejections[0].reason.contains("lets through 100000 (`max_payload`)"), "{rejections:?}");
    }
}

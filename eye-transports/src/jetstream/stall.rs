//! Detection of a consumer that does not deliver although it should, from the server's own numbers.
//!
//! A killed nats-server forgets some of what it was told (seen with 2.9.10). It may restore messages that were acknowledged and
//! removed; it neither delivers nor removes those, so they occupy space for ever. And it may wait for acknowledgements of messages
//! that it no longer has: whenever it looks for one of them, to deliver it again, it delivers nothing else until the next message
//! or request arrives. A recreated consumer has neither problem, because it begins with the messages in the stream. Sinks store
//! once what it delivers twice.

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::stream::State;
use eye_nats::durable::MAX_ACK_PENDING;

/// Equal snapshots in a row that are a sign of a stall. Doubled each time that recreating the consumer did not help.
const MIN_SNAPSHOTS: u32 = 3;
const MAX_SNAPSHOTS: u32 = 600;

/// A sign of a stalled consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StallSign {
    /// The consumer has messages and pull requests, and delivers nothing.
    DeliversNothing,
    /// No number changes: the messages that the consumer reports must be counted in the stream.
    NothingMoves,
}

/// The history of one consumer on one connection.
#[derive(Debug)]
pub(super) struct StallDetector {
    last: Option<ConsumerSnapshot>,
    /// Snapshots in a row that show the same sign.
    same: u32,
    required: u32,
    /// The messages were counted, and nothing has moved since.
    is_counted: bool,
}

impl Default for StallDetector {
    fn default() -> Self {
        Self { last: None, same: 0, required: MIN_SNAPSHOTS, is_counted: false }
    }
}

impl StallDetector {
    /// Adds a snapshot. Returns a sign that enough snapshots in a row have shown.
    pub(super) fn observe(&mut self, snapshot: ConsumerSnapshot) -> Option<StallSign> {
        let before = self.last.replace(snapshot)?;
        let has_moved = ConsumerSnapshot { is_asked: before.is_asked, ..snapshot } != before;
        self.is_counted &= !has_moved;
        let delivered_nothing = snapshot.delivered() == before.delivered();
        let sign = match () {
            () if snapshot.should_deliver() && before.should_deliver() && delivered_nothing => {
                StallSign::DeliversNothing
            }
            () if !has_moved && !self.is_counted => StallSign::NothingMoves,
            () => {
                self.same = 0;
                return None;
            }
        };
        self.same += 1;
        (self.same + 1 >= self.required).then_some(sign)
    }

    /// Compares the messages that the consumer reports with those that were counted in the stream: false when they differ.
    /// True also when a number has changed since the last snapshot, because the comparison says nothing then.
    pub(super) fn confirm_count(&mut self, snapshot: ConsumerSnapshot, messages: u64) -> bool {
        let has_moved = self.last.is_some_and(|last| last != snapshot);
        if !has_moved && messages != snapshot.pending + snapshot.ack_pending as u64 {
            return false;
        }
        (self.is_counted, self.required, self.same) = (!has_moved, MIN_SNAPSHOTS, 0);
        true
    }

    /// Begins a new history, and requires twice as many snapshots.
    pub(super) fn consumer_recreated(&mut self) {
        *self = Self { required: (self.required * 2).min(MAX_SNAPSHOTS), ..Self::default() };
    }
}

/// The numbers of a consumer and its stream at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConsumerSnapshot {
    /// Creation of the consumer, in nanoseconds.
    created: i128,
    deliveries: u64,
    ack_floor: u64,
    pending: u64,
    ack_pending: usize,
    /// A pull request is waiting.
    is_asked: bool,
    /// Messages that the stream has ever taken, and has now.
    published: u64,
    messages: u64,
}

impl ConsumerSnapshot {
    pub(super) fn new(consumer: &Info, stream: &State) -> Self {
        Self {
            created: consumer.created.unix_timestamp_nanos(),
            deliveries: consumer.delivered.consumer_sequence,
            ack_floor: consumer.ack_floor.consumer_sequence,
            pending: consumer.num_pending,
            ack_pending: consumer.num_ack_pending,
            is_asked: consumer.num_waiting > 0,
            published: stream.last_sequence,
            messages: stream.messages,
        }
    }

    fn should_deliver(&self) -> bool {
        self.pending > 0 && self.is_asked && self.ack_pending < MAX_ACK_PENDING as usize
    }

    fn delivered(&self) -> (i128, u64) {
        (self.created, self.deliveries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: ConsumerSnapshot = ConsumerSnapshot {
        created: 1,
        deliveries: 10,
        ack_floor: 8,
        pending: 0,
        ack_pending: 2,
        is_asked: true,
        published: 20,
        messages: 2,
    };

    /// Counts the snapshots until the first sign.
    fn snapshots_until_sign(detector: &mut StallDetector, snapshot: ConsumerSnapshot) -> Option<(usize, StallSign)> {
        (1..1000).find_map(|n| Some((n, detector.observe(snapshot)?)))
    }

    #[test]
    fn delivering_nothing_while_more_arrives_is_a_sign() {
        let mut detector = StallDetector::default();
        let mut signs = (0..3).map(|n| {
            detector.observe(ConsumerSnapshot { pending: 1 + n, published: 21 + n, messages: 3 + n, ..QUIET })
        });
        assert!(signs.by_ref().take(2).all(|sign| sign.is_none()));
        assert_eq!(signs.next(), Some(Some(StallSign::DeliversNothing)));
    }

    #[test]
    fn consumer_without_requests_or_acks_is_not_stalled() {
        for (snapshot, messages) in [
            (ConsumerSnapshot { pending: 1, is_asked: false, ..QUIET }, 3),
            (
                ConsumerSnapshot { pending: 1, ack_pending: MAX_ACK_PENDING as usize, ..QUIET },
                1 + MAX_ACK_PENDING as u64,
            ),
        ] {
            let mut detector = StallDetector::default();
            assert_eq!(snapshots_until_sign(&mut detector, snapshot), Some((3, StallSign::NothingMoves)));
            assert!(detector.confirm_count(snapshot, messages));
            assert_eq!(snapshots_until_sign(&mut detector, snapshot), None);
        }
    }

    #[test]
    fn confirmed_count_holds_until_something_moves() {
        let mut detector = StallDetector::default();
        assert_eq!(snapshots_until_sign(&mut detector, QUIET), Some((3, StallSign::NothingMoves)));
        assert!(detector.confirm_count(QUIET, 2));
        assert_eq!(snapshots_until_sign(&mut detector, QUIET), None);
        assert_eq!(snapshots_until_sign(&mut detector, ConsumerSnapshot { is_asked: false, ..QUIET }), None);
        let moved = ConsumerSnapshot { ack_floor: 9, ack_pending: 1, messages: 1, ..QUIET };
        assert_eq!(snapshots_until_sign(&mut detector, moved), Some((3, StallSign::NothingMoves)));
    }

    #[test]
    fn count_differs_unless_messages_moved_meanwhile() {
        let mut detector = StallDetector::default();
        detector.observe(QUIET);
        for messages in [1, 3] {
            assert!(!detector.confirm_count(QUIET, messages));
        }
        for moved in
            [ConsumerSnapshot { published: 21, messages: 3, ..QUIET }, ConsumerSnapshot { messages: 1, ..QUIET }]
        {
            assert!(detector.confirm_count(moved, moved.messages));
            assert_eq!(snapshots_until_sign(&mut detector, QUIET), Some((2, StallSign::NothingMoves)));
        }
    }

    #[test]
    fn stalled_consumer_is_recreated_ever_less_often() {
        let mut detector = StallDetector::default();
        for expected in [3, 6, 12, 24, 48, 96, 192, 384, 600, 600] {
            assert_eq!(snapshots_until_sign(&mut detector, QUIET), Some((expected, StallSign::NothingMoves)));
            detector.consumer_recreated();
        }
    }
}

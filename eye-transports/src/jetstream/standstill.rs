//! Finds a consumer that stands still and should not, by the server's own numbers.
//!
//! A nats-server that is killed forgets some of what it was told (seen with 2.9.10). It brings back messages that were
//! acknowledged and removed, which it then neither delivers nor removes: they take room for good. And it waits for acks of
//! messages that it does not have any more: whenever it looks for one of them, to deliver it again, it delivers nothing
//! else, until the next message or request comes. A consumer that is made anew is free of both, and begins with what is
//! there; whatever that delivers twice, the sinks store once.

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::stream::State;
use eye_nats::consumer::MAX_ACK_PENDING;

/// So many looks in a row must show the same, and twice as many each time that to make the consumer anew did not help.
const MIN_LOOKS: u32 = 3;
const MAX_LOOKS: u32 = 600;

/// What is odd about a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// It has messages, and requests for them wait.
    DeliversNothing,
    /// Nothing comes and nothing goes: the messages that it has must be those that the stream has for it.
    NothingMoves,
}

/// What is known of one consumer on one connection.
#[derive(Debug)]
pub(super) struct Standstill {
    last: Option<Look>,
    /// Looks that showed the same.
    same: u32,
    patience: u32,
    /// The messages were counted, and nothing has moved since.
    is_counted: bool,
}

impl Default for Standstill {
    fn default() -> Self {
        Self { last: None, same: 0, patience: MIN_LOOKS, is_counted: false }
    }
}

impl Standstill {
    /// Notes what the server says now. Something, when it has been odd for long enough.
    pub(super) fn note(&mut self, look: Look) -> Option<Suspicion> {
        let before = self.last.replace(look)?;
        let has_moved = Look { is_asked: before.is_asked, ..look } != before;
        self.is_counted &= !has_moved;
        let suspicion = match () {
            () if look.should_deliver() && before.should_deliver() && look.delivered() == before.delivered() => {
                Suspicion::DeliversNothing
            }
            () if !has_moved && !self.is_counted => Suspicion::NothingMoves,
            () => {
                self.same = 0;
                return None;
            }
        };
        self.same += 1;
        (self.same + 1 >= self.patience).then_some(suspicion)
    }

    /// Whether the consumer owes the messages that the stream was counted to have for it, as far as that can be said: not
    /// when something has moved since it was last looked at.
    pub(super) fn is_right(&mut self, look: Look, messages: u64) -> bool {
        let has_moved = self.last.is_some_and(|last| last != look);
        if !has_moved && messages != look.pending + look.ack_pending as u64 {
            return false;
        }
        (self.is_counted, self.patience, self.same) = (!has_moved, MIN_LOOKS, 0);
        true
    }

    /// The consumer is another one now.
    pub(super) fn made_anew(&mut self) {
        *self = Self { patience: (self.patience * 2).min(MAX_LOOKS), ..Self::default() };
    }
}

/// What the server says of a consumer and its stream at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// When the consumer was made, in nanoseconds.
    created: i128,
    /// How often it delivered something.
    deliveries: u64,
    ack_floor: u64,
    pending: u64,
    ack_pending: usize,
    /// Somebody waits for messages.
    is_asked: bool,
    /// Messages that the stream has ever taken, and has now.
    published: u64,
    messages: u64,
}

impl Look {
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

    const QUIET: Look = Look {
        created: 1,
        deliveries: 10,
        ack_floor: 8,
        pending: 0,
        ack_pending: 2,
        is_asked: true,
        published: 20,
        messages: 2,
    };

    /// How often it has to be noted until it is odd.
    fn looks(standstill: &mut Standstill, look: Look) -> Option<(usize, Suspicion)> {
        (1..1000).find_map(|n| Some((n, standstill.note(look)?)))
    }

    #[test]
    fn a_consumer_that_delivers_nothing_while_more_comes_is_odd() {
        let mut standstill = Standstill::default();
        let mut suspicions =
            (0..3).map(|n| standstill.note(Look { pending: 1 + n, published: 21 + n, messages: 3 + n, ..QUIET }));
        assert!(suspicions.by_ref().take(2).all(|suspicion| suspicion.is_none()));
        assert_eq!(suspicions.next(), Some(Some(Suspicion::DeliversNothing)));
    }

    #[test]
    fn a_consumer_that_may_deliver_nothing_is_not_odd() {
        for (look, messages) in [
            (Look { pending: 1, is_asked: false, ..QUIET }, 3),
            (Look { pending: 1, ack_pending: MAX_ACK_PENDING as usize, ..QUIET }, 1 + MAX_ACK_PENDING as u64),
        ] {
            let mut standstill = Standstill::default();
            assert_eq!(looks(&mut standstill, look), Some((3, Suspicion::NothingMoves)));
            assert!(standstill.is_right(look, messages));
            assert_eq!(looks(&mut standstill, look), None);
        }
    }

    #[test]
    fn what_was_right_is_right_until_something_moves() {
        let mut standstill = Standstill::default();
        assert_eq!(looks(&mut standstill, QUIET), Some((3, Suspicion::NothingMoves)));
        assert!(standstill.is_right(QUIET, 2));
        assert_eq!(looks(&mut standstill, QUIET), None);
        assert_eq!(looks(&mut standstill, Look { is_asked: false, ..QUIET }), None);
        let moved = Look { ack_floor: 9, ack_pending: 1, messages: 1, ..QUIET };
        assert_eq!(looks(&mut standstill, moved), Some((3, Suspicion::NothingMoves)));
    }

    #[test]
    fn another_number_of_messages_counts_unless_one_came_or_went_meanwhile() {
        let mut standstill = Standstill::default();
        standstill.note(QUIET);
        for messages in [1, 3] {
            assert!(!standstill.is_right(QUIET, messages));
        }
        for moved in [Look { published: 21, messages: 3, ..QUIET }, Look { messages: 1, ..QUIET }] {
            assert!(standstill.is_right(moved, moved.messages));
            assert_eq!(looks(&mut standstill, QUIET), Some((2, Suspicion::NothingMoves)));
        }
    }

    #[test]
    fn a_consumer_that_stays_odd_is_made_anew_less_and_less_often() {
        let mut standstill = Standstill::default();
        for expected in [3, 6, 12, 24, 48, 96, 192, 384, 600, 600] {
            assert_eq!(looks(&mut standstill, QUIET), Some((expected, Suspicion::NothingMoves)));
            standstill.made_anew();
        }
    }
}

//! How many messages the client library has dropped, because they came faster than they were read. It tells of some of
//! them only, but counts what it receives.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{Client, Statistics};
use eye_nats::connection::SUBSCRIPTION_CAPACITY;

pub(super) struct Unread {
    statistics: Arc<Statistics>,
    /// Messages that may wait to be read, and the one that was taken and is not noted yet.
    capacity: u64,
    read: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// Of so many the library has told.
    by_library: u64,
    /// Of so many we have.
    by_us: u64,
}

impl Unread {
    pub(super) fn new(client: &Client, subscriptions: usize) -> Self {
        let capacity = (subscriptions * SUBSCRIPTION_CAPACITY) as u64 + 1;
        Self { statistics: client.statistics(), capacity, read: AtomicU64::new(0), told: Mutex::default() }
    }

    /// A message was read: of a subscription, or the server's answer to a new connection.
    pub(super) fn note_read(&self) {
        self.read.fetch_add(1, Relaxed);
    }

    /// The library tells that it has dropped a message: so many more were dropped than is known, at least. The others
    /// may still wait to be read.
    pub(super) fn dropped(&self) -> usize {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.by_library += 1;
        let dropped = self.missing().saturating_sub(self.capacity).max(told.by_library);
        told.note(dropped)
    }

    /// Nothing will be read any more: so many more were dropped than is known.
    pub(super) fn at_end(&self) -> usize {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer to a connection that was lost at once is not known here, and no message.
        let dropped = if told.by_library > 0 { self.missing() } else { 0 };
        told.note(dropped)
    }

    /// Received, but not read.
    fn missing(&self) -> u64 {
        let read = self.read.load(Relaxed);
        self.statistics.in_messages.load(Relaxed).saturating_sub(read)
    }
}

impl Told {
    /// Of those that were dropped, so many are not told yet; now they are.
    fn note(&mut self, dropped: u64) -> usize {
        let more = dropped.saturating_sub(self.by_us);
        self.by_us += more;
        more as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unread() -> Unread {
        Unread { statistics: Arc::default(), capacity: 10, read: AtomicU64::new(0), told: Mutex::default() }
    }

    fn receive(unread: &Unread, messages: u64) {
        unread.statistics.in_messages.fetch_add(messages, Relaxed);
    }

    #[test]
    fn each_message_that_was_dropped_is_told_once() {
        let unread = unread();
        receive(&unread, 11);
        assert_eq!(unread.dropped(), 1, "ten wait");
        receive(&unread, 100);
        assert_eq!(unread.dropped(), 100, "of most of them the library says nothing");
        (0..10).for_each(|_| unread.note_read());
        assert_eq!(unread.dropped(), 0, "it is among those that are known");
        assert_eq!(unread.at_end(), 0);
        receive(&unread, 5);
        assert_eq!(unread.at_end(), 5);
        assert_eq!(unread.at_end(), 0);
    }

    #[test]
    fn what_the_library_tells_of_is_told_though_nothing_waits() {
        let unread = unread();
        receive(&unread, 11);
        (0..10).for_each(|_| unread.note_read());
        assert_eq!(unread.dropped(), 1);
        assert_eq!(unread.at_end(), 0);
    }

    #[test]
    fn where_nothing_was_dropped_nothing_is_lost() {
        let unread = unread();
        receive(&unread, 1);
        assert_eq!(unread.at_end(), 0);
    }
}

//! The number of messages that the client library has dropped, because they arrived faster than they were read.
//!
//! The library reports only some of the drops, but counts what it receives: [`DropCounter`] compares that with what was read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{Client, Statistics};
use eye_nats::connection::SUBSCRIPTION_CAPACITY;

pub(super) struct DropCounter {
    statistics: Arc<Statistics>,
    /// Messages that may be queued, and the one that was taken and is not counted yet.
    capacity: u64,
    read: AtomicU64,
    reported: Mutex<ReportedDrops>,
}

#[derive(Default)]
struct ReportedDrops {
    by_library: u64,
    by_source: u64,
}

impl DropCounter {
    pub(super) fn new(client: &Client, subscriptions: usize) -> Self {
        let capacity = (subscriptions * SUBSCRIPTION_CAPACITY) as u64 + 1;
        Self { statistics: client.statistics(), capacity, read: AtomicU64::new(0), reported: Mutex::default() }
    }

    /// Counts a message that was read: of a subscription, or the server's answer to a new connection.
    pub(super) fn note_read(&self) {
        self.read.fetch_add(1, Relaxed);
    }

    /// Counts a drop that the library reports. Returns the least number of unreported drops: further messages may still be
    /// queued.
    pub(super) fn dropped(&self) -> usize {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.by_library += 1;
        let dropped = self.missing().saturating_sub(self.capacity).max(reported.by_library);
        reported.add_up_to(dropped)
    }

    /// Returns the number of unreported drops once nothing more is read.
    pub(super) fn at_end(&self) -> usize {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a reported drop, a missing message is the answer to a connection that was lost at once.
        let dropped = if reported.by_library > 0 { self.missing() } else { 0 };
        reported.add_up_to(dropped)
    }

    /// Returns the number of messages that were received and not read.
    fn missing(&self) -> u64 {
        let read = self.read.load(Relaxed);
        self.statistics.in_messages.load(Relaxed).saturating_sub(read)
    }
}

impl ReportedDrops {
    /// Marks so many drops as reported. Returns the number of those that were not.
    fn add_up_to(&mut self, dropped: u64) -> usize {
        let more = dropped.saturating_sub(self.by_source);
        self.by_source += more;
        more as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> DropCounter {
        DropCounter { statistics: Arc::default(), capacity: 10, read: AtomicU64::new(0), reported: Mutex::default() }
    }

    fn receive(counter: &DropCounter, messages: u64) {
        counter.statistics.in_messages.fetch_add(messages, Relaxed);
    }

    #[test]
    fn each_drop_is_reported_once() {
        let counter = counter();
        receive(&counter, 11);
        assert_eq!(counter.dropped(), 1, "ten are queued");
        receive(&counter, 100);
        assert_eq!(counter.dropped(), 100, "the library reports few of them");
        (0..10).for_each(|_| counter.note_read());
        assert_eq!(counter.dropped(), 0, "it was reported before");
        assert_eq!(counter.at_end(), 0);
        receive(&counter, 5);
        assert_eq!(counter.at_end(), 5);
        assert_eq!(counter.at_end(), 0);
    }

    #[test]
    fn reported_drop_counts_with_empty_queue() {
        let counter = counter();
        receive(&counter, 11);
        (0..10).for_each(|_| counter.note_read());
        assert_eq!(counter.dropped(), 1);
        assert_eq!(counter.at_end(), 0);
    }

    #[test]
    fn nothing_dropped_is_nothing_lost() {
        let counter = counter();
        receive(&counter, 1);
        assert_eq!(counter.at_end(), 0);
    }
}

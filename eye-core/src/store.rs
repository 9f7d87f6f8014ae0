//! What a sink can answer: the read side of a store.

use async_trait::async_trait;

use crate::event::{Event, EventId};
use crate::timestamp::Timestamp;

/// Answers queries for stored events, newest first.
///
/// The order is `timestamp` descending, then `id` descending: it is total, and the same on every page.
#[async_trait]
pub trait EventStore: Send + Sync {
    /// One page and the exact count of all events that match the filter, both from one snapshot.
    ///
    /// Safe to drop at any time: the store runs its database work to its end elsewhere.
    ///
    /// # Errors
    /// [`StoreError`] when the store is away or cannot answer.
    async fn query(&self, query: EventQuery) -> Result<EventPage, StoreError>;
}

/// Which events, and which page of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// Which events match.
    pub filter: EventFilter,
    /// Where the page starts.
    pub start: PageStart,
    /// How many events the page has at most; the caller has checked it against [`MAX_PAGE_EVENTS`].
    pub limit: u32,
}

/// The most events one page may have. A store may cut a larger `limit` to it.
pub const MAX_PAGE_EVENTS: u32 = 1000;

/// A page ends with the event that brings it to so many bytes of events, so that what a query takes is bounded, too.
pub const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;

/// Exact, case-sensitive conditions, combined with AND. `None` matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// The event's session.
    pub session_id: Option<String>,
    /// The event's category.
    pub category: Option<String>,
    /// The event's name.
    pub name: Option<String>,
    /// Not before this instant (inclusive).
    pub timestamp_after: Option<Timestamp>,
    /// Not after this instant (inclusive).
    pub timestamp_before: Option<Timestamp>,
}

/// Where a page starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PageStart {
    /// With the newest event.
    #[default]
    Newest,
    /// After so many events, counted from the newest.
    Offset(u64),
    /// With the first event that is older than this one.
    OlderThan(EventKey),
    /// So that the page ends with the last event that is newer than this one.
    NewerThan(EventKey),
}

/// An event's place in the order of all events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventKey {
    /// When the event happened.
    pub timestamp: Timestamp,
    /// Breaks ties.
    pub id: EventId,
}

impl Event {
    /// The event's place in the order of all events.
    pub fn key(&self) -> EventKey {
        EventKey { timestamp: self.timestamp(), id: self.id() }
    }
}

/// One page of events.
#[derive(Clone, Debug, Default)]
pub struct EventPage {
    /// Events that match the filter, on whatever page.
    pub count: u64,
    /// The page, newest first.
    pub events: Vec<Event>,
    /// Whether matching events older than the page's last exist.
    pub has_older: bool,
    /// Whether matching events newer than the page's first exist.
    pub has_newer: bool,
}

/// Why a store gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is away or too busy; asking again later may help.
    #[error("the store is away: {reason}")]
    Unavailable {
        /// What the store said, for the log: no secrets, no data of events.
        reason: String,
    },
    /// The store answered with an error; asking again will not help.
    #[error("the store could not answer: {reason}")]
    Failed {
        /// What the store said, for the log: no secrets, no data of events.
        reason: String,
    },
}

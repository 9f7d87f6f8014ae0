//! The read side of a sink: queries for stored events.
//!
//! Read [`EventStore`] first. Every store must pass the conformance suite in `testkit::store`.

use async_trait::async_trait;

use crate::event::{Event, EventKey};
use crate::timestamp::Timestamp;

/// Answers queries for stored events, newest first.
///
/// The order is `timestamp` descending, then `id` descending: it is total, and the same on every page.
#[async_trait]
pub trait EventStore: Send + Sync {
    /// Returns one page and the exact count of all events that match the filter, both from one snapshot.
    ///
    /// Safe to drop at any time: the store finishes its database work in the background.
    ///
    /// # Errors
    /// [`StoreError`] when the store is unavailable or cannot answer.
    async fn page(&self, query: EventQuery) -> Result<EventPage, StoreError>;
}

/// A query for one page of the matching events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// The conditions on events.
    pub filter: EventFilter,
    /// The start of the page.
    pub start: PageStart,
    /// The most events of the page; the caller keeps it within [`MAX_PAGE_EVENTS`].
    pub limit: u32,
}

/// The most events that one page may have. A store may cut a larger `limit` to it.
pub const MAX_PAGE_EVENTS: u32 = 1000;

/// The bytes of events after which a page ends, so that the memory of a query is bounded. The event that reaches the
/// bound is the last one of the page.
pub const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;

/// Exact, case-sensitive conditions, combined with AND. `None` matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// The session's id.
    pub session_id: Option<String>,
    /// The category.
    pub category: Option<String>,
    /// The name.
    pub name: Option<String>,
    /// The earliest time, inclusive.
    pub timestamp_after: Option<Timestamp>,
    /// The latest time, inclusive.
    pub timestamp_before: Option<Timestamp>,
}

/// The start of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PageStart {
    /// The newest event.
    #[default]
    Newest,
    /// The event after so many, counted from the newest.
    Offset(u64),
    /// The first event that is older than this one.
    OlderThan(EventKey),
    /// The page that ends with the last event that is newer than this one.
    NewerThan(EventKey),
}

/// One page of events.
#[derive(Clone, Debug, Default)]
pub struct EventPage {
    /// The number of events that match the filter, on all pages.
    pub count: u64,
    /// The events of the page, newest first.
    pub events: Vec<Event>,
    /// True if matching events older than the page's last exist.
    pub has_older: bool,
    /// True if matching events newer than the page's first exist.
    pub has_newer: bool,
}

/// A query without an answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is unavailable or too busy; asking again later may help.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// The store's message, for the log: no secrets, no data of events.
        reason: String,
    },
    /// The store answered with an error; asking again will not help.
    #[error("the store could not answer: {reason}")]
    Failed {
        /// The store's message, for the log: no secrets, no data of events.
        reason: String,
    },
}

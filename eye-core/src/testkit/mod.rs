//! Conformance suites: the obligations of sinks, stores and transports, as tests that every plug-in can run.
//!
//! A plug-in's own test makes a fixture and calls the suite:
//!
//! ```
//! # use eye_core::event::Event;
//! # use eye_core::sink::{BuiltSink, Sink, WriteError, Written};
//! use eye_core::testkit::sink::{SinkFixture, suite};
//! # use std::collections::BTreeMap;
//! # use std::sync::{Arc, Mutex};
//! # type Events = Arc<Mutex<BTreeMap<eye_core::event::EventKey, Event>>>;
//! # struct MySink(Events);
//! # #[async_trait::async_trait]
//! # impl Sink for MySink {
//! #     async fn write(&self, batch: &[Event]) -> Result<Written, WriteError> {
//! #         let mut stored = self.0.lock().unwrap();
//! #         for event in batch {
//! #             stored.entry(event.key()).or_insert_with(|| event.clone());
//! #         }
//! #         Ok(Written::default())
//! #     }
//! # }
//!
//! /// A storage, empty at first.
//! struct MyStorage {
//!     // a temporary folder, a database of its own …
//! #   events: Events,
//! }
//!
//! #[async_trait::async_trait]
//! impl SinkFixture for MyStorage {
//!     async fn open(&self) -> BuiltSink {
//!         // the sink, over this storage
//! #       BuiltSink::write_only(MySink(self.events.clone()))
//!     }
//!
//!     async fn stored(&self) -> Vec<Event> {
//!         // every event in this storage, read without the sink
//! #       self.events.lock().unwrap().values().cloned().collect()
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! // In a #[tokio::test]:
//! suite(async || MyStorage {
//!     // …
//! #   events: Events::default(),
//! })
//! .await;
//! # }
//! ```
//!
//! A suite panics at the first case that does not hold; each case prints its name before it starts.

#![allow(clippy::unwrap_used, reason = "a suite fails by panicking")]

pub mod sink;
pub mod store;
pub mod strategy;
pub mod transport;

use std::sync::{Arc, LazyLock};

use uuid::Uuid;

use crate::event::{Event, EventFields, Origin};
use crate::timestamp::Timestamp;

/// The origin of the suites' events.
static ORIGIN: LazyLock<Arc<Origin>> = LazyLock::new(|| Arc::new(Origin::new("test", None)));

/// Returns the origin of the suites' events.
pub fn origin() -> &'static Arc<Origin> {
    &ORIGIN
}

/// 2021-01-01T00:00:00Z, the time of the suites' first event.
const START_MICROS: i64 = 1_609_459_200_000_000;

/// Returns the `n`th event of a fixed sequence: one each millisecond, in 10 sessions, 3 categories and 5 names.
pub fn event(n: u32) -> Event {
    event_with(n, &format!("name {}", n % 5), &format!(r#"{{"n":{n},"path":"/"}}"#))
}

/// Returns the same event as [`event`], with another name and other data.
pub fn event_with(n: u32, name: &str, data: &str) -> Event {
    Event::from(EventFields {
        id: Uuid::from_u128(u128::from(n) + 1),
        timestamp: timestamp(n),
        received_at: timestamp(n + 5),
        session_id: &format!("session {}", n % 10),
        category: &format!("category {}", n % 3),
        name,
        data,
        origin: origin(),
    })
}

/// Returns the time of the `n`th event.
pub fn timestamp(n: u32) -> Timestamp {
    Timestamp::from_micros(START_MICROS + i64::from(n) * 1000).unwrap()
}

/// Returns the events `from` to `to`, `to` excluded.
pub fn events(from: u32, to: u32) -> Vec<Event> {
    (from..to).map(event).collect()
}

/// Asserts that two lists hold the same events, in any order.
#[track_caller]
pub fn assert_same_events(actual: &[Event], expected: &[Event]) {
    let sorted = |events: &[Event]| {
        let mut events = events.to_vec();
        events.sort_by_key(Event::key);
        events
    };
    let (actual, expected) = (sorted(actual), sorted(expected));
    assert_eq!(actual.len(), expected.len(), "how many events are stored");
    for (actual, expected) in actual.iter().zip(&expected) {
        assert_eq!(actual, expected);
    }
}

//! Helpers for the tests of all sinks.
#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses a part of it")]

use std::ops::Deref;

use eye_core::context::BuildContext;
use eye_core::error::BuildError;
use eye_core::event::{Event, EventFields};
use eye_core::sink::{BuiltSink, Sink, SinkConfig};
use eye_core::store::{EventFilter, EventPage, EventQuery, EventStore, PageStart};
use eye_core::testkit::origin;
use eye_core::timestamp::Timestamp;
use serde::de::value::{Error, MapDeserializer};
use uuid::Uuid;

/// Parses a configuration that has a URL alone.
pub(crate) fn parse<C: SinkConfig>(url: &str) -> Result<C, String> {
    let keys = MapDeserializer::<_, Error>::new([("url", url)].into_iter());
    C::deserialize(keys).map_err(|error| error.to_string())
}

/// A sink that answers queries.
pub(crate) struct Node(pub(crate) BuiltSink);

impl Deref for Node {
    type Target = dyn Sink;

    fn deref(&self) -> &Self::Target {
        &*self.0.sink
    }
}

impl Node {
    pub(crate) fn store(&self) -> &dyn EventStore {
        self.0.store.as_deref().unwrap()
    }
}

/// Opens a sink that is ready to write.
pub(crate) async fn open<C: SinkConfig>(url: &str) -> Node {
    let node = build::<C>(url).await;
    node.prepare().await.unwrap();
    node
}

pub(crate) async fn build<C: SinkConfig>(url: &str) -> Node {
    Node(try_build::<C>(url).await.unwrap())
}

pub(crate) async fn try_build<C: SinkConfig>(url: &str) -> Result<BuiltSink, BuildError> {
    parse::<C>(url).unwrap().build(&BuildContext::standalone("sinks.store")).await
}

/// Creates event number `number`, one microsecond newer than its predecessor.
pub(crate) fn event(number: u64) -> Event {
    named(number, "name", "{}")
}

pub(crate) fn named(number: u64, name: &str, data: &str) -> Event {
    Event::from(EventFields {
        id: Uuid::from_u128(u128::from(number) + 1),
        timestamp: Timestamp::from_micros(1_600_000_000_000_000 + i64::try_from(number).unwrap()).unwrap(),
        received_at: Timestamp::from_micros(1_700_000_000_000_000).unwrap(),
        session_id: "session",
        category: "category",
        name,
        data,
        origin: origin(),
    })
}

/// Creates an event at an instant.
pub(crate) fn at(timestamp: Timestamp) -> Event {
    let (id, received_at, origin) = (Uuid::max(), timestamp, origin());
    Event::from(EventFields {
        id,
        timestamp,
        received_at,
        session_id: "s",
        category: "c",
        name: "n",
        data: "1",
        origin,
    })
}

pub(crate) async fn newest(node: &Node, limit: u32) -> EventPage {
    page(node, PageStart::Newest, limit).await
}

pub(crate) async fn page(node: &Node, start: PageStart, limit: u32) -> EventPage {
    query(node, EventFilter::default(), start, limit).await
}

pub(crate) async fn matching(node: &Node, filter: EventFilter) -> EventPage {
    query(node, filter, PageStart::Newest, 1000).await
}

pub(crate) async fn query(node: &Node, filter: EventFilter, start: PageStart, limit: u32) -> EventPage {
    node.store().page(EventQuery { filter, start, limit }).await.unwrap()
}

/// Checks that a page beside a key reports the event of the key as its neighbour.
pub(crate) async fn assert_page_reports_event_of_its_key(node: &Node) {
    let [older, newer] = [1, 2].map(event);
    node.write(&[older.clone(), newer.clone()]).await.unwrap();
    let page_older = page(node, PageStart::OlderThan(newer.key()), 10).await;
    assert_eq!((page_older.events.as_slice(), page_older.has_newer), ([older.clone()].as_slice(), true));
    let page_newer = page(node, PageStart::NewerThan(older.key()), 10).await;
    assert_eq!((page_newer.events.as_slice(), page_newer.has_older), ([newer].as_slice(), true));
}

//! Helpers for the tests of all sinks.
#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses a part of it")]

use eye_core::event::{Event, EventFields};
use eye_core::sink::{Sink, SinkConfig};
use eye_core::store::{EventFilter, EventPage, EventQuery, PageStart};
use eye_core::timestamp::Timestamp;
use serde::de::value::{Error, MapDeserializer};
use uuid::Uuid;

/// Parses a configuration that has a URL alone.
pub(crate) fn parse<C: SinkConfig>(url: &str) -> Result<C, String> {
    let keys = MapDeserializer::<_, Error>::new([("url", url)].into_iter());
    C::deserialize(keys).map_err(|error| error.to_string())
}

/// Opens a sink that is ready to write.
pub(crate) async fn open<C: SinkConfig>(url: &str) -> Box<dyn Sink> {
    let sink = build::<C>(url).await;
    sink.prepare().await.unwrap();
    sink
}

pub(crate) async fn build<C: SinkConfig>(url: &str) -> Box<dyn Sink> {
    parse::<C>(url).unwrap().build().await.unwrap()
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
    })
}

/// Creates an event at an instant.
pub(crate) fn at(timestamp: Timestamp) -> Event {
    let (id, received_at) = (Uuid::max(), timestamp);
    Event::from(EventFields { id, timestamp, received_at, session_id: "s", category: "c", name: "n", data: "1" })
}

pub(crate) async fn newest(sink: &dyn Sink, limit: u32) -> EventPage {
    page(sink, PageStart::Newest, limit).await
}

pub(crate) async fn page(sink: &dyn Sink, start: PageStart, limit: u32) -> EventPage {
    query(sink, EventFilter::default(), start, limit).await
}

pub(crate) async fn matching(sink: &dyn Sink, filter: EventFilter) -> EventPage {
    query(sink, filter, PageStart::Newest, 1000).await
}

pub(crate) async fn query(sink: &dyn Sink, filter: EventFilter, start: PageStart, limit: u32) -> EventPage {
    sink.store().unwrap().query(EventQuery { filter, start, limit }).await.unwrap()
}

/// Checks that a page beside a key reports the event of the key as its neighbour.
pub(crate) async fn assert_page_reports_event_of_its_key(sink: &dyn Sink) {
    let [older, newer] = [1, 2].map(event);
    sink.write(&[older.clone(), newer.clone()]).await.unwrap();
    let page_older = page(sink, PageStart::OlderThan(newer.key()), 10).await;
    assert_eq!((page_older.events.as_slice(), page_older.has_newer), ([older.clone()].as_slice(), true));
    let page_newer = page(sink, PageStart::NewerThan(older.key()), 10).await;
    assert_eq!((page_newer.events.as_slice(), page_newer.has_older), ([newer].as_slice(), true));
}

//! Exact counts on all three databases, whatever happens to the maintained counts.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "counts/store.rs"]
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{Datelike, NaiveDate};
use common::{Node, event, matching, newest, open};
use eye_core::event::{Event, EventFields, EventKey};
use eye_core::sink::{SinkConfig, WriteError};
use eye_core::store::{EventFilter, PageStart};
use eye_core::testkit::origin;
use eye_core::timestamp::Timestamp;
use eye_harness::{DatabaseServer, MariaDb, Postgres};
use eye_migration::period::{FIRST_DAY, FIRST_MONTH};
use eye_sinks::{MysqlConfig, PostgresConfig, SqliteConfig};
use fastrand::Rng;
use store::Store;
use tokio::task::{JoinSet, block_in_place};

/// Runs each case on all databases.
macro_rules! on_all {
    ($($case:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case::<super::SqliteConfig>(super::Store::file()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case::<super::PostgresConfig>(super::Store::on(super::Postgres::shared())).await;
            })*
        }
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case::<super::MysqlConfig>(super::Store::on(super::MariaDb::shared())).await;
            })*
        }
    };
}

on_all! {
    counts_of_random_filters_are_exact
    pages_of_a_category_and_a_name_are_complete
    page_that_starts_outside_of_the_range_is_empty
    same_events_on_three_nodes_count_once
    count_and_page_are_from_one_snapshot
    interrupted_write_counts_completely_or_not_at_all
    rejected_events_are_not_counted
    repeated_migration_counts_anew
    long_ranges_are_counted_by_month
    counts_are_exact_when_folding_fails
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_postgres_keeps_counts_and_events_equal() {
    killed_server_keeps_counts_and_events_equal::<PostgresConfig>(Postgres::start()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_mariadb_keeps_counts_and_events_equal() {
    killed_server_keeps_counts_and_events_equal::<MysqlConfig>(MariaDb::start()).await;
}

fn rng() -> Rng {
    let seed = std::env::var("EYE_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("EYE_SEED={seed}");
    Rng::with_seed(seed)
}

const HOUR_MICROS: i64 = 3_600_000_000;
const START_MICROS: i64 = 1_600_000_000_000_000 / HOUR_MICROS * HOUR_MICROS;
const HOURS: i64 = 5;

/// Returns an instant of a few hours, often the first or the last microsecond of one.
fn instant(rng: &mut Rng) -> Timestamp {
    let hour = START_MICROS + rng.i64(0..HOURS) * HOUR_MICROS;
    let micros = [0, 1, HOUR_MICROS - 1, rng.i64(0..HOUR_MICROS), rng.i64(0..HOUR_MICROS)];
    Timestamp::from_micros(hour + rng.choice(micros).unwrap()).unwrap()
}

const CATEGORIES: [&str; 4] = ["page", "Page", "page ", "cart"];
const NAMES: [&str; 4] = ["view", "click", "view ", "page"];
const SESSIONS: [&str; 3] = ["a", "b", "c"];

/// Creates an event with one of few instants and ids, so that now and then its key is known.
fn random_event(rng: &mut Rng) -> Event {
    let [session_id, category, name] =
        [&SESSIONS[..], &CATEGORIES, &NAMES].map(|texts| texts[rng.usize(..texts.len())]);
    let timestamp = instant(rng);
    let id = uuid::Uuid::from_u128(rng.u128(1..4));
    Event::from(EventFields {
        id,
        timestamp,
        received_at: timestamp,
        session_id,
        category,
        name,
        data: "1",
        origin: origin(),
    })
}

fn random_filter(rng: &mut Rng) -> EventFilter {
    let one_of = |rng: &mut Rng, texts: &[&str], odds| {
        (rng.u8(..odds) == 0)
            .then(|| if rng.u8(..20) == 0 { "none".to_owned() } else { rng.choice(texts).unwrap().to_string() })
    };
    EventFilter {
        session_id: one_of(rng, &SESSIONS, 5),
        category: one_of(rng, &CATEGORIES, 2),
        name: one_of(rng, &NAMES, 2),
        timestamp_after: rng.bool().then(|| instant(rng)),
        timestamp_before: rng.bool().then(|| instant(rng)),
    }
}

fn matches(event: &Event, filter: &EventFilter) -> bool {
    filter.session_id.as_ref().is_none_or(|text| text == event.session_id())
        && filter.category.as_ref().is_none_or(|text| text == event.category())
        && filter.name.as_ref().is_none_or(|text| text == event.name())
        && filter.timestamp_after.is_none_or(|after| event.timestamp() >= after)
        && filter.timestamp_before.is_none_or(|before| event.timestamp() <= before)
}

/// Compares the answers for many filters with the written events.
async fn assert_counts(node: &Node, written: &BTreeMap<EventKey, Event>, rng: &mut Rng) {
    for _ in 0..150 {
        let filter = random_filter(rng);
        let mut expected: Vec<_> = written.values().filter(|event| matches(event, &filter)).cloned().collect();
        expected.reverse();
        let page = matching(node, filter.clone()).await;
        assert_eq!(page.count, expected.len() as u64, "{filter:?}");
        expected.truncate(1000);
        assert!(page.events == expected, "another page for {filter:?}");
    }
}

/// Creates random events, one of them twice.
fn random_batch(rng: &mut Rng) -> Vec<Event> {
    let events = (0..rng.usize(1..60)).map(|_| random_event(rng));
    let by_key: BTreeMap<_, _> = events.map(|event| (event.key(), event)).collect();
    let mut batch: Vec<_> = by_key.into_values().collect();
    batch.push(batch[0].clone());
    rng.shuffle(&mut batch);
    batch
}

async fn counts_of_random_filters_are_exact<C: SinkConfig>(store: Store) {
    let (mut rng, node) = (rng(), open::<C>(&store.url()).await);
    let mut written = BTreeMap::new();
    for _ in 0..4 {
        for _ in 0..20 {
            let (batch, before) = (random_batch(&mut rng), written.len());
            for event in &batch {
                written.entry(event.key()).or_insert_with(|| event.clone());
            }
            let duplicates = node.write(&batch).await.unwrap().duplicates;
            assert_eq!(batch.len() - duplicates, written.len() - before);
        }
        assert_counts(&node, &written, &mut rng).await;
        store.fold(&node).await;
        assert_counts(&node, &written, &mut rng).await;
    }
}

/// Some hours have no event, and pages start and end within hours.
async fn pages_of_a_category_and_a_name_are_complete<C: SinkConfig>(store: Store) {
    let (mut rng, node) = (rng(), open::<C>(&store.url()).await);
    let mut written = BTreeMap::new();
    for round in 0..2 {
        // Some names are rarer than their category, some are not.
        let batch = (0..400).map(|_| {
            let hour = rng.i64(0..40) * rng.i64(0..5);
            let micros = START_MICROS + hour * HOUR_MICROS + rng.i64(0..4) * (HOUR_MICROS - 1) / 3;
            let timestamp = Timestamp::from_micros(micros).unwrap();
            let [category, name] = [&CATEGORIES, &NAMES].map(|texts| texts[rng.usize(0..4) * rng.usize(0..2)]);
            let id = uuid::Uuid::from_u128(rng.u128(..));
            Event::from(EventFields {
                id,
                timestamp,
                received_at: timestamp,
                session_id: "s",
                category,
                name,
                data: "1",
                origin: origin(),
            })
        });
        let batch: Vec<_> = batch.collect();
        node.write(&batch).await.unwrap();
        if round == 0 {
            store.fold(&node).await;
        }
        written.extend(batch.into_iter().map(|event| (event.key(), event)));
    }
    for _ in 0..40 {
        let bound = |rng: &mut Rng| {
            let micros = START_MICROS + rng.i64(0..160) * HOUR_MICROS + rng.i64(-1..2);
            rng.bool().then(|| Timestamp::from_micros(micros).unwrap())
        };
        let filter = EventFilter {
            session_id: None,
            category: rng.choice(CATEGORIES).map(str::to_owned),
            name: rng.choice(NAMES).map(str::to_owned),
            timestamp_after: bound(&mut rng),
            timestamp_before: bound(&mut rng),
        };
        let expected: Vec<_> = written.values().rev().filter(|event| matches(event, &filter)).collect();
        let limit = rng.usize(1..20);
        let read = |start| common::query(&node, filter.clone(), start, limit as u32);
        for (number, events) in expected.chunks(limit).enumerate() {
            let first = number * limit;
            let starts = match first {
                0 => vec![PageStart::Newest, PageStart::Offset(0)],
                _ => vec![PageStart::OlderThan(expected[first - 1].key()), PageStart::Offset(first as u64)],
            };
            for start in starts {
                let page = read(start.clone()).await;
                assert!(page.events.iter().eq(events.iter().copied()), "another page from {start:?} for {filter:?}");
                let has_older = first + events.len() < expected.len();
                assert_eq!((page.has_older, page.has_newer), (has_older, first > 0), "{start:?} {filter:?}");
            }
            let Some(older) = expected.get(first + events.len()) else { continue };
            let page = read(PageStart::NewerThan(older.key())).await;
            assert!(page.events.iter().eq(events.iter().copied()), "another page before {older:?} for {filter:?}");
            assert_eq!((page.has_older, page.has_newer), (true, first > 0), "{filter:?}");
        }
        if let Some(last) = expected.last() {
            assert_eq!(read(PageStart::OlderThan(last.key())).await.events, []);
            assert_eq!(read(PageStart::NewerThan(expected[0].key())).await.events, []);
        }
        assert_eq!(read(PageStart::Newest).await.count, expected.len() as u64);
    }
}

/// The cursor was made for another range, and counts are in both tables.
async fn page_that_starts_outside_of_the_range_is_empty<C: SinkConfig>(store: Store) {
    let node = open::<C>(&store.url()).await;
    node.write(&[event(0)]).await.unwrap();
    store.fold(&node).await;
    node.write(&[event(1)]).await.unwrap();
    let timestamp = event(0).timestamp();
    let filter = EventFilter {
        session_id: None,
        category: Some("category".to_owned()),
        name: Some("name".to_owned()),
        timestamp_after: Some(timestamp),
        timestamp_before: Some(timestamp),
    };
    let key = |hours: i64| {
        let micros = timestamp.as_micros() + hours * HOUR_MICROS;
        EventKey { timestamp: Timestamp::from_micros(micros).unwrap(), id: uuid::Uuid::nil() }
    };
    for start in [PageStart::OlderThan(key(-2)), PageStart::NewerThan(key(2))] {
        let page = common::query(&node, filter.clone(), start, 10).await;
        assert_eq!((page.count, page.events), (1, vec![]));
    }
}

/// Checks the counts of each hour against the events, and those of each day and month against the hours.
fn assert_counts_equal_events(store: &Store) {
    let hour = match store {
        Store::File(_) => "timestamp / 3600000000",
        Store::DatabaseServer(..) if store.url().starts_with("postgres") => {
            "FLOOR(EXTRACT(EPOCH FROM timestamp) / 3600)"
        }
        Store::DatabaseServer(..) => "TIMESTAMPDIFF(HOUR, '1970-01-01', timestamp)",
    };
    store.settle();
    // One statement, since a write that was cut short may still be committed.
    let texts = store.texts(&format!(
        "SELECT CONCAT_WS('|', 'event', hour, category, name, events)
            FROM (SELECT {hour} AS hour, category, name, COUNT(*) AS events FROM event GROUP BY 1, 2, 3) AS hours
        UNION ALL SELECT CONCAT_WS('|', 'count', period, category, name, count) FROM event_count
        UNION ALL SELECT CONCAT_WS('|', 'delta', delta) FROM event_count_delta"
    ));
    type Counts = BTreeMap<(i32, String, String), i64>;
    let [mut expected, mut counted, mut periods, mut folded] = <[Counts; 4]>::default();
    for text in &texts {
        let (kind, text) = text.split_once('|').unwrap();
        if kind == "delta" {
            type Delta = BTreeMap<i32, BTreeMap<String, BTreeMap<String, i64>>>;
            for (hour, categories) in serde_json::from_str::<Delta>(text).unwrap() {
                for (category, names) in categories {
                    for (name, count) in names {
                        *counted.entry((hour, category.clone(), name)).or_default() += count;
                    }
                }
            }
            continue;
        }
        let [period, category, name, count] = text.split('|').collect::<Vec<_>>().try_into().unwrap();
        let (period, count): (i32, i64) = (period.parse().unwrap(), count.parse().unwrap());
        let key = |period: i32| (period, category.to_owned(), name.to_owned());
        match kind {
            "event" => *expected.entry(key(period)).or_default() += count,
            _ if period < 0 => *periods.entry(key(period)).or_default() += count,
            _ => {
                let day = NaiveDate::from_epoch_days(period / 24).unwrap();
                let month = (day.year() - 1970) * 12 + day.month0() as i32;
                *folded.entry(key(FIRST_DAY + period / 24)).or_default() += count;
                *folded.entry(key(FIRST_MONTH + month)).or_default() += count;
                if !category.is_empty() && !name.is_empty() {
                    *counted.entry(key(period)).or_default() += count;
                }
            }
        }
    }
    assert_eq!(counted, expected);
    assert_eq!(periods, folded, "days and months that differ from their hours");
}

async fn same_events_on_three_nodes_count_once<C: SinkConfig>(store: Store) {
    let mut rng = rng();
    let batches: Vec<Vec<Event>> = (0..40).map(|_| random_batch(&mut rng)).collect();
    let keys: BTreeMap<_, _> = batches.iter().flatten().map(|event| (event.key(), ())).collect();
    let mut nodes = JoinSet::new();
    for _ in 0..3 {
        let (node, mut batches) = (open::<C>(&store.url()).await, batches.clone());
        rng.shuffle(&mut batches);
        nodes.spawn(async move {
            let mut new = 0;
            for batch in batches {
                let duplicates = loop {
                    match node.write(&batch).await {
                        Ok(written) => break written.duplicates,
                        // A lock timeout or a deadlock: the writer would retry.
                        Err(WriteError::Retry { .. }) => node.prepare().await.unwrap(),
                        Err(error) => panic!("{error}"),
                    }
                };
                new += batch.len() - duplicates;
                node.prepare().await.unwrap();
            }
            new
        });
    }
    assert_eq!(nodes.join_all().await.into_iter().sum::<usize>(), keys.len());
    let node = open::<C>(&store.url()).await;
    assert_counts_equal_events(&store);
    store.fold(&node).await;
    assert_counts_equal_events(&store);
    assert_eq!(newest(&node, 1).await.count, keys.len() as u64);
}

async fn count_and_page_are_from_one_snapshot<C: SinkConfig>(store: Store) {
    let node = Arc::new(open::<C>(&store.url()).await);
    let is_done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (node, is_done) = (Arc::clone(&node), Arc::clone(&is_done));
            tokio::spawn(async move {
                while !is_done.load(Ordering::Relaxed) {
                    let page = newest(&node, 1000).await;
                    assert_eq!(page.count, page.events.len() as u64);
                }
            })
        })
        .collect();
    // Meanwhile the readers see new events, and deltas that are folded.
    for number in 0..900 {
        node.write(&[event(number)]).await.unwrap();
    }
    store.fold(&node).await;
    is_done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
}

async fn interrupted_write_counts_completely_or_not_at_all<C: SinkConfig>(store: Store) {
    let mut rng = rng();
    let mut written = BTreeMap::new();
    let node = Arc::new(open::<C>(&store.url()).await);
    for _ in 0..30 {
        let batch = random_batch(&mut rng);
        let (writer, events) = (Arc::clone(&node), batch.clone());
        let writing = tokio::spawn(async move { writer.write(&events).await });
        tokio::time::sleep(std::time::Duration::from_micros(rng.u64(0..5_000))).await;
        // This drops the future and its connection, as the end of the process does.
        writing.abort();
        if writing.await.is_err() {
            node.prepare().await.unwrap();
        }
        for event in batch {
            written.entry(event.key()).or_insert(event);
        }
    }
    assert_counts_equal_events(&store);
    // Each event is sent again, as by a producer without an answer.
    for event in written.values() {
        node.write(std::slice::from_ref(event)).await.unwrap();
    }
    assert_counts_equal_events(&store);
    assert_eq!(newest(&node, 1).await.count, written.len() as u64);
}

/// The leaked server dies with the test process.
async fn killed_server_keeps_counts_and_events_equal<C: SinkConfig>(server: DatabaseServer) {
    let server: &'static DatabaseServer = Box::leak(Box::new(server));
    let (mut rng, store) = (rng(), Store::on(server));
    let mut nodes: Vec<Arc<Node>> = Vec::new();
    for _ in 0..2 {
        nodes.push(Arc::new(open::<C>(&store.url()).await));
    }
    for _ in 0..4 {
        let mut writers = JoinSet::new();
        for node in &nodes {
            let (node, mut rng) = (Arc::clone(node), rng.fork());
            // Writes, and folds when due, until the server is gone.
            writers.spawn(async move { while node.write(&random_batch(&mut rng)).await.is_ok() {} });
        }
        tokio::time::sleep(std::time::Duration::from_millis(rng.u64(100..1500))).await;
        block_in_place(|| server.kill());
        writers.join_all().await;
        block_in_place(|| server.restart());
        for node in &nodes {
            node.prepare().await.unwrap();
        }
        assert_counts_equal_events(&store);
    }
    store.fold(&nodes[0]).await;
    assert_counts_equal_events(&store);
    assert_eq!(newest(&nodes[0], 1).await.count, store.sql("SELECT COUNT(*) FROM event") as u64);
}

async fn rejected_events_are_not_counted<C: SinkConfig>(store: Store) {
    let node = open::<C>(&store.url()).await;
    store.sql(match store {
        Store::File(_) => {
            "CREATE TRIGGER refuse BEFORE INSERT ON event WHEN NEW.name = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END"
        }
        Store::DatabaseServer(..) => "ALTER TABLE event ADD CONSTRAINT refuse CHECK (name <> 'bad')",
    });
    node.write(&[event(1), common::named(2, "bad", "1")]).await.unwrap_err();
    assert_eq!(newest(&node, 10).await.count, 0);
    node.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&node, 10).await.count, 1);
}

/// An operator deleted events by SQL, and several nodes start at once.
async fn repeated_migration_counts_anew<C: SinkConfig>(store: Store) {
    let (mut rng, node) = (rng(), open::<C>(&store.url()).await);
    let events = (0..500).map(|_| random_event(&mut rng)).chain([Timestamp::MIN, Timestamp::MAX].map(common::at));
    let mut written: BTreeMap<_, _> = events.map(|event| (event.key(), event)).collect();
    node.write(&written.values().cloned().collect::<Vec<_>>()).await.unwrap();
    store.fold(&node).await;
    node.close().await.unwrap();
    store.sql("DELETE FROM event WHERE name = 'page'");
    written.retain(|_, event| event.name() != "page");
    store.sql("INSERT INTO event_count (category, name, period, count) VALUES ('half', 'done', 7, 7)");
    store.sql("DELETE FROM eye_migration");
    let mut nodes = JoinSet::new();
    for number in 0..3 {
        let url = store.url();
        nodes.spawn(async move {
            let node = open::<C>(&url).await;
            node.write(&[event(number)]).await.unwrap();
        });
    }
    nodes.join_all().await;
    assert_counts_equal_events(&store);
    assert_eq!(store.sql("SELECT COUNT(*) FROM eye_migration"), 1);
    written.extend((0..3).map(event).map(|event| (event.key(), event)));
    assert_counts(&open::<C>(&store.url()).await, &written, &mut rng).await;
}

/// Events lie around the ends of months over some years, and ranges begin and end there.
async fn long_ranges_are_counted_by_month<C: SinkConfig>(store: Store) {
    let (mut rng, node) = (rng(), open::<C>(&store.url()).await);
    let instant = |rng: &mut Rng| {
        let month = NaiveDate::from_ymd_opt(rng.i32(2019..2022), rng.u32(1..=12), 1).unwrap();
        let micros = i64::from(month.to_epoch_days() + rng.i32(-2..3)) * 24 * HOUR_MICROS;
        Timestamp::from_micros(micros + rng.i64(-2..3) * HOUR_MICROS + rng.i64(-1..2)).unwrap()
    };
    let mut written = BTreeMap::new();
    for _ in 0..2 {
        let batch: Vec<_> = (0..400)
            .map(|_| {
                let (timestamp, id) = (instant(&mut rng), uuid::Uuid::from_u128(rng.u128(..)));
                let [category, name] = [&CATEGORIES, &NAMES].map(|texts| texts[rng.usize(0..4)]);
                Event::from(EventFields {
                    id,
                    timestamp,
                    received_at: timestamp,
                    session_id: "s",
                    category,
                    name,
                    data: "1",
                    origin: origin(),
                })
            })
            .collect();
        node.write(&batch).await.unwrap();
        written.extend(batch.into_iter().map(|event| (event.key(), event)));
        for _ in 0..60 {
            let bounds = [(); 2].map(|()| instant(&mut rng));
            let filter = EventFilter {
                timestamp_after: bounds.iter().min().copied().filter(|_| rng.u8(..4) > 0),
                timestamp_before: bounds.iter().max().copied().filter(|_| rng.u8(..4) > 0),
                ..random_filter(&mut rng)
            };
            let expected = written.values().filter(|event| matches(event, &filter)).count();
            assert_eq!(matching(&node, filter.clone()).await.count, expected as u64, "{filter:?}");
        }
        store.fold(&node).await;
    }
    assert_counts_equal_events(&store);
}

async fn counts_are_exact_when_folding_fails<C: SinkConfig>(store: Store) {
    let node = open::<C>(&store.url()).await;
    store.sql("ALTER TABLE event_count RENAME TO elsewhere");
    node.write(&[event(1)]).await.unwrap();
    // Waits for the attempt to fold.
    node.close().await.unwrap();
    store.sql("ALTER TABLE elsewhere RENAME TO event_count");
    assert_eq!((store.deltas(), newest(&open::<C>(&store.url()).await, 10).await.count), (1, 1));
}

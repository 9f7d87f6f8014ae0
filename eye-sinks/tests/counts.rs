//! `count` is exact, whatever happens to the counts it is made of: on all three databases.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "counts/store.rs"]
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{build, event, matching, newest, open};
use eye_core::event::{Event, EventFields};
use eye_core::sink::{Sink, SinkConfig, WriteError};
use eye_core::store::{EventFilter, PageStart};
use eye_core::timestamp::Timestamp;
use eye_harness::{MariaDb, Postgres, Server};
use eye_migration::{Migrator, MigratorTrait};
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
    every_filter_is_counted_right
    pages_of_a_category_and_a_name_are_whole
    a_page_that_starts_outside_of_the_range_is_empty
    the_same_events_on_two_nodes_count_once
    count_and_page_are_from_one_snapshot
    a_write_that_is_cut_short_counts_as_a_whole_or_not_at_all
    what_was_refused_is_not_counted
    a_table_from_before_is_counted_when_nodes_start
    a_table_that_has_no_days_gets_them
    a_migration_that_was_cut_short_is_done_again
    counts_that_cannot_be_added_up_are_exact
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postgres_has_the_counts_of_its_events() {
    a_killed_server_has_the_counts_of_its_events::<PostgresConfig>(Postgres::start()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_mariadb_has_the_counts_of_its_events() {
    a_killed_server_has_the_counts_of_its_events::<MysqlConfig>(MariaDb::start()).await;
}

fn rng() -> Rng {
    let seed = std::env::var("EYE_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("EYE_SEED={seed}");
    Rng::with_seed(seed)
}

const HOUR_MICROS: i64 = 3_600_000_000;
const START_MICROS: i64 = 1_600_000_000_000_000 / HOUR_MICROS * HOUR_MICROS;
const HOURS: i64 = 5;

/// An instant of the hours that the tests use, often the first or the last microsecond of one.
fn instant(rng: &mut Rng) -> Timestamp {
    let hour = START_MICROS + rng.i64(0..HOURS) * HOUR_MICROS;
    let micros = [0, 1, HOUR_MICROS - 1, rng.i64(0..HOUR_MICROS), rng.i64(0..HOUR_MICROS)];
    Timestamp::from_micros(hour + rng.choice(micros).unwrap()).unwrap()
}

const CATEGORIES: [&str; 4] = ["page", "Page", "page ", "cart"];
const NAMES: [&str; 4] = ["view", "click", "view ", "page"];
const SESSIONS: [&str; 3] = ["a", "b", "c"];

/// Few instants and ids, so that now and then an event has the key of one that is there.
fn random_event(rng: &mut Rng) -> Event {
    let [session_id, category, name] =
        [&SESSIONS[..], &CATEGORIES, &NAMES].map(|texts| texts[rng.usize(..texts.len())]);
    let timestamp = instant(rng);
    let id = uuid::Uuid::from_u128(rng.u128(1..4));
    Event::from(EventFields { id, timestamp, received_at: timestamp, session_id, category, name, data: "1" })
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

/// Asks for many filters, and compares with what was written.
async fn assert_counts(node: &dyn Sink, written: &BTreeMap<EventKey, Event>, rng: &mut Rng) {
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

/// Random events with keys of their own, some of them twice.
fn random_batch(rng: &mut Rng) -> Vec<Event> {
    let events = (0..rng.usize(1..60)).map(|_| random_event(rng));
    let by_key: BTreeMap<_, _> = events.map(|event| (event.key(), event)).collect();
    let mut batch: Vec<_> = by_key.into_values().collect();
    batch.push(batch[0].clone());
    rng.shuffle(&mut batch);
    batch
}

async fn every_filter_is_counted_right<C: SinkConfig>(store: Store) {
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
        assert_counts(&*node, &written, &mut rng).await;
        store.fold(&*node).await;
        assert_counts(&*node, &written, &mut rng).await;
    }
}

/// They lie in some hours and not in others, and pages start and end within hours.
async fn pages_of_a_category_and_a_name_are_whole<C: SinkConfig>(store: Store) {
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
            })
        });
        let batch: Vec<_> = batch.collect();
        node.write(&batch).await.unwrap();
        if round == 0 {
            store.fold(&*node).await;
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
        let read = |start| common::query(&*node, filter.clone(), start, limit as u32);
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

/// A cursor that was made for another range, while counts are in both tables.
async fn a_page_that_starts_outside_of_the_range_is_empty<C: SinkConfig>(store: Store) {
    let node = open::<C>(&store.url()).await;
    node.write(&[event(0)]).await.unwrap();
    store.fold(&*node).await;
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
        let page = common::query(&*node, filter.clone(), start, 10).await;
        assert_eq!((page.count, page.events), (1, vec![]));
    }
}

/// Whether the counts say of each hour, category and name what the events say, and of each day what its hours say.
fn assert_counts_equal_events(store: &Store) {
    let hour = match store {
        Store::File(_) => "timestamp / 3600000000",
        Store::Server(..) if store.url().starts_with("postgres") => "FLOOR(EXTRACT(EPOCH FROM timestamp) / 3600)",
        Store::Server(..) => "TIMESTAMPDIFF(HOUR, '1970-01-01', timestamp)",
    };
    store.settle();
    // In one statement, since a write that was cut short may still be committed.
    let texts = store.texts(&format!(
        "SELECT CONCAT_WS('|', 'event', hour, category, name, events)
            FROM (SELECT {hour} AS hour, category, name, COUNT(*) AS events FROM event GROUP BY 1, 2, 3) AS hours
        UNION ALL SELECT CONCAT_WS('|', 'count', hour, category, name, count) FROM event_count
            WHERE category <> '' AND name <> '' AND hour >= 0
        UNION ALL SELECT CONCAT_WS('|', 'delta', delta) FROM event_count_delta"
    ));
    let (mut expected, mut counted) = (BTreeMap::new(), BTreeMap::<String, i64>::new());
    for text in &texts {
        let (what, text) = text.split_once('|').unwrap();
        if what == "delta" {
            type Counts = BTreeMap<i32, BTreeMap<String, BTreeMap<String, i64>>>;
            for (hour, categories) in serde_json::from_str::<Counts>(text).unwrap() {
                for (category, names) in categories {
                    for (name, count) in names {
                        *counted.entry(format!("{hour}|{category}|{name}")).or_default() += count;
                    }
                }
            }
        } else {
            let (key, count) = text.rsplit_once('|').unwrap();
            let counts = if what == "event" { &mut expected } else { &mut counted };
            *counts.entry(key.to_owned()).or_default() += count.parse::<i64>().unwrap();
        }
    }
    assert_eq!(counted, expected);
    let day = store.by_kind(["-1 - hour / 24", "-1 - hour / 24", "-1 - hour DIV 24"]);
    let differing = store.sql(&format!(
        "SELECT COUNT(*) FROM (
            SELECT category, name, day FROM (
                SELECT category, name, {day} AS day, count FROM event_count WHERE hour >= 0
                UNION ALL SELECT category, name, hour, -count FROM event_count WHERE hour < 0
            ) AS differences GROUP BY category, name, day HAVING SUM(count) <> 0
        ) AS differing"
    ));
    assert_eq!(differing, 0, "days that do not have what their hours have");
}

async fn the_same_events_on_two_nodes_count_once<C: SinkConfig>(store: Store) {
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
                        // A lock that took too long, a deadlock: the writer tries again.
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
    store.fold(&*node).await;
    assert_counts_equal_events(&store);
    assert_eq!(newest(&*node, 1).await.count, keys.len() as u64);
}

async fn count_and_page_are_from_one_snapshot<C: SinkConfig>(store: Store) {
    let node: Arc<dyn Sink> = open::<C>(&store.url()).await.into();
    let is_done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (node, is_done) = (Arc::clone(&node), Arc::clone(&is_done));
            tokio::spawn(async move {
                while !is_done.load(Ordering::Relaxed) {
                    let page = newest(&*node, 1000).await;
                    assert_eq!(page.count, page.events.len() as u64);
                }
            })
        })
        .collect();
    // The readers see events come, and deltas go.
    for number in 0..900 {
        node.write(&[event(number)]).await.unwrap();
    }
    store.fold(&*node).await;
    is_done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
}

async fn a_write_that_is_cut_short_counts_as_a_whole_or_not_at_all<C: SinkConfig>(store: Store) {
    let mut rng = rng();
    let mut written = BTreeMap::new();
    let node: Arc<dyn Sink> = open::<C>(&store.url()).await.into();
    for _ in 0..30 {
        let batch = random_batch(&mut rng);
        let (writer, events) = (Arc::clone(&node), batch.clone());
        let writing = tokio::spawn(async move { writer.write(&events).await });
        tokio::time::sleep(std::time::Duration::from_micros(rng.u64(0..5_000))).await;
        // The future is dropped, and its connection with it: what the end of the process does to it.
        writing.abort();
        if writing.await.is_err() {
            node.prepare().await.unwrap();
        }
        for event in batch {
            written.entry(event.key()).or_insert(event);
        }
    }
    assert_counts_equal_events(&store);
    // Each comes again, as from a producer that got no answer.
    for event in written.values() {
        node.write(std::slice::from_ref(event)).await.unwrap();
    }
    assert_counts_equal_events(&store);
    assert_eq!(newest(&*node, 1).await.count, written.len() as u64);
}

/// It dies with the test, as all servers do.
async fn a_killed_server_has_the_counts_of_its_events<C: SinkConfig>(server: Server) {
    let server: &'static Server = Box::leak(Box::new(server));
    let (mut rng, store) = (rng(), Store::on(server));
    let mut nodes: Vec<Arc<dyn Sink>> = Vec::new();
    for _ in 0..2 {
        nodes.push(open::<C>(&store.url()).await.into());
    }
    for _ in 0..4 {
        let mut writers = JoinSet::new();
        for node in &nodes {
            let (node, mut rng) = (Arc::clone(node), rng.fork());
            // Writes, and adds up whenever it is time, until the server is gone.
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
    store.fold(&*nodes[0]).await;
    assert_counts_equal_events(&store);
    assert_eq!(newest(&*nodes[0], 1).await.count, store.sql("SELECT COUNT(*) FROM event") as u64);
}

async fn what_was_refused_is_not_counted<C: SinkConfig>(store: Store) {
    let node = open::<C>(&store.url()).await;
    store.sql(match store {
        Store::File(_) => {
            "CREATE TRIGGER refuse BEFORE INSERT ON event WHEN NEW.name = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END"
        }
        Store::Server(..) => "ALTER TABLE event ADD CONSTRAINT refuse CHECK (name <> 'bad')",
    });
    node.write(&[event(1), common::named(2, "bad", "1")]).await.unwrap_err();
    assert_eq!(newest(&*node, 10).await.count, 0);
    node.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&*node, 10).await.count, 1);
}

/// Takes the database back to before there were counts, and before the index of names had the category.
async fn forget_counts(store: &Store) {
    let db = sea_orm::Database::connect(store.url()).await.unwrap();
    let all_but_the_first = Migrator::migrations().len() as u32 - 1;
    Migrator::down(&db, Some(all_but_the_first)).await.unwrap();
    db.close().await.unwrap();
}

/// How many columns the index of names has.
fn columns_of_names(store: &Store) -> i64 {
    store.sql(store.by_kind([
        "SELECT COUNT(*) FROM pragma_index_info('event_name')",
        "SELECT indnatts FROM pg_index WHERE indexrelid = 'event_name'::regclass",
        "SELECT COUNT(*) FROM information_schema.statistics WHERE table_schema = DATABASE() AND index_name = 'event_name'",
    ]))
}

async fn a_table_from_before_is_counted_when_nodes_start<C: SinkConfig>(store: Store) {
    let (mut rng, node) = (rng(), open::<C>(&store.url()).await);
    let events = (0..500).map(|_| random_event(&mut rng)).chain([Timestamp::MIN, Timestamp::MAX].map(common::at));
    let batch: BTreeMap<_, _> = events.map(|event| (event.key(), event)).collect();
    node.write(&batch.values().cloned().collect::<Vec<_>>()).await.unwrap();
    node.close().await.unwrap();
    forget_counts(&store).await;
    assert_eq!(columns_of_names(&store), 3);
    let mut nodes = JoinSet::new();
    for number in 0..3 {
        let url = store.url();
        nodes.spawn(async move {
            let node = build::<C>(&url).await;
            node.prepare().await.unwrap();
            node.write(&[event(number)]).await.unwrap();
        });
    }
    nodes.join_all().await;
    assert_counts_equal_events(&store);
    assert_eq!((store.sql("SELECT COUNT(*) FROM eye_migration"), columns_of_names(&store)), (6, 4));
    let mut written = batch;
    written.extend((0..3).map(event).map(|event| (event.key(), event)));
    assert_counts(&*open::<C>(&store.url()).await, &written, &mut rng).await;
}

async fn a_table_that_has_no_days_gets_them<C: SinkConfig>(store: Store) {
    let node = open::<C>(&store.url()).await;
    node.write(&(0..100).map(event).collect::<Vec<_>>()).await.unwrap();
    store.fold(&*node).await;
    store.sql("DELETE FROM event_count WHERE hour < 0");
    store.sql("DELETE FROM eye_migration WHERE version = 'm0004_event_count_day'");
    let node = open::<C>(&store.url()).await;
    assert_counts_equal_events(&store);
    assert_eq!(newest(&*node, 10).await.count, 100);
}

async fn a_migration_that_was_cut_short_is_done_again<C: SinkConfig>(store: Store) {
    let node = open::<C>(&store.url()).await;
    node.write(&(0..100).map(event).collect::<Vec<_>>()).await.unwrap();
    store.sql("INSERT INTO event_count (category, name, hour, count) VALUES ('half', 'done', 7, 7)");
    store.sql("DELETE FROM eye_migration WHERE version = 'm0002_event_count'");
    let node = open::<C>(&store.url()).await;
    assert_counts_equal_events(&store);
    assert_eq!(newest(&*node, 10).await.count, 100);
}

async fn counts_that_cannot_be_added_up_are_exact<C: SinkConfig>(store: Store) {
    let node = open::<C>(&store.url()).await;
    store.sql("ALTER TABLE event_count RENAME TO elsewhere");
    node.write(&[event(1)]).await.unwrap();
    // Waits until it was tried.
    node.close().await.unwrap();
    store.sql("ALTER TABLE elsewhere RENAME TO event_count");
    assert_eq!((store.deltas(), newest(&*open::<C>(&store.url()).await, 10).await.count), (1, 1));
}

//! What is special about SQLite.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use common::{at, build, event, matching, named, newest, open, parse};
use eye_core::event::Event;
use eye_core::sink::{SinkConfig, WriteError};
use eye_core::store::{EventFilter, EventQuery, StoreError};
use eye_core::timestamp::Timestamp;
use eye_sinks::SqliteConfig;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

fn url(folder: &TempDir) -> String {
    format!("sqlite://{}", folder.path().join("data/eye.db").display())
}

fn events(first: u64, number: u64) -> Vec<Event> {
    (first..first + number).map(event).collect()
}

/// A connection besides the sink's.
async fn other_process(url: &str) -> SqliteConnection {
    SqliteConnection::connect(url).await.unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn what_it_creates_is_for_the_owner_only() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&*sink, 10).await.events, [event(1)]);
    let data = folder.path().join("data");
    assert_eq!(mode(&data), 0o700);
    for name in ["eye.db", "eye.db-wal", "eye.db-shm"] {
        assert_eq!(mode(&data.join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn close_leaves_nothing_but_the_file() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(1)]).await.unwrap();
    newest(&*sink, 10).await;
    sink.close().await.unwrap();
    let names: Vec<_> =
        std::fs::read_dir(folder.path().join("data")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["eye.db"]);
}

#[tokio::test]
async fn a_lock_of_another_process_is_a_retry() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let mut other = other_process(&url(&folder)).await;
    let lock = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = sink.write(&[event(1)]).await.unwrap_err();
    assert!(matches!(&error, WriteError::Retry { reason, .. } if reason.contains("database is locked")), "{error}");
    lock.rollback().await.unwrap();
    sink.prepare().await.unwrap();
    sink.write(&[event(1)]).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_locked_at_start_is_waited_for() {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let mut other = other_process(&format!("{}?mode=rwc", url(&folder))).await;
    let lock = other.begin_with("BEGIN EXCLUSIVE").await.unwrap();
    let sink = build::<SqliteConfig>(&url(&folder)).await;
    assert!(matches!(sink.prepare().await, Err(WriteError::Retry { .. })));
    lock.rollback().await.unwrap();
    sink.prepare().await.unwrap();
}

#[tokio::test]
async fn a_file_that_was_removed_takes_no_events() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(1)]).await.unwrap();
    let file = folder.path().join("data/eye.db");
    std::fs::rename(&file, folder.path().join("elsewhere")).unwrap();
    let error = sink.write(&[event(2)]).await.unwrap_err();
    assert!(matches!(&error, WriteError::Retry { reason, .. } if reason.contains("removed or replaced")), "{error}");
    assert!(matches!(sink.prepare().await, Err(WriteError::Retry { .. })));
    std::fs::rename(folder.path().join("elsewhere"), &file).unwrap();
    sink.prepare().await.unwrap();
    sink.write(&[event(2)]).await.unwrap();
    assert_eq!(newest(&*sink, 10).await.count, 2);
}

#[tokio::test]
async fn a_file_that_was_replaced_is_the_one_that_answers() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&*sink, 10).await.events, [event(1)]);
    std::fs::rename(folder.path().join("data"), folder.path().join("before")).unwrap();
    let query = EventQuery { limit: 10, ..EventQuery::default() };
    let gone = sink.store().unwrap().query(query).await;
    assert!(matches!(gone, Err(StoreError::Unavailable { .. })), "{gone:?}");
    open::<SqliteConfig>(&url(&folder)).await.write(&[event(2)]).await.unwrap();
    assert_eq!(newest(&*sink, 10).await.events, [event(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_may_start_at_once() {
    let folder = TempDir::new().unwrap();
    let nodes: Vec<_> = (0..8)
        .map(|number| {
            let url = url(&folder);
            tokio::spawn(async move {
                let sink = open::<SqliteConfig>(&url).await;
                sink.write(&[event(number)]).await.unwrap();
            })
        })
        .collect();
    for node in nodes {
        node.await.unwrap();
    }
    assert_eq!(newest(&*open::<SqliteConfig>(&url(&folder)).await, 10).await.count, 8);
}

#[tokio::test]
async fn a_refusal_stores_nothing_and_does_not_quote_the_event() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let mut other = other_process(&url(&folder)).await;
    let trigger = "CREATE TRIGGER no_secrets BEFORE INSERT ON event_inbox WHEN NEW.name = 'bad'
        BEGIN SELECT RAISE(ABORT, 'no secrets'); END";
    sqlx::query(trigger).execute(&mut other).await.unwrap();
    let error = sink.write(&[event(1), named(2, "bad", "\"private\"")]).await.unwrap_err();
    assert_eq!(error, WriteError::reject("no secrets"));
    assert_eq!(newest(&*sink, 10).await.count, 0);
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&*sink, 10).await.events, [event(1)]);
}

#[tokio::test]
async fn what_sqlite_rolls_back_by_itself_is_still_what_it_is() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let mut other = other_process(&url(&folder)).await;
    // As it does when the disk fails, which is harder to bring about.
    let trigger = "CREATE TRIGGER no_secrets BEFORE INSERT ON event_inbox WHEN NEW.name = 'bad'
        BEGIN SELECT RAISE(ROLLBACK, 'no secrets'); END";
    sqlx::query(trigger).execute(&mut other).await.unwrap();
    let error = sink.write(&[event(1), named(2, "bad", "1")]).await.unwrap_err();
    assert_eq!(error, WriteError::reject("no secrets"));
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&*sink, 10).await.events, [event(1)]);
}

#[tokio::test]
async fn the_first_and_the_last_instant_are_kept() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let events = [Timestamp::MAX, Timestamp::MIN].map(at);
    sink.write(&events).await.unwrap();
    assert_eq!(newest(&*sink, 10).await.events, events);
    let filter = EventFilter { timestamp_after: Some(Timestamp::MAX), ..EventFilter::default() };
    assert_eq!(matching(&*sink, filter).await.count, 1);
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_an_error_at_start() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("data"), "no folder").unwrap();
    let error = parse::<SqliteConfig>(&url(&folder)).unwrap().build().await.err().unwrap().to_string();
    assert!(error.contains("data/eye.db") && error.contains("set `url` to another file"), "{error}");

    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(folder.path().join("data/eye.db"), "no database, but long enough to have a header".repeat(100))
        .unwrap();
    let error = parse::<SqliteConfig>(&url(&folder)).unwrap().build().await.err().unwrap().to_string();
    assert!(error.contains("file is not a database"), "{error}");
}

#[test]
fn a_url_names_a_file() {
    for (url, expected) in [
        ("eye.db", "must begin with `sqlite:`"),
        ("postgres://localhost/eye", "must begin with `sqlite:`"),
        ("sqlite::memory:", "must name a file"),
        ("sqlite://:memory:", "must name a file"),
        ("sqlite://", "must name a file"),
        ("sqlite://eye.db?mode=memory", "takes no parameters"),
    ] {
        let error = parse::<SqliteConfig>(url).unwrap_err();
        assert!(error.contains(expected), "{url}: {error}");
    }
}

#[tokio::test]
async fn the_key_itself_counts() {
    let folder = TempDir::new().unwrap();
    common::assert_the_key_itself_counts(&*open::<SqliteConfig>(&url(&folder)).await).await;
}

/// How many rows the two tables have that events are in.
async fn rows(url: &str) -> (i64, i64) {
    let mut other = other_process(url).await;
    let sql = "SELECT (SELECT COUNT(*) FROM event_inbox), (SELECT COUNT(*) FROM event_indexed)";
    sqlx::query_as(sql).fetch_one(&mut other).await.unwrap()
}

#[tokio::test]
async fn batches_are_gathered_until_the_inbox_is_full() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    for (first, number, expected) in [
        (0, 1, (1, 0)),
        // However long ago that was: they are few.
        (1, 99, (100, 0)),
        (100, 4000, (4100, 0)),
        // 8,001 would be too many.
        (4100, 3901, (3901, 4100)),
    ] {
        sink.write(&events(first, number)).await.unwrap();
        assert_eq!(rows(&url(&folder)).await, expected, "{first}");
        let (page, written) = (newest(&*sink, 3).await, first + number);
        assert_eq!((page.count, page.events.first()), (written, Some(&event(written - 1))));
    }
}

#[tokio::test]
async fn the_inbox_is_emptied_in_time() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let emptied = async {
        for first in (0..).step_by(20) {
            sink.write(&events(first, 20)).await.unwrap();
            let (inbox, indexed) = rows(&url(&folder)).await;
            if indexed > 0 {
                return (inbox, indexed);
            }
        }
        unreachable!("there is no last one");
    };
    let (inbox, indexed) = tokio::time::timeout(Duration::from_secs(30), emptied).await.unwrap();
    assert!(inbox == 20 && (128..8000).contains(&indexed), "{inbox}, {indexed}");
}

#[tokio::test]
async fn large_batches_and_large_events_go_past_the_inbox() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&events(0, 4001)).await.unwrap();
    assert_eq!(rows(&url(&folder)).await, (0, 4001));
    let large = |first: u64, bytes: usize| {
        let data = format!("\"{}\"", "x".repeat(bytes));
        (first..first + 64).map(|number| named(number, "n", &data)).collect::<Vec<_>>()
    };
    sink.write(&large(10_000, 4200)).await.unwrap();
    assert_eq!(rows(&url(&folder)).await, (0, 4065));
    sink.write(&large(20_000, 3900)).await.unwrap();
    assert_eq!(rows(&url(&folder)).await, (64, 4065));
    sink.write(&events(30_000, 4000)).await.unwrap();
    assert_eq!(rows(&url(&folder)).await, (4064, 4065));
}

#[tokio::test]
async fn an_event_is_stored_once_in_whichever_table_it_is() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&events(0, 5001)).await.unwrap();
    for (first, number, duplicates, stored) in [
        // Indexed ones among others for the inbox.
        (4999, 70, 2, 5069),
        // Those in the inbox.
        (5060, 20, 9, 5080),
        // Among many.
        (0, 6000, 5080, 6000),
    ] {
        assert_eq!(sink.write(&events(first, number)).await.unwrap().duplicates, duplicates, "{first}");
        let (inbox, indexed) = rows(&url(&folder)).await;
        assert_eq!(inbox + indexed, stored, "{first}: {inbox}, {indexed}");
    }
    assert_eq!(newest(&*sink, 1).await.count, 6000);
}

#[tokio::test]
async fn what_cannot_leave_the_inbox_holds_nothing_up() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let trigger = "CREATE TRIGGER no_secrets BEFORE INSERT ON event_indexed WHEN NEW.name = 'bad'
        BEGIN SELECT RAISE(ABORT, 'no secrets'); END";
    sqlx::query(trigger).execute(&mut other_process(&url(&folder)).await).await.unwrap();
    sink.write(&[events(0, 63), vec![named(63, "bad", "1")]].concat()).await.unwrap();
    for (first, number, duplicates, expected) in [
        (0, 6000, 64, (64, 5936)),
        (6000, 1, 0, (64, 5937)),
        // There is still room for these,
        (6001, 4000, 0, (4064, 5937)),
        (10_001, 3936, 0, (8000, 5937)),
        // and none for those.
        (13_937, 64, 0, (8000, 6001)),
    ] {
        assert_eq!(sink.write(&events(first, number)).await.unwrap().duplicates, duplicates, "{first}");
        assert_eq!(rows(&url(&folder)).await, expected, "{first}");
    }
    assert_eq!(newest(&*sink, 1).await.count, 14_001);
    sqlx::query("DROP TRIGGER no_secrets").execute(&mut other_process(&url(&folder)).await).await.unwrap();
    sink.close().await.unwrap();
    // Another start does not know what is in it, and tries it.
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&events(14_001, 1)).await.unwrap();
    assert_eq!(rows(&url(&folder)).await, (1, 14_001));
}

#[tokio::test]
async fn two_processes_store_an_event_once() {
    let folder = TempDir::new().unwrap();
    let nodes = [open::<SqliteConfig>(&url(&folder)).await, open::<SqliteConfig>(&url(&folder)).await];
    for (node, first, number, duplicates, stored) in [
        (0, 0, 64, 0, 64),
        // Past the inbox, where the others are unless they have been moved meanwhile,
        (1, 0, 6000, 64, 6000),
        // into it,
        (0, 5998, 70, 2, 6068),
        // and past it again, by the one that has put nothing there.
        (1, 6010, 6000, 58, 12_010),
    ] {
        assert_eq!(nodes[node].write(&events(first, number)).await.unwrap().duplicates, duplicates, "{first}");
        let (inbox, indexed) = rows(&url(&folder)).await;
        assert_eq!(inbox + indexed, stored, "{first}: {inbox}, {indexed}");
    }
    assert_eq!(newest(&*nodes[0], 1).await.count, 12_010);
}

#[tokio::test]
async fn events_are_deleted_by_sql_wherever_they_are() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&events(0, 5001)).await.unwrap();
    sink.write(&events(5001, 64)).await.unwrap();
    let sql = "DELETE FROM event WHERE timestamp % 2 = 0";
    sqlx::query(sql).execute(&mut other_process(&url(&folder)).await).await.unwrap();
    assert_eq!(rows(&url(&folder)).await, (32, 2500));
}

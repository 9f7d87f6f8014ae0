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
use eye_harness::{eventually, sqlite_with_inbox};
use eye_migration::{Migrator, MigratorTrait};
use eye_sinks::SqliteConfig;
use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection};
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
    for name in ["eye.db", "eye.db-wal", "eye.db-shm", "eye.db-inbox", "eye.db-inbox-wal", "eye.db-inbox-shm"] {
        assert_eq!(mode(&data.join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn the_inbox_has_the_rights_of_the_file_that_was_there() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("eye.db"), "").unwrap();
    std::fs::set_permissions(data.join("eye.db"), std::fs::Permissions::from_mode(0o660)).unwrap();
    open::<SqliteConfig>(&url(&folder)).await;
    assert_eq!(mode(&data.join("eye.db-inbox")), 0o660);
}

#[tokio::test]
async fn close_leaves_all_in_the_file() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(1)]).await.unwrap();
    newest(&*sink, 10).await;
    sink.close().await.unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(folder.path().join("data")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["eye.db", "eye.db-inbox"]);
    assert_eq!(rows(&url(&folder)).await, (0, 1));
}

#[tokio::test]
async fn a_lock_of_another_process_is_a_retry() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let mut other = both(&url(&folder)).await;
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
    for name in ["data/eye.db", "data/eye.db-inbox"] {
        let folder = TempDir::new().unwrap();
        let sink = open::<SqliteConfig>(&url(&folder)).await;
        sink.write(&[event(1)]).await.unwrap();
        let file = folder.path().join(name);
        std::fs::rename(&file, folder.path().join("elsewhere")).unwrap();
        let error = sink.write(&[event(2)]).await.unwrap_err();
        assert!(
            matches!(&error, WriteError::Retry { reason, .. } if reason.contains("removed or replaced")),
            "{error}"
        );
        assert!(matches!(sink.prepare().await, Err(WriteError::Retry { .. })), "{name}");
        std::fs::rename(folder.path().join("elsewhere"), &file).unwrap();
        sink.prepare().await.unwrap();
        sink.write(&[event(2)]).await.unwrap();
        assert_eq!(newest(&*sink, 10).await.count, 2, "{name}");
    }
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
    let trigger = "CREATE TRIGGER no_secrets BEFORE INSERT ON event WHEN NEW.name = 'bad'
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
    let trigger = "CREATE TRIGGER no_secrets BEFORE INSERT ON event WHEN NEW.name = 'bad'
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

/// How many events wait in the inbox, and how many the other file has.
async fn rows(url: &str) -> (i64, i64) {
    let sql =
        "SELECT (SELECT COUNT(*) FROM event) - (SELECT COUNT(*) FROM main.event), (SELECT COUNT(*) FROM main.event)";
    sqlx::query_as(sql).fetch_one(&mut both(url).await).await.unwrap()
}

/// A connection besides the sink's, that sees what both files have.
async fn both(url: &str) -> SqliteConnection {
    let mut connection = other_process(url).await;
    let sql = sqlite_with_inbox(url.trim_start_matches("sqlite://"));
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
    connection
}

/// Keeps events in the inbox.
async fn lock(url: &str) -> SqliteConnection {
    let mut other = other_process(url).await;
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    other
}

async fn until_flushed(url: &str, events: i64) {
    eventually("the inbox is empty", Duration::from_secs(30), async || rows(url).await == (0, events)).await;
}

#[tokio::test]
async fn events_are_seen_in_the_inbox_and_leave_it_by_themselves() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let lock = lock(&url(&folder)).await;
    sink.write(&events(0, 3)).await.unwrap();
    assert_eq!(rows(&url(&folder)).await, (3, 0));
    let page = newest(&*sink, 2).await;
    assert_eq!((page.count, page.events.as_slice()), (3, [event(2), event(1)].as_slice()));
    lock.close().await.unwrap();
    until_flushed(&url(&folder), 3).await;
    let page = newest(&*sink, 2).await;
    assert_eq!((page.count, page.events.as_slice()), (3, [event(2), event(1)].as_slice()));
}

#[tokio::test]
async fn large_batches_and_large_events_go_past_the_inbox() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let large = |first: u64, bytes: usize| {
        let data = format!("\"{}\"", "x".repeat(bytes));
        (first..first + 64).map(|number| named(number, "n", &data)).collect::<Vec<_>>()
    };
    for (batch, is_for_inbox) in [
        (events(0, 4000), true),
        (events(10_000, 4001), false),
        (large(20_000, 3900), true),
        (large(30_000, 4200), false),
    ] {
        let other = lock(&url(&folder)).await;
        assert_eq!(sink.write(&batch).await.is_ok(), is_for_inbox, "{}", batch.len());
        drop(other);
        sink.prepare().await.unwrap();
    }
}

#[tokio::test]
async fn a_full_inbox_takes_no_more() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let other = lock(&url(&folder)).await;
    for first in [0, 4000, 8000, 12_000] {
        sink.write(&events(first, 4000)).await.unwrap();
    }
    assert_eq!(rows(&url(&folder)).await, (16_000, 0));
    let error = sink.write(&events(16_000, 1)).await.unwrap_err();
    assert!(matches!(&error, WriteError::Retry { reason, .. } if reason.contains("database is locked")), "{error}");
    other.close().await.unwrap();
    sink.prepare().await.unwrap();
    sink.write(&events(16_000, 1)).await.unwrap();
    until_flushed(&url(&folder), 16_001).await;
}

#[tokio::test]
async fn an_event_is_stored_once_in_whichever_file_it_is() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&events(0, 5001)).await.unwrap();
    for (first, number, duplicates, stored) in [
        // Some of the other file among others for the inbox.
        (4999, 70, 2, 5069),
        // Some that may be in the inbox.
        (5069, 5, 0, 5074),
        (5070, 20, 4, 5090),
        // Among many.
        (0, 6000, 5090, 6000),
    ] {
        assert_eq!(sink.write(&events(first, number)).await.unwrap().duplicates, duplicates, "{first}");
        let (inbox, other) = rows(&url(&folder)).await;
        assert_eq!(inbox + other, stored, "{first}: {inbox}, {other}");
        assert_eq!(newest(&*sink, 1).await.count, stored as u64);
    }
}

#[tokio::test]
async fn what_cannot_leave_the_inbox_holds_nothing_up() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let mut other = lock(&url(&folder)).await;
    sink.write(&[events(0, 63), vec![named(63, "bad", "1")]].concat()).await.unwrap();
    let trigger = "CREATE TRIGGER no_secrets BEFORE INSERT ON event WHEN NEW.name = 'bad'
        BEGIN SELECT RAISE(ABORT, 'no secrets'); END";
    other.execute(trigger).await.unwrap();
    other.execute("COMMIT").await.unwrap();
    // From now on all go past it.
    sink.write(&events(100, 10)).await.unwrap();
    let error = sink.write(&[named(200, "bad", "1")]).await.unwrap_err();
    assert_eq!(error, WriteError::reject("no secrets"));
    sink.close().await.unwrap();
    assert_eq!(rows(&url(&folder)).await, (64, 10));
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    assert_eq!(sink.write(&events(0, 64)).await.unwrap().duplicates, 64);
    assert_eq!(newest(&*sink, 1).await.count, 74);
    other.execute("DROP TRIGGER no_secrets").await.unwrap();
    sink.close().await.unwrap();
    // Another start tries it again.
    let _sink = open::<SqliteConfig>(&url(&folder)).await;
    until_flushed(&url(&folder), 74).await;
}

#[tokio::test]
async fn a_unique_index_is_asked_at_once() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    other_process(&url(&folder)).await.execute("CREATE UNIQUE INDEX one_a_name ON event (name)").await.unwrap();
    sink.write(&[named(1, "a", "1")]).await.unwrap();
    let error = sink.write(&[named(2, "a", "1")]).await.unwrap_err();
    assert!(matches!(&error, WriteError::Reject { .. }), "{error}");
    assert_eq!(rows(&url(&folder)).await, (0, 1));
}

#[tokio::test]
async fn what_a_killed_program_left_in_the_inbox_is_there() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let other = lock(&url(&folder)).await;
    sink.write(&events(0, 10)).await.unwrap();
    // No close, and the lock outlives it.
    drop(sink);
    let sink = build::<SqliteConfig>(&url(&folder)).await;
    assert_eq!(newest(&*sink, 1).await.count, 10);
    drop(other);
    sink.prepare().await.unwrap();
    assert_eq!(sink.write(&events(5, 10)).await.unwrap().duplicates, 5);
    until_flushed(&url(&folder), 15).await;
    assert_eq!(newest(&*sink, 1).await.count, 15);
}

#[tokio::test]
async fn another_inbox_starts_anew() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&events(0, 10)).await.unwrap();
    sink.close().await.unwrap();
    std::fs::remove_file(folder.path().join("data/eye.db-inbox")).unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let other = lock(&url(&folder)).await;
    sink.write(&events(10, 3)).await.unwrap();
    // Their numbers are those of events of the first inbox, which are elsewhere.
    assert_eq!((rows(&url(&folder)).await, newest(&*sink, 1).await.count), ((3, 10), 13));
    drop(other);
    until_flushed(&url(&folder), 13).await;
}

#[tokio::test]
async fn an_inbox_put_back_from_an_older_copy_loses_nothing() {
    let folder = TempDir::new().unwrap();
    let (inbox, copy) = (folder.path().join("data/eye.db-inbox"), folder.path().join("copy"));
    for stored_before in [0, 2] {
        let first = 100 * stored_before;
        let sink = open::<SqliteConfig>(&url(&folder)).await;
        if stored_before > 0 {
            sink.write(&events(first, stored_before)).await.unwrap();
        }
        sink.close().await.unwrap();
        std::fs::copy(&inbox, &copy).unwrap();
        let sink = open::<SqliteConfig>(&url(&folder)).await;
        sink.write(&events(first + 10, 10)).await.unwrap();
        sink.close().await.unwrap();
        std::fs::copy(&copy, &inbox).unwrap();
        let sink = open::<SqliteConfig>(&url(&folder)).await;
        let before = newest(&*sink, 1).await.count;
        sink.write(&events(first + 20, 3)).await.unwrap();
        assert_eq!(newest(&*sink, 1).await.count, before + 3, "they are seen");
        until_flushed(&url(&folder), before as i64 + 3).await;
        sink.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_an_inbox_in_the_same_file_had_is_kept() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(1)]).await.unwrap();
    sink.close().await.unwrap();
    let db = sea_orm::Database::connect(url(&folder)).await.unwrap();
    Migrator::down(&db, Some(1)).await.unwrap();
    db.close().await.unwrap();
    let move_back = "INSERT INTO event_inbox (timestamp, id, session_id, category, name, data, received_at)
            SELECT timestamp, id, session_id, category, name, data, received_at FROM event_indexed;
        DELETE FROM event_indexed";
    other_process(&url(&folder)).await.execute(move_back).await.unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    assert_eq!(rows(&url(&folder)).await, (0, 1));
    assert_eq!(newest(&*sink, 10).await.events, [event(1)]);
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
        let (inbox, other) = rows(&url(&folder)).await;
        assert_eq!(inbox + other, stored, "{first}: {inbox}, {other}");
    }
    assert_eq!(newest(&*nodes[0], 1).await.count, 12_010);
}

//! SQLite beyond the conformance suites: the staging table, its file, locks and rights.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{at, build, event, matching, named, newest, open, parse, try_build};
use eye_core::event::Event;
use eye_core::sink::WriteError;
use eye_core::store::{EventFilter, EventQuery, StoreError};
use eye_core::timestamp::Timestamp;
use eye_harness::{eventually, sqlite_with_staging};
use eye_sinks::SqliteConfig;
use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection};
use tempfile::TempDir;

fn url(folder: &TempDir) -> String {
    format!("sqlite://{}", folder.path().join("data/eye.db").display())
}

fn events(first: u64, number: u64) -> Vec<Event> {
    (first..first + number).map(event).collect()
}

/// Opens a connection of another process to the main file.
async fn other_process(url: &str) -> SqliteConnection {
    SqliteConnection::connect(url).await.unwrap()
}

/// Returns the names of the database's files.
fn files(folder: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path().join("data")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn created_files_are_for_the_owner_only() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.events, [event(1)]);
    let data = folder.path().join("data");
    assert_eq!(mode(&data), 0o700);
    for name in ["eye.db", "eye.db-wal", "eye.db-shm", "eye.db-staging", "eye.db-staging-wal", "eye.db-staging-shm"] {
        assert_eq!(mode(&data.join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn staging_file_has_the_rights_of_the_main_file() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("eye.db"), "").unwrap();
    std::fs::set_permissions(data.join("eye.db"), std::fs::Permissions::from_mode(0o660)).unwrap();
    open::<SqliteConfig>(&url(&folder)).await;
    assert_eq!(mode(&data.join("eye.db-staging")), 0o660);
}

#[tokio::test]
async fn lock_of_another_process_is_a_retry() {
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
async fn file_locked_at_startup_is_a_retry() {
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
async fn replaced_file_answers_queries() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.events, [event(1)]);
    std::fs::rename(folder.path().join("data"), folder.path().join("before")).unwrap();
    let query = EventQuery { limit: 10, ..EventQuery::default() };
    let gone = sink.store().page(query).await;
    assert!(matches!(gone, Err(StoreError::Unavailable { .. })), "{gone:?}");
    open::<SqliteConfig>(&url(&folder)).await.write(&[event(2)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.events, [event(2)]);
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
    assert_eq!(newest(&open::<SqliteConfig>(&url(&folder)).await, 10).await.count, 8);
}

#[tokio::test]
async fn rejected_batch_stores_nothing_and_quotes_nothing() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let mut other = other_process(&url(&folder)).await;
    let trigger = "CREATE TRIGGER no_secrets BEFORE INSERT ON event WHEN NEW.name = 'bad'
        BEGIN SELECT RAISE(ABORT, 'no secrets'); END";
    sqlx::query(trigger).execute(&mut other).await.unwrap();
    let error = sink.write(&[event(1), named(2, "bad", "\"private\"")]).await.unwrap_err();
    assert_eq!(error, WriteError::reject("no secrets"));
    assert_eq!(newest(&sink, 10).await.count, 0);
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.events, [event(1)]);
}

#[tokio::test]
async fn rollback_by_sqlite_keeps_the_error() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let mut other = other_process(&url(&folder)).await;
    // SQLite rolls back in the same way when the disk fails.
    let trigger = "CREATE TRIGGER no_secrets BEFORE INSERT ON event WHEN NEW.name = 'bad'
        BEGIN SELECT RAISE(ROLLBACK, 'no secrets'); END";
    sqlx::query(trigger).execute(&mut other).await.unwrap();
    let error = sink.write(&[event(1), named(2, "bad", "1")]).await.unwrap_err();
    assert_eq!(error, WriteError::reject("no secrets"));
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.events, [event(1)]);
}

#[tokio::test]
async fn first_and_last_instant_are_stored() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let events = [Timestamp::MAX, Timestamp::MIN].map(at);
    sink.write(&events).await.unwrap();
    assert_eq!(newest(&sink, 10).await.events, events);
    let filter = EventFilter { timestamp_after: Some(Timestamp::MAX), ..EventFilter::default() };
    assert_eq!(matching(&sink, filter).await.count, 1);
}

#[tokio::test]
async fn unusable_file_is_an_error_at_startup() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("data"), "no folder").unwrap();
    let error = try_build::<SqliteConfig>(&url(&folder)).await.err().unwrap().to_string();
    assert!(error.contains("data/eye.db") && error.contains("set `url` to another file"), "{error}");

    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(folder.path().join("data/eye.db"), "no database, but long enough to have a header".repeat(100))
        .unwrap();
    let error = try_build::<SqliteConfig>(&url(&folder)).await.err().unwrap().to_string();
    assert!(error.contains("file is not a database"), "{error}");
}

#[test]
fn url_must_name_a_file() {
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
async fn page_reports_event_of_its_key() {
    let folder = TempDir::new().unwrap();
    common::assert_page_reports_event_of_its_key(&open::<SqliteConfig>(&url(&folder)).await).await;
}

/// Returns the numbers of staged events and of events in the main table.
async fn rows(url: &str) -> (i64, i64) {
    let sql =
        "SELECT (SELECT COUNT(*) FROM event) - (SELECT COUNT(*) FROM main.event), (SELECT COUNT(*) FROM main.event)";
    let mut connection = both(url).await;
    let rows = sqlx::query_as(sql).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    rows
}

/// Opens a connection of another process to both files.
async fn both(url: &str) -> SqliteConnection {
    let mut connection = other_process(url).await;
    let sql = sqlite_with_staging(url.trim_start_matches("sqlite://"));
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
    connection
}

/// Locks the main file, so that events stay staged.
async fn lock(url: &str) -> SqliteConnection {
    let mut other = other_process(url).await;
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    other
}

async fn until_flushed(url: &str, events: i64) {
    eventually("all events are flushed", Duration::from_secs(30), async || rows(url).await == (0, events)).await;
}

#[tokio::test]
async fn staged_events_are_visible_and_flushed_in_time() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let lock = lock(&url(&folder)).await;
    sink.write(&events(0, 3)).await.unwrap();
    assert_eq!(rows(&url(&folder)).await, (3, 0));
    let page = newest(&sink, 2).await;
    assert_eq!((page.count, page.events.as_slice()), (3, [event(2), event(1)].as_slice()));
    lock.close().await.unwrap();
    until_flushed(&url(&folder), 3).await;
    let page = newest(&sink, 2).await;
    assert_eq!((page.count, page.events.as_slice()), (3, [event(2), event(1)].as_slice()));
}

#[tokio::test]
async fn large_batches_and_events_bypass_the_staging_table() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let large = |first: u64, bytes: usize| {
        let data = format!("\"{}\"", "x".repeat(bytes));
        (first..first + 64).map(|number| named(number, "n", &data)).collect::<Vec<_>>()
    };
    for (batch, is_staged) in [
        (events(0, 4000), true),
        (events(10_000, 4001), false),
        (large(20_000, 3900), true),
        (large(30_000, 4200), false),
    ] {
        let other = lock(&url(&folder)).await;
        assert_eq!(sink.write(&batch).await.is_ok(), is_staged, "{}", batch.len());
        drop(other);
        sink.prepare().await.unwrap();
    }
}

#[tokio::test]
async fn full_staging_table_accepts_no_batch() {
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
async fn event_is_stored_once_in_either_file() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&events(0, 5001)).await.unwrap();
    for (first, number, duplicates, stored) in [
        // Events of the main table in a small batch,
        (4999, 70, 2, 5069),
        // new ones,
        (5069, 5, 0, 5074),
        (5070, 20, 4, 5090),
        // and both in a large batch.
        (0, 6000, 5090, 6000),
    ] {
        assert_eq!(sink.write(&events(first, number)).await.unwrap().duplicates, duplicates, "{first}");
        let (staged, main) = rows(&url(&folder)).await;
        assert_eq!(staged + main, stored, "{first}: {staged}, {main}");
        assert_eq!(newest(&sink, 1).await.count, stored as u64);
    }
}

#[tokio::test]
async fn failing_flush_blocks_nothing() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let mut other = lock(&url(&folder)).await;
    sink.write(&[events(0, 63), vec![named(63, "bad", "1")]].concat()).await.unwrap();
    let trigger = "CREATE TRIGGER no_secrets BEFORE INSERT ON event WHEN NEW.name = 'bad'
        BEGIN SELECT RAISE(ABORT, 'no secrets'); END";
    other.execute(trigger).await.unwrap();
    other.execute("COMMIT").await.unwrap();
    // From now on all events bypass the staging table.
    sink.write(&events(100, 10)).await.unwrap();
    let error = sink.write(&[named(200, "bad", "1")]).await.unwrap_err();
    assert_eq!(error, WriteError::reject("no secrets"));
    sink.close().await.unwrap();
    assert!(files(&folder).contains(&"eye.db-staging".to_owned()));
    assert_eq!(rows(&url(&folder)).await, (64, 10));
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    assert_eq!(sink.write(&events(0, 64)).await.unwrap().duplicates, 64);
    assert_eq!(newest(&sink, 1).await.count, 74);
    other.execute("DROP TRIGGER no_secrets").await.unwrap();
    sink.close().await.unwrap();
    // The next start tries again.
    let _sink = open::<SqliteConfig>(&url(&folder)).await;
    until_flushed(&url(&folder), 74).await;
}

#[tokio::test]
async fn unique_index_is_checked_before_the_ack() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    other_process(&url(&folder)).await.execute("CREATE UNIQUE INDEX one_a_name ON event (name)").await.unwrap();
    sink.write(&[named(1, "a", "1")]).await.unwrap();
    let error = sink.write(&[named(2, "a", "1")]).await.unwrap_err();
    assert!(matches!(&error, WriteError::Reject { .. }), "{error}");
    assert_eq!(rows(&url(&folder)).await, (0, 1));
}

#[tokio::test]
async fn staged_events_of_a_killed_program_are_kept() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let other = lock(&url(&folder)).await;
    sink.write(&events(0, 10)).await.unwrap();
    // The sink is not closed, and the lock outlives it.
    drop(sink);
    let sink = build::<SqliteConfig>(&url(&folder)).await;
    assert_eq!(newest(&sink, 1).await.count, 10);
    drop(other);
    sink.prepare().await.unwrap();
    assert_eq!(sink.write(&events(5, 10)).await.unwrap().duplicates, 5);
    until_flushed(&url(&folder), 15).await;
    assert_eq!(newest(&sink, 1).await.count, 15);
}

#[tokio::test]
async fn two_programs_store_an_event_once() {
    let folder = TempDir::new().unwrap();
    let nodes = [open::<SqliteConfig>(&url(&folder)).await, open::<SqliteConfig>(&url(&folder)).await];
    for (node, first, number, duplicates, stored) in [
        (0, 0, 64, 0, 64),
        // A large batch bypasses the staging table, which may have the others,
        (1, 0, 6000, 64, 6000),
        // a small one does not,
        (0, 5998, 70, 2, 6068),
        // and the program that has staged nothing writes another large one.
        (1, 6010, 6000, 58, 12_010),
    ] {
        assert_eq!(nodes[node].write(&events(first, number)).await.unwrap().duplicates, duplicates, "{first}");
        let (staged, main) = rows(&url(&folder)).await;
        assert_eq!(staged + main, stored, "{first}: {staged}, {main}");
    }
    assert_eq!(newest(&nodes[0], 1).await.count, 12_010);
}

#[tokio::test]
async fn clean_shutdown_leaves_one_file() {
    let folder = TempDir::new().unwrap();
    for stored in 1..4 {
        let sink = open::<SqliteConfig>(&url(&folder)).await;
        sink.write(&[event(stored as u64)]).await.unwrap();
        assert_eq!(newest(&sink, 10).await.count, stored as u64);
        sink.close().await.unwrap();
        assert_eq!(files(&folder), ["eye.db"]);
        assert_eq!(rows(&url(&folder)).await, (0, stored));
        let query = EventQuery { limit: 10, ..EventQuery::default() };
        let answer = sink.store().page(query).await;
        assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
        assert_eq!(files(&folder), ["eye.db"], "a query recreates nothing");
    }
}

#[tokio::test]
async fn shutdown_without_events_leaves_one_file() {
    let folder = TempDir::new().unwrap();
    build::<SqliteConfig>(&url(&folder)).await.close().await.unwrap();
    assert_eq!(files(&folder), ["eye.db"]);
    open::<SqliteConfig>(&url(&folder)).await.close().await.unwrap();
    assert_eq!(files(&folder), ["eye.db"]);
}

#[tokio::test]
async fn staging_file_in_use_stays_at_shutdown() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(1)]).await.unwrap();
    let mut reader = both(&url(&folder)).await;
    let count = "SELECT COUNT(*) FROM event";
    assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&mut reader).await.unwrap(), 1);
    sink.close().await.unwrap();
    assert!(files(&folder).contains(&"eye.db-staging".to_owned()));
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(2)]).await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&mut reader).await.unwrap(), 2);
    reader.close().await.unwrap();
    sink.close().await.unwrap();
    assert_eq!(files(&folder), ["eye.db"]);
}

#[tokio::test]
async fn last_of_two_programs_removes_the_staging_file() {
    let folder = TempDir::new().unwrap();
    let [first, last] = [open::<SqliteConfig>(&url(&folder)).await, open::<SqliteConfig>(&url(&folder)).await];
    first.write(&[event(1)]).await.unwrap();
    first.close().await.unwrap();
    last.write(&[event(2)]).await.unwrap();
    assert_eq!(newest(&last, 10).await.count, 2);
    last.close().await.unwrap();
    assert_eq!((files(&folder), rows(&url(&folder)).await), (vec!["eye.db".to_owned()], (0, 2)));
}

/// The program had no connection while another one removed the file at its shutdown.
#[tokio::test]
async fn staging_file_removed_by_another_program_is_recreated() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(1)]).await.unwrap();
    until_flushed(&url(&folder), 1).await;
    // A large batch fails at the lock, and costs the connections.
    let other = lock(&url(&folder)).await;
    sink.write(&events(10, 4001)).await.unwrap_err();
    other.close().await.unwrap();
    // Dropped connections close in threads of their own.
    eventually("the file is removed", Duration::from_secs(30), async || {
        open::<SqliteConfig>(&url(&folder)).await.close().await.unwrap();
        !files(&folder).contains(&"eye.db-staging".to_owned())
    })
    .await;
    sink.prepare().await.unwrap();
    sink.write(&[event(2)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.count, 2);
}

#[tokio::test]
async fn removed_file_with_events_accepts_no_more() {
    for name in ["data/eye.db", "data/eye.db-staging"] {
        let folder = TempDir::new().unwrap();
        let sink = open::<SqliteConfig>(&url(&folder)).await;
        let other = lock(&url(&folder)).await;
        sink.write(&[event(1)]).await.unwrap();
        let (file, elsewhere) = (folder.path().join(name), folder.path().join("elsewhere"));
        std::fs::rename(&file, &elsewhere).unwrap();
        other.close().await.unwrap();
        let removed = |error: &WriteError| error.to_string().contains("removed or replaced");
        let error = sink.write(&[event(2)]).await.unwrap_err();
        assert!(matches!(&error, WriteError::Retry { .. }) && removed(&error), "{error}");
        assert!(matches!(sink.prepare().await, Err(WriteError::Retry { .. })), "{name}");
        std::fs::rename(&elsewhere, &file).unwrap();
        sink.prepare().await.unwrap();
        sink.write(&[event(2)]).await.unwrap();
        assert_eq!(newest(&sink, 10).await.count, 2, "{name}");
    }
}

#[tokio::test]
async fn removed_staging_file_without_events_is_recreated() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&[event(1)]).await.unwrap();
    until_flushed(&url(&folder), 1).await;
    std::fs::remove_file(folder.path().join("data/eye.db-staging")).unwrap();
    let error = sink.write(&[event(2)]).await.unwrap_err();
    assert!(matches!(&error, WriteError::Retry { .. }), "{error}");
    sink.prepare().await.unwrap();
    sink.write(&[event(2)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.count, 2);
}

#[tokio::test]
async fn new_staging_file_hides_no_event() {
    let folder = TempDir::new().unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    sink.write(&events(0, 10)).await.unwrap();
    sink.close().await.unwrap();
    let sink = open::<SqliteConfig>(&url(&folder)).await;
    let other = lock(&url(&folder)).await;
    // Their numbers are those of the flushed events of the first staging file.
    sink.write(&events(10, 3)).await.unwrap();
    assert_eq!((rows(&url(&folder)).await, newest(&sink, 1).await.count), ((3, 10), 13));
    drop(other);
    until_flushed(&url(&folder), 13).await;
}

/// A power cut may bring back a file that was removed, too.
#[tokio::test]
async fn staging_file_restored_from_an_older_copy_loses_nothing() {
    let folder = TempDir::new().unwrap();
    let (staging, copy) = (folder.path().join("data/eye.db-staging"), folder.path().join("copy"));
    for stored_before in [0, 2] {
        let first = 100 * stored_before;
        let sink = open::<SqliteConfig>(&url(&folder)).await;
        let other = lock(&url(&folder)).await;
        sink.write(&events(first, stored_before)).await.unwrap();
        let vacuum = AssertSqlSafe(format!("VACUUM INTO '{}'", copy.display()));
        other_process(&format!("sqlite://{}", staging.display())).await.execute(vacuum).await.unwrap();
        drop(other);
        sink.write(&events(first + 10, 10)).await.unwrap();
        sink.close().await.unwrap();
        std::fs::rename(&copy, &staging).unwrap();
        let sink = open::<SqliteConfig>(&url(&folder)).await;
        let before = newest(&sink, 1).await.count;
        sink.write(&events(first + 20, 3)).await.unwrap();
        assert_eq!(newest(&sink, 1).await.count, before + 3, "they are visible");
        until_flushed(&url(&folder), before as i64 + 3).await;
        sink.close().await.unwrap();
        assert_eq!(files(&folder), ["eye.db"]);
    }
}

/// Opens, writes and closes until it is killed, and tells each step.
#[tokio::test]
#[ignore = "the process that kill_at_any_moment_loses_nothing starts"]
async fn process_to_kill() {
    let Ok(url) = std::env::var("EYE_TEST_URL") else { return };
    let mut next: u64 = std::env::var("EYE_TEST_NEXT").unwrap().parse().unwrap();
    loop {
        let sink = open::<SqliteConfig>(&url).await;
        println!("opened");
        for _ in 0..fastrand::u64(0..4) {
            sink.write(&events(next, KILLED_BATCH)).await.unwrap();
            next += KILLED_BATCH;
            println!("stored {next}");
        }
        sink.close().await.unwrap();
        println!("closed");
    }
}

const KILLED_BATCH: u64 = 7;

#[tokio::test]
async fn kill_at_any_moment_loses_nothing() {
    let folder = TempDir::new().unwrap();
    let mut stored = 0;
    for _ in 0..20 {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process_to_kill", "--ignored", "--nocapture"])
            .envs([("EYE_TEST_URL", url(&folder)), ("EYE_TEST_NEXT", stored.to_string())])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        let steps: Vec<_> =
            lines.by_ref().skip_while(|line| !line.ends_with("opened")).take(fastrand::usize(1..12)).collect();
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..15_000)));
        process.kill().unwrap();
        process.wait().unwrap();
        let acked = steps.into_iter().chain(lines).filter_map(|line| line.strip_prefix("stored ")?.parse::<u64>().ok());
        let acked = acked.max().unwrap_or(stored);
        let sink = open::<SqliteConfig>(&url(&folder)).await;
        stored = newest(&sink, 1).await.count;
        assert!(stored == acked || stored == acked + KILLED_BATCH, "{stored} stored, {acked} acknowledged");
        sink.close().await.unwrap();
        assert_eq!((files(&folder), rows(&url(&folder)).await), (vec!["eye.db".to_owned()], (0, stored as i64)));
    }
}

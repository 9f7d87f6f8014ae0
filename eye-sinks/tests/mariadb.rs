//! Settings of MariaDB that must not matter.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{event, named, newest, open};
use eye_core::sink::WriteError;
use eye_harness::{MariaDb, eventually};
use eye_sinks::MysqlConfig;

#[tokio::test(flavor = "multi_thread")]
async fn event_too_large_for_the_server_is_rejected() {
    let server = MariaDb::start();
    let database = server.create_database();
    server.sql(&database.name, "SET GLOBAL max_allowed_packet = 1048576");
    let sink = open::<MysqlConfig>(&database.url).await;
    let large = named(1, "large", &format!("\"{}\"", "x".repeat(1024 * 1024)));
    let error = sink.write(&[event(0), large]).await.unwrap_err();
    assert!(matches!(&error, WriteError::Reject { reason } if reason.contains("max_allowed_packet")), "{error:?}");
    // Events that fit one by one are stored in several statements.
    let fitting: Vec<_> = (0..20).map(|n| named(n, "fits", &format!("\"{}\"", "x".repeat(400 * 1024)))).collect();
    sink.write(&fitting).await.unwrap();
    assert_eq!(newest(&sink, 100).await.events.len(), 20);
    // So are their counts, whose names are longer as JSON.
    let names: Vec<_> = (20..2020).map(|n| format!("{n:0150}").replace('0', "\u{1}")).collect();
    let counted: Vec<_> = (20..).zip(&names).map(|(n, name)| named(n, name, "{}")).collect();
    sink.write(&counted).await.unwrap();
    assert_eq!(newest(&sink, 1).await.count, 2020);
}

#[tokio::test(flavor = "multi_thread")]
async fn folds_respect_max_allowed_packet() {
    let server = MariaDb::start();
    let database = server.create_database();
    server.sql(&database.name, "SET GLOBAL max_allowed_packet = 65536");
    let sink = open::<MysqlConfig>(&database.url).await;
    let names: Vec<_> = (0..500).map(|n| format!("{n:0150}").replace('0', "\u{1F441}")).collect();
    for (n, name) in (0..).zip(&names) {
        sink.write(&[named(n, name, "{}")]).await.unwrap();
    }
    let deltas = async || {
        sink.prepare().await.unwrap();
        server.sql(&database.name, "SELECT COUNT(*) FROM event_count_delta").trim() == "0"
    };
    eventually("all deltas are folded", Duration::from_secs(20), deltas).await;
    assert_eq!(newest(&sink, 1).await.count, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_mode_of_the_server_is_overridden() {
    let server = MariaDb::start_with(&["--sql-mode=ORACLE"]);
    let sink = open::<MysqlConfig>(&server.create_database().url).await;
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.events, [event(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn close_ignores_connections_closed_by_the_server() {
    let server = MariaDb::start();
    let database = server.create_database();
    server.sql(&database.name, "SET GLOBAL wait_timeout = 1");
    let sink = open::<MysqlConfig>(&database.url).await;
    let for_both_connections: Vec<_> = (0..1000).map(event).collect();
    sink.write(&for_both_connections).await.unwrap();
    let others = "SELECT COUNT(*) FROM information_schema.processlist WHERE db IS NOT NULL AND id <> CONNECTION_ID()";
    let closed = async || server.sql(&database.name, others).trim() == "0";
    eventually("the server has closed them", Duration::from_secs(20), closed).await;
    sink.close().await.unwrap();
}

//! Queries whose connections hang.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;
use std::time::Duration;

use common::{event, newest, open};
use eye_core::store::{EventFilter, EventQuery, PageStart, StoreError};
use eye_harness::Postgres;
use eye_sinks::PostgresConfig;
use futures_util::future::join_all;
use sqlx::{Connection, Executor, PgConnection};

/// The default of `max_read_connections`.
const READ_CONNECTIONS: usize = 4;

#[tokio::test]
async fn hanging_connections_are_replaced() {
    let server = Postgres::start();
    let database = server.create_database();
    let sink = open::<PostgresConfig>(&database.url).await;
    sink.write(&[event(1)]).await.unwrap();
    let mut watcher = PgConnection::connect(&database.url).await.unwrap();
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    holder.execute("BEGIN; LOCK TABLE event IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let store = sink.store();
    let query = || EventQuery { filter: EventFilter::default(), start: PageStart::Newest, limit: 1 };
    let vanish = async {
        let sql = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        let all_wait = async {
            loop {
                let waiting: Vec<i32> = sqlx::query_scalar(sql).fetch_all(&mut watcher).await.unwrap();
                if waiting.len() == READ_CONNECTIONS {
                    return waiting;
                }
            }
        };
        let waiting = tokio::time::timeout(Duration::from_secs(20), all_wait).await.unwrap();
        let pids = waiting.iter().map(i32::to_string);
        assert!(Command::new("kill").arg("-STOP").args(pids).status().unwrap().success());
        holder.close().await.unwrap();
        // tokio advances the clock while all tasks wait for it.
        tokio::time::pause();
    };
    let queries = join_all((0..READ_CONNECTIONS).map(|_| store.page(query())));
    let (answers, ()) = tokio::join!(queries, vanish);
    for answer in answers {
        let error = answer.unwrap_err();
        assert!(matches!(&error, StoreError::Unavailable { reason } if reason.contains("35 s")), "{error:?}");
    }
    tokio::time::resume();
    assert_eq!(newest(&sink, 10).await.events, [event(1)]);
}

//! The snapshot of a query while SQLite's staged events are flushed.

use eye_core::context::BuildContext;
use eye_core::sink::SinkConfig;
use eye_core::testkit::event;
use sea_orm::sea_query::Query;
use serde::Deserialize;
use serde::de::value::{Error, MapDeserializer};
use tempfile::TempDir;

use super::*;
use crate::SqliteConfig;
use crate::sql::sqlite::{self, SqliteFiles};
use crate::sql::url::MaxReadConnections;

#[tokio::test]
async fn event_flushed_during_a_query_is_seen_once() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("eye.db").display().to_string();
    let keys = MapDeserializer::<_, Error>::new([("url", format!("sqlite://{path}"))].into_iter());
    let sink =
        SqliteConfig::deserialize(keys).unwrap().build(&BuildContext::standalone("sinks.store")).await.unwrap().sink;
    sink.prepare().await.unwrap();
    sink.write(&[event(1)]).await.unwrap();
    let snapshot =
        begin_snapshot(&sqlite::read_pool(&SqliteFiles::new(&path), MaxReadConnections::default())).await.unwrap();
    // Fixes the snapshot of the main file.
    let counted = snapshot.query_all(Query::select().column("count").from("event_count")).await.unwrap();
    assert!(counted.is_empty(), "staged events are not in it");
    sink.close().await.unwrap();
    let page = page(&snapshot, &EventFilter::default(), &PageStart::Newest, 10).await.unwrap();
    assert_eq!((page.count, page.events), (1, vec![event(1)]));
}

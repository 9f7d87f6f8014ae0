//! What a query sees while events leave SQLite's inbox.

use eye_core::sink::SinkConfig;
use eye_core::testkit::event;
use sea_orm::sea_query::Query;
use serde::Deserialize;
use serde::de::value::{Error, MapDeserializer};
use tempfile::TempDir;

use super::*;
use crate::SqliteConfig;
use crate::sql::sqlite::{self, Files};
use crate::sql::url::MaxReadConnections;

#[tokio::test]
async fn an_event_that_leaves_the_inbox_meanwhile_is_seen() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("eye.db").display().to_string();
    let keys = MapDeserializer::<_, Error>::new([("url", format!("sqlite://{path}"))].into_iter());
    let sink = SqliteConfig::deserialize(keys).unwrap().build().await.unwrap();
    sink.prepare().await.unwrap();
    sink.write(&[event(1)]).await.unwrap();
    let snapshot = begin(&sqlite::read_pool(&Files::of(&path), MaxReadConnections::default())).await.unwrap();
    // Looks at the other file, and at that alone.
    let counted = snapshot.query_all(Query::select().column("count").from("event_count")).await.unwrap();
    assert!(counted.is_empty(), "events are counted there only when they have left the inbox");
    sink.close().await.unwrap();
    let reader = Reader { filter: &EventFilter::default(), leading: None, snapshot: &snapshot };
    let page = reader.page(&PageStart::Newest, 10).await.unwrap();
    assert_eq!((page.count, page.events), (1, vec![event(1)]));
}

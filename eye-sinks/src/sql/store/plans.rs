//! Snapshots of the plan of each documented query on each database. The table is so large that a lost or unused index
//! shows as a difference.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use eye_core::context::BuildContext;
use eye_core::event::EventFields;
use eye_core::sink::{Sink, SinkConfig};
use eye_core::testkit::origin;
use eye_core::timestamp::Timestamp;
use eye_harness::{DatabaseServer, MariaDb, Postgres};
use sea_orm::{Database, QueryResult, Statement};
use serde::de::value::{Error, MapDeserializer};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::sql::sqlite::{self, SqliteFiles};
use crate::sql::url::MaxReadConnections;
use crate::{MysqlConfig, PostgresConfig, SqliteConfig};

const EVENTS: u64 = 60_000;
const START_MICROS: i64 = 1_600_000_000_000_000;
/// 60,000 events take 180 hours.
const STEP_MICROS: i64 = 10_800_000;
/// One event in 5,000 has a category that no other event has.
const RARE: u64 = 5000;

fn instant_of(number: u64) -> Timestamp {
    Timestamp::from_micros(START_MICROS + number as i64 * STEP_MICROS).unwrap()
}

fn event(number: u64) -> Event {
    let category = if number.is_multiple_of(RARE) { 99 } else { number % 8 };
    let [session_id, category, name] = [("session", number / 20), ("category", category), ("name", number / 8 % 16)]
        .map(|(what, n)| format!("{what}-{n}"));
    Event::from(EventFields {
        id: Uuid::from_u128(u128::from(number) + 1),
        timestamp: instant_of(number),
        received_at: instant_of(number),
        session_id: &session_id,
        category: &category,
        name: &name,
        data: "{}",
        origin: origin(),
    })
}

async fn open<C: SinkConfig>(url: &str) -> Arc<dyn Sink> {
    let config = C::deserialize(MapDeserializer::<_, Error>::new([("url", url)].into_iter())).unwrap();
    let sink = config.build(&BuildContext::standalone("sinks.store")).await.unwrap().sink;
    sink.prepare().await.unwrap();
    sink
}

/// Stores all events at once, so that their counts lie in the same order each time.
async fn fill<C: SinkConfig>(url: &str) {
    let sink = open::<C>(url).await;
    sink.write(&(0..EVENTS).map(event).collect::<Vec<_>>()).await.unwrap();
    sink.close().await.unwrap();
    // A fold takes the delta of one half of the batch.
    let sink = open::<C>(url).await;
    sink.prepare().await.unwrap();
    sink.close().await.unwrap();
}

/// Returns the documented filters, alone and in pairs, and one whose category is much rarer than its name.
fn filters() -> Vec<(String, EventFilter)> {
    type Condition = (&'static str, fn(&mut EventFilter));
    const CONDITIONS: [Condition; 5] = [
        ("session_id", |filter| filter.session_id = Some("session-1007".to_owned())),
        ("category", |filter| filter.category = Some("category-3".to_owned())),
        ("name", |filter| filter.name = Some("name-5".to_owned())),
        ("timestamp_after", |filter| filter.timestamp_after = Some(instant_of(20_000))),
        ("timestamp_before", |filter| filter.timestamp_before = Some(instant_of(40_000))),
    ];
    let mut filters = vec![("no filter".to_owned(), EventFilter::default())];
    for (index, (name, set)) in CONDITIONS.into_iter().enumerate() {
        let mut filter = EventFilter::default();
        set(&mut filter);
        filters.push((name.to_owned(), filter.clone()));
        for (other_name, set_other) in &CONDITIONS[index + 1..] {
            let mut filter = filter.clone();
            set_other(&mut filter);
            filters.push((format!("{name}, {other_name}"), filter));
        }
    }
    let rare = event(EVENTS / 2 + RARE);
    let [category, name] = [rare.category(), rare.name()].map(|text| Some(text.to_owned()));
    filters.push(("rare category, name".to_owned(), EventFilter { category, name, ..EventFilter::default() }));
    filters
}

/// Returns the plan of each statement of each query.
async fn plans(mut db: DatabaseConnection, explain: &str, line: fn(&QueryResult) -> String) -> String {
    let statements = Arc::<Mutex<Vec<Statement>>>::default();
    let seen = Arc::clone(&statements);
    db.set_metric_callback(move |info| seen.lock().unwrap().push(info.statement.clone()));
    let mut plans = String::new();
    for (name, filter) in filters() {
        let middle = PageStart::OlderThan(event(30_000).key());
        for (page, start) in [("first page", PageStart::Newest), ("by cursor", middle)] {
            statements.lock().unwrap().clear();
            read_page(&db, &EventQuery { filter: filter.clone(), start, limit: 100 }).await.unwrap();
            let asked = std::mem::take(&mut *statements.lock().unwrap());
            writeln!(plans, "{name}: {page}").unwrap();
            for mut statement in asked.into_iter().filter(|statement| statement.sql.starts_with("SELECT")) {
                let what = if statement.sql.contains("received_at") { "events" } else { "numbers" };
                writeln!(plans, "  {what}").unwrap();
                statement.sql.insert_str(0, explain);
                for row in db.query_all_raw(statement).await.unwrap() {
                    writeln!(plans, "    {}", line(&row)).unwrap();
                }
            }
        }
    }
    plans
}

/// `analyze` reads all rows of a table, so that the statistics are the same each time.
async fn server_plans<C: SinkConfig>(
    server: &DatabaseServer,
    analyze: &[&str],
    explain: &str,
    line: fn(&QueryResult) -> String,
) -> String {
    let database = server.create_database();
    fill::<C>(&database.url).await;
    for sql in analyze {
        server.sql(&database.name, sql);
    }
    plans(Database::connect(&database.url).await.unwrap(), explain, line).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("eye.db").display().to_string();
    fill::<SqliteConfig>(&format!("sqlite://{path}")).await;
    // The staging file exists while a sink is open.
    let _sink = open::<SqliteConfig>(&format!("sqlite://{path}")).await;
    let line = |row: &QueryResult| row.try_get("", "detail").unwrap();
    let reader = sqlite::read_pool(&SqliteFiles::new(&path), MaxReadConnections::default());
    let plans = plans(reader, "EXPLAIN QUERY PLAN ", line).await;
    insta::assert_snapshot!(plans);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres() {
    let line = |row: &QueryResult| row.try_get_by_index(0).unwrap();
    let analyze = [
        "ALTER ROLE eye SET default_statistics_target = 1000",
        // The halves of the batch were written at once, so that their rows are interleaved.
        "CLUSTER event USING event_pkey",
        "VACUUM ANALYZE",
    ];
    let plans = server_plans::<PostgresConfig>(Postgres::shared(), &analyze, "EXPLAIN (COSTS OFF) ", line).await;
    insta::assert_snapshot!(plans);
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb() {
    let line = |row: &QueryResult| {
        let column = |name| row.try_get::<Option<String>>("", name).unwrap().unwrap_or_default();
        // The rest of the column differs from run to run, or does not matter.
        let extra = column("Extra");
        let sorts = ["filesort", "temporary"].into_iter().filter(|word| extra.contains(word)).collect::<String>();
        format!("{} | {} | {} | {} | {sorts}", column("table"), column("type"), column("key"), column("key_len"))
    };
    let analyze = ["ANALYZE TABLE event, event_count, event_count_delta"];
    let plans = server_plans::<MysqlConfig>(MariaDb::shared(), &analyze, "EXPLAIN ", line).await;
    insta::assert_snapshot!(plans);
}

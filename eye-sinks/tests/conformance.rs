//! All sinks pass the public suites, each on a real database.
#![allow(clippy::unwrap_used)]

mod common;

use std::marker::PhantomData;
use std::sync::Arc;

use async_trait::async_trait;
use common::build;
use eye_core::event::{Event, EventFields};
use eye_core::sink::{Sink, SinkConfig};
use eye_core::testkit;
use eye_core::testkit::sink::SinkFixture;
use eye_core::timestamp::Timestamp;
use eye_harness::{MariaDb, Postgres, Server};
use eye_sinks::{MysqlConfig, PostgresConfig, SqliteConfig};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection, SqlSafeStr, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    testkit::sink::suite(async || SqliteFixture::new()).await;
    testkit::store::suite(async || SqliteFixture::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms_with_half_of_its_events_in_either_table() {
    testkit::sink::suite(SqliteFixture::scattered).await;
    testkit::store::suite(SqliteFixture::scattered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_conforms() {
    server_conforms::<PostgresConfig>(Postgres::start(), POSTGRES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_conforms() {
    server_conforms::<MysqlConfig>(MariaDb::start(), MARIADB).await;
}

/// Two events are there already, one of them twice in the batch.
async fn duplicates(sink: Box<dyn Sink>) -> usize {
    sink.prepare().await.unwrap();
    assert_eq!(sink.write(&testkit::events(0, 600)).await.unwrap().duplicates, 0);
    let batch = [testkit::events(598, 1200), testkit::events(599, 600)].concat();
    sink.write(&batch).await.unwrap().duplicates
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_already_is_told() {
    assert_eq!(duplicates(SqliteFixture::new().open().await).await, 3, "SQLite");
    let scattered = SqliteFixture::scattered().await;
    assert_eq!(duplicates(scattered.open().await).await, 3, "SQLite, events in both tables");
    assert_eq!(scattered.rows().await, (600, 600));
    let database = Postgres::shared().create_database();
    assert_eq!(duplicates(build::<PostgresConfig>(&database.url).await).await, 3, "PostgreSQL");
    let database = MariaDb::shared().create_database();
    assert_eq!(duplicates(build::<MysqlConfig>(&database.url).await).await, 3, "MariaDB");
}

async fn server_conforms<C: SinkConfig + Sync>(server: Server, kind: Kind) {
    let server = Arc::new(server);
    let fixture = async || {
        let database = server.create_database();
        ServerFixture::<C> { server: server.clone(), name: database.name, url: database.url, kind, config: PhantomData }
    };
    testkit::sink::suite(fixture).await;
    testkit::store::suite(fixture).await;
}

/// A row as it is stored, read by nothing of the sink's: microseconds, id, session, category, name, data, microseconds.
type Row = (i64, Uuid, String, String, String, String, i64);

fn events(rows: Vec<Row>) -> Vec<Event> {
    let event = |(micros, id, session_id, category, name, data, received_micros): &Row| {
        let timestamp = Timestamp::from_micros(*micros).unwrap();
        let received_at = Timestamp::from_micros(*received_micros).unwrap();
        Event::from(EventFields { id: *id, timestamp, received_at, session_id, category, name, data })
    };
    rows.iter().map(event).collect()
}

struct SqliteFixture(TempDir);

impl SqliteFixture {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// Has every other event in the table where the sink does not put it.
    async fn scattered() -> Self {
        let fixture = Self::new();
        fixture.open().await.prepare().await.unwrap();
        for (table, other, parity) in [("event_inbox", "event_indexed", 0), ("event_indexed", "event_inbox", 1)] {
            let sql = format!(
                "CREATE TRIGGER scatter_{table} AFTER INSERT ON {table} WHEN unicode(substr(hex(NEW.id), 32)) % 2 = {parity}
                 BEGIN
                     INSERT INTO {other} (timestamp, id, session_id, category, name, data, received_at)
                         VALUES (NEW.timestamp, NEW.id, NEW.session_id, NEW.category, NEW.name, NEW.data, NEW.received_at);
                     DELETE FROM {table} WHERE timestamp = NEW.timestamp AND id = NEW.id;
                 END"
            );
            fixture.execute(AssertSqlSafe(sql)).await;
        }
        fixture
    }

    /// How many are in the inbox, and in the table with the indexes.
    async fn rows(&self) -> (i64, i64) {
        let sql = "SELECT (SELECT COUNT(*) FROM event_inbox), (SELECT COUNT(*) FROM event_indexed)";
        let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
        sqlx::query_as(sql).fetch_one(&mut connection).await.unwrap()
    }

    async fn execute(&self, sql: impl SqlSafeStr) {
        let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.0.path().join("eye.db").display())
    }
}

#[async_trait]
impl SinkFixture for SqliteFixture {
    async fn open(&self) -> Box<dyn Sink> {
        build::<SqliteConfig>(&self.url()).await
    }

    async fn stored(&self) -> Vec<Event> {
        let sql = "SELECT timestamp, id, session_id, category, name, data, received_at FROM event";
        let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
        events(sqlx::query_as(sql).fetch_all(&mut connection).await.unwrap())
    }

    async fn refuse(&self, name: &str) -> bool {
        for table in ["event_inbox", "event_indexed"] {
            let sql = format!(
                "CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} WHEN NEW.name = '{name}' \
                 BEGIN SELECT RAISE(ABORT, 'refused'); END"
            );
            self.execute(AssertSqlSafe(sql)).await;
        }
        true
    }
}

struct ServerFixture<C> {
    server: Arc<Server>,
    name: String,
    url: String,
    kind: Kind,
    config: PhantomData<C>,
}

/// How to look at what a server has.
#[derive(Clone, Copy)]
struct Kind {
    select: &'static str,
    is_postgres: bool,
}

const POSTGRES: Kind = Kind {
    select: "SELECT (EXTRACT(EPOCH FROM timestamp) * 1000000)::bigint, id, session_id, category, name, data::text,
        (EXTRACT(EPOCH FROM received_at) * 1000000)::bigint FROM event",
    is_postgres: true,
};
const MARIADB: Kind = Kind {
    select: "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', timestamp), id, session_id, category, name, data,
        TIMESTAMPDIFF(MICROSECOND, '1970-01-01', received_at) FROM event",
    is_postgres: false,
};

#[async_trait]
impl<C: SinkConfig + Sync> SinkFixture for ServerFixture<C> {
    async fn open(&self) -> Box<dyn Sink> {
        build::<C>(&self.url).await
    }

    async fn stored(&self) -> Vec<Event> {
        events(if self.kind.is_postgres {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            sqlx::query_as(self.kind.select).fetch_all(&mut connection).await.unwrap()
        } else {
            let mut connection = MySqlConnection::connect(&self.url).await.unwrap();
            sqlx::query_as(self.kind.select).fetch_all(&mut connection).await.unwrap()
        })
    }

    async fn refuse(&self, name: &str) -> bool {
        self.server.sql(&self.name, &format!("ALTER TABLE event ADD CONSTRAINT refuse CHECK (name <> '{name}')"));
        true
    }

    async fn go_away(&self) -> bool {
        self.server.kill();
        true
    }

    async fn come_back(&self) {
        self.server.restart();
    }
}

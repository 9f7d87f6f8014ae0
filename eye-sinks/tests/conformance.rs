//! The public suites, run by all sinks on real databases.
#![allow(clippy::unwrap_used)]

mod common;

use std::marker::PhantomData;
use std::sync::Arc;

use async_trait::async_trait;
use common::build;
use eye_core::event::{Event, EventFields, Origin};
use eye_core::sink::{BuiltSink, Sink, SinkConfig, SinkError, WriteError, Written};
use eye_core::testkit;
use eye_core::testkit::sink::SinkFixture;
use eye_core::timestamp::Timestamp;
use eye_harness::{DatabaseServer, MariaDb, Postgres, sqlite_with_staging};
use eye_sinks::{MysqlConfig, PostgresConfig, SqliteConfig};
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, PgConnection, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    testkit::sink::suite(async || SqliteFixture::new()).await;
    testkit::store::suite(async || SqliteFixture::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms_with_half_of_its_events_staged() {
    let fixture = async || SqliteFixture { flushes_half: true, ..SqliteFixture::new() };
    testkit::sink::suite(fixture).await;
    testkit::store::suite(fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_conforms() {
    server_conforms::<PostgresConfig>(Postgres::start(), POSTGRES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_conforms() {
    server_conforms::<MysqlConfig>(MariaDb::start(), MARIADB).await;
}

/// Two events are stored already, one of them is twice in the batch.
async fn duplicates(BuiltSink { sink, .. }: BuiltSink) -> usize {
    sink.prepare().await.unwrap();
    assert_eq!(sink.write(&testkit::events(0, 600)).await.unwrap().duplicates, 0);
    let batch = [testkit::events(598, 1200), testkit::events(599, 600)].concat();
    sink.write(&batch).await.unwrap().duplicates
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_are_reported() {
    assert_eq!(duplicates(SqliteFixture::new().open().await).await, 3, "SQLite");
    let database = Postgres::shared().create_database();
    assert_eq!(duplicates(build::<PostgresConfig>(&database.url).await.0).await, 3, "PostgreSQL");
    let database = MariaDb::shared().create_database();
    assert_eq!(duplicates(build::<MysqlConfig>(&database.url).await.0).await, 3, "MariaDB");
}

async fn server_conforms<C: SinkConfig + Sync>(server: DatabaseServer, kind: Kind) {
    let server = Arc::new(server);
    let fixture = async || {
        let database = server.create_database();
        ServerFixture::<C> { server: server.clone(), name: database.name, url: database.url, kind, config: PhantomData }
    };
    testkit::sink::suite(fixture).await;
    testkit::store::suite(fixture).await;
}

/// A stored row: timestamp in microseconds, id, session, category, name, origin, data, time of receipt in microseconds.
type Row = (i64, Uuid, String, String, String, String, String, i64);

fn events(rows: Vec<Row>) -> Vec<Event> {
    let event = |(micros, id, session_id, category, name, origin, data, received_micros): &Row| {
        let timestamp = Timestamp::from_micros(*micros).unwrap();
        let received_at = Timestamp::from_micros(*received_micros).unwrap();
        let origin = &Arc::new(Origin::new(origin, None));
        Event::from(EventFields { id: *id, timestamp, received_at, session_id, category, name, data, origin })
    };
    rows.iter().map(event).collect()
}

struct SqliteFixture {
    folder: TempDir,
    flushes_half: bool,
}

impl SqliteFixture {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), flushes_half: false }
    }

    fn file(&self) -> String {
        self.folder.path().join("eye.db").display().to_string()
    }
}

/// Opens a connection that reads both files.
async fn sqlite(file: &str) -> SqliteConnection {
    let mut connection = SqliteConnection::connect(&format!("sqlite://{file}")).await.unwrap();
    connection.execute(AssertSqlSafe(sqlite_with_staging(file))).await.unwrap();
    connection
}

#[async_trait]
impl SinkFixture for SqliteFixture {
    async fn open(&self) -> BuiltSink {
        let (file, BuiltSink { sink, store }) =
            (self.file(), build::<SqliteConfig>(&format!("sqlite://{}", self.file())).await.0);
        if self.flushes_half {
            BuiltSink { sink: Arc::new(FlushesHalf { file, sink }), store }
        } else {
            BuiltSink { sink, store }
        }
    }

    async fn stored(&self) -> Vec<Event> {
        let sql = "SELECT timestamp, id, session_id, category, name, origin, data, received_at FROM event";
        events(sqlx::query_as(sql).fetch_all(&mut sqlite(&self.file()).await).await.unwrap())
    }

    async fn refuse(&self, name: &str) -> bool {
        let sql = format!(
            "CREATE TRIGGER main.refuse BEFORE INSERT ON event WHEN NEW.name = '{name}' \
             BEGIN SELECT RAISE(ABORT, 'refused'); END"
        );
        sqlite(&self.file()).await.execute(AssertSqlSafe(sql)).await.unwrap();
        true
    }
}

/// A sink that after each batch flushes the older half of the staged events without deleting them, as a killed one
/// does.
struct FlushesHalf {
    file: String,
    sink: Arc<dyn Sink>,
}

const FLUSH_HALF: &str = "
    CREATE TEMP TABLE half AS SELECT number, delta FROM event_staging_delta WHERE number > COALESCE(
        (SELECT number FROM event_staging_flushed WHERE staging = (SELECT id FROM event_staging_id)), 0
    );
    DELETE FROM half WHERE number > (
        SELECT number FROM half ORDER BY number LIMIT 1 OFFSET (SELECT COUNT(*) / 2 FROM half)
    );
    INSERT INTO main.event (timestamp, id, session_id, category, name, origin, data, received_at)
        SELECT timestamp, id, session_id, category, name, origin, data, received_at FROM event_staging
        WHERE number <= (SELECT MAX(number) FROM half) AND number > COALESCE(
            (SELECT number FROM event_staging_flushed WHERE staging = (SELECT id FROM event_staging_id)), 0
        );
    INSERT INTO event_count_delta (delta) SELECT delta FROM half;
    REPLACE INTO event_staging_flushed (staging, number)
        SELECT id, (SELECT MAX(number) FROM half) FROM event_staging_id WHERE EXISTS (SELECT 1 FROM half);
";

#[async_trait]
impl Sink for FlushesHalf {
    async fn prepare(&self) -> Result<(), WriteError> {
        self.sink.prepare().await
    }

    async fn write(&self, batch: &[Event]) -> Result<Written, WriteError> {
        let written = self.sink.write(batch).await?;
        let mut connection = sqlite(&self.file).await;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
        transaction.execute(FLUSH_HALF).await.unwrap();
        transaction.commit().await.unwrap();
        Ok(written)
    }

    async fn close(&self) -> Result<(), SinkError> {
        self.sink.close().await
    }
}

struct ServerFixture<C> {
    server: Arc<DatabaseServer>,
    name: String,
    url: String,
    kind: Kind,
    config: PhantomData<C>,
}

/// SQL for one kind of server.
#[derive(Clone, Copy)]
struct Kind {
    select: &'static str,
    is_postgres: bool,
}

const POSTGRES: Kind = Kind {
    select:
        "SELECT (EXTRACT(EPOCH FROM timestamp) * 1000000)::bigint, id, session_id, category, name, origin, data::text,
        (EXTRACT(EPOCH FROM received_at) * 1000000)::bigint FROM event",
    is_postgres: true,
};
const MARIADB: Kind = Kind {
    select: "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', timestamp), id, session_id, category, name, origin, data,
        TIMESTAMPDIFF(MICROSECOND, '1970-01-01', received_at) FROM event",
    is_postgres: false,
};

#[async_trait]
impl<C: SinkConfig + Sync> SinkFixture for ServerFixture<C> {
    async fn open(&self) -> BuiltSink {
        build::<C>(&self.url).await.0
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

    async fn become_unavailable(&self) -> bool {
        self.server.kill();
        true
    }

    async fn become_available(&self) {
        self.server.restart();
    }
}

//! PostgreSQL. A batch is one statement, and so one transaction.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use eye_core::context::BuildContext;
use eye_core::error::BuildError;
use eye_core::event::Event;
use eye_core::sink::{BuiltSink, SinkConfig};
use sea_orm::{DatabaseConnection, SqlxPostgresConnector};
use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor};
use uuid::Uuid;

use super::counts::deltas;
use super::driver::{CONNECT_TIMEOUT, Driver, Expected, SERVER_CLOSE_TIMEOUT};
use super::entity;
use super::fold::{DeltaBatch, MAX_DELTAS};
use super::read_pool::{QUERY_TIMEOUT, ReadPool};
use super::sink::SqlSink;
use super::url::{self, MaxReadConnections};

/// Stores events in an existing PostgreSQL database, and creates the tables.
#[derive(Clone, Debug, Deserialize)]
pub struct PostgresConfig {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. Characters such as `@` and `/` in the password are
    /// percent-encoded. `?sslmode=verify-full` (and `sslrootcert=FILE`) asks for TLS.
    url: PostgresUrl,
    /// Connections that answer queries at once, at most.
    #[serde(default)]
    max_read_connections: MaxReadConnections,
}

const EXAMPLE_URL: &str = "postgres://USER:PASSWORD@HOST:5432/DATABASE";
const PARAMETERS: &[&str] = &["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "application_name"];

#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
struct PostgresUrl(PgConnectOptions);

impl TryFrom<String> for PostgresUrl {
    type Error = String;

    fn try_from(url: String) -> Result<Self, String> {
        url::check(&url, &["postgres", "postgresql"], EXAMPLE_URL, PARAMETERS)?;
        let options = PgConnectOptions::from_str(&url);
        options.map(Self).map_err(|error| format!("no URL such as `{EXAMPLE_URL}`: {error}"))
    }
}

/// The address without secrets.
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.0;
        write!(f, "PostgreSQL at {}:{}", options.get_host(), options.get_port())?;
        options.get_database().map_or(Ok(()), |database| write!(f, "/{database}"))
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SinkConfig for PostgresConfig {
    const TYPE: &'static str = "postgres";
    const ANSWERS_QUERIES: bool = true;

    async fn build(self, _context: &BuildContext) -> Result<BuiltSink, BuildError> {
        let mut url = self.url;
        url.0 = url.0.disable_statement_logging();
        let options = url.0.clone();
        let read_pool = ReadPool::new(move || read_pool(options.clone(), self.max_read_connections));
        Ok(BuiltSink::with_store(SqlSink::new(PostgresDriver { url }, read_pool)))
    }
}

/// Opens the pool of a store. The server ends a statement that takes too long.
fn read_pool(options: PgConnectOptions, max: MaxReadConnections) -> DatabaseConnection {
    let pool = PgPoolOptions::new()
        .max_connections(max.0)
        .acquire_timeout(CONNECT_TIMEOUT)
        .after_connect(|connection, _| {
            Box::pin(async move {
                let sql = format!("SET statement_timeout = {}", QUERY_TIMEOUT.as_millis());
                connection.execute(sqlx::AssertSqlSafe(sql)).await.map(drop)
            })
        })
        .connect_lazy_with(options);
    SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
}

struct PostgresDriver {
    url: PostgresUrl,
}

impl fmt::Display for PostgresDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

/// One array for each column, so that one statement fits every batch.
macro_rules! insert_batch {
    () => {
        concat!(
            "INSERT INTO event (",
            event_columns!(),
            ") SELECT timestamp, id, session_id, category, name, origin, data::json, received_at FROM UNNEST(
                $1::timestamptz[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                $8::timestamptz[]
            ) AS batch (",
            event_columns!(),
            ")"
        )
    };
}

/// Stores events that are all new, and their delta. A quarter cheaper than [`INSERT_NEW`], where PostgreSQL looks for
/// each event, inserts it speculatively, and returns it.
const INSERT_ALL: &str = concat!(
    "WITH inserted AS (",
    insert_batch!(),
    ") INSERT INTO event_count_delta (delta) VALUES ($9) RETURNING CARDINALITY($1)::bigint"
);

/// Stores the events that are new, and their delta; `$9` is the delta of all.
const INSERT_NEW: &str = concat!(
    "WITH inserted AS (",
    insert_batch!(),
    "
        ON CONFLICT (timestamp, id) DO NOTHING
        RETURNING timestamp, category, name
    ), new AS (
        SELECT COUNT(*) AS count FROM inserted
    ), counted AS (
        INSERT INTO event_count_delta (delta)
        SELECT CASE count WHEN CARDINALITY($1) THEN $9 ELSE (
            SELECT JSON_OBJECT_AGG(hour, categories)::text FROM (
                SELECT hour, JSON_OBJECT_AGG(category, names) AS categories FROM (
                    SELECT hour, category, JSON_OBJECT_AGG(name, count) AS names FROM (
                        SELECT FLOOR(EXTRACT(EPOCH FROM timestamp) / 3600)::integer AS hour, category, name, COUNT(*)
                        FROM inserted GROUP BY 1, 2, 3
                    ) AS by_name GROUP BY hour, category
                ) AS by_category GROUP BY hour
            ) AS by_hour
        ) END
        FROM new WHERE count > 0
    )
    SELECT count FROM new"
);

/// Skips the deltas that another node is folding.
const SELECT_DELTAS: &str = "SELECT id, delta FROM event_count_delta ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED";
const ADD_COUNTS: &str = "INSERT INTO event_count AS counted (category, name, period, count)
    SELECT * FROM UNNEST($1::text[], $2::text[], $3::integer[], $4::bigint[])
    ON CONFLICT (category, name, period) DO UPDATE SET count = counted.count + EXCLUDED.count";
const DELETE_DELTAS: &str = "DELETE FROM event_count_delta WHERE id = ANY ($1)";

impl Driver for PostgresDriver {
    type Connection = PgConnection;

    const MAX_WRITE_CONNECTIONS: usize = 2;
    const MIN_EVENTS_TO_SPLIT: usize = 512;
    const CLOSE_TIMEOUT: Duration = SERVER_CLOSE_TIMEOUT;

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        self.url.0.connect().await
    }

    async fn insert(
        &self,
        connection: &mut PgConnection,
        batch: &[Event],
        expected: Expected,
    ) -> Result<usize, sqlx::Error> {
        let sql = match expected {
            Expected::AllNew => INSERT_ALL,
            Expected::Duplicates => INSERT_NEW,
        };
        let instants = |get: fn(&Event) -> DateTime<Utc>| batch.iter().map(get).collect::<Vec<_>>();
        let query = sqlx::query_scalar(sql)
            .bind(instants(|event| event.timestamp().to_chrono()))
            .bind(batch.iter().map(Event::id).collect::<Vec<Uuid>>())
            .bind(batch.iter().map(Event::session_id).collect::<Vec<&str>>())
            .bind(batch.iter().map(Event::category).collect::<Vec<&str>>())
            .bind(batch.iter().map(Event::name).collect::<Vec<&str>>())
            .bind(batch.iter().map(entity::origin).collect::<Vec<&str>>())
            .bind(batch.iter().map(Event::data).collect::<Vec<&str>>())
            .bind(instants(|event| event.received_at().to_chrono()))
            .bind(deltas(batch, usize::MAX).pop());
        let inserted: i64 = query.fetch_one(connection).await?;
        Ok(usize::try_from(inserted).unwrap_or(0))
    }

    async fn fold(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let mut transaction = connection.begin().await?;
        let deltas = sqlx::query_as(SELECT_DELTAS).bind(MAX_DELTAS).fetch(&mut *transaction);
        let deltas = DeltaBatch::from_rows(deltas).await?;
        let rows = deltas.rows();
        let query = sqlx::query(ADD_COUNTS)
            .bind(rows.iter().map(|row| row.category).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.name).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.period).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.count).collect::<Vec<_>>());
        query.execute(&mut *transaction).await?;
        sqlx::query(DELETE_DELTAS).bind(&deltas.ids).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(deltas.is_full)
    }

    fn migration_pool(&self) -> DatabaseConnection {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(self.url.0.clone());
        SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
    }
}

//! Direct writes: the driver stores generated events over one connection, without The Eye.
//!
//! Their rate is the limit D. Each batch is one durable transaction, and a stored event is never overwritten, as in the
//! sinks. PostgreSQL can be written by `COPY`, too, which is faster but cannot skip stored events. [`FillArgs::fill`]
//! fills a database in the same way.

use std::sync::LazyLock;
use std::time::Instant;

use anyhow::Result;
use chrono::{DateTime, Utc};
use clap::Args;
use sqlx::Connection;
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::database::DatabaseConnection;
use crate::events::{EventGenerator, GeneratedEvent, SessionPattern, now_us};
use crate::settings::{MeasurementWindow, RunSettings};

/// Events in one batch.
const BATCH_EVENTS: usize = 5_000;
/// Rows in one statement of SQLite (at most 32,766 values) and MariaDB (at most 65,535). It divides a batch evenly.
const STATEMENT_ROWS: usize = 1_000;

/// The stored origin of the events: the name of the HTTP source in the benchmark's configurations.
const ORIGIN: &str = "web";

/// The statement that stores a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteMethod {
    Insert,
    /// Binary `COPY`, for PostgreSQL only.
    Copy,
}

/// The events that fill a database.
#[derive(Args)]
pub(crate) struct FillArgs {
    /// Number of events, rounded up to batches of 5,000
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) events: u64,
    /// Number of days until now that the events cover
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) days: u32,
}

/// A row with owned texts, as a sink gets it.
struct DirectRow {
    timestamp_us: i64,
    id: Uuid,
    session_id: String,
    category: &'static str,
    name: &'static str,
    data: String,
}

impl DirectRow {
    fn new(event: &GeneratedEvent) -> Self {
        Self {
            timestamp_us: event.timestamp_us,
            id: event.id,
            session_id: event.session_id.to_string(),
            category: event.category(),
            name: event.name(),
            data: event.data(),
        }
    }

    fn timestamp(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.timestamp_us).expect("a timestamp of this age")
    }
}

/// Measures the rate of rows, from the first commit after the warm-up to the first commit after the end.
pub(crate) async fn measure(url: &str, method: WriteMethod, settings: &RunSettings) -> Result<f64> {
    let mut db = DatabaseConnection::open(url).await?;
    let mut generator = EventGenerator::new(fastrand::u32(..), 0, 1, settings.sessions);
    let mut batches = generate_ahead(move || {
        let next_row = || DirectRow::new(&generator.next_event(now_us()));
        Some(std::iter::repeat_with(next_row).take(BATCH_EVENTS).collect())
    });
    let window = MeasurementWindow::after(settings.warmup, settings.duration);
    let mut started = None;
    let mut rows = 0;
    while let Some(batch) = batches.recv().await {
        write(&mut db, method, &batch).await?;
        let now = Instant::now();
        match started {
            None if now >= window.start => started = Some(now),
            None => {}
            Some(started) => {
                rows += batch.len();
                if now >= window.end {
                    return Ok(rows as f64 / (now - started).as_secs_f64());
                }
            }
        }
    }
    unreachable!("batches never end")
}

impl FillArgs {
    /// Stores the events in the order of their timestamps.
    pub(crate) async fn fill(&self, url: &str, method: WriteMethod, sessions: SessionPattern) -> Result<()> {
        let mut db = DatabaseConnection::open(url).await?;
        let mut generator = EventGenerator::new(fastrand::u32(..), 0, 1, sessions);
        let (events, span_us) = (self.events, i128::from(self.days) * 86_400_000_000);
        let first_us = now_us() - span_us as i64;
        let at = move |number: u64| first_us + (span_us * i128::from(number.min(events)) / i128::from(events)) as i64;
        let mut batches = generate_ahead(move || {
            let first = generator.next_number();
            let numbers = first..first + BATCH_EVENTS as u64;
            (first < events).then(|| numbers.map(|number| DirectRow::new(&generator.next_event(at(number)))).collect())
        });
        while let Some(batch) = batches.recv().await {
            write(&mut db, method, &batch).await?;
        }
        db.close().await
    }
}

/// Generates batches on another thread while earlier ones are written. Ends with the first `None`, or when the
/// receiver is dropped.
fn generate_ahead(
    mut next_batch: impl FnMut() -> Option<Vec<DirectRow>> + Send + 'static,
) -> mpsc::Receiver<Vec<DirectRow>> {
    let (sender, batches) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        while let Some(batch) = next_batch() {
            if sender.blocking_send(batch).is_err() {
                break;
            }
        }
    });
    batches
}

async fn write(db: &mut DatabaseConnection, method: WriteMethod, rows: &[DirectRow]) -> Result<()> {
    match (db, method) {
        (DatabaseConnection::Postgres(db), WriteMethod::Copy) => copy_postgres(db, rows).await,
        (DatabaseConnection::Postgres(db), WriteMethod::Insert) => insert_postgres(db, rows).await,
        (DatabaseConnection::Sqlite(db), _) => insert_sqlite(db, rows).await,
        (DatabaseConnection::Mariadb(db), _) => insert_mariadb(db, rows).await,
    }
}

async fn insert_postgres(db: &mut PgConnection, rows: &[DirectRow]) -> Result<()> {
    const SQL: &str = "INSERT INTO event (timestamp, id, session_id, category, name, origin, data, received_at)
        SELECT t, i, s, c, n, o, d::json, t FROM UNNEST($1::timestamptz[], $2::uuid[], $3::text[], $4::text[], $5::text[],
        $6::text[], $7::text[]) AS row (t, i, s, c, n, o, d) ON CONFLICT (timestamp, id) DO NOTHING";
    let query = sqlx::query(SQL)
        .bind(rows.iter().map(DirectRow::timestamp).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.session_id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.category).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.name).collect::<Vec<_>>())
        .bind(vec![ORIGIN; rows.len()])
        .bind(rows.iter().map(|row| row.data.as_str()).collect::<Vec<_>>());
    query.execute(db).await?;
    Ok(())
}

/// Writes the rows in PostgreSQL's binary format.
async fn copy_postgres(db: &mut PgConnection, rows: &[DirectRow]) -> Result<()> {
    /// Microseconds from 1970 to 2000, the epoch of PostgreSQL.
    const YEAR_2000_US: i64 = 946_684_800_000_000;
    let mut bytes = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    let append = |bytes: &mut Vec<u8>, value: &[u8]| {
        bytes.extend((value.len() as u32).to_be_bytes());
        bytes.extend(value);
    };
    for row in rows {
        let timestamp = (row.timestamp_us - YEAR_2000_US).to_be_bytes();
        bytes.extend(8u16.to_be_bytes());
        append(&mut bytes, &timestamp);
        append(&mut bytes, row.id.as_bytes());
        for text in [&row.session_id, row.category, row.name, ORIGIN, &row.data] {
            append(&mut bytes, text.as_bytes());
        }
        append(&mut bytes, &timestamp);
    }
    bytes.extend((-1i16).to_be_bytes());
    const SQL: &str = "COPY event (timestamp, id, session_id, category, name, origin, data, received_at)
        FROM STDIN WITH (FORMAT binary)";
    let mut copy = db.copy_in_raw(SQL).await?;
    copy.send(bytes).await?;
    copy.finish().await?;
    Ok(())
}

async fn insert_sqlite(db: &mut SqliteConnection, rows: &[DirectRow]) -> Result<()> {
    static SQL: LazyLock<String> =
        LazyLock::new(|| insert_sql("INSERT OR FAIL INTO event", "ON CONFLICT (timestamp, id) DO NOTHING"));
    let mut transaction = db.begin_with("BEGIN IMMEDIATE").await?;
    for rows in rows.chunks_exact(STATEMENT_ROWS) {
        let query = rows.iter().fold(sqlx::query(SQL.as_str()), |query, row| {
            let query = query.bind(row.timestamp_us).bind(row.id).bind(row.session_id.as_str());
            query.bind(row.category).bind(row.name).bind(ORIGIN).bind(row.data.as_str()).bind(row.timestamp_us)
        });
        query.execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn insert_mariadb(db: &mut MySqlConnection, rows: &[DirectRow]) -> Result<()> {
    static SQL: LazyLock<String> = LazyLock::new(|| insert_sql("INSERT INTO event", "ON DUPLICATE KEY UPDATE id = id"));
    let mut transaction = db.begin().await?;
    for rows in rows.chunks_exact(STATEMENT_ROWS) {
        let query = rows.iter().fold(sqlx::query(SQL.as_str()), |query, row| {
            let timestamp = row.timestamp().naive_utc();
            let query = query.bind(timestamp).bind(row.id).bind(row.session_id.as_str());
            query.bind(row.category).bind(row.name).bind(ORIGIN).bind(row.data.as_str()).bind(timestamp)
        });
        query.execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

fn insert_sql(insert: &str, tail: &str) -> String {
    let rows = vec!["(?,?,?,?,?,?,?,?)"; STATEMENT_ROWS].join(",");
    format!("{insert} (timestamp, id, session_id, category, name, origin, data, received_at) VALUES {rows} {tail}")
}

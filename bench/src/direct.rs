//! The limit D: the same events, written straight by the driver over one connection, and nothing before it.
//!
//! Each batch is one transaction that is on the disk when it returns, and an event that is there already stays, as in
//! the sinks. PostgreSQL is written by `COPY`, too, which has no answer to an event that is there already.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, Utc};
use clap::Args;
use sqlx::Connection;
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::database::Db;
use crate::events::{Event, Maker, Sessions, now_us};
use crate::load::Window;

/// Events in one batch.
const BATCH: usize = 5000;
/// Rows in one statement of SQLite (at most 32,766 values) and MariaDB (65,535); a batch is some of them.
const STATEMENT: usize = 1000;

/// How rows get into the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Insert,
    /// PostgreSQL alone.
    Copy,
}

/// What a database is filled with.
#[derive(Args)]
pub(crate) struct FillWith {
    /// How many events, rounded up to batches of 5,000
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) events: u64,
    /// Over how many days until now they happened
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) days: u32,
}

/// A row with its own texts, as a sink gets it.
pub(crate) struct Record {
    timestamp_us: i64,
    id: Uuid,
    session_id: String,
    category: &'static str,
    name: &'static str,
    data: String,
}

impl Record {
    fn new(event: &Event) -> Self {
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
        DateTime::from_timestamp_micros(self.timestamp_us).expect("of this age")
    }
}

/// Rows a second, from the first commit after the warm-up to the first one after the end.
pub(crate) async fn measure(
    url: &str,
    way: Way,
    sessions: Sessions,
    warmup: Duration,
    duration: Duration,
) -> Result<f64> {
    let mut db = Db::open(url).await?;
    let mut maker = Maker::new(fastrand::u32(..), 0, 1, sessions);
    let mut batches = made_ahead(move || {
        let rows = || Record::new(&maker.make(now_us()));
        Some(std::iter::repeat_with(rows).take(BATCH).collect())
    });
    let window = Window::after(warmup, duration);
    let mut started = None;
    let mut rows = 0;
    while let Some(batch) = batches.recv().await {
        write(&mut db, way, &batch).await?;
        let now = std::time::Instant::now();
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

impl FillWith {
    /// Stores the events straight by the driver, in the order of their time.
    pub(crate) async fn fill(&self, url: &str, way: Way, sessions: Sessions) -> Result<()> {
        let mut db = Db::open(url).await?;
        let mut maker = Maker::new(fastrand::u32(..), 0, 1, sessions);
        let (events, span_us) = (self.events, i128::from(self.days) * 86_400_000_000);
        let first_us = now_us() - span_us as i64;
        let at = move |number: u64| first_us + (span_us * i128::from(number.min(events)) / i128::from(events)) as i64;
        let mut batches = made_ahead(move || {
            let first = maker.next_number();
            let numbers = first..first + BATCH as u64;
            (first < events).then(|| numbers.map(|number| Record::new(&maker.make(at(number)))).collect())
        });
        while let Some(batch) = batches.recv().await {
            write(&mut db, way, &batch).await?;
        }
        db.close().await
    }
}

/// Batches are made while others are written. Ends with the maker, or when the receiver is dropped.
fn made_ahead(mut make: impl FnMut() -> Option<Vec<Record>> + Send + 'static) -> mpsc::Receiver<Vec<Record>> {
    let (sender, batches) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        while let Some(batch) = make() {
            if sender.blocking_send(batch).is_err() {
                break;
            }
        }
    });
    batches
}

async fn write(db: &mut Db, way: Way, rows: &[Record]) -> Result<()> {
    match (db, way) {
        (Db::Postgres(db), Way::Copy) => copy_postgres(db, rows).await,
        (Db::Postgres(db), Way::Insert) => insert_postgres(db, rows).await,
        (Db::Sqlite(db), _) => insert_sqlite(db, rows).await,
        (Db::Mariadb(db), _) => insert_mariadb(db, rows).await,
    }
}

async fn insert_postgres(db: &mut PgConnection, rows: &[Record]) -> Result<()> {
    const SQL: &str = "INSERT INTO event (timestamp, id, session_id, category, name, origin, data, received_at)
        SELECT t, i, s, c, n, 'bench', d::json, t FROM UNNEST($1::timestamptz[], $2::uuid[], $3::text[], $4::text[], $5::text[],
        $6::text[]) AS row (t, i, s, c, n, d) ON CONFLICT (timestamp, id) DO NOTHING";
    let query = sqlx::query(SQL)
        .bind(rows.iter().map(Record::timestamp).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.session_id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.category).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.name).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.data.as_str()).collect::<Vec<_>>());
    query.execute(db).await?;
    Ok(())
}

/// In PostgreSQL's binary format.
async fn copy_postgres(db: &mut PgConnection, rows: &[Record]) -> Result<()> {
    /// Microseconds from 1970 to 2000, where PostgreSQL's time begins.
    const YEAR_2000_US: i64 = 946_684_800_000_000;
    let mut bytes = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    let value = |bytes: &mut Vec<u8>, value: &[u8]| {
        bytes.extend((value.len() as u32).to_be_bytes());
        bytes.extend(value);
    };
    for row in rows {
        let timestamp = (row.timestamp_us - YEAR_2000_US).to_be_bytes();
        bytes.extend(8u16.to_be_bytes());
        value(&mut bytes, &timestamp);
        value(&mut bytes, row.id.as_bytes());
        for text in [&row.session_id, row.category, row.name, "bench", &row.data] {
            value(&mut bytes, text.as_bytes());
        }
        value(&mut bytes, &timestamp);
    }
    bytes.extend((-1i16).to_be_bytes());
    const SQL: &str = "COPY event (timestamp, id, session_id, category, name, origin, data, received_at) FROM STDIN WITH (FORMAT binary)";
    let mut copy = db.copy_in_raw(SQL).await?;
    copy.send(bytes).await?;
    copy.finish().await?;
    Ok(())
}

async fn insert_sqlite(db: &mut SqliteConnection, rows: &[Record]) -> Result<()> {
    static SQL: LazyLock<String> =
        LazyLock::new(|| insert_sql("INSERT OR FAIL INTO event", "ON CONFLICT (timestamp, id) DO NOTHING"));
    let mut transaction = db.begin_with("BEGIN IMMEDIATE").await?;
    for rows in rows.chunks_exact(STATEMENT) {
        let query = rows.iter().fold(sqlx::query(SQL.as_str()), |query, row| {
            let query = query.bind(row.timestamp_us).bind(row.id).bind(row.session_id.as_str());
            query.bind(row.category).bind(row.name).bind(row.data.as_str()).bind(row.timestamp_us)
        });
        query.execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn insert_mariadb(db: &mut MySqlConnection, rows: &[Record]) -> Result<()> {
    static SQL: LazyLock<String> = LazyLock::new(|| insert_sql("INSERT INTO event", "ON DUPLICATE KEY UPDATE id = id"));
    let mut transaction = db.begin().await?;
    for rows in rows.chunks_exact(STATEMENT) {
        let query = rows.iter().fold(sqlx::query(SQL.as_str()), |query, row| {
            let timestamp = row.timestamp().naive_utc();
            let query = query.bind(timestamp).bind(row.id).bind(row.session_id.as_str());
            query.bind(row.category).bind(row.name).bind(row.data.as_str()).bind(timestamp)
        });
        query.execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

fn insert_sql(insert: &str, tail: &str) -> String {
    let rows = vec!["(?,?,?,?,?,'bench',?,?)"; STATEMENT].join(",");
    format!("{insert} (timestamp, id, session_id, category, name, origin, data, received_at) VALUES {rows} {tail}")
}

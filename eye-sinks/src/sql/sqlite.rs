//! SQLite. Small batches go through a staging table in a file of its own, see [`staging`]; the others go to the main
//! file.
//!
//! After a clean shutdown the main file is the whole database: the staging file, the logs and the shared memory are
//! gone. After a kill they stay, and the next start reads them.

mod files;
mod insert;
mod staging;
mod transaction;

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eye_core::context::BuildContext;
use eye_core::error::BuildError;
use eye_core::event::Event;
use eye_core::mutant;
use eye_core::sink::{BuiltSink, SinkConfig};
use sea_orm::{DatabaseConnection, SqlxSqliteConnector};
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::sync::Semaphore;

pub(super) use self::files::SqliteFiles;
use self::files::{FileIds, ReadFiles};
use self::insert::insert_new;
use self::staging::{READ_BOTH, StagingTable};
use self::transaction::{BEGIN_ON_MAIN, finish};
use super::bulk::BulkStatements;
use super::counts::deltas;
use super::driver::{CONNECT_TIMEOUT, Driver, Expected, WRITE_TIMEOUT};
use super::error;
use super::fold::{DeltaBatch, MAX_DELTAS};
use super::read_pool::{QUERY_TIMEOUT, ReadPool};
use super::sink::SqlSink;
use super::url::{self, MaxReadConnections};

/// Stores events in one SQLite file, and creates the file and its folder.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SqliteConfig {
    /// `sqlite://PATH`, relative to the working directory or absolute (`sqlite:///var/lib/eye/eye.db`). Characters such
    /// as `?` and `%` are percent-encoded.
    url: SqliteUrl,
    /// Connections that answer queries at once, at most.
    max_read_connections: MaxReadConnections,
}

const DEFAULT_URL: &str = "sqlite://eye-data/eye.db";

/// The first release without the bug that could corrupt a log on its reset.
const MIN_VERSION: i32 = 3_051_003;
const _: () = assert!(libsqlite3_sys::SQLITE_VERSION_NUMBER >= MIN_VERSION, "SQLite 3.51.3 or newer is needed");

/// Time for which a statement waits for a lock. It is shorter than [`CONNECT_TIMEOUT`], so that the message is
/// SQLite's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct SqliteUrl(SqliteFiles);

impl Default for SqliteUrl {
    fn default() -> Self {
        Self::try_from(DEFAULT_URL.to_owned()).expect("the default is a valid URL")
    }
}

impl TryFrom<String> for SqliteUrl {
    type Error = String;

    fn try_from(url: String) -> Result<Self, String> {
        url::check(&url, &["sqlite"], DEFAULT_URL, &[])?;
        let name = url.trim_start_matches("sqlite:").trim_start_matches("//");
        if name.is_empty() || url.contains(":memory:") {
            return Err(format!(
                "the URL must name a file, such as `{DEFAULT_URL}`: events have to outlive the program"
            ));
        }
        let options = SqliteConnectOptions::from_str(&url).map_err(|error| error.to_string())?;
        let path = options.get_filename().to_str().ok_or("the name of the file must be UTF-8")?;
        Ok(Self(SqliteFiles::new(path)))
    }
}

/// Time for which a shutdown waits for other users of the staging file. A dropped connection closes in its own thread.
const REMOVE_TIMEOUT: Duration = Duration::from_millis(500);

impl SinkConfig for SqliteConfig {
    const TYPE: &'static str = "sqlite";
    const ANSWERS_QUERIES: bool = true;

    async fn build(self, _context: &BuildContext) -> Result<BuiltSink, BuildError> {
        let files = self.url.0;
        let unusable = |reason: &dyn fmt::Display| {
            BuildError::new(format!(
                "cannot open the database {}: {reason}; make it readable and writable for the user that runs The Eye, \
                 or set `url` to another file",
                files.main.display()
            ))
        };
        files.create().map_err(|error| unusable(&error))?;
        let (driver, read_from) = (SqliteDriver::new(files.clone()), files.clone());
        let sink = SqlSink::new(driver, ReadPool::new(move || read_pool(&read_from, self.max_read_connections)));
        // `prepare` waits for what is transient.
        match sink.database().connect().await {
            Ok(connection) => connection.close().await.map_err(|error| unusable(&error))?,
            Err(error) if error::is_transient(&error) => {}
            Err(error) => return Err(unusable(&error)),
        }
        Ok(BuiltSink::with_store(sink))
    }
}

/// Returns the options of all connections.
fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT).disable_statement_logging()
}

/// Opens the pool of a store. Its connections never write, end a statement that takes too long, and see the last commit
/// while another one is written. They create no file: a missing staging file makes the store unavailable.
pub(super) fn read_pool(files: &SqliteFiles, max: MaxReadConnections) -> DatabaseConnection {
    // With more rows in the buffer, SQLite's thread and the reading one wait for each other less. An event may have 1
    // MiB.
    let options = options(&files.main).pragma("cache_size", "-16384").row_buffer_size(64);
    let (staging, read_files) = (Arc::<str>::from(files.staging.as_str()), Arc::new(ReadFiles::new(files.clone())));
    let pool = SqlitePoolOptions::new()
        .max_connections(max.0)
        .acquire_timeout(CONNECT_TIMEOUT)
        .after_connect(move |connection, _| {
            let staging = staging.clone();
            Box::pin(async move {
                attach(connection, &staging).await?;
                connection.execute(READ_BOTH).await?;
                connection.execute("PRAGMA query_only = ON").await?;
                limit_time(connection, QUERY_TIMEOUT).await
            })
        })
        .before_acquire(move |connection, metadata| {
            let is_current = read_files.are_open_since(metadata.age);
            Box::pin(async move {
                limit_time(connection, QUERY_TIMEOUT).await?;
                Ok(is_current)
            })
        })
        .connect_lazy_with(options);
    SqlxSqliteConnector::from_sqlx_sqlite_pool(pool)
}

async fn attach(connection: &mut SqliteConnection, staging: &str) -> Result<(), sqlx::Error> {
    sqlx::query("ATTACH ? AS staging").bind(staging).execute(connection).await.map(drop)
}

/// Interrupts statements of the connection from `limit` after now on.
async fn limit_time(connection: &mut SqliteConnection, limit: Duration) -> Result<(), sqlx::Error> {
    let deadline = Instant::now() + limit;
    connection.lock_handle().await?.set_progress_handler(10_000, move || Instant::now() < deadline);
    Ok(())
}

pub(super) struct SqliteDriver {
    files: SqliteFiles,
    options: SqliteConnectOptions,
    synchronous: &'static str,
    /// The files that all connections have opened.
    ids: Mutex<Option<FileIds>>,
    staging: StagingTable,
    /// Permit of the one that writes to the main file. SQLite would let the others poll for the lock.
    write_permit: Semaphore,
}

impl SqliteDriver {
    /// A commit is on the disk when it returns (`FULL`). The log grows to 128 MiB before SQLite copies it into the
    /// file, so that a page that changes often is copied once: for a large file, copying takes nearly half of the time
    /// otherwise. A flush to a large file touches some 20 MiB of pages, which the cache holds. A start after a kill
    /// reads the logs: 150 MB beside the main file and 136 MB beside the staging file took 0.3 s.
    pub(super) fn new(files: SqliteFiles) -> Self {
        let synchronous = if mutant::is("sqlite-no-sync") { "OFF" } else { "FULL" };
        let options = options(&files.main)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("synchronous", synchronous)
            .pragma("wal_autocheckpoint", "32768")
            .pragma("cache_size", "-32768");
        let (ids, staging, write_permit) = (Mutex::default(), StagingTable::new(), Semaphore::new(1));
        Self { files, options, synchronous, ids, staging, write_permit }
    }

    /// Fails when a file was removed or replaced. Connections would go on writing to the old one, and lose all on
    /// closing.
    fn check_files(&self) -> io::Result<()> {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.files.ids();
        let known = ids.get_or_insert(now);
        if known[1].is_none() {
            // The first connection creates the staging file.
            known[1] = now[1];
        }
        if *known == now { Ok(()) } else { Err(not_found("the file was removed or replaced while it was in use")) }
    }

    /// Creates a missing staging file. An operator who removed one with events may still put it back.
    async fn create_staging(&self, main: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        if self.files.has_staging() {
            return Ok(());
        }
        if !self.staging.is_flushed(main).await? {
            let message = format!("the file {} was removed or replaced while it had events", self.files.staging);
            return Err(not_found(&message).into());
        }
        Ok(self.files.create_staging()?)
    }

    /// Removes the staging file after all connections of the sink were closed.
    ///
    /// The exclusive lock fails while another connection or process has the file open, and excludes new ones until the
    /// file is gone. Whoever waits for the lock checks afterwards if the file is still the one at its path. All events
    /// are in the main file then, so a crash at any point, or a power cut that restores the file, loses nothing.
    async fn remove_staging(&self) -> Result<(), sqlx::Error> {
        if !self.files.has_staging() {
            return Ok(());
        }
        // Leaving WAL mode removes the log. Its successor in memory leaves nothing to remove.
        let options = options(Path::new(&self.files.staging))
            .busy_timeout(REMOVE_TIMEOUT)
            .locking_mode(SqliteLockingMode::Exclusive)
            .journal_mode(SqliteJournalMode::Memory);
        let mut connection = options.connect().await?;
        let removed = match self.staging.is_removable(&mut connection).await {
            Ok(true) => std::fs::remove_file(&self.files.staging).map_err(sqlx::Error::Io),
            Ok(false) => Err(sqlx::Error::Io(io::Error::other("it has events that could not be flushed"))),
            Err(error) => Err(error),
        };
        connection.close().await?;
        removed
    }
}

fn not_found(message: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, message)
}

impl fmt::Display for SqliteDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SQLite at {}", self.files.main.display())
    }
}

impl Driver for SqliteDriver {
    type Connection = SqliteConnection;

    /// SQLite has one writer at a time; a second one would only wait for the first.
    const MAX_WRITE_CONNECTIONS: usize = 1;
    const MIN_EVENTS_TO_SPLIT: usize = usize::MAX;
    /// Closing copies the log into the file.
    const CLOSE_TIMEOUT: Duration = WRITE_TIMEOUT;

    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        self.check_files()?;
        let mut connection = self.options.connect().await?;
        self.create_staging(&mut connection).await?;
        self.check_files()?;
        attach(&mut connection, &self.files.staging).await?;
        // A small cache: staged pages are read once, and a commit by one connection invalidates the cache of the other.
        for pragma in ["journal_mode = WAL", "cache_size = -512", &format!("synchronous = {}", self.synchronous)] {
            connection.execute(AssertSqlSafe(format!("PRAGMA staging.{pragma}"))).await?;
        }
        // From here on the connection has a lock on both files, so no other process removes them.
        self.check_files()?;
        self.staging.open(&mut connection).await?;
        Ok(connection)
    }

    fn on_disconnect(&self) {
        *self.ids.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn insert(
        &self,
        connection: &mut SqliteConnection,
        batch: &[Event],
        expected: Expected,
    ) -> Result<usize, sqlx::Error> {
        self.check_files()?;
        let mut expected = expected;
        if self.staging.accepts(batch, expected).await {
            if self.staging.insert(connection, batch).await? {
                return Ok(batch.len());
            }
            expected = Expected::Duplicates;
        }
        let _permit = self.write_permit.acquire().await;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let inserted = insert_and_count(&mut transaction, batch, expected).await;
        finish(transaction, inserted).await
    }

    fn needs_flush(&self) -> bool {
        self.staging.needs_flush()
    }

    async fn flush_due(&self) {
        self.staging.flush_due().await;
    }

    async fn flush(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        self.check_files()?;
        let _permit = self.write_permit.acquire().await;
        self.staging.flush(connection).await
    }

    async fn fold(&self, connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        self.check_files()?;
        let _permit = self.write_permit.acquire().await;
        let mut transaction = connection.begin_with(BEGIN_ON_MAIN).await?;
        let deltas = sqlx::query_as(SELECT_DELTAS).bind(MAX_DELTAS).fetch(&mut *transaction);
        let deltas = DeltaBatch::from_rows(deltas).await?;
        for statement in ADD_COUNTS.split(&deltas.rows()) {
            let query = statement.rows.iter().fold(sqlx::query(statement.sql), |query, row| {
                query.bind(row.category).bind(row.name).bind(row.period).bind(row.count)
            });
            query.execute(&mut *transaction).await?;
        }
        sqlx::query(DELETE_DELTAS).bind(deltas.ids.last()).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(deltas.is_full)
    }

    async fn after_close(&self) {
        if let Err(error) = self.remove_staging().await {
            let (file, error) = (&self.files.staging, error::reason(&error));
            let message = "the staging file stays: keep it beside the database, the next start reads it";
            tracing::warn!(sink = %self, file, %error, "{message}");
        }
    }

    fn migration_pool(&self) -> DatabaseConnection {
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(self.options.clone());
        SqlxSqliteConnector::from_sqlx_sqlite_pool(pool)
    }
}

const INSERT_DELTA: &str = "INSERT INTO event_count_delta (delta) VALUES (?)";
const SELECT_DELTAS: &str = "SELECT id, delta FROM event_count_delta ORDER BY id LIMIT ?";
const DELETE_DELTAS: &str = "DELETE FROM event_count_delta WHERE id <= ?";

static ADD_COUNTS: LazyLock<BulkStatements> = LazyLock::new(|| {
    BulkStatements::insert_counts(" ON CONFLICT (category, name, period) DO UPDATE SET count = count + excluded.count")
});

/// Stores the new events of a batch in the main table, with their delta. Returns their number.
async fn insert_and_count(
    transaction: &mut SqliteConnection,
    batch: &[Event],
    expected: Expected,
) -> Result<usize, sqlx::Error> {
    let new = insert_new(transaction, batch, expected).await?;
    for delta in deltas(&new, usize::MAX).iter().filter(|_| !new.is_empty()) {
        sqlx::query(INSERT_DELTA).bind(delta).execute(&mut *transaction).await?;
    }
    Ok(new.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn slow_statement_is_interrupted() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        limit_time(&mut connection, Duration::from_millis(10)).await.unwrap();
        let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n";
        let error = sqlx::query(endless).execute(&mut connection).await.unwrap_err();
        assert!(error.to_string().contains("interrupted"), "{error}");
        limit_time(&mut connection, Duration::from_secs(30)).await.unwrap();
        sqlx::query("SELECT 1").execute(&mut connection).await.unwrap();
    }
}

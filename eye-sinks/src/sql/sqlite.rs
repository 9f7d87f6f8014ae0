//! SQLite: one file, nothing to install.

mod files;
mod inbox;
mod insert;

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
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Sqlite, Transaction};
use tokio::sync::Semaphore;

pub(super) use self::files::Files;
use self::files::{FileIds, ReadFiles};
use self::inbox::{Inbox, READ_BOTH};
use self::insert::insert_new;
use super::counts::deltas;
use super::fold::{FOLD_DELTAS, Taken};
use super::read_pool::{QUERY_TIMEOUT, ReadPool};
use super::url::{self, MaxReadConnections};
use super::write::Shapes;
use super::{CONNECT_TIMEOUT, Driver, Expected, SqlSink, WRITE_TIMEOUT, error};

/// Stores events in one SQLite file, which is created with its folder where it is not there yet.
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

/// The first release without the bug that could corrupt a WAL on its reset.
const MIN_VERSION: i32 = 3_051_003;
const _: () = assert!(libsqlite3_sys::SQLITE_VERSION_NUMBER >= MIN_VERSION, "SQLite 3.51.3 or newer is needed");

/// How long a statement waits for another process that writes. Shorter than what connecting may take, so that the
/// message is SQLite's own.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct SqliteUrl(Files);

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
        Ok(Self(Files::of(path)))
    }
}

impl SinkConfig for SqliteConfig {
    const TYPE: &'static str = "sqlite";
    const ANSWERS_QUERIES: bool = true;

    async fn build(self, _context: &BuildContext) -> Result<BuiltSink, BuildError> {
        let files = self.url.0;
        let unusable = |reason: &dyn fmt::Display| {
            BuildError::new(format!(
                "cannot open the database {}: {reason}; make it readable and writable for the user that runs The Eye, \
                 or set `url` to another file",
                files.events.display()
            ))
        };
        files.create().map_err(|error| unusable(&error))?;
        let (driver, read_from) = (SqliteDriver::new(files.clone()), files.clone());
        let sink = SqlSink::new(driver, ReadPool::new(move || read_pool(&read_from, self.max_read_connections)));
        // What passes by itself is for `prepare` to wait for.
        match sink.database.connect().await {
            Ok(connection) => connection.close().await.map_err(|error| unusable(&error))?,
            Err(error) if error::is_passing(&error) => {}
            Err(error) => return Err(unusable(&error)),
        }
        Ok(BuiltSink::with_store(sink))
    }
}

/// What all connections have in common.
fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT).disable_statement_logging()
}

/// Readers never write, keep to a bound in time, and see the last commit while another one is being written.
pub(super) fn read_pool(files: &Files, max: MaxReadConnections) -> DatabaseConnection {
    // The more, the less often the thread that reads and the one that takes wait for each other; but an event may have 1 MiB.
    let options = options(&files.events).pragma("cache_size", "-16384").row_buffer_size(64);
    let (inbox, read_files) = (Arc::<str>::from(files.inbox.as_str()), Arc::new(ReadFiles::new(files.clone())));
    let pool = SqlitePoolOptions::new()
        .max_connections(max.0)
        .acquire_timeout(CONNECT_TIMEOUT)
        .after_connect(move |connection, _| {
            let inbox = inbox.clone();
            Box::pin(async move {
                attach(connection, &inbox).await?;
                connection.execute(READ_BOTH).await?;
                connection.execute("PRAGMA query_only = ON").await?;
                bound_in_time(connection, QUERY_TIMEOUT).await
            })
        })
        .before_acquire(move |connection, metadata| {
            let reads_the_files = read_files.are_read_by(metadata.age);
            Box::pin(async move {
                bound_in_time(connection, QUERY_TIMEOUT).await?;
                Ok(reads_the_files)
            })
        })
        .connect_lazy_with(options);
    SqlxSqliteConnector::from_sqlx_sqlite_pool(pool)
}

async fn attach(connection: &mut SqliteConnection, inbox: &str) -> Result<(), sqlx::Error> {
    sqlx::query("ATTACH ? AS inbox").bind(inbox).execute(connection).await.map(drop)
}

/// Interrupts what the connection does from now on once it has taken too long.
async fn bound_in_time(connection: &mut SqliteConnection, bound: Duration) -> Result<(), sqlx::Error> {
    let deadline = Instant::now() + bound;
    connection.lock_handle().await?.set_progress_handler(10_000, move || Instant::now() < deadline);
    Ok(())
}

pub(super) struct SqliteDriver {
    files: Files,
    options: SqliteConnectOptions,
    synchronous: &'static str,
    /// The files that all connections write to.
    ids: Mutex<Option<FileIds>>,
    inbox: Inbox,
    /// Who writes to the file of the events. SQLite would let the others ask again and again.
    turn: Semaphore,
}

impl SqliteDriver {
    /// A commit is on the disk when it returns (`FULL`). The log may grow to 128 MiB before it is copied into the file,
    /// so that a page that changes often is copied once: with a large file, copying takes nearly half of the time
    /// otherwise. There, what one move touches is some 20 MiB of pages, which are read again where the cache has no room
    /// for them. What a kill leaves of the logs is read at the next start: 150 MB and the inbox's 136 MB took 0.3 s.
    pub(super) fn new(files: Files) -> Self {
        let synchronous = if mutant::is("sqlite-no-sync") { "OFF" } else { "FULL" };
        let options = options(&files.events)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("synchronous", synchronous)
            .pragma("wal_autocheckpoint", "32768")
            .pragma("cache_size", "-32768");
        Self { files, options, synchronous, ids: Mutex::default(), inbox: Inbox::new(), turn: Semaphore::new(1) }
    }

    /// A file that was removed or replaced still takes all that is written to it, and loses it when it is closed.
    fn check_files(&self) -> io::Result<()> {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.files.ids();
        if *ids.get_or_insert(now) == now {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::NotFound, "the file was removed or replaced while it was in use"))
    }
}

impl fmt::Display for SqliteDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SQLite at {}", self.files.events.display())
    }
}

impl Driver for SqliteDriver {
    type Connection = SqliteConnection;

    /// SQLite has one writer at a time; a second one would only wait for the first.
    const MAX_WRITE_CONNECTIONS: usize = 1;
    const MIN_EVENTS_TO_HALVE: usize = usize::MAX;
    /// The log is copied into the file.
    const CLOSE_TIMEOUT: Duration = WRITE_TIMEOUT;

    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        self.check_files()?;
        let mut connection = self.options.connect().await?;
        attach(&mut connection, &self.files.inbox).await?;
        // Its pages pass by once, and what one connection has of them is void once the other one has written.
        for pragma in ["journal_mode = WAL", "cache_size = -512", &format!("synchronous = {}", self.synchronous)] {
            connection.execute(AssertSqlSafe(format!("PRAGMA inbox.{pragma}"))).await?;
        }
        self.check_files()?;
        self.inbox.open(&mut connection).await?;
        Ok(connection)
    }

    fn disconnected(&self) {
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
        if self.inbox.admits(batch, expected).await {
            if self.inbox.store(connection, batch).await? {
                return Ok(batch.len());
            }
            expected = Expected::SomeKnown;
        }
        let _turn = self.turn.acquire().await;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let inserted = insert_and_count(&mut transaction, batch, expected).await;
        end(transaction, inserted).await
    }

    fn has_to_flush(&self) -> bool {
        self.inbox.has_to_flush()
    }

    async fn until_flush(&self) {
        self.inbox.until_flush().await;
    }

    async fn flush(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        self.check_files()?;
        let _turn = self.turn.acquire().await;
        self.inbox.flush(connection).await
    }

    async fn fold(&self, connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        self.check_files()?;
        let _turn = self.turn.acquire().await;
        let mut transaction = connection.begin_with(BEGIN_ON_EVENTS).await?;
        let deltas = sqlx::query_as(TAKE_DELTAS).bind(FOLD_DELTAS).fetch(&mut *transaction);
        let taken = Taken::from_rows(deltas).await?;
        for step in ADD_COUNTS.steps(&taken.counts()) {
            let query = step.rows.iter().fold(sqlx::query(step.sql), |query, count| {
                query.bind(count.category).bind(count.name).bind(count.hour).bind(count.count)
            });
            query.execute(&mut *transaction).await?;
        }
        sqlx::query(DELETE_DELTAS).bind(taken.ids.last()).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(taken.is_full)
    }

    fn migration_pool(&self) -> DatabaseConnection {
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(self.options.clone());
        SqlxSqliteConnector::from_sqlx_sqlite_pool(pool)
    }
}

/// Locks the file of the events, as `BEGIN IMMEDIATE` would, but not that of the inbox, too.
const BEGIN_ON_EVENTS: &str = "BEGIN; DELETE FROM event_inbox_flushed WHERE false";
const INSERT_DELTA: &str = "INSERT INTO event_count_delta (delta) VALUES (?)";
const TAKE_DELTAS: &str = "SELECT id, delta FROM event_count_delta ORDER BY id LIMIT ?";
const DELETE_DELTAS: &str = "DELETE FROM event_count_delta WHERE id <= ?";

/// Stores what is new of the batch where the indexes are, and counts it. Says how much.
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

/// Commits what went well, and takes back what did not.
async fn end<T>(transaction: Transaction<'_, Sqlite>, done: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
    match done {
        Ok(done) => transaction.commit().await.map(|()| done),
        Err(error) => {
            // SQLite may have done it by itself, because of the error that matters. Then the connection is not used again.
            drop(transaction.rollback().await);
            Err(error)
        }
    }
}

static ADD_COUNTS: LazyLock<Shapes> = LazyLock::new(|| {
    let head = "INSERT INTO event_count (category, name, hour, count) VALUES ";
    Shapes::new(
        head,
        "(?,?,?,?)",
        ",",
        " ON CONFLICT (category, name, hour) DO UPDATE SET count = count + excluded.count",
    )
});

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_takes_too_long_is_interrupted() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        bound_in_time(&mut connection, Duration::from_millis(10)).await.unwrap();
        let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n";
        let error = sqlx::query(endless).execute(&mut connection).await.unwrap_err();
        assert!(error.to_string().contains("interrupted"), "{error}");
        bound_in_time(&mut connection, Duration::from_secs(30)).await.unwrap();
        sqlx::query("SELECT 1").execute(&mut connection).await.unwrap();
    }
}

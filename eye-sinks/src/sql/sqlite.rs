//! SQLite: one file, nothing to install.

mod insert;

use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eye_core::event::Event;
use eye_core::mutant;
use eye_core::registry::BuildError;
use eye_core::sink::{Sink, SinkConfig};
use sea_orm::{DatabaseConnection, SqlxSqliteConnector};
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};

use self::insert::{Inbox, insert_indexed};
use super::counts::deltas;
use super::fold::{FOLD_DELTAS, Taken};
use super::url::{self, MaxReadConnections};
use super::write::Shapes;
use super::{CONNECT_TIMEOUT, Driver, Expected, QUERY_TIMEOUT, SqlSink, error};

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
struct SqliteUrl(PathBuf);

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
        Ok(Self(options.get_filename().to_owned()))
    }
}

impl SinkConfig for SqliteConfig {
    const TYPE: &'static str = "sqlite";
    const ANSWERS_QUERIES: bool = true;

    async fn build(self) -> Result<Box<dyn Sink>, BuildError> {
        let path = self.url.0;
        let unusable = |reason: &dyn fmt::Display| {
            BuildError(format!(
                "cannot open the database {}: {reason}; make it readable and writable for the user that runs The Eye, \
                 or set `url` to another file",
                path.display()
            ))
        };
        create(&path).map_err(|error| unusable(&error))?;
        let sink = SqlSink::new(SqliteDriver::new(path.clone()), reader(&path, self.max_read_connections));
        // Another process may hold the file for a moment: then it is `prepare` that waits for it.
        match sink.database.connect().await {
            Ok(connection) => connection.close().await.map_err(|error| unusable(&error))?,
            Err(error) if error::is_busy(&error) => {}
            Err(error) => return Err(unusable(&error)),
        }
        Ok(Box::new(sink))
    }
}

/// Creates the file, and the folders that are missing, for the owner only. SQLite gives the rights of the file to the
/// others that it puts beside it.
fn create(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(folder)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let mut options_to_create = options.clone();
    options_to_create.create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options_to_create, 0o600);
    match options_to_create.open(path) {
        // There already: it keeps its rights, and we find out whether they suffice.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => drop(options.open(path)?),
        created => drop(created?),
    }
    make_name_durable(path);
    Ok(())
}

/// SQLite syncs what it writes, and the names of its logs, but neither the name of the file nor those of its folders: a
/// power cut would take them, with all that is in them. Not every file system can do it, or lets us; so it does not have
/// to succeed, as with SQLite's own.
fn make_name_durable(path: &Path) {
    #[cfg(unix)]
    for folder in std::path::absolute(path).iter().flat_map(|path| path.ancestors().skip(1)) {
        drop(std::fs::File::open(folder).and_then(|folder| folder.sync_all()));
    }
}

/// What all connections have in common.
fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT).disable_statement_logging()
}

/// Readers never write, keep to a bound in time, and see the last commit while another one is being written.
fn reader(path: &Path, max: MaxReadConnections) -> DatabaseConnection {
    // The more, the less often the thread that reads and the one that takes wait for each other; but an event may have 1 MiB.
    let options = options(path).pragma("query_only", "ON").pragma("cache_size", "-16384").row_buffer_size(64);
    let file = Arc::new(ReadFile::new(path));
    let pool = SqlitePoolOptions::new()
        .max_connections(max.0)
        .acquire_timeout(CONNECT_TIMEOUT)
        .after_connect(|connection, _| Box::pin(bound_in_time(connection, QUERY_TIMEOUT)))
        .before_acquire(move |connection, metadata| {
            let reads_the_file = file.is_read_by(metadata.age);
            Box::pin(async move {
                bound_in_time(connection, QUERY_TIMEOUT).await?;
                Ok(reads_the_file)
            })
        })
        .connect_lazy_with(options);
    SqlxSqliteConnector::from_sqlx_sqlite_pool(pool)
}

/// Interrupts what the connection does from now on once it has taken too long.
async fn bound_in_time(connection: &mut SqliteConnection, bound: Duration) -> Result<(), sqlx::Error> {
    let deadline = Instant::now() + bound;
    connection.lock_handle().await?.set_progress_handler(10_000, move || Instant::now() < deadline);
    Ok(())
}

/// Tells a file from another one at the same path.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId(u64, u64);

impl FileId {
    #[cfg(unix)]
    fn of(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = path.metadata()?;
        Ok(Self(metadata.dev(), metadata.ino()))
    }

    /// Elsewhere a file that is open can be neither removed nor replaced.
    #[cfg(not(unix))]
    fn of(_path: &Path) -> io::Result<Self> {
        Ok(Self(0, 0))
    }
}

/// The file that readers are to read. Connections that were opened before it was there answer from one that is gone.
struct ReadFile {
    path: PathBuf,
    seen: Mutex<(Option<FileId>, Instant)>,
}

impl ReadFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: Mutex::new((FileId::of(path).ok(), Instant::now())) }
    }

    /// Whether a connection of this age can only have opened the file that is there now.
    fn is_read_by(&self, age: Duration) -> bool {
        let now = FileId::of(&self.path).ok();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != now {
            *seen = (now, Instant::now());
        }
        age < seen.1.elapsed()
    }
}

pub(super) struct SqliteDriver {
    path: PathBuf,
    options: SqliteConnectOptions,
    /// The file that the connection writes to.
    file: Mutex<Option<FileId>>,
    inbox: Inbox,
}

impl SqliteDriver {
    /// A commit is on the disk when it returns (`FULL`). The log may grow to 128 MiB before it is copied into the file,
    /// so that a page that changes often is copied once: with a large file, copying takes nearly half of the time
    /// otherwise. What a kill leaves of the log is read at the next start: 60 MiB of it took 0.3 s.
    pub(super) fn new(path: PathBuf) -> Self {
        let options = options(&path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(match mutant::is("sqlite-no-sync") {
                false => SqliteSynchronous::Full,
                true => SqliteSynchronous::Off,
            })
            .pragma("wal_autocheckpoint", "32768")
            .pragma("cache_size", "-24576");
        Self { inbox: Inbox::new(path.clone()), path, options, file: Mutex::default() }
    }

    /// A file that was removed or replaced still takes all that is written to it, and loses it when it is closed.
    fn check_file(&self) -> io::Result<()> {
        if FileId::of(&self.path).ok() == *self.file.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::NotFound, "the file was removed or replaced while it was in use"))
    }
}

impl fmt::Display for SqliteDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SQLite at {}", self.path.display())
    }
}

impl Driver for SqliteDriver {
    type Connection = SqliteConnection;

    /// SQLite has one writer at a time; a second one would only wait for the first.
    const MAX_WRITE_CONNECTIONS: usize = 1;
    const MIN_EVENTS_TO_HALVE: usize = usize::MAX;

    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        let connection = self.options.connect().await?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = FileId::of(&self.path).ok();
        self.inbox.forget();
        Ok(connection)
    }

    async fn insert(
        &self,
        connection: &mut SqliteConnection,
        batch: &[Event],
        expected: Expected,
    ) -> Result<usize, sqlx::Error> {
        self.check_file()?;
        let inbox = self.inbox.admits(connection, batch, expected).await.then_some(&self.inbox);
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        match insert_and_count(&mut transaction, inbox, batch, expected).await {
            Ok(new) => transaction.commit().await.map(|()| new),
            Err(error) => {
                // SQLite may have done it by itself, because of the error that matters. Then the connection is not used
                // again.
                drop(transaction.rollback().await);
                Err(error)
            }
        }
    }

    async fn fold(&self, connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        self.check_file()?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
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

const INSERT_DELTA: &str = "INSERT INTO event_count_delta (delta) VALUES (?)";
const TAKE_DELTAS: &str = "SELECT id, delta FROM event_count_delta ORDER BY id LIMIT ?";
const DELETE_DELTAS: &str = "DELETE FROM event_count_delta WHERE id <= ?";

/// Stores what is new of the batch, and counts it. Says how much.
async fn insert_and_count(
    transaction: &mut SqliteConnection,
    inbox: Option<&Inbox>,
    batch: &[Event],
    expected: Expected,
) -> Result<usize, sqlx::Error> {
    let new = match inbox {
        Some(inbox) => inbox.insert(transaction, batch).await?,
        None => insert_indexed(transaction, batch, expected).await?,
    };
    for delta in deltas(&new, usize::MAX).iter().filter(|_| !new.is_empty()) {
        sqlx::query(INSERT_DELTA).bind(delta).execute(&mut *transaction).await?;
    }
    Ok(new.len())
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

//! MySQL and MariaDB. A batch is several statements in one transaction, each within the server's `max_allowed_packet`.

mod insert;

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use eye_core::context::BuildContext;
use eye_core::error::BuildError;
use eye_core::event::Event;
use eye_core::sink::{BuiltSink, SinkConfig};
use sea_orm::{DatabaseConnection, SqlxMySqlConnector};
use serde::Deserialize;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlPoolOptions};
use sqlx::{ConnectOptions, Executor};

use super::bulk::BulkStatements;
use super::counts::deltas;
use super::driver::{CONNECT_TIMEOUT, Driver, Expected, SERVER_CLOSE_TIMEOUT};
use super::fold::{DeltaBatch, MAX_DELTAS};
use super::read_pool::ReadPool;
use super::sink::SqlSink;
use super::url::{self, MaxReadConnections};

/// Stores events in an existing MySQL (8.0.17 or newer) or MariaDB database, and creates the tables.
#[derive(Clone, Debug, Deserialize)]
pub struct MysqlConfig {
    /// `mysql://USER:PASSWORD@HOST:PORT/DATABASE`. Characters such as `@` and `/` in the password are percent-encoded.
    /// `?ssl-mode=VERIFY_IDENTITY` (and `ssl-ca=FILE`) asks for TLS.
    url: MysqlUrl,
    /// Connections that answer queries at once, at most.
    #[serde(default)]
    max_read_connections: MaxReadConnections,
}

const EXAMPLE_URL: &str = "mysql://USER:PASSWORD@HOST:3306/DATABASE";
const PARAMETERS: &[&str] =
    &["ssl-mode", "sslmode", "ssl-ca", "sslca", "ssl-cert", "sslcert", "ssl-key", "sslkey", "socket"];

/// The most bytes of events in one statement: a quarter of the default of `max_allowed_packet`.
const MAX_STATEMENT_BYTES: usize = 4 << 20;

/// Strict: no value is truncated or converted, whatever the server's default. sqlx sets the character set and UTC.
const SQL_MODE: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,NO_ENGINE_SUBSTITUTION'";

/// A transaction begins with its first statement, without `BEGIN`.
const NO_AUTOCOMMIT: &str = "SET SESSION autocommit = 0";

/// The server ends a statement that takes more than 30 seconds. MySQL and MariaDB name this limit differently; each
/// skips the other's comment.
const READ_SESSION: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES' \
    /*M! , max_statement_time = 30 */ /*!50708 , max_execution_time = 30000 */";

/// The most bytes of a count in a statement: two texts of 150 characters, two numbers, and the row's overhead.
const MAX_COUNT_BYTES: usize = 2 * 150 * 4 + 64;

/// Skips the deltas that another node is folding.
const SELECT_DELTAS: &str = "SELECT id, delta FROM event_count_delta ORDER BY id LIMIT ? FOR UPDATE SKIP LOCKED";

/// Digits of a text in hexadecimal, which needs no escapes.
const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];

static ADD_COUNTS: LazyLock<BulkStatements> =
    LazyLock::new(|| BulkStatements::insert_counts(" ON DUPLICATE KEY UPDATE count = count + VALUES(count)"));
static DELETE_DELTAS: LazyLock<BulkStatements> =
    LazyLock::new(|| BulkStatements::new("DELETE FROM event_count_delta WHERE id IN (", "?", ",", ")"));

#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
struct MysqlUrl(MySqlConnectOptions);

impl TryFrom<String> for MysqlUrl {
    type Error = String;

    fn try_from(url: String) -> Result<Self, String> {
        url::check(&url, &["mysql", "mariadb"], EXAMPLE_URL, PARAMETERS)?;
        let options = MySqlConnectOptions::from_str(&url);
        let options = options.map_err(|error| format!("no URL such as `{EXAMPLE_URL}`: {error}"))?;
        match options.get_database() {
            Some(database) if !database.is_empty() => Ok(Self(options)),
            _ => Err(format!("the URL names no database: write it as in `{EXAMPLE_URL}`")),
        }
    }
}

/// The address without secrets.
impl fmt::Display for MysqlUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.0;
        let database = options.get_database().unwrap_or_default();
        write!(f, "MySQL at {}:{}/{database}", options.get_host(), options.get_port())
    }
}

impl fmt::Debug for MysqlUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SinkConfig for MysqlConfig {
    const TYPE: &'static str = "mysql";
    const ANSWERS_QUERIES: bool = true;

    async fn build(self, _context: &BuildContext) -> Result<BuiltSink, BuildError> {
        let mut url = self.url;
        url.0 = url.0.disable_statement_logging();
        let options = url.0.clone();
        let read_pool = ReadPool::new(move || read_pool(options.clone(), self.max_read_connections));
        Ok(BuiltSink::with_store(SqlSink::new(
            MysqlDriver { url, max_packet_bytes: AtomicUsize::new(usize::MAX) },
            read_pool,
        )))
    }
}

fn read_pool(options: MySqlConnectOptions, max: MaxReadConnections) -> DatabaseConnection {
    let pool = MySqlPoolOptions::new()
        .max_connections(max.0)
        .acquire_timeout(CONNECT_TIMEOUT)
        .after_connect(|connection, _| Box::pin(async move { connection.execute(READ_SESSION).await.map(drop) }))
        .connect_lazy_with(options);
    SqlxMySqlConnector::from_sqlx_mysql_pool(pool)
}

struct MysqlDriver {
    url: MysqlUrl,
    /// The server's `max_allowed_packet`, read at each connect.
    max_packet_bytes: AtomicUsize,
}

impl fmt::Display for MysqlDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl Driver for MysqlDriver {
    type Connection = MySqlConnection;

    const MAX_WRITE_CONNECTIONS: usize = 2;
    const MIN_EVENTS_TO_SPLIT: usize = 512;
    const CLOSE_TIMEOUT: Duration = SERVER_CLOSE_TIMEOUT;

    /// Sets `READ COMMITTED`: a batch sees what another node commits meanwhile, and locks no gap that another node
    /// inserts into.
    async fn connect(&self) -> Result<MySqlConnection, sqlx::Error> {
        let mut connection = self.url.0.connect().await?;
        connection.execute(SQL_MODE).await?;
        connection.execute(NO_AUTOCOMMIT).await?;
        connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
        let bytes: u64 =
            sqlx::query_scalar("SELECT CAST(@@max_allowed_packet AS UNSIGNED)").fetch_one(&mut connection).await?;
        self.max_packet_bytes.store(usize::try_from(bytes).unwrap_or(usize::MAX), Ordering::Relaxed);
        Ok(connection)
    }

    /// Ignores the expectation: a statement that fails on known events is cheap to repeat without them.
    async fn insert(
        &self,
        connection: &mut MySqlConnection,
        batch: &[Event],
        _expected: Expected,
    ) -> Result<usize, sqlx::Error> {
        let max_packet_bytes = self.max_packet_bytes.load(Ordering::Relaxed);
        for event in batch {
            check_packet(event, max_packet_bytes)?;
        }
        let stored = insert_and_count(connection, batch, MAX_STATEMENT_BYTES.min(max_packet_bytes / 2)).await;
        if stored.is_err() {
            // A connection whose rollback fails is in doubt, whatever the error says: `Io` has it closed.
            connection.execute("ROLLBACK").await.map_err(|error| sqlx::Error::Io(std::io::Error::other(error)))?;
        }
        stored
    }

    async fn fold(&self, connection: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
        let deltas = sqlx::query_as(SELECT_DELTAS).bind(MAX_DELTAS).fetch(&mut *connection);
        let deltas = DeltaBatch::from_rows(deltas).await?;
        let max_rows = self.max_packet_bytes.load(Ordering::Relaxed) / 2 / MAX_COUNT_BYTES;
        let rows = deltas.rows();
        let mut rest = &rows[..];
        while let Some(statement) = ADD_COUNTS.first(rest, max_rows.max(1)) {
            rest = &rest[statement.rows.len()..];
            let query = statement.rows.iter().fold(sqlx::query(statement.sql), |query, row| {
                query.bind(row.category).bind(row.name).bind(row.period).bind(row.count)
            });
            query.execute(&mut *connection).await?;
        }
        for statement in DELETE_DELTAS.split(&deltas.ids) {
            let query = statement.rows.iter().fold(sqlx::query(statement.sql), |query, id| query.bind(id));
            query.execute(&mut *connection).await?;
        }
        connection.execute("COMMIT").await?;
        Ok(deltas.is_full)
    }

    fn migration_pool(&self) -> DatabaseConnection {
        let pool = MySqlPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIMEOUT)
            .after_connect(|connection, _| Box::pin(async move { connection.execute(SQL_MODE).await.map(drop) }))
            .connect_lazy_with(self.url.0.clone());
        SqlxMySqlConnector::from_sqlx_mysql_pool(pool)
    }
}

/// Stores the new events of a batch with their deltas, and commits. Returns the number of new events. No statement has
/// more than `max_bytes`. The last delta shares a text with the commit, which saves a round trip.
async fn insert_and_count(
    connection: &mut MySqlConnection,
    batch: &[Event],
    max_bytes: usize,
) -> Result<usize, sqlx::Error> {
    let new = insert::insert_new(connection, batch, max_bytes).await?;
    let mut sql = String::new();
    for delta in deltas(&new, max_bytes / 4).iter().filter(|_| !new.is_empty()) {
        if !sql.is_empty() {
            connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(std::mem::take(&mut sql)))).await?;
        }
        sql.push_str("INSERT INTO event_count_delta (delta) VALUES (x'");
        sql.extend(delta.bytes().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| HEX[usize::from(digit)]));
        sql.push_str("');");
    }
    sql.push_str("COMMIT");
    connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await?;
    Ok(new.len())
}

/// Refuses an event that is too large for the server: it would close the connection, which looks like a network
/// failure.
fn check_packet(event: &Event, max_packet_bytes: usize) -> Result<(), sqlx::Error> {
    const OVERHEAD_BYTES: usize = 1024;
    if event.size_bytes() + OVERHEAD_BYTES <= max_packet_bytes {
        return Ok(());
    }
    let reason = format!("the event is larger than the database's max_allowed_packet ({max_packet_bytes} bytes)");
    Err(sqlx::Error::InvalidArgument(reason))
}

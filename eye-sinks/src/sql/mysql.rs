//! MySQL and MariaDB.

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

use super::counts::deltas;
use super::fold::{FOLD_DELTAS, Taken};
use super::read_pool::ReadPool;
use super::url::{self, MaxReadConnections};
use super::write::Shapes;
use super::{CONNECT_TIMEOUT, Driver, Expected, GOODBYE_TIMEOUT, SqlSink};

/// Stores events in a MySQL (8.0.17 or newer) or MariaDB database, which has to exist; the table is made in it.
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

/// Bytes of events that one statement has at most: a quarter of what servers take by default.
const MAX_STATEMENT_BYTES: usize = 4 << 20;

/// Strict, so that nothing is cut or bent to fit, and the same on every server. sqlx has set the character set and UTC.
const SQL_MODE: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,NO_ENGINE_SUBSTITUTION'";

/// A transaction begins with its first statement, without a word of its own.
const NO_AUTOCOMMIT: &str = "SET SESSION autocommit = 0";

/// Readers keep to a bound in time, here 30 seconds, which the server watches. MySQL and MariaDB name it differently;
/// each skips the other's comment.
const READ_SESSION: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES' \
    /*M! , max_statement_time = 30 */ /*!50708 , max_execution_time = 30000 */";

/// Bytes that a count may have in a statement: two texts of 150 characters, two numbers, and the row's own.
const MAX_COUNT_BYTES: usize = 2 * 150 * 4 + 64;

/// Deltas that no other node adds up now.
const TAKE_DELTAS: &str = "SELECT id, delta FROM event_count_delta ORDER BY id LIMIT ? FOR UPDATE SKIP LOCKED";

/// A text as digits needs no escapes.
const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];

static ADD_COUNTS: LazyLock<Shapes> = LazyLock::new(|| {
    let head = "INSERT INTO event_count (category, name, hour, count) VALUES ";
    Shapes::new(head, "(?,?,?,?)", ",", " ON DUPLICATE KEY UPDATE count = count + VALUES(count)")
});
static DELETE_DELTAS: LazyLock<Shapes> =
    LazyLock::new(|| Shapes::new("DELETE FROM event_count_delta WHERE id IN (", "?", ",", ")"));

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

/// The place without the secrets.
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
    /// `max_allowed_packet` of the server, read at each connect.
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
    const MIN_EVENTS_TO_HALVE: usize = 512;
    const CLOSE_TIMEOUT: Duration = GOODBYE_TIMEOUT;

    /// Reads what is committed: so a batch finds what another node stores meanwhile, and no gap is locked that another
    /// node inserts into.
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

    /// Whatever is expected: what is there already is found a statement at a time, and costs no more than it has to.
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
            // Whatever it says, nobody knows then what the connection is in the midst of.
            connection.execute("ROLLBACK").await.map_err(|error| sqlx::Error::Io(std::io::Error::other(error)))?;
        }
        stored
    }

    async fn fold(&self, connection: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
        let deltas = sqlx::query_as(TAKE_DELTAS).bind(FOLD_DELTAS).fetch(&mut *connection);
        let taken = Taken::from_rows(deltas).await?;
        let max_rows = self.max_packet_bytes.load(Ordering::Relaxed) / 2 / MAX_COUNT_BYTES;
        let counts = taken.counts();
        let mut rest = &counts[..];
        while let Some(step) = ADD_COUNTS.step(rest, max_rows.max(1)) {
            rest = &rest[step.rows.len()..];
            let query = step.rows.iter().fold(sqlx::query(step.sql), |query, count| {
                query.bind(count.category).bind(count.name).bind(count.hour).bind(count.count)
            });
            query.execute(&mut *connection).await?;
        }
        for step in DELETE_DELTAS.steps(&taken.ids) {
            let query = step.rows.iter().fold(sqlx::query(step.sql), |query, id| query.bind(id));
            query.execute(&mut *connection).await?;
        }
        connection.execute("COMMIT").await?;
        Ok(taken.is_full)
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

/// Stores what is new of the batch, counts it, and commits. Says how much. No statement has more than `max_bytes`.
///
/// A delta goes with the commit in one text, which saves a way to the server and back.
async fn insert_and_count(
    connection: &mut MySqlConnection,
    batch: &[Event],
    max_bytes: usize,
) -> Result<usize, sqlx::Error> {
    let new = insert::new(connection, batch, max_bytes).await?;
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

/// A server closes the connection on a packet that is too large for it, which would look like a network that fails.
fn check_packet(event: &Event, max_packet_bytes: usize) -> Result<(), sqlx::Error> {
    const OVERHEAD_BYTES: usize = 1024;
    if event.size_bytes() + OVERHEAD_BYTES <= max_packet_bytes {
        return Ok(());
    }
    let reason = format!("the event is larger than max_allowed_packet ({max_packet_bytes} bytes) of the database");
    Err(sqlx::Error::InvalidArgument(reason))
}

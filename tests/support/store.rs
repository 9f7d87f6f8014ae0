//! Empty databases of each kind, inspected and changed without the program: [`Store`].

use std::path::Path;

use eye_harness::{Database, DatabaseServer, MariaDb, Postgres, Proxy, sqlite_with_staging};
use eye_oracle::EventRow;
use futures_util::TryStreamExt;
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ColumnIndex, ConnectOptions, Connection, Decode, Executor, Row, Type};
use tempfile::TempDir;
use uuid::Uuid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
    MariaDb,
}

pub(crate) const ALL: [Kind; 3] = [Kind::Sqlite, Kind::Postgres, Kind::MariaDb];
pub(crate) const SERVERS: [Kind; 2] = [Kind::Postgres, Kind::MariaDb];

impl Kind {
    pub(crate) fn sink_type(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::MariaDb => "mysql",
        }
    }
}

/// A database that is empty at first.
pub(crate) struct Store {
    pub(crate) kind: Kind,
    pub(crate) url: String,
    location: StoreLocation,
}

enum StoreLocation {
    /// A SQLite file, with the folder that is removed at the end.
    File(Option<TempDir>),
    Shared(&'static DatabaseServer, Database),
    Own(Box<DatabaseServer>, Database),
}

impl Store {
    /// Creates a database on the shared server.
    pub(crate) fn new(kind: Kind) -> Self {
        let shared = match kind {
            Kind::Sqlite => return Self::file(),
            Kind::Postgres => Postgres::shared(),
            Kind::MariaDb => MariaDb::shared(),
        };
        let database = shared.create_database();
        Self { kind, url: database.url.clone(), location: StoreLocation::Shared(shared, database) }
    }

    /// Creates a database on a server of its own, which the test may stop.
    pub(crate) fn own(kind: Kind) -> Self {
        let server = match kind {
            Kind::Sqlite => return Self::file(),
            Kind::Postgres => Postgres::start(),
            Kind::MariaDb => MariaDb::start(),
        };
        let database = server.create_database();
        Self { kind, url: database.url.clone(), location: StoreLocation::Own(Box::new(server), database) }
    }

    fn file() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = format!("sqlite://{}/eye.db", folder.path().display());
        Self { kind: Kind::Sqlite, url, location: StoreLocation::File(Some(folder)) }
    }

    /// Uses this file, which the caller removes.
    pub(crate) fn sqlite_at(file: &Path) -> Self {
        Self { kind: Kind::Sqlite, url: format!("sqlite://{}", file.display()), location: StoreLocation::File(None) }
    }

    /// Returns the server of its own, to stop, kill or pause it.
    pub(crate) fn server(&self) -> &DatabaseServer {
        match &self.location {
            StoreLocation::Own(server, _) => server,
            _ => panic!("the store has no server of its own"),
        }
    }

    /// Starts a proxy to the database.
    pub(crate) async fn proxy(&self) -> Proxy {
        match &self.location {
            StoreLocation::File(_) => unreachable!("SQLite has no connections"),
            StoreLocation::Shared(server, database) => Proxy::start(server, database).await,
            StoreLocation::Own(server, database) => Proxy::start(server, database).await,
        }
    }

    /// Connects to both SQLite files, with one view of all events.
    async fn sqlite(&self) -> SqliteConnection {
        let options: SqliteConnectOptions = self.url.parse().expect("a valid URL");
        let options = options.busy_timeout(std::time::Duration::from_secs(30));
        let file = options.get_filename().display().to_string();
        let mut connection = options.connect().await.expect("the file exists");
        connection.execute(AssertSqlSafe(sqlite_with_staging(&file))).await.expect("valid SQL");
        connection
    }

    /// Runs a statement and returns the first column of each row.
    pub(crate) async fn sql(&self, sql: &str) -> Vec<String> {
        let text = match &self.location {
            StoreLocation::File(_) => {
                let mut connection = self.sqlite().await;
                let rows = connection.fetch_all(AssertSqlSafe(sql.to_owned())).await.expect("valid SQL");
                return rows.iter().map(|row| row.get(0)).collect();
            }
            StoreLocation::Shared(server, database) => tokio::task::block_in_place(|| server.sql(&database.name, sql)),
            StoreLocation::Own(server, database) => tokio::task::block_in_place(|| server.sql(&database.name, sql)),
        };
        text.lines().map(str::to_owned).collect()
    }

    /// Returns the ids of all stored events.
    pub(crate) async fn ids(&self) -> Vec<Uuid> {
        let column = if self.kind == Kind::Postgres { "id" } else { "hex(id)" };
        let rows = self.sql(&format!("SELECT {column} FROM event")).await;
        rows.iter().map(|id| Uuid::parse_str(id).expect("ids are UUIDs")).collect()
    }

    /// Returns ids and fingerprints of all stored events. At most one event is in memory at a time.
    pub(crate) async fn fingerprints(&self) -> Vec<(Uuid, u64)> {
        let fingerprint = |row: EventRow| (row.id, row.fingerprint());
        let columns = |data: &str, micros: &str| {
            AssertSqlSafe(format!("SELECT id, session_id, category, name, {data}, {micros} FROM event"))
        };
        match self.kind {
            Kind::Sqlite => {
                let mut connection = self.sqlite().await;
                let rows = connection.fetch(columns("data", "timestamp"));
                rows.map_ok(|row| fingerprint(event_row(&row))).try_collect().await
            }
            Kind::Postgres => {
                let mut connection = PgConnection::connect(&self.url).await.expect("the server runs");
                let micros = "(EXTRACT(EPOCH FROM timestamp) * 1000000)::bigint";
                let rows = connection.fetch(columns("data::text", micros));
                rows.map_ok(|row| fingerprint(event_row(&row))).try_collect().await
            }
            Kind::MariaDb => {
                let mut connection = MySqlConnection::connect(&self.url).await.expect("the server runs");
                let micros = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', timestamp)";
                let rows = connection.fetch(columns("data", micros));
                rows.map_ok(|row| fingerprint(event_row(&row))).try_collect().await
            }
        }
        .expect("valid SQL")
    }

    /// Returns true if an event with this id is stored.
    pub(crate) async fn has(&self, id: Uuid) -> bool {
        let id = match self.kind {
            Kind::Postgres => format!("'{id}'"),
            _ => format!("x'{}'", id.simple()),
        };
        !self.sql(&format!("SELECT 'stored' FROM event WHERE id = {id}")).await.is_empty()
    }

    /// Makes the database refuse every event with the name `refused` by a constraint.
    pub(crate) async fn refuse(&self) {
        match self.kind {
            Kind::Sqlite => self.refuse_in_sqlite("RAISE(ABORT, 'no such name')").await,
            _ => drop(self.sql("ALTER TABLE event ADD CONSTRAINT no_such_name CHECK (name <> 'refused')").await),
        }
    }

    /// Removes the constraint of [`refuse`](Self::refuse).
    pub(crate) async fn accept_again(&self) {
        match self.kind {
            Kind::Sqlite => drop(self.sql("DROP TRIGGER main.refuse").await),
            _ => drop(self.sql("ALTER TABLE event DROP CONSTRAINT no_such_name").await),
        }
    }

    async fn refuse_in_sqlite(&self, refusal: &str) {
        let trigger = "CREATE TRIGGER main.refuse BEFORE INSERT ON event WHEN NEW.name = 'refused'";
        self.sql(&format!("{trigger} BEGIN SELECT {refusal}; END")).await;
    }

    /// Makes the database refuse the same events by a trigger with an unspecific error.
    pub(crate) async fn refuse_by_trigger(&self) {
        match self.kind {
            Kind::Sqlite => self.refuse_in_sqlite("abs(-9223372036854775808)").await,
            Kind::Postgres => {
                // The program recognises RAISE EXCEPTION as a refusal.
                let sql = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN IF NEW.name = 'refused' THEN PERFORM (SELECT 1 UNION SELECT 2); END IF; RETURN NEW; END $$";
                self.sql(sql).await;
                self.sql("CREATE TRIGGER refuse BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION refuse()").await;
            }
            Kind::MariaDb => {
                let sql = "CREATE TRIGGER refuse BEFORE INSERT ON event FOR EACH ROW
                     SET @unused = IF(NEW.name = 'refused', (SELECT 1 UNION SELECT 2), 0)";
                self.sql(sql).await;
            }
        }
    }

    /// Closes all other connections to the database.
    pub(crate) async fn cut_connections(&self) {
        match self.kind {
            Kind::Sqlite => unreachable!("SQLite has no connections"),
            Kind::Postgres => {
                let sql = "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid()";
                self.sql(sql).await;
            }
            Kind::MariaDb => {
                let mut connection = MySqlConnection::connect(&self.url).await.expect("the server runs");
                let sql = "SELECT CONCAT('KILL ', id) FROM information_schema.processlist
                     WHERE db = DATABASE() AND id <> CONNECTION_ID()";
                for row in connection.fetch_all(sql).await.expect("valid SQL") {
                    // A connection may have closed meanwhile.
                    let _ = connection.execute(AssertSqlSafe(row.get::<String, _>(0))).await;
                }
            }
        }
    }

    /// Blocks all other writers until the lock is dropped.
    pub(crate) async fn lock(&self) -> WriteLock {
        match self.kind {
            Kind::Sqlite => {
                let mut connection = self.sqlite().await;
                connection.execute("BEGIN IMMEDIATE").await.expect("the file can be locked");
                WriteLock::Sqlite(connection)
            }
            Kind::Postgres => {
                let mut connection = PgConnection::connect(&self.url).await.expect("the server runs");
                connection.execute("BEGIN; LOCK TABLE event").await.expect("the table can be locked");
                WriteLock::Postgres(connection)
            }
            Kind::MariaDb => {
                let mut connection = MySqlConnection::connect(&self.url).await.expect("the server runs");
                connection.execute("LOCK TABLES event WRITE").await.expect("the table can be locked");
                WriteLock::MariaDb(connection)
            }
        }
    }
}

fn event_row<'r, R: Row>(row: &'r R) -> EventRow
where
    usize: ColumnIndex<R>,
    Uuid: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    EventRow {
        id: row.get(0),
        session_id: row.get(1),
        category: row.get(2),
        name: row.get(3),
        data: row.get(4),
        timestamp_micros: row.get(5),
    }
}

/// A lock of the database by the test.
pub(crate) enum WriteLock {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
    MariaDb(MySqlConnection),
}

impl WriteLock {
    pub(crate) async fn release(self) {
        let closed = match self {
            Self::Sqlite(connection) => connection.close().await,
            Self::Postgres(connection) => connection.close().await,
            Self::MariaDb(connection) => connection.close().await,
        };
        closed.expect("the lock was held");
    }
}

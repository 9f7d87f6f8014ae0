//! The databases that are written to, with the settings their makers ship unless others are asked for.

use std::cell::OnceCell;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use eye_harness::{MariaDb, Postgres, Server};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;
use uuid::Uuid;

use crate::direct::{FillWith, Way};
use crate::events::{Ledger, Sessions, Verdict};

/// A database that The Eye stores into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Postgres,
    Sqlite,
    Mariadb,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
            Self::Mariadb => "mariadb",
        })
    }
}

impl Kind {
    /// `type` of the sink.
    fn sink_type(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
            Self::Mariadb => "mysql",
        }
    }

    fn of_url(url: &str) -> Result<Self> {
        match url.split(':').next() {
            Some("postgres" | "postgresql") => Ok(Self::Postgres),
            Some("mysql" | "mariadb") => Ok(Self::Mariadb),
            Some("sqlite") => Ok(Self::Sqlite),
            _ => bail!("the URL of a database starts with postgres:, mysql: or sqlite:"),
        }
    }
}

/// How servers are set up.
#[derive(Args)]
pub(crate) struct ServersArgs {
    /// MariaDB's memory for pages, with K, M or G: all that it has, since it reads past the system's cache
    #[arg(long, default_value = DEFAULT_BUFFER_POOL)]
    innodb_buffer_pool_size: String,
}

const DEFAULT_BUFFER_POOL: &str = "128M";

/// The servers, each started when it is first needed.
pub(crate) struct Servers {
    postgres: OnceCell<Server>,
    mariadb: OnceCell<Server>,
    buffer_pool_size: String,
}

impl Default for Servers {
    fn default() -> Self {
        Self::new(&ServersArgs { innodb_buffer_pool_size: DEFAULT_BUFFER_POOL.to_owned() })
    }
}

impl Servers {
    pub(crate) fn new(args: &ServersArgs) -> Self {
        let buffer_pool_size = args.innodb_buffer_pool_size.clone();
        Self { postgres: OnceCell::new(), mariadb: OnceCell::new(), buffer_pool_size }
    }

    /// A database with The Eye's schema as `program` makes it, and nothing in it.
    pub(crate) fn create(&self, kind: Kind, program: &Path) -> Result<Store<'_>> {
        let folder = tempfile::tempdir()?;
        let (server, name, url) = match kind {
            Kind::Sqlite => (None, String::new(), format!("sqlite://{}/eye.db", folder.path().display())),
            Kind::Postgres => {
                // Over a Unix socket, too. The rest is PostgreSQL's default already.
                let start = || Postgres::start_with(&["-c unix_socket_directories=@"]);
                let server = self.postgres.get_or_init(start);
                let database = server.create_database();
                (Some(server), database.name, database.url)
            }
            Kind::Mariadb => {
                // The log as MariaDB has it by default, where the tests take less.
                let buffer_pool = format!("--innodb-buffer-pool-size={}", self.buffer_pool_size);
                let start = || MariaDb::start_with(&["--innodb-log-file-size=96M", &buffer_pool]);
                let server = self.mariadb.get_or_init(start);
                let database = server.create_database();
                (Some(server), database.name, database.url)
            }
        };
        let store = Store { kind, url, name, server, folder };
        store.migrate(program)?;
        Ok(store)
    }
}

/// One database; dropped, it is gone.
pub(crate) struct Store<'a> {
    pub(crate) kind: Kind,
    /// With user and password.
    pub(crate) url: String,
    name: String,
    server: Option<&'a Server>,
    folder: TempDir,
}

impl Store<'_> {
    /// The `[sinks.store]` that writes to it.
    pub(crate) fn sink(&self) -> String {
        format!("[sinks.store]\ntype = \"{}\"\nurl = \"{}\"\n", self.kind.sink_type(), self.url)
    }

    /// As `url`, over PostgreSQL's Unix socket.
    pub(crate) fn socket_url(&self) -> Option<String> {
        let server = self.server.filter(|_| self.kind == Kind::Postgres)?;
        Some(format!("{}?host={}", self.url, server.folder().display()))
    }

    /// The server's main process. SQLite has none.
    pub(crate) fn pid(&self) -> Option<String> {
        self.server.map(Server::pid)
    }

    /// A configuration that takes events by HTTP and answers queries.
    pub(crate) fn config(&self) -> String {
        format!("[server]\nlisten = \"127.0.0.1:0\"\n[sources.web]\ntype = \"http\"\n{}", self.sink())
    }

    /// Fills it, and leaves it as if the events had come by The Eye, long ago: they are counted, and what a server does
    /// in the background after so many is done.
    pub(crate) async fn fill(&self, with: &FillWith, sessions: Sessions, program: &Path) -> Result<()> {
        eprintln!("    {} is filled with {} events", self.kind, with.events);
        match self.socket_url() {
            Some(url) => with.fill(&url, Way::Copy, sessions).await?,
            None => with.fill(&self.url, Way::Insert, sessions).await?,
        }
        eprintln!("    {} counts them", self.kind);
        let mut db = Db::open(&self.url).await?;
        db.forget_counts().await?;
        db.close().await?;
        self.migrate(program)?;
        match (self.kind, self.server) {
            (Kind::Postgres, Some(server)) => {
                server.sql(&self.name, "VACUUM (ANALYZE)");
                server.sql(&self.name, "CHECKPOINT");
            }
            (Kind::Mariadb, Some(server)) => {
                // Has InnoDB write every page of the table that it has changed.
                server.sql("mysql", &format!("FLUSH TABLES {}.event FOR EXPORT; UNLOCK TABLES", self.name));
            }
            _ => {}
        }
        // And what the system would write while something is measured.
        ensure!(Command::new("sync").status().context("cannot run sync")?.success(), "sync failed");
        Ok(())
    }

    /// Bytes on the disk, of the events, their indexes and their counts, once all is written to where it belongs.
    pub(crate) async fn size_bytes(&self) -> Result<u64> {
        let mut db = Db::open(&self.url).await?;
        match &mut db {
            Db::Postgres(db) => {
                let sql = "SELECT SUM(pg_total_relation_size(relid))::bigint FROM pg_stat_user_tables
                           WHERE relname IN ('event', 'event_count', 'event_count_delta')";
                Ok(sqlx::query_scalar::<_, i64>(sql).fetch_one(db).await? as u64)
            }
            Db::Sqlite(db) => {
                sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *db).await?;
                Ok(self.folder.path().join("eye.db").metadata()?.len())
            }
            Db::Mariadb(db) => {
                let sql = "SELECT CAST(SUM(file_size) AS UNSIGNED) FROM information_schema.innodb_sys_tablespaces \
                           WHERE name IN (CONCAT(DATABASE(), '/event'), CONCAT(DATABASE(), '/event_count'), \
                           CONCAT(DATABASE(), '/event_count_delta'))";
                Ok(sqlx::query_scalar::<_, u64>(sql).fetch_one(db).await?)
            }
        }
    }

    fn migrate(&self, program: &Path) -> Result<()> {
        let config = self.folder.path().join("migrate.toml");
        std::fs::write(&config, self.config())?;
        let output = Command::new(program).arg("migrate").arg("--config").arg(&config).output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        ensure!(output.status.success(), "eye migrate: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Store<'_> {
    fn drop(&mut self) {
        let Some(server) = self.server else { return };
        // So that the next one pays for nothing of this one.
        match self.kind {
            Kind::Postgres => {
                server.sql("postgres", &format!("DROP DATABASE {} WITH (FORCE)", self.name));
                server.sql("postgres", "CHECKPOINT");
            }
            Kind::Mariadb | Kind::Sqlite => {
                server.sql("mysql", &format!("DROP DATABASE {}", self.name));
            }
        }
    }
}

/// A connection of our own.
pub(crate) enum Db {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
    Mariadb(MySqlConnection),
}

impl Db {
    /// Opens a connection with what a sink would set, too.
    pub(crate) async fn open(url: &str) -> Result<Self> {
        Ok(match Kind::of_url(url)? {
            Kind::Postgres => Self::Postgres(PgConnection::connect(url).await?),
            Kind::Mariadb => Self::Mariadb(MySqlConnection::connect(url).await?),
            Kind::Sqlite => {
                let options = SqliteConnectOptions::from_str(url)?
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .pragma("wal_autocheckpoint", "32768")
                    .pragma("cache_size", "-32768");
                Self::Sqlite(options.connect().await?)
            }
        })
    }

    /// Compares what is stored since the ledger began with what was acknowledged, event by event.
    pub(crate) async fn verdict(&mut self, ledger: &Ledger) -> Result<Verdict> {
        const IDS: &str = "SELECT id FROM event WHERE timestamp >= ?";
        let mut audit = ledger.audit();
        let since = instant(ledger.since_us);
        macro_rules! see_all {
            ($db:expr, $sql:expr, $since:expr) => {{
                let mut ids = sqlx::query_scalar::<_, Uuid>($sql).bind($since).fetch($db);
                while let Some(id) = ids.try_next().await? {
                    audit.see(id);
                }
            }};
        }
        match self {
            Self::Postgres(db) => see_all!(db, "SELECT id FROM event WHERE timestamp >= $1", since),
            Self::Sqlite(db) => see_all!(db, IDS, ledger.since_us),
            Self::Mariadb(db) => see_all!(db, IDS, since.naive_utc()),
        }
        Ok(audit.verdict())
    }

    /// How many events since then (microseconds since 1970) are stored. Reads them all, by the primary key.
    pub(crate) async fn count(&mut self, since_us: i64) -> Result<u64> {
        const COUNT: &str = "SELECT COUNT(*) FROM event WHERE timestamp >= ?";
        let since = instant(since_us);
        let count: i64 = match self {
            Self::Postgres(db) => {
                sqlx::query_scalar("SELECT COUNT(*) FROM event WHERE timestamp >= $1").bind(since).fetch_one(db).await?
            }
            Self::Sqlite(db) => sqlx::query_scalar(COUNT).bind(since_us).fetch_one(db).await?,
            Self::Mariadb(db) => sqlx::query_scalar(COUNT).bind(since.naive_utc()).fetch_one(db).await?,
        };
        Ok(count as u64)
    }

    /// Has the next `eye migrate` count all events anew.
    async fn forget_counts(&mut self) -> Result<()> {
        const SQL: &str = "DELETE FROM eye_migration WHERE version = 'm0001_initial'";
        let forgotten = match self {
            Self::Postgres(db) => sqlx::query(SQL).execute(db).await?.rows_affected(),
            Self::Sqlite(db) => sqlx::query(SQL).execute(db).await?.rows_affected(),
            Self::Mariadb(db) => sqlx::query(SQL).execute(db).await?.rows_affected(),
        };
        ensure!(forgotten == 1, "the migration that counts has another name now");
        Ok(())
    }

    pub(crate) async fn close(self) -> Result<()> {
        match self {
            Self::Postgres(db) => db.close().await?,
            Self::Sqlite(db) => db.close().await?,
            Self::Mariadb(db) => db.close().await?,
        }
        Ok(())
    }

    pub(crate) async fn version(&mut self) -> Result<String> {
        Ok(match self {
            Self::Postgres(db) => sqlx::query_scalar("SHOW server_version").fetch_one(db).await?,
            Self::Sqlite(db) => sqlx::query_scalar("SELECT sqlite_version()").fetch_one(db).await?,
            Self::Mariadb(db) => sqlx::query_scalar("SELECT VERSION()").fetch_one(db).await?,
        })
    }
}

fn instant(us: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(us).unwrap_or_default()
}

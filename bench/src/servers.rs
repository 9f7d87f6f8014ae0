//! Database servers and databases for measurements.
//!
//! [`DatabaseServers`] starts each server when it is first needed. The servers have the vendor's default settings unless
//! an argument changes them. [`BenchDatabase`] is one database with The Eye's schema; it is removed on drop.

use std::cell::OnceCell;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use eye_harness::{DatabaseServer, MariaDb, Postgres};
use tempfile::TempDir;

use crate::database::{DatabaseConnection, DatabaseKind, for_each_database};
use crate::direct::{FillArgs, WriteMethod};
use crate::events::SessionPattern;

/// Default size of MariaDB's buffer pool.
pub(crate) const DEFAULT_BUFFER_POOL: &str = "128M";

/// Settings of the database servers.
#[derive(Args)]
pub(crate) struct ServersArgs {
    /// Buffer pool of MariaDB, with suffix K, M or G. It is MariaDB's only page cache, because MariaDB bypasses the
    /// system's
    #[arg(long, default_value = DEFAULT_BUFFER_POOL)]
    pub(crate) innodb_buffer_pool_size: String,
}

/// The database servers of a measurement.
pub(crate) struct DatabaseServers {
    postgres: OnceCell<DatabaseServer>,
    mariadb: OnceCell<DatabaseServer>,
    buffer_pool_size: String,
}

impl DatabaseServers {
    /// Starts nothing yet. `buffer_pool_size` is for MariaDB.
    pub(crate) fn new(buffer_pool_size: &str) -> Self {
        Self { postgres: OnceCell::new(), mariadb: OnceCell::new(), buffer_pool_size: buffer_pool_size.to_owned() }
    }

    /// Creates an empty database and has `program` create the schema. Starts the server if necessary.
    pub(crate) fn create(&self, kind: DatabaseKind, program: &Path) -> Result<BenchDatabase<'_>> {
        let folder = tempfile::tempdir()?;
        let server = match kind {
            DatabaseKind::Sqlite => None,
            // The socket is for `COPY`. Everything else is PostgreSQL's default.
            DatabaseKind::Postgres => {
                Some(self.postgres.get_or_init(|| Postgres::start_with(&["-c unix_socket_directories=@"])))
            }
            // The log has MariaDB's default size. The tests use a smaller one.
            DatabaseKind::Mariadb => Some(self.mariadb.get_or_init(|| {
                let buffer_pool = format!("--innodb-buffer-pool-size={}", self.buffer_pool_size);
                MariaDb::start_with(&["--innodb-log-file-size=96M", &buffer_pool])
            })),
        };
        let (name, url) = match server {
            None => (String::new(), format!("sqlite://{}/eye.db", folder.path().display())),
            Some(server) => {
                let database = server.create_database();
                (database.name, database.url)
            }
        };
        let database = BenchDatabase { kind, url, name, server, folder };
        database.migrate(program)?;
        Ok(database)
    }
}

/// One database. It is removed on drop.
pub(crate) struct BenchDatabase<'a> {
    pub(crate) kind: DatabaseKind,
    /// URL with user and password.
    pub(crate) url: String,
    name: String,
    /// `None` for SQLite.
    server: Option<&'a DatabaseServer>,
    folder: TempDir,
}

impl BenchDatabase<'_> {
    /// Returns the configuration of the sink `store` for this database.
    pub(crate) fn sink_config(&self) -> String {
        let sink_type = match self.kind {
            DatabaseKind::Postgres => "postgres",
            DatabaseKind::Sqlite => "sqlite",
            DatabaseKind::Mariadb => "mysql",
        };
        format!("[sinks.store]\ntype = \"{sink_type}\"\nurl = \"{}\"\n", self.url)
    }

    /// Returns a configuration with an HTTP source and this database as the only sink.
    pub(crate) fn config(&self) -> String {
        format!("[server]\nlisten = \"127.0.0.1:0\"\n[sources.web]\ntype = \"http\"\n{}", self.sink_config())
    }

    /// Returns the URL over PostgreSQL's Unix socket; `None` for other databases.
    pub(crate) fn socket_url(&self) -> Option<String> {
        let server = self.server.filter(|_| self.kind == DatabaseKind::Postgres)?;
        Some(format!("{}?host={}", self.url, server.folder().display()))
    }

    /// Returns the id of the server's main process; `None` for SQLite.
    pub(crate) fn pid(&self) -> Option<String> {
        self.server.map(DatabaseServer::pid)
    }

    /// Fills the database and leaves it as The Eye would after a long time: the events are counted, and the server has
    /// finished its background work.
    pub(crate) async fn fill(&self, events: &FillArgs, sessions: SessionPattern, program: &Path) -> Result<()> {
        eprintln!("    fills {} with {} events", self.kind, events.events);
        match self.socket_url() {
            Some(url) => events.fill(&url, WriteMethod::Copy, sessions).await?,
            None => events.fill(&self.url, WriteMethod::Insert, sessions).await?,
        }
        eprintln!("    counts the events in {}", self.kind);
        self.forget_counts().await?;
        self.migrate(program)?;
        match (self.kind, self.server) {
            (DatabaseKind::Postgres, Some(server)) => {
                server.sql(&self.name, "VACUUM (ANALYZE)");
                server.sql(&self.name, "CHECKPOINT");
            }
            (DatabaseKind::Mariadb, Some(server)) => {
                // Makes InnoDB write every changed page of the table.
                server.sql("mysql", &format!("FLUSH TABLES {}.event FOR EXPORT; UNLOCK TABLES", self.name));
            }
            _ => {}
        }
        // Otherwise the system would write the remaining pages during the measurement.
        ensure!(Command::new("sync").status().context("cannot run sync")?.success(), "sync failed");
        Ok(())
    }

    /// Removes the record of the migration that counts. The next `eye migrate` counts all events again.
    async fn forget_counts(&self) -> Result<()> {
        const SQL: &str = "DELETE FROM eye_migration WHERE version = 'm0001_initial'";
        let mut connection = DatabaseConnection::open(&self.url).await?;
        let deleted = for_each_database!(&mut connection, db => sqlx::query(SQL).execute(db).await?.rows_affected());
        ensure!(deleted == 1, "the counting migration has another name: adapt bench/src/servers.rs");
        connection.close().await
    }

    /// Returns the bytes on disk of the events, their indexes and their counts.
    pub(crate) async fn size_bytes(&self) -> Result<u64> {
        let mut connection = DatabaseConnection::open(&self.url).await?;
        let size: i64 = match &mut connection {
            DatabaseConnection::Postgres(db) => {
                let sql = "SELECT SUM(pg_total_relation_size(relid))::bigint FROM pg_stat_user_tables
                           WHERE relname IN ('event', 'event_count', 'event_count_delta')";
                sqlx::query_scalar(sql).fetch_one(db).await?
            }
            DatabaseConnection::Sqlite(db) => {
                // Moves all pages from the log into the file first.
                sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *db).await?;
                self.folder.path().join("eye.db").metadata()?.len() as i64
            }
            DatabaseConnection::Mariadb(db) => {
                let sql = "SELECT CAST(SUM(file_size) AS SIGNED) FROM information_schema.innodb_sys_tablespaces
                           WHERE name IN (CONCAT(DATABASE(), '/event'), CONCAT(DATABASE(), '/event_count'),
                           CONCAT(DATABASE(), '/event_count_delta'))";
                sqlx::query_scalar(sql).fetch_one(db).await?
            }
        };
        Ok(size as u64)
    }

    fn migrate(&self, program: &Path) -> Result<()> {
        let config = self.folder.path().join("migrate.toml");
        std::fs::write(&config, self.config())?;
        let output = Command::new(program).arg("migrate").arg("--config").arg(&config).output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        ensure!(output.status.success(), "`eye migrate` failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for BenchDatabase<'_> {
    fn drop(&mut self) {
        let Some(server) = self.server else { return };
        if self.kind == DatabaseKind::Postgres {
            server.sql("postgres", &format!("DROP DATABASE {} WITH (FORCE)", self.name));
            // Otherwise the next measurement pays for the pages of this one.
            server.sql("postgres", "CHECKPOINT");
        } else {
            server.sql("mysql", &format!("DROP DATABASE {}", self.name));
        }
    }
}

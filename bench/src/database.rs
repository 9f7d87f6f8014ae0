//! Direct connections to the databases, which bypass The Eye.
//!
//! [`DatabaseConnection`] counts events and compares them with those that a load sent.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use chrono::DateTime;
use clap::ValueEnum;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use uuid::Uuid;

use crate::sent::{SentEvents, StoredResult};

/// A kind of database that The Eye can store events in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DatabaseKind {
    Postgres,
    Sqlite,
    Mariadb,
}

impl fmt::Display for DatabaseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
            Self::Mariadb => "mariadb",
        })
    }
}

/// A connection of the benchmark's own.
pub(crate) enum DatabaseConnection {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
    Mariadb(MySqlConnection),
}

/// Evaluates one expression for the connection of each database.
macro_rules! for_each_database {
    ($connection:expr, $db:ident => $expression:expr) => {
        match $connection {
            DatabaseConnection::Postgres($db) => $expression,
            DatabaseConnection::Sqlite($db) => $expression,
            DatabaseConnection::Mariadb($db) => $expression,
        }
    };
}
pub(crate) use for_each_database;

impl DatabaseConnection {
    /// Opens a connection. SQLite gets the settings of the sink's own connection.
    pub(crate) async fn open(url: &str) -> Result<Self> {
        Ok(match url.split(':').next() {
            Some("postgres" | "postgresql") => Self::Postgres(PgConnection::connect(url).await?),
            Some("mysql" | "mariadb") => Self::Mariadb(MySqlConnection::connect(url).await?),
            Some("sqlite") => {
                let options = SqliteConnectOptions::from_str(url)?
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .pragma("wal_autocheckpoint", "32768")
                    .pragma("cache_size", "-32768");
                Self::Sqlite(options.connect().await?)
            }
            _ => bail!("the database URL has an unknown scheme: it must start with postgres:, mysql: or sqlite:"),
        })
    }

    /// Compares the ids that were stored since the load began with the events that it sent.
    pub(crate) async fn check(&mut self, sent: &SentEvents) -> Result<StoredResult> {
        let sql = self.select_since("id", sent.since_us);
        let mut check = sent.check();
        for_each_database!(self, db => {
            let mut ids = sqlx::query_scalar::<_, Uuid>(AssertSqlSafe(sql)).fetch(db);
            while let Some(id) = ids.try_next().await? {
                check.add(id);
            }
        });
        Ok(check.finish())
    }

    /// Returns the number of events stored with a timestamp at or after `since_us` (microseconds since 1970). Reads
    /// all of them by the primary key.
    pub(crate) async fn count(&mut self, since_us: i64) -> Result<u64> {
        let sql = self.select_since("COUNT(*)", since_us);
        let count: i64 = for_each_database!(self, db => sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(db).await?);
        Ok(count as u64)
    }

    fn select_since(&self, columns: &str, since_us: i64) -> String {
        let time = DateTime::from_timestamp_micros(since_us).unwrap_or_default();
        let since = match self {
            Self::Postgres(_) => time.format("'%Y-%m-%dT%H:%M:%S%.6fZ'").to_string(),
            Self::Sqlite(_) => since_us.to_string(),
            Self::Mariadb(_) => time.format("'%Y-%m-%d %H:%M:%S%.6f'").to_string(),
        };
        format!("SELECT {columns} FROM event WHERE timestamp >= {since}")
    }

    pub(crate) async fn close(self) -> Result<()> {
        for_each_database!(self, db => db.close().await?);
        Ok(())
    }

    /// Returns the version of the database.
    pub(crate) async fn version(&mut self) -> Result<String> {
        let sql = match self {
            Self::Postgres(_) => "SHOW server_version",
            Self::Sqlite(_) => "SELECT sqlite_version()",
            Self::Mariadb(_) => "SELECT VERSION()",
        };
        Ok(for_each_database!(self, db => sqlx::query_scalar(sql).fetch_one(db).await?))
    }
}

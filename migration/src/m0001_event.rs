//! The table of events.
//!
//! The primary key is the order of every query and the idempotency key in one index; each further index serves one
//! filter and hands out its events in the order of a page.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0001_event"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let statements: &[&str] = match manager.get_database_backend() {
            DbBackend::Sqlite => SQLITE,
            DbBackend::Postgres => POSTGRES,
            DbBackend::MySql => MYSQL,
            other => return Err(DbErr::BackendNotSupported { db: other.as_str(), ctx: "The Eye's schema" }),
        };
        for sql in statements {
            manager.get_connection().execute_unprepared(sql).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("event").take()).await
    }
}

/// Timestamps are microseconds since 1970-01-01T00:00:00Z: small, and in the right order. Not `WITHOUT ROWID`: with
/// 1,000 bytes of data an event it made the file three times as large and cost twice the time.
const SQLITE: &[&str] = &[
    "CREATE TABLE event (
        timestamp INTEGER NOT NULL,
        id BLOB NOT NULL,
        session_id TEXT NOT NULL,
        category TEXT NOT NULL,
        name TEXT NOT NULL,
        data TEXT NOT NULL,
        received_at INTEGER NOT NULL,
        PRIMARY KEY (timestamp, id)
    ) STRICT",
    "CREATE INDEX event_session_id ON event (session_id, timestamp, id)",
    "CREATE INDEX event_category ON event (category, timestamp, id)",
    "CREATE INDEX event_name ON event (name, timestamp, id)",
];

/// `json`, not `jsonb`: it keeps the text as it came. The collation `C` compares bytes, whatever the database's locale.
const POSTGRES: &[&str] = &[
    r#"CREATE TABLE event (
        timestamp timestamptz NOT NULL,
        id uuid NOT NULL,
        session_id text COLLATE "C" NOT NULL,
        category text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        data json NOT NULL,
        received_at timestamptz NOT NULL,
        PRIMARY KEY (timestamp, id)
    )"#,
    "CREATE INDEX event_session_id ON event (session_id, timestamp, id)",
    "CREATE INDEX event_category ON event (category, timestamp, id)",
    "CREATE INDEX event_name ON event (name, timestamp, id)",
];

/// One statement, because MySQL commits after each: what a crash leaves half done can be done again.
///
/// `TIMESTAMP` would end in 2038. Exact comparison takes a collation that is binary and does not pad: under
/// `utf8mb4_bin` `abc` equals `abc `. MySQL and MariaDB name theirs differently; each skips the other's comment.
const MYSQL: &[&str] = &["CREATE TABLE IF NOT EXISTS `event` (
        `timestamp` DATETIME(6) NOT NULL,
        `id` BINARY(16) NOT NULL,
        `session_id` VARCHAR(150) NOT NULL,
        `category` VARCHAR(150) NOT NULL,
        `name` VARCHAR(150) NOT NULL,
        `data` LONGTEXT NOT NULL,
        `received_at` DATETIME(6) NOT NULL,
        PRIMARY KEY (`timestamp`, `id`),
        INDEX `event_session_id` (`session_id`, `timestamp`, `id`),
        INDEX `event_category` (`category`, `timestamp`, `id`),
        INDEX `event_name` (`name`, `timestamp`, `id`)
    ) ENGINE = InnoDB ROW_FORMAT = DYNAMIC
      DEFAULT CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */"];

//! Counts of events, so that a query need not count them one by one.
//!
//! `event_count` has how many events an hour has: of a category and a name, of a category whatever the name, of a name
//! whatever the category, and of all. No event has an empty category or name, so `''` stands for "whatever". Hours are
//! counted from 1970-01-01T00:00:00Z.
//!
//! Writers only insert, into `event_count_delta`, in the transaction that stores the events: then no two of them wait
//! for each other. A row is what a batch adds, as JSON: `{"438291":{"page interaction":{"cta click":3}}}` by hour, category
//! and name. It is added to `event_count` from time to time. The count of an hour is the sum of both.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0002_event_count"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// May be done again from any point, because MySQL commits after each statement. No node of this version writes
    /// meanwhile: each comes here first, and waits.
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let (tables, hour) = match manager.get_database_backend() {
            DbBackend::Sqlite => (SQLITE, "timestamp / 3600000000"),
            DbBackend::Postgres => (POSTGRES, "FLOOR(EXTRACT(EPOCH FROM timestamp) / 3600)::integer"),
            DbBackend::MySql => (MYSQL, "TIMESTAMPDIFF(HOUR, '1970-01-01', timestamp)"),
            other => return Err(DbErr::BackendNotSupported { db: other.as_str(), ctx: "The Eye's schema" }),
        };
        let count_all = [
            "DELETE FROM event_count_delta".to_owned(),
            "DELETE FROM event_count".to_owned(),
            format!(
                "INSERT INTO event_count (category, name, hour, count)
                    SELECT category, name, {hour}, COUNT(*) FROM event GROUP BY 1, 2, 3"
            ),
        ];
        let add_up = ["category, ''", "'', name", "'', ''"].map(|whose| {
            let group = whose.split(", ").filter(|column| *column != "''").map(|column| format!("{column}, "));
            format!(
                "INSERT INTO event_count (category, name, hour, count)
                    SELECT {whose}, hour, SUM(count) FROM event_count WHERE category <> '' AND name <> ''
                    GROUP BY {}hour",
                group.collect::<String>()
            )
        });
        for sql in tables.iter().copied().chain(count_all.iter().chain(&add_up).map(String::as_str)) {
            manager.get_connection().execute_unprepared(sql).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("event_count_delta").take()).await?;
        manager.drop_table(Table::drop().table("event_count").take()).await
    }
}

const SQLITE: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS event_count (
        category TEXT NOT NULL,
        name TEXT NOT NULL,
        hour INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (category, name, hour)
    ) STRICT, WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS event_count_delta (
        id INTEGER PRIMARY KEY,
        delta TEXT NOT NULL
    ) STRICT",
];

/// Room is left on each page of `event_count` for the next version of its rows, which spares their index.
const POSTGRES: &[&str] = &[
    r#"CREATE TABLE IF NOT EXISTS event_count (
        category text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        hour integer NOT NULL,
        count bigint NOT NULL,
        PRIMARY KEY (category, name, hour)
    ) WITH (fillfactor = 70)"#,
    "CREATE TABLE IF NOT EXISTS event_count_delta (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        delta text NOT NULL
    )",
];

/// The collation is that of `event`: each server skips the other's comment.
const MYSQL: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS `event_count` (
        `category` VARCHAR(150) NOT NULL,
        `name` VARCHAR(150) NOT NULL,
        `hour` INT NOT NULL,
        `count` BIGINT NOT NULL,
        PRIMARY KEY (`category`, `name`, `hour`)
    ) ENGINE = InnoDB ROW_FORMAT = DYNAMIC
      DEFAULT CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */",
    "CREATE TABLE IF NOT EXISTS `event_count_delta` (
        `id` BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
        `delta` LONGTEXT NOT NULL
    ) ENGINE = InnoDB ROW_FORMAT = DYNAMIC
      DEFAULT CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */",
];

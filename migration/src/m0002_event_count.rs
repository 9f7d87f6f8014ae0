//! Counts of events, so that a query need not count them one by one.
//!
//! `event_count` has how many events an hour has: of a category and a name, of a category whatever the name, of a name
//! whatever the category, and of all. No event has an empty category or name, so `''` stands for "whatever". Hours are
//! counted from 1970-01-01T00:00:00Z. Days are in it, too, see `m0004_event_count_day`.
//!
//! Writers only insert, into `event_count_delta`, in the transaction that stores the events: then no two of them wait
//! for each other. A row is what a batch adds, as JSON: `{"438291":{"page interaction":{"cta click":3}}}` by hour, category
//! and name. It is added to `event_count` from time to time. The count of an hour is the sum of both.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::m0004_event_count_day::count_days;

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
        let (tables, time) = match manager.get_database_backend() {
            DbBackend::Sqlite => (SQLITE, &SQLITE_TIME),
            DbBackend::Postgres => (POSTGRES, &POSTGRES_TIME),
            DbBackend::MySql => (MYSQL, &MYSQL_TIME),
            other => return Err(DbErr::BackendNotSupported { db: other.as_str(), ctx: "The Eye's schema" }),
        };
        let db = manager.get_connection();
        for sql in tables.iter().copied().chain(["DELETE FROM event_count_delta", "DELETE FROM event_count"]) {
            db.execute_unprepared(sql).await?;
        }
        let mut day = 0;
        while let Some(next) = time.first_day(db, day).await? {
            time.count(db, next).await?;
            day = next + 1;
        }
        // Whoever has everything counted anew does this migration again, and no other.
        count_days(db).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("event_count_delta").take()).await?;
        manager.drop_table(Table::drop().table("event_count").take()).await
    }
}

/// How a database writes instants and hours.
struct Time {
    /// The hour of an instant, which stands for `?`.
    hour: &'static str,
    /// The start of an hour, whose number stands for `?`.
    start: &'static str,
    /// What is added to the start of a day to come to its last instant. The last day of all has no end.
    day: &'static str,
}

const SQLITE_TIME: Time = Time { hour: "? / 3600000000", start: "? * 3600000000", day: "86399999999" };
const POSTGRES_TIME: Time = Time {
    hour: "FLOOR(EXTRACT(EPOCH FROM ?) / 3600)::bigint",
    start: "TO_TIMESTAMP(?::bigint * 3600)",
    day: "INTERVAL '23:59:59.999999'",
};
const MYSQL_TIME: Time = Time {
    hour: "TIMESTAMPDIFF(HOUR, '1970-01-01', ?)",
    start: "'1970-01-01' + INTERVAL ? HOUR",
    day: "INTERVAL '23:59:59.999999' HOUR_MICROSECOND",
};

impl Time {
    fn start_of(&self, day: i64) -> String {
        self.start.replace('?', &(day * 24).to_string())
    }

    /// The first day from this one on that has an event.
    async fn first_day(&self, db: &impl ConnectionTrait, day: i64) -> Result<Option<i64>, DbErr> {
        let (hour, start) = (self.hour.replace('?', "MIN(timestamp)"), self.start_of(day));
        let sql = format!("SELECT {hour} FROM event WHERE timestamp >= {start}");
        let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await?;
        let hour: Option<i64> = row.map(|row| row.try_get_by_index(0)).transpose()?.flatten();
        Ok(hour.map(|hour| hour / 24))
    }

    /// Counts the events of a day. Those of all days at once the databases would sort on the disk.
    async fn count(&self, db: &impl ConnectionTrait, day: i64) -> Result<(), DbErr> {
        let (hour, start, length) = (self.hour.replace('?', "timestamp"), self.start_of(day), self.day);
        for (category, name) in [("category", "name"), ("category", "''"), ("''", "name"), ("''", "''")] {
            let sql = format!(
                "INSERT INTO event_count (category, name, hour, count)
                    SELECT {category}, {name}, {hour}, COUNT(*) FROM event
                    WHERE timestamp BETWEEN {start} AND {start} + {length} GROUP BY 1, 2, 3"
            );
            db.execute_unprepared(&sql).await?;
        }
        Ok(())
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

/// The index has the counts, too: a sum is read from it alone, where the table would have each hour on another page.
const POSTGRES: &[&str] = &[
    r#"CREATE TABLE IF NOT EXISTS event_count (
        category text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        hour integer NOT NULL,
        count bigint NOT NULL,
        PRIMARY KEY (category, name, hour) INCLUDE (count)
    )"#,
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

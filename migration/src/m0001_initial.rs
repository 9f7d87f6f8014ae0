//! The tables: events, their counts by period, and how much of SQLite's staging table was flushed.
//!
//! The migration creates missing tables and counts all events again. So it can run again from any point, which MySQL
//! needs because it commits after each statement. An operator who deletes events by SQL runs it again for exact counts.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend, Statement};

use crate::period::{FIRST_DAY, FIRST_MONTH};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0001_initial"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let (tables, dialect) = match manager.get_database_backend() {
            DbBackend::Sqlite => (SQLITE, &SQLITE_DIALECT),
            DbBackend::Postgres => (POSTGRES, &POSTGRES_DIALECT),
            DbBackend::MySql => (MYSQL, &MYSQL_DIALECT),
            other => return Err(DbErr::BackendNotSupported { db: other.as_str(), ctx: "The Eye's schema" }),
        };
        let db = manager.get_connection();
        for sql in tables.iter().copied().chain(["DELETE FROM event_count_delta", "DELETE FROM event_count"]) {
            db.execute_unprepared(sql).await?;
        }
        dialect.count_events(db).await
    }
}

/// SQL in which the databases differ. `?` is the argument.
struct Dialect {
    /// The hour of an instant, as a number of hours since 1970.
    hour: &'static str,
    /// The start of an hour.
    start: &'static str,
    /// An interval from the start of a day to its last instant. The last day of all has no end.
    day_length: &'static str,
    /// The month of a day, as a number of months since 1970.
    month: &'static str,
    integer_division: &'static str,
}

const SQLITE_DIALECT: Dialect = Dialect {
    hour: "? / 3600000000",
    start: "? * 3600000000",
    day_length: "86399999999",
    month: "(strftime('%Y', ? * 86400, 'unixepoch') - 1970) * 12 + strftime('%m', ? * 86400, 'unixepoch') - 1",
    integer_division: "/",
};
const POSTGRES_DIALECT: Dialect = Dialect {
    hour: "FLOOR(EXTRACT(EPOCH FROM ?) / 3600)::bigint",
    start: "TO_TIMESTAMP(?::bigint * 3600)",
    day_length: "INTERVAL '23:59:59.999999'",
    month: "((EXTRACT(YEAR FROM DATE '1970-01-01' + ?) - 1970) * 12
        + EXTRACT(MONTH FROM DATE '1970-01-01' + ?) - 1)::integer",
    integer_division: "/",
};
const MYSQL_DIALECT: Dialect = Dialect {
    hour: "TIMESTAMPDIFF(HOUR, '1970-01-01', ?)",
    start: "'1970-01-01' + INTERVAL ? HOUR",
    day_length: "INTERVAL '23:59:59.999999' HOUR_MICROSECOND",
    month: "TIMESTAMPDIFF(MONTH, '1970-01-01', '1970-01-01' + INTERVAL ? DAY)",
    integer_division: "DIV",
};

impl Dialect {
    /// Fills the empty `event_count`. No node of this version writes meanwhile: each one migrates first, and waits.
    async fn count_events(&self, db: &impl ConnectionTrait) -> Result<(), DbErr> {
        let mut day = 0;
        while let Some(next) = self.first_day(db, day).await? {
            self.count_hours(db, next).await?;
            day = next + 1;
        }
        let day = format!("{FIRST_DAY} + period {} 24", self.integer_division);
        let month = format!("{FIRST_MONTH} + {}", self.month.replace('?', &format!("(period - ({FIRST_DAY}))")));
        for (period, is_source) in [(day, "period >= 0"), (month, "period < 0")] {
            let sql = format!(
                "INSERT INTO event_count (category, name, period, count)
                    SELECT category, name, {period}, SUM(count) FROM event_count WHERE {is_source} GROUP BY 1, 2, 3"
            );
            db.execute_unprepared(&sql).await?;
        }
        Ok(())
    }

    /// Returns the first day with an event, beginning with `day`.
    async fn first_day(&self, db: &impl ConnectionTrait, day: i64) -> Result<Option<i64>, DbErr> {
        let (hour, start) = (self.hour.replace('?', "MIN(timestamp)"), self.start_of(day));
        let sql = format!("SELECT {hour} FROM event WHERE timestamp >= {start}");
        let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await?;
        let hour: Option<i64> = row.map(|row| row.try_get_by_index(0)).transpose()?.flatten();
        Ok(hour.map(|hour| hour / 24))
    }

    /// Counts the hours of one day. The databases would sort those of all days on the disk.
    async fn count_hours(&self, db: &impl ConnectionTrait, day: i64) -> Result<(), DbErr> {
        let (hour, start, length) = (self.hour.replace('?', "timestamp"), self.start_of(day), self.day_length);
        for (category, name) in [("category", "name"), ("category", "''"), ("''", "name"), ("''", "''")] {
            let sql = format!(
                "INSERT INTO event_count (category, name, period, count)
                    SELECT {category}, {name}, {hour}, COUNT(*) FROM event
                    WHERE timestamp BETWEEN {start} AND {start} + {length} GROUP BY 1, 2, 3"
            );
            db.execute_unprepared(&sql).await?;
        }
        Ok(())
    }

    fn start_of(&self, day: i64) -> String {
        self.start.replace('?', &(day * 24).to_string())
    }
}

// The primary key of `event` is the order of every query and the idempotency key in one index. Each further index
// serves one filter and returns its events in the order of a page. The index of names ends with the category: a page of
// a category and a name reads it alone. An index of both would cost every event another page to write.
//
// `event_count` has the events of a period, see `period.rs`: of a category and a name, of either alone, and of all. The
// empty text stands for "any"; no event has an empty category or name.
//
// Writers only insert into `event_count_delta`, in the transaction that stores the events, so that no two of them wait
// for each other. A row is what one batch adds, as JSON by hour, category and name:
// `{"438291":{"page interaction":{"cta click":3}}}`. Sinks fold these rows into `event_count` from time to time.

/// Timestamps are microseconds since 1970: small, and in the right order. Not `WITHOUT ROWID`: with 1,000 bytes of data
/// an event it made the file three times as large and cost twice the time. `data` comes last but one: SQLite reads the
/// columns before it without the pages that a large one overflows to.
///
/// `event_staging_flushed` has the number of the last event that was flushed from each staging table.
const SQLITE: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS event (
        timestamp INTEGER NOT NULL,
        id BLOB NOT NULL,
        session_id TEXT NOT NULL,
        category TEXT NOT NULL,
        name TEXT NOT NULL,
        origin TEXT NOT NULL,
        data TEXT NOT NULL,
        received_at INTEGER NOT NULL,
        PRIMARY KEY (timestamp, id)
    ) STRICT",
    "CREATE INDEX IF NOT EXISTS event_session_id ON event (session_id, timestamp, id)",
    "CREATE INDEX IF NOT EXISTS event_category ON event (category, timestamp, id)",
    "CREATE INDEX IF NOT EXISTS event_name ON event (name, timestamp, id, category)",
    "CREATE TABLE IF NOT EXISTS event_count (
        category TEXT NOT NULL,
        name TEXT NOT NULL,
        period INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (category, name, period)
    ) STRICT, WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS event_count_delta (
        id INTEGER PRIMARY KEY,
        delta TEXT NOT NULL
    ) STRICT",
    "CREATE TABLE IF NOT EXISTS event_staging_flushed (
        staging INTEGER PRIMARY KEY,
        number INTEGER NOT NULL
    ) STRICT",
];

/// `json`, not `jsonb`: it keeps the text as it came. The collation `C` compares bytes, whatever the database's locale.
/// The primary key of `event_count` includes the count: a sum reads the index alone, where the table would have each
/// period on another page.
const POSTGRES: &[&str] = &[
    r#"CREATE TABLE IF NOT EXISTS event (
        timestamp timestamptz NOT NULL,
        id uuid NOT NULL,
        session_id text COLLATE "C" NOT NULL,
        category text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        origin text COLLATE "C" NOT NULL,
        data json NOT NULL,
        received_at timestamptz NOT NULL,
        PRIMARY KEY (timestamp, id)
    )"#,
    "CREATE INDEX IF NOT EXISTS event_session_id ON event (session_id, timestamp, id)",
    "CREATE INDEX IF NOT EXISTS event_category ON event (category, timestamp, id)",
    "CREATE INDEX IF NOT EXISTS event_name ON event (name, timestamp, id, category)",
    r#"CREATE TABLE IF NOT EXISTS event_count (
        category text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        period integer NOT NULL,
        count bigint NOT NULL,
        PRIMARY KEY (category, name, period) INCLUDE (count)
    )"#,
    "CREATE TABLE IF NOT EXISTS event_count_delta (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        delta text NOT NULL
    )",
];

/// `TIMESTAMP` would end in 2038. Exact comparison needs a collation that is binary and does not pad: under
/// `utf8mb4_bin` `abc` equals `abc `. MySQL and MariaDB name theirs differently; each skips the other's comment.
///
/// MariaDB checks the category in the index of names only while it reads the index forwards, which is newest first
/// here. Before 10.8 it ignores `DESC`.
const MYSQL: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS `event` (
        `timestamp` DATETIME(6) NOT NULL,
        `id` BINARY(16) NOT NULL,
        `session_id` VARCHAR(150) NOT NULL,
        `category` VARCHAR(150) NOT NULL,
        `name` VARCHAR(150) NOT NULL,
        `origin` VARCHAR(64) NOT NULL,
        `data` LONGTEXT NOT NULL,
        `received_at` DATETIME(6) NOT NULL,
        PRIMARY KEY (`timestamp`, `id`),
        INDEX `event_session_id` (`session_id`, `timestamp`, `id`),
        INDEX `event_category` (`category`, `timestamp`, `id`),
        INDEX `event_name` (`name`, `timestamp` DESC, `id` DESC, `category`)
    ) ENGINE = InnoDB ROW_FORMAT = DYNAMIC
      DEFAULT CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */",
    "CREATE TABLE IF NOT EXISTS `event_count` (
        `category` VARCHAR(150) NOT NULL,
        `name` VARCHAR(150) NOT NULL,
        `period` INT NOT NULL,
        `count` BIGINT NOT NULL,
        PRIMARY KEY (`category`, `name`, `period`)
    ) ENGINE = InnoDB ROW_FORMAT = DYNAMIC
      DEFAULT CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */",
    "CREATE TABLE IF NOT EXISTS `event_count_delta` (
        `id` BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
        `delta` LONGTEXT NOT NULL
    ) ENGINE = InnoDB ROW_FORMAT = DYNAMIC
      DEFAULT CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */",
];

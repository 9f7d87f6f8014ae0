//! The staging table: small batches are stored in a file of its own, whose one index grows at its end. Many events at
//! once are flushed from there to the main table with its indexes, while further batches arrive.
//!
//! Staged events are numbered. The table `event_staging_flushed` of the main file has the number of the last flushed
//! one, set in the transaction that copies the events. So each event counts in exactly one file at any moment: staged
//! while its number is larger, else in the main table, even if the staged row is not deleted yet. A crash needs no
//! repair.
//!
//! Read [`StagingTable`] first.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use eye_core::event::Event;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Executor};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::super::bulk::BulkStatements;
use super::super::counts::deltas;
use super::super::driver::Expected;
use super::insert::bind;
use super::transaction::{BEGIN_ON_MAIN, finish};

/// The most staged events. With more of them a flush writes fewer pages for each, but queries read them all.
const MAX_EVENTS: i64 = 16_000;
/// Events that make a flush due, so that further batches have capacity meanwhile.
const FLUSH_AT_EVENTS: i64 = MAX_EVENTS / 2;
/// Time after which a flush is due.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// Time for which a batch waits for capacity. Then it bypasses the staging table.
const CAPACITY_TIMEOUT: Duration = Duration::from_secs(1);
/// A larger batch fills pages of the main table by itself.
const MAX_BATCH_EVENTS: usize = 4_000;
/// Larger events, on average of a batch, fill pages by themselves. This bounds the bytes of the staging file, too.
const MAX_MEAN_BYTES: usize = 4 << 10;

/// No number is used twice. `event_staging_id` distinguishes this file from its predecessors, which had the same
/// numbers.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS staging.event_staging (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        timestamp INTEGER NOT NULL,
        id BLOB NOT NULL,
        session_id TEXT NOT NULL,
        category TEXT NOT NULL,
        name TEXT NOT NULL,
        origin TEXT NOT NULL,
        data TEXT NOT NULL,
        received_at INTEGER NOT NULL,
        UNIQUE (timestamp, id)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS staging.event_staging_delta (number INTEGER PRIMARY KEY, delta TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS staging.event_staging_id (id INTEGER PRIMARY KEY) STRICT;
    INSERT INTO event_staging_id SELECT random() WHERE NOT EXISTS (SELECT 1 FROM event_staging_id);
";

/// The number of the last flushed event.
macro_rules! flushed {
    () => {
        "COALESCE((SELECT number FROM event_staging_flushed WHERE staging = (SELECT id FROM event_staging_id)), 0)"
    };
}

/// The number of the last event that was ever staged in this file.
macro_rules! last {
    () => {
        "COALESCE((SELECT seq FROM staging.sqlite_sequence WHERE name = 'event_staging'), 0)"
    };
}

/// Skips the numbers that a file restored from an older copy has used before.
const SKIP_FLUSHED: &str = concat!(
    "INSERT INTO staging.sqlite_sequence (name, seq)
        SELECT 'event_staging', 0 WHERE NOT EXISTS (SELECT 1 FROM staging.sqlite_sequence WHERE name = 'event_staging');
    UPDATE staging.sqlite_sequence SET seq = MAX(seq, ",
    flushed!(),
    ") WHERE name = 'event_staging'",
);

macro_rules! select_staged {
    () => {
        concat!("SELECT ", event_columns!(), " FROM event_staging WHERE +number > ", flushed!())
    };
}

/// Makes the tables of both files look like one, on a connection that only reads.
pub(super) const READ_BOTH: &str = concat!(
    "CREATE TEMP VIEW event_staged AS ",
    select_staged!(),
    "; CREATE TEMP VIEW event AS SELECT ",
    event_columns!(),
    " FROM main.event UNION ALL ",
    select_staged!(),
    "; CREATE TEMP VIEW event_count_delta AS
        SELECT delta FROM main.event_count_delta
        UNION ALL
        SELECT delta FROM event_staging_delta WHERE number > ",
    flushed!(),
);

/// Stores the delta of the batch, whose last event has the highest number, and ends the transaction. The delta is NULL,
/// which its column refuses, when the main table knows an event of the batch, or when an operator's trigger or unique
/// index there has to check the events before they are acknowledged.
const COUNT_AND_COMMIT: &str = "; INSERT INTO event_staging_delta (number, delta) SELECT number, CASE WHEN EXISTS (
    SELECT 1 FROM event_staging AS new
    CROSS JOIN event AS known ON known.timestamp = new.timestamp AND known.id = new.id
    WHERE new.number > last.number - ?
) OR EXISTS (
    SELECT 1 FROM main.sqlite_schema WHERE tbl_name = 'event' AND (type = 'trigger' OR sql LIKE 'CREATE UNIQUE %')
) THEN NULL ELSE ? END FROM (SELECT MAX(number) AS number FROM event_staging) AS last; COMMIT";

// A batch is one transaction of as few texts as possible, since each one is a round trip to SQLite's thread. It locks
// the staging file first, and no other.
static FIRST: LazyLock<BulkStatements> = LazyLock::new(|| inserts("BEGIN; ", ""));
static NEXT: LazyLock<BulkStatements> = LazyLock::new(|| inserts("", ""));
static LAST: LazyLock<BulkStatements> = LazyLock::new(|| inserts("", COUNT_AND_COMMIT));
static ONLY: LazyLock<BulkStatements> = LazyLock::new(|| inserts("BEGIN; ", COUNT_AND_COMMIT));

fn inserts(before: &str, after: &str) -> BulkStatements {
    BulkStatements::insert_events(&format!("{before}INSERT OR FAIL INTO event_staging"), after)
}

/// Both files have the same event only after one of them was restored from a copy.
const FLUSH_EVENTS: &str = concat!(
    "INSERT OR FAIL INTO event (",
    event_columns!(),
    ") SELECT ",
    event_columns!(),
    " FROM event_staging WHERE number > ",
    flushed!(),
    " ORDER BY number ON CONFLICT (timestamp, id) DO NOTHING",
);
const FLUSH_DELTAS: &str = concat!(
    "INSERT INTO event_count_delta (delta) SELECT delta FROM event_staging_delta WHERE number > ",
    flushed!(),
    " ORDER BY number",
);
const SET_FLUSHED: &str = concat!(
    "INSERT INTO event_staging_flushed (staging, number) SELECT id, ",
    last!(),
    " FROM event_staging_id WHERE true ON CONFLICT (staging) DO UPDATE SET number = excluded.number
    RETURNING staging, number",
);
const DELETE_FLUSHED: &str = "DELETE FROM event_staging WHERE number <= ?";
const DELETE_FLUSHED_DELTAS: &str = "DELETE FROM event_staging_delta WHERE number <= ?";

/// The staging table of one program.
pub(super) struct StagingTable {
    state: Mutex<StagingState>,
    /// Notified when a flush is due at once.
    flush_requested: Notify,
    /// Notified after a flush.
    capacity_freed: Notify,
    /// Permit of the one that writes to the file. SQLite would let the others poll for the lock.
    write_permit: Semaphore,
}

struct StagingState {
    /// The file's id, once it was opened.
    id: Option<i64>,
    /// Numbers of the last staged and of the last flushed event.
    last: i64,
    flushed: i64,
    last_flush_failed: bool,
}

impl StagingState {
    fn pending(&self) -> i64 {
        self.last - self.flushed
    }
}

impl StagingTable {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(StagingState { id: None, last: 0, flushed: 0, last_flush_failed: false }),
            flush_requested: Notify::new(),
            capacity_freed: Notify::new(),
            write_permit: Semaphore::new(1),
        }
    }

    fn state(&self) -> MutexGuard<'_, StagingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates missing tables, and reads the state of the attached file.
    pub(super) async fn open(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let has_tables = "SELECT 1 FROM staging.sqlite_schema WHERE name = 'event_staging_id'";
        if sqlx::query(has_tables).fetch_optional(&mut *connection).await?.is_none() {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let created = transaction.execute(SCHEMA).await.map(drop);
            finish(transaction, created).await?;
        }
        let is_migrated = "SELECT 1 FROM main.sqlite_schema WHERE name = 'event_staging_flushed'";
        let flushed = match sqlx::query(is_migrated).fetch_optional(&mut *connection).await? {
            Some(_) => sqlx::query_scalar(concat!("SELECT ", flushed!())).fetch_one(&mut *connection).await?,
            None => 0,
        };
        let sql = concat!("SELECT id, ", last!(), " FROM event_staging_id");
        let (id, mut last) = sqlx::query_as(sql).fetch_one(&mut *connection).await?;
        if last < flushed {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let skipped = transaction.execute(SKIP_FLUSHED).await.map(drop);
            finish(transaction, skipped).await?;
            last = flushed;
        }
        let mut state = self.state();
        if state.id != Some(id) {
            (state.id, state.last, state.flushed) = (Some(id), 0, 0);
        }
        // Another connection may have stored or flushed more since.
        state.last = state.last.max(last);
        state.flushed = state.flushed.max(flushed);
        Ok(())
    }

    /// Returns true when the main file has every event that this program knows to be staged. Then a missing staging
    /// file may be recreated. Another process may have flushed the events and removed the file.
    pub(super) async fn is_flushed(&self, main: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        let (id, last) = match &*self.state() {
            StagingState { id: Some(id), last, flushed, .. } if flushed < last => (*id, *last),
            _ => return Ok(true),
        };
        let sql = "SELECT number FROM main.event_staging_flushed WHERE staging = ?";
        let flushed: Option<i64> = sqlx::query_scalar(sql).bind(id).fetch_optional(main).await?;
        Ok(flushed.is_some_and(|flushed| flushed >= last))
    }

    /// Returns true when all events of the file were flushed, as far as this program knows. `staging` has opened that
    /// file alone.
    pub(super) async fn is_removable(&self, staging: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        let (id, flushed) = {
            let state = self.state();
            (state.id, state.flushed)
        };
        let sql = "SELECT id IS ? AND NOT EXISTS (SELECT 1 FROM event_staging WHERE number > ?) FROM event_staging_id";
        sqlx::query_scalar(sql).bind(id).bind(flushed).fetch_one(staging).await
    }

    /// Returns true when the batch should be staged. Waits for capacity, but not long.
    pub(super) async fn accepts(&self, batch: &[Event], expected: Expected) -> bool {
        expected == Expected::AllNew
            && batch.len() <= MAX_BATCH_EVENTS
            && batch.iter().map(Event::size_bytes).sum::<usize>() <= batch.len() * MAX_MEAN_BYTES
            && self.has_capacity(batch.len() as i64).await
    }

    async fn has_capacity(&self, events: i64) -> bool {
        let deadline = Instant::now() + CAPACITY_TIMEOUT;
        loop {
            let capacity_freed = self.capacity_freed.notified();
            tokio::pin!(capacity_freed);
            capacity_freed.as_mut().enable();
            if self.state().pending() + events <= MAX_EVENTS {
                return true;
            }
            self.flush_requested.notify_one();
            if self.state().last_flush_failed || timeout_at(deadline, capacity_freed).await.is_err() {
                return false;
            }
        }
    }

    /// Stages a batch with its delta. Returns false, and stores nothing, when the batch has to bypass the staging
    /// table: the main table knows an event of it, or has an operator's trigger or unique index.
    pub(super) async fn insert(&self, connection: &mut SqliteConnection, batch: &[Event]) -> Result<bool, sqlx::Error> {
        let _permit = self.write_permit.acquire().await;
        match insert_and_count(connection, batch).await {
            Ok(last) => {
                let mut state = self.state();
                state.last = last;
                if state.pending() >= FLUSH_AT_EVENTS {
                    self.flush_requested.notify_one();
                }
                Ok(true)
            }
            Err(error) => {
                // SQLite rolls some transactions back itself. Its error here would hide the first one.
                drop(sqlx::query("ROLLBACK").execute(connection).await);
                if must_bypass(&error) { Ok(false) } else { Err(error) }
            }
        }
    }

    pub(super) fn needs_flush(&self) -> bool {
        self.state().pending() > 0
    }

    pub(super) async fn flush_due(&self) {
        drop(timeout(FLUSH_EVERY, self.flush_requested.notified()).await);
    }

    /// Copies all staged events to the main table, then deletes them here.
    pub(super) async fn flush(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let copied = copy(connection).await;
        let flushed = {
            let mut state = self.state();
            state.last_flush_failed = copied.is_err();
            let (id, flushed) = copied?;
            // Another staging file may have been opened meanwhile.
            if state.id == Some(id) {
                state.flushed = flushed;
            }
            flushed
        };
        self.capacity_freed.notify_waiters();
        let _permit = self.write_permit.acquire().await;
        let mut transaction = connection.begin().await?;
        let deleted = delete(&mut transaction, flushed).await;
        finish(transaction, deleted).await
    }
}

/// Runs the transaction of a batch. Returns the number of its last event.
async fn insert_and_count(connection: &mut SqliteConnection, batch: &[Event]) -> Result<i64, sqlx::Error> {
    let delta = deltas(batch, usize::MAX).concat();
    let mut rows = batch;
    loop {
        let is_first = rows.len() == batch.len();
        let is_last = NEXT.first(rows, rows.len()).is_none_or(|statement| statement.rows.len() == rows.len());
        let statements = match (is_first, is_last) {
            (true, false) => &FIRST,
            (false, false) => &NEXT,
            (false, true) => &LAST,
            (true, true) => &ONLY,
        };
        let statement = statements.first(rows, rows.len()).expect("a batch has events");
        rows = &rows[statement.rows.len()..];
        let mut query = bind(statement);
        if is_last {
            query = query.bind(batch.len() as i64).bind(delta.as_str());
        }
        let result = query.execute(&mut *connection).await?;
        if is_last {
            return Ok(result.last_insert_rowid());
        }
    }
}

/// Returns true for the error of a NULL delta, see [`COUNT_AND_COMMIT`].
fn must_bypass(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.kind() == sqlx::error::ErrorKind::NotNullViolation && error.message().contains("event_staging_delta")
    })
}

/// Copies events and deltas in one transaction. Returns the file's id and the number of the last copied event.
async fn copy(connection: &mut SqliteConnection) -> Result<(i64, i64), sqlx::Error> {
    let mut transaction = connection.begin_with(BEGIN_ON_MAIN).await?;
    let copying = async {
        sqlx::query(FLUSH_EVENTS).execute(&mut *transaction).await?;
        sqlx::query(FLUSH_DELTAS).execute(&mut *transaction).await?;
        sqlx::query_as(SET_FLUSHED).fetch_one(&mut *transaction).await
    };
    let copied = copying.await;
    finish(transaction, copied).await
}

async fn delete(transaction: &mut SqliteConnection, flushed: i64) -> Result<(), sqlx::Error> {
    for sql in [DELETE_FLUSHED, DELETE_FLUSHED_DELTAS] {
        sqlx::query(sql).bind(flushed).execute(&mut *transaction).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use eye_core::testkit::events;

    use super::*;

    #[tokio::test]
    async fn batch_waits_for_capacity_unless_flushing_fails() {
        let (staging, batch) = (StagingTable::new(), events(0, 2));
        staging.state().last = MAX_EVENTS - 1;
        {
            let accepted = staging.accepts(&batch, Expected::AllNew);
            tokio::pin!(accepted);
            assert!(timeout(Duration::ZERO, &mut accepted).await.is_err(), "one event too many");
            staging.state().flushed = 1;
            staging.capacity_freed.notify_waiters();
            assert!(accepted.await);
        }
        staging.state().last += 1;
        staging.state().last_flush_failed = true;
        let accepted = timeout(Duration::ZERO, staging.accepts(&batch, Expected::AllNew)).await;
        assert!(matches!(accepted, Ok(false)), "it waits, or is accepted: {accepted:?}");
    }
}

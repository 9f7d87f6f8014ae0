//! The inbox: a file of its own, in which batches are stored one by one, and from which many events at once go to where the
//! indexes are, while others arrive.
//!
//! Its events are numbered, and the table `event_inbox_flushed` in the file of the events says up to which they were
//! brought there, in the transaction that did it. So an event is always in exactly one of both: in the inbox while its
//! number is larger, and in the other file from then on, whether or not it was removed here by then.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use eye_core::event::Event;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Executor};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::insert::bind;
use super::{BEGIN_ON_EVENTS, Expected, end};
use crate::sql::counts::deltas;
use crate::sql::write::Shapes;

/// Events that it has at most. The more are moved at once, the more of them share a page of the other file; but queries look
/// through them.
const MAX_EVENTS: i64 = 16_000;
/// They are moved at so many, to have room for those that come meanwhile,
const FLUSH_AT_EVENTS: i64 = MAX_EVENTS / 2;
/// or after this time.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// How long a batch waits for room before it goes past the inbox.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
/// A larger batch shares pages enough by itself, and would be written twice for nothing.
const MAX_BATCH_EVENTS: usize = 4_000;
/// Larger events, in the mean of a batch, are many pages themselves, which would be written twice. It bounds the bytes of
/// the inbox, too.
const MAX_MEAN_BYTES: usize = 4 << 10;

/// Numbers are never given again, and `event_inbox_id` tells this inbox from another one, which numbers anew.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS inbox.event_inbox (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        timestamp INTEGER NOT NULL,
        id BLOB NOT NULL,
        session_id TEXT NOT NULL,
        category TEXT NOT NULL,
        name TEXT NOT NULL,
        data TEXT NOT NULL,
        received_at INTEGER NOT NULL,
        UNIQUE (timestamp, id)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS inbox.event_inbox_delta (number INTEGER PRIMARY KEY, delta TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS inbox.event_inbox_id (id INTEGER PRIMARY KEY) STRICT;
    INSERT INTO event_inbox_id SELECT random() WHERE NOT EXISTS (SELECT 1 FROM event_inbox_id);
";

/// The number of the last event that was brought to the other file.
macro_rules! flushed {
    () => {
        "COALESCE((SELECT number FROM event_inbox_flushed WHERE inbox = (SELECT id FROM event_inbox_id)), 0)"
    };
}

/// An inbox that was put back from an older copy goes on with numbers that are not yet given.
const SKIP_FLUSHED: &str = concat!(
    "INSERT INTO inbox.sqlite_sequence (name, seq)
        SELECT 'event_inbox', 0 WHERE NOT EXISTS (SELECT 1 FROM inbox.sqlite_sequence WHERE name = 'event_inbox');
    UPDATE inbox.sqlite_sequence SET seq = MAX(seq, ",
    flushed!(),
    ") WHERE name = 'event_inbox'",
);

/// The number of the last event that was ever in the inbox.
macro_rules! last {
    () => {
        "COALESCE((SELECT seq FROM inbox.sqlite_sequence WHERE name = 'event_inbox'), 0)"
    };
}

/// Names the tables of both files as one: to be run on connections that only read.
pub(super) const READ_BOTH: &str = concat!(
    "CREATE TEMP VIEW event_waiting AS
        SELECT timestamp, id, session_id, category, name, data, received_at FROM event_inbox WHERE +number > ",
    flushed!(),
    ";
    CREATE TEMP VIEW event AS
        SELECT timestamp, id, session_id, category, name, data, received_at FROM main.event
        UNION ALL
        SELECT timestamp, id, session_id, category, name, data, received_at FROM event_inbox WHERE +number > ",
    flushed!(),
    ";
    CREATE TEMP VIEW event_count_delta AS
        SELECT delta FROM main.event_count_delta
        UNION ALL
        SELECT delta FROM event_inbox_delta WHERE number > ",
    flushed!(),
);

/// Counts the batch, whose last event has the highest number, and ends the transaction. There is nothing to count it by, which
/// no column of the table may lack, when the other file has an event of it, or when somebody added rules of their own to that
/// file, a trigger or a unique index, which are to be asked at once.
const COUNT_AND_COMMIT: &str = "; INSERT INTO event_inbox_delta (number, delta) SELECT number, CASE WHEN EXISTS (
    SELECT 1 FROM event_inbox AS new CROSS JOIN event AS known ON known.timestamp = new.timestamp AND known.id = new.id
    WHERE new.number > last.number - ?
) OR EXISTS (
    SELECT 1 FROM main.sqlite_schema WHERE tbl_name = 'event' AND (type = 'trigger' OR sql LIKE 'CREATE UNIQUE %')
) THEN NULL ELSE ? END FROM (SELECT MAX(number) AS number FROM event_inbox) AS last; COMMIT";

/// A batch is one transaction of as few texts as can be, each of which is a way to SQLite's thread and back. It begins by
/// locking the inbox, and locks nothing else.
static FIRST: LazyLock<Shapes> = LazyLock::new(|| insert_shapes("BEGIN; ", ""));
static NEXT: LazyLock<Shapes> = LazyLock::new(|| insert_shapes("", ""));
static LAST: LazyLock<Shapes> = LazyLock::new(|| insert_shapes("", COUNT_AND_COMMIT));
static ONLY: LazyLock<Shapes> = LazyLock::new(|| insert_shapes("BEGIN; ", COUNT_AND_COMMIT));

fn insert_shapes(before: &str, after: &str) -> Shapes {
    Shapes::of_inserts(&format!("{before}INSERT OR FAIL INTO event_inbox"), after)
}

/// No event is in both files, unless one of them was put back from a copy.
const FLUSH_EVENTS: &str = concat!(
    "INSERT OR FAIL INTO event (timestamp, id, session_id, category, name, data, received_at)
    SELECT timestamp, id, session_id, category, name, data, received_at FROM event_inbox WHERE number > ",
    flushed!(),
    " ORDER BY number ON CONFLICT (timestamp, id) DO NOTHING",
);
const FLUSH_DELTAS: &str = concat!(
    "INSERT INTO event_count_delta (delta) SELECT delta FROM event_inbox_delta WHERE number > ",
    flushed!(),
    " ORDER BY number",
);
const SET_FLUSHED: &str = concat!(
    "INSERT INTO event_inbox_flushed (inbox, number) SELECT id, ",
    last!(),
    " FROM event_inbox_id WHERE true ON CONFLICT (inbox) DO UPDATE SET number = excluded.number RETURNING inbox, number",
);
const DELETE_FLUSHED: &str = "DELETE FROM event_inbox WHERE number <= ?";
const DELETE_FLUSHED_DELTAS: &str = "DELETE FROM event_inbox_delta WHERE number <= ?";

pub(super) struct Inbox {
    state: Mutex<State>,
    /// Told when it should be emptied at once.
    is_wanted: Notify,
    /// Told when it was emptied.
    has_room: Notify,
    /// Who writes to its file. SQLite would let the others ask again and again.
    turn: Semaphore,
}

/// Numbers of events.
struct State {
    /// Of which inbox, once it was opened.
    id: Option<i64>,
    /// Of the last one that was stored.
    last: i64,
    /// Of the last one that was brought to the other file.
    flushed: i64,
    /// Whether they could not be brought there the last time.
    is_stuck: bool,
}

impl State {
    /// Those that are still to be brought to the other file.
    fn waiting(&self) -> i64 {
        self.last - self.flushed
    }
}

impl Inbox {
    pub(super) fn new() -> Self {
        let state = State { id: None, last: 0, flushed: 0, is_stuck: false };
        Self { state: Mutex::new(state), is_wanted: Notify::new(), has_room: Notify::new(), turn: Semaphore::new(1) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds out what it has, and creates its tables where they are missing.
    pub(super) async fn open(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let is_there = "SELECT 1 FROM inbox.sqlite_schema WHERE name = 'event_inbox_id'";
        if sqlx::query(is_there).fetch_optional(&mut *connection).await?.is_none() {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let created = transaction.execute(SCHEMA).await.map(drop);
            end(transaction, created).await?;
        }
        let is_migrated = "SELECT 1 FROM main.sqlite_schema WHERE name = 'event_inbox_flushed'";
        let flushed = match sqlx::query(is_migrated).fetch_optional(&mut *connection).await? {
            Some(_) => sqlx::query_scalar(concat!("SELECT ", flushed!())).fetch_one(&mut *connection).await?,
            None => 0,
        };
        let sql = concat!("SELECT id, ", last!(), " FROM event_inbox_id");
        let (id, mut last) = sqlx::query_as(sql).fetch_one(&mut *connection).await?;
        if last < flushed {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let skipped = transaction.execute(SKIP_FLUSHED).await.map(drop);
            end(transaction, skipped).await?;
            last = flushed;
        }
        let mut state = self.state();
        if state.id != Some(id) {
            (state.id, state.last, state.flushed) = (Some(id), 0, 0);
        }
        // Another connection may have stored, or flushed, since.
        state.last = state.last.max(last);
        state.flushed = state.flushed.max(flushed);
        Ok(())
    }

    /// Whether the batch is to go into the inbox. Waits until it has room, if that is soon.
    pub(super) async fn admits(&self, batch: &[Event], expected: Expected) -> bool {
        expected == Expected::AllNew
            && batch.len() <= MAX_BATCH_EVENTS
            && batch.iter().map(Event::size_bytes).sum::<usize>() <= batch.len() * MAX_MEAN_BYTES
            && self.gets_room_for(batch.len() as i64).await
    }

    async fn gets_room_for(&self, events: i64) -> bool {
        let deadline = Instant::now() + ROOM_TIMEOUT;
        loop {
            let has_room = self.has_room.notified();
            tokio::pin!(has_room);
            has_room.as_mut().enable();
            if self.state().waiting() + events <= MAX_EVENTS {
                return true;
            }
            self.is_wanted.notify_one();
            if self.state().is_stuck || timeout_at(deadline, has_room).await.is_err() {
                return false;
            }
        }
    }

    /// Stores the batch, and counts it. False when it has to be stored past the inbox: an event of it was brought to the
    /// other file before, or the database has rules of its own for events.
    pub(super) async fn store(&self, connection: &mut SqliteConnection, batch: &[Event]) -> Result<bool, sqlx::Error> {
        let _turn = self.turn.acquire().await;
        match insert_and_count(connection, batch).await {
            Ok(last) => {
                let mut state = self.state();
                state.last = last;
                if state.waiting() >= FLUSH_AT_EVENTS {
                    self.is_wanted.notify_one();
                }
                Ok(true)
            }
            Err(error) => {
                // SQLite may have done it by itself, because of the error that matters.
                drop(sqlx::query("ROLLBACK").execute(connection).await);
                if goes_past(&error) { Ok(false) } else { Err(error) }
            }
        }
    }

    pub(super) fn has_to_flush(&self) -> bool {
        self.state().waiting() > 0
    }

    pub(super) async fn until_flush(&self) {
        drop(timeout(FLUSH_EVERY, self.is_wanted.notified()).await);
    }

    /// Brings all to where the indexes are, and then removes it here.
    pub(super) async fn flush(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let copied = copy(connection).await;
        let flushed = {
            let mut state = self.state();
            state.is_stuck = copied.is_err();
            let (id, flushed) = copied?;
            // Meanwhile another one may have been opened.
            if state.id == Some(id) {
                state.flushed = flushed;
            }
            flushed
        };
        self.has_room.notify_waiters();
        let _turn = self.turn.acquire().await;
        let mut transaction = connection.begin().await?;
        let deleted = delete(&mut transaction, flushed).await;
        end(transaction, deleted).await
    }
}

/// A transaction. Says the number of its last event.
async fn insert_and_count(connection: &mut SqliteConnection, batch: &[Event]) -> Result<i64, sqlx::Error> {
    let delta = deltas(batch, usize::MAX).concat();
    let mut rows = batch;
    loop {
        let is_first = rows.len() == batch.len();
        let is_last = NEXT.step(rows, rows.len()).is_none_or(|step| step.rows.len() == rows.len());
        let shapes = match (is_first, is_last) {
            (true, false) => &FIRST,
            (false, false) => &NEXT,
            (false, true) => &LAST,
            (true, true) => &ONLY,
        };
        let step = shapes.step(rows, rows.len()).expect("a batch has events");
        rows = &rows[step.rows.len()..];
        let mut query = bind(step);
        if is_last {
            query = query.bind(batch.len() as i64).bind(delta.as_str());
        }
        let result = query.execute(&mut *connection).await?;
        if is_last {
            return Ok(result.last_insert_rowid());
        }
    }
}

/// Whether it is the one by which [`COUNT_AND_COMMIT`] ends.
fn goes_past(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.kind() == sqlx::error::ErrorKind::NotNullViolation && error.message().contains("event_inbox_delta")
    })
}

/// A transaction. Says of which inbox, and up to which number.
async fn copy(connection: &mut SqliteConnection) -> Result<(i64, i64), sqlx::Error> {
    let mut transaction = connection.begin_with(BEGIN_ON_EVENTS).await?;
    let copied = copy_all(&mut transaction).await;
    end(transaction, copied).await
}

async fn copy_all(transaction: &mut SqliteConnection) -> Result<(i64, i64), sqlx::Error> {
    sqlx::query(FLUSH_EVENTS).execute(&mut *transaction).await?;
    sqlx::query(FLUSH_DELTAS).execute(&mut *transaction).await?;
    sqlx::query_as(SET_FLUSHED).fetch_one(transaction).await
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
    async fn a_batch_waits_for_room_unless_none_is_made() {
        let (inbox, batch) = (Inbox::new(), events(0, 2));
        inbox.state().last = MAX_EVENTS - 1;
        {
            let admitted = inbox.admits(&batch, Expected::AllNew);
            tokio::pin!(admitted);
            assert!(timeout(Duration::ZERO, &mut admitted).await.is_err(), "one event too many");
            inbox.state().flushed = 1;
            inbox.has_room.notify_waiters();
            assert!(admitted.await);
        }
        inbox.state().last += 1;
        inbox.state().is_stuck = true;
        let admitted = timeout(Duration::ZERO, inbox.admits(&batch, Expected::AllNew)).await;
        assert!(matches!(admitted, Ok(false)), "it waits, or is admitted: {admitted:?}");
    }
}

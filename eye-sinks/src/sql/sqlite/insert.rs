//! Storing what is new of a batch: first in the inbox, from which many events at once go to where the indexes are.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eye_core::event::Event;
use eye_core::mutant;
use eye_core::store::EventKey;
use eye_core::timestamp::Timestamp;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::super::error;
use super::super::write::{FIND, Shapes, Step, without};
use super::Expected;

/// Events that the inbox has at most. The more, the less often a page is written; but moving them holds up the batches that
/// come meanwhile, and queries look through them.
const MAX_EVENTS: i64 = 8_000;
/// They are moved so often, so that fewer events hold up others for less time,
const MOVE_EVERY: Duration = Duration::from_millis(150);
/// unless they are so few that they had better share pages with those that follow.
const MIN_EVENTS: i64 = 128;
/// A larger batch shares pages enough by itself, and would be written twice for nothing.
const MAX_BATCH_EVENTS: usize = 4_000;
/// Larger events, in the mean of a batch, are many pages themselves, which would be written twice. It bounds the bytes of
/// the inbox, too.
const MAX_MEAN_BYTES: usize = 4 << 10;
/// After an error the events stay in the inbox for so long.
const MOVE_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// `OR FAIL` leaves the rows before one that is refused, which the rollback takes away. Without it SQLite keeps a copy of
/// each page that a statement changes, in a file as soon as they are many, which takes a third of the time.
static INSERT_INTO_INBOX: LazyLock<Shapes> = LazyLock::new(|| Shapes::of_inserts("INSERT OR FAIL INTO event_inbox"));
static INSERT_INDEXED: LazyLock<Shapes> = LazyLock::new(|| Shapes::of_inserts("INSERT OR FAIL INTO event_indexed"));

/// Takes those events back that are indexed already.
const DELETE_KNOWN: &str = "DELETE FROM event_inbox WHERE number > ? AND EXISTS (
    SELECT 1 FROM event_indexed AS known WHERE known.timestamp = event_inbox.timestamp AND known.id = event_inbox.id
) RETURNING timestamp, id";

const COPY: &str = "INSERT OR FAIL INTO event_indexed (timestamp, id, session_id, category, name, data, received_at)
    SELECT timestamp, id, session_id, category, name, data, received_at FROM event_inbox ORDER BY timestamp, id";
/// Which takes whole pages away.
const DELETE_ALL: &str = "DELETE FROM event_inbox";

/// The table `event_inbox`.
pub(super) struct Inbox {
    path: PathBuf,
    state: Mutex<State>,
}

/// What is known of it, without asking.
struct State {
    /// Events in it. Another process may write to it as well.
    events: i64,
    moved_at: Instant,
    /// Nothing is moved before.
    may_move_from: Instant,
}

impl State {
    /// Whether its events are to be moved before a batch is stored, in it or past it.
    fn is_due(&self, batch: &[Event], is_for_batch: bool, now: Instant) -> bool {
        let min_events = if is_for_batch { MIN_EVENTS } else { 1 };
        let is_time = self.events >= min_events && now >= self.moved_at + MOVE_EVERY;
        let is_full = is_for_batch && self.events > 0 && !self.has_room_for(batch);
        (is_time || is_full) && now >= self.may_move_from
    }

    fn has_room_for(&self, batch: &[Event]) -> bool {
        self.events + batch.len() as i64 <= MAX_EVENTS
    }
}

impl Inbox {
    /// In this file.
    pub(super) fn new(path: PathBuf) -> Self {
        let now = Instant::now();
        Self { path, state: Mutex::new(State { events: 0, moved_at: now, may_move_from: now }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has is unknown: moving all finds out.
    pub(super) fn forget(&self) {
        self.state().events = MAX_EVENTS;
    }

    /// Whether the batch is to go into the inbox. Moves all out of it before, when it is time or there is no room.
    pub(super) async fn admits(&self, connection: &mut SqliteConnection, batch: &[Event], expected: Expected) -> bool {
        let suits = expected == Expected::AllNew
            && batch.len() <= MAX_BATCH_EVENTS
            && batch.iter().map(Event::size_bytes).sum::<usize>() <= batch.len() * MAX_MEAN_BYTES;
        let is_due = self.state().is_due(batch, suits, Instant::now());
        if is_due {
            self.move_out(connection).await;
        }
        suits && self.state().has_room_for(batch)
    }

    /// Moves all to where the indexes are. When that cannot be done they stay, and the inbox takes no more than it has room
    /// for.
    async fn move_out(&self, connection: &mut SqliteConnection) {
        let moved = move_out(connection).await;
        let (mut state, now) = (self.state(), Instant::now());
        match moved {
            Ok(()) => (state.events, state.moved_at) = (0, now),
            Err(error) => {
                state.may_move_from = now + MOVE_AGAIN_AFTER;
                let (path, error) = (self.path.display(), error::reason(&error));
                tracing::warn!(%path, %error, "events stay in `event_inbox`: they are stored, but storing grows slower");
            }
        }
    }

    /// Stores what is new of the batch, in a transaction. Says which that is.
    pub(super) async fn insert<'a>(
        &self,
        transaction: &mut SqliteConnection,
        batch: &'a [Event],
    ) -> Result<Cow<'a, [Event]>, sqlx::Error> {
        let mut last = 0;
        for step in INSERT_INTO_INBOX.steps(batch) {
            last = insert(transaction, step).await?;
        }
        let first = last - batch.len() as i64;
        let known: Vec<(i64, Uuid)> = sqlx::query_as(DELETE_KNOWN).bind(first).fetch_all(&mut *transaction).await?;
        self.state().events += batch.len() as i64;
        Ok(new(batch, known))
    }
}

async fn move_out(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    match move_all(&mut transaction).await {
        Ok(()) => transaction.commit().await,
        Err(error) => {
            drop(transaction.rollback().await);
            Err(error)
        }
    }
}

async fn move_all(transaction: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query(COPY).execute(&mut *transaction).await?;
    sqlx::query(DELETE_ALL).execute(&mut *transaction).await.map(drop)
}

/// Stores what is new of the batch where the indexes are, in a transaction. Says which that is.
pub(super) async fn insert_indexed<'a>(
    transaction: &mut SqliteConnection,
    batch: &'a [Event],
    expected: Expected,
) -> Result<Cow<'a, [Event]>, sqlx::Error> {
    let is_inbox_empty =
        sqlx::query("SELECT 1 FROM event_inbox LIMIT 1").fetch_optional(&mut *transaction).await?.is_none();
    let mut known = Vec::new();
    if expected == Expected::SomeKnown || !is_inbox_empty {
        for step in FIND.steps(batch) {
            known.extend(find(transaction, step).await?);
        }
    }
    let new = new(batch, known);
    for step in INSERT_INDEXED.steps(&new) {
        insert(transaction, step).await?;
    }
    Ok(new)
}

fn new(batch: &[Event], known: Vec<(i64, Uuid)>) -> Cow<'_, [Event]> {
    if known.is_empty() {
        return Cow::Borrowed(batch);
    }
    let key = |(micros, id)| Some(EventKey { timestamp: Timestamp::from_micros(micros)?, id });
    Cow::Owned(without(batch, &known.into_iter().filter_map(key).collect()))
}

/// Says the number of the last row.
async fn insert(connection: &mut SqliteConnection, step: Step<'_, Event>) -> Result<i64, sqlx::Error> {
    let written_at = if mutant::is("no-unique-key") { Timestamp::now().as_micros() } else { 0 };
    let query = step.rows.iter().fold(sqlx::query(step.sql), |query, event| {
        query
            .bind(event.timestamp().as_micros() ^ written_at)
            .bind(event.id())
            .bind(event.session_id())
            .bind(event.category())
            .bind(event.name())
            .bind(event.data())
            .bind(event.received_at().as_micros())
    });
    query.execute(connection).await.map(|result| result.last_insert_rowid())
}

async fn find(connection: &mut SqliteConnection, step: Step<'_, Event>) -> Result<Vec<(i64, Uuid)>, sqlx::Error> {
    let query = step
        .rows
        .iter()
        .fold(sqlx::query_as(step.sql), |query, event| query.bind(event.timestamp().as_micros()).bind(event.id()));
    query.fetch_all(connection).await
}

#[cfg(test)]
mod tests {
    use eye_core::testkit::events;

    use super::*;

    #[test]
    fn the_inbox_is_emptied_in_time_or_for_want_of_room() {
        let start = Instant::now();
        let [soon, later] = [start + MOVE_EVERY - Duration::from_nanos(1), start + MOVE_EVERY];
        let batch = events(0, 10);
        for (events, now, is_for_batch, is_due) in [
            (MIN_EVENTS, soon, true, false),
            (MIN_EVENTS, later, true, true),
            (MIN_EVENTS - 1, later, true, false),
            (1, later, false, true),
            (1, soon, false, false),
            (0, later, false, false),
            (MAX_EVENTS - 10, soon, true, false),
            (MAX_EVENTS - 9, soon, true, true),
            (MAX_EVENTS - 9, soon, false, false),
        ] {
            let mut state = State { events, moved_at: start, may_move_from: start };
            let case = format!("{events} events after {:?}, for the batch: {is_for_batch}", now - start);
            assert_eq!(state.is_due(&batch, is_for_batch, now), is_due, "{case}");
            state.may_move_from = now + Duration::from_nanos(1);
            assert!(!state.is_due(&batch, is_for_batch, now), "{case}, an error before");
        }
    }
}

//! Storing what is new of a batch: under load in the inbox, from which many events at once go to where the indexes are.

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

/// Events that the inbox has at most. The more, the less often a page is written; but moving them all holds up the batches
/// that come meanwhile, and queries look through them.
const MAX_EVENTS: i64 = 5_000;
/// A batch of so many opens the inbox: it was waited for.
const OPENING_EVENTS: usize = 32;
/// So long the inbox takes smaller ones, too. When it is not full by then, there is time to write to the indexes at once, and
/// nobody is to wait for all to be moved.
const OPEN_FOR: Duration = Duration::from_secs(1);
/// Events that are moved before a batch that goes past it, so that it empties by and by.
const SOME_EVENTS: i64 = 128;
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

const BOUNDS: &str = "SELECT (SELECT MIN(number) FROM event_inbox), (SELECT MAX(number) FROM event_inbox)";
const MOVE: &str = "INSERT OR FAIL INTO event_indexed (timestamp, id, session_id, category, name, data, received_at)
    SELECT timestamp, id, session_id, category, name, data, received_at FROM event_inbox WHERE number <= ?
    ORDER BY timestamp, id";
const DELETE_MOVED: &str = "DELETE FROM event_inbox WHERE number <= ?";
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
    open_until: Instant,
    /// Nothing is moved before.
    may_move_from: Instant,
}

impl State {
    fn is_open_to(&mut self, batch: &[Event], now: Instant) -> bool {
        if batch.len() >= OPENING_EVENTS && now > self.open_until {
            self.open_until = now + OPEN_FOR;
        }
        now <= self.open_until
    }

    fn may_move(&self, now: Instant) -> bool {
        self.events > 0 && now >= self.may_move_from
    }

    fn has_room_for(&self, batch: &[Event]) -> bool {
        self.events + batch.len() as i64 <= MAX_EVENTS
    }
}

impl Inbox {
    /// In this file.
    pub(super) fn new(path: PathBuf) -> Self {
        let now = Instant::now();
        Self { path, state: Mutex::new(State { events: 0, open_until: now, may_move_from: now }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has is unknown: moving some finds out.
    pub(super) fn forget(&self) {
        self.state().events = MAX_EVENTS;
    }

    /// Whether the batch is to go into the inbox. Moves all out of it where there is no room for the batch, and some when the
    /// batch goes past it.
    pub(super) async fn admits(&self, connection: &mut SqliteConnection, batch: &[Event], expected: Expected) -> bool {
        let suits = expected == Expected::AllNew
            && batch.iter().map(Event::size_bytes).sum::<usize>() <= batch.len() * MAX_MEAN_BYTES
            && self.state().is_open_to(batch, Instant::now());
        if suits && self.state().has_room_for(batch) {
            return true;
        }
        self.move_out(connection, if suits { i64::MAX } else { SOME_EVENTS }).await;
        if suits {
            // It was filled in time.
            self.state().open_until = Instant::now() + OPEN_FOR;
        }
        suits && self.state().has_room_for(batch)
    }

    /// Moves the oldest to where the indexes are, at most so many. Those that cannot be moved stay, and the inbox takes no
    /// more than it has room for.
    async fn move_out(&self, connection: &mut SqliteConnection, at_most: i64) {
        if !self.state().may_move(Instant::now()) {
            return;
        }
        match move_out(connection, at_most).await {
            Ok(left) => self.state().events = left,
            Err(error) => {
                self.state().may_move_from = Instant::now() + MOVE_AGAIN_AFTER;
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

/// Says how many are left, at most.
async fn move_out(connection: &mut SqliteConnection, at_most: i64) -> Result<i64, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    match move_oldest(&mut transaction, at_most).await {
        Ok(left) => transaction.commit().await.map(|()| left),
        Err(error) => {
            drop(transaction.rollback().await);
            Err(error)
        }
    }
}

async fn move_oldest(transaction: &mut SqliteConnection, at_most: i64) -> Result<i64, sqlx::Error> {
    let bounds = sqlx::query_as(BOUNDS).fetch_one(&mut *transaction).await?;
    let (Some(first), Some(last)): (Option<i64>, Option<i64>) = bounds else { return Ok(0) };
    let until = last.min(first.saturating_add(at_most - 1));
    sqlx::query(MOVE).bind(until).execute(&mut *transaction).await?;
    let delete = if until == last { sqlx::query(DELETE_ALL) } else { sqlx::query(DELETE_MOVED).bind(until) };
    delete.execute(&mut *transaction).await?;
    Ok(last - until)
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
    fn a_large_batch_opens_the_inbox_for_small_ones() {
        let start = Instant::now();
        let mut state = State { events: 0, open_until: start, may_move_from: start };
        let [small, large] = [31, 32].map(|number| events(0, number));
        let moment = Duration::from_millis(1);
        for (batch, at, is_open) in [
            (&small, moment, false),
            (&large, moment, true),
            (&small, moment + OPEN_FOR, true),
            // Not for longer because of a second one,
            (&large, moment + OPEN_FOR, true),
            (&small, moment * 2 + OPEN_FOR, false),
            // but again.
            (&large, moment * 3 + OPEN_FOR, true),
            (&small, moment * 3 + OPEN_FOR * 2, true),
        ] {
            assert_eq!(state.is_open_to(batch, start + at), is_open, "{} events after {at:?}", batch.len());
        }
    }
}

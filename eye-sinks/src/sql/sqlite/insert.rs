//! Storing what is new of a batch where the indexes are.

use std::borrow::Cow;
use std::sync::LazyLock;

use eye_core::event::Event;
use eye_core::event::EventKey;
use eye_core::mutant;
use eye_core::timestamp::Timestamp;
use sqlx::Sqlite;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use uuid::Uuid;

use super::Expected;
use crate::sql::write::{FIND, Shapes, Step, without};

/// `OR FAIL` leaves the rows before one that is refused, which the rollback takes away. Without it SQLite keeps a copy of
/// each page that a statement changes, in a file as soon as they are many, which takes a third of the time.
static INSERT: LazyLock<Shapes> = LazyLock::new(|| Shapes::of_inserts("INSERT OR FAIL INTO event", ""));
static FIND_IN_INBOX: LazyLock<Shapes> = LazyLock::new(|| Shapes::of_finds("event_inbox"));

/// Says what is new. In a transaction that has locked both files.
pub(super) async fn insert_new<'a>(
    transaction: &mut SqliteConnection,
    batch: &'a [Event],
    expected: Expected,
) -> Result<Cow<'a, [Event]>, sqlx::Error> {
    let is_inbox_empty =
        sqlx::query("SELECT 1 FROM event_inbox LIMIT 1").fetch_optional(&mut *transaction).await?.is_none();
    let mut known = Vec::new();
    if !is_inbox_empty {
        for step in FIND_IN_INBOX.steps(batch) {
            known.extend(find(transaction, step).await?);
        }
    }
    if expected == Expected::SomeKnown {
        for step in FIND.steps(batch) {
            known.extend(find(transaction, step).await?);
        }
    }
    let new = new(batch, known);
    for step in INSERT.steps(&new) {
        bind(step).execute(&mut *transaction).await?;
    }
    Ok(new)
}

/// Those that are not known.
fn new(batch: &[Event], known: Vec<(i64, Uuid)>) -> Cow<'_, [Event]> {
    if known.is_empty() {
        return Cow::Borrowed(batch);
    }
    let key = |(micros, id)| Some(EventKey { timestamp: Timestamp::from_micros(micros)?, id });
    Cow::Owned(without(batch, &known.into_iter().filter_map(key).collect()))
}

/// The statement with the values of its events.
pub(super) fn bind(step: Step<'_, Event>) -> Query<'_, Sqlite, SqliteArguments> {
    let written_at = if mutant::is("no-unique-key") { Timestamp::now().as_micros() } else { 0 };
    step.rows.iter().fold(sqlx::query(step.sql), |query, event| {
        query
            .bind(event.timestamp().as_micros() ^ written_at)
            .bind(event.id())
            .bind(event.session_id())
            .bind(event.category())
            .bind(event.name())
            .bind(event.data())
            .bind(event.received_at().as_micros())
    })
}

async fn find(connection: &mut SqliteConnection, step: Step<'_, Event>) -> Result<Vec<(i64, Uuid)>, sqlx::Error> {
    let query = step
        .rows
        .iter()
        .fold(sqlx::query_as(step.sql), |query, event| query.bind(event.timestamp().as_micros()).bind(event.id()));
    query.fetch_all(connection).await
}

//! Insertion of the new events of a batch into the main table.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use eye_core::event::{Event, EventKey};
use eye_core::mutant;
use eye_core::timestamp::Timestamp;
use sqlx::Sqlite;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use uuid::Uuid;

use super::super::bulk::{BulkStatement, BulkStatements, FIND, without};
use super::super::driver::Expected;
use super::super::entity;

/// `OR FAIL` leaves the rows before a refused one to the rollback. Without it SQLite copies each page that a statement
/// changes, and many pages to a file, which takes a third of the time.
static INSERT: LazyLock<BulkStatements> =
    LazyLock::new(|| BulkStatements::insert_events("INSERT OR FAIL INTO event", ""));
static FIND_STAGED: LazyLock<BulkStatements> = LazyLock::new(|| BulkStatements::find("event_staging"));

/// Inserts the new events and returns them. The transaction must have locked both files.
pub(super) async fn insert_new<'a>(
    transaction: &mut SqliteConnection,
    batch: &'a [Event],
    expected: Expected,
) -> Result<Cow<'a, [Event]>, sqlx::Error> {
    let has_staged =
        sqlx::query("SELECT 1 FROM event_staging LIMIT 1").fetch_optional(&mut *transaction).await?.is_some();
    let mut known = BTreeSet::new();
    for (finds, is_needed) in [(&FIND_STAGED, has_staged), (&FIND, expected == Expected::Duplicates)] {
        for statement in finds.split(batch).filter(|_| is_needed) {
            known.extend(find(transaction, statement).await?);
        }
    }
    let new = if known.is_empty() { Cow::Borrowed(batch) } else { Cow::Owned(without(batch, &known)) };
    for statement in INSERT.split(&new) {
        bind(statement).execute(&mut *transaction).await?;
    }
    Ok(new)
}

/// Binds the values of the events.
pub(super) fn bind(statement: BulkStatement<'_, Event>) -> Query<'_, Sqlite, SqliteArguments> {
    let written_at = if mutant::is("no-unique-key") { Timestamp::now().as_micros() } else { 0 };
    statement.rows.iter().fold(sqlx::query(statement.sql), |query, event| {
        query
            .bind(event.timestamp().as_micros() ^ written_at)
            .bind(event.id())
            .bind(event.session_id())
            .bind(event.category())
            .bind(event.name())
            .bind(entity::origin(event))
            .bind(event.data())
            .bind(event.received_at().as_micros())
    })
}

/// Returns the keys of the events that are in the table.
async fn find(
    connection: &mut SqliteConnection,
    statement: BulkStatement<'_, Event>,
) -> Result<Vec<EventKey>, sqlx::Error> {
    let query = statement
        .rows
        .iter()
        .fold(sqlx::query_as(statement.sql), |query, event| query.bind(event.timestamp().as_micros()).bind(event.id()));
    let keys: Vec<(i64, Uuid)> = query.fetch_all(connection).await?;
    let key = |(micros, id)| Some(EventKey { timestamp: Timestamp::from_micros(micros)?, id });
    Ok(keys.into_iter().filter_map(key).collect())
}

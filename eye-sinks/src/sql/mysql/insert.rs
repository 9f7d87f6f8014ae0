//! Insertion of the new events of a batch.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use chrono::NaiveDateTime;
use eye_core::event::{Event, EventKey};
use eye_core::timestamp::Timestamp;
use sqlx::mysql::MySqlConnection;
use uuid::Uuid;

use super::super::bulk::{BulkStatement, BulkStatements, FIND, MAX_ROWS, without};
use super::super::{entity, error};

/// Bytes of an event in a statement besides its texts.
const EVENT_OVERHEAD_BYTES: usize = 128;

/// A known event is an error, and rare. `INSERT IGNORE` would also ignore values that do not fit. With `ON DUPLICATE
/// KEY` sqlx counts found rows, be they new or not.
static INSERT: LazyLock<BulkStatements> = LazyLock::new(|| BulkStatements::insert_events("INSERT INTO event", ""));

/// Stores the events that are not known, at most `max_bytes` in a statement, and returns them.
pub(super) async fn insert_new<'a>(
    connection: &mut MySqlConnection,
    batch: &'a [Event],
    max_bytes: usize,
) -> Result<Cow<'a, [Event]>, sqlx::Error> {
    let mut known = BTreeSet::new();
    let mut rest = Cow::Borrowed(batch);
    while let Some(statement) = next_statement(&rest, max_bytes) {
        let events = statement.rows.len();
        match insert(connection, statement).await {
            Ok(()) => rest = after(rest, events),
            // Another node may be storing the same events. Those that it commits later fail the next attempt.
            Err(error) if error::is_duplicate(&error) => {
                let known_before = known.len();
                for statement in FIND.split(&rest[..events]) {
                    known.extend(find(connection, statement).await?);
                }
                if known.len() == known_before {
                    // Not the key, but an operator's constraint.
                    return Err(error);
                }
                rest = Cow::Owned(without(&rest, &known));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(if known.is_empty() { Cow::Borrowed(batch) } else { Cow::Owned(without(batch, &known)) })
}

/// Stores events, or none when one is known.
async fn insert(connection: &mut MySqlConnection, statement: BulkStatement<'_, Event>) -> Result<(), sqlx::Error> {
    // Timestamps have no time zone here: sqlx would send a TIMESTAMP, which ends in 2038.
    let query = statement.rows.iter().fold(sqlx::query(statement.sql), |query, event| {
        query
            .bind(event.timestamp().to_chrono().naive_utc())
            .bind(event.id())
            .bind(event.session_id())
            .bind(event.category())
            .bind(event.name())
            .bind(entity::origin(event))
            .bind(event.data())
            .bind(event.received_at().to_chrono().naive_utc())
    });
    query.execute(connection).await.map(drop)
}

/// Returns the keys of the events that are committed.
async fn find(
    connection: &mut MySqlConnection,
    statement: BulkStatement<'_, Event>,
) -> Result<Vec<EventKey>, sqlx::Error> {
    let query = statement.rows.iter().fold(sqlx::query_as(statement.sql), |query, event| {
        query.bind(event.timestamp().to_chrono().naive_utc()).bind(event.id())
    });
    let keys: Vec<(NaiveDateTime, Uuid)> = query.fetch_all(connection).await?;
    let key = |(timestamp, id): (NaiveDateTime, _)| {
        Some(EventKey { timestamp: Timestamp::from_micros(timestamp.and_utc().timestamp_micros())?, id })
    };
    Ok(keys.into_iter().filter_map(key).collect())
}

fn after(events: Cow<'_, [Event]>, done: usize) -> Cow<'_, [Event]> {
    match events {
        Cow::Borrowed(events) => Cow::Borrowed(&events[done..]),
        Cow::Owned(mut events) => Cow::Owned(events.split_off(done)),
    }
}

/// Returns the statement for the first events, at least one of them.
fn next_statement(events: &[Event], max_bytes: usize) -> Option<BulkStatement<'_, Event>> {
    let mut bytes = 0;
    let fits = |event: &&Event| {
        bytes += event.size_bytes() + EVENT_OVERHEAD_BYTES;
        bytes <= max_bytes
    };
    INSERT.first(events, events.iter().take(MAX_ROWS).take_while(fits).count().max(1))
}

#[cfg(test)]
mod tests {
    use eye_core::testkit::event_with;

    use super::*;

    #[test]
    fn statement_exceeds_its_bytes_for_one_event_alone() {
        let lengths = |count, data_bytes, max_bytes| {
            let data = format!("\"{}\"", "x".repeat(data_bytes));
            let events = vec![event_with(0, "n", &data); count];
            let mut rest = &*events;
            let next = || {
                let statement = next_statement(rest, max_bytes)?;
                rest = &rest[statement.rows.len()..];
                Some(statement.rows.len())
            };
            std::iter::from_fn(next).collect::<Vec<_>>()
        };
        assert_eq!(lengths(20, 10_000, 100_000), [8, 8, 4]);
        assert_eq!(lengths(2, 10_000, 100), [1, 1]);
        assert_eq!(lengths(513, 1, usize::MAX), [512, 1]);
    }
}

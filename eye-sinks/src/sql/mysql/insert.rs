//! Storing what is new of a batch.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use chrono::NaiveDateTime;
use eye_core::event::Event;
use eye_core::event::EventKey;
use eye_core::timestamp::Timestamp;
use sqlx::mysql::MySqlConnection;
use uuid::Uuid;

use super::super::error;
use super::super::write::{FIND, MAX_ROWS, Shapes, Step, without};

/// Bytes besides its texts that an event may need in a statement.
const EVENT_OVERHEAD_BYTES: usize = 128;

/// Neither `INSERT IGNORE`, which would also swallow what does not fit, nor `ON DUPLICATE KEY`: sqlx asks for the rows
/// that were found, be they new or not. What is there already is an error, and rare.
static INSERT: LazyLock<Shapes> = LazyLock::new(|| Shapes::of_inserts("INSERT INTO event", ""));

/// Stores those events that are not there yet, `max_bytes` of them in a statement, and says which these are.
pub(super) async fn new<'a>(
    connection: &mut MySqlConnection,
    batch: &'a [Event],
    max_bytes: usize,
) -> Result<Cow<'a, [Event]>, sqlx::Error> {
    let mut known = BTreeSet::new();
    let mut rest = Cow::Borrowed(batch);
    while let Some(step) = next_step(&rest, max_bytes) {
        let events = step.rows.len();
        match insert(connection, step).await {
            Ok(()) => rest = after(rest, events),
            // Another node may be storing the same events: what it has not committed yet is found the next time.
            Err(error) if error::is_duplicate(&error) => {
                let known_before = known.len();
                for step in FIND.steps(&rest[..events]) {
                    known.extend(find(connection, step).await?);
                }
                if known.len() == known_before {
                    // Not the key, but a constraint that the operator made.
                    return Err(error);
                }
                rest = Cow::Owned(without(&rest, &known));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(if known.is_empty() { Cow::Borrowed(batch) } else { Cow::Owned(without(batch, &known)) })
}

/// Stores events; none of them when one is there already.
async fn insert(connection: &mut MySqlConnection, step: Step<'_, Event>) -> Result<(), sqlx::Error> {
    // Instants go without a time zone, because a value with one is sent as a TIMESTAMP, which ends in 2038.
    let query = step.rows.iter().fold(sqlx::query(step.sql), |query, event| {
        query
            .bind(event.timestamp().to_chrono().naive_utc())
            .bind(event.id())
            .bind(event.session_id())
            .bind(event.category())
            .bind(event.name())
            .bind(event.data())
            .bind(event.received_at().to_chrono().naive_utc())
    });
    query.execute(connection).await.map(drop)
}

/// The keys of those events that are there, whoever committed them.
async fn find(connection: &mut MySqlConnection, step: Step<'_, Event>) -> Result<Vec<EventKey>, sqlx::Error> {
    let query = step.rows.iter().fold(sqlx::query_as(step.sql), |query, event| {
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

/// The next statement, and the events that it stores: one at least.
fn next_step(events: &[Event], max_bytes: usize) -> Option<Step<'_, Event>> {
    let mut bytes = 0;
    let fits = |event: &&Event| {
        bytes += event.size_bytes() + EVENT_OVERHEAD_BYTES;
        bytes <= max_bytes
    };
    INSERT.step(events, events.iter().take(MAX_ROWS).take_while(fits).count().max(1))
}

#[cfg(test)]
mod tests {
    use eye_core::testkit::event_with;

    use super::*;

    #[test]
    fn a_statement_stays_within_its_bytes_unless_one_event_exceeds_them() {
        let lengths = |count, data_bytes, max_bytes| {
            let data = format!("\"{}\"", "x".repeat(data_bytes));
            let events = vec![event_with(0, "n", &data); count];
            let mut rest = &*events;
            let step = || {
                let step = next_step(rest, max_bytes)?;
                rest = &rest[step.rows.len()..];
                Some(step.rows.len())
            };
            std::iter::from_fn(step).collect::<Vec<_>>()
        };
        assert_eq!(lengths(20, 10_000, 100_000), [8, 8, 4]);
        assert_eq!(lengths(2, 10_000, 100), [1, 1]);
        assert_eq!(lengths(513, 1, usize::MAX), [512, 1]);
    }
}

//! Statements with many rows of values, for SQLite and MySQL. Their numbers of rows are few and fixed, so that each
//! connection prepares few statements.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use eye_core::event::{Event, EventKey};

/// Numbers of rows, largest first. 512 events have 4,096 values; SQLite takes 32,766, MySQL 65,535. Each is half of the
/// one before, so that a batch needs few statements.
const ROWS: [usize; 10] = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1];
/// The most rows of a statement.
pub(super) const MAX_ROWS: usize = ROWS[0];

/// Finds the keys of events that are stored.
pub(super) static FIND: LazyLock<BulkStatements> = LazyLock::new(|| BulkStatements::find("event"));

/// One statement for each number of rows.
pub(super) struct BulkStatements([String; ROWS.len()]);

impl BulkStatements {
    pub(super) fn new(head: &str, row: &str, separator: &str, tail: &str) -> Self {
        Self(ROWS.map(|rows| format!("{head}{}{tail}", vec![row; rows].join(separator))))
    }

    /// Creates statements that insert events; `insert` is all up to the table's name.
    pub(super) fn insert_events(insert: &str, tail: &str) -> Self {
        Self::new(&format!("{insert} ({}) VALUES ", event_columns!()), "(?,?,?,?,?,?,?,?)", ",", tail)
    }

    /// Creates statements that add rows to `event_count`.
    pub(super) fn insert_counts(on_conflict: &str) -> Self {
        Self::new("INSERT INTO event_count (category, name, period, count) VALUES ", "(?,?,?,?)", ",", on_conflict)
    }

    /// Creates statements that find the keys of events in a table.
    pub(super) fn find(table: &str) -> Self {
        let head = format!("SELECT timestamp, id FROM {table} WHERE ");
        Self::new(&head, "(timestamp = ? AND id = ?)", " OR ", "")
    }

    /// Splits rows among as few statements as possible.
    pub(super) fn split<'a, T>(&'static self, mut rows: &'a [T]) -> impl Iterator<Item = BulkStatement<'a, T>> {
        std::iter::from_fn(move || {
            let statement = self.first(rows, rows.len())?;
            rows = &rows[statement.rows.len()..];
            Some(statement)
        })
    }

    /// Returns the statement for the first of these rows, at most `max_rows` of them. `None` without rows.
    pub(super) fn first<'a, T>(&'static self, rows: &'a [T], max_rows: usize) -> Option<BulkStatement<'a, T>> {
        let index = ROWS.iter().position(|&number| number <= rows.len().min(max_rows))?;
        Some(BulkStatement { sql: &self.0[index], rows: &rows[..ROWS[index]] })
    }
}

/// A statement and its rows.
pub(super) struct BulkStatement<'a, T> {
    pub(super) sql: &'static str,
    pub(super) rows: &'a [T],
}

/// Returns the events whose keys are not known.
pub(super) fn without(events: &[Event], known: &BTreeSet<EventKey>) -> Vec<Event> {
    events.iter().filter(|event| !known.contains(&event.key())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_split_into_the_largest_statements() {
        let lengths =
            |rows: usize| FIND.split(&vec![(); rows]).map(|statement| statement.rows.len()).collect::<Vec<_>>();
        assert_eq!(lengths(512 + 64 + 2 * 8 + 3), [512, 64, 16, 2, 1]);
        assert_eq!(lengths(0), [0; 0]);
    }

    #[test]
    fn statement_has_a_placeholder_for_each_value() {
        let inserts = BulkStatements::insert_events("INSERT INTO event", "");
        for (statements, values) in [(&inserts, event_columns!().split(',').count()), (&FIND, 2)] {
            for (sql, rows) in statements.0.iter().zip(ROWS) {
                assert_eq!(sql.matches('?').count(), rows * values, "{sql}");
            }
        }
    }
}

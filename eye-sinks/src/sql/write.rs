//! Statements of few fixed shapes for the databases that take many rows as one long list of values.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use eye_core::event::Event;
use eye_core::event::EventKey;

/// Rows that a statement may have, largest first. 512 events have 3,584 values; SQLite takes 32,766, MySQL 65,535. Each
/// half of the one before, so that a batch needs few statements.
const SHAPES: [usize; 10] = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1];
/// Rows that a statement has at most.
pub(super) const MAX_ROWS: usize = SHAPES[0];

/// Finds the keys of events that are there.
pub(super) static FIND: LazyLock<Shapes> = LazyLock::new(|| Shapes::of_finds("event"));

/// One statement for each number of rows, prepared once a connection.
pub(super) struct Shapes([String; SHAPES.len()]);

impl Shapes {
    pub(super) fn new(head: &str, row: &str, separator: &str, tail: &str) -> Self {
        Self(SHAPES.map(|rows| format!("{head}{}{tail}", vec![row; rows].join(separator))))
    }

    /// Statements that store events; `insert` is `INSERT INTO` with what may come between, and a table.
    pub(super) fn of_inserts(insert: &str, tail: &str) -> Self {
        let head = format!("{insert} (timestamp, id, session_id, category, name, data, received_at) VALUES ");
        Self::new(&head, "(?,?,?,?,?,?,?)", ",", tail)
    }

    /// Statements that find the keys of events in a table.
    pub(super) fn of_finds(table: &str) -> Self {
        let head = format!("SELECT timestamp, id FROM {table} WHERE ");
        Self::new(&head, "(timestamp = ? AND id = ?)", " OR ", "")
    }

    /// The statement and the rows for each step: as many at once as a shape has.
    pub(super) fn steps<'a, T>(&'static self, mut rows: &'a [T]) -> impl Iterator<Item = Step<'a, T>> {
        std::iter::from_fn(move || {
            let step = self.step(rows, rows.len())?;
            rows = &rows[step.rows.len()..];
            Some(step)
        })
    }

    /// The first step of these rows, with at most so many of them. None when there are none.
    pub(super) fn step<'a, T>(&'static self, rows: &'a [T], at_most: usize) -> Option<Step<'a, T>> {
        let shape = SHAPES.iter().position(|&shape| shape <= rows.len().min(at_most))?;
        Some(Step { sql: &self.0[shape], rows: &rows[..SHAPES[shape]] })
    }
}

/// One statement and its rows.
pub(super) struct Step<'a, T> {
    pub(super) sql: &'static str,
    pub(super) rows: &'a [T],
}

/// Those events whose keys are not among these.
pub(super) fn without(events: &[Event], known: &BTreeSet<EventKey>) -> Vec<Event> {
    events.iter().filter(|event| !known.contains(&event.key())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_into_the_largest_shapes() {
        let lengths = |rows: usize| FIND.steps(&vec![(); rows]).map(|step| step.rows.len()).collect::<Vec<_>>();
        assert_eq!(lengths(512 + 64 + 2 * 8 + 3), [512, 64, 16, 2, 1]);
        assert_eq!(lengths(0), [0; 0]);
    }

    #[test]
    fn a_statement_has_a_value_for_each_place() {
        for (shapes, values) in [(&Shapes::of_inserts("INSERT INTO event", ""), 7), (&*FIND, 2)] {
            for (sql, rows) in shapes.0.iter().zip(SHAPES) {
                assert_eq!(sql.matches('?').count(), rows * values, "{sql}");
            }
        }
    }
}

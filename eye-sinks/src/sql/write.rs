//! Statements of few fixed shapes for the databases that take many rows as one long list of values.

use eye_core::event::Event;

/// Values bound for one event.
const COLUMNS: usize = 7;
/// Rows that a statement may have, largest first. 512 rows have 3,584 values; SQLite takes 32,766, MySQL 65,535. Each
/// half of the one before, so that a batch needs few statements.
const SHAPES: [usize; 10] = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1];
/// Bytes besides its texts that an event may need in a statement.
const EVENT_OVERHEAD_BYTES: usize = 128;

/// `INSERT` statements, one for each number of rows, prepared once a connection.
pub(super) struct InsertStatements([String; SHAPES.len()]);

impl InsertStatements {
    /// `insert` is the verb, and `tail` says what becomes of an event that is there already.
    pub(super) fn new(insert: &str, tail: &str) -> Self {
        let head =
            format!("{insert} INTO event (timestamp, id, session_id, category, name, data, received_at) VALUES ");
        let row = format!("({})", ["?"; COLUMNS].join(","));
        Self(SHAPES.map(|rows| format!("{head}{} {tail}", vec![row.as_str(); rows].join(","))))
    }

    /// The statement and the events for each step of writing the batch: as many at once as a shape has rows and
    /// `max_bytes` allow, but never less than one.
    pub(super) fn steps<'a>(&'static self, mut rest: &'a [Event], max_bytes: usize) -> impl Iterator<Item = Step<'a>> {
        std::iter::from_fn(move || {
            let fitting = rest.len().min(count_within(rest, max_bytes).max(1));
            let shape = SHAPES.iter().position(|&rows| rows <= fitting)?;
            let (events, others) = rest.split_at(SHAPES[shape]);
            rest = others;
            Some(Step { sql: &self.0[shape], events })
        })
    }
}

/// One statement and its events.
pub(super) struct Step<'a> {
    pub(super) sql: &'static str,
    pub(super) events: &'a [Event],
}

/// How many of the first events have at most `max_bytes` together.
fn count_within(events: &[Event], max_bytes: usize) -> usize {
    let mut bytes = 0;
    let fits = |event: &&Event| {
        bytes += event.size_bytes() + EVENT_OVERHEAD_BYTES;
        bytes <= max_bytes
    };
    events.iter().take(SHAPES[0]).take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use eye_core::testkit::event_with;

    use super::*;

    fn events(count: usize, data_bytes: usize) -> Vec<Event> {
        let data = format!("\"{}\"", "x".repeat(data_bytes));
        vec![event_with(0, "n", &data); count]
    }

    fn lengths(events: &[Event], max_bytes: usize) -> Vec<usize> {
        let statements: &'static _ = Box::leak(Box::new(InsertStatements::new("INSERT", "")));
        statements.steps(events, max_bytes).map(|step| step.events.len()).collect()
    }

    #[test]
    fn a_batch_is_cut_into_the_largest_shapes() {
        assert_eq!(lengths(&events(512 + 64 + 2 * 8 + 3, 1), usize::MAX), [512, 64, 16, 2, 1]);
        assert_eq!(lengths(&events(0, 1), usize::MAX), [0; 0]);
    }

    #[test]
    fn a_statement_stays_within_its_bytes_unless_one_event_exceeds_them() {
        assert_eq!(lengths(&events(20, 10_000), 100_000), [8, 8, 4]);
        assert_eq!(lengths(&events(2, 10_000), 100), [1, 1]);
    }

    #[test]
    fn a_statement_has_seven_values_a_row() {
        let statements = InsertStatements::new("INSERT", "TAIL");
        for (sql, rows) in statements.0.iter().zip(SHAPES) {
            assert_eq!(sql.matches('?').count(), rows * COLUMNS);
            assert!(sql.ends_with(") TAIL"));
        }
    }
}

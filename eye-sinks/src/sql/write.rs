//! Statements of few fixed shapes for the databases that take many rows as one long list of values.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use eye_core::event::Event;
use eye_core::store::EventKey;

/// Rows that a statement may have, largest first. 512 events have 3,584 values; SQLite takes 32,766, MySQL 65,535.
const SHAPES: [usize; 4] = [512, 64, 8, 1];
/// Bytes besides its texts that an event may need in a statement.
const EVENT_OVERHEAD_BYTES: usize = 128;

/// The statements that writing takes, beside the one that folds counts. Plain `INSERT`s: what is there already is an
/// error, and rare.
pub(super) struct Statements {
    /// Stores events.
    pub(super) insert: Shapes,
    /// Finds the keys of events that are there.
    pub(super) find: Shapes,
    /// Says how many events were stored.
    pub(super) count: Shapes,
}

pub(super) static STATEMENTS: LazyLock<Statements> = LazyLock::new(Statements::new);

impl Statements {
    fn new() -> Self {
        let values = |columns: usize| format!("({})", vec!["?"; columns].join(","));
        Self {
            insert: Shapes::new(
                "INSERT INTO event (timestamp, id, session_id, category, name, data, received_at) VALUES ",
                &values(7),
                ",",
                "",
            ),
            find: Shapes::new("SELECT timestamp, id FROM event WHERE ", "(timestamp = ? AND id = ?)", " OR ", ""),
            count: Shapes::new("INSERT INTO event_count_delta (category, name, hour, count) VALUES ", &values(4), ",", ""),
        }
    }
}

/// One statement for each number of rows, prepared once a connection.
pub(super) struct Shapes([String; SHAPES.len()]);

impl Shapes {
    pub(super) fn new(head: &str, row: &str, separator: &str, tail: &str) -> Self {
        Self(SHAPES.map(|rows| format!("{head}{}{tail}", vec![row; rows].join(separator))))
    }

    /// The statement and the rows for each step: as many at once as a shape has.
    pub(super) fn steps<'a, T>(&'static self, rows: &'a [T]) -> impl Iterator<Item = Step<'a, T>> {
        self.steps_of(rows, <[T]>::len)
    }

    /// As [`steps`](Self::steps), of events that have at most `max_bytes` together, but never less than one.
    pub(super) fn steps_within<'a>(
        &'static self,
        events: &'a [Event],
        max_bytes: usize,
    ) -> impl Iterator<Item = Step<'a, Event>> {
        self.steps_of(events, move |rest| count_within(rest, max_bytes).max(1))
    }

    fn steps_of<'a, T>(
        &'static self,
        mut rest: &'a [T],
        fitting: impl Fn(&[T]) -> usize,
    ) -> impl Iterator<Item = Step<'a, T>> {
        std::iter::from_fn(move || {
            let fitting = rest.len().min(fitting(rest));
            let shape = SHAPES.iter().position(|&rows| rows <= fitting)?;
            let (rows, others) = rest.split_at(SHAPES[shape]);
            rest = others;
            Some(Step { sql: &self.0[shape], rows })
        })
    }
}

/// One statement and its rows.
pub(super) struct Step<'a, T> {
    pub(super) sql: &'static str,
    pub(super) rows: &'a [T],
}

/// What a batch is taken for.
#[derive(Clone, Copy)]
pub(super) enum Expected {
    /// The usual case.
    AllNew,
    /// It turned out that one is there already: which ones has to be asked.
    SomeKnown,
}

/// The events whose keys are not among these.
pub(super) fn without(events: &[Event], known: Vec<EventKey>) -> Cow<'_, [Event]> {
    if known.is_empty() {
        return events.into();
    }
    let known: BTreeSet<EventKey> = known.into_iter().collect();
    events.iter().filter(|event| !known.contains(&event.key())).cloned().collect()
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
        let shapes: &'static _ = Box::leak(Box::new(Statements::new().insert));
        shapes.steps_within(events, max_bytes).map(|step| step.rows.len()).collect()
    }

    #[test]
    fn a_batch_is_cut_into_the_largest_shapes() {
        assert_eq!(lengths(&events(512 + 64 + 2 * 8 + 3, 1), usize::MAX), [512, 64, 8, 8, 1, 1, 1]);
        assert_eq!(lengths(&events(0, 1), usize::MAX), [0; 0]);
    }

    #[test]
    fn a_statement_stays_within_its_bytes_unless_one_event_exceeds_them() {
        assert_eq!(lengths(&events(20, 10_000), 100_000), [8, 8, 1, 1, 1, 1]);
        assert_eq!(lengths(&events(2, 10_000), 100), [1, 1]);
    }

    #[test]
    fn a_statement_has_a_value_for_each_place() {
        let statements = Statements::new();
        for (shapes, values) in [(statements.insert, 7), (statements.find, 2), (statements.count, 4)] {
            for (sql, rows) in shapes.0.iter().zip(SHAPES) {
                assert_eq!(sql.matches('?').count(), rows * values, "{sql}");
            }
        }
    }
}

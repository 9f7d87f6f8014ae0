//! Statements of few fixed shapes for the databases that take many rows as one long list of values.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use eye_core::event::Event;
use eye_core::store::EventKey;

use super::error;

/// Rows that a statement may have, largest first. 512 events have 3,584 values; SQLite takes 32,766, MySQL 65,535. Each
/// half of the one before, so that a batch needs few statements.
const SHAPES: [usize; 10] = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1];
/// Bytes besides its texts that an event may need in a statement.
const EVENT_OVERHEAD_BYTES: usize = 128;

/// The statements that storing events takes. Plain `INSERT`s: what is there already is an error, and rare.
struct Statements {
    /// Stores events.
    insert: Shapes,
    /// Finds the keys of events that are there.
    find: Shapes,
}

static STATEMENTS: LazyLock<Statements> = LazyLock::new(Statements::new);

impl Statements {
    fn new() -> Self {
        Self {
            insert: Shapes::of_inserts("INSERT"),
            find: Shapes::new("SELECT timestamp, id FROM event WHERE ", "(timestamp = ? AND id = ?)", " OR ", ""),
        }
    }
}

/// One statement for each number of rows, prepared once a connection.
pub(super) struct Shapes([String; SHAPES.len()]);

impl Shapes {
    pub(super) fn new(head: &str, row: &str, separator: &str, tail: &str) -> Self {
        Self(SHAPES.map(|rows| format!("{head}{}{tail}", vec![row; rows].join(separator))))
    }

    /// Statements that store events; `verb` is `INSERT` and what may follow it.
    pub(super) fn of_inserts(verb: &str) -> Self {
        let head = format!("{verb} INTO event (timestamp, id, session_id, category, name, data, received_at) VALUES ");
        Self::new(&head, "(?,?,?,?,?,?,?)", ",", "")
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
    fn step<'a, T>(&'static self, rows: &'a [T], at_most: usize) -> Option<Step<'a, T>> {
        let shape = SHAPES.iter().position(|&shape| shape <= rows.len().min(at_most))?;
        Some(Step { sql: &self.0[shape], rows: &rows[..SHAPES[shape]] })
    }
}

/// One statement and its rows.
pub(super) struct Step<'a, T> {
    pub(super) sql: &'static str,
    pub(super) rows: &'a [T],
}

/// A connection within a transaction that survives a statement that failed.
pub(super) trait Table {
    /// Stores events; none of them when one is there already, which is an error.
    fn insert(&mut self, step: Step<'_, Event>) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The keys of those events that are there, whoever committed them.
    fn find(&mut self, step: Step<'_, Event>) -> impl Future<Output = Result<Vec<EventKey>, sqlx::Error>> + Send;
}

/// Stores those events that are not there yet, `max_bytes` of them in a statement, and says which these are.
pub(super) async fn insert<'a>(
    table: &mut impl Table,
    batch: &'a [Event],
    max_bytes: usize,
) -> Result<Cow<'a, [Event]>, sqlx::Error> {
    let mut known = BTreeSet::new();
    let mut rest = Cow::Borrowed(batch);
    while let Some(step) = STATEMENTS.insert.step(&rest, count_within(&rest, max_bytes).max(1)) {
        let events = step.rows.len();
        match table.insert(step).await {
            Ok(()) => rest = after(rest, events),
            // Another node may be storing the same events: what it has not committed yet is found the next time.
            Err(error) if error::is_duplicate(&error) => {
                let known_before = known.len();
                for step in STATEMENTS.find.steps(&rest[..events]) {
                    known.extend(table.find(step).await?);
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

fn after(events: Cow<'_, [Event]>, done: usize) -> Cow<'_, [Event]> {
    match events {
        Cow::Borrowed(events) => Cow::Borrowed(&events[done..]),
        Cow::Owned(mut events) => Cow::Owned(events.split_off(done)),
    }
}

fn without(events: &[Event], known: &BTreeSet<EventKey>) -> Vec<Event> {
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
        let mut rest = events;
        let step = || {
            let step = STATEMENTS.insert.step(rest, count_within(rest, max_bytes).max(1))?;
            rest = &rest[step.rows.len()..];
            Some(step.rows.len())
        };
        std::iter::from_fn(step).collect()
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
    fn a_statement_has_a_value_for_each_place() {
        let statements = Statements::new();
        for (shapes, values) in [(statements.insert, 7), (statements.find, 2)] {
            for (sql, rows) in shapes.0.iter().zip(SHAPES) {
                assert_eq!(sql.matches('?').count(), rows * values, "{sql}");
            }
        }
    }
}

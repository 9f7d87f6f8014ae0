//! Folding of deltas into `event_count`: the sums of one transaction, and the schedule of transactions.
//!
//! Counts are exact at any time, because a query reads folded counts and pending deltas in one snapshot. Folding keeps
//! deltas few, so that queries stay fast. Read [`DeltaBatch`] first.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{Stream, TryStreamExt};

use super::counts::{HourCounts, parse_delta, periods_of};

/// Pause between two folds while events arrive. A shorter one folds the same names again, a longer one leaves queries
/// more deltas to read.
const FOLD_EVERY: Duration = Duration::from_secs(2);
/// Events that make a fold due earlier.
const FOLD_AT_EVENTS: usize = 50_000;
/// Deltas that make a fold due earlier. Small batches make hundreds in a second, and each costs a query about 1 µs.
const FOLD_AT_DELTAS: usize = 300;
/// Pause after an error.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// The most deltas of one transaction: the limit of the `SELECT` that reads them.
pub(super) const MAX_DELTAS: i64 = 2_000;
/// Distinct counts after which a transaction takes no more deltas.
const MAX_COUNTS: usize = 20_000;

/// The deltas of one transaction.
#[derive(Default)]
pub(super) struct DeltaBatch {
    pub(super) ids: Vec<i64>,
    /// True when there may be more deltas.
    pub(super) is_full: bool,
    counts: HourCounts<String>,
}

impl DeltaBatch {
    /// Reads rows of an id and a delta, until the batch is full.
    pub(super) async fn from_rows(
        mut rows: impl Stream<Item = Result<(i64, String), sqlx::Error>> + Unpin,
    ) -> Result<Self, sqlx::Error> {
        let (mut batch, mut distinct) = (Self::default(), 0);
        while !batch.is_full
            && let Some((id, delta)) = rows.try_next().await?
        {
            batch.ids.push(id);
            for (hour, categories) in parse_delta(&delta).map_err(|error| sqlx::Error::Decode(error.into()))? {
                for (category, names) in categories {
                    let sums = batch.counts.entry(hour).or_default().entry(category).or_default();
                    let before = sums.len();
                    for (name, count) in names {
                        *sums.entry(name).or_default() += count;
                    }
                    distinct += sums.len() - before;
                }
            }
            batch.is_full = distinct >= MAX_COUNTS || batch.ids.len() as i64 >= MAX_DELTAS;
        }
        Ok(batch)
    }

    /// Returns the rows to add to `event_count`: for a category and a name, for either alone, and for all; by hour, day
    /// and month. They are in the order of the key: two nodes that lock rows in one order cannot deadlock.
    pub(super) fn rows(&self) -> Vec<CountRow<'_>> {
        let mut sums: BTreeMap<(&str, &str), BTreeMap<i32, i64>> = BTreeMap::new();
        let mut add = |category, name, periods: [i32; 3], count: i64| {
            let by_period = sums.entry((category, name)).or_default();
            for period in periods {
                *by_period.entry(period).or_default() += count;
            }
        };
        for (&hour, categories) in &self.counts {
            let periods = periods_of(hour);
            let mut of_all = 0;
            for (category, names) in categories {
                let mut of_category = 0;
                for (name, &count) in names {
                    add(category, name, periods, count);
                    add("", name, periods, count);
                    of_category += count;
                }
                add(category, "", periods, of_category);
                of_all += of_category;
            }
            add("", "", periods, of_all);
        }
        let row = |((category, name), by_period): ((_, _), BTreeMap<_, _>)| {
            by_period.into_iter().map(move |(period, count)| CountRow { category, name, period, count })
        };
        sums.into_iter().flat_map(row).collect()
    }
}

/// A row of `event_count` as it is added. An empty category or name means any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CountRow<'a> {
    pub(super) category: &'a str,
    pub(super) name: &'a str,
    pub(super) period: i32,
    pub(super) count: i64,
}

/// The schedule of folds.
pub(super) struct FoldSchedule(Mutex<FoldState>);

struct FoldState {
    /// Events and deltas stored since the last fold.
    events: usize,
    deltas: usize,
    /// No fold is due before.
    earliest: Instant,
    /// From here on one event suffices.
    latest: Instant,
}

impl FoldSchedule {
    /// Creates a schedule with a fold due at once: other programs may have left deltas behind.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(FoldState { events: 1, deltas: 0, earliest: now, latest: now }))
    }

    /// Notes a delta of so many events.
    pub(super) fn note_delta(&self, events: usize) {
        let mut state = self.state();
        state.events += events;
        state.deltas += 1;
    }

    /// Returns true when a fold is due, and counts it as done.
    pub(super) fn take_due(&self) -> bool {
        let (mut state, now) = (self.state(), Instant::now());
        let has_many = state.events >= FOLD_AT_EVENTS || state.deltas >= FOLD_AT_DELTAS;
        let is_due = now >= state.earliest && (has_many || state.events > 0 && now >= state.latest);
        if is_due {
            *state = FoldState { events: 0, deltas: 0, earliest: now, latest: now + FOLD_EVERY };
        }
        is_due
    }

    /// Makes another fold due: the last one left deltas behind.
    pub(super) fn note_full(&self) {
        self.note_delta(FOLD_AT_EVENTS);
    }

    /// Postpones the next fold after an error.
    pub(super) fn note_failure(&self) {
        let again = Instant::now() + RETRY_AFTER;
        *self.state() = FoldState { events: 1, deltas: 0, earliest: again, latest: again };
    }

    fn state(&self) -> MutexGuard<'_, FoldState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_due_by_time_events_and_deltas() {
        let schedule = FoldSchedule::new();
        assert!(schedule.take_due(), "other programs may have left deltas");
        schedule.note_delta(1);
        assert!(!schedule.take_due(), "less than two seconds have passed");
        schedule.note_delta(FOLD_AT_EVENTS);
        assert!(schedule.take_due(), "many events");
        for _ in 1..FOLD_AT_DELTAS {
            schedule.note_delta(1);
        }
        assert!(!schedule.take_due(), "one delta too few");
        schedule.note_delta(1);
        assert!(schedule.take_due(), "many deltas");
        schedule.note_full();
        assert!(schedule.take_due(), "the last fold left deltas");
        assert!(!schedule.take_due(), "nothing is pending");
        schedule.note_failure();
        schedule.note_delta(FOLD_AT_EVENTS);
        assert!(!schedule.take_due(), "the last fold failed just now");
    }
}

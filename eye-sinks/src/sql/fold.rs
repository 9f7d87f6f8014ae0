//! Adding up the deltas of counts, from time to time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{Stream, TryStreamExt};

use super::counts::{self, Counts, day_of};

/// Deltas are added up so often while events arrive: until then, each query reads them all.
const FOLD_EVERY: Duration = Duration::from_secs(1);
/// Or when so many events came since.
const FOLD_EVENTS: usize = 50_000;
/// Or when there are so many, each of which costs a query about a microsecond. Small batches make hundreds in a second.
const FOLD_AT_DELTAS: usize = 300;
/// After an error they stay for longer.
const FOLD_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Deltas that are added up in one transaction, at most: what a `SELECT` that takes them is limited to.
pub(super) const FOLD_DELTAS: i64 = 2_000;
/// Or fewer, once they have so many counts.
const FOLD_COUNTS: usize = 20_000;

/// Deltas that are being added up.
#[derive(Default)]
pub(super) struct Taken {
    /// Of the deltas.
    pub(super) ids: Vec<i64>,
    /// Whether there may be others.
    pub(super) is_full: bool,
    counts: Counts<String>,
}

impl Taken {
    /// Reads them, by id and delta, until it is enough.
    pub(super) async fn from_rows(
        mut rows: impl Stream<Item = Result<(i64, String), sqlx::Error>> + Unpin,
    ) -> Result<Self, sqlx::Error> {
        let (mut taken, mut distinct) = (Self::default(), 0);
        while !taken.is_full
            && let Some((id, delta)) = rows.try_next().await?
        {
            taken.ids.push(id);
            for (hour, categories) in counts::counts(&delta).map_err(|error| sqlx::Error::Decode(error.into()))? {
                for (category, names) in categories {
                    let sums = taken.counts.entry(hour).or_default().entry(category).or_default();
                    let before = sums.len();
                    for (name, count) in names {
                        *sums.entry(name).or_default() += count;
                    }
                    distinct += sums.len() - before;
                }
            }
            taken.is_full = distinct >= FOLD_COUNTS || taken.ids.len() as i64 >= FOLD_DELTAS;
        }
        Ok(taken)
    }

    /// What `event_count` gains: each count for its category and name, for each of the two alone, and for all; by hour and
    /// by day. In the order of the key, so that two nodes wait for each other, not in a circle.
    pub(super) fn counts(&self) -> Vec<Count<'_>> {
        let mut sums = BTreeMap::new();
        for (&hour, categories) in &self.counts {
            for (category, names) in categories {
                for (name, count) in names {
                    for (category, name) in [(category.as_str(), name.as_str()), (category, ""), ("", name), ("", "")] {
                        for hour in [hour, day_of(hour)] {
                            *sums.entry((category, name, hour)).or_insert(0) += count;
                        }
                    }
                }
            }
        }
        sums.into_iter().map(|((category, name, hour), count)| Count { category, name, hour, count }).collect()
    }
}

/// How many events more an hour or a day has, of one category and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count<'a> {
    pub(super) category: &'a str,
    pub(super) name: &'a str,
    pub(super) hour: i32,
    pub(super) count: i64,
}

/// Knows when deltas are to be added up.
pub(super) struct FoldClock(Mutex<Fold>);

struct Fold {
    /// Stored since the last time.
    events: usize,
    /// Made since the last time.
    deltas: usize,
    /// Not before, however many they are.
    earliest: Instant,
    /// However few they are.
    latest: Instant,
}

impl FoldClock {
    /// Others may have left deltas behind, so that the first time is now.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(Fold { events: 1, deltas: 0, earliest: now, latest: now }))
    }

    /// So many events were stored.
    pub(super) fn stored(&self, events: usize) {
        let mut fold = self.fold();
        fold.events += events;
        fold.deltas += 1;
    }

    /// Whether it is time; then the time is taken.
    pub(super) fn is_due(&self) -> bool {
        let (mut fold, now) = (self.fold(), Instant::now());
        let wanted =
            fold.events >= FOLD_EVENTS || fold.deltas >= FOLD_AT_DELTAS || (fold.events > 0 && now >= fold.latest);
        let is_due = wanted && now >= fold.earliest;
        if is_due {
            *fold = Fold { events: 0, deltas: 0, earliest: now, latest: now + FOLD_EVERY };
        }
        is_due
    }

    /// There were as many deltas as one transaction may have.
    pub(super) fn more(&self) {
        self.stored(FOLD_EVENTS);
    }

    /// It could not be done.
    pub(super) fn failed(&self) {
        let again = Instant::now() + FOLD_AGAIN_AFTER;
        *self.fold() = Fold { events: 1, deltas: 0, earliest: again, latest: again };
    }

    fn fold(&self) -> MutexGuard<'_, Fold> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_are_added_up_in_time() {
        let clock = FoldClock::new();
        assert!(clock.is_due(), "others may have left some");
        clock.stored(1);
        assert!(!clock.is_due(), "a second has not passed");
        clock.stored(FOLD_EVENTS);
        assert!(clock.is_due(), "they are of many events");
        for _ in 1..FOLD_AT_DELTAS {
            clock.stored(1);
        }
        assert!(!clock.is_due(), "one more may come");
        clock.stored(1);
        assert!(clock.is_due(), "they are many");
        clock.more();
        assert!(clock.is_due(), "there are more");
        assert!(!clock.is_due(), "there are none");
        clock.failed();
        clock.stored(FOLD_EVENTS);
        assert!(!clock.is_due(), "it failed just now");
    }
}

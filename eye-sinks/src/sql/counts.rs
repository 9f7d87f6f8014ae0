//! Counts of events by hour, category and name: what a batch adds to them, and which of them answer a query.
//!
//! `event_count` and `event_count_delta` are explained where they are made, in the migrations.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eye_core::event::Event;
use eye_core::store::EventFilter;
use eye_core::timestamp::Timestamp;

/// Deltas are added up so often while events arrive: until then, each query reads them all.
const FOLD_EVERY: Duration = Duration::from_secs(1);
/// Or when so many events came since.
const FOLD_EVENTS: usize = 20_000;
/// After an error they stay for longer.
const FOLD_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Deltas that are added up in one transaction, at most.
pub(super) const FOLD_DELTAS: u64 = 20_000;

const HOUR_MICROS: i64 = 3_600_000_000;

/// How many events more an hour has, of one category and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delta<'a> {
    pub(super) category: &'a str,
    pub(super) name: &'a str,
    pub(super) hour: i32,
    pub(super) count: i64,
}

/// What these events add to the counts, in the order of the key.
pub(super) fn deltas(events: &[Event]) -> Vec<Delta<'_>> {
    let mut counts = BTreeMap::new();
    for event in events {
        *counts.entry((event.category(), event.name(), hour(event.timestamp().as_micros()))).or_insert(0) += 1;
    }
    counts.into_iter().map(|((category, name, hour), count)| Delta { category, name, hour, count }).collect()
}

/// The hour that an instant lies in. The year 9999 is hour 70 million.
fn hour(micros: i64) -> i32 {
    micros.div_euclid(HOUR_MICROS) as i32
}

/// Where the counts of a filter are to be found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counted<'a> {
    /// Of this category; `None` is all.
    pub(super) category: Option<&'a str>,
    /// Of this name; `None` is all.
    pub(super) name: Option<&'a str>,
    /// The hours that lie within the filter's range as a whole.
    pub(super) hours: Range<i32>,
    /// What of the range lies outside of them, from the first to the last microsecond.
    pub(super) edges: Vec<(Timestamp, Timestamp)>,
}

impl<'a> Counted<'a> {
    /// None for a filter that the counts do not know: by session, or without a whole hour.
    pub(super) fn of(filter: &'a EventFilter) -> Option<Self> {
        if filter.session_id.is_some() {
            return None;
        }
        let after = filter.timestamp_after.unwrap_or(Timestamp::MIN).as_micros();
        let before = filter.timestamp_before.unwrap_or(Timestamp::MAX).as_micros();
        let hours = hour(after + HOUR_MICROS - 1)..hour(before + 1);
        if hours.is_empty() {
            return None;
        }
        let [start, end] = [hours.start, hours.end].map(|hour| i64::from(hour) * HOUR_MICROS);
        let edges = [(after, start - 1), (end, before)].into_iter().filter(|(first, last)| first <= last);
        let edges = edges.filter_map(|(first, last)| Timestamp::from_micros(first).zip(Timestamp::from_micros(last)));
        let (category, name) = (filter.category.as_deref(), filter.name.as_deref());
        Some(Self { category, name, hours, edges: edges.collect() })
    }
}

/// Knows when deltas are to be added up.
pub(super) struct FoldClock(Mutex<Fold>);

struct Fold {
    /// Stored since the last time.
    events: usize,
    /// Not before, however many they are.
    earliest: Instant,
    /// However few they are.
    latest: Instant,
}

impl FoldClock {
    /// Others may have left deltas behind, so that the first time is now.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(Fold { events: 1, earliest: now, latest: now }))
    }

    /// So many events were stored.
    pub(super) fn stored(&self, events: usize) {
        self.fold().events += events;
    }

    /// Whether it is time; then the time is taken.
    pub(super) fn is_due(&self) -> bool {
        let (mut fold, now) = (self.fold(), Instant::now());
        let wanted = fold.events >= FOLD_EVENTS || (fold.events > 0 && now >= fold.latest);
        let is_due = wanted && now >= fold.earliest;
        if is_due {
            *fold = Fold { events: 0, earliest: now, latest: now + FOLD_EVERY };
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
        *self.fold() = Fold { events: 1, earliest: again, latest: again };
    }

    fn fold(&self) -> MutexGuard<'_, Fold> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use eye_core::testkit::event_with;

    use super::*;

    fn filter(after: Option<i64>, before: Option<i64>) -> EventFilter {
        let timestamp = |micros| Timestamp::from_micros(micros);
        EventFilter {
            timestamp_after: after.and_then(timestamp),
            timestamp_before: before.and_then(timestamp),
            ..EventFilter::default()
        }
    }

    /// Each microsecond of a range lies in one of the hours or one of the edges, and no other does.
    #[test]
    fn hours_and_edges_make_up_the_range() {
        let near = [-2, -1, 0, 1, 2].map(|delta| [HOUR_MICROS, 2 * HOUR_MICROS, 3 * HOUR_MICROS].map(|h| h + delta));
        let instants: Vec<i64> = near.into_iter().flatten().chain([0, 1]).collect();
        for &after in &instants {
            for &before in &instants {
                let filter = filter(Some(after), Some(before));
                let Some(counted) = Counted::of(&filter) else {
                    assert!((before + 1) / HOUR_MICROS <= (after + HOUR_MICROS - 1) / HOUR_MICROS, "{after} {before}");
                    continue;
                };
                for &instant in &instants {
                    let in_edges = counted
                        .edges
                        .iter()
                        .filter(|(first, last)| (first.as_micros()..=last.as_micros()).contains(&instant));
                    let places = in_edges.count() + usize::from(counted.hours.contains(&hour(instant)));
                    assert_eq!(places, usize::from((after..=before).contains(&instant)), "{after} {instant} {before}");
                }
            }
        }
    }

    #[test]
    fn without_bounds_there_are_no_edges() {
        let filter = filter(None, None);
        let counted = Counted::of(&filter).unwrap_or_else(|| panic!("counted"));
        assert!(counted.edges.is_empty() && counted.hours.contains(&0));
        assert!(counted.hours.contains(&hour(Timestamp::MAX.as_micros())));
    }

    #[test]
    fn a_session_is_not_counted() {
        let filter = EventFilter { session_id: Some("s".to_owned()), ..EventFilter::default() };
        assert_eq!(Counted::of(&filter), None);
    }

    #[test]
    fn deltas_are_added_up_in_time() {
        let clock = FoldClock::new();
        assert!(clock.is_due(), "others may have left some");
        clock.stored(1);
        assert!(!clock.is_due(), "a second has not passed");
        clock.stored(FOLD_EVENTS);
        assert!(clock.is_due(), "they are many");
        clock.more();
        assert!(clock.is_due(), "there are more");
        assert!(!clock.is_due(), "there are none");
        clock.failed();
        clock.stored(FOLD_EVENTS);
        assert!(!clock.is_due(), "it failed just now");
    }

    #[test]
    fn a_batch_adds_a_row_for_each_hour_category_and_name() {
        // One each millisecond, in three categories; the last is hours later.
        let events =
            [(0, "a"), (3, "a"), (3, "b"), (4, "a"), (30_000_000, "a")].map(|(n, name)| event_with(n, name, "1"));
        let deltas =
            deltas(&events).into_iter().map(|delta| format!("{} {}: {}", delta.category, delta.name, delta.count));
        assert_eq!(
            deltas.collect::<Vec<_>>(),
            ["category 0 a: 2", "category 0 a: 1", "category 0 b: 1", "category 1 a: 1"]
        );
    }
}

//! Arithmetic of event counts: the delta of a batch, and the periods whose counts answer a query.
//!
//! Counts per hour, day and month are maintained at write time, by category and name. The tables `event_count` and
//! `event_count_delta` are explained in the migration that creates them. Read [`CountPlan`] first.

use std::collections::BTreeMap;
use std::ops::Range;

use chrono::{Datelike, NaiveDate};
use eye_core::event::Event;
use eye_core::store::EventFilter;
use eye_core::timestamp::Timestamp;
use eye_migration::period::{FIRST_DAY, FIRST_MONTH};

const HOUR_MICROS: i64 = 3_600_000_000;
const HOURS_PER_DAY: i32 = 24;
const MONTHS_PER_YEAR: i32 = 12;

/// Numbers of events by hour, category and name.
pub(super) type HourCounts<Text> = BTreeMap<i32, BTreeMap<Text, BTreeMap<Text, i64>>>;

/// Returns the counts of these events as JSON such as `{"438291":{"page interaction":{"cta click":3}}}`: one delta, or
/// several where one would be longer than `max_bytes`.
pub(super) fn deltas(events: &[Event], max_bytes: usize) -> Vec<String> {
    let mut counts = HourCounts::new();
    for event in events {
        let names = counts.entry(hour(event.timestamp())).or_default().entry(event.category()).or_default();
        *names.entry(event.name()).or_default() += 1;
    }
    let delta = serde_json::to_string(&counts).expect("texts and numbers are always JSON");
    if delta.len() <= max_bytes || events.len() < 2 {
        return vec![delta];
    }
    let (some, others) = events.split_at(events.len() / 2);
    [some, others].into_iter().flat_map(|events| deltas(events, max_bytes)).collect()
}

/// Parses a delta.
pub(super) fn parse_delta(delta: &str) -> Result<HourCounts<String>, serde_json::Error> {
    serde_json::from_str(delta)
}

/// Returns the events of a category and a name in a delta, by hour. `None` matches all.
pub(super) fn matching_counts(
    delta: &str,
    category: Option<&str>,
    name: Option<&str>,
) -> Result<impl Iterator<Item = (i32, i64)>, serde_json::Error> {
    let is = |wanted: Option<&str>, text: &str| wanted.is_none_or(|wanted| wanted == text);
    let count = move |(hour, categories): (i32, BTreeMap<String, BTreeMap<String, i64>>)| {
        let names = categories.iter().filter(|(text, _)| is(category, text)).flat_map(|(_, names)| names);
        (hour, names.filter(|(text, _)| is(name, text)).map(|(_, count)| count).sum())
    };
    Ok(parse_delta(delta)?.into_iter().map(count).filter(|(_, count)| *count > 0))
}

/// Returns the hour of an instant, counted from 1970. The year 9999 is hour 70 million.
pub(super) fn hour(timestamp: Timestamp) -> i32 {
    hour_of(timestamp.as_micros())
}

fn hour_of(micros: i64) -> i32 {
    micros.div_euclid(HOUR_MICROS) as i32
}

/// Returns the month of a day, both counted from 1970.
fn month_of(day: i32) -> i32 {
    let date = NaiveDate::from_epoch_days(day).expect("the years 1970 to 9999 are within chrono's range");
    (date.year() - 1970) * MONTHS_PER_YEAR + date.month0() as i32
}

fn first_day_of(month: i32) -> i32 {
    let date = NaiveDate::from_ymd_opt(1970 + month / MONTHS_PER_YEAR, (month % MONTHS_PER_YEAR) as u32 + 1, 1);
    date.expect("the years 1970 to 9999 are within chrono's range").to_epoch_days()
}

/// Returns the periods that an event of this hour belongs to: the hour, its day and its month.
pub(super) fn periods_of(hour: i32) -> [i32; 3] {
    let day = hour / HOURS_PER_DAY;
    [hour, FIRST_DAY + day, FIRST_MONTH + month_of(day)]
}

/// Returns the fewest ranges of periods that make up these hours: whole months, the days beside them, and the hours
/// beside those.
pub(super) fn periods_in(hours: &Range<i32>) -> Vec<Range<i32>> {
    let days = (hours.start + HOURS_PER_DAY - 1) / HOURS_PER_DAY..hours.end / HOURS_PER_DAY;
    if days.is_empty() {
        return vec![hours.clone()];
    }
    let months = month_of(days.start - 1) + 1..month_of(days.end);
    // Without a whole month, one range of days is all that is between the hours.
    let (first, after_last) = match months.is_empty() {
        true => (days.end, days.end),
        false => (first_day_of(months.start), first_day_of(months.end)),
    };
    let shift = |range: Range<i32>, by: i32| range.start + by..range.end + by;
    let ranges = [
        hours.start..days.start * HOURS_PER_DAY,
        shift(days.start..first, FIRST_DAY),
        shift(months, FIRST_MONTH),
        shift(after_last..days.end, FIRST_DAY),
        days.end * HOURS_PER_DAY..hours.end,
    ];
    ranges.into_iter().filter(|range| !range.is_empty()).collect()
}

/// Returns the first instant of an hour.
pub(super) fn start_of(hour: i32) -> Timestamp {
    Timestamp::from_micros(i64::from(hour) * HOUR_MICROS).unwrap_or(Timestamp::MIN)
}

/// Returns the last instant of an hour.
pub(super) fn end_of(hour: i32) -> Timestamp {
    Timestamp::from_micros((i64::from(hour) + 1) * HOUR_MICROS - 1).unwrap_or(Timestamp::MAX)
}

/// Returns the first and the last of the hours that a page of `needed` events may lie in. The page may start anywhere
/// in the first hour. `hours` are in the order of the page, with their counts.
pub(super) fn hours_with(needed: u64, hours: impl IntoIterator<Item = (i32, i64)>) -> Option<(i32, i32)> {
    let mut hours = hours.into_iter();
    let (first, _) = hours.next()?;
    let (mut last, mut found) = (first, 0);
    for (hour, count) in hours {
        if found >= needed {
            break;
        }
        last = hour;
        found += u64::try_from(count).unwrap_or(0);
    }
    Some((first, last))
}

/// A way to count a time range: whole hours from the maintained counts, corrected by events at both ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CountPlan {
    /// The hours nearest to the range: each end is rounded to the nearer end of its hour.
    pub(super) hours: Range<i32>,
    /// Parts of the range outside of the hours. Their events are added.
    pub(super) missing: Vec<TimeSpan>,
    /// Parts of the hours outside of the range. Their events are subtracted.
    pub(super) surplus: Vec<TimeSpan>,
}

/// The first and the last instant of a part of time.
pub(super) type TimeSpan = (Timestamp, Timestamp);

impl CountPlan {
    /// Plans the count of a filter. `None` where the counts do not help: a filter by session, or a range so short that
    /// the corrections would read as many events.
    pub(super) fn of(filter: &EventFilter) -> Option<Self> {
        if filter.session_id.is_some() {
            return None;
        }
        let start = filter.timestamp_after.unwrap_or(Timestamp::MIN).as_micros();
        let end = filter.timestamp_before.unwrap_or(Timestamp::MAX).as_micros() + 1;
        let [first, after_last] = [start, end].map(|micros| hour_of(micros + HOUR_MICROS / 2));
        let [hours_start, hours_end] = [first, after_last].map(|hour| i64::from(hour) * HOUR_MICROS);
        let to_count = (start - hours_start).abs() + (end - hours_end).abs();
        if first >= after_last || to_count >= end - start {
            return None;
        }
        Some(Self {
            hours: first..after_last,
            missing: [span(start, hours_start), span(hours_end, end)].into_iter().flatten().collect(),
            surplus: [span(hours_start, start), span(end, hours_end)].into_iter().flatten().collect(),
        })
    }
}

/// Returns the span from `start` to before `end`, or `None` for an empty one.
fn span(start: i64, end: i64) -> Option<TimeSpan> {
    (start < end).then(|| Timestamp::from_micros(start).zip(Timestamp::from_micros(end - 1)))?
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

    /// Returns ranges that start and end near the ends and the middle of hours, and at the ends of time.
    fn ranges() -> impl Iterator<Item = (i64, i64)> {
        let near = (2..9).flat_map(|half| [-1, 0, 1].map(|delta| half * HOUR_MICROS / 2 + delta));
        let instants: Vec<i64> =
            near.chain([0, 1, Timestamp::MAX.as_micros() - 1, Timestamp::MAX.as_micros()]).collect();
        instants
            .clone()
            .into_iter()
            .flat_map(move |after| instants.clone().into_iter().map(move |before| (after, before)))
    }

    #[test]
    fn corrected_hours_make_up_the_range() {
        for (after, before) in ranges() {
            let Some(plan) = CountPlan::of(&filter(Some(after), Some(before))) else { continue };
            let within = |spans: &[TimeSpan], instant: i64| {
                spans.iter().filter(|(first, last)| (first.as_micros()..=last.as_micros()).contains(&instant)).count()
            };
            for (instant, _) in ranges() {
                let times = usize::from(plan.hours.contains(&hour_of(instant))) + within(&plan.missing, instant);
                let expected = usize::from((after..=before).contains(&instant)) + within(&plan.surplus, instant);
                assert_eq!(times, expected, "{instant} in {after}..={before}: {plan:?}");
            }
        }
    }

    #[test]
    fn corrections_read_at_most_half_an_hour_at_each_end() {
        let micros = |&(first, last): &TimeSpan| last.as_micros() - first.as_micros() + 1;
        for (after, before) in ranges() {
            let range = before - after + 1;
            let plan = CountPlan::of(&filter(Some(after), Some(before)));
            let Some(CountPlan { missing, surplus, .. }) = plan else {
                assert!(range <= HOUR_MICROS, "{after}..={before}");
                continue;
            };
            let spans: Vec<i64> = missing.iter().chain(&surplus).map(micros).collect();
            let at_most_half = spans.iter().all(|&span| span <= HOUR_MICROS / 2);
            assert!(
                spans.len() <= 2 && at_most_half && spans.iter().sum::<i64>() < range,
                "{after}..={before}: {spans:?}"
            );
        }
    }

    #[test]
    fn unbounded_range_needs_no_correction() {
        let filter = filter(None, None);
        let plan = CountPlan::of(&filter).unwrap_or_else(|| panic!("no plan"));
        assert!(plan.missing.is_empty() && plan.surplus.is_empty() && plan.hours.contains(&0));
        assert!(plan.hours.contains(&hour(Timestamp::MAX)));
    }

    /// Returns the first and the last hours of days at and near the ends of months.
    fn hours_near_boundaries() -> Vec<i32> {
        let days = [0, 1, 30, 31, 32, 58, 59, 60, 89, 90, 91];
        days.into_iter().flat_map(|day: i32| [0, 1, 12, 23].map(|hour| day * HOURS_PER_DAY + hour)).collect()
    }

    #[test]
    fn each_hour_is_in_exactly_one_range_of_periods() {
        let hours = hours_near_boundaries();
        for (&start, &end) in hours.iter().flat_map(|start| hours.iter().map(move |end| (start, end))) {
            if start >= end {
                continue;
            }
            let ranges = periods_in(&(start..end));
            for hour in 0..=92 * HOURS_PER_DAY {
                let found =
                    periods_of(hour).map(|period| ranges.iter().filter(|range| range.contains(&period)).count());
                let expected = usize::from((start..end).contains(&hour));
                assert_eq!(found.iter().sum::<usize>(), expected, "{hour} of {start}..{end}: {ranges:?}");
            }
        }
    }

    #[allow(clippy::single_range_in_vec_init, reason = "the ranges themselves are expected")]
    #[test]
    fn long_ranges_are_months() {
        let (day, month) = (|day: i32| FIRST_DAY + day, |month: i32| FIRST_MONTH + month);
        let after_last = hour(Timestamp::MAX) + 1;
        assert_eq!(periods_in(&(0..after_last)), [month(0)..month(8030 * 12)]);
        let in_1970_and_1971 = [1..24, day(1)..day(31), month(1)..month(12), day(365)..day(366), 8784..8785];
        assert_eq!(periods_in(&(1..24 * 366 + 1)), in_1970_and_1971);
        assert_eq!(periods_in(&(24..24 * 32)), [day(1)..day(32)]);
        assert_eq!(periods_in(&(1..47)), [1..47]);
        assert_eq!([month_of(58), month_of(59)], [1, 2], "February 1970 had 28 days");
        assert_eq!([month_of(10_957 + 59), month_of(10_957 + 60)], [30 * 12 + 1, 30 * 12 + 2], "in 2000 it had 29");
    }

    #[test]
    fn periods_share_no_number() {
        let last = periods_of(hour(Timestamp::MAX));
        assert_eq!(periods_of(0), [0, FIRST_DAY, FIRST_MONTH]);
        assert!(last[1] < 0 && last[2] < FIRST_DAY, "{last:?}");
    }

    #[test]
    fn session_filter_has_no_plan() {
        let filter = EventFilter { session_id: Some("s".to_owned()), ..EventFilter::default() };
        assert_eq!(CountPlan::of(&filter), None);
    }

    #[test]
    fn page_spans_as_many_hours_as_it_needs() {
        let hours = [(9, 100), (8, 1), (5, 2), (4, 3), (1, 1)];
        for (needed, last) in [(1, 8), (2, 5), (3, 5), (4, 4), (6, 4), (7, 1), (8, 1)] {
            assert_eq!(hours_with(needed, hours), Some((9, last)), "{needed}");
        }
        assert_eq!(hours_with(5, []), None);
        assert_eq!(hours_with(5, [(3, 1)]), Some((3, 3)));
    }

    #[test]
    fn delta_counts_by_hour_category_and_name() {
        // One each millisecond, in three categories; the last is hours later.
        let events =
            [(0, "a"), (3, "a"), (3, "b"), (4, "a"), (30_000_000, "a")].map(|(n, name)| event_with(n, name, "1"));
        let deltas = deltas(&events, 1000);
        let expected =
            r#"[{"447072":{"category 0":{"a":2,"b":1},"category 1":{"a":1}},"447080":{"category 0":{"a":1}}}]"#;
        assert_eq!(format!("[{}]", deltas.join(",")), expected);
    }

    #[test]
    fn long_delta_is_split() {
        let events: Vec<_> = (0..50).map(|number| event_with(0, &format!("\u{1}\"{number}"), "1")).collect();
        let deltas = deltas(&events, 200);
        assert!(deltas.len() > 5 && deltas.iter().all(|delta| delta.len() <= 200), "{deltas:?}");
        let counts = deltas.iter().flat_map(|delta| parse_delta(delta).unwrap_or_else(|error| panic!("{error}")));
        let names = counts.flat_map(|(_, categories)| categories).flat_map(|(_, names)| names);
        assert_eq!(names.map(|(_, count)| count).sum::<i64>(), 50);
        assert_eq!(super::deltas(&events[..1], 0).len(), 1);
    }
}

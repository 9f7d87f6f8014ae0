//! Counts of events by hour, category and name: what a batch adds to them, and which of them answer a query.
//!
//! `event_count` and `event_count_delta` are explained where they are made, in the migrations.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use eye_core::event::Event;
use eye_core::store::EventFilter;
use eye_core::timestamp::Timestamp;

const HOUR_MICROS: i64 = 3_600_000_000;
const HOURS_PER_DAY: i32 = 24;

/// How many events there are of each hour, category and name.
pub(super) type Counts<Text> = BTreeMap<i32, BTreeMap<Text, BTreeMap<Text, i64>>>;

/// What these events add to the counts: JSON such as `{"438291":{"page interaction":{"cta click":3}}}`. In several
/// deltas where one would be longer than `max_bytes`.
pub(super) fn deltas(events: &[Event], max_bytes: usize) -> Vec<String> {
    let mut counts = Counts::new();
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

/// What a delta says.
pub(super) fn counts(delta: &str) -> Result<Counts<String>, serde_json::Error> {
    serde_json::from_str(delta)
}

/// How many events of this category and name a delta adds to each hour. `None` is all.
pub(super) fn of_delta(
    delta: &str,
    category: Option<&str>,
    name: Option<&str>,
) -> Result<impl Iterator<Item = (i32, i64)>, serde_json::Error> {
    let is = |wanted: Option<&str>, text: &str| wanted.is_none_or(|wanted| wanted == text);
    let count = move |(hour, categories): (i32, BTreeMap<String, BTreeMap<String, i64>>)| {
        let names = categories.iter().filter(|(text, _)| is(category, text)).flat_map(|(_, names)| names);
        (hour, names.filter(|(text, _)| is(name, text)).map(|(_, count)| count).sum())
    };
    Ok(counts(delta)?.into_iter().map(count).filter(|(_, count)| *count > 0))
}

/// The hour that an instant lies in. The year 9999 is hour 70 million.
pub(super) fn hour(timestamp: Timestamp) -> i32 {
    hour_of(timestamp.as_micros())
}

fn hour_of(micros: i64) -> i32 {
    micros.div_euclid(HOUR_MICROS) as i32
}

/// The number under which the counts have the whole day of an hour.
pub(super) fn day_of(hour: i32) -> i32 {
    day(hour.div_euclid(HOURS_PER_DAY))
}

fn day(days: i32) -> i32 {
    -1 - days
}

/// The ranges of numbers under which the counts of these hours are found: whole days, and the hours before and after them.
pub(super) fn in_days(hours: &RangeInclusive<i32>) -> Vec<RangeInclusive<i32>> {
    let (start, end) = (*hours.start(), *hours.end() + 1);
    let (first, after_last) = ((start + HOURS_PER_DAY - 1).div_euclid(HOURS_PER_DAY), end.div_euclid(HOURS_PER_DAY));
    if first >= after_last {
        return vec![hours.clone()];
    }
    let [before, after] = [start..=first * HOURS_PER_DAY - 1, after_last * HOURS_PER_DAY..=end - 1];
    let ranges = [before, day(after_last - 1)..=day(first), after];
    ranges.into_iter().filter(|range| !range.is_empty()).collect()
}

/// The first instant of an hour.
pub(super) fn start_of(hour: i32) -> Timestamp {
    Timestamp::from_micros(i64::from(hour) * HOUR_MICROS).unwrap_or(Timestamp::MIN)
}

/// The last instant of an hour.
pub(super) fn end_of(hour: i32) -> Timestamp {
    Timestamp::from_micros((i64::from(hour) + 1) * HOUR_MICROS - 1).unwrap_or(Timestamp::MAX)
}

/// The first and the last of these hours that one has to look at to find `needed` events, wherever in the first of them
/// one starts. `hours` are in the order in which one looks, with their counts.
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

/// Where the counts of a filter are to be found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// The hours next to the filter's range: each end of it counts as the nearer end of the hour in which it lies.
    pub(super) hours: RangeInclusive<i32>,
    /// What of the range the hours lack.
    pub(super) lacking: Vec<Span>,
    /// What the hours have beside the range.
    pub(super) beside: Vec<Span>,
}

/// From the first to the last microsecond.
pub(super) type Span = (Timestamp, Timestamp);

impl Counted {
    /// None for a filter that the counts do not know, which is one by session, or where they would not spare anything.
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
            hours: first..=after_last - 1,
            lacking: [span(start, hours_start), span(hours_end, end)].into_iter().flatten().collect(),
            beside: [span(hours_start, start), span(end, hours_end)].into_iter().flatten().collect(),
        })
    }
}

/// None when nothing lies between.
fn span(start: i64, end: i64) -> Option<Span> {
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

    /// Ranges that start and end around the ends and the middle of hours, and at the ends of time.
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
    fn hours_with_what_they_lack_and_without_what_they_have_beside_make_up_the_range() {
        for (after, before) in ranges() {
            let Some(counted) = Counted::of(&filter(Some(after), Some(before))) else { continue };
            let within = |spans: &[Span], instant: i64| {
                spans.iter().filter(|(first, last)| (first.as_micros()..=last.as_micros()).contains(&instant)).count()
            };
            for (instant, _) in ranges() {
                let times = usize::from(counted.hours.contains(&hour_of(instant))) + within(&counted.lacking, instant);
                let expected = usize::from((after..=before).contains(&instant)) + within(&counted.beside, instant);
                assert_eq!(times, expected, "{instant} in {after}..={before}: {counted:?}");
            }
        }
    }

    #[test]
    fn what_is_counted_one_by_one_is_less_than_the_range_and_at_most_half_an_hour_at_each_end() {
        let micros = |&(first, last): &Span| last.as_micros() - first.as_micros() + 1;
        for (after, before) in ranges() {
            let range = before - after + 1;
            let counted = Counted::of(&filter(Some(after), Some(before)));
            let Some(Counted { lacking, beside, .. }) = counted else {
                assert!(range <= HOUR_MICROS, "{after}..={before}");
                continue;
            };
            let spans: Vec<i64> = lacking.iter().chain(&beside).map(micros).collect();
            let at_most_half = spans.iter().all(|&span| span <= HOUR_MICROS / 2);
            assert!(
                spans.len() <= 2 && at_most_half && spans.iter().sum::<i64>() < range,
                "{after}..={before}: {spans:?}"
            );
        }
    }

    #[test]
    fn without_bounds_nothing_is_counted_one_by_one() {
        let filter = filter(None, None);
        let counted = Counted::of(&filter).unwrap_or_else(|| panic!("counted"));
        assert!(counted.lacking.is_empty() && counted.beside.is_empty() && counted.hours.contains(&0));
        assert!(counted.hours.contains(&hour(Timestamp::MAX)));
    }

    #[test]
    fn each_hour_is_in_one_of_the_ranges_or_in_a_day_that_is() {
        for (start, end) in (0..80).flat_map(|start| (start..80).map(move |end| (start, end))) {
            let ranges = in_days(&(start..=end));
            for hour in 0..80 {
                let found = |number: i32| ranges.iter().filter(|range| range.contains(&number)).count();
                let expected = usize::from((start..=end).contains(&hour));
                assert_eq!(found(hour) + found(day_of(hour)), expected, "{hour} of {start}..={end}: {ranges:?}");
            }
        }
    }

    #[test]
    fn all_hours_are_days() {
        let last = hour(Timestamp::MAX);
        assert_eq!(in_days(&(0..=last)), [day_of(last)..=-1]);
        assert_eq!(in_days(&(1..=24 * 365)), [1..=23, -365..=-2, 24 * 365..=24 * 365]);
        assert_eq!(in_days(&(1..=46)), [1..=46]);
    }

    #[test]
    fn a_session_is_not_counted() {
        let filter = EventFilter { session_id: Some("s".to_owned()), ..EventFilter::default() };
        assert_eq!(Counted::of(&filter), None);
    }

    #[test]
    fn as_many_hours_as_it_takes() {
        let hours = [(9, 100), (8, 1), (5, 2), (4, 3), (1, 1)];
        for (needed, last) in [(1, 8), (2, 5), (3, 5), (4, 4), (6, 4), (7, 1), (8, 1)] {
            assert_eq!(hours_with(needed, hours), Some((9, last)), "{needed}");
        }
        assert_eq!(hours_with(5, []), None);
        assert_eq!(hours_with(5, [(3, 1)]), Some((3, 3)));
    }

    #[test]
    fn a_delta_has_a_count_for_each_hour_category_and_name() {
        // One each millisecond, in three categories; the last is hours later.
        let events =
            [(0, "a"), (3, "a"), (3, "b"), (4, "a"), (30_000_000, "a")].map(|(n, name)| event_with(n, name, "1"));
        let deltas = deltas(&events, 1000);
        let expected =
            r#"[{"447072":{"category 0":{"a":2,"b":1},"category 1":{"a":1}},"447080":{"category 0":{"a":1}}}]"#;
        assert_eq!(format!("[{}]", deltas.join(",")), expected);
    }

    #[test]
    fn a_delta_that_is_too_long_is_cut() {
        let events: Vec<_> = (0..50).map(|number| event_with(0, &format!("\u{1}\"{number}"), "1")).collect();
        let deltas = deltas(&events, 200);
        assert!(deltas.len() > 5 && deltas.iter().all(|delta| delta.len() <= 200), "{deltas:?}");
        let counts = deltas.iter().flat_map(|delta| counts(delta).unwrap_or_else(|error| panic!("{error}")));
        let names = counts.flat_map(|(_, categories)| categories).flat_map(|(_, names)| names);
        assert_eq!(names.map(|(_, count)| count).sum::<i64>(), 50);
        assert_eq!(super::deltas(&events[..1], 0).len(), 1);
    }
}

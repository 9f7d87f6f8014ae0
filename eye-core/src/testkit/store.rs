//! The conformance suite for stores: what the query API relies on.

use super::sink::SinkFixture;
use super::{event_with, events, timestamp};
use crate::event::{Event, EventFields};
use crate::sink::BuiltSink;
use crate::store::{EventFilter, EventPage, EventQuery, MAX_PAGE_BYTES, MAX_PAGE_EVENTS, PageStart};

/// Runs every case, each on a fixture of its own.
///
/// # Panics
/// At the first case that does not hold.
pub async fn suite<F: SinkFixture>(new_fixture: impl AsyncFn() -> F) {
    macro_rules! run {
        ($($case:ident)*) => { $(
            println!("store suite: {}", stringify!($case));
            let fixture = new_fixture().await;
            let sink = fixture.open().await;
            sink.sink.prepare().await.unwrap();
            $case(&sink).await;
        )* };
    }
    run! {
        an_empty_store_answers
        events_read_back_as_they_were_written
        newest_first_with_ties_in_a_fixed_order
        filters_are_exact_and_combine
        time_bounds_are_inclusive
        offsets_step_through
        pages_stay_stable_while_events_arrive
        pages_lead_back_the_way_they_came
        the_limit_is_capped
        large_events_end_a_page_early
        long_pages_are_whole_wherever_they_start
    }
}

async fn query(sink: &BuiltSink, query: EventQuery) -> EventPage {
    sink.store.as_ref().expect("a sink that answers queries has a store").page(query).await.unwrap()
}

fn newest(filter: EventFilter) -> EventQuery {
    EventQuery { filter, start: PageStart::Newest, limit: MAX_PAGE_EVENTS }
}

fn newest_first(mut events: Vec<Event>) -> Vec<Event> {
    events.sort_by_key(|event| std::cmp::Reverse(event.key()));
    events
}

async fn an_empty_store_answers(sink: &BuiltSink) {
    let page = query(sink, newest(EventFilter::default())).await;
    assert_eq!((page.count, page.events.len(), page.has_older, page.has_newer), (0, 0, false, false));
}

async fn events_read_back_as_they_were_written(sink: &BuiltSink) {
    let written = vec![
        event_with(0, "naïve ☃ 🦀 ' \" \\ \u{1}", r#"{"b":1,"a":"🦀\ud83e\udd80","b":[1.10,1e3,-0.0]}"#),
        event_with(1, " x ", "12345678901234567890"),
        event_with(2, "n", &format!(r#""{}""#, "x".repeat(1024 * 1024 - 2))),
    ];
    sink.sink.write(&written).await.unwrap();
    let page = query(sink, newest(EventFilter::default())).await;
    assert_eq!(page.events, newest_first(written));
}

async fn newest_first_with_ties_in_a_fixed_order(sink: &BuiltSink) {
    let mut tied: Vec<Event> = events(0, 50).iter().map(|event| at(event, 7)).collect();
    tied.extend(events(100, 150));
    sink.sink.write(&tied).await.unwrap();
    let page = query(sink, newest(EventFilter::default())).await;
    assert_eq!(page.events, newest_first(tied));
}

/// The same event at another instant.
fn at(event: &Event, n: u32) -> Event {
    Event::from(EventFields {
        id: event.id(),
        timestamp: timestamp(n),
        received_at: event.received_at(),
        session_id: event.session_id(),
        category: event.category(),
        name: event.name(),
        data: event.data(),
        origin: event.origin(),
    })
}

async fn filters_are_exact_and_combine(sink: &BuiltSink) {
    let mut written = events(0, 120);
    // What loose collations take for the same text.
    for (n, name) in (200..).zip(["abc", "ABC", "abc ", "àbc", " abc", "ab", "a%c", "a_c", "abc\u{1}"]) {
        written.push(event_with(n, name, "1"));
    }
    sink.sink.write(&written).await.unwrap();
    let text = |text: &str| Some(text.to_owned());
    let base = EventFilter::default;
    let filters = [
        base(),
        EventFilter { session_id: text("session 3"), ..base() },
        EventFilter { category: text("category 1"), ..base() },
        EventFilter { name: text("name 2"), ..base() },
        EventFilter { name: text("abc"), ..base() },
        EventFilter { name: text("abc "), ..base() },
        EventFilter { name: text("ABC"), ..base() },
        EventFilter { name: text("a%c"), ..base() },
        EventFilter { name: text("nobody"), ..base() },
        EventFilter { session_id: text("session 3"), category: text("category 1"), ..base() },
        EventFilter { session_id: text("session 3"), name: text("name 3"), ..base() },
        EventFilter { category: text("category 1"), name: text("name 2"), ..base() },
        EventFilter { session_id: text("session 4"), category: text("category 1"), name: text("name 4"), ..base() },
        EventFilter { session_id: text("session 4"), timestamp_after: Some(timestamp(30)), ..base() },
        EventFilter { name: text("name 2"), timestamp_before: Some(timestamp(60)), ..base() },
        EventFilter {
            category: text("category 2"),
            timestamp_after: Some(timestamp(30)),
            timestamp_before: Some(timestamp(60)),
            ..base()
        },
    ];
    for filter in filters {
        let expected: Vec<Event> = newest_first(written.clone()).into_iter().filter(|e| matches(&filter, e)).collect();
        let page = query(sink, newest(filter.clone())).await;
        assert_eq!(page.events, expected, "{filter:?}");
        assert_eq!(page.count, expected.len() as u64, "{filter:?}");
    }
}

fn matches(filter: &EventFilter, event: &Event) -> bool {
    let equal = |wanted: &Option<String>, actual: &str| wanted.as_ref().is_none_or(|wanted| wanted == actual);
    equal(&filter.session_id, event.session_id())
        && equal(&filter.category, event.category())
        && equal(&filter.name, event.name())
        && filter.timestamp_after.is_none_or(|after| event.timestamp() >= after)
        && filter.timestamp_before.is_none_or(|before| event.timestamp() <= before)
}

async fn time_bounds_are_inclusive(sink: &BuiltSink) {
    sink.sink.write(&events(0, 20)).await.unwrap();
    let filter = EventFilter {
        timestamp_after: Some(timestamp(5)),
        timestamp_before: Some(timestamp(10)),
        ..EventFilter::default()
    };
    assert_eq!(query(sink, newest(filter)).await.events, newest_first(events(5, 11)));
}

async fn offsets_step_through(sink: &BuiltSink) {
    sink.sink.write(&events(0, 25)).await.unwrap();
    let all = newest_first(events(0, 25));
    for (offset, expected, older, newer) in [
        (0, &all[..10], true, false),
        (10, &all[10..20], true, true),
        (20, &all[20..], false, true),
        (25, &[], false, true),
    ] {
        let start = PageStart::Offset(offset);
        let page = query(sink, EventQuery { filter: EventFilter::default(), start, limit: 10 }).await;
        assert_eq!(page.events, expected);
        assert_eq!((page.count, page.has_older, page.has_newer), (25, older, newer), "offset {offset}");
    }
    let start = PageStart::Offset(u64::MAX);
    let page = query(sink, EventQuery { filter: EventFilter::default(), start, limit: 10 }).await;
    assert_eq!((page.events.len(), page.count), (0, 25));
}

async fn pages_stay_stable_while_events_arrive(sink: &BuiltSink) {
    let written = events(1000, 1500);
    sink.sink.write(&written).await.unwrap();
    let mut seen = Vec::new();
    let mut start = PageStart::Newest;
    for arrived in 0.. {
        let page = query(sink, EventQuery { filter: EventFilter::default(), start, limit: 37 }).await;
        let Some(last) = page.events.last() else { break };
        start = PageStart::OlderThan(last.key());
        seen.extend(page.events.iter().filter(|event| written.contains(event)).cloned());
        if !page.has_older {
            break;
        }
        // Newer ones, and ones that fall in between what was read and what was not.
        sink.sink.write(&events(2000 + arrived * 10, 2000 + arrived * 10 + 10)).await.unwrap();
        let between = at(&event_with(5000 + arrived, "between", "1"), 1000 + (arrived * 131) % 500);
        sink.sink.write(&[between]).await.unwrap();
    }
    assert_eq!(seen, newest_first(written));
}

async fn pages_lead_back_the_way_they_came(sink: &BuiltSink) {
    sink.sink.write(&events(0, 100)).await.unwrap();
    let filter = EventFilter { category: Some("category 1".into()), ..EventFilter::default() };
    let page = async |start| query(sink, EventQuery { filter: filter.clone(), start, limit: 10 }).await;
    let first = page(PageStart::Newest).await;
    let second = page(PageStart::OlderThan(first.events[9].key())).await;
    let third = page(PageStart::OlderThan(second.events[9].key())).await;
    assert!(second.has_newer && third.has_newer && second.has_older);
    let back = page(PageStart::NewerThan(third.events[0].key())).await;
    assert_eq!(back.events, second.events);
    assert!(back.has_newer && back.has_older);
    let back = page(PageStart::NewerThan(second.events[0].key())).await;
    assert_eq!(back.events, first.events);
    assert!(!back.has_newer && back.has_older);
    let beyond = page(PageStart::NewerThan(first.events[0].key())).await;
    assert_eq!((beyond.events.len(), beyond.count), (0, 33));
}

async fn the_limit_is_capped(sink: &BuiltSink) {
    sink.sink.write(&events(0, MAX_PAGE_EVENTS + 1)).await.unwrap();
    let limit = u32::MAX;
    let page = query(sink, EventQuery { filter: EventFilter::default(), start: PageStart::Newest, limit }).await;
    assert_eq!(page.events.len(), MAX_PAGE_EVENTS as usize);
    assert!(page.has_older);
}

async fn large_events_end_a_page_early(sink: &BuiltSink) {
    let data = format!(r#""{}""#, "x".repeat(1024 * 1024 - 2));
    let written: Vec<Event> = (0..20).map(|n| event_with(n, "large", &data)).collect();
    sink.sink.write(&written).await.unwrap();
    let first = query(sink, newest(EventFilter::default())).await;
    assert!(first.events.len() * 1024 * 1024 <= MAX_PAGE_BYTES, "{} events of 1 MiB", first.events.len());
    assert!(first.has_older);
    let start = PageStart::OlderThan(first.events.last().unwrap().key());
    let second = query(sink, EventQuery { start, ..newest(EventFilter::default()) }).await;
    assert!(!second.has_older);
    assert_eq!([first.events, second.events].concat(), newest_first(written));
}

async fn long_pages_are_whole_wherever_they_start(sink: &BuiltSink) {
    sink.sink.write(&events(0, 300)).await.unwrap();
    let all = newest_first(events(0, 300));
    let cases = [
        (PageStart::Newest, &all[..250], true, false),
        (PageStart::Offset(5), &all[5..255], true, true),
        (PageStart::OlderThan(all[19].key()), &all[20..270], true, true),
        (PageStart::OlderThan(all[99].key()), &all[100..], false, true),
        (PageStart::NewerThan(all[280].key()), &all[30..280], true, true),
        (PageStart::NewerThan(all[200].key()), &all[..200], true, false),
    ];
    for (start, expected, older, newer) in cases {
        let page = query(sink, EventQuery { filter: EventFilter::default(), start: start.clone(), limit: 250 }).await;
        assert_eq!(page.events, expected, "{start:?}");
        assert_eq!((page.has_older, page.has_newer, page.count), (older, newer, 300), "{start:?}");
    }
}

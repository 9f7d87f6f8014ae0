//! Walks: pages followed by `next` and `previous`, also while events arrive.

use std::collections::HashMap;

use eye_harness::Eye;

use crate::api::{Page, event, page, page_at, store};

on_every_database! {
    next_visits_every_event_once_under_load
    offset_links_lead_both_ways
}

const EVENTS: usize = 10_000;
const PAGE: usize = 200;

/// Returns event `number` of a kind. Several events share an instant, and the two kinds overlap in time.
fn numbered(kind: &str, number: usize) -> String {
    let timestamp = format!("\"2021-01-01T00:{:02}:{:02}Z\"", number / 7 / 60 % 60, number / 7 % 60);
    event(&[("category", &format!("\"{kind}\"")), ("name", &format!("\"{number}\"")), ("timestamp", &timestamp)])
}

/// Counts the visits of each event of a kind.
fn count(seen: &mut HashMap<String, usize>, kind: &str, page: &Page) {
    for event in page.results.iter().filter(|event| event.category == kind) {
        *seen.entry(event.name.clone()).or_default() += 1;
    }
}

#[track_caller]
fn assert_each_once(seen: &HashMap<String, usize>) {
    let repeated: Vec<_> = seen.iter().filter(|(_, times)| **times != 1).collect();
    assert!(repeated.is_empty(), "visited more than once: {repeated:?}");
    assert_eq!(seen.len(), EVENTS, "every event is visited");
}

async fn next_visits_every_event_once_under_load(eye: &Eye) {
    // The events arrive out of order.
    let scattered = |kind, number| numbered(kind, number * 7919 % EVENTS);
    for start in (0..EVENTS).step_by(500) {
        store(eye, &(start..start + 500).map(|number| scattered("early", number)).collect::<Vec<_>>()).await;
    }

    // During each request as many events arrive, some newer and some older than the page.
    let limit = PAGE.to_string();
    let mut current = page(eye, &[("limit", &limit)]).await;
    assert_eq!((current.count as usize, current.previous.as_deref()), (EVENTS, None));
    let (mut seen, mut late) = (HashMap::new(), 0);
    count(&mut seen, "early", &current);
    while let Some(next) = &current.next {
        let arriving: Vec<String> = (late..EVENTS.min(late + PAGE)).map(|number| scattered("late", number)).collect();
        late += arriving.len();
        let sent = async {
            if !arriving.is_empty() {
                store(eye, &arriving).await;
            }
        };
        (current, ()) = tokio::join!(page_at(eye.client(), next), sent);
        count(&mut seen, "early", &current);
    }
    assert_eq!(late, EVENTS, "all late events arrived during the walk");
    assert_each_once(&seen);

    // The walk back visits the early and the late events.
    let (mut early, mut others, mut last) = (HashMap::new(), HashMap::new(), current);
    loop {
        count(&mut early, "early", &last);
        count(&mut others, "late", &last);
        assert_eq!(last.count as usize, 2 * EVENTS);
        let Some(previous) = &last.previous else { break };
        last = page_at(eye.client(), previous).await;
    }
    assert_each_once(&early);
    assert_each_once(&others);
    let newest = page(eye, &[("limit", &limit)]).await;
    assert_eq!(last.results[0].timestamp, newest.results[0].timestamp, "it ends where the next walk would start");
}

async fn offset_links_lead_both_ways(eye: &Eye) {
    store(eye, &(0..95).map(|number| numbered("early", number)).collect::<Vec<_>>()).await;
    let all: Vec<String> = (page(eye, &[]).await.results.into_iter()).map(|event| event.name).collect();
    let mut forth = vec![page(eye, &[("limit", "10"), ("offset", "0")]).await];
    while let Some(next) = &forth.last().unwrap().next {
        forth.push(page_at(eye.client(), next).await);
    }
    assert_eq!(forth.iter().flat_map(Page::names).collect::<Vec<_>>(), all);
    let last = forth.last().unwrap();
    let mut back = vec![page_at(eye.client(), last.previous.as_ref().unwrap()).await];
    while let Some(previous) = &back.last().unwrap().previous {
        back.push(page_at(eye.client(), previous).await);
    }
    assert_eq!(back.iter().rev().flat_map(Page::names).collect::<Vec<_>>(), all[..90]);
}

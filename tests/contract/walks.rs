//! Following `next` and `previous` while events arrive.

use std::collections::HashMap;

use eye_harness::Eye;

use crate::api::{Page, event, page, page_at, store};

on_every_database! {
    next_sees_every_event_once_while_others_arrive
    pages_by_offset_lead_both_ways
}

const EVENTS: usize = 10_000;
const PAGE: usize = 200;

/// The event number `number` of a kind; several share an instant, and those of two kinds are mixed in time.
fn numbered(kind: &str, number: usize) -> String {
    let timestamp = format!("\"2021-01-01T00:{:02}:{:02}Z\"", number / 7 / 60 % 60, number / 7 % 60);
    event(&[("category", &format!("\"{kind}\"")), ("name", &format!("\"{number}\"")), ("timestamp", &timestamp)])
}

/// How often each event of a kind was seen.
fn count(seen: &mut HashMap<String, usize>, kind: &str, page: &Page) {
    for event in page.results.iter().filter(|event| event.category == kind) {
        *seen.entry(event.name.clone()).or_default() += 1;
    }
}

#[track_caller]
fn assert_each_once(seen: &HashMap<String, usize>) {
    let repeated: Vec<_> = seen.iter().filter(|(_, times)| **times != 1).collect();
    assert!(repeated.is_empty(), "seen more than once: {repeated:?}");
    assert_eq!(seen.len(), EVENTS, "all are seen");
}

async fn next_sees_every_event_once_while_others_arrive(eye: &Eye) {
    // Not in the order of their instants.
    let scattered = |kind, number| numbered(kind, number * 7919 % EVENTS);
    for start in (0..EVENTS).step_by(500) {
        store(eye, &(start..start + 500).map(|number| scattered("early", number)).collect::<Vec<_>>()).await;
    }

    // While each page is read, as many events arrive, some newer and some older than it.
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
    assert_eq!(late, EVENTS, "all of the others arrived meanwhile");
    assert_each_once(&seen);

    // The way back sees them, and the others, once more.
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

async fn pages_by_offset_lead_both_ways(eye: &Eye) {
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

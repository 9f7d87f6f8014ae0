//! Following links from page to page.

use std::collections::BTreeSet;

use super::*;

/// Follows `direction` to its end, lets `between` happen after each page, and returns the ids of each page.
async fn walk(api: &Router, start: &str, direction: &str, mut between: impl FnMut()) -> (Vec<Vec<String>>, String) {
    let mut link = start.to_owned();
    let mut pages = Vec::new();
    loop {
        let answer = follow(api, &link).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let results = answer.json()["results"].as_array().unwrap().clone();
        pages.push(results.iter().map(|result| result["id"].as_str().unwrap().to_owned()).collect());
        between();
        match answer.link(direction) {
            Some(next) => link = next,
            None => return (pages, link),
        }
        assert!(pages.len() < 1000, "the walk does not end");
    }
}

#[tokio::test]
async fn cursor_walk_sees_every_old_event_exactly_once() {
    let old: Vec<Event> = (0..10_000).map(|n| event(n * 2)).collect();
    let ids = |events: &[Event]| events.iter().map(|event| event.id().to_string()).collect::<BTreeSet<_>>();
    let store = MemoryStore::with(old.iter().cloned());
    let api = api(store.clone());
    // Newer, older, and between the old ones: 10,000 more, in an order of their own.
    let mut arriving = (0..10_000u32).map(|n| event((n * 7919 % 10_000) * 2 + 1)).collect::<Vec<_>>().into_iter();
    let start = "http://eye.example:8000/api/event/?limit=70&include=id";

    let (pages, last) =
        walk(&api, start, "next", || arriving.by_ref().take(70).for_each(|event| store.insert(event))).await;
    let seen: Vec<String> = pages.iter().flatten().cloned().collect();
    let unique: BTreeSet<String> = seen.iter().cloned().collect();
    assert_eq!(unique.len(), seen.len(), "no event twice");
    assert!(ids(&old).is_subset(&unique), "every old event");
    assert!(arriving.len() < 1000, "events did arrive");

    let (back, _) = walk(&api, &last, "previous", || {}).await;
    let seen: Vec<String> = back.iter().flatten().cloned().collect();
    let unique: BTreeSet<String> = seen.iter().cloned().collect();
    assert_eq!(unique.len(), seen.len(), "no event twice on the way back");
    assert_eq!(unique, ids(&store.events.lock().unwrap()), "all that is stored by now");
}

#[tokio::test]
async fn walk_back_is_the_walk_forward_in_reverse() {
    let api = api(MemoryStore::with((0..1000).map(event)));
    for start in ["?limit=70&include=id", "?limit=70&include=id&offset=0", "?limit=100&include=id&category=odd"] {
        let start = format!("http://eye.example:8000/api/event/{start}");
        let (mut pages, last) = walk(&api, &start, "next", || {}).await;
        let (back, _) = walk(&api, &last, "previous", || {}).await;
        pages.reverse();
        assert_eq!(pages, back, "{start}");
    }
}

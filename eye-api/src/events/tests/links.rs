//! Links, byte for byte.

use eye_core::event::EventKey;

use super::*;

#[tokio::test]
async fn offset_links_byte_for_byte() {
    let api = api(MemoryStore::with((0..10).map(event)));
    let base = "http://eye.example:8000/api/event/";
    let cases = [
        ("?offset=0&limit=4", Some("?limit=4&offset=4"), None),
        ("?offset=3&limit=4", Some("?limit=4&offset=7"), Some("?limit=4")),
        ("?offset=4&limit=4", Some("?limit=4&offset=8"), Some("?limit=4")),
        ("?offset=5&limit=4", Some("?limit=4&offset=9"), Some("?limit=4&offset=1")),
        ("?offset=6&limit=4", None, Some("?limit=4&offset=2")),
        ("?offset=8&limit=4", None, Some("?limit=4&offset=4")),
        ("?offset=2", None, Some("?limit=100")),
        ("?offset=5000&limit=5000", None, Some("?limit=1000&offset=4000")),
        ("?offset=9223372036854775807", None, Some("?limit=100&offset=9223372036854775707")),
        (
            "?session_id=s&offset=1&name=n&limit=1&format=json&timestamp_start=2020-01-01+00:00",
            Some("?format=json&limit=1&name=n&offset=2&session_id=s&timestamp_start=2020-01-01+00%3A00"),
            Some("?format=json&limit=1&name=n&session_id=s&timestamp_start=2020-01-01+00%3A00"),
        ),
    ];
    for (query, next, previous) in cases {
        let answer = get(&api, &format!("/api/event/{query}")).await;
        let url = |query: Option<&str>| query.map(|query| format!("{base}{query}"));
        assert_eq!(answer.link("next"), url(next), "next of {query}");
        assert_eq!(answer.link("previous"), url(previous), "previous of {query}");
    }
}

#[tokio::test]
async fn cursor_links_byte_for_byte() {
    let events = [event(2), event(1), event(0)].map(|event| event.key());
    let store = MemoryStore::with((0..3).map(event));
    let api = api(store.clone());
    let mut newest_first = events;
    newest_first.sort_by(|a, b| b.cmp(a));
    let link = |direction, key: EventKey| {
        let cursor = cursor::encode(direction, key);
        Some(format!("http://eye.example:8000/api/event?cursor={cursor}&include=id&limit=1&name=n"))
    };
    use cursor::Direction::{Newer, Older};

    let first = get(&api, "/api/event?name=n&limit=1&include=id").await;
    assert_eq!((first.link("next"), first.link("previous")), (link(Older, newest_first[0]), None));
    let second = follow(&api, &first.link("next").unwrap()).await;
    assert_eq!(
        (second.link("next"), second.link("previous")),
        (link(Older, newest_first[1]), link(Newer, newest_first[1]))
    );
    let third = follow(&api, &second.link("next").unwrap()).await;
    assert_eq!((third.link("next"), third.link("previous")), (None, link(Newer, newest_first[2])));
    let back = follow(&api, &third.link("previous").unwrap()).await;
    assert_eq!(back.text, second.text);
    let start = follow(&api, &back.link("previous").unwrap()).await;
    assert_eq!(start.text, first.text);
}

#[tokio::test]
async fn filters_in_links_are_encoded_as_by_django() {
    let name = "a b+c&d=e/ä~_.-*'%👁\"";
    let events = (0..2).map(|n| Event::from(EventFields { id: EventId::from_u128(n), name, ..fields() }));
    let api = api(MemoryStore::with(events));
    let sent = "/api/event/?name=a%20b%2Bc%26d%3De%2F%C3%A4~_.-*%27%25%F0%9F%91%81%22&limit=1&offset=0";
    let answer = get(&api, sent).await;
    let next = answer.link("next").unwrap();
    assert_eq!(
        next,
        "http://eye.example:8000/api/event/?limit=1&name=a+b%2Bc%26d%3De%2F%C3%A4~_.-%2A%27%25%F0%9F%91%81%22&offset=1"
    );
    assert_eq!(follow(&api, &next).await.json()["results"][0]["name"], name);
}

#[tokio::test]
async fn links_start_with_the_url_the_client_used() {
    let store = MemoryStore::with((0..2).map(event));
    let direct = api(store.clone());
    let proxied = app(store, &QueryConfig::default(), true);
    let host = ("host", "eye.example:8000");
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&Router, &str, Headers<'_>, &str); 16] = [
        (&direct, "", &[host], "http://eye.example:8000"),
        (&direct, "", &[("host", "[::1]:8000")], "http://[::1]:8000"),
        (&direct, "", &[], ""),
        (&direct, "", &[("host", "")], ""),
        (&direct, "", &[("host", "evil/x?")], ""),
        (&direct, "", &[("host", "user@evil")], ""),
        (&direct, "", &[("host", "a\"b")], ""),
        (&direct, "", &[("host", "a b")], ""),
        (&direct, "http://asked.example", &[host], "http://asked.example"),
        (&direct, "", &[host, ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil")], "http://eye.example:8000"),
        (&proxied, "", &[host], "http://eye.example:8000"),
        (&proxied, "", &[host, ("x-forwarded-proto", "HTTPS")], "https://eye.example:8000"),
        (
            &proxied,
            "",
            &[host, ("x-forwarded-proto", "https, http"), ("x-forwarded-host", "a.example, b")],
            "https://a.example",
        ),
        (&proxied, "", &[host, ("x-forwarded-proto", "javascript")], "http://eye.example:8000"),
        (&proxied, "", &[host, ("x-forwarded-host", "evil/x")], "http://eye.example:8000"),
        (&proxied, "", &[host, ("x-forwarded-host", "")], "http://eye.example:8000"),
    ];
    for (router, target, headers, start) in cases {
        let mut request = Request::get(format!("{target}/api/event?limit=1&offset=0"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let next = ask(router, request.body(Body::empty()).unwrap()).await.link("next").unwrap();
        assert_eq!(next, format!("{start}/api/event?limit=1&offset=1"), "{target} {headers:?}");
    }
}

//! The API over a correct store in memory: what it answers, byte for byte.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Mutex;

use async_trait::async_trait;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use eye_core::event::{Event, EventFields, EventId};
use eye_core::sink::WriteError;
use eye_core::store::{EventFilter, EventKey, EventStore, PageStart};
use eye_core::timestamp::Timestamp;
use serde_json::Value;
use tokio::sync::Notify;
use tower::ServiceExt;

use super::*;

const ALLOWED: &str = "GET, POST, HEAD, OPTIONS";

// ---------------------------------------------------------------------------------------------------------- the store

/// Newest first.
#[derive(Default)]
struct MemorySink {
    events: Mutex<Vec<Event>>,
}

impl MemorySink {
    fn with(events: impl IntoIterator<Item = Event>) -> Arc<Self> {
        let sink = Self::default();
        events.into_iter().for_each(|event| sink.insert(event));
        Arc::new(sink)
    }

    fn insert(&self, event: Event) {
        let mut events = self.events.lock().unwrap();
        let at = events.partition_point(|other| other.key() > event.key());
        events.insert(at, event);
    }
}

#[async_trait]
impl Sink for MemorySink {
    async fn write(&self, _batch: &[Event]) -> Result<(), WriteError> {
        unreachable!("the API writes nothing")
    }

    fn store(&self) -> Option<&dyn EventStore> {
        Some(self)
    }
}

#[async_trait]
impl EventStore for MemorySink {
    async fn query(&self, query: EventQuery) -> Result<EventPage, StoreError> {
        let events = self.events.lock().unwrap();
        let matching: Vec<&Event> = events.iter().filter(|event| matches(&query.filter, event)).collect();
        let limit = query.limit as usize;
        let start = match query.start {
            PageStart::Newest => 0,
            PageStart::Offset(offset) => usize::try_from(offset).unwrap().min(matching.len()),
            PageStart::OlderThan(key) => matching.partition_point(|event| event.key() >= key),
            PageStart::NewerThan(key) => matching.partition_point(|event| event.key() > key).saturating_sub(limit),
        };
        let end = match query.start {
            PageStart::NewerThan(key) => matching.partition_point(|event| event.key() > key),
            _ => (start + limit).min(matching.len()),
        };
        Ok(EventPage {
            count: matching.len() as u64,
            events: matching[start..end].iter().map(|&event| event.clone()).collect(),
            has_older: end < matching.len(),
            has_newer: start > 0,
        })
    }
}

fn matches(filter: &EventFilter, event: &Event) -> bool {
    filter.session_id.as_ref().is_none_or(|wanted| wanted == event.session_id())
        && filter.category.as_ref().is_none_or(|wanted| wanted == event.category())
        && filter.name.as_ref().is_none_or(|wanted| wanted == event.name())
        && filter.timestamp_after.is_none_or(|bound| event.timestamp() >= bound)
        && filter.timestamp_before.is_none_or(|bound| event.timestamp() <= bound)
}

fn at(text: &str) -> Timestamp {
    Timestamp::from_micros(chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()).unwrap()
}

/// The event number `n`: three share each second, ids are not in the order of time.
fn event(n: u32) -> Event {
    Event::from(EventFields {
        id: EventId::from_u128(u128::from(n.wrapping_mul(2_654_435_761))),
        timestamp: Timestamp::from_micros(1_600_000_000_000_000 + i64::from(n / 3) * 1_000_000).unwrap(),
        received_at: Timestamp::MIN,
        session_id: "s",
        category: if n.is_multiple_of(2) { "even" } else { "odd" },
        name: "n",
        data: "1",
    })
}

fn contract_event() -> Event {
    Event::from(EventFields {
        id: EventId::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001),
        timestamp: at("2021-01-01T09:15:27.243860Z"),
        received_at: at("2021-01-01T09:15:28Z"),
        session_id: "e2085be5-9137-4e4e-80b5-f1ffddc25423",
        category: "page interaction",
        name: "cta click",
        data: r#"{"host":"www.consumeraffairs.com","path":"/","element":"chat bubble"}"#,
    })
}

// ------------------------------------------------------------------------------------------------------------- asking

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    fn link(&self, key: &str) -> Option<String> {
        self.json()[key].as_str().map(str::to_owned)
    }
}

fn api(sink: Arc<dyn Sink>) -> Router {
    router(sink, &QueryConfig::default(), false, ALLOWED)
}

async fn ask(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap();
    Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

async fn get(router: &Router, url: &str) -> Answer {
    ask(router, Request::get(url).header("host", "eye.example:8000").body(Body::empty()).unwrap()).await
}

/// Asks for a link as a client does: the host goes to the header, the rest to the request line.
async fn follow(router: &Router, link: &str) -> Answer {
    get(router, link.strip_prefix("http://eye.example:8000").unwrap()).await
}

// -------------------------------------------------------------------------------------------------------------- answers

#[tokio::test]
async fn all_wrong_parameters_are_reported_at_once() {
    let answer =
        get(&api(MemorySink::with([])), "/api/event/?timestamp_after=nonsense&sesion_id=1&limit=abc&name=ok").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
    assert_eq!(
        answer.text,
        r#"{"limit":["A valid integer is required."],"sesion_id":["Unknown parameter. Did you mean `session_id`?"],"timestamp_after":["Enter a valid date/time."]}"#
    );
}

#[tokio::test]
async fn the_contracts_example_byte_for_byte() {
    let api = api(MemorySink::with([contract_event(), event(1), event(2)]));
    let url = "/api/event/?timestamp_after=2021-01-01&timestamp_before=2021-01-02&session_id=e2085be5-9137-4e4e-80b5-f1ffddc25423";
    let answer = get(&api, url).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
    assert_eq!(answer.headers[ALLOW], "GET, POST, HEAD, OPTIONS");
    assert_eq!(answer.headers[VARY], "Accept");
    assert_eq!(
        answer.text,
        concat!(
            r#"{"count":1,"next":null,"previous":null,"results":[{"session_id":"e2085be5-9137-4e4e-80b5-f1ffddc25423","#,
            r#""timestamp":"2021-01-01T09:15:27.243860Z","category":"page interaction","name":"cta click","#,
            r#""data":{"host":"www.consumeraffairs.com","path":"/","element":"chat bubble"}}]}"#
        )
    );
}

#[tokio::test]
async fn no_event_is_an_empty_page() {
    let answer = get(&api(MemorySink::with([])), "/api/event").await;
    assert_eq!(answer.text, r#"{"count":0,"next":null,"previous":null,"results":[]}"#);
}

#[tokio::test]
async fn include_appends_its_keys_in_a_fixed_order() {
    let api = api(MemorySink::with([contract_event()]));
    for include in ["id,received_at", "received_at,id"] {
        let answer = get(&api, &format!("/api/event/?include={include}")).await;
        let end =
            r#""chat bubble"},"id":"01920000-0000-7000-8000-000000000001","received_at":"2021-01-01T09:15:28Z"}]}"#;
        assert!(answer.text.ends_with(end), "{}", answer.text);
    }
}

#[tokio::test]
async fn texts_are_escaped_and_data_is_not_touched() {
    let data = r#"{"z":1.10,"a":12345678901234567890,"e":"\u00e4\/","ä":[]}"#;
    let odd = "a\"b\\c\u{1}\u{2028}👁";
    let event = Event::from(EventFields { category: odd, name: odd, session_id: odd, data, ..fields() });
    let answer = get(&api(MemorySink::with([event])), "/api/event/").await;
    assert!(answer.text.ends_with(&format!("\"data\":{data}}}]}}")), "{}", answer.text);
    let result = &answer.json()["results"][0];
    assert_eq!([&result["session_id"], &result["category"], &result["name"]], [odd; 3]);
}

fn fields() -> EventFields<'static> {
    EventFields {
        id: EventId::nil(),
        timestamp: Timestamp::MIN,
        received_at: Timestamp::MIN,
        session_id: "s",
        category: "c",
        name: "n",
        data: "1",
    }
}

#[tokio::test]
async fn a_large_page_is_streamed_whole() {
    for bytes in [60_000, 65_000, 70_000, 1_000_000] {
        let data = format!("\"{}\"", "x".repeat(bytes));
        let events = (0..7).map(|n| Event::from(EventFields { id: EventId::from_u128(n), data: &data, ..fields() }));
        let answer = get(&api(MemorySink::with(events)), "/api/event/?include=id").await;
        let results = answer.json()["results"].as_array().unwrap().clone();
        let expected: Vec<String> = (0..7).rev().map(|n| EventId::from_u128(n).to_string()).collect();
        assert_eq!(results.iter().map(|result| result["id"].as_str().unwrap()).collect::<Vec<_>>(), expected);
        assert!(results.iter().all(|result| result["data"].as_str().unwrap().len() == bytes));
    }
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body() {
    let api = api(MemorySink::with([contract_event()]));
    let got = get(&api, "/api/event/").await;
    let head = ask(&api, Request::head("/api/event/").body(Body::empty()).unwrap()).await;
    assert_eq!((head.status, head.text.as_str()), (StatusCode::OK, ""));
    for (name, value) in &got.headers {
        assert_eq!(head.headers.get(name), Some(value), "{name}");
    }
    let length = head.headers["content-length"].to_str().unwrap();
    assert_eq!(length, got.text.len().to_string());
}

#[tokio::test]
async fn the_answer_is_json_whatever_is_accepted() {
    let api = api(MemorySink::with([]));
    let request = Request::get("/api/event/").header("accept", "text/html").body(Body::empty()).unwrap();
    let answer = ask(&api, request).await;
    assert_eq!((answer.status, &answer.headers[CONTENT_TYPE]), (StatusCode::OK, &"application/json".parse().unwrap()));
}

#[tokio::test]
async fn the_post_routes_can_share_the_path() {
    let post = Router::new().route("/api/event/", axum::routing::post(|| async { "posted" }));
    let merged = api(MemorySink::with([])).merge(post);
    assert_eq!(ask(&merged, Request::post("/api/event/").body(Body::empty()).unwrap()).await.text, "posted");
    assert_eq!(get(&merged, "/api/event/").await.status, StatusCode::OK);
}

// ---------------------------------------------------------------------------------------------------------------- links

#[tokio::test]
async fn offset_links_byte_for_byte() {
    let api = api(MemorySink::with((0..10).map(event)));
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
    let sink = MemorySink::with((0..3).map(event));
    let api = api(sink.clone());
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
async fn filters_survive_in_links_as_django_encodes_them() {
    let name = "a b+c&d=e/ä~_.-*'%👁\"";
    let events = (0..2).map(|n| Event::from(EventFields { id: EventId::from_u128(n), name, ..fields() }));
    let api = api(MemorySink::with(events));
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
async fn links_start_as_the_client_sees_the_server() {
    let sink = MemorySink::with((0..2).map(event));
    let direct = api(sink.clone());
    let proxied = router(sink, &QueryConfig::default(), true, ALLOWED);
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

// -------------------------------------------------------------------------------------------------------------- walking

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
async fn a_walk_by_cursor_sees_what_was_there_exactly_once_while_others_arrive() {
    let old: Vec<Event> = (0..10_000).map(|n| event(n * 2)).collect();
    let ids = |events: &[Event]| events.iter().map(|event| event.id().to_string()).collect::<BTreeSet<_>>();
    let sink = MemorySink::with(old.iter().cloned());
    let api = api(sink.clone());
    // Newer, older, and between the old ones: 10,000 more, in an order of their own.
    let mut arriving = (0..10_000u32).map(|n| event((n * 7919 % 10_000) * 2 + 1)).collect::<Vec<_>>().into_iter();
    let start = "http://eye.example:8000/api/event/?limit=70&include=id";

    let (pages, last) =
        walk(&api, start, "next", || arriving.by_ref().take(70).for_each(|event| sink.insert(event))).await;
    let seen: Vec<String> = pages.iter().flatten().cloned().collect();
    let unique: BTreeSet<String> = seen.iter().cloned().collect();
    assert_eq!(unique.len(), seen.len(), "no event twice");
    assert!(ids(&old).is_subset(&unique), "every old event");
    assert!(arriving.len() < 1000, "events did arrive");

    let (back, _) = walk(&api, &last, "previous", || {}).await;
    let seen: Vec<String> = back.iter().flatten().cloned().collect();
    let unique: BTreeSet<String> = seen.iter().cloned().collect();
    assert_eq!(unique.len(), seen.len(), "no event twice on the way back");
    assert_eq!(unique, ids(&sink.events.lock().unwrap()), "all that is stored by now");
}

#[tokio::test]
async fn a_walk_back_is_the_walk_forward_in_reverse() {
    let api = api(MemorySink::with((0..1000).map(event)));
    for start in ["?limit=70&include=id", "?limit=70&include=id&offset=0", "?limit=100&include=id&category=odd"] {
        let start = format!("http://eye.example:8000/api/event/{start}");
        let (mut pages, last) = walk(&api, &start, "next", || {}).await;
        let (back, _) = walk(&api, &last, "previous", || {}).await;
        pages.reverse();
        assert_eq!(pages, back, "{start}");
    }
}

// ------------------------------------------------------------------------------------------------------------- failures

/// A store that answers as told.
enum StubSink {
    Fails(fn() -> StoreError),
    Never,
    HasNoStore,
    WaitsFor { entered: Notify, leave: Notify },
}

#[async_trait]
impl Sink for StubSink {
    async fn write(&self, _batch: &[Event]) -> Result<(), WriteError> {
        unreachable!("the API writes nothing")
    }

    fn store(&self) -> Option<&dyn EventStore> {
        (!matches!(self, Self::HasNoStore)).then_some(self as &dyn EventStore)
    }
}

#[async_trait]
impl EventStore for StubSink {
    async fn query(&self, _query: EventQuery) -> Result<EventPage, StoreError> {
        match self {
            Self::Fails(error) => Err(error()),
            Self::Never | Self::HasNoStore => std::future::pending().await,
            Self::WaitsFor { entered, leave } => {
                entered.notify_one();
                leave.notified().await;
                Ok(EventPage::default())
            }
        }
    }
}

fn config(max_concurrent: u16, timeout_ms: u64) -> QueryConfig {
    QueryConfig {
        sink: None,
        max_concurrent: max_concurrent.try_into().unwrap(),
        timeout_ms: timeout_ms.try_into().unwrap(),
    }
}

#[tokio::test]
async fn a_store_that_cannot_answer_is_said_to_the_caller_without_its_reasons() {
    let away = || StoreError::Unavailable { reason: "10.0.0.7 refused".into() };
    let failed = || StoreError::Failed { reason: "syntax at secret".into() };
    let cases = [
        (StubSink::Fails(away), 503, r#"{"detail":"The store is away or too busy. Try again."}"#),
        (
            StubSink::Fails(failed),
            500,
            r#"{"detail":"The store could not answer the query. The server's log says why."}"#,
        ),
        (StubSink::HasNoStore, 500, r#"{"detail":"The store could not answer the query. The server's log says why."}"#),
        (
            StubSink::Never,
            503,
            r#"{"detail":"The query took too long. Try again, or ask for less with a filter or a smaller `limit`."}"#,
        ),
    ];
    for (sink, status, body) in cases {
        let api = router(Arc::new(sink), &config(1, 1), false, ALLOWED);
        for _again in 0..2 {
            let answer = get(&api, "/api/event/").await;
            assert_eq!((answer.status.as_u16(), answer.text.as_str()), (status, body));
            assert_eq!(answer.headers.get(RETRY_AFTER).is_some(), status == 503);
            assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
        }
    }
}

#[tokio::test]
async fn one_query_too_many_waits_shortly_and_is_refused() {
    let sink = Arc::new(StubSink::WaitsFor { entered: Notify::new(), leave: Notify::new() });
    let StubSink::WaitsFor { entered, leave } = &*sink else { unreachable!() };
    let api = router(sink.clone(), &config(1, 60_000), false, ALLOWED);
    let first = tokio::spawn({
        let api = api.clone();
        async move { get(&api, "/api/event/").await }
    });
    entered.notified().await;

    let second = get(&api, "/api/event/").await;
    assert_eq!(second.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(second.text, r#"{"detail":"Too many queries run at once. Try again."}"#);
    assert!(second.headers.contains_key(RETRY_AFTER));
    let invalid = get(&api, "/api/event/?limit=0").await;
    assert_eq!(invalid.status, StatusCode::BAD_REQUEST, "needs no place");

    leave.notify_one();
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    leave.notify_one();
    assert_eq!(get(&api, "/api/event/").await.status, StatusCode::OK, "the place is free again");
}

#[test]
fn the_configuration_has_defaults_and_refuses_zero() {
    let read = |json: Value| serde_json::from_value::<QueryConfig>(json);
    assert_eq!(read(json!({})).unwrap(), config(16, 30_000));
    assert_eq!(read(json!({ "sink": "store" })).unwrap().sink.as_deref(), Some("store"));
    for key in ["max_concurrent", "timeout_ms"] {
        assert!(read(json!({ key: 1 })).is_ok());
        assert!(read(json!({ key: 0 })).is_err());
    }
}

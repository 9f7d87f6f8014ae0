//! The endpoint over a correct store in memory, with answers byte for byte.

mod failures;
mod links;
mod memory;
mod walks;

use std::sync::LazyLock;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::http::header::ALLOW;
use eye_core::event::{Event, EventFields, EventId, Origin};
use eye_core::timestamp::Timestamp;
use eye_http::mount::Mounts;
use serde_json::{Value, json};
use tower::ServiceExt;

use self::memory::MemoryStore;
use super::*;

static ORIGIN: LazyLock<Arc<Origin>> = LazyLock::new(|| Arc::new(Origin::new("web", None)));

fn at(text: &str) -> Timestamp {
    Timestamp::from_micros(chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()).unwrap()
}

/// Makes event number `n`. Three share each second, and ids are not in the order of time.
fn event(n: u32) -> Event {
    Event::from(EventFields {
        id: EventId::from_u128(u128::from(n.wrapping_mul(2_654_435_761))),
        timestamp: Timestamp::from_micros(1_600_000_000_000_000 + i64::from(n / 3) * 1_000_000).unwrap(),
        received_at: Timestamp::MIN,
        session_id: "s",
        category: if n.is_multiple_of(2) { "even" } else { "odd" },
        name: "n",
        data: "1",
        origin: &ORIGIN,
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
        origin: &ORIGIN,
    })
}

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

fn api(store: Arc<dyn EventStore>) -> Router {
    app(store, &QueryConfig::default(), false)
}

fn app(store: Arc<dyn EventStore>, config: &QueryConfig, trust_proxy: bool) -> Router {
    let mounts = Mounts::default();
    mounts.add(mount(store, config, trust_proxy)).unwrap();
    mounts.router("")
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

/// Follows a link as a client does: the host goes to the header, the rest to the request line.
async fn follow(router: &Router, link: &str) -> Answer {
    get(router, link.strip_prefix("http://eye.example:8000").unwrap()).await
}

#[tokio::test]
async fn all_wrong_parameters_are_reported_at_once() {
    let answer =
        get(&api(MemoryStore::with([])), "/api/event/?timestamp_after=nonsense&sesion_id=1&limit=abc&name=ok").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
    assert_eq!(
        answer.text,
        r#"{"limit":["A valid integer is required."],"sesion_id":["Unknown parameter. Did you mean `session_id`?"],"timestamp_after":["Enter a valid date/time."]}"#
    );
}

#[tokio::test]
async fn example_of_the_contract_byte_for_byte() {
    let api = api(MemoryStore::with([contract_event(), event(1), event(2)]));
    let url = "/api/event/?timestamp_after=2021-01-01&timestamp_before=2021-01-02&session_id=e2085be5-9137-4e4e-80b5-f1ffddc25423";
    let answer = get(&api, url).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
    assert_eq!(answer.headers[ALLOW], "GET, HEAD, OPTIONS");
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
async fn empty_store_is_an_empty_page() {
    let answer = get(&api(MemoryStore::with([])), "/api/event").await;
    assert_eq!(answer.text, r#"{"count":0,"next":null,"previous":null,"results":[]}"#);
}

#[tokio::test]
async fn include_appends_keys_in_a_fixed_order() {
    let api = api(MemoryStore::with([contract_event()]));
    for include in ["id,received_at", "received_at,id"] {
        let answer = get(&api, &format!("/api/event/?include={include}")).await;
        let end =
            r#""chat bubble"},"id":"01920000-0000-7000-8000-000000000001","received_at":"2021-01-01T09:15:28Z"}]}"#;
        assert!(answer.text.ends_with(end), "{}", answer.text);
    }
}

#[tokio::test]
async fn texts_are_escaped_and_data_is_kept() {
    let data = r#"{"z":1.10,"a":12345678901234567890,"e":"\u00e4\/","ä":[]}"#;
    let odd = "a\"b\\c\u{1}\u{2028}👁";
    let event = Event::from(EventFields { category: odd, name: odd, session_id: odd, data, ..fields() });
    let answer = get(&api(MemoryStore::with([event])), "/api/event/").await;
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
        origin: &ORIGIN,
    }
}

#[tokio::test]
async fn large_page_is_streamed_whole() {
    for bytes in [60_000, 65_000, 70_000, 1_000_000] {
        let data = format!("\"{}\"", "x".repeat(bytes));
        let events = (0..7).map(|n| Event::from(EventFields { id: EventId::from_u128(n), data: &data, ..fields() }));
        let answer = get(&api(MemoryStore::with(events)), "/api/event/?include=id").await;
        let results = answer.json()["results"].as_array().unwrap().clone();
        let expected: Vec<String> = (0..7).rev().map(|n| EventId::from_u128(n).to_string()).collect();
        assert_eq!(results.iter().map(|result| result["id"].as_str().unwrap()).collect::<Vec<_>>(), expected);
        assert!(results.iter().all(|result| result["data"].as_str().unwrap().len() == bytes));
    }
}

#[tokio::test]
async fn head_has_the_headers_of_get() {
    let api = api(MemoryStore::with([contract_event()]));
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
async fn answer_is_json_whatever_is_accepted() {
    let api = api(MemoryStore::with([]));
    let request = Request::get("/api/event/").header("accept", "text/html").body(Body::empty()).unwrap();
    let answer = ask(&api, request).await;
    assert_eq!((answer.status, &answer.headers[CONTENT_TYPE]), (StatusCode::OK, &"application/json".parse().unwrap()));
}

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::to_bytes;
use eye_core::ack::{Outcome, Rejection};
use eye_core::context::BuildContext;
use eye_core::source::Outlet;
use eye_core::transport::PublishError;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::decode::MAX_LISTED;
use crate::encoding::tests::{gzip, zlib, zstd};
use crate::fake::{FakeTransport, Told};

struct Fixture {
    transport: Arc<FakeTransport>,
    outlet: Outlet,
    app: Router,
}

impl Fixture {
    async fn new(told: Told, config: HttpConfig) -> Self {
        let transport = FakeTransport::new(told);
        let component = BuildContext::standalone("sources.web");
        let mounts = Mounts::default();
        component.extensions().insert(mounts.clone());
        let outlet = Outlet::new(transport.clone(), component.health().clone());
        config.build(&SourceContext { component, outlet: outlet.clone() }).await.unwrap();
        Self { transport, outlet, app: mounts.router("") }
    }

    async fn delivering() -> Self {
        Self::new(Told::Settle(Outcome::Delivered), HttpConfig::default()).await
    }

    async fn limited(max_body_bytes: u32, max_event_bytes: u32) -> Self {
        let config = HttpConfig { max_body_bytes, max_event_bytes, ..HttpConfig::default() };
        Self::new(Told::Settle(Outcome::Delivered), config).await
    }

    async fn refusing(rejections: &[(usize, &str)]) -> Self {
        let rejection = |&(index, reason): &(usize, &str)| Rejection { index, reason: reason.into() };
        let outcome = Outcome::Rejected(rejections.iter().map(rejection).collect());
        Self::new(Told::Settle(outcome), HttpConfig::default()).await
    }

    async fn send(&self, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
        let mut request = axum::http::Request::post("/api/event/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.app.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap()
    }

    async fn json(&self, body: impl Into<Body>) -> (u16, Value) {
        read(self.send(&[("content-type", "application/json")], body).await).await
    }

    async fn ndjson(&self, body: impl Into<Body>) -> (u16, Value) {
        read(self.send(&[("content-type", "application/x-ndjson")], body).await).await
    }

    async fn encoded(&self, encoding: &str, body: Vec<u8>) -> (u16, Value) {
        read(self.send(&[("content-type", "application/json"), ("content-encoding", encoding)], body).await).await
    }

    fn published_names(&self) -> Vec<String> {
        self.transport.published_names()
    }
}

async fn text(response: Response) -> String {
    String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap()
}

async fn read(response: Response) -> (u16, Value) {
    assert_eq!(response.headers()["content-type"], "application/json");
    (response.status().as_u16(), serde_json::from_str(&text(response).await).unwrap())
}

fn event(name: &str) -> String {
    format!(r#"{{"session_id":"s","category":"c","name":"{name}","data":1,"timestamp":"2021-01-01"}}"#)
}

/// Makes an event of exactly this many bytes.
fn event_of(bytes: usize) -> String {
    let frame = event("").len();
    event(&"n".repeat(100)).replace(r#""data":1"#, &format!(r#""data":"{}""#, "d".repeat(bytes - frame - 101)))
}

const INVALID: &str = r#"{"session_id":"s","category":"c","data":1,"timestamp":"2021-01-01"}"#;
const NAME_REQUIRED: &str = r#"{"name":["This field is required."]}"#;

fn chunked(pieces: Vec<&str>) -> Body {
    let pieces: Vec<Bytes> = pieces.into_iter().map(|piece| Bytes::copy_from_slice(piece.as_bytes())).collect();
    Body::from_stream(stream::iter(pieces).map(Ok::<_, io::Error>))
}

/// A body with a `Content-Length` that must not be read.
struct Announced(u64);

impl HttpBody for Announced {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<http_body::Frame<Bytes>>>> {
        panic!("the body was read")
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.0)
    }
}

// --- The table of outcomes. ---

#[tokio::test]
async fn one_accepted_event_is_201() {
    let fixture = Fixture::delivering().await;
    let response = fixture.send(&[("content-type", "application/json")], event("a")).await;
    assert_eq!(response.status(), 201);
    assert_eq!(text(response).await, r#"{"success": true}"#);
    assert_eq!(fixture.published_names(), ["a"]);
}

#[tokio::test]
async fn path_without_slash_is_the_same() {
    let fixture = Fixture::delivering().await;
    let request = axum::http::Request::post("/api/event").header("content-type", "application/json");
    let response = fixture.app.clone().oneshot(request.body(Body::from(event("a"))).unwrap()).await.unwrap();
    assert_eq!(response.status(), 201);
}

#[tokio::test]
async fn accepted_events_are_201_with_their_number() {
    let fixture = Fixture::delivering().await;
    let body = format!("[{},{}]", event("a"), event("b"));
    let response = fixture.send(&[("content-type", "application/json")], body).await;
    assert_eq!(response.status(), 201);
    assert_eq!(text(response).await, r#"{"success": true, "accepted": 2}"#);
    let lines = format!("{}\n{}\n", event("c"), event("d"));
    assert_eq!(fixture.ndjson(lines).await, (201, json!({"success": true, "accepted": 2})));
    assert_eq!(fixture.published_names(), ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn empty_array_is_201_without_a_publish() {
    assert_eq!(Fixture::delivering().await.json("[]").await, (201, json!({"success": true, "accepted": 0})));
}

#[tokio::test]
async fn some_invalid_is_200_with_index_and_errors() {
    let fixture = Fixture::delivering().await;
    let body = format!("[{},{INVALID},{}]", event("a"), event("b"));
    let response = fixture.send(&[("content-type", "application/json")], body).await;
    assert_eq!(response.status(), 200);
    let expected = format!(r#"{{"success":false,"accepted":2,"rejected":[{{"index":1,"errors":{NAME_REQUIRED}}}]}}"#);
    assert_eq!(text(response).await, expected);
    assert_eq!(fixture.published_names(), ["a", "b"]);
}

#[tokio::test]
async fn one_invalid_event_is_400_with_its_errors() {
    let fixture = Fixture::delivering().await;
    let response = fixture.send(&[("content-type", "application/json")], INVALID).await;
    assert_eq!(response.status(), 400);
    assert_eq!(text(response).await, format!(r#"{{"success":false,"errors":{NAME_REQUIRED}}}"#));
}

#[tokio::test]
async fn many_invalid_events_are_400_with_accepted_0() {
    let fixture = Fixture::delivering().await;
    let response = fixture.send(&[("content-type", "application/json")], format!("[{INVALID}]")).await;
    assert_eq!(response.status(), 400);
    let expected = format!(r#"{{"success":false,"accepted":0,"rejected":[{{"index":0,"errors":{NAME_REQUIRED}}}]}}"#);
    assert_eq!(text(response).await, expected);
}

#[tokio::test]
async fn unlisted_invalid_events_are_counted() {
    let fixture = Fixture::delivering().await;
    let body = "1,".repeat(MAX_LISTED + 2);
    let (status, none_taken) = fixture.json(format!("[{body}1]")).await;
    assert_eq!((status, &none_taken["accepted"], &none_taken["unlisted"]), (400, &json!(0), &json!(3)));
    let (status, one_taken) = fixture.json(format!("[{body}{}]", event("a"))).await;
    assert_eq!((status, &one_taken["accepted"], &one_taken["unlisted"]), (200, &json!(1), &json!(2)));
    assert_eq!(one_taken["rejected"].as_array().unwrap().len(), MAX_LISTED);
    let counted: u64 = fixture.outlet.refusals().totals().iter().map(|(_, count)| count).sum();
    assert_eq!(counted, 2 * MAX_LISTED as u64 + 5, "counted for the operator");
}

#[tokio::test]
async fn invalid_json_is_400_with_its_position() {
    let (status, body) = Fixture::delivering().await.json(r#"{"a": nonsense}"#).await;
    assert_eq!((status, &body["success"]), (400, &json!(false)));
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.starts_with("JSON parse error at line 1 column 7"), "{detail}");
}

#[tokio::test]
async fn only_an_event_above_its_limit_is_413() {
    let fixture = Fixture::limited(10_000, 1000).await;
    assert_eq!(fixture.json(event_of(1000)).await.0, 201);
    let (status, body) = fixture.json(event_of(1001)).await;
    assert_eq!(status, 413);
    assert_eq!(body, json!({"success": false, "detail": "An event may have at most 1000 bytes (`max_event_bytes`)."}));
}

#[tokio::test]
async fn among_many_only_the_large_event_is_rejected() {
    let fixture = Fixture::limited(10_000, 1000).await;
    let (status, body) = fixture.json(format!("[{},{}]", event_of(1001), event("a"))).await;
    assert_eq!((status, &body["accepted"], &body["rejected"][0]["index"]), (200, &json!(1), &json!(0)));
}

#[tokio::test]
async fn events_all_above_their_limit_are_413() {
    let fixture = Fixture::limited(10_000, 1000).await;
    let (status, body) = fixture.json(format!("[{},{}]", event_of(1001), event_of(1001))).await;
    assert_eq!(status, 413);
    assert!(body["detail"].as_str().unwrap().contains("1000 bytes"), "{body}");
}

#[tokio::test]
async fn events_invalid_for_several_reasons_are_400() {
    let fixture = Fixture::limited(10_000, 1000).await;
    assert_eq!(fixture.json(format!("[{},{INVALID}]", event_of(1001))).await.0, 400);
}

#[tokio::test]
async fn one_event_refused_by_the_store_is_422() {
    let fixture = Fixture::refusing(&[(0, "too odd")]).await;
    let (status, body) = fixture.json(event("a")).await;
    assert_eq!((status, body), (422, json!({"success": false, "detail": "Refused by the store: too odd"})));
}

#[tokio::test]
async fn refusals_are_listed_in_the_order_of_the_body() {
    let fixture = Fixture::refusing(&[(1, "too odd")]).await;
    let body = format!("[{},{INVALID},{},{INVALID}]", event("a"), event("b"));
    let (status, body) = fixture.json(body).await;
    assert_eq!(status, 200);
    let invalid: Value = serde_json::from_str(NAME_REQUIRED).unwrap();
    let rejected = json!([
        {"index": 1, "errors": invalid},
        {"index": 2, "errors": {"non_field_errors": ["Refused by the store: too odd"]}},
        {"index": 3, "errors": invalid},
    ]);
    assert_eq!(body, json!({"success": false, "accepted": 1, "rejected": rejected}));
}

#[tokio::test]
async fn events_all_refused_by_the_store_are_422() {
    let fixture = Fixture::refusing(&[(0, "odd"), (1, "even")]).await;
    let (status, body) = fixture.json(format!("[{},{}]", event("a"), event("b"))).await;
    assert_eq!((status, &body["accepted"]), (422, &json!(0)));
    assert!(body["detail"].is_string(), "{body}");
    assert_eq!(body["rejected"][1]["errors"]["non_field_errors"][0], "Refused by the store: even");
}

#[tokio::test]
async fn failure_is_503_with_retry_after_but_no_reason() {
    let reason = "PostgreSQL at 10.0.0.1: connection refused";
    let fixture = Fixture::new(Told::Settle(Outcome::failed(reason)), HttpConfig::default()).await;
    let response = fixture.send(&[("content-type", "application/json")], event("a")).await;
    assert_eq!(response.headers()["retry-after"], "5");
    let (status, body) = read(response).await;
    assert_eq!((status, &body["success"]), (503, &json!(false)));
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.contains("again") && !detail.contains("10.0.0.1"), "{detail}");
}

#[tokio::test]
async fn full_transport_is_503_with_whole_seconds() {
    for (retry_after, seconds) in [(0, "1"), (900, "1"), (1000, "1"), (1001, "2"), (30_000, "30")] {
        let retry_after = Duration::from_millis(retry_after);
        let error = PublishError::Full { reason: "1 of 1 bytes".to_owned(), retry_after };
        let fixture = Fixture::new(Told::Refuse(error), HttpConfig::default()).await;
        let response = fixture.send(&[("content-type", "application/json")], event("a")).await;
        assert_eq!(response.headers()["retry-after"], seconds);
        assert!(!response.headers().contains_key("connection"));
        assert_eq!(read(response).await, (503, json!({"success": false, "detail": "no capacity: 1 of 1 bytes"})));
    }
}

#[tokio::test]
async fn closed_transport_is_503_and_closes_the_connection() {
    let fixture = Fixture::new(Told::Refuse(PublishError::Closed), HttpConfig::default()).await;
    let response = fixture.send(&[("content-type", "application/json")], event("a")).await;
    assert_eq!(response.headers()["connection"], "close");
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(read(response).await, (503, json!({"success": false, "detail": "shutting down"})));
}

#[tokio::test]
async fn late_receipt_is_503_with_a_warning() {
    let config = HttpConfig { receipt_timeout_ms: 10, ..HttpConfig::default() };
    let fixture = Fixture::new(Told::NeverSettle, config).await;
    let response = fixture.send(&[("content-type", "application/json")], event("a")).await;
    assert!(response.headers().contains_key("retry-after"));
    let (status, body) = read(response).await;
    let detail = body["detail"].as_str().unwrap();
    assert_eq!(status, 503);
    assert!(detail.contains("within 10 ms") && detail.contains("may still be stored") && detail.contains("`id`"));
}

// --- Media types and encodings. ---

#[tokio::test]
async fn media_type_ignores_case_and_parameters() {
    let fixture = Fixture::delivering().await;
    for media_type in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/x-ndjson ; x=y",
    ] {
        assert_eq!(fixture.send(&[("content-type", media_type)], event("a")).await.status(), 201, "{media_type}");
    }
    assert_eq!(fixture.send(&[("content-type", "text/plain; x=\"é\"")], event("a")).await.status(), 201);
}

#[tokio::test]
async fn other_media_types_and_none_are_415() {
    let fixture = Fixture::delivering().await;
    let others: [&[(&str, &str)]; 4] = [
        &[],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "application/jsonp")],
        &[("content-type", "")],
    ];
    for headers in others {
        let (status, body) = read(fixture.send(headers, event("a")).await).await;
        assert_eq!(status, 415, "{headers:?}");
        assert!(body["detail"].as_str().unwrap().contains("application/x-ndjson"), "{body}");
    }
}

#[tokio::test]
async fn every_encoding_is_decoded() {
    let fixture = Fixture::delivering().await;
    let encoded = [("gzip", gzip(event("a").as_bytes())), ("deflate", zlib(event("b").as_bytes()))];
    let more = [("zstd", zstd(event("c").as_bytes())), ("identity", event("d").into_bytes())];
    for (encoding, body) in encoded.into_iter().chain(more) {
        assert_eq!(fixture.encoded(encoding, body).await, (201, json!({"success": true})), "{encoding}");
    }
    assert_eq!(fixture.published_names(), ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn unknown_encoding_is_415_with_the_known_ones() {
    let fixture = Fixture::delivering().await;
    let headers = [("content-type", "application/json"), ("content-encoding", "br")];
    let response = fixture.send(&headers, event("a")).await;
    assert_eq!(response.headers()["accept-encoding"], "gzip, deflate, zstd");
    let (status, body) = read(response).await;
    assert_eq!(status, 415);
    assert!(body["detail"].as_str().unwrap().contains("`br`"), "{body}");
}

#[tokio::test]
async fn damaged_compression_is_400() {
    let (status, body) = Fixture::delivering().await.encoded("gzip", event("a").into_bytes()).await;
    assert_eq!(status, 400);
    assert!(body["detail"].as_str().unwrap().contains("Content-Encoding"), "{body}");
}

// --- Limits of the body. ---

#[tokio::test]
async fn limits_count_decoded_bytes() {
    let fixture = Fixture::limited(100_000, 1000).await;
    let padded = |bytes| format!("{}{}", event("a"), " ".repeat(bytes - event("a").len()));
    type Encode = fn(&[u8]) -> Vec<u8>;
    let encodings: [(&str, Encode); 4] =
        [("gzip", gzip), ("deflate", zlib), ("zstd", zstd), ("identity", |body| body.to_vec())];
    for (encoding, encode) in encodings {
        assert_eq!(fixture.encoded(encoding, encode(padded(100_000).as_bytes())).await.0, 201, "{encoding}");
        let (status, body) = fixture.encoded(encoding, encode(padded(100_001).as_bytes())).await;
        assert_eq!(status, 413, "{encoding}");
        assert!(body["detail"].as_str().unwrap().contains("100000 bytes"), "{body}");
    }
}

#[tokio::test]
async fn announced_size_above_the_limit_is_413_unread() {
    let fixture = Fixture::limited(1000, 1000).await;
    let (status, body) = fixture.json(Body::new(Announced(1001))).await;
    assert_eq!(status, 413);
    assert!(body["detail"].as_str().unwrap().contains("1000 bytes"), "{body}");
}

#[tokio::test]
async fn chunks_form_one_body() {
    let fixture = Fixture::delivering().await;
    let text = event("a");
    let (start, end) = text.split_at(20);
    assert_eq!(fixture.json(chunked(vec!["", start, "", &end[..1], &end[1..]])).await.0, 201);
    assert_eq!(fixture.published_names(), ["a"]);
}

#[tokio::test]
async fn chunks_together_obey_the_limit() {
    let fixture = Fixture::limited(1000, 1000).await;
    let (half, over) = (" ".repeat(500), " ".repeat(501));
    assert_eq!(fixture.json(chunked(vec![&half, &half])).await.0, 400, "nothing but white space");
    assert_eq!(fixture.json(chunked(vec![&half, &over])).await.0, 413);
    assert_eq!(fixture.json(chunked(vec![&half, &half, " "])).await.0, 413);
}

#[tokio::test]
async fn large_body_is_parsed() {
    let fixture = Fixture::delivering().await;
    let events = vec![event("a"); 5 * INLINE_MAX_BYTES / event("a").len()];
    let expected = json!({"success": true, "accepted": events.len()});
    assert_eq!(fixture.json(format!("[{}]", events.join(","))).await, (201, expected));
}

#[tokio::test]
async fn late_body_is_408() {
    let config = HttpConfig { body_timeout_ms: 10, ..HttpConfig::default() };
    let fixture = Fixture::new(Told::Settle(Outcome::Delivered), config).await;
    let body = Body::from_stream(stream::pending::<Result<Bytes, io::Error>>());
    let (status, body) = fixture.json(body).await;
    assert_eq!((status, body), (408, json!({"success": false, "detail": "The body did not arrive within 10 ms."})));
}

#[tokio::test]
async fn broken_off_body_publishes_nothing() {
    let fixture = Fixture::delivering().await;
    let pieces = [Ok(Bytes::from(event("a"))), Err(io::Error::from(io::ErrorKind::ConnectionReset))];
    assert_eq!(fixture.json(Body::from_stream(stream::iter(pieces))).await.0, 400);
    assert!(fixture.published_names().is_empty());
}

#[tokio::test]
async fn bodies_above_max_pending_bytes_are_503() {
    let config = HttpConfig { max_body_bytes: 1000, max_pending_bytes: 2000, ..HttpConfig::default() };
    let fixture = Fixture::new(Told::Settle(Outcome::Delivered), config).await;
    // Two bodies whose last byte never arrives.
    let slow = || {
        let start = stream::iter([Ok::<_, io::Error>(Bytes::from(" ".repeat(999)))]);
        Body::from_stream(start.chain(stream::pending()))
    };
    let headers = [("content-type", "application/json")];
    let mut slow = [Box::pin(fixture.send(&headers, slow())), Box::pin(fixture.send(&headers, slow()))];
    for slow in &mut slow {
        assert!(futures_util::poll!(slow).is_pending());
    }
    let response = fixture.send(&headers, event("a")).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, body) = read(response).await;
    assert_eq!(status, 503);
    assert!(body["detail"].as_str().unwrap().contains("max_pending_bytes"), "{body}");
    assert_eq!(fixture.outlet.refusals().totals(), [(NO_CAPACITY, 1)]);
    drop(slow);
    assert_eq!(fixture.json(event("a")).await.0, 201);
}

#[tokio::test]
async fn compressed_body_reserves_its_decoded_size() {
    let config = HttpConfig { max_body_bytes: 1000, max_pending_bytes: 2000, ..HttpConfig::default() };
    let fixture = Fixture::new(Told::Settle(Outcome::Delivered), config).await;
    let start = stream::iter([Ok::<_, io::Error>(Bytes::from(" ".repeat(999)))]);
    let headers = [("content-type", "application/json")];
    let mut slow = Box::pin(fixture.send(&headers, Body::from_stream(start.chain(stream::pending()))));
    assert!(futures_util::poll!(&mut slow).is_pending());
    assert_eq!(fixture.json(event("a")).await.0, 201, "a plain body fits");
    assert_eq!(fixture.encoded("gzip", gzip(event("a").as_bytes())).await.0, 503);
    drop(slow);
    assert_eq!(fixture.encoded("gzip", gzip(event("a").as_bytes())).await.0, 201);
}

#[tokio::test]
async fn request_that_waits_for_its_receipt_reserves_nothing() {
    let config = HttpConfig { max_body_bytes: 1000, max_pending_bytes: 2000, ..HttpConfig::default() };
    let fixture = Fixture::new(Told::NeverSettle, config).await;
    let mut waiting = Vec::new();
    for number in 1..=3 {
        let mut request = Box::pin(fixture.json(event_of(1000)));
        assert!(futures_util::poll!(&mut request).is_pending());
        waiting.push(request);
        assert_eq!(fixture.published_names().len(), number);
    }
}

#[tokio::test]
async fn second_source_on_the_path_is_an_error() {
    let mounts = Mounts::default();
    let build = async |key: &str| {
        let component = BuildContext::standalone(key);
        component.extensions().insert(mounts.clone());
        let transport = FakeTransport::new(Told::NeverPublish);
        let outlet = Outlet::new(transport, component.health().clone());
        HttpConfig::default().build(&SourceContext { component, outlet }).await.map(drop)
    };
    build("sources.a").await.unwrap();
    let error = build("sources.b").await.unwrap_err().to_string();
    assert!(error.contains("sources.a serves POST /api/event/") && error.contains("sources.b"), "{error}");
}

#[test]
fn pending_bytes_below_two_bodies_are_an_error() {
    let config = |max_pending_bytes| HttpConfig { max_body_bytes: 1000, max_pending_bytes, ..HttpConfig::default() };
    assert!(config(2000).check().is_empty());
    let error = config(1999).check().remove(0).to_string();
    assert!(error.contains("1999") && error.contains("max_body_bytes"), "{error}");
}

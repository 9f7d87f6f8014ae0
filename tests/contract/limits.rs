//! Size limits: 1 MiB for an event and 5 MiB for a body. One byte more is refused.

use std::convert::Infallible;

use eye_harness::Eye;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};

use crate::api::{JSON, NDJSON, Page, event, get, named, page, post};

on_every_database! {
    event_over_one_mebibyte_answers_413
    body_over_five_mebibytes_answers_413
}

const MIB: usize = 1 << 20;

/// Returns an event of exactly this many bytes.
fn event_of(bytes: usize, name: &str) -> String {
    let with = |data: &str| event(&[("name", &format!("\"{name}\"")), ("data", &format!("\"{data}\""))]);
    with(&"x".repeat(bytes - with("").len()))
}

async fn event_over_one_mebibyte_answers_413(eye: &Eye) {
    let answer = post(eye, JSON, event_of(MIB, "largest")).await;
    assert_eq!((answer.status, answer.text.as_str()), (201, r#"{"success": true}"#));
    let found = page(eye, &[("name", "largest")]).await;
    assert!(event_of(MIB, "largest").contains(found.results[0].data.get()), "the data is complete");

    let detail = r#"{"success":false,"detail":"An event may have at most 1048576 bytes (`max_event_bytes`)."}"#;
    let too_large = event_of(MIB + 1, "too large");
    // The size includes white space within the event.
    let padded = named("padded").replacen('{', &format!("{{{}", " ".repeat(MIB)), 1);
    for body in [too_large.clone(), padded, format!("[{too_large}]")] {
        let answer = post(eye, JSON, body).await;
        assert_eq!((answer.status, answer.text.as_str()), (413, detail));
    }
    // Among other events it is one refused event.
    let refused = r#"{"success":false,"accepted":2,"rejected":[{"index":1,"errors":{"non_field_errors":["Ensure the event has no more than 1048576 bytes."]}}]}"#;
    let [a, b] = ["a", "b"].map(named);
    for (content_type, body) in [
        (JSON, format!("[{a},{too_large},{b}]")),
        (JSON, format!("{a}{too_large}{b}")),
        (NDJSON, format!("{a}\n{too_large}\n{b}")),
    ] {
        let answer = post(eye, content_type, body).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, refused), "{content_type}");
    }
    assert_eq!(page(eye, &[("limit", "1")]).await.count, 1 + 6);
}

async fn body_over_five_mebibytes_answers_413(eye: &Eye) {
    let names = ["1", "2", "3", "4"];
    let events = names.map(|name| event_of(MIB, name)).join(",");
    let body = |bytes: usize| format!("[{events}{}]", " ".repeat(bytes - events.len() - 2));
    let answer = post(eye, JSON, body(5 * MIB)).await;
    assert_eq!((answer.status, answer.text.as_str()), (201, r#"{"success": true, "accepted": 4}"#));
    let found: Page = get(eye, "").await.json();
    assert!(
        found.results.iter().all(|event| names.contains(&event.name.as_str()) && event.data.get().len() > MIB - 200)
    );

    let detail = r#"{"success":false,"detail":"A body may have at most 5242880 bytes, decoded (`max_body_bytes`)."}"#;
    let answer = post(eye, JSON, body(5 * MIB + 1)).await;
    assert_eq!((answer.status, answer.text.as_str()), (413, detail));
    // The limit also holds without Content-Length, and for much larger bodies.
    let whole = Bytes::from(body(5 * MIB + 1));
    let chunks = (0..whole.len()).step_by(MIB).map(move |start| whole.slice(start..whole.len().min(start + MIB)));
    let frames = stream::iter(chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk))));
    let chunked = reqwest::Body::wrap(StreamBody::new(frames));
    let answer = post(eye, JSON, chunked).await;
    assert_eq!((answer.status, answer.text.as_str()), (413, detail));
    let answer = post(eye, JSON, vec![b' '; 50 * MIB]).await;
    assert_eq!((answer.status, answer.text.as_str()), (413, detail));
    assert_eq!(page(eye, &[("limit", "1")]).await.count, 4);
}

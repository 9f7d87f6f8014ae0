//! Sizes: one event may have 1 MiB, a body 5 MiB; a byte more is refused.

use std::convert::Infallible;

use eye_harness::Eye;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};

use crate::api::{JSON, NDJSON, Page, event, get, named, page, post};

on_every_database! {
    an_event_may_have_one_mebibyte
    a_body_may_have_five_mebibytes
}

const MIB: usize = 1 << 20;

/// An event of so many bytes as it is sent.
fn event_of(bytes: usize, name: &str) -> String {
    let with = |data: &str| event(&[("name", &format!("\"{name}\"")), ("data", &format!("\"{data}\""))]);
    with(&"x".repeat(bytes - with("").len()))
}

async fn an_event_may_have_one_mebibyte(eye: &Eye) {
    let answer = post(eye, JSON, event_of(MIB, "largest")).await;
    assert_eq!((answer.status, answer.text.as_str()), (201, r#"{"success": true}"#));
    let found = page(eye, &[("name", "largest")]).await;
    assert!(event_of(MIB, "largest").contains(found.results[0].data.get()), "it is read back whole");

    let detail = r#"{"success":false,"detail":"An event may have at most 1048576 bytes (`max_event_bytes`)."}"#;
    let too_large = event_of(MIB + 1, "too large");
    // It counts from the first byte to the last, white space within included.
    let padded = named("padded").replacen('{', &format!("{{{}", " ".repeat(MIB)), 1);
    for body in [too_large.clone(), padded, format!("[{too_large}]")] {
        let answer = post(eye, JSON, body).await;
        assert_eq!((answer.status, answer.text.as_str()), (413, detail));
    }
    // Beside others, it is one refused event.
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

async fn a_body_may_have_five_mebibytes(eye: &Eye) {
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
    // Also for those who do not say how much they send, and those who send far more.
    let whole = Bytes::from(body(5 * MIB + 1));
    let chunks = (0..whole.len()).step_by(MIB).map(move |start| whole.slice(start..whole.len().min(start + MIB)));
    let frames = stream::iter(chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk))));
    let unannounced = reqwest::Body::wrap(StreamBody::new(frames));
    let answer = post(eye, JSON, unannounced).await;
    assert_eq!((answer.status, answer.text.as_str()), (413, detail));
    let answer = post(eye, JSON, vec![b' '; 50 * MIB]).await;
    assert_eq!((answer.status, answer.text.as_str()), (413, detail));
    assert_eq!(page(eye, &[("limit", "1")]).await.count, 4);
}

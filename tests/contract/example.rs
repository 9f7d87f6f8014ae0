//! The example of the contract: an event, a query and its answer, byte for byte.

use std::net::TcpListener;
use std::time::Duration;

use eye_harness::{Eye, eventually};

use crate::api::{JSON, get, post};
use crate::support::program;

on_every_database! { example_matches_byte_for_byte }

/// An event with another key order than the answer, with white space, and with a space instead of the `T`.
const SENT: &str = r#"{
    "category": "page interaction",
    "name": "cta click",
    "data": {
        "host": "www.consumeraffairs.com",
        "path": "/",
        "element": "chat bubble"
    },
    "session_id": "e2085be5-9137-4e4e-80b5-f1ffddc25423",
    "timestamp": "2021-01-01 09:15:27.243860"
}"#;

const QUERY: &str =
    "timestamp_after=2021-01-01&timestamp_before=2021-01-02&session_id=e2085be5-9137-4e4e-80b5-f1ffddc25423";

const FOUND: &str = concat!(
    r#"{"count":1,"next":null,"previous":null,"results":[{"session_id":"e2085be5-9137-4e4e-80b5-f1ffddc25423","#,
    r#""timestamp":"2021-01-01T09:15:27.243860Z","category":"page interaction","name":"cta click","#,
    r#""data":{"host":"www.consumeraffairs.com","path":"/","element":"chat bubble"}}]}"#,
);

async fn example_matches_byte_for_byte(eye: &Eye) {
    let sent = post(eye, JSON, SENT).await;
    assert_eq!((sent.status, sent.text.as_str()), (201, r#"{"success": true}"#));
    assert_eq!(sent.header("content-type"), "application/json");
    // Each of these events fails one of the filters.
    for (from, to) in [("5423", "5424"), ("2021-01-01", "2021-01-03"), ("2021-01-01", "2020-12-31")] {
        assert_eq!(post(eye, JSON, SENT.replace(from, to)).await.status, 201);
    }

    let found = get(eye, QUERY).await;
    assert_eq!((found.status, found.text.as_str()), (200, FOUND));
    assert_eq!(found.header("content-type"), "application/json");
    assert_eq!(found.header("allow"), "GET, POST, HEAD, OPTIONS");
    assert_eq!(found.header("vary"), "Accept");
}

/// The only test that needs the default port.
#[tokio::test]
async fn example_works_without_configuration() {
    // Another run of the tests on this machine may use the port.
    eventually("port 8000 is free", Duration::from_secs(60), async || TcpListener::bind("127.0.0.1:8000").is_ok())
        .await;
    let eye = Eye::start_without_config(program());
    assert_eq!(eye.url("/"), "http://127.0.0.1:8000/");
    eye.wait_ready().await;
    example_matches_byte_for_byte(&eye).await;
    assert!(eye.folder().join("eye-data/eye.db").exists());
}

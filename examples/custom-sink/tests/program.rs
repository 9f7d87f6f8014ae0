//! The built example with its own configuration.

use std::time::Duration;

use eye_harness::Eye;
use serde_json::{Value, json};

/// The example's configuration with a free port, so that tests can run in parallel.
const CONFIG: &str = concat!("[server]\nlisten = \"127.0.0.1:0\"\n", include_str!("../eye.toml"));

#[tokio::test]
async fn sent_event_is_a_line_in_a_file() {
    let mut eye = Eye::start(env!("CARGO_BIN_EXE_custom-sink"), CONFIG);
    eye.wait_ready().await;
    let event = json!({
        "id": "01912d68-783e-7a4c-9b9c-dd4f7e0b3b0a",
        "session_id": "s1", "category": "demo", "name": "hello", "data": {"n": 1},
        "timestamp": "2021-01-01T09:15:27.243860Z",
    });
    // The second round sends the same event after a restart.
    for _ in 0..2 {
        assert_eq!(eye.post(&event).await, (201, json!({"success": true})));
        assert_eq!(eye.terminate(Duration::from_secs(10)), Some(0), "{}", eye.logs());
        eye.restart();
        eye.wait_ready().await;
    }
    let text = std::fs::read_to_string(eye.folder().join("events/2021-01-01T09.ndjson")).expect("the file exists");
    let mut stored: Value = serde_json::from_str(&text).expect("the file has one line");
    let fields = stored.as_object_mut().expect("the line is an object");
    assert!(fields.remove("received_at").is_some_and(|received_at| received_at.is_string()));
    assert_eq!(fields.remove("origin"), Some(json!("web")), "the name of the source");
    assert_eq!(stored, event);
    assert_eq!(eye.get("/api/event/").await.0, 405, "no sink answers queries");
}

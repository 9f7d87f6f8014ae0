//! The built program on a queue that the disk has damaged. `eye-transports/tests/corruption.rs` tries each block.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;

use eye_harness::{Eye, eventually};
use serde_json::Value;
use support::store::{Kind, Store};
use support::{HANG, audit, event, post, readyz, start_ready};
use uuid::Uuid;

/// How many events the program has logged as missing.
fn missing(eye: &Eye) -> u64 {
    let logs = eye.logs();
    let lines = logs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| line["fields"]["missing"].as_u64()).sum()
}

async fn take_and_store(eye: &Eye, store: &Store) {
    let id = Uuid::new_v4();
    assert_eq!(post(eye, &event(id, "fresh")).await.0, 201);
    eventually("it is stored", HANG, async || store.ids().await.contains(&id)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_has_damaged_is_reported_and_the_rest_is_stored() {
    const EVENTS: usize = 30;
    let store = Store::new(Kind::Sqlite);
    let mut eye = start_ready(&store, "transport = { type = \"disk\", path = \"queue\" }").await;
    let queue = eye.folder().join("queue");
    eventually("the table is there", HANG, async || {
        let (_, body) = readyz(&eye).await;
        body["components"].as_array().unwrap().iter().all(|component| component["state"] == "ready")
    })
    .await;
    take_and_store(&eye, &store).await;
    let lock = store.lock().await;
    for _ in 0..EVENTS {
        assert_eq!(post(&eye, &event(Uuid::new_v4(), "queued")).await.0, 201);
    }
    let written_down = format!("\"next\":{}", EVENTS + 1);
    eventually("how far the queue goes is written down", HANG, async || {
        fs::read_to_string(queue.join("cursors")).is_ok_and(|saved| saved.contains(&written_down))
    })
    .await;
    eye.kill();
    lock.release().await;
    assert_eq!(store.ids().await.len(), 1, "the others wait in the queue");

    // One of the first records, and the last, which is no write that was cut off.
    let segment = queue.join(format!("{:020}.log", 0));
    let mut bytes = fs::read(&segment).unwrap();
    bytes[512..1024].iter_mut().for_each(|byte| *byte = !*byte);
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&segment, bytes).unwrap();
    eye.restart();
    take_and_store(&eye, &store).await;
    let (stored, reported) = (store.ids().await.len() - 2, missing(&eye));
    assert_eq!(stored + reported as usize, EVENTS);
    assert!((2..10).contains(&reported), "{reported}");
    assert!(eye.logs().contains("the end of the queue is damaged on the disk"), "{}", eye.logs());
    assert!(fs::read_dir(queue.join("damaged")).unwrap().count() >= 2);
    audit("damaged", &eye).await;
    assert_eq!(eye.get("/audit").await.1["sinks"]["store"]["missing"], reported);

    eye.kill();
    eye.restart();
    take_and_store(&eye, &store).await;
    assert_eq!(eye.terminate(HANG), Some(0));
    let logged = eye.logs().len();
    eye.restart();
    take_and_store(&eye, &store).await;
    let since = eye.logs().split_off(logged);
    assert!(!since.contains("\"ERROR\""), "what was told is past: {since}");
    audit("what is missing is past", &eye).await;
}

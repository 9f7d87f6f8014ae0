//! The disk transport: every event answered with 201 is stored once, although the program or the database stops.

use serde_json::json;
use tokio::task::block_in_place;

use crate::support::store::{Kind, Store};
use crate::support::{
    DISK, HANG, SLOWER, command, median_time, new_event, readyz, start_with_table, until_sink_is, until_stored,
};

#[tokio::test(flavor = "multi_thread")]
async fn database_outage_does_not_slow_down_acks() {
    let store = Store::own(Kind::Postgres);
    let mut eye = start_with_table(&store, DISK).await;
    let before = median_time(&eye, (0..200).map(|_| new_event("before"))).await;
    until_stored(&store, 200).await;
    block_in_place(|| store.server().stop());

    let during = median_time(&eye, (0..500).map(|_| new_event("during"))).await;
    assert!(during < before * SLOWER, "{during:?}, {before:?} before");
    until_sink_is(&eye, "unavailable").await;
    let (status, body) = readyz(&eye).await;
    assert_eq!((status, &body["status"]), (200, &json!("ok")), "the queue still accepts events");

    // The program stops cleanly with a backlog, and starts without the database.
    assert_eq!(block_in_place(|| eye.terminate(HANG)), Some(0));
    eye.restart();
    assert_eq!(eye.post(new_event("restarted")).await.0, 201);

    block_in_place(|| store.server().restart());
    until_stored(&store, 701).await;
    assert_eq!(block_in_place(|| eye.terminate(HANG)), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn second_program_on_the_same_queue_does_not_start() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_with_table(&store, DISK).await;
    let output = block_in_place(|| command(eye.folder(), &["run", "--config", "eye.toml"]).output()).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("transport: cannot open the queue") && stderr.contains("another process"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unwritable_queue_acknowledges_nothing_and_stops() {
    let store = Store::new(Kind::Postgres);
    let mut eye = start_with_table(&store, DISK).await;
    std::fs::remove_dir_all(eye.folder().join("queue")).unwrap();
    assert_eq!(eye.post(new_event("lost")).await.0, 503);
    assert_eq!(block_in_place(|| eye.wait_end(HANG)), Some(1));
    assert!(eye.logs().contains("transport: cannot write"), "{}", eye.logs());
    eye.restart();
    assert_eq!(eye.post(new_event("accepted")).await.0, 201);
}

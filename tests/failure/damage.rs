//! The built program on a queue that the disk has damaged, or cannot read or write. `eye-transports/tests/corruption.rs`
//! tries each block.

use std::fs;
use std::path::Path;

use crate::support::load::Load;
use crate::support::store::{Kind, Store};
use crate::support::{HANG, audit, event, post, readyz, start_ready};
use eye_harness::{Eye, eventually};
use eye_power_loss::{Disk, Fault};
use serde_json::Value;
use tokio::task::block_in_place;
use uuid::Uuid;

/// The program once its table is there.
async fn start(store: &Store, settings: &str) -> Eye {
    let eye = start_ready(store, settings).await;
    eventually("the table is there", HANG, async || {
        let (_, body) = readyz(&eye).await;
        body["components"].as_array().unwrap().iter().all(|component| component["state"] == "ready")
    })
    .await;
    eye
}

/// How many events the program has logged as missing.
fn missing(eye: &Eye) -> u64 {
    let logs = eye.logs();
    let lines = logs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| line["fields"]["missing"].as_u64()).sum()
}

/// Waits until the queue's `cursors` say that so many events came.
async fn written_down(queue: &Path, events: usize) {
    let written_down = format!("\"next\":{events},");
    eventually("how far the queue goes is written down", HANG, async || {
        fs::read_to_string(queue.join("cursors")).is_ok_and(|saved| saved.contains(&written_down))
    })
    .await;
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
    let mut eye = start(&store, "transport = { type = \"disk\", path = \"queue\" }").await;
    let queue = eye.folder().join("queue");
    take_and_store(&eye, &store).await;
    let lock = store.lock().await;
    for _ in 0..EVENTS {
        assert_eq!(post(&eye, &event(Uuid::new_v4(), "queued")).await.0, 201);
    }
    written_down(&queue, EVENTS + 1).await;
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

fn queue_on(disk: &Disk) -> String {
    format!("transport = {{ type = \"disk\", path = \"{}\" }}", disk.path().join("queue").display())
}

/// A bad sector among the events, and one in `cursors`. As long as nothing can be written, either, it is the disk that is
/// away, and nothing is given up.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_cannot_read_is_reported_and_the_rest_is_stored() {
    const EVENTS: usize = 120;
    let Some(disk) = block_in_place(|| Disk::mount(1)) else { return };
    let store = Store::new(Kind::Sqlite);
    let mut eye = start(&store, &queue_on(&disk)).await;
    take_and_store(&eye, &store).await;
    let lock = store.lock().await;
    for _ in 0..EVENTS {
        assert_eq!(post(&eye, &event(Uuid::new_v4(), "queued")).await.0, 201);
    }
    let queue = disk.path().join("queue");
    written_down(&queue, EVENTS + 1).await;
    eye.kill();
    lock.release().await;
    let segment = format!("{:020}.log", 0);
    assert!(fs::metadata(queue.join(&segment)).unwrap().len() > 8192, "there is a block behind it");
    let bad_sectors =
        [Fault::Read { file: segment, offset: 5000 }, Fault::Read { file: "cursors".to_owned(), offset: 0 }];
    disk.set_faults(&[&bad_sectors[..], &[Fault::Sync]].concat());
    block_in_place(|| eye.restart());
    eventually("it has tried often", HANG, async || eye.logs().matches("cannot read the queue").count() > 6).await;
    assert_eq!(missing(&eye), 0);
    disk.set_faults(&bad_sectors);
    take_and_store(&eye, &store).await;
    let (stored, reported) = (store.ids().await.len() - 2, missing(&eye));
    assert_eq!(stored + reported as usize, EVENTS);
    assert!((40..60).contains(&reported), "{reported}");
    assert!(eye.logs().contains("nobody knows what the sinks have"), "{}", eye.logs());
    assert_eq!(block_in_place(|| eye.terminate(HANG)), Some(0));
}

/// What of it the disk has nobody knows; the power cut is the worst case.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_cannot_sync_is_not_acknowledged_and_the_program_stops() {
    let Some(mut disk) = block_in_place(|| Disk::mount(1)) else { return };
    let store = Store::new(Kind::Sqlite);
    let mut eye = start(&store, &queue_on(&disk)).await;
    let load = Load::start(&eye);
    load.progress(20).await;
    disk.set_faults(&[Fault::Sync]);
    assert_eq!(block_in_place(|| eye.wait_end(HANG)), Some(1));
    let logs = eye.logs();
    assert!(logs.contains("cannot write") && logs.contains("was not acknowledged"), "{logs}");
    disk.set_faults(&[]);
    block_in_place(|| {
        disk.cut_power();
        disk.restore_power();
        eye.restart();
    });
    load.retarget(&eye);
    load.progress(20).await;
    load.settle(&eye, &store).await.assert_true();
}

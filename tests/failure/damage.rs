//! Queues on disks that damage data or fail to read or sync it. `eye-transports/tests/corruption.rs` tries every block.

use std::fs;
use std::path::Path;

use eye_harness::{Eye, eventually};
use eye_power_loss::{Disk, Fault};
use serde_json::Value;
use tokio::task::block_in_place;
use uuid::Uuid;

use crate::support::load::ClientLoad;
use crate::support::store::{Kind, Store};
use crate::support::{DISK, HANG, audit, event, new_event, post, start_with_table};

/// Returns the number of events that the log reports as missing.
fn missing(eye: &Eye) -> u64 {
    let logs = eye.logs();
    let lines = logs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| line["fields"]["missing"].as_u64()).sum()
}

/// Waits until `cursors` of the queue contains the number of the next event.
async fn until_cursors_saved(queue: &Path, events: usize) {
    let next = format!("\"next\":{events},");
    eventually("the cursors are saved", HANG, async || {
        fs::read_to_string(queue.join("cursors")).is_ok_and(|saved| saved.contains(&next))
    })
    .await;
}

async fn post_until_stored(eye: &Eye, store: &Store) {
    let id = Uuid::new_v4();
    assert_eq!(post(eye, &event(id, "fresh")).await.0, 201);
    eventually("the event is stored", HANG, async || store.has(id).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_records_are_reported_and_others_stored() {
    const EVENTS: usize = 30;
    let store = Store::new(Kind::Sqlite);
    let mut eye = start_with_table(&store, DISK).await;
    let queue = eye.folder().join("queue");
    post_until_stored(&eye, &store).await;
    let lock = store.lock().await;
    for _ in 0..EVENTS {
        assert_eq!(post(&eye, &new_event("queued")).await.0, 201);
    }
    until_cursors_saved(&queue, EVENTS + 1).await;
    eye.kill();
    lock.release().await;
    assert_eq!(store.ids().await.len(), 1, "the others are in the queue");

    // One of the first records, and the last one, which is complete.
    let segment = queue.join(format!("{:020}.log", 0));
    let mut bytes = fs::read(&segment).unwrap();
    bytes[512..1024].iter_mut().for_each(|byte| *byte = !*byte);
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&segment, bytes).unwrap();
    eye.restart();
    post_until_stored(&eye, &store).await;
    let (stored, reported) = (store.ids().await.len() - 2, missing(&eye));
    assert_eq!(stored + reported as usize, EVENTS);
    assert!((2..10).contains(&reported), "{reported}");
    assert!(eye.logs().contains("the end of the queue is damaged on the disk"), "{}", eye.logs());
    assert!(fs::read_dir(queue.join("damaged")).unwrap().count() >= 2);
    audit("damaged", &eye).await;
    assert_eq!(eye.get("/audit").await.1["sinks"]["store"]["missing"], reported);

    eye.kill();
    eye.restart();
    post_until_stored(&eye, &store).await;
    assert_eq!(eye.terminate(HANG), Some(0));
    let logged = eye.logs().len();
    eye.restart();
    post_until_stored(&eye, &store).await;
    let since = eye.logs().split_off(logged);
    assert!(!since.contains("\"ERROR\""), "old damage is not reported again: {since}");
    audit("restarted after damage", &eye).await;
}

fn queue_on(disk: &Disk) -> String {
    format!("transport = {{ type = \"disk\", path = \"{}\" }}", disk.path().join("queue").display())
}

/// One bad sector is in the events, one in `cursors`. While writes fail as well, the whole disk counts as unavailable,
/// and no event is given up.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_records_are_reported_and_others_stored() {
    const EVENTS: usize = 120;
    let Some(disk) = block_in_place(|| Disk::mount(1)) else { return };
    let store = Store::new(Kind::Sqlite);
    let mut eye = start_with_table(&store, &queue_on(&disk)).await;
    post_until_stored(&eye, &store).await;
    let lock = store.lock().await;
    for _ in 0..EVENTS {
        assert_eq!(post(&eye, &new_event("queued")).await.0, 201);
    }
    let queue = disk.path().join("queue");
    until_cursors_saved(&queue, EVENTS + 1).await;
    eye.kill();
    lock.release().await;
    let segment = format!("{:020}.log", 0);
    assert!(fs::metadata(queue.join(&segment)).unwrap().len() > 8192, "a block follows the bad sector");
    let bad_sectors =
        [Fault::Read { file: segment, offset: 5000 }, Fault::Read { file: "cursors".to_owned(), offset: 0 }];
    disk.set_faults(&[&bad_sectors[..], &[Fault::Sync]].concat());
    block_in_place(|| eye.restart());
    eventually("the program has retried several times", HANG, async || {
        eye.logs().matches("cannot read the queue").count() > 6
    })
    .await;
    assert_eq!(missing(&eye), 0);
    disk.set_faults(&bad_sectors);
    post_until_stored(&eye, &store).await;
    let (stored, reported) = (store.ids().await.len() - 2, missing(&eye));
    assert_eq!(stored + reported as usize, EVENTS);
    assert!((40..60).contains(&reported), "{reported}");
    assert!(eye.logs().contains("every sink gets all events of the queue again"), "{}", eye.logs());
    assert_eq!(block_in_place(|| eye.terminate(HANG)), Some(0));
}

/// After a failed sync the content of the disk is unknown. The power cut is the worst case.
#[tokio::test(flavor = "multi_thread")]
async fn failed_sync_acknowledges_nothing_and_stops_the_program() {
    let Some(mut disk) = block_in_place(|| Disk::mount(1)) else { return };
    let store = Store::new(Kind::Sqlite);
    let mut eye = start_with_table(&store, &queue_on(&disk)).await;
    let load = ClientLoad::start(&eye);
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
    load.drain(&eye, &store).await.assert_consistent();
}

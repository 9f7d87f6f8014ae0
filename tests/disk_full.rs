//! The disk gets full under load, again and again: The Eye says so, and goes on by itself once there is room. What it
//! has acknowledged is stored, once. `EYE_TEST_ROUNDS` says how often.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;

use eye_harness::Eye;
use support::load::Load;
use support::small_disk::SmallDisk;
use support::store::{Kind, Store};
use support::{audit, rounds};
use tokio::task::block_in_place;

/// Answers of 503 after which the disk counts as full.
const REFUSED: usize = 20;

/// A full disk can be started on.
fn start_again(eye: &mut Eye, load: &Load, meanwhile: impl FnOnce()) {
    block_in_place(|| {
        eye.kill();
        meanwhile();
        eye.restart();
    });
    load.retarget(eye);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_fills_its_disk_drains_and_takes_again() {
    let Some(disk) = block_in_place(|| SmallDisk::mount(16)) else { return };
    let store = Store::new(Kind::Sqlite);
    let queue = disk.path().join("queue");
    let settings = format!(
        "transport = {{ type = \"disk\", path = \"{}\", min_free_bytes = 0, max_bytes = 67108864 }}",
        queue.display()
    );
    let mut eye = support::start_ready(&store, &settings).await;
    let load = Load::start_with(&eye, 20_000);
    for round in 0..rounds(3) {
        // By itself, while the database is away.
        let lock = store.lock().await;
        load.answered(503, REFUSED).await;
        lock.release().await;
        load.progress(20).await;
        // By others, at once.
        block_in_place(|| disk.fill());
        load.answered(503, REFUSED).await;
        if round % 2 == 1 {
            start_again(&mut eye, &load, || {});
            load.answered(503, REFUSED).await;
        }
        disk.free();
        load.progress(20).await;
    }
    let balance = load.settle(&eye, &store).await;
    balance.assert_true();
    audit("the queue's disk was full", &eye).await;
    balance.report("The disk is full", "Disk → Sqlite", rounds(3));
    assert!(!eye.logs().contains("\"ERROR\""), "{}", eye.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_on_a_full_disk_refuses_and_takes_again() {
    let Some(disk) = block_in_place(|| SmallDisk::mount(128)) else { return };
    let store = Store::sqlite_at(Path::new(&disk.path().join("eye.db")));
    let mut eye = support::start_ready(&store, "writer.retry_for_ms = 500").await;
    let load = Load::start(&eye);
    for round in 0..rounds(3) {
        load.progress(20).await;
        block_in_place(|| disk.fill());
        load.answered(503, REFUSED).await;
        if round % 2 == 1 {
            // There is no room for these either: SQLite makes them at the start, and a crash may take them along.
            start_again(&mut eye, &load, || {
                for shared_memory in ["eye.db-shm", "eye.db-staging-shm"] {
                    fs::remove_file(disk.path().join(shared_memory)).unwrap();
                }
                disk.fill();
            });
            load.answered(503, REFUSED).await;
        }
        disk.free();
    }
    load.progress(20).await;
    let balance = load.settle(&eye, &store).await;
    balance.assert_true();
    audit("the disk was full", &eye).await;
    balance.report("The disk is full", "Memory → Sqlite", rounds(3));
}

//! Disks that become full under load: the program answers 503, continues by itself after space is freed, and stores
//! every acknowledged event once. `EYE_TEST_ROUNDS` sets the number of rounds.

use std::fs;
use std::path::Path;

use eye_harness::Eye;
use tokio::task::block_in_place;

use crate::support::load::ClientLoad;
use crate::support::small_disk::SmallDisk;
use crate::support::store::{Kind, Store};
use crate::support::{audit, print_result, rounds, start_ready};

/// The number of 503 answers after which the disk counts as full.
const REFUSED: usize = 20;

/// Kills the program and starts it on the full disk.
fn restart(eye: &mut Eye, load: &ClientLoad, meanwhile: impl FnOnce()) {
    block_in_place(|| {
        eye.kill();
        meanwhile();
        eye.restart();
    });
    load.retarget(eye);
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_on_full_disk_drains_and_accepts_again() {
    let Some(disk) = block_in_place(|| SmallDisk::mount(16)) else { return };
    let store = Store::new(Kind::Sqlite);
    let queue = disk.path().join("queue");
    let settings = format!(
        "transport = {{ type = \"disk\", path = \"{}\", min_free_bytes = 0, max_bytes = 67108864 }}",
        queue.display()
    );
    let mut eye = start_ready(&store, &settings).await;
    let load = ClientLoad::start_with(&eye, 20_000);
    for round in 0..rounds(3) {
        // The queue fills the disk while the database is locked.
        let lock = store.lock().await;
        load.answered(503, REFUSED).await;
        lock.release().await;
        load.progress(20).await;
        // Another program fills the disk at once.
        block_in_place(|| disk.fill());
        load.answered(503, REFUSED).await;
        if round % 2 == 1 {
            restart(&mut eye, &load, || {});
            load.answered(503, REFUSED).await;
        }
        disk.free();
        load.progress(20).await;
    }
    let report = load.drain(&eye, &store).await;
    report.assert_consistent();
    audit("the disk of the queue was full", &eye).await;
    print_result("The disk is full | Disk → Sqlite", rounds(3), &report);
    assert!(!eye.logs().contains("\"ERROR\""), "{}", eye.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_on_full_disk_accepts_again() {
    let Some(disk) = block_in_place(|| SmallDisk::mount(128)) else { return };
    let store = Store::sqlite_at(Path::new(&disk.path().join("eye.db")));
    let mut eye = start_ready(&store, "writer.retry_for_ms = 500").await;
    let load = ClientLoad::start(&eye);
    for round in 0..rounds(3) {
        load.progress(20).await;
        block_in_place(|| disk.fill());
        load.answered(503, REFUSED).await;
        if round % 2 == 1 {
            // A crash may lose these files. SQLite has no space to create them at the start.
            restart(&mut eye, &load, || {
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
    let report = load.drain(&eye, &store).await;
    report.assert_consistent();
    audit("the disk was full", &eye).await;
    print_result("The disk is full | Memory → Sqlite", rounds(3), &report);
}

//! Power cuts under load: every acknowledged event is stored once. The disk is a file system that loses all or some of
//! the unsynced data. `EYE_TEST_ROUNDS` sets the number of power cuts.

use eye_harness::Eye;
use eye_oracle::Reconciliation;
use eye_power_loss::Disk;
use fastrand::Rng;
use tokio::task::block_in_place;

use crate::support::load::ClientLoad;
use crate::support::store::{Kind, Store};
use crate::support::{HANG, audit, config, print_result, program, rounds};

/// The holder of acknowledged events on the disk that loses its power.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Custody {
    /// The queue. The database is on another disk, and locked during a power cut under load.
    Queue,
    /// SQLite, behind the memory transport.
    Sqlite,
}

/// Compares ledger and database after this many power cuts. Returns `None` if no disk can be mounted.
async fn cut_power(custody: Custody, cuts: usize, environment: &[&str], seed: u64) -> Option<Reconciliation> {
    println!("{custody:?}, {cuts} cuts, seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let mut disk = block_in_place(|| Disk::mount(seed))?;
    let (store, settings) = match custody {
        Custody::Queue => {
            let queue = disk.path().join("new/queue");
            (Store::new(Kind::Sqlite), format!("transport.type = \"disk\"\ntransport.path = \"{}\"", queue.display()))
        }
        Custody::Sqlite => (Store::sqlite_at(&disk.path().join("new/eye.db")), String::new()),
    };
    let config = config(&store, &settings);
    let mut eye = block_in_place(|| Eye::start_with_environment(program(), environment, &config));
    eye.wait_ready().await;
    let load = ClientLoad::start(&eye);
    for _ in 0..cuts {
        load.progress(rng.usize(0..60)).await;
        let stops_before = rng.u8(0..4) == 0;
        let lock = match custody {
            Custody::Queue if !stops_before => Some(store.lock().await),
            _ => None,
        };
        load.progress(rng.usize(0..60)).await;
        block_in_place(|| {
            if stops_before {
                assert_eq!(eye.terminate(HANG), Some(0), "a clean stop syncs nothing");
                disk.cut_power();
            } else {
                disk.cut_power();
                eye.kill();
            }
        });
        if let Some(lock) = lock {
            lock.release().await;
        }
        block_in_place(|| {
            disk.restore_power();
            eye.restart();
        });
        load.retarget(&eye);
    }
    eye.wait_ready().await;
    let report = load.drain(&eye, &store).await;
    let is_healthy = environment.is_empty();
    if is_healthy {
        audit("the power has failed", &eye).await;
    }
    for damage in ["damaged on the disk", "lost or damaged"] {
        assert!(!is_healthy || !eye.logs().contains(damage), "a power cut is not damage: {}", eye.logs());
    }
    Some(report)
}

async fn assert_no_loss(custody: Custody) {
    let (seed, cuts) = (fastrand::u64(..), rounds(5));
    if let Some(report) = cut_power(custody, cuts, &[], seed).await {
        report.assert_consistent();
        let path = match custody {
            Custody::Queue => "Disk → Sqlite",
            Custody::Sqlite => "Memory → Sqlite",
        };
        print_result(&format!("The power fails | {path}"), cuts, &report);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_costs_no_event_in_the_queue() {
    assert_no_loss(Custody::Queue).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_costs_no_event_in_sqlite() {
    assert_no_loss(Custody::Sqlite).await;
}

/// Checks that these tests find deliberate faults.
#[cfg(feature = "mutants")]
mod mutants {
    use super::*;

    /// The number of seeds, since some faults show only at certain moments.
    const TRIES: u64 = 10;

    async fn assert_found(mutant: &str, custody: Custody, is_visible: impl Fn(&Reconciliation) -> bool) {
        for seed in 0..TRIES {
            let Some(report) = cut_power(custody, 1, &[&format!("EYE_MUTANT={mutant}")], seed).await else { return };
            if is_visible(&report) {
                return;
            }
        }
        panic!("{mutant} was not found");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn queue_without_sync_is_found() {
        assert_found("no-sync", Custody::Queue, |report| report.lost > 0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn queue_with_ack_before_sync_is_found() {
        assert_found("ack-before-sync", Custody::Queue, |report| report.lost > 0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn table_without_unique_key_is_found() {
        assert_found("no-unique-key", Custody::Queue, |report| report.duplicated > 0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sqlite_without_synchronous_is_found() {
        assert_found("sqlite-no-sync", Custody::Sqlite, |report| report.lost > 0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn writer_with_ack_before_write_is_found() {
        assert_found("ack-before-write", Custody::Sqlite, |report| report.lost > 0).await;
    }
}

//! The power fails under load: what was acknowledged is stored, once. The disk is a file system that loses what was not
//! synced, or has a part of it; `EYE_TEST_ROUNDS` says how often.

use crate::support::load::{Balance, Load};
use crate::support::store::{Kind, Store};
use crate::support::{HANG, audit, config, program, rounds};
use eye_harness::Eye;
use eye_power_loss::Disk;
use fastrand::Rng;
use tokio::task::block_in_place;

/// Who has custody of what is acknowledged, on the disk that loses its power.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Custody {
    /// The queue. The database lies elsewhere, and is locked when the power fails under load.
    Queue,
    /// SQLite, behind the memory transport.
    Sqlite,
}

/// What is left of the events after so many power cuts. `None` where there is no such disk.
async fn cut_power(custody: Custody, cuts: usize, environment: &[&str], seed: u64) -> Option<Balance> {
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
    let load = Load::start(&eye);
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
                assert_eq!(eye.terminate(HANG), Some(0), "to stop is not to sync");
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
    let balance = load.settle(&eye, &store).await;
    let is_healthy = environment.is_empty();
    if is_healthy {
        audit("the power has failed", &eye).await;
    }
    for damage in ["damaged on the disk", "lost or damaged"] {
        assert!(!is_healthy || !eye.logs().contains(damage), "a power cut is no damage: {}", eye.logs());
    }
    Some(balance)
}

async fn loses_nothing(custody: Custody) {
    let (seed, cuts) = (fastrand::u64(..), rounds(5));
    if let Some(balance) = cut_power(custody, cuts, &[], seed).await {
        balance.assert_true();
        let place = match custody {
            Custody::Queue => "Disk → Sqlite",
            Custody::Sqlite => "Memory → Sqlite",
        };
        balance.report("The power fails", place, cuts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_costs_nothing_that_is_in_the_queue() {
    loses_nothing(Custody::Queue).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_costs_nothing_that_is_in_sqlite() {
    loses_nothing(Custody::Sqlite).await;
}

/// The same tests find what they are for.
#[cfg(feature = "mutants")]
mod mutants {
    use super::*;

    /// Some faults show only when the power fails at the right moment.
    const TRIES: u64 = 10;

    async fn is_found(mutant: &str, custody: Custody, shows: impl Fn(&Balance) -> bool) {
        for seed in 0..TRIES {
            let Some(balance) = cut_power(custody, 1, &[&format!("EYE_MUTANT={mutant}")], seed).await else { return };
            if shows(&balance) {
                return;
            }
        }
        panic!("{mutant} was not found");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_queue_that_does_not_sync_is_found() {
        is_found("no-sync", Custody::Queue, |balance| balance.lost > 0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_queue_that_acknowledges_before_it_syncs_is_found() {
        is_found("ack-before-sync", Custody::Queue, |balance| balance.lost > 0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_without_unique_key_is_found() {
        is_found("no-unique-key", Custody::Queue, |balance| balance.twice > 0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sqlite_without_synchronous_is_found() {
        is_found("sqlite-no-sync", Custody::Sqlite, |balance| balance.lost > 0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_writer_that_acknowledges_before_it_writes_is_found() {
        is_found("ack-before-write", Custody::Sqlite, |balance| balance.lost > 0).await;
    }
}

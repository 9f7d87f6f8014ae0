//! The program is killed at random moments.

use std::time::Duration;

use super::trial::{Transport, Trial, rounds};
use crate::support::store::{ALL, Store};

async fn killed_under_load(transport: Transport) {
    for kind in ALL {
        let mut trial = Trial::start("The Eye is killed", transport, Store::new(kind), "").await;
        for _ in 0..rounds() {
            trial.load().await;
            trial.acked(20).await;
            trial.random_pause(Duration::from_millis(300)).await;
            trial.kill_and_restart().await;
            trial.check().await;
        }
        // No kill needs a repair.
        assert!(!trial.eye.logs().contains("\"ERROR\""), "{}", trial.eye.logs());
        trial.report(rounds());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_with_memory_transport_costs_no_event() {
    killed_under_load(Transport::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_with_disk_transport_costs_no_event() {
    killed_under_load(Transport::Disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_with_jetstream_transport_costs_no_event() {
    killed_under_load(Transport::JetStream).await;
}

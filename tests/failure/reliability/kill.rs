//! The Eye is killed at random moments.

use std::time::Duration;

use super::trial::{Transport, Trial, rounds};
use crate::support::store::{ALL, Store};

async fn killed_under_load(transport: Transport) {
    for kind in ALL {
        let mut trial = Trial::start("The Eye is killed", transport, Store::new(kind), "").await;
        for _ in 0..rounds() {
            trial.load().await;
            trial.acked(20).await;
            trial.a_moment(Duration::from_millis(300)).await;
            trial.kill().await;
            trial.check().await;
        }
        // A kill is nothing that anything has to be mended after.
        assert!(!trial.eye.logs().contains("\"ERROR\""), "{}", trial.eye.logs());
        trial.report(rounds());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_queue_in_memory() {
    killed_under_load(Transport::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_queue_on_the_disk() {
    killed_under_load(Transport::Disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_queue_in_a_stream() {
    killed_under_load(Transport::JetStream).await;
}

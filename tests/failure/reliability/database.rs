//! The database is killed, hangs, is slow, or loses its connection during a commit.

use std::time::Duration;

use eye_harness::{Cut, eventually};
use futures_util::future::join_all;
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::trial::{Setup, Transport, Trial, rounds};
use crate::support::HANG;
use crate::support::store::{Kind, SERVERS, Store};

/// A setting that makes the program answer 503 soon, so that producers retry.
const SHORT_RETRIES: &str = "writer.retry_for_ms = 500";

#[tokio::test(flavor = "multi_thread")]
async fn killed_database_costs_no_event() {
    let rounds = rounds().div_ceil(2);
    for (transport, kind) in Transport::all_with(SERVERS) {
        let store = Store::own(kind);
        let mut trial = Trial::start("The database is killed", transport, store, SHORT_RETRIES).await;
        for _ in 0..rounds {
            trial.load().await;
            trial.acked(50).await;
            trial.random_pause(Duration::from_millis(300)).await;
            block_in_place(|| trial.store.server().kill());
            if transport == Transport::Memory {
                trial.answered("503", 10).await;
            }
            trial.random_pause(Duration::from_secs(1)).await;
            block_in_place(|| trial.store.server().restart());
            trial.check().await;
        }
        trial.report(rounds);
    }
}

/// Runs all combinations concurrently, since they wait most of the time.
#[tokio::test(flavor = "multi_thread")]
async fn hanging_database_costs_no_event() {
    let stopped = Duration::from_secs(60) * u32::try_from(rounds()).unwrap() / 36;
    let rows = Transport::all_with(SERVERS);
    join_all(rows.map(|(transport, kind)| hang(transport, kind, stopped))).await;
}

async fn hang(transport: Transport, kind: Kind, stopped: Duration) {
    let what = format!("The database is stopped for {} s", stopped.as_secs());
    let mut trial = Trial::start(&what, transport, Store::own(kind), SHORT_RETRIES).await;
    trial.load().await;
    trial.acked(50).await;
    block_in_place(|| trial.store.server().pause());
    sleep(stopped).await;
    block_in_place(|| trial.store.server().resume());
    trial.check().await;
    trial.report(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_cut_during_a_commit_costs_no_event() {
    let rounds = rounds() * 3;
    for (transport, kind) in Transport::all_with(SERVERS) {
        let store = Store::new(kind);
        let proxy = store.proxy().await;
        let setup =
            Setup { proxy_url: Some(proxy.url()), change_load: |load| load.repeat_every = 0, ..Setup::default() };
        let mut trial = Trial::start_with("The connection is cut in a commit", transport, store, setup).await;
        trial.load().await;
        for round in 0..rounds {
            trial.acked(20).await;
            proxy.cut_commit(if round % 2 == 0 { Cut::Sent } else { Cut::Answered }).await;
        }
        trial.check().await;
        // The writer retries before the clients have to.
        assert_eq!(trial.oracle.counts().await.answers.get("503"), None);
        // No client repeats an event, so each duplicate comes from a commit whose answer was lost.
        let duplicates = trial.eye.get("/audit").await.1["sinks"]["store"]["duplicates"].as_u64().unwrap();
        assert!(duplicates >= rounds as u64 / 2, "{duplicates}");
        trial.report(rounds);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_commits_cost_no_event() {
    let slowest = Duration::from_secs(10) * u32::try_from(rounds()).unwrap() / 36;
    let rows = Transport::all_with(SERVERS);
    let slow = join_all(rows.map(|(transport, kind)| delay_commits(transport, kind, slowest)));
    tokio::join!(slow, join_all(Transport::ALL.map(|transport| lock_sqlite(transport, slowest))));
}

/// Delays commits through a proxy, from 100 ms up to `slowest`.
async fn delay_commits(transport: Transport, kind: Kind, slowest: Duration) {
    let store = Store::new(kind);
    let proxy = store.proxy().await;
    let what = format!("A commit takes 0.1 to {:.1} s", slowest.as_secs_f32());
    let setup = Setup { proxy_url: Some(proxy.url()), ..Setup::default() };
    let mut trial = Trial::start_with(&what, transport, store, setup).await;
    trial.load().await;
    let before = proxy.commits();
    let steps = 5;
    for step in 0..=steps {
        let delay = Duration::from_millis(100) + (slowest - Duration::from_millis(100)) * step / steps;
        proxy.delay_commits(delay);
        let slow_until = proxy.commits() + 3;
        let all = delay * 30 + HANG;
        eventually("some commits", all, async || proxy.commits() >= slow_until).await;
    }
    proxy.delay_commits(Duration::ZERO);
    trial.check().await;
    trial.report(usize::try_from(proxy.commits() - before).unwrap());
}

/// Delays commits of SQLite by locks, from 100 ms up to `slowest`.
async fn lock_sqlite(transport: Transport, slowest: Duration) {
    let what = format!("A commit takes 0.1 to {:.1} s", slowest.as_secs_f32());
    let mut trial = Trial::start(&what, transport, Store::new(Kind::Sqlite), "").await;
    trial.load().await;
    let steps = 5;
    for step in 0..=steps {
        trial.acked(10).await;
        let lock = trial.store.lock().await;
        sleep(Duration::from_millis(100) + (slowest - Duration::from_millis(100)) * step / steps).await;
        lock.release().await;
    }
    trial.check().await;
    trial.report(usize::try_from(steps).unwrap() + 1);
}

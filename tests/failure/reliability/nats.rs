//! Publishers to a stream that the NATS source reads. An event is acknowledged when the stream has it.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use eye_harness::NatsServer;
use eye_oracle::LoadProfile;
use tokio::task::block_in_place;

use super::trial::{Setup, Transport, Trial, rounds};
use crate::support::store::{ALL, Kind, Store};

/// Starts a server with a stream, whose usual settings `change` modifies.
async fn server(change: impl FnOnce(&mut stream::Config)) -> (NatsServer, stream::Stream) {
    let server = block_in_place(NatsServer::start);
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut config =
        stream::Config { name: "EVENTS".to_owned(), subjects: vec!["events.>".to_owned()], ..Default::default() };
    change(&mut config);
    let stream = jetstream::new(client).create_stream(config).await.unwrap();
    (server, stream)
}

/// Starts a trial whose clients publish to the stream.
async fn start(
    what: &str,
    transport: Transport,
    store: Store,
    server: &NatsServer,
    change_load: fn(&mut LoadProfile),
) -> Trial {
    let source = format!(
        "sources.bus = {{ type = \"nats\", url = \"{}\", mode = \"jetstream\", stream = \"EVENTS\", subjects = [], \
         ack_wait_ms = 1000 }}\nwriter.retry_for_ms = 500",
        server.url()
    );
    let publish_to = Some(format!("{}/events.web", server.url()));
    let setup = Setup { settings: &source, publish_to, change_load, ..Setup::default() };
    Trial::start_with(&format!("{what} (events from a stream)"), transport, store, setup).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_program_costs_no_message() {
    for kind in ALL {
        let (server, _) = server(|_| {}).await;
        let mut trial = start("The Eye is killed", Transport::Memory, Store::new(kind), &server, |_| {}).await;
        for _ in 0..rounds() {
            trial.load().await;
            trial.acked(50).await;
            trial.random_pause(Duration::from_millis(300)).await;
            trial.kill_and_restart().await;
            trial.check().await;
        }
        trial.report(rounds());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_source_server_costs_no_message() {
    for transport in [Transport::Memory, Transport::Disk] {
        let (mut server, _) = server(|_| {}).await;
        let mut trial = start("nats-server is killed", transport, Store::new(Kind::Postgres), &server, |_| {}).await;
        for _ in 0..rounds() {
            trial.load().await;
            trial.acked(50).await;
            trial.random_pause(Duration::from_millis(300)).await;
            block_in_place(|| server.kill());
            trial.random_pause(Duration::from_secs(1)).await;
            block_in_place(|| server.restart());
            trial.check().await;
        }
        trial.report(rounds());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_transport_server_costs_no_event() {
    let store = Store::new(Kind::Postgres);
    let mut trial = Trial::start("nats-server is killed", Transport::JetStream, store, "").await;
    for _ in 0..rounds() {
        trial.load().await;
        trial.acked(50).await;
        trial.random_pause(Duration::from_millis(300)).await;
        block_in_place(|| trial.nats.as_mut().unwrap().kill());
        trial.random_pause(Duration::from_secs(1)).await;
        block_in_place(|| trial.nats.as_mut().unwrap().restart());
        trial.check().await;
    }
    trial.report(rounds());
}

/// A full stream rejects messages, and their publishers retry.
#[tokio::test(flavor = "multi_thread")]
async fn full_stream_costs_no_message() {
    const MESSAGES: i64 = 300;
    let (server, mut stream) = server(|config| {
        config.max_messages = MESSAGES;
        config.discard = stream::DiscardPolicy::New;
        config.retention = stream::RetentionPolicy::WorkQueue;
    })
    .await;
    let store = Store::own(Kind::Postgres);
    let mut trial = start("The stream is full", Transport::Memory, store, &server, |_| {}).await;
    for _ in 0..rounds() {
        trial.load().await;
        trial.acked(50).await;
        block_in_place(|| trial.store.server().pause());
        // The stream rejects messages.
        trial.answered("none", 20).await;
        assert_eq!(stream.info().await.unwrap().state.messages, MESSAGES as u64);
        block_in_place(|| trial.store.server().resume());
        trial.check().await;
    }
    trial.report(rounds());
}

/// After the window, the server accepts the same message a second time.
#[tokio::test(flavor = "multi_thread")]
async fn expired_duplicate_window_stores_events_once() {
    let (server, mut stream) = server(|config| config.duplicate_window = Duration::from_millis(100)).await;
    let store = Store::new(Kind::MariaDb);
    let seldom = |load: &mut LoadProfile| (load.singles, load.arrays, load.max_pause_ms) = (20, 0, 400);
    let mut trial = start("The duplicate window expired", Transport::Memory, store, &server, seldom).await;
    trial.load().await;
    let mut twice = 0;
    while twice < rounds() {
        trial.acked(50).await;
        // A message has one event.
        let taken = stream.info().await.unwrap().state.last_sequence;
        twice = usize::try_from(taken).unwrap().saturating_sub(trial.oracle.counts().await.issued);
    }
    trial.check().await;
    trial.report(twice);
}

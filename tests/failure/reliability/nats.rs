//! Publishers to a stream, from which The Eye takes events: an event is acknowledged once the stream has it.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use eye_harness::NatsServer;
use eye_oracle::Load;
use tokio::task::block_in_place;

use super::trial::{Setup, Transport, Trial, rounds};
use crate::support::store::{ALL, Kind, Store};

/// A server with a stream, which has `change` made to its usual settings.
async fn server(change: impl FnOnce(&mut stream::Config)) -> (NatsServer, stream::Stream) {
    let server = block_in_place(NatsServer::start);
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut config =
        stream::Config { name: "EVENTS".to_owned(), subjects: vec!["events.>".to_owned()], ..Default::default() };
    change(&mut config);
    let stream = jetstream::new(client).create_stream(config).await.unwrap();
    (server, stream)
}

/// Clients that publish to the stream.
async fn start(
    what: &str,
    transport: Transport,
    store: Store,
    server: &NatsServer,
    change_load: fn(&mut Load),
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
async fn the_eye_is_killed() {
    for kind in ALL {
        let (server, _) = server(|_| {}).await;
        let mut trial = start("The Eye is killed", Transport::Memory, Store::new(kind), &server, |_| {}).await;
        for _ in 0..rounds() {
            trial.load().await;
            trial.acked(50).await;
            trial.a_moment(Duration::from_millis(300)).await;
            trial.kill().await;
            trial.check().await;
        }
        trial.report(rounds());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_of_the_source_is_killed() {
    for transport in [Transport::Memory, Transport::Disk] {
        let (mut server, _) = server(|_| {}).await;
        let mut trial = start("nats-server is killed", transport, Store::new(Kind::Postgres), &server, |_| {}).await;
        for _ in 0..rounds() {
            trial.load().await;
            trial.acked(50).await;
            trial.a_moment(Duration::from_millis(300)).await;
            block_in_place(|| server.kill());
            trial.a_moment(Duration::from_secs(1)).await;
            block_in_place(|| server.restart());
            trial.check().await;
        }
        trial.report(rounds());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_of_the_transport_is_killed() {
    let store = Store::new(Kind::Postgres);
    let mut trial = Trial::start("nats-server is killed", Transport::JetStream, store, "").await;
    for _ in 0..rounds() {
        trial.load().await;
        trial.acked(50).await;
        trial.a_moment(Duration::from_millis(300)).await;
        block_in_place(|| trial.nats.as_mut().unwrap().kill());
        trial.a_moment(Duration::from_secs(1)).await;
        block_in_place(|| trial.nats.as_mut().unwrap().restart());
        trial.check().await;
    }
    trial.report(rounds());
}

/// What finds no place in the stream is refused to the publisher, who tries again.
#[tokio::test(flavor = "multi_thread")]
async fn the_stream_is_full() {
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
        // Publishers are refused.
        trial.answered("none", 20).await;
        assert_eq!(stream.info().await.unwrap().state.messages, MESSAGES as u64);
        block_in_place(|| trial.store.server().resume());
        trial.check().await;
    }
    trial.report(rounds());
}

/// The server takes the same message twice, because it has forgotten the first.
#[tokio::test(flavor = "multi_thread")]
async fn the_duplicate_window_has_expired() {
    let (server, mut stream) = server(|config| config.duplicate_window = Duration::from_millis(100)).await;
    let store = Store::new(Kind::MariaDb);
    let seldom = |load: &mut Load| (load.singles, load.arrays, load.max_pause_ms) = (20, 0, 400);
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

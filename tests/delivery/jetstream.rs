//! The JetStream transport: events pass through a stream to the stores, with one program and with several.

use std::collections::BTreeSet;

use async_nats::jetstream::{self, stream::Stream};
use eye_harness::{Eye, NatsServer, eventually};
use serde_json::{Value, json};
use tokio::task::block_in_place;
use uuid::Uuid;

use crate::support::load::ClientLoad;
use crate::support::store::{Kind, Store};
use crate::support::{
    self, HANG, SLOWER, audit, audit_stream, median_time, new_event, post, readyz, start_with_table, until_sink_is,
    until_stored,
};

const MAX_BYTES: u64 = 64 << 20;

fn settings(server: &NatsServer) -> String {
    settings_at(&server.url())
}

fn settings_at(url: &str) -> String {
    format!(
        "transport.type = \"jetstream\"\ntransport.url = \"{url}\"\ntransport.stream = \"EYE\"\n\
         transport.max_bytes = {MAX_BYTES}\ntransport.ack_wait_ms = 1000\nwriter.retry_for_ms = 500\n",
    )
}

async fn start_ready(server: &NatsServer, store: &Store) -> Eye {
    start_with_table(store, &settings(server)).await
}

async fn stream(server: &NatsServer) -> Stream {
    let client = async_nats::connect(server.url()).await.unwrap();
    jetstream::new(client).get_stream("EYE").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn posted_event_passes_through_the_stream() {
    let server = NatsServer::start();
    let store = Store::new(Kind::Postgres);
    let mut eye = start_ready(&server, &store).await;
    let events: Vec<Value> = (0..100).map(|n| new_event(&n.to_string())).collect();
    assert_eq!(eye.post(json!(events)).await, (201, json!({"success": true, "accepted": 100})));
    eventually("the events can be queried", HANG, async || eye.get("/api/event/").await.1["count"] == 100).await;
    let state = stream(&server).await.cached_info().state.clone();
    assert_eq!(state.last_sequence, 1, "one request, one message");
    let removed = async || stream(&server).await.cached_info().state.messages == 0;
    eventually("the stream is empty", HANG, removed).await;
    assert_eq!(eye.terminate(HANG), Some(0));
    assert!(!eye.logs().contains("ERROR"), "{}", eye.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn database_outage_does_not_slow_down_acks() {
    let server = NatsServer::start();
    let store = Store::own(Kind::Postgres);
    let mut eye = start_ready(&server, &store).await;
    let before = median_time(&eye, (0..100).map(|_| new_event("before"))).await;
    block_in_place(|| store.server().kill());
    let during = median_time(&eye, (0..200).map(|_| new_event("during"))).await;
    assert!(during < before * SLOWER, "{during:?}, {before:?} before");
    until_sink_is(&eye, "unavailable").await;
    assert_eq!(readyz(&eye).await.0, 200, "the stream still accepts events");
    assert_eq!(block_in_place(|| eye.terminate(HANG)), Some(0), "it stops with a backlog in the stream");

    eye.restart();
    eye.wait_ready().await;
    assert_eq!(eye.post(new_event("restarted")).await.0, 201);
    block_in_place(|| store.server().restart());
    until_stored(&store, 301).await;
    assert_eq!(eye.terminate(HANG), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_outage_answers_503_and_states_the_reason() {
    let mut server = NatsServer::new(&[]);
    let store = Store::new(Kind::Postgres);
    let mut eye = support::start(&store, &settings(&server));
    let is_unavailable = async || {
        let (status, body) = readyz(&eye).await;
        status == 503 && body.to_string().contains("no connection to 127.0.0.1:")
    };
    eventually("the reason is stated", HANG, is_unavailable).await;
    let (status, retry_after) = post(&eye, &new_event("early")).await;
    assert!(status == 503 && retry_after.is_some(), "{status}");

    block_in_place(|| server.restart());
    eye.wait_ready().await;
    until_sink_is(&eye, "ready").await;
    assert_eq!(eye.post(new_event("accepted")).await.0, 201);
    until_stored(&store, 1).await;

    block_in_place(|| server.kill());
    eventually("the program is not ready", HANG, async || readyz(&eye).await.0 == 503).await;
    assert_eq!(post(&eye, &new_event("refused")).await.0, 503);
    assert_eq!(eye.get("/api/event/").await.0, 200, "queries still work");
    block_in_place(|| server.restart());
    eye.wait_ready().await;
    assert_eq!(eye.post(new_event("accepted")).await.0, 201);
    until_stored(&store, 2).await;
    assert_eq!(eye.terminate(HANG), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn full_stream_answers_503_until_its_backlog_drains() {
    let server = NatsServer::start();
    let store = Store::own(Kind::Postgres);
    let eye = start_ready(&server, &store).await;
    block_in_place(|| store.server().kill());
    let send = async || {
        let mut large = new_event("large");
        large["data"] = json!("x".repeat(900_000));
        let events: Vec<Value> = std::iter::repeat_n(large, 5).collect();
        let events: Vec<Value> = events
            .into_iter()
            .map(|mut event| {
                event["id"] = json!(Uuid::new_v4());
                event
            })
            .collect();
        eye.post(json!(events)).await.0
    };
    let mut accepted = 0;
    loop {
        match send().await {
            201 => accepted += 1,
            503 => break,
            other => panic!("{other}"),
        }
        assert!(accepted < 20, "the stream exceeds max_bytes");
    }
    assert!(accepted > 10, "{accepted}");
    let is_full = async || {
        let (status, body) = readyz(&eye).await;
        status == 503 && body.to_string().contains("transport.max_bytes = 67108864")
    };
    eventually("the reason is stated", HANG, is_full).await;
    block_in_place(|| store.server().restart());
    eventually("the stream accepts events again", HANG, async || send().await == 201).await;
    let least = 5 * (accepted + 1);
    eventually("all events are stored", HANG, async || store.ids().await.len() >= least).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_drift_ends_the_program() {
    let server = NatsServer::start();
    let store = Store::new(Kind::Postgres);
    let mut eye = start_ready(&server, &store).await;
    assert_eq!(eye.terminate(HANG), Some(0));
    for (key, other, message) in [
        (
            "max_bytes = 67108864",
            "max_bytes = 67108865",
            "transport: the stream `EYE` has other settings: max_bytes is",
        ),
        ("ack_wait_ms = 1000", "ack_wait_ms = 1001", "transport: the consumer `store` of the stream `EYE` has other"),
    ] {
        let settings = settings(&server).replace(key, other);
        let mut eye = support::start(&store, &settings);
        assert_eq!(eye.wait_end(HANG), Some(1), "{other}");
        assert!(eye.logs().contains(message), "{}", eye.logs());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn event_refused_by_the_database_is_a_dead_letter() {
    let server = NatsServer::start();
    let store = Store::new(Kind::Postgres);
    let eye = start_ready(&server, &store).await;
    store.refuse().await;
    let mut events: Vec<Value> = (0..1000).map(|_| new_event("good")).collect();
    events[617] = new_event("refused");
    assert_eq!(eye.post(json!(events)).await.0, 201);
    until_stored(&store, 999).await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let context = jetstream::new(client);
    let mut letter = None;
    eventually("there is a dead letter", HANG, async || {
        let stream = context.get_stream("EYE_dead_letters").await.unwrap();
        letter = stream.get_raw_message(1).await.ok();
        letter.is_some()
    })
    .await;
    let letter = letter.unwrap();
    let payload: Value = serde_json::from_slice(&letter.payload).unwrap();
    assert_eq!((&payload["id"], &payload["name"]), (&events[617]["id"], &json!("refused")));
    assert_eq!(letter.headers.get("Eye-Refused-By").unwrap().as_str(), "sinks.store");
    assert!(letter.headers.get("Eye-Reason").unwrap().as_str().contains("no_such_name"), "{letter:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_of_one_sink_does_not_delay_the_other() {
    let server = NatsServer::start();
    let (store, other) = (Store::own(Kind::Postgres), Store::new(Kind::Sqlite));
    let second = format!("sinks.other.type = \"sqlite\"\nsinks.other.url = \"{}\"\n", other.url);
    let settings = settings(&server) + &second + "query.sink = \"other\"\n";
    let mut eye = support::start(&store, &settings);
    eye.wait_ready().await;
    until_sink_is(&eye, "ready").await;
    block_in_place(|| store.server().kill());
    for n in 0..50 {
        assert_eq!(eye.post(new_event(&n.to_string())).await.0, 201);
    }
    until_stored(&other, 50).await;
    block_in_place(|| store.server().restart());
    until_stored(&store, 50).await;
    let ids = |ids: Vec<Uuid>| ids.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(ids(store.ids().await), ids(other.ids().await));
    assert_eq!(eye.terminate(HANG), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_three_sharing_programs_cost_no_event() {
    let server = NatsServer::start();
    let store = Store::new(Kind::Postgres);
    let mut eyes = Vec::new();
    for _ in 0..3 {
        eyes.push(start_ready(&server, &store).await);
    }
    let load = ClientLoad::start(&eyes[0]);
    load.spread(&eyes);
    for killed in [0, 1, 2, 0, 1] {
        load.progress(150).await;
        block_in_place(|| eyes[killed].kill());
        load.progress(150).await;
        block_in_place(|| eyes[killed].restart());
        load.spread(&eyes);
    }
    load.finish_delivered(&store).await;
    let empty = async || stream(&server).await.cached_info().state.messages == 0;
    eventually("the stream is empty", HANG, empty).await;
    audit_stream("three programs", &server).await;
    for mut eye in eyes {
        audit("one of three programs", &eye).await;
        assert_eq!(block_in_place(|| eye.terminate(HANG)), Some(0), "{}", eye.logs());
    }
}

/// Clients send to one program alone.
#[tokio::test(flavor = "multi_thread")]
async fn one_program_stores_events_that_another_accepted() {
    let server = NatsServer::start();
    let (store, other) = (Store::own(Kind::Postgres), Store::new(Kind::Sqlite));
    let receiver = start_ready(&server, &store).await;
    // A different database under the same sink name shows which program wrote.
    let writer = start_ready(&server, &other).await;
    block_in_place(|| store.server().kill());
    for n in 0..200 {
        assert_eq!(receiver.post(new_event(&n.to_string())).await.0, 201);
    }
    until_stored(&other, 200).await;
    drop(writer);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_nats_server_costs_no_acknowledged_event() {
    let mut server = NatsServer::start();
    let store = Store::new(Kind::Postgres);
    let eyes = [start_ready(&server, &store).await, start_ready(&server, &store).await];
    let load = ClientLoad::start(&eyes[0]);
    load.spread(&eyes);
    for _ in 0..4 {
        load.progress(150).await;
        block_in_place(|| server.kill());
        load.answered(503, 5).await;
        block_in_place(|| server.restart());
        load.progress(50).await;
    }
    load.finish_delivered(&store).await;
    audit_stream("the server is killed", &server).await;
    for mut eye in eyes {
        audit("the server is killed", &eye).await;
        assert_eq!(block_in_place(|| eye.terminate(HANG)), Some(0), "{}", eye.logs());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_cluster_leader_costs_no_acknowledged_event() {
    let mut servers = NatsServer::start_cluster();
    let urls = servers.each_ref().map(NatsServer::url).join(",");
    let settings = format!("{}transport.replicas = 3\n", settings_at(&urls));
    let store = Store::new(Kind::Postgres);
    let eye = support::start(&store, &settings);
    eye.wait_ready().await;
    let load = ClientLoad::start(&eye);
    load.progress(100).await;
    let cluster = stream(&servers[0]).await.get_info().await.unwrap().cluster.unwrap();
    let leader = servers.iter_mut().find(|server| Some(server.name()) == cluster.leader).unwrap();
    block_in_place(|| leader.kill());
    load.progress(100).await;
    // A program starts although one of the servers is unavailable.
    let another = support::start(&store, &settings);
    another.wait_ready().await;
    load.finish_delivered(&store).await;
    for mut eye in [eye, another] {
        audit("the server that leads is killed", &eye).await;
        assert_eq!(block_in_place(|| eye.terminate(HANG)), Some(0), "{}", eye.logs());
    }
}

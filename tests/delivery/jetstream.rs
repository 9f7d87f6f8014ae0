//! The program with a stream of a NATS server between its sources and its sinks: alone, and several of them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::load::Load;
use crate::support::store::{Kind, Store};
use crate::support::{PROGRAM, SLOWER, audit, audit_stream, config, event, median_time, post, readyz};
use async_nats::jetstream::{self, stream::Stream};
use eye_harness::{Eye, NatsServer, eventually};
use serde_json::{Value, json};
use tokio::task::block_in_place;
use uuid::Uuid;

/// For whatever is to happen, on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(60);

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

fn start(server: &NatsServer, store: &Store) -> Eye {
    Eye::start(PROGRAM, &config(store, &settings(server)))
}

async fn start_ready(server: &NatsServer, store: &Store) -> Eye {
    let eye = start(server, store);
    eye.wait_ready().await;
    // The schema is there, too.
    until_sink_is(&eye, "ready").await;
    eye
}

async fn until_sink_is(eye: &Eye, state: &str) {
    eventually(&format!("the sink is {state}"), DEADLINE, async || {
        let (_, body) = readyz(eye).await;
        let components = body["components"].as_array().unwrap();
        components.iter().any(|it| it["name"] == "sinks.store" && it["state"] == state)
    })
    .await;
}

async fn stream(server: &NatsServer) -> Stream {
    let client = async_nats::connect(server.url()).await.unwrap();
    jetstream::new(client).get_stream("EYE").await.unwrap()
}

fn new_event(name: &str) -> Value {
    event(Uuid::new_v4(), name)
}

async fn wait_stored(store: &Store, expected: usize) {
    eventually(&format!("{expected} are stored"), DEADLINE, async || store.ids().await.len() == expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_posted_goes_through_the_stream_and_can_be_queried() {
    let server = NatsServer::start();
    let store = Store::new(Kind::Postgres);
    let mut eye = start_ready(&server, &store).await;
    let events: Vec<Value> = (0..100).map(|n| new_event(&n.to_string())).collect();
    assert_eq!(eye.post(json!(events)).await, (201, json!({"success": true, "accepted": 100})));
    eventually("they can be queried", DEADLINE, async || eye.get("/api/event/").await.1["count"] == 100).await;
    let state = stream(&server).await.cached_info().state.clone();
    assert_eq!(state.last_sequence, 1, "one request, one message");
    let removed = async || stream(&server).await.cached_info().state.messages == 0;
    eventually("the stream keeps nothing that is stored", DEADLINE, removed).await;
    assert_eq!(eye.terminate(DEADLINE), Some(0));
    assert!(!eye.logs().contains("ERROR"), "{}", eye.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_events_are_taken_at_speed_and_stored_when_it_is_back() {
    let server = NatsServer::start();
    let store = Store::own(Kind::Postgres);
    let mut eye = start_ready(&server, &store).await;
    let before = median_time(&eye, (0..100).map(|_| new_event("before"))).await;
    block_in_place(|| store.server().kill());
    let away = median_time(&eye, (0..200).map(|_| new_event("away"))).await;
    assert!(away < before * SLOWER, "{away:?}, {before:?} before");
    until_sink_is(&eye, "unavailable").await;
    assert_eq!(readyz(&eye).await.0, 200, "it takes events");
    assert_eq!(block_in_place(|| eye.terminate(DEADLINE)), Some(0), "it stops with all that in the stream");

    eye.restart();
    eye.wait_ready().await;
    assert_eq!(eye.post(new_event("restarted")).await.0, 201);
    block_in_place(|| store.server().restart());
    wait_stored(&store, 301).await;
    assert_eq!(eye.terminate(DEADLINE), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_away_events_are_refused_and_it_is_said_why() {
    let mut server = NatsServer::new(&[]);
    let store = Store::new(Kind::Postgres);
    let mut eye = start(&server, &store);
    let is_away = async || {
        let (status, body) = readyz(&eye).await;
        status == 503 && body.to_string().contains("no connection to 127.0.0.1:")
    };
    eventually("it says what is missing", DEADLINE, is_away).await;
    let (status, retry_after) = post(&eye, &new_event("early")).await;
    assert!(status == 503 && retry_after.is_some(), "{status}");

    block_in_place(|| server.restart());
    eye.wait_ready().await;
    until_sink_is(&eye, "ready").await;
    assert_eq!(eye.post(new_event("taken")).await.0, 201);
    wait_stored(&store, 1).await;

    block_in_place(|| server.kill());
    eventually("it is not ready", DEADLINE, async || readyz(&eye).await.0 == 503).await;
    assert_eq!(post(&eye, &new_event("refused")).await.0, 503);
    assert_eq!(eye.get("/api/event/").await.0, 200, "queries go on");
    block_in_place(|| server.restart());
    eye.wait_ready().await;
    assert_eq!(eye.post(new_event("taken")).await.0, 201);
    wait_stored(&store, 2).await;
    assert_eq!(eye.terminate(DEADLINE), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_refuses_and_there_is_room_again_once_the_database_is_back() {
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
    let mut taken = 0;
    loop {
        match send().await {
            201 => taken += 1,
            503 => break,
            other => panic!("{other}"),
        }
        assert!(taken < 20, "the stream takes more than it may hold");
    }
    assert!(taken > 10, "{taken}");
    let says_so = async || {
        let (status, body) = readyz(&eye).await;
        status == 503 && body.to_string().contains("transport.max_bytes = 67108864")
    };
    eventually("it says so", DEADLINE, says_so).await;
    block_in_place(|| store.server().restart());
    eventually("there is room again", DEADLINE, async || send().await == 201).await;
    let least = 5 * (taken + 1);
    eventually("all is stored", DEADLINE, async || store.ids().await.len() >= least).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_or_a_consumer_that_is_another_ends_the_program() {
    let server = NatsServer::start();
    let store = Store::new(Kind::Postgres);
    let mut eye = start_ready(&server, &store).await;
    assert_eq!(eye.terminate(DEADLINE), Some(0));
    for (key, other, said) in [
        (
            "max_bytes = 67108864",
            "max_bytes = 67108865",
            "transport: the stream `EYE` has other settings: max_bytes is",
        ),
        ("ack_wait_ms = 1000", "ack_wait_ms = 1001", "transport: the consumer `store` of the stream `EYE` has other"),
    ] {
        let settings = settings(&server).replace(key, other);
        let mut eye = Eye::start(PROGRAM, &config(&store, &settings));
        assert_eq!(eye.wait_end(DEADLINE), Some(1), "{other}");
        assert!(eye.logs().contains(said), "{}", eye.logs());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_refuses_is_a_dead_letter() {
    let server = NatsServer::start();
    let store = Store::new(Kind::Postgres);
    let eye = start_ready(&server, &store).await;
    store.refuse().await;
    let mut events: Vec<Value> = (0..1000).map(|_| new_event("good")).collect();
    events[617] = new_event("refused");
    assert_eq!(eye.post(json!(events)).await.0, 201);
    wait_stored(&store, 999).await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let context = jetstream::new(client);
    let mut kept = None;
    eventually("one is kept", DEADLINE, async || {
        let stream = context.get_stream("EYE_dead_letters").await.unwrap();
        kept = stream.get_raw_message(1).await.ok();
        kept.is_some()
    })
    .await;
    let letter = kept.unwrap();
    let payload: Value = serde_json::from_slice(&letter.payload).unwrap();
    assert_eq!((&payload["id"], &payload["name"]), (&events[617]["id"], &json!("refused")));
    assert_eq!(letter.headers.get("Eye-Refused-By").unwrap().as_str(), "sinks.store");
    assert!(letter.headers.get("Eye-Reason").unwrap().as_str().contains("no_such_name"), "{letter:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_two_sinks_gets_every_event_in_its_own_time() {
    let server = NatsServer::start();
    let (store, other) = (Store::own(Kind::Postgres), Store::new(Kind::Sqlite));
    let second = format!("sinks.other.type = \"sqlite\"\nsinks.other.url = \"{}\"\n", other.url);
    let settings = settings(&server) + &second + "query.sink = \"other\"\n";
    let mut eye = Eye::start(PROGRAM, &config(&store, &settings));
    eye.wait_ready().await;
    until_sink_is(&eye, "ready").await;
    block_in_place(|| store.server().kill());
    for n in 0..50 {
        assert_eq!(eye.post(new_event(&n.to_string())).await.0, 201);
    }
    wait_stored(&other, 50).await;
    block_in_place(|| store.server().restart());
    wait_stored(&store, 50).await;
    let ids = |ids: Vec<Uuid>| ids.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(ids(store.ids().await), ids(other.ids().await));
    assert_eq!(eye.terminate(DEADLINE), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn three_programs_share_the_work_and_one_that_is_killed_loses_nothing() {
    let server = NatsServer::start();
    let store = Store::new(Kind::Postgres);
    let mut eyes = Vec::new();
    for _ in 0..3 {
        eyes.push(start_ready(&server, &store).await);
    }
    let mut load = Load::start(&eyes[0]);
    load.spread(&eyes);
    for killed in [0, 1, 2, 0, 1] {
        load.progress(150).await;
        block_in_place(|| eyes[killed].kill());
        load.progress(150).await;
        block_in_place(|| eyes[killed].restart());
        load.spread(&eyes);
    }
    load.drained(&store).await;
    load.finish(&store).await;
    let empty = async || stream(&server).await.cached_info().state.messages == 0;
    eventually("the stream is empty", DEADLINE, empty).await;
    audit_stream("three programs", &server).await;
    for mut eye in eyes {
        audit("one of three programs", &eye).await;
        assert_eq!(block_in_place(|| eye.terminate(DEADLINE)), Some(0), "{}", eye.logs());
    }
}

/// Each of the programs writes, although clients send to one alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_program_takes_another_may_store() {
    let server = NatsServer::start();
    let (store, other) = (Store::own(Kind::Postgres), Store::new(Kind::Sqlite));
    let taker = start_ready(&server, &store).await;
    // The same sink's name, and for this test another database, so that it shows who wrote.
    let writer = start_ready(&server, &other).await;
    block_in_place(|| store.server().kill());
    for n in 0..200 {
        assert_eq!(taker.post(new_event(&n.to_string())).await.0, 201);
    }
    wait_stored(&other, 200).await;
    drop(writer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_server_that_is_killed_under_load_loses_nothing_that_was_acknowledged() {
    let mut server = NatsServer::start();
    let store = Store::new(Kind::Postgres);
    let eyes = [start_ready(&server, &store).await, start_ready(&server, &store).await];
    let mut load = Load::start(&eyes[0]);
    load.spread(&eyes);
    for _ in 0..4 {
        load.progress(150).await;
        block_in_place(|| server.kill());
        load.answered(503, 5).await;
        block_in_place(|| server.restart());
        load.progress(50).await;
    }
    load.drained(&store).await;
    load.finish(&store).await;
    audit_stream("the server is killed", &server).await;
    for mut eye in eyes {
        audit("the server is killed", &eye).await;
        assert_eq!(block_in_place(|| eye.terminate(DEADLINE)), Some(0), "{}", eye.logs());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_cluster_the_server_that_leads_the_stream_may_be_killed() {
    let mut servers = NatsServer::start_cluster();
    let urls = servers.each_ref().map(NatsServer::url).join(",");
    let settings = format!("{}transport.replicas = 3\n", settings_at(&urls));
    let store = Store::new(Kind::Postgres);
    let eye = Eye::start(PROGRAM, &config(&store, &settings));
    eye.wait_ready().await;
    let mut load = Load::start(&eye);
    load.progress(100).await;
    let cluster = stream(&servers[0]).await.get_info().await.unwrap().cluster.unwrap();
    let leader = servers.iter_mut().find(|server| Some(server.name()) == cluster.leader).unwrap();
    block_in_place(|| leader.kill());
    load.progress(100).await;
    // A program that starts finds the others, whichever is away.
    let another = Eye::start(PROGRAM, &config(&store, &settings));
    another.wait_ready().await;
    load.drained(&store).await;
    load.finish(&store).await;
    for mut eye in [eye, another] {
        audit("the server that leads is killed", &eye).await;
        assert_eq!(block_in_place(|| eye.terminate(DEADLINE)), Some(0), "{}", eye.logs());
    }
}

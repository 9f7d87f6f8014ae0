//! The NATS source: events published over core NATS and JetStream reach the store, and lost messages are counted.

use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, consumer::pull};
use async_nats::{Client, ConnectOptions};
use eye_harness::{Eye, NatsServer, PASSWORD, USER, eventually};
use serde_json::{Value, json};

use crate::support::store::{Kind, Store};
use crate::support::{HANG, config, program};

/// Starts the program with HTTP and NATS into `store`. `keys` are more lines of the NATS source.
fn start(store: &Store, url: &str, keys: &str) -> Eye {
    let source = format!("[sources.bus]\ntype = \"nats\"\nurl = \"{url}\"\n{keys}\n");
    Eye::start(program(), &(config(store, "") + &source))
}

const CORE: &str = "mode = \"core\"\nsubjects = [\"events.>\"]\n";

const JETSTREAM: &str = "mode = \"jetstream\"\nstream = \"EVENTS\"\nsubjects = []\nack_wait_ms = 1000\n";

async fn create_stream(client: &Client) -> Stream {
    let config = jetstream::stream::Config {
        name: "EVENTS".to_owned(),
        subjects: vec!["events.>".to_owned()],
        ..Default::default()
    };
    jetstream::new(client.clone()).create_stream(config).await.unwrap()
}

/// Waits until the program has settled the first `messages` messages.
async fn until_settled(stream: &Stream, messages: u64) {
    let settled = async || {
        let info = stream.consumer_info("eye").await.unwrap();
        info.ack_floor.stream_sequence == messages && info.num_ack_pending == 0
    };
    eventually(&format!("{messages} messages are settled"), HANG, settled).await;
}

fn message(name: &str) -> Value {
    json!({"session_id": "s", "category": "c", "name": name, "data": {"n": 1}, "timestamp": "2021-01-01"})
}

async fn connect(server: &NatsServer) -> Client {
    ConnectOptions::new().connect(server.url()).await.unwrap()
}

async fn publish(client: &Client, body: &Value) {
    client.publish("events.web", body.to_string().into()).await.unwrap();
    client.flush().await.unwrap();
}

async fn count(eye: &Eye) -> u64 {
    eye.get("/api/event/?limit=1").await.1["count"].as_u64().unwrap()
}

async fn until_count(eye: &Eye, expected: u64) {
    eventually(&format!("{expected} events"), HANG, async || count(eye).await == expected).await;
}

#[tokio::test]
async fn published_event_can_be_queried() {
    let server = NatsServer::start();
    let store = Store::new(Kind::Sqlite);
    let mut eye = start(&store, &server.url(), CORE);
    eye.wait_ready().await;
    let client = connect(&server).await;
    publish(&client, &message("published")).await;
    until_count(&eye, 1).await;
    let (_, page) = eye.get("/api/event/").await;
    assert_eq!((&page["results"][0]["name"], &page["results"][0]["data"]), (&json!("published"), &json!({"n": 1})));

    // No malformed message prevents the next one.
    for bad in [&b""[..], b"{", b"\xff", b"null", &[b'['; 100_000]] {
        client.publish("events.bad", bad.into()).await.unwrap();
    }
    let reply = client.request("events.web", message("asked").to_string().into()).await.unwrap();
    assert_eq!(&reply.payload[..], br#"{"success": true}"#);
    assert_eq!(count(&eye).await, 2);
    assert_eq!(eye.terminate(HANG), Some(0));
}

#[tokio::test]
async fn queue_group_shares_the_messages() {
    let server = NatsServer::start();
    let stores = [Store::new(Kind::Sqlite), Store::new(Kind::Sqlite)];
    let keys = format!("{CORE}queue_group = \"eye\"");
    let eyes = stores.each_ref().map(|store| start(store, &server.url(), &keys));
    for eye in &eyes {
        eye.wait_ready().await;
    }
    let client = connect(&server).await;
    for n in 0..200 {
        let reply = client.request("events.web", message(&n.to_string()).to_string().into()).await.unwrap();
        assert_eq!(&reply.payload[..], br#"{"success": true}"#);
    }
    let [first, second] = [count(&eyes[0]).await, count(&eyes[1]).await];
    assert_eq!(first + second, 200);
    assert!(first > 0 && second > 0, "{first} and {second}");
}

#[tokio::test]
async fn http_works_while_nats_is_unavailable() {
    let mut server = NatsServer::new(&["--user", USER, "--pass", PASSWORD]);
    let url = server.url().replace("nats://", &format!("nats://{USER}:{PASSWORD}@"));
    let store = Store::new(Kind::Sqlite);
    let mut eye = start(&store, &url, CORE);
    let is_unavailable = async || {
        let (status, body) = eye.get("/readyz").await;
        status == 503 && body.to_string().contains(&format!("no connection to {}", &server.url()["nats://".len()..]))
    };
    eventually("the program is not ready and states the reason", HANG, is_unavailable).await;
    assert_eq!(eye.post(message("posted")).await.0, 201);

    server.restart();
    eye.wait_ready().await;
    let login = || ConnectOptions::new().user_and_password(USER.to_owned(), PASSWORD.to_owned());
    publish(&login().connect(server.url()).await.unwrap(), &message("published")).await;
    until_count(&eye, 2).await;

    server.kill();
    eventually("the program is not ready", HANG, async || eye.get("/readyz").await.0 == 503).await;
    assert_eq!(eye.post(message("posted")).await.0, 201);
    server.restart();
    eye.wait_ready().await;
    publish(&login().connect(server.url()).await.unwrap(), &message("published")).await;
    until_count(&eye, 4).await;

    assert_eq!(eye.terminate(HANG), Some(0));
    let logs = eye.logs();
    assert!(!logs.contains(PASSWORD), "the password is shown:\n{logs}");
    let lines = logs.lines().filter(|line| line.contains("sources.bus"));
    assert_eq!(lines.count(), 5, "unavailable, ready, unavailable, the lost messages, ready:\n{logs}");
}

/// Returns the number of lost messages in the log.
fn lost(eye: &Eye) -> u64 {
    let logs = eye.logs();
    let lines = logs.lines().filter(|line| line.contains("message: lost, "));
    lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["fields"]["count"].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_without_capacity_are_counted() {
    const MESSAGES: u64 = 100;
    let server = NatsServer::start();
    let store = Store::own(Kind::Postgres);
    let bounds = "max_body_bytes = 1000\nmax_pending_bytes = 2500\n";
    let transport = "[transport]\ntype = \"memory\"\nmax_bytes = 1000\nmax_wait_ms = 60000\n";
    let mut eye = start(&store, &server.url(), &format!("{CORE}{bounds}{transport}"));
    eye.wait_ready().await;
    store.server().pause();
    let client = connect(&server).await;
    for n in 0..MESSAGES {
        publish(&client, &message(&n.to_string())).await;
    }
    // Messages are received in order, so all others have been received.
    let reply = client.request("events.web", message("asked").to_string().into()).await.unwrap();
    assert!(String::from_utf8_lossy(&reply.payload).contains("No capacity"), "{reply:?}");
    store.server().resume();
    assert_eq!(eye.terminate(HANG), Some(0));
    let lost = lost(&eye);
    assert!(
        eye.logs().matches("lost, there was no room").count() <= 2,
        "one line at once, and one for the rest at the end"
    );
    eye.restart();
    eye.wait_ready().await;
    assert_eq!(count(&eye).await + lost, MESSAGES);
    assert!(lost > MESSAGES / 2, "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_uses_bounded_memory_and_losses_are_counted() {
    let server = NatsServer::start();
    // No event times out, so every message is either lost or stored.
    let transport = "[transport]\ntype = \"memory\"\nmax_wait_ms = 60000\n";
    let keys = format!("{CORE}receipt_timeout_ms = 60000\n{transport}");
    let store = Store::new(Kind::Sqlite);
    let mut eye = start(&store, &server.url(), &keys);
    eye.wait_ready().await;
    let before = eye.peak_bytes();
    let client = connect(&server).await;
    let mut large = message("flood");
    large["data"] = json!("x".repeat(300));
    let large = large.to_string();
    let mut published = 150_000;
    for _ in 0..published {
        client.publish("events.web", large.clone().into()).await.unwrap();
    }
    // Messages are received in order, so all others have been received. A request without capacity is lost, too.
    loop {
        let reply = client.request("events.web", large.clone().into()).await;
        let was_told = reply.as_ref().is_ok_and(|reply| reply.headers.is_some());
        published += u64::from(!was_told);
        if reply.is_ok() {
            break;
        }
    }
    let all_settled = async || eye.get("/audit").await.1["sources"]["bus"]["waiting"] == 0;
    eventually("all received events are stored", HANG, all_settled).await;
    // All bounds, a batch in flight, the cache of the database, and the memory of the allocator.
    let grown = (eye.peak_bytes() - before) >> 20;
    assert!(grown < 130, "{grown} MiB");
    assert_eq!(eye.terminate(HANG), Some(0));
    let lost = lost(&eye);
    eye.restart();
    eye.wait_ready().await;
    assert_eq!(count(&eye).await + lost, published);
    assert!(lost > 0);
}

#[tokio::test]
async fn kills_cost_no_message_of_a_stream() {
    const MESSAGES: u64 = 3000;
    let server = NatsServer::start();
    let client = connect(&server).await;
    let stream = create_stream(&client).await;
    let store = Store::new(Kind::Sqlite);
    let mut eye = start(&store, &server.url(), JETSTREAM);
    eye.wait_ready().await;
    for n in 0..MESSAGES {
        // Half of them hold two events. None has an id.
        let body = match n % 2 {
            0 => message(&n.to_string()),
            _ => json!([message(&n.to_string()), message(&format!("{n} too"))]),
        };
        client.publish("events.web", body.to_string().into()).await.unwrap();
        if n % 600 == 599 {
            client.flush().await.unwrap();
            let before = n;
            eventually("some are stored", HANG, async || count(&eye).await > before).await;
            eye.kill();
            eye.restart();
            eye.wait_ready().await;
        }
    }
    until_settled(&stream, MESSAGES).await;
    assert_eq!(count(&eye).await, MESSAGES * 3 / 2);
    let delivered = stream.consumer_info("eye").await.unwrap().delivered.consumer_sequence;
    println!("{MESSAGES} messages, delivered {delivered} times");
    assert_eq!(eye.terminate(HANG), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_keeps_messages_during_a_database_outage() {
    let server = NatsServer::start();
    let client = connect(&server).await;
    let stream = create_stream(&client).await;
    let store = Store::own(Kind::Postgres);
    let mut eye = start(&store, &server.url(), &format!("{JETSTREAM}[writer]\nretry_for_ms = 200\n"));
    eye.wait_ready().await;
    publish(&client, &message("before")).await;
    until_settled(&stream, 1).await;

    store.server().kill();
    for n in 0..20 {
        publish(&client, &message(&n.to_string())).await;
    }
    let tried = async || stream.consumer_info("eye").await.unwrap().num_redelivered > 0;
    eventually("some were delivered again", HANG, tried).await;
    assert_eq!(stream.consumer_info("eye").await.unwrap().ack_floor.stream_sequence, 1);
    store.server().restart();
    until_settled(&stream, 21).await;
    assert_eq!(count(&eye).await, 21);
    assert_eq!(eye.terminate(HANG), Some(0));
}

#[tokio::test]
async fn invalid_message_does_not_delay_others() {
    let server = NatsServer::start();
    let client = connect(&server).await;
    let stream = create_stream(&client).await;
    let store = Store::new(Kind::Sqlite);
    let eye = start(&store, &server.url(), JETSTREAM);
    eye.wait_ready().await;
    for n in 0..100 {
        let body = if n % 10 == 3 { json!({"name": "confidential"}) } else { message(&n.to_string()) };
        publish(&client, &body).await;
    }
    until_settled(&stream, 100).await;
    assert_eq!(count(&eye).await, 90);
    assert_eq!(stream.consumer_info("eye").await.unwrap().delivered.consumer_sequence, 100);
    let dead_letters = jetstream::new(client).get_stream("EVENTS_dead_letters").await.unwrap();
    assert_eq!(dead_letters.cached_info().state.messages, 10);
    let logs = eye.logs();
    assert!(logs.contains("stored in the stream's `_dead_letters`") && !logs.contains("confidential"), "{logs}");
}

#[tokio::test]
async fn consumer_with_other_settings_ends_the_program() {
    let server = NatsServer::start();
    let client = connect(&server).await;
    let stream = create_stream(&client).await;
    let other = pull::Config { durable_name: Some("eye".to_owned()), max_deliver: 3, ..Default::default() };
    stream.create_consumer(other).await.unwrap();
    let store = Store::new(Kind::Sqlite);
    let mut eye = start(&store, &server.url(), JETSTREAM);
    assert_eq!(eye.wait_end(HANG), Some(1));
    let logs = eye.logs();
    assert!(logs.contains("sources.bus: the consumer `eye` of the stream `EVENTS` has other settings"), "{logs}");
}

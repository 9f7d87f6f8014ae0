//! Events over NATS into the built program, and out of it by HTTP.

use std::time::Duration;

use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, consumer::pull};
use async_nats::{Client, ConnectOptions};
use eye_harness::{Eye, NatsServer, PASSWORD, Postgres, USER, eventually};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_eye");

/// For whatever is to happen, on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// HTTP and NATS into SQLite; `keys` are further lines of the NATS source.
fn config(url: &str, keys: &str) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[sources.web]\ntype = \"http\"\n\
         [sources.bus]\ntype = \"nats\"\nurl = \"{url}\"\n{keys}\n\
         [sinks.store]\ntype = \"sqlite\"\nurl = \"sqlite://eye.db\"\n"
    )
}

/// The same, into PostgreSQL.
fn in_postgres(config: &str, url: &str) -> String {
    let sqlite = "type = \"sqlite\"\nurl = \"sqlite://eye.db\"\n";
    assert!(config.contains(sqlite));
    config.replace(sqlite, &format!("type = \"postgres\"\nurl = \"{url}\"\n"))
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

/// Waits until the program has nothing more to say about the first so many messages.
async fn wait_settled(stream: &Stream, messages: u64) {
    let settled = async || {
        let info = stream.consumer_info("eye").await.unwrap();
        info.ack_floor.stream_sequence == messages && info.num_ack_pending == 0
    };
    eventually(&format!("{messages} messages are settled"), DEADLINE, settled).await;
}

fn event(name: &str) -> Value {
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

async fn wait_count(eye: &Eye, expected: u64) {
    eventually(&format!("{expected} events"), DEADLINE, async || count(eye).await == expected).await;
}

#[tokio::test]
async fn what_is_published_can_be_queried() {
    let server = NatsServer::start();
    let mut eye = Eye::start(PROGRAM, &config(&server.url(), CORE));
    eye.wait_ready().await;
    let client = connect(&server).await;
    publish(&client, &event("published")).await;
    wait_count(&eye, 1).await;
    let (_, page) = eye.get("/api/event/").await;
    assert_eq!((&page["results"][0]["name"], &page["results"][0]["data"]), (&json!("published"), &json!({"n": 1})));

    // Whatever is wrong with a message, the next one is taken.
    for bad in [&b""[..], b"{", b"\xff", b"null", &[b'['; 100_000]] {
        client.publish("events.bad", bad.into()).await.unwrap();
    }
    let reply = client.request("events.web", event("asked").to_string().into()).await.unwrap();
    assert_eq!(&reply.payload[..], br#"{"success": true}"#);
    assert_eq!(count(&eye).await, 2);
    assert_eq!(eye.terminate(DEADLINE), Some(0));
}

#[tokio::test]
async fn two_programs_in_a_group_share() {
    let server = NatsServer::start();
    let config = config(&server.url(), &format!("{CORE}queue_group = \"eye\""));
    let eyes = [Eye::start(PROGRAM, &config), Eye::start(PROGRAM, &config)];
    for eye in &eyes {
        eye.wait_ready().await;
    }
    let client = connect(&server).await;
    for n in 0..200 {
        let reply = client.request("events.web", event(&n.to_string()).to_string().into()).await.unwrap();
        assert_eq!(&reply.payload[..], br#"{"success": true}"#);
    }
    let [first, second] = [count(&eyes[0]).await, count(&eyes[1]).await];
    assert_eq!(first + second, 200);
    assert!(first > 0 && second > 0, "{first} and {second}");
}

#[tokio::test]
async fn while_nats_is_away_http_goes_on() {
    let mut server = NatsServer::new(&["--user", USER, "--pass", PASSWORD]);
    let url = server.url().replace("nats://", &format!("nats://{USER}:{PASSWORD}@"));
    let mut eye = Eye::start(PROGRAM, &config(&url, CORE));
    let is_away = async || {
        let (status, body) = eye.get("/readyz").await;
        status == 503 && body.to_string().contains(&format!("no connection to {}", &server.url()["nats://".len()..]))
    };
    eventually("it is not ready, and says why", DEADLINE, is_away).await;
    assert_eq!(eye.post(event("posted")).await.0, 201);

    server.restart();
    eye.wait_ready().await;
    let login = || ConnectOptions::new().user_and_password(USER.to_owned(), PASSWORD.to_owned());
    publish(&login().connect(server.url()).await.unwrap(), &event("published")).await;
    wait_count(&eye, 2).await;

    server.kill();
    eventually("it is not ready", DEADLINE, async || eye.get("/readyz").await.0 == 503).await;
    assert_eq!(eye.post(event("posted")).await.0, 201);
    server.restart();
    eye.wait_ready().await;
    publish(&login().connect(server.url()).await.unwrap(), &event("published")).await;
    wait_count(&eye, 4).await;

    assert_eq!(eye.terminate(DEADLINE), Some(0));
    let logs = eye.logs();
    assert!(!logs.contains(PASSWORD), "the password is shown:\n{logs}");
    let lines = logs.lines().filter(|line| line.contains("sources.bus"));
    assert_eq!(lines.count(), 5, "away, ready, away with what is lost, ready:\n{logs}");
}

/// How many messages the program says it has lost.
fn lost(eye: &Eye) -> u64 {
    let logs = eye.logs();
    let lines = logs.lines().filter(|line| line.contains("message: lost, "));
    lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["fields"]["count"].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_no_room_for_is_counted() {
    const MESSAGES: u64 = 100;
    let server = NatsServer::start();
    let postgres = Postgres::start();
    let database = postgres.create_database();
    let bounds = "max_body_bytes = 1000\nmax_pending_bytes = 2500\n";
    let transport = "[transport]\ntype = \"memory\"\nmax_bytes = 1000\nmax_wait_ms = 60000\n";
    let config = in_postgres(&config(&server.url(), &format!("{CORE}{bounds}{transport}")), &database.url);
    let mut eye = Eye::start(PROGRAM, &config);
    eye.wait_ready().await;
    postgres.pause();
    let client = connect(&server).await;
    for n in 0..MESSAGES {
        publish(&client, &event(&n.to_string())).await;
    }
    // Taken in turn, so all the others have been.
    let reply = client.request("events.web", event("asked").to_string().into()).await.unwrap();
    assert!(String::from_utf8_lossy(&reply.payload).contains("No room"), "{reply:?}");
    postgres.resume();
    assert_eq!(eye.terminate(DEADLINE), Some(0));
    let lost = lost(&eye);
    assert!(eye.logs().matches("lost, there was no room").count() <= 2, "once at once, and what is left at the end");
    eye.restart();
    eye.wait_ready().await;
    assert_eq!(count(&eye).await + lost, MESSAGES);
    assert!(lost > MESSAGES / 2, "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_does_not_fill_the_memory_and_what_is_lost_is_counted() {
    let server = NatsServer::start();
    // Nothing is given up, so what is not lost is stored.
    let transport = "[transport]\ntype = \"memory\"\nmax_wait_ms = 60000\n";
    let keys = format!("{CORE}receipt_timeout_ms = 60000\n{transport}");
    let mut eye = Eye::start(PROGRAM, &config(&server.url(), &keys));
    eye.wait_ready().await;
    let before = eye.peak_bytes();
    let client = connect(&server).await;
    let mut large = event("flood");
    large["data"] = json!("x".repeat(300));
    let large = large.to_string();
    let mut published = 150_000;
    for _ in 0..published {
        client.publish("events.web", large.clone().into()).await.unwrap();
    }
    // Taken in turn, so all the others have been. One that comes while too many wait is lost, too.
    loop {
        let reply = client.request("events.web", large.clone().into()).await;
        let was_told = reply.as_ref().is_ok_and(|reply| reply.headers.is_some());
        published += u64::from(!was_told);
        if reply.is_ok() {
            break;
        }
    }
    let all_settled = async || eye.get("/audit").await.1["sources"]["bus"]["waiting"] == 0;
    eventually("what was taken is stored", DEADLINE, all_settled).await;
    // All bounds, a batch on its way, the database's cache, and what the allocator keeps.
    let grown = (eye.peak_bytes() - before) >> 20;
    assert!(grown < 130, "{grown} MiB");
    assert_eq!(eye.terminate(DEADLINE), Some(0));
    let lost = lost(&eye);
    eye.restart();
    eye.wait_ready().await;
    assert_eq!(count(&eye).await + lost, published);
    assert!(lost > 0);
}

#[tokio::test]
async fn each_message_of_a_stream_is_stored_once_though_the_program_is_killed() {
    const MESSAGES: u64 = 3000;
    let server = NatsServer::start();
    let client = connect(&server).await;
    let stream = create_stream(&client).await;
    let mut eye = Eye::start(PROGRAM, &config(&server.url(), JETSTREAM));
    eye.wait_ready().await;
    for n in 0..MESSAGES {
        // Half of them hold two events. None has an id.
        let body = match n % 2 {
            0 => event(&n.to_string()),
            _ => json!([event(&n.to_string()), event(&format!("{n} too"))]),
        };
        client.publish("events.web", body.to_string().into()).await.unwrap();
        if n % 600 == 599 {
            client.flush().await.unwrap();
            let before = n;
            eventually("some are stored", DEADLINE, async || count(&eye).await > before).await;
            eye.kill();
            eye.restart();
            eye.wait_ready().await;
        }
    }
    wait_settled(&stream, MESSAGES).await;
    assert_eq!(count(&eye).await, MESSAGES * 3 / 2);
    let delivered = stream.consumer_info("eye").await.unwrap().delivered.consumer_sequence;
    println!("{MESSAGES} messages, delivered {delivered} times");
    assert_eq!(eye.terminate(DEADLINE), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_the_stream_keeps_the_messages() {
    let server = NatsServer::start();
    let client = connect(&server).await;
    let stream = create_stream(&client).await;
    let postgres = Postgres::start();
    let database = postgres.create_database();
    let config = in_postgres(&config(&server.url(), JETSTREAM), &database.url) + "[writer]\nretry_for_ms = 200\n";
    let mut eye = Eye::start(PROGRAM, &config);
    eye.wait_ready().await;
    publish(&client, &event("before")).await;
    wait_settled(&stream, 1).await;

    postgres.kill();
    for n in 0..20 {
        publish(&client, &event(&n.to_string())).await;
    }
    let tried = async || stream.consumer_info("eye").await.unwrap().num_redelivered > 0;
    eventually("some were delivered again", DEADLINE, tried).await;
    assert_eq!(stream.consumer_info("eye").await.unwrap().ack_floor.stream_sequence, 1);
    postgres.restart();
    wait_settled(&stream, 21).await;
    assert_eq!(count(&eye).await, 21);
    assert_eq!(eye.terminate(DEADLINE), Some(0));
}

#[tokio::test]
async fn a_message_that_can_never_be_stored_holds_up_nothing() {
    let server = NatsServer::start();
    let client = connect(&server).await;
    let stream = create_stream(&client).await;
    let eye = Eye::start(PROGRAM, &config(&server.url(), JETSTREAM));
    eye.wait_ready().await;
    for n in 0..100 {
        let body = if n % 10 == 3 { json!({"name": "confidential"}) } else { event(&n.to_string()) };
        publish(&client, &body).await;
    }
    wait_settled(&stream, 100).await;
    assert_eq!(count(&eye).await, 90);
    assert_eq!(stream.consumer_info("eye").await.unwrap().delivered.consumer_sequence, 100);
    let dead_letters = jetstream::new(client).get_stream("EVENTS_dead_letters").await.unwrap();
    assert_eq!(dead_letters.cached_info().state.messages, 10);
    let logs = eye.logs();
    assert!(logs.contains("kept in the stream's `_dead_letters`") && !logs.contains("confidential"), "{logs}");
}

#[tokio::test]
async fn a_consumer_that_is_another_ends_the_program() {
    let server = NatsServer::start();
    let client = connect(&server).await;
    let stream = create_stream(&client).await;
    let other = pull::Config { durable_name: Some("eye".to_owned()), max_deliver: 3, ..Default::default() };
    stream.create_consumer(other).await.unwrap();
    let mut eye = Eye::start(PROGRAM, &config(&server.url(), JETSTREAM));
    assert_eq!(eye.wait_end(DEADLINE), Some(1));
    let logs = eye.logs();
    assert!(logs.contains("sources.bus: the consumer `eye` of the stream `EVENTS` has other settings"), "{logs}");
}

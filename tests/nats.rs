//! Events over NATS into the built program, and out of it by HTTP.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use eye_harness::{Eye, NatsServer, PASSWORD, USER, eventually};
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

const CORE: &str = "mode = \"core\"\nsubjects = [\"events.>\"]\n";

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

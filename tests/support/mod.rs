//! What the tests of the built program share.
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod load;
pub(crate) mod small_disk;
pub(crate) mod store;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::Info;
use eye_harness::{Eye, NatsServer, eventually};
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use uuid::Uuid;

use self::store::Store;

/// So long that only a hang takes it.
pub(crate) const HANG: Duration = Duration::from_secs(30);

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_eye");

/// The program that was built with the tests, unless `EYE_TEST_PROGRAM` names another.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("EYE_TEST_PROGRAM").unwrap_or_else(|| PROGRAM.into()).into()
}

/// How often a fault happens: `usual` times, or as often as `EYE_TEST_ROUNDS` says.
pub(crate) fn rounds(usual: usize) -> usize {
    std::env::var("EYE_TEST_ROUNDS").map_or(usual, |rounds| rounds.parse().expect("EYE_TEST_ROUNDS is a number"))
}

/// Starts the program with HTTP into `store`; `settings` are further lines, such as `writer.retry_for_ms = 100`.
pub(crate) fn start(store: &Store, settings: &str) -> Eye {
    Eye::start(program(), &config(store, settings))
}

/// As [`start`], then waits until it is ready.
pub(crate) async fn start_ready(store: &Store, settings: &str) -> Eye {
    let eye = start(store, settings);
    eye.wait_ready().await;
    eye
}

pub(crate) fn config(store: &Store, settings: &str) -> String {
    let listen = if settings.contains("server.listen") { "" } else { "server.listen = \"127.0.0.1:0\"" };
    format!(
        "{settings}\n{listen}\nsources.web.type = \"http\"\n\
         sinks.store.type = \"{}\"\nsinks.store.url = \"{}\"\n",
        store.kind.sink_type(),
        store.url
    )
}

/// The timestamp of [`event`], in microseconds since 1970-01-01T00:00:00Z.
pub(crate) const EVENT_MICROS: i64 = 1_609_492_527_243_860;

pub(crate) fn event(id: Uuid, name: &str) -> Value {
    json!({
        "id": id, "session_id": "s", "category": "test", "name": name, "data": {"n": 1},
        "timestamp": "2021-01-01T09:15:27.243860Z",
    })
}

/// A POST of one event: the status, and the seconds of `Retry-After`.
pub(crate) async fn post(eye: &Eye, event: &Value) -> (u16, Option<u64>) {
    let request = eye.client().post(eye.url("/api/event/")).json(event);
    let answer = request.send().await.expect("the program answers");
    let retry_after = answer
        .headers()
        .get("retry-after")
        .map(|seconds| seconds.to_str().expect("it is ASCII").parse().expect("Retry-After is a number of seconds"));
    (answer.status().as_u16(), retry_after)
}

/// Answers that take so many times longer are slower, and not only on a busier machine.
pub(crate) const SLOWER: u32 = 5;

/// Posts events one after the other, which are taken: the median of the times that the answers took.
pub(crate) async fn median_time(eye: &Eye, events: impl Iterator<Item = Value>) -> Duration {
    let mut times = Vec::new();
    for event in events {
        let posted = Instant::now();
        assert_eq!(post(eye, &event).await.0, 201);
        times.push(posted.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// What `/readyz` says.
pub(crate) async fn readyz(eye: &Eye) -> (u16, Value) {
    eye.get("/readyz").await
}

/// When all that was sent is where it belongs: the queue is drained, and the program's books balance, as `eye audit`
/// says. `what` was tried.
pub(crate) async fn audit(what: &str, eye: &Eye) {
    eventually(&format!("{what}: nothing is pending"), HANG, async || {
        let (_, books) = eye.get("/audit").await;
        books["sinks"].as_object().expect("it has sinks").values().all(|sink| sink["pending"] == 0)
    })
    .await;
    let mut command = Command::new(program());
    command.args(["audit", "--url", &eye.url(""), "--config", "eye.toml"]).current_dir(eye.folder());
    let output = block_in_place(|| command.output()).expect("it can be run");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{what}: {said}");
}

/// The transport's stream is empty, and the server waits for no ack. It may have been killed, and a consumer may be made
/// anew: there are moments in which it cannot say what consumers it has.
pub(crate) async fn audit_stream(what: &str, server: &NatsServer) {
    let client = async_nats::connect(server.url()).await.expect("the server runs");
    let stream = jetstream::new(client).get_stream("EYE").await.expect("the stream is there");
    eventually(&format!("{what}: the stream is drained"), HANG, async || {
        let Ok(consumers) = stream.consumers().try_collect::<Vec<_>>().await else { return false };
        let info = stream.get_info().await.expect("the server answers");
        let is_done = |consumer: &Info| consumer.num_pending == 0 && consumer.num_ack_pending == 0;
        info.state.messages == 0 && !consumers.is_empty() && consumers.iter().all(is_done)
    })
    .await;
}

/// Sends a signal to the program.
pub(crate) fn signal(eye: &Eye, signal: &str) {
    let done = Command::new("kill").args([format!("-{signal}"), eye.pid()]).status();
    assert!(done.expect("kill is there").success(), "the program is gone");
}

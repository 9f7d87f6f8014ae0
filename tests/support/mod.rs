//! Support of the three test programs: starting the built program on a [`Store`], requests, audits and loads.
#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod load;
pub(crate) mod small_disk;
pub(crate) mod stand_in;
pub(crate) mod store;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::Info;
use eye_harness::{Eye, NatsServer, eventually};
use eye_oracle::Reconciliation;
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use uuid::Uuid;

use self::store::Store;

/// The deadline of all conditions. Only a hang exceeds it, even on a busy machine.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// The factor by which the median response time may grow because the load of the machine varies.
pub(crate) const SLOWER: u32 = 5;

/// Configuration lines of a queue on the disk in the working folder.
pub(crate) const DISK: &str = "transport.type = \"disk\"\ntransport.path = \"queue\"";

/// The timestamp of [`event`], in microseconds since 1970-01-01T00:00:00Z.
pub(crate) const EVENT_MICROS: i64 = 1_609_492_527_243_860;

/// Returns the path of the built program, or that in `EYE_TEST_PROGRAM`.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("EYE_TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_eye").into()).into()
}

/// Returns a command that runs the program in `folder`, without the variables that change its behaviour.
pub(crate) fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).env_remove("EYE_CONFIG").env_remove("RUST_LOG");
    command
}

/// Returns the number of repetitions of a fault: `usual`, or the value of `EYE_TEST_ROUNDS`.
pub(crate) fn rounds(usual: usize) -> usize {
    std::env::var("EYE_TEST_ROUNDS").map_or(usual, |rounds| rounds.parse().expect("EYE_TEST_ROUNDS is a number"))
}

/// Prints a row of the table of `scripts/soak`. `what` is the fault and where it happens, separated by ` | `.
pub(crate) fn print_result(what: &str, times: usize, report: &Reconciliation) {
    let Reconciliation { issued, acked, unknown, refused, stored, dead_letters, lost, duplicated, corrupt, .. } =
        report;
    let counts = [&times, issued, acked, unknown, refused, stored, dead_letters, lost, duplicated, corrupt];
    println!("RESULT | {what} | {} |", counts.map(|count| count.to_string()).join(" | "));
}

/// Starts the program with HTTP into `store`. `settings` are more lines, such as `writer.retry_for_ms = 100`.
pub(crate) fn start(store: &Store, settings: &str) -> Eye {
    Eye::start(program(), &config(store, settings))
}

/// Starts the program as [`start`] does, and waits until it is ready.
pub(crate) async fn start_ready(store: &Store, settings: &str) -> Eye {
    let eye = start(store, settings);
    eye.wait_ready().await;
    eye
}

/// Starts the program as [`start`] does, and waits until the sink is ready and the table exists. With a durable
/// transport the program is ready before.
pub(crate) async fn start_with_table(store: &Store, settings: &str) -> Eye {
    let eye = start_ready(store, settings).await;
    until_sink_is(&eye, "ready").await;
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

pub(crate) fn event(id: Uuid, name: &str) -> Value {
    json!({
        "id": id, "session_id": "s", "category": "test", "name": name, "data": {"n": 1},
        "timestamp": "2021-01-01T09:15:27.243860Z",
    })
}

/// Returns an event with a new id.
pub(crate) fn new_event(name: &str) -> Value {
    event(Uuid::new_v4(), name)
}

/// Posts an event and returns the status and the seconds of `Retry-After`.
pub(crate) async fn post(eye: &Eye, event: &Value) -> (u16, Option<u64>) {
    let request = eye.client().post(eye.url("/api/event/")).json(event);
    let answer = request.send().await.expect("the program answers");
    let retry_after = answer
        .headers()
        .get("retry-after")
        .map(|seconds| seconds.to_str().expect("it is ASCII").parse().expect("Retry-After is a number of seconds"));
    (answer.status().as_u16(), retry_after)
}

/// Posts events one after the other, which are all accepted, and returns the median of the response times.
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

/// Returns status and body of `/readyz`.
pub(crate) async fn readyz(eye: &Eye) -> (u16, Value) {
    eye.get("/readyz").await
}

/// Waits until `/readyz` shows this state of the sink.
pub(crate) async fn until_sink_is(eye: &Eye, state: &str) {
    eventually(&format!("the sink is {state}"), HANG, async || sink_state(&readyz(eye).await.1)["state"] == state)
        .await;
}

/// Returns the sink's entry in the body of `/readyz`.
pub(crate) fn sink_state(body: &Value) -> &Value {
    let mut components = body["components"].as_array().into_iter().flatten();
    components.find(|component| component["name"] == "sinks.store").unwrap_or(&Value::Null)
}

/// Waits until this many events are stored.
pub(crate) async fn until_stored(store: &Store, events: usize) {
    eventually(&format!("{events} events are stored"), HANG, async || store.ids().await.len() == events).await;
}

/// Waits until nothing is pending, then checks with `eye audit` that the event accounting balances.
pub(crate) async fn audit(what: &str, eye: &Eye) {
    eventually(&format!("{what}: nothing is pending"), HANG, async || {
        let (_, accounting) = eye.get("/audit").await;
        accounting["sinks"].as_object().expect("it has sinks").values().all(|sink| sink["pending"] == 0)
    })
    .await;
    let mut command = command(eye.folder(), &["audit", "--url", &eye.url(""), "--config", "eye.toml"]);
    let output = block_in_place(|| command.output()).expect("the program can be run");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{what}: {text}");
}

/// Waits until the transport's stream is empty and no ack is pending. After a kill of the server, or while a consumer
/// is recreated, the list of consumers may fail.
pub(crate) async fn audit_stream(what: &str, server: &NatsServer) {
    let client = async_nats::connect(server.url()).await.expect("the server runs");
    let stream = jetstream::new(client).get_stream("EYE").await.expect("the stream exists");
    eventually(&format!("{what}: the stream is empty"), HANG, async || {
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
    assert!(done.expect("kill is installed").success(), "the program has ended");
}

use std::sync::Arc;

use async_nats::{Client, ConnectOptions, HeaderMap, Message, RequestErrorKind};
use eye_core::ack::{Outcome, Rejection};
use eye_core::context::{BuildContext, Extensions};
use eye_core::event::DefaultTimestamp;
use eye_core::health::{Component, ComponentState, HealthBoard};
use eye_core::timestamp::Timestamp;
use eye_core::transport::PublishError;
use eye_harness::{NatsServer, eventually};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

mod credentials;
mod jetstream;

use super::message::{MessageBody, context_of_message, message_id};
use super::*;
use crate::decode::{Framing, NewIds};
use crate::fake::{FakeTransport, Told};
use crate::verdict::Verdict;

const DEADLINE: Duration = Duration::from_secs(30);

/// A running source, and a client beside it.
struct Fixture {
    transport: Arc<FakeTransport>,
    board: HealthBoard,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), SourceError>>,
    client: Client,
}

fn config(keys: Value) -> Result<NatsConfig, serde_json::Error> {
    serde_json::from_value(keys)
}

fn context(transport: Arc<FakeTransport>, board: &HealthBoard) -> SourceContext {
    let health = board.component("sources.bus");
    let component = BuildContext::new(health.clone(), CancellationToken::new(), Extensions::default());
    SourceContext { component, outlet: Outlet::new(transport, health) }
}

fn core(server: &NatsServer) -> Value {
    json!({"url": server.url(), "mode": "core", "subjects": ["events.>"]})
}

impl Fixture {
    /// Runs a source with these keys, and waits until it is ready.
    async fn start(server: &NatsServer, told: Told, keys: Value) -> Self {
        let fixture = Self::start_unready(server, told, keys).await;
        fixture.wait_ready().await;
        fixture
    }

    async fn start_unready(server: &NatsServer, told: Told, keys: Value) -> Self {
        let transport = FakeTransport::new(told);
        let board = HealthBoard::default();
        let shutdown = CancellationToken::new();
        let source = config(keys).unwrap().build(&context(transport.clone(), &board)).await.unwrap();
        let running = tokio::spawn(source.run(shutdown.clone()));
        let options = ConnectOptions::new().retry_on_initial_connect();
        let client = options.connect(server.url()).await.unwrap();
        Self { transport, board, shutdown, running, client }
    }

    async fn delivering(server: &NatsServer) -> Self {
        Self::start(server, Told::Settle(Outcome::Delivered), core(server)).await
    }

    fn state(&self) -> ComponentState {
        let [Component { state, .. }] = &self.board.components()[..] else { panic!("one component") };
        state.clone()
    }

    async fn wait_ready(&self) {
        eventually("the source is ready", DEADLINE, async || self.state() == ComponentState::Ready).await;
    }

    async fn wait_published(&self, names: &[&str]) {
        eventually("the events are published", DEADLINE, async || self.transport.published_names() == names).await;
    }

    async fn publish(&self, payload: impl Into<String>) {
        self.client.publish("events.web", payload.into().into()).await.unwrap();
        self.client.flush().await.unwrap();
    }

    async fn publish_with(&self, headers: &[(&str, &str)], payload: impl Into<String>) {
        let payload = payload.into().into();
        self.client.publish_with_headers("events.web", header_map(headers), payload).await.unwrap();
        self.client.flush().await.unwrap();
    }

    async fn request(&self, payload: impl Into<String>) -> Message {
        self.client.request("events.web", payload.into().into()).await.unwrap()
    }

    async fn request_json(&self, payload: impl Into<String>) -> Value {
        body(&self.request(payload).await)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.running).await;
        ended.expect("it ends").unwrap().unwrap();
    }
}

fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    headers.iter().fold(HeaderMap::new(), |mut map, (name, value)| {
        map.insert(*name, *value);
        map
    })
}

fn body(message: &Message) -> Value {
    serde_json::from_slice(&message.payload).unwrap()
}

fn error_code(message: &Message) -> Option<&str> {
    Some(message.headers.as_ref()?.get("Nats-Service-Error-Code")?.as_str())
}

fn event(name: &str) -> String {
    format!(r#"{{"session_id":"s","category":"c","name":"{name}","data":1,"timestamp":"2021-01-01"}}"#)
}

const INVALID: &str = r#"{"session_id":"s","category":"c","data":1,"timestamp":"2021-01-01"}"#;
const ID: &str = "0190b6a0-7e1c-7000-8000-000000000001";

#[tokio::test]
async fn message_is_parsed_like_a_post_body() {
    let server = NatsServer::start();
    let fixture = Fixture::delivering(&server).await;
    let [a, b] = ["a", "b"].map(event);
    let ndjson = [("Content-Type", "application/x-ndjson; charset=utf-8")];
    fixture.publish(&a).await;
    fixture.publish(format!("[{a},{b}]")).await;
    fixture.publish(format!("{b}\n{a}")).await;
    fixture.publish_with(&ndjson, format!("{b}\n{{\n{b}")).await;
    fixture.publish_with(&[("Content-Type", "application/json")], &a).await;
    // Each group has its own task: only the order within a group is certain.
    eventually("all are published", DEADLINE, async || fixture.transport.published_names().len() == 8).await;
    let mut names = fixture.transport.published_names();
    names.sort();
    assert_eq!(names.concat(), "aaaabbbb");
    fixture.stop().await;
}

#[tokio::test]
async fn reply_is_the_answer_to_a_post() {
    let server = NatsServer::start();
    let fixture = Fixture::delivering(&server).await;
    let required = json!({"name": ["This field is required."]});
    let [a, b] = ["a", "b"].map(event);
    assert_eq!(fixture.request_json(&a).await, json!({"success": true}));
    assert_eq!(fixture.request_json(format!("[{a},{b}]")).await, json!({"success": true, "accepted": 2}));
    assert_eq!(
        fixture.request_json(format!("[{a},{INVALID}]")).await,
        json!({"success": false, "accepted": 1, "rejected": [{"index": 1, "errors": required}]})
    );
    assert_eq!(fixture.request_json(INVALID).await, json!({"success": false, "errors": required}));
    let detail = &fixture.request_json("{").await["detail"];
    assert!(detail.as_str().unwrap().starts_with("JSON parse error at line 1 column 2"), "{detail}");
    fixture.stop().await;
}

#[tokio::test]
async fn failure_has_its_code_in_a_header() {
    let server = NatsServer::start();
    let fixture = Fixture::delivering(&server).await;
    assert_eq!(error_code(&fixture.request(event("a")).await), None);
    assert_eq!(error_code(&fixture.request(format!("{}{INVALID}", event("a"))).await), None);
    assert_eq!(error_code(&fixture.request("nothing").await), Some("400"));
    fixture.transport.tell(Told::Settle(Outcome::failed("secret reason")));
    let reply = fixture.request(event("a")).await;
    assert_eq!(error_code(&reply), Some("503"));
    assert!(!String::from_utf8_lossy(&reply.payload).contains("secret"), "{reply:?}");
    fixture.transport.tell(Told::Refuse(PublishError::Closed));
    assert_eq!(error_code(&fixture.request(event("a")).await), Some("503"));
    fixture.stop().await;
}

#[tokio::test]
async fn refused_message_gets_its_code() {
    let server = NatsServer::start();
    let mut keys = core(&server);
    keys["max_body_bytes"] = json!(event("a").len());
    keys["max_event_bytes"] = json!(event("a").len());
    let fixture = Fixture::start(&server, Told::Settle(Outcome::Delivered), keys).await;
    assert_eq!(fixture.request_json(event("a")).await, json!({"success": true}));
    let reply = fixture.request(event("ab")).await;
    assert_eq!(error_code(&reply), Some("413"));
    assert_eq!(error_code(&fixture.request("").await), Some("400"));
    let headers = header_map(&[("Content-Type", "image/png")]);
    let reply = fixture.client.request_with_headers("events.web", headers, event("a").into()).await.unwrap();
    assert_eq!(error_code(&reply), Some("415"));
    let reply = fixture.client.request("events.web", b"\xff\0"[..].into()).await.unwrap();
    assert_eq!(error_code(&reply), Some("400"));
    fixture.stop().await;
}

#[tokio::test]
async fn list_of_refusals_above_max_payload_is_left_out() {
    let server = NatsServer::start();
    let fixture = Fixture::delivering(&server).await;
    let reply = fixture.request(format!("[{}1]", "{},".repeat(100_000))).await;
    assert_eq!(error_code(&reply), Some("400"));
    assert!(body(&reply)["detail"].as_str().unwrap().contains("Send fewer at once"), "{reply:?}");
    fixture.stop().await;
}

#[tokio::test]
async fn message_id_becomes_event_id() {
    let server = NatsServer::start();
    let fixture = Fixture::delivering(&server).await;
    let message_id = "Nats-Msg-Id";
    let own = event("own").replace('{', r#"{"id":"00000000-0000-0000-0000-000000000009","#);
    fixture.publish_with(&[(message_id, ID)], event("a")).await;
    fixture.wait_published(&["a"]).await;
    fixture.publish_with(&[(message_id, ID)], own).await;
    fixture.wait_published(&["a", "own"]).await;
    fixture.publish_with(&[(message_id, "order 17")], event("b")).await;
    fixture.wait_published(&["a", "own", "b"]).await;
    let ids: Vec<_> = fixture.transport.published.lock().unwrap().iter().map(|event| event.id()).collect();
    assert_eq!(ids[0].to_string(), ID);
    assert_eq!(ids[1].as_u128(), 9);
    assert_eq!(ids[2].get_version_num(), 7);
    fixture.stop().await;
}

#[test]
fn nil_and_max_message_ids_are_no_ids() {
    for (sent, expected) in [
        (ID, Some(ID)),
        ("order 17", None),
        ("00000000-0000-0000-0000-000000000000", None),
        ("ffffffff-ffff-ffff-ffff-ffffffffffff", None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", sent);
        assert_eq!(message_id(Some(&headers)).map(|id| id.to_string()).as_deref(), expected, "{sent}");
    }
}

#[test]
fn default_time_comes_from_the_message_id_or_the_stream() {
    use DefaultTimestamp::{ForEventsWithoutId, ForEveryEvent};
    let context = crate::fake::parse_context();
    let [stream, of_id] = ["2020-02-03", "2021-01-01T09:15:27.003Z"].map(|text| Timestamp::parse(text).unwrap());
    let [version_7, version_4] = ["7000", "4000"]
        .map(|version| NewIds::From(format!("0176bd3a-f79b-{version}-8000-000000000001").parse().unwrap()));
    let table = [
        (NewIds::Random, None, context.default_timestamp),
        (version_7, None, ForEventsWithoutId(of_id)),
        (version_4, None, DefaultTimestamp::None),
        (NewIds::Random, Some(stream), ForEveryEvent(stream)),
        (version_7, Some(stream), ForEveryEvent(of_id)),
        (version_4, Some(stream), ForEveryEvent(stream)),
    ];
    for (new_ids, published_at, expected) in table {
        let found = context_of_message(&context, new_ids, published_at).default_timestamp;
        assert_eq!(found, expected, "{new_ids:?} {published_at:?}");
    }
}

#[tokio::test]
async fn each_message_of_a_group_has_its_own_answer() {
    let refused = Rejection { index: 2, reason: "by the store".into() };
    let transport = FakeTransport::new(Told::Settle(Outcome::Rejected(vec![refused])));
    let outlet = Outlet::new(transport.clone(), HealthBoard::default().component("sources.bus"));
    let ingestor = Ingestor { outlet, max_event_bytes: 1 << 20, receipt_timeout: DEADLINE };
    let ingestor = MessageIngestor { ingestor, max_body_bytes: 1000 };
    let body = |text: &str, framing| MessageBody {
        payload: text.to_owned().into(),
        framing,
        new_ids: NewIds::Random,
        published_at: None,
    };
    let json = Some(Framing::Json);
    let bodies = vec![
        body("{", json),
        body(&event("a"), json),
        body(INVALID, json),
        body(&event("b"), None),
        body(&format!("{}{}", event("c"), event("d")), json),
        body(&" ".repeat(1001), json),
        body(&event("e"), json),
    ];
    let ingested = ingestor.ingest(bodies, ()).await;
    assert_eq!(transport.published_names(), ["a", "c", "d", "e"]);
    let answers = ingested.iter().map(|ingested| (ingested.answer.verdict(), ingested.refused.len()));
    let expected = [
        (Verdict::Invalid, 0),
        (Verdict::Accepted, 0),
        (Verdict::Invalid, 0),
        (Verdict::Unsupported, 0),
        (Verdict::Partial, 1),
        (Verdict::TooLarge, 0),
        (Verdict::Accepted, 0),
    ];
    assert_eq!(answers.collect::<Vec<_>>(), expected);
    assert_eq!(ingested[4].refused[0].index, 1, "in its own message");

    for told in [Told::Settle(Outcome::failed("unavailable")), Told::Refuse(PublishError::Closed)] {
        transport.tell(told);
        let ingested = ingestor.ingest(vec![body(&event("a"), json), body(INVALID, json)], ()).await;
        let verdicts = ingested.iter().map(|ingested| ingested.answer.verdict());
        assert_eq!(
            verdicts.collect::<Vec<_>>(),
            [Verdict::RetryLater, Verdict::Invalid],
            "an invalid message has not failed"
        );
    }
}

#[tokio::test]
async fn messages_above_the_limit_are_dropped_and_answered() {
    let server = NatsServer::start();
    let mut keys = core(&server);
    // Each counts 1 KiB: two fit.
    keys["max_pending_bytes"] = json!(2500);
    keys["max_body_bytes"] = json!(1000);
    let fixture = Fixture::start(&server, Told::NeverPublish, keys).await;
    for (name, waiting) in [("a", 1), ("b", 2)] {
        fixture.publish(event(name)).await;
        eventually("the message is in flight", DEADLINE, async || fixture.transport.waiting() == waiting).await;
    }
    fixture.publish(event("c")).await;
    let reply = fixture.request(event("d")).await;
    assert_eq!(error_code(&reply), Some("503"));
    assert!(body(&reply)["detail"].as_str().unwrap().contains("max_pending_bytes"), "{reply:?}");
    assert_eq!(fixture.transport.waiting(), 2);
}

/// A retry could never succeed.
#[tokio::test]
async fn message_above_the_whole_limit_answers_413() {
    let server = NatsServer::start();
    let mut keys = core(&server);
    keys["max_pending_bytes"] = json!(2500);
    keys["max_body_bytes"] = json!(1000);
    let fixture = Fixture::start(&server, Told::Settle(Outcome::Delivered), keys).await;
    let reply = fixture.request(" ".repeat(5000)).await;
    assert_eq!(error_code(&reply), Some("413"));
    assert!(body(&reply)["detail"].as_str().unwrap().contains("max_body_bytes"), "{reply:?}");
    // Headers are not stored, so they do not count.
    let headers = header_map(&[("A", &"x".repeat(5000))]);
    let reply = fixture.client.request_with_headers("events.web", headers, event("a").into()).await.unwrap();
    assert_eq!(error_code(&reply), None);
    fixture.stop().await;
}

#[tokio::test]
async fn queue_group_shares_messages() {
    let server = NatsServer::start();
    let mut keys = core(&server);
    keys["queue_group"] = json!("eyes");
    let first = Fixture::start(&server, Told::Settle(Outcome::Delivered), keys.clone()).await;
    let second = Fixture::start(&server, Told::Settle(Outcome::Delivered), keys).await;
    let names: Vec<String> = (0..200).map(|n| format!("{n:03}")).collect();
    for name in &names {
        first.publish(event(name)).await;
    }
    let published = || {
        let both = [&first, &second].map(|fixture| fixture.transport.published_names());
        assert!(both.iter().all(|names| names.len() < 200), "one got everything");
        let mut all = both.concat();
        all.sort();
        all
    };
    eventually("each is published once", DEADLINE, async || published() == names).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn shutdown_waits_for_receipts_and_replies() {
    let server = NatsServer::start();
    let fixture = Fixture::start(&server, Told::NeverSettle, core(&server)).await;
    let client = fixture.client.clone();
    let asking = tokio::spawn(async move { client.request("events.web", event("a").into()).await.unwrap() });
    fixture.wait_published(&["a"]).await;
    fixture.shutdown.cancel();
    let has_left = async || {
        let asked = fixture.client.request("events.web", event("b").into());
        let asked = tokio::time::timeout(Duration::from_millis(200), asked).await;
        asked.is_ok_and(|asked| asked.is_err_and(|error| error.kind() == RequestErrorKind::NoResponders))
    };
    eventually("the source has left", DEADLINE, has_left).await;
    assert!(!fixture.running.is_finished());
    for ack in std::mem::take(&mut *fixture.transport.held.lock().unwrap()) {
        ack.settle(Outcome::Delivered);
    }
    assert_eq!(body(&asking.await.unwrap()), json!({"success": true}));
    fixture.stop().await;
}

#[tokio::test]
async fn unavailable_server_is_reconnected() {
    let mut server = NatsServer::new(&[]);
    let fixture = Fixture::start_unready(&server, Told::Settle(Outcome::Delivered), core(&server)).await;
    let unavailable = async || matches!(fixture.state(), ComponentState::Unavailable { .. });
    eventually("it is unavailable", DEADLINE, unavailable).await;
    server.restart();
    fixture.wait_ready().await;
    fixture.publish(event("a")).await;
    fixture.wait_published(&["a"]).await;
    server.kill();
    eventually("it is unavailable again", DEADLINE, unavailable).await;
    server.restart();
    fixture.wait_ready().await;
    assert_eq!(fixture.request_json(event("b")).await, json!({"success": true}));
    fixture.stop().await;
}

#[tokio::test]
async fn source_stops_while_server_is_unavailable() {
    let server = NatsServer::new(&[]);
    let fixture = Fixture::start_unready(&server, Told::Settle(Outcome::Delivered), core(&server)).await;
    fixture.stop().await;
}

#[test]
fn secrets_are_hidden() {
    let shown = format!(
        "{:?}",
        config(json!({
            "url": "nats://eye:hush@host:4222", "mode": "core", "subjects": ["a"], "token": "hush", "password": "hush",
        }))
        .unwrap()
    );
    assert!(shown.contains("host") && !shown.contains("hush"), "{shown}");
    for url in ["nats://hush@host", "http://a:hush@host", "nats://a:hush@host:99999", "nats://:hush@", "hush"] {
        let keys = json!({"url": url, "mode": "core", "subjects": ["a"]});
        let shown = config(keys).map_or_else(|error| error.to_string(), |config| format!("{config:?}"));
        assert!(!shown.contains("hush"), "{url}: {shown}");
    }
}

#[tokio::test]
async fn impossible_settings_are_refused_at_startup() {
    let table = [
        (json!({"subjects": []}), "subjects: empty"),
        (json!({"stream": "EVENTS"}), "stream: only for mode `jetstream`"),
        (json!({"mode": "jetstream"}), "stream: must be the name of a stream"),
        (json!({"mode": "jetstream", "stream": "a.b"}), "stream: must be the name of a stream"),
        (json!({"mode": "jetstream", "stream": "S", "durable": ""}), "durable: must be a name"),
        (json!({"mode": "jetstream", "stream": "S", "subjects": ["a", "b"]}), "takes one, or none"),
        (json!({"mode": "jetstream", "stream": "S", "subjects": [], "queue_group": "g"}), "name the same `durable`"),
        (json!({"mode": "jetstream", "stream": "S", "subjects": [], "max_in_flight": 10_000}), "below 10000"),
        (json!({"subjects": ["a", "a..b"]}), "subjects[1]: not a subject"),
        (json!({"subjects": ["a.>.b"]}), "subjects[0]: not a subject"),
        (json!({"subjects": ["a b"]}), "subjects[0]: not a subject"),
        (json!({"token": "hush", "user": "eye"}), "more than one way to log in"),
        (json!({"credentials_file": "/none"}), "credentials_file: cannot read /none: "),
        (json!({"credentials_file": "/etc/hostname"}), "does not hold a JWT"),
        (json!({"ca_file": "/none"}), "ca_file: cannot read /none: "),
        (
            json!({"max_pending_bytes": (10 << 20) - 1}),
            "max_pending_bytes: 10485759 is too small: it must be at least twice",
        ),
    ];
    for (wrong, expected) in table {
        let mut keys = json!({"url": "nats://host", "mode": "core", "subjects": ["events.>"]});
        let context = context(FakeTransport::new(Told::NeverSettle), &HealthBoard::default());
        assert!(config(keys.clone()).unwrap().build(&context).await.is_ok());
        keys.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let config = config(keys).unwrap();
        let error = match &config.check()[..] {
            [] => config.build(&context).await.err().expect(expected).to_string(),
            wrong => wrong[0].to_string(),
        };
        assert!(error.contains(expected) && !error.contains("hush"), "{error}");
    }
}

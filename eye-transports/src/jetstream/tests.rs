use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{FromConsumer, Info, pull};
use async_nats::jetstream::stream::{Config, Stream};
use eye_core::ack::Rejection;
use eye_core::dead_letter::{DeadLetter, NewDeadLetter};
use eye_core::health::{ComponentState, HealthBoard};
use eye_core::testkit::{self, assert_same_events, event, event_with, events};
use eye_core::transport::{BatchLimits, Delivery};
use eye_harness::{NatsServer, eventually};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;

mod faults;
mod settings;

const DEADLINE: Duration = Duration::from_secs(30);
const STREAM: &str = "EYE";
const WIDE: BatchLimits = BatchLimits { max_events: 1000, max_bytes: 1024 * 1024, max_wait: Duration::ZERO };

fn config(keys: Value) -> Result<JetStreamConfig, serde_json::Error> {
    serde_json::from_value(keys)
}

fn context() -> BuildContext {
    BuildContext::standalone("transport")
}

fn keys(server: &NatsServer) -> Value {
    json!({"url": server.url(), "stream": STREAM, "max_bytes": MIN_MAX_BYTES, "ack_wait_ms": 1000})
}

/// A transport with one sink, as the pipeline runs it, and a client beside it.
struct Fixture {
    transport: Arc<dyn Transport>,
    subscription: Box<dyn Subscription>,
    board: HealthBoard,
    watch: JoinHandle<TransportError>,
    client: Client,
}

impl Fixture {
    async fn start(server: &NatsServer) -> Self {
        let fixture = Self::start_unready(server, keys(server)).await;
        fixture.wait_ready().await;
        fixture
    }

    async fn start_unready(server: &NatsServer, keys: Value) -> Self {
        let transport: Arc<dyn Transport> = Arc::from(config(keys).unwrap().build(&context()).await.unwrap());
        let subscription = transport.subscribe("store").await.unwrap();
        let board = HealthBoard::default();
        let (watched, health) = (transport.clone(), board.component("transport"));
        let watch = tokio::spawn(async move { watched.watch(health).await });
        let client = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(server.url()).await.unwrap();
        Self { transport, subscription, board, watch, client }
    }

    fn health(&self) -> ComponentState {
        self.board.components().remove(0).state
    }

    async fn wait_ready(&self) {
        eventually("the transport is ready", DEADLINE, async || self.health() == ComponentState::Ready).await;
    }

    async fn wait_unavailable(&self, why: &str) {
        let is_unavailable =
            async || matches!(self.health(), ComponentState::Unavailable { reason } if reason.contains(why));
        eventually(&format!("the reason contains {why}"), DEADLINE, is_unavailable).await;
    }

    async fn stream(&self) -> Stream {
        jetstream::new(self.client.clone()).get_stream(STREAM).await.unwrap()
    }

    async fn consumer(&self) -> Info {
        self.stream().await.consumer_info("store").await.unwrap()
    }

    /// Publishes, and waits for the receipt.
    async fn publish(&self, events: Vec<Event>) -> Outcome {
        self.transport.publish(events).await.unwrap().outcome().await
    }

    async fn receive(&mut self) -> Vec<Delivery> {
        tokio::time::timeout(DEADLINE, self.subscription.receive(WIDE)).await.expect("a delivery arrives").unwrap()
    }

    /// Receives once, and settles what it received.
    async fn next(&mut self, outcome: Outcome) -> Vec<Event> {
        settle(self.receive().await, outcome)
    }

    /// Waits until the stream is empty and nothing is in flight.
    async fn wait_empty(&self) {
        let is_empty = async || self.stream().await.cached_info().state.messages == 0;
        eventually("the stream is empty", DEADLINE, is_empty).await;
        eventually("nothing is in flight", DEADLINE, async || self.transport.custody("store").pending == 0).await;
    }

    /// Reads the letters as the command line does.
    async fn dead_letters(&self, server: &NatsServer) -> Vec<DeadLetter> {
        config(keys(server)).unwrap().dead_letters().unwrap().page(None).await.unwrap()
    }
}

fn settle(deliveries: Vec<Delivery>, outcome: Outcome) -> Vec<Event> {
    let mut events = Vec::new();
    for delivery in deliveries {
        events.extend(delivery.events);
        delivery.ack.settle(outcome.clone());
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let server = NatsServer::start();
    let number = std::sync::atomic::AtomicUsize::new(0);
    testkit::transport::suite(async || {
        let mut keys = keys(&server);
        keys["stream"] = json!(format!("EYE{}", number.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
        config(keys).unwrap().build(&context()).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn receipt_settles_before_delivery_and_stream_is_emptied() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    assert_eq!(fixture.publish(events(0, 3)).await, Outcome::Delivered);
    assert_eq!(fixture.stream().await.cached_info().state.messages, 1);
    assert_eq!(fixture.next(Outcome::Delivered).await, events(0, 3));
    fixture.wait_empty().await;
    let custody = fixture.transport.custody("store");
    assert_eq!((custody.taken, custody.pending), (3, 0));
}

#[tokio::test]
async fn custody_reports_stream_backlog_while_known() {
    let mut server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let is = async |fixture: &Fixture, expected| {
        let is_so = async || fixture.transport.custody("store").shared_backlog == expected;
        eventually(&format!("{expected:?} messages"), DEADLINE, is_so).await;
    };
    fixture.publish(events(0, 3)).await;
    fixture.publish(events(3, 4)).await;
    is(&fixture, Some(2)).await;
    let in_flight = fixture.receive().await;
    is(&fixture, Some(2)).await;
    settle(in_flight, Outcome::Delivered);
    while fixture.transport.custody("store").taken < 4 {
        fixture.next(Outcome::Delivered).await;
    }
    is(&fixture, Some(0)).await;
    server.kill();
    is(&fixture, None).await;
}

#[tokio::test]
async fn waiting_requests_share_messages() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let mut receipts = Vec::new();
    for n in 0..500 {
        receipts.push(fixture.transport.publish(events(n, n + 1)).await.unwrap());
    }
    for receipt in receipts {
        assert_eq!(receipt.outcome().await, Outcome::Delivered);
    }
    let messages = fixture.stream().await.cached_info().state.messages;
    assert!(messages <= 10, "{messages}");
    let mut received = Vec::new();
    while received.len() < 500 {
        received.extend(fixture.next(Outcome::Delivered).await);
    }
    assert_eq!(received, events(0, 500));
}

#[tokio::test]
async fn failed_messages_return_without_trying_whole_stream() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    for n in 0..2000 {
        assert_eq!(fixture.publish(events(n, n + 1)).await, Outcome::Delivered);
    }
    let failed = Outcome::failed("unavailable");
    for _ in 0..5 {
        fixture.next(failed.clone()).await;
    }
    let highest = fixture.consumer().await.delivered.stream_sequence;
    assert!(highest <= 1700, "{highest} of 2000 were tried");
    let mut received = Vec::new();
    while received.len() < 2000 {
        received.extend(fixture.next(Outcome::Delivered).await);
    }
    assert_same_events(&received, &events(0, 2000));
    fixture.wait_empty().await;
    assert_eq!(fixture.transport.custody("store").taken, 2000);
}

/// The writer stores the letter, and may be killed before it settles the delivery.
#[tokio::test]
async fn redelivered_event_has_one_dead_letter() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    fixture.publish(events(0, 5)).await;
    for outcome in [Outcome::failed("killed"), Outcome::Rejected(vec![Rejection { index: 3, reason: "no".into() }])] {
        let deliveries = fixture.receive().await;
        store_dead_letter(&fixture, &deliveries[0], 3, "no").await;
        settle(deliveries, outcome);
    }
    fixture.wait_empty().await;
    let letters = fixture.dead_letters(&server).await;
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].refused_by.as_str(), letters[0].reason.as_str()), ("sinks.store", "no"));
}

/// Stores a dead letter of the event at `index`, as the writer does.
async fn store_dead_letter(fixture: &Fixture, delivery: &Delivery, index: usize, reason: &str) {
    let letter = NewDeadLetter {
        key: format!("{}.store", delivery.position.as_ref().unwrap().key(index)),
        refused_by: "sinks.store".to_owned(),
        reason: reason.to_owned(),
        payload: serde_json::to_vec(&delivery.events[index]).unwrap(),
    };
    fixture.transport.dead_letters().unwrap().put(&[letter]).await.unwrap();
}

#[tokio::test]
async fn unreadable_message_waits_for_its_dead_letter() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let context = jetstream::new(fixture.client.clone());
    let name = format!("{STREAM}_dead_letters");
    let config = context.get_stream(&name).await.unwrap().cached_info().config.clone();
    context.update_stream(Config { max_bytes: 10, ..config.clone() }).await.unwrap();
    context.publish(format!("eye.{STREAM}.events.store"), "hello".into()).await.unwrap().await.unwrap();
    let redelivered = async || fixture.consumer().await.num_redelivered == 1;
    eventually("the message is delivered again", DEADLINE, redelivered).await;
    context.update_stream(config).await.unwrap();
    fixture.wait_empty().await;
    assert_eq!(fixture.dead_letters(&server).await.len(), 1);
    fixture.publish(events(0, 1)).await;
    assert_eq!(fixture.next(Outcome::Delivered).await, events(0, 1));
}

#[tokio::test]
async fn receive_waits_for_a_full_batch() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let limits = BatchLimits { max_events: 3, max_wait: DEADLINE, ..WIDE };
    let transport = fixture.transport.clone();
    let receiving = tokio::spawn(async move { fixture.subscription.receive(limits).await.unwrap().len() });
    for n in 0..3 {
        assert!(!receiving.is_finished());
        transport.publish(events(n, n + 1)).await.unwrap().outcome().await;
    }
    assert_eq!(tokio::time::timeout(DEADLINE / 2, receiving).await.unwrap().unwrap(), 3);
}

#[tokio::test]
async fn unreadable_message_blocks_nothing() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let context = jetstream::new(fixture.client.clone());
    let mut damaged = vec![0; record::HEADER_BYTES];
    record::encode_event(&event(0), &mut damaged);
    record::seal(&mut damaged, 0, 1);
    damaged[40] ^= 1;
    // In the right format, but not JSON.
    let mut no_json = vec![0; record::HEADER_BYTES];
    record::encode_event(&event_with(0, "no JSON", "{"), &mut no_json);
    record::seal(&mut no_json, 0, 1);
    for bad in [b"hello".to_vec(), Vec::new(), damaged.clone(), no_json.clone()] {
        context.publish(format!("eye.{STREAM}.events.store"), bad.into()).await.unwrap().await.unwrap();
    }
    fixture.publish(events(1, 2)).await;
    assert_eq!(fixture.next(Outcome::Delivered).await, events(1, 2));
    fixture.wait_empty().await;
    let mut payloads: Vec<Vec<u8>> =
        fixture.dead_letters(&server).await.into_iter().map(|letter| letter.payload).collect();
    payloads.sort();
    let mut expected = vec![Vec::new(), b"hello".to_vec(), damaged, no_json];
    expected.sort();
    assert_eq!(payloads, expected);
    assert_eq!(fixture.consumer().await.num_redelivered, 0);
}

/// The status lines are those of the server: 404 ends a pull request, 503 means that the consumer does not exist.
#[tokio::test]
async fn message_with_status_line_is_delivered() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let mut ours = vec![0; record::HEADER_BYTES];
    record::encode_event(&event(0), &mut ours);
    record::seal(&mut ours, 0, 1);
    let subject = format!("eye.{STREAM}.events.store");
    server.publish_raw(&subject, "NATS/1.0 404 No Messages", &ours);
    assert_eq!(fixture.next(Outcome::Delivered).await, events(0, 1));
    server.publish_raw(&subject, "NATS/1.0 503", b"hello");
    fixture.wait_empty().await;
    assert_eq!(fixture.dead_letters(&server).await.len(), 1);
    assert_eq!(fixture.consumer().await.num_redelivered, 0);
}

#[tokio::test]
async fn in_flight_messages_are_not_redelivered() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    fixture.publish(events(0, 1)).await;
    let deliveries = fixture.receive().await;
    let mut progress = fixture.client.subscribe("$JS.ACK.>").await.unwrap();
    // Longer than ack_wait_ms.
    for _ in 0..6 {
        let message = futures_util::StreamExt::next(&mut progress).await.unwrap();
        assert_eq!(&message.payload[..], b"+WPI");
    }
    assert_eq!(fixture.consumer().await.delivered.consumer_sequence, 1);
    settle(deliveries, Outcome::Delivered);
    fixture.wait_empty().await;
}

#[tokio::test]
async fn shutdown_returns_in_flight_messages_at_once() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let mut keys = keys(&server);
    keys["ack_wait_ms"] = json!(1000);
    for n in 0..50 {
        fixture.publish(events(n, n + 1)).await;
    }
    // The sink is unavailable: everything is returned, and the shutdown does not wait for the sink.
    fixture.next(Outcome::failed("unavailable")).await;
    fixture.transport.close();
    assert!(fixture.subscription.receive(WIDE).await.is_none());
    assert_eq!(fixture.transport.custody("store").pending, 0);
    assert_eq!(fixture.transport.custody("store").taken, 0);

    let mut second = Fixture::start(&server).await;
    let mut received = Vec::new();
    while received.len() < 50 {
        received.extend(second.next(Outcome::Delivered).await);
    }
    assert_same_events(&received, &events(0, 50));
}

#[tokio::test]
async fn event_above_max_payload_is_refused() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let large = |n, bytes: usize| event_with(n, "large", &format!("\"{}\"", "x".repeat(bytes)));
    let request = vec![large(0, 1_000_000), large(1, 1 << 20), large(2, 1_000_000), event(3)];
    let Outcome::Rejected(rejections) = fixture.publish(request.clone()).await else { panic!("nothing was refused") };
    assert_eq!((rejections.len(), rejections[0].index), (1, 1));
    assert!(rejections[0].reason.contains("of 1048576 bytes (`max_payload`)"), "{rejections:?}");
    let mut received = Vec::new();
    while received.len() < 3 {
        received.extend(fixture.next(Outcome::Delivered).await);
    }
    assert_eq!(received, [request[0].clone(), request[2].clone(), request[3].clone()]);
}

/// The largest possible event, refused by the sink with a long reason.
#[tokio::test]
async fn every_publishable_event_fits_a_dead_letter() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let text = "\u{1}".repeat(150);
    let data = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    let with = |bytes| {
        let data = data(bytes);
        let fields = eye_core::event::EventFields {
            id: uuid::Uuid::new_v4(),
            timestamp: testkit::timestamp(0),
            received_at: testkit::timestamp(0),
            session_id: &text,
            category: &text,
            name: &text,
            data: &data,
            origin: testkit::origin(),
        };
        Event::from(fields)
    };
    let most = (1 << 20) - group::RESERVED_BYTES - record::HEADER_BYTES - record::encoded_bytes(&with(0));
    assert_eq!(fixture.publish(vec![with(most)]).await, Outcome::Delivered);
    assert!(matches!(fixture.publish(vec![with(most + 1)]).await, Outcome::Rejected(_)));
    let deliveries = fixture.receive().await;
    store_dead_letter(&fixture, &deliveries[0], 0, &"x".repeat(100_000)).await;
    settle(deliveries, Outcome::Delivered);
    fixture.wait_empty().await;
    let letters = fixture.dead_letters(&server).await;
    assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "x".repeat(2048).as_str()));
}

#[tokio::test]
async fn copies_of_second_sink_stay_until_stored() {
    let server = NatsServer::start();
    let transport: Arc<dyn Transport> = Arc::from(config(keys(&server)).unwrap().build(&context()).await.unwrap());
    let first = transport.subscribe("first").await.unwrap();
    let second = transport.subscribe("second").await.unwrap();
    let (watched, board) = (transport.clone(), HealthBoard::default());
    let health = board.component("transport");
    let watch = tokio::spawn(async move { watched.watch(health).await });
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut fixture = Fixture { transport, subscription: first, board, watch, client };
    fixture.wait_ready().await;
    for n in 0..10 {
        fixture.publish(events(n, n + 1)).await;
    }
    let mut received = 0;
    while received < 10 {
        received += fixture.next(Outcome::Delivered).await.len();
    }
    let state = async || fixture.stream().await.cached_info().state.messages;
    eventually("the copies of the first are gone", DEADLINE, async || state().await == 10).await;
    fixture.subscription = second;
    let mut received = Vec::new();
    while received.len() < 10 {
        received.extend(fixture.next(Outcome::Delivered).await);
    }
    assert_eq!(received, events(0, 10));
    fixture.wait_empty().await;
}

#[tokio::test]
async fn failed_messages_reach_another_program() {
    let server = NatsServer::start();
    let (mut failing, mut storing) = (Fixture::start(&server).await, Fixture::start(&server).await);
    for n in 0..200 {
        assert_eq!(failing.publish(events(n, n + 1)).await, Outcome::Delivered);
    }
    let failures = tokio::spawn(async move {
        loop {
            failing.next(Outcome::failed("unavailable")).await;
        }
    });
    let mut received = Vec::new();
    while received.len() < 200 {
        received.extend(storing.next(Outcome::Delivered).await);
    }
    assert_same_events(&received, &events(0, 200));
    storing.wait_empty().await;
    failures.abort();
}

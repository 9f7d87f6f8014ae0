use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{FromConsumer, Info, pull};
use async_nats::jetstream::stream::{Config, Stream};
use eye_core::health::{HealthBoard, State as Health};
use eye_core::testkit::{self, assert_same_events, event, event_with, events};
use eye_core::transport::BatchLimits;
use eye_core::transport::Delivery;
use eye_harness::{NatsServer, eventually};
use eye_nats::connection::Change;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;

mod faults;
mod settings;

const DEADLINE: Duration = Duration::from_secs(30);
const STREAM: &str = "EYE";
const WIDE: BatchLimits = BatchLimits { max_events: 1000, max_bytes: 1024 * 1024 };

fn config(keys: Value) -> Result<JetStreamConfig, serde_json::Error> {
    serde_json::from_value(keys)
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
        let transport: Arc<dyn Transport> = Arc::from(config(keys).unwrap().build().await.unwrap());
        let subscription = transport.subscribe("store").await.unwrap();
        let board = HealthBoard::default();
        let (watched, health) = (transport.clone(), board.component("transport"));
        let watch = tokio::spawn(async move { watched.watch(health).await });
        let client = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(server.url()).await.unwrap();
        Self { transport, subscription, board, watch, client }
    }

    fn health(&self) -> Health {
        self.board.components().remove(0).state
    }

    async fn wait_ready(&self) {
        eventually("it is ready", DEADLINE, async || self.health() == Health::Ready).await;
    }

    async fn wait_unavailable(&self, why: &str) {
        let is_away = async || matches!(self.health(), Health::Unavailable { reason } if reason.contains(why));
        eventually(&format!("it says: {why}"), DEADLINE, is_away).await;
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
        tokio::time::timeout(DEADLINE, self.subscription.receive(WIDE)).await.expect("something comes").unwrap()
    }

    /// Receives once, and says what becomes of it.
    async fn next(&mut self, outcome: Outcome) -> Vec<Event> {
        settle(self.receive().await, outcome)
    }

    /// Waits until the sink has everything, and nothing is kept for it.
    async fn wait_empty(&self) {
        let is_empty = async || self.stream().await.cached_info().state.messages == 0;
        eventually("the stream is empty", DEADLINE, is_empty).await;
        eventually("nothing is at hand", DEADLINE, async || self.transport.custody("store").pending == 0).await;
    }

    async fn dead_letters(&self, server: &NatsServer) -> Vec<eye_core::dead_letter::DeadLetter> {
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
        config(keys).unwrap().build().await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_receipt_settles_without_any_sink_and_what_it_has_is_removed() {
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
async fn the_books_tell_what_the_stream_holds_while_it_is_known() {
    let mut server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let is = async |fixture: &Fixture, expected| {
        let is_so = async || fixture.transport.custody("store").shared_backlog == expected;
        eventually(&format!("{expected:?} messages"), DEADLINE, is_so).await;
    };
    fixture.publish(events(0, 3)).await;
    fixture.publish(events(3, 4)).await;
    is(&fixture, Some(2)).await;
    let at_hand = fixture.receive().await;
    is(&fixture, Some(2)).await;
    settle(at_hand, Outcome::Delivered);
    while fixture.transport.custody("store").taken < 4 {
        fixture.next(Outcome::Delivered).await;
    }
    is(&fixture, Some(0)).await;
    server.kill();
    is(&fixture, None).await;
}

#[tokio::test]
async fn requests_that_wait_are_sent_together() {
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
async fn what_failed_comes_again_and_the_whole_stream_is_not_tried_meanwhile() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    for n in 0..2000 {
        assert_eq!(fixture.publish(events(n, n + 1)).await, Outcome::Delivered);
    }
    let failed = Outcome::failed("away");
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

#[tokio::test]
async fn refused_events_are_dead_letters_and_the_others_are_done() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    fixture.publish(events(0, 5)).await;
    let rejections = [1, 3].map(|index| eye_core::ack::Rejection { index, reason: format!("no {index}").into() });
    fixture.next(Outcome::Rejected(rejections.to_vec())).await;
    fixture.wait_empty().await;
    let letters = fixture.dead_letters(&server).await;
    assert_eq!(letters.len(), 2);
    for (letter, n) in letters.iter().zip([1, 3]) {
        assert_eq!((letter.refused_by.as_str(), letter.reason.as_str()), ("sinks.store", format!("no {n}").as_str()));
        let parsed = Event::parse(&letter.payload, event(n).received_at(), &Default::default()).unwrap();
        assert_eq!(parsed, event(n));
    }
}

#[tokio::test]
async fn a_refused_event_whose_dead_letter_cannot_be_kept_comes_again() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let context = jetstream::new(fixture.client.clone());
    let name = format!("{STREAM}_dead_letters");
    let config = context.get_stream(&name).await.unwrap().cached_info().config.clone();
    context.update_stream(Config { max_bytes: 10, ..config.clone() }).await.unwrap();
    fixture.publish(events(0, 1)).await;
    let refused = Outcome::Rejected(vec![eye_core::ack::Rejection { index: 0, reason: "no".into() }]);
    fixture.next(refused.clone()).await;
    assert_eq!(fixture.next(Outcome::failed("away")).await, events(0, 1), "it is not lost");
    context.update_stream(config).await.unwrap();
    fixture.next(refused).await;
    fixture.wait_empty().await;
    assert_eq!(fixture.dead_letters(&server).await.len(), 1);
}

#[tokio::test]
async fn a_message_that_is_not_ours_or_damaged_holds_up_nothing() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let context = jetstream::new(fixture.client.clone());
    let mut damaged = vec![0; record::HEADER_BYTES];
    record::encode_event(&event(0), &mut damaged);
    record::seal(&mut damaged, 0, 1);
    damaged[40] ^= 1;
    // Somebody who knows the format.
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

/// As the server's own words have it. 404 would say that there is no more, 503 that the consumer is of no use.
#[tokio::test]
async fn a_message_with_a_status_is_a_message() {
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
async fn messages_at_hand_are_not_delivered_to_others_however_long_it_takes() {
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
async fn what_is_at_hand_at_the_end_goes_back_at_once() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let mut keys = keys(&server);
    keys["ack_wait_ms"] = json!(1000);
    for n in 0..50 {
        fixture.publish(events(n, n + 1)).await;
    }
    // Away: everything is handed back, and the end does not wait for the sink.
    fixture.next(Outcome::failed("away")).await;
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
async fn an_event_larger_than_the_server_lets_through_is_refused() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let large = |n, bytes: usize| event_with(n, "large", &format!("\"{}\"", "x".repeat(bytes)));
    let request = vec![large(0, 1_000_000), large(1, 1 << 20), large(2, 1_000_000), event(3)];
    let Outcome::Rejected(rejections) = fixture.publish(request.clone()).await else { panic!("nothing is refused") };
    assert_eq!((rejections.len(), rejections[0].index), (1, 1));
    assert!(rejections[0].reason.contains("lets through 1048576 (`max_payload`)"), "{rejections:?}");
    let mut received = Vec::new();
    while received.len() < 3 {
        received.extend(fixture.next(Outcome::Delivered).await);
    }
    assert_eq!(received, [request[0].clone(), request[2].clone(), request[3].clone()]);
}

/// The largest events there can be, refused by the sink with the longest reason.
#[tokio::test]
async fn whatever_can_be_published_can_be_a_dead_letter() {
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
        };
        Event::from(fields)
    };
    let most = (1 << 20) - group::RESERVED_BYTES - record::HEADER_BYTES - record::encoded_bytes(&with(0));
    assert_eq!(fixture.publish(vec![with(most)]).await, Outcome::Delivered);
    assert!(matches!(fixture.publish(vec![with(most + 1)]).await, Outcome::Rejected(_)));
    let reason = "x".repeat(100_000).into();
    fixture.next(Outcome::Rejected(vec![eye_core::ack::Rejection { index: 0, reason }])).await;
    fixture.wait_empty().await;
    let letters = fixture.dead_letters(&server).await;
    assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "x".repeat(2048).as_str()));
}

#[tokio::test]
async fn what_one_of_two_sinks_has_not_got_stays() {
    let server = NatsServer::start();
    let transport: Arc<dyn Transport> = Arc::from(config(keys(&server)).unwrap().build().await.unwrap());
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
async fn what_one_program_cannot_write_another_gets() {
    let server = NatsServer::start();
    let (mut away, mut there) = (Fixture::start(&server).await, Fixture::start(&server).await);
    for n in 0..200 {
        assert_eq!(away.publish(events(n, n + 1)).await, Outcome::Delivered);
    }
    let failing = tokio::spawn(async move {
        loop {
            away.next(Outcome::failed("away")).await;
        }
    });
    let mut received = Vec::new();
    while received.len() < 200 {
        received.extend(there.next(Outcome::Delivered).await);
    }
    assert_same_events(&received, &events(0, 200));
    there.wait_empty().await;
    failing.abort();
}

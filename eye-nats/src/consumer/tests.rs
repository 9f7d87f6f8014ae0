use async_nats::jetstream::consumer::{AckPolicy, Info, pull};
use async_nats::jetstream::stream::{Config, Stream};
use async_nats::jetstream::{self, Context};
use eye_harness::{NatsServer, eventually};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// A consumer with 4 messages in flight at most, and the messages that it hands out.
struct Fixture {
    context: Context,
    stream: Stream,
    consumer: Arc<Consumer>,
    messages: mpsc::UnboundedReceiver<InFlightMessage>,
    shutdown: CancellationToken,
    pulling: JoinHandle<()>,
}

impl Fixture {
    async fn start(server: &NatsServer) -> Self {
        let client = async_nats::connect(server.url()).await.unwrap();
        let context = jetstream::new(client.clone());
        let stream = context.create_stream(Config { name: "S".to_owned(), ..Config::default() }).await.unwrap();
        let durable = Some("c".to_owned());
        let config = pull::Config { durable_name: durable, ack_policy: AckPolicy::Explicit, ..pull::Config::default() };
        stream.create_consumer(config).await.unwrap();
        let shutdown = CancellationToken::new();
        let settings = ConsumerSettings {
            stream: "S".to_owned(),
            durable: "c".to_owned(),
            ack_wait: Duration::from_secs(30),
            max_messages: 4,
            max_bytes: 1 << 20,
            shutdown: shutdown.clone(),
            drain_after: shutdown.clone(),
            drain_for: Duration::ZERO,
        };
        let consumer = Arc::new(Consumer::new(client, settings));
        let (sender, messages) = mpsc::unbounded_channel();
        let shared = consumer.clone();
        let pulling = tokio::spawn(async move {
            let hand_out = |ready: Vec<InFlightMessage>| ready.into_iter().for_each(|one| drop(sender.send(one)));
            shared.drive(shared.pull(std::future::pending(), hand_out)).await;
        });
        Self { context, stream, consumer, messages, shutdown, pulling }
    }

    async fn publish(&self, count: usize) {
        for n in 0..count {
            self.context.publish("S", n.to_string().into()).await.unwrap().await.unwrap();
        }
    }

    async fn next(&mut self) -> InFlightMessage {
        timeout(DEADLINE, self.messages.recv()).await.expect("a message arrives").unwrap()
    }

    async fn info(&self) -> Info {
        self.stream.consumer_info("c").await.unwrap()
    }

    async fn wait_ack_pending(&self, expected: usize) {
        let is_expected = async || self.info().await.num_ack_pending == expected;
        eventually("the server has processed the settlements", DEADLINE, is_expected).await;
    }
}

#[tokio::test]
async fn dropped_message_counts_as_failed() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    fixture.publish(1).await;
    drop(fixture.next().await);
    let message = fixture.next().await;
    assert_eq!(message.payload, "0");
    message.ack();
    fixture.wait_ack_pending(0).await;
}

#[tokio::test]
async fn unsettled_messages_use_up_the_capacity() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    fixture.publish(6).await;
    let mut in_flight = Vec::new();
    while in_flight.len() < 4 {
        in_flight.push(fixture.next().await);
    }
    assert_eq!(fixture.info().await.num_pending, 2);
    in_flight.drain(..).for_each(InFlightMessage::ack);
    for _ in 0..2 {
        fixture.next().await.term();
    }
    fixture.wait_ack_pending(0).await;
}

#[tokio::test]
async fn failure_reduces_requests_until_an_ack() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    fixture.publish(4).await;
    for _ in 0..4 {
        fixture.next().await.fail();
    }
    // A probe of one message.
    let probe = fixture.next().await;
    assert_eq!(fixture.consumer.shared.flow().messages, 1);
    probe.ack();
    for _ in 0..3 {
        fixture.next().await.ack();
    }
    fixture.wait_ack_pending(0).await;
}

#[tokio::test]
async fn deferred_message_pauses_no_other() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    fixture.publish(2).await;
    fixture.next().await.defer();
    let other = fixture.next().await;
    assert!(fixture.consumer.shared.flow().pause_end().is_none());
    other.ack();
    let deferred = fixture.next().await;
    assert_eq!(deferred.payload, "0");
    deferred.ack();
    fixture.wait_ack_pending(0).await;
}

#[tokio::test]
async fn finish_waits_for_the_last_settlement() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    fixture.publish(1).await;
    let message = fixture.next().await;
    fixture.shutdown.cancel();
    let Fixture { consumer, stream, pulling, .. } = fixture;
    timeout(DEADLINE, pulling).await.expect("the consumer leaves").unwrap();
    let finishing = tokio::spawn(Arc::into_inner(consumer).unwrap().finish());
    tokio::task::yield_now().await;
    assert!(!finishing.is_finished());
    message.ack();
    timeout(DEADLINE, finishing).await.unwrap().unwrap();
    assert_eq!(stream.consumer_info("c").await.unwrap().num_ack_pending, 0);
}

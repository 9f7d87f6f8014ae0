use std::collections::HashSet;

use async_nats::Subscriber;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, Info, ReplayPolicy, pull};
use async_nats::jetstream::stream::Stream;
use eye_core::dead_letter::DeadLetter;
use futures_util::StreamExt;

use super::*;

const STREAM: &str = "EVENTS";

fn keys(server: &NatsServer) -> Value {
    json!({
        "url": server.url(), "mode": "jetstream", "stream": STREAM, "subjects": ["events.>"], "ack_wait_ms": 1000,
    })
}

async fn create_stream(server: &NatsServer) -> Stream {
    let client = ConnectOptions::new().connect(server.url()).await.unwrap();
    let config = jetstream::stream::Config {
        name: STREAM.to_owned(),
        subjects: vec!["events.>".to_owned(), "others".to_owned()],
        ..Default::default()
    };
    jetstream::new(client).create_stream(config).await.unwrap()
}

async fn consumer(stream: &Stream) -> Info {
    stream.consumer_info("eye").await.unwrap()
}

/// Publishes and waits until the stream has it.
async fn publish(fixture: &Fixture, name: &str) {
    let context = jetstream::new(fixture.client.clone());
    context.publish("events.web", event(name).into()).await.unwrap().await.unwrap();
}

async fn wait_settled(stream: &Stream, messages: u64) {
    let settled = async || {
        let info = consumer(stream).await;
        info.ack_floor.stream_sequence == messages && info.num_ack_pending == 0
    };
    eventually("all messages are settled", DEADLINE, settled).await;
}

fn settle_all(fixture: &Fixture) {
    for ack in std::mem::take(&mut *fixture.transport.held.lock().unwrap()) {
        ack.settle(Outcome::Delivered);
    }
}

/// Subscribes to the server's advisories about terminated messages.
async fn terminated(fixture: &Fixture) -> Subscriber {
    let advisories = fixture.client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>").await.unwrap();
    fixture.client.request("$JS.API.INFO", "".into()).await.unwrap();
    advisories
}

#[tokio::test]
async fn each_message_is_ingested_once() {
    let server = NatsServer::start();
    let stream = create_stream(&server).await;
    let fixture = Fixture::start(&server, Told::Settle(Outcome::Delivered), keys(&server)).await;
    let names: Vec<String> = (0..1000).map(|n| format!("{n:04}")).collect();
    fixture.client.publish("others", event("not subscribed").into()).await.unwrap();
    for name in &names {
        fixture.publish(event(name)).await;
    }
    wait_settled(&stream, 1001).await;
    let mut published = fixture.transport.published_names();
    published.sort();
    assert_eq!(published, names);
    fixture.stop().await;
}

#[tokio::test]
async fn nothing_is_acked_before_its_receipt() {
    let server = NatsServer::start();
    let stream = create_stream(&server).await;
    let fixture = Fixture::start(&server, Told::NeverSettle, keys(&server)).await;
    let mut acks = fixture.client.subscribe("$JS.ACK.>").await.unwrap();
    publish(&fixture, "a").await;
    // Longer than `ack_wait_ms`.
    for _ in 0..6 {
        assert_eq!(&acks.next().await.unwrap().payload[..], b"+WPI");
    }
    assert_eq!((consumer(&stream).await.num_ack_pending, consumer(&stream).await.delivered.consumer_sequence), (1, 1));
    settle_all(&fixture);
    wait_settled(&stream, 1).await;
    assert_eq!(fixture.transport.published_names(), ["a"]);
    fixture.stop().await;
}

#[tokio::test]
async fn failed_message_is_redelivered_with_same_ids() {
    let server = NatsServer::start();
    let stream = create_stream(&server).await;
    let fixture = Fixture::start(&server, Told::Settle(Outcome::failed("unavailable")), keys(&server)).await;
    let (a, b) = (event("a"), event("b"));
    fixture.publish(format!("[{a},{b}]")).await;
    fixture.publish_with(&[("Nats-Msg-Id", ID)], &event("c")).await;
    eventually("they were tried", DEADLINE, async || fixture.transport.published_names().len() >= 3).await;
    fixture.transport.tell(Told::Refuse(PublishError::Closed));
    eventually("they were tried again", DEADLINE, async || consumer(&stream).await.num_redelivered == 2).await;
    fixture.transport.tell(Told::Settle(Outcome::Delivered));
    wait_settled(&stream, 2).await;
    let published = fixture.transport.published.lock().unwrap();
    let ids = published.iter().map(|event| (event.name().to_owned(), event.id()));
    assert!(published.len() >= 6, "{}", published.len());
    let ids: HashSet<_> = ids.collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert!(ids.contains(&("c".to_owned(), ID.parse().unwrap())), "{ids:?}");
    let first = ids.iter().find(|(name, _)| name == "a").unwrap().1;
    assert_eq!((first.get_version_num(), first.get_variant()), (8, uuid::Variant::RFC4122));
}

#[tokio::test]
async fn refused_message_is_terminated_alone() {
    let server = NatsServer::start();
    let stream = create_stream(&server).await;
    let fixture = Fixture::start(&server, Told::Settle(Outcome::Delivered), keys(&server)).await;
    let mut advisories = terminated(&fixture).await;
    publish(&fixture, "a").await;
    fixture.publish(INVALID).await;
    fixture.publish(b"\xff{".iter().map(|&byte| char::from(byte)).collect::<String>()).await;
    fixture.publish("").await;
    fixture.publish(format!("{}{INVALID}", event("b"))).await;
    wait_settled(&stream, 5).await;
    let refused = Rejection { index: 0, reason: "by the store".into() };
    fixture.transport.tell(Told::Settle(Outcome::Rejected(vec![refused])));
    publish(&fixture, "c").await;
    wait_settled(&stream, 6).await;
    fixture.transport.tell(Told::Settle(Outcome::Delivered));
    publish(&fixture, "d").await;
    wait_settled(&stream, 7).await;
    let mut numbers = Vec::new();
    while numbers.len() < 5 {
        let advisory = body(&advisories.next().await.unwrap());
        assert_eq!(advisory["deliveries"], 1);
        numbers.push(advisory["stream_seq"].as_u64().unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3, 4, 5, 6]);
    assert_eq!(consumer(&stream).await.delivered.consumer_sequence, 7);
    let mut names = fixture.transport.published_names();
    names.sort();
    assert_eq!(names, ["a", "b", "c", "d"]);

    let mut stored: Vec<(String, String)> = dead_letters(&server)
        .await
        .into_iter()
        .map(|letter| (letter.refused_by, String::from_utf8_lossy(&letter.payload).into_owned()))
        .collect();
    stored.sort();
    assert_eq!(stored.len(), 5, "{stored:?}");
    assert!(stored[0] == ("sources.bus".to_owned(), String::new()), "{stored:?}");
    let invalid = &INVALID[1..];
    assert!(stored[1].1.starts_with("{\"id\":\"") && stored[1].1.ends_with(invalid), "{stored:?}");
    assert!(stored[2].1.starts_with("{\"id\":\"") && stored[2].1.ends_with(invalid), "{stored:?}");
    assert_eq!(stored[3].0, "sources.bus");
    assert!(stored[4].0 == "transport" && stored[4].1.contains("\"name\":\"c\""), "{stored:?}");
    fixture.stop().await;
}

/// Reads the letters as the command line does.
async fn dead_letters(server: &NatsServer) -> Vec<DeadLetter> {
    config(keys(server)).unwrap().dead_letters().unwrap().page(None).await.unwrap()
}

/// The status lines are those of the server: 404 ends a pull request, 503 means that the consumer does not exist.
#[tokio::test]
async fn message_with_status_line_is_ingested() {
    let server = NatsServer::start();
    let stream = create_stream(&server).await;
    let fixture = Fixture::start(&server, Told::Settle(Outcome::Delivered), keys(&server)).await;
    for (name, header) in [("a", "NATS/1.0 503"), ("b", "NATS/1.0 404 No Messages"), ("c", "NATS/1.0 100 \r\nA: b")] {
        server.publish_raw("events.web", header, event(name).as_bytes());
    }
    server.publish_raw("events.web", "NATS/1.0 503", INVALID.as_bytes());
    wait_settled(&stream, 4).await;
    assert_eq!(fixture.transport.published_names().concat().len(), 3);
    assert_eq!(dead_letters(&server).await.len(), 1);
    assert_eq!(consumer(&stream).await.delivered.consumer_sequence, 4, "none is delivered again");
    fixture.stop().await;
}

#[tokio::test]
async fn dead_letter_has_the_event_id() {
    let server = NatsServer::start();
    let stream = create_stream(&server).await;
    let fixture = Fixture::start(&server, Told::Settle(Outcome::Delivered), keys(&server)).await;
    fixture.publish_with(&[("Nats-Msg-Id", ID)], INVALID).await;
    wait_settled(&stream, 1).await;
    let letters = dead_letters(&server).await;
    assert!(letters[0].payload.starts_with(format!("{{\"id\":\"{ID}\",").as_bytes()), "{letters:?}");
    assert_eq!(letters[0].reason, "name: This field is required.");
    fixture.stop().await;
}

#[tokio::test]
async fn message_without_dead_letter_is_redelivered() {
    let server = NatsServer::start();
    let stream = create_stream(&server).await;
    let fixture = Fixture::start(&server, Told::Settle(Outcome::Delivered), keys(&server)).await;
    let context = jetstream::new(fixture.client.clone());
    let settings = context.get_stream("EVENTS_dead_letters").await.unwrap().cached_info().config.clone();
    let full = jetstream::stream::Config { max_bytes: 10, ..settings.clone() };
    context.update_stream(full).await.unwrap();
    publish(&fixture, "a").await;
    fixture.publish(INVALID).await;
    eventually("it was delivered again", DEADLINE, async || consumer(&stream).await.num_redelivered == 1).await;
    let info = consumer(&stream).await;
    assert_eq!((info.ack_floor.stream_sequence, dead_letters(&server).await.len()), (1, 0));
    context.update_stream(settings).await.unwrap();
    wait_settled(&stream, 2).await;
    assert_eq!(dead_letters(&server).await.len(), 1);
    fixture.stop().await;
}

#[test]
fn core_mode_has_no_dead_letters() {
    let keys = json!({"url": "nats://host", "mode": "core", "subjects": ["a"]});
    assert!(config(keys).unwrap().dead_letters().is_none());
}

#[tokio::test]
async fn in_flight_messages_keep_to_the_limit() {
    let server = NatsServer::start();
    let stream = create_stream(&server).await;
    let mut keys = keys(&server);
    keys["max_in_flight"] = json!(3);
    let fixture = Fixture::start(&server, Told::NeverSettle, keys).await;
    for n in 0..10 {
        publish(&fixture, &n.to_string()).await;
    }
    for taken in [3, 6, 9] {
        let published = async || fixture.transport.published_names().len() == taken;
        eventually("three are in flight", DEADLINE, published).await;
        let info = consumer(&stream).await;
        assert_eq!((info.num_ack_pending, info.num_pending), (3, 10 - taken as u64));
        settle_all(&fixture);
    }
    eventually("the last is in flight", DEADLINE, async || fixture.transport.published_names().len() == 10).await;
    settle_all(&fixture);
    wait_settled(&stream, 10).await;
    fixture.stop().await;
}

#[tokio::test]
async fn shutdown_waits_for_receipts_and_acks() {
    let server = NatsServer::start();
    let stream = create_stream(&server).await;
    let fixture = Fixture::start(&server, Told::NeverSettle, keys(&server)).await;
    publish(&fixture, "a").await;
    fixture.wait_published(&["a"]).await;
    fixture.shutdown.cancel();
    tokio::task::yield_now().await;
    assert!(!fixture.running.is_finished());
    settle_all(&fixture);
    fixture.stop().await;
    let info = consumer(&stream).await;
    assert_eq!((info.num_ack_pending, info.ack_floor.stream_sequence), (0, 1));
}

#[tokio::test]
async fn missing_stream_is_awaited() {
    let server = NatsServer::start();
    let fixture = Fixture::start_unready(&server, Told::Settle(Outcome::Delivered), keys(&server)).await;
    let is_reported = async || match fixture.state() {
        ComponentState::Unavailable { reason } => reason.contains("`EVENTS`") && reason.contains("no such stream"),
        _ => false,
    };
    eventually("the reason names the stream", DEADLINE, is_reported).await;
    let stream = create_stream(&server).await;
    fixture.wait_ready().await;
    publish(&fixture, "a").await;
    wait_settled(&stream, 1).await;
    // An operator deletes the consumer: it is recreated, and redelivered events have their ids.
    stream.delete_consumer("eye").await.unwrap();
    let again = async || fixture.transport.published_names().len() == 2;
    eventually("the message is delivered again", DEADLINE, again).await;
    let ids: HashSet<_> = fixture.transport.published.lock().unwrap().iter().map(|event| event.id()).collect();
    assert_eq!(ids.len(), 1);
    fixture.stop().await;
}

#[tokio::test]
async fn consumer_settings_drift_is_an_error() {
    let server = NatsServer::start();
    let stream = create_stream(&server).await;
    let other = pull::Config {
        durable_name: Some("eye".to_owned()),
        ack_policy: AckPolicy::Explicit,
        max_deliver: 3,
        replay_policy: ReplayPolicy::Original,
        inactive_threshold: Duration::from_secs(3600),
        num_replicas: 1,
        memory_storage: true,
        filter_subject: "others".to_owned(),
        ..Default::default()
    };
    stream.create_consumer(other).await.unwrap();
    let fixture = Fixture::start_unready(&server, Told::Settle(Outcome::Delivered), keys(&server)).await;
    let error = tokio::time::timeout(DEADLINE, fixture.running).await.unwrap().unwrap().unwrap_err().to_string();
    for difference in [
        "replay_policy is Original, not Instant",
        "inactive_threshold is 3600s, not 0ns",
        "num_replicas is 1, not 0",
        "mem_storage is true, not false",
        "the consumer `eye` of the stream `EVENTS`",
        "ack_wait is 30s, not 1s",
        "max_deliver is 3, not -1",
        "max_ack_pending is 1000, not 10000",
        r#"filter_subject is "others", not "events.>""#,
    ] {
        assert!(error.contains(difference), "{error}");
    }
    assert!(!error.contains("headers_only"), "{error}");
    assert_eq!(consumer(&stream).await.config.max_deliver, 3, "the consumer is unchanged");
}

#[tokio::test]
async fn killed_server_is_reconnected() {
    let mut server = NatsServer::start();
    let stream = create_stream(&server).await;
    let fixture = Fixture::start(&server, Told::NeverSettle, keys(&server)).await;
    publish(&fixture, "a").await;
    fixture.wait_published(&["a"]).await;
    server.kill();
    let unavailable = async || matches!(fixture.state(), ComponentState::Unavailable { .. });
    eventually("it is unavailable", DEADLINE, unavailable).await;
    fixture.transport.tell(Told::Settle(Outcome::Delivered));
    settle_all(&fixture);
    server.restart();
    fixture.wait_ready().await;
    publish(&fixture, "b").await;
    wait_settled(&stream, 2).await;
    let published = fixture.transport.published.lock().unwrap();
    let ids: HashSet<_> = published.iter().map(|event| event.id()).collect();
    assert_eq!(ids.len(), 2, "a redelivered event has its id");
}

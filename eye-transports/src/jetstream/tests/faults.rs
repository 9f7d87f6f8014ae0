//! A server that is unavailable, hangs, is full, was killed, or has lost data.

use super::*;

#[tokio::test]
async fn unavailable_server_is_reported_and_reconnected() {
    let mut server = NatsServer::new(&[]);
    let mut fixture = Fixture::start_unready(&server, keys(&server)).await;
    fixture.wait_unavailable("no connection to 127.0.0.1:").await;
    let refused = fixture.transport.publish(events(0, 1)).await.unwrap_err();
    assert!(refused.to_string().contains("no connection to 127.0.0.1:"), "{refused}");
    server.restart();
    fixture.wait_ready().await;
    assert_eq!(fixture.publish(events(0, 1)).await, Outcome::Delivered);

    server.kill();
    fixture.wait_unavailable("").await;
    assert!(matches!(fixture.transport.publish(events(1, 2)).await, Err(PublishError::Unavailable { .. })));
    server.restart();
    fixture.wait_ready().await;
    assert_eq!(fixture.publish(events(1, 2)).await, Outcome::Delivered);
    let mut received = Vec::new();
    while received.len() < 2 {
        received.extend(fixture.next(Outcome::Delivered).await);
        received.sort_by_key(Event::key);
        received.dedup();
    }
    assert_eq!(received, events(0, 2));
}

#[tokio::test]
async fn unanswered_publish_is_retried_and_stored_once() {
    let mut server = NatsServer::start();
    let fixture = Fixture::start(&server).await;
    server.pause();
    let receipt = fixture.transport.publish(events(0, 3)).await.unwrap();
    tokio::time::sleep(PUBLISH_TIMEOUT + Duration::from_millis(500)).await;
    server.resume();
    assert_eq!(receipt.outcome().await, Outcome::Delivered);
    eventually("the server has processed both", DEADLINE, async || {
        fixture.stream().await.cached_info().state.messages >= 1
    })
    .await;
    assert_eq!(fixture.stream().await.cached_info().state.last_sequence, 1);
}

#[tokio::test]
async fn publish_to_hanging_server_fails_in_time() {
    let mut server = NatsServer::start();
    let fixture = Fixture::start(&server).await;
    server.pause();
    let started = tokio::time::Instant::now();
    let large = |n| event_with(n, "large", &format!("\"{}\"", "x".repeat(900_000)));
    let mut receipts = Vec::new();
    for n in 0..20 {
        receipts.push(fixture.transport.publish(vec![large(n)]).await.unwrap());
    }
    for receipt in receipts {
        let outcome = receipt.outcome().await;
        assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    server.resume();
}

#[tokio::test]
async fn full_stream_refuses_and_recovers() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let large = |n| event_with(n, "large", &format!("\"{}\"", "x".repeat(900_000)));
    let mut taken = Vec::new();
    let reason = loop {
        let n = taken.len() as u32;
        match fixture.transport.publish(vec![large(n)]).await {
            Ok(receipt) => match receipt.outcome().await {
                Outcome::Delivered => taken.push(large(n)),
                Outcome::Failed { reason } => break reason.to_string(),
                other => panic!("{other:?}"),
            },
            Err(error) => panic!("{error}"),
        }
    };
    assert!(reason.contains("transport.max_bytes = 67108864") && reason.contains("a sixteenth"), "{reason}");
    // 69 fit below the sixteenth. Those in flight during an observation are not in it.
    assert!((65..=72).contains(&taken.len()), "{}", taken.len());
    let refused = fixture.transport.publish(events(0, 1)).await.unwrap_err();
    assert!(matches!(refused, PublishError::Full { .. }), "{refused}");
    fixture.wait_unavailable("takes nothing").await;
    let mut received = Vec::new();
    while received.len() < taken.len() {
        received.extend(fixture.next(Outcome::Delivered).await);
    }
    assert_same_events(&received, &taken);
    fixture.wait_ready().await;
    assert_eq!(fixture.publish(events(0, 1)).await, Outcome::Delivered);
}

#[tokio::test]
async fn check_on_lost_connection_is_ignored() {
    let server = NatsServer::new(&[]);
    let config = config(keys(&server)).unwrap();
    let client = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(server.url()).await.unwrap();
    let letters = config.dead_letter_stream().with_client(client.clone());
    let monitor = Arc::new(StreamMonitor::new(jetstream::new(client), &config, letters));
    let (is_connected, mut connection) = tokio::sync::watch::channel(false);
    for reconnected in [false, true] {
        is_connected.send_replace(true);
        connection.borrow_and_update();
        monitor.note_checked(&connection, 0);
        assert_eq!(monitor.status(), StreamStatus::Available);
        is_connected.send_replace(false);
        monitor.note_unavailable("lost".to_owned());
        if reconnected {
            is_connected.send_replace(true);
        }
        monitor.note_checked(&connection, 0);
        assert!(matches!(monitor.status(), StreamStatus::Unavailable(_)), "{:?}", monitor.status());
    }
}

#[tokio::test]
async fn deleted_consumer_is_recreated() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    fixture.publish(events(0, 5)).await;
    settle(fixture.receive().await, Outcome::failed("unavailable"));
    fixture.stream().await.delete_consumer("store").await.unwrap();
    assert_eq!(fixture.next(Outcome::Delivered).await, events(0, 5));
    fixture.wait_empty().await;
    fixture.wait_ready().await;
    assert_eq!(fixture.publish(events(5, 6)).await, Outcome::Delivered);
    assert_eq!(fixture.next(Outcome::Delivered).await, events(5, 6));
}

/// A killed server may wait for acknowledgements of messages that it no longer has. Whenever it could deliver something it looks
/// for one of them, and delivers nothing.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_waiting_for_removed_messages_is_recreated() {
    const MESSAGES: u32 = 20;
    let mut server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    let mut in_flight = Vec::new();
    for n in 0..MESSAGES {
        fixture.publish(events(n, n + 1)).await;
        in_flight.extend(fixture.receive().await);
    }
    let consumer = server.folder().join("streams/jetstream/$G/streams/EYE/obs/store/o.dat");
    tokio::task::block_in_place(|| server.stop());
    let before_the_acks = std::fs::read(&consumer).unwrap();
    tokio::task::block_in_place(|| server.restart());
    // The oldest is not acknowledged: a server does not wait for messages that are older than all that it has.
    let oldest = in_flight.remove(0);
    settle(in_flight, Outcome::Delivered);
    let one_is_left = async || fixture.stream().await.cached_info().state.messages == 1;
    eventually("the others are removed", DEADLINE, one_is_left).await;
    std::mem::forget(oldest);
    fixture.watch.abort();
    drop(fixture);
    tokio::task::block_in_place(|| {
        server.stop();
        std::fs::write(&consumer, before_the_acks).unwrap();
        server.restart();
    });

    let mut fixture = Fixture::start(&server).await;
    assert_eq!(fixture.consumer().await.num_ack_pending, MESSAGES as usize);
    // The server delivers it again, and would deliver the others.
    let oldest = fixture.receive().await;
    let published = Instant::now();
    fixture.publish(events(MESSAGES, MESSAGES + 1)).await;
    let mut received = fixture.next(Outcome::Delivered).await;
    while !received.contains(&events(MESSAGES, MESSAGES + 1)[0]) {
        received.extend(fixture.next(Outcome::Delivered).await);
    }
    assert!(published.elapsed() < Duration::from_secs(5), "{:?}", published.elapsed());
    settle(oldest, Outcome::Delivered);
    fixture.wait_empty().await;
    eventually("the consumer waits for no ack", DEADLINE, async || fixture.consumer().await.num_ack_pending == 0).await;
}

/// A killed server may restore messages that were acknowledged and removed.
#[tokio::test(flavor = "multi_thread")]
async fn restored_messages_are_delivered_and_removed() {
    let mut server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    fixture.publish(events(0, 5)).await;
    fixture.publish(events(5, 6)).await;
    let mut in_flight = fixture.receive().await;
    while in_flight.len() < 2 {
        in_flight.extend(fixture.receive().await);
    }
    let messages = server.folder().join("streams/jetstream/$G/streams/EYE/msgs");
    let files = || std::fs::read_dir(&messages).unwrap().map(|file| file.unwrap().path());
    tokio::task::block_in_place(|| server.stop());
    let before_the_acks: Vec<_> = files().map(|file| (file.clone(), std::fs::read(file).unwrap())).collect();
    tokio::task::block_in_place(|| server.restart());
    settle(in_flight, Outcome::Delivered);
    fixture.wait_empty().await;
    tokio::task::block_in_place(|| {
        server.stop();
        files().for_each(|file| std::fs::remove_file(file).unwrap());
        before_the_acks.iter().for_each(|(file, content)| std::fs::write(file, content).unwrap());
        server.restart();
    });
    eventually("the messages are back", DEADLINE, async || fixture.stream().await.cached_info().state.messages == 2)
        .await;
    let consumer = fixture.consumer().await;
    assert_eq!((consumer.num_pending, consumer.num_ack_pending), (0, 0));

    let mut again = Vec::new();
    while again.len() < 6 {
        again.extend(fixture.next(Outcome::Delivered).await);
    }
    assert_eq!(again, events(0, 6));
    fixture.wait_empty().await;
}

#[tokio::test]
async fn deleted_stream_is_recreated() {
    let server = NatsServer::start();
    let mut fixture = Fixture::start(&server).await;
    fixture.publish(events(0, 1)).await;
    fixture.next(Outcome::Delivered).await;
    jetstream::new(fixture.client.clone()).delete_stream(STREAM).await.unwrap();
    let taken = async || {
        let Ok(receipt) = fixture.transport.publish(events(1, 2)).await else { return false };
        receipt.outcome().await == Outcome::Delivered
    };
    eventually("events are taken again", DEADLINE, taken).await;
    assert_eq!(fixture.next(Outcome::Delivered).await, events(1, 2));
}

/// The sinks of two programs fail at random while the server is killed: nothing is lost, however often it is delivered again.
#[tokio::test(flavor = "multi_thread")]
async fn killed_server_loses_no_redelivery() {
    const EVENTS: u32 = 300;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut server = NatsServer::start();
    let delivered = Arc::new(std::sync::Mutex::new(std::collections::BTreeMap::new()));
    let mut transports = Vec::new();
    for n in 0..2 {
        let Fixture { transport, mut subscription, .. } = Fixture::start(&server).await;
        transports.push(transport);
        let (delivered, mut random) = (delivered.clone(), fastrand::Rng::with_seed(seed + n));
        tokio::spawn(async move {
            while let Some(deliveries) = subscription.receive(BatchLimits { max_events: 10, ..WIDE }).await {
                for delivery in deliveries {
                    if random.bool() {
                        delivery.ack.settle(Outcome::failed("unavailable"));
                    } else {
                        let events = delivery.events.into_iter().map(|event| (event.key(), event));
                        delivered.lock().unwrap().extend(events);
                        delivery.ack.settle(Outcome::Delivered);
                    }
                }
            }
        });
    }
    for n in 0..EVENTS {
        if n % 60 == 30 {
            tokio::task::block_in_place(|| server.kill());
            tokio::task::block_in_place(|| server.restart());
        }
        let taken = async || {
            let Ok(receipt) = transports[0].publish(events(n, n + 1)).await else { return false };
            receipt.outcome().await == Outcome::Delivered
        };
        eventually("the event is taken", DEADLINE, taken).await;
    }
    let all = async || delivered.lock().unwrap().len() == EVENTS as usize;
    eventually(&format!("all are delivered, seed {seed}"), DEADLINE, all).await;
    let stream = jetstream::new(async_nats::connect(server.url()).await.unwrap()).get_stream(STREAM).await.unwrap();
    let is_done = async || {
        // It may be being recreated.
        let Ok(consumer) = stream.consumer_info("store").await else { return false };
        let messages = stream.get_info().await.unwrap().state.messages;
        (messages, consumer.num_pending, consumer.num_ack_pending) == (0, 0, 0)
    };
    eventually(&format!("nothing is pending, seed {seed}"), DEADLINE, is_done).await;
}

//! Impossible settings, and settings drift on the server.

use super::*;

#[tokio::test]
async fn settings_drift_is_an_error_naming_settings() {
    let server = NatsServer::start();
    let fixture = Fixture::start(&server).await;
    let context = jetstream::new(fixture.client.clone());
    fixture.watch.abort();

    let mut keys = keys(&server);
    keys["max_bytes"] = json!(MIN_MAX_BYTES + 1);
    let other = Fixture::start_unready(&server, keys.clone()).await;
    let error = tokio::time::timeout(DEADLINE, other.watch).await.unwrap().unwrap().to_string();
    assert!(error.contains("the stream `EYE` has other settings: max_bytes is 67108864, not 67108865;"), "{error}");

    keys["max_bytes"] = json!(MIN_MAX_BYTES);
    keys["ack_wait_ms"] = json!(2000);
    let other = Fixture::start_unready(&server, keys.clone()).await;
    let error = tokio::time::timeout(DEADLINE, other.watch).await.unwrap().unwrap().to_string();
    assert!(
        error.contains("the consumer `store` of the stream `EYE` has other settings: ack_wait is 1s, not 2s"),
        "{error}"
    );

    // Settings that would lose events.
    let found = context.get_stream(STREAM).await.unwrap().cached_info().config.clone();
    let lossy = Config { max_age: Duration::from_secs(600), discard: jetstream::stream::DiscardPolicy::Old, ..found };
    context.update_stream(lossy).await.unwrap();
    let other = Fixture::start_unready(&server, keys).await;
    let error = tokio::time::timeout(DEADLINE, other.watch).await.unwrap().unwrap().to_string();
    assert!(error.contains("discard is Old, not New") && error.contains("max_age is 600s, not 0ns"), "{error}");
}

/// The changed settings would lose events or keep them from the sink, without a new connection.
#[tokio::test]
async fn settings_changed_at_runtime_stop_the_transport() {
    let end = async |change: &dyn Fn(&mut Config, &mut pull::Config)| {
        let server = NatsServer::start();
        let fixture = Fixture::start(&server).await;
        let stream = fixture.stream().await;
        let mut of_stream = stream.cached_info().config.clone();
        let of_consumer = stream.get_consumer::<pull::Config>("store").await.unwrap().cached_info().config.clone();
        let mut of_consumer = pull::Config::try_from_consumer_config(of_consumer).unwrap();
        change(&mut of_stream, &mut of_consumer);
        jetstream::new(fixture.client.clone()).update_stream(of_stream).await.unwrap();
        stream.create_consumer(of_consumer).await.unwrap();
        let error = tokio::time::timeout(DEADLINE, fixture.watch).await.unwrap().unwrap().to_string();
        assert!(matches!(fixture.transport.publish(events(0, 1)).await, Err(PublishError::Closed)));
        error
    };
    let error = end(&|stream, _| stream.discard = jetstream::stream::DiscardPolicy::Old).await;
    assert!(error.contains("the stream `EYE` has other settings: discard is Old, not New;"), "{error}");
    let error = end(&|stream, _| stream.max_age = Duration::from_secs(600)).await;
    assert!(error.contains("the stream `EYE` has other settings: max_age is 600s, not 0ns;"), "{error}");
    let error = end(&|_, consumer| consumer.max_deliver = 3).await;
    assert!(error.contains("the consumer `store` of the stream `EYE` has other settings: max_deliver is 3"), "{error}");
}

#[tokio::test]
async fn impossible_settings_are_refused_at_startup() {
    let table = [
        (json!({"stream": ""}), "stream: must be the name of a stream"),
        (json!({"stream": "a.b"}), "stream: must be the name of a stream"),
        (json!({"stream": "a b"}), "stream: must be the name of a stream"),
        (json!({"replicas": 6}), "replicas: 6 is too large: it must be at most 5"),
        (json!({"max_bytes": MIN_MAX_BYTES - 1}), "max_bytes: 67108863 is too small: it must be at least 67108864"),
        (json!({"max_bytes": u64::MAX}), "is more than a stream can hold"),
        (json!({"token": "hush", "user": "eye"}), "more than one way to log in"),
    ];
    for (wrong, expected) in table {
        let mut keys = json!({"url": "nats://127.0.0.1:1", "stream": "EYE"});
        assert!(config(keys.clone()).unwrap().build(&context()).await.is_ok());
        keys.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let config = config(keys).unwrap();
        let error = match &config.check()[..] {
            [] => config.build(&context()).await.err().expect(expected).to_string(),
            wrong => wrong[0].to_string(),
        };
        assert!(error.contains(expected) && !error.contains("hush"), "{error}");
    }
    let transport =
        config(json!({"url": "nats://127.0.0.1:1", "stream": "EYE"})).unwrap().build(&context()).await.unwrap();
    let error = transport.subscribe("a.b").await.err().expect("the name is refused").to_string();
    assert!(error.contains("sinks.a.b"), "{error}");
    transport.subscribe("a").await.unwrap();
    assert!(transport.subscribe("a").await.is_err(), "the name has subscribed");
}

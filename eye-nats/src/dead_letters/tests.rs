use eye_harness::NatsServer;

use super::*;

const STREAM: &str = "EYE";

fn dead_letters(server: &NatsServer) -> DeadLetterStream {
    let settings = ConnectionSettings {
        url: server.url().try_into().unwrap(),
        credentials_file: String::new(),
        token: Default::default(),
        user: String::new(),
        password: Default::default(),
        ca_file: String::new(),
    };
    DeadLetterStream::new(settings, STREAM)
}

async fn running(server: &NatsServer) -> (Client, DeadLetterStream) {
    let client = async_nats::connect(server.url()).await.unwrap();
    let parent = Config { name: STREAM.to_owned(), ..Config::default() };
    jetstream::new(client.clone()).create_stream(parent).await.unwrap();
    (client.clone(), dead_letters(server).with_client(client))
}

fn letter(payload: impl Into<Vec<u8>>, key: impl Into<String>) -> [NewDeadLetter; 1] {
    let (refused_by, reason) = ("sinks.store".to_owned(), "no such\r\nname é".to_owned());
    [NewDeadLetter { refused_by, reason, payload: payload.into(), key: key.into() }]
}

async fn all(letters: &DeadLetterStream) -> Vec<DeadLetter> {
    let mut all: Vec<DeadLetter> = Vec::new();
    loop {
        let page = letters.page(all.last().map(|letter| letter.id.as_str())).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

#[tokio::test]
async fn letters_can_be_listed_shown_and_deleted() {
    let server = NatsServer::start();
    let letters = dead_letters(&server);
    assert_eq!(letters.page(None).await.unwrap(), [], "there is no stream yet");
    let (_, running) = running(&server).await;
    let before = Timestamp::now();
    for n in 0..3 {
        running.put(&letter(format!("{{\"n\":{n}}}"), n.to_string())).await.unwrap();
    }
    let listed = all(&letters).await;
    let payloads: Vec<_> = listed.iter().map(|letter| String::from_utf8_lossy(&letter.payload)).collect();
    assert_eq!(payloads, [r#"{"n":0}"#, r#"{"n":1}"#, r#"{"n":2}"#]);
    assert_eq!((listed[1].refused_by.as_str(), listed[1].reason.as_str()), ("sinks.store", "no such  name é"));
    assert!(before <= listed[1].time && listed[1].time <= Timestamp::now(), "{listed:?}");

    assert_eq!(letters.get(&listed[1].id).await.unwrap().as_ref(), Some(&listed[1]));
    assert!(letters.delete(&listed[1].id).await.unwrap());
    assert!(!letters.delete(&listed[1].id).await.unwrap());
    assert_eq!(letters.get(&listed[1].id).await.unwrap(), None);
    assert_eq!(
        letters.page(Some(&listed[1].id)).await.unwrap(),
        [listed[2].clone()],
        "the letter before need not exist"
    );
    assert_eq!(all(&letters).await, [listed[0].clone(), listed[2].clone()]);
}

#[tokio::test]
async fn impossible_id_is_not_found() {
    let server = NatsServer::start();
    let (_, running) = running(&server).await;
    running.put(&letter("1", "a")).await.unwrap();
    let letters = dead_letters(&server);
    for id in ["", "0", "-1", "2", "x", "99999999999999999999", "18446744073709551615"] {
        assert_eq!(letters.get(id).await.unwrap(), None, "{id}");
        assert!(!letters.delete(id).await.unwrap(), "{id}");
    }
    assert!(letters.page(Some("x")).await.is_err());
    assert_eq!(letters.page(Some("18446744073709551615")).await.unwrap(), []);
}

#[tokio::test]
async fn pages_are_bounded_and_complete() {
    let server = NatsServer::start();
    let (_, running) = running(&server).await;
    for n in 0..PAGE_LETTERS + 3 {
        running.put(&letter("{}", n.to_string())).await.unwrap();
    }
    let letters = dead_letters(&server);
    assert_eq!(letters.page(None).await.unwrap().len(), PAGE_LETTERS);
    assert_eq!(all(&letters).await.len(), PAGE_LETTERS + 3);
}

#[tokio::test]
async fn same_key_is_stored_once() {
    let server = NatsServer::start();
    let (_, running) = running(&server).await;
    for key in ["a", "a", "b"] {
        running.put(&letter("{}", key)).await.unwrap();
    }
    assert_eq!(all(&dead_letters(&server)).await.len(), 2);
}

#[tokio::test]
async fn payload_of_max_size_is_stored_without_reason() {
    let server = NatsServer::start();
    let (client, running) = running(&server).await;
    for less in [0, 1, 60, 200, 1000] {
        let payload = vec![b' '; client.max_payload() - less];
        running.put(&letter(payload.clone(), less.to_string())).await.unwrap();
        let last = all(&dead_letters(&server)).await.pop().unwrap();
        assert!(last.payload == payload, "{less}");
        assert_eq!(last.reason.starts_with("not stored"), less < 100, "{less}: {}", last.reason);
    }
    assert!(running.put(&letter(vec![b' '; client.max_payload() + 1], "c")).await.is_err());
}

#[tokio::test]
async fn full_stream_refuses_and_deleted_one_is_recreated() {
    let server = NatsServer::start();
    let (client, running) = running(&server).await;
    running.ensure().await.unwrap();
    let context = jetstream::new(client);
    // The operator may change its size.
    let small = Config { max_bytes: 7000, ..running.config.clone() };
    context.update_stream(small).await.unwrap();
    running.ensure().await.unwrap();
    running.put(&letter(vec![b' '; 1500], "a")).await.unwrap();
    let error = running.put(&letter(vec![b' '; 1500], "b")).await.unwrap_err().to_string();
    assert!(error.contains("`EYE_dead_letters`") && error.contains("sixteenth"), "{error}");

    context.delete_stream("EYE_dead_letters").await.unwrap();
    running.put(&letter(vec![b' '; 1500], "c")).await.unwrap();
    assert_eq!(all(&dead_letters(&server)).await.len(), 1);
}

#[tokio::test]
async fn full_stream_evicts_nothing() {
    let server = NatsServer::start();
    let (client, running) = running(&server).await;
    running.ensure().await.unwrap();
    let context = jetstream::new(client);
    let reason = "r".repeat(MAX_REASON_BYTES);
    for max_bytes in (40_000..42_800).step_by(40) {
        context.get_stream(running.stream_name()).await.unwrap().purge().await.unwrap();
        context.update_stream(Config { max_bytes, ..running.config.clone() }).await.unwrap();
        running.ensure().await.unwrap();
        let mut stored = 0;
        loop {
            let key = format!("{max_bytes} {stored}");
            let [mut letter] = letter(vec![b' '; 10], key);
            letter.reason.clone_from(&reason);
            match running.put(&[letter]).await {
                Ok(()) => stored += 1,
                Err(_) => break,
            }
        }
        assert!(stored > 10, "{stored}");
        assert_eq!(all(&dead_letters(&server)).await.len(), stored, "of {max_bytes} bytes");
    }
}

#[tokio::test]
async fn stream_with_max_age_is_an_error() {
    let server = NatsServer::start();
    let (client, running) = running(&server).await;
    let other = Config { max_age: Duration::from_secs(3600), ..running.config.clone() };
    jetstream::new(client).create_stream(other).await.unwrap();
    let Err(ProvisionError::Permanent(error)) = running.ensure().await else { panic!("it is found") };
    assert!(error.contains("max_age is 3600s, not 0ns"), "{error}");
}

#[tokio::test]
async fn unavailable_server_error_hides_secrets() {
    let server = NatsServer::new(&[]);
    let mut letters = dead_letters(&server);
    letters.settings.url = server.url().replace("nats://", "nats://eye:hush@").try_into().unwrap();
    let error = letters.page(None).await.unwrap_err().to_string();
    assert!(error.contains("no connection to 127.0.0.1:") && !error.contains("hush"), "{error}");
}

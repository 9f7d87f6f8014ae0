use eye_harness::NatsServer;

use super::*;

const STREAM: &str = "EYE";

async fn keeper(server: &NatsServer) -> (Client, Keeper) {
    let client = async_nats::connect(server.url()).await.unwrap();
    (client.clone(), Keeper::new(client, STREAM, 1))
}

fn dead_letters(server: &NatsServer) -> StreamDeadLetters {
    let login = Login {
        url: server.url().try_into().unwrap(),
        credentials_file: String::new(),
        token: Default::default(),
        user: String::new(),
        password: Default::default(),
        ca_file: String::new(),
    };
    StreamDeadLetters::new(login, STREAM)
}

fn refused(payload: impl Into<Vec<u8>>, key: impl Into<String>) -> Refused<'static> {
    Refused { refused_by: "sinks.store", reason: "no such\r\nname é", payload: payload.into(), key: key.into() }
}

async fn all(letters: &StreamDeadLetters) -> Vec<DeadLetter> {
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
async fn what_is_kept_can_be_listed_shown_and_deleted() {
    let server = NatsServer::start();
    let letters = dead_letters(&server);
    assert_eq!(letters.page(None).await.unwrap(), [], "there is no stream yet");
    let (_, keeper) = keeper(&server).await;
    let before = Timestamp::now();
    for n in 0..3 {
        keeper.keep(&refused(format!("{{\"n\":{n}}}"), n.to_string())).await.unwrap();
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
    assert_eq!(letters.page(Some(&listed[1].id)).await.unwrap(), [listed[2].clone()], "the one before need not exist");
    assert_eq!(all(&letters).await, [listed[0].clone(), listed[2].clone()]);
}

#[tokio::test]
async fn an_id_that_cannot_be_is_none() {
    let server = NatsServer::start();
    let (_, keeper) = keeper(&server).await;
    keeper.keep(&refused("1", "a")).await.unwrap();
    let letters = dead_letters(&server);
    for id in ["", "0", "-1", "2", "x", "99999999999999999999", "18446744073709551615"] {
        assert_eq!(letters.get(id).await.unwrap(), None, "{id}");
        assert!(!letters.delete(id).await.unwrap(), "{id}");
    }
    assert!(letters.page(Some("x")).await.is_err());
    assert_eq!(letters.page(Some("18446744073709551615")).await.unwrap(), []);
}

#[tokio::test]
async fn pages_are_bounded_and_there_are_as_many_as_it_takes() {
    let server = NatsServer::start();
    let (_, keeper) = keeper(&server).await;
    for n in 0..PAGE_LETTERS + 3 {
        keeper.keep(&refused("{}", n.to_string())).await.unwrap();
    }
    let letters = dead_letters(&server);
    assert_eq!(letters.page(None).await.unwrap().len(), PAGE_LETTERS);
    assert_eq!(all(&letters).await.len(), PAGE_LETTERS + 3);
}

#[tokio::test]
async fn what_is_kept_again_is_there_once() {
    let server = NatsServer::start();
    let (_, keeper) = keeper(&server).await;
    for key in ["a", "a", "b"] {
        keeper.keep(&refused("{}", key)).await.unwrap();
    }
    assert_eq!(all(&dead_letters(&server)).await.len(), 2);
}

#[tokio::test]
async fn a_payload_as_large_as_the_server_lets_through_is_kept_without_its_reason() {
    let server = NatsServer::start();
    let (client, keeper) = keeper(&server).await;
    for less in [0, 1, 60, 200, 1000] {
        let payload = vec![b' '; client.max_payload() - less];
        keeper.keep(&refused(payload.clone(), less.to_string())).await.unwrap();
        let last = all(&dead_letters(&server)).await.pop().unwrap();
        assert!(last.payload == payload, "{less}");
        assert_eq!(last.reason.starts_with("not kept"), less < 100, "{less}: {}", last.reason);
    }
    assert!(keeper.keep(&refused(vec![b' '; client.max_payload() + 1], "c")).await.is_err());
}

#[tokio::test]
async fn a_stream_that_is_full_or_deleted() {
    let server = NatsServer::start();
    let (client, keeper) = keeper(&server).await;
    keeper.find().await.unwrap();
    let context = jetstream::new(client);
    // Its size is the operator's affair.
    let small = Config { max_bytes: 7000, ..keeper.config.clone() };
    context.update_stream(small).await.unwrap();
    keeper.find().await.unwrap();
    keeper.keep(&refused(vec![b' '; 1500], "a")).await.unwrap();
    let error = keeper.keep(&refused(vec![b' '; 1500], "b")).await.unwrap_err();
    assert!(error.contains("`EYE_dead_letters`") && error.contains("sixteenth"), "{error}");

    context.delete_stream("EYE_dead_letters").await.unwrap();
    keeper.keep(&refused(vec![b' '; 1500], "c")).await.unwrap();
    assert_eq!(all(&dead_letters(&server)).await.len(), 1);
}

#[tokio::test]
async fn a_full_stream_throws_nothing_out() {
    let server = NatsServer::start();
    let (client, keeper) = keeper(&server).await;
    keeper.find().await.unwrap();
    let context = jetstream::new(client);
    let reason = "r".repeat(MAX_REASON_BYTES);
    for max_bytes in (40_000..42_800).step_by(40) {
        context.get_stream(keeper.stream()).await.unwrap().purge().await.unwrap();
        context.update_stream(Config { max_bytes, ..keeper.config.clone() }).await.unwrap();
        keeper.find().await.unwrap();
        let mut kept = 0;
        loop {
            let key = format!("{max_bytes} {kept}");
            let letter = Refused { refused_by: "sinks.store", reason: &reason, payload: vec![b' '; 10], key };
            match keeper.keep(&letter).await {
                Ok(()) => kept += 1,
                Err(_) => break,
            }
        }
        assert!(kept > 10, "{kept}");
        assert_eq!(all(&dead_letters(&server)).await.len(), kept, "of {max_bytes} bytes");
    }
}

#[tokio::test]
async fn a_stream_that_loses_letters_is_an_error() {
    let server = NatsServer::start();
    let (client, keeper) = keeper(&server).await;
    let other = Config { max_age: Duration::from_secs(3600), ..keeper.config.clone() };
    jetstream::new(client).create_stream(other).await.unwrap();
    let Err(Missing::ForGood(error)) = keeper.find().await else { panic!("it is found") };
    assert!(error.contains("max_age is 3600s, not 0ns"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_away_is_told_without_its_secrets() {
    let server = NatsServer::new(&[]);
    let mut letters = dead_letters(&server);
    letters.login.url = server.url().replace("nats://", "nats://eye:hush@").try_into().unwrap();
    let error = letters.page(None).await.unwrap_err().to_string();
    assert!(error.contains("no connection to 127.0.0.1:") && !error.contains("hush"), "{error}");
}

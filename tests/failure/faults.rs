//! Databases that refuse events, hang, end and become available again.

use std::time::{Duration, Instant};

use eye_harness::{Eye, eventually};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use uuid::Uuid;

use crate::support::load::ClientLoad;
use crate::support::store::{ALL, Kind, SERVERS, Store};
use crate::support::{HANG, audit, event, new_event, post, readyz, sink_state, start, start_ready};

#[tokio::test(flavor = "multi_thread")]
async fn refused_event_gets_the_reason_of_the_database() {
    for kind in ALL {
        let store = Store::new(kind);
        let eye = start_ready(&store, "").await;
        store.refuse().await;
        let refused = new_event("refused");
        let (status, answer) = eye.post(json!([new_event("good"), refused])).await;
        assert_eq!(status, 200, "{kind:?}: {answer}");
        let reason = answer["rejected"][0]["errors"]["non_field_errors"][0].as_str().unwrap();
        assert!(reason.contains("no such name") || reason.contains("no_such_name"), "{kind:?}: {reason}");
        let (status, answer) = eye.post(refused).await;
        assert_eq!(status, 422, "{kind:?}: {answer}");
        assert!(answer["detail"].as_str().unwrap().starts_with("Refused by the store"), "{kind:?}: {answer}");
        assert_eq!(readyz(&eye).await.0, 200, "{kind:?}: a refusal is not an outage");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_event_affects_no_other_client_of_its_batch() {
    for kind in ALL {
        let store = Store::new(kind);
        let eye = start_ready(&store, "").await;
        store.refuse().await;
        // While the database is locked, the first batch waits, and the events of all clients form the second one.
        let lock = store.lock().await;
        let names = (0..50).map(|number| if number == 25 { "refused" } else { "good" });
        let posts = futures_util::future::join_all(names.map(|name| {
            let (client, url, body) = (eye.client().clone(), eye.url("/api/event/"), new_event(name));
            async move { (name, client.post(url).json(&body).send().await.unwrap().status().as_u16()) }
        }));
        let release = async {
            let received = async || eye.get("/audit").await.1["sources"]["web"]["received"] == 50;
            eventually("all events are received", Duration::from_secs(20), received).await;
            lock.release().await;
        };
        let (answers, ()) = tokio::join!(posts, release);
        for (name, status) in answers {
            assert_eq!(status, if name == "refused" { 422 } else { 201 }, "{kind:?}: {name}");
        }
        assert_eq!(store.ids().await.len(), 49, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_cause_no_error_answers() {
    for kind in SERVERS {
        let store = Store::new(kind);
        let eye = start_ready(&store, "").await;
        let load = ClientLoad::start(&eye);
        for _ in 0..20 {
            load.progress(10).await;
            store.cut_connections().await;
            // A query whose connection is cut gets 503.
            let status = eye.get("/api/event/?limit=1").await.0;
            assert!(matches!(status, 200 | 503), "{kind:?}: {status}");
        }
        assert_eq!(load.unavailable(), 0, "{kind:?}: the writer retries before its clients have to");
        load.finish(&store).await;
        audit(&format!("cut, {kind:?}"), &eye).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_database_answers_503_within_the_timeout() {
    for kind in SERVERS {
        let store = Store::own(kind);
        let eye = start_ready(&store, "sources.web.receipt_timeout_ms = 500\nquery.timeout_ms = 500").await;
        let load = ClientLoad::start(&eye);
        load.progress(50).await;
        block_in_place(|| store.server().pause());
        load.answered(503, 12).await;
        let asked = Instant::now();
        assert_eq!(eye.get("/api/event/").await.0, 503, "{kind:?}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{kind:?}: {:?}", asked.elapsed());
        eventually("not ready", HANG, async || readyz(&eye).await.0 == 503).await;
        block_in_place(|| store.server().resume());
        let resumed = Instant::now();
        load.progress(50).await;
        eventually("ready", HANG, async || readyz(&eye).await.0 == 200).await;
        assert!(resumed.elapsed() < Duration::from_secs(10), "{kind:?}: {:?}", resumed.elapsed());
        load.finish(&store).await;
        audit(&format!("hangs, {kind:?}"), &eye).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_sqlite_answers_503_after_its_retries() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "writer.retry_for_ms = 500").await;
    let load = ClientLoad::start(&eye);
    load.progress(20).await;
    let lock = store.lock().await;
    load.answered(503, 6).await;
    assert_eq!(eye.get("/api/event/?limit=1").await.0, 200, "a writer does not block readers");
    lock.release().await;
    load.progress(20).await;
    eventually("ready", HANG, async || readyz(&eye).await.0 == 200).await;
    load.finish(&store).await;
    audit("locked", &eye).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn database_unavailable_at_startup_is_used_later() {
    for kind in SERVERS {
        let store = Store::own(kind);
        block_in_place(|| store.server().kill());
        let eye = start(&store, "");
        eventually("not ready, with the reason", HANG, async || {
            let (status, answer) = readyz(&eye).await;
            let sink = sink_state(&answer);
            assert_eq!(status, 503, "{kind:?}: {answer}");
            sink["state"] == "unavailable" && sink["reason"].as_str().unwrap().contains("127.0.0.1")
        })
        .await;
        let wanted = event(Uuid::new_v4(), "early");
        assert!(matches!(post(&eye, &wanted).await, (503, Some(1..))), "{kind:?}");
        let asked = Instant::now();
        assert_eq!(eye.get("/api/event/").await.0, 503, "{kind:?}");
        assert!(asked.elapsed() < Duration::from_secs(10), "{kind:?}: {:?}", asked.elapsed());
        block_in_place(|| store.server().restart());
        eye.wait_ready().await;
        assert_eq!(post(&eye, &wanted).await.0, 201, "{kind:?}");
        assert_eq!(eye.get("/api/event/").await.1["count"], 1, "{kind:?}");
        eventually("the log has one line for each change", HANG, async || {
            log_messages(&eye, "sinks.store") == ["unavailable, trying again", "ready"]
        })
        .await;
    }
}

/// Returns the messages of a component's log lines.
fn log_messages(eye: &Eye, component: &str) -> Vec<String> {
    let lines = eye.logs();
    let fields = lines.lines().filter_map(|line| Some(serde_json::from_str::<Value>(line).ok()?["fields"].take()));
    let own = fields.filter(|fields| fields["component"] == component);
    own.map(|fields| fields["message"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_on_an_empty_database_succeed() {
    for kind in ALL {
        let store = Store::new(kind);
        let eyes = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..3).map(|_| scope.spawn(|| start(&store, ""))).collect();
            starting.into_iter().map(|eye| eye.join().unwrap()).collect::<Vec<_>>()
        });
        for eye in &eyes {
            eye.wait_ready().await;
            assert_eq!(post(eye, &new_event("good")).await.0, 201, "{kind:?}");
            assert!(!eye.logs().contains("\"ERROR\""), "{kind:?}: {}", eye.logs());
        }
        assert_eq!(store.ids().await.len(), eyes.len(), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_transport_answers_503_after_its_wait() {
    let store = Store::new(Kind::Postgres);
    // Each event uses more than 256 bytes.
    let eye = start_ready(&store, "transport.max_bytes = 2000\ntransport.max_wait_ms = 200").await;
    let lock = store.lock().await;
    let mut posts: FuturesUnordered<_> = (0..20)
        .map(|_| {
            let request = eye.client().post(eye.url("/api/event/")).json(&new_event("good"));
            async {
                let asked = Instant::now();
                (request.send().await.unwrap(), asked.elapsed())
            }
        })
        .collect();
    for _ in 0..10 {
        let (answer, waited) = posts.next().await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
        assert!((200..5000).contains(&waited.as_millis()), "{waited:?}");
        assert!(answer.text().await.unwrap().contains("transport.max_bytes"));
    }
    lock.release().await;
    let mut stored = 0;
    while let Some((answer, _)) = posts.next().await {
        stored += usize::from(answer.status() == 201);
    }
    assert!(stored > 0, "the transport accepted some events");
    assert_eq!(store.ids().await.len(), stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_a_hanging_database_uses_bounded_memory() {
    const EVENT_BYTES: usize = 100_000;
    const MIB: usize = 1 << 20;
    let store = Store::new(Kind::Postgres);
    let bounds = "transport.max_bytes = 16777216\nsources.web.max_pending_bytes = 16777216\n\
                  sources.web.receipt_timeout_ms = 2000";
    let eye = start_ready(&store, bounds).await;
    let before = eye.peak_bytes();
    let lock = store.lock().await;
    let mut large = new_event("large");
    large["data"] = json!("x".repeat(EVENT_BYTES));
    let body = json!(vec![large; 20]).to_string();
    let url = eye.url("/api/event/");
    // The clients send 6 times the bytes of both bounds.
    let clients = (0..32).map(|_| {
        let (client, url, body) = (eye.client().clone(), url.clone(), body.clone());
        async move {
            for _ in 0..3 {
                let request = client.post(&url).header("Content-Type", "application/json").body(body.clone());
                // An early answer may end the connection while the body is sent.
                if let Ok(answer) = request.send().await {
                    assert_eq!(answer.status(), 503);
                }
            }
        }
    });
    futures_util::future::join_all(clients).await;
    let grown = (eye.peak_bytes() - before) / MIB;
    lock.release().await;
    // Both bounds, events between the two, buffers of connections, a batch in flight, and the memory of the allocator.
    assert!(grown < 160, "{grown} MiB");
    eventually("an event is accepted", HANG, async || post(&eye, &new_event("good")).await.0 == 201).await;
}

/// A query reads several rows per step, whose sizes it does not know before.
#[tokio::test(flavor = "multi_thread")]
async fn page_of_large_events_uses_bounded_memory() {
    const MIB: usize = 1 << 20;
    for kind in ALL {
        let store = Store::new(kind);
        let mut eye = start_ready(&store, "").await;
        for _ in 0..25 {
            let large = || {
                let mut large = new_event("large");
                large["data"] = json!("x".repeat(MIB - 1000));
                large
            };
            assert_eq!(eye.post(json!([large(), large(), large(), large()])).await.0, 201, "{kind:?}");
        }
        block_in_place(|| {
            eye.kill();
            eye.restart();
        });
        let before = eye.peak_bytes();
        let answer = eye.client().get(eye.url("/api/event/?limit=1000")).send().await.unwrap();
        let bytes = answer.bytes().await.unwrap().len();
        assert!((14 * MIB..18 * MIB).contains(&bytes), "{kind:?}: {bytes} bytes");
        let grown = (eye.peak_bytes() - before) / MIB;
        // The page, its body, and the rows read ahead.
        assert!(grown < 80, "{kind:?}: {grown} MiB");
    }
}

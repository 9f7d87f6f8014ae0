//! `eye audit` and the books behind it: after whatever happens, every event is accounted for, and where one is not it is
//! found.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::thread;

use eye_harness::{Eye, eventually};
use serde_json::{Value, json};
use support::load::Load;
use support::store::{Kind, Store};
use support::{HANG, PROGRAM, config, event, start_ready};
use tokio::task::block_in_place;
use uuid::Uuid;

const DISK: &str = "transport.type = \"disk\"\ntransport.path = \"queue\"";

/// How `eye audit` ends, and what it says.
fn audit(url: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(PROGRAM);
    let folder = tempfile::tempdir().unwrap();
    command.args(["audit", "--url", url]).current_dir(folder.path()).env_remove("EYE_CONFIG").env_remove("RUST_LOG");
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// That the books balance, and what they are.
async fn balanced(eye: &Eye) -> Value {
    let (ended, stdout, stderr) = block_in_place(|| audit(&eye.url("/")));
    assert_eq!(ended, Some(0), "{stdout}{stderr}");
    assert!(stdout.ends_with("\nBalanced: every event is accounted for.\n"), "{stdout}");
    eye.get("/audit").await.1
}

fn numbers(book: &Value, names: &[&str]) -> Vec<u64> {
    names.iter().map(|name| book[name].as_u64().unwrap_or_else(|| panic!("{name} in {book}"))).collect()
}

fn of_source(books: &Value) -> Vec<u64> {
    numbers(&books["sources"]["web"], &["received", "accepted", "rejected", "failed", "waiting"])
}

fn of_sink(books: &Value) -> Vec<u64> {
    numbers(&books["sinks"]["store"], &["taken", "delivered", "rejected", "failed", "missing", "pending"])
}

/// Until the sink has, or its dead letters have, all that was taken.
async fn settled(eye: &Eye) -> Value {
    eventually("nothing is pending", HANG, async || eye.get("/audit").await.1["sinks"]["store"]["pending"] == 0).await;
    balanced(eye).await
}

fn good() -> Value {
    event(Uuid::new_v4(), "good")
}

fn duplicates(books: &Value) -> u64 {
    books["sinks"]["store"]["duplicates"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory_every_event_is_accounted_for() {
    let store = Store::own(Kind::Postgres);
    let eye = start_ready(&store, "writer.retry_for_ms = 100").await;
    assert_eq!(of_sink(&balanced(&eye).await), [0; 6], "nothing has happened yet");

    let twice = good();
    eye.post(json!([twice, good(), {"name": "no event"}, 7])).await;
    eye.post("not JSON").await;
    eye.post(&twice).await;
    let books = settled(&eye).await;
    assert_eq!(of_source(&books), [5, 3, 2, 0, 0]);
    assert_eq!((of_sink(&books), duplicates(&books)), (vec![3, 3, 0, 0, 0, 0], 1));
    let refusals = &books["sources"]["web"]["refusals"];
    assert_eq!((&refusals["body: Bad Request"], &refusals["session_id: missing"]), (&json!(1), &json!(1)), "{books}");

    store.refuse().await;
    eye.post(json!([good(), event(Uuid::new_v4(), "refused")])).await;
    let books = settled(&eye).await;
    assert_eq!((of_source(&books), of_sink(&books)), (vec![7, 4, 3, 0, 0], vec![5, 4, 1, 0, 0, 0]));
    assert_eq!(books["sources"]["web"]["refusals"]["event: refused by the sink"], 1);

    block_in_place(|| store.server().stop());
    assert_eq!(eye.post(good()).await.0, 503);
    let books = settled(&eye).await;
    assert_eq!((of_source(&books), of_sink(&books)), (vec![8, 4, 3, 1, 0], vec![6, 4, 1, 1, 0, 0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_queue_on_the_disk_every_event_is_accounted_for() {
    let store = Store::own(Kind::Postgres);
    let mut eye = start_ready(&store, &format!("{DISK}\nwriter.retry_for_ms = 100")).await;
    eventually("the table", HANG, async || eye.get("/api/event/").await.0 == 200).await;
    store.refuse().await;
    eye.post(json!([good(), {}, event(Uuid::new_v4(), "refused")])).await;
    let books = settled(&eye).await;
    assert_eq!((of_source(&books), of_sink(&books)), (vec![3, 2, 1, 0, 0], vec![2, 1, 1, 0, 0, 0]));

    block_in_place(|| store.server().stop());
    for _ in 0..10 {
        assert_eq!(eye.post(good()).await.0, 201);
    }
    eventually("it was tried", HANG, async || eye.get("/audit").await.1["sinks"]["store"]["failed"] != 0).await;
    let books = balanced(&eye).await;
    assert_eq!((of_source(&books)[1], &books["sinks"]["store"]["pending"]), (12, &json!(10)));

    // The books begin anew, with what is in the queue.
    block_in_place(|| eye.kill());
    eye.restart();
    assert_eq!(eye.post(good()).await.0, 201);
    let books = balanced(&eye).await;
    assert_eq!((of_source(&books), &books["sinks"]["store"]["delivered"]), (vec![1, 1, 0, 0, 0], &json!(0)));
    let taken = books["sinks"]["store"]["taken"].as_u64().unwrap();
    assert!((11..=13).contains(&taken), "the two that were settled may come again: {books}");
    assert_eq!(books["sinks"]["store"]["at_start"], taken - 1, "what was accepted since is the rest: {books}");

    block_in_place(|| store.server().restart());
    let books = settled(&eye).await;
    let rejected = books["sinks"]["store"]["rejected"].as_u64().unwrap();
    assert_eq!(books["sinks"]["store"]["delivered"], taken - rejected);
    assert_eq!(duplicates(&books), taken - rejected - 11, "{books}");
    assert_eq!(store.ids().await.len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_events_flow_and_after_kills_the_books_balance() {
    for settings in ["", DISK] {
        let store = Store::new(Kind::Sqlite);
        let mut eye = start_ready(&store, settings).await;
        let load = Load::start(&eye);
        for _ in 0..3 {
            load.progress(50).await;
            balanced(&eye).await;
            block_in_place(|| eye.kill());
            eye.restart();
            load.retarget(&eye);
        }
        load.progress(50).await;
        balanced(&eye).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_are_the_books() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "").await;
    eye.post(good()).await;
    settled(&eye).await;
    let answer = eye.client().get(eye.url("/metrics")).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.text().await.unwrap();
    for line in
        ["eye_source_events_accepted_total{source=\"web\"} 1", "eye_sink_events_delivered_total{sink=\"store\"} 1"]
    {
        assert!(text.lines().any(|it| it == line), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_are_405() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "").await;
    for path in ["/audit", "/metrics"] {
        let request = eye.client().post(eye.url(path));
        let answer = request.send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["allow"]),
            (405, &"GET, HEAD, OPTIONS".parse().unwrap())
        );
    }
}

/// A server that gives every request one answer after the other, then the last one for ever; where it is.
fn answering(answers: Vec<(u16, String)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (last, first) = answers.split_last().unwrap();
        for (status, body) in first.iter().chain(std::iter::repeat(last)) {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let length = body.len();
            let head = format!("HTTP/1.1 {status} It\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    url
}

fn books(delivered: u64) -> String {
    let source = json!({"received": 10, "accepted": 10, "rejected": 0, "failed": 0, "waiting": 0, "refusals": {}});
    let sink = json!({"taken": 10, "at_start": 0, "pending": 0, "missing": 0, "delivered": delivered, "duplicates": 0, "rejected": 0,
        "filtered": 0, "failed": 0, "retried": 0, "in_flight": 0});
    let transport = json!({"durable": true, "shared": false});
    let imbalance =
        format!("sinks.store: 10 taken, but {delivered} delivered + 0 rejected + 0 filtered + 0 missing + 0 pending");
    let imbalances: Vec<String> = (delivered != 10).then_some(imbalance).into_iter().collect();
    json!({"balanced": delivered == 10, "imbalances": imbalances, "sources": {"web": source}, "transport": transport,
        "sinks": {"store": sink}})
    .to_string()
}

#[test]
fn an_event_that_is_lost_is_found() {
    let (ended, stdout, stderr) = audit(&answering(vec![(200, books(9))]));
    assert_eq!(ended, Some(1), "{stdout}{stderr}");
    let equation = "sinks.store: 10 taken, but 9 delivered + 0 rejected + 0 filtered + 0 missing + 0 pending";
    assert!(stderr.contains("does not balance") && stderr.contains(equation), "{stderr}");
    assert!(stdout.contains("SINKS") && !stdout.contains("Balanced"), "{stdout}");
}

#[test]
fn books_that_balance_at_a_second_look_were_only_read_while_an_event_moved() {
    let (ended, stdout, stderr) = audit(&answering(vec![(200, books(9)), (200, books(10))]));
    assert_eq!(ended, Some(0), "{stdout}{stderr}");
}

#[test]
fn whoever_is_no_eye_has_no_books() {
    for answer in [(404, "{}".to_owned()), (200, "{}".to_owned()), (500, books(10))] {
        let (ended, _, stderr) = audit(&answering(vec![answer]));
        assert!(ended == Some(1) && stderr.contains("without a ledger: ask The Eye itself"), "{ended:?}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_url_the_configured_address_is_asked() {
    let store = Store::new(Kind::Sqlite);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = config(&store, &format!("server.listen = \"0.0.0.0:{port}\""));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("eye.toml"), &settings).unwrap();
    let ask = || {
        let mut command = Command::new(PROGRAM);
        command.arg("audit").current_dir(folder.path()).env_remove("EYE_CONFIG").output().unwrap()
    };
    let output = block_in_place(ask);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let says = format!("http://127.0.0.1:{port}/audit does not answer: start The Eye with this configuration");
    assert!(output.status.code() == Some(1) && stderr.contains(&says) && stderr.contains("--url"), "{stderr}");

    let eye = Eye::start(PROGRAM, &settings);
    eye.wait_ready().await;
    assert_eq!(block_in_place(ask).status.code(), Some(0));
}

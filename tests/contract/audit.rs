//! `eye audit`, `/audit` and `/metrics`: the event accounting balances after every fault, and finds a lost event.

use std::net::TcpListener;
use std::process::Output;

use eye_harness::{Eye, eventually};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::support::load::ClientLoad;
use crate::support::stand_in::answering;
use crate::support::store::{Kind, Store};
use crate::support::{DISK, HANG, command, config, new_event, program, start_ready, start_with_table};

/// Runs `eye audit` and returns its exit code, stdout and stderr.
fn audit(url: &str) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let Output { status, stdout, stderr } = command(folder.path(), &["audit", "--url", url]).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// Checks that the event accounting balances, and returns it.
async fn balanced(eye: &Eye) -> Value {
    let (code, stdout, stderr) = block_in_place(|| audit(&eye.url("/")));
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.ends_with("\nBalanced: every event is accounted for.\n"), "{stdout}");
    eye.get("/audit").await.1
}

fn numbers(component: &Value, names: &[&str]) -> Vec<u64> {
    names.iter().map(|name| component[name].as_u64().unwrap_or_else(|| panic!("{name} in {component}"))).collect()
}

fn source_counts(accounting: &Value) -> Vec<u64> {
    numbers(&accounting["sources"]["web"], &["received", "accepted", "rejected", "failed", "waiting"])
}

fn sink_counts(accounting: &Value) -> Vec<u64> {
    numbers(&accounting["sinks"]["store"], &["taken", "delivered", "rejected", "failed", "missing", "pending"])
}

/// Waits until no event of the sink is pending, and returns the event accounting.
async fn settled(eye: &Eye) -> Value {
    eventually("nothing is pending", HANG, async || eye.get("/audit").await.1["sinks"]["store"]["pending"] == 0).await;
    balanced(eye).await
}

fn good() -> Value {
    new_event("good")
}

fn duplicates(accounting: &Value) -> u64 {
    accounting["sinks"]["store"]["duplicates"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_transport_accounts_for_every_event() {
    let store = Store::own(Kind::Postgres);
    let eye = start_ready(&store, "writer.retry_for_ms = 100").await;
    assert_eq!(sink_counts(&balanced(&eye).await), [0; 6], "no event has arrived");

    let twice = good();
    eye.post(json!([twice, good(), {"name": "no event"}, 7])).await;
    eye.post("not JSON").await;
    eye.post(&twice).await;
    let accounting = settled(&eye).await;
    assert_eq!(source_counts(&accounting), [5, 3, 2, 0, 0]);
    assert_eq!((sink_counts(&accounting), duplicates(&accounting)), (vec![3, 3, 0, 0, 0, 0], 1));
    let refusals = &accounting["sources"]["web"]["refusals"];
    assert_eq!((&refusals["body: invalid"], &refusals["session_id: missing"]), (&json!(1), &json!(1)), "{accounting}");

    store.refuse().await;
    eye.post(json!([good(), new_event("refused")])).await;
    let accounting = settled(&eye).await;
    assert_eq!((source_counts(&accounting), sink_counts(&accounting)), (vec![7, 4, 3, 0, 0], vec![5, 4, 1, 0, 0, 0]));
    assert_eq!(accounting["sources"]["web"]["refusals"]["event: refused by the sink"], 1);

    block_in_place(|| store.server().stop());
    assert_eq!(eye.post(good()).await.0, 503);
    let accounting = settled(&eye).await;
    assert_eq!((source_counts(&accounting), sink_counts(&accounting)), (vec![8, 4, 3, 1, 0], vec![6, 4, 1, 1, 0, 0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_transport_accounts_for_every_event() {
    let store = Store::own(Kind::Postgres);
    let mut eye = start_with_table(&store, &format!("{DISK}\nwriter.retry_for_ms = 100")).await;
    store.refuse().await;
    eye.post(json!([good(), {}, new_event("refused")])).await;
    let accounting = settled(&eye).await;
    assert_eq!((source_counts(&accounting), sink_counts(&accounting)), (vec![3, 2, 1, 0, 0], vec![2, 1, 1, 0, 0, 0]));

    block_in_place(|| store.server().stop());
    for _ in 0..10 {
        assert_eq!(eye.post(good()).await.0, 201);
    }
    eventually("a write has failed", HANG, async || eye.get("/audit").await.1["sinks"]["store"]["failed"] != 0).await;
    let accounting = balanced(&eye).await;
    assert_eq!((source_counts(&accounting)[1], &accounting["sinks"]["store"]["pending"]), (12, &json!(10)));

    // A restart begins with the backlog of the queue.
    block_in_place(|| eye.kill());
    eye.restart();
    assert_eq!(eye.post(good()).await.0, 201);
    let accounting = balanced(&eye).await;
    assert_eq!(
        (source_counts(&accounting), &accounting["sinks"]["store"]["delivered"]),
        (vec![1, 1, 0, 0, 0], &json!(0))
    );
    let taken = accounting["sinks"]["store"]["taken"].as_u64().unwrap();
    assert!((11..=13).contains(&taken), "the two settled events may be delivered again: {accounting}");
    assert_eq!(
        accounting["sinks"]["store"]["at_start"],
        taken - 1,
        "one event was accepted since the start: {accounting}"
    );

    block_in_place(|| store.server().restart());
    let accounting = settled(&eye).await;
    let rejected = accounting["sinks"]["store"]["rejected"].as_u64().unwrap();
    assert_eq!(accounting["sinks"]["store"]["delivered"], taken - rejected);
    assert_eq!(duplicates(&accounting), taken - rejected - 11, "{accounting}");
    assert_eq!(store.ids().await.len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn accounting_balances_under_load_and_after_kills() {
    for settings in ["", DISK] {
        let store = Store::new(Kind::Sqlite);
        let mut eye = start_ready(&store, settings).await;
        let load = ClientLoad::start(&eye);
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
async fn metrics_equal_the_accounting() {
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
        assert!(text.lines().any(|shown| shown == line), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_answer_405() {
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

/// Runs `eye audit` on a server that gives these answers, each a status line and a body.
fn audit_answers(answers: Vec<(&str, String)>) -> (Option<i32>, String, String) {
    let (url, _requests) = answering(answers.iter().map(|(status, body)| format!("{status}|{body}")).collect());
    audit(&url)
}

fn accounting_body(delivered: u64) -> String {
    let source = json!({"received": 10, "accepted": 10, "rejected": 0, "failed": 0, "waiting": 0, "refusals": {}});
    let sink = json!({"taken": 10, "at_start": 0, "pending": 0, "missing": 0, "delivered": delivered, "duplicates": 0, "rejected": 0,
        "filtered": 0, "failed": 0, "retried": 0, "in_flight": 0});
    let transport = json!({"durable": true, "shared": false});
    let equation = format!("sinks.store: 10 taken, but {delivered} delivered");
    let imbalances = if delivered == 10 { json!([]) } else { json!([equation]) };
    json!({"balanced": delivered == 10, "imbalances": imbalances, "sources": {"web": source}, "transport": transport,
        "sinks": {"store": sink}})
    .to_string()
}

#[test]
fn lost_event_is_found() {
    let (code, stdout, stderr) = audit_answers(vec![("200 OK", accounting_body(9))]);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    let equation = "sinks.store: 10 taken, but 9 delivered";
    assert!(stderr.contains("does not balance") && stderr.contains(equation), "{stderr}");
    assert!(stdout.contains("SINKS") && !stdout.contains("Balanced"), "{stdout}");
}

#[test]
fn transient_difference_is_not_reported() {
    let (code, stdout, stderr) = audit_answers(vec![("200 OK", accounting_body(9)), ("200 OK", accounting_body(10))]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
}

#[test]
fn other_servers_are_rejected() {
    for answer in [
        ("404 Not Found", "{}".to_owned()),
        ("200 OK", "{}".to_owned()),
        ("500 Internal Server Error", accounting_body(10)),
    ] {
        let (code, _, stderr) = audit_answers(vec![answer]);
        assert!(code == Some(1) && stderr.contains("without a ledger: ask The Eye itself"), "{code:?}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_without_url_uses_the_configured_address() {
    let store = Store::new(Kind::Sqlite);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = config(&store, &format!("server.listen = \"0.0.0.0:{port}\""));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("eye.toml"), &settings).unwrap();
    let audit = || command(folder.path(), &["audit"]).output().unwrap();
    let output = block_in_place(audit);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let expected = format!("http://127.0.0.1:{port}/audit does not answer: start The Eye with this configuration");
    assert!(output.status.code() == Some(1) && stderr.contains(&expected) && stderr.contains("--url"), "{stderr}");

    let eye = Eye::start(program(), &settings);
    eye.wait_ready().await;
    assert_eq!(block_in_place(audit).status.code(), Some(0));
}

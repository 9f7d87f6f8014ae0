//! The program with its queue on the disk: what it answered with 201 is stored, once, whatever happens to it or to the
//! database.

use std::time::Duration;

use crate::support::{SLOWER, median_time};
use eye_harness::{Database, Eye, Postgres, Server, eventually};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_eye");
const DEADLINE: Duration = Duration::from_secs(60);

fn config(database: &Database) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[sources.web]\ntype = \"http\"\n\
         [transport]\ntype = \"disk\"\npath = \"queue\"\n\
         [sinks.store]\ntype = \"postgres\"\nurl = \"{}\"\n",
        database.url
    )
}

fn event(session: &str, n: usize) -> Value {
    json!({"session_id": session, "category": "c", "name": n.to_string(), "data": n, "timestamp": "2021-01-01"})
}

/// `/readyz` speaks of the queue: whether the sink is there is one line of it.
async fn until_sink_is(eye: &Eye, state: &str) {
    eventually("the sink's state", DEADLINE, async || {
        let (status, body) = eye.get("/readyz").await;
        assert_eq!((status, &body["status"]), (200, &json!("ok")), "it takes events whether the sink is there or not");
        let components = body["components"].as_array().unwrap();
        components.iter().any(|it| it["name"] == "sinks.store" && it["state"] == state)
    })
    .await;
}

/// What is stored, sorted, with every event as often as it is there: session and name.
fn stored(server: &Server, database: &Database) -> Vec<String> {
    let rows = server.sql(&database.name, "SELECT session_id || '/' || name FROM event");
    let mut rows: Vec<String> = rows.lines().map(str::to_owned).collect();
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_events_are_taken_at_speed_and_stored_when_it_is_back() {
    let server = Postgres::start();
    let database = server.create_database();
    let mut eye = Eye::start(PROGRAM, &config(&database));
    until_sink_is(&eye, "ready").await;
    let before = median_time(&eye, (0..200).map(|n| event("before", n))).await;
    eventually("they are stored", DEADLINE, async || stored(&server, &database).len() == 200).await;
    server.stop();

    let away = median_time(&eye, (0..500).map(|n| event("away", n))).await;
    assert!(away < before * SLOWER, "{away:?}, {before:?} before");
    until_sink_is(&eye, "unavailable").await;

    // It stops cleanly with all that in its queue, and starts without the database.
    assert_eq!(eye.terminate(DEADLINE), Some(0));
    eye.restart();
    assert_eq!(eye.post(event("restarted", 0)).await.0, 201);

    server.restart();
    eventually("all is stored", DEADLINE, async || stored(&server, &database).len() == 701).await;
    assert_eq!(eye.terminate(DEADLINE), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_program_on_the_same_queue_does_not_start() {
    let server = Postgres::shared();
    let database = server.create_database();
    let eye = Eye::start(PROGRAM, &config(&database));
    let file = eye.folder().join("eye.toml");
    let mut second = std::process::Command::new(PROGRAM);
    let output = second.args(["run", "--config"]).arg(file).current_dir(eye.folder()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("transport: cannot open the queue") && said.contains("another process"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_cannot_be_written_acknowledges_nothing_and_stops_the_program() {
    let server = Postgres::shared();
    let mut eye = Eye::start(PROGRAM, &config(&server.create_database()));
    until_sink_is(&eye, "ready").await;
    std::fs::remove_dir_all(eye.folder().join("queue")).unwrap();
    assert_eq!(eye.post(event("lost", 0)).await.0, 503);
    assert_eq!(eye.wait_end(DEADLINE), Some(1));
    assert!(eye.logs().contains("transport: cannot write"), "{}", eye.logs());
    eye.restart();
    assert_eq!(eye.post(event("taken", 0)).await.0, 201);
}

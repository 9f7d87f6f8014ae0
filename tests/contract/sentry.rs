//! Reports to Sentry, and the absence of event data and secrets in reports and logs.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use eye_harness::{Eye, SentryServer, event_text, eventually};
use serde_json::{Value, json};

use crate::support::program;

const SQLITE: &str = "[sinks.store]\ntype = \"sqlite\"\nurl = \"sqlite://eye.db\"\n";

/// A deadline longer than every shutdown here, and shorter than a wait for a hanging Sentry server.
const PROMPT: Duration = Duration::from_secs(6);

fn config(listen: &str, sink: &str, dsn: &str) -> String {
    format!(
        "[server]\nlisten = \"{listen}\"\n[sources.web]\ntype = \"http\"\n{sink}\
         [sentry]\ndsn = \"{dsn}\"\nenvironment = \"test\"\n"
    )
}

fn whole() -> Value {
    let mut event = without_name();
    event["name"] = json!("confidential");
    event
}

/// Returns an event that is valid except for its missing `name`.
fn without_name() -> Value {
    json!({"session_id": "confidential", "category": "confidential", "data": "confidential", "timestamp": "2021-01-01"})
}

#[tokio::test]
async fn refused_events_are_reported_by_kind_without_data() {
    let server = SentryServer::start();
    let mut eye = Eye::start(program(), &config("127.0.0.1:0", SQLITE, &server.dsn()));
    eye.wait_ready().await;
    assert_eq!(eye.post(whole()).await.0, 201);
    assert_eq!(eye.post(json!([whole(), without_name(), without_name()])).await.0, 200);
    assert_eq!(eye.post(without_name()).await.0, 400);
    assert_eq!(eye.post("{\"confidential\"").await.0, 400);
    assert_eq!(eye.terminate(PROMPT), Some(0));

    let mut reported: Vec<_> = server
        .events()
        .iter()
        .map(|event| {
            let fields = &event["contexts"]["Rust Tracing Fields"];
            assert_eq!(fields["component"], "sources.web", "{event:#}");
            assert_eq!(event["environment"], "test");
            (event_text(event).to_owned(), fields["count"].as_u64().unwrap())
        })
        .collect();
    reported.sort();
    // Refusals after the first report are counted and reported at the end.
    let expected = [("refused: body: invalid", 1), ("refused: name: missing", 1), ("refused: name: missing", 2)];
    assert_eq!(reported, expected.map(|(text, count)| (text.to_owned(), count)));
    let logs = eye.logs();
    for output in [&logs, &format!("{:?}", server.events())] {
        assert!(!output.contains("confidential"), "{output}");
        assert!(!output.contains(SentryServer::KEY), "{output}");
    }
    for line in logs.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    }
}

#[tokio::test]
async fn hanging_sentry_server_delays_nothing() {
    let server = SentryServer::start_hanging();
    let mut eye = Eye::start(program(), &config("127.0.0.1:0", SQLITE, &server.dsn()));
    eye.wait_ready().await;
    for _ in 0..50 {
        assert_eq!(eye.post(without_name()).await.0, 400);
        assert_eq!(eye.post(whole()).await.0, 201);
    }
    assert_eq!(eye.terminate(PROMPT), Some(0));
}

#[test]
fn failed_start_is_reported_without_secrets() {
    let server = SentryServer::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let sink = "[sinks.store]\ntype = \"postgres\"\nurl = \"postgres://eye:hushhush@127.0.0.1:1/eye\"\n";
    let config = config(&taken.local_addr().unwrap().to_string(), sink, &server.dsn());
    let (code, output) = run("run", &config);
    assert_eq!(code, Some(1), "{output}");
    let events = server.events();
    let [event] = &events[..] else { panic!("{events:#?}\n{output}") };
    assert_eq!(event["release"], concat!("eye@", env!("CARGO_PKG_VERSION")));
    assert!(output.contains(event_text(event)), "{output}");
    for secret in ["hushhush", SentryServer::KEY] {
        assert!(!output.contains(secret), "{output}");
        assert!(!events[0].to_string().contains(secret), "{event:#}");
    }
}

#[tokio::test]
async fn unavailable_database_is_logged_without_its_password() {
    let sink = "[sinks.store]\ntype = \"postgres\"\nurl = \"postgres://eye:hushhush@127.0.0.1:1/eye\"\n";
    let mut eye = Eye::start(program(), &config("127.0.0.1:0", sink, ""));
    eventually("the outage is logged", Duration::from_secs(30), async || eye.logs().contains("unavailable")).await;
    eye.terminate(PROMPT);
    assert!(!eye.logs().contains("hushhush"), "{}", eye.logs());
}

#[test]
fn configuration_errors_show_no_secret() {
    let sink = "[sinks.store]\ntype = \"postgres\"\nurl = \"postgre://eye:hushhush@127.0.0.1:1/eye\"\n";
    let (code, output) = run("check", &config("127.0.0.1:0", sink, "sentry.example/hushhush"));
    assert_eq!(code, Some(78), "{output}");
    assert!(output.contains("sentry.dsn: not a Sentry DSN"), "{output}");
    assert!(!output.contains("hushhush"), "{output}");
}

#[test]
fn closed_stderr_does_not_change_the_exit_code() {
    let mut program = Command::new(program());
    program.args(["check", "--config", "/nonexistent/eye.toml"]).stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(78));
}

/// Runs a command with all log messages and returns exit code and output.
fn run(command: &str, config: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("eye.toml");
    fs::write(&file, config).unwrap();
    let mut program = Command::new(program());
    program.arg(command).arg("--config").arg(&file).current_dir(folder.path()).env("RUST_LOG", "trace");
    let output = program.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

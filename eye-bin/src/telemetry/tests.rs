//! Logs and reports of a whole process. Each test starts [`child`] as one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::env;
use std::io::{self, BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use eye_core::refusals::{Refusal, Refusals};
use eye_harness::{SentryServer, event_text};
use serde_json::Value;

use super::*;

const SCENE: &str = "EYE_TEST_SCENE";
const DSN: &str = "EYE_TEST_DSN";

/// Lines that exceed the log's queue, Sentry's queue and a pipe.
const FLOOD: usize = 20_000;

/// Far less than a wait for Sentry or stderr, and more than a busy machine needs.
const AT_ONCE: Duration = Duration::from_millis(1500);

#[test]
#[ignore = "the other tests start it"]
fn child() {
    let Ok(scene) = env::var(SCENE) else { return };
    let _logs = start_logs(LogFormat::Json).unwrap();
    let dsn = env::var(DSN).ok().map(|dsn| dsn.parse().unwrap());
    let guard = start_sentry(&SentryConfig { dsn, environment: "staging".to_owned() });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match scene.as_str() {
        "errors" => runtime.block_on(async {
            tracing::debug!("a debug line");
            tracing::info!("an info line");
            tracing::warn!("a warning");
            let error = io::Error::other("disk gone");
            let on_worker = async move { tracing::error!(component = "sinks.store", attempt = 3, %error, "it failed") };
            tokio::spawn(on_worker).await.unwrap();
        }),
        "panic" => {
            let panicking = async { panic!("no such luck: {}", 7) };
            assert!(runtime.block_on(runtime.spawn(panicking)).is_err());
        }
        "refusals" => runtime.block_on(async {
            let refusals = Refusals::new("sources.web");
            refusals.note(vec![Refusal { part: "timestamp", problem: "missing" }; 3]);
            refusals.note(vec![Refusal { part: "timestamp", problem: "missing" }; 5]);
            refusals.note([Refusal { part: "body", problem: "too large" }]);
        }),
        "flood" => {
            flood();
            let started = Instant::now();
            drop(guard);
            println!("flushed in {} ms", started.elapsed().as_millis());
        }
        "flood with a late reader" => {
            flood();
            // Until the reader has caught up.
            for _ in 0..30 {
                flush_logs();
            }
        }
        "flood and panic" => {
            flood();
            let panic = || assert!(runtime.block_on(runtime.spawn(async { panic!("one more") })).is_err());
            // The first panic reads the program's symbols, which is slow in a test binary.
            panic();
            let started = Instant::now();
            panic();
            println!("panicked in {} ms", started.elapsed().as_millis());
        }
        other => panic!("no scene `{other}`"),
    }
}

/// Logs many lines and prints the time of the slowest.
fn flood() {
    let line = |number| {
        let started = Instant::now();
        tracing::error!(number, "a line of some length, so that a pipe that nobody reads is soon full of them");
        started.elapsed()
    };
    let slowest = (0..FLOOD).map(line).max().unwrap();
    println!("slowest line in {} ms", slowest.as_millis());
}

fn command(scene: &str, dsn: Option<&str>) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "telemetry::tests::child", "--ignored", "--nocapture"]);
    command.env(SCENE, scene).env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
    command.envs(dsn.map(|dsn| (DSN, dsn)));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the scene to its success and returns its stdout and stderr.
fn run(scene: &str, dsn: Option<&str>) -> (String, String) {
    output(command(scene, dsn).spawn().unwrap())
}

fn output(child: Child) -> (String, String) {
    let output = child.wait_with_output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "{stdout}");
    (stdout, stderr)
}

fn lines(stderr: &str) -> Vec<Value> {
    stderr.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
}

/// Parses the number in `WHAT in N ms`.
fn duration(stdout: &str, what: &str) -> Duration {
    let (_, rest) = stdout.split_once(&format!("{what} in ")).unwrap_or_else(|| panic!("no `{what}`: {stdout}"));
    Duration::from_millis(rest.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn log_lines_are_json_with_level_message_and_fields() {
    let (_, stderr) = run("errors", None);
    let lines = lines(&stderr);
    let shown: Vec<_> = lines.iter().map(|line| [&line["level"], &line["fields"]["message"]]).collect();
    assert_eq!(shown, [["INFO", "an info line"], ["WARN", "a warning"], ["ERROR", "it failed"]]);
    assert_eq!(lines[2]["fields"]["attempt"], 3);
}

#[test]
fn error_is_reported_with_fields_and_environment() {
    let server = SentryServer::start();
    let (stdout, stderr) = run("errors", Some(&server.dsn()));
    let events = server.events();
    let [event] = &events[..] else { panic!("{events:#?}") };
    assert_eq!(event_text(event), "it failed");
    // Sentry's default level is `error`.
    assert_eq!(event["level"], Value::Null);
    assert_eq!(event["release"], concat!("eye@", env!("CARGO_PKG_VERSION")));
    assert_eq!(event["environment"], "staging");
    let fields = &event["contexts"]["Rust Tracing Fields"];
    assert_eq!(fields["component"], "sinks.store");
    assert_eq!(fields["attempt"], 3);
    assert_eq!(fields["error"], "disk gone");
    assert!(event["breadcrumbs"]["values"].as_array().is_none_or(Vec::is_empty), "{event:#}");
    assert!(!(stdout + &stderr).contains(SentryServer::KEY));
}

#[test]
fn panic_is_logged_as_json_and_reported_once() {
    let server = SentryServer::start();
    let (_, stderr) = run("panic", Some(&server.dsn()));
    let events = server.events();
    let [event] = &events[..] else { panic!("{events:#?}") };
    assert_eq!(event_text(event), "no such luck: 7");
    assert_eq!(event["level"], "fatal");
    assert!(event["exception"]["values"][0]["stacktrace"]["frames"].is_array(), "{event:#}");
    let lines = lines(&stderr);
    let [line] = &lines[..] else { panic!("{stderr}") };
    assert_eq!(line["fields"]["message"], "panicked: no such luck: 7");
    assert!(line["fields"]["location"].as_str().unwrap().contains("telemetry/tests.rs:"), "{line}");
}

#[test]
fn refusals_are_reported_by_kind_with_their_counts() {
    let server = SentryServer::start();
    run("refusals", Some(&server.dsn()));
    let mut reported: Vec<_> = server
        .events()
        .iter()
        .map(|event| {
            assert_eq!(event["level"], "warning");
            let fields = &event["contexts"]["Rust Tracing Fields"];
            assert_eq!(fields["component"], "sources.web");
            (event_text(event).to_owned(), fields["count"].as_u64().unwrap())
        })
        .collect();
    reported.sort();
    let expected =
        [("refused: body: too large", 1), ("refused: timestamp: missing", 3), ("refused: timestamp: missing", 5)];
    assert_eq!(reported, expected.map(|(text, count)| (text.to_owned(), count)));
}

#[test]
fn hanging_or_unavailable_sentry_server_slows_nothing() {
    let hanging = SentryServer::start_hanging().dsn();
    let closed_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let unavailable = format!("http://{}@127.0.0.1:{closed_port}/42", SentryServer::KEY);
    let tls = format!("https://{}@localhost:{closed_port}/42", SentryServer::KEY);
    for dsn in [hanging, unavailable, tls] {
        let mut child = command("flood", Some(&dsn)).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = String::new();
        child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        assert!(child.wait().unwrap().success(), "{stdout}");
        assert!(duration(&stdout, "slowest line") < AT_ONCE, "{stdout}");
        assert!(duration(&stdout, "flushed") < Duration::from_millis(2500), "{stdout}");
    }
}

#[test]
fn panic_does_not_wait_for_a_hanging_sentry_server() {
    let (stdout, _) = run("flood and panic", Some(&SentryServer::start_hanging().dsn()));
    assert!(duration(&stdout, "panicked") < AT_ONCE, "{stdout}");
}

#[test]
fn https_dsn_uses_tls() {
    // The server speaks no TLS; the first bytes show that the client does.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dsn = format!("https://{}@localhost:{}/42", SentryServer::KEY, listener.local_addr().unwrap().port());
    let hello = thread::spawn(move || {
        let mut first = [0; 2];
        listener.accept().unwrap().0.read_exact(&mut first).unwrap();
        first
    });
    let (_, stderr) = run("errors", Some(&dsn));
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(hello.join().unwrap(), [0x16, 3], "a TLS handshake");
}

#[test]
fn unread_stderr_blocks_nothing() {
    let mut child = command("flood", None).spawn().unwrap();
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert!(duration(&stdout, "slowest line") < AT_ONCE, "{stdout}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn closed_stderr_stops_nothing() {
    let mut child = command("flood", None).spawn().unwrap();
    drop(child.stderr.take());
    output(child);
}

#[test]
fn lost_lines_are_counted() {
    let mut child = command("flood with a late reader", None).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("slowest line") {
        line.clear();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the scene ended early");
    }
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(child.wait().unwrap().success());
    let lines = lines(&stderr);
    let lost: u64 = lines.iter().filter_map(|line| line["fields"]["lines"].as_u64()).sum();
    let shown = lines.iter().filter(|line| line["fields"]["number"].is_u64()).count();
    assert!(lost > 0 && shown > 0);
    assert_eq!(shown + lost as usize, FLOOD);
}

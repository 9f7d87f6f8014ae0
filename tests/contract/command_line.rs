//! The built program as its operators meet it: exit codes, messages, and no secrets in them.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::store::{ALL, SERVERS, Store};
use crate::support::{HANG, PROGRAM, config, event, post, readyz, start};
use eye_harness::{PASSWORD, eventually};
use tempfile::TempDir;
use tokio::task::block_in_place;
use uuid::Uuid;

/// What the program says and how it ends, in an empty folder with `config` as its `eye.toml`.
fn eye_in(folder: &Path, config: Option<&str>, arguments: &[&str]) -> (Option<i32>, String, String) {
    if let Some(config) = config {
        fs::write(folder.join("eye.toml"), config).unwrap();
    }
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(folder).env_remove("EYE_CONFIG").env("RUST_LOG", "trace");
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn eye(config: Option<&str>, arguments: &[&str]) -> (Option<i32>, String, String) {
    eye_in(TempDir::new().unwrap().path(), config, arguments)
}

const SQLITE: &str = "server.listen = \"127.0.0.1:0\"\nsources.web.type = \"http\"\nsinks.store.type = \"sqlite\"\n";

#[test]
fn exit_codes_tell_usage_and_configuration_from_failure() {
    let misspelt = format!("{SQLITE}sinks.store.ulr = \"sqlite://eye.db\"\n");
    for (config, arguments, code, says) in [
        (Some(SQLITE), &["check"][..], 0, "ok"),
        (Some(&*misspelt), &["check"], 78, "eye.toml:4:13: sinks.store.ulr: unknown key; did you mean `url`?"),
        (Some(&misspelt), &["run"], 78, "did you mean `url`?"),
        (Some(&misspelt), &["migrate"], 78, "did you mean `url`?"),
        (None, &["check", "--config", "missing.toml"], 78, "missing.toml"),
        (None, &["run", "--config", "missing.toml"], 78, "missing.toml"),
        (None, &["--no-such-flag"], 2, "--no-such-flag"),
        (None, &["serve"], 2, "serve"),
        (None, &["--version"], 0, env!("CARGO_PKG_VERSION")),
        (None, &["--help"], 0, "Exit codes: 0 success, 1 failure, 2 wrong usage, 78 wrong configuration."),
    ] {
        let (ended, stdout, stderr) = eye(config, arguments);
        assert_eq!(ended, Some(code), "{arguments:?}: {stderr}");
        let said = if code == 0 { stdout } else { stderr };
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
}

#[test]
fn a_stdout_that_takes_nothing_is_a_failure() {
    for argument in ["check", "migrate"] {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("eye.toml"), SQLITE).unwrap();
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(PROGRAM).arg(argument).current_dir(folder.path()).stdout(full).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{argument}: {stderr}");
        assert!(stderr.contains("cannot write to stdout") && !stderr.contains("panicked"), "{argument}: {stderr}");
    }
}

#[test]
fn a_busy_port_is_a_failure_that_says_what_to_do_and_leaves_no_database() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = busy.local_addr().unwrap().to_string();
    let folder = TempDir::new().unwrap();
    let (ended, _, stderr) = eye_in(folder.path(), Some(&SQLITE.replace("127.0.0.1:0", &listen)), &[]);
    assert_eq!(ended, Some(1), "{stderr}");
    let says = format!("server.listen: cannot listen on `{listen}`");
    assert!(stderr.contains(&says) && stderr.contains("Stop the program that uses the port"), "{stderr}");
    assert!(!folder.path().join("eye-data").exists(), "the port is tried first");
}

#[test]
fn a_place_where_sqlite_cannot_be_is_a_failure_that_names_it() {
    for arguments in [&["run"][..], &["migrate"]] {
        let folder = TempDir::new().unwrap();
        // In the way of the folder: this stops even root, whom no rights stop.
        fs::write(folder.path().join("eye-data"), "a file").unwrap();
        let (ended, _, stderr) = eye_in(folder.path(), Some(SQLITE), arguments);
        assert_eq!(ended, Some(1), "{stderr}");
        assert!(
            stderr.contains("sinks.store") && stderr.contains("cannot open the database eye-data/eye.db"),
            "{stderr}"
        );
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("eye-data")).unwrap();
    fs::write(folder.path().join("eye-data/eye.db"), "no database, but long enough to be taken for one".repeat(100))
        .unwrap();
    let (ended, _, stderr) = eye_in(folder.path(), Some(SQLITE), &["run"]);
    assert_eq!(ended, Some(1), "{stderr}");
    assert!(stderr.contains("eye-data/eye.db") && stderr.contains("not a database"), "{stderr}");
}

#[test]
fn what_sqlite_stores_is_for_its_owner_alone() {
    let folder = TempDir::new().unwrap();
    assert_eq!(eye_in(folder.path(), Some(SQLITE), &["migrate"]).0, Some(0));
    let mode = |path| fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("eye-data"), mode("eye-data/eye.db")), (0o700, 0o600));
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_makes_the_table_and_says_so_as_often_as_it_is_asked() {
    for kind in ALL {
        let store = Store::new(kind);
        for _ in 0..2 {
            let (ended, stdout, stderr) = block_in_place(|| eye(Some(&config(&store, "")), &["migrate"]));
            assert_eq!((ended, &*stdout), (Some(0), "sinks.store: up to date\n"), "{kind:?}: {stderr}");
            assert_eq!(store.ids().await.len(), 0, "{kind:?}");
        }
        let eye = start(&store, "");
        eye.wait_ready().await;
        assert_eq!(post(&eye, &event(Uuid::new_v4(), "good")).await.0, 201, "{kind:?}");
        assert!(!eye.logs().contains("Applying"), "{kind:?}: {}", eye.logs());
    }
}

/// A port that nobody listens on.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn migrate_fails_with_the_place_but_no_password_when_the_database_is_away() {
    for scheme in ["postgres", "mysql"] {
        let port = closed_port();
        let url = format!("{scheme}://eye:{PASSWORD}@127.0.0.1:{port}/eye");
        let config =
            format!("sources.web.type = \"http\"\nsinks.store.type = \"{scheme}\"\nsinks.store.url = \"{url}\"\n");
        let (ended, stdout, stderr) = eye(Some(&config), &["migrate"]);
        assert_eq!((ended, &*stdout), (Some(1), ""), "{stderr}");
        let place = format!("127.0.0.1:{port}");
        assert!(stderr.contains("sinks.store: not migrated") && stderr.contains(&place), "{stderr}");
        assert!(!stderr.contains(PASSWORD), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_in_no_log_and_no_answer() {
    for kind in SERVERS {
        let store = Store::new(kind);
        let hush = "hush-hush%40hush";
        let wrong = store.url.replace(PASSWORD, hush);
        let place = store.url.rsplit_once('@').unwrap().1;
        let away = store.url.replace(place, &format!("127.0.0.1:{}/eye", closed_port()));
        for (url, ready) in [(&wrong, false), (&away, false), (&store.url, true)] {
            // A shell in between, because the harness passes no RUST_LOG on.
            let folder = TempDir::new().unwrap();
            let program = folder.path().join("eye");
            fs::write(&program, format!("#!/bin/sh\nRUST_LOG=trace exec '{PROGRAM}' \"$@\"\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
            let text = config(&store, "").replace(&store.url, url);
            let mut eye = eye_harness::Eye::start(&program, &text);
            let expected = if ready { "ready" } else { "unavailable" };
            eventually("the state is known", HANG, async || {
                readyz(&eye).await.1["components"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|component| component["name"] == "sinks.store" && component["state"] == expected)
            })
            .await;
            let mut said = readyz(&eye).await.1.to_string();
            said += &eye.post(event(Uuid::new_v4(), "good")).await.1.to_string();
            said += &eye.get("/api/event/").await.1.to_string();
            block_in_place(|| eye.terminate(HANG));
            said += &eye.logs();
            assert!(ready || said.contains("\"DEBUG\""), "not even RUST_LOG shows more: {said}");
            for secret in [PASSWORD, "hush"] {
                assert!(!said.contains(secret), "{kind:?}: {said}");
            }
        }
    }
}

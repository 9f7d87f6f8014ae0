//! The command line: exit codes, messages, and the absence of secrets.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use eye_harness::{Eye, PASSWORD};
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::support::store::{ALL, SERVERS, Store};
use crate::support::{HANG, command, config, new_event, post, program, readyz, start, until_sink_is};

/// Runs the program in `folder` with `config` as its `eye.toml`. Returns exit code, stdout and stderr.
fn eye_in(folder: &Path, config: Option<&str>, arguments: &[&str]) -> (Option<i32>, String, String) {
    if let Some(config) = config {
        fs::write(folder.join("eye.toml"), config).unwrap();
    }
    let Output { status, stdout, stderr } = command(folder, arguments).env("RUST_LOG", "trace").output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn eye(config: Option<&str>, arguments: &[&str]) -> (Option<i32>, String, String) {
    eye_in(TempDir::new().unwrap().path(), config, arguments)
}

const SQLITE: &str = "server.listen = \"127.0.0.1:0\"\nsources.web.type = \"http\"\nsinks.store.type = \"sqlite\"\n";

#[test]
fn exit_codes_distinguish_usage_and_configuration() {
    let misspelt = format!("{SQLITE}sinks.store.ulr = \"sqlite://eye.db\"\n");
    for (config, arguments, code, expected) in [
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
        let output = if code == 0 { stdout } else { stderr };
        assert!(output.contains(expected), "{arguments:?}: {output}");
    }
}

#[test]
fn full_stdout_is_a_failure() {
    for argument in ["check", "migrate"] {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("eye.toml"), SQLITE).unwrap();
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command(folder.path(), &[argument]).stdout(full).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{argument}: {stderr}");
        assert!(stderr.contains("cannot write to stdout") && !stderr.contains("panicked"), "{argument}: {stderr}");
    }
}

#[test]
fn busy_port_is_a_failure_and_creates_no_database() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = busy.local_addr().unwrap().to_string();
    let folder = TempDir::new().unwrap();
    let (ended, _, stderr) = eye_in(folder.path(), Some(&SQLITE.replace("127.0.0.1:0", &listen)), &[]);
    assert_eq!(ended, Some(1), "{stderr}");
    let expected = format!("server.listen: cannot listen on `{listen}`");
    assert!(stderr.contains(&expected) && stderr.contains("Stop the program that uses the port"), "{stderr}");
    assert!(!folder.path().join("eye-data").exists(), "the port is bound first");
}

#[test]
fn unusable_sqlite_path_is_a_failure_with_the_path() {
    for arguments in [&["run"][..], &["migrate"]] {
        let folder = TempDir::new().unwrap();
        // A file instead of the folder stops even root, who needs no permissions.
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
fn sqlite_files_are_private_to_their_owner() {
    let folder = TempDir::new().unwrap();
    assert_eq!(eye_in(folder.path(), Some(SQLITE), &["migrate"]).0, Some(0));
    let mode = |path| fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("eye-data"), mode("eye-data/eye.db")), (0o700, 0o600));
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_can_be_repeated() {
    for kind in ALL {
        let store = Store::new(kind);
        for _ in 0..2 {
            let (ended, stdout, stderr) = block_in_place(|| eye(Some(&config(&store, "")), &["migrate"]));
            assert_eq!((ended, &*stdout), (Some(0), "sinks.store: up to date\n"), "{kind:?}: {stderr}");
            assert_eq!(store.ids().await.len(), 0, "{kind:?}");
        }
        let eye = start(&store, "");
        eye.wait_ready().await;
        assert_eq!(post(&eye, &new_event("good")).await.0, 201, "{kind:?}");
        assert!(!eye.logs().contains("Applying"), "{kind:?}: {}", eye.logs());
    }
}

/// Returns a port without a listener.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn failed_migrate_shows_the_address_but_no_password() {
    for scheme in ["postgres", "mysql"] {
        let port = closed_port();
        let url = format!("{scheme}://eye:{PASSWORD}@127.0.0.1:{port}/eye");
        let config =
            format!("sources.web.type = \"http\"\nsinks.store.type = \"{scheme}\"\nsinks.store.url = \"{url}\"\n");
        let (ended, stdout, stderr) = eye(Some(&config), &["migrate"]);
        assert_eq!((ended, &*stdout), (Some(1), ""), "{stderr}");
        let address = format!("127.0.0.1:{port}");
        assert!(stderr.contains("sinks.store: not migrated") && stderr.contains(&address), "{stderr}");
        assert!(!stderr.contains(PASSWORD), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn password_is_in_no_log_and_no_answer() {
    for kind in SERVERS {
        let store = Store::new(kind);
        let wrong = store.url.replace(PASSWORD, "hush-hush%40hush");
        let address = store.url.rsplit_once('@').unwrap().1;
        let unavailable = store.url.replace(address, &format!("127.0.0.1:{}/eye", closed_port()));
        for (url, ready) in [(&wrong, false), (&unavailable, false), (&store.url, true)] {
            // The harness removes RUST_LOG, so a shell script sets it.
            let folder = TempDir::new().unwrap();
            let script = folder.path().join("eye");
            let line = format!("#!/bin/sh\nRUST_LOG=trace exec '{}' \"$@\"\n", program().display());
            fs::write(&script, line).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
            let text = config(&store, "").replace(&store.url, url);
            let mut eye = Eye::start(&script, &text);
            let expected = if ready { "ready" } else { "unavailable" };
            until_sink_is(&eye, expected).await;
            let mut output = readyz(&eye).await.1.to_string();
            output += &eye.post(new_event("good")).await.1.to_string();
            output += &eye.get("/api/event/").await.1.to_string();
            block_in_place(|| eye.terminate(HANG));
            output += &eye.logs();
            assert!(ready || output.contains("\"DEBUG\""), "RUST_LOG has no effect: {output}");
            for secret in [PASSWORD, "hush"] {
                assert!(!output.contains(secret), "{kind:?}: {output}");
            }
        }
    }
}

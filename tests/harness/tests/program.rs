//! The built program, replaced by a shell script: start, requests, end and restart.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use eye_harness::Eye;
use serde_json::json;

const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand-in.sh");
const DEADLINE: Duration = Duration::from_secs(10);

/// Returns a configuration that the stand-in logs, so that it seems to listen at `address`.
fn listening(address: &str) -> String {
    format!("a line that is not JSON\n{}\n", json!({"fields": {"message": "listening", "address": address}}))
}

#[test]
fn terminate_returns_the_exit_code() {
    let mut eye = Eye::start(STAND_IN, &listening("127.0.0.1:1"));
    assert_eq!(eye.url("/livez"), "http://127.0.0.1:1/livez");
    assert_eq!(eye.terminate(DEADLINE), Some(3));
}

#[test]
fn wait_end_returns_the_exit_code() {
    let mut eye = Eye::start(STAND_IN, &listening("127.0.0.1:1"));
    assert_eq!(eye.wait_end(Duration::ZERO), None);
    fs::write(eye.folder().join("end"), "").expect("the test owns the folder");
    assert_eq!(eye.wait_end(DEADLINE), Some(4));
}

#[test]
fn killed_program_restarts_in_its_folder() {
    let mut eye = Eye::start(STAND_IN, &listening("127.0.0.1:1"));
    eye.kill();
    eye.restart();
    assert_eq!(eye.logs().matches("not JSON").count(), 2);
}

#[test]
fn dropped_program_leaves_nothing() {
    let eye = Eye::start(STAND_IN, &listening("127.0.0.1:1"));
    let folder = eye.folder().to_owned();
    assert!(folder.join("eye.toml").exists());
    drop(eye);
    assert!(!folder.exists());
}

#[test]
#[should_panic(expected = "its log:\n/bin/cat: unrecognized option")]
fn failed_start_panics_with_the_log() {
    Eye::start("/bin/cat", "");
}

#[tokio::test]
async fn get_and_post_return_status_and_json() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let server = std::thread::spawn(move || {
        ["GET /readyz ", "GET /api/event/?limit=1 ", "POST /api/event/ "].map(|expected| {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 4096];
            let length = stream.read(&mut request).expect("a request");
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n{\"count\": 17}";
            stream.write_all(answer.as_bytes()).expect("it listens");
            String::from_utf8_lossy(&request[..length]).starts_with(expected)
        })
    });
    let eye = Eye::start(STAND_IN, &listening(&address.to_string()));
    eye.wait_ready().await;
    assert_eq!(eye.get("/api/event/?limit=1").await, (200, json!({"count": 17})));
    assert_eq!(eye.post(json!({"name": "click"})).await, (200, json!({"count": 17})));
    assert_eq!(server.join().expect("the server does not panic"), [true; 3]);
}

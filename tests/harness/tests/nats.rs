//! The NATS server starts, stops, comes back and leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::time::Duration;

use eye_harness::NatsServer;

fn connect(server: &NatsServer) -> std::io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", server.port()))
}

#[test]
fn a_killed_server_comes_back_on_its_port() {
    let mut server = NatsServer::start();
    let url = server.url();
    server.kill();
    assert!(connect(&server).is_err(), "it should be down");
    server.restart();
    assert_eq!(server.url(), url);
    assert!(connect(&server).is_ok());
}

#[test]
fn a_paused_server_greets_when_it_is_resumed() {
    let mut server = NatsServer::start();
    server.pause();
    let connection = connect(&server).expect("the system accepts it");
    connection.set_read_timeout(Some(Duration::from_millis(300))).expect("it is not zero");
    let mut lines = BufReader::new(connection);
    let mut line = String::new();
    assert!(lines.read_line(&mut line).is_err(), "it should be frozen, but says {line}");
    server.resume();
    lines.get_ref().set_read_timeout(Some(Duration::from_secs(30))).expect("it is not zero");
    lines.read_line(&mut line).expect("it greets");
    assert!(line.starts_with("INFO "), "{line}");
}

#[test]
fn a_dropped_server_leaves_nothing() {
    let server = NatsServer::start();
    let (folder, port) = (server.folder().to_owned(), server.port());
    assert!(folder.join("streams").exists());
    drop(server);
    assert!(!folder.exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

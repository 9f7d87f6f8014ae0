//! NATS servers: start, kill, pause and clean-up.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::time::Duration;

use eye_harness::NatsServer;

fn connect(server: &NatsServer) -> std::io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", server.port()))
}

#[test]
fn killed_server_restarts_on_its_port() {
    let mut server = NatsServer::start();
    let url = server.url();
    server.kill();
    assert!(connect(&server).is_err(), "the server has ended");
    server.restart();
    assert_eq!(server.url(), url);
    assert!(connect(&server).is_ok());
}

#[test]
fn paused_server_greets_after_resume() {
    let mut server = NatsServer::start();
    server.pause();
    let connection = connect(&server).expect("the system accepts it");
    connection.set_read_timeout(Some(Duration::from_millis(300))).expect("the timeout is not zero");
    let mut lines = BufReader::new(connection);
    let mut line = String::new();
    assert!(lines.read_line(&mut line).is_err(), "a paused server does not answer, but: {line}");
    server.resume();
    lines.get_ref().set_read_timeout(Some(Duration::from_secs(30))).expect("the timeout is not zero");
    lines.read_line(&mut line).expect("it greets");
    assert!(line.starts_with("INFO "), "{line}");
}

#[test]
fn dropped_server_leaves_nothing() {
    let server = NatsServer::start();
    let (folder, port) = (server.folder().to_owned(), server.port());
    assert!(folder.join("streams").exists());
    drop(server);
    assert!(!folder.exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

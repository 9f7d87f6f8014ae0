//! NATS servers with JetStream, each a process of its own. [`NatsServer`] is the type to read.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use crate::database::free_port;
use crate::process_guard::{GuardedProcess, find_program, temporary_folder};
use crate::wait::holds_within;

/// The time limit for the server to answer after its start, or to end after a signal.
const DEADLINE: Duration = Duration::from_secs(30);

/// A nats-server on a port of 127.0.0.1 with its streams in a temporary folder. Dropping it kills the server and
/// removes its files. All methods block.
#[derive(Debug)]
pub struct NatsServer {
    port: u16,
    process: GuardedProcess,
}

impl NatsServer {
    /// Starts a server without authentication.
    ///
    /// # Panics
    /// Panics if nats-server is not installed or does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more arguments, such as `["--user", "eye", "--pass", "…"]`.
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub fn start_with(arguments: &[&str]) -> Self {
        let mut server = Self::new(arguments);
        server.restart();
        server
    }

    /// Starts a cluster of three servers.
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub fn start_cluster() -> [Self; 3] {
        let members = [free_port(), free_port(), free_port()].map(|port| format!("nats://127.0.0.1:{port}"));
        let routes = members.join(",");
        let mut servers = members
            .each_ref()
            .map(|member| Self::new(&["--cluster_name", "eye", "--cluster", member, "--routes", &routes]));
        servers.iter_mut().for_each(Self::restart);
        servers
    }

    /// Prepares a server that [`restart`](Self::restart) starts.
    ///
    /// # Panics
    /// Panics if nats-server is not installed.
    pub fn new(arguments: &[&str]) -> Self {
        let port = free_port();
        let folder = temporary_folder("nats");
        let store = folder.join("streams").display().to_string();
        let mut command = vec![find_program("nats-server", "nats-server").display().to_string()];
        command.extend(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd", &store].map(str::to_owned));
        command.extend(["--server_name".to_owned(), name_at(port)]);
        command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        Self { port, process: GuardedProcess::new(&folder, None, &command) }
    }

    /// Returns the URL for clients, without user and password. A restart does not change it.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns its name in a cluster.
    pub fn name(&self) -> String {
        name_at(self.port)
    }

    /// Returns the port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts the server on the same port with the same files, and waits until it accepts clients.
    ///
    /// # Panics
    /// Panics with the server's log if it does not accept clients, or if it runs already.
    pub fn restart(&mut self) {
        self.process.start();
        holds_within(DEADLINE, || self.process.has_ended() || self.greets());
        assert!(self.greets(), "nats-server does not start; its log:\n{}", self.process.log());
    }

    /// Kills the server (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stops the server as an operator does (SIGTERM). The server saves its state.
    ///
    /// # Panics
    /// Panics if the server does not end.
    pub fn stop(&mut self) {
        let exit = self.process.terminate("TERM", DEADLINE);
        assert!(exit.is_some(), "nats-server does not end; its log:\n{}", self.process.log());
    }

    /// Freezes the server (SIGSTOP). The system still accepts connections, but the server does not answer.
    pub fn pause(&mut self) {
        self.process.pause();
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self) {
        self.process.resume();
    }

    /// Publishes a message with a raw header, its first line included, and waits until the server has it. Client
    /// libraries do not write malformed headers.
    ///
    /// # Panics
    /// Panics if the server rejects the message.
    pub fn publish_raw(&self, subject: &str, header: &str, payload: &[u8]) {
        let header = format!("{header}\r\n\r\n");
        let (header_bytes, bytes) = (header.len(), header.len() + payload.len());
        let head = format!("CONNECT {{\"headers\":true}}\r\nHPUB {subject} {header_bytes} {bytes}\r\n{header}");
        let request = [head.as_bytes(), payload, b"\r\nPING\r\n"].concat();
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).expect("nats-server listens");
        connection.set_read_timeout(Some(DEADLINE)).expect("the timeout is not zero");
        connection.write_all(&request).expect("nats-server reads");
        let mut lines = BufReader::new(connection).lines().map(|line| line.expect("nats-server answers"));
        let reply = lines.find(|line| line.starts_with("PONG") || line.starts_with("-ERR"));
        assert_eq!(reply.as_deref(), Some("PONG"));
    }

    /// Returns the folder with its files.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// Returns true if it greets a new client with `INFO`.
    fn greets(&self) -> bool {
        let connection = TcpStream::connect(("127.0.0.1", self.port));
        let greeting = connection.and_then(|connection| {
            connection.set_read_timeout(Some(DEADLINE))?;
            let mut line = String::new();
            BufReader::new(connection).read_line(&mut line)?;
            Ok(line)
        });
        greeting.is_ok_and(|line| line.starts_with("INFO "))
    }
}

fn name_at(port: u16) -> String {
    format!("server-{port}")
}

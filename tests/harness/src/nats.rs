//! A NATS server with JetStream, a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::database::free_port;
use crate::keeper::{Kept, temporary_folder};
use crate::wait::holds_within;

/// How long the server may take to answer after its start, or to end when asked to.
const DEADLINE: Duration = Duration::from_secs(30);

/// A nats-server on a port of 127.0.0.1, with its streams in a temporary folder. Dropping it kills it and removes what
/// it stored. All methods block.
#[derive(Debug)]
pub struct NatsServer {
    port: u16,
    process: Kept,
}

impl NatsServer {
    /// A server that asks nobody who he is.
    ///
    /// # Panics
    /// When nats-server is not installed or does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server with further arguments, such as `["--user", "eye", "--pass", "…"]`.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_with(arguments: &[&str]) -> Self {
        let mut server = Self::new(arguments);
        server.restart();
        server
    }

    /// A cluster of three, each of which knows the others.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_cluster() -> [Self; 3] {
        let members = [free_port(), free_port(), free_port()].map(|port| format!("nats://127.0.0.1:{port}"));
        let routes = members.join(",");
        let mut servers = members
            .each_ref()
            .map(|member| Self::new(&["--cluster_name", "eye", "--cluster", member, "--routes", &routes]));
        servers.iter_mut().for_each(Self::restart);
        servers
    }

    /// A server that is not started yet: [`restart`](Self::restart) does so.
    ///
    /// # Panics
    /// When nats-server is not installed.
    pub fn new(arguments: &[&str]) -> Self {
        let port = free_port();
        let folder = temporary_folder("nats");
        let store = folder.join("streams").display().to_string();
        let mut command = vec![program().display().to_string()];
        command.extend(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd", &store].map(str::to_owned));
        command.extend(["--server_name".to_owned(), name_at(port)]);
        command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        Self { port, process: Kept::new(&folder, None, &command) }
    }

    /// Where clients find it, without user and password. It stays the same over restarts.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// What it is called by those of its cluster.
    pub fn name(&self) -> String {
        name_at(self.port)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts the server again, on the same port with what it had stored, and waits until it greets its clients.
    ///
    /// # Panics
    /// With the server's log when it does not. It must have been killed, or not have been started yet.
    pub fn restart(&mut self) {
        self.process.start();
        holds_within(DEADLINE, || self.process.has_ended() || self.greets());
        assert!(self.greets(), "nats-server does not start; its log:\n{}", self.process.log());
    }

    /// Kills the server at once (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Ends the server as its operator does (SIGTERM): it writes down what it knows.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) {
        let exit = self.process.terminate("TERM", DEADLINE);
        assert!(exit.is_some(), "nats-server does not end; its log:\n{}", self.process.log());
    }

    /// Freezes the server (SIGSTOP): it still accepts connections, but answers nobody.
    pub fn pause(&mut self) {
        self.process.pause();
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self) {
        self.process.resume();
    }

    /// Publishes a message with this header, its first line included, as no client library would write it, and waits
    /// until the server has it.
    ///
    /// # Panics
    /// When the server does not take it.
    pub fn publish_raw(&self, subject: &str, header: &str, payload: &[u8]) {
        let header = format!("{header}\r\n\r\n");
        let (header_bytes, bytes) = (header.len(), header.len() + payload.len());
        let head = format!("CONNECT {{\"headers\":true}}\r\nHPUB {subject} {header_bytes} {bytes}\r\n{header}");
        let talk = [head.as_bytes(), payload, b"\r\nPING\r\n"].concat();
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).expect("nats-server listens");
        connection.set_read_timeout(Some(DEADLINE)).expect("it is not zero");
        connection.write_all(&talk).expect("nats-server reads");
        let mut lines = BufReader::new(connection).lines().map(|line| line.expect("nats-server answers"));
        let word = lines.find(|line| line.starts_with("PONG") || line.starts_with("-ERR"));
        assert_eq!(word.as_deref(), Some("PONG"));
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// Whether its first word to a client is `INFO`.
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

/// Finds the program in PATH, or where Debian hides it.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let mut programs = folders.into_iter().map(|folder| folder.join("nats-server"));
    programs.find(|program| program.is_file()).unwrap_or_else(|| {
        panic!("nats-server is missing: ./scripts/test installs what the tests need (Debian's package nats-server)")
    })
}

//! A stand-in for Sentry's server that records the reported events.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::wait::holds_within;

/// The time limit for a report.
const DEADLINE: Duration = Duration::from_secs(30);

/// An envelope endpoint on a loopback port that runs until the test process ends.
#[derive(Debug)]
pub struct SentryServer {
    address: SocketAddr,
    events: Arc<Mutex<Vec<Value>>>,
}

impl SentryServer {
    /// The key of [`dsn`](Self::dsn), a secret that no output may contain.
    pub const KEY: &str = "sentrykey0123456789abcdef";

    /// Starts a server that accepts every envelope.
    pub fn start() -> Self {
        let listener = listen();
        let server = Self { address: address(&listener), events: Arc::default() };
        let events = server.events.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let events = events.clone();
                thread::spawn(move || take_envelopes(connection, &events));
            }
        });
        server
    }

    /// Starts a server that accepts connections and never answers.
    pub fn start_hanging() -> Self {
        let listener = listen();
        let server = Self { address: address(&listener), events: Arc::default() };
        thread::spawn(move || listener.incoming().collect::<Vec<_>>());
        server
    }

    /// Returns the DSN of this server.
    pub fn dsn(&self) -> String {
        format!("http://{}@{}/42", Self::KEY, self.address)
    }

    /// Returns the reported events so far.
    pub fn events(&self) -> Vec<Value> {
        self.events.lock().expect("no test panics with it").clone()
    }

    /// Blocks until an event is reported whose text (for a panic, its message) starts with `text`.
    ///
    /// # Panics
    /// Panics if there is none within 30 seconds.
    pub fn wait_event(&self, text: &str) -> Value {
        let mut found = None;
        holds_within(DEADLINE, || {
            found = self.events().into_iter().find(|event| event_text(event).starts_with(text));
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("`{text}` was not reported; reported events: {:#?}", self.events()))
    }
}

/// Returns the text of a reported event: its message, or that of its exception.
pub fn event_text(event: &Value) -> &str {
    let exception = &event["exception"]["values"][0]["value"];
    event["message"].as_str().or(exception.as_str()).unwrap_or_default()
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("loopback has a free port")
}

fn address(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("the listener is bound")
}

fn take_envelopes(connection: TcpStream, events: &Mutex<Vec<Value>>) -> io::Result<()> {
    let mut answers = connection.try_clone()?;
    let mut requests = BufReader::new(connection);
    while let Some((head, body)) = request(&mut requests)? {
        assert!(head.starts_with("POST /api/42/envelope/ HTTP/1.1\r\n"), "{head}");
        assert!(head.contains(SentryServer::KEY), "no key: {head}");
        events.lock().expect("no test panics with it").extend(events_of(&body));
        answers.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")?;
    }
    Ok(())
}

/// Reads head and body of a request; `None` at the end of the connection.
fn request(connection: &mut impl BufRead) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if connection.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut length =
        lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).map(|(_, value)| value.trim());
    let length = length.next_back().and_then(|length| length.parse().ok()).expect("a request has a length");
    let mut body = vec![0; length];
    connection.read_exact(&mut body)?;
    Ok(Some((head, body)))
}

/// Extracts the events. An envelope is a header line followed by items, and each item is a header line and a payload
/// line.
fn events_of(envelope: &[u8]) -> Vec<Value> {
    let mut lines = envelope.split(|byte| *byte == b'\n').skip(1).filter(|line| !line.is_empty());
    let mut events = Vec::new();
    while let (Some(header), Some(item)) = (lines.next(), lines.next()) {
        let header: Value = serde_json::from_slice(header).expect("an item's header is JSON");
        if header["type"] == "event" {
            events.push(serde_json::from_slice(item).expect("an event is JSON"));
        }
    }
    events
}

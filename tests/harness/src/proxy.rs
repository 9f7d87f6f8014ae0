//! A proxy between The Eye and a database that recognises commits, and cuts or delays them.
//!
//! [`Proxy`] relays the messages of both protocols and tracks just enough of them to find the end of a transaction.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::database::{Database, DatabaseServer, Engine};

/// The time limit for the next commit.
const DEADLINE: Duration = Duration::from_secs(30);

/// A proxy on a port of 127.0.0.1 that lives as long as the runtime that started it. A commit is the end of a
/// transaction that inserts events: `COMMIT`, or a single statement of PostgreSQL.
#[derive(Debug)]
pub struct Proxy {
    url: String,
    control: Arc<Control>,
}

/// The moment of a commit at which the connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// After the commit is sent. The server may have received it or not.
    Sent = 1,
    /// After the answer of the server, before the program receives it.
    Answered = 2,
}

#[derive(Debug, Default)]
struct Control {
    /// The next [`Cut`]; 0: none.
    cut: AtomicUsize,
    delay: watch::Sender<Duration>,
    commits: AtomicU64,
    cuts: watch::Sender<usize>,
}

impl Proxy {
    /// Starts a proxy to `database` of `server`, which need not run.
    ///
    /// # Panics
    /// Panics if no port is free.
    pub async fn start(server: &DatabaseServer, database: &Database) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let port = listener.local_addr().expect("the listener is bound").port();
        let (engine, server_port, control) = (server.engine(), server.port(), Arc::<Control>::default());
        let plain = match engine {
            Engine::Postgres => "sslmode=disable",
            Engine::MariaDb => "ssl-mode=disabled",
        };
        let url = database.url.replace(&format!(":{server_port}/"), &format!(":{port}/")) + "?" + plain;
        let proxy = Self { url, control: control.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, server_port, ProxySession::new(engine), control.clone()));
            }
        });
        proxy
    }

    /// Returns the URL of the database through the proxy, with user and password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Cuts the connection of the next commit, and returns after the cut.
    ///
    /// # Panics
    /// Panics if there is no commit within 30 seconds.
    pub async fn cut_commit(&self, cut: Cut) {
        let mut cuts = self.control.cuts.subscribe();
        self.control.cut.store(cut as usize, Ordering::SeqCst);
        let cut = timeout(DEADLINE, cuts.changed()).await.expect("there is a commit");
        cut.expect("the control lives as long as the proxy");
    }

    /// Delays every commit from now on. Zero releases the delayed ones.
    pub fn delay_commits(&self, delay: Duration) {
        self.control.delay.send_replace(delay);
    }

    /// Returns the number of commits so far.
    pub fn commits(&self) -> u64 {
        self.control.commits.load(Ordering::SeqCst)
    }
}

/// Relays messages until one side closes the connection or a cut is due.
async fn relay(mut client: TcpStream, port: u16, mut session: ProxySession, control: Arc<Control>) -> io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut swallowing = false;
    loop {
        tokio::select! {
            read = client.read_buf(&mut up) => if read? == 0 { return Ok(()) },
            read = server.read_buf(&mut down) => if read? == 0 { return Ok(()) },
        }
        while let Some(message) = session.take_request(&mut up) {
            let commits = session.commits(&message);
            if commits {
                control.commits.fetch_add(1, Ordering::SeqCst);
                let mut delay = control.delay.subscribe();
                let held_back = *delay.borrow();
                let _ = timeout(held_back, delay.wait_for(Duration::is_zero)).await;
            }
            server.write_all(&message).await?;
            let cut = if commits { control.cut.swap(0, Ordering::SeqCst) } else { 0 };
            if cut == Cut::Sent as usize {
                control.cuts.send_modify(|cuts| *cuts += 1);
                return Ok(());
            }
            swallowing |= cut == Cut::Answered as usize;
        }
        while let Some(message) = session.take_answer(&mut down) {
            let is_last = session.completes_answer(&message);
            if !swallowing {
                client.write_all(&message).await?;
            } else if is_last {
                control.cuts.send_modify(|cuts| *cuts += 1);
                return Ok(());
            }
        }
    }
}

/// The state of one connection, as far as it is needed to recognise a commit.
enum ProxySession {
    /// The names of the prepared statements that insert events. `is_inserting` covers the time since the last `Sync`.
    Postgres { is_started: bool, inserts: Vec<Vec<u8>>, is_inserting: bool },
    /// The same with numbered statements. `is_preparing` holds until the number is known. A transaction begins with its
    /// first statement.
    MariaDb { inserts: Vec<[u8; 4]>, is_preparing: bool, in_transaction: bool },
}

/// The start of the program's insert statement.
const INSERT: &[u8] = b"INSERT INTO event ";

fn inserts_events(sql: &[u8]) -> bool {
    sql.windows(INSERT.len()).any(|part| part == INSERT)
}

impl ProxySession {
    fn new(engine: Engine) -> Self {
        match engine {
            Engine::Postgres => Self::Postgres { is_started: false, inserts: Vec::new(), is_inserting: false },
            Engine::MariaDb => Self::MariaDb { inserts: Vec::new(), is_preparing: false, in_transaction: false },
        }
    }

    /// Takes the first complete message of the program.
    fn take_request(&mut self, bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
        if let Self::Postgres { is_started: is_started @ false, .. } = self {
            // The first message has no type byte.
            let message = take(bytes, big_endian(bytes.get(..4)?)?)?;
            *is_started = true;
            return Some(message);
        }
        self.take_answer(bytes)
    }

    /// Takes the first complete message of the server.
    fn take_answer(&self, bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
        let length = match self {
            Self::Postgres { .. } => 1 + big_endian(bytes.get(1..5)?)?,
            Self::MariaDb { .. } => {
                let length = bytes.get(..3)?.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte));
                4 + length
            }
        };
        take(bytes, length)
    }

    /// Returns true if this message makes the server commit events.
    fn commits(&mut self, message: &[u8]) -> bool {
        match self {
            Self::Postgres { inserts, is_inserting, .. } => {
                let texts: Vec<&[u8]> =
                    message[1..].get(4..).unwrap_or_default().splitn(3, |byte| *byte == 0).collect();
                match (message[0], texts.as_slice()) {
                    (b'P', [name, sql, ..]) if inserts_events(sql) => inserts.push(name.to_vec()),
                    (b'B', [_portal, name, ..]) => *is_inserting |= inserts.iter().any(|insert| insert == name),
                    (b'S', _) => return std::mem::take(is_inserting),
                    _ => {}
                }
                false
            }
            Self::MariaDb { inserts, is_preparing, in_transaction } => {
                let (number, payload) = (message[3], &message[4..]);
                match (number, payload.split_first()) {
                    (0, Some((0x03, b"ROLLBACK"))) => *in_transaction = false,
                    // Other statements may precede it in the same text.
                    (0, Some((0x03, sql))) if sql.ends_with(b"COMMIT") => return std::mem::take(in_transaction),
                    (0, Some((0x16, sql))) => *is_preparing = inserts_events(sql),
                    (0, Some((0x17, rest))) => {
                        *in_transaction |= inserts.iter().any(|insert| rest.starts_with(insert));
                    }
                    _ => {}
                }
                false
            }
        }
    }

    /// Records a message of the server, and returns true if it completes the answer.
    fn completes_answer(&mut self, message: &[u8]) -> bool {
        match self {
            Self::Postgres { .. } => message[0] == b'Z',
            Self::MariaDb { inserts, is_preparing, .. } => {
                if let (true, [_, _, _, 1, 0, a, b, c, d, ..]) = (std::mem::take(is_preparing), message) {
                    inserts.push([*a, *b, *c, *d]);
                }
                // The answer to a commit has one message for each statement of its text.
                !has_more_results(&message[4..])
            }
        }
    }
}

/// Returns true if other messages follow MariaDB's `OK`: a bit of its status, which comes after two numbers.
fn has_more_results(payload: &[u8]) -> bool {
    let after_number = |bytes: &[u8], start: usize| {
        start
            + match bytes.get(start) {
                Some(0xfc) => 3,
                Some(0xfd) => 4,
                Some(0xfe) => 9,
                _ => 1,
            }
    };
    let status = after_number(payload, after_number(payload, 1));
    payload.first() == Some(&0) && payload.get(status).is_some_and(|status| status & 8 != 0)
}

fn big_endian(bytes: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes.try_into().ok()?)).ok()
}

/// Takes the first `length` bytes if they are complete.
fn take(bytes: &mut Vec<u8>, length: usize) -> Option<Vec<u8>> {
    (bytes.len() >= length).then(|| bytes.drain(..length).collect())
}

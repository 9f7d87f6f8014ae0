//! Between The Eye and a database: a proxy that sees a commit go by, and cuts or delays it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::database::{Database, Engine, Server};

/// How long the next commit may take to come.
const DEADLINE: Duration = Duration::from_secs(30);

/// A proxy on a port of 127.0.0.1, for as long as the runtime lives that it was started on. A commit is what ends a
/// transaction that inserts events: `COMMIT`, or PostgreSQL's lone statement.
#[derive(Debug)]
pub struct Proxy {
    url: String,
    control: Arc<Control>,
}

/// Where in the commit the connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// As soon as the commit is sent: the server may have it or not.
    Sent = 1,
    /// After the server has answered, and before the program hears of it.
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
    /// A proxy to `database` of `server`, which need not run.
    ///
    /// # Panics
    /// When there is no port to listen on.
    pub async fn start(server: &Server, database: &Database) -> Self {
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
                tokio::spawn(relay(client, server_port, Session::new(engine), control.clone()));
            }
        });
        proxy
    }

    /// Where the program finds the database, with user and password, through the proxy.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Cuts the connection that commits next, and returns when that is done.
    ///
    /// # Panics
    /// When nobody commits within 30 seconds.
    pub async fn cut_commit(&self, cut: Cut) {
        let mut cuts = self.control.cuts.subscribe();
        self.control.cut.store(cut as usize, Ordering::SeqCst);
        let cut = timeout(DEADLINE, cuts.changed()).await.expect("nobody commits");
        cut.expect("the control lives as long as the proxy");
    }

    /// Holds back every commit for so long, from now on; zero lets those go that are held back.
    pub fn delay_commits(&self, delay: Duration) {
        self.control.delay.send_replace(delay);
    }

    /// How many commits went by.
    pub fn commits(&self) -> u64 {
        self.control.commits.load(Ordering::SeqCst)
    }
}

/// Until either side leaves, or the connection is cut.
async fn relay(mut client: TcpStream, port: u16, mut session: Session, control: Arc<Control>) -> io::Result<()> {
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
            let is_last = session.answers(&message);
            if !swallowing {
                client.write_all(&message).await?;
            } else if is_last {
                control.cuts.send_modify(|cuts| *cuts += 1);
                return Ok(());
            }
        }
    }
}

/// As much of the protocols as it takes to see a commit.
enum Session {
    /// The names of the prepared statements that insert events, and what has been sent since the last `Sync`.
    Postgres { is_started: bool, inserts: Vec<Vec<u8>>, is_inserting: bool },
    /// The same by number; `is_preparing` until the number is known. A transaction begins with its first statement.
    MariaDb { inserts: Vec<[u8; 4]>, is_preparing: bool, in_transaction: bool },
}

/// What the program's statement has in it.
const INSERT: &[u8] = b"INSERT INTO event ";

fn inserts_events(sql: &[u8]) -> bool {
    sql.windows(INSERT.len()).any(|part| part == INSERT)
}

impl Session {
    fn new(engine: Engine) -> Self {
        match engine {
            Engine::Postgres => Self::Postgres { is_started: false, inserts: Vec::new(), is_inserting: false },
            Engine::MariaDb => Self::MariaDb { inserts: Vec::new(), is_preparing: false, in_transaction: false },
        }
    }

    /// The first whole message of the program.
    fn take_request(&mut self, bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
        if let Self::Postgres { is_started: is_started @ false, .. } = self {
            // The first message has a length and no type.
            let message = take(bytes, big_endian(bytes.get(..4)?)?)?;
            *is_started = true;
            return Some(message);
        }
        self.take_answer(bytes)
    }

    /// The first whole message of the server.
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

    /// Whether the server commits events once it has this message.
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
                    // With what else is in its text.
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

    /// Takes note of what the server says; whether it has said all that it was asked for.
    fn answers(&mut self, message: &[u8]) -> bool {
        match self {
            Self::Postgres { .. } => message[0] == b'Z',
            Self::MariaDb { inserts, is_preparing, .. } => {
                if let (true, [_, _, _, 1, 0, a, b, c, d, ..]) = (std::mem::take(is_preparing), message) {
                    inserts.push([*a, *b, *c, *d]);
                }
                // To a commit it is one message for each statement of its text.
                !has_more_results(&message[4..])
            }
        }
    }
}

/// Whether MariaDB's `OK` is followed by others: a bit of its status, after two numbers.
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

/// The first `length` bytes, when they are all there.
fn take(bytes: &mut Vec<u8>, length: usize) -> Option<Vec<u8>> {
    (bytes.len() >= length).then(|| bytes.drain(..length).collect())
}

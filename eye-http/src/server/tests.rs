use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::StatusCode;
use axum::routing::{any, get, post};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;

/// Longer than any answer takes: only a hang reaches it.
const HANG: Duration = Duration::from_secs(20);

struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

fn config() -> ServerConfig {
    // No test waits for this timeout: a connection that only it closes is a hang.
    let idle_timeout_ms = 2 * HANG.as_millis() as u64;
    ServerConfig { listen: "127.0.0.1:0".to_owned(), idle_timeout_ms, ..ServerConfig::default() }
}

async fn start(config: ServerConfig, app: Router) -> Running {
    let server = Server::bind(config).await.unwrap();
    let (address, shutdown) = (server.local_addr(), CancellationToken::new());
    let served = tokio::spawn(server.serve(app, shutdown.clone()));
    Running { address, shutdown, served }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn send(&self, text: &str) -> TcpStream {
        let mut client = self.connect().await;
        client.write_all(text.as_bytes()).await.unwrap();
        client
    }

    /// Shuts down and waits until every task has ended.
    async fn stop(self) {
        self.shutdown.cancel();
        within(self.served).await.unwrap();
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(HANG, future).await.expect("no hang")
}

/// Returns everything that the server sends until it closes the connection.
async fn to_end(mut client: TcpStream) -> String {
    let mut text = String::new();
    within(client.read_to_string(&mut text)).await.unwrap();
    text
}

/// Reads an answer up to `end`, on a connection that stays open.
async fn to(client: &mut TcpStream, end: &str) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        assert!(within(client.read_buf(&mut answer)).await.unwrap() > 0, "closed after {answer:?}");
    }
    String::from_utf8(answer).unwrap()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: eye\r\n\r\n";
const GET_AND_CLOSE: &str = "GET / HTTP/1.1\r\nHost: eye\r\nConnection: close\r\n\r\n";

/// A handler that reports its start, waits for `go`, and reports its end.
struct Held {
    app: Router,
    begun: mpsc::UnboundedReceiver<()>,
    go: CancellationToken,
    done: mpsc::UnboundedReceiver<()>,
}

fn held() -> Held {
    let (say_begun, begun) = mpsc::unbounded_channel();
    let (say_done, done) = mpsc::unbounded_channel();
    let go = CancellationToken::new();
    let may_go = go.clone();
    let handler = async move || {
        say_begun.send(()).unwrap();
        may_go.cancelled().await;
        // A shutdown that does not wait for this handler ends first.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        say_done.send(()).unwrap();
        "done"
    };
    Held { app: Router::new().route("/", get(async || "quick")).route("/held", any(handler)), begun, go, done }
}

const GET_HELD: &str = "GET /held HTTP/1.1\r\nHost: eye\r\n\r\n";

#[tokio::test]
async fn busy_port_error_names_address_and_way_out() {
    let first = Server::bind(config()).await.unwrap();
    let listen = first.local_addr().to_string();
    let error = Server::bind(ServerConfig { listen: listen.clone(), ..config() }).await.unwrap_err().to_string();
    assert!(error.contains(&listen) && error.contains("set another one"), "{error}");
}

#[tokio::test]
async fn invalid_address_is_an_error() {
    let error = Server::bind(ServerConfig { listen: "nonsense".to_owned(), ..config() }).await.unwrap_err().to_string();
    assert!(error.contains("`nonsense`") && error.contains("127.0.0.1:8000"), "{error}");
}

#[tokio::test]
async fn connection_serves_several_requests() {
    let running = start(config(), Router::new().route("/", get(async || "hello"))).await;
    let mut client = running.send(GET).await;
    to(&mut client, "hello").await;
    client.write_all(GET.as_bytes()).await.unwrap();
    to(&mut client, "hello").await;
    running.stop().await;
}

#[tokio::test]
async fn late_headers_close_the_connection() {
    let running = start(ServerConfig { idle_timeout_ms: 50, ..config() }, Router::new()).await;
    let client = running.send("GET / HTTP/1.1\r\nHost:").await;
    to_end(client).await;
    running.stop().await;
}

#[tokio::test]
async fn idle_connection_is_closed() {
    let running = start(ServerConfig { idle_timeout_ms: 50, ..config() }, Router::new()).await;
    let answer = to_end(running.send(GET).await).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    running.stop().await;
}

#[tokio::test]
async fn too_large_headers_get_431() {
    let running = start(config(), Router::new()).await;
    let header = "h".repeat(MAX_HEADER_BYTES);
    let answer = to_end(running.send(&format!("GET / HTTP/1.1\r\nHost: {header}\r\n\r\n")).await).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    running.stop().await;
}

/// An app that answers `POST /` with this status, after the first part of the body or before all of it.
fn refusing(status: StatusCode, reads_first_part: bool) -> Router {
    let handler = async move |mut body: Body| {
        if reads_first_part {
            body.frame().await.unwrap().unwrap();
        }
        (status, "refused")
    };
    Router::new().route("/", post(handler))
}

#[tokio::test]
async fn answer_amid_a_body_closes_the_connection() {
    let running = start(config(), refusing(StatusCode::REQUEST_TIMEOUT, true)).await;
    let answer = to_end(running.send("POST / HTTP/1.1\r\nHost: eye\r\nContent-Length: 100\r\n\r\n{").await).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("connection: close"), "{answer}");
    running.stop().await;
}

#[tokio::test]
async fn answer_before_a_body_announces_the_close() {
    let running = start(config(), refusing(StatusCode::PAYLOAD_TOO_LARGE, false)).await;
    for bytes in [1, 8 << 20] {
        let request = format!("POST / HTTP/1.1\r\nHost: eye\r\nContent-Length: {bytes}\r\n\r\n");
        let answer = to_end(running.send(&request).await).await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("connection: close"), "{answer}");
    }
    running.stop().await;
}

#[tokio::test]
async fn client_still_sending_a_refused_body_gets_the_answer() {
    let running = start(config(), refusing(StatusCode::PAYLOAD_TOO_LARGE, false)).await;
    let body_bytes = 8 << 20;
    let head = format!("POST / HTTP/1.1\r\nHost: eye\r\nContent-Length: {body_bytes}\r\n\r\n");
    let mut client = running.send(&head).await;
    within(client.write_all(&vec![b' '; body_bytes])).await.unwrap();
    let mut answer = Vec::new();
    within(client.read_buf(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 413"), "{answer:?}");
    running.stop().await;
}

#[tokio::test]
async fn handler_outlives_its_client() {
    let Held { app, mut begun, go, mut done } = held();
    let running = start(ServerConfig { max_connections: 1, ..config() }, app).await;
    let client = running.send(GET_HELD).await;
    within(begun.recv()).await.unwrap();
    drop(client);
    // The only slot is free: the server noticed the disconnect while the handler still runs.
    to_end(running.send(GET_AND_CLOSE).await).await;
    assert!(done.is_empty());
    go.cancel();
    within(done.recv()).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn panicking_handler_gets_500_and_keeps_the_connection() {
    let app =
        Router::new().route("/", get(async || -> &str { panic!("on purpose") })).route("/ok", get(async || "fine"));
    let running = start(config(), app).await;
    let mut client = running.send(GET).await;
    let answer = to(&mut client, "}").await;
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("application/json"), "{answer}");
    client.write_all(b"GET /ok HTTP/1.1\r\nHost: eye\r\n\r\n").await.unwrap();
    to(&mut client, "fine").await;
    running.stop().await;
}

#[tokio::test]
async fn shutdown_finishes_the_running_request() {
    let Held { app, mut begun, go, done: _done } = held();
    let running = start(config(), app).await;
    let client = running.send(GET_HELD).await;
    within(begun.recv()).await.unwrap();
    running.shutdown.cancel();
    within(async {
        while TcpStream::connect(running.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!running.served.is_finished());
    go.cancel();
    let answer = to_end(client).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
    within(running.served).await.unwrap();
}

#[tokio::test]
async fn shutdown_waits_for_a_detached_handler() {
    let Held { app, mut begun, go, mut done } = held();
    let running = start(ServerConfig { max_connections: 1, ..config() }, app).await;
    drop(running.send(GET_HELD).await);
    within(begun.recv()).await.unwrap();
    to_end(running.send(GET_AND_CLOSE).await).await;
    running.shutdown.cancel();
    go.cancel();
    within(running.served).await.unwrap();
    assert_eq!(done.try_recv(), Ok(()));
}

#[tokio::test]
async fn shutdown_closes_idle_connections() {
    let running = start(config(), Router::new().route("/", get(async || "hello"))).await;
    let mut idle = running.send(GET).await;
    to(&mut idle, "hello").await;
    let silent = running.connect().await;
    // Accepted after the silent one, which therefore was accepted, too.
    to_end(running.send(GET_AND_CLOSE).await).await;
    running.stop().await;
    assert_eq!(to_end(idle).await, "");
    assert_eq!(to_end(silent).await, "");
}

#[tokio::test]
async fn connections_above_the_bound_wait() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    let handler = async move || {
        seen.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        open.fetch_sub(1, Ordering::SeqCst);
        "turn"
    };
    let app = Router::new().route("/", get(handler));
    let running = start(ServerConfig { max_connections: 2, ..config() }, app).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(running.send(GET_AND_CLOSE).await);
    }
    for client in clients {
        assert!(to_end(client).await.ends_with("turn"));
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
    running.stop().await;
}

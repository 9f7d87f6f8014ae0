use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::to_bytes;
use axum::routing::any;
use eye_core::ack::Receipt;
use eye_core::event::Event;
use eye_core::source::{Outlet, SourceConfig};
use eye_core::transport::{Custody, PublishError, Subscription, Transport, TransportError};
use eye_sources::http::HttpConfig;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use super::*;

/// So long that only a hang takes it.
const HANG: Duration = Duration::from_secs(20);

struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

fn config() -> ServerConfig {
    // A connection that only this timeout closes is a hang.
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

    /// Shuts down and waits until everything is done.
    async fn stop(self) {
        self.shutdown.cancel();
        within(self.served).await.unwrap();
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(HANG, future).await.expect("it hangs")
}

/// All that comes until the server closes the connection.
async fn to_end(mut client: TcpStream) -> String {
    let mut text = String::new();
    within(client.read_to_string(&mut text)).await.unwrap();
    text
}

/// One answer with a body that ends with `end`, on a connection that stays open.
async fn to(client: &mut TcpStream, end: &str) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        assert!(within(client.read_buf(&mut answer)).await.unwrap() > 0, "closed after {answer:?}");
    }
    String::from_utf8(answer).unwrap()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: eye\r\n\r\n";
const GET_AND_CLOSE: &str = "GET / HTTP/1.1\r\nHost: eye\r\nConnection: close\r\n\r\n";

/// A handler that says when it has begun, waits to be let go, and says when it is done.
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
        // Not at once: who does not wait for the end comes before it.
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
async fn a_busy_port_is_an_error_that_names_the_address_and_the_way_out() {
    let first = Server::bind(config()).await.unwrap();
    let listen = first.local_addr().to_string();
    let error = Server::bind(ServerConfig { listen: listen.clone(), ..config() }).await.unwrap_err().to_string();
    assert!(error.contains(&listen) && error.contains("set another one"), "{error}");
}

#[tokio::test]
async fn an_address_that_is_none_is_an_error() {
    let error = Server::bind(ServerConfig { listen: "nonsense".to_owned(), ..config() }).await.unwrap_err().to_string();
    assert!(error.contains("`nonsense`") && error.contains("127.0.0.1:8000"), "{error}");
}

#[tokio::test]
async fn a_connection_is_kept_for_further_requests() {
    let running = start(config(), Router::new().route("/", get(async || "hello"))).await;
    let mut client = running.send(GET).await;
    to(&mut client, "hello").await;
    client.write_all(GET.as_bytes()).await.unwrap();
    to(&mut client, "hello").await;
    running.stop().await;
}

#[tokio::test]
async fn headers_that_do_not_arrive_in_time_close_the_connection() {
    let running = start(ServerConfig { idle_timeout_ms: 50, ..config() }, Router::new()).await;
    let client = running.send("GET / HTTP/1.1\r\nHost:").await;
    to_end(client).await;
    running.stop().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time() {
    let running = start(ServerConfig { idle_timeout_ms: 50, ..config() }, Router::new()).await;
    let answer = to_end(running.send(GET).await).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    running.stop().await;
}

#[tokio::test]
async fn headers_that_are_too_large_are_431() {
    let running = start(config(), Router::new()).await;
    let header = "h".repeat(MAX_HEADER_BYTES);
    let answer = to_end(running.send(&format!("GET / HTTP/1.1\r\nHost: {header}\r\n\r\n")).await).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    running.stop().await;
}

/// Takes nothing: the test ends before.
struct NoTransport;

#[async_trait::async_trait]
impl Transport for NoTransport {
    async fn publish(&self, _: Vec<Event>) -> Result<Receipt, PublishError> {
        Err(PublishError::Closed)
    }

    async fn subscribe(&self, consumer: &str) -> Result<Box<dyn Subscription>, TransportError> {
        Err(TransportError(consumer.to_owned()))
    }

    fn close(&self) {}

    fn custody(&self, _: &str) -> Custody {
        Custody::default()
    }
}

async fn ingest(config: HttpConfig) -> Router {
    let outlet = Outlet::new(Arc::new(NoTransport), HealthBoard::default().component("sources.web"));
    config.build().await.unwrap().routes(&outlet).unwrap()
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_408_and_the_end_of_its_connection() {
    let app = ingest(HttpConfig { body_timeout_ms: 50, ..HttpConfig::default() }).await;
    let running = start(config(), app).await;
    let head =
        "POST /api/event/ HTTP/1.1\r\nHost: eye\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let answer = to_end(running.send(head).await).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    running.stop().await;
}

#[tokio::test]
async fn shutting_down_is_503_and_the_end_of_its_connection() {
    let running = start(config(), ingest(HttpConfig::default()).await).await;
    let event = r#"{"session_id":"s","category":"c","name":"n","data":1,"timestamp":"2021-01-01"}"#;
    let request = format!(
        "POST /api/event/ HTTP/1.1\r\nHost: eye\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{event}",
        event.len()
    );
    let answer = to_end(running.send(&request).await).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("connection: close"), "{answer}");
    running.stop().await;
}

#[tokio::test]
async fn a_client_that_is_still_sending_what_was_refused_gets_its_answer() {
    let running = start(config(), ingest(HttpConfig::default()).await).await;
    let body_bytes = 8 << 20;
    let head = format!(
        "POST /api/event/ HTTP/1.1\r\nHost: eye\r\nContent-Type: application/json\r\nContent-Length: {body_bytes}\r\n\r\n"
    );
    let mut client = running.send(&head).await;
    within(client.write_all(&vec![b' '; body_bytes])).await.unwrap();
    let mut answer = Vec::new();
    within(client.read_buf(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 413"), "{answer:?}");
    running.stop().await;
}

#[tokio::test]
async fn an_answer_before_the_body_says_that_its_connection_ends() {
    let running = start(config(), ingest(HttpConfig::default()).await).await;
    for (content_type, bytes, status) in [("application/json", 8 << 20, 413), ("text/html", 1, 415)] {
        let answer = to_end(
            running
                .send(&format!(
                    "POST /api/event/ HTTP/1.1\r\nHost: eye\r\nContent-Type: {content_type}\r\nContent-Length: {bytes}\r\n\r\n"
                ))
                .await,
        )
        .await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains("connection: close"), "{answer}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_handler_runs_to_its_end_when_its_client_disconnects() {
    let Held { app, mut begun, go, mut done } = held();
    let running = start(ServerConfig { max_connections: 1, ..config() }, app).await;
    let client = running.send(GET_HELD).await;
    within(begun.recv()).await.unwrap();
    drop(client);
    // The only slot is free again: the disconnect was noticed while the handler still runs.
    to_end(running.send(GET_AND_CLOSE).await).await;
    assert!(done.is_empty());
    go.cancel();
    within(done.recv()).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn a_handler_that_panics_is_500_and_takes_nothing_along() {
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
async fn a_shutdown_lets_the_running_request_finish_and_takes_no_new_ones() {
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
async fn a_shutdown_waits_for_the_handler_of_a_client_that_left() {
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
async fn a_shutdown_closes_idle_and_silent_connections() {
    let running = start(config(), Router::new().route("/", get(async || "hello"))).await;
    let mut idle = running.send(GET).await;
    to(&mut idle, "hello").await;
    let silent = running.connect().await;
    // Taken after the silent one, so that one was taken, too.
    to_end(running.send(GET_AND_CLOSE).await).await;
    running.stop().await;
    assert_eq!(to_end(idle).await, "");
    assert_eq!(to_end(silent).await, "");
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_their_turn() {
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

// --- What the listener answers. ---

async fn ask(app: &Router, method: &str, path: &str) -> (u16, Option<String>, Value) {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let allow = response.headers().get("allow").map(|allow| allow.to_str().unwrap().to_owned());
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    (status, allow, body)
}

fn query() -> Router {
    let answer = get(async || "\"page\"");
    Router::new().route("/api/event", answer.clone()).route("/api/event/", answer)
}

async fn whole() -> Router {
    app(vec![ingest(HttpConfig::default()).await], Some(query()), Router::new(), HealthBoard::default()).unwrap()
}

#[tokio::test]
async fn ingest_and_query_share_their_paths() {
    let app = whole().await;
    for path in ["/api/event", "/api/event/"] {
        assert_eq!(ask(&app, "GET", path).await.2, "page");
        assert_eq!(ask(&app, "POST", path).await.0, 415, "the source's own answer to no media type");
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let app = whole().await;
    for path in ["/", "/livez", "/readyz", "/api/event/"] {
        let (status, _, body) = ask(&app, "HEAD", path).await;
        assert_eq!((status, body), (200, Value::Null), "{path}");
    }
}

#[tokio::test]
async fn options_say_what_is_allowed() {
    let app = whole().await;
    for path in ["/api/event", "/api/event/"] {
        let (status, allow, _) = ask(&app, "OPTIONS", path).await;
        assert_eq!((status, allow.as_deref()), (200, Some("GET, POST, HEAD, OPTIONS")), "{path}");
    }
    assert_eq!(ask(&app, "OPTIONS", "/livez").await.1.as_deref(), Some("GET, HEAD, OPTIONS"));
}

#[tokio::test]
async fn other_methods_are_405_with_what_is_allowed() {
    let app = whole().await;
    for method in ["PUT", "DELETE", "PATCH", "BREW"] {
        let (status, allow, body) = ask(&app, method, "/api/event/").await;
        assert_eq!((status, allow.as_deref()), (405, Some("GET, POST, HEAD, OPTIONS")), "{method}");
        assert!(body["detail"].as_str().unwrap().contains(method), "{body}");
    }
    assert_eq!(ask(&app, "POST", "/readyz").await.0, 405);
}

#[tokio::test]
async fn without_a_source_post_is_not_allowed() {
    let app = app(Vec::new(), Some(query()), Router::new(), HealthBoard::default()).unwrap();
    let (status, allow, _) = ask(&app, "POST", "/api/event/").await;
    assert_eq!((status, allow.as_deref()), (405, Some("GET, HEAD, OPTIONS")));
}

#[tokio::test]
async fn without_a_sink_that_answers_get_is_not_allowed() {
    let app = app(vec![ingest(HttpConfig::default()).await], None, Router::new(), HealthBoard::default()).unwrap();
    let (status, allow, _) = ask(&app, "GET", "/api/event/").await;
    assert_eq!((status, allow.as_deref()), (405, Some("POST, OPTIONS")));
}

#[tokio::test]
async fn unknown_paths_are_404_whatever_the_method() {
    let app = whole().await;
    for (method, path) in [("GET", "/nowhere"), ("POST", "/api/events/"), ("OPTIONS", "/api"), ("GET", "/api/event//")]
    {
        let (status, _, body) = ask(&app, method, path).await;
        assert_eq!(status, 404, "{method} {path}");
        assert!(body["detail"].as_str().unwrap().contains(path), "{body}");
    }
}

#[tokio::test]
async fn two_sources_with_routes_are_an_error() {
    let sources = vec![ingest(HttpConfig::default()).await, ingest(HttpConfig::default()).await];
    let error = app(sources, Some(query()), Router::new(), HealthBoard::default()).unwrap_err().to_string();
    assert!(error.starts_with("2 sources"), "{error}");
}

#[tokio::test]
async fn readyz_shows_each_component() {
    let board = HealthBoard::default();
    let app = app(Vec::new(), Some(query()), Router::new(), board.clone()).unwrap();
    let (sink, source) = (board.component("sinks.store"), board.component("sources.web"));
    source.ready();
    let starting = json!({"status": "unavailable", "components": [
        {"name": "sinks.store", "state": "starting"}, {"name": "sources.web", "state": "ready"}]});
    assert_eq!(ask(&app, "GET", "/readyz").await, (503, None, starting));
    sink.unavailable("no route");
    let (status, _, body) = ask(&app, "GET", "/readyz").await;
    assert_eq!(status, 503);
    let unavailable = json!({"name": "sinks.store", "state": "unavailable", "reason": "no route"});
    assert_eq!(body["components"][0], unavailable);
    sink.ready();
    let (status, _, body) = ask(&app, "GET", "/readyz").await;
    assert_eq!((status, &body["status"]), (200, &json!("ok")));
}

#[tokio::test]
async fn a_optional_component_makes_nothing_unready() {
    let board = HealthBoard::default();
    let app = app(Vec::new(), Some(query()), Router::new(), board.clone()).unwrap();
    let (sink, transport) = (board.optional_component("sinks.store"), board.component("transport"));
    transport.ready();
    sink.unavailable("no route");
    let (status, _, body) = ask(&app, "GET", "/readyz").await;
    let unavailable = json!({"name": "sinks.store", "state": "unavailable", "reason": "no route"});
    assert_eq!((status, &body["status"], &body["components"][0]), (200, &json!("ok"), &unavailable));
    transport.unavailable("full");
    assert_eq!(ask(&app, "GET", "/readyz").await.0, 503);
}

#[tokio::test]
async fn the_process_is_alive_whatever_its_components() {
    let board = HealthBoard::default();
    board.component("sinks.store").unavailable("no route");
    let app = app(Vec::new(), Some(query()), Router::new(), board).unwrap();
    assert_eq!(ask(&app, "GET", "/livez").await, (200, None, json!({"status": "ok"})));
}

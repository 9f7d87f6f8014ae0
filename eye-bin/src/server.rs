//! The one listener: ingest, queries and health share it.

mod to_the_end;
mod write_timeout;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use eye_core::config::at_least_one;
use eye_core::health::{self, HealthBoard};
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::to_the_end::ToTheEnd;
use self::write_timeout::WriteTimeout;

/// Bytes of one request's line and headers; above, hyper answers 431.
const MAX_HEADER_BYTES: usize = 32 * 1024;

/// Bytes of one connection's read buffer, and of its write buffer; hyper's own bound is 400 KiB.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// How long `accept` rests when the machine has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long an answered connection still takes what its client had on the way. See [`linger`].
const LINGER: Duration = Duration::from_secs(2);

/// What a path can do that takes no events.
const READ_METHODS: &str = "GET, HEAD, OPTIONS";

/// What operators write below `[server]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ServerConfig {
    /// Address and port to listen on. Default `127.0.0.1:8000`; port 0 takes a free one.
    #[serde(deserialize_with = "address_and_port")]
    pub listen: String,
    /// Connections open at once; beyond, they wait in the system's backlog. The default, 800, stays below the usual
    /// limit of 1,024 open files.
    #[serde(deserialize_with = "at_least_one")]
    pub max_connections: u32,
    /// Milliseconds within which a request's line and headers must arrive, and for which a connection may be idle, or its
    /// client take nothing of an answer. Default 60 s.
    #[serde(deserialize_with = "at_least_one")]
    pub idle_timeout_ms: u64,
    /// Whether `X-Forwarded-Proto` and `X-Forwarded-Host` are believed; only behind a proxy that sets them. Default false.
    pub trust_proxy: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8000".to_owned(), max_connections: 800, idle_timeout_ms: 60_000, trust_proxy: false }
    }
}

/// Refuses what cannot be listened on whatever the machine. A name such as `localhost` is resolved when binding.
fn address_and_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let listen = String::deserialize(deserializer)?;
    let sound = listen.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    // Not as a text of ours, from which the value would be taken out, in case it is a secret: the example has it, too.
    let expected = "an address and a port, such as `127.0.0.1:8000`";
    if sound { Ok(listen) } else { Err(D::Error::invalid_value(Unexpected::Other("another text"), &expected)) }
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("server.listen: cannot listen on `{listen}`: {error}. {}", way_out(.error))]
    Bind {
        /// As configured.
        listen: String,
        /// What the system said.
        error: io::Error,
    },
    /// Several sources have HTTP routes.
    #[error("{0} sources take events over HTTP, but the one listener serves one of them: remove the others")]
    SeveralSources(usize),
}

fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "Stop the program that uses the port, or set another one.",
        io::ErrorKind::PermissionDenied => "Ports below 1024 need privileges: set a higher one.",
        io::ErrorKind::AddrNotAvailable => "The address is not this machine's: set one that is, or 0.0.0.0 for all.",
        _ => "Set an address and a port, such as `127.0.0.1:8000`.",
    }
}

/// A listener that is bound, and takes no connection yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    config: ServerConfig,
}

impl Server {
    /// Binds the address, so that a busy port is known before anything starts.
    ///
    /// # Errors
    /// [`ServerError::Bind`], with the way out.
    pub async fn bind(config: ServerConfig) -> Result<Self, ServerError> {
        let bound = async {
            let listener = TcpListener::bind(&config.listen).await?;
            let local_addr = listener.local_addr()?;
            Ok((listener, local_addr))
        };
        match bound.await {
            Ok((listener, local_addr)) => Ok(Self { listener, local_addr, config }),
            Err(error) => Err(ServerError::Bind { listen: config.listen, error }),
        }
    }

    /// Where it listens: the port that was found, if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves `app` until `shutdown` is cancelled; then it takes no more connections, closes the idle ones, lets running
    /// requests finish, and returns when the last one has. It sets no bound to that: the caller does, by dropping it.
    ///
    /// A handler runs to its end even when its client disconnects.
    pub async fn serve(self, app: Router, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(self.config.max_connections as usize));
        let idle_timeout = Duration::from_millis(self.config.idle_timeout_ms);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(idle_timeout)
            .max_header_size(MAX_HEADER_BYTES)
            .max_buf_size(MAX_BUFFER_BYTES);
        let accept = async {
            loop {
                let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
                let stream = accept(&self.listener).await;
                let stream = WriteTimeout::new(stream, idle_timeout);
                let connection = serve_connection(stream, http.clone(), app.clone(), tasks.clone(), shutdown.clone());
                tasks.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
        };
        tokio::select! {
            () = accept => {}
            () = shutdown.cancelled() => {}
        }
        drop(self.listener);
        tasks.close();
        tasks.wait().await;
    }
}

/// The next connection. While the machine has no room for one, says so once and tries again.
async fn accept(listener: &TcpListener) -> TcpStream {
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small and must not wait for more; without it they are only slower.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            // The client's doing: it left before it was its turn.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !failing {
                    tracing::error!(%error, "cannot take connections, trying again; is the limit of open files too low?");
                    failing = true;
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn serve_connection(
    stream: WriteTimeout<TcpStream>,
    http: http1::Builder,
    app: Router,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut app = app.clone();
        let answer = async move {
            let answered = tower::Service::call(&mut app, request.map(Body::new));
            let answer = answer_of(AssertUnwindSafe(answered).catch_unwind().await);
            if !answer.status().is_success() {
                // Where the body was not read, the connection ends with this answer. hyper finds out when it is polled
                // again, and only then says so to the client, who would send its next request in vain.
                tokio::task::yield_now().await;
            }
            Ok::<_, Infallible>(answer)
        };
        ToTheEnd::new(answer, tasks.clone())
    });
    let mut connection = http.serve_connection(TokioIo::new(stream), service);
    let served = tokio::select! {
        served = std::future::poll_fn(|context| connection.poll_without_shutdown(context)) => served,
        () = shutdown.cancelled() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            std::future::poll_fn(|context| connection.poll_without_shutdown(context)).await
        }
    };
    match served {
        Ok(()) => linger(connection.into_parts().io.into_inner().into_inner(), &shutdown).await,
        Err(error) => tracing::debug!(%error, "a connection ended early"),
    }
}

fn answer_of(answered: thread::Result<Result<Response, Infallible>>) -> Response {
    match answered {
        Ok(Ok(response)) => response,
        // The hook has logged what and where.
        Err(_panic) => {
            tracing::error!("a request's handler panicked");
            detail(StatusCode::INTERNAL_SERVER_ERROR, "Internal error; the server's log says more.")
        }
    }
}

/// Closes a connection so that its last answer arrives. Where a body was refused before it was read, the client may still
/// be sending it; closing at once would reset the connection, and the client would lose the answer.
async fn linger(mut stream: TcpStream, shutdown: &CancellationToken) {
    let drained = async {
        let mut unread = [0; 16 * 1024];
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    tokio::select! {
        // Whatever went wrong, the client is gone, and the connection with it.
        _ = tokio::time::timeout(LINGER, drained) => {}
        () = shutdown.cancelled() => {}
    }
}

/// `Allow` for `/api/event/`, which takes events only where a source has routes, and answers queries only where a sink can.
pub fn event_methods(takes_events: bool, answers_queries: bool) -> &'static str {
    match (takes_events, answers_queries) {
        (true, true) => "GET, POST, HEAD, OPTIONS",
        (true, false) => "POST, OPTIONS",
        (false, true) => READ_METHODS,
        (false, false) => "OPTIONS",
    }
}

/// Everything the listener answers: the routes of the source, of the query API and of the books, health, and a word to
/// the lost.
///
/// # Errors
/// [`ServerError::SeveralSources`] when more than one source has routes.
pub fn app(
    ingest: Vec<Router>,
    query: Option<Router>,
    books: Router,
    health: HealthBoard,
) -> Result<Router, ServerError> {
    if ingest.len() > 1 {
        return Err(ServerError::SeveralSources(ingest.len()));
    }
    let event_methods = event_methods(!ingest.is_empty(), query.is_some());
    let own = books
        .route("/", get(index))
        .route("/livez", get(async || json_response(StatusCode::OK, &json!({"status": "ok"}))))
        .route("/readyz", get(readyz).with_state(health));
    let routes = ingest.into_iter().chain(query).fold(own, Router::merge);
    Ok(routes
        .method_not_allowed_fallback(async move |method: Method, uri: Uri| other_method(&method, &uri, event_methods))
        .fallback(not_found))
}

async fn index() -> Response {
    json_response(
        StatusCode::OK,
        &json!({
            "name": "The Eye",
            "version": env!("CARGO_PKG_VERSION"),
            "send": "POST /api/event/",
            "query": "GET /api/event/",
            "health": ["GET /livez", "GET /readyz"],
            "books": ["GET /audit", "GET /metrics"],
        }),
    )
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    components: Vec<Component>,
}

#[derive(Serialize)]
struct Component {
    name: Arc<str>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

async fn readyz(State(board): State<HealthBoard>) -> Response {
    let components = board.components();
    let ready =
        components.iter().all(|component| component.optional || component.state == health::ComponentState::Ready);
    let component = |health::Component { name, state, .. }| {
        let (state, reason) = match state {
            health::ComponentState::Starting => ("starting", None),
            health::ComponentState::Ready => ("ready", None),
            health::ComponentState::Unavailable { reason } => ("unavailable", Some(reason)),
        };
        Component { name, state, reason }
    };
    let components = components.into_iter().map(component).collect();
    let (code, status) = match ready {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    json_response(code, &Readiness { status, components })
}

async fn not_found(uri: Uri) -> Response {
    detail(StatusCode::NOT_FOUND, &format!("Not found: {}. Events are at /api/event/.", uri.path()))
}

/// `OPTIONS`, and the methods that a path does not have.
fn other_method(method: &Method, uri: &Uri, event_methods: &'static str) -> Response {
    let allow = if uri.path().starts_with("/api/event") { event_methods } else { READ_METHODS };
    let mut response = match *method {
        Method::OPTIONS => StatusCode::OK.into_response(),
        _ => detail(StatusCode::METHOD_NOT_ALLOWED, &format!("{method} is not allowed here; {allow} are.")),
    };
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

fn detail(status: StatusCode, detail: &str) -> Response {
    json_response(status, &json!({ "detail": detail }))
}

pub(crate) fn json_response(status: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_string(body).expect("our answers are structs of strings");
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

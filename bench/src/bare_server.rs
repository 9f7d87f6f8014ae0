//! A bare HTTP server: it parses, queues and answers, and does nothing else.
//!
//! Its rate is the limit H. No HTTP service that reads its events can be faster on the same machine. It runs in a
//! process of its own, because The Eye does so, too.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Largest number of request bodies in the queue.
const QUEUE_CAPACITY: usize = 65_536;

/// An event as a consumer would need it: with owned texts, and `data` as it was sent.
#[derive(Deserialize)]
#[allow(dead_code, reason = "the server parses each field and drops it")]
struct ParsedEvent {
    id: Uuid,
    session_id: String,
    category: String,
    name: String,
    timestamp: String,
    data: Box<RawValue>,
}

/// Serves until the process is killed. Prints the address first.
pub(crate) async fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    println!("{}", listener.local_addr()?);
    let (queue, mut queued) = mpsc::channel::<Vec<ParsedEvent>>(QUEUE_CAPACITY);
    tokio::spawn(async move {
        let mut batch = Vec::new();
        while queued.recv_many(&mut batch, 5000).await > 0 {
            batch.clear();
        }
    });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let queue = queue.clone();
        let service = service_fn(move |request| {
            let queue = queue.clone();
            async move { Ok::<_, Infallible>(handle(request, queue).await) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn handle(request: Request<Incoming>, queue: mpsc::Sender<Vec<ParsedEvent>>) -> Response<Full<Bytes>> {
    let Ok(body) = request.into_body().collect().await else { return answer(StatusCode::BAD_REQUEST, "") };
    let Ok(events) = parse(&body.to_bytes()) else { return answer(StatusCode::BAD_REQUEST, "") };
    match queue.send(events).await {
        Ok(()) => answer(StatusCode::CREATED, r#"{"success": true}"#),
        Err(_) => answer(StatusCode::SERVICE_UNAVAILABLE, ""),
    }
}

fn parse(body: &[u8]) -> serde_json::Result<Vec<ParsedEvent>> {
    if body.starts_with(b"[") { serde_json::from_slice(body) } else { Ok(vec![serde_json::from_slice(body)?]) }
}

fn answer(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

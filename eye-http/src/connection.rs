//! One HTTP/1.1 connection, from its first byte to a close that loses no answer.
//!
//! [`serve`] runs each handler to its end even when the client disconnects, and turns a panic into a 500.

use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::detach_on_drop::DetachOnDrop;
use crate::response::error;
use crate::write_timeout::WriteTimeout;

/// The time for which an answered connection still reads what its client sends. See [`linger`].
const LINGER: Duration = Duration::from_secs(2);

/// Serves one connection to its end. After `shutdown` it finishes the current request and closes.
pub(crate) async fn serve(
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
                // If the body was not read, the connection ends with this answer. hyper notices that only when it is
                // polled again. Without the yield it would not send `connection: close`.
                tokio::task::yield_now().await;
            }
            Ok::<_, Infallible>(answer)
        };
        DetachOnDrop::new(answer, tasks.clone())
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
        // The panic hook has logged the message and the location.
        Err(_panic) => {
            tracing::error!("a request handler panicked");
            error(StatusCode::INTERNAL_SERVER_ERROR, "Internal error; the server's log says more.")
        }
    }
}

/// Closes a connection so that its last answer arrives.
///
/// A client may still be sending a body that was refused unread. An immediate close would reset the connection, and the
/// client would lose the answer. Reads and discards for [`LINGER`] at most.
async fn linger(mut stream: TcpStream, shutdown: &CancellationToken) {
    let drained = async {
        let mut unread = [0; 16 * 1024];
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    tokio::select! {
        // After an error or the timeout there is no client left to serve.
        _ = tokio::time::timeout(LINGER, drained) => {}
        () = shutdown.cancelled() => {}
    }
}

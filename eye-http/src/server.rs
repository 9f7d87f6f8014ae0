//! The listener: binds the address, accepts connections within a bound, and drains them at shutdown.
//!
//! A client that disconnects never cancels a handler: the handler continues as a task of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ServerConfig;
use crate::connection;
use crate::write_timeout::WriteTimeout;

/// Bytes of one request's line and headers; above, hyper answers 431.
const MAX_HEADER_BYTES: usize = 32 * 1024;

/// Bytes of one connection's read buffer, and of its write buffer; hyper's own bound is 400 KiB.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// The pause after `accept` fails, for example at the limit of open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("server.listen: cannot listen on `{listen}`: {error}. {}", way_out(.error))]
pub struct BindError {
    /// The address as configured.
    pub listen: String,
    /// The system's error.
    pub error: io::Error,
}

fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "Stop the program that uses the port, or set another one.",
        io::ErrorKind::PermissionDenied => "Ports below 1024 need privileges: set a higher one.",
        io::ErrorKind::AddrNotAvailable => "The address is not this machine's: set one that is, or 0.0.0.0 for all.",
        _ => "Set an address and a port, such as `127.0.0.1:8000`.",
    }
}

/// A listener that is bound and accepts no connection yet.
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
    /// [`BindError`], with the way out.
    pub async fn bind(config: ServerConfig) -> Result<Self, BindError> {
        let bound = async {
            let listener = TcpListener::bind(&config.listen).await?;
            let local_addr = listener.local_addr()?;
            Ok((listener, local_addr))
        };
        match bound.await {
            Ok((listener, local_addr)) => Ok(Self { listener, local_addr, config }),
            Err(error) => Err(BindError { listen: config.listen, error }),
        }
    }

    /// Returns the bound address. Its port is the one that the system chose where the configuration says 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves `app` until `shutdown` is cancelled. Then it accepts no more connections, closes the idle ones, lets running
    /// requests finish, and returns after the last one. It sets no time limit to that; a caller that does may drop it.
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
                let connection = connection::serve(stream, http.clone(), app.clone(), tasks.clone(), shutdown.clone());
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

/// Returns the next connection. Logs the first failure and retries.
async fn accept(listener: &TcpListener) -> TcpStream {
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small answers must not wait for more data. A failure only makes them slower.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            // The client disconnected while it waited in the backlog.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !failing {
                    tracing::error!(%error, "cannot accept connections, retrying; raise the limit of open files if it is reached");
                    failing = true;
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

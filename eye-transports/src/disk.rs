//! A durable queue in one folder. A receipt settles once its events are on the disk, so producers are served while sinks
//! are away, and what was acknowledged outlives the process.
//!
//! The folder holds segments (`….log`, named after the number of their first event) of records, each with a checksum,
//! and how far each sink is (`cursors`). A segment is removed when every sink is done with it: that needs no room, so a
//! full disk empties itself. Beside them lie `dead-letters/` and what was `damaged/`.

mod appender;
mod dead_letters;
mod files;
mod log;
mod reader;
mod subscription;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use eye_core::ack::{Outcome, Receipt};
use eye_core::context::BuildContext;
use eye_core::dead_letter::DeadLetterStore;
use eye_core::error::BuildError;
use eye_core::event::Event;
use eye_core::health::Health;
use eye_core::transport::{Custody, PublishError, Subscription, Transport, TransportConfig, TransportError};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::record;

use appender::{Appender, Request, Status};
use dead_letters::DiskDeadLetters;
use log::Log;
use subscription::DiskSubscription;

/// What operators write below `[transport]` with `type = "disk"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct DiskConfig {
    /// The queue's folder, which is made where it is not there. One process may use it at a time.
    pub path: PathBuf,
    /// Bytes that the queue may take on the disk; beyond, requests are refused. Dead letters are not counted.
    pub max_bytes: u64,
    /// Bytes that are left free on the disk; below, requests are refused.
    pub min_free_bytes: u64,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self { path: "eye-data/queue".into(), max_bytes: 10 << 30, min_free_bytes: 256 << 20 }
    }
}

/// Less would not hold a few of the largest requests.
const MIN_MAX_BYTES: u64 = 64 << 20;

/// When a producer that found no room may come back.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl TransportConfig for DiskConfig {
    const TYPE: &'static str = "disk";

    fn check(&self) -> Vec<BuildError> {
        let too_small = format!("{} is too small: it must be at least {MIN_MAX_BYTES}", self.max_bytes);
        let no_path = "empty; it must name a folder".to_owned();
        let checks = [
            (self.max_bytes < MIN_MAX_BYTES, "max_bytes", too_small),
            (self.path.as_os_str().is_empty(), "path", no_path),
        ];
        let wrong = checks.into_iter().filter(|(is_wrong, ..)| *is_wrong);
        wrong.map(|(_, key, message)| BuildError::at(key, message)).collect()
    }

    async fn build(self, _context: &BuildContext) -> Result<Box<dyn Transport>, BuildError> {
        let path = self.path.clone();
        let opened = spawn_blocking(move || DiskTransport::open(&self)).await.expect("it does not panic");
        let transport = opened.map_err(|error| {
            let path = path_from_root(&path);
            BuildError::new(format!(
                "cannot open the queue {}: {error}; make it a folder that the user of The Eye may write to, or set `path`",
                path.display()
            ))
        })?;
        Ok(Box::new(transport))
    }

    fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        Some(Box::new(DiskDeadLetters::new(&self.path)))
    }
}

/// For messages: where a relative path leads.
fn path_from_root(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

struct DiskTransport {
    log: Arc<Log>,
    /// To the thread that writes. Its length is bounded by the log's room. `None` once the transport is closed.
    queue: RwLock<Option<mpsc::Sender<Request>>>,
    committed: watch::Receiver<u64>,
    status: watch::Receiver<Status>,
    closing: CancellationToken,
}

impl DiskTransport {
    /// Opens the queue and starts the thread that writes. Blocks.
    fn open(config: &DiskConfig) -> io::Result<Self> {
        let log = Arc::new(Log::open(&config.path, config.max_bytes, config.min_free_bytes)?);
        let (committed, committed_receiver) = watch::channel(0);
        let (status, status_receiver) = watch::channel(Status::Ready);
        let appender = Appender::new(log.clone(), committed, status);
        let (sender, queue) = mpsc::channel();
        thread::Builder::new().name("disk-queue".into()).spawn(move || appender.run(&queue))?;
        Ok(Self {
            log,
            queue: RwLock::new(Some(sender)),
            committed: committed_receiver,
            status: status_receiver,
            closing: CancellationToken::new(),
        })
    }
}

#[async_trait]
impl Transport for DiskTransport {
    async fn publish(&self, events: Vec<Event>) -> Result<Receipt, PublishError> {
        let (settle, receipt) = Receipt::pair();
        if events.is_empty() {
            settle(Outcome::Delivered);
            return Ok(receipt);
        }
        let count = u32::try_from(events.len()).expect("a request is bounded far below 4 GiB");
        let request = Request { events: record::encode(&events), count, settle: Box::new(settle) };
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = queue.as_ref() else { return Err(PublishError::Closed) };
        let reserved = request.reserved_bytes();
        self.log.reserve(reserved).map_err(|reason| PublishError::Full { reason, retry_after: RETRY_AFTER })?;
        // The thread has ended: the queue is broken, and the program about to stop.
        queue.send(request).map_err(|_| PublishError::Closed)?;
        Ok(receipt)
    }

    async fn subscribe(&self, consumer: &str) -> Result<Box<dyn Subscription>, TransportError> {
        if self.closing.is_cancelled() {
            return Err(TransportError(format!("{consumer} cannot subscribe: the transport is closed")));
        }
        let Some(cursor) = self.log.subscribe(consumer) else {
            return Err(TransportError(format!("{consumer} has subscribed already")));
        };
        let (committed, closing) = (self.committed.clone(), self.closing.clone());
        Ok(Box::new(DiskSubscription::new(self.log.clone(), consumer.to_owned(), cursor, committed, closing)))
    }

    fn close(&self) {
        self.closing.cancel();
        self.queue.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        Some(Arc::new(DiskDeadLetters::new(self.log.path())))
    }

    fn custody(&self, consumer: &str) -> Custody {
        self.log.lock().custody(consumer)
    }

    async fn watch(&self, health: Health) -> TransportError {
        self.log.start();
        let mut status = self.status.clone();
        loop {
            match status.borrow_and_update().clone() {
                Status::Ready => health.ready(),
                Status::Full(reason) => health.unavailable(reason),
                Status::Broken(reason) => return TransportError(reason),
            }
            if status.changed().await.is_err() {
                match self.closing.is_cancelled() {
                    true => std::future::pending().await,
                    false => return TransportError("the thread that writes the queue panicked".to_owned()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
